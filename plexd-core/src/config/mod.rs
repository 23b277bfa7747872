//! The configuration (contract, section 7): read from one file, overridden by the environment, and checked. A
//! [`Config`] that exists can be run.

mod file;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexd_proto::settings::{self, CoreSockets, LogLevel, NodeApi, SettingsError};
use reqwest::Url;

use crate::kernel::wireguard::BackendChoice;
use crate::policy::Action;

use file::{BackendKey, ConfigFile, DefaultActionKey, ModeKey};

pub use file::OnStop;

/// The configuration of plexd-core.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of the control plane, `https`.
    pub api: Url,
    /// CA certificates that alone may vouch for the control plane; the system's when unset.
    pub api_ca_file: Option<PathBuf>,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Where identity, state and reports are kept.
    pub data_dir: PathBuf,
    /// Host name to register under, instead of the system's.
    pub hostname: Option<String>,
    /// Whether an ordered stop deregisters the node.
    pub deregister_on_shutdown: bool,
    /// What an ordered stop does to the mesh.
    pub on_stop: OnStop,
    /// Where the bootstrap token may be.
    pub token: TokenSources,
    /// The mesh interface.
    pub mesh: Mesh,
    /// Period of reconciliation and state pull; 5 s to 1 h.
    pub reconcile_interval: Duration,
    /// Period of heartbeats; 5 s to 1 h.
    pub heartbeat_interval: Duration,
    /// The firewall.
    pub policy: PolicySettings,
    /// The Local Node API, as far as core has a part in it.
    pub node_api: NodeApi,
    /// Core's sockets.
    pub sockets: CoreSockets,
}

/// Where the bootstrap token may be; tried in the order of contract, section 4.
#[derive(Debug, Clone, Default)]
pub struct TokenSources {
    /// A file, readable by root alone.
    pub file: PathBuf,
    /// Whether the configuration names the file: then its absence is told.
    pub file_configured: bool,
    /// Name of an environment variable.
    pub env: String,
}

/// The mesh interface.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Name, 1 to 15 bytes.
    pub interface: String,
    /// UDP port of WireGuard.
    pub listen_port: u16,
    /// MTU in bytes, 1280 to 9000.
    pub mtu: u32,
    /// Which WireGuard.
    pub backend: BackendChoice,
    /// Seconds between keepalives; `None` for none.
    pub persistent_keepalive: Option<NonZeroU16>,
}

/// The firewall.
#[derive(Debug, Clone, Copy)]
pub struct PolicySettings {
    /// Whether policy is enforced at all.
    pub enabled: bool,
    /// What happens to what no rule matches.
    pub default: Action,
    /// Whether denied packets are logged by the kernel.
    pub log_denied: bool,
}

impl Config {
    /// Reads the configuration at `path` and the process's environment.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        Self::from_file(settings::load(path)?, |name| std::env::var(name).ok())
    }

    /// Reads a configuration from its text, without the environment.
    pub fn from_text(text: &str) -> Result<Self, SettingsError> {
        Self::from_file(settings::parse(text, Path::new("config.yaml"))?, |_| None)
    }

    fn from_file(file: ConfigFile, env: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let file = file.with_environment(&env)?;
        refuse_unavailable(&file)?;
        file.node_api.check()?;
        Ok(Self {
            api: control_plane_url(&file.api)?,
            api_ca_file: file.api_ca_file,
            log_level: file.log_level,
            data_dir: absolute("data_dir", file.data_dir)?,
            hostname: file.hostname.map(host_name).transpose()?,
            deregister_on_shutdown: file.deregister_on_shutdown,
            on_stop: file.on_stop,
            token: TokenSources {
                file_configured: file.token.file.is_some(),
                file: file.token.file.unwrap_or_else(|| "/etc/plexd/bootstrap-token".into()),
                env: file.token.env,
            },
            mesh: Mesh {
                interface: interface_name(file.mesh.interface)?,
                listen_port: nonzero("mesh.listen_port", file.mesh.listen_port)?.get(),
                mtu: in_range("mesh.mtu", file.mesh.mtu, 1280, 9000)?,
                backend: match file.mesh.backend {
                    BackendKey::Auto => BackendChoice::Auto,
                    BackendKey::Kernel => BackendChoice::Kernel,
                    BackendKey::Userspace => BackendChoice::Userspace,
                },
                persistent_keepalive: keepalive(file.mesh.persistent_keepalive)?,
            },
            reconcile_interval: interval("reconcile.interval", file.reconcile.interval)?,
            heartbeat_interval: interval("heartbeat.interval", file.heartbeat.interval)?,
            policy: PolicySettings {
                enabled: file.policy.enabled,
                default: match file.policy.default {
                    DefaultActionKey::Allow => Action::Allow,
                    DefaultActionKey::Deny => Action::Deny,
                },
                log_denied: file.policy.log_denied,
            },
            node_api: file.node_api,
            sockets: file.core,
        })
    }
}

/// Refuses what the documents name and this version does not do yet, rather than ignoring it.
fn refuse_unavailable(file: &ConfigFile) -> Result<(), SettingsError> {
    let unavailable = |key| Err(SettingsError::value(key, "is not available in this version; remove it"));
    if file.mode == ModeKey::Bridge {
        return unavailable("mode: bridge");
    }
    if file.nat_traversal.enabled {
        return unavailable("nat_traversal.enabled: true");
    }
    if file.token.metadata {
        return unavailable("token.metadata: true");
    }
    Ok(())
}

fn control_plane_url(text: &str) -> Result<Url, SettingsError> {
    let example = "such as https://api.plexd.example";
    if text.is_empty() {
        return Err(SettingsError::value(
            "api",
            format!("is missing: set it to the control plane's URL, {example}"),
        ));
    }
    let url = Url::parse(text).map_err(|error| {
        SettingsError::value("api", format!("is not a URL ({error}); write one {example}"))
    })?;
    if url.scheme() != "https" {
        return Err(SettingsError::value("api", format!("must be an https URL, {example}")));
    }
    if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
        return Err(SettingsError::value("api", format!("must have a host and no query, {example}")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SettingsError::value("api", "must not hold a user name or password"));
    }
    Ok(url)
}

fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, SettingsError> {
    if path.is_absolute() { Ok(path) } else { Err(SettingsError::value(key, "must be an absolute path")) }
}

fn host_name(name: String) -> Result<String, SettingsError> {
    let valid = (1..=253).contains(&name.len())
        && name.parse::<IpAddr>().is_err()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if valid {
        Ok(name)
    } else {
        Err(SettingsError::value("hostname", "must be a host name of 1 to 253 characters"))
    }
}

fn interface_name(name: String) -> Result<String, SettingsError> {
    let valid = (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name != "."
        && name != "..";
    if valid {
        return Ok(name);
    }
    Err(SettingsError::value("mesh.interface", "must be 1 to 15 letters, digits, '-', '_' or '.'"))
}

fn nonzero(key: &str, port: u16) -> Result<NonZeroU16, SettingsError> {
    NonZeroU16::new(port).ok_or_else(|| SettingsError::value(key, "must be 1 to 65535"))
}

fn in_range(key: &str, value: u32, least: u32, most: u32) -> Result<u32, SettingsError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(SettingsError::value(key, format!("must be {least} to {most}")))
}

fn interval(key: &str, interval: Duration) -> Result<Duration, SettingsError> {
    if (Duration::from_secs(5)..=Duration::from_hours(1)).contains(&interval) {
        return Ok(interval);
    }
    Err(SettingsError::value(key, "must be 5s to 1h"))
}

fn keepalive(interval: Duration) -> Result<Option<NonZeroU16>, SettingsError> {
    let whole_seconds = interval.subsec_nanos() == 0;
    match u16::try_from(interval.as_secs()) {
        Ok(seconds) if whole_seconds => Ok(NonZeroU16::new(seconds)),
        _ => Err(SettingsError::value(
            "mesh.persistent_keepalive",
            "must be whole seconds, 0s (off) to 65535s",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let file = settings::parse(text, Path::new("config.yaml")).map_err(|error| error.to_string())?;
        Config::from_file(file, |_| None).map_err(|error| error.to_string())
    }

    #[test]
    fn one_key_is_enough_and_the_rest_are_the_documented_defaults() {
        let config = config("api: https://api.plexd.example\n").unwrap();
        assert_eq!(config.mesh.interface, "plexd0");
        assert_eq!((config.mesh.listen_port, config.mesh.mtu), (51820, 1420));
        assert_eq!(config.mesh.persistent_keepalive.map(NonZeroU16::get), Some(25));
        assert_eq!(config.reconcile_interval, Duration::from_mins(1));
        assert_eq!(config.heartbeat_interval, Duration::from_secs(30));
        assert_eq!(config.policy.default, Action::Deny);
        assert!(config.policy.enabled && !config.deregister_on_shutdown);
        assert_eq!(config.on_stop, OnStop::Keep);
        assert_eq!(config.data_dir, Path::new("/var/lib/plexd"));
    }

    const EXAMPLE: &str = include_str!("../../../packaging/examples/config.yaml");

    #[test]
    fn the_example_file_is_the_defaults_but_for_the_control_plane() {
        let example = config(EXAMPLE).unwrap();
        let defaults = config("api: https://control.example.com\n").unwrap();
        assert_eq!(format!("{example:#?}"), format!("{defaults:#?}"));
    }

    #[test]
    fn what_the_example_file_has_commented_out_can_be_used() {
        let is_key = |text: &str| {
            text.split_once(": ").is_some_and(|(key, value)| {
                key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && !value.contains(' ')
            })
        };
        let mut keys = 0;
        let text: String = EXAMPLE
            .lines()
            .map(|line| match line.split_once("# ") {
                Some((indent, key)) if indent.trim().is_empty() && is_key(key) => {
                    keys += 1;
                    format!("{indent}{key}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(keys, 4, "{text}");
        let config = config(&text).unwrap();
        assert_eq!(config.api_ca_file.as_deref(), Some(Path::new("/etc/plexd/ca.pem")));
        assert_eq!(config.hostname.as_deref(), Some("edge-1"));
        assert!(config.token.file_configured);
        assert_eq!(config.node_api.http_token_file.as_deref(), Some(Path::new("/etc/plexd/api-token")));
    }

    #[test]
    fn each_mistake_is_told_with_its_key_and_the_way_out() {
        let cases = [
            ("", "api is missing"),
            ("api: http://x.example\n", "api must be an https URL"),
            ("api: https://u:p@x.example\n", "user name or password"),
            ("api: https://x.example\nmesh:\n  mtu: 100\n", "mesh.mtu must be 1280 to 9000"),
            ("api: https://x.example\nmesh:\n  interface: way-too-long-a-name\n", "mesh.interface must be"),
            (
                "api: https://x.example\nmesh:\n  listenport: 1\n",
                "config.yaml:3: unknown key `listenport`; did you mean `listen_port`?",
            ),
            ("api: https://x.example\nreconcile:\n  interval: 1s\n", "reconcile.interval must be 5s to 1h"),
            ("api: https://x.example\nmode: bridge\n", "not available in this version"),
            ("api: https://x.example\ndata_dir: var\n", "data_dir must be an absolute path"),
        ];
        for (text, expected) in cases {
            let error = config(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let file = settings::parse("api: https://a.example\n", Path::new("config.yaml")).unwrap();
        let config = Config::from_file(file, |name| match name {
            "PLEXD_API" => Some("https://b.example".into()),
            "PLEXD_LOG_LEVEL" => Some("debug".into()),
            "PLEXD_BOOTSTRAP_TOKEN_FILE" => Some("/run/token".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!(config.api.host_str(), Some("b.example"));
        assert_eq!(config.log_level, LogLevel::Debug);
        assert_eq!(config.token.file, Path::new("/run/token"));
    }
}
