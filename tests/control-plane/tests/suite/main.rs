//! The real `plexd-devcp` process over real TLS, from outside: only what a node or an administrator can see.

#![expect(clippy::unwrap_used, reason = "tests")]

mod enrolment;
mod envelopes;
mod events;
mod faults;
mod process;
mod received;
mod state;
mod support;
