//! Validated values: what is parsed here cannot be wrong further in. Each key has a type of its own, so that a public
//! key cannot be passed for a private one.

mod allowed_ips;
mod checksum;
mod clock;
mod endpoint;
mod ids;
mod keys;

pub use allowed_ips::AllowedIps;
pub use checksum::{Checksum, ChecksumError};
pub use clock::{Clock, SystemClock};
pub use endpoint::{Endpoint, EndpointError};
pub use ids::{NodeId, NodeIdError};
pub use keys::{KeyError, NodeSecretKey, PresharedKey, PrivateKey, PublicKey, SigningPublicKey};
