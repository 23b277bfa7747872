//! The stream that feeds the mirror: asked for again whenever it ends. Losing it is told once, and once that it is
//! back.

use std::sync::Arc;

use plexd_proto::memory;
use plexd_proto::node::v1::WatchRequest;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::backoff::Backoff;
use super::{Core, denials};
use crate::mirror::{Mirror, Pace, Stage};

/// Feeds `mirror` from `core`, and tells `core` of refused reads of secrets, until `shutdown`.
pub async fn follow(core: Core, mirror: Arc<Mirror>, shutdown: CancellationToken) {
    let told = core.clone();
    let mut follower = Follower { core, mirror, backoff: Backoff::new(), told: Told::Nothing };
    // Safe to cancel anywhere: what is set aside never showed, and the process is ending.
    tokio::join!(shutdown.run_until_cancelled(follower.run()), denials::tell(&told, &shutdown));
}

/// What the log says of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Lost,
    Open,
}

struct Follower {
    core: Core,
    mirror: Arc<Mirror>,
    backoff: Backoff,
    told: Told,
}

impl Follower {
    async fn run(&mut self) {
        loop {
            let end = self.stream().await;
            self.mirror.stream_lost();
            if self.told != Told::Lost {
                let (code, message) = (end.code(), end.message());
                tracing::warn!(?code, message, "no state from core; serving what is known, if anything");
                self.told = Told::Lost;
            }
            tokio::time::sleep(self.backoff.wait()).await;
        }
    }

    /// Follows one stream to its end, and returns why it ended.
    async fn stream(&mut self) -> Status {
        self.mirror.stream_opened();
        let mut client = self.core.client.clone();
        let mut stream = match client.watch(WatchRequest {}).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        let mut stage = Stage::snapshot();
        let mut pace = Pace::new();
        loop {
            let piece = match stream.message().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Status::unavailable("core ended the stream"),
                Err(status) => return status,
            };
            if stage.add(piece, &mut pace).await {
                // Of what is as it was there are two for a moment.
                let is_twice = stage.reset && self.mirror.snapshot().is_some();
                self.mirror.publish(std::mem::take(&mut stage)).await;
                self.opened();
                if is_twice {
                    memory::give_back();
                }
            }
        }
    }

    fn opened(&mut self) {
        self.backoff.reset();
        if self.told != Told::Open {
            tracing::info!("following the state of core");
            self.told = Told::Open;
        }
    }
}
