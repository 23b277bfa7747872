//! The `plexd-api` program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    plexd_api::run::run(&plexd_api::cli::Arguments::parse())
}
