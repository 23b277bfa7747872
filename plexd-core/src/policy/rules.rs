//! The policy as the control plane states it, parsed: an invalid rule cannot exist here.

use std::fmt;
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::types::NodeId;

/// The policies of the node, in order; the first rule that matches decides (contract, section 5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicySet {
    /// In the control plane's order.
    pub policies: Vec<Policy>,
}

impl PolicySet {
    /// Returns all rules in the order in which they are tried.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.policies.iter().flat_map(|policy| &policy.rules)
    }

    /// Returns what each rule is called, in the same order: its policy's id and its text.
    pub fn rule_names(&self) -> impl Iterator<Item = String> {
        let names = |policy: &Policy| {
            let name = |rule| format!("{:?} {rule}", policy.id);
            policy.rules.iter().map(name).collect::<Vec<_>>()
        };
        self.policies.iter().flat_map(names)
    }

    /// Returns the policy of the rule at `position` among all rules, and the rule's number in it, from 1.
    pub fn locate(&self, position: usize) -> Option<(&Policy, usize)> {
        let mut before = 0;
        for policy in &self.policies {
            if position < before + policy.rules.len() {
                return Some((policy, position - before + 1));
            }
            before += policy.rules.len();
        }
        None
    }
}

/// A policy: an id and its rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Id, for people.
    pub id: String,
    /// In the control plane's order.
    pub rules: Vec<Rule>,
}

/// A rule: what it matches and what it decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where the connection comes from.
    pub src: Selector,
    /// Where it goes.
    pub dst: Selector,
    /// Which transport.
    pub service: Service,
    /// What happens to it.
    pub action: Action,
}

/// One side of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Everything (`*`).
    Any,
    /// The addresses of a network; host bits are zero.
    Net(IpNet),
    /// The mesh address and allowed IPs of a node; of nobody, as long as no node has the id.
    Node(NodeId),
}

/// Transport protocol and destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Any protocol, any port.
    Any,
    /// TCP, to one port or any.
    Tcp(Option<NonZeroU16>),
    /// UDP, to one port or any.
    Udp(Option<NonZeroU16>),
}

/// What happens to a matching packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

impl fmt::Display for Rule {
    /// As `allow tcp n_a -> n_b:443`; a destination with colons of its own is in brackets before a port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = match self.service {
            Service::Any => ("", None),
            Service::Tcp(port) => (" tcp", port),
            Service::Udp(port) => (" udp", port),
        };
        write!(f, "{}{protocol} {} -> ", self.action, self.src)?;
        let Some(port) = port else { return write!(f, "{}", self.dst) };
        let destination = self.dst.to_string();
        if destination.contains(':') {
            write!(f, "[{destination}]:{port}")
        } else {
            write!(f, "{destination}:{port}")
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = match self {
            Self::Any => return f.write_str("any protocol"),
            Self::Tcp(port) => ("tcp", port),
            Self::Udp(port) => ("udp", port),
        };
        f.write_str(protocol)?;
        port.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Net(net) => write!(f, "{net}"),
            Self::Node(id) => write!(f, "{id}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}
