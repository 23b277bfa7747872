//! The state's part in a rotation of this node's own key: that one is wanted, and that one is confirmed, become durable
//! with the peers, and are published with the identity. Sends and makes no key.

use std::io;
use std::sync::Arc;

use super::{Keeper, Request, State};
use crate::state::desired::Desired;
use crate::state::model::Peer;
use crate::types::PublicKey;

/// Publishes an identity, and calls what it is given while nobody can look at the identity: who looks at the state
/// while looking at the identity sees both old or both new.
pub struct PublishIdentity(Publish);

type Publish = Box<dyn FnOnce(&mut dyn FnMut()) + Send>;

impl PublishIdentity {
    /// Takes the function that publishes.
    pub fn new(publish: impl FnOnce(&mut dyn FnMut()) + Send + 'static) -> Self {
        Self(Box::new(publish))
    }

    /// Publishes the identity, and with it the state by `state`.
    pub(super) fn publish(self, state: &mut dyn FnMut()) {
        (self.0)(state);
    }
}

impl std::fmt::Debug for PublishIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublishIdentity(..)")
    }
}

/// Whether what is in force is also on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is.
    Durable,
    /// It could not be written; the next change tries again.
    InMemory,
}

impl State {
    /// Notes durably that the control plane wants this node to have a new key.
    pub async fn want_rotation(&self) -> io::Result<()> {
        self.ask(Request::WantRotation).await
    }

    /// Takes over that the control plane confirmed `key` as this node's: the peers with their new preshared keys become
    /// durable and are published, together with the identity by `publish`.
    pub async fn rotated(
        &self,
        key: PublicKey,
        peers: Vec<Peer>,
        publish: PublishIdentity,
    ) -> io::Result<Durability> {
        self.ask(|reply| Request::Rotated { key, peers, publish, reply }).await
    }

    /// Notes durably that the control plane refused a new key for good.
    pub async fn rotation_refused(&self) -> io::Result<()> {
        self.ask(Request::RotationRefused).await
    }
}

impl Keeper {
    pub(super) fn set_rotation_wanted(&mut self, wanted: bool) {
        if self.desired.own_key.rotation_wanted != wanted {
            let mut next = Desired::clone(&self.desired);
            next.own_key.rotation_wanted = wanted;
            self.publish(Arc::new(next), None);
        }
    }

    pub(super) fn on_rotated(
        &mut self,
        key: PublicKey,
        peers: Vec<Peer>,
        publish: PublishIdentity,
    ) -> Durability {
        // A pull that was sent before may bring the preshared keys of the old key.
        self.events += 1;
        let next = Arc::new(self.desired.rotated_to(key, peers));
        let durability = self.store(&next, None);
        publish.publish(&mut || {
            self.desired = Arc::clone(&next);
            self.publish.send_replace(Arc::clone(&next));
        });
        durability
    }
}
