//! The plan: what is wanted against what was observed gives the steps that make one the other, and nothing where they
//! agree. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::apart::{self, Apart};
use super::drift::{Correction, Kind};
use super::wanted::{Wanted, WantedPeer};
use crate::kernel::rules::{MARK, ObservedRules, Rule};
use crate::kernel::{ObservedDevice, ObservedLink, ObservedPeer, ObservedTable, PeerChange, PeerConfig};
use crate::types::{AllowedIps, PublicKey};

/// A handshake younger than this is fresh: the peer is up, and where it was heard counts more than where it should be
/// (contract, section 3).
pub(crate) const FRESH: Duration = Duration::from_mins(3);

/// What is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    /// The firewall; `None` while it could not be read.
    pub table: Option<ObservedTable>,
    /// The WireGuard device.
    pub device: Reading<ObservedDevice>,
    /// The interface.
    pub link: Reading<ObservedLink>,
    /// The routing rules.
    pub rules: Reading<ObservedRules>,
}

/// What reading a part of the kernel gave. Missing is not unreadable: what cannot be read is left as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Reading<T> {
    /// It is there.
    There(T),
    /// There is none.
    #[default]
    Absent,
    /// It could not be read.
    Unreadable,
}

/// One thing to do. In the order of a plan, policy comes before anything that could carry a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put the wanted table in place.
    ReplacePolicy,
    /// Take the table away.
    RemovePolicy,
    /// Make the interface.
    CreateInterface,
    /// Set key and port.
    Configure,
    /// Give a device that has a key another one, with the peers that belong to it, in one step.
    Rekey(Vec<PeerChange>),
    /// Change peers.
    Peers(Vec<PeerChange>),
    /// Add an address.
    AddAddress(IpNet),
    /// Remove an address.
    RemoveAddress(IpNet),
    /// Set the MTU and bring the interface up.
    BringUp,
    /// Add routes.
    AddRoutes(Vec<IpNet>),
    /// Remove routes.
    RemoveRoutes(Vec<IpNet>),
    /// Add routing rules.
    AddRules(Vec<Rule>),
    /// Remove routing rules.
    RemoveRules(Vec<Rule>),
    /// Add routes that are kept apart from the main table.
    AddApart(Vec<IpNet>),
    /// Remove such routes.
    RemoveApart(Vec<IpNet>),
}

/// A step and what it corrects, in the words of the drift report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The step.
    pub step: Step,
    /// What is put right once the step is taken.
    pub corrections: Vec<Correction>,
}

/// The steps, in the order in which they are to be taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Empty when what is there is what is wanted.
    pub steps: Vec<Planned>,
    /// Whether the interface is up with no policy in front of it, so that it must go down if policy cannot be put in place.
    pub exposed: bool,
    /// What somebody else has to change before all is as wanted.
    pub blocked: Vec<String>,
    /// Addresses that no route may capture, once the plan was taken.
    pub(super) reached: BTreeSet<IpAddr>,
    /// When the peers that take another's place were heard under the key they had.
    heard: BTreeMap<PublicKey, SystemTime>,
}

/// What of earlier plans the kernel cannot tell.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// Endpoints as they were last wanted, by peer: tells a change of the control plane's mind from a peer that roamed.
    endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// When a peer was last heard under the key it had before: it is where that one was until it had the time to be heard
    /// under the new key.
    heard: BTreeMap<PublicKey, SystemTime>,
}

impl Memory {
    /// Returns what to remember once `plan` was taken.
    pub(super) fn after(mut self, plan: &mut Plan, wanted: &Wanted) -> Self {
        self.heard.append(&mut plan.heard);
        self.heard.retain(|key, _| wanted.peers.contains_key(key));
        let endpoint = |(key, peer): (&PublicKey, &WantedPeer)| Some((*key, peer.config.endpoint?));
        Self { endpoints: wanted.peers.iter().filter_map(endpoint).collect(), heard: self.heard }
    }

    /// Takes over where the peers of these keys are wanted now.
    pub(super) fn follow(&mut self, changed: &[PublicKey], wanted: &Wanted) {
        for key in changed {
            match wanted.peers.get(key).map(|peer| peer.config.endpoint) {
                Some(Some(endpoint)) => drop(self.endpoints.insert(*key, endpoint)),
                Some(None) => drop(self.endpoints.remove(key)),
                None => {
                    self.endpoints.remove(key);
                    self.heard.remove(key);
                }
            }
        }
    }

    /// Returns whether the peer was heard of late, be it under the key it had before.
    fn is_fresh(&self, key: &PublicKey, peer: &ObservedPeer, now: SystemTime) -> bool {
        is_fresh(self.heard(key, peer), now)
    }

    fn heard(&self, key: &PublicKey, peer: &ObservedPeer) -> Option<SystemTime> {
        peer.last_handshake.max(self.heard.get(key).copied())
    }
}

/// What follows from the device alone: how its peers are to change, and which routes are kept apart once they did.
#[derive(Debug)]
pub(super) struct Prospect {
    peers: Peers,
    pub(super) apart: Apart,
}

impl Prospect {
    /// Returns what follows from a device. One that cannot be read is left as it is.
    pub(super) fn of(
        wanted: &Wanted,
        device: &Reading<ObservedDevice>,
        memory: &Memory,
        now: SystemTime,
    ) -> Self {
        let (there, peers) = match device {
            Reading::There(device) => (Some(device), peers(wanted, Some(device), memory, now)),
            Reading::Absent => (None, peers(wanted, None, memory, now)),
            Reading::Unreadable => (None, Peers::default()),
        };
        let apart = Apart::of(wanted, apart::heard(there, &peers.changes));
        Self { peers, apart }
    }
}

/// Returns what to do.
pub(super) fn plan(wanted: &Wanted, observed: &Observed, prospect: Prospect) -> Plan {
    let mut plan = Plan::default();
    plan.policy(wanted, observed);
    plan.exposed = is_exposed(wanted, observed);
    let device = match &observed.device {
        Reading::There(device) => Some(device),
        Reading::Absent => None,
        Reading::Unreadable => return plan,
    };
    plan.device(wanted, device);
    let Prospect { mut peers, apart } = prospect;
    plan.heard.append(&mut peers.heard);
    if has_another_key(wanted, device) {
        plan.rekey(peers);
    } else if !peers.changes.is_empty() {
        plan.add(Step::Peers(peers.changes), peers.corrections);
    }
    match &observed.link {
        Reading::There(link) => plan.link(wanted, link, (&apart, observed)),
        Reading::Absent => plan.link(wanted, &ObservedLink::default(), (&apart, observed)),
        Reading::Unreadable => {}
    }
    plan.reached = apart.reached;
    plan
}

impl Plan {
    pub(super) fn add(&mut self, step: Step, corrections: Vec<Correction>) {
        self.steps.push(Planned { step, corrections });
    }

    fn add_one(&mut self, step: Step, kind: Kind, detail: impl Into<String>) {
        self.add(step, vec![Correction::new(kind, detail)]);
    }

    fn policy(&mut self, wanted: &Wanted, observed: &Observed) {
        match (&wanted.table, &observed.table) {
            (None, None | Some(ObservedTable::Absent)) | (Some(_), Some(ObservedTable::Same { .. })) => {}
            // It could not be read: put it in place all the same, and bring nothing up unless that works.
            (Some(_), None) => self.add(Step::ReplacePolicy, Vec::new()),
            (Some(_), Some(ObservedTable::Absent)) => {
                self.add_one(Step::ReplacePolicy, Kind::PolicyRestored, "table inet plexd was missing");
            }
            (Some(_), Some(ObservedTable::Differs { what })) => {
                let detail = format!("table inet plexd differed: {what}");
                self.add_one(Step::ReplacePolicy, Kind::PolicyRestored, detail);
            }
            (None, Some(_)) => {
                let detail = "table inet plexd was there with policy disabled";
                self.add_one(Step::RemovePolicy, Kind::PolicyRuleRemoved, detail);
            }
        }
    }

    fn device(&mut self, wanted: &Wanted, observed: Option<&ObservedDevice>) {
        let Some(device) = observed else {
            self.add_one(Step::CreateInterface, Kind::InterfaceRestored, "the interface was missing");
            self.add(Step::Configure, Vec::new());
            return;
        };
        if has_another_key(wanted, observed) {
            return;
        }
        let what = if device.public_key.is_none() {
            Some("no private key")
        } else if device.listen_port != wanted.device.listen_port {
            Some("another listen port")
        } else {
            (device.mark != MARK).then_some("another fwmark")
        };
        if let Some(what) = what {
            self.add_one(Step::Configure, Kind::InterfaceRestored, format!("the interface had {what}"));
        }
    }

    /// One step for key and peers, so that nothing comes between them.
    fn rekey(&mut self, peers: Peers) {
        let mut corrections =
            vec![Correction::new(Kind::InterfaceRestored, "the interface had another private key")];
        corrections.extend(peers.corrections);
        self.add(Step::Rekey(peers.changes), corrections);
    }

    fn link(&mut self, wanted: &Wanted, link: &ObservedLink, (apart, observed): (&Apart, &Observed)) {
        for address in link.addresses.iter().filter(|address| **address != wanted.address) {
            let detail = format!("address {address} was there and should not be");
            self.add_one(Step::RemoveAddress(*address), Kind::AddressRestored, detail);
        }
        if !link.addresses.contains(&wanted.address) {
            let detail = format!("address {} was missing", wanted.address);
            self.add_one(Step::AddAddress(wanted.address), Kind::AddressRestored, detail);
        }
        if !link.up || link.mtu != wanted.mtu {
            let what = if link.up { "had another MTU" } else { "was down" };
            self.add_one(Step::BringUp, Kind::InterfaceRestored, format!("the interface {what}"));
        }
        let routes = apart.main(wanted);
        let departing = self.apart(apart, observed);
        let missing: Vec<IpNet> = routes.difference(&link.routes).copied().collect();
        if !missing.is_empty() {
            let detail = |route| Correction::new(Kind::RouteAdded, format!("route {route} was missing"));
            let corrections = missing.iter().map(detail).collect();
            self.add(Step::AddRoutes(missing), corrections);
        }
        let stale: Vec<IpNet> = link.routes.difference(&routes).copied().collect();
        if !stale.is_empty() {
            let detail = |route| {
                Correction::new(Kind::RouteRemoved, format!("route {route} was there and should not be"))
            };
            let corrections = stale.iter().map(detail).collect();
            self.add(Step::RemoveRoutes(stale), corrections);
        }
        self.depart(departing);
    }
}

/// Returns whether packets pass without policy: there is none, or none that could be read, and the interface is ours and may
/// be up. A table that differs still filters, and keeps doing so until it is replaced.
fn is_exposed(wanted: &Wanted, observed: &Observed) -> bool {
    let unfiltered = matches!(observed.table, None | Some(ObservedTable::Absent));
    let down = match &observed.link {
        Reading::There(link) => !link.up,
        Reading::Absent => true,
        Reading::Unreadable => false,
    };
    wanted.table.is_some() && unfiltered && matches!(observed.device, Reading::There(_)) && !down
}

/// Changes of peers and what they correct.
#[derive(Debug, Default)]
struct Peers {
    changes: Vec<PeerChange>,
    corrections: Vec<Correction>,
    heard: BTreeMap<PublicKey, SystemTime>,
}

impl Peers {
    fn add(&mut self, change: PeerChange, kind: Kind, detail: String) {
        self.changes.push(change);
        self.corrections.push(Correction::new(kind, detail));
    }

    fn remove(&mut self, key: PublicKey) {
        let detail = format!("{key} was in WireGuard and should not be");
        self.add(PeerChange::Remove(key), Kind::PeerRemoved, detail);
    }
}

/// Returns whether there is a device that has a key, and not the wanted one.
fn has_another_key(wanted: &Wanted, observed: Option<&ObservedDevice>) -> bool {
    let there = observed.and_then(|device| device.public_key);
    there.is_some_and(|key| key != wanted.device.private_key.public())
}

fn peers(wanted: &Wanted, observed: Option<&ObservedDevice>, memory: &Memory, now: SystemTime) -> Peers {
    let none = BTreeMap::new();
    let there = observed.map_or(&none, |device| &device.peers);
    let mut gone: BTreeMap<&PublicKey, &ObservedPeer> =
        there.iter().filter(|(key, _)| !wanted.peers.contains_key(key)).collect();
    let keys_by_ips: BTreeMap<&AllowedIps, PublicKey> = gone
        .iter()
        .filter(|(_, peer)| !peer.allowed_ips.is_empty())
        .map(|(key, peer)| (&peer.allowed_ips, **key))
        .collect();

    let mut replaced = Peers::default();
    let mut changed = Peers::default();
    for (key, peer) in &wanted.peers {
        let Some(actual) = there.get(key) else {
            let mut config = peer.config.clone();
            // Whose allowed IPs are those of a peer that goes is that peer with another key: the new one takes the old
            // one's place, change by change, and is where the old one was heard.
            let predecessor =
                keys_by_ips.get(&config.allowed_ips).and_then(|key| Some((key, gone.remove(key)?)));
            let into = match predecessor {
                Some((old, there)) => {
                    if memory.is_fresh(old, there, now)
                        && memory.endpoints.get(old).is_none_or(|at| Some(*at) == config.endpoint)
                    {
                        config.endpoint = there.endpoint.or(config.endpoint);
                        replaced.heard.extend(memory.heard(old, there).map(|heard| (*key, heard)));
                    }
                    replaced.remove(*old);
                    &mut replaced
                }
                None => &mut changed,
            };
            let detail = format!("{} was missing from WireGuard config", peer.id);
            into.add(PeerChange::Set(config), Kind::PeerAdded, detail);
            continue;
        };
        let endpoint = endpoint_to_set(peer, actual, memory, now);
        if let Some(difference) = difference(peer, actual, endpoint) {
            let config = PeerConfig { endpoint, ..peer.config.clone() };
            let detail = format!("{} had another {difference}", peer.id);
            changed.add(PeerChange::Set(config), Kind::PeerUpdated, detail);
        }
    }
    let mut all = Peers::default();
    for key in gone.keys() {
        all.remove(**key);
    }
    for peers in [replaced, changed] {
        all.changes.extend(peers.changes);
        all.corrections.extend(peers.corrections);
        all.heard.extend(peers.heard);
    }
    all
}

/// Returns the endpoint to set, if one is to be set: the control plane changed it, or the peer cannot be heard and it is
/// not where it should be.
fn endpoint_to_set(
    wanted: &WantedPeer,
    actual: &ObservedPeer,
    memory: &Memory,
    now: SystemTime,
) -> Option<SocketAddr> {
    let endpoint = wanted.config.endpoint?;
    if actual.endpoint == Some(endpoint) {
        return None;
    }
    let key = &wanted.config.public_key;
    let changed_its_mind = memory.endpoints.get(key).is_some_and(|last| *last != endpoint);
    (changed_its_mind || !memory.is_fresh(key, actual, now)).then_some(endpoint)
}

/// Returns whether a handshake is fresh.
fn is_fresh(handshake: Option<SystemTime>, now: SystemTime) -> bool {
    // A handshake in the future is one of a clock that was set back since: it happened, so it is fresh.
    handshake.is_some_and(|at| now.duration_since(at).map_or(true, |age| age < FRESH))
}

/// Returns whether the peer is there and its last handshake is fresh.
pub(super) fn is_heard(observed: &Observed, peer: &PublicKey, now: SystemTime) -> bool {
    let Reading::There(device) = &observed.device else { return false };
    device.peers.get(peer).is_some_and(|peer| is_fresh(peer.last_handshake, now))
}

fn difference(
    wanted: &WantedPeer,
    actual: &ObservedPeer,
    endpoint: Option<SocketAddr>,
) -> Option<&'static str> {
    let config = &wanted.config;
    if config.preshared_key != actual.preshared_key {
        return Some("preshared key");
    }
    if config.allowed_ips != actual.allowed_ips {
        return Some("set of allowed IPs");
    }
    if config.persistent_keepalive != actual.persistent_keepalive {
        return Some("keepalive");
    }
    endpoint.map(|_| "endpoint")
}

#[cfg(test)]
pub(super) mod tests;
