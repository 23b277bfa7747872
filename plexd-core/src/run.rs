//! From the configuration to running subsystems: acquire as root what needs root, become user plexd-core, bring the
//! kernel to the last known state, serve until asked to stop.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use caps::Capability;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use plexd_proto::access::Gate;
use plexd_proto::admin::v1::admin_server::AdminServer;
use plexd_proto::memory;
use plexd_proto::node::v1::node_state_server::NodeStateServer;
use plexd_proto::privilege::{self, ServiceUser, Start};
use plexd_proto::settings::LogLevel;
use plexd_proto::transport::{Incoming, SocketOwner, acquire};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tonic::transport::Server;

use crate::admin::{self, AdminService, Administrators};
use crate::clock::{ClockFile, ClockKeeper, Kept, NodeClock, Stamps};
use crate::config::Config;
use crate::control::client::{Client, ClientConfig};
use crate::control::session::{self, Conversation, Session};
use crate::identity::{
    self, Announced, Consent, CurrentIdentity, Enroller, Extent, IdentityStore, Leave, LeaveRequests,
    Machine, TokenLookup, TokenSearch, Unfinished,
};
use crate::kernel::Backend;
use crate::kernel::changes::{LinkChanges, Watched};
use crate::kernel::network::RtNetlink;
use crate::kernel::nft::NfTables;
use crate::kernel::wireguard::{self, Prepared};
use crate::node_state::{
    self, Auditor, NodeStateService, Proofs, SecretReader, SecretRules, Sidecar, TokenSource,
};
use crate::reconcile::{Kernel, KernelChange, Mesh, Reconciler, Wiring};
use crate::reports::{ReportSync, Reports};
use crate::state::State;
use crate::status::{Board, Subsystem};
use crate::storage::DataDir;
use crate::supervisor::{Shutdown, Supervisor};
use crate::types::Clock;

/// Users and groups, as packaging/sysusers.d makes them.
const CORE_USER: &str = "plexd-core";
const API_USER: &str = "plexd-api";
const ADMIN_GROUP: &str = "plexd-admin";

/// Mode of core's sockets.
const SOCKET_MODE: u32 = 0o660;

/// How long deregistration may hold up a stop.
const DEREGISTER_DEADLINE: Duration = Duration::from_secs(10);

/// How often a node whose identity is refused looks for a new token.
const TOKEN_PERIOD: Duration = Duration::from_mins(1);

/// How long threads have to finish once everything has stopped.
const THREADS_DEADLINE: Duration = Duration::from_secs(1);

/// Sockets of clients that plexd-api shows at a time: two streams' reads under way, the second's while it restarts.
const CLIENT_SOCKETS: usize = 2 * plexd_proto::node::MAX_READS_UNDER_WAY;

/// File descriptors for everything else, what a sidecar gone mad passes for sockets of clients among it.
const OTHER_DESCRIPTORS: usize = 4 * 1024;

/// Connections of the sidecar, and calls on each of them: it has one with a handful, and one more while it restarts. What is
/// half sent of each is kept.
const SIDECAR_CONNECTIONS: usize = 4;
const SIDECAR_CALLS: u32 = 16;

/// Which capability which feature needs; nothing else is kept (contract, section 1).
const CAPABILITIES: &[(&str, Capability)] = &[("mesh and policy", Capability::CAP_NET_ADMIN)];

/// What was acquired before privileges were dropped.
struct Acquired {
    core_socket: StdListener,
    admin_socket: StdListener,
    proof_socket: StdListener,
    /// Room for sockets of clients.
    client_sockets: usize,
    sidecar: Sidecar,
    administrators: Administrators,
    secrets: SecretRules,
    api_token: TokenSource,
    token: TokenLookup,
    clock: Arc<NodeClock>,
    client: Client,
    machine: Machine,
    wireguard: Prepared,
}

/// Runs plexd-core until it is asked to stop.
pub fn run(config: Config) -> anyhow::Result<()> {
    memory::keep_little();
    start_log(config.log_level);
    let acquired = acquire_all(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers(acquired.wireguard.backend()))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(Arc::new(config), acquired));
    // A thread that hangs in the kernel or a name server must not keep the process, nor the reason it ends for.
    runtime.shutdown_timeout(THREADS_DEADLINE);
    result
}

/// Threads that run tasks. What blocks or takes long has threads of its own, so that one does; a second is woken with the
/// first, whatever happens, and left without anything to do. WireGuard in user space encrypts on them.
fn workers(backend: Backend) -> usize {
    match backend {
        Backend::Kernel => 1,
        Backend::Userspace => 2,
    }
}

fn start_log(level: LogLevel) {
    let level = level.as_str();
    // gotatun tells an error per packet for a peer without an endpoint, which any local user can bring about.
    let filter = format!("warn,gotatun=off,plexd_core={level},plexd_proto={level}");
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
}

/// Acquires what needs root, then gives root up for good.
fn acquire_all(config: &Config) -> anyhow::Result<Acquired> {
    let user = ServiceUser::lookup(CORE_USER)?;
    let api = ServiceUser::lookup(API_USER)?;
    let admin_group = privilege::group(ADMIN_GROUP)?;
    let access_group = privilege::group(&config.node_api.socket_group).context("node_api.socket_group")?;
    let secrets_group = privilege::group(&config.node_api.secrets_group).context("node_api.secrets_group")?;
    if privilege::started_as(&user)? == Start::Root {
        DataDir::prepare(&config.data_dir, &user)?;
    }
    let clock = Arc::new(NodeClock::system());
    let client = ClientConfig {
        base: config.api.clone(),
        ca_file: config.api_ca_file.clone(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let token_file = config.node_api.http_token_file.as_deref().filter(|_| config.node_api.http_enabled);
    let acquired = Acquired {
        client: Client::with_clock(client, Arc::clone(&clock))?,
        clock,
        machine: Machine::new(config.hostname.as_deref()).context("cannot read the host name")?,
        secrets: SecretRules {
            access_group: access_group.as_raw(),
            secrets_group: secrets_group.as_raw(),
            over_tcp: config.node_api.http_secrets,
        },
        api_token: TokenSource::load(token_file)?,
        token: identity::find_token(&config.token, |name| std::env::var(name).ok()),
        wireguard: wireguard::prepare(config.mesh.backend, &config.mesh.interface, config.mesh.mtu)?,
        core_socket: acquire(
            "core",
            &config.sockets.socket,
            SocketOwner { uid: user.uid, gid: api.gid, mode: SOCKET_MODE },
        )?,
        admin_socket: acquire(
            "admin",
            &config.sockets.admin_socket,
            SocketOwner { uid: user.uid, gid: admin_group, mode: SOCKET_MODE },
        )?,
        proof_socket: acquire(
            "proof",
            &config.sockets.proof_socket,
            SocketOwner { uid: user.uid, gid: api.gid, mode: SOCKET_MODE },
        )?,
        client_sockets: allow_descriptors()?,
        sidecar: Sidecar { uid: api.uid.as_raw() },
        administrators: Administrators { gid: admin_group.as_raw() },
    };
    let keep: Vec<Capability> = CAPABILITIES.iter().map(|(_, capability)| *capability).collect();
    privilege::drop_to(&user, &keep)?;
    Ok(acquired)
}

/// Raises the soft limit of open files, and returns how many of them may be sockets of clients: fewer where the hard limit is
/// too low, so that core never lacks those it needs itself.
fn allow_descriptors() -> anyhow::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    let allowed = u64::try_from(CLIENT_SOCKETS + OTHER_DESCRIPTORS)?.min(hard);
    if soft < allowed {
        setrlimit(Resource::RLIMIT_NOFILE, allowed, hard).context("cannot raise the limit of open files")?;
    }
    Ok(CLIENT_SOCKETS.min(usize::try_from(allowed)? / 2))
}

/// What is on disk, opened.
struct Opened {
    state: State,
    reports: Reports,
    identity: CurrentIdentity,
    announced: Announced,
    enroller: Enroller,
    join: identity::JoinRequests,
    pulls: Arc<Notify>,
    clock: (Arc<NodeClock>, ClockFile, Kept),
    unfinished: Option<Unfinished>,
}

async fn serve(config: Arc<Config>, acquired: Acquired) -> anyhow::Result<()> {
    let board = Board::default();
    let mut supervisor = Supervisor::default();
    let shutdown = supervisor.shutdown();
    let Acquired { client, machine, token, wireguard, secrets, api_token, clock, .. } = acquired;
    let opened = open(&config, &mut supervisor, (&client, &machine, token), &board, &clock)?;

    let session = Session {
        client: client.clone(),
        identity: opened.identity.clone(),
        board: board.clone(),
        pulls: Arc::clone(&opened.pulls),
        name: "pull",
    };
    // First of all: applications need what is on disk, and wait neither for the kernel nor for the control plane.
    let auditor = Auditor::new(Arc::clone(&clock) as _, machine.hostname());
    let proofs = Proofs::new(&config.node_api.socket, acquired.client_sockets);
    supervisor
        .spawn("proof", proofs.clone().serve(acquired.proof_socket, acquired.sidecar.uid, shutdown.clone()));
    let node_state = NodeStateService::new(
        opened.state.desired(),
        opened.identity.clone(),
        opened.reports.clone(),
        SecretReader::new(client.clone(), opened.identity.clone(), secrets, api_token.watch(), proofs),
        auditor.clone(),
    );
    let served =
        serve_sidecar(&mut supervisor, &config, (acquired.core_socket, acquired.sidecar), node_state)?;
    supervisor.spawn("audit", auditor.run(session.named("audit"), shutdown.clone(), served));

    let drift = session::drift_queue();
    let (kernel, reason, kernel_changes) = open_kernel(&config, &mut supervisor, wireguard)?;
    let backend = kernel.wireguard.backend();
    let wiring = Wiring {
        desired: opened.state.desired(),
        identity: opened.identity.clone(),
        kernel_changes,
        drift: drift.0.clone(),
        board: board.clone(),
    };
    let (mesh, reconciler) = Reconciler::new(Arc::clone(&config), kernel, reason, wiring);
    let mut reconciler = reconciler.keeping_outside(client.addresses()).telling(opened.state.clone());
    finish_departure(opened.unfinished.as_ref(), &mut reconciler, &board).await;
    reconciler.start().await;
    let stamps = Stamps::of(backend, config.mesh.persistent_keepalive);
    keep_clock(&mut supervisor, &opened, &board, (mesh.clone(), stamps));
    let (enroller, leave) = opened.enroller.leaving(mesh.clone(), opened.reports.clone());
    supervisor.spawn("enrolment", enroller.run(shutdown.clone()));

    let admin = AdminService::new(admin::Sources {
        config: Arc::clone(&config),
        hostname: machine.hostname().to_owned(),
        capabilities: privilege::effective_capabilities()?.iter().map(ToString::to_string).collect(),
        board: board.clone(),
        identity: opened.identity,
        desired: opened.state.desired(),
        reports: opened.reports.counts(),
        mesh: mesh.clone(),
        join: opened.join,
        leave: leave.clone(),
        shutdown: shutdown.clone(),
    });
    let admin = Server::builder()
        .layer(Gate::new(admin::RULES, acquired.administrators))
        .add_service(AdminServer::new(admin))
        .serve_with_incoming_shutdown(Incoming::new(acquired.admin_socket)?, stopped(&shutdown));
    supervisor.spawn("reconciler", reconciler.run(shutdown.clone()));
    supervisor.spawn("admin", async move { Ok(admin.await?) });
    let conversation = Conversation {
        session: session.clone(),
        state: opened.state,
        mesh,
        machine,
        announced: opened.announced,
        clock,
        drift,
        interface: (config.mesh.interface.clone(), config.mesh.listen_port),
        reconcile_interval: config.reconcile_interval,
        heartbeat_interval: config.heartbeat_interval,
    };
    conversation.spawn(&mut supervisor);
    let sync = ReportSync::new(session.named("reports"), opened.reports, config.node_api.report_debounce);
    supervisor.spawn("report_sync", sync.run(shutdown));

    supervisor.spawn("memory", after_the_start(supervisor.shutdown()));
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    let leave = config.deregister_on_shutdown.then_some(leave);
    supervisor.run(asked_to_stop(leave, api_token, board)?).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Lets go of what only the start needed. Ends with the process, as every task.
async fn after_the_start(shutdown: Shutdown) -> anyhow::Result<()> {
    let _done = shutdown.run_until_cancelled(memory::after_the_start()).await;
    shutdown.cancelled().await;
    Ok(())
}

/// Serves plexd-api from now on. Returns what is cancelled once the last call is answered.
fn serve_sidecar(
    supervisor: &mut Supervisor,
    config: &Config,
    (socket, sidecar): (StdListener, Sidecar),
    service: NodeStateService,
) -> anyhow::Result<Shutdown> {
    let service = NodeStateServer::new(service)
        .max_decoding_message_size(node_state::largest_request(config.node_api.max_report_bytes))
        .max_encoding_message_size(node_state::MAX_MESSAGE);
    let incoming = Incoming::new(socket)?.at_most(SIDECAR_CONNECTIONS);
    let server = Server::builder()
        .max_concurrent_streams(SIDECAR_CALLS)
        .layer(Gate::new(node_state::RULES, sidecar))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stopped(&supervisor.shutdown()));
    let complete = Shutdown::new();
    let ended = complete.clone();
    supervisor.spawn("node_state", async move {
        let result = server.await;
        ended.cancel();
        Ok(result?)
    });
    Ok(complete)
}

/// Deregisters the node, if it is registered; a control plane that does not answer does not hold the stop up, and the node
/// stays what it is.
async fn deregister(leave: &LeaveRequests) {
    let how = Leave { extent: Extent::Identity, consent: Consent::Required };
    match tokio::time::timeout(DEREGISTER_DEADLINE, leave.leave(how)).await {
        Ok(Ok(_) | Err(identity::LeaveError::NotEnrolled)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "not deregistered"),
        Err(_) => tracing::warn!("not deregistered: the control plane does not answer"),
    }
}

/// Removes the mesh of an identity that a process before this one gave up, if there was one.
async fn finish_departure(unfinished: Option<&Unfinished>, reconciler: &mut Reconciler, board: &Board) {
    let Some(unfinished) = unfinished else { return };
    for error in &unfinished.remains {
        tracing::warn!(%error, "left behind by the deregistration");
    }
    let finished = match reconciler.take_down().await {
        Ok(()) => unfinished.finish().map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match finished {
        Ok(()) => tracing::info!("the deregistration that was broken off is finished"),
        Err(error) => {
            let message = format!("deregistered, but not everything could be removed: {error}");
            board.raise(Subsystem::Storage, "deregistration", message);
        }
    }
}

/// Opens what is on disk and starts the tasks that own it.
fn open(
    config: &Config,
    supervisor: &mut Supervisor,
    (client, machine, token): (&Client, &Machine, TokenLookup),
    board: &Board,
    node_clock: &Arc<NodeClock>,
) -> anyhow::Result<Opened> {
    let shutdown = supervisor.shutdown();
    let directory = DataDir::open(&config.data_dir)?;
    let unfinished = identity::resume_departure(&directory)?;
    let file = ClockFile::new(&directory);
    let (kept, problem) = file.load(node_clock.now())?;
    node_clock.remember(&kept);
    board.set(Subsystem::Storage, "clock", problem);
    let clock: Arc<dyn Clock> = Arc::clone(node_clock) as _;
    let (reports_path, state_path) = (directory.file("reports.redb"), directory.file("state.redb"));
    let store = IdentityStore::new(directory);
    let mut loaded = store.load(clock.as_ref())?;
    let announced = store.announced();
    let registered = loaded.identity.as_ref().map(|identity| identity.signing_key);
    // Both are read whole and synced: whoever waits for the first answer waits for the longer of the two.
    let (state, reports) = thread::scope(|scope| {
        let reports = scope.spawn(|| Reports::open(&reports_path, Arc::clone(&clock), board.clone()));
        (State::open(&state_path, Arc::clone(&clock), board.clone(), registered), reports.join())
    });
    let (state, mut keeper) = state?;
    let (reports, writer) = reports.map_err(|_| anyhow::anyhow!("opening the reports was broken off"))??;
    if let Some(identity) = &loaded.identity {
        keeper.trust_at_first(identity.signing_key);
    }
    let confirmed = state.desired().borrow().own_key.confirmed;
    store.complete_rotation(&mut loaded, confirmed)?;
    let start = identity::Start { store, loaded, token, machine: machine.clone() };
    let pulls = Arc::<Notify>::default();
    let (enroller, identity, join) =
        Enroller::new(start, client.clone(), state.clone(), board.clone(), Arc::clone(&pulls));
    supervisor.spawn("state", keeper.run(shutdown.clone()));
    supervisor.spawn("reports", writer.run(shutdown));
    let enroller = enroller.searching(TokenSearch::new(config.token.clone(), TOKEN_PERIOD));
    let clock = (Arc::clone(node_clock), file, kept);
    Ok(Opened { state, reports, identity, announced, enroller, join, pulls, clock, unfinished })
}

/// Starts the task that keeps what is known of the time and tells what is wrong with the clock.
fn keep_clock(supervisor: &mut Supervisor, opened: &Opened, board: &Board, (mesh, stamps): (Mesh, Stamps)) {
    let (clock, file, kept) = opened.clock.clone();
    let keeper =
        ClockKeeper::new(clock, (file, kept), board.clone(), opened.identity.clone(), (mesh, stamps));
    supervisor.spawn("clock", keeper.run(supervisor.shutdown()));
}

/// Opens the kernel's interfaces and starts the tasks that listen to it.
fn open_kernel(
    config: &Config,
    supervisor: &mut Supervisor,
    prepared: Prepared,
) -> anyhow::Result<(Kernel, String, mpsc::Receiver<KernelChange>)> {
    let shutdown = supervisor.shutdown();
    let chosen = prepared.start()?;
    tracing::info!(backend = %chosen.backend, reason = chosen.reason, "WireGuard chosen");
    if let Some(service) = chosen.service {
        let stop = shutdown.clone();
        supervisor.spawn("wireguard", async move {
            service.run(stop).await;
            Ok(())
        });
    }
    let firewall = NfTables::new()?;
    // One notification that waits is enough: whoever takes it looks at everything.
    let (tell, changes) = mpsc::channel(1);
    let mut monitor = firewall.monitor()?;
    let network = Arc::new(RtNetlink::new()?);
    let asked_by = Arc::clone(&network);
    let mut links = LinkChanges::new(&config.mesh.interface, Watched::Everything)
        .context("cannot listen to the kernel's links")?
        .by_others(move |port| port == asked_by.port());
    supervisor.spawn("kernel_changes", async move {
        loop {
            // Cancel safe: both say so of themselves.
            let change = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                told = monitor.changed() => told.map(|()| KernelChange::Policy).context("cannot listen to nftables")?,
                told = links.changed() => {
                    told.map(|()| KernelChange::Links).context("cannot listen to the kernel's links")?
                }
            };
            // Full: a notification waits already. Closed: the process is stopping.
            let _ = tell.try_send(change);
        }
    });
    let kernel = Kernel { wireguard: chosen.wireguard, network, firewall: Arc::new(firewall) };
    Ok((kernel, chosen.reason, changes))
}

fn stopped(shutdown: &Shutdown) -> impl Future<Output = ()> + use<> {
    shutdown.clone().cancelled_owned()
}

/// Resolves when the process is asked to stop, and the node has left by `leave` if it is to.
fn asked_to_stop(
    leave: Option<LeaveRequests>,
    api_token: TokenSource,
    board: Board,
) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    Ok(async move {
        loop {
            // Cancel safe: a signal is not lost with the wait for it.
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => reload(&api_token, &board),
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        if let Some(leave) = leave {
            // Before anything stops: what is to be cleared still has its owner.
            deregister(&leave).await;
        }
    })
}

/// Does what SIGHUP asks for, as far as it can be done without a restart.
fn reload(api_token: &TokenSource, board: &Board) {
    match api_token.reload() {
        Ok(is_other) => {
            tracing::info!(is_other, "the token of the Local Node API was read again, if there is one");
            board.clear(Subsystem::NodeApi, "api_token");
        }
        Err(error) => {
            let message = format!(
                "{error}; the token before stays in force: let user {CORE_USER} alone read the file and reload, or \
                 restart plexd-core"
            );
            board.raise(Subsystem::NodeApi, "api_token", message);
        }
    }
    tracing::warn!("of the configuration, SIGHUP reads the token file only; for the rest restart plexd-core");
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd not notified");
    }
}
