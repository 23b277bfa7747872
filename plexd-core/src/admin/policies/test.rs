//! Whether the policy in force says what is expected of it. Pure.

use plexd_proto::admin::v1;

use super::{ask, count, reference, references, verdict};
use crate::policy::{Judge, Judgement};
use crate::reconcile::InForce;

/// Expectations in a request.
const MAX_EXPECTATIONS: usize = 10_000;

/// Tries what is expected. The error says why none of it can be.
pub(super) fn answer(
    in_force: &InForce,
    expectations: &[v1::Expectation],
    state: v1::PolicyState,
) -> Result<v1::TestPolicyResponse, String> {
    if expectations.len() > MAX_EXPECTATIONS {
        let many = expectations.len();
        return Err(format!(
            "{many} expectations are more than {MAX_EXPECTATIONS}; try them in several files"
        ));
    }
    let mut judge = Judge::new(&in_force.policies, &in_force.context);
    let failed = (0..).zip(expectations).filter_map(|(index, expectation)| {
        let flow = expectation.flow.clone().unwrap_or_default();
        let question = match ask::question(in_force, &flow) {
            Ok(question) => question,
            Err(error) => {
                let reason = error.to_string();
                return Some(v1::FailedExpectation { index, reason, ..v1::FailedExpectation::default() });
            }
        };
        let judgement = judge.judge(&question);
        (verdict(judgement.outcome) != expectation.verdict()).then(|| failure(in_force, index, &judgement))
    });
    Ok(v1::TestPolicyResponse {
        failed: failed.collect(),
        checked: count(expectations.len()),
        state: Some(state),
    })
}

fn failure(in_force: &InForce, index: u32, judgement: &Judgement) -> v1::FailedExpectation {
    v1::FailedExpectation {
        index,
        verdict: verdict(judgement.outcome).into(),
        decided_by: judgement.rule.and_then(|position| reference(&in_force.policies, position)),
        depends_on: references(&in_force.policies, judgement.parts.iter().copied()),
        reason: String::new(),
    }
}
