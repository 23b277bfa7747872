//! What administrators are told of the policy: its rules, what they say of a connection and why, whether that is what
//! somebody expects, and the table they make. All of it of the policy that the reconciler enforces.

mod ask;
mod explain;
mod export;
mod test;

use std::collections::BTreeSet;
use std::sync::Arc;

use plexd_proto::admin::v1;
use tonic::Status;

use super::{AdminService, MESH_DEADLINE, count};
use crate::kernel::Counters;
use crate::policy::{self, Action, Outcome, PolicySet, Rule, Service, Shadow, shadows};
use crate::reconcile::InForce;

pub(super) use export::ExportStream;

/// Rules that are named of many.
const NAMED: usize = 16;

/// Rules that are named of those that shadow one: of 20,000 rules each has its own.
const SHADOWS_NAMED: usize = 4;

/// Questions at a time that take a moment of a processor; others wait.
pub(super) const MAX_QUESTIONS: usize = 2;

/// Exports at a time.
pub(super) const MAX_EXPORTS: usize = 4;

impl AdminService {
    /// Returns the policy in force.
    async fn in_force(&self) -> Result<InForce, Status> {
        if self.sources.identity.borrow().is_none() {
            let advice = "this node is not enrolled, no policy is in force; enrol it with: plexd-ctl join";
            return Err(Status::failed_precondition(advice));
        }
        let asked = tokio::time::timeout(MESH_DEADLINE, self.sources.mesh.policy()).await;
        asked.ok().flatten().ok_or_else(|| Status::unavailable("the mesh does not answer"))
    }

    /// Runs what takes a moment apart from what must not wait for it; not too much of it at a time.
    async fn think<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let failed = || Status::internal("the policy could not be judged; see the log of plexd-core");
        let _permit = self.questions.acquire().await.map_err(|_| failed())?;
        tokio::task::spawn_blocking(work).await.map_err(|_| failed())
    }

    pub(super) async fn answer_list(&self) -> Result<v1::ListPoliciesResponse, Status> {
        let mesh = self
            .sources
            .mesh_status()
            .await
            .ok_or_else(|| Status::unavailable("the mesh does not answer"))?;
        let counters = tokio::time::timeout(MESH_DEADLINE, self.sources.mesh.counters()).await.ok().flatten();
        let in_force = self.in_force().await.ok();
        let policies = in_force.as_ref().map_or(&mesh.policies, |in_force| &in_force.policies).clone();
        let state = self.policy_state(&policies, mesh.refused.as_deref());
        let denied_packets = packets_named(counters.as_ref(), "denied");
        let invalid_packets = packets_named(counters.as_ref(), "invalid");
        let policies = self
            .think(move || {
                let shadows = in_force.map(|in_force| shadows(&in_force.policies, &in_force.context));
                listed(&policies, &shadows.unwrap_or_default(), counters.as_ref())
            })
            .await?;
        Ok(v1::ListPoliciesResponse { policies, state: Some(state), denied_packets, invalid_packets })
    }

    pub(super) async fn answer_explain(
        &self,
        request: v1::ExplainPolicyRequest,
    ) -> Result<v1::ExplainPolicyResponse, Status> {
        let in_force = self.in_force().await?;
        let state = self.policy_state(&in_force.policies, in_force.refused.as_deref());
        let flow = request.flow.unwrap_or_default();
        self.think(move || explain::answer(&in_force, &flow, state)).await?.map_err(Status::from)
    }

    pub(super) async fn answer_test(
        &self,
        request: v1::TestPolicyRequest,
    ) -> Result<v1::TestPolicyResponse, Status> {
        let in_force = self.in_force().await?;
        let state = self.policy_state(&in_force.policies, in_force.refused.as_deref());
        self.think(move || test::answer(&in_force, &request.expectations, state))
            .await?
            .map_err(Status::invalid_argument)
    }

    pub(super) async fn answer_export(&self) -> Result<ExportStream, Status> {
        let in_force = self.in_force().await?;
        let state = self.policy_state(&in_force.policies, in_force.refused.as_deref());
        let permit = Arc::clone(&self.exports)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many exports of the policy; end one of them"))?;
        Ok(export::stream(in_force, &state, self.sources.shutdown.clone(), permit))
    }
}

fn listed(policies: &PolicySet, shadows: &[Option<Shadow>], counters: Option<&Counters>) -> Vec<v1::Policy> {
    let mut position = 0;
    let policy = |policy: &policy::Policy| v1::Policy {
        id: policy.id.clone(),
        rules: policy
            .rules
            .iter()
            .zip(1..)
            .map(|(rule, number)| {
                let packets = counters.map(|counters| packets_of(counters, position));
                let shadow = shadows.get(position).and_then(Option::as_ref);
                position += 1;
                let listed = v1::PolicyRule { packets, number, ..policy_rule(rule) };
                with_shadow(listed, policies, shadow)
            })
            .collect(),
    };
    policies.policies.iter().map(policy).collect()
}

fn policy_rule(rule: &Rule) -> v1::PolicyRule {
    let (protocol, port) = match rule.service {
        Service::Any => ("", None),
        Service::Tcp(port) => ("tcp", port),
        Service::Udp(port) => ("udp", port),
    };
    v1::PolicyRule {
        src: rule.src.to_string(),
        dst: rule.dst.to_string(),
        port: port.map_or(0, |port| port.get().into()),
        protocol: protocol.to_owned(),
        action: rule.action.to_string(),
        ..v1::PolicyRule::default()
    }
}

fn with_shadow(mut rule: v1::PolicyRule, policies: &PolicySet, shadow: Option<&Shadow>) -> v1::PolicyRule {
    match shadow {
        None => {}
        Some(Shadow::Covered(by)) => {
            rule.shadowed_by = references(policies, by.iter().take(SHADOWS_NAMED).copied());
            rule.shadowed_by_total = count(by.len());
        }
        Some(Shadow::Nobody(nobody)) => rule.matches_nobody = nobody.to_string(),
    }
    rule
}

/// Returns the first of these rules, by their positions among all rules.
fn references(policies: &PolicySet, positions: impl IntoIterator<Item = usize>) -> Vec<v1::RuleReference> {
    let positions: BTreeSet<usize> = positions.into_iter().take(NAMED).collect();
    positions.into_iter().filter_map(|position| reference(policies, position)).collect()
}

fn reference(policies: &PolicySet, position: usize) -> Option<v1::RuleReference> {
    let (policy, number) = policies.locate(position)?;
    let text = policy.rules.get(number - 1)?.to_string();
    Some(v1::RuleReference { policy: policy.id.clone(), rule: count(number), text })
}

fn verdict(outcome: Outcome) -> v1::Verdict {
    match outcome {
        Outcome::Always(Action::Allow) => v1::Verdict::Allow,
        Outcome::Always(Action::Deny) => v1::Verdict::Deny,
        Outcome::Depends => v1::Verdict::Depends,
    }
}

/// Packets that the counter `name` has seen; `None` if it cannot be read.
fn packets_named(counters: Option<&Counters>, name: &str) -> Option<u64> {
    counters?.named.get(name).map(|count| count.packets)
}

/// Packets that a rule decided; one that decided none yet may be absent.
fn packets_of(counters: &Counters, position: usize) -> u64 {
    counters.rules.get(&position).map_or(0, |count| count.packets)
}

#[cfg(test)]
mod tests;
