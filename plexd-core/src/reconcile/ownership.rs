//! Which network of the mesh belongs to whom: one answer for WireGuard, which lets a peer send from its allowed IPs, and for
//! policy, which judges by addresses. Where the two differed, one peer's packets would be judged by another's rules. Pure.
//!
//! A network that several claim belongs to this node if it is its address, else to the peer whose mesh address it is, else
//! to the first by id. Of networks within networks the longer one counts, as in WireGuard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;

use crate::state::Peer;
use crate::types::NodeId;

/// Owners by network.
#[derive(Debug)]
pub(super) struct Ownership<'a> {
    owners: BTreeMap<IpNet, &'a NodeId>,
}

impl<'a> Ownership<'a> {
    /// Decides between this node with its address, and its peers in the order of their ids.
    pub(super) fn new(own: (&'a NodeId, IpAddr), peers: &[&'a Peer]) -> Self {
        let mut owners = BTreeMap::from([(IpNet::from(own.1), own.0)]);
        for peer in peers {
            owners.entry(IpNet::from(peer.mesh_ip)).or_insert(&peer.id);
        }
        for peer in peers {
            for net in &peer.allowed_ips {
                owners.entry(net.trunc()).or_insert(&peer.id);
            }
        }
        Self { owners }
    }

    /// Returns the owner of exactly this network.
    pub(super) fn owner(&self, net: &IpNet) -> Option<&'a NodeId> {
        self.owners.get(&net.trunc()).copied()
    }

    /// Returns the addresses of each owner, as networks; no address has two owners. Networks of others are cut out of
    /// those around them.
    pub(super) fn members(&self) -> BTreeMap<NodeId, BTreeSet<IpNet>> {
        let mut members: BTreeMap<NodeId, BTreeSet<IpNet>> = BTreeMap::new();
        for (net, owner) in &self.owners {
            let last = IpNet::from(net.broadcast());
            // In the order of networks, those within one follow it.
            let within = self.owners.range((Bound::Excluded(*net), Bound::Included(last)));
            let others: Vec<IpNet> =
                within.filter(|(_, other)| *other != owner).map(|(other, _)| *other).collect();
            cut_out(*net, &others, members.entry((*owner).clone()).or_default());
        }
        members
    }
}

/// Adds what is left of `net` without `holes`, which lie in it and are sorted.
fn cut_out(net: IpNet, holes: &[IpNet], left: &mut BTreeSet<IpNet>) {
    if holes.first() == Some(&net) {
        return;
    }
    if holes.is_empty() {
        left.insert(net);
        return;
    }
    // A hole that is not the whole is in one half: there are two.
    for half in net.subnets(net.prefix_len() + 1).into_iter().flatten() {
        let first = holes.partition_point(|hole| hole.network() < half.network());
        let end = holes.partition_point(|hole| hole.network() <= half.broadcast());
        cut_out(half, &holes[first..end], left);
    }
}
