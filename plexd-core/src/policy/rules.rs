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
