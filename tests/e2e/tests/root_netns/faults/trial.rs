//! What each fault is put through: two nodes in a known state, the fault, a change of what the control plane wants, the
//! end of the fault, and the change in force.

use std::time::{Duration, Instant};

use plexd_e2e::{Lab, Memory, wait_until};
use serde_json::json;

use crate::support::{Member, Mesh, SOON};

/// How long a node may take to converge after a fault: one backoff, one idle timeout and one pull (contract, section 2).
const CONVERGENCE: Duration = Duration::from_secs(150);

/// Time between two rounds of checks during a fault.
const ROUND: Duration = Duration::from_secs(1);

/// How long a read of the Local Node API may take, in seconds.
const QUICK: f64 = 1.0;

/// How long a connection over the mesh may take while the machine is busy.
const PASSES: Duration = Duration::from_secs(10);

/// Most memory of plexd-core when no answer is large, in KiB: 35 MiB as it idles in a debug build, and room for a few
/// events of 8 MiB.
pub(super) const SMALL: u64 = 96 << 10;

/// Most memory of plexd-core when an answer is as large as it reads (64 MiB), in KiB: what it idles at, the body, what was
/// parsed out of it, and once more as much on its way to the disk or to plexd-api.
pub(super) const LARGE: u64 = 256 << 10;

/// Key of a peer that never answers: 32 bytes, base64.
const SILENT_PEER: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

/// How long a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// A few seconds.
    Short,
    /// Minutes.
    Long,
}

impl Length {
    /// Returns one or the other.
    pub(super) fn pick<T>(self, short: T, long: T) -> T {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }
}

/// What the control plane's wishes do during the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// They change, and no word of it can come through.
    Blocked,
    /// They change, and it may come through.
    MayArrive,
    /// They cannot be told; they change right after it.
    AfterIt,
}

/// A fault, and what it does to the mesh.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) lasts: Duration,
    pub(super) change: Change,
    /// Most memory of plexd-core, in KiB.
    pub(super) memory: u64,
    /// Lines of the nodes' configurations.
    pub(super) configuration: &'static str,
    pub(super) begin: fn(&mut Trial),
    /// Done again in every round, numbered.
    pub(super) keep: fn(&mut Trial, u32),
    pub(super) end: fn(&mut Trial),
}

/// A mesh in trouble.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) mesh: Mesh,
    /// What a fault of events has to remember.
    pub(super) events: super::bad_events::Sent,
    slowest_read: f64,
}

impl Trial {
    /// Puts a mesh through `fault`, and prints how it went.
    #[track_caller]
    pub(super) fn run(fault: &Fault) {
        let mesh = Mesh::configured(Lab::new(&["cp", "a", "b"]), fault.configuration);
        let mut trial = Self { mesh, events: super::bad_events::Sent::default(), slowest_read: 0.0 };
        let _servers = [8080, 9090].map(|port| trial.mesh.b.node.host().serve(port, "here"));
        trial.set_up();
        let pids = trial.pids();

        (fault.begin)(&mut trial);
        if fault.change != Change::AfterIt {
            trial.change();
        }
        let begun = Instant::now();
        let mut round = 0;
        while begun.elapsed() < fault.lasts {
            let next = Instant::now() + ROUND;
            (fault.keep)(&mut trial, round);
            trial.check_during(fault, round);
            round += 1;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let lasted = begun.elapsed();
        (fault.end)(&mut trial);

        let ended = Instant::now();
        if fault.change == Change::AfterIt {
            trial.change();
        }
        wait_until(CONVERGENCE, "convergence", || trial.converged());
        let converged = ended.elapsed();
        assert_eq!(trial.pids(), pids, "a daemon was started anew");
        trial.events.check(&trial.mesh);
        let memory = trial.check_memory(fault);
        for member in [&mut trial.mesh.a, &mut trial.mesh.b] {
            let log = member.node.core().log();
            assert!(!log.contains("panicked"), "{log}");
        }
        show(fault.name, lasted, converged, memory, trial.slowest_read);
    }

    /// The state before the fault: `a` reaches port 8080 of `b`, each has a data entry, `a` a secret.
    fn set_up(&mut self) {
        let Mesh { a, b, control_plane, .. } = &self.mesh;
        for member in [a, b] {
            let data = json!([{ "key": "revision", "content_type": "application/json", "payload": 1 }]);
            let rules = json!([{ "id": "test", "rules": [self.mesh.allow(8080)] }]);
            control_plane.set_state(&member.id, &json!({ "data": data, "policies": rules }));
        }
        control_plane.set_secret(&a.id, "password", "s3cret");
        for member in [a, b] {
            wait_until(SOON, "the first revision", || has_revision(member, 1));
            member.wait_peers_up(1);
        }
        a.wait_http(b, 8080);
        self.mesh.a.node.curl_unix("/v1/state/secrets/password", &[]).expect_status(200);
    }

    /// What the control plane wants from now on: another port, another revision, and a further peer for `a`.
    fn change(&self) {
        let Mesh { a, b, control_plane, .. } = &self.mesh;
        let node = control_plane.admin("GET", &format!("/admin/nodes/{}", a.id), None);
        let mut peers = node["state"]["peers"].as_array().cloned().unwrap_or_default();
        peers.push(json!({ "id": "n_silent", "public_key": SILENT_PEER, "mesh_ip": "10.100.9.9",
            "endpoint": "192.0.2.99:51820", "allowed_ips": ["10.100.9.9/32"], "psk": "" }));
        let rules = json!([{ "id": "test", "rules": [
            self.mesh.allow(9090),
            { "src": a.id, "dst": "10.100.9.9/32", "port": 1, "protocol": "tcp", "action": "allow" },
        ] }]);
        let data = |text: &str| {
            json!([
                { "key": "revision", "content_type": "application/json", "payload": 2 },
                { "key": "text", "content_type": "text/plain", "payload": text },
            ])
        };
        // With characters of two, three and four bytes.
        let of_a = json!({ "policies": rules, "peers": peers, "data": data("Grüße, 世界, 🦀") });
        control_plane.set_state(&a.id, &of_a);
        control_plane.set_state(&b.id, &json!({ "policies": rules, "data": data("Grüße, 世界, 🦀") }));
    }

    /// Looks at the nodes from outside.
    fn check_during(&mut self, fault: &Fault, round: u32) {
        let Mesh { a, b, .. } = &mut self.mesh;
        for member in [&mut *a, &mut *b] {
            assert!(member.node.core().is_running() && member.node.api().is_running());
            for path in ["/v1/state", "/v1/state/data/revision"] {
                self.slowest_read = self.slowest_read.max(read(member, path));
            }
        }
        let status = a.node.status();
        assert_eq!(status["identity"]["node_id"], a.id.as_str(), "{status}");
        // A write is answered once it is durable here, whatever the control plane does.
        let body = format!(r#"{{"content_type":"application/json","payload":{round}}}"#);
        a.node.curl_unix("/v1/state/report/round", &["-X", "PUT", "-d", &body]).expect_status(200);
        if fault.change == Change::MayArrive {
            return;
        }
        wait_until(PASSES, "the old port, still open", || a.http(b, 8080).is_success());
        // It takes a second each time.
        if round.is_multiple_of(5) {
            assert_eq!(a.http(b, 9090).code, Some(28), "the new port is not open yet");
        }
        for member in [&*a, &*b] {
            let held = has_revision(member, 1);
            assert!(held.is_ok(), "{held:?}");
            assert_eq!(member.wg("peers").lines().count(), 1);
        }
    }

    /// Says what is not yet as it was before the fault, but for the change.
    fn converged(&self) -> Result<(), String> {
        for member in [&self.mesh.a, &self.mesh.b] {
            let status = member.node.status();
            let is_well = status["health"] == "healthy"
                && status["control_plane"]["stream"] == "connected"
                && status["identity"]["enrolment"] == "enrolled";
            if !is_well {
                return Err(status.to_string());
            }
        }
        self.is_changed()?;
        let secret = self.mesh.a.node.curl_unix("/v1/state/secrets/password", &[]);
        if secret.status == 200 { Ok(()) } else { Err(secret.to_string()) }
    }

    /// Says what is not yet as the control plane wants it.
    pub(super) fn is_changed(&self) -> Result<(), String> {
        let Mesh { a, b, .. } = &self.mesh;
        for member in [a, b] {
            has_revision(member, 2)?;
        }
        let text = a.node.curl_unix("/v1/state/data/text", &[]);
        if text.status != 200 || text.json()["payload"] != "Grüße, 世界, 🦀" {
            return Err(text.to_string());
        }
        let peers = a.wg("peers");
        if peers.lines().count() != 2 || !peers.contains(SILENT_PEER) {
            return Err(peers);
        }
        let (new, old) = (a.http(b, 9090), a.http(b, 8080));
        let is_new = new.is_success() && old.code == Some(28);
        if is_new { Ok(()) } else { Err(format!("{new}{old}")) }
    }

    fn check_memory(&mut self, fault: &Fault) -> Memory {
        let memory = self.mesh.a.node.core().memory();
        assert!(memory.peak <= fault.memory, "{} KiB at most, {} expected", memory.peak, fault.memory);
        memory
    }

    fn pids(&mut self) -> [u32; 4] {
        let Mesh { a, b, .. } = &mut self.mesh;
        [a.node.core().pid(), a.node.api().pid(), b.node.core().pid(), b.node.api().pid()]
    }
}

fn has_revision(member: &Member, revision: u32) -> Result<(), String> {
    let answer = member.node.curl_unix("/v1/state/data/revision", &[]);
    if answer.status == 200 && answer.json()["payload"] == json!(revision) {
        return Ok(());
    }
    Err(answer.to_string())
}

/// Reads `path` of the Local Node API, and returns how many seconds `curl` had to wait.
fn read(member: &Member, path: &str) -> f64 {
    let url = format!("http://localhost{path}");
    let line = ["curl", "-sS", "--unix-socket", "/var/run/plexd/api.sock", "-o", "/dev/null"];
    let output = member.node.host().run(&[&line[..], &["-w", "%{http_code} %{time_total}", &url]].concat());
    let (status, seconds) = output.stdout.split_once(' ').unwrap_or_else(|| panic!("{output}"));
    let seconds: f64 = seconds.parse().unwrap_or_else(|_| panic!("{output}"));
    assert_eq!(status, "200", "{path}: {output}");
    assert!(seconds < QUICK, "{path} took {seconds} s");
    seconds
}

#[expect(clippy::print_stdout, reason = "what `make test-long` shows")]
fn show(name: &str, lasted: Duration, converged: Duration, memory: Memory, slowest_read: f64) {
    println!(
        "fault {name:<38} lasted {:>5.1} s  converged after {:>5.1} s  RSS {:>3} MiB  peak {:>3} MiB  slowest read {:>4.0} ms",
        lasted.as_secs_f64(),
        converged.as_secs_f64(),
        memory.resident >> 10,
        memory.peak >> 10,
        slowest_read * 1000.0
    );
}
