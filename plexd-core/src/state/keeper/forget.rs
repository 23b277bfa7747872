//! The state's part in giving the node's identity up: it is empty again, on disk and in memory, published together with
//! the identity that is no more.

use std::io;
use std::sync::Arc;

use super::{Keeper, PublishIdentity, Request, State, tell_rejected};
use crate::state::desired::Desired;
use crate::state::nonces::Nonces;
use crate::status::Subsystem;
use crate::storage::StorageError;

impl State {
    /// Forgets all that the control plane ever said, preshared keys, nonces and the last event included, and publishes
    /// the empty state together with the identity by `publish`.
    ///
    /// # Errors
    /// The inner error: the file is still there. It is forgotten in memory all the same.
    pub async fn forget(&self, publish: PublishIdentity) -> io::Result<Result<(), StorageError>> {
        self.ask(|reply| Request::Forget { publish, reply }).await
    }
}

impl Keeper {
    pub(super) fn on_forget(&mut self, publish: PublishIdentity) -> Result<(), StorageError> {
        // An answer that is still on its way was to the identity that is no more.
        self.events += 1;
        self.awaits_pull = false;
        self.nonces = Nonces::default();
        self.replaced = None;
        let empty = Arc::new(Desired::default());
        let removed = self.store.start_over();
        if removed.is_ok() {
            self.stored = Arc::clone(&empty);
        }
        tell_rejected(&self.board, &empty);
        for what in ["state", "state_write"] {
            self.board.clear(Subsystem::Storage, what);
        }
        self.board.control(|control| control.last_event_id = None);
        self.last_event_id.send_replace(None);
        publish.publish(&mut || {
            self.desired = Arc::clone(&empty);
            self.publish.send_replace(Arc::clone(&empty));
        });
        removed
    }
}
