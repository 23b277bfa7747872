//! The one way to plexd-core: calls on behalf of a request, each with a deadline, and the stream that feeds the
//! mirror ([`follow()`]). Core's refusals are passed on as they are; everything else that can go wrong between the two
//! processes is one thing to a caller: core is not available.

mod backoff;
mod denials;
mod follow;
#[cfg(test)]
mod puppet;
mod secrets;
mod writes;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plexd_proto::node::v1::node_state_client::NodeStateClient;
use plexd_proto::node::v1::{
    CountReportsRequest, CountReportsResponse, LocalCaller, ReportRefusal, Secret, SecretRefusal,
};
use plexd_proto::settings::CoreSockets;
use plexd_proto::transport::{self, ClientSocket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Response, Status};

pub use follow::follow;

use denials::Denials;
use secrets::{Reader, Reads};
use writes::{Write, Writer};

use crate::mirror::{Entry, Mirror};

/// Longest wait for a secret, which core fetches from the control plane.
const SECRET_DEADLINE: Duration = Duration::from_secs(40);
/// Longest wait for a report to be durable, in the queue and under way each.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for what core knows without asking anybody.
const COUNT_DEADLINE: Duration = Duration::from_secs(1);
/// Largest message: a payload of the largest `max_report_bytes`, and room for the rest of its entry.
const MAX_MESSAGE: usize = 72 * 1024 * 1024;

/// A way to plexd-core. Connects when it is first used, and again when the connection was lost.
#[derive(Debug, Clone)]
pub struct Core {
    client: NodeStateClient<Channel>,
    reads: Reads,
    writes: mpsc::Sender<writes::Waiting>,
    denials: Arc<Denials>,
}

/// What carries writes and reads of secrets to plexd-core and brings the answers. Without it there is no core.
#[derive(Debug)]
pub struct Carrier {
    reader: Reader,
    writer: Writer,
}

impl Carrier {
    /// Carries until `ended`, when nobody waits for an answer any more.
    pub async fn run(mut self, ended: CancellationToken) {
        // Safe to cancel: nobody waits.
        let both = async { tokio::join!(self.reader.run(), self.writer.run()) };
        ended.run_until_cancelled(both).await;
    }
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError<R: std::fmt::Debug> {
    /// Core does not answer, or not in time, or not what the protocol says.
    #[error("plexd-core is not available: {0}")]
    Unavailable(String),
    /// Core refuses.
    #[error("plexd-core refuses: {0:?}")]
    Refused(R),
}

/// What shows core who reads a secret.
#[derive(Debug)]
pub enum Proof {
    /// The client's connection to `api.sock`.
    Socket(ClientSocket),
    /// The bearer token that a TCP client presented.
    Token(Bytes),
}

/// A report to be written.
#[derive(Debug)]
pub struct Report {
    /// The key.
    pub key: String,
    /// The media type.
    pub content_type: String,
    /// One JSON value.
    pub payload: Bytes,
    /// The version that must be current; 0: only if absent.
    pub if_match: Option<i64>,
}

impl Core {
    /// Creates a way to the core that listens at `sockets`, and what is to be run for it; what core answers to writes shows
    /// in `mirror` at once.
    pub fn new(sockets: &CoreSockets, mirror: Arc<Mirror>) -> (Self, Carrier) {
        let client = NodeStateClient::new(transport::connect(&sockets.socket));
        let client = client.max_decoding_message_size(MAX_MESSAGE);
        let (writer, queue) = Writer::new(client.clone(), mirror);
        let (reader, reads) = Reader::new(client.clone(), &sockets.proof_socket);
        (Self { client, reads, writes: queue, denials: Arc::default() }, Carrier { reader, writer })
    }

    /// Fetches a secret for whom `proof` shows.
    pub async fn secret(&self, key: String, proof: Proof) -> Result<Secret, CallError<SecretRefusal>> {
        tokio::time::timeout(SECRET_DEADLINE, self.reads.read(key, proof)).await.unwrap_or_else(|_| {
            tracing::debug!(seconds = SECRET_DEADLINE.as_secs(), "secret not answered in time");
            Err(CallError::late())
        })
    }

    /// Notes that a read of the secret `key` was refused, of a process on the Unix socket or else of a TCP client; core is
    /// told by [`follow()`].
    pub fn denied(&self, key: String, local: Option<LocalCaller>) {
        self.denials.note(key, local);
    }

    /// Writes a report; once this returns, the mirror shows it.
    pub async fn put(&self, report: Report) -> Result<Arc<Entry>, CallError<ReportRefusal>> {
        self.write(Write::Put(report)).await?.ok_or_else(CallError::empty)
    }

    /// Deletes a report; once this returns, the mirror no longer shows it.
    pub async fn delete(&self, key: String, if_match: Option<i64>) -> Result<(), CallError<ReportRefusal>> {
        self.write(Write::Delete { key, if_match }).await.map(drop)
    }

    /// Has `write` carried to core; returns what is there now.
    async fn write(&self, write: Write) -> Result<Option<Arc<Entry>>, CallError<ReportRefusal>> {
        let gone = || CallError::Unavailable("nobody carries writes to it".into());
        let answered = async {
            let (waiting, answer) = writes::Waiting::new(write);
            self.writes.send(waiting).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        tokio::time::timeout(REPORT_DEADLINE, answered).await.unwrap_or_else(|_| {
            tracing::debug!(seconds = REPORT_DEADLINE.as_secs(), "write not answered in time");
            Err(CallError::late())
        })
    }

    /// Asks how many reports there are, and how they stand with the control plane.
    pub async fn count_reports(&self) -> Result<CountReportsResponse, CallError<Infallible>> {
        within(COUNT_DEADLINE, self.client.clone().count_reports(CountReportsRequest {})).await
    }
}

impl<R: std::fmt::Debug> CallError<R> {
    fn empty() -> Self {
        Self::Unavailable("it answered nothing".into())
    }

    fn late() -> Self {
        Self::Unavailable("no answer in time".into())
    }
}

async fn within<T, R: std::fmt::Debug>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError<R>> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            tracing::debug!(code = ?status.code(), message = status.message(), "call to core failed");
            Err(CallError::Unavailable(format!("{:?}", status.code())))
        }
        Err(_) => {
            tracing::debug!(seconds = deadline.as_secs(), "call to core not answered in time");
            Err(CallError::late())
        }
    }
}

/// A number that this process does not know reads as the refusal without a meaning, which fails closed.
fn refused<R: TryFrom<i32> + Default + std::fmt::Debug>(number: i32) -> CallError<R> {
    CallError::Refused(R::try_from(number).unwrap_or_default())
}
