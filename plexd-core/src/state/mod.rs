//! The desired state: what the control plane wants of this node. Pulls and events become a new [`Desired`] here and
//! nowhere else ([`keeper`]); it is on disk before it is published, so that a node started without a control plane
//! works.

mod desired;
mod disk;
mod keeper;
mod model;
mod nonces;
mod ordered;
mod payload;
#[cfg(test)]
pub(crate) mod samples;
mod store;

pub use desired::{Applied, Desired};
pub use disk::OnDisk;
pub use keeper::{Durability, EventOutcome, PublishIdentity, PullOutcome, PullTicket, State, StateKeeper};
pub use model::*;
pub use nonces::Nonces;
pub use ordered::{EntryChange, Ordered, Placed};
pub use payload::{Payload, Texts, payloads};
pub use store::{EventMark, StateStore, Stored};

/// Members of the state that belong to features to come.
pub const SECTION_NAMES: [&str; 5] =
    ["bridge_config", "relay_config", "user_access_config", "ingress_config", "site_to_site_config"];
