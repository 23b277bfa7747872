//! `plexd-ctl peers`: the peers, as desired and as WireGuard has them.

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use crate::output::{Moment, Terminal, View, known, or_dash, size, table};

/// Milliseconds after which a handshake no longer counts (contract, section 2: a peer is up below 180 s).
const HANDSHAKE_FRESH_MS: u64 = 180_000;

/// The peers, sorted by id. Its fields are the stable JSON shape; null is what is not known (yet).
#[derive(Debug, Serialize)]
pub(crate) struct Peers {
    peers: Vec<Peer>,
}

/// A peer.
#[derive(Debug, Serialize)]
struct Peer {
    id: String,
    /// `up` (a handshake younger than 180 s), `idle` (configured, no fresh handshake) or `off` (not in WireGuard).
    state: &'static str,
    /// Why it is off, or what else is wrong with it.
    problem: Option<String>,
    mesh_ip: Option<String>,
    /// As WireGuard has it now; else as desired.
    endpoint: Option<String>,
    /// WireGuard public key, base64.
    public_key: String,
    allowed_ips: Vec<String>,
    last_handshake_at: Option<Moment>,
    rx_bytes: u64,
    tx_bytes: u64,
}

impl Peers {
    /// Creates the view of an answer that came at `now`.
    pub(crate) fn new(response: wire::ListPeersResponse, now: Timestamp) -> Self {
        Self { peers: response.peers.into_iter().map(|peer| Peer::new(peer, now)).collect() }
    }
}

impl Peer {
    fn new(peer: wire::Peer, now: Timestamp) -> Self {
        let fresh = peer.handshake_age_ms.is_some_and(|age| age < HANDSHAKE_FRESH_MS);
        let state = match (peer.configured, fresh) {
            (true, true) => "up",
            (true, false) => "idle",
            (false, _) => "off",
        };
        Self {
            id: peer.id,
            state,
            problem: known(peer.problem),
            mesh_ip: known(peer.mesh_ip),
            endpoint: known(peer.endpoint),
            public_key: peer.public_key,
            allowed_ips: peer.allowed_ips,
            last_handshake_at: peer.handshake_age_ms.map(|age| Moment::before(now, age)),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
        }
    }

    fn row(&self, now: Timestamp) -> [String; 8] {
        [
            self.id.clone(),
            self.state.into(),
            or_dash(self.mesh_ip.as_deref()).into(),
            or_dash(self.endpoint.as_deref()).into(),
            self.last_handshake_at.map_or_else(|| "never".into(), |at| at.ago(now)),
            size(self.rx_bytes),
            size(self.tx_bytes),
            self.problem.clone().unwrap_or_default(),
        ]
    }
}

impl View for Peers {
    fn render(&self, terminal: &Terminal) -> String {
        if self.peers.is_empty() {
            return "no peers\n".into();
        }
        table(
            ["PEER", "STATE", "MESH IP", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "PROBLEM"],
            self.peers.iter().map(|peer| peer.row(terminal.now)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Colours, json};

    fn terminal() -> Terminal {
        Terminal { now: "2026-11-21T12:00:00Z".parse().unwrap(), colours: Colours::Plain }
    }

    fn view() -> Peers {
        let up = wire::Peer {
            id: "n-a1".into(),
            public_key: "c29tZSBwdWJsaWMga2V5IG9mIHRoaXJ0eS10d28gIQ==".into(),
            mesh_ip: "10.100.0.2".into(),
            endpoint: "192.0.2.3:51820".into(),
            allowed_ips: vec!["10.100.0.2/32".into()],
            configured: true,
            problem: String::new(),
            handshake_age_ms: Some(12_000),
            rx_bytes: 1_572_864,
            tx_bytes: 180,
        };
        let idle = wire::Peer {
            id: "n-b2".into(),
            mesh_ip: "10.100.0.3".into(),
            endpoint: String::new(),
            handshake_age_ms: Some(HANDSHAKE_FRESH_MS),
            ..up.clone()
        };
        let off = wire::Peer {
            id: "n-c3".into(),
            configured: false,
            problem: "no allow rule connects it with this node".into(),
            handshake_age_ms: None,
            ..idle.clone()
        };
        Peers::new(wire::ListPeersResponse { peers: vec![up, idle, off] }, terminal().now)
    }

    #[test]
    fn the_table_shows_who_is_up_and_why_not() {
        let expected = "\
PEER  STATE  MESH IP     ENDPOINT         HANDSHAKE  RECEIVED  SENT   PROBLEM
n-a1  up     10.100.0.2  192.0.2.3:51820  12s ago    1.5 MiB   180 B
n-b2  idle   10.100.0.3  -                3m 0s ago  1.5 MiB   180 B
n-c3  off    10.100.0.3  -                never      1.5 MiB   180 B  no allow rule connects it with this node
";
        assert_eq!(view().render(&terminal()), expected);
    }

    #[test]
    fn the_json_has_its_documented_shape() {
        let mut view = view();
        view.peers.drain(1..);
        let expected = r#"{
  "peers": [
    {
      "id": "n-a1",
      "state": "up",
      "problem": null,
      "mesh_ip": "10.100.0.2",
      "endpoint": "192.0.2.3:51820",
      "public_key": "c29tZSBwdWJsaWMga2V5IG9mIHRoaXJ0eS10d28gIQ==",
      "allowed_ips": [
        "10.100.0.2/32"
      ],
      "last_handshake_at": "2026-11-21T11:59:48.000Z",
      "rx_bytes": 1572864,
      "tx_bytes": 180
    }
  ]
}
"#;
        assert_eq!(json(&view).unwrap(), expected);
    }

    #[test]
    fn no_peers_are_said_so() {
        let view = Peers::new(wire::ListPeersResponse::default(), terminal().now);
        assert_eq!(view.render(&terminal()), "no peers\n");
        assert_eq!(json(&view).unwrap(), "{\n  \"peers\": []\n}\n");
    }
}
