//! Who the node is: the bootstrap token it starts from ([`token`]), the identity it is given ([`store`]), how it gets
//! from one to the other ([`enrol`]) and gives the identity up ([`departure`]), how its WireGuard key is replaced
//! ([`rotation`]), and what it last told of itself ([`announced`]).

mod announced;
mod departure;
mod enrol;
mod machine;
mod rotation;
mod store;
mod token;

use std::net::IpAddr;
use std::sync::Arc;

use crate::control::client::Credentials;
use crate::types::{NodeId, NodeSecretKey, PrivateKey, SigningPublicKey};

pub use announced::Announced;
pub use departure::{Extent, Unfinished, resume as resume_departure};
pub use enrol::{
    Consent, Enroller, Farewell, JoinError, JoinRequests, Joined, Leave, LeaveError, LeaveRequests, Left,
    Start,
};
pub use machine::Machine;
pub use store::{IdentityStore, Loaded};
pub use token::{Token, TokenError, TokenLookup, find as find_token};

/// The node's identity, as registration gave it, and the key that belongs to it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Node id.
    pub node_id: NodeId,
    /// Address in the mesh.
    pub mesh_ip: IpAddr,
    /// Credential towards the control plane, and key of the node's secrets.
    pub secret_key: NodeSecretKey,
    /// The control plane's signing key at registration; newer ones are in the state.
    pub signing_key: SigningPublicKey,
    /// WireGuard private key.
    pub private_key: PrivateKey,
}

impl Identity {
    /// Returns what authenticates the node towards the control plane.
    pub fn credentials(&self) -> Credentials {
        Credentials { node_id: self.node_id.clone(), secret: self.secret_key.clone() }
    }
}

/// The identity as subsystems watch it: none until the node is enrolled.
pub type CurrentIdentity = tokio::sync::watch::Receiver<Option<Arc<Identity>>>;
