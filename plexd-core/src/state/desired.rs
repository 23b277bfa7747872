//! What the control plane wants, as one immutable snapshot, and how pulls and events become the next one. Pure; nothing
//! else changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::model::{DataEntry, FullState, OwnKey, Peer, Rejected, SecretRef, SigningKeys};
use super::ordered::{EntryChange, Ordered};
use crate::control::events::{Event, PeerKeyRotation, StateDelta};
use crate::policy::PolicySet;
use crate::reconcile::drift::{Correction, Kind};
use crate::types::{NodeId, PublicKey};

/// What the control plane wants. Cheap to clone; entries that did not change are shared with the snapshot before.
#[derive(Clone, Default)]
pub struct Desired {
    /// Peers by id.
    pub peers: OrdMap<NodeId, Arc<Peer>>,
    /// Peers that could not be taken over, and why.
    pub rejected_peers: Arc<[Rejected]>,
    /// The policies in force: the newest valid set.
    pub policies: Arc<PolicySet>,
    /// The newest set that is known to compile, as long as that is not known of `policies`: to be enforced if those cannot
    /// be (see [`crate::state::State::compiled`]).
    pub policies_before: Option<Arc<PolicySet>>,
    /// Why the newest set was refused, if it was.
    pub policies_rejected: Option<Arc<str>>,
    /// Keys that events may be signed with; `None` until the first state.
    pub signing_keys: Option<SigningKeys>,
    /// Where this node's own key stands.
    pub own_key: OwnKey,
    /// Metadata by key.
    pub metadata: Arc<BTreeMap<String, String>>,
    /// Data entries in the control plane's order.
    pub data: Ordered<DataEntry>,
    /// Secret names in the control plane's order.
    pub secret_refs: Ordered<SecretRef>,
    /// Sections of features to come, as received.
    pub sections: Arc<BTreeMap<&'static str, Box<RawValue>>>,
}

impl fmt::Debug for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Sections may hold key material: only their names.
        f.debug_struct("Desired")
            .field("peers", &self.peers)
            .field("policies", &self.policies)
            .field("policies_before", &self.policies_before)
            .field("policies_rejected", &self.policies_rejected)
            .field("signing_keys", &self.signing_keys)
            .field("metadata", &self.metadata)
            .field("data", &self.data)
            .field("secret_refs", &self.secret_refs)
            .field("sections", &self.sections.keys())
            .finish_non_exhaustive()
    }
}

/// What an event led to.
#[derive(Debug)]
pub struct Applied {
    /// The next snapshot.
    pub desired: Desired,
    /// Whether the state is to be pulled.
    pub pull: bool,
    /// Name of the event, if this version has no feature for it.
    pub unsupported: Option<String>,
    /// What of the event was refused, for the drift report.
    pub corrections: Vec<Correction>,
}

impl Desired {
    /// Returns the snapshot that follows a verified event.
    pub fn apply(&self, event: Event, now: Timestamp) -> Applied {
        let mut desired = self.clone();
        let mut pull = false;
        let mut unsupported = None;
        let mut corrections = Vec::new();
        match event {
            Event::PeerAdded(peer) => desired.set_peer(peer),
            Event::PeerRemoved(id) => {
                desired.peers.remove(&id);
            }
            Event::PeerKeyRotated(rotation) => {
                // Without a shared key the event may have left it out, or mean that there is none: the state knows.
                pull = rotation.psk.is_none() && rotation.peer.is_none();
                pull |= !desired.rotate_peer_key(rotation);
            }
            Event::PeerEndpointChanged(moved) => match desired.peers.get(&moved.id) {
                Some(known) => {
                    let peer = Peer { endpoint: moved.endpoint, ..Peer::clone(known) };
                    desired.set_peer(peer);
                }
                None => pull = true,
            },
            Event::PolicyUpdated(policies) => corrections.extend(desired.set_policies(policies)),
            Event::Reconcile => pull = true,
            Event::SigningKeyRotated(rotation) => {
                desired.signing_keys = self.signing_keys.as_ref().map(|keys| rotation.apply(keys, now));
            }
            Event::NodeStateUpdated(StateDelta { metadata, data, .. }) => {
                if !metadata.is_empty() {
                    Arc::make_mut(&mut desired.metadata).extend(metadata);
                }
                desired.data.merge(data, |entry| &entry.key);
                pull = true;
            }
            Event::NodeSecretsUpdated(references) => {
                desired.secret_refs.merge(references, |reference| &reference.key);
                pull = true;
            }
            // One that is under way already answers this request, too.
            Event::RotateKeys => desired.own_key.rotation_wanted = true,
            Event::Unsupported(kind) => unsupported = Some(kind.to_string()),
            Event::Unknown(name) => unsupported = Some(name),
        }
        Applied { desired, pull, unsupported, corrections }
    }

    /// Returns the snapshot that follows a pull of the whole state, and what of the local copy that corrected. Peers
    /// are left out of the corrections: the reconciler reports them as it applies them.
    pub fn replaced_by(&self, full: FullState) -> (Self, Vec<Correction>) {
        let mut next = self.clone();
        let mut corrections = Vec::new();
        let FullState {
            peers,
            rejected_peers,
            policies,
            signing_keys,
            metadata,
            data,
            secret_refs,
            sections,
            ..
        } = full;

        for rejected in &rejected_peers {
            if !self.rejected_peers.contains(rejected) {
                corrections.push(Correction::new(
                    Kind::PeerRejected,
                    format!("{}: {}", rejected.name, rejected.reason),
                ));
            }
        }
        next.rejected_peers = rejected_peers.into();
        next.replace_peers(peers);
        corrections.extend(next.set_policies(policies));
        if let Some(keys) = signing_keys.filter(|keys| self.signing_keys.as_ref() != Some(keys)) {
            corrections
                .push(Correction::new(Kind::SigningKeysUpdated, format!("current key is {}", keys.current)));
            next.signing_keys = Some(keys);
        }
        if *self.metadata != metadata {
            corrections.push(Correction::new(Kind::MetadataUpdated, format!("{} keys", metadata.len())));
            next.metadata = Arc::new(metadata);
        }
        next.data = self.data.replaced(data, |entry| &entry.key);
        if next.data != self.data {
            corrections.push(Correction::new(Kind::DataUpdated, changed_keys(&next.data, &self.data)));
        }
        next.secret_refs = self.secret_refs.replaced(secret_refs, |reference| &reference.key);
        if next.secret_refs != self.secret_refs {
            corrections.push(Correction::new(
                Kind::SecretRefsUpdated,
                changed_keys(&next.secret_refs, &self.secret_refs),
            ));
        }
        let known = self.sections.iter().map(|(name, section)| (name, section.get()));
        if !known.eq(sections.iter().map(|(name, section)| (name, section.get()))) {
            next.sections = Arc::new(sections);
        }
        (next, corrections)
    }

    /// Returns the snapshot that follows the control plane's confirmation of this node's key: peers with their new
    /// preshared keys, all others as they are.
    #[must_use]
    pub fn rotated_to(&self, key: PublicKey, peers: Vec<Peer>) -> Self {
        let mut next = self.clone();
        next.set_peers(peers);
        next.own_key = OwnKey { rotation_wanted: false, confirmed: Some(key) };
        next
    }

    /// Returns the snapshot that follows the news that these policies compile, the newest ones or some before them; `None`
    /// where that is no news.
    #[must_use]
    pub fn with_compiled(&self, policies: &Arc<PolicySet>) -> Option<Self> {
        let before = (self.policies != *policies).then(|| Arc::clone(policies));
        (before != self.policies_before).then(|| Self { policies_before: before, ..self.clone() })
    }

    /// Returns whether nothing differs from `old`, of which this is a successor; costs by the number of differences.
    pub fn is_same_as(&self, old: &Self) -> bool {
        let Self {
            peers,
            rejected_peers,
            policies,
            // Changes with `policies`, or tells what whoever watches has told itself.
            policies_before: _,
            policies_rejected,
            signing_keys,
            own_key,
            metadata,
            data,
            secret_refs,
            sections,
        } = self;
        // Unlike a comparison, a difference does not look at what both share.
        peers.diff(&old.peers).next().is_none()
            && *rejected_peers == old.rejected_peers
            && *policies == old.policies
            && *policies_rejected == old.policies_rejected
            && *signing_keys == old.signing_keys
            && *own_key == old.own_key
            && *metadata == old.metadata
            && *data == old.data
            && *secret_refs == old.secret_refs
            && Arc::ptr_eq(sections, &old.sections)
    }

    fn set_peer(&mut self, peer: Peer) {
        self.set_peers(vec![peer]);
    }

    /// Sets peers, whose ids and keys are unique. A key belongs to one peer: whoever had it under another id has lost it.
    fn set_peers(&mut self, peers: Vec<Peer>) {
        let owners: BTreeMap<PublicKey, &NodeId> =
            peers.iter().map(|peer| (peer.public_key, &peer.id)).collect();
        let is_stale = |known: &Peer| owners.get(&known.public_key).is_some_and(|owner| **owner != known.id);
        let stale: Vec<NodeId> =
            self.peers.values().filter(|known| is_stale(known)).map(|known| known.id.clone()).collect();
        for id in stale {
            self.peers.remove(&id);
        }
        for peer in peers {
            self.insert_peer(peer);
        }
    }

    /// Gives a peer its new keys; returns whether it is known.
    fn rotate_peer_key(&mut self, rotation: PeerKeyRotation) -> bool {
        let PeerKeyRotation { id, public_key, psk, peer } = rotation;
        let whole = match (peer, self.peers.get(&id)) {
            (Some(whole), _) => whole,
            (None, Some(known)) => {
                Peer { public_key, psk: psk.or_else(|| known.psk.clone()), ..Peer::clone(known) }
            }
            (None, None) => return false,
        };
        self.set_peer(whole);
        true
    }

    fn replace_peers(&mut self, peers: Vec<Peer>) {
        let wanted: BTreeSet<NodeId> = peers.iter().map(|peer| peer.id.clone()).collect();
        let gone: Vec<NodeId> = self.peers.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
        for id in gone {
            self.peers.remove(&id);
        }
        for peer in peers {
            self.insert_peer(peer);
        }
    }

    fn insert_peer(&mut self, peer: Peer) {
        if self.peers.get(&peer.id).is_none_or(|known| **known != peer) {
            self.peers.insert(peer.id.clone(), Arc::new(peer));
        }
    }

    /// Takes a policy set over; an invalid one leaves the old one and is a correction, once.
    fn set_policies(&mut self, policies: Result<PolicySet, String>) -> Option<Correction> {
        match policies {
            Ok(policies) => {
                self.policies_rejected = None;
                if *self.policies != policies {
                    let before = std::mem::replace(&mut self.policies, Arc::new(policies));
                    // Of one that never compiled the set before it stays.
                    self.policies_before.get_or_insert(before);
                }
                None
            }
            Err(reason) if self.policies_rejected.as_deref() == Some(reason.as_str()) => None,
            Err(reason) => {
                self.policies_rejected = Some(reason.as_str().into());
                Some(Correction::new(Kind::PolicyRejected, reason))
            }
        }
    }
}

/// Names at most three changed keys.
fn changed_keys<T: PartialEq>(new: &Ordered<T>, old: &Ordered<T>) -> String {
    let keys: Vec<&str> = new
        .changes_since(old)
        .map(|change| match change {
            EntryChange::Set(key, _) | EntryChange::Removed(key) => key,
        })
        .collect();
    let shown = keys.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    match keys.len() {
        0..=3 => shown,
        more => format!("{shown} and {} more", more - 3),
    }
}

#[cfg(test)]
mod tests;
