//! What a policy is read against: who this node is and which addresses belong to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Selector};
use crate::types::NodeId;

/// The node and its mesh, as far as policy depends on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// This node.
    pub node: NodeId,
    /// This node's mesh address; its id stands for it even where `members` does not name the node.
    pub mesh_ip: IpAddr,
    /// The addresses of every peer, and of this node, as WireGuard has them: none belongs to two.
    pub members: BTreeMap<NodeId, BTreeSet<IpNet>>,
    /// The mesh interface, 1 to 15 bytes.
    pub interface: String,
    /// What happens to a connection that no rule matches.
    pub default: Action,
    /// Whether there is any policy at all.
    pub enabled: bool,
    /// Whether denied packets are logged.
    pub log_denied: bool,
}

impl Context {
    /// Returns the node whose an address is.
    pub fn owner(&self, address: &IpAddr) -> Option<&NodeId> {
        if *address == self.mesh_ip {
            return Some(&self.node);
        }
        let owns = |nets: &BTreeSet<IpNet>| nets.iter().any(|net| net.contains(address));
        self.members.iter().find(|(_, nets)| owns(nets)).map(|(id, _)| id)
    }

    /// Returns the networks a selector stands for: none for an unknown node, both families for `*`.
    pub(super) fn networks(&self, selector: &Selector) -> Vec<IpNet> {
        match selector {
            Selector::Any => {
                vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
            }
            Selector::Net(net) => vec![net.trunc()],
            Selector::Node(id) => self.addresses(id),
        }
    }

    /// Returns the addresses of a node, those that lie within others left out; none for an unknown node.
    pub(super) fn addresses(&self, id: &NodeId) -> Vec<IpNet> {
        let members = self.members.get(id).into_iter().flatten().copied();
        let own = (*id == self.node).then(|| IpNet::from(self.mesh_ip));
        IpNet::aggregate(&members.chain(own).map(|net| net.trunc()).collect())
    }
}
