//! The endpoints, one method each.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH};
use serde::Serialize;
use tokio::time::timeout;

use crate::state::{FullState, Peer, PeerEndpoint};
use crate::types::PublicKey;

use super::super::convert::{self, Registration, Sifted};
use super::super::wire;
use super::endpoints as calls;
use super::{Answer, Call, Client, ClientError, Credential, Credentials, EventStream, REQUEST_TIMEOUT};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";

/// Answer to a state pull.
#[derive(Debug)]
pub enum StateAnswer {
    /// It is as it was when the given `ETag` came.
    NotModified,
    /// The state.
    State {
        /// The state, checked.
        state: Box<FullState>,
        /// To be given with the next pull.
        etag: Option<String>,
    },
}

impl Client {
    /// `POST /v1/register`: makes this machine a node.
    pub async fn register(&self, body: &wire::RegisterRequest) -> Result<Registration, ClientError> {
        let request = self.request(calls::REGISTER, &[], Credential::Token(body.token.expose()))?;
        let answer = self.exchange(request.json(body)?).await?;
        let response: wire::RegisterResponse<'_> =
            wire::parse_object(&answer.body).map_err(|reason| answer.unusable(reason))?;
        convert::registration(&response).map_err(|reason| answer.unusable(reason))
    }

    /// `GET /v1/nodes/{node_id}/state`: pulls the state, unless it is still the one of `etag`.
    pub async fn state(&self, who: &Credentials, etag: Option<&str>) -> Result<StateAnswer, ClientError> {
        let mut request = self.request(calls::STATE, &[who.node_id.as_str()], Credential::Node(who))?;
        let etag = etag.and_then(|etag| HeaderValue::from_str(etag).ok());
        let is_conditional = etag.is_some();
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let answer = self.exchange(request).await?;
        if answer.response.status() == StatusCode::NOT_MODIFIED && is_conditional {
            return Ok(StateAnswer::NotModified);
        }
        let etag = answer.response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        // Tens of megabytes may have to be parsed: not on a thread that serves others.
        let parsed = tokio::task::spawn_blocking(move || {
            let response = wire::parse_object::<wire::StateResponse<'_>>(&answer.body);
            response.map(|response| convert::state(&response)).map_err(|reason| answer.unusable(reason))
        });
        let state = parsed.await.map_err(|_| ClientError::Protocol {
            call: calls::STATE,
            reason: "parsing it was interrupted".to_owned(),
        })??;
        Ok(StateAnswer::State { state: Box::new(state), etag })
    }

    /// `GET /v1/nodes/{node_id}/events`: opens the event stream, after the event `last_event_id`.
    pub async fn events(
        &self,
        who: &Credentials,
        last_event_id: Option<&str>,
    ) -> Result<EventStream, ClientError> {
        let call = calls::EVENTS;
        let mut request = self
            .request(call, &[who.node_id.as_str()], Credential::Node(who))?
            .header(ACCEPT, HeaderValue::from_static(EVENT_STREAM));
        let id = last_event_id.filter(|id| !id.is_empty());
        if let Some(id) = id.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()) {
            request = request.header(LAST_EVENT_ID, id);
        }
        let limit: Duration = REQUEST_TIMEOUT;
        let response =
            timeout(limit, self.send(request)).await.map_err(|_| ClientError::Timeout { call, limit })??;
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
        if response.status() != StatusCode::OK || !essence.eq_ignore_ascii_case(EVENT_STREAM) {
            return Err(ClientError::Protocol {
                call,
                reason: format!("status {}, not a {EVENT_STREAM}", response.status().as_u16()),
            });
        }
        Ok(EventStream::new(response, self.ca_file.clone()))
    }

    /// `POST /v1/nodes/{node_id}/heartbeat`.
    pub async fn heartbeat(
        &self,
        who: &Credentials,
        body: &wire::HeartbeatRequest,
    ) -> Result<wire::HeartbeatResponse, ClientError> {
        let answer = self.submit(calls::HEARTBEAT, who, body).await?;
        if answer.is_empty() {
            return Ok(wire::HeartbeatResponse::default());
        }
        wire::parse_object(&answer.body).map_err(|reason| answer.unusable(reason))
    }

    /// `POST /v1/nodes/{node_id}/deregister`.
    pub async fn deregister(&self, who: &Credentials) -> Result<(), ClientError> {
        let request = self.request(calls::DEREGISTER, &[who.node_id.as_str()], Credential::Node(who))?;
        self.exchange(request).await.map(drop)
    }

    /// `POST /v1/keys/rotate`: announces the new key, and returns the peers with their new shared keys.
    pub async fn rotate_keys(&self, who: &Credentials, new: &PublicKey) -> Result<Sifted<Peer>, ClientError> {
        let body =
            wire::KeyRotateRequest { node_id: who.node_id.to_string(), new_public_key: new.to_string() };
        let request = self.request(calls::ROTATE, &[], Credential::Node(who))?;
        let answer = self.exchange(request.json(&body)?).await?;
        let response: wire::KeyRotateResponse<'_> =
            wire::parse_object(&answer.body).map_err(|reason| answer.unusable(reason))?;
        Ok(convert::peers(&response.updated_peers))
    }

    /// `PUT /v1/nodes/{node_id}/capabilities`.
    pub async fn capabilities(
        &self,
        who: &Credentials,
        body: &wire::CapabilitiesPayload,
    ) -> Result<(), ClientError> {
        self.submit(calls::CAPABILITIES, who, body).await.map(drop)
    }

    /// `PUT /v1/nodes/{node_id}/endpoint`: reports this node's endpoint, and returns those of its peers.
    pub async fn endpoint(
        &self,
        who: &Credentials,
        body: &wire::EndpointReport,
    ) -> Result<Sifted<PeerEndpoint>, ClientError> {
        let answer = self.submit(calls::ENDPOINT, who, body).await?;
        let response = if answer.is_empty() {
            wire::EndpointResponse::default()
        } else {
            wire::parse_object(&answer.body).map_err(|reason| answer.unusable(reason))?
        };
        Ok(convert::peer_endpoints(&response.peer_endpoints))
    }

    /// `POST /v1/nodes/{node_id}/drift`.
    pub async fn drift(&self, who: &Credentials, body: &wire::DriftReport) -> Result<(), ClientError> {
        self.submit(calls::DRIFT, who, body).await.map(drop)
    }

    /// `GET /v1/nodes/{node_id}/secrets/{key}`: fetches a secret, still encrypted.
    pub async fn secret(&self, who: &Credentials, key: &str) -> Result<wire::SecretResponse, ClientError> {
        let request = self.request(calls::SECRET, &[who.node_id.as_str(), key], Credential::Node(who))?;
        let answer = self.exchange(request).await?;
        let secret: wire::SecretResponse =
            wire::parse_object(&answer.body).map_err(|reason| answer.unusable(reason))?;
        if secret.key != key {
            return Err(answer.unusable("it is another secret than the one asked for".to_owned()));
        }
        Ok(secret)
    }

    /// `POST /v1/nodes/{node_id}/report`.
    pub async fn report(&self, who: &Credentials, body: &wire::ReportSyncRequest) -> Result<(), ClientError> {
        self.submit(calls::REPORT, who, body).await.map(drop)
    }

    /// `POST /v1/nodes/{node_id}/executions/{execution_id}/ack`.
    pub async fn acknowledge(&self, who: &Credentials, body: &wire::ExecutionAck) -> Result<(), ClientError> {
        self.submit_execution(calls::ACK, who, &body.execution_id, body).await
    }

    /// `POST /v1/nodes/{node_id}/executions/{execution_id}/result`.
    pub async fn result(&self, who: &Credentials, body: &wire::ExecutionResult) -> Result<(), ClientError> {
        self.submit_execution(calls::RESULT, who, &body.execution_id, body).await
    }

    /// Sends `body` to an endpoint of the node.
    async fn submit(
        &self,
        call: Call,
        who: &Credentials,
        body: &impl Serialize,
    ) -> Result<Answer, ClientError> {
        let request = self.request(call, &[who.node_id.as_str()], Credential::Node(who))?;
        self.exchange(request.json(body)?).await
    }

    /// Sends `body` to an endpoint of an execution.
    async fn submit_execution(
        &self,
        call: Call,
        who: &Credentials,
        execution_id: &str,
        body: &impl Serialize,
    ) -> Result<(), ClientError> {
        let request = self.request(call, &[who.node_id.as_str(), execution_id], Credential::Node(who))?;
        self.exchange(request.json(body)?).await.map(drop)
    }
}
