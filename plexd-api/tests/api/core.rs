//! A core for tests: the real gRPC service on a real socket, with reports in memory, secrets from a table, and a
//! stream that lags when told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt};
use plexd_proto::node::v1::change::Change as Wire;
use plexd_proto::node::v1::node_state_server::{NodeState, NodeStateServer};
use plexd_proto::node::v1::secret_answer::Result as SecretResult;
use plexd_proto::node::v1::{
    Change, CountReportsRequest, CountReportsResponse, DeniedRead, NoteDenialsRequest, NoteDenialsResponse,
    ReadSecretsRequest, ReadSecretsResponse, ReportDelete, ReportDeleted, ReportEntry, ReportOutcome,
    ReportPut, ReportRefusal, ReportWrite, ReportWritten, Secret, SecretAnswer as WireSecretAnswer,
    SecretRead, SecretRefusal, WatchRequest, WatchResponse, WriteReportsRequest, WriteReportsResponse,
    report_outcome, report_write,
};
use plexd_proto::proof::Ticket;
use plexd_proto::settings::CoreSockets;
use plexd_proto::transport::{self, Incoming, SocketOwner};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// What a read of a secret brings.
pub(crate) type SecretAnswer = Result<(&'static str, i64), SecretRefusal>;

#[derive(Default)]
pub(crate) struct Store {
    /// The state beside reports.
    pub(crate) state: Vec<Wire>,
    pub(crate) secrets: BTreeMap<String, SecretAnswer>,
    pub(crate) reports: BTreeMap<String, ReportEntry>,
    /// Refuses every write with this.
    pub(crate) refuse: Option<ReportRefusal>,
    /// Timestamps for the next writes.
    pub(crate) times: Vec<&'static str>,
    /// Whether the stream is silent about writes.
    pub(crate) lagging: bool,
    /// What requests for secrets said of their callers.
    pub(crate) callers: Vec<SecretRead>,
    /// Reads of secrets that were refused without asking.
    pub(crate) denied: Vec<DeniedRead>,
    versions: BTreeMap<String, i64>,
    revision: u64,
    streams: Vec<mpsc::UnboundedSender<Result<WatchResponse, Status>>>,
}

/// The core. Clones are the same one.
#[derive(Clone)]
pub(crate) struct FakeCore {
    sockets: CoreSockets,
    store: Arc<Mutex<Store>>,
    stop: CancellationToken,
}

impl FakeCore {
    /// Makes one whose sockets are in `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { sockets: CoreSockets::within(folder), store: Arc::default(), stop: CancellationToken::new() }
    }

    pub(crate) fn store(&self) -> std::sync::MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    pub(crate) fn sockets(&self) -> &CoreSockets {
        &self.sockets
    }

    /// Starts to listen.
    pub(crate) fn start(&mut self) {
        self.stop = CancellationToken::new();
        let owner = SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode: 0o600 };
        let listen = |path| transport::bind(path, owner).unwrap();
        let listener = Incoming::new(listen(&self.sockets.socket)).unwrap();
        let proofs = Incoming::with_descriptors(listen(&self.sockets.proof_socket)).unwrap();
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(greet(proofs)));
        let service = NodeStateServer::new(self.clone()).max_decoding_message_size(72 * 1024 * 1024);
        let stopped = self.stop.clone().cancelled_owned();
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming_shutdown(listener, stopped));
    }

    /// Dies: connections end, the socket file stays.
    pub(crate) fn kill(&self) {
        self.store().streams.clear();
        self.stop.cancel();
    }

    /// Sends a piece to everyone who watches.
    pub(crate) fn tell(&self, reset: bool, changes: Vec<Wire>, complete: bool) {
        self.store().tell(&piece(reset, changes, complete));
    }
}

/// Greets whoever comes, and believes the sidecar.
async fn greet(mut incoming: Incoming) {
    let mut connections = Vec::new();
    loop {
        let (mut connection, _) = incoming.accept().await;
        connection.write_all(&Ticket::new([0; 16]).greeting()).await.unwrap();
        connections.push(connection);
    }
}

pub(crate) fn piece(reset: bool, changes: Vec<Wire>, complete: bool) -> WatchResponse {
    let changes = changes.into_iter().map(|change| Change { change: Some(change) }).collect();
    WatchResponse { reset, changes, complete }
}

impl Store {
    fn tell(&mut self, piece: &WatchResponse) {
        self.streams.retain(|stream| stream.send(Ok(piece.clone())).is_ok());
    }

    fn check(&self, key: &str, if_match: Option<i64>) -> Result<(), ReportRefusal> {
        if let Some(refusal) = self.refuse {
            return Err(refusal);
        }
        let current = self.reports.get(key).map_or(0, |entry| entry.version);
        match if_match {
            Some(version) if version != current => Err(ReportRefusal::VersionConflict),
            _ => Ok(()),
        }
    }

    fn put(&mut self, request: ReportPut) -> Result<ReportEntry, ReportRefusal> {
        self.check(&request.key, request.if_match)?;
        self.revision += 1;
        let version = self.versions.entry(request.key.clone()).or_default();
        *version += 1;
        let updated_at = if self.times.is_empty() { "2026-01-01T00:00:00Z" } else { self.times.remove(0) };
        let entry = ReportEntry {
            key: request.key,
            content_type: request.content_type,
            payload: request.payload,
            version: *version,
            updated_at: updated_at.into(),
            revision: self.revision,
        };
        self.reports.insert(entry.key.clone(), entry.clone());
        self.told(Wire::Report(entry.clone()));
        Ok(entry)
    }

    fn delete(&mut self, request: ReportDelete) -> Result<ReportDeleted, ReportRefusal> {
        if !self.reports.contains_key(&request.key) {
            return Err(ReportRefusal::NotFound);
        }
        self.check(&request.key, request.if_match)?;
        self.reports.remove(&request.key);
        self.revision += 1;
        let gone = ReportDeleted { key: request.key, revision: self.revision };
        self.told(Wire::ReportDeleted(gone.clone()));
        Ok(gone)
    }

    fn read(&mut self, read: SecretRead) -> WireSecretAnswer {
        let answer = self.secrets.get(&read.key).copied().unwrap_or(Err(SecretRefusal::NotFound));
        let result = match answer {
            Ok((value, version)) => {
                SecretResult::Secret(Secret { key: read.key.clone(), value: value.into(), version })
            }
            Err(refusal) => SecretResult::Refusal(refusal.into()),
        };
        let id = read.id;
        self.callers.push(read);
        WireSecretAnswer { id, result: Some(result) }
    }

    fn write(&mut self, write: ReportWrite) -> ReportOutcome {
        let outcome = match write.write.unwrap() {
            report_write::Write::Put(put) => self.put(put).map(|entry| {
                let ReportEntry { version, updated_at, revision, .. } = entry;
                report_outcome::Outcome::Written(ReportWritten { version, updated_at, revision })
            }),
            report_write::Write::Delete(delete) => self.delete(delete).map(report_outcome::Outcome::Deleted),
        };
        let outcome = outcome.unwrap_or_else(|refusal| report_outcome::Outcome::Refusal(refusal.into()));
        ReportOutcome { outcome: Some(outcome) }
    }

    fn told(&mut self, change: Wire) {
        if !self.lagging {
            self.tell(&piece(false, vec![change], true));
        }
    }
}

#[tonic::async_trait]
impl NodeState for FakeCore {
    type WatchStream = UnboundedReceiverStream<Result<WatchResponse, Status>>;
    type ReadSecretsStream = Pin<Box<dyn Stream<Item = Result<ReadSecretsResponse, Status>> + Send>>;
    type WriteReportsStream = Pin<Box<dyn Stream<Item = Result<WriteReportsResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut store = self.store();
        let reports = store.reports.values().cloned().map(Wire::Report);
        let all: Vec<Wire> = store.state.iter().cloned().chain(reports).collect();
        // In two pieces, as a real core would send many.
        let half = all.len() / 2;
        sender.send(Ok(piece(true, all[..half].to_vec(), false))).unwrap();
        sender.send(Ok(piece(false, all[half..].to_vec(), true))).unwrap();
        store.streams.push(sender);
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn read_secrets(
        &self,
        request: Request<Streaming<ReadSecretsRequest>>,
    ) -> Result<Response<Self::ReadSecretsStream>, Status> {
        let core = self.clone();
        let answers = request.into_inner().map(move |message| {
            let mut store = core.store();
            let answers = message?.reads.into_iter().map(|read| store.read(read)).collect();
            Ok(ReadSecretsResponse { answers })
        });
        Ok(Response::new(answers.take_until(self.stop.clone().cancelled_owned()).boxed()))
    }

    async fn note_denials(
        &self,
        request: Request<NoteDenialsRequest>,
    ) -> Result<Response<NoteDenialsResponse>, Status> {
        self.store().denied.extend(request.into_inner().reads);
        Ok(Response::new(NoteDenialsResponse {}))
    }

    async fn write_reports(
        &self,
        request: Request<Streaming<WriteReportsRequest>>,
    ) -> Result<Response<Self::WriteReportsStream>, Status> {
        let core = self.clone();
        let answers = request.into_inner().map(move |message| {
            let mut store = core.store();
            let outcomes = message?.writes.into_iter().map(|write| store.write(write)).collect();
            Ok(WriteReportsResponse { outcomes })
        });
        Ok(Response::new(answers.take_until(self.stop.clone().cancelled_owned()).boxed()))
    }

    async fn count_reports(
        &self,
        _: Request<CountReportsRequest>,
    ) -> Result<Response<CountReportsResponse>, Status> {
        let entries = self.store().reports.len() as u64;
        Ok(Response::new(CountReportsResponse { entries, pending: entries, conflicted: 0 }))
    }
}
