//! Writes of reports as they come from the sidecar: message by message into the queue of the one writer, several at a
//! time, and answered in their order. Decides nothing itself, but that a node that is not registered takes none.

use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{FuturesOrdered, unfold};
use futures_util::{FutureExt, Stream, StreamExt};
use plexd_proto::node::{MAX_WRITES, v1};
use tonic::Status;
use v1::report_outcome::Outcome;
use v1::report_write::Write as Wire;

use super::watch::report_deleted;
use crate::identity::CurrentIdentity;
use crate::reports::{Entry, Put, Refusal, Reports, Stopped, Write, Written};

/// Messages that are taken before the first of them is answered; for more the sidecar has to wait.
const MAX_UNDER_WAY: usize = 4;

type Answer = Result<v1::WriteReportsResponse, Status>;

/// A stream of writes.
pub(super) struct Writing<S> {
    messages: S,
    /// Whether there may be more.
    open: bool,
    reports: Reports,
    identity: CurrentIdentity,
    under_way: FuturesOrdered<BoxFuture<'static, Answer>>,
}

impl<S> Writing<S>
where
    S: Stream<Item = Result<v1::WriteReportsRequest, Status>> + Unpin + Send + 'static,
{
    pub(super) fn new(messages: S, reports: Reports, identity: CurrentIdentity) -> Self {
        Self { messages, open: true, reports, identity, under_way: FuturesOrdered::new() }
    }

    /// Returns what became of the writes, until the sidecar has no more, one of its messages is not what it must be, or
    /// nothing can be written any more.
    pub(super) fn answers(self) -> impl Stream<Item = Answer> + Send + 'static {
        unfold(Some(self), |writing| async {
            let mut writing = writing?;
            let answer = writing.next().await?;
            let goes_on = answer.is_ok().then_some(writing);
            Some((answer, goes_on))
        })
    }

    async fn next(&mut self) -> Option<Answer> {
        loop {
            if !self.open && self.under_way.is_empty() {
                return None;
            }
            let may_take = self.open && self.under_way.len() < MAX_UNDER_WAY;
            // Cancel safe: what is under way stays in `self`, and a message that is taken is put there at once, but for a
            // wait for room, which ends with the whole stream only.
            tokio::select! {
                biased;
                Some(answer) = self.under_way.next() => return Some(answer),
                message = self.messages.next(), if may_take => match message {
                    Some(Ok(message)) => {
                        let answer = self.take(message).await.unwrap_or_else(|status| ready(Err(status)).boxed());
                        self.under_way.push_back(answer);
                    }
                    Some(Err(status)) => return Some(Err(status)),
                    None => self.open = false,
                },
                () = self.reports.stopped(), if self.under_way.is_empty() => return None,
            }
        }
    }

    /// Puts the writes of `message` into the queue; those of the next come after them.
    async fn take(&mut self, message: v1::WriteReportsRequest) -> Result<BoxFuture<'static, Answer>, Status> {
        let count = message.writes.len();
        if count > MAX_WRITES {
            return Err(Status::invalid_argument("too many writes in one message"));
        }
        let writes: Option<Vec<Write>> = message.writes.into_iter().map(write).collect();
        let writes = writes.ok_or_else(|| Status::invalid_argument("a write of an unknown kind"))?;
        if self.identity.borrow().is_none() {
            let refused = v1::ReportRefusal::NotRegistered.into();
            let outcome = v1::ReportOutcome { outcome: Some(Outcome::Refusal(refused)) };
            let answer = v1::WriteReportsResponse { outcomes: vec![outcome; count] };
            return Ok(ready(Ok(answer)).boxed());
        }
        let pending = self.reports.submit(writes).await.map_err(stopping)?;
        let answer = async {
            let outcomes = pending.outcomes().await.map_err(stopping)?;
            Ok(v1::WriteReportsResponse { outcomes: outcomes.into_iter().map(outcome).collect() })
        };
        Ok(answer.boxed())
    }
}

fn write(write: v1::ReportWrite) -> Option<Write> {
    Some(match write.write? {
        Wire::Put(v1::ReportPut { key, content_type, payload, if_match }) => {
            Write::Put(Put { key, content_type, payload, if_match })
        }
        Wire::Delete(v1::ReportDelete { key, if_match }) => Write::Delete { key, if_match },
    })
}

fn outcome(outcome: Result<Written, Refusal>) -> v1::ReportOutcome {
    let outcome = match outcome {
        Ok(Written::Put(Entry { version, updated_at, revision, .. })) => {
            Outcome::Written(v1::ReportWritten { version, updated_at, revision })
        }
        Ok(Written::Deleted(deleted)) => Outcome::Deleted(report_deleted(deleted)),
        Err(refused) => Outcome::Refusal(refusal(refused).into()),
    };
    v1::ReportOutcome { outcome: Some(outcome) }
}

fn refusal(refusal: Refusal) -> v1::ReportRefusal {
    match refusal {
        Refusal::NotFound => v1::ReportRefusal::NotFound,
        Refusal::VersionConflict => v1::ReportRefusal::VersionConflict,
        Refusal::TooManyEntries => v1::ReportRefusal::TooManyEntries,
        Refusal::InsufficientStorage => v1::ReportRefusal::InsufficientStorage,
        Refusal::StorageFailed => v1::ReportRefusal::StorageFailed,
        Refusal::Invalid => v1::ReportRefusal::Invalid,
    }
}

fn stopping(_: Stopped) -> Status {
    Status::unavailable("plexd-core is stopping")
}

#[cfg(test)]
mod tests;
