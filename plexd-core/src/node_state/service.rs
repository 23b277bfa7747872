//! The gRPC service of core.sock, and who may call what of it.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use plexd_proto::access::{Permit, Rule};
use plexd_proto::node::v1;
use plexd_proto::node::v1::node_state_server::NodeState;
use plexd_proto::transport::PeerCredentials;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};

use super::audit::Auditor;
use super::secrets::SecretReader;
use super::watch::{Sources, report_deleted, report_entry, stream};
use crate::identity::CurrentIdentity;
use crate::reports::{Counts, Put, Refusal, Reports};
use crate::state::Desired;

/// State streams at a time; the sidecar needs one, and a second while it restarts.
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
    Rule { rpc: "/plexd.node.v1.NodeState/GetSecret", who: Who::Sidecar },
    Rule { rpc: "/plexd.node.v1.NodeState/NoteDenials", who: Who::Sidecar },
    Rule { rpc: "/plexd.node.v1.NodeState/PutReport", who: Who::Sidecar },
    Rule { rpc: "/plexd.node.v1.NodeState/DeleteReport", who: Who::Sidecar },
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

/// The service.
#[derive(Debug, Clone)]
pub struct NodeStateService {
    sources: Sources,
    secrets: SecretReader,
    auditor: Auditor,
    streams: Arc<Semaphore>,
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
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    fn is_enrolled(&self) -> bool {
        self.sources.identity.borrow().is_some()
    }
}

#[tonic::async_trait]
impl NodeState for NodeStateService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let permit = Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many state streams"))?;
        let stream = stream(self.sources.clone()).map(move |item| {
            // Held for as long as the stream lives.
            let _ = &permit;
            item
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_secret(
        &self,
        request: Request<v1::GetSecretRequest>,
    ) -> Result<Response<v1::GetSecretResponse>, Status> {
        let request = request.into_inner();
        let read = self.auditor.begin(&request);
        let result = self.secrets.read(request).await;
        read.ended(&result);
        let result = match result {
            Ok(secret) => v1::get_secret_response::Result::Secret(secret),
            Err(refusal) => v1::get_secret_response::Result::Refusal(refusal.into()),
        };
        Ok(Response::new(v1::GetSecretResponse { result: Some(result) }))
    }

    async fn note_denials(
        &self,
        request: Request<v1::NoteDenialsRequest>,
    ) -> Result<Response<v1::NoteDenialsResponse>, Status> {
        request.into_inner().reads.iter().take(MAX_DENIALS).for_each(|read| self.auditor.denied(read));
        Ok(Response::new(v1::NoteDenialsResponse {}))
    }

    async fn put_report(
        &self,
        request: Request<v1::PutReportRequest>,
    ) -> Result<Response<v1::PutReportResponse>, Status> {
        use v1::put_report_response::Result as Answer;
        let v1::PutReportRequest { key, content_type, payload, if_match } = request.into_inner();
        let result = if self.is_enrolled() {
            match self.sources.reports.put(Put { key, content_type, payload, if_match }).await {
                Ok(entry) => Answer::Entry(report_entry(&entry)),
                Err(refused) => Answer::Refusal(refusal(refused)?.into()),
            }
        } else {
            Answer::Refusal(v1::ReportRefusal::NotRegistered.into())
        };
        Ok(Response::new(v1::PutReportResponse { result: Some(result) }))
    }

    async fn delete_report(
        &self,
        request: Request<v1::DeleteReportRequest>,
    ) -> Result<Response<v1::DeleteReportResponse>, Status> {
        use v1::delete_report_response::Result as Answer;
        let v1::DeleteReportRequest { key, if_match } = request.into_inner();
        let result = if self.is_enrolled() {
            match self.sources.reports.delete(key, if_match).await {
                Ok(deleted) => Answer::Deleted(report_deleted(deleted)),
                Err(refused) => Answer::Refusal(refusal(refused)?.into()),
            }
        } else {
            Answer::Refusal(v1::ReportRefusal::NotRegistered.into())
        };
        Ok(Response::new(v1::DeleteReportResponse { result: Some(result) }))
    }

    async fn count_reports(
        &self,
        _: Request<v1::CountReportsRequest>,
    ) -> Result<Response<v1::CountReportsResponse>, Status> {
        let Counts { entries, pending, conflicted } = *self.sources.reports.counts().borrow();
        Ok(Response::new(v1::CountReportsResponse { entries, pending, conflicted }))
    }
}

fn refusal(refusal: Refusal) -> Result<v1::ReportRefusal, Status> {
    Ok(match refusal {
        Refusal::NotFound => v1::ReportRefusal::NotFound,
        Refusal::VersionConflict => v1::ReportRefusal::VersionConflict,
        Refusal::TooManyEntries => v1::ReportRefusal::TooManyEntries,
        Refusal::InsufficientStorage => v1::ReportRefusal::InsufficientStorage,
        Refusal::StorageFailed => v1::ReportRefusal::StorageFailed,
        Refusal::Invalid => v1::ReportRefusal::Invalid,
        Refusal::Stopping => return Err(Status::unavailable("plexd-core is stopping")),
    })
}
