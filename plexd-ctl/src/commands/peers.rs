//! `plexd-ctl peers`: the peers, as desired and as WireGuard and the routes of the kernel have them.

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use crate::output::{Moment, Terminal, View, known, or_dash, size, table};

/// Milliseconds after which a handshake no longer counts (contract, section 2: a peer is up below 180 s).
const HANDSHAKE_FRESH_MS: u64 = 180_000;

/// Networks of a peer that the table shows; JSON has all.
const TOLD: usize = 2;

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
    /// `routed` (all its allowed IPs), `incomplete` (all but `unrouted`), `hidden` (by policy), `none` or `unknown`.
    routes: &'static str,
    unrouted: Vec<Unrouted>,
    /// Which WireGuard has it: `kernel` or `userspace`.
    backend: Option<String>,
}

/// An allowed IP that is not routed to the peer that claims it.
#[derive(Debug, Serialize)]
struct Unrouted {
    network: String,
    /// `missing` (until the next reconciliation), `route` (somebody else's, through the interface `owner`) or
    /// `node` (it belongs to the node `owner`).
    reason: &'static str,
    /// Name of an interface, or id of a node.
    owner: Option<String>,
}

impl Unrouted {
    fn new(unrouted: wire::UnroutedNetwork) -> Self {
        let reason = match unrouted.reason() {
            wire::UnroutedReason::Missing | wire::UnroutedReason::Unspecified => "missing",
            wire::UnroutedReason::Route => "route",
            wire::UnroutedReason::Node => "node",
        };
        Self { network: unrouted.network, reason, owner: known(unrouted.owner) }
    }

    fn words(&self) -> String {
        let network = &self.network;
        match (self.reason, &self.owner) {
            (_, Some(owner)) => format!("{network} belongs to {owner}"),
            ("route", None) => format!("{network} belongs to another route"),
            _ => format!("{network} is missing"),
        }
    }
}

impl Peers {
    /// Creates the view of an answer that came at `now`.
    pub(crate) fn new(response: wire::ListPeersResponse, now: Timestamp) -> Self {
        let backend = known(response.backend);
        let peer = |peer| Peer { backend: backend.clone(), ..Peer::new(peer, now) };
        Self { peers: response.peers.into_iter().map(peer).collect() }
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
        let routes = match peer.route_state() {
            wire::RouteState::Routed => "routed",
            wire::RouteState::Incomplete => "incomplete",
            wire::RouteState::Hidden => "hidden",
            wire::RouteState::NotRouted => "none",
            wire::RouteState::Unknown | wire::RouteState::Unspecified => "unknown",
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
            routes,
            unrouted: peer.unrouted.into_iter().map(Unrouted::new).collect(),
            backend: None,
        }
    }

    fn routes(&self) -> String {
        match self.routes {
            "incomplete" => {
                let told =
                    self.unrouted.iter().take(TOLD).map(Unrouted::words).collect::<Vec<_>>().join(", ");
                match self.unrouted.len().saturating_sub(TOLD) {
                    0 => told,
                    more => format!("{told}, {more} more"),
                }
            }
            "hidden" => "hidden by policy".to_owned(),
            "none" => "not routed".to_owned(),
            state => state.to_owned(),
        }
    }

    fn row(&self, now: Timestamp) -> [String; 10] {
        [
            self.id.clone(),
            self.state.into(),
            or_dash(self.mesh_ip.as_deref()).into(),
            or_dash(self.endpoint.as_deref()).into(),
            self.last_handshake_at.map_or_else(|| "never".into(), |at| at.ago(now)),
            size(self.rx_bytes),
            size(self.tx_bytes),
            or_dash(self.backend.as_deref()).into(),
            self.routes(),
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
            [
                "PEER",
                "STATE",
                "MESH IP",
                "ENDPOINT",
                "HANDSHAKE",
                "RECEIVED",
                "SENT",
                "BACKEND",
                "ROUTES",
                "PROBLEM",
            ],
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
            route_state: wire::RouteState::Routed.into(),
            unrouted: Vec::new(),
        };
        let unrouted = |network: &str, reason: wire::UnroutedReason, owner: &str| wire::UnroutedNetwork {
            network: network.into(),
            reason: reason.into(),
            owner: owner.into(),
        };
        let idle = wire::Peer {
            id: "n-b2".into(),
            mesh_ip: "10.100.0.3".into(),
            endpoint: String::new(),
            handshake_age_ms: Some(HANDSHAKE_FRESH_MS),
            route_state: wire::RouteState::Incomplete.into(),
            unrouted: vec![
                unrouted("10.6.0.0/16", wire::UnroutedReason::Missing, ""),
                unrouted("10.7.0.0/16", wire::UnroutedReason::Route, "eth1"),
                unrouted("10.8.0.0/16", wire::UnroutedReason::Node, "n-a1"),
                unrouted("10.9.0.0/16", wire::UnroutedReason::Route, ""),
            ],
            ..up.clone()
        };
        let off = wire::Peer {
            id: "n-c3".into(),
            configured: false,
            problem: "no allow rule connects it with this node".into(),
            handshake_age_ms: None,
            route_state: wire::RouteState::Hidden.into(),
            unrouted: Vec::new(),
            ..idle.clone()
        };
        let peers = vec![up, idle, off];
        Peers::new(wire::ListPeersResponse { peers, backend: "userspace".into() }, terminal().now)
    }

    #[test]
    fn the_table_shows_who_is_up_and_why_not() {
        let expected = "\
PEER  STATE  MESH IP     ENDPOINT         HANDSHAKE  RECEIVED  SENT   BACKEND    ROUTES                                                       PROBLEM
n-a1  up     10.100.0.2  192.0.2.3:51820  12s ago    1.5 MiB   180 B  userspace  routed
n-b2  idle   10.100.0.3  -                3m 0s ago  1.5 MiB   180 B  userspace  10.6.0.0/16 is missing, 10.7.0.0/16 belongs to eth1, 2 more
n-c3  off    10.100.0.3  -                never      1.5 MiB   180 B  userspace  hidden by policy                                             no allow rule connects it with this node
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
      "tx_bytes": 180,
      "routes": "routed",
      "unrouted": [],
      "backend": "userspace"
    }
  ]
}
"#;
        assert_eq!(json(&view).unwrap(), expected);
    }

    #[test]
    fn networks_that_are_not_routed_say_why_and_whose_they_are() {
        let json = serde_json::to_value(view()).unwrap();
        let routes: Vec<_> = json["peers"].as_array().unwrap().iter().map(|peer| &peer["routes"]).collect();
        assert_eq!(routes, ["routed", "incomplete", "hidden"]);
        let expected = serde_json::json!([
            { "network": "10.6.0.0/16", "reason": "missing", "owner": null },
            { "network": "10.7.0.0/16", "reason": "route", "owner": "eth1" },
            { "network": "10.8.0.0/16", "reason": "node", "owner": "n-a1" },
            { "network": "10.9.0.0/16", "reason": "route", "owner": null },
        ]);
        assert_eq!(json["peers"][1]["unrouted"], expected);
        let words: Vec<String> = view().peers[1].unrouted.iter().map(Unrouted::words).collect();
        assert_eq!(words[3], "10.9.0.0/16 belongs to another route");
    }

    #[test]
    fn no_peers_are_said_so() {
        let view = Peers::new(wire::ListPeersResponse::default(), terminal().now);
        assert_eq!(view.render(&terminal()), "no peers\n");
        assert_eq!(json(&view).unwrap(), "{\n  \"peers\": []\n}\n");
    }
}
