//! Reads of secrets on their way to plexd-core: one stream for all of them, so that neither process pays for a call each,
//! and beside it one connection to `proof.sock`, on which core is shown the socket of each client, before its read.
//! Every read is a request of its own there, answered when it has ended. When its client leaves, core is told and breaks it
//! off. When the stream breaks, what was not answered failed. It is ended when nothing is read for a moment: its buffers
//! have had secrets in them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plexd_proto::node::v1::node_state_client::NodeStateClient;
use plexd_proto::node::v1::secret_answer::Result as Answered;
use plexd_proto::node::v1::secret_read::Caller;
use plexd_proto::node::v1::{
    ReadSecretsRequest, ReadSecretsResponse, Secret, SecretAnswer, SecretRead, SecretRefusal, ShownCaller,
    TcpCaller,
};
use plexd_proto::node::{MAX_READS, MAX_READS_UNDER_WAY};
use plexd_proto::proof::Prover;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{CallError, Proof, refused};

/// Reads that wait to be sent; who comes after them waits to be one.
const QUEUE: usize = 1024;

/// Messages that wait to be taken by the connection. Each has a read that is under way, or the end of one.
const MESSAGES: usize = 2 * MAX_READS_UNDER_WAY;

/// How long core may take to open a stream.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long core may take to greet.
const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// How soon proofs are tried again that core's socket had no room for.
const RETRY: Duration = Duration::from_millis(1);

/// How long a stream stays on which nothing is under way.
const IDLE: Duration = Duration::from_millis(500);

/// What comes of a read.
type Answer = Result<Secret, CallError<SecretRefusal>>;

/// A read that somebody waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    key: String,
    proof: Proof,
    reply: oneshot::Sender<Answer>,
    id: u64,
}

/// Tells that nobody waits for a read any more when it is dropped before there was an answer.
#[derive(Debug)]
struct Interest<'a> {
    id: u64,
    left: &'a Left,
    answered: bool,
}

/// Reads that nobody waits for any more.
#[derive(Debug, Default)]
struct Left {
    ids: Mutex<Vec<u64>>,
    news: Notify,
}

impl Left {
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.left.ids.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        self.left.news.notify_one();
    }
}

/// The way to the reader. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    queue: mpsc::Sender<Waiting>,
    left: Arc<Left>,
    next: Arc<AtomicU64>,
}

impl Reads {
    /// Has the secret `key` read for whom `proof` shows.
    pub(super) async fn read(&self, key: String, proof: Proof) -> Answer {
        let gone = || CallError::Unavailable("nobody carries reads to it".into());
        let (reply, answer) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting { key, proof, reply, id };
        self.queue.send(waiting).await.map_err(|_| gone())?;
        let mut interest = Interest { id, left: &self.left, answered: false };
        let answer = answer.await;
        interest.answered = true;
        answer.map_err(|_| gone())?
    }
}

/// Carries reads to core.
#[derive(Debug)]
pub(super) struct Reader {
    client: NodeStateClient<Channel>,
    proof_socket: PathBuf,
    queue: mpsc::Receiver<Waiting>,
    left: Arc<Left>,
}

/// One stream, with what is under way on it.
struct Conversation {
    messages: mpsc::Sender<ReadSecretsRequest>,
    prover: Prover,
    /// Whether core has heard the ticket.
    begun: bool,
    /// Reads whose clients are not shown yet, in their order.
    waiting: VecDeque<Waiting>,
    under_way: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl Reader {
    pub(super) fn new(client: NodeStateClient<Channel>, proof_socket: &Path) -> (Self, Reads) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let left = Arc::<Left>::default();
        let reader = Self { client, proof_socket: proof_socket.into(), queue, left: Arc::clone(&left) };
        (reader, Reads { queue: sender, left, next: Arc::default() })
    }

    /// Carries reads as long as anybody may have some. Core is asked for a stream with the first read, and again with the
    /// first after that ended.
    pub(super) async fn run(&mut self) {
        while let Some(first) = self.queue.recv().await {
            let connected = timeout(GREETING_DEADLINE, Prover::connect(&self.proof_socket)).await;
            let reads = self.gather(first, MAX_READS_UNDER_WAY);
            let prover = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(prover) => prover,
                Err(error) => {
                    tracing::debug!(%error, "core does not greet on proof.sock");
                    for waiting in reads {
                        waiting.fail("proof.sock");
                    }
                    continue;
                }
            };
            let (messages, outgoing) = mpsc::channel(MESSAGES);
            let mut conversation = Conversation {
                messages,
                prover,
                begun: false,
                waiting: VecDeque::new(),
                under_way: BTreeMap::new(),
            };
            let end = match conversation.send(reads, Vec::new()) {
                Ok(()) => self.converse(&mut conversation, outgoing).await,
                Err(status) => status,
            };
            let (code, message) = (end.code(), end.message());
            tracing::debug!(?code, message, "no more secrets on this stream from core");
            let why = format!("{code:?}");
            for waiting in conversation.waiting {
                waiting.fail(&why);
            }
            for reply in conversation.under_way.into_values() {
                let _ = reply.send(Err(CallError::Unavailable(why.clone())));
            }
        }
    }

    /// Carries reads on one stream, until it is of no more use. The first message has been sent.
    async fn converse(
        &mut self,
        conversation: &mut Conversation,
        outgoing: mpsc::Receiver<ReadSecretsRequest>,
    ) -> Status {
        let opened = self.client.read_secrets(ReceiverStream::new(outgoing));
        let mut answers: Streaming<ReadSecretsResponse> =
            match timeout_at(Instant::now() + OPEN_DEADLINE, opened).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return status,
                Err(_) => return Status::deadline_exceeded("the stream was not opened in time"),
            };
        loop {
            let waits = !conversation.waiting.is_empty();
            let room = MAX_READS_UNDER_WAY - conversation.under_way.len() - conversation.waiting.len();
            // Cancel safe: a message of the stream that is not complete stays with the stream, a read in the queue, and who
            // has left in the list.
            let sent = tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        answer.answers.into_iter().for_each(|answer| conversation.settle(answer));
                        conversation.send(Vec::new(), Vec::new())
                    }
                    Ok(None) => return Status::unavailable("core ended the stream"),
                    Err(status) => return status,
                },
                () = self.left.news.notified() => conversation.send(Vec::new(), self.left.take()),
                first = self.queue.recv(), if room > 0 => match first {
                    Some(first) => conversation.send(self.gather(first, room), Vec::new()),
                    None => return Status::cancelled("nobody reads any more"),
                },
                () = sleep(RETRY), if waits => conversation.send(Vec::new(), Vec::new()),
                () = sleep(IDLE), if !waits && conversation.under_way.is_empty() => {
                    return Status::ok("nothing is read at present");
                }
            };
            if let Err(status) = sent {
                return status;
            }
        }
    }

    /// Returns what waits, at most `room` of it.
    fn gather(&mut self, first: Waiting, room: usize) -> Vec<Waiting> {
        let mut reads = vec![first];
        while reads.len() < room.min(MAX_READS)
            && let Ok(waiting) = self.queue.try_recv()
        {
            reads.push(waiting);
        }
        // Who has left is not asked for.
        reads.retain(|waiting| !waiting.reply.is_closed());
        reads
    }
}

impl Waiting {
    fn fail(self, why: &str) {
        let _ = self.reply.send(Err(CallError::Unavailable(why.to_owned())));
    }
}

impl Conversation {
    /// Shows core the clients of `reads`, and of those that wait, as far as there is room, and sends a message with these
    /// reads and with those of `left` that are under way, if there are any.
    fn send(&mut self, reads: Vec<Waiting>, mut left: Vec<u64>) -> Result<(), Status> {
        self.waiting.extend(reads);
        left.retain(|id| self.under_way.remove(id).is_some());
        let mut message = ReadSecretsRequest { reads: Vec::new(), given_up: left, ..Default::default() };
        while message.reads.len() < MAX_READS
            && let Some(next) = self.waiting.pop_front()
        {
            // Nothing is asked for who has left.
            if next.reply.is_closed() {
                continue;
            }
            let Some(caller) = self.shown(&next)? else {
                self.waiting.push_front(next);
                break;
            };
            message.reads.push(SecretRead { id: next.id, key: next.key, caller: Some(caller) });
            self.under_way.insert(next.id, next.reply);
        }
        if message.reads.is_empty() && message.given_up.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.begun, true) {
            message.ticket = self.prover.ticket().as_bytes().to_vec().into();
        }
        self.messages.try_send(message).map_err(|_| Status::unavailable("core takes no more"))
    }

    /// Shows core the client of a read that is sent next; returns how the read names it, `None` if there is no room.
    fn shown(&self, waiting: &Waiting) -> Result<Option<Caller>, Status> {
        Ok(match &waiting.proof {
            Proof::Token(token) => Some(Caller::Tcp(TcpCaller { token: token.clone() })),
            Proof::Socket(socket) => {
                let sent = self.prover.send(waiting.id, socket);
                sent.map_err(|_| Status::unavailable("core takes no more proofs"))?
                    .then_some(Caller::Shown(ShownCaller {}))
            }
        })
    }

    fn settle(&mut self, answer: SecretAnswer) {
        // Nobody: the client has left meanwhile.
        let Some(reply) = self.under_way.remove(&answer.id) else { return };
        let answer = match answer.result {
            Some(Answered::Secret(secret)) => Ok(secret),
            Some(Answered::Refusal(refusal)) => Err(refused(refusal)),
            None => Err(CallError::empty()),
        };
        let _ = reply.send(answer);
    }
}

#[cfg(test)]
mod tests;
