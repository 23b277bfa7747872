//! Which allowed IPs of a peer the kernel routes through the interface, and whose the others are. Pure: judges what was
//! observed, and the conflicts that the last reconciliation met.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use super::plan::Reading;
use super::wanted::{HIDDEN, Wanted};
use crate::kernel::{ObservedLink, RouteConflict};
use crate::state::Peer;
use crate::types::NodeId;

/// Whether the allowed IPs of a peer are routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routes {
    /// All of them.
    Routed,
    /// All but these.
    Incomplete(Vec<Unrouted>),
    /// None: the peer is not to be configured, or there is no interface.
    NotRouted,
    /// None: policy hides the peer.
    Hidden,
    /// The interface could not be read, or was not reconciled yet.
    Unknown,
}

/// An allowed IP that is not routed to the peer that claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unrouted {
    /// It.
    pub network: IpNet,
    /// Why.
    pub why: Why,
}

/// Why an allowed IP is not routed to the peer that claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its route is missing, until the next reconciliation.
    Missing,
    /// Somebody else's route leads there: through this interface, if it has one.
    Route(Option<String>),
    /// It belongs to this node.
    Node(NodeId),
}

impl fmt::Display for Unrouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = &self.network;
        match &self.why {
            Why::Missing => write!(f, "the route {network} is missing"),
            Why::Route(Some(interface)) => write!(f, "{network} belongs to {interface}"),
            Why::Route(None) => write!(f, "{network} belongs to a route without an interface"),
            Why::Node(id) => write!(f, "{network} belongs to {id}"),
        }
    }
}

/// What the kernel has of routes.
#[derive(Debug)]
pub(super) struct Routing<'a> {
    link: &'a Reading<ObservedLink>,
    conflicts: BTreeMap<IpNet, Option<&'a str>>,
}

impl<'a> Routing<'a> {
    /// Takes what was observed, and the conflicts of the last reconciliation.
    pub(super) fn new(link: &'a Reading<ObservedLink>, conflicts: &'a [RouteConflict]) -> Self {
        let conflicts =
            conflicts.iter().map(|conflict| (conflict.destination, conflict.owner.as_deref())).collect();
        Self { link, conflicts }
    }

    /// Returns how it is with the routes of a peer.
    pub(super) fn of(&self, peer: &Peer, wanted: Option<&Wanted>) -> Routes {
        let (Some(wanted), Reading::There(_) | Reading::Absent) = (wanted, self.link) else {
            return Routes::Unknown;
        };
        if !wanted.peers.contains_key(&peer.public_key) {
            let is_hidden = wanted.problems.get(&peer.id).is_some_and(|problem| problem == HIDDEN);
            return if is_hidden { Routes::Hidden } else { Routes::NotRouted };
        }
        let Reading::There(link) = self.link else { return Routes::NotRouted };
        let why = |network: &IpNet| {
            if let Some(owner) = wanted.ownership.owner(network).filter(|owner| **owner != peer.id) {
                return Some(Why::Node(owner.clone()));
            }
            if link.routes.contains(network) || link.apart.contains(network) {
                return None;
            }
            let owner = self.conflicts.get(network);
            Some(owner.map_or(Why::Missing, |owner| Why::Route(owner.map(str::to_owned))))
        };
        let unrouted: Vec<Unrouted> = peer
            .allowed_ips
            .iter()
            .filter_map(|network| Some(Unrouted { network: *network, why: why(network)? }))
            .collect();
        if unrouted.is_empty() { Routes::Routed } else { Routes::Incomplete(unrouted) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Config;
    use crate::reconcile::tests::{config, desired, identity, nets, peer, policies};
    use crate::reconcile::wanted::{Input, Resolved};
    use crate::state::Desired;

    fn claiming(id: &str, seed: u8, more: &[&str]) -> Peer {
        let mut peer = peer(id, seed, None);
        peer.allowed_ips.extend(nets(more));
        peer
    }

    fn wanted(desired: &Desired, config: &Config) -> Wanted {
        let input = Input {
            desired,
            policies: &desired.policies,
            identity: &identity(),
            mesh: &config.mesh,
            settings: config.policy,
            resolved: &Resolved::new(),
        };
        input.wanted().unwrap()
    }

    fn with_routes(texts: &[&str]) -> Reading<ObservedLink> {
        // One of those that are kept apart counts as any other.
        let mut routes = nets(texts);
        let apart = BTreeSet::from_iter(routes.pop_last());
        Reading::There(ObservedLink { up: true, routes, apart, ..ObservedLink::default() })
    }

    #[test]
    fn what_is_not_routed_is_told_with_the_reason_and_the_owner() {
        let desired = desired([
            claiming("n_b", 2, &["10.7.0.0/16", "10.8.0.0/16", "10.9.0.0/16"]),
            claiming("n_c", 3, &["10.6.0.0/16", "10.7.0.0/16", "10.100.0.1/32"]),
            peer("n_d", 4, None),
        ]);
        let wanted = wanted(&desired, &config("policy:\n  default: allow\n"));
        let link = with_routes(&["10.100.0.2/32", "10.100.0.3/32", "10.100.0.4/32", "10.7.0.0/16"]);
        let conflict = |destination: &str, owner: Option<&str>| RouteConflict {
            destination: destination.parse().unwrap(),
            owner: owner.map(str::to_owned),
        };
        let conflicts = [conflict("10.8.0.0/16", Some("eth1")), conflict("10.9.0.0/16", None)];
        let routing = Routing::new(&link, &conflicts);
        let of = |id: &str| routing.of(&desired.peers[id], Some(&wanted));
        let unrouted = |network: &str, why: Why| Unrouted { network: network.parse().unwrap(), why };
        let of_b = vec![
            unrouted("10.8.0.0/16", Why::Route(Some("eth1".to_owned()))),
            unrouted("10.9.0.0/16", Why::Route(None)),
        ];
        assert_eq!(of("n_b"), Routes::Incomplete(of_b));
        let of_c = vec![
            unrouted("10.6.0.0/16", Why::Missing),
            unrouted("10.7.0.0/16", Why::Node("n_b".parse().unwrap())),
            unrouted("10.100.0.1/32", Why::Node("n_a".parse().unwrap())),
        ];
        assert_eq!(of("n_c"), Routes::Incomplete(of_c));
        assert_eq!(of("n_d"), Routes::Routed);
    }

    #[test]
    fn peers_that_are_not_to_be_configured_and_interfaces_that_are_not_there_have_no_routes() {
        let mut desired = desired([peer("n_b", 2, None), peer("n_c", 3, None)]);
        desired.policies = policies(&[("n_b", "n_a", crate::policy::Action::Allow)]);
        let wanted = wanted(&desired, &config(""));
        let there = with_routes(&["10.100.0.2/32"]);
        let of = |link, id: &str, wanted| Routing::new(link, &[]).of(&desired.peers[id], wanted);
        assert_eq!(of(&there, "n_b", Some(&wanted)), Routes::Routed);
        assert_eq!(of(&there, "n_c", Some(&wanted)), Routes::Hidden);
        assert_eq!(of(&Reading::Absent, "n_b", Some(&wanted)), Routes::NotRouted);
        assert_eq!(of(&Reading::Unreadable, "n_b", Some(&wanted)), Routes::Unknown);
        assert_eq!(of(&there, "n_b", None), Routes::Unknown);
    }
}
