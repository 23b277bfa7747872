//! The keeper through its handle: signed events, pulls, restarts, a full disk.

use std::path::PathBuf;
use std::process::Command;

use ed25519_dalek::SigningKey;
use tokio::task::JoinHandle;

use super::*;
use crate::control::history::Outcome;
use crate::policy::PolicySet;
use crate::state::samples::{StandingClock, data, envelope, peer, policies, public, signing_key};

/// A running keeper.
struct Rig {
    path: PathBuf,
    clock: Arc<StandingClock>,
    board: Board,
    state: State,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Rig {
    fn start(path: PathBuf, clock: Arc<StandingClock>) -> Self {
        let board = Board::default();
        let registered = Some(public(&signing_key(1)));
        let (state, keeper) = State::open(&path, clock.clone(), board.clone(), registered).unwrap();
        let shutdown = Shutdown::new();
        let task = tokio::spawn(keeper.run(shutdown.clone()));
        Self { path, clock, board, state, shutdown, task }
    }

    fn new(folder: &tempfile::TempDir) -> Self {
        Self::start(folder.path().join("state.redb"), Arc::default())
    }

    async fn restarted(self) -> Self {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        assert!(self.state.begin_pull().await.is_err(), "stopped");
        Self::start(self.path, self.clock)
    }

    fn envelope(&self, event_type: &str, id: &str, payload: &str) -> Bytes {
        self.signed_by(&signing_key(1), event_type, id, payload)
    }

    fn signed_by(&self, key: &SigningKey, event_type: &str, id: &str, payload: &str) -> Bytes {
        envelope(key, event_type, id, self.clock.now(), payload)
    }

    async fn send(&self, id: &str, data: Bytes) -> EventOutcome {
        self.state.event(Some(id.to_owned()), data).await.unwrap()
    }

    async fn pull(&self, state: FullState) -> PullOutcome {
        let ticket = self.state.begin_pull().await.unwrap();
        self.state.pulled(ticket, state).await.unwrap()
    }

    fn desired(&self) -> Arc<Desired> {
        Arc::clone(&self.state.desired().borrow())
    }

    fn last_event_id(&self) -> Option<String> {
        let id = self.state.last_event_id().map(|id| id.to_string());
        assert_eq!(self.board.control_status().last_event_id, id);
        id
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }
}

const PEER: &str = r#"{"id":"n_b","public_key":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","mesh_ip":"10.100.0.2","allowed_ips":["10.100.0.2/32"]}"#;

const ACCEPTED: EventOutcome = EventOutcome { rejected: None, pull: false, corrections: Vec::new() };

#[tokio::test]
async fn an_accepted_event_survives_a_restart_and_is_refused_a_second_time() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let envelope = rig.envelope("peer_added", "evt-1", PEER);
    assert_eq!(rig.send("evt-1", envelope.clone()).await, ACCEPTED);
    assert_eq!(rig.desired().peers["n_b"].mesh_ip.to_string(), "10.100.0.2");

    let rig = rig.restarted().await;
    assert!(rig.desired().peers.contains_key("n_b"));
    assert_eq!(rig.last_event_id().as_deref(), Some("evt-1"));
    assert_eq!(rig.send("evt-1", envelope.clone()).await.rejected, Some("replay"));
    // To the end of the window, and then for its age.
    rig.clock.advance(300);
    assert_eq!(rig.send("evt-1", envelope.clone()).await.rejected, Some("replay"));
    rig.clock.advance(1);
    assert_eq!(rig.send("evt-1", envelope).await.rejected, Some("stale"));
}

#[tokio::test]
async fn a_rejected_event_advances_the_last_id_is_counted_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let mut seen = rig.state.desired();
    let early = rig.envelope("peer_added", "early", PEER);
    rig.clock.advance(-301);
    let late = rig.envelope("peer_added", "late", PEER);
    assert_eq!(rig.send("e-1", early).await.rejected, Some("future"));
    rig.clock.advance(602);
    assert_eq!(rig.send("e-2", late).await.rejected, Some("stale"));
    let stranger = rig.signed_by(&signing_key(2), "peer_added", "e-3", PEER);
    assert_eq!(rig.send("e-3", stranger).await.rejected, Some("signature"));
    assert_eq!(rig.send("e-4", "{}".into()).await.rejected, Some("malformed"));
    assert_eq!(rig.last_event_id().as_deref(), Some("e-4"));
    assert!(!seen.has_changed().unwrap(), "nobody is woken for nothing");
    assert!(seen.borrow_and_update().peers.is_empty());
    let rig = {
        let counted = rig.board.control_status();
        assert_eq!(counted.accepted, 0);
        let expected = [("future", 1), ("malformed", 1), ("signature", 1), ("stale", 1)];
        assert_eq!(counted.rejected.into_iter().collect::<Vec<_>>(), expected);
        rig.restarted().await
    };
    assert_eq!(rig.last_event_id().as_deref(), Some("e-4"));
}

#[tokio::test]
async fn a_payload_that_does_not_parse_is_rejected_whole_for_good_and_asks_for_a_pull() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let envelope = rig.envelope("peer_added", "evt-1", r#"{"id":"n_b"}"#);
    let refused = EventOutcome { rejected: Some("payload"), pull: true, corrections: Vec::new() };
    assert_eq!(rig.send("evt-1", envelope.clone()).await, refused);
    assert!(rig.desired().peers.is_empty());
    assert_eq!(rig.send("evt-1", envelope).await.rejected, Some("replay"));
}

#[test]
fn a_process_that_gives_up_without_an_ordered_stop_ends_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let rig = Rig::new(&folder);
        rig.state.begin_pull().await.unwrap();
        rig.task.abort();
    });
    // Waits for threads that still work.
    drop(runtime);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_at_all_is_done_with() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    rig.state.skip_event(Some("big".to_owned())).await.unwrap();
    rig.state.skip_event(None).await.unwrap();
    assert_eq!(rig.restarted().await.last_event_id().as_deref(), Some("big"));
}

#[tokio::test]
async fn events_that_this_version_has_no_feature_for_are_counted_by_type() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    for (n, event_type) in ["action_request", "novelty", "novelty"].iter().enumerate() {
        let id = format!("evt-{n}");
        assert_eq!(rig.send(&id, rig.envelope(event_type, &id, "{}")).await, ACCEPTED);
    }
    let counted = rig.board.control_status();
    assert_eq!(counted.accepted, 3);
    let expected = [("action_request".to_owned(), 1), ("novelty".to_owned(), 2)];
    assert_eq!(counted.unsupported.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn without_any_signing_key_events_are_rejected_and_ask_for_a_pull_that_may_bring_one() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(StandingClock::default());
    let path = folder.path().join("state.redb");
    let (state, keeper) = State::open(&path, clock.clone(), Board::default(), None).unwrap();
    let task = tokio::spawn(keeper.run(Shutdown::new()));
    let event = envelope(&signing_key(3), "peer_added", "evt-1", clock.now(), PEER);
    let refused = EventOutcome { rejected: Some("signature"), pull: true, corrections: Vec::new() };
    assert_eq!(state.event(Some("evt-1".to_owned()), event.clone()).await.unwrap(), refused);
    let ticket = state.begin_pull().await.unwrap();
    let keys = Some(SigningKeys::only(public(&signing_key(3))));
    state.pulled(ticket, FullState { signing_keys: keys, ..FullState::default() }).await.unwrap();
    assert_eq!(state.event(Some("evt-1".to_owned()), event).await.unwrap(), ACCEPTED);
    task.abort();
}

#[tokio::test]
async fn an_answer_that_an_event_overtook_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let ticket = rig.state.begin_pull().await.unwrap();
    rig.send("evt-1", rig.envelope("peer_added", "evt-1", PEER)).await;
    assert_eq!(rig.state.pulled(ticket, FullState::default()).await.unwrap(), PullOutcome::Overtaken);
    assert!(rig.desired().peers.contains_key("n_b"));
    // A rejected event overtakes nothing.
    let ticket = rig.state.begin_pull().await.unwrap();
    rig.send("evt-2", "x".into()).await;
    assert!(matches!(rig.state.pulled(ticket, FullState::default()).await.unwrap(), PullOutcome::Applied(_)));
    assert!(rig.desired().peers.is_empty());
}

#[tokio::test]
async fn an_unchanged_answer_wakes_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let state = FullState { data: vec![data("a", 1)], policies: Ok(policies(80)), ..FullState::default() };
    let mut seen = rig.state.desired();
    assert!(matches!(rig.pull(state.clone()).await, PullOutcome::Applied(told) if told.len() == 1));
    assert!(seen.has_changed().unwrap());
    seen.mark_unchanged();
    assert_eq!(rig.pull(state).await, PullOutcome::Applied(Vec::new()));
    assert!(!seen.has_changed().unwrap());
}

#[tokio::test]
async fn what_a_pull_brings_that_an_event_asked_for_is_no_drift() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let state = |version| FullState { data: vec![data("a", version)], ..FullState::default() };
    rig.pull(state(1)).await;
    rig.send("evt-1", rig.envelope("node_state_updated", "evt-1", "{}")).await;
    assert_eq!(rig.pull(state(2)).await, PullOutcome::Applied(Vec::new()));
    assert!(matches!(rig.pull(state(3)).await, PullOutcome::Applied(told) if told.len() == 1));
}

#[tokio::test]
async fn a_new_identity_starts_with_its_peers_and_key_and_without_the_old_ones_event_id() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    rig.send("evt-1", rig.envelope("peer_added", "evt-1", PEER)).await;
    let old_answer = rig.state.begin_pull().await.unwrap();
    let refused = Rejected { name: "n_x".to_owned(), reason: "no key".to_owned() };
    rig.state.enrolled(public(&signing_key(2)), vec![peer("n_c", 3)], vec![refused]).await.unwrap();
    assert_eq!(rig.last_event_id(), None);
    assert_eq!(rig.problems(), "left out: n_x: no key");
    // The old identity's answer, still on its way.
    assert_eq!(rig.state.pulled(old_answer, FullState::default()).await.unwrap(), PullOutcome::Overtaken);
    let rig = rig.restarted().await;
    assert_eq!(rig.last_event_id(), None);
    assert_eq!(rig.desired().peers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["n_c"]);
    let event = rig.signed_by(&signing_key(2), "peer_removed", "evt-1b", r#"{"peer_id":"n_c"}"#);
    assert_eq!(rig.send("evt-1b", event).await, ACCEPTED);
    assert!(rig.desired().peers.is_empty());
}

#[tokio::test]
async fn the_first_state_after_enrolment_is_no_drift() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    rig.state.enrolled(public(&signing_key(1)), Vec::new(), Vec::new()).await.unwrap();
    let state = FullState { data: vec![data("a", 1)], ..FullState::default() };
    assert_eq!(rig.pull(state).await, PullOutcome::Applied(Vec::new()));
}

#[tokio::test]
async fn a_refused_policy_set_is_a_problem_until_a_valid_one_comes_even_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    rig.pull(FullState { policies: Ok(policies(80)), ..FullState::default() }).await;
    let bad = r#"[{"id":"p","rules":[{"src":"*","dst":"*","action":"maybe"}]}]"#;
    let outcome = rig.send("evt-1", rig.envelope("policy_updated", "evt-1", bad)).await;
    assert_eq!((outcome.rejected, outcome.pull, outcome.corrections.len()), (None, false, 1));
    assert!(rig.problems().contains("the one before stays in force"), "{}", rig.problems());
    let rig = rig.restarted().await;
    assert!(rig.problems().contains("the one before stays in force"), "{}", rig.problems());
    assert_eq!(*rig.desired().policies, policies(80));
    rig.send("evt-2", rig.envelope("policy_updated", "evt-2", "[]")).await;
    assert_eq!(rig.problems(), "");
    assert_eq!(*rig.desired().policies, PolicySet::default());
}

#[tokio::test]
async fn until_a_policy_set_is_known_to_compile_the_one_that_did_is_kept_even_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&folder);
    let pulled = async |rig: &Rig, number| {
        rig.pull(FullState { policies: Ok(policies(number)), ..FullState::default() }).await;
        Arc::clone(&rig.desired().policies)
    };
    // What is kept shows after a restart: nobody has to look at it before.
    let id = |set: &PolicySet| set.policies[0].id.clone();
    let kept = |rig: &Rig| rig.desired().policies_before.as_deref().map(id);
    let newest = |rig: &Rig| id(&rig.desired().policies);
    let first = pulled(&rig, 1).await;
    rig.state.compiled(first).await;
    rig = rig.restarted().await;
    assert_eq!(kept(&rig), None, "it is the newest");
    // Two that nobody said compile.
    pulled(&rig, 2).await;
    pulled(&rig, 3).await;
    rig = rig.restarted().await;
    assert_eq!((newest(&rig), kept(&rig)), ("pol_3".to_owned(), Some("pol_1".to_owned())));
    // News of one that was replaced meanwhile.
    let before = Arc::clone(&rig.desired().policies);
    pulled(&rig, 4).await;
    rig.state.compiled(before).await;
    rig = rig.restarted().await;
    assert_eq!((newest(&rig), kept(&rig)), ("pol_4".to_owned(), Some("pol_3".to_owned())));
    // A set of which nothing is known, as that of an identity that was given up, is nobody's.
    rig.state.compiled(Arc::new(policies(9))).await;
    rig = rig.restarted().await;
    assert_eq!(kept(&rig).as_deref(), Some("pol_3"));
    // Back to the one that is kept, which compiles still.
    let last = pulled(&rig, 3).await;
    rig.state.compiled(last).await;
    rig = rig.restarted().await;
    assert_eq!((newest(&rig), kept(&rig)), ("pol_3".to_owned(), None));
    rig.shutdown.cancel();
}

#[tokio::test]
async fn what_a_pull_left_out_is_told_in_short_until_it_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let left_out = |n| Rejected { name: format!("data k{n}"), reason: "no version".to_owned() };
    rig.pull(FullState {
        rejected_data: (0..5).map(left_out).collect(),
        rejected_signing_keys: Some("current is not base64".to_owned()),
        ..FullState::default()
    })
    .await;
    let problems = rig.problems();
    assert!(problems.contains("data k2: no version; and 2 more") && !problems.contains("k3"), "{problems}");
    assert!(problems.contains("unusable signing keys: current is not base64"), "{problems}");
    rig.pull(FullState::default()).await;
    assert_eq!(rig.problems(), "");
}

/// Runs `test` in a mount namespace of its own, with a folder of 4 MiB.
fn on_a_small_disk(test: impl FnOnce(PathBuf) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "needs root, for a small file system");
    let mount = |args: &[&str]| assert!(Command::new("mount").args(args).status().unwrap().success());
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(&["--make-rprivate", "/"]);
        let folder = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", "size=4m", "plexd-test", &folder.path().display().to_string()]);
        test(folder.path().to_owned());
        assert!(Command::new("umount").arg("-l").arg(folder.path()).status().unwrap().success());
    });
    thread.join().unwrap();
}

#[test]
fn root_a_full_disk_is_told_and_the_state_enforced_and_stored_once_there_is_room() {
    on_a_small_disk(|folder| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::start(folder.join("state.redb"), Arc::default());
            rig.send("evt-1", rig.envelope("peer_added", "evt-1", PEER)).await;
            let ballast = folder.join("ballast");
            let mut file = std::fs::File::create(&ballast).unwrap();
            while std::io::Write::write(&mut file, &[1; 4096]).is_ok() {}
            let big = crate::state::DataEntry {
                payload: Bytes::from(format!("\"{}\"", "x".repeat(1024 * 1024))).into(),
                ..data("big", 1)
            };
            let state = FullState { data: vec![big], ..FullState::default() };
            for _ in 0..2 {
                assert!(matches!(rig.pull(state.clone()).await, PullOutcome::Applied(_)));
                assert!(rig.desired().data.get("big").is_some() && rig.desired().peers.is_empty());
                assert!(rig.problems().contains("the state cannot be stored"), "{}", rig.problems());
                assert!(rig.problems().contains("free space"), "{}", rig.problems());
            }
            std::fs::remove_file(&ballast).unwrap();
            drop(file);
            // Nothing is new, but what was not stored is stored now.
            assert_eq!(rig.pull(state).await, PullOutcome::Applied(Vec::new()));
            assert_eq!(rig.problems(), "");
            let rig = rig.restarted().await;
            assert!(rig.desired().data.get("big").is_some() && rig.desired().peers.is_empty());
            assert_eq!(rig.last_event_id().as_deref(), Some("evt-1"));
            rig.shutdown.cancel();
            rig.task.await.unwrap().unwrap();
        });
    });
}

/// The preshared key of a peer, as it would be in a file.
const PSK: &str = "BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=";

#[tokio::test]
async fn what_is_forgotten_is_gone_from_memory_and_disk_and_an_answer_under_way_does_not_bring_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let with_psk = format!(r#"{},"psk":"{PSK}"}}"#, PEER.strip_suffix('}').unwrap());
    let event = rig.envelope("peer_added", "evt-1", &with_psk);
    assert_eq!(rig.send("evt-1", event.clone()).await, ACCEPTED);
    rig.state.want_rotation().await.unwrap();
    let on_disk = |rig: &Rig| {
        let bytes = std::fs::read(&rig.path).unwrap();
        bytes.windows(PSK.len()).any(|window| window == PSK.as_bytes())
    };
    assert!(on_disk(&rig));
    let ticket = rig.state.begin_pull().await.unwrap();
    let (sender, identity) = watch::channel(true);
    let mut desired = rig.state.desired();
    let publish = PublishIdentity::new(move |publish_state| {
        sender.send_modify(|is_enrolled| {
            *is_enrolled = false;
            publish_state();
        });
    });
    rig.state.forget(publish).await.unwrap().unwrap();
    assert!(!*identity.borrow() && desired.has_changed().unwrap());
    {
        let desired = desired.borrow_and_update();
        assert!(desired.peers.is_empty() && desired.signing_keys.is_none(), "{desired:?}");
        assert_eq!(desired.own_key, crate::state::OwnKey::default());
    }
    assert_eq!(rig.last_event_id(), None);
    assert!(!on_disk(&rig));
    assert_eq!(rig.state.pulled(ticket, FullState::default()).await.unwrap(), PullOutcome::Overtaken);
    assert_eq!(rig.send("evt-1", event.clone()).await.rejected, Some("signature"));
    rig.state.enrolled(public(&signing_key(1)), Vec::new(), Vec::new()).await.unwrap();
    assert_eq!(rig.last_event_id(), None, "the next identity has a stream of its own");
    assert_eq!(rig.send("evt-1", event).await, ACCEPTED, "nonces are forgotten, too");
    let rig = rig.restarted().await;
    assert_eq!(rig.desired().peers.len(), 1);
    assert!(!rig.desired().own_key.rotation_wanted);
}

#[tokio::test]
async fn each_event_is_remembered_with_what_became_of_it_and_without_its_payload() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let stranger = rig.signed_by(&signing_key(2), "peer_added", "forged", PEER);
    for (id, event) in [
        ("1", rig.envelope("peer_added", "added", PEER)),
        ("2", rig.envelope("action_request", "action", r#"{"secret":"hunter2"}"#)),
        ("3", rig.envelope("novelty", "new", r#"{"secret":"hunter2"}"#)),
        ("4", stranger),
        ("5", rig.envelope("peer_added", "bad", r#"{"psk":"hunter2"}"#)),
        ("6", "hunter2".into()),
    ] {
        rig.send(id, event).await;
    }
    rig.state.skip_event(Some("7".to_owned())).await.unwrap();
    let seen = rig.board.history().since(0).events;
    let shown: Vec<_> =
        seen.iter().map(|seen| (seen.event_type.as_str(), seen.event_id.as_str(), seen.outcome)).collect();
    let expected = [
        ("peer_added", "added", Outcome::Applied),
        ("action_request", "action", Outcome::Unsupported),
        ("novelty", "new", Outcome::Unknown),
        ("peer_added", "forged", Outcome::Rejected("signature")),
        ("peer_added", "bad", Outcome::Rejected("payload")),
        ("", "6", Outcome::Rejected("malformed")),
        ("", "7", Outcome::Rejected("too_large")),
    ];
    assert_eq!(shown, expected);
    assert!(seen[..5].iter().all(|seen| seen.issued_at.is_some()));
    assert!(!format!("{seen:?}").contains("hunter2"));
    let rejected: u64 = rig.board.control_status().rejected.values().sum();
    assert_eq!(rejected, 4);
}

mod payloads;
