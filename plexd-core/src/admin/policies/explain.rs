//! What the policy in force says of one connection, and why on this node: which rule decides, which nearly would, and
//! whether such packets come by the mesh interface at all. Pure.

use std::net::IpAddr;

use plexd_proto::admin::v1;

use super::ask::{self, AskError};
use super::{NAMED, count, reference, references, verdict};
use crate::policy::{self, Action, Judgement, Outcome, Question};
use crate::reconcile::InForce;
use crate::types::NodeId;

/// Answers what is asked of a connection.
pub(super) fn answer(
    in_force: &InForce,
    flow: &v1::Flow,
    state: v1::PolicyState,
) -> Result<v1::ExplainPolicyResponse, AskError> {
    let question = ask::question(in_force, flow)?;
    let judgement = policy::judge(&in_force.policies, &in_force.context, &question);
    let way = Way::of(in_force, &question);
    let policies = &in_force.policies;
    let near = |position: &usize| {
        let (policy, number) = policies.locate(*position)?;
        let service = policy.rules.get(number - 1)?.service;
        let why = format!("it is for {service}, this is {}", ask::service_text(&question));
        Some(v1::NearRule { rule: reference(policies, *position), why })
    };
    let end = |address: IpAddr| v1::FlowEnd {
        address: address.to_string(),
        node: in_force.context.owner(&address).map(ToString::to_string).unwrap_or_default(),
    };
    Ok(v1::ExplainPolicyResponse {
        verdict: verdict(judgement.outcome).into(),
        decided_by: judgement.rule.and_then(|position| reference(policies, position)),
        depends_on: references(policies, judgement.parts.iter().copied()),
        nearly: judgement.near.iter().take(NAMED).filter_map(near).collect(),
        nearly_total: count(judgement.near.len()),
        source: Some(end(question.source)),
        destination: Some(end(question.destination)),
        direction: way.direction.into(),
        crosses_mesh: way.crosses_mesh,
        remarks: remarks(in_force, (&question, flow), &judgement, &way, &state),
        state: Some(state),
        depends_on_total: count(judgement.parts.len()),
    })
}

/// How packets go by this node.
struct Way {
    direction: v1::Direction,
    crosses_mesh: bool,
}

impl Way {
    fn of(in_force: &InForce, question: &Question) -> Self {
        let is_own = |address: &IpAddr| in_force.context.owner(address) == Some(&in_force.context.node);
        let comes = in_force.tunnel(&question.source).is_some();
        let goes = in_force.tunnel(&question.destination);
        let goes = goes.is_some_and(|(net, _)| !in_force.conflicts.contains_key(net));
        let (direction, crosses_mesh) = match (is_own(&question.source), is_own(&question.destination)) {
            (true, true) => (v1::Direction::Local, false),
            (true, false) => (v1::Direction::Out, goes),
            (false, true) => (v1::Direction::In, comes),
            (false, false) => (v1::Direction::Through, comes || goes),
        };
        Self { direction, crosses_mesh }
    }
}

fn remarks(
    in_force: &InForce,
    (question, flow): (&Question, &v1::Flow),
    judgement: &Judgement,
    way: &Way,
    state: &v1::PolicyState,
) -> Vec<String> {
    let mut remarks = Vec::new();
    if !in_force.context.enabled {
        remarks.push("policy is disabled (policy.enabled): every packet may pass".to_owned());
    }
    if !state.rejected.is_empty() {
        remarks.push(format!("a newer set of policies is refused and not in force: {}", state.rejected));
    }
    if !in_force.settled {
        remarks.push("the kernel may not have all of this yet; see: plexd-ctl status".to_owned());
    }
    for (asked, address) in [(&flow.source, &question.source), (&flow.destination, &question.destination)] {
        remarks.extend(claimed(in_force, asked, address));
    }
    remarks.extend(whereabouts(in_force, question, way));
    if judgement.outcome == Outcome::Always(Action::Deny) {
        remarks.extend(other_way(in_force, question));
    }
    remarks
}

/// Says whose the mesh address of a node is, if it is another's.
fn claimed(in_force: &InForce, asked: &str, address: &IpAddr) -> Option<String> {
    let asked: NodeId = asked.parse().ok().filter(|_| asked.parse::<IpAddr>().is_err())?;
    let owner = in_force.context.owner(address).filter(|owner| **owner != asked)?;
    Some(format!("{address}, the mesh address of {asked}, belongs to {owner}"))
}

/// Says what keeps packets off the mesh interface, if anything does.
fn whereabouts(in_force: &InForce, question: &Question, way: &Way) -> Vec<String> {
    let interface = &in_force.context.interface;
    let mut remarks = Vec::new();
    let ends = match way.direction {
        v1::Direction::Local => {
            let here = format!("both ends are this node: such packets do not come by {interface}");
            return vec![format!("{here}, where alone policy judges them")];
        }
        v1::Direction::Out => &[End::Destination][..],
        v1::Direction::In => &[End::Source],
        v1::Direction::Through | v1::Direction::Unspecified => &[End::Source, End::Destination],
    };
    if way.direction == v1::Direction::Through {
        let then = if way.crosses_mesh { "if they pass through this node" } else { "on this node" };
        remarks.push(format!("neither end is this node: its policy judges such packets only {then}"));
    }
    remarks.extend(ends.iter().filter_map(|end| off_the_mesh(in_force, question, *end)));
    if !way.crosses_mesh {
        remarks.push(format!("so such packets never come by {interface}, where alone policy judges them"));
    }
    remarks
}

/// An end of a connection: packets come from the one and have to find their way to the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Says why packets of an end do not come by the mesh interface, if they do not.
fn off_the_mesh(in_force: &InForce, question: &Question, end: End) -> Option<String> {
    let interface = &in_force.context.interface;
    let address = match end {
        End::Source => &question.source,
        End::Destination => &question.destination,
    };
    if let Some((net, _)) = in_force.tunnel(address) {
        let owner = in_force.conflicts.get(net).filter(|_| end == End::Destination)?;
        let owner = owner.as_deref().unwrap_or("another route");
        return Some(format!("{net} is not routed through {interface}: it belongs to {owner}"));
    }
    let Some(owner) = in_force.context.owner(address) else {
        return Some(format!("{address} is in no peer's allowed IPs: no tunnel carries it"));
    };
    if in_force.hides(owner) {
        let node = &in_force.context.node;
        return Some(format!(
            "{owner} is hidden from this node: no rule lets {node} and {owner} talk, so WireGuard does not have it"
        ));
    }
    match in_force.problems.get(owner) {
        Some(problem) => Some(format!("{address} of {owner} is in no tunnel: {problem}")),
        None => Some(format!("{address} is not in the allowed IPs of {owner}: no tunnel carries it")),
    }
}

/// Says that connections the other way round are allowed, if they are.
fn other_way(in_force: &InForce, question: &Question) -> Option<String> {
    let (source, destination) = (question.destination, question.source);
    let turned = Question { source, destination, ..*question };
    let judgement = policy::judge(&in_force.policies, &in_force.context, &turned);
    if judgement.outcome != Outcome::Always(Action::Allow) || !in_force.context.enabled {
        return None;
    }
    let by = judgement.rule.and_then(|position| reference(&in_force.policies, position));
    let by = by.map_or_else(
        || "the default".to_owned(),
        |rule| format!("rule {} of policy {}", rule.rule, rule.policy),
    );
    Some(format!(
        "the other way round it is allowed, by {by}: {source} may open the connection, and answers to it pass"
    ))
}
