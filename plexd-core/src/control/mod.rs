//! Speaking to the control plane (contract, section 2): the client and its wire types, their conversion to what the
//! rest of plexd-core works with, the event stream and its signed envelopes. Holds no state of the node and never
//! touches the kernel.
//!
//! - [`client`]: the endpoints, with classified errors
//! - [`wire`]: their JSON, exactly
//! - [`convert`]: wire to domain, entry by entry
//! - [`sse`], [`envelope`], [`events`]: bytes to items, items to verified envelopes, envelopes to events
//! - [`history`]: what became of the newest events
//! - [`secret`]: decryption of secret values
//! - [`session`]: the loops of an enrolled node
//! - [`batch`]: what is observed, queued within bounds and sent in batches
//! - [`backoff`]: how long to wait before trying again

pub mod backoff;
pub mod batch;
pub mod client;
pub mod convert;
#[cfg(test)]
pub(crate) mod dev;
pub mod envelope;
pub mod events;
pub mod history;
pub mod secret;
pub mod session;
mod signing_key_rotation;
pub mod sse;
pub mod wire;

#[cfg(test)]
mod test_vectors;

pub use signing_key_rotation::SigningKeyRotation;
