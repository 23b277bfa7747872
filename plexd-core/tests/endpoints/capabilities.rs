//! Capabilities are told when they changed, and only then.

use std::sync::Arc;
use std::time::Duration;

use plexd_core::control::client::Credentials;
use plexd_core::control::session::capabilities::Announcer;
use plexd_core::control::wire::CapabilitiesPayload;
use plexd_core::identity::{
    Announced, Enroller, Identity, IdentityStore, Machine, Start, Token, TokenLookup,
};
use plexd_core::state::State;
use plexd_core::status::Board;
use plexd_core::storage::DataDir;
use plexd_core::supervisor::Shutdown;
use plexd_core::types::{Clock, SystemClock};
use serde_json::Value;
use tokio::sync::watch;

use crate::batches::{identity, session};
use crate::devcp::{Devcp, until};

/// Announces as a process would from its start, until `holds`; then stops it.
async fn announce(
    devcp: &Devcp,
    identity: &Identity,
    announced: &Announced,
    holds: impl AsyncFnMut() -> bool,
) {
    let (_sender, current) = watch::channel(Some(Arc::new(identity.clone())));
    let task = Announcer {
        session: session(devcp, current),
        machine: Machine::new(Some("one")).unwrap(),
        announced: announced.clone(),
        first_contact: Duration::ZERO,
    };
    let shutdown = Shutdown::new();
    let task = tokio::spawn(task.run(shutdown.clone()));
    until("announced", holds).await;
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

async fn told(devcp: &Devcp, who: &Credentials) -> Vec<Value> {
    devcp.received(who, "capabilities").await
}

#[tokio::test]
async fn capabilities_are_told_once_and_again_when_the_binary_has_changed_though_the_first_attempts_fail() {
    let devcp = Devcp::start().await;
    let who = devcp.enrol("one").await;
    let folder = tempfile::tempdir().unwrap();
    let announced = Announced::new(&DataDir::open(folder.path()).unwrap());
    let now = Machine::new(Some("one")).unwrap().capabilities().await;
    let shown = serde_json::to_value(&now).unwrap();
    let identity = identity(&who);

    let mut broken = true;
    devcp.break_with("capabilities", 503).await;
    announce(&devcp, &identity, &announced, async || {
        if std::mem::take(&mut broken) {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(told(&devcp, &who).await.is_empty());
            devcp.heal().await;
        }
        announced.is(&who.node_id, &now).unwrap()
    })
    .await;
    assert_eq!(told(&devcp, &who).await, std::slice::from_ref(&shown));

    let mut rounds = 0..30;
    announce(&devcp, &identity, &announced, async || rounds.next().is_none()).await;
    assert_eq!(told(&devcp, &who).await.len(), 1, "a restart of the same binary tells nothing");

    announced.remember(&who.node_id, &CapabilitiesPayload::default()).unwrap();
    announce(&devcp, &identity, &announced, async || announced.is(&who.node_id, &now).unwrap()).await;
    assert_eq!(told(&devcp, &who).await, [shown.clone(), shown]);
}

#[tokio::test]
async fn capabilities_that_are_refused_for_good_are_a_problem_and_told_again_at_the_next_start() {
    let devcp = Devcp::start().await;
    let who = devcp.enrol("one").await;
    let folder = tempfile::tempdir().unwrap();
    let announced = Announced::new(&DataDir::open(folder.path()).unwrap());
    let now = Machine::new(Some("one")).unwrap().capabilities().await;
    devcp.break_with("capabilities", 400).await;
    let (_sender, current) = watch::channel(Some(Arc::new(identity(&who))));
    let session = session(&devcp, current);
    let board = session.board.clone();
    let shutdown = Shutdown::new();
    let machine = Machine::new(Some("one")).unwrap();
    let task = Announcer { session, machine, announced: announced.clone(), first_contact: Duration::ZERO };
    let task = tokio::spawn(task.run(shutdown.clone()));
    until("the refusal told", async || board.is_degraded()).await;
    let problem = board.problems().remove(0).message;
    assert!(problem.starts_with("the control plane does not take the node's capabilities: "), "{problem}");
    assert!(!announced.is(&who.node_id, &now).unwrap());
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_registration_told_is_not_told_again() {
    let devcp = Devcp::start().await;
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let board = Board::default();
    let (state, keeper) = State::open(&folder.path().join("state.redb"), clock, board.clone(), None).unwrap();
    let store = IdentityStore::new(DataDir::open(folder.path()).unwrap());
    let announced = store.announced();
    let loaded = store.load(&SystemClock).unwrap();
    let token = TokenLookup::Found(Token::parse(&devcp.token().await).unwrap());
    let machine = Machine::new(Some("one")).unwrap();
    let start = Start { store, loaded, token, machine: machine.clone() };
    let (enroller, mut current, _joins) =
        Enroller::new(start, devcp.client.clone(), state, board, Arc::default());
    let shutdown = Shutdown::new();
    let tasks = [tokio::spawn(keeper.run(shutdown.clone())), tokio::spawn(enroller.run(shutdown.clone()))];
    let identity = current.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(announced.is(&identity.node_id, &machine.capabilities().await).unwrap());
    shutdown.cancel();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}
