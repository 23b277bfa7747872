//! Settings that both daemons read from the one configuration file (contract, section 7): the sockets between them
//! and the Local Node API; and how the file is read, so that every mistake in it is told in one line with file, line
//! and the nearest valid key. The other sections belong to plexd-core alone.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Where the configuration is unless `--config` or `PLEXD_CONFIG` says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/plexd/config.yaml";

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Key `log_level`: least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Lost functions.
    Error,
    /// What somebody may act on.
    Warn,
    /// Changes.
    #[default]
    Info,
    /// Single operations.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Returns the name, as in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Applies the environment's override; `env` looks a variable up.
    pub fn apply_environment(&mut self, env: impl Fn(&str) -> Option<String>) -> Result<(), SettingsError> {
        if let Some(level) = env("PLEXD_LOG_LEVEL") {
            *self = parse_variable("PLEXD_LOG_LEVEL", &level, "error, warn, info, debug or trace")?;
        }
        Ok(())
    }
}

impl FromStr for LogLevel {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or(())
    }
}

/// Section `core`: the sockets of plexd-core.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoreSockets {
    /// `core.sock`, spoken between core and the sidecar.
    pub socket: PathBuf,
    /// `admin.sock`, spoken between core and plexd-ctl.
    pub admin_socket: PathBuf,
    /// `proof.sock`, on which the sidecar passes client sockets.
    pub proof_socket: PathBuf,
}

impl Default for CoreSockets {
    fn default() -> Self {
        Self::within(Path::new("/run/plexd"))
    }
}

impl CoreSockets {
    /// Returns sockets of the default names, all in `folder`.
    pub fn within(folder: &Path) -> Self {
        let within = |name| folder.join(name);
        Self {
            socket: within("core.sock"),
            admin_socket: within("admin.sock"),
            proof_socket: within("proof.sock"),
        }
    }
}

/// Section `node_api`: the Local Node API (guide, "Enable TCP in the plexd configuration"; contract, section 6).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own in the file")]
pub struct NodeApi {
    /// Whether plexd-api serves at all.
    pub enabled: bool,
    /// The Unix socket of the API.
    pub socket: PathBuf,
    /// Group that may connect to the socket.
    pub socket_group: String,
    /// Group whose members may read secret values.
    pub secrets_group: String,
    /// Whether there is a TCP listener.
    pub http_enabled: bool,
    /// Address of the TCP listener.
    pub http_listen: SocketAddr,
    /// File with the bearer token of TCP callers. Read by plexd-core alone.
    pub http_token_file: Option<PathBuf>,
    /// Whether the token opens secrets, too.
    pub http_secrets: bool,
    /// Whether the TCP listener serves Prometheus metrics.
    pub metrics: bool,
    /// Largest body of a report, in bytes; 1 to 64 MiB.
    pub max_report_bytes: u32,
    /// How long report changes are gathered before they are sent; 0 s to 5 min.
    #[serde(with = "humantime_serde")]
    pub report_debounce: Duration,
}

impl Default for NodeApi {
    fn default() -> Self {
        Self {
            enabled: true,
            socket: "/run/plexd/api.sock".into(),
            socket_group: "plexd".into(),
            secrets_group: "plexd-secrets".into(),
            http_enabled: false,
            http_listen: SocketAddr::from(([127, 0, 0, 1], 9100)),
            http_token_file: None,
            http_secrets: true,
            metrics: false,
            max_report_bytes: 1024 * 1024,
            report_debounce: Duration::from_secs(5),
        }
    }
}

impl NodeApi {
    /// Applies the environment's overrides; `env` looks a variable up.
    pub fn apply_environment(&mut self, env: impl Fn(&str) -> Option<String>) -> Result<(), SettingsError> {
        if let Some(socket) = env("PLEXD_NODE_API_SOCKET") {
            self.socket = socket.into();
        }
        if let Some(enabled) = env("PLEXD_NODE_API_HTTP_ENABLED") {
            self.http_enabled = parse_variable("PLEXD_NODE_API_HTTP_ENABLED", &enabled, "true or false")?;
        }
        if let Some(listen) = env("PLEXD_NODE_API_HTTP_LISTEN") {
            self.http_listen =
                parse_variable("PLEXD_NODE_API_HTTP_LISTEN", &listen, "an address like 127.0.0.1:9100")?;
        }
        Ok(())
    }

    /// Checks what the types cannot say.
    pub fn check(&self) -> Result<(), SettingsError> {
        let range = 1..=64 * 1024 * 1024;
        if !range.contains(&self.max_report_bytes) {
            return Err(SettingsError::value("node_api.max_report_bytes", "must be 1 to 67108864 (64 MiB)"));
        }
        if self.report_debounce > Duration::from_mins(5) {
            return Err(SettingsError::value("node_api.report_debounce", "must be 0s to 5m"));
        }
        if self.metrics && !self.http_enabled {
            return Err(SettingsError::value(
                "node_api.metrics: true",
                "needs node_api.http_enabled: true, as they are read over TCP",
            ));
        }
        if self.http_enabled && self.http_token_file.is_none() {
            return Err(SettingsError::value(
                "node_api.http_token_file",
                "must name the file with the bearer token when node_api.http_enabled is true",
            ));
        }
        Ok(())
    }
}

/// Parses the value of the environment variable `name`, which wants `expected`.
pub fn parse_variable<T: FromStr>(
    name: &str,
    value: &str,
    expected: &'static str,
) -> Result<T, SettingsError> {
    value.parse().map_err(|_| SettingsError::Variable {
        name: name.into(),
        value: value.into(),
        expected: expected.into(),
    })
}

/// Why the settings cannot be used. Each says in one line what is wrong where, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; name another with --config", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("the configuration {path} is larger than {MAX_FILE} bytes", path = .0.display())]
    TooLarge(PathBuf),
    /// The text is not what a configuration looks like.
    #[error("{path}:{line}: {message}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1; 0 if unknown.
        line: u64,
        /// What is wrong, and the nearest valid key.
        message: String,
    },
    /// A value that cannot be.
    #[error("{key} {problem}")]
    Value {
        /// Dotted name of the key.
        key: String,
        /// What is wrong, and what is right.
        problem: String,
    },
    /// An environment variable that cannot be.
    #[error("{name}={value} in the environment is not {expected}")]
    Variable {
        /// The variable.
        name: String,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },
}

impl SettingsError {
    /// Creates the error for a value out of range.
    pub fn value(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value { key: key.into(), problem: problem.into() }
    }
}

/// Reads the configuration file at `path`.
pub fn load<T: DeserializeOwned + Default>(path: &Path) -> Result<T, SettingsError> {
    let read = |source| SettingsError::Read { path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(read)?;
    if metadata.len() > MAX_FILE {
        return Err(SettingsError::TooLarge(path.into()));
    }
    parse(&std::fs::read_to_string(path).map_err(read)?, path)
}

/// Parses the text of a configuration file; `path` is for its errors. A file without any key is the default.
pub fn parse<T: DeserializeOwned + Default>(text: &str, path: &Path) -> Result<T, SettingsError> {
    let empty = text
        .lines()
        .all(|line| matches!(line.trim_start().chars().next(), None | Some('#')) || line == "---");
    if empty {
        return Ok(T::default());
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax_error(&error, path))
}

fn syntax_error(error: &serde_saphyr::Error, path: &Path) -> SettingsError {
    let line = error.location().map_or(0, |location| location.line());
    let message = match error.without_snippet() {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
            unknown_key(field, expected).to_string()
        }
        other => without_position(&one_line(&other.to_string())).to_owned(),
    };
    SettingsError::Syntax { path: path.into(), line, message }
}

fn unknown_key<'a>(field: &'a str, expected: &'a [&'static str]) -> impl fmt::Display + 'a {
    fmt::from_fn(move |f| {
        write!(f, "unknown key `{field}`")?;
        let nearest = expected
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(a, field).total_cmp(&strsim::jaro_winkler(b, field)));
        match nearest {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => write!(f, "; no key is valid here"),
        }
    })
}

/// Cuts off the position at the end, which stands before the message already.
fn without_position(text: &str) -> &str {
    text.rsplit_once(" at line ").map_or(text, |(message, _)| message)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse::<NodeApi>(text, Path::new("/etc/plexd/config.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_the_nearest_valid_one() {
        let message = error("enabled: true\nhttp_tokenfile: /x\n");
        assert_eq!(
            message,
            "/etc/plexd/config.yaml:2: unknown key `http_tokenfile`; did you mean `http_token_file`?"
        );
    }

    #[test]
    fn a_wrong_type_is_told_with_its_line() {
        let message = error("enabled: true\n\nhttp_listen: nowhere\n");
        assert!(message.starts_with("/etc/plexd/config.yaml:3: ") && !message.contains('\n'), "{message}");
        assert!(!message.contains(" at line "), "{message}");
    }

    #[test]
    fn an_empty_file_is_the_default() {
        for text in ["", "\n", "# nothing\n---\n"] {
            assert_eq!(parse::<NodeApi>(text, Path::new("f")).unwrap(), NodeApi::default(), "{text:?}");
        }
    }

    #[test]
    fn durations_are_written_as_people_say_them() {
        let settings: NodeApi = parse("report_debounce: 1m 30s\n", Path::new("f")).unwrap();
        assert_eq!(settings.report_debounce, Duration::from_secs(90));
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let mut settings = NodeApi::default();
        settings
            .apply_environment(|name| (name == "PLEXD_NODE_API_HTTP_LISTEN").then(|| "[::1]:9200".into()))
            .unwrap();
        assert_eq!(settings.http_listen.to_string(), "[::1]:9200");
        let error = settings.apply_environment(|_| Some("maybe".into())).unwrap_err().to_string();
        assert_eq!(error, "PLEXD_NODE_API_HTTP_ENABLED=maybe in the environment is not true or false");
    }

    #[test]
    fn a_listener_without_a_token_file_is_refused() {
        let settings = NodeApi { http_enabled: true, ..NodeApi::default() };
        assert!(settings.check().unwrap_err().to_string().contains("http_token_file"));
    }
}
