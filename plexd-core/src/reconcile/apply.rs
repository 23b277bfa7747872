//! Takes the steps of a plan. The only place that changes the kernel. A step that fails is told and the others are still
//! taken; but once the policy or the interface could not be put in place, only those that take something away. An interface
//! that is up while there is no policy, and none can be put in place, is taken down.

use std::sync::Arc;

use super::drift::{Correction, Kind};
use super::plan::{Plan, Planned, Step};
use super::wanted::Wanted;
use crate::kernel::{Applied, Firewall, KernelError, Network, PeerChange, RouteConflict, WireGuard};

/// The kernel, as the reconciler owns it.
#[derive(Clone)]
pub struct Kernel {
    /// The WireGuard device.
    pub wireguard: Arc<dyn WireGuard>,
    /// Links, addresses, routes.
    pub network: Arc<dyn Network>,
    /// The firewall.
    pub firewall: Arc<dyn Firewall>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("wireguard", &self.wireguard.backend()).finish_non_exhaustive()
    }
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was put right.
    pub corrections: Vec<Correction>,
    /// Steps that failed.
    pub errors: Vec<KernelError>,
    /// Routes that somebody else owns.
    pub conflicts: Vec<RouteConflict>,
    /// Whether denied packets cannot be logged, because the kernel lacks what it takes.
    pub without_log: bool,
}

impl Kernel {
    /// Takes the steps in order.
    pub async fn apply(&self, interface: &str, wanted: &Wanted, plan: Plan) -> Outcome {
        let mut outcome = Outcome::default();
        let mut may_add = true;
        for Planned { step, corrections } in plan.steps {
            let Some(step) = (if may_add { Some(step) } else { taking_away(step) }) else { continue };
            match self.take(interface, wanted, &step, &mut outcome).await {
                // Of routes, those that somebody else owns were not put right.
                Ok(()) if outcome.conflicts.is_empty() => outcome.corrections.extend(corrections),
                Ok(()) => outcome.corrections.extend(without_conflicts(corrections, &outcome.conflicts)),
                Err(error) => {
                    tracing::debug!(%error, "step failed");
                    outcome.errors.push(error);
                    if plan.exposed && step == Step::ReplacePolicy {
                        self.take_down(interface, &mut outcome).await;
                    }
                    may_add &= !matches!(
                        step,
                        Step::ReplacePolicy | Step::CreateInterface | Step::Configure | Step::Rekey(_)
                    );
                }
            }
        }
        outcome
    }

    /// Takes the interface down until policy can be put in place, after which the plan brings it up.
    async fn take_down(&self, interface: &str, outcome: &mut Outcome) {
        match self.network.bring_down(interface).await {
            Ok(()) => {
                tracing::warn!(iface = interface, "interface taken down: there is no policy in front of it");
            }
            Err(error) => outcome.errors.push(error),
        }
    }

    async fn take(
        &self,
        interface: &str,
        wanted: &Wanted,
        step: &Step,
        outcome: &mut Outcome,
    ) -> Result<(), KernelError> {
        match step {
            Step::ReplacePolicy => {
                if let Some(table) = &wanted.table {
                    outcome.without_log = self.firewall.replace(table).await? == Applied::WithoutLog;
                }
                Ok(())
            }
            Step::RemovePolicy => self.firewall.remove().await,
            Step::CreateInterface => self.wireguard.ensure().await.map(|_| ()),
            Step::Configure => self.wireguard.configure(&wanted.device).await,
            Step::Rekey(changes) => self.wireguard.rekey(&wanted.device, changes).await,
            Step::Peers(changes) => self.wireguard.apply(changes).await,
            Step::AddAddress(address) => self.network.add_address(interface, *address).await,
            Step::RemoveAddress(address) => self.network.remove_address(interface, *address).await,
            Step::BringUp => self.network.bring_up(interface, wanted.mtu).await,
            Step::AddRoutes(routes) => {
                outcome.conflicts.extend(self.network.add_routes(interface, routes).await?);
                Ok(())
            }
            Step::RemoveRoutes(routes) => self.network.remove_routes(interface, routes).await,
            Step::AddRules(rules) => self.network.add_rules(rules).await,
            Step::RemoveRules(rules) => self.network.remove_rules(rules).await,
            Step::AddApart(routes) => self.network.add_apart(interface, routes).await,
            Step::RemoveApart(routes) => self.network.remove_apart(interface, routes).await,
        }
    }
}

/// Returns what of a step takes away. That much is done even where policy is not in place: a peer that is gone must not
/// keep its tunnel because of it.
fn taking_away(step: Step) -> Option<Step> {
    match step {
        Step::Rekey(changes) | Step::Peers(changes) => {
            let removals: Vec<PeerChange> =
                changes.into_iter().filter(|change| matches!(change, PeerChange::Remove(_))).collect();
            (!removals.is_empty()).then_some(Step::Peers(removals))
        }
        Step::RemoveRoutes(_) | Step::RemoveApart(_) | Step::RemoveRules(_) | Step::RemoveAddress(_) => {
            Some(step)
        }
        Step::ReplacePolicy
        | Step::RemovePolicy
        | Step::CreateInterface
        | Step::Configure
        | Step::AddAddress(_)
        | Step::BringUp
        | Step::AddRoutes(_)
        | Step::AddApart(_)
        | Step::AddRules(_) => None,
    }
}

fn without_conflicts(
    corrections: Vec<Correction>,
    conflicts: &[RouteConflict],
) -> impl Iterator<Item = Correction> {
    corrections.into_iter().filter(|correction| {
        let names = |conflict: &RouteConflict| {
            correction.detail.split(' ').nth(1) == Some(&conflict.destination.to_string())
        };
        correction.kind != Kind::RouteAdded || !conflicts.iter().any(names)
    })
}
