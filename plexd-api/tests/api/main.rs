//! The Local Node API from outside: a real server on real sockets, a real gRPC stream from a core that does as the
//! tests say, and requests as bytes.
#![expect(clippy::unwrap_used, reason = "tests")]

mod access;
mod bad_input;
mod client;
mod core;
mod guide;
mod live;
mod node;
