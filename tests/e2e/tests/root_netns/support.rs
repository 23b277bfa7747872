//! Two enrolled nodes and their control plane, and what most tests do with them.

use std::time::Duration;

use plexd_e2e::{ControlPlane, Lab, Node, Output, wait_until};
use serde_json::{Value, json};

/// How long anything may take to follow a change.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Seconds after which a connection that is not answered counts as refused by policy.
const REFUSED: &str = "1";

/// An enrolled node.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) node: Node,
    pub(crate) id: String,
    /// Address in the mesh.
    pub(crate) mesh_ip: String,
}

impl Member {
    /// Enrols `node` by a token file.
    #[track_caller]
    pub(crate) fn enrol(mut node: Node, control_plane: &ControlPlane) -> Self {
        let id = node.enrol(control_plane);
        let status = node.status();
        let mesh_ip = status["identity"]["mesh_ip"].as_str().expect("an enrolled node has an address").into();
        Self { node, id, mesh_ip }
    }

    /// Requests a page of `to` over the mesh.
    #[track_caller]
    pub(crate) fn http(&self, to: &Self, port: u16) -> Output {
        let url = format!("http://{}:{port}/", to.mesh_ip);
        self.node.host().run(&["curl", "-sS", "--max-time", REFUSED, &url])
    }

    /// Waits until a page of `to` comes over the mesh.
    #[track_caller]
    pub(crate) fn wait_http(&self, to: &Self, port: u16) {
        wait_until(SOON, "an answer over the mesh", || {
            let output = self.http(to, port);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
    }

    /// Returns what `wg show plexd0 WHAT` prints.
    #[track_caller]
    pub(crate) fn wg(&self, what: &str) -> String {
        self.node.host().run(&["wg", "show", "plexd0", what]).succeeded().stdout
    }

    /// Returns the policy's table as the kernel has it, without counters.
    #[track_caller]
    pub(crate) fn table(&self) -> String {
        self.node.host().run(&["nft", "--stateless", "list", "table", "inet", "plexd"]).succeeded().stdout
    }

    /// Waits until the status fulfils `condition`, and returns it.
    #[track_caller]
    pub(crate) fn wait_status(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait_status(&self.node, what, condition)
    }

    /// Waits until `count` peers are up.
    #[track_caller]
    pub(crate) fn wait_peers_up(&self, count: usize) {
        self.wait_status("peers with a handshake", |status| status["mesh"]["peers_up"] == json!(count));
    }

    /// Waits until `count` peers are configured in WireGuard, up or not, and it shows them.
    #[track_caller]
    pub(crate) fn wait_wg_peers(&self, count: usize) {
        wait_until(SOON, "the peers in WireGuard", || {
            let peers = self.wg("peers");
            if peers.lines().count() == count { Ok(()) } else { Err(peers) }
        });
    }
}

/// Waits until the status of `node` fulfils `condition`, and returns it.
#[track_caller]
pub(crate) fn wait_status(node: &Node, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    wait_until(SOON, what, || {
        let status = node.status();
        if condition(&status) { Ok(status) } else { Err(status.to_string()) }
    })
}

/// Waits until the node says that it is degraded, with a problem that contains all of `words`.
#[track_caller]
pub(crate) fn wait_problem(node: &Node, words: &[&str]) {
    let what = format!("a problem that says {words:?}");
    wait_status(node, &what, |status| {
        let problems = status["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
        status["health"] == "degraded"
            && problems.iter().any(|problem| {
                let message = problem["message"].as_str().unwrap_or_default();
                !message.contains('\n') && words.iter().all(|word| message.contains(word))
            })
    });
}

/// Two enrolled nodes `a` and `b`, and the control plane on `cp`. Fields are dropped in this order: the lab last.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) a: Member,
    pub(crate) b: Member,
    pub(crate) control_plane: ControlPlane,
    pub(crate) lab: Lab,
}

impl Mesh {
    /// Makes it, with no policy: nothing passes.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let lab = Lab::new(&["cp", "a", "b"]);
        Self::in_lab(lab)
    }

    /// Makes it in a lab that has hosts `cp`, `a` and `b`.
    #[track_caller]
    pub(crate) fn in_lab(lab: Lab) -> Self {
        Self::configured(lab, "")
    }

    /// Makes it in a lab that has hosts `cp`, `a` and `b`, with the lines of `more` in the nodes' configurations.
    #[track_caller]
    pub(crate) fn configured(lab: Lab, more: &str) -> Self {
        let control_plane = ControlPlane::start(lab.host("cp"));
        let [a, b] = ["a", "b"].map(|name| {
            let node = Node::new(lab.host(name), &control_plane, more);
            Member::enrol(node, &control_plane)
        });
        Self { a, b, control_plane, lab }
    }

    /// Makes it with a policy that lets `a` reach TCP port 8080 of `b`, and waits for the handshake.
    #[track_caller]
    pub(crate) fn up() -> Self {
        let mesh = Self::new();
        mesh.set_rules(&json!([mesh.allow(8080)]));
        mesh.a.wait_peers_up(1);
        mesh.b.wait_peers_up(1);
        mesh
    }

    /// Returns the rule that lets `a` reach TCP port `port` of `b`.
    pub(crate) fn allow(&self, port: u16) -> Value {
        json!({ "src": self.a.id, "dst": self.b.id, "port": port, "protocol": "tcp", "action": "allow" })
    }

    /// Gives both nodes one policy with these rules.
    #[track_caller]
    pub(crate) fn set_rules(&self, rules: &Value) {
        for member in [&self.a, &self.b] {
            self.set_rules_of(member, rules);
        }
    }

    /// Gives one node one policy with these rules.
    #[track_caller]
    pub(crate) fn set_rules_of(&self, member: &Member, rules: &Value) {
        set_rules(&self.control_plane, member, rules);
    }
}

/// Gives a node one policy with these rules.
#[track_caller]
pub(crate) fn set_rules(control_plane: &ControlPlane, member: &Member, rules: &Value) {
    control_plane.set_state(&member.id, &json!({ "policies": [{ "id": "test", "rules": rules }] }));
}

/// A single enrolled node `a`, and the control plane on `cp`.
#[derive(Debug)]
pub(crate) struct Single {
    pub(crate) a: Member,
    pub(crate) control_plane: ControlPlane,
    _lab: Lab,
}

impl Single {
    /// Makes it, with the lines of `more` in the node's configuration.
    #[track_caller]
    pub(crate) fn new(more: &str) -> Self {
        let lab = Lab::new(&["cp", "a"]);
        let control_plane = ControlPlane::start(lab.host("cp"));
        let node = Node::new(lab.host("a"), &control_plane, more);
        // Whatever `more` may name.
        node.host().write("/etc/plexd/api-token", 0o600, "tcp-token\n");
        let a = Member::enrol(node, &control_plane);
        Self { a, control_plane, _lab: lab }
    }

    /// Makes it of a node that is enrolled already.
    pub(crate) fn of(a: Member, control_plane: ControlPlane, lab: Lab) -> Self {
        Self { a, control_plane, _lab: lab }
    }

    /// Gives the node the metadata, data and secrets of the guide's examples, and waits until the API shows them.
    #[track_caller]
    pub(crate) fn with_the_guides_state(self) -> Self {
        let time = "2025-06-01T12:34:56Z";
        let data = json!([
            { "key": "nginx.conf", "content_type": "text/plain", "payload": "server {}", "version": 3, "updated_at": time },
            { "key": "routes.json", "content_type": "application/json",
              "payload": { "default_backend": "10.0.0.5:8080" }, "version": 1, "updated_at": time },
        ]);
        let metadata = json!({ "node_id": "edge-us-west-42", "region": "us-west-2", "role": "gateway" });
        self.control_plane.set_state(&self.a.id, &json!({ "metadata": metadata, "data": data }));
        for (key, value) in
            [("tls%2Fserver.key", "PEM"), ("db%2Fpassword", "old"), ("db%2Fpassword", "s3cret-p@ssw0rd")]
        {
            self.control_plane.set_secret(&self.a.id, key, value);
        }
        // In the control plane's order, which the pull after the events brings.
        let secret_keys =
            json!([{ "key": "tls/server.key", "version": 1 }, { "key": "db/password", "version": 2 }]);
        self.wait_api("/v1/state", |state| {
            state["data_keys"].as_array().map(Vec::len) == Some(2) && state["secret_keys"] == secret_keys
        });
        self
    }

    /// Waits until the answer to a request fulfils `condition`, and returns it.
    #[track_caller]
    pub(crate) fn wait_api(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait_until(SOON, path, || {
            let answer = self.a.node.curl_unix(path, &[]);
            if answer.status == 200 && condition(&answer.json()) { Ok(answer.json()) } else { Err(answer) }
        })
    }

    /// Waits until there is a data entry `key`.
    #[track_caller]
    pub(crate) fn wait_data(&self, key: &str) {
        self.wait_api("/v1/state/data", |list| list.to_string().contains(&format!(r#""key":"{key}""#)));
    }

    /// Writes a report as root; returns its version.
    #[track_caller]
    pub(crate) fn put_report(&self, key: &str, payload: &str) -> u64 {
        let body = format!(r#"{{"content_type":"application/json","payload":{payload}}}"#);
        let path = format!("/v1/state/report/{key}");
        let answer = self.a.node.curl_unix(&path, &["-X", "PUT", "-d", &body]).with_status(200);
        answer.json()["version"].as_u64().expect("an entry has a version")
    }

    /// Waits until the control plane's copy of the reports fulfils `condition`.
    #[track_caller]
    pub(crate) fn wait_synced(&self, condition: impl Fn(&Value) -> bool) {
        wait_until(SOON, "the reports at the control plane", || {
            let received = self.control_plane.received(&self.a.id);
            let reports = &received["reports_current"];
            if condition(reports) { Ok(()) } else { Err(reports.to_string()) }
        });
    }
}
