//! plexd-devcp in a host: the control plane of a lab, and what a test tells it by its admin API.

use std::io;

use serde_json::{Value, json};

use crate::http::{HttpAnswer, request};
use crate::{Daemon, Host};

/// Where the admin API listens, within the host.
const ADMIN: &str = "127.0.0.1:8444";

/// Port of the control-plane API.
const PORT: u16 = 8443;

/// A running plexd-devcp. What it knows outlives [`ControlPlane::stop`].
#[derive(Debug)]
pub struct ControlPlane {
    host: Host,
    daemon: Option<Daemon>,
}

impl ControlPlane {
    /// Starts it in `host` and waits until it answers.
    #[track_caller]
    pub fn start(host: &Host) -> Self {
        let mut control_plane = Self { host: host.clone(), daemon: None };
        control_plane.start_again();
        control_plane
    }

    /// Starts it again after [`ControlPlane::stop`], with all it knew.
    #[track_caller]
    pub fn start_again(&mut self) {
        let program = self.host.program("plexd-devcp");
        let listen = format!("{}:{PORT}", self.host.ipv4());
        let state = self.state_directory();
        let line = [&program, "serve", "--listen", &listen, "--admin", ADMIN, "--state", &state];
        let mut daemon = self.host.spawn("plexd-devcp", &line);
        daemon.wait_ready("an answer of its admin API", || {
            match self.try_admin("GET", "/admin/nodes", None) {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.to_string()),
                Err(error) => Err(error.to_string()),
            }
        });
        self.daemon = Some(daemon);
    }

    /// Stops it, as a crash would.
    #[track_caller]
    pub fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill9();
        }
    }

    /// Leaves it running when this process ends.
    pub fn leave(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.leave();
        }
    }

    /// Returns the host it runs in.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the base URL that nodes are configured with.
    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.host.ipv4())
    }

    /// Returns the certificate of its own authority, PEM.
    #[track_caller]
    pub fn ca_pem(&self) -> String {
        let path = format!("{}/ca.pem", self.state_directory());
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
    }

    /// Returns the process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().map_or_else(|| panic!("the control plane is stopped"), Daemon::pid)
    }

    /// Returns what it logged.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Makes a one-time bootstrap token.
    #[track_caller]
    pub fn token(&self) -> String {
        let answer = self.admin("POST", "/admin/tokens", Some(&json!({})));
        answer["token"].as_str().unwrap_or_else(|| panic!("no token in {answer}")).to_owned()
    }

    /// Returns everything that node `id` sent, by endpoint.
    #[track_caller]
    pub fn received(&self, id: &str) -> Value {
        self.admin("GET", &format!("/admin/nodes/{id}/received"), None)
    }

    /// Sets members of the state of node `id` and sends the events that announce them.
    #[track_caller]
    pub fn set_state(&self, id: &str, members: &Value) {
        self.admin("PUT", &format!("/admin/nodes/{id}/state"), Some(members));
    }

    /// Sets a secret of node `id`; `key` percent-encoded.
    #[track_caller]
    pub fn set_secret(&self, id: &str, key: &str, value: &str) {
        self.admin("PUT", &format!("/admin/nodes/{id}/secrets/{key}"), Some(&json!({ "value": value })));
    }

    /// Sends node `id` a signed event and returns its id.
    #[track_caller]
    pub fn send_event(&self, id: &str, event_type: &str, payload: &Value) -> String {
        self.send_crafted(id, &json!({ "event_type": event_type, "payload": payload }))
    }

    /// Sends node `id` an event as the admin API describes it, also one that is not right; returns its id.
    #[track_caller]
    pub fn send_crafted(&self, id: &str, event: &Value) -> String {
        let answer = self.admin("POST", &format!("/admin/nodes/{id}/events"), Some(event));
        answer["event_id"].as_str().unwrap_or_else(|| panic!("no id in {answer}")).to_owned()
    }

    /// Numbers and signs events for node `id` in the order given, and sends the last first.
    #[track_caller]
    pub fn send_reversed(&self, id: &str, events: &Value) {
        let body = json!({ "events": events });
        self.admin("POST", &format!("/admin/nodes/{id}/events/reversed"), Some(&body));
    }

    /// Sends node `id` an earlier event once more.
    #[track_caller]
    pub fn send_again(&self, id: &str, event_id: &str) {
        let body = json!({ "event_id": event_id });
        self.admin("POST", &format!("/admin/nodes/{id}/events/replay"), Some(&body));
    }

    /// Returns how many requests came to `endpoint`, by its name in the admin API, since the start; it may not have been
    /// busy for more than an hour.
    #[track_caller]
    pub fn requests(&self, endpoint: &str) -> u64 {
        let rates = self.admin("GET", "/admin/rates", None);
        let seconds = rates.as_object().unwrap_or_else(|| panic!("no object: {rates}")).values();
        seconds.filter_map(|second| second["requests"][endpoint].as_u64()).sum()
    }

    /// Serves with another certificate, of its `own` authority or of a `stranger`, and closes open connections.
    #[track_caller]
    pub fn swap_certificate(&self, issuer: &str) {
        self.admin("POST", "/admin/certificate", Some(&json!({ "issuer": issuer })));
    }

    /// Makes endpoints misbehave, as the admin API describes.
    #[track_caller]
    pub fn set_faults(&self, faults: &Value) {
        self.admin("PUT", "/admin/faults", Some(faults));
    }

    /// Ends all misbehaviour.
    #[track_caller]
    pub fn clear_faults(&self) {
        self.admin("DELETE", "/admin/faults", None);
    }

    /// Makes a request to the admin API and returns the JSON answer, null if there is none. Panics unless it is a
    /// success.
    #[track_caller]
    pub fn admin(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer =
            self.try_admin(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer}");
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// Makes a request to the admin API and returns whatever comes.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn try_admin(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<HttpAnswer> {
        let body = body.map(Value::to_string);
        request(&self.host, ADMIN, (method, path), body.as_deref())
    }

    fn state_directory(&self) -> String {
        self.host.directory().join("devcp").display().to_string()
    }
}
