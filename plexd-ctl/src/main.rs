//! plexd-ctl: what an administrator asks of plexd-core, over `admin.sock` and with no privilege of its own.
//! Exit codes are those of [`failure::Failure::exit_code`].

mod cli;
mod client;
mod commands;
mod failure;
mod output;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Nothing to be done when the terminal is gone.
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
