//! What a fleet asks of its control plane: the control clients of a thousand agents in one process, each with its own
//! connections, state and loops as `plexd-core` starts them, against one development control plane. Counted there,
//! second by second: a simultaneous start, the steady state, and the time after an outage.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use plexd_core::control::client::{Client, ClientConfig};
use plexd_core::control::session::{self, Conversation, FIRST_CONTACT, Session};
use plexd_core::control::wire::{RegisterRequest, SecretText};
use plexd_core::identity::{Announced, Identity, Machine};
use plexd_core::reconcile::Mesh;
use plexd_core::state::{State, StateKeeper};
use plexd_core::status::{Board, Enrolment, Stream};
use plexd_core::storage::DataDir;
use plexd_core::supervisor::{Shutdown, Supervisor};
use plexd_core::types::{Clock, PrivateKey, SystemClock};
use plexd_devcp::server::{Options, Server};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Default periods of the configuration.
const RECONCILE: Duration = Duration::from_mins(1);
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Peers that each node is told of.
const PEERS: u8 = 20;

/// After a fault has ended a node has converged within this time (contract, section 2).
const CONVERGED: Duration = Duration::from_secs(150);

#[derive(Parser)]
struct Arguments {
    /// How many agents.
    #[arg(long, default_value_t = 1_000)]
    nodes: u16,
    /// How long to count in steady state, in seconds.
    #[arg(long, default_value_t = 120)]
    steady: u64,
    /// How long the control plane is away, in seconds.
    #[arg(long, default_value_t = 60)]
    outage: u64,
    /// How long to count after it, in seconds.
    #[arg(long, default_value_t = 180)]
    recovery: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")?;
    // Each agent keeps its state on a thread of its own.
    let threads = usize::from(arguments.nodes) + 64;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().max_blocking_threads(threads).enable_all().build()?;
    runtime.block_on(measure(&arguments))
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    // In memory: a thousand agents have a thousand disks, and here they would wait for one.
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let mut plane = ControlPlane::start(folder.path().join("control-plane"), None)?;
    let mut agents = Vec::new();
    let machine = Machine::new(Some("fleet"))?;
    for number in 0..arguments.nodes {
        let folder = folder.path().join(format!("node-{number}"));
        agents.push(Agent::enrol(&plane, &folder, &machine).await?);
    }
    let per_thousand = 1_000.0 / f64::from(arguments.nodes);

    println!("{} nodes start at once", agents.len());
    let begin = now();
    for agent in &mut agents {
        agent.start();
    }
    wait_converged(&agents).await?;
    // The first periods after the start are part of it.
    sleep(2 * FIRST_CONTACT + RECONCILE).await;
    let start = plane.rates(begin).await?;
    start.show("start");

    println!("steady state for {} s", arguments.steady);
    let begin = now();
    // What is measured is time that passes.
    sleep(Duration::from_secs(arguments.steady)).await;
    let steady = plane.rates(begin).await?;
    steady.show("steady state");

    println!("control plane away for {} s", arguments.outage);
    plane.stop();
    sleep(Duration::from_secs(arguments.outage)).await;
    let begin = now();
    plane = ControlPlane::start(plane.state.clone(), Some(plane.wire))?;
    let back = Instant::now();
    wait_converged(&agents).await?;
    let converged = back.elapsed();
    sleep(Duration::from_secs(arguments.recovery).saturating_sub(converged)).await;
    let recovery = plane.rates(begin).await?;
    recovery.show("recovery");

    let steady_rate = figure(steady.requests()) / figure(arguments.steady);
    println!("bench fleet.start_peak_rps_per_1000 {:.0} requests/s", figure(start.peak()) * per_thousand);
    println!("bench fleet.steady_rps_per_1000 {:.1} requests/s", steady_rate * per_thousand);
    println!("bench fleet.steady_peak_rps_per_1000 {:.0} requests/s", figure(steady.peak()) * per_thousand);
    println!(
        "bench fleet.recovery_peak_rps_per_1000 {:.0} requests/s",
        figure(recovery.peak()) * per_thousand
    );
    println!("bench fleet.recovery_converged_s {:.0} s", converged.as_secs_f64());
    for agent in agents {
        agent.stop().await;
    }
    Ok(())
}

/// One agent's half of the conversation.
struct Agent {
    board: Board,
    state: State,
    shutdown: Shutdown,
    ready: Option<(Conversation, StateKeeper)>,
    task: Option<JoinHandle<()>>,
    _identity: watch::Sender<Option<Arc<Identity>>>,
}

impl Agent {
    /// Makes one that has its identity and has not begun to speak, as a process that finds it on disk.
    async fn enrol(plane: &ControlPlane, folder: &Path, machine: &Machine) -> anyhow::Result<Self> {
        let client = plane.client()?;
        let identity = register(plane, &client, folder).await?;
        std::fs::create_dir(folder)?;
        let directory = DataDir::open(folder)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let board = Board::default();
        board.set_enrolment(Enrolment::Enrolled);
        let signing_key = Some(identity.signing_key);
        let (state, keeper) =
            State::open(&directory.file("state.redb"), Arc::clone(&clock), board.clone(), signing_key)?;
        let (sender, identity) = watch::channel(Some(Arc::new(identity)));
        let conversation = Conversation {
            session: Session { client, identity, board: board.clone(), pulls: Arc::default(), name: "" },
            state: state.clone(),
            mesh: Mesh::none(),
            machine: machine.clone(),
            announced: Announced::new(&directory),
            clock,
            drift: session::drift_queue(),
            interface: (String::new(), 0),
            reconcile_interval: RECONCILE,
            heartbeat_interval: HEARTBEAT,
        };
        let (shutdown, ready) = (Shutdown::new(), Some((conversation, keeper)));
        Ok(Self { board, state, shutdown, ready, task: None, _identity: sender })
    }

    /// Starts its loops.
    fn start(&mut self) {
        let Some((conversation, keeper)) = self.ready.take() else { return };
        let shutdown = self.shutdown.clone();
        self.task = Some(tokio::spawn(async move {
            let mut supervisor = Supervisor::default();
            supervisor.spawn("state", keeper.run(supervisor.shutdown()));
            conversation.spawn(&mut supervisor);
            supervisor.run(shutdown.cancelled_owned()).await.expect("the agent runs");
        }));
    }

    /// Returns whether it has its stream and its state.
    fn has_converged(&self) -> bool {
        let peers = self.state.desired().borrow().peers.len();
        self.board.control_status().stream == Stream::Connected && peers == usize::from(PEERS)
    }

    fn has_ended(&self) -> bool {
        self.task.as_ref().is_some_and(JoinHandle::is_finished)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        if let Some(task) = self.task {
            task.await.expect("the agent stops");
        }
    }
}

async fn register(plane: &ControlPlane, client: &Client, folder: &Path) -> anyhow::Result<Identity> {
    let token = plane.admin(reqwest::Method::POST, "tokens", &json!({})).await?;
    let private_key = PrivateKey::generate().context("no random numbers")?;
    let request = RegisterRequest {
        token: SecretText::from(token["token"].as_str().unwrap_or_default()),
        public_key: private_key.public().to_string(),
        hostname: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        metadata: None,
        capabilities: None,
    };
    let registration = client.register(&request).await?;
    let path = format!("nodes/{}/state", registration.node_id);
    plane.admin(reqwest::Method::PUT, &path, &json!({ "peers": peers()? })).await?;
    Ok(Identity {
        node_id: registration.node_id,
        mesh_ip: registration.mesh_ip,
        secret_key: registration.node_secret_key,
        signing_key: registration.signing_key,
        private_key,
    })
}

fn peers() -> anyhow::Result<Vec<Value>> {
    let peer = |number| {
        let public_key = PrivateKey::generate().context("no random numbers")?.public().to_string();
        let address = format!("10.100.255.{number}");
        Ok(json!({
            "id": format!("n_{number}"),
            "public_key": public_key,
            "mesh_ip": address,
            "endpoint": format!("192.0.2.{number}:51820"),
            "allowed_ips": [format!("{address}/32")],
            "psk": "",
        }))
    };
    (1..=PEERS).map(peer).collect()
}

async fn wait_converged(agents: &[Agent]) -> anyhow::Result<()> {
    let end = Instant::now() + CONVERGED;
    loop {
        let missing = agents.iter().filter(|agent| !agent.has_converged()).count();
        ensure!(!agents.iter().any(Agent::has_ended), "an agent has ended");
        if missing == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{missing} nodes have not converged after {} s", CONVERGED.as_secs());
        // Often enough for a figure in whole seconds.
        sleep(Duration::from_millis(200)).await;
    }
}

/// The control plane, on threads of its own.
struct ControlPlane {
    state: PathBuf,
    wire: SocketAddr,
    admin: SocketAddr,
    ca: PathBuf,
    http: reqwest::Client,
    runtime: Option<Runtime>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

impl ControlPlane {
    /// Starts it, at `wire` if given.
    fn start(state: PathBuf, wire: Option<SocketAddr>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options =
            Options { listen: wire.unwrap_or(any), admin: any, state: state.clone(), names: Vec::new() };
        let (ready, bound) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let server = Server::bind(options).await;
            let addresses = server
                .as_ref()
                .map(|server| (server.wire_addr(), server.admin_addr(), server.ca_path().to_owned()));
            // Fails only if whoever started it is gone.
            let _ = ready.send(addresses.map_err(ToString::to_string));
            if let Ok(server) = server {
                server.run().await;
            }
        });
        let (wire, admin, ca) = bound.recv()?.map_err(anyhow::Error::msg)?;
        // Fails only if there is one already, which then serves as well.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { state, wire, admin, ca, http, runtime: Some(runtime) })
    }

    /// Ends it and all of its connections at once.
    fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn client(&self) -> anyhow::Result<Client> {
        let base = format!("https://{}", self.wire).parse()?;
        Ok(Client::new(ClientConfig { base, ca_file: Some(self.ca.clone()), version: "fleet" })?)
    }

    async fn admin(&self, method: reqwest::Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("http://{}/admin/{path}", self.admin);
        let answer =
            self.http.request(method, url).body(body.to_string()).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// What came from `begin` until now.
    async fn rates(&self, begin: i64) -> anyhow::Result<Rates> {
        let answer = self.admin(reqwest::Method::GET, "rates", &Value::Null).await?;
        let mut seconds: BTreeMap<i64, Second> = serde_json::from_value(answer)?;
        Ok(Rates(seconds.split_off(&begin)))
    }
}

/// What came, by Unix time.
struct Rates(BTreeMap<i64, Second>);

/// What came in one second.
#[derive(serde::Deserialize)]
struct Second {
    connections: u64,
    requests: BTreeMap<String, u64>,
}

impl Second {
    fn requests(&self) -> u64 {
        self.requests.values().sum()
    }
}

impl Rates {
    fn requests(&self) -> u64 {
        self.0.values().map(Second::requests).sum()
    }

    fn peak(&self) -> u64 {
        self.0.values().map(Second::requests).max().unwrap_or(0)
    }

    #[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
    fn show(&self, what: &str) {
        let connections: u64 = self.0.values().map(|second| second.connections).sum();
        let mut by_endpoint: BTreeMap<&str, u64> = BTreeMap::new();
        for (endpoint, count) in self.0.values().flat_map(|second| &second.requests) {
            *by_endpoint.entry(endpoint).or_default() += count;
        }
        println!("{what}: {} requests ({by_endpoint:?}), {connections} connections", self.requests());
        let line: Vec<String> = self.0.values().map(|second| second.requests().to_string()).collect();
        println!("{what}, second by second: {}", line.join(" "));
    }
}

fn now() -> i64 {
    SystemClock.now().as_second()
}

/// Counts here are far below where a float loses digits.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn figure(count: u64) -> f64 {
    count as f64
}
