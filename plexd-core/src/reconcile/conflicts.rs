//! What of the mesh belongs to somebody else: told on the board, with the names. Nothing of it is taken from anybody, and
//! everything else works.

use super::Reconciler;
use super::wanted::Wanted;
use crate::kernel::{AddressConflict, RouteConflict};
use crate::status::Subsystem;

/// Conflicts of one kind that are told; `plexd-ctl peers` has all of them.
const TOLD: usize = 3;

impl Reconciler {
    /// Tells of allowed IPs that several peers claim.
    pub(super) fn report_peers(&self, wanted: &Wanted) {
        self.wiring.board.set(Subsystem::Mesh, "allowed_ips", of_peers(wanted));
    }

    /// Tells of other interfaces that have the node's address in the mesh.
    pub(super) async fn report_address(&self, wanted: &Wanted) {
        let interface = &self.config.mesh.interface;
        // What cannot be read is told by the observation of the interface.
        if let Ok(conflicts) = self.kernel.network.address_conflicts(interface, wanted.address.addr()).await {
            self.wiring.board.set(Subsystem::Mesh, "address", of_addresses(&conflicts));
        }
    }

    /// Forgets all conflicts, of a node that has no mesh any more.
    pub(super) fn forget_conflicts(&mut self) {
        self.conflicts.clear();
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

fn of_peers(wanted: &Wanted) -> Option<String> {
    told(wanted.disputed.iter().flat_map(|(peer, claims)| {
        claims.iter().map(move |(net, owner)| {
            format!("allowed IP {net} of {peer} already belongs to {owner}; it is left there")
        })
    }))
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
