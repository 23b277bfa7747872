//! Which policies are enforced: the newest that compile, else the last that did. What cannot be enforced is told, to the
//! administrator and to the control plane; the state is told what can, so that a restart enforces that.

use std::sync::Arc;

use super::drift::{self, Correction};
use super::wanted::Wanted;
use super::{Goal, Reconciler};
use crate::policy::{CompileError, PolicySet};
use crate::status::Subsystem;

/// Whether the state knows that a set of policies compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Yes,
    No,
}

impl Reconciler {
    /// Returns what is wanted, with the newest policies that can be compiled: those of the state, else the last that could,
    /// else none, which denies (unless the default is to allow). What the control plane takes away is taken away in any
    /// case.
    pub(super) async fn wanted(&mut self, goal: &Goal) -> Wanted {
        let newest = &goal.desired.policies;
        match self.worked_out(goal, newest).await {
            Ok(wanted) => {
                self.policies = Arc::clone(newest);
                self.note_compiled(newest);
                self.refused = None;
                self.wiring.board.clear(Subsystem::Policy, "compile");
                wanted
            }
            Err(error) => {
                let (wanted, policies) = self.wanted_before(goal).await;
                self.policies = policies;
                self.tell_refused(&error);
                wanted
            }
        }
    }

    /// Returns what is wanted with the last policies that could be compiled, and those; without any where there are none.
    async fn wanted_before(&self, goal: &Goal) -> (Wanted, Arc<PolicySet>) {
        let before = self.compiled.as_ref().map(|(policies, _)| policies);
        if let Some(before) = before.or(goal.desired.policies_before.as_ref())
            && let Ok(wanted) = self.worked_out(goal, before).await
        {
            return (wanted, Arc::clone(before));
        }
        let none = Arc::default();
        let wanted = self
            .input(goal, &none)
            .wanted()
            .expect("no rules always compile: the configuration has checked the interface's name");
        (wanted, none)
    }

    /// Works out what is wanted with these policies, apart from the tasks that must not wait: thousands of rules take a
    /// while, and some sets seconds.
    async fn worked_out(&self, goal: &Goal, policies: &Arc<PolicySet>) -> Result<Wanted, CompileError> {
        let (goal, policies, config) = (goal.clone(), Arc::clone(policies), Arc::clone(&self.config));
        let resolved = self.names.resolved().clone();
        let work = move || goal.input(&policies, &config, &resolved).wanted();
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    fn tell_refused(&mut self, error: &CompileError) {
        let consequence = if self.policies.policies.is_empty() {
            "none is in force, so the default decides"
        } else {
            "the one before stays in force"
        };
        let message = format!("the newest policy set cannot be enforced, {consequence}: {error}");
        self.wiring.board.raise(Subsystem::Policy, "compile", message);
        let error = error.to_string();
        if self.refused.as_ref() != Some(&error) {
            self.send_drift(vec![Correction::new(drift::Kind::PolicyRejected, error.clone())]);
            self.refused = Some(error);
        }
    }

    fn note_compiled(&mut self, policies: &Arc<PolicySet>) {
        if !self.compiled.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, policies)) {
            self.compiled = Some((Arc::clone(policies), Told::No));
        }
    }

    /// Tells the state which policies compile, if it does not know.
    pub(super) async fn tell_compiled(&mut self) {
        if let (Some(state), Some((policies, told @ Told::No))) = (&self.state, &mut self.compiled) {
            state.compiled(Arc::clone(policies)).await;
            *told = Told::Yes;
        }
    }
}
