//! The nftables table as plexd means it: chains, rules and verdict maps, in types that say only what plexd uses. Two
//! tables that are equal decide alike. How they look in netlink is the kernel side's business, not this file's.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use super::Service;

/// The table `inet plexd`. Comparable and deterministic: the same policy gives the same table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Named counters.
    pub counters: Vec<String>,
    /// Verdict maps, in the order in which they are looked up first.
    pub maps: Vec<Map>,
    /// Chains; a chain is named before one that jumps to it.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where the kernel calls it (filter type, priority 0, policy accept); `None` for one that others jump to.
    pub hook: Option<Hook>,
    /// Tried in order.
    pub rules: Vec<Vec<Expr>>,
}

/// Where the kernel calls a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets to this host.
    Input,
    /// Packets through this host.
    Forward,
    /// Packets from this host.
    Output,
}

/// One step of a rule. A step that does not match ends the rule, and the next rule is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// The packet came in by this interface.
    InputInterface(String),
    /// The packet goes out by this interface.
    OutputInterface(String),
    /// The packet is of this family.
    Family(Family),
    /// Connection tracking could not make sense of the packet, or does not track it.
    Untracked,
    /// The packet is of TCP, and the first that connection tracking knows of its connection, yet does not open one.
    MidStream,
    /// No more often than this.
    Limit {
        /// Packets per second.
        per_second: u32,
        /// Packets that may come at once.
        burst: u32,
    },
    /// Writes a line to the kernel log.
    Log {
        /// What the line begins with.
        prefix: String,
    },
    /// Counts into a counter of the table.
    Count(String),
    /// Counts for a rule of the policy, by its position among all rules.
    CountRule(usize),
    /// Looks the connection's original tuple up in a map, by its position in the table; found, the entry's verdict holds.
    Lookup(usize),
    /// Ends the rule with a verdict.
    Verdict(Verdict),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It passes this table.
    Accept,
    /// It ends here.
    Drop,
    /// The named chain decides, and comes back if it does not.
    Jump(String),
    /// The named chain decides.
    Goto(String),
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A verdict map: exact matches on the connection's original tuple, cut down to the map's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Its name.
    pub name: String,
    /// What of the tuple makes the key.
    pub shape: Shape,
    /// Verdicts by key; every key has the map's shape.
    pub entries: BTreeMap<Key, Entry>,
}

/// What of the original tuple a map looks at. A part that is not looked at is not in the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Address family.
    pub family: Family,
    /// Leading bits of the source address, 0 for none.
    pub source: u8,
    /// Leading bits of the destination address, 0 for none.
    pub destination: u8,
    /// How much of the service.
    pub service: Detail,
}

/// How much of a service a map looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Nothing.
    Nothing,
    /// The protocol.
    Protocol,
    /// Protocol and destination port.
    Port,
}

/// The key of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Source network, as long as the shape says.
    pub source: IpNet,
    /// Destination network, as long as the shape says.
    pub destination: IpNet,
    /// Service, as detailed as the shape says.
    pub service: Service,
}

/// What a map says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The rule of the policy that says so, by its position among all rules.
    pub rule: usize,
}

impl Table {
    /// The table's name, in family `inet`.
    pub const NAME: &str = "plexd";

    /// Returns the table without the rules that log, for a kernel that cannot.
    #[must_use]
    pub fn without_log(&self) -> Self {
        let mut table = self.clone();
        for chain in &mut table.chains {
            chain.rules.retain(|rule| !rule.iter().any(|expr| matches!(expr, Expr::Log { .. })));
        }
        table
    }

    /// Returns how many entries the table has: map entries and rules.
    pub fn size(&self) -> usize {
        self.maps.iter().map(|map| map.entries.len()).sum::<usize>()
            + self.chains.iter().map(|chain| chain.rules.len()).sum::<usize>()
    }
}

impl Family {
    /// Returns the family of a network.
    pub fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

impl Key {
    /// Returns the shape of maps that can hold this key; `None` if source and destination differ in family.
    pub fn shape(&self) -> Option<Shape> {
        let family = Family::of(&self.source);
        (family == Family::of(&self.destination)).then(|| Shape {
            family,
            source: self.source.prefix_len(),
            destination: self.destination.prefix_len(),
            service: Detail::of(self.service),
        })
    }
}

impl Detail {
    /// Returns how much a service says.
    pub fn of(service: Service) -> Self {
        match service {
            Service::Any => Self::Nothing,
            Service::Tcp(None) | Service::Udp(None) => Self::Protocol,
            Service::Tcp(Some(_)) | Service::Udp(Some(_)) => Self::Port,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source, self.destination)?;
        let (protocol, port) = match self.service {
            Service::Any => return Ok(()),
            Service::Tcp(port) => ("tcp", port),
            Service::Udp(port) => ("udp", port),
        };
        write!(f, " {protocol}")?;
        port.map_or(Ok(()), |port| write!(f, " {port}"))
    }
}
