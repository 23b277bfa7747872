//! Payloads in memory as long as they are news, and on disk.

use std::sync::Arc;
use std::time::Duration;

use plexd_proto::memory;
use tokio::sync::{mpsc, watch};

use super::{Keeper, Request};
use crate::state::desired::Desired;
use crate::state::payload::Disk;

/// How long those who watch have to tell a change on before its payloads are read from disk.
const TELLING: Duration = Duration::from_secs(5);

/// Waits for a change, and has the keeper leave its payloads to the disk once it has been told.
pub(super) async fn leave_to_disk(
    desired: &mut watch::Receiver<Arc<Desired>>,
    keeper: &mpsc::Sender<Request>,
) {
    if desired.changed().await.is_err() {
        // The keeper has ended.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(TELLING).await;
    // One that has ended has nothing in memory.
    let _ = keeper.send(Request::LeaveToDisk(keeper.downgrade())).await;
}

impl Keeper {
    /// Forgets the payloads that are on disk. What could not be stored stays.
    pub(super) fn leave_to(&self, disk: &Disk) {
        let left = self.stored.data.iter().filter(|(_, placed)| placed.entry.payload.leave_to(disk)).count();
        if left > 0 {
            memory::give_back();
        }
    }
}
