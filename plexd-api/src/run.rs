//! Start, drop and stop. What needs root comes first and is little: looking the users up, making the sockets. All
//! else happens as the service user.

use std::io::IsTerminal;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use plexd_proto::memory;
use plexd_proto::privilege::{self, ServiceUser};
use plexd_proto::transport::Incoming;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::auth::Rules;
use crate::cli::Arguments;
use crate::config::{self, Config};
use crate::core_client::{Core, follow};
use crate::http::{Api, Bodies, Limits, Metrics, Server, Told};
use crate::mirror::Mirror;
use crate::sockets;

/// The user that this process runs as.
const USER: &str = "plexd-api";
/// How long open connections have to end once the process is to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// File descriptors beside those of connections.
const SPARE_DESCRIPTORS: usize = 64;

/// Runs the process; the error that ends it is told in one line.
pub fn run(arguments: &Arguments) -> ExitCode {
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the log may not be there yet")]
fn complain(error: &anyhow::Error) {
    eprintln!("plexd-api: {}", plexd_proto::explain(error.as_ref()));
}

/// What was acquired as root.
struct Acquired {
    unix: UnixListener,
    tcp: Option<std::net::TcpListener>,
    rules: Rules,
    limits: Limits,
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    memory::keep_little();
    let config = config::load(&arguments.config, |name| std::env::var(name).ok())?;
    start_log(&config);
    if !config.node_api.enabled {
        tracing::info!("node_api.enabled is false: nothing to serve");
        return Ok(());
    }
    let acquired = acquire(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(&config, acquired))
}

fn start_log(config: &Config) {
    let level = config.log_level.as_str();
    // What the libraries have to say below a warning is about their insides.
    let filter = EnvFilter::new(format!("warn,plexd_api={level},plexd_proto={level}"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Acquires what needs root, then gives it up.
fn acquire(config: &Config) -> anyhow::Result<Acquired> {
    let api = &config.node_api;
    let user = ServiceUser::lookup(USER)?;
    let socket_group = privilege::group(&api.socket_group).context("node_api.socket_group")?;
    let secrets_group = privilege::group(&api.secrets_group).context("node_api.secrets_group")?;
    privilege::started_as(&user)?;
    let unix = sockets::unix(&api.socket, &user, socket_group)?;
    let tcp = api.http_enabled.then(|| sockets::tcp(api.http_listen)).transpose()?;
    let limits = allow_descriptors(Limits::default())?;
    privilege::drop_to(&user, &[])?;
    let rules = Rules {
        socket_gid: socket_group.as_raw(),
        secrets_gid: secrets_group.as_raw(),
        tcp_secrets: api.http_secrets,
    };
    Ok(Acquired { unix, tcp, rules, limits })
}

/// Raises the soft limit of open files to what connections may take, and returns how many those are: fewer where the
/// hard limit is too low for all of them, so that what it lacks is told to clients and not met by `accept`.
fn allow_descriptors(limits: Limits) -> anyhow::Result<Limits> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    let wanted = u64::try_from(limits.total + SPARE_DESCRIPTORS)?;
    let allowed = wanted.min(hard);
    if soft < allowed {
        setrlimit(Resource::RLIMIT_NOFILE, allowed, hard).context("cannot raise the limit of open files")?;
    }
    if allowed == wanted {
        return Ok(limits);
    }
    let total = usize::try_from(allowed)?.saturating_sub(SPARE_DESCRIPTORS);
    anyhow::ensure!(
        total > 0,
        "the limit of open files is {hard}, and plexd-api needs more than {SPARE_DESCRIPTORS}; \
         raise it (LimitNOFILE= of the service)"
    );
    tracing::warn!(
        limit = hard,
        wanted,
        connections = total,
        "fewer connections than usual: the limit of open files is low; raise it (LimitNOFILE= of the service)"
    );
    Ok(Limits { total, ..limits })
}

async fn serve(config: &Config, acquired: Acquired) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mirror = Arc::new(Mirror::new());
    let (core, carrier) = Core::new(&config.core, Arc::clone(&mirror));
    let max_report_bytes = usize::try_from(config.node_api.max_report_bytes)?;
    let api = Arc::new(Api {
        mirror: Arc::clone(&mirror),
        core: core.clone(),
        rules: acquired.rules,
        max_report_bytes,
        bodies: Bodies::new(max_report_bytes),
        told: Told::default(),
        metrics: config.node_api.metrics.then(Metrics::default),
        shutdown: shutdown.clone(),
    });
    let server = Server::new(&api, acquired.limits);
    let unix = Incoming::new(acquired.unix).context("cannot serve the Unix socket")?;
    let tcp = acquired.tcp.map(tokio::net::TcpListener::from_std).transpose();
    let tcp = tcp.context("cannot serve the TCP listener")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follow(core, mirror, shutdown.clone()));
    let answered = CancellationToken::new();
    tasks.spawn(carrier.run(answered.clone()));
    tasks.spawn(Arc::clone(&server).serve_unix(unix));
    if let Some(tcp) = tcp {
        tasks.spawn(Arc::clone(&server).serve_tcp(tcp));
    }
    // Not one of the tasks, of which none ends before the others.
    let _memory = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(memory::after_the_start()));
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %config.node_api.socket.display(), "serving");

    // Safe to cancel: signals are level-triggered here, and a task that ended stays ended.
    let asked = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        _ = tasks.join_next() => false,
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    shutdown.cancel();
    let stopped = async {
        server.finished().await;
        answered.cancel();
        while tasks.join_next().await.is_some() {}
    };
    if tokio::time::timeout(STOP_DEADLINE, stopped).await.is_err() {
        tracing::warn!("connections still open were cut");
    }
    anyhow::ensure!(asked, "a part of the process ended by itself; the log before this says why");
    tracing::info!("stopped");
    Ok(())
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd not notified");
    }
}
