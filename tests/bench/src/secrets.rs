//! Secrets, in turn with the same load on the endpoint of the control plane that each of them is fetched from.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::answer::Request;
use crate::door::Door;
use crate::findings::{Findings, Target, say};
use crate::go;
use crate::load::Waits;
use crate::scene::{ROUNDS, Scene, figure};

/// The secret; percent-encoded as in the guide.
const KEY: &str = "db%2Fpassword";
const VALUE: &str = "s3cret-p@ssw0rd-of-32-characters";

/// How many times as fast as Go it is to be with 64 connections.
const TIMES: f64 = 2.0;

/// Measures one secret, with 1 and with 64 connections.
pub(crate) fn measure(scene: &mut Scene, findings: &mut Findings) {
    scene.control_plane.set_secret(&scene.id, KEY, VALUE);
    let path = format!("/v1/state/secrets/{KEY}");
    let address = SocketAddr::new(IpAddr::V4(scene.control_plane.host().ipv4()), 8443);
    let doors = [Door::Unix(scene.socket()), Door::tls(address, &scene.control_plane.ca_pem())];
    let requests = [Request::get(&path, None), upstream(scene)];
    let [api, core] = scene.pids();
    let upstream = scene.control_plane.pid();
    let pids = [vec![api, core, upstream], vec![upstream]];
    for connections in [1, 64] {
        let mut rounds = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let request = std::slice::from_ref(&requests[which]);
                rounds[which].push(scene.round(
                    &doors[which],
                    request,
                    (connections, Waits::Asleep),
                    &pids[which],
                ));
            }
        }
        let [ours, direct] = rounds.map(|rounds| figure(&rounds));
        let (size, over_upstream) = (scene.size, ours.rate / direct.rate);
        let go = go::SECRET.rate(size, connections);
        say(&format!(
            "  secret   {size:>5} entries {connections:>2} connections {:>8.0} req/s p50 {:>7.0} p99 {:>7.0} µs, CPU {:.1} + {:.1} µs \
             (control plane {:.1} µs); direct {:>8.0} req/s p50 {:>7.0} p99 {:>7.0} µs, CPU {:.1} µs; \
             {over_upstream:.3} of direct, {:.2} of Go's {:.0}",
            ours.rate,
            ours.p50,
            ours.p99,
            ours.cpu[0],
            ours.cpu[1],
            ours.cpu[2],
            direct.rate,
            direct.p50,
            direct.p99,
            direct.cpu[0],
            go.map_or(f64::NAN, |go| ours.rate / go),
            go.unwrap_or(f64::NAN),
        ));
        if connections == 64 {
            findings.line("api.secret.unix.c64.rps", ours.rate);
            findings.line("api.secret.unix.c64.over_upstream", over_upstream);
            if let Some(go) = go {
                let about = format!("secret, {size} entries, 64 connections, over Go");
                findings.judge(&about, ours.rate / go, Target::AtLeast(TIMES));
            }
        }
    }
}

/// The request that plexd-core makes for the secret, with the node's credential.
fn upstream(scene: &Scene) -> Request {
    let file = scene.data.join("identity.json");
    let text = fs::read(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    let identity: Value = serde_json::from_slice(&text).expect("an object");
    let credential = identity["node_secret_key"].as_str().expect("a credential");
    let head = format!(
        "GET /v1/nodes/{}/secrets/{KEY} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Authorization: Bearer {credential}\r\n\r\n",
        scene.id
    );
    Request { bytes: head.into_bytes(), length: None }
}
