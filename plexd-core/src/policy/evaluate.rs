//! What a policy means, stated as plainly as possible: the reference every compiled table is measured against, and which
//! peers the policy lets this node see.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::table::Family;
use super::{Action, Context, PolicySet, Rule, Selector, Service};
use crate::types::NodeId;

/// IP protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// IP protocol number of `ICMPv6`.
pub(crate) const ICMP_V6: u8 = 58;
/// IP protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// IP protocol number of UDP.
pub(crate) const UDP: u8 = 17;

/// A connection, by the tuple of its first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who opened it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 where the protocol has none.
    pub port: u16,
}

/// What a policy decides on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What happens to it.
    pub action: Action,
    /// The rule that decides, by its position among all rules; `None` for the default.
    pub rule: Option<usize>,
}

/// Decides on a connection over the mesh interface by walking the rules: the first that matches, then the default.
pub fn evaluate(policies: &PolicySet, context: &Context, flow: &Flow) -> Decision {
    if !context.enabled {
        return Decision { action: Action::Allow, rule: None };
    }
    let covers = |selector: &Selector, address: &IpAddr| match selector {
        Selector::Any => true,
        Selector::Net(net) => net.contains(address),
        Selector::Node(id) => context.addresses(id).iter().any(|net| net.contains(address)),
    };
    let serves = |service: Service| match service {
        Service::Any => true,
        Service::Tcp(port) => flow.protocol == TCP && port.is_none_or(|port| port.get() == flow.port),
        Service::Udp(port) => flow.protocol == UDP && port.is_none_or(|port| port.get() == flow.port),
    };
    let matches = |rule: &Rule| {
        covers(&rule.src, &flow.source) && covers(&rule.dst, &flow.destination) && serves(rule.service)
    };
    let decided = policies.rules().enumerate().find(|(_, rule)| matches(rule));
    Decision {
        action: decided.map_or(context.default, |(_, rule)| rule.action),
        rule: decided.map(|(position, _)| position),
    }
}

/// Returns the peers that this node is to know: those that some allow rule connects with it, in either direction; all of
/// them when the default is to allow, or without policy (contract, section 5).
pub fn visible(policies: &PolicySet, context: &Context) -> BTreeSet<NodeId> {
    let peers = context.members.keys().filter(|id| **id != context.node);
    if !context.enabled || context.default == Action::Allow {
        return peers.cloned().collect();
    }
    let own = context.addresses(&context.node);
    let mut connected = Vec::new();
    for rule in policies.rules().filter(|rule| rule.action == Action::Allow) {
        let (sources, destinations) = (context.networks(&rule.src), context.networks(&rule.dst));
        connected.extend(reachable(&own, &sources, &destinations));
        connected.extend(reachable(&own, &destinations, &sources));
    }
    // Aggregated networks are sorted and apart, so that the one before and the one after an address tell.
    let connected = IpNet::aggregate(&connected);
    let meets_any = |net: &IpNet| {
        let after = connected.partition_point(|other| other.network() <= net.network());
        let before = after.checked_sub(1);
        before.into_iter().chain([after]).filter_map(|at| connected.get(at)).any(|other| meet(other, net))
    };
    peers.filter(|id| context.addresses(id).iter().any(meets_any)).cloned().collect()
}

/// Returns the networks of `far` in the families in which `near` covers an address of `own`.
fn reachable(own: &[IpNet], near: &[IpNet], far: &[IpNet]) -> Vec<IpNet> {
    let touched = |family: Family| {
        let mut own = own.iter().filter(|net| Family::of(net) == family);
        own.any(|own| near.iter().any(|near| meet(near, own)))
    };
    let (v4, v6) = (touched(Family::V4), touched(Family::V6));
    far.iter().copied().filter(|net| if Family::of(net) == Family::V4 { v4 } else { v6 }).collect()
}

/// Returns whether two networks share an address.
pub(super) fn meet(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
