//! Arguments, exit codes, and the one line on standard output that says where the server listens.
//! Usage errors exit with 2, everything else that fails with 1 and one line on standard error.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::server::{Options, Server};

/// Control plane for developing and testing plexd. Not for production.
#[derive(Debug, Parser)]
#[command(name = "plexd-devcp", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the control-plane API over HTTPS and the admin API over loopback HTTP.
    Serve(ServeArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Address of the control-plane API; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Address of the admin API, on loopback; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    admin: SocketAddr,
    /// Directory of everything that outlives a restart; `ca.pem` is written there.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Further name or address for the server certificate (repeatable).
    #[arg(long = "name", value_name = "NAME_OR_IP")]
    names: Vec<String>,
}

/// Runs the program with the process's arguments until SIGINT or SIGTERM.
#[must_use]
pub fn main() -> ExitCode {
    let Command::Serve(args) = Cli::parse().command;
    init_logging();
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Server(#[from] crate::server::ServerError),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("cannot write to standard output: {0}")]
    Stdout(#[source] std::io::Error),
}

fn serve(args: ServeArgs) -> Result<(), CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    runtime.block_on(async {
        let server = Server::bind(Options {
            listen: args.listen,
            admin: args.admin,
            state: args.state,
            names: args.names,
        })
        .await?;
        let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
        say_ready(&server).map_err(CliError::Stdout)?;
        tokio::select! {
            () = server.run() => {}
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(())
    })
}

fn say_ready(server: &Server) -> std::io::Result<()> {
    // Standard error may be closed; the line there is a courtesy, the one below is an interface.
    let _ = writeln!(
        std::io::stderr(),
        "plexd-devcp is for development and tests only: its admin API has no authentication"
    );
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "listening https://{} admin http://{} ca {}",
        server.wire_addr(),
        server.admin_addr(),
        server.ca_path().display()
    )?;
    out.flush()
}

fn fail(error: &dyn Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "plexd-devcp: {error}");
    ExitCode::FAILURE
}

fn init_logging() {
    let filter = EnvFilter::try_from_env("PLEXD_DEVCP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // An embedding test may have installed a subscriber already: then that one stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}
