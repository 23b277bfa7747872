//! The one owner of the desired state: verifies events, takes pulls over, makes each change durable and publishes it.
//! Talks to nobody; the loops in [`crate::control`] bring it what they received.

mod compiled;
mod forget;
mod history;
mod own_key;
mod payloads;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use plexd_proto::memory;
use tokio::sync::{mpsc, oneshot, watch};

use super::desired::Desired;
use super::model::{DataEntry, FullState, Peer, Rejected, SigningKeys};
use super::nonces::Nonces;
use super::payload;
use super::store::{EventMark, StateStore, Stored};
use crate::control::envelope::{self, Verified};
use crate::control::events;
use crate::policy::PolicySet;
use crate::reconcile::drift::Correction;
use crate::status::{Board, Subsystem};
use crate::storage::StorageError;
use crate::supervisor::Shutdown;
use crate::types::{Clock, PublicKey, SigningPublicKey};

pub use own_key::{Durability, PublishIdentity};

/// Requests that may wait.
const QUEUE: usize = 64;

/// Asks the keeper. Cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    requests: mpsc::Sender<Request>,
    desired: watch::Receiver<Arc<Desired>>,
    last_event_id: watch::Receiver<Option<Arc<str>>>,
}

/// The task that owns the state.
#[derive(Debug)]
pub struct StateKeeper {
    keeper: Keeper,
    /// Not within the keeper: a thread that holds a sender of its own would wait for ever once the task is gone.
    stop: mpsc::Sender<Request>,
}

/// What works on a thread of its own.
#[derive(Debug)]
struct Keeper {
    store: StateStore,
    clock: Arc<dyn Clock>,
    board: Board,
    nonces: Nonces,
    /// The newest state, published.
    desired: Arc<Desired>,
    /// The newest state on disk.
    stored: Arc<Desired>,
    /// The policies before the newest, until the identity is given up: news of them may be on their way.
    replaced: Option<Arc<PolicySet>>,
    /// Whether a pull follows that an event asked for: what it brings is news, not drift.
    awaits_pull: bool,
    /// Verified events handled since start; tells a pull that something happened meanwhile.
    events: u64,
    requests: mpsc::Receiver<Request>,
    publish: watch::Sender<Arc<Desired>>,
    last_event_id: watch::Sender<Option<Arc<str>>>,
}

#[derive(Debug)]
pub(super) enum Request {
    Event {
        id: Option<String>,
        data: Bytes,
        reply: oneshot::Sender<EventOutcome>,
    },
    SkipEvent {
        id: Option<String>,
        reply: oneshot::Sender<()>,
    },
    BeginPull(oneshot::Sender<PullTicket>),
    Pulled {
        ticket: PullTicket,
        state: Box<FullState>,
        reply: oneshot::Sender<PullOutcome>,
    },
    Enrolled {
        signing_key: SigningPublicKey,
        peers: Vec<Peer>,
        rejected: Vec<Rejected>,
        reply: oneshot::Sender<()>,
    },
    WantRotation(oneshot::Sender<()>),
    Rotated {
        key: PublicKey,
        peers: Vec<Peer>,
        publish: PublishIdentity,
        reply: oneshot::Sender<Durability>,
    },
    RotationRefused(oneshot::Sender<()>),
    Compiled(Arc<PolicySet>),
    Payloads {
        entries: Vec<Arc<DataEntry>>,
        reply: oneshot::Sender<io::Result<Option<Vec<Bytes>>>>,
    },
    LeaveToDisk(payload::Disk),
    Forget {
        publish: PublishIdentity,
        reply: oneshot::Sender<Result<(), StorageError>>,
    },
    Stop,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventOutcome {
    /// Why it was rejected, if it was.
    pub rejected: Option<&'static str>,
    /// Whether the state is to be pulled.
    pub pull: bool,
    /// What of it was refused, for the drift report.
    pub corrections: Vec<Correction>,
}

/// Drawn before a pull is sent, so that events that arrive meanwhile are not undone by an older answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullTicket(u64);

/// What became of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullOutcome {
    /// It is the state now; these parts of the local copy were wrong.
    Applied(Vec<Correction>),
    /// Events came meanwhile, so the answer may be older than what is known: pull again.
    Overtaken,
}

impl State {
    /// Opens the database at `path` and returns the handle and the task to be run. `registered` is the signing key that
    /// registration gave, which counts where the state has none: it may have been lost, and no state has to name keys.
    pub fn open(
        path: &std::path::Path,
        clock: Arc<dyn Clock>,
        board: Board,
        registered: Option<SigningPublicKey>,
    ) -> Result<(Self, StateKeeper), StorageError> {
        let (store, stored) = StateStore::open(path, clock.now())?;
        let Stored { mut desired, last_event_id, nonces, problem } = stored;
        board.set(Subsystem::Storage, "state", problem);
        if desired.signing_keys.is_none() {
            desired.signing_keys = registered.map(SigningKeys::only);
        }
        tell_rejected(&board, &desired);
        board.control(|control| control.last_event_id.clone_from(&last_event_id));
        let desired = Arc::new(desired);
        let (stop, requests) = mpsc::channel(QUEUE);
        let (publish, desired_seen) = watch::channel(Arc::clone(&desired));
        let (last_event_id, last_event_seen) = watch::channel(last_event_id.map(Into::into));
        let handle = Self { requests: stop.clone(), desired: desired_seen, last_event_id: last_event_seen };
        let keeper = Keeper {
            store,
            clock,
            board,
            nonces,
            stored: Arc::clone(&desired),
            replaced: None,
            desired,
            awaits_pull: false,
            events: 0,
            requests,
            publish,
            last_event_id,
        };
        Ok((handle, StateKeeper { keeper, stop }))
    }

    /// Returns the state to be watched.
    pub fn desired(&self) -> watch::Receiver<Arc<Desired>> {
        self.desired.clone()
    }

    /// Returns the id of the last event handled.
    pub fn last_event_id(&self) -> Option<Arc<str>> {
        self.last_event_id.borrow().clone()
    }

    /// Verifies and applies an event; `id` is the stream's, `data` the envelope.
    pub async fn event(&self, id: Option<String>, data: Bytes) -> io::Result<EventOutcome> {
        self.ask(|reply| Request::Event { id, data, reply }).await
    }

    /// Notes that an event that was too large to be read is done with.
    pub async fn skip_event(&self, id: Option<String>) -> io::Result<()> {
        self.ask(|reply| Request::SkipEvent { id, reply }).await
    }

    /// Draws a ticket, before a pull is sent.
    pub async fn begin_pull(&self) -> io::Result<PullTicket> {
        self.ask(Request::BeginPull).await
    }

    /// Takes the answer of a pull over.
    pub async fn pulled(&self, ticket: PullTicket, state: FullState) -> io::Result<PullOutcome> {
        self.ask(|reply| Request::Pulled { ticket, state: Box::new(state), reply }).await
    }

    /// Takes over what registration told: the signing key and the first peers.
    pub async fn enrolled(
        &self,
        signing_key: SigningPublicKey,
        peers: Vec<Peer>,
        rejected: Vec<Rejected>,
    ) -> io::Result<()> {
        self.ask(|reply| Request::Enrolled { signing_key, peers, rejected, reply }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> io::Result<T> {
        let stopped = || io::Error::other("the state keeper has stopped");
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

impl StateKeeper {
    /// Lets events be verified by the key that registration gave, where no state has told another: after a crash before the
    /// first one was stored, or with the stored one set aside.
    pub fn trust_at_first(&mut self, key: SigningPublicKey) {
        if self.keeper.desired.signing_keys.is_none() {
            let mut desired = Desired::clone(&self.keeper.desired);
            desired.signing_keys = Some(SigningKeys::only(key));
            self.keeper.desired = Arc::new(desired);
        }
    }

    /// Serves requests until asked to stop.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { keeper, stop } = self;
        let mut desired = keeper.publish.subscribe();
        // What was read at the start has not been told to anybody either.
        desired.mark_changed();
        let thread = tokio::task::spawn_blocking(move || keeper.serve());
        loop {
            // Cancel safe: only a stop cancels it.
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = payloads::leave_to_disk(&mut desired, &stop) => {}
            }
        }
        // The only failure is that the keeper has ended already.
        let _ = stop.send(Request::Stop).await;
        Ok(thread.await?)
    }
}

impl Keeper {
    fn serve(mut self) {
        while let Some(request) = self.requests.blocking_recv() {
            // A caller that no longer waits for its answer is no error.
            match request {
                Request::Event { id, data, reply } => {
                    let _ = reply.send(self.on_event(id, &data));
                }
                Request::SkipEvent { id, reply } => {
                    self.count_rejected(None, id.as_deref(), history::TOO_LARGE);
                    self.advance(Arc::clone(&self.desired), EventMark { event_id: id, nonce: None });
                    let _ = reply.send(());
                }
                Request::BeginPull(reply) => {
                    let _ = reply.send(PullTicket(self.events));
                }
                Request::Pulled { ticket, state, reply } => {
                    let _ = reply.send(self.on_pull(ticket, *state));
                    // A large answer takes several times its size for a moment.
                    memory::give_back();
                }
                Request::Enrolled { signing_key, peers, rejected, reply } => {
                    self.on_enrolled(signing_key, peers, rejected);
                    let _ = reply.send(());
                }
                Request::WantRotation(reply) => {
                    self.set_rotation_wanted(true);
                    let _ = reply.send(());
                }
                Request::Rotated { key, peers, publish, reply } => {
                    let _ = reply.send(self.on_rotated(key, peers, publish));
                }
                Request::RotationRefused(reply) => {
                    self.set_rotation_wanted(false);
                    let _ = reply.send(());
                }
                Request::Compiled(policies) => self.on_compiled(&policies),
                Request::Payloads { entries, reply } => {
                    let _ = reply.send(self.store.payloads(&entries));
                }
                Request::LeaveToDisk(disk) => self.leave_to(&disk),
                Request::Forget { publish, reply } => {
                    let _ = reply.send(self.on_forget(publish));
                }
                Request::Stop => return,
            }
        }
    }

    fn on_event(&mut self, id: Option<String>, data: &[u8]) -> EventOutcome {
        let now = self.clock.now();
        if self.nonces.forget_expired(now)
            && let Err(error) = self.store.forget_nonces(now)
        {
            tracing::warn!(%error, "old nonces could not be removed");
        }
        let Some(keys) = self.desired.signing_keys.clone() else {
            self.count_rejected(envelope::claims(data), id.as_deref(), "signature");
            return self.reject(id, None, "signature", Pull::Yes);
        };
        let verified = match envelope::verify(data, &keys, now, &self.nonces) {
            Ok(verified) => verified,
            Err(rejection) => {
                self.count_rejected(envelope::claims(data), id.as_deref(), rejection.as_str());
                return self.reject(id, None, rejection.as_str(), Pull::No);
            }
        };
        let nonce = (Nonces::kept_as(&verified.nonce).into_owned(), nonce_expiry(&verified));
        let claims = history::claims_of(&verified);
        let event = match events::decode(&verified.event_type, &verified.payload) {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(event = verified.event_id, kind = verified.event_type, %error, "event has a bad payload");
                self.count_rejected(Some(claims), id.as_deref(), "payload");
                return self.reject(id, Some(nonce), "payload", Pull::Yes);
            }
        };
        let applied = self.desired.apply(event, now);
        self.events += 1;
        self.awaits_pull |= applied.pull;
        tracing::debug!(event = verified.event_id, kind = verified.event_type, "event accepted");
        self.advance(Arc::new(applied.desired), EventMark { event_id: id, nonce: Some(nonce) });
        self.remember_verified(claims, applied.unsupported.as_deref());
        self.board.control(|control| {
            control.accepted += 1;
            if let Some(kind) = &applied.unsupported {
                control.count_unsupported(kind);
            }
        });
        EventOutcome { rejected: None, pull: applied.pull, corrections: applied.corrections }
    }

    fn reject(
        &mut self,
        id: Option<String>,
        nonce: Option<(String, Timestamp)>,
        reason: &'static str,
        pull: Pull,
    ) -> EventOutcome {
        self.advance(Arc::clone(&self.desired), EventMark { event_id: id, nonce });
        EventOutcome { rejected: Some(reason), pull: pull == Pull::Yes, corrections: Vec::new() }
    }

    fn on_pull(&mut self, ticket: PullTicket, state: FullState) -> PullOutcome {
        if ticket.0 != self.events {
            return PullOutcome::Overtaken;
        }
        let rejected_data = describe(&state.rejected_data);
        self.board.set(Subsystem::ControlPlane, "rejected_entries", rejected_data);
        let rejected_keys = state.rejected_signing_keys.clone();
        self.board.set(
            Subsystem::ControlPlane,
            "signing_keys",
            rejected_keys.map(|reason| format!("the control plane sent unusable signing keys: {reason}")),
        );
        let (next, mut corrections) = self.desired.replaced_by(state);
        if std::mem::take(&mut self.awaits_pull) {
            corrections.retain(|correction| !correction.kind.is_local_state());
        }
        self.publish(Arc::new(next), None);
        // What could not be read from disk is there again.
        self.board.clear(Subsystem::Storage, "state");
        PullOutcome::Applied(corrections)
    }

    fn on_enrolled(&mut self, signing_key: SigningPublicKey, peers: Vec<Peer>, rejected: Vec<Rejected>) {
        let mut next = Desired::clone(&self.desired);
        next.signing_keys = Some(SigningKeys::only(signing_key));
        next.peers = peers.into_iter().map(|peer| (peer.id.clone(), Arc::new(peer))).collect();
        next.rejected_peers = rejected.into();
        // An answer that is still on its way was another identity's, and what the first one brings is no drift.
        self.events += 1;
        self.awaits_pull = true;
        // Ids of another identity's stream mean nothing to the new one's.
        self.publish(Arc::new(next), Some(EventMark { event_id: Some(String::new()), nonce: None }));
    }

    fn advance(&mut self, next: Arc<Desired>, mark: EventMark) {
        if let Some((nonce, expires)) = &mark.nonce {
            self.nonces.insert(nonce, *expires);
        }
        self.publish(next, Some(mark));
    }

    /// Makes the state durable, if that is possible.
    fn store(&mut self, next: &Arc<Desired>, mark: Option<&EventMark>) -> Durability {
        match self.store.commit(&self.stored, next, mark) {
            Ok(()) => {
                self.stored = Arc::clone(next);
                self.board.clear(Subsystem::Storage, "state_write");
                Durability::Durable
            }
            Err(error) => {
                let message =
                    format!("the state cannot be stored: {error}; free space in the data directory");
                self.board.raise(Subsystem::Storage, "state_write", message);
                Durability::InMemory
            }
        }
    }

    /// Makes the state durable, then visible. If it cannot be stored it is enforced all the same: what the node must do
    /// now matters more than what it will remember.
    fn publish(&mut self, next: Arc<Desired>, mark: Option<EventMark>) {
        self.store(&next, mark.as_ref());
        if let Some(id) = mark.and_then(|mark| mark.event_id) {
            let id = Some(id).filter(|id| !id.is_empty());
            self.board.control(|control| control.last_event_id.clone_from(&id));
            self.last_event_id.send_replace(id.map(Into::into));
        }
        if !Arc::ptr_eq(&next.policies, &self.desired.policies) {
            self.replaced = Some(Arc::clone(&self.desired.policies));
        }
        // Whoever watches looks at the whole state and the kernel: only for something.
        if !next.is_same_as(&self.desired) {
            tell_rejected(&self.board, &next);
            self.publish.send_replace(Arc::clone(&next));
        }
        self.desired = next;
    }
}

/// Tells what of the state is not as the control plane wants it.
fn tell_rejected(board: &Board, desired: &Desired) {
    let policies = desired
        .policies_rejected
        .as_deref()
        .map(|reason| format!("the newest policy set is invalid, the one before stays in force: {reason}"));
    board.set(Subsystem::Policy, "rejected", policies);
    board.set(Subsystem::Mesh, "rejected_peers", describe(&desired.rejected_peers));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pull {
    Yes,
    No,
}

fn nonce_expiry(verified: &Verified) -> Timestamp {
    verified.issued_at.checked_add(envelope::WINDOW).unwrap_or(Timestamp::MAX)
}

/// Names at most three of what was left out.
fn describe(rejected: &[Rejected]) -> Option<String> {
    let shown = rejected.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match rejected.len() {
        0 => None,
        1..=3 => Some(format!("left out: {shown}")),
        more => Some(format!("left out: {shown}; and {} more", more - 3)),
    }
}

#[cfg(test)]
mod tests;
