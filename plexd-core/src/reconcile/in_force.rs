//! The policy in force and what it is read against, of one moment: for whoever is to say what it does, and whether packets
//! come by the mesh interface at all.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Reconciler;
use super::wanted::HIDDEN;
use crate::policy::{Context, PolicySet};
use crate::types::NodeId;

/// The policy in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The policies that are enforced.
    pub policies: Arc<PolicySet>,
    /// What they are read against.
    pub context: Context,
    /// Why a newer set of policies cannot be enforced.
    pub refused: Option<String>,
    /// Whether the last reconciliation brought the kernel to all of this.
    pub settled: bool,
    /// The mesh address of this node and of each peer.
    pub addresses: BTreeMap<NodeId, IpAddr>,
    /// Allowed IPs of the peers in WireGuard, and whose they are.
    pub tunnels: BTreeMap<IpNet, NodeId>,
    /// Peers that are not in WireGuard, or not as wanted, and why.
    pub problems: BTreeMap<NodeId, String>,
    /// Destinations that somebody else's routes lead to, and the interface of each, if it has one.
    pub conflicts: BTreeMap<IpNet, Option<String>>,
}

impl InForce {
    /// Returns whether policy hides a peer from this node.
    pub fn hides(&self, peer: &NodeId) -> bool {
        self.problems.get(peer).is_some_and(|problem| problem == HIDDEN)
    }

    /// Returns the allowed IP of a peer in WireGuard that an address is in, and the peer.
    pub fn tunnel(&self, address: &IpAddr) -> Option<(&IpNet, &NodeId)> {
        let around = self.tunnels.iter().filter(|(net, _)| net.contains(address));
        around.max_by_key(|(net, _)| net.prefix_len())
    }
}

impl Reconciler {
    /// Returns the policy in force; `None` of a node without identity, or before its first reconciliation.
    pub(super) fn in_force(&self) -> Option<InForce> {
        let (goal, wanted) = (self.goal.as_ref()?, self.wanted.as_ref()?);
        let own = (goal.identity.node_id.clone(), goal.identity.mesh_ip);
        let peers = goal.desired.peers.values().map(|peer| (peer.id.clone(), peer.mesh_ip));
        let tunnels = wanted
            .peers
            .values()
            .flat_map(|peer| peer.config.allowed_ips.iter().map(|net| (net.trunc(), peer.id.clone())));
        let conflicts = self.conflicts.iter().map(|route| (route.destination, route.owner.clone()));
        Some(InForce {
            policies: Arc::clone(&self.policies),
            context: self.input(goal, &self.policies).context(&wanted.ownership),
            refused: self.refused.clone(),
            settled: self.settled,
            // This node's own id is its own, whoever else may have it.
            addresses: peers.chain([own]).collect(),
            tunnels: tunnels.collect(),
            problems: wanted.problems.clone(),
            conflicts: conflicts.collect(),
        })
    }
}
