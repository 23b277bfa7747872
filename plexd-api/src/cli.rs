//! Arguments of `plexd-api`.

use std::path::PathBuf;

use clap::Parser;
use plexd_proto::settings::DEFAULT_CONFIG;

/// Serves plexd's Local Node API to applications on this machine.
#[derive(Debug, Parser)]
#[command(name = "plexd-api", version, about)]
pub struct Arguments {
    /// Configuration file, the same as plexd-core's.
    #[arg(long, env = "PLEXD_CONFIG", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
