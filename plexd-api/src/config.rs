//! The part of the configuration that concerns this process. The file is plexd-core's, too: sections that only core
//! knows are passed over here, and core refuses what neither knows.

use std::path::Path;

use plexd_proto::settings::{self, CoreSockets, LogLevel, NodeApi, SettingsError};
use serde::Deserialize;

/// What `plexd-api` reads of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// The Local Node API.
    pub node_api: NodeApi,
    /// Where plexd-core listens.
    pub core: CoreSockets,
}

/// Reads the file at `path`, applies the overrides of the environment, which `env` looks up, and checks the values.
pub fn load(path: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Config, SettingsError> {
    finish(settings::load(path)?, env)
}

fn finish(mut config: Config, env: impl Fn(&str) -> Option<String>) -> Result<Config, SettingsError> {
    config.log_level.apply_environment(&env)?;
    config.node_api.apply_environment(env)?;
    config.node_api.check()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, SettingsError> {
        finish(settings::parse(text, Path::new("f.yaml"))?, |_| None)
    }

    #[test]
    fn the_sections_of_core_are_passed_over() {
        let config = parse(
            "api: https://cp.example\nmesh:\n  mtu: 1380\npolicy: {enabled: true, list: [1, 2]}\nlog_level: debug\n\
             node_api:\n  socket_group: apps\ncore:\n  socket: /run/x.sock\n",
        )
        .unwrap();
        assert_eq!(config.log_level, LogLevel::Debug);
        assert_eq!(config.node_api.socket_group, "apps");
        assert_eq!(config.core.socket, Path::new("/run/x.sock"));
    }

    #[test]
    fn a_misspelt_key_of_our_section_is_an_error_with_its_line() {
        let error = parse("node_api:\n  soket: /x\n").unwrap_err().to_string();
        assert_eq!(error, "f.yaml:2: unknown key `soket`; did you mean `socket`?");
    }

    #[test]
    fn a_value_out_of_range_is_an_error() {
        assert!(parse("node_api:\n  max_report_bytes: 0\n").is_err());
        assert!(parse("node_api:\n  http_enabled: true\n").is_err());
        assert!(parse("log_level: loud\n").is_err());
    }

    #[test]
    fn the_environment_overrides_the_log_level() {
        let env = |name: &str| (name == "PLEXD_LOG_LEVEL").then(|| "trace".to_owned());
        assert_eq!(finish(Config::default(), env).unwrap().log_level, LogLevel::Trace);
        let bad = |name: &str| (name == "PLEXD_LOG_LEVEL").then(|| "loud".to_owned());
        assert!(finish(Config::default(), bad).unwrap_err().to_string().contains("PLEXD_LOG_LEVEL=loud"));
    }
}
