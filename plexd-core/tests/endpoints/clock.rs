//! Events on a node whose clock is wrong: judged by the control plane's time, once it has answered.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use plexd_core::clock::{Kept, Machine, NodeClock, Source, built};
use plexd_core::control::convert::Registration;
use plexd_core::control::session::Session;
use plexd_core::control::session::stream::StreamReader;
use plexd_core::state::State;
use plexd_core::status::{Board, ControlStatus, Stream};
use plexd_core::supervisor::Shutdown;
use reqwest::Method;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::batches::identity;
use crate::devcp::{Devcp, registration, until};

/// This machine with a clock that is set to a time when the machine was up for as long as now.
#[derive(Debug)]
struct Wrong {
    wall: Timestamp,
    uptime: Duration,
}

impl Source for Wrong {
    fn wall(&self) -> Timestamp {
        self.wall + self.uptime().saturating_sub(self.uptime)
    }

    fn uptime(&self) -> Duration {
        Machine.uptime()
    }
}

fn wrong(wall: Timestamp) -> Arc<NodeClock> {
    let clock = NodeClock::new(Arc::new(Wrong { wall, uptime: Machine.uptime() }), built());
    // Known from an earlier run, when the certificate was there already.
    clock.remember(&Kept { known: Some(Timestamp::now() - Duration::from_mins(20)), ..Kept::default() });
    Arc::new(clock)
}

/// Sends an event to a node that speaks to the control plane by one clock and judges events by the other.
async fn event(speaks: &Arc<NodeClock>, judges: &Arc<NodeClock>) -> ControlStatus {
    let devcp = Devcp::start().await;
    let client = devcp.client_by(speaks);
    let Registration { node_id, node_secret_key: secret, signing_key, .. } =
        client.register(&registration(&devcp.token().await, "one")).await.unwrap();
    let who = plexd_core::control::client::Credentials { node_id, secret };
    let board = Board::default();
    let path = devcp.dir.path().join("node.redb");
    let (state, keeper) =
        State::open(&path, Arc::clone(judges) as _, board.clone(), Some(signing_key)).unwrap();
    let (_sender, current) = watch::channel(Some(Arc::new(identity(&who))));
    let session =
        Session { client, identity: current, board: board.clone(), pulls: Arc::default(), name: "test" };
    let reader = StreamReader { session, state, drift: mpsc::channel(1).0, first_contact: Duration::ZERO };
    let shutdown = Shutdown::new();
    let tasks = [tokio::spawn(keeper.run(shutdown.clone())), tokio::spawn(reader.run(shutdown.clone()))];
    until("connected", async || board.control_status().stream == Stream::Connected).await;
    let path = format!("nodes/{}/state", who.node_id);
    devcp.manage(Method::PUT, &path, &json!({"metadata": {"a": "b"}})).await;
    until("an event", async || {
        let control = board.control_status();
        control.accepted > 0 || !control.rejected.is_empty()
    })
    .await;
    shutdown.cancel();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    board.control_status()
}

#[tokio::test]
async fn events_are_accepted_ten_minutes_and_decades_off_the_control_planes_time() {
    let now = Timestamp::now();
    for wall in
        [now + SignedDuration::from_mins(10), now - SignedDuration::from_mins(10), Timestamp::UNIX_EPOCH]
    {
        let clock = wrong(wall);
        let control = event(&clock, &clock).await;
        assert_eq!((control.accepted, control.rejected.len()), (1, 0), "{wall}");
        let skew = clock.view().skew.unwrap();
        assert!((skew - wall.duration_since(now)).abs() < SignedDuration::from_secs(5), "{skew:?}");
    }
}

#[tokio::test]
async fn without_the_control_planes_time_the_same_events_are_refused() {
    let now = Timestamp::now();
    for (minutes, reason) in [(10, "stale"), (-10, "future")] {
        let wall = now + SignedDuration::from_mins(minutes);
        let control = event(&Arc::new(NodeClock::system()), &wrong(wall)).await;
        assert_eq!(control.accepted, 0);
        assert_eq!(control.rejected.keys().copied().collect::<Vec<_>>(), [reason]);
    }
}
