//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use plexd_proto::settings::DEFAULT_CONFIG;

use crate::config::Config;
use crate::run;

/// The privileged half of plexd: keeps this node's WireGuard mesh and firewall as the control plane wants them.
#[derive(Debug, Parser)]
#[command(name = "plexd-core", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs until stopped. Start it as root (it drops to user plexd-core) or as plexd-core with `CAP_NET_ADMIN`.
    Run(ConfigArgs),
    /// Checks the configuration and exits.
    Check(ConfigArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// Configuration file.
    #[arg(long, env = "PLEXD_CONFIG", default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command line and returns the exit code: 0 fine, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => Config::load(&args.config).map_err(Into::into).and_then(run::run),
        Command::Check(args) => check(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "plexd-core: {}", plexd_proto::explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn check(args: &ConfigArgs) -> anyhow::Result<()> {
    Config::load(&args.config)?;
    writeln!(std::io::stdout(), "{}: the configuration is valid", args.config.display())?;
    Ok(())
}
