//! A node: plexd-core and plexd-api in a host, started as root so that they give it up by themselves, and what people
//! and programs on that node do with them.

use std::io;
use std::time::Duration;

use serde_json::Value;

use crate::http::{HttpAnswer, curl};
use crate::output::Output;
use crate::{As, ControlPlane, Daemon, Host, Wire, wait_until};

/// The configuration.
const CONFIG: &str = "/etc/plexd/config.yaml";

/// The certificate of the control plane's authority.
const CA: &str = "/etc/plexd/ca.pem";

/// The socket of the Local Node API.
const SOCKET: &str = "/run/plexd/api.sock";

/// The same, as the guide has it.
const API_SOCKET: &str = "/var/run/plexd/api.sock";

/// How long enrolment may take.
const ENROLMENT: Duration = Duration::from_secs(20);

/// How long core may take to tell its status, which plexd-ctl does not wait for more than once.
const ANSWER: Duration = Duration::from_secs(5);

/// plexd on a host. Nothing runs before it is started.
#[derive(Debug)]
pub struct Node {
    host: Host,
    core: Option<Daemon>,
    api: Option<Daemon>,
}

impl Node {
    /// Prepares a node on `host`: a configuration for `control_plane`, whose host name is the host's, with the lines of
    /// `more` (YAML, may be empty) after it, and the authority's certificate.
    #[track_caller]
    pub fn new(host: &Host, control_plane: &ControlPlane, more: &str) -> Self {
        let node = Self { host: host.clone(), core: None, api: None };
        host.write(CA, 0o644, control_plane.ca_pem());
        let url = control_plane.url();
        node.configure(&format!("api: {url}\napi_ca_file: {CA}\nhostname: {}\n{more}", host.name()));
        node
    }

    /// Writes the configuration, as a whole.
    #[track_caller]
    pub fn configure(&self, yaml: &str) {
        self.host.write(CONFIG, 0o644, yaml);
    }

    /// Writes the bootstrap token to the file where plexd-core looks for it.
    #[track_caller]
    pub fn write_token(&self, token: &str) {
        self.host.write("/etc/plexd/bootstrap-token", 0o600, format!("{token}\n"));
    }

    /// Enrols with a token of `control_plane`, starts both daemons and waits until the node is enrolled. Returns its id.
    #[track_caller]
    pub fn enrol(&mut self, control_plane: &ControlPlane) -> String {
        self.write_token(&control_plane.token());
        self.start();
        self.wait_enrolled()
    }

    /// Starts both daemons and waits until they answer.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_core();
        self.start_api();
    }

    /// Starts plexd-core and waits until it answers plexd-ctl.
    #[track_caller]
    pub fn start_core(&mut self) {
        self.start_core_from(&self.host.program("plexd-core"));
    }

    /// Starts the plexd-core that is at `program` within the host, and waits until it answers plexd-ctl.
    #[track_caller]
    pub fn start_core_from(&mut self, program: &str) {
        let mut core = self.host.spawn("plexd-core", &[program, "run", "--config", CONFIG]);
        core.wait_ready("an answer to plexd-ctl", || {
            let output = self.ctl(&["status"]);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
        self.core = Some(core);
    }

    /// Starts plexd-core and leaves it to the caller, for starts that are to fail.
    #[track_caller]
    pub fn spawn_core(&self) -> Daemon {
        self.host.spawn("plexd-core", &[&self.host.program("plexd-core"), "run", "--config", CONFIG])
    }

    /// Starts plexd-api and waits until it answers anything at all.
    #[track_caller]
    pub fn start_api(&mut self) {
        let mut api = self.spawn_api();
        api.wait_ready("any answer to curl", || self.try_curl_unix(None, "/v1/state", &[]));
        self.api = Some(api);
    }

    /// Starts plexd-api and leaves it to the caller, for starts that are to fail.
    #[track_caller]
    pub fn spawn_api(&self) -> Daemon {
        self.host.spawn("plexd-api", &[&self.host.program("plexd-api"), "--config", CONFIG])
    }

    /// Waits until the node is enrolled and returns its id.
    #[track_caller]
    pub fn wait_enrolled(&self) -> String {
        wait_until(ENROLMENT, "enrolment", || {
            let status = self.status();
            let identity = &status["identity"];
            match identity["node_id"].as_str() {
                Some(id) if identity["enrolment"] == "enrolled" => Ok(id.to_owned()),
                _ => Err(status.to_string()),
            }
        })
    }

    /// Returns the host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the running plexd-core.
    #[track_caller]
    pub fn core(&mut self) -> &mut Daemon {
        self.core.as_mut().unwrap_or_else(|| panic!("plexd-core was not started"))
    }

    /// Returns the running plexd-api.
    #[track_caller]
    pub fn api(&mut self) -> &mut Daemon {
        self.api.as_mut().unwrap_or_else(|| panic!("plexd-api was not started"))
    }

    /// Takes plexd-core out, to be ended: `node.take_core().kill9()`.
    #[track_caller]
    pub fn take_core(&mut self) -> Daemon {
        self.core.take().unwrap_or_else(|| panic!("plexd-core was not started"))
    }

    /// Takes plexd-api out, to be ended.
    #[track_caller]
    pub fn take_api(&mut self) -> Daemon {
        self.api.take().unwrap_or_else(|| panic!("plexd-api was not started"))
    }

    /// Leaves both running when this process ends.
    pub fn leave(mut self) {
        self.core.take().into_iter().chain(self.api.take()).for_each(Daemon::leave);
    }

    /// Makes a request to the Local Node API's Unix socket as root, with further arguments for `curl`.
    #[track_caller]
    pub fn curl_unix(&self, path: &str, arguments: &[&str]) -> HttpAnswer {
        self.try_curl_unix(None, path, arguments).unwrap_or_else(|output| panic!("{output}"))
    }

    /// Makes a request to the Local Node API's Unix socket as somebody else.
    #[track_caller]
    pub fn curl_unix_as(&self, who: As<'_>, path: &str, arguments: &[&str]) -> HttpAnswer {
        self.try_curl_unix(Some(who), path, arguments).unwrap_or_else(|output| panic!("{output}"))
    }

    /// Makes a request to the Local Node API's Unix socket as `who` (root if `None`).
    ///
    /// # Errors
    /// What `curl` said when there was no answer; its code 7 is a refused connection.
    #[track_caller]
    pub fn try_curl_unix(
        &self,
        who: Option<As<'_>>,
        path: &str,
        arguments: &[&str],
    ) -> Result<HttpAnswer, Output> {
        let url = format!("http://localhost{path}");
        curl(&self.host, who, &[&["--unix-socket", API_SOCKET, &url], arguments].concat())
    }

    /// Makes a request to the Local Node API's TCP listener at its default address, from within the host.
    ///
    /// # Errors
    /// What `curl` said when there was no answer.
    #[track_caller]
    pub fn curl_tcp(&self, path: &str, arguments: &[&str]) -> Result<HttpAnswer, Output> {
        let url = format!("http://127.0.0.1:9100{path}");
        curl(&self.host, None, &[&[url.as_str()], arguments].concat())
    }

    /// Connects to the Local Node API's Unix socket, as this process, which is root.
    ///
    /// # Errors
    /// If it cannot.
    #[track_caller]
    pub fn connect_unix(&self) -> io::Result<Wire> {
        Wire::unix(&self.host.path(SOCKET))
    }

    /// Connects to the Local Node API's TCP listener at its default address, from within the host.
    ///
    /// # Errors
    /// If it cannot.
    #[track_caller]
    pub fn connect_tcp(&self) -> io::Result<Wire> {
        Wire::tcp(&self.host)
    }

    /// Runs plexd-ctl as root.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.host.run(&[&[self.host.program("plexd-ctl").as_str()], arguments].concat())
    }

    /// Runs plexd-ctl as somebody else.
    #[track_caller]
    pub fn ctl_as(&self, who: As<'_>, arguments: &[&str]) -> Output {
        self.host.run_as(who, &[&[self.host.program("plexd-ctl").as_str()], arguments].concat())
    }

    /// Runs plexd-ctl as root and returns its JSON; panics if it fails.
    #[track_caller]
    pub fn ctl_json(&self, arguments: &[&str]) -> Value {
        self.ctl(&[arguments, &["-o", "json"]].concat()).succeeded().json()
    }

    /// Returns the status. On a machine that is so slow that plexd-ctl gives up waiting, it asks again.
    #[track_caller]
    pub fn status(&self) -> Value {
        wait_until(ANSWER, "an answer to plexd-ctl", || {
            let output = self.ctl(&["status", "-o", "json"]);
            if output.is_success() { Ok(output.json()) } else { Err(output) }
        })
    }
}
