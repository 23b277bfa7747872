//! Writes of reports on their way to plexd-core: those that wait while others are under way go together in one message, so
//! that neither process pays for each, and core makes them durable together. A write that finds nothing under way is sent
//! at once. They keep their order, each has an outcome of its own, and a client that leaves takes no other's write with
//! it. When the stream breaks, what was not answered failed; it may have been done.

use std::collections::VecDeque;
use std::sync::Arc;

use plexd_proto::node::v1::node_state_client::NodeStateClient;
use plexd_proto::node::v1::report_outcome::Outcome;
use plexd_proto::node::v1::report_write::Write as Wire;
use plexd_proto::node::v1::{
    ReportDelete, ReportEntry, ReportOutcome, ReportPut, ReportRefusal, ReportWrite, ReportWritten,
    WriteReportsRequest, WriteReportsResponse,
};
use plexd_proto::node::{MAX_WRITES, MAX_WRITES_BYTES};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{CallError, REPORT_DEADLINE, Report, refused};
use crate::mirror::{Acknowledged, Entry, Mirror};

/// Messages under way: while core makes one durable, the next is on its way.
const MAX_UNDER_WAY: usize = 2;

/// Writes that wait; who comes after them waits to be one.
const QUEUE: usize = 1024;

/// What comes of a write: what is there now, if anything is.
type Answer = Result<Option<Arc<Entry>>, CallError<ReportRefusal>>;

/// A write.
#[derive(Debug)]
pub(super) enum Write {
    Put(Report),
    Delete { key: String, if_match: Option<i64> },
}

impl Write {
    fn size(&self) -> usize {
        match self {
            Self::Put(report) => report.key.len() + report.content_type.len() + report.payload.len(),
            Self::Delete { key, .. } => key.len(),
        }
    }
}

/// A write that somebody waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    write: Write,
    reply: oneshot::Sender<Answer>,
}

impl Waiting {
    pub(super) fn new(write: Write) -> (Self, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Self { write, reply }, answer)
    }

    fn fail(self, reason: &str) {
        let _ = self.reply.send(Err(CallError::Unavailable(reason.to_owned())));
    }
}

/// Carries writes to core.
#[derive(Debug)]
pub(super) struct Writer {
    client: NodeStateClient<Channel>,
    mirror: Arc<Mirror>,
    queue: mpsc::Receiver<Waiting>,
    /// The first of the next message, which found no room in the last.
    held: Option<Waiting>,
}

/// A message that is not answered yet.
struct Message {
    writes: Vec<Waiting>,
    deadline: Instant,
}

/// One stream, with what is under way on it, in order.
struct Conversation {
    messages: mpsc::Sender<WriteReportsRequest>,
    under_way: VecDeque<Message>,
}

impl Writer {
    pub(super) fn new(
        client: NodeStateClient<Channel>,
        mirror: Arc<Mirror>,
    ) -> (Self, mpsc::Sender<Waiting>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (Self { client, mirror, queue, held: None }, sender)
    }

    /// Carries writes as long as anybody may have some. Core is asked for a stream with the first write, and again with the
    /// first after that broke.
    pub(super) async fn run(&mut self) {
        while let Some(first) = self.next().await {
            let (messages, outgoing) = mpsc::channel(MAX_UNDER_WAY);
            let mut conversation = Conversation { messages, under_way: VecDeque::new() };
            conversation.send(self.gather(first));
            let end = self.converse(&mut conversation, outgoing).await;
            let (code, message) = (end.code(), end.message());
            tracing::debug!(?code, message, "no more writes on this stream to core");
            let reason = format!("{code:?}");
            conversation
                .under_way
                .into_iter()
                .flat_map(|message| message.writes)
                .for_each(|it| it.fail(&reason));
        }
    }

    /// Carries writes on one stream, until it is of no more use. The first message has been sent.
    async fn converse(
        &mut self,
        conversation: &mut Conversation,
        outgoing: mpsc::Receiver<WriteReportsRequest>,
    ) -> Status {
        let opened = self.client.write_reports(ReceiverStream::new(outgoing));
        let mut answers: Streaming<WriteReportsResponse> =
            match timeout_at(Instant::now() + REPORT_DEADLINE, opened).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return status,
                Err(_) => return Status::deadline_exceeded("the stream was not opened in time"),
            };
        loop {
            let deadline = conversation.under_way.front().map(|message| message.deadline);
            // Cancel safe: a message of the stream that is not complete stays with the stream, and a write in the queue.
            tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => if let Err(status) = self.settle(conversation, answer) {
                        return status;
                    },
                    Ok(None) => return Status::unavailable("core ended the stream"),
                    Err(status) => return status,
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Status::deadline_exceeded("no answer in time");
                }
                first = self.next(), if conversation.under_way.len() < MAX_UNDER_WAY => match first {
                    Some(first) => conversation.send(self.gather(first)),
                    None => return Status::cancelled("nobody writes any more"),
                },
            }
        }
    }

    /// Returns the next write that somebody waits for; `None` if there never will be one.
    async fn next(&mut self) -> Option<Waiting> {
        loop {
            let next = match self.held.take() {
                Some(held) => held,
                None => self.queue.recv().await?,
            };
            if !next.reply.is_closed() {
                return Some(next);
            }
        }
    }

    /// Returns what waits, as much of it as goes together, but `first` in any case.
    fn gather(&mut self, first: Waiting) -> Vec<Waiting> {
        let mut bytes = first.write.size();
        let mut writes = vec![first];
        while writes.len() < MAX_WRITES {
            let Ok(waiting) = self.queue.try_recv() else { break };
            if waiting.reply.is_closed() {
                // Whoever asked has left.
                continue;
            }
            bytes += waiting.write.size();
            if bytes > MAX_WRITES_BYTES {
                self.held = Some(waiting);
                break;
            }
            writes.push(waiting);
        }
        writes
    }

    /// Shows what was done, and answers who wait for it.
    fn settle(&self, conversation: &mut Conversation, answer: WriteReportsResponse) -> Result<(), Status> {
        let unasked = || Status::internal("core answers what was not asked");
        let Some(message) = conversation.under_way.front() else { return Err(unasked()) };
        if message.writes.len() != answer.outcomes.len() {
            return Err(unasked());
        }
        let Some(message) = conversation.under_way.pop_front() else { return Err(unasked()) };
        let (mut shown, mut replies) = (Vec::new(), Vec::new());
        for (Waiting { write, reply }, outcome) in message.writes.into_iter().zip(answer.outcomes) {
            let answer = outcome_of(write, outcome).map(|acknowledged| {
                let entry = acknowledged.entry.clone();
                shown.push(acknowledged);
                entry
            });
            replies.push((reply, answer));
        }
        // Before anybody hears of it.
        self.mirror.acknowledge(shown);
        for (reply, answer) in replies {
            // Whoever asked may have left.
            let _ = reply.send(answer);
        }
        Ok(())
    }
}

impl Conversation {
    /// Sends a message, for which there is room.
    fn send(&mut self, writes: Vec<Waiting>) {
        let message =
            WriteReportsRequest { writes: writes.iter().map(|waiting| wire(&waiting.write)).collect() };
        // Where nobody takes it the stream has ended, which says why.
        let _ = self.messages.try_send(message);
        self.under_way.push_back(Message { writes, deadline: Instant::now() + REPORT_DEADLINE });
    }
}

fn wire(write: &Write) -> ReportWrite {
    let write = match write {
        Write::Put(Report { key, content_type, payload, if_match }) => Wire::Put(ReportPut {
            key: key.clone(),
            content_type: content_type.clone(),
            payload: payload.clone(),
            if_match: *if_match,
        }),
        Write::Delete { key, if_match } => {
            Wire::Delete(ReportDelete { key: key.clone(), if_match: *if_match })
        }
    };
    ReportWrite { write: Some(write) }
}

fn outcome_of(write: Write, outcome: ReportOutcome) -> Result<Acknowledged, CallError<ReportRefusal>> {
    match (write, outcome.outcome) {
        (Write::Put(report), Some(Outcome::Written(ReportWritten { version, updated_at, revision }))) => {
            let Report { key, content_type, payload, .. } = report;
            let entry = ReportEntry { key, content_type, payload, version, updated_at, revision };
            Ok(Acknowledged::written(Arc::new(Entry::of_report(&entry))))
        }
        (Write::Delete { key, .. }, Some(Outcome::Deleted(gone))) => {
            Ok(Acknowledged::deleted(&key, gone.revision))
        }
        (_, Some(Outcome::Refusal(refusal))) => Err(refused(refusal)),
        _ => Err(CallError::empty()),
    }
}

#[cfg(test)]
mod tests;
