//! Rotation of the node's WireGuard key (contract, section 4), so that a crash at any instruction loses neither key:
//!
//! 1. the request is stored with the event that brought it, or on its own ([`OwnKey::rotation_wanted`]);
//! 2. the new key is stored as pending and sent; after a crash the same key is sent again;
//! 3. the answer, the peers with their new preshared keys and that the key is confirmed, is stored in one transaction,
//!    which is what decides which of the two keys is the node's ([`OwnKey::confirmed`]);
//! 4. key and peers are published together, and the pending key becomes the key on disk; if a crash comes between, the
//!    next start does that.
//!
//! The old key is in force until step 3. Run by the [`Enroller`](super::Enroller), the only owner of the identity.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Identity;
use super::store::IdentityStore;
use crate::control::backoff::{self, Backoff};
use crate::control::client::ClientError;
use crate::control::convert::Sifted;
use crate::control::session::Session;
use crate::state::{Desired, Durability, Peer, PublishIdentity, State};
use crate::status::Subsystem;
use crate::types::{PrivateKey, PublicKey};

#[cfg(doc)]
use crate::state::OwnKey;

#[cfg(test)]
mod tests;

/// Name of the problem on the board.
const PROBLEM: &str = "rotation";

/// What a rotation takes from and brings to the rest of the node.
#[derive(Debug)]
pub(super) struct Rotation {
    store: IdentityStore,
    session: Session,
    state: State,
    desired: watch::Receiver<Arc<Desired>>,
    publish: watch::Sender<Option<Arc<Identity>>>,
    stage: Stage,
    backoff: Backoff,
    not_before: Instant,
}

/// How far it is.
#[derive(Debug, Clone)]
enum Stage {
    /// There is no pending key.
    Idle,
    /// The key is stored as pending, and is to be sent.
    Pending(PrivateKey),
    /// The key is in force, and that is to be stored.
    Swapped(PublicKey),
}

impl Rotation {
    /// Goes on where the last process stopped: with `pending`, if there is one.
    pub(super) fn new(
        store: IdentityStore,
        session: Session,
        state: State,
        publish: watch::Sender<Option<Arc<Identity>>>,
        pending: Option<PrivateKey>,
    ) -> Self {
        Self {
            store,
            session,
            desired: state.desired(),
            state,
            publish,
            stage: pending.map_or(Stage::Idle, Stage::Pending),
            backoff: Backoff::new(),
            not_before: Instant::now(),
        }
    }

    /// Forgets the pending key, and whatever an identity that is no more had to wait for.
    pub(super) fn forget(&mut self) {
        self.stage = Stage::Idle;
        self.backoff.reset();
        self.not_before = Instant::now();
        self.session.board.clear(Subsystem::Storage, PROBLEM);
    }

    /// Waits until there is something to do for a node that has an identity.
    pub(super) async fn due(&mut self) {
        if matches!(self.stage, Stage::Idle)
            && self.desired.wait_for(|desired| desired.own_key.rotation_wanted).await.is_err()
        {
            // The process is stopping.
            std::future::pending::<()>().await;
        }
        tokio::select! {
            () = tokio::time::sleep_until(self.not_before) => {}
            // What another identity had to wait for is over.
            Ok(()) = self.session.identity.changed() => {}
        }
    }

    /// Goes as far as it can. Whatever was done before it is dropped is on disk.
    pub(super) async fn advance(&mut self) {
        self.session.identity.mark_unchanged();
        let Some(identity) = self.publish.borrow().clone() else { return };
        match self.stage.clone() {
            Stage::Idle => self.prepare(),
            Stage::Pending(key) => self.send(&identity, key).await,
            Stage::Swapped(key) => self.store_swap(key).await,
        }
    }

    /// Makes the new key, and stores it as pending.
    fn prepare(&mut self) {
        let stored =
            PrivateKey::generate().map_err(|error| format!("no key can be generated: {error}")).and_then(
                |key| self.store.save_pending_key(&key).map(|()| key).map_err(|error| error.to_string()),
            );
        match stored {
            Ok(key) => {
                tracing::info!(public_key = %key.public(), "key rotation begins");
                self.stage = Stage::Pending(key);
            }
            Err(reason) => self.not_stored(&reason),
        }
    }

    /// Asks the control plane to accept the pending key.
    async fn send(&mut self, identity: &Arc<Identity>, key: PrivateKey) {
        match self.session.client.rotate_keys(&identity.credentials(), &key.public()).await {
            Ok(peers) => {
                self.session.answered();
                self.swap(identity, key, peers).await;
            }
            Err(error) if error.is_final() => self.give_up(&error).await,
            Err(error) => {
                let delay = self.session.failed(&error, &mut self.backoff);
                self.not_before = Instant::now() + delay;
                let message = format!(
                    "the control plane has not confirmed this node's new WireGuard key yet: {error}; the old key stays in \
                     force, and plexd-core goes on asking"
                );
                self.session.board.raise(Subsystem::ControlPlane, PROBLEM, message);
            }
        }
    }

    /// Brings the confirmed key and the peers that belong to it into force, together and at once.
    async fn swap(&mut self, identity: &Arc<Identity>, key: PrivateKey, peers: Sifted<Peer>) {
        let public = key.public();
        for rejected in &peers.rejected {
            tracing::warn!(
                peer = rejected.name,
                reason = rejected.reason,
                "peer of the key rotation left out"
            );
        }
        let next = Arc::new(Identity { private_key: key, ..Identity::clone(identity) });
        let sender = self.publish.clone();
        let publish = PublishIdentity::new(move |publish_state| {
            sender.send_modify(|current| {
                *current = Some(next);
                publish_state();
            });
        });
        // The state keeper is gone only when the process stops; the pending key is sent again then.
        let Ok(durability) = self.state.rotated(public, peers.accepted, publish).await else { return };
        tracing::info!(public_key = %public, "key rotated");
        self.stage = Stage::Swapped(public);
        self.session.identity.mark_unchanged();
        self.session.board.clear(Subsystem::ControlPlane, PROBLEM);
        self.settle(durability);
        // Peers that were left out, and what changed between the answer and now.
        self.session.pulls.notify_one();
    }

    /// Tries again to store what is in force already.
    async fn store_swap(&mut self, key: PublicKey) {
        let publish = PublishIdentity::new(|publish_state| publish_state());
        if let Ok(durability) = self.state.rotated(key, Vec::new(), publish).await {
            self.settle(durability);
        }
    }

    /// Makes the pending key the key on disk, once the peers that belong to it are there.
    fn settle(&mut self, durability: Durability) {
        let promoted = match durability {
            Durability::Durable => self.store.promote_pending_key().map_err(|error| error.to_string()),
            Durability::InMemory => Err("the peers that belong to it are not stored".to_owned()),
        };
        match promoted {
            Ok(()) => {
                self.stage = Stage::Idle;
                self.backoff.reset();
                self.not_before = Instant::now();
                self.session.board.clear(Subsystem::Storage, PROBLEM);
            }
            Err(reason) => self.not_stored(&reason),
        }
    }

    /// Gives the pending key up: the control plane will not accept it, now or later.
    async fn give_up(&mut self, error: &ClientError) {
        let message = format!(
            "the control plane refuses this node's new WireGuard key: {error}; the old key stays in force until the control \
             plane asks for another one"
        );
        self.session.board.raise(Subsystem::ControlPlane, PROBLEM, message);
        if let Err(error) = self.store.remove_pending_key() {
            self.not_stored(&error.to_string());
            return;
        }
        self.stage = Stage::Idle;
        self.backoff.reset();
        // Fails only when the process stops.
        let _ = self.state.rotation_refused().await;
    }

    fn not_stored(&mut self, reason: &str) {
        let message = format!(
            "this node's new WireGuard key cannot be stored: {reason}; free space in the data directory, plexd-core goes on \
             trying"
        );
        self.session.board.raise(Subsystem::Storage, PROBLEM, message);
        self.not_before = Instant::now() + self.backoff.next(backoff::random());
    }
}
