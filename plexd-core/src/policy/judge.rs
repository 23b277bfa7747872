//! What a policy says of a connection, and why: also of one whose protocol or port is left open, where the answer may
//! depend on them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::index::{self, Index};
use super::{Action, Context, PolicySet, Rule, Selector, Service, TCP, UDP};

/// A connection that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who opens it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IP protocol number; `None`: whichever.
    pub protocol: Option<u8>,
    /// Destination port, of TCP and UDP only; `None`: whichever, or the protocol has none.
    pub port: Option<NonZeroU16>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The same, whatever was left open.
    Always(Action),
    /// It depends on what was left open.
    Depends,
}

/// What a policy says of a connection. Rules are told by their positions among all rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What becomes of it.
    pub outcome: Outcome,
    /// The rule that decides what none of `parts` does; `None` for the default.
    pub rule: Option<usize>,
    /// Rules that decide a protocol or port of their own, of those that were left open.
    pub parts: Vec<usize>,
    /// Rules before the one that decides, for the same addresses, but another protocol or port.
    pub near: Vec<usize>,
}

/// Judges a connection by walking the rules.
pub fn judge(policies: &PolicySet, context: &Context, question: &Question) -> Judgement {
    let covers = |selector: &Selector, address: &IpAddr| match selector {
        Selector::Any => true,
        Selector::Net(net) => net.contains(address),
        Selector::Node(id) => context.addresses(id).iter().any(|net| net.contains(address)),
    };
    let matches =
        |rule: &Rule| covers(&rule.src, &question.source) && covers(&rule.dst, &question.destination);
    let matching = policies.rules().enumerate().filter(|(_, rule)| matches(rule));
    let rules: Vec<&Rule> = policies.rules().collect();
    decide(matching.map(|(position, rule)| (position, rule.service)), &rules, context, question)
}

/// Judges many connections, each at a cost that does not grow with the rules.
#[derive(Debug)]
pub struct Judge<'a> {
    rules: Vec<&'a Rule>,
    context: &'a Context,
    index: Index,
}

impl<'a> Judge<'a> {
    /// Prepares to judge by these policies.
    pub fn new(policies: &'a PolicySet, context: &'a Context) -> Self {
        Self { rules: policies.rules().collect(), context, index: index::of_rules(policies, context) }
    }

    /// Judges a connection. What is near may lack rules that say what an earlier one does.
    pub fn judge(&mut self, question: &Question) -> Judgement {
        let matching = self.index.matching(question.source, question.destination);
        decide(matching.into_iter(), &self.rules, self.context, question)
    }
}

/// Decides by the rules that match the addresses, in their order.
fn decide(
    matching: impl Iterator<Item = (usize, Service)>,
    rules: &[&Rule],
    context: &Context,
    question: &Question,
) -> Judgement {
    let (mut rule, mut parts, mut near) = (None, Vec::new(), Vec::new());
    if !context.enabled {
        return Judgement { outcome: Outcome::Always(Action::Allow), rule, parts, near };
    }
    let mut decided = BTreeSet::new();
    for (position, service) in matching {
        match share(service, question) {
            Share::All => {
                rule = Some(position);
                break;
            }
            Share::Part => {
                let whole = match service {
                    Service::Any => Service::Any,
                    Service::Tcp(_) => Service::Tcp(None),
                    Service::Udp(_) => Service::Udp(None),
                };
                // Where the port is asked about, the one port is all there is of the protocol.
                let part = if question.port.is_some() { whole } else { service };
                if !decided.contains(&whole) && decided.insert(part) {
                    parts.push(position);
                }
            }
            Share::None => near.push(position),
        }
    }
    let rest = rule.map_or(context.default, |position| rules[position].action);
    let agree = parts.iter().all(|position| rules[*position].action == rest);
    let outcome = if agree { Outcome::Always(rest) } else { Outcome::Depends };
    Judgement { outcome, rule, parts, near }
}

/// How much of what is asked about a service serves.
enum Share {
    All,
    Part,
    None,
}

fn share(service: Service, question: &Question) -> Share {
    let (protocol, port) = match service {
        Service::Any => return Share::All,
        Service::Tcp(port) => (TCP, port),
        Service::Udp(port) => (UDP, port),
    };
    match (port, question.port) {
        _ if question.protocol.is_some_and(|asked| asked != protocol) => Share::None,
        (Some(port), Some(asked)) if port != asked => Share::None,
        (Some(_), None) => Share::Part,
        _ if question.protocol.is_none() => Share::Part,
        (None, _) | (Some(_), Some(_)) => Share::All,
    }
}
