//! What core serves to the sidecar on core.sock: the state as a stream ([`watch`]), secrets on demand ([`reads`], [`secrets`]) to
//! callers whom core sees by itself ([`proofs`], [`witness`]), each read with its record ([`audit`]), and a place for reports
//! ([`writes`]). Core parses nothing of what applications send but these fixed messages.

mod audit;
mod custody;
mod places;
mod proofs;
mod reads;
mod secrets;
mod service;
mod token;
mod turns;
mod watch;
mod witness;
mod writes;

use plexd_proto::node::MAX_WRITES_BYTES;

pub use audit::Auditor;
pub use proofs::Proofs;
pub use secrets::{SecretReader, SecretRules};
pub use service::{NodeStateService, RULES, Sidecar, Who};
pub use token::{ApiToken, ApiTokenError, TokenSource};

/// Largest gRPC message to the sidecar, in bytes: a report at its limit of 64 MiB, and what is around it.
pub const MAX_MESSAGE: usize = 72 * 1024 * 1024;

/// Returns the largest gRPC message from the sidecar, in bytes: a report of `max_report_bytes`, or as many smaller ones as
/// go together, and what is around them.
pub fn largest_request(max_report_bytes: u32) -> usize {
    const AROUND: usize = 64 * 1024;
    usize::try_from(max_report_bytes).map_or(MAX_MESSAGE, |bytes| bytes.max(MAX_WRITES_BYTES) + AROUND)
}
