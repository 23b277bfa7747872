//! The reconciler: the only owner of the kernel. It observes what is there, plans what differs from what is wanted, and
//! takes those steps and no others ([`wanted`], [`plan`]: pure; [`apply`]: the only code that changes the kernel).

mod advance;
mod apart;
mod apply;
mod compiled;
mod conflicts;
pub mod drift;
mod in_force;
mod names;
mod ownership;
mod plan;
mod routes;
mod status;
mod take_down;
mod wanted;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::{Config, OnStop};
use crate::identity::{CurrentIdentity, Identity};
use crate::kernel::rules::ObservedRules;
use crate::kernel::{Counters, KernelError, RouteConflict};
use crate::policy::PolicySet;
use crate::state::{Desired, State};
use crate::status::{Board, Subsystem};
use crate::supervisor::Shutdown;

use advance::Advance;
use apart::Apart;
use compiled::Told;
use drift::Correction;
use names::Names;
use plan::{Memory, Observed, Plan, Prospect, Reading};

pub use apply::Kernel;
pub use in_force::InForce;
pub(crate) use plan::FRESH;
pub use routes::{Routes, Unrouted, Why};
pub use status::{MeshStatus, PeerStatus};
pub use wanted::{Input, Resolved, Wanted, WantedPeer};

/// Requests that may wait.
const QUEUE: usize = 16;

/// How long changes of links are gathered before they are looked at: a network manager makes many. Also the time between two
/// looks at the policy that somebody changes all the time.
const SETTLE: Duration = Duration::from_millis(100);

/// Asks the reconciler. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mesh {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Reconcile,
    Status(oneshot::Sender<MeshStatus>),
    Counters(oneshot::Sender<Option<Counters>>),
    Policy(oneshot::Sender<Option<InForce>>),
    TakeDown(oneshot::Sender<Result<(), KernelError>>),
}

impl Mesh {
    /// Returns the mesh of a node that has none: requests go nowhere and nothing is known. For what speaks to the control
    /// plane and does nothing else, as a benchmark.
    pub fn none() -> Self {
        Self { requests: mpsc::channel(1).0 }
    }

    /// Asks for a reconciliation; does not wait for it.
    pub fn reconcile(&self) {
        // A full queue holds a request already.
        let _ = self.requests.try_send(Request::Reconcile);
    }

    /// Returns how the mesh is, read from the kernel now; `None` when the reconciler has stopped.
    pub async fn status(&self) -> Option<MeshStatus> {
        self.ask(Request::Status).await
    }

    /// Returns what the firewall counted, read from the kernel now; `None` without a table in force.
    pub async fn counters(&self) -> Option<Counters> {
        self.ask(Request::Counters).await.flatten()
    }

    /// Returns the policy in force, and what it is read against; `None` of a node without identity, or when the reconciler
    /// has stopped.
    pub async fn policy(&self) -> Option<InForce> {
        self.ask(Request::Policy).await.flatten()
    }

    /// Removes the interface, with its routes, and the policy, of a node that has no identity any more; returns what could
    /// not be removed, or `None` when the reconciler has stopped.
    pub async fn take_down(&self) -> Option<Result<(), KernelError>> {
        self.ask(Request::TakeDown).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// What somebody changed in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelChange {
    /// The table of the firewall.
    Policy,
    /// The interface, its addresses or routes, or routing rules.
    Links,
}

/// What the reconciler watches and tells.
#[derive(Debug)]
pub struct Wiring {
    /// What the control plane wants.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// Who the node is.
    pub identity: CurrentIdentity,
    /// Says that the kernel's state changed, by whomever.
    pub kernel_changes: mpsc::Receiver<KernelChange>,
    /// Takes what was put right.
    pub drift: mpsc::Sender<Vec<Correction>>,
    /// Takes problems.
    pub board: Board,
}

/// The task.
#[derive(Debug)]
pub struct Reconciler {
    config: Arc<Config>,
    kernel: Kernel,
    backend_reason: String,
    wiring: Wiring,
    /// Addresses that this process speaks to.
    outside: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    requests: mpsc::Receiver<Request>,
    names: Names,
    goal: Option<Goal>,
    memory: Memory,
    /// The policies in force.
    policies: Arc<PolicySet>,
    /// The newest that could be compiled, and whether the state was told.
    compiled: Option<(Arc<PolicySet>, Told)>,
    /// The state, which keeps them.
    state: Option<State>,
    /// Why newer ones could not.
    refused: Option<String>,
    /// What the kernel should have, as of the last reconciliation.
    wanted: Option<Wanted>,
    /// Routes that somebody else owned at the last reconciliation.
    conflicts: Vec<RouteConflict>,
    /// Allowed IPs that peers claimed then and that belong to others, as they are told.
    claims: BTreeSet<String>,
    /// Whether the kernel had all of it then.
    settled: bool,
    /// When somebody's change of the kernel was looked at last.
    looked: Option<Instant>,
    last_success: Option<Instant>,
}

/// What is reconciled to. A change of it is taken up by a reconciliation of its own, so that one that only checks never
/// takes news for drift.
#[derive(Debug, Clone)]
struct Goal {
    identity: Arc<Identity>,
    desired: Arc<Desired>,
}

impl Goal {
    /// Returns what the kernel should have follows from, with these policies.
    fn input<'a>(&'a self, policies: &'a PolicySet, config: &'a Config, resolved: &'a Resolved) -> Input<'a> {
        Input {
            desired: &self.desired,
            policies,
            identity: &self.identity,
            mesh: &config.mesh,
            settings: config.policy,
            resolved,
        }
    }
}

/// What became of a plan.
struct Taken {
    /// Whether nothing failed.
    worked: bool,
    corrections: Vec<Correction>,
}

/// Why a reconciliation is made; decides whether what it corrects is drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The node starts: nothing is there yet, and that is no drift.
    Start,
    /// What is wanted changed.
    Change,
    /// The period, a request, or a change in the kernel.
    Check,
}

impl Reconciler {
    /// Creates the task and the handle to it.
    pub fn new(config: Arc<Config>, kernel: Kernel, backend_reason: String, wiring: Wiring) -> (Mesh, Self) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let reconciler = Self {
            config,
            kernel,
            backend_reason,
            wiring,
            outside: watch::channel(Arc::default()).1,
            requests,
            names: Names::default(),
            goal: None,
            memory: Memory::default(),
            policies: Arc::default(),
            compiled: None,
            state: None,
            refused: None,
            wanted: None,
            conflicts: Vec::new(),
            claims: BTreeSet::new(),
            settled: false,
            looked: None,
            last_success: None,
        };
        (Mesh { requests: sender }, reconciler)
    }

    /// Keeps the addresses that this process itself speaks to out of the mesh, whatever is routed there.
    #[must_use]
    pub fn keeping_outside(mut self, outside: watch::Receiver<Arc<BTreeSet<IpAddr>>>) -> Self {
        self.outside = outside;
        self
    }

    /// Tells the state which policies compile, so that a set that does not leaves the old one in force over a restart.
    #[must_use]
    pub fn telling(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }

    /// Brings the kernel to the last known state; to be awaited before the node says it is ready.
    pub async fn start(&mut self) {
        self.reconcile(Cause::Start).await;
    }

    /// Reconciles until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut period = tokio::time::interval(self.config.reconcile_interval);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        period.reset();
        loop {
            // Cancel safe: every arm only learns that something is to be done, and nothing is lost with it.
            tokio::select! {
                () = shutdown.cancelled() => break,
                Ok(()) = self.wiring.desired.changed() => self.follow().await,
                Ok(()) = self.outside.changed() => self.reconcile(Cause::Change).await,
                Ok(()) = self.wiring.identity.changed() => self.reconcile(Cause::Start).await,
                _ = period.tick() => self.reconcile(Cause::Check).await,
                Some(change) = self.wiring.kernel_changes.recv() => {
                    self.gather(change).await;
                    self.reconcile(Cause::Check).await;
                    self.looked = Some(Instant::now());
                }
                found = self.names.found() => {
                    if found == names::Found::Changed {
                        self.reconcile(Cause::Change).await;
                    }
                }
                Some(request) = self.requests.recv() => match request {
                    Request::Reconcile => self.reconcile(Cause::Check).await,
                    // Callers that no longer wait are no error.
                    Request::Status(reply) => drop(reply.send(self.status().await)),
                    Request::Counters(reply) => drop(reply.send(self.counters().await)),
                    Request::Policy(reply) => drop(reply.send(self.in_force())),
                    Request::TakeDown(reply) => drop(reply.send(self.take_down().await)),
                },
            }
        }
        if self.config.on_stop == OnStop::Teardown
            && let Err(error) = self.tear_down().await
        {
            tracing::warn!(%error, "left behind at the stop");
        }
        Ok(())
    }

    /// Waits until a change can be looked at, with those that come meanwhile. Of the policy that is at once, as packets pass
    /// until it is put right.
    async fn gather(&mut self, change: KernelChange) {
        let now = Instant::now();
        let until = match change {
            KernelChange::Policy => self.looked.map_or(now, |looked| looked + SETTLE),
            KernelChange::Links => now + SETTLE,
        };
        tokio::time::sleep_until(until).await;
        while self.wiring.kernel_changes.try_recv().is_ok() {}
    }

    /// Takes up what the control plane wants now: by the short way, where a few peers changed in a kernel that is known to be
    /// as it should, else by a reconciliation.
    async fn follow(&mut self) {
        let begun = Instant::now();
        let Some(advance) = self.advance() else { return self.reconcile(Cause::Change).await };
        self.memory.follow(&advance.changed, &advance.wanted);
        let steps = advance.plan.steps.len();
        let taken = self.take(advance.wanted, advance.plan, Vec::new()).await;
        tracing::debug!(cause = "Peers", steps, took_us = begun.elapsed().as_micros(), "reconciled");
        self.tell_drift(Cause::Change, taken.corrections);
    }

    /// Takes the steps of a plan that leads to `wanted`, and tells of what went wrong, after the `errors` so far.
    async fn take(&mut self, wanted: Wanted, plan: Plan, mut errors: Vec<KernelError>) -> Taken {
        let outcome = self.kernel.apply(&self.config.mesh.interface, &wanted, plan).await;
        errors.extend(outcome.errors);
        self.settled = errors.is_empty() && outcome.conflicts.is_empty();
        self.report(&errors, &outcome.conflicts, outcome.without_log);
        self.conflicts = outcome.conflicts;
        self.wanted = Some(wanted);
        Taken { worked: errors.is_empty(), corrections: outcome.corrections }
    }

    /// Returns the short way from what was wanted to what is wanted now, and has taken up what that is; `None` if there is
    /// none, or if somebody changed the kernel.
    fn advance(&mut self) -> Option<Advance> {
        let before = self.goal.clone()?;
        self.take_up_news();
        let after = self.goal.as_ref()?;
        let same = Arc::ptr_eq(&before.identity, &after.identity)
            && Arc::ptr_eq(&before.desired.policies, &after.desired.policies)
            && Arc::ptr_eq(&self.policies, &after.desired.policies);
        if !same || !self.settled || !self.wiring.kernel_changes.is_empty() {
            return None;
        }
        // Taken: should there be no short way, the long one makes another.
        let wanted = self.wanted.take()?;
        advance::advance(wanted, &before.desired, &self.input(after, &after.desired.policies))
    }

    async fn reconcile(&mut self, cause: Cause) {
        if cause != Cause::Check {
            self.take_up_news();
        }
        let Some(goal) = self.goal.clone() else { return };
        let begun = Instant::now();
        // A check does not take up anything new: what was wanted still is.
        let unchanged = if cause == Cause::Check { self.wanted.take() } else { None };
        let mut wanted = match unchanged {
            Some(unchanged) => unchanged,
            None => self.wanted(&goal).await,
        };
        wanted.outside.clone_from(&self.outside.borrow_and_update());
        let mut errors = Vec::new();
        let mut observed = self.observe(&wanted, &mut errors).await;
        let now = SystemTime::now();
        let prospect = Prospect::of(&wanted, &observed.device, &self.memory, now);
        observed.rules = self.observe_rules(&prospect.apart, &mut errors).await;
        let mut plan = plan::plan(&wanted, &observed, prospect);
        self.memory = std::mem::take(&mut self.memory).after(&mut plan, &wanted);
        self.names.ask_for(&goal.desired, |peer| {
            cause == Cause::Check && wanted.peers.contains_key(peer) && !plan::is_heard(&observed, peer, now)
        });
        self.report_blocked(&plan.blocked);
        wanted.reached = std::mem::take(&mut plan.reached);
        self.report_claims(&goal.desired, &wanted);
        let (steps, address) = (plan.steps.len(), wanted.address);
        let taken = self.take(wanted, plan, errors).await;
        self.tell_compiled().await;
        if cause != Cause::Change {
            self.report_address(address).await;
        }
        if taken.worked {
            self.last_success = Some(Instant::now());
        }
        tracing::debug!(?cause, steps, took_us = begun.elapsed().as_micros(), "reconciled");
        self.tell_drift(cause, taken.corrections);
    }

    /// Returns what the kernel should have follows from, with these policies.
    fn input<'a>(&'a self, goal: &'a Goal, policies: &'a PolicySet) -> Input<'a> {
        goal.input(policies, &self.config, self.names.resolved())
    }

    /// Takes up who the node is and what the control plane wants, the two of one moment: a rotation of the node's key
    /// changes the peers while nobody can look at the identity (see [`crate::state::PublishIdentity`]).
    fn take_up_news(&mut self) {
        let identity = self.wiring.identity.borrow_and_update();
        let desired = Arc::clone(&self.wiring.desired.borrow_and_update());
        self.goal = identity.clone().map(|identity| Goal { identity, desired });
    }

    async fn observe(&self, wanted: &Wanted, errors: &mut Vec<KernelError>) -> Observed {
        let mut keep = |result: Result<_, KernelError>| result.map_err(|error| errors.push(error)).ok();
        let empty = crate::policy::Table::default();
        let table = keep(self.kernel.firewall.observe(wanted.table.as_ref().unwrap_or(&empty)).await);
        let device = reading(self.kernel.wireguard.observe().await, errors);
        let interface = &self.config.mesh.interface;
        let link = reading(self.kernel.network.observe(interface).await, errors);
        // Which rules are looked at depends on the rest.
        Observed { table, device, link, rules: Reading::default() }
    }

    async fn observe_rules(&self, apart: &Apart, errors: &mut Vec<KernelError>) -> Reading<ObservedRules> {
        let (network, interface) = (&self.kernel.network, &self.config.mesh.interface);
        let rules = network.observe_rules(interface, &apart.tables(), &apart.towards).await;
        reading(rules.map(Some), errors)
    }

    fn report_blocked(&self, blocked: &[String]) {
        let shown = blocked.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        self.wiring.board.set(Subsystem::Mesh, "apart", (!shown.is_empty()).then_some(shown));
    }

    fn report(&self, errors: &[KernelError], conflicts: &[RouteConflict], without_log: bool) {
        let board = &self.wiring.board;
        let shown = errors.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join("; ");
        board.set(Subsystem::Mesh, "apply", (!errors.is_empty()).then_some(shown));
        board.set(Subsystem::Mesh, "routes", conflicts::of_routes(conflicts));
        if without_log {
            tracing::warn!(
                "this kernel cannot log denied packets (nft_log, nft_limit); they are counted only"
            );
        }
    }

    fn tell_drift(&self, cause: Cause, corrections: Vec<Correction>) {
        if corrections.is_empty() {
            return;
        }
        match cause {
            Cause::Check => {
                for correction in &corrections {
                    tracing::info!(kind = correction.kind.as_str(), detail = correction.detail, "corrected");
                }
                self.send_drift(corrections);
            }
            Cause::Start | Cause::Change => tracing::info!(changes = corrections.len(), "mesh updated"),
        }
    }

    fn send_drift(&self, corrections: Vec<Correction>) {
        if self.wiring.drift.try_send(corrections).is_err() {
            tracing::warn!("drift report dropped: earlier ones are still unsent");
        }
    }
}

fn reading<T>(result: Result<Option<T>, KernelError>, errors: &mut Vec<KernelError>) -> Reading<T> {
    match result {
        Ok(Some(there)) => Reading::There(there),
        Ok(None) => Reading::Absent,
        Err(error) => {
            errors.push(error);
            Reading::Unreadable
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
