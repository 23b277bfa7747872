//! The client and what is built on it against `plexd-devcp`, which was written from the documents and shares no code with
//! it: every endpoint, every status, and what arrived is what was sent.
#![expect(clippy::unwrap_used, reason = "tests")]

mod artifacts;
mod batches;
mod capabilities;
mod clock;
mod conformance;
mod devcp;
