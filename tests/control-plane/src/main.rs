//! `plexd-devcp`: the development control plane. Arguments, exit codes and everything else are in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    plexd_devcp::cli::main()
}
