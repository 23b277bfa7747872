//! Rules to table. Every packet of the mesh interface goes through chain `judge`, then the chain of its family: a list of
//! lookups, each in a hash map of exact matches on the connection's original tuple, cut down to one shape (so many bits
//! of either address, protocol, port). Rules of one shape share one lookup however many they are; all a packet pays for is
//! the number of shapes. Hash maps fill in linear time on every kernel, interval sets do not (6.1).
//!
//! First match wins: a rule joins an earlier lookup only if no lookup in between holds an overlapping rule of the other
//! action; otherwise it starts a new lookup.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::evaluate::meet;
use super::table::{Chain, Detail, Entry, Expr, Family, Hook, Key, Map, Part, Shape, Table, Verdict};
use super::{Action, Context, PolicySet, Service};

/// Most rules of a policy set (contract, section 5).
pub const MAX_RULES: usize = 20_000;
/// Most entries of a compiled table (contract, section 5).
pub const MAX_ENTRIES: usize = 200_000;

/// Most keys tried, those that an earlier rule decided among them, with the networks they are made of: bounds the time that
/// a set takes however often its rules repeat each other.
const MAX_TRIED: usize = 10 * MAX_ENTRIES;

/// Comparisons spent on finding the earliest lookup for a rule; beyond, rules only ever join the last lookup.
const EFFORT: usize = 20_000_000;

/// The policy set cannot be compiled; the old one stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More than [`MAX_RULES`].
    #[error(
        "the policy set has {rules} rules, more than {MAX_RULES}: merge rules, or use networks for addresses"
    )]
    TooManyRules {
        /// How many there are.
        rules: usize,
    },
    /// More than [`MAX_ENTRIES`], or ten times as many counting those that earlier rules decide already.
    #[error(
        "the policy set needs more than {MAX_ENTRIES} firewall entries, or repeats too many, from rule {rule} of \
         policy {policy:?} on: merge rules, or use networks instead of nodes with many addresses"
    )]
    TooManyEntries {
        /// The policy's id.
        policy: String,
        /// The rule's position in it, from 1.
        rule: usize,
    },
    /// The interface cannot be one.
    #[error("{0:?} cannot be the name of a network interface (1 to 15 bytes)")]
    Interface(String),
}

/// Compiles a policy set for this node; `None` when policy is disabled, and there is to be no table.
///
/// # Errors
/// The set is too large, or the interface name cannot be one: nothing of the set may be applied.
pub fn compile(policies: &PolicySet, context: &Context) -> Result<Option<Table>, CompileError> {
    if !context.enabled {
        return Ok(None);
    }
    if !(1..=15).contains(&context.interface.len()) {
        return Err(CompileError::Interface(context.interface.clone()));
    }
    let rules = policies.rules().count();
    if rules > MAX_RULES {
        return Err(CompileError::TooManyRules { rules });
    }
    let mut lookups = Lookups::default();
    let (mut position, mut tried) = (0, 0_usize);
    for policy in &policies.policies {
        for (number, rule) in policy.rules.iter().enumerate() {
            let (sources, destinations) = (context.networks(&rule.src), context.networks(&rule.dst));
            let keys = sources.len().saturating_mul(destinations.len());
            tried = tried.saturating_add(keys).saturating_add(sources.len() + destinations.len());
            let fits = keys <= MAX_ENTRIES && tried <= MAX_TRIED;
            if fits {
                lookups.add(&sources, &destinations, rule.service, rule.action, position);
            }
            if !fits || lookups.entries > MAX_ENTRIES {
                return Err(CompileError::TooManyEntries { policy: policy.id.clone(), rule: number + 1 });
            }
            position += 1;
        }
    }
    Ok(Some(lookups.into_table(context)))
}

/// The lookups so far, of both families, in order.
#[derive(Default)]
struct Lookups {
    groups: [Vec<Group>; 2],
    entries: usize,
    spent: usize,
}

/// Rules of one shape.
struct Group {
    shape: Shape,
    entries: BTreeMap<Key, (Action, usize)>,
    allows: usize,
    denies: usize,
}

impl Lookups {
    fn add(
        &mut self,
        sources: &[IpNet],
        destinations: &[IpNet],
        service: Service,
        action: Action,
        rule: usize,
    ) {
        for &source in sources {
            for &destination in destinations {
                let key = Key { source, destination, service };
                if let Some(shape) = shape_of(&key) {
                    self.insert(key, shape, action, rule);
                }
            }
        }
    }

    fn insert(&mut self, key: Key, shape: Shape, action: Action, rule: usize) {
        let groups = &mut self.groups[shape.family as usize];
        let mut home = None;
        for (at, group) in groups.iter().enumerate().rev() {
            if group.shape == shape {
                home = Some(at);
                break;
            }
            if self.spent > EFFORT || group.conflicts(&key, shape, action, &mut self.spent) {
                break;
            }
        }
        let home = home.unwrap_or_else(|| {
            groups.push(Group { shape, entries: BTreeMap::new(), allows: 0, denies: 0 });
            groups.len() - 1
        });
        self.entries += usize::from(groups[home].insert(key, action, rule));
    }

    fn into_table(self, context: &Context) -> Table {
        let mut table = skeleton(context);
        let deny = || Verdict::Goto(DENY.to_owned());
        let verdict = |action| if action == Action::Allow { Verdict::Accept } else { deny() };
        let mut chains = Vec::new();
        for (family, groups) in [Family::V4, Family::V6].into_iter().zip(self.groups) {
            let mut rules = Vec::new();
            let mut seen = BTreeMap::new();
            for group in groups {
                // A shape that looks at nothing has one entry, which matches all that is left.
                if let (true, Some((action, rule))) = (group.shape.is_empty(), group.entries.values().next())
                {
                    rules.push(vec![Expr::CountRule(*rule), Expr::Verdict(verdict(*action))]);
                    continue;
                }
                let occurrence = seen.entry(group.shape).and_modify(|n| *n += 1).or_insert(1);
                let name = map_name(group.shape, *occurrence);
                rules.push(vec![Expr::Lookup(vec![table.maps.len()])]);
                let entry = |(key, (action, rule))| (key, Entry { verdict: verdict(action), rule });
                let entries = group.entries.into_iter().map(entry).collect();
                table.maps.push(Map { name, shape: group.shape, entries });
            }
            chains.push(Chain { name: family_chain(family).to_owned(), hook: None, rules });
        }
        // Behind the chains they go to, before those that come to them.
        table.chains.splice(1..1, chains);
        table
    }
}

impl Group {
    /// Returns whether it is new: a key that is there was decided by an earlier rule.
    fn insert(&mut self, key: Key, action: Action, rule: usize) -> bool {
        let std::collections::btree_map::Entry::Vacant(slot) = self.entries.entry(key) else { return false };
        slot.insert((action, rule));
        match action {
            Action::Allow => self.allows += 1,
            Action::Deny => self.denies += 1,
        }
        true
    }

    /// Returns whether an entry of the other action overlaps the key, so that the key must not go before it.
    fn conflicts(&self, key: &Key, shape: Shape, action: Action, spent: &mut usize) -> bool {
        *spent += 1;
        let others = if action == Action::Allow { self.denies } else { self.allows };
        if others == 0 {
            return false;
        }
        if self.shape.is_coarser_than(shape) {
            return self.entries.get(&key.cut(self.shape)).is_some_and(|(other, _)| *other != action);
        }
        *spent += self.entries.len();
        self.entries.iter().any(|(other, (decided, _))| *decided != action && other.overlaps(key))
    }
}

fn shape_of(key: &Key) -> Option<Shape> {
    let family = Family::of(&key.source);
    (family == Family::of(&key.destination)).then(|| Shape {
        family,
        source: Part::Bits(key.source.prefix_len()),
        destination: Part::Bits(key.destination.prefix_len()),
        service: Detail::of(key.service),
    })
}

fn bits(part: Part) -> u8 {
    match part {
        Part::Bits(bits) => bits,
        Part::Class(_) => 0,
    }
}

impl Shape {
    fn is_empty(self) -> bool {
        self.source.is_nothing() && self.destination.is_nothing() && self.service == Detail::Nothing
    }

    fn is_coarser_than(self, other: Self) -> bool {
        self.source <= other.source && self.destination <= other.destination && self.service <= other.service
    }
}

impl Key {
    /// Cuts the key down to a coarser shape.
    fn cut(&self, shape: Shape) -> Self {
        let cut = |net: IpNet, part| IpNet::new(net.addr(), bits(part)).map_or(net, |net| net.trunc());
        Self {
            source: cut(self.source, shape.source),
            destination: cut(self.destination, shape.destination),
            service: match (shape.service, self.service) {
                (Detail::Nothing, _) | (_, Service::Any) => Service::Any,
                (Detail::Protocol, Service::Tcp(_)) => Service::Tcp(None),
                (Detail::Protocol, Service::Udp(_)) => Service::Udp(None),
                (Detail::Port, service) => service,
            },
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let ports = |a: Option<_>, b: Option<_>| a.is_none() || b.is_none() || a == b;
        let services = match (self.service, other.service) {
            (Service::Any, _) | (_, Service::Any) => true,
            (Service::Tcp(a), Service::Tcp(b)) | (Service::Udp(a), Service::Udp(b)) => ports(a, b),
            (Service::Tcp(_), Service::Udp(_)) | (Service::Udp(_), Service::Tcp(_)) => false,
        };
        services && meet(&self.source, &other.source) && meet(&self.destination, &other.destination)
    }
}

/// Chain that counts and drops.
const DENY: &str = "deny";
/// Chain that every packet of the mesh interface goes to.
const JUDGE: &str = "judge";
/// Counter of what a rule or the default denied.
const DENIED: &str = "denied";
/// Counter of what belongs to no connection that was seen to open.
const INVALID: &str = "invalid";
/// Prefix of the log (contract, section 5).
const LOG_PREFIX: &str = "plexd-denied ";

fn family_chain(family: Family) -> &'static str {
    match family {
        Family::V4 => "rules4",
        Family::V6 => "rules6",
    }
}

/// Names a map by its shape, so that it keeps its name, and its counters, as long as its shape is used.
fn map_name(shape: Shape, occurrence: usize) -> String {
    let family = match shape.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let service = match shape.service {
        Detail::Nothing => "any",
        Detail::Protocol => "proto",
        Detail::Port => "port",
    };
    format!("v{family}_s{}_d{}_{service}_{occurrence}", bits(shape.source), bits(shape.destination))
}

/// Returns all but the rules: the hooks, the default, the end of what is denied.
fn skeleton(context: &Context) -> Table {
    let regular = |name: &str, rules| Chain { name: name.to_owned(), hook: None, rules };
    let base = |name: &str, hook, rules| Chain { name: name.to_owned(), hook: Some(hook), rules };
    let to_judge = || Expr::Verdict(Verdict::Goto(JUDGE.to_owned()));
    let incoming = || vec![Expr::InputInterface(context.interface.clone()), to_judge()];
    let outgoing = || vec![Expr::OutputInterface(context.interface.clone()), to_judge()];

    let mut deny = Vec::new();
    if context.log_denied {
        let limit = Expr::Limit { per_second: 5, burst: 20 };
        deny.push(vec![limit, Expr::Log { prefix: LOG_PREFIX.to_owned() }]);
    }
    deny.push(vec![Expr::Count(DENIED.to_owned()), Expr::Verdict(Verdict::Drop)]);

    let of_family = |family: Family| {
        vec![Expr::Family(family), Expr::Verdict(Verdict::Jump(family_chain(family).to_owned()))]
    };
    let default = match context.default {
        Action::Allow => Verdict::Accept,
        Action::Deny => Verdict::Goto(DENY.to_owned()),
    };
    let invalid = |what| vec![what, Expr::Count(INVALID.to_owned()), Expr::Verdict(Verdict::Drop)];
    let judge = vec![
        invalid(Expr::Untracked),
        // A connection that was opened while there was no table could be taken for one in the other direction.
        invalid(Expr::MidStream),
        of_family(Family::V4),
        of_family(Family::V6),
        vec![Expr::Verdict(default)],
    ];
    Table {
        counters: vec![DENIED.to_owned(), INVALID.to_owned()],
        classes: Vec::new(),
        maps: Vec::new(),
        chains: vec![
            regular(DENY, deny),
            regular(JUDGE, judge),
            base("input", Hook::Input, vec![incoming()]),
            base("forward", Hook::Forward, vec![incoming(), outgoing()]),
            base("output", Hook::Output, vec![outgoing()]),
        ],
    }
}
