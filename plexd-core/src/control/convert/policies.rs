//! Policies (contract, section 5): all of them valid, or the set is not, with the policy, the rule and the fault named.

use std::collections::HashSet;
use std::num::NonZeroU16;

use crate::policy::{Action, Policy, PolicySet, Rule, Selector, Service};

use super::super::wire::{self, Raw};
use super::{excerpt, network};

/// Most rules in a set.
pub const MAX_RULES: usize = 20_000;

/// Converts a list of policies. The error says which rule of which policy is invalid, and why; rules count from 1.
pub fn policies(text: &str) -> Result<PolicySet, String> {
    let list: Vec<Raw<'_>> = wire::parse(text.as_bytes()).map_err(|error| format!("policies: {error}"))?;
    let mut ids = HashSet::new();
    let mut rules = 0;
    let mut set = PolicySet { policies: Vec::with_capacity(list.len()) };
    for (index, element) in list.iter().enumerate() {
        let policy: wire::Policy<'_> = wire::parse_object(element.text().as_bytes())
            .map_err(|error| format!("policy number {}: {error}", index + 1))?;
        if policy.id.is_empty() {
            return Err(format!("policy number {} has an empty id", index + 1));
        }
        if !ids.insert(policy.id.clone()) {
            return Err(format!("policy {:?} occurs twice", excerpt(&policy.id)));
        }
        rules += policy.rules.len();
        if rules > MAX_RULES {
            return Err(format!("policy {:?}: more than {MAX_RULES} rules in all", excerpt(&policy.id)));
        }
        set.policies.push(convert(policy)?);
    }
    Ok(set)
}

fn convert(policy: wire::Policy<'_>) -> Result<Policy, String> {
    let rules = policy.rules.iter().enumerate().map(|(index, text)| {
        rule(text.text())
            .map_err(|reason| format!("policy {:?}, rule {}: {reason}", excerpt(&policy.id), index + 1))
    });
    Ok(Policy { rules: rules.collect::<Result<_, _>>()?, id: policy.id })
}

fn rule(text: &str) -> Result<Rule, String> {
    let rule: wire::PolicyRule = wire::parse_object(text.as_bytes())?;
    Ok(Rule {
        src: selector("src", &rule.src)?,
        dst: selector("dst", &rule.dst)?,
        service: service(&rule.protocol, rule.port)?,
        action: match rule.action.as_str() {
            "allow" => Action::Allow,
            "deny" => Action::Deny,
            other => return Err(format!("action {:?} is neither allow nor deny", excerpt(other))),
        },
    })
}

fn selector(member: &str, text: &str) -> Result<Selector, String> {
    if text.is_empty() {
        return Err(format!("{member} is empty; '*' is everything"));
    }
    if text == "*" {
        return Ok(Selector::Any);
    }
    let address = match network(text) {
        Ok(net) => return Ok(Selector::Net(net)),
        Err(error) => format!("{member} {error}"),
    };
    // IPv6 addresses may begin with a letter too: what is written like one is not taken for the id of a node that
    // happens not to exist, which would silently match nothing.
    let like_ipv6 = text.matches(':').count() >= 2
        && text.bytes().all(|byte| byte.is_ascii_hexdigit() || b":./".contains(&byte));
    if !text.starts_with(|first: char| first.is_ascii_alphabetic()) || like_ipv6 {
        return Err(address);
    }
    text.parse().map(Selector::Node).map_err(|error| format!("{member}: {error}"))
}

fn service(protocol: &str, port: i64) -> Result<Service, String> {
    let port = u16::try_from(port).map_err(|_| format!("port {port} is not between 0 and 65535"))?;
    let port = NonZeroU16::new(port);
    match (protocol, port) {
        ("", None) => Ok(Service::Any),
        ("", Some(port)) => Err(format!("port {port} needs a protocol, tcp or udp")),
        ("tcp", port) => Ok(Service::Tcp(port)),
        ("udp", port) => Ok(Service::Udp(port)),
        (other, _) => Err(format!("protocol {:?} is not tcp, udp or empty", excerpt(other))),
    }
}
