//! The nftables table as plexd means it: chains, rules and verdict maps, in types that say only what plexd uses. Two
//! tables that are equal decide alike. How they look in netlink is the kernel side's business, not this file's.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Service;

/// The table `inet plexd`. Comparable and deterministic: the same policy gives the same table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Named counters.
    pub counters: Vec<String>,
    /// Divisions of the addresses, for maps whose keys are made of classes.
    pub classes: Vec<Classes>,
    /// Verdict maps, in the order in which they are looked up first.
    pub maps: Vec<Map>,
    /// Chains; a chain is named before one that jumps to it.
    pub chains: Vec<Chain>,
    /// What each rule of the policy is called, by its position among all rules: the policy's id and the rule as text. A rule
    /// that keeps its name keeps what was counted for it.
    pub rule_names: Vec<String>,
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
    /// Looks the connection's original tuple up in maps, by their positions in the table, one after the other: the verdict
    /// of the first entry found holds, and the rule ends if there is none. All of them look at the same parts of the
    /// addresses; no two look at the same parts of the service.
    Lookup(Vec<usize>),
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

/// A division of all addresses of a family into classes: addresses that no rule tells apart. A class is named by an address
/// of its own, its first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Its name.
    pub name: String,
    /// Whose addresses.
    pub family: Family,
    /// Where a class begins, and which. It goes on to the next beginning, or to the last address.
    pub starts: BTreeMap<IpAddr, IpAddr>,
    /// The class of addresses before the first beginning, and of those that begin with it: of those that no key has.
    pub rest: IpAddr,
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
    /// What of the source address.
    pub source: Part,
    /// What of the destination address.
    pub destination: Part,
    /// How much of the service.
    pub service: Detail,
}

/// What of an address a map looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// So many leading bits, 0 for none.
    Bits(u8),
    /// The class it is in, by the position of the [`Classes`] in the table.
    Class(usize),
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
    /// Source network, as long as the shape says; of a class the address that names it.
    pub source: IpNet,
    /// Destination network, likewise.
    pub destination: IpNet,
    /// Service, as detailed as the shape says.
    pub service: Service,
}

/// What a map says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The rule of the policy that says so, by its position among all rules; `None` for the default.
    pub rule: Option<usize>,
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

    /// Returns how many entries the table has: map entries, beginnings of classes, and rules.
    pub fn size(&self) -> usize {
        self.maps.iter().map(|map| map.entries.len()).sum::<usize>()
            + self.classes.iter().map(|classes| classes.starts.len()).sum::<usize>()
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

impl Classes {
    /// Returns the class of an address, by the address that names it.
    pub fn class_of(&self, address: IpAddr) -> IpAddr {
        self.starts.range(..=address).next_back().map_or(self.rest, |(_, class)| *class)
    }
}

impl Part {
    /// Returns whether nothing is looked at.
    pub fn is_nothing(self) -> bool {
        self == Self::Bits(0)
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
