//! What is said of the clock, and what is kept of it.

use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::super::standing::Standing;
use super::*;
use crate::control::dev::until;
use crate::identity::Identity;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::{Kernel, Reconciler, Wiring};
use crate::state::Desired;
use crate::storage::DataDir;

const NOW: &str = "2026-11-21T12:00:00.5Z";

struct Rig {
    machine: Arc<Standing>,
    clock: Arc<NodeClock>,
    board: Board,
    identity: watch::Sender<Option<Arc<Identity>>>,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
    folder: TempDir,
}

impl Rig {
    fn new(wall: &str) -> Self {
        Self::start(tempfile::tempdir().unwrap(), Stamps::Clock, wall)
    }

    fn start(folder: TempDir, stamps: Stamps, wall: &str) -> Self {
        let machine = Standing::at(wall.parse().unwrap());
        let built = "2026-06-01T00:00:00Z".parse().unwrap();
        let clock = Arc::new(NodeClock::new(Arc::clone(&machine) as _, built));
        let file = ClockFile::new(&DataDir::open(folder.path()).unwrap());
        let (kept, problem) = file.load(clock.view().now).unwrap();
        assert_eq!(problem, None);
        clock.remember(&kept);
        let board = Board::default();
        let (sender, identity) = watch::channel(Some(Arc::new(crate::reconcile::tests::identity())));
        let kernel = FakeKernel::new();
        let wiring = Wiring {
            desired: watch::channel(Arc::new(Desired::default())).1,
            identity: identity.clone(),
            kernel_changes: mpsc::channel(1).1,
            drift: mpsc::channel(1).0,
            board: Board::default(),
        };
        let kernel = Kernel { wireguard: kernel.clone(), network: kernel.clone(), firewall: kernel };
        let config = Arc::new(crate::reconcile::tests::config(""));
        // Nobody serves the mesh: nothing is known of handshakes.
        let (mesh, _) = Reconciler::new(config, kernel, "asked for".into(), wiring);
        let keeper =
            ClockKeeper::new(Arc::clone(&clock), (file, kept), board.clone(), identity, (mesh, stamps));
        let shutdown = Shutdown::new();
        let task = tokio::spawn(keeper.run(shutdown.clone()));
        Self { machine, clock, board, identity: sender, shutdown, task, folder }
    }

    fn answer(&self, date: &str) {
        self.clock.answered(date.parse().unwrap(), self.clock.uptime(), |_| true);
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }

    async fn problem(&self, text: &str) {
        until(text, async || self.problems().contains(text).then_some(())).await;
    }

    async fn no_problem(&self) {
        until("no problem", async || self.problems().is_empty().then_some(())).await;
    }

    async fn restarted(self, stamps: Stamps, wall: &str) -> Self {
        Self::start(self.stopped().await, stamps, wall)
    }

    async fn stopped(self) -> TempDir {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.folder
    }
}

#[tokio::test(start_paused = true)]
async fn a_skew_is_told_with_advice_until_it_is_gone() {
    let rig = Rig::start(tempfile::tempdir().unwrap(), Stamps::SteadyFromStart, NOW);
    rig.answer("2026-11-21T12:06:52Z");
    rig.problem("the clock of this node is 412 s behind the control plane: set it, e.g. enable systemd-timesyncd or chrony")
        .await;
    assert_eq!(rig.board.control_status().clock_skew, Some(SignedDuration::from_secs(-412)));
    rig.machine.set(412 + 3600);
    rig.answer("2026-11-21T12:06:52Z");
    rig.problem("is 3600 s ahead of the control plane").await;
    // A few seconds are nobody's trouble.
    rig.machine.set(-3600 + 20);
    rig.answer("2026-11-21T12:06:52Z");
    rig.no_problem().await;
    assert_eq!(rig.board.control_status().clock_skew, Some(SignedDuration::from_secs(20)));
    rig.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn an_unset_clock_and_a_lie_are_told_until_an_answer_is_believed() {
    let rig = Rig::new("1970-01-01T00:00:07Z");
    rig.problem("says 1970-01-01T00:00:07Z, but plexd was built and has run later").await;
    rig.clock.answered("2050-01-01T00:00:00Z".parse().unwrap(), rig.clock.uptime(), |_| false);
    rig.problem("the control plane says that it is 2050-01-01T00:00:00Z").await;
    rig.machine.set(1_795_262_400 - 7);
    rig.answer("2026-11-21T12:00:00Z");
    rig.no_problem().await;
    rig.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_known_outlives_the_process_at_once_and_at_the_end() {
    let rig = Rig::new(NOW);
    let file = rig.folder.path().join("clock.json");
    rig.answer("2026-11-21T12:00:00Z");
    until("written", async || {
        std::fs::read_to_string(&file).ok().filter(|text| text.contains("known\":\"2"))
    })
    .await;
    rig.machine.pass(60);
    let rig = rig.restarted(Stamps::Clock, "1970-01-01T00:00:00Z").await;
    assert_eq!(rig.clock.view().now.to_string(), "2026-11-21T12:01:00.5Z");
    let folder = rig.stopped().await;
    std::fs::write(folder.path().join("clock.json"), "{").unwrap();
    let file = ClockFile::new(&DataDir::open(folder.path()).unwrap());
    assert!(file.load(Timestamp::UNIX_EPOCH).unwrap().1.unwrap().contains("was damaged"));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_is_said_to_be_why_handshakes_fail_until_it_is_over() {
    let rig = Rig::new(NOW);
    until("looked", async || rig.folder.path().join("clock.json").exists().then_some(())).await;
    rig.machine.set(-3600);
    rig.problem(
        "peers refuse the WireGuard handshakes which this node begins until 2026-11-21T12:00:00Z (in 3600 s)",
    )
    .await;
    assert!(!rig.problems().contains("restart plexd-core"), "{}", rig.problems());
    rig.machine.pass(3600);
    rig.no_problem().await;

    // Over a restart, and with a key of its own.
    let rig = rig.restarted(Stamps::SteadyFromStart, "2026-11-21T11:59:00Z").await;
    rig.problem("went back before plexd-core started").await;
    assert!(rig.problems().contains("then restart plexd-core"), "{}", rig.problems());
    let identity = crate::reconcile::tests::identity();
    let private_key = crate::types::PrivateKey::generate().unwrap();
    rig.identity.send_replace(Some(Arc::new(Identity { private_key, ..identity })));
    rig.no_problem().await;
    rig.stopped().await;
}

#[test]
fn lengths_of_time_are_told_as_they_can_be_grasped() {
    for (seconds, text) in [(0, "0 s"), (7199, "7199 s"), (7200, "2 h"), (172_800, "2 days")] {
        assert_eq!(span(Duration::from_secs(seconds)), text);
    }
}
