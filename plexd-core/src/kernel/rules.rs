//! Routing tables of plexd's own, and the rules that lead to them: for routes that would capture the packets of the tunnel
//! itself, or of plexd-core. Each prefix length has a table, asked right after the longer routes of the main table, so
//! that the longest prefix wins as ever; and it is asked for no packet that bears [`MARK`] and for none of plexd-core's own
//! user, in whichever order rules come and go.
//!
//! ```text
//! 11712: from all lookup main suppress_prefixlength 0 proto 112
//! 11713: from all fwmark 0/0x1000 lookup 11200 uidrange 0-993 proto 112
//! 11714: from all fwmark 0/0x1000 lookup 11200 uidrange 995-4294967294 proto 112
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RuleUidRange};
use rtnetlink::{IpVersion, packet_route::AddressFamily};

use super::network::RtNetlink;
use super::route::{self, ROUTE_PROTOCOL};
use super::rtnl::{self, into_io, within};

/// The bit of a packet's mark that keeps it out of plexd's own tables; WireGuard's packets bear it always, so that nothing
/// has to happen to the tunnel when such a table comes or goes. Bit 12, which none of the software in the registry of
/// packet marks (<https://github.com/fwmark/registry>) uses.
pub const MARK: u32 = 0x1000;

/// Number of the table for prefix length 0, in front of all rules' priorities.
pub const FIRST: u32 = 11_200;

/// Priorities between one prefix length and the next.
const STEP: u32 = 4;

/// Longest prefix length there is.
const LONGEST: u32 = 128;

/// Settings of the kernel per interface.
const IPV4_CONF: &str = "/proc/sys/net/ipv4/conf";

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(super) fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A routing table of plexd's own: that of the routes of one prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnTable {
    /// Of these addresses.
    pub family: Family,
    /// With this prefix length.
    pub length: u8,
}

impl OwnTable {
    /// Returns the table that a route to `net` belongs in.
    pub fn of(net: &IpNet) -> Self {
        let family = if net.addr().is_ipv4() { Family::V4 } else { Family::V6 };
        Self { family, length: net.prefix_len() }
    }

    /// Returns the table's number.
    pub fn number(self) -> u32 {
        FIRST + u32::from(self.length)
    }

    /// Returns the priority of the first of its rules.
    fn priority(self) -> u32 {
        FIRST + (LONGEST - u32::from(self.length)) * STEP
    }

    /// Returns the rules that lead to it.
    pub fn rules(self, uids: Uids) -> Vec<Rule> {
        let rule = |place, table| Rule {
            priority: self.priority() + place,
            family: self.family,
            table,
            suppress: None,
            mark: None,
            uids: None,
            is_plain: true,
        };
        let main = u32::from(RouteHeader::RT_TABLE_MAIN);
        let mut rules = vec![Rule { suppress: Some(u32::from(self.length)), ..rule(0, main) }];
        let others = [(1, uids.own.checked_sub(1).map(|last| (0, last))), (2, uids.above())];
        rules.extend(others.into_iter().filter_map(|(place, uids)| {
            Some(Rule { mark: Some((0, MARK)), uids: Some(uids?), ..rule(place, self.number()) })
        }));
        rules
    }
}

/// A routing rule of plexd's own, as wanted or as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its priority: of a lower number, asked first.
    pub priority: u32,
    /// Of these addresses.
    pub family: Family,
    /// Number of the table it leads to.
    pub table: u32,
    /// Whether routes of this prefix length or a shorter one do not count.
    pub suppress: Option<u32>,
    /// What the packet's mark has to be in the bits of a mask.
    pub mark: Option<(u32, u32)>,
    /// The first and the last user whose packets it is for.
    pub uids: Option<(u32, u32)>,
    /// Whether it has nothing else that plexd sets in none of its rules.
    pub is_plain: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.priority, self.family)
    }
}

/// User ids, as the rules leave one of them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uids {
    /// Of this process, whose sockets are to stay outside.
    pub own: u32,
    /// The last there is.
    pub last: u32,
}

impl Uids {
    /// The last one where all ids are there: the one after it means none.
    pub const LAST: u32 = u32::MAX - 1;

    /// Returns those of this process. In a container some ids may not be there, and the kernel takes no rule with them.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn of_process() -> io::Result<Self> {
        let map = std::fs::read_to_string("/proc/self/uid_map")?;
        Ok(Self { own: nix::unistd::geteuid().as_raw(), last: last_uid(&map) })
    }

    fn above(self) -> Option<(u32, u32)> {
        (self.own < self.last).then(|| (self.own + 1, self.last))
    }
}

/// The last id of a map of user ids (`user_namespaces(7)`: lines of first id, first id outside, count).
fn last_uid(map: &str) -> u32 {
    let last = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(count))) = (numbers.next(), numbers.nth(1)) else { return None };
        Some(first.saturating_add(count.saturating_sub(1)))
    };
    map.lines().filter_map(last).max().unwrap_or(Uids::LAST).min(Uids::LAST)
}

/// The rules as they are, and what stands in their way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRules {
    /// Rules with plexd's protocol and priorities.
    pub rules: BTreeSet<Rule>,
    /// Tables that cannot be had, and why: somebody else uses their number, or the priority of one of their rules.
    pub taken: BTreeMap<OwnTable, String>,
    /// Whom the rules are to leave out.
    pub uids: Uids,
    /// Interfaces towards the given addresses that would not take answers from there while routes lead elsewhere.
    pub strict: BTreeSet<String>,
}

impl RtNetlink {
    /// Reads plexd's rules, and whether `tables` can be had for routes through `interface`.
    pub(super) async fn read_rules(
        &self,
        interface: &str,
        tables: &BTreeSet<OwnTable>,
        towards: &[IpAddr],
    ) -> io::Result<ObservedRules> {
        let index = self.rtnl.link(interface).await?.map(|link| link.index);
        let (mut rules, mut foreign) = (BTreeSet::new(), BTreeSet::new());
        for family in [Family::V4, Family::V6] {
            for message in self.dump_rules(family).await? {
                let rule = rule_from(&message, family);
                if is_ours(&message) {
                    rules.insert(rule);
                } else {
                    foreign.insert((family, rule.priority));
                }
            }
        }
        let mut taken = BTreeMap::new();
        for table in tables {
            let mut priorities = table.priority()..table.priority() + STEP;
            if let Some(priority) = priorities.find(|priority| foreign.contains(&(table.family, *priority))) {
                let why = format!(
                    "the priority of {} routing rule {priority} is used by somebody else's rule",
                    table.family
                );
                taken.insert(*table, why);
            } else if let Some(route) = self.foreign_route(*table, index).await? {
                let number = table.number();
                let why =
                    format!("{} routing table {number} has somebody else's route to {route}", table.family);
                taken.insert(*table, why);
            }
        }
        Ok(ObservedRules { rules, taken, uids: self.uids, strict: self.strict(towards).await? })
    }

    async fn dump_rules(&self, family: Family) -> io::Result<Vec<RuleMessage>> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let request = self.rtnl.handle()?.rule().get(version);
        match within(async { request.execute().try_collect::<Vec<_>>().await.map_err(into_io) }).await {
            // A kernel without the family answers with the rules of all families it has.
            Ok(mut messages) => {
                messages.retain(|message| message.header.family == family.number());
                Ok(messages)
            }
            // A kernel without rules, or without the family.
            Err(error) if rtnl::is(&error, Errno::EOPNOTSUPP) || rtnl::is(&error, Errno::EAFNOSUPPORT) => {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Returns where a route of `table` leads that is not one of plexd's, if there is any.
    async fn foreign_route(&self, table: OwnTable, index: Option<u32>) -> io::Result<Option<IpNet>> {
        let routes = self.table(table.family.number(), table.number()).await?;
        Ok(routes.iter().find_map(|route| {
            let destination = route::destination_of(route)?;
            let is_own = index.is_some_and(|index| route::is_own(route, index));
            (!is_own || OwnTable::of(&destination) != table).then_some(destination)
        }))
    }

    /// Returns the interfaces by which marked packets leave for `towards` that judge by the way back (`rp_filter` 1).
    async fn strict(&self, towards: &[IpAddr]) -> io::Result<BTreeSet<String>> {
        let mut strict = BTreeSet::new();
        for address in towards.iter().filter(|address| address.is_ipv4()) {
            let Some(interface) = self.way_out(*address).await? else { continue };
            let mode = |of: &str| {
                let text = std::fs::read_to_string(Path::new(IPV4_CONF).join(of).join("rp_filter"));
                text.ok().and_then(|text| text.trim().parse::<u32>().ok())
            };
            if mode("all").max(mode(&interface)) == Some(1) {
                strict.insert(interface);
            }
        }
        Ok(strict)
    }

    /// Returns the interface by which a marked packet leaves for `address`; `None` if it cannot.
    async fn way_out(&self, address: IpAddr) -> io::Result<Option<String>> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        question.header.destination_prefix_length = 32;
        let IpAddr::V4(address) = address else { return Ok(None) };
        question.attributes =
            vec![RouteAttribute::Destination(RouteAddress::Inet(address)), RouteAttribute::Mark(MARK)];
        let request = self.rtnl.handle()?.route().get(question);
        let answers =
            within(async { request.execute().try_collect::<Vec<_>>().await.map_err(into_io) }).await;
        // The kernel's answers: no route, or one that forbids.
        let Ok(answers) = answers else { return Ok(None) };
        let Some(index) = answers.first().and_then(route::interface_of) else { return Ok(None) };
        Ok(self.rtnl.link_by_index(index).await?.map(|link| link.name))
    }

    /// Adds a rule; one that is there is no error.
    pub(super) async fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        let mut request = self.rtnl.handle()?.rule().add();
        *request.message_mut() = message_of(rule);
        match within(async { request.execute().await.map_err(into_io) }).await {
            Err(error) if rtnl::is(&error, Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Removes a rule of plexd's; one that is not there is no error.
    pub(super) async fn remove_rule(&self, rule: &Rule) -> io::Result<()> {
        let request = self.rtnl.handle()?.rule().del(message_of(rule));
        match within(async { request.execute().await.map_err(into_io) }).await {
            Err(error) if rtnl::is(&error, Errno::ENOENT) => Ok(()),
            result => result,
        }
    }
}

/// Whether a rule of this kind is plexd's, or in the place of one.
pub(super) fn concerns(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)))
        || is_place(priority_of(message))
}

fn is_ours(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)))
        && is_place(priority_of(message))
}

fn is_place(priority: u32) -> bool {
    (FIRST..FIRST + (LONGEST + 1) * STEP).contains(&priority)
}

fn priority_of(message: &RuleMessage) -> u32 {
    let priority = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    priority.unwrap_or(0)
}

fn rule_from(message: &RuleMessage, family: Family) -> Rule {
    let header = &message.header;
    let mut rule = Rule {
        priority: 0,
        family,
        table: u32::from(header.table),
        suppress: None,
        mark: None,
        uids: None,
        is_plain: header.action == RuleAction::ToTable
            && (header.src_len, header.dst_len, header.tos) == (0, 0, 0)
            && header.flags == RuleFlags::empty(),
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            // All bits: the kernel's way to say that nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            RuleAttribute::SuppressPrefixLen(length) => rule.suppress = Some(*length),
            RuleAttribute::FwMark(mark) => {
                rule.mark = Some((*mark, rule.mark.map_or(u32::MAX, |(_, mask)| mask)));
            }
            RuleAttribute::FwMask(mask) => rule.mark = Some((rule.mark.map_or(0, |(mark, _)| mark), *mask)),
            RuleAttribute::UidRange(RuleUidRange { start, end }) => rule.uids = Some((*start, *end)),
            _ => rule.is_plain = false,
        }
    }
    rule
}

fn message_of(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = rule.family.number();
    message.header.action = if rule.is_plain { RuleAction::ToTable } else { RuleAction::Unspec };
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    let attributes = &mut message.attributes;
    // In a request to remove, 0 is any: one that is not plain may lead to no table at all.
    if rule.table != 0 {
        attributes.push(RuleAttribute::Table(rule.table));
    }
    attributes.extend(rule.suppress.map(RuleAttribute::SuppressPrefixLen));
    if let Some((mark, mask)) = rule.mark {
        attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    attributes.extend(rule.uids.map(|(start, end)| RuleAttribute::UidRange(RuleUidRange { start, end })));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const UIDS: Uids = Uids { own: 994, last: Uids::LAST };

    fn table(net: &str) -> OwnTable {
        OwnTable::of(&net.parse().unwrap())
    }

    #[test]
    fn longer_prefixes_are_asked_first_and_never_for_marked_packets_or_for_this_user() {
        let tables = ["203.0.113.5/32", "203.0.113.0/24", "0.0.0.0/1", "0.0.0.0/0"].map(table);
        let rules: Vec<Rule> = tables.iter().flat_map(|table| table.rules(UIDS)).collect();
        assert!(rules.is_sorted_by_key(|rule| rule.priority), "{rules:?}");
        for rule in &rules {
            let is_main = rule.table == 254;
            assert_eq!(rule.suppress.is_some(), is_main);
            assert_eq!(rule.mark, (!is_main).then_some((0, MARK)));
            assert!(is_main || rule.uids.is_some_and(|(first, last)| last < 994 || first > 994));
            assert!(is_place(rule.priority));
        }
        let shown: Vec<_> = rules[9..].iter().map(|rule| (rule.priority, rule.table, rule.uids)).collect();
        assert_eq!(
            shown,
            [
                (11_712, 254, None),
                (11_713, 11_200, Some((0, 993))),
                (11_714, 11_200, Some((995, Uids::LAST)))
            ]
        );
        assert!(is_place(table("::1/128").priority()) && !is_place(FIRST - 1) && !is_place(32_766));
    }

    #[test]
    fn the_users_at_the_ends_have_one_range_beside_them() {
        for (own, expected) in [(0, (1, 65_535)), (65_535, (0, 65_534))] {
            let rules = table("::/0").rules(Uids { own, last: 65_535 });
            assert_eq!(rules.len(), 2);
            assert_eq!(rules[1].uids, Some(expected));
        }
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        for net in ["0.0.0.0/0", "::/0", "203.0.113.0/24"] {
            for rule in table(net).rules(UIDS) {
                let message = message_of(&rule);
                assert!(is_ours(&message) && concerns(&message));
                assert_eq!(rule_from(&message, rule.family), rule);
            }
        }
    }

    #[test]
    fn a_rule_with_anything_more_is_another_one() {
        let rule = table("0.0.0.0/0").rules(UIDS).remove(0);
        let mut narrowed = message_of(&rule);
        narrowed.attributes.push(RuleAttribute::Iifname("eth0".to_owned()));
        let mut inverted = message_of(&rule);
        inverted.header.flags = RuleFlags::Invert;
        for message in [narrowed, inverted] {
            assert_ne!(rule_from(&message, Family::V4), rule);
        }
    }

    #[test]
    fn the_last_user_is_that_of_the_namespace() {
        for (map, last) in [
            ("         0          0 4294967295\n", Uids::LAST),
            ("0 100000 65536\n", 65_535),
            ("0 1000 1\n1 100000 65536\n", 65_536),
            ("", Uids::LAST),
        ] {
            assert_eq!(last_uid(map), last, "{map:?}");
        }
    }
}
