//! Reads of secrets as they come from the sidecar, on one stream: each runs by itself, is answered when it has ended, and is
//! broken off when nobody waits for it any more. Answers that are ready together go together. Who may read what, and how
//! many at a time, is [`super::secrets`]'s to decide.

use std::collections::BTreeMap;

use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::{FuturesUnordered, unfold};
use futures_util::{FutureExt, Stream, StreamExt};
use plexd_proto::node::{MAX_READS, MAX_READS_UNDER_WAY, v1};
use tokio::sync::watch;
use tonic::Status;
use v1::SecretRefusal;
use v1::secret_answer::Result as Answered;
use v1::secret_read::Caller;

use super::audit::Auditor;
use super::proofs::Shown;
use super::secrets::{Presented, SecretReader};
use crate::identity::CurrentIdentity;

/// Most answers in one message, and bytes of values past which it takes no more.
const MAX_ANSWERS: (usize, usize) = (64, 1024 * 1024);

type Answers = Result<v1::ReadSecretsResponse, Status>;

/// A stream of reads.
pub(super) struct Reading<S> {
    messages: S,
    /// Whether there may be more.
    open: bool,
    secrets: SecretReader,
    auditor: Auditor,
    /// Where local callers are shown.
    shown: Option<Shown>,
    /// Gone with the process's other parts: then nothing more is read.
    identity: CurrentIdentity,
    under_way: FuturesUnordered<Abortable<BoxFuture<'static, v1::SecretAnswer>>>,
    /// By their ids, until they have ended.
    handles: BTreeMap<u64, AbortHandle>,
}

impl<S> Reading<S>
where
    S: Stream<Item = Result<v1::ReadSecretsRequest, Status>> + Unpin + Send + 'static,
{
    pub(super) fn new(
        messages: S,
        secrets: SecretReader,
        auditor: Auditor,
        identity: CurrentIdentity,
    ) -> Self {
        let (under_way, handles) = (FuturesUnordered::new(), BTreeMap::new());
        Self { messages, open: true, secrets, auditor, shown: None, identity, under_way, handles }
    }

    /// Returns what came of the reads, until the sidecar has no more, one of its messages is not what it must be, or the
    /// process stops.
    pub(super) fn answers(self) -> impl Stream<Item = Answers> + Send + 'static {
        unfold(Some(self), |reading| async {
            let mut reading = reading?;
            let answers = reading.next().await?;
            let goes_on = answers.is_ok().then_some(reading);
            Some((answers, goes_on))
        })
    }

    async fn next(&mut self) -> Option<Answers> {
        loop {
            if !self.open && self.under_way.is_empty() {
                return None;
            }
            // Cancel safe: what is under way stays in `self`, and a message that is taken is put there at once.
            tokio::select! {
                biased;
                Some(ended) = self.under_way.next() => if let Some(answers) = self.ended(ended.ok()) {
                    return Some(Ok(answers));
                },
                message = self.messages.next(), if self.open => match message {
                    Some(Ok(message)) => if let Err(status) = self.take(message) {
                        return Some(Err(status));
                    },
                    Some(Err(status)) => return Some(Err(status)),
                    None => self.open = false,
                },
                () = gone(&mut self.identity), if self.under_way.is_empty() => return None,
            }
        }
    }

    /// Returns the answer to the first that ended, unless it was broken off, and those of others that have ended, too.
    fn ended(&mut self, first: Option<v1::SecretAnswer>) -> Option<v1::ReadSecretsResponse> {
        let (mut answers, mut bytes) = (Vec::new(), 0);
        let mut ended = Some(first);
        while let Some(one) = ended {
            if let Some(answer) = one {
                self.handles.remove(&answer.id);
                bytes += size(&answer);
                answers.push(answer);
            }
            let more = answers.len() < MAX_ANSWERS.0 && bytes < MAX_ANSWERS.1;
            let next = if more { self.under_way.next().now_or_never().flatten() } else { None };
            ended = next.map(Result::ok);
        }
        (!answers.is_empty()).then_some(v1::ReadSecretsResponse { answers })
    }

    fn take(&mut self, message: v1::ReadSecretsRequest) -> Result<(), Status> {
        let v1::ReadSecretsRequest { reads, given_up, ticket } = message;
        if !ticket.is_empty() {
            let shown = self.secrets.proofs().claim(&ticket).filter(|_| self.shown.is_none());
            self.shown = Some(shown.ok_or_else(|| Status::failed_precondition("not a ticket that waits"))?);
        }
        // More than there may be would be the sidecar's mistake, and cost memory.
        if reads.len() > MAX_READS || self.handles.len() + reads.len() > MAX_READS_UNDER_WAY {
            return Err(Status::resource_exhausted("too many reads of secrets"));
        }
        for id in given_up {
            if let Some(handle) = self.handles.remove(&id) {
                handle.abort();
            }
        }
        for v1::SecretRead { id, key, caller } in reads {
            let presented = self.presented(id, caller)?;
            let (handle, registration) = AbortHandle::new_pair();
            if self.handles.insert(id, handle).is_some() {
                return Err(Status::invalid_argument("two reads of secrets with one id"));
            }
            let answered = answer(self.secrets.clone(), self.auditor.clone(), (id, key), presented);
            self.under_way.push(Abortable::new(answered.boxed(), registration));
        }
        Ok(())
    }

    /// Returns what the caller of the read `id` has to show. Its socket was sent before the read.
    fn presented(&self, id: u64, caller: Option<Caller>) -> Result<Presented, Status> {
        Ok(match (caller, &self.shown) {
            (Some(Caller::Tcp(caller)), _) => Presented::Token(caller.token),
            (Some(Caller::Shown(_)), Some(shown)) => match shown.take(id) {
                Ok(Some(socket)) => Presented::Socket(socket),
                // Later there may be room.
                Ok(None) => Presented::Nothing(SecretRefusal::Unspecified),
                Err(_) => return Err(Status::failed_precondition("proof.sock does not go with the reads")),
            },
            (Some(Caller::Shown(_)), None) | (None, _) => Presented::Nothing(SecretRefusal::Unproven),
        })
    }
}

/// Reads one; what comes of it is recorded, also when this is dropped.
async fn answer(
    secrets: SecretReader,
    auditor: Auditor,
    (id, key): (u64, String),
    presented: Presented,
) -> v1::SecretAnswer {
    let asker = secrets.look(presented);
    let read = auditor.begin(&asker, &key);
    let result = secrets.read(key, &asker).await;
    read.ended(&result);
    let result = match result {
        Ok(secret) => Answered::Secret(secret),
        Err(refusal) => Answered::Refusal(refusal.into()),
    };
    v1::SecretAnswer { id, result: Some(result) }
}

fn size(answer: &v1::SecretAnswer) -> usize {
    match &answer.result {
        Some(Answered::Secret(secret)) => secret.value.len(),
        Some(Answered::Refusal(_)) | None => 0,
    }
}

/// Returns once nobody publishes an identity any more: the process stops.
async fn gone<T>(identity: &mut watch::Receiver<T>) {
    while identity.changed().await.is_ok() {}
}

#[cfg(test)]
mod tests;
