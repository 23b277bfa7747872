//! The shape of the configuration file: every key and its default. Says what can be written, not what makes sense.

use std::path::PathBuf;
use std::time::Duration;

use plexd_proto::settings::{CoreSockets, LogLevel, NodeApi, SettingsError, parse_variable};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    pub(super) api: String,
    pub(super) api_ca_file: Option<PathBuf>,
    pub(super) mode: ModeKey,
    pub(super) log_level: LogLevel,
    pub(super) data_dir: PathBuf,
    pub(super) hostname: Option<String>,
    pub(super) deregister_on_shutdown: bool,
    pub(super) on_stop: OnStop,
    pub(super) token: TokenSection,
    pub(super) mesh: MeshSection,
    pub(super) reconcile: ReconcileSection,
    pub(super) heartbeat: HeartbeatSection,
    pub(super) policy: PolicySection,
    pub(super) nat_traversal: NatTraversalSection,
    pub(super) node_api: NodeApi,
    pub(super) core: CoreSockets,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            api: String::new(),
            api_ca_file: None,
            mode: ModeKey::Node,
            log_level: LogLevel::Info,
            data_dir: "/var/lib/plexd".into(),
            hostname: None,
            deregister_on_shutdown: false,
            on_stop: OnStop::Keep,
            token: TokenSection::default(),
            mesh: MeshSection::default(),
            reconcile: ReconcileSection::default(),
            heartbeat: HeartbeatSection::default(),
            policy: PolicySection::default(),
            nat_traversal: NatTraversalSection::default(),
            node_api: NodeApi::default(),
            core: CoreSockets::default(),
        }
    }
}

impl ConfigFile {
    /// Applies the environment's overrides. The bootstrap token itself stays where it is: it is read when needed.
    pub(super) fn with_environment(
        mut self,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        if let Some(api) = env("PLEXD_API") {
            self.api = api;
        }
        if let Some(mode) = env("PLEXD_MODE") {
            self.mode = parse_variable("PLEXD_MODE", &mode, "node or bridge")?;
        }
        self.log_level.apply_environment(env)?;
        if let Some(file) = env("PLEXD_BOOTSTRAP_TOKEN_FILE") {
            self.token.file = Some(file.into());
        }
        self.node_api.apply_environment(env)?;
        Ok(self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeKey {
    Node,
    Bridge,
}

impl std::str::FromStr for ModeKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "node" => Ok(Self::Node),
            "bridge" => Ok(Self::Bridge),
            _ => Err(()),
        }
    }
}

/// What an ordered stop of plexd-core does to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// Interface, routes and policy stay.
    Keep,
    /// They are removed.
    Teardown,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TokenSection {
    pub(super) file: Option<PathBuf>,
    pub(super) env: String,
    pub(super) metadata: bool,
}

impl Default for TokenSection {
    fn default() -> Self {
        Self { file: None, env: "PLEXD_BOOTSTRAP_TOKEN".into(), metadata: false }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum BackendKey {
    Auto,
    Kernel,
    Userspace,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MeshSection {
    pub(super) interface: String,
    pub(super) listen_port: u16,
    pub(super) mtu: u32,
    pub(super) backend: BackendKey,
    #[serde(with = "humantime_serde")]
    pub(super) persistent_keepalive: Duration,
}

impl Default for MeshSection {
    fn default() -> Self {
        Self {
            interface: "plexd0".into(),
            listen_port: 51820,
            mtu: 1420,
            backend: BackendKey::Auto,
            persistent_keepalive: Duration::from_secs(25),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ReconcileSection {
    #[serde(with = "humantime_serde")]
    pub(super) interval: Duration,
}

impl Default for ReconcileSection {
    fn default() -> Self {
        Self { interval: Duration::from_mins(1) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HeartbeatSection {
    #[serde(with = "humantime_serde")]
    pub(super) interval: Duration,
}

impl Default for HeartbeatSection {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30) }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DefaultActionKey {
    Allow,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicySection {
    pub(super) enabled: bool,
    pub(super) default: DefaultActionKey,
    pub(super) log_denied: bool,
}

impl Default for PolicySection {
    fn default() -> Self {
        Self { enabled: true, default: DefaultActionKey::Deny, log_denied: false }
    }
}

/// Read so that a file written for the documents is understood; refused when enabled, until the feature exists.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NatTraversalSection {
    pub(super) enabled: bool,
    stun_servers: Vec<String>,
    #[serde(with = "humantime_serde")]
    refresh_interval: Duration,
    fallback: Option<String>,
}

impl Default for NatTraversalSection {
    fn default() -> Self {
        Self {
            enabled: false,
            stun_servers: Vec::new(),
            refresh_interval: Duration::from_mins(1),
            fallback: None,
        }
    }
}
