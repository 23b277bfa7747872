//! The task that keeps what is known of the time on disk, and says what is wrong with the clock and what to do. Corrects
//! nothing: the machine's clock is others' to set.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::jump::{Behind, Handshakes, Stamps};
use super::kept::{ClockFile, Kept};
use super::{NodeClock, View};
use crate::identity::CurrentIdentity;
use crate::reconcile::Mesh;
use crate::status::{Board, Subsystem};
use crate::supervisor::Shutdown;

/// How often the clock is looked at.
const PERIOD: Duration = Duration::from_secs(10);

/// How often what is known is written down, unless there is news.
const SAVE_PERIOD: Duration = Duration::from_mins(5);

/// Status says so from here on: a tenth of what makes events refused.
const SKEW: SignedDuration = SignedDuration::from_secs(30);

/// How long the mesh may take to say how it is.
const MESH_DEADLINE: Duration = Duration::from_secs(2);

/// How a clock is set.
const ADVICE: &str = "set it, e.g. enable systemd-timesyncd or chrony";

/// The task.
#[derive(Debug)]
pub struct ClockKeeper {
    clock: Arc<NodeClock>,
    file: ClockFile,
    board: Board,
    identity: CurrentIdentity,
    mesh: Mesh,
    stamps: Stamps,
    handshakes: Handshakes,
    saved: Kept,
    saved_at: Instant,
}

impl ClockKeeper {
    /// Creates the task; `before` is what the file had at start, and `stamps` tells where handshakes take their time from.
    pub fn new(
        clock: Arc<NodeClock>,
        (file, before): (ClockFile, Kept),
        board: Board,
        identity: CurrentIdentity,
        (mesh, stamps): (Mesh, Stamps),
    ) -> Self {
        let View { wall, uptime, .. } = clock.view();
        let handshakes = Handshakes::new(stamps, before.highest, wall, uptime);
        Self {
            clock,
            file,
            board,
            identity,
            mesh,
            stamps,
            handshakes,
            saved: before,
            saved_at: Instant::now(),
        }
    }

    /// Looks at the clock until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        loop {
            let view = self.clock.view();
            self.tell(&view);
            self.tell_of_handshakes(&view).await;
            let kept = self.kept(&view);
            if has_news(&kept, &self.saved) || self.saved_at.elapsed() >= SAVE_PERIOD {
                self.save(kept).await;
            }
            // Cancel safe: an answer or a key that is not noticed now is within the next view.
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.clock.changed() => {}
                // With another key handshakes begin anew. Who sets it is there until the shutdown.
                Ok(()) = self.identity.changed() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        let view = self.clock.view();
        self.look(&view);
        let kept = self.kept(&view);
        self.save(kept).await;
        Ok(())
    }

    fn tell(&self, view: &View) {
        self.board.control(|control| control.clock_skew = view.skew);
        self.board.set(Subsystem::Clock, "skew", view.skew.and_then(skew_problem));
        self.board.set(Subsystem::Clock, "unset", unset_problem(view));
        self.board.set(Subsystem::Clock, "date", view.disbelieved.map(date_problem));
    }

    /// Notes which handshakes may have been made by now; returns how far their time is behind, if it is.
    fn look(&mut self, view: &View) -> Option<Behind> {
        let key = self.identity.borrow().as_ref().map(|identity| identity.private_key.public());
        self.handshakes.look(key, view.wall, view.uptime)
    }

    async fn tell_of_handshakes(&mut self, view: &View) {
        let problem = match self.look(view) {
            None => None,
            Some(behind) => {
                let mesh = tokio::time::timeout(MESH_DEADLINE, self.mesh.status()).await.ok().flatten();
                // A mesh that does not answer says nothing of its handshakes.
                let fails = mesh.is_none_or(|mesh| mesh.lacks_handshakes(behind.lasting));
                fails.then(|| handshake_problem(&behind, self.stamps))
            }
        };
        self.board.set(Subsystem::Clock, "back", problem);
    }

    fn kept(&self, view: &View) -> Kept {
        Kept { highest: self.handshakes.highest(), ..view.kept }
    }

    async fn save(&mut self, kept: Kept) {
        self.saved_at = Instant::now();
        if kept == Kept::default() {
            return;
        }
        let file = self.file.clone();
        let saved = tokio::task::spawn_blocking(move || file.save(&kept)).await;
        let problem = match saved {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        // Also after a failure: it is tried again with the next period, not with each look.
        self.saved = kept;
        let told = problem.map(|problem| {
            format!("the last known time cannot be stored: {problem}; free space in the data directory")
        });
        self.board.set(Subsystem::Storage, "clock", told);
    }
}

/// Returns whether something other than the passing of time has changed.
fn has_news(kept: &Kept, saved: &Kept) -> bool {
    let shape =
        |kept: &Kept| (kept.known.is_some(), kept.told.is_some(), kept.highest.map(|highest| highest.key));
    shape(kept) != shape(saved)
}

fn skew_problem(skew: SignedDuration) -> Option<String> {
    if skew.abs() < SKEW {
        return None;
    }
    let (span, side) = (span(skew.unsigned_abs()), if skew.is_negative() { "behind" } else { "ahead of" });
    Some(format!(
        "the clock of this node is {span} {side} the control plane: {ADVICE}; until then the control plane's time counts"
    ))
}

fn unset_problem(view: &View) -> Option<String> {
    (!view.is_told && view.wall < view.floor).then(|| {
        // Otherwise it is the build that is later, and the clock cannot be right.
        let otherwise = match view.kept.known {
            Some(_) => "; if it is right, stop plexd-core, remove clock.json from its data directory, and start it",
            None => "",
        };
        format!(
            "the clock of this node says {}, but plexd was built and has run later than that: {ADVICE}; until then, or until \
             the control plane answers, time counts from {}{otherwise}",
            whole_seconds(view.wall),
            whole_seconds(view.floor)
        )
    })
}

fn date_problem(date: Timestamp) -> String {
    format!(
        "the control plane says that it is {}, which is before plexd was built or when its own certificate is not valid; that \
         is not believed: set the control plane's clock",
        whole_seconds(date)
    )
}

fn handshake_problem(behind: &Behind, stamps: Stamps) -> String {
    let (when, set) = match stamps {
        Stamps::Clock => ("", "set the clock if it is wrong"),
        Stamps::SteadyFromStart => {
            (" before plexd-core started", "set the clock if it is wrong, then restart plexd-core")
        }
    };
    format!(
        "the clock of this node went back{when}, so that peers refuse the WireGuard handshakes which this node begins until \
         {} (in {}); those that peers begin still work. Way out: {set}; if it is right, wait, or have the control plane \
         rotate this node's key, with which handshakes begin anew",
        whole_seconds(behind.until),
        span(behind.by)
    )
}

/// Returns a length of time in words: seconds, or more coarsely if that is too many to grasp.
fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..7200 => format!("{seconds} s"),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests;
