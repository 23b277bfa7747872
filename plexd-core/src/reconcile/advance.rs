//! From what was wanted to what is wanted now, where a few peers changed and concern nobody but themselves: what that takes
//! follows from those peers alone, at the same cost in a mesh of ten and of ten thousand. Wherever that is not plain, there
//! is no short way, and everything is worked out anew. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;

use super::apart;
use super::drift::{Correction, Kind};
use super::ownership::claims;
use super::plan::{Plan, Step};
use super::wanted::{Input, Wanted, WantedPeer};
use crate::kernel::{PeerChange, PeerConfig};
use crate::policy::{self, Selector};
use crate::state::{Desired, Peer};
use crate::types::{Endpoint, NodeId, PublicKey};

/// More changed peers than this are worked out with all others.
const MOST: usize = 64;

/// What is wanted now, and what leads there.
#[derive(Debug)]
pub(super) struct Advance {
    pub wanted: Wanted,
    pub plan: Plan,
    /// The peers that changed, by the keys they have or had.
    pub changed: Vec<PublicKey>,
}

/// Returns the way from `wanted`, which followed from `before`, to what follows from `input`, in which nothing but peers
/// differs; `None` if there is no short one. Where no peer differs either, there is nothing to do.
pub(super) fn advance(mut wanted: Wanted, before: &Desired, input: &Input<'_>) -> Option<Advance> {
    let changes = changes(before, input.desired)?;
    if wanted.ownership.is_contested() || !changes.iter().all(|change| is_plain(change, input)) {
        return None;
    }
    let involved: Vec<&Peer> =
        changes.iter().flat_map(|(before, after)| [before, after]).flatten().copied().collect();
    if apart::concerns(&involved, &wanted) {
        return None;
    }
    let mut old = BTreeMap::new();
    for peer in changes.iter().filter_map(|(before, _)| *before) {
        if !wanted.ownership.remove_apart(peer) {
            return None;
        }
        wanted.problems.remove(&peer.id);
        old.extend(wanted.peers.remove_entry(&peer.public_key));
    }
    for net in old.values().flat_map(|peer| &peer.config.allowed_ips) {
        wanted.routes.remove(net);
    }
    for peer in changes.iter().filter_map(|(_, after)| *after) {
        if wanted.peers.contains_key(&peer.public_key) || !wanted.ownership.add_apart(peer) {
            return None;
        }
        input.add_peer(&mut wanted, peer, is_visible(peer, input));
    }
    let keys: BTreeSet<PublicKey> = changes
        .iter()
        .flat_map(|(before, after)| [before, after])
        .flatten()
        .map(|peer| peer.public_key)
        .collect();
    // Where they were stays in it as well: at worst a later change takes the long way.
    let reached =
        keys.iter().filter_map(|key| Some(wanted.peers.get(key)?.config.endpoint?.ip().to_canonical()));
    wanted.reached.extend(reached);
    let plan = plan(&keys, &old, &wanted.peers);
    Some(Advance { wanted, plan, changed: keys.into_iter().collect() })
}

/// A peer as it was and as it is.
type Change<'a> = (Option<&'a Peer>, Option<&'a Peer>);

/// Returns the peers that differ; `None` if they are many.
fn changes<'a>(before: &'a Desired, after: &'a Desired) -> Option<Vec<Change<'a>>> {
    let peer = |peer: &'a Arc<Peer>| Some(&**peer);
    let changes: Vec<Change<'a>> = before
        .peers
        .diff(&after.peers)
        .take(MOST + 1)
        .map(|item| match item {
            DiffItem::Add(_, new) => (None, peer(new)),
            DiffItem::Update { old: (_, old), new: (_, new) } => (peer(old), peer(new)),
            DiffItem::Remove(_, old) => (peer(old), None),
        })
        .collect();
    (changes.len() <= MOST).then_some(changes)
}

/// Returns whether a change can concern its peer alone. A peer with another key is to be found where the old key was heard,
/// names are to be looked up, and rules that name a peer make another table of it.
fn is_plain((before, after): &Change<'_>, input: &Input<'_>) -> bool {
    let keeps_its_key = match (before, after) {
        (Some(before), Some(after)) => before.public_key == after.public_key,
        _ => true,
    };
    let is_this_node = input.is_this_node();
    let is_plain = |peer: &&Peer| {
        !is_this_node(peer)
            && !matches!(peer.endpoint, Some(Endpoint::Name { .. }))
            && !is_named(&peer.id, input)
    };
    keeps_its_key && before.iter().chain(after).all(is_plain)
}

fn is_named(id: &NodeId, input: &Input<'_>) -> bool {
    let names = |selector: &Selector| matches!(selector, Selector::Node(node) if node == id);
    input.policies.rules().any(|rule| names(&rule.src) || names(&rule.dst))
}

/// Returns whether policy lets this node and a peer talk that no rule names and whose networks are nobody else's.
fn is_visible(peer: &Peer, input: &Input<'_>) -> bool {
    let context = input.context_of([(peer.id.clone(), claims(peer))].into());
    policy::visible(input.policies, &context).contains(&peer.id)
}

fn plan(
    keys: &BTreeSet<PublicKey>,
    old: &BTreeMap<PublicKey, WantedPeer>,
    new: &BTreeMap<PublicKey, WantedPeer>,
) -> Plan {
    let (mut removed, mut set, mut corrections) = (Vec::new(), Vec::new(), Vec::new());
    let (mut stale, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for key in keys {
        let (old, new) = (old.get(key), new.get(key));
        let (change, kind, peer) = match (old, new) {
            (None, Some(new)) => (PeerChange::Set(new.config.clone()), Kind::PeerAdded, new),
            (Some(old), None) => (PeerChange::Remove(*key), Kind::PeerRemoved, old),
            (Some(old), Some(new)) if old != new => {
                (PeerChange::Set(update(old, new)), Kind::PeerUpdated, new)
            }
            _ => continue,
        };
        match change {
            PeerChange::Remove(_) => removed.push(change),
            PeerChange::Set(_) => set.push(change),
        }
        corrections.push(Correction::new(kind, format!("{} changed", peer.id)));
        let nets = |peer: &WantedPeer| peer.config.allowed_ips.clone();
        stale.extend(old.map(nets).unwrap_or_default().iter());
        missing.extend(new.map(nets).unwrap_or_default().iter());
    }
    let difference = |of: &BTreeSet<IpNet>, without: &BTreeSet<IpNet>| -> Vec<IpNet> {
        of.difference(without).copied().collect()
    };
    let (add, remove) = (difference(&missing, &stale), difference(&stale, &missing));
    removed.extend(set);
    let mut plan = Plan::default();
    if !removed.is_empty() {
        plan.add(Step::Peers(removed), corrections);
    }
    if !add.is_empty() {
        plan.add(Step::AddRoutes(add), Vec::new());
    }
    if !remove.is_empty() {
        plan.add(Step::RemoveRoutes(remove), Vec::new());
    }
    plan
}

/// Returns how a peer is to be changed: the endpoint only if it is another one, as the peer may have roamed.
fn update(old: &WantedPeer, new: &WantedPeer) -> PeerConfig {
    let endpoint = new.config.endpoint.filter(|_| new.config.endpoint != old.config.endpoint);
    PeerConfig { endpoint, ..new.config.clone() }
}

#[cfg(test)]
mod tests;
