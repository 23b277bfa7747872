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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ownership {
    owners: BTreeMap<IpNet, NodeId>,
    /// Whether somebody claims what belongs to another.
    contested: bool,
}

impl Ownership {
    /// Decides between this node with its address, and its peers in the order of their ids.
    pub(super) fn new(own: (&NodeId, IpAddr), peers: &[&Peer]) -> Self {
        let mut ownership = Self::default();
        ownership.claim(IpNet::from(own.1), own.0);
        for peer in peers {
            ownership.claim(IpNet::from(peer.mesh_ip), &peer.id);
        }
        for peer in peers {
            for net in &peer.allowed_ips {
                ownership.claim(net.trunc(), &peer.id);
            }
        }
        ownership
    }

    fn claim(&mut self, net: IpNet, claimant: &NodeId) {
        let owner = self.owners.entry(net).or_insert_with(|| claimant.clone());
        self.contested |= owner != claimant;
    }

    /// Returns whether somebody claims what belongs to another.
    pub(super) fn is_contested(&self) -> bool {
        self.contested
    }

    /// Gives `peer` all it claims, if that touches nothing of anybody else; returns whether it does not.
    pub(super) fn add_apart(&mut self, peer: &Peer) -> bool {
        let claims = claims(peer);
        let is_apart = self.are_apart(&claims, &peer.id);
        if is_apart {
            self.owners.extend(claims.into_iter().map(|net| (net, peer.id.clone())));
        }
        is_apart
    }

    /// Takes back what `peer` claims, if that touches nothing of anybody else; returns whether it does not. To be asked only
    /// where nothing is contested.
    pub(super) fn remove_apart(&mut self, peer: &Peer) -> bool {
        let claims = claims(peer);
        let is_apart = self.are_apart(&claims, &peer.id);
        if is_apart {
            for net in claims {
                self.owners.remove(&net);
            }
        }
        is_apart
    }

    fn are_apart(&self, nets: &BTreeSet<IpNet>, id: &NodeId) -> bool {
        nets.iter().all(|net| self.is_apart(net, id))
    }

    /// Returns whether nothing of anybody but `id` lies at, in or around the network.
    fn is_apart(&self, net: &IpNet, id: &NodeId) -> bool {
        let foreign = |owner: &NodeId| owner != id;
        let around = (0..=net.prefix_len()).filter_map(|bits| IpNet::new(net.addr(), bits).ok());
        let within =
            self.owners.range((Bound::Excluded(*net), Bound::Included(IpNet::from(net.broadcast()))));
        !around.filter_map(|around| self.owners.get(&around.trunc())).any(foreign)
            && !within.map(|(_, owner)| owner).any(foreign)
    }

    /// Returns the owner of exactly this network.
    pub(super) fn owner(&self, net: &IpNet) -> Option<&NodeId> {
        self.owners.get(&net.trunc())
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
            cut_out(*net, &others, members.entry(owner.clone()).or_default());
        }
        members
    }
}

/// Returns what a peer claims.
pub(super) fn claims(peer: &Peer) -> BTreeSet<IpNet> {
    peer.allowed_ips.iter().map(IpNet::trunc).chain([IpNet::from(peer.mesh_ip)]).collect()
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
