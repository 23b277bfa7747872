//! Rules by what they match: networks of source and destination, and service. Finds what covers a connection, or a whole
//! network of them, in as many steps as there are prefix lengths, however many rules there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::table::{Family, Key};
use super::{Context, PolicySet, Rule, Service};

/// Keys, each with a value: the one it was given first.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_source: HashMap<IpNet, Destinations>,
    /// Prefix lengths of the sources, by family.
    lengths: [BTreeSet<u8>; 2],
    /// Steps taken so far.
    pub(super) spent: usize,
}

/// The keys of one source.
#[derive(Debug, Default)]
struct Destinations {
    services: HashMap<IpNet, BTreeMap<Service, usize>>,
    lengths: BTreeSet<u8>,
}

impl Index {
    /// Adds a key; one that is there keeps its value.
    pub(super) fn insert(&mut self, key: Key, value: usize) {
        self.lengths[Family::of(&key.source) as usize].insert(key.source.prefix_len());
        let destinations = self.by_source.entry(key.source).or_default();
        destinations.lengths.insert(key.destination.prefix_len());
        let services = destinations.services.entry(key.destination).or_default();
        services.entry(key.service).or_insert(value);
    }

    /// Returns the lowest value of a key that covers all of this one.
    pub(super) fn lowest_covering(&mut self, key: &Key) -> Option<usize> {
        let mut lowest: Option<usize> = None;
        self.each_around(&key.source, &key.destination, |services| {
            let values =
                covering(key.service).into_iter().flatten().filter_map(|service| services.get(&service));
            lowest = lowest.into_iter().chain(values.copied()).min();
        });
        lowest
    }

    /// Returns the values of the keys that cover these two addresses, each with its service, in the order of the values.
    pub(super) fn matching(&mut self, source: IpAddr, destination: IpAddr) -> Vec<(usize, Service)> {
        let mut found = Vec::new();
        self.each_around(&source.into(), &destination.into(), |services| {
            found.extend(services.iter().map(|(service, value)| (*value, *service)));
        });
        found.sort_unstable();
        found
    }

    fn each_around(
        &mut self,
        source: &IpNet,
        destination: &IpNet,
        mut visit: impl FnMut(&BTreeMap<Service, usize>),
    ) {
        for bits in self.lengths[Family::of(source) as usize].range(..=source.prefix_len()) {
            self.spent += 1;
            let Some(destinations) = self.by_source.get(&cut(source, *bits)) else { continue };
            for bits in destinations.lengths.range(..=destination.prefix_len()) {
                self.spent += 1;
                if let Some(services) = destinations.services.get(&cut(destination, *bits)) {
                    visit(services);
                }
            }
        }
    }
}

fn cut(net: &IpNet, bits: u8) -> IpNet {
    IpNet::new(net.addr(), bits).map_or(*net, |net| net.trunc())
}

/// Returns the services that cover this one, itself among them.
fn covering(service: Service) -> [Option<Service>; 3] {
    let protocol = match service {
        Service::Any => None,
        Service::Tcp(_) => Some(Service::Tcp(None)),
        Service::Udp(_) => Some(Service::Udp(None)),
    };
    [
        Some(Service::Any),
        protocol,
        Some(service).filter(|service| Some(*service) != protocol && *service != Service::Any),
    ]
}

/// Returns what a rule matches, as keys; none of them overlap.
pub(super) fn keys(rule: &Rule, context: &Context) -> Vec<Key> {
    let (sources, destinations) = (context.networks(&rule.src), context.networks(&rule.dst));
    let mut keys = Vec::new();
    for &source in &sources {
        let of_family = destinations.iter().filter(|net| Family::of(net) == Family::of(&source));
        keys.extend(of_family.map(|&destination| Key { source, destination, service: rule.service }));
    }
    keys
}

/// All rules of a set, by their positions.
pub(super) fn of_rules(policies: &PolicySet, context: &Context) -> Index {
    let mut index = Index::default();
    for (position, rule) in policies.rules().enumerate() {
        for key in keys(rule, context) {
            index.insert(key, position);
        }
    }
    index
}
