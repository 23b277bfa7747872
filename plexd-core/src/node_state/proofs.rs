//! What the sidecar shows on `proof.sock` ([`plexd_proto::proof`]): connections, each greeted with a ticket and waiting for
//! the stream of reads that names it, and the sockets of clients that come on them, in the order of the reads.
//!
//! All of it is bounded: connections that wait, sockets that core has open, and what the log says of those that prove nothing.
//! What was passed is closed apart ([`custody`](super::custody)).

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plexd_proto::proof::{self, ReceiveError, Ticket};
use plexd_proto::transport::Incoming;
use tokio::time::Instant;

use super::custody::{Custody, Held};
use super::witness::{Client, Unproven, is_unix_stream};
use crate::supervisor::Shutdown;

/// Connections that wait for their stream; with more, the oldest goes. The sidecar has one, and one more while it restarts.
const WAITING: usize = 8;

/// How often the log tells of sockets that prove nothing, at most.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// What core is shown. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proofs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    api_socket: Box<Path>,
    waiting: Mutex<VecDeque<(Ticket, Held<UnixStream>)>>,
    custody: Custody,
    told: Mutex<Told>,
}

/// What the log was told.
#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    since: u64,
}

/// A connection that a stream of reads has taken over.
#[derive(Debug)]
pub(super) struct Shown {
    stream: Held<UnixStream>,
    proofs: Proofs,
}

/// A socket that was shown for a read.
pub(super) type Socket = Held<std::os::fd::OwnedFd>;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotShown {
    /// What came is not what the protocol says.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// It is a proof of another read.
    #[error("the proof of read {found} came for read {expected}")]
    AnotherRead {
        /// The read.
        expected: u64,
        /// The read that the message was about.
        found: u64,
    },
    /// Nothing more is taken.
    #[error("what plexd-api passed before cannot be closed")]
    Stuck,
    /// It is no Unix stream socket.
    #[error(transparent)]
    Unproven(#[from] Unproven),
}

impl Proofs {
    /// Creates it for clients of the listener at `api_socket`, of which core has the sockets of `room` open at most.
    pub fn new(api_socket: &Path, room: usize) -> Self {
        let shared = Shared {
            api_socket: api_socket.into(),
            waiting: Mutex::default(),
            custody: Custody::new(room),
            told: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes the connections of user `sidecar` until asked to stop.
    pub async fn serve(self, listener: StdListener, sidecar: u32, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut incoming = Incoming::with_descriptors(listener)?;
        // Safe to cancel: a connection is either still the kernel's or taken, and what is to be closed is in custody.
        let accepted =
            async { tokio::join!(self.accept(&mut incoming, sidecar), self.shared.custody.close()) };
        shutdown.run_until_cancelled(accepted).await;
        Ok(())
    }

    async fn accept(&self, incoming: &mut Incoming, sidecar: u32) {
        loop {
            // In a flood the kernel keeps the rest waiting.
            self.shared.custody.unstuck().await;
            let (stream, peer) = incoming.accept().await;
            let greeted = stream.into_std().map_err(Into::into).and_then(|stream| {
                // There may be descriptors in its queue already, which are closed with it.
                let stream = self.shared.custody.hold(stream);
                anyhow::ensure!(peer.uid == sidecar, "user {} is not plexd-api's", peer.uid);
                self.greet(stream)
            });
            if let Err(error) = greeted {
                tracing::debug!(%error, "connection to proof.sock closed");
            }
        }
    }

    /// Tells a connection its ticket; from now on it waits.
    fn greet(&self, stream: Held<UnixStream>) -> anyhow::Result<()> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let ticket = Ticket::new(random);
        // Who has heard its ticket finds it here.
        let mut waiting = self.waiting();
        // It fits: nothing has been sent before.
        stream.get().write_all(&ticket.greeting())?;
        if waiting.len() >= WAITING {
            waiting.pop_front();
        }
        waiting.push_back((ticket, stream));
        Ok(())
    }

    /// Returns the connection of `ticket`; it has one stream, and nobody gets it again.
    pub(super) fn claim(&self, ticket: &[u8]) -> Option<Shown> {
        let ticket = Ticket::parse(ticket)?;
        if self.shared.custody.is_stuck() {
            tracing::debug!("proof.sock is out of use: what plexd-api passed cannot be closed");
            return None;
        }
        let mut waiting = self.waiting();
        let index = waiting.iter().position(|(known, _)| *known == ticket)?;
        let (_, stream) = waiting.remove(index)?;
        Some(Shown { stream, proofs: self.clone() })
    }

    /// Looks at a socket that was shown.
    pub(super) fn see(&self, socket: Socket) -> Result<Client<Socket>, Unproven> {
        let seen = Client::see(socket, &self.shared.api_socket);
        match &seen {
            // Clients leave when they like.
            Ok(_) | Err(Unproven::Left) => {}
            Err(error) => self.tell(error),
        }
        seen
    }

    /// Has the log say that a proof was none, once in a while.
    fn tell(&self, error: &(dyn std::error::Error + 'static)) {
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| last.elapsed() < TOLD_EVERY) {
            told.since += 1;
            return;
        }
        let others = std::mem::take(&mut told.since);
        told.last = Some(Instant::now());
        drop(told);
        let error = plexd_proto::explain(error);
        tracing::warn!(error, others, "a secret was asked for without proof of a client, and not given");
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(Ticket, Held<UnixStream>)>> {
        // Nothing that can panic is called while it is held.
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    /// Takes the socket that is shown for the read `id`: the next one, which must be there. `None` if there is no room.
    /// After an error the connection is of no more use.
    pub(super) fn take(&self, id: u64) -> Result<Option<Socket>, NotShown> {
        let result = self.next(id);
        if let Err(error) = &result {
            self.proofs.tell(error);
        }
        result
    }

    fn next(&self, id: u64) -> Result<Option<Socket>, NotShown> {
        let custody = &self.proofs.shared.custody;
        if custody.is_stuck() {
            return Err(NotShown::Stuck);
        }
        let (found, socket) = match proof::receive(&self.stream) {
            Ok((found, socket)) => (found, custody.take(socket)),
            Err(ReceiveError::NotAMessage { bytes, descriptors }) => {
                for descriptor in descriptors {
                    drop(custody.hold(descriptor));
                }
                return Err(ReceiveError::NotAMessage { bytes, descriptors: Vec::new() }.into());
            }
            Err(error) => return Err(error.into()),
        };
        if found != id {
            return Err(NotShown::AnotherRead { expected: id, found });
        }
        match socket {
            Some(socket) if !is_unix_stream(&socket) => Err(Unproven::NotAStream.into()),
            socket => Ok(socket),
        }
    }
}

#[cfg(test)]
mod tests;
