//! What the kernel should have: the desired state, cut down to what concerns this node, and free of contradictions. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::ownership::Ownership;
use crate::config::{Mesh, PolicySettings};
use crate::identity::Identity;
use crate::kernel::{DeviceConfig, PeerConfig};
use crate::policy::{self, CompileError, Context, PolicySet, Table};
use crate::state::{Desired, Peer};
use crate::types::{Endpoint, NodeId, PublicKey};

/// What the kernel should have.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Key and port of the device.
    pub device: DeviceConfig,
    /// MTU of the interface, in bytes.
    pub mtu: u32,
    /// The node's address.
    pub address: IpNet,
    /// Peers by key, those that policy lets this node talk to.
    pub peers: BTreeMap<PublicKey, WantedPeer>,
    /// Destinations that are routed through the interface.
    pub routes: BTreeSet<IpNet>,
    /// Addresses that plexd-core itself speaks to, which are never reached through it.
    pub outside: BTreeSet<IpAddr>,
    /// Those, and all at which peers were wanted or heard as of the last plan: no route may capture them.
    pub(super) reached: BTreeSet<IpAddr>,
    /// The firewall; `None` when policy is disabled.
    pub table: Option<Table>,
    /// Peers that are wanted and not configured, or not as wanted, and why.
    pub problems: BTreeMap<NodeId, String>,
    /// What belongs to whom.
    pub(super) ownership: Ownership,
}

/// A peer and how it is to be configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPeer {
    /// Its id.
    pub id: NodeId,
    /// Its configuration; the endpoint is the control plane's, as far as it is known as an address.
    pub config: PeerConfig,
}

/// Why a peer is left out that nothing is wrong with.
pub(super) const HIDDEN: &str = "no policy lets this node and the peer talk";

/// Addresses of endpoints that are names.
pub type Resolved = BTreeMap<Endpoint, SocketAddr>;

/// What the kernel should have follows from these.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What the control plane wants.
    pub desired: &'a Desired,
    /// The policies to enforce; [`Desired::policies`], unless those cannot be compiled.
    pub policies: &'a PolicySet,
    /// Who this node is.
    pub identity: &'a Identity,
    /// The mesh interface.
    pub mesh: &'a Mesh,
    /// The firewall.
    pub settings: PolicySettings,
    /// Addresses of endpoints that are names.
    pub resolved: &'a Resolved,
}

impl Input<'_> {
    /// Returns what the kernel should have.
    ///
    /// # Errors
    /// If the policies cannot be compiled.
    pub fn wanted(&self) -> Result<Wanted, CompileError> {
        let ownership = self.ownership();
        let context = self.context(&ownership);
        let table = policy::compile(self.policies, &context)?;
        let mut wanted = Wanted {
            device: DeviceConfig {
                private_key: self.identity.private_key.clone(),
                listen_port: self.mesh.listen_port,
            },
            mtu: self.mesh.mtu,
            address: IpNet::from(self.identity.mesh_ip),
            peers: BTreeMap::new(),
            routes: BTreeSet::new(),
            outside: BTreeSet::new(),
            reached: BTreeSet::new(),
            table,
            problems: BTreeMap::new(),
            ownership,
        };
        let visible = policy::visible(self.policies, &context);
        let is_this_node = self.is_this_node();
        for peer in self.desired.peers.values() {
            if is_this_node(peer) {
                wanted.problems.insert(peer.id.clone(), "has this node's own id or key".to_owned());
            } else {
                self.add_peer(&mut wanted, peer, visible.contains(&peer.id));
            }
        }
        Ok(wanted)
    }

    /// Returns what policies are read against.
    pub fn policy_context(&self) -> Context {
        self.context(&self.ownership())
    }

    /// Whose network is whose. Peers that are left out for this node's own id or key own nothing.
    fn ownership(&self) -> Ownership {
        Ownership::new((&self.identity.node_id, self.identity.mesh_ip), &self.others().collect::<Vec<_>>())
    }

    fn others(&self) -> impl Iterator<Item = &Peer> {
        let is_this_node = self.is_this_node();
        self.desired.peers.values().map(AsRef::as_ref).filter(move |peer| !is_this_node(peer))
    }

    /// Returns what tells a peer that has this node's own id or key.
    pub(super) fn is_this_node(&self) -> impl Fn(&Peer) -> bool {
        // Once for all of them: it takes a multiplication on the curve.
        let own_key = self.identity.private_key.public();
        move |peer| peer.id == self.identity.node_id || peer.public_key == own_key
    }

    pub(super) fn context(&self, ownership: &Ownership) -> Context {
        let mut members = ownership.members();
        // Also those to whom nothing belongs of what they claim.
        for peer in self.others() {
            members.entry(peer.id.clone()).or_default();
        }
        self.context_of(members)
    }

    /// Returns what policies are read against where these are the members.
    pub(super) fn context_of(&self, members: BTreeMap<NodeId, BTreeSet<IpNet>>) -> Context {
        Context {
            node: self.identity.node_id.clone(),
            mesh_ip: self.identity.mesh_ip,
            members,
            interface: self.mesh.interface.clone(),
            default: self.settings.default,
            enabled: self.settings.enabled,
            log_denied: self.settings.log_denied,
        }
    }

    /// Adds a peer that is not this node, and says why it, or a part of it, is not configured.
    pub(super) fn add_peer(&self, wanted: &mut Wanted, peer: &Peer, is_visible: bool) {
        if !is_visible {
            wanted.problems.insert(peer.id.clone(), HIDDEN.to_owned());
            return;
        }
        let mut allowed_ips = peer.allowed_ips.clone();
        for net in &peer.allowed_ips {
            if let Some(owner) = wanted.ownership.owner(net).filter(|owner| **owner != peer.id) {
                let problem = format!("allowed IP {net} already belongs to {owner}; it is left there");
                wanted.problems.insert(peer.id.clone(), problem);
                allowed_ips.retain(|kept| kept != net);
            }
        }
        wanted.routes.extend(allowed_ips.iter());
        let endpoint = match &peer.endpoint {
            Some(Endpoint::Address(address)) => Some(*address),
            Some(name) => self.resolved.get(name).copied(),
            None => None,
        };
        if let (Some(name), None) = (&peer.endpoint, endpoint) {
            wanted.problems.insert(peer.id.clone(), format!("endpoint {name} cannot be resolved"));
        }
        let config = PeerConfig {
            public_key: peer.public_key,
            preshared_key: peer.psk.clone(),
            endpoint,
            allowed_ips,
            persistent_keepalive: self.mesh.persistent_keepalive,
        };
        wanted.peers.insert(peer.public_key, WantedPeer { id: peer.id.clone(), config });
    }
}

#[cfg(test)]
mod tests;
