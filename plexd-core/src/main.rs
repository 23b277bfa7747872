//! plexd-core: the privileged half of plexd.

use std::process::ExitCode;

fn main() -> ExitCode {
    plexd_core::cli::main()
}
