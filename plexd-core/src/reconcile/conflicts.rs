//! What of the mesh belongs to somebody else: told on the board, with the names. Nothing of it is taken from anybody, and
//! everything else works.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Reconciler;
use super::drift::{Correction, Kind};
use super::wanted::Wanted;
use crate::kernel::{AddressConflict, RouteConflict};
use crate::state::Desired;
use crate::status::Subsystem;

/// Conflicts of one kind that are told; `plexd-ctl peers` has all of them.
const TOLD: usize = 3;

/// Claims that one drift report names at most.
const REPORTED: usize = 100;

impl Reconciler {
    /// Tells of allowed IPs that peers claim and that belong to somebody else; the control plane, once of each.
    pub(super) fn report_claims(&mut self, desired: &Desired, wanted: &Wanted) {
        let claims = claims(desired, wanted);
        let new = claims.difference(&self.claims).take(REPORTED);
        let new: Vec<Correction> =
            new.map(|claim| Correction::new(Kind::PeerRejected, claim.clone())).collect();
        if !new.is_empty() {
            self.send_drift(new);
        }
        self.wiring.board.set(Subsystem::Mesh, "allowed_ips", told(claims.iter().cloned()));
        self.claims = claims;
    }

    /// Tells of other interfaces that have the node's address in the mesh.
    pub(super) async fn report_address(&self, address: IpNet) {
        let interface = &self.config.mesh.interface;
        // What cannot be read is told by the observation of the interface.
        if let Ok(conflicts) = self.kernel.network.address_conflicts(interface, address.addr()).await {
            self.wiring.board.set(Subsystem::Mesh, "address", of_addresses(&conflicts));
        }
    }

    /// Forgets all conflicts, of a node that has no mesh any more.
    pub(super) fn forget_conflicts(&mut self) {
        self.conflicts.clear();
        self.claims.clear();
        for kind in ["allowed_ips", "address"] {
            self.wiring.board.clear(Subsystem::Mesh, kind);
        }
    }
}

/// Returns what is to be told of routes that somebody else owns.
pub(super) fn of_routes(conflicts: &[RouteConflict]) -> Option<String> {
    told(conflicts.iter().map(|conflict| {
        let owner = conflict.owner.as_deref().unwrap_or("another table entry");
        format!("route {} belongs to {owner} and is left alone", conflict.destination)
    }))
}

fn claims(desired: &Desired, wanted: &Wanted) -> BTreeSet<String> {
    // Rarely so, and there may be many peers.
    if !wanted.ownership.is_contested() {
        return BTreeSet::new();
    }
    let configured = desired.peers.values().filter(|peer| wanted.peers.contains_key(&peer.public_key));
    let claims = configured.flat_map(|peer| {
        peer.allowed_ips.iter().filter_map(|net| {
            let owner = wanted.ownership.owner(net).filter(|owner| **owner != peer.id)?;
            Some(format!("allowed IP {net} of {} already belongs to {owner}; it is left there", peer.id))
        })
    });
    claims.collect()
}

fn of_addresses(conflicts: &[AddressConflict]) -> Option<String> {
    told(conflicts.iter().map(|AddressConflict { address, interface }| {
        format!(
            "mesh address {} is in use on {interface}, too; remove it there: ip address del {address} dev {interface}",
            address.addr()
        )
    }))
}

fn told(texts: impl Iterator<Item = String>) -> Option<String> {
    let texts: Vec<String> = texts.take(TOLD).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}
