//! The gRPC service of core.sock, and who may call what of it.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use plexd_proto::access::{Permit, Rule};
use plexd_proto::node::v1;
use plexd_proto::node::v1::node_state_server::NodeState;
use plexd_proto::transport::PeerCredentials;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use super::audit::Auditor;
use super::reads::Reading;
use super::secrets::SecretReader;
use super::watch::{Sources, stream};
use super::writes::Writing;
use crate::identity::CurrentIdentity;
use crate::reports::{Counts, Reports};
use crate::state::Desired;

/// Streams of each kind at a time; the sidecar needs one, and a second while it restarts.
const MAX_STREAMS: usize = 4;

/// Refused reads of secrets that are noted at a time.
const MAX_DENIALS: usize = 5_000;

/// Who may call an RPC of core.sock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The sidecar's user, or root.
    Sidecar,
}

/// Who may call what.
pub const RULES: &[Rule<Who>] = &[
    Rule { rpc: "/plexd.node.v1.NodeState/Watch", who: Who::Sidecar },
    Rule { rpc: "/plexd.node.v1.NodeState/ReadSecrets", who: Who::Sidecar },
    Rule { rpc: "/plexd.node.v1.NodeState/NoteDenials", who: Who::Sidecar },
    Rule { rpc: "/plexd.node.v1.NodeState/WriteReports", who: Who::Sidecar },
    Rule { rpc: "/plexd.node.v1.NodeState/CountReports", who: Who::Sidecar },
];

/// Knows the sidecar by its uid.
#[derive(Debug, Clone, Copy)]
pub struct Sidecar {
    /// The uid of plexd-api.
    pub uid: u32,
}

impl Permit<Who> for Sidecar {
    fn permits(&self, peer: &PeerCredentials, who: Who) -> bool {
        match who {
            Who::Sidecar => peer.uid == self.uid || peer.uid == 0,
        }
    }
}

/// What a caller gets one after the other.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// The service.
#[derive(Debug, Clone)]
pub struct NodeStateService {
    sources: Sources,
    secrets: SecretReader,
    auditor: Auditor,
    watchers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
}

impl NodeStateService {
    /// Creates the service.
    pub fn new(
        desired: watch::Receiver<Arc<Desired>>,
        identity: CurrentIdentity,
        reports: Reports,
        secrets: SecretReader,
        auditor: Auditor,
    ) -> Self {
        let token = secrets.token();
        Self {
            sources: Sources { desired, identity, reports, token },
            secrets,
            auditor,
            watchers: Arc::new(Semaphore::new(MAX_STREAMS)),
            readers: Arc::new(Semaphore::new(MAX_STREAMS)),
            writers: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

/// Returns `stream`, which holds one of `places` for as long as it lives.
fn in_place<T: Send + 'static>(
    places: &Arc<Semaphore>,
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Result<Response<Answers<T>>, Status> {
    let place = Arc::clone(places).try_acquire_owned();
    let place = place.map_err(|_| Status::resource_exhausted("too many streams"))?;
    let stream = stream.map(move |item| {
        let _ = &place;
        item
    });
    Ok(Response::new(stream.boxed()))
}

#[tonic::async_trait]
impl NodeState for NodeStateService {
    type WatchStream = Answers<v1::WatchResponse>;
    type ReadSecretsStream = Answers<v1::ReadSecretsResponse>;
    type WriteReportsStream = Answers<v1::WriteReportsResponse>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        in_place(&self.watchers, stream(self.sources.clone()))
    }

    async fn read_secrets(
        &self,
        request: Request<Streaming<v1::ReadSecretsRequest>>,
    ) -> Result<Response<Self::ReadSecretsStream>, Status> {
        let identity = self.sources.identity.clone();
        let reading =
            Reading::new(request.into_inner(), self.secrets.clone(), self.auditor.clone(), identity);
        in_place(&self.readers, reading.answers())
    }

    async fn note_denials(
        &self,
        request: Request<v1::NoteDenialsRequest>,
    ) -> Result<Response<v1::NoteDenialsResponse>, Status> {
        request.into_inner().reads.iter().take(MAX_DENIALS).for_each(|read| self.auditor.denied(read));
        Ok(Response::new(v1::NoteDenialsResponse {}))
    }

    async fn write_reports(
        &self,
        request: Request<Streaming<v1::WriteReportsRequest>>,
    ) -> Result<Response<Self::WriteReportsStream>, Status> {
        let Sources { reports, identity, .. } = &self.sources;
        let writing = Writing::new(request.into_inner(), reports.clone(), identity.clone());
        in_place(&self.writers, writing.answers())
    }

    async fn count_reports(
        &self,
        _: Request<v1::CountReportsRequest>,
    ) -> Result<Response<v1::CountReportsResponse>, Status> {
        let Counts { entries, pending, conflicted } = *self.sources.reports.counts().borrow();
        Ok(Response::new(v1::CountReportsResponse { entries, pending, conflicted }))
    }
}
