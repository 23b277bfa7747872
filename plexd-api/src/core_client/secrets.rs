//! Reads of secrets on their way to plexd-core: one stream for all of them, so that neither process pays for a call each.
//! Every read is a request of its own there, answered when it has ended. When its client leaves, core is told and breaks it
//! off. When the stream breaks, what was not answered failed. It is ended when nothing is read for a moment: its buffers
//! have had secrets in them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plexd_proto::node::v1::node_state_client::NodeStateClient;
use plexd_proto::node::v1::secret_answer::Result as Answered;
use plexd_proto::node::v1::secret_read::Caller;
use plexd_proto::node::v1::{
    ReadSecretsRequest, ReadSecretsResponse, Secret, SecretAnswer, SecretRead, SecretRefusal,
};
use plexd_proto::node::{MAX_READS, MAX_READS_UNDER_WAY};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{CallError, refused};

/// Reads that wait to be sent; who comes after them waits to be one.
const QUEUE: usize = 1024;

/// Messages that wait to be taken by the connection. Each has a read that is under way, or the end of one.
const MESSAGES: usize = 2 * MAX_READS_UNDER_WAY;

/// How long core may take to open a stream.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a stream stays on which nothing is under way.
const IDLE: Duration = Duration::from_millis(500);

/// What comes of a read.
type Answer = Result<Secret, CallError<SecretRefusal>>;

/// A read that somebody waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    key: String,
    caller: Caller,
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
    /// Has the secret `key` read for `caller`.
    pub(super) async fn read(&self, key: String, caller: Caller) -> Answer {
        let gone = || CallError::Unavailable("nobody carries reads to it".into());
        let (reply, answer) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting { key, caller, reply, id };
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
    queue: mpsc::Receiver<Waiting>,
    left: Arc<Left>,
}

/// One stream, with what is under way on it.
struct Conversation {
    messages: mpsc::Sender<ReadSecretsRequest>,
    under_way: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl Reader {
    pub(super) fn new(client: NodeStateClient<Channel>) -> (Self, Reads) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let left = Arc::<Left>::default();
        (Self { client, queue, left: Arc::clone(&left) }, Reads { queue: sender, left, next: Arc::default() })
    }

    /// Carries reads as long as anybody may have some. Core is asked for a stream with the first read, and again with the
    /// first after that ended.
    pub(super) async fn run(&mut self) {
        while let Some(first) = self.queue.recv().await {
            let (messages, outgoing) = mpsc::channel(MESSAGES);
            let mut conversation = Conversation { messages, under_way: BTreeMap::new() };
            let end = match conversation.send(self.gather(first, MAX_READS_UNDER_WAY), Vec::new()) {
                Ok(()) => self.converse(&mut conversation, outgoing).await,
                Err(status) => status,
            };
            let (code, message) = (end.code(), end.message());
            tracing::debug!(?code, message, "no more secrets on this stream from core");
            for reply in conversation.under_way.into_values() {
                let _ = reply.send(Err(CallError::Unavailable(format!("{code:?}"))));
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
            let room = MAX_READS_UNDER_WAY - conversation.under_way.len();
            // Cancel safe: a message of the stream that is not complete stays with the stream, a read in the queue, and who
            // has left in the list.
            let sent = tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        answer.answers.into_iter().for_each(|answer| conversation.settle(answer));
                        Ok(())
                    }
                    Ok(None) => return Status::unavailable("core ended the stream"),
                    Err(status) => return status,
                },
                () = self.left.news.notified() => conversation.send(Vec::new(), self.left.take()),
                first = self.queue.recv(), if room > 0 => match first {
                    Some(first) => conversation.send(self.gather(first, room), Vec::new()),
                    None => return Status::cancelled("nobody reads any more"),
                },
                () = sleep(IDLE), if conversation.under_way.is_empty() => {
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

impl Conversation {
    /// Sends a message with `reads`, and with those of `left` that are under way, if there are any.
    fn send(&mut self, reads: Vec<Waiting>, mut left: Vec<u64>) -> Result<(), Status> {
        left.retain(|id| self.under_way.remove(id).is_some());
        let mut message = ReadSecretsRequest { reads: Vec::with_capacity(reads.len()), given_up: left };
        for Waiting { key, caller, reply, id } in reads {
            message.reads.push(SecretRead { id, key, caller: Some(caller) });
            self.under_way.insert(id, reply);
        }
        if message.reads.is_empty() && message.given_up.is_empty() {
            return Ok(());
        }
        self.messages.try_send(message).map_err(|_| Status::unavailable("core takes no more"))
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
