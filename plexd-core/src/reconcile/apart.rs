//! Which routes are kept apart from the main table, so that the tunnel never carries its own packets or those of
//! plexd-core, and what that takes: routes in plexd's own tables, and rules. Pure.
//!
//! Apart are routes that can only be meant for the Internet, shorter than any private network, and those in which there
//! is an address that packets of the tunnel or of plexd-core go to. The others cannot capture any.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::drift::{Correction, Kind};
use super::ownership::claims;
use super::plan::{Observed, Plan, Reading, Step};
use super::wanted::Wanted;
use crate::kernel::rules::{ObservedRules, OwnTable, Rule};
use crate::kernel::{ObservedDevice, ObservedLink, PeerChange};
use crate::state::Peer;
use crate::types::{Endpoint, PublicKey};

/// The shortest prefix of a private network: `10.0.0.0/8`.
const PRIVATE_V4: u8 = 8;

/// The same of IPv6: `fc00::/7`.
const PRIVATE_V6: u8 = 7;

/// Addresses for which the way out is looked up: they share one, or a few.
const TOWARDS: usize = 4;

/// The routes that are kept apart, and where what must not be captured goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Apart {
    /// The routes.
    pub(super) routes: BTreeSet<IpNet>,
    /// All addresses that have to be reached outside.
    pub(super) reached: BTreeSet<IpAddr>,
    /// Some of those that are within the routes.
    pub(super) towards: Vec<IpAddr>,
}

impl Apart {
    /// Returns which of the wanted routes are kept apart, where peers are reached at `heard`.
    pub(super) fn of(wanted: &Wanted, heard: BTreeSet<IpAddr>) -> Self {
        let lengths: BTreeSet<OwnTable> = wanted.routes.iter().map(OwnTable::of).collect();
        let mut apart = Self::default();
        apart.routes.extend(wanted.routes.iter().filter(|net| is_for_the_internet(net)));
        apart.reached = outside(wanted, heard);
        for address in apart.reached.iter().copied() {
            let family = OwnTable::of(&address.into()).family;
            let around = lengths.iter().filter(|table| table.family == family).filter_map(|table| {
                let net = IpNet::new(address, table.length).ok()?.trunc();
                wanted.routes.get(&net)
            });
            let around: Vec<IpNet> = around.copied().collect();
            if !around.is_empty() && apart.towards.len() < TOWARDS {
                apart.towards.push(address);
            }
            apart.routes.extend(around);
        }
        apart
    }

    /// Returns the tables that the routes belong in.
    pub(super) fn tables(&self) -> BTreeSet<OwnTable> {
        self.routes.iter().map(OwnTable::of).collect()
    }

    /// Returns those of the wanted routes that belong in the main table.
    pub(super) fn main<'a>(&self, wanted: &'a Wanted) -> Cow<'a, BTreeSet<IpNet>> {
        if self.routes.is_empty() {
            return Cow::Borrowed(&wanted.routes);
        }
        Cow::Owned(wanted.routes.difference(&self.routes).copied().collect())
    }
}

fn is_for_the_internet(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() < PRIVATE_V4,
        IpNet::V6(net) => net.prefix_len() < PRIVATE_V6,
    }
}

/// Returns whether a change of these peers (as they were, or as they are to be) can concern what is kept apart: by their
/// networks, or by where they are reached. Costs the same however many others there are.
pub(super) fn concerns(peers: &[&Peer], wanted: &Wanted) -> bool {
    let at = |peer: &&Peer| match peer.endpoint {
        Some(Endpoint::Address(at)) => Some(at.ip().to_canonical()),
        _ => None,
    };
    let moving: Vec<IpAddr> = peers.iter().filter_map(at).collect();
    let mut nets = peers.iter().flat_map(|peer| claims(peer));
    moving.iter().any(|address| is_within(*address, &wanted.routes))
        || nets.any(|net| {
            is_for_the_internet(&net)
                || wanted.reached.range(net.network()..=net.broadcast()).next().is_some()
                || moving.iter().any(|address| net.contains(address))
        })
}

fn is_within(address: IpAddr, routes: &BTreeSet<IpNet>) -> bool {
    let longest = IpNet::from(address).prefix_len();
    (0..=longest)
        .any(|length| IpNet::new(address, length).is_ok_and(|around| routes.contains(&around.trunc())))
}

/// Addresses to which packets of the tunnel, or of plexd-core, go.
fn outside(wanted: &Wanted, heard: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let wished = wanted.peers.values().filter_map(|peer| Some(peer.config.endpoint?.ip()));
    let all = heard.into_iter().chain(wished).chain(wanted.outside.iter().copied());
    all.map(|address| address.to_canonical()).collect()
}

/// Returns where peers are reached once `changes` are made.
pub(super) fn heard(device: Option<&ObservedDevice>, changes: &[PeerChange]) -> BTreeSet<IpAddr> {
    let mut moved: BTreeMap<&PublicKey, Option<SocketAddr>> = BTreeMap::new();
    let there = |key| device.and_then(|device| device.peers.get(key)?.endpoint);
    for change in changes {
        match change {
            PeerChange::Remove(key) => moved.insert(key, None),
            PeerChange::Set(config) => {
                let key = &config.public_key;
                let before = moved.get(key).copied().unwrap_or_else(|| there(key));
                moved.insert(key, config.endpoint.or(before))
            }
        };
    }
    let peers = device.into_iter().flat_map(|device| &device.peers);
    let others = peers.filter(|(key, _)| !moved.contains_key(key)).map(|(_, peer)| peer.endpoint);
    others.chain(moved.values().copied()).filter_map(|endpoint| Some(endpoint?.ip())).collect()
}

impl Plan {
    /// Plans rules and the routes apart, but for the tables that somebody else uses. What adds comes before the main table's
    /// routes change, what removes after it: a route that moves is always in one of the two.
    pub(super) fn apart(&mut self, apart: &Apart, observed: &Observed) -> Departing {
        let new = ObservedLink::default();
        let (rules, link) = match (&observed.rules, &observed.link) {
            (Reading::There(rules), Reading::There(link)) => (rules, link),
            (Reading::There(rules), Reading::Absent) => (rules, &new),
            // What cannot be read is left as it is.
            _ => return Departing::default(),
        };
        self.blocked = blocked(apart, rules);
        let free = |net: &&IpNet| !rules.taken.contains_key(&OwnTable::of(net));
        let routes: BTreeSet<IpNet> = apart.routes.iter().filter(free).copied().collect();
        let tables: BTreeSet<OwnTable> = routes.iter().map(OwnTable::of).collect();
        let wanted: BTreeSet<Rule> = tables.iter().flat_map(|table| table.rules(rules.uids)).collect();

        let missing: Vec<Rule> = wanted.difference(&rules.rules).cloned().collect();
        if !missing.is_empty() {
            let detail = |rule| Correction::new(Kind::RouteAdded, format!("routing rule {rule} was missing"));
            let corrections = missing.iter().map(detail).collect();
            self.add(Step::AddRules(missing), corrections);
        }
        let missing: Vec<IpNet> = routes.difference(&link.apart).copied().collect();
        if !missing.is_empty() {
            let detail = |route| Correction::new(Kind::RouteAdded, format!("route {route} was missing"));
            let corrections = missing.iter().map(detail).collect();
            self.add(Step::AddApart(missing), corrections);
        }
        Departing {
            routes: link.apart.difference(&routes).copied().collect(),
            rules: rules.rules.difference(&wanted).cloned().collect(),
        }
    }

    /// Plans that what is not wanted any more goes: rules first, then what they lead to.
    pub(super) fn depart(&mut self, departing: Departing) {
        let Departing { routes, rules } = departing;
        if !rules.is_empty() {
            let detail = |rule| {
                Correction::new(
                    Kind::RouteRemoved,
                    format!("routing rule {rule} was there and should not be"),
                )
            };
            let corrections = rules.iter().map(detail).collect();
            self.add(Step::RemoveRules(rules), corrections);
        }
        if !routes.is_empty() {
            let detail = |route| {
                Correction::new(Kind::RouteRemoved, format!("route {route} was there and should not be"))
            };
            let corrections = routes.iter().map(detail).collect();
            self.add(Step::RemoveApart(routes), corrections);
        }
    }
}

/// What is there and not wanted.
#[derive(Debug, Default)]
pub(super) struct Departing {
    routes: Vec<IpNet>,
    rules: Vec<Rule>,
}

/// Returns what stands in the way of routes that are kept apart, for people.
fn blocked(apart: &Apart, rules: &ObservedRules) -> Vec<String> {
    let routes_of = |table: &OwnTable| {
        let of = apart.routes.iter().filter(|net| OwnTable::of(net) == *table);
        of.take(3).map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let taken = rules.taken.iter().map(|(table, why)| {
        format!("{} not routed: {why}; remove that one, or the allowed IP", routes_of(table))
    });
    let strict = rules.strict.iter().map(|interface| {
        format!(
            "{interface} drops the answers that the tunnel and plexd-core get from outside (rp_filter is 1) while an \
             allowed IP covers where they come from; set net.ipv4.conf.{interface}.rp_filter=2"
        )
    });
    taken.chain(strict).collect()
}

#[cfg(test)]
mod tests;
