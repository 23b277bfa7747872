//! The end: what the kernel has of this node goes, at a stop that tears down, or with the node's identity.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Reconciler;
use super::plan::Memory;
use crate::kernel::KernelError;
use crate::state::Desired;
use crate::status::Subsystem;

impl Reconciler {
    /// Removes what the kernel has of a node that has no identity any more, and forgets it. Also to be awaited before
    /// [`Reconciler::run`], where a process before this one could not do it.
    pub async fn take_down(&mut self) -> Result<(), KernelError> {
        self.take_up_news();
        let removed = self.tear_down().await;
        self.settled = false;
        if self.goal.is_none() {
            self.wanted = None;
            self.memory = Memory::default();
            self.policies = Arc::default();
            self.compiled = None;
            self.refused = None;
            self.last_success = None;
            self.names.ask_for(&Desired::default(), |_| false);
            self.wiring.board.clear(Subsystem::Policy, "compile");
            self.report(&[], &[], false);
            self.report_blocked(&[]);
            self.forget_conflicts();
        }
        removed
    }

    /// Takes the interface down, then the policy: never the policy of an interface that is still there. The routes went
    /// with the interface, the rules that led to them go by themselves.
    pub(super) async fn tear_down(&mut self) -> Result<(), KernelError> {
        self.kernel.wireguard.remove().await?;
        let rules = self.remove_rules().await;
        self.kernel.firewall.remove().await.and(rules)
    }

    async fn remove_rules(&self) -> Result<(), KernelError> {
        let network = &self.kernel.network;
        let observed = network.observe_rules(&self.config.mesh.interface, &BTreeSet::new(), &[]).await?;
        if observed.rules.is_empty() {
            return Ok(());
        }
        network.remove_rules(&Vec::from_iter(observed.rules)).await
    }
}
