//! The client of the control plane: TLS, deadlines, bounded answers, classified errors. Remembers no credential and
//! tries nothing twice; who calls decides when to try again.

mod addresses;
mod artifact;
mod calls;
mod endpoints;
mod error;
mod records;
mod stream;
mod tls;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Serialize;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::clock::NodeClock;
use crate::types::{Clock, NodeId, NodeSecretKey};

use super::backoff::retry_after;
use addresses::Addresses;

pub use artifact::{Artifact, ArtifactError};
pub use calls::StateAnswer;
pub use endpoints::Call;
pub use error::{Class, ClientError, Detail, SetupError};
pub use records::{Framing, Observed, Record};
pub use stream::{EventStream, IDLE_TIMEOUT};

/// How long connecting may take (contract, section 2).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may take, answer included; for the event stream, up to its head.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the control plane is.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Base URL, `https`; a path in it goes before those of the endpoints.
    pub base: Url,
    /// PEM certificates that alone may vouch for the control plane; the system's if unset.
    pub ca_file: Option<PathBuf>,
    /// Version of this program, for `User-Agent`.
    pub version: &'static str,
}

/// Who this node is towards the control plane.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The node's id.
    pub node_id: NodeId,
    /// The node's credential.
    pub secret: NodeSecretKey,
}

/// The client; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Its path ends with a slash.
    base: Url,
    ca_file: Option<PathBuf>,
    clock: Arc<NodeClock>,
    certificates: Arc<tls::Verifier>,
    addresses: Addresses,
}

/// What a request is authenticated with.
#[derive(Clone, Copy)]
enum Credential<'a> {
    /// The node secret key, in a header.
    Node(&'a Credentials),
    /// The bootstrap token, in the body.
    Token(&'a str),
}

impl Credential<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Node(credentials) => credentials.secret.as_str(),
            Self::Token(token) => token,
        }
    }
}

/// A request before it is sent.
struct Request<'a> {
    call: Call,
    credential: Credential<'a>,
    builder: RequestBuilder,
}

impl Client {
    /// Makes a client of the machine's clock. The CA file is read now, once.
    pub fn new(config: ClientConfig) -> Result<Self, SetupError> {
        Self::with_clock(config, Arc::new(NodeClock::system()))
    }

    /// Makes a client that judges certificates by `clock`, and tells it the time that the control plane states.
    pub fn with_clock(config: ClientConfig, clock: Arc<NodeClock>) -> Result<Self, SetupError> {
        if config.base.scheme() != "https" {
            return Err(SetupError::NotHttps(config.base.to_string()));
        }
        // For others in this process that speak TLS; fails only if there is one already, which then serves as well.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let (tls, certificates) = tls::configure(config.ca_file.as_deref(), &clock)?;
        let addresses = Addresses::of(&config.base);
        let mut base = config.base;
        let path = format!("{}/", base.path().trim_end_matches('/'));
        base.set_path(&path);
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(addresses.clone())
            .user_agent(format!("plexd-core/{}", config.version))
            .https_only(true)
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT);
        let http = builder.build().map_err(|error| SetupError::Tls(error::causes(&error)))?;
        Ok(Self { http, base, ca_file: config.ca_file, clock, certificates, addresses })
    }

    /// Returns the known addresses of the control plane, or of the proxy towards it, to be watched: they change with what
    /// their names have.
    pub fn addresses(&self) -> watch::Receiver<Arc<BTreeSet<IpAddr>>> {
        self.addresses.watch()
    }

    /// Starts a request; `values` go into the path in place of its names.
    fn request<'a>(
        &self,
        call: Call,
        values: &[&str],
        credential: Credential<'a>,
    ) -> Result<Request<'a>, ClientError> {
        // What cannot be asked for cannot exist either.
        let path = call.path(values).ok_or_else(|| not_found(call))?;
        let method = Method::from_bytes(call.method.as_bytes()).unwrap_or(Method::GET);
        // The host is not parsed anew.
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path(), path.trim_start_matches('/')));
        let mut builder = self.http.request(method, url);
        if let Credential::Node(credentials) = credential {
            builder = builder.header(AUTHORIZATION, credentials.secret.bearer());
        }
        Ok(Request { call, credential, builder })
    }

    /// Sends a request and returns the whole answer, which is a success.
    async fn exchange(&self, request: Request<'_>) -> Result<Answer, ClientError> {
        let call = request.call;
        let request = Request { builder: request.builder.timeout(REQUEST_TIMEOUT), ..request };
        let mut response = self.send(request).await?;
        let body = self.body(call, &mut response, call.max_answer).await?;
        let answer = Answer { call, response, body };
        answer.check_type()?;
        Ok(answer)
    }

    /// Sends a request and returns the head of the answer, which is a success (or a 304 to a state pull).
    async fn send(&self, request: Request<'_>) -> Result<Response, ClientError> {
        let Request { call, credential, builder } = request;
        let sent = self.clock.uptime();
        let mut response = builder.send().await.map_err(|error| self.transport(call, &error))?;
        let status = response.status();
        // Only a state pull is ever conditional.
        let is_unmodified = status == StatusCode::NOT_MODIFIED && call == endpoints::STATE;
        if status.is_success() || is_unmodified {
            if let Some(date) = date(response.headers()) {
                self.clock.answered(date, sent, |time| self.certificates.allows(time));
            }
            return Ok(response);
        }
        let body = self.body(call, &mut response, Detail::MAX).await.unwrap_or_default();
        Err(refusal(call, &response, Detail::of(&body, credential.text()), self.clock.now()))
    }

    /// Reads a body of at most `limit` bytes.
    async fn body(
        &self,
        call: Call,
        response: &mut Response,
        limit: usize,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let too_large = || ClientError::Protocol { call, reason: format!("it is larger than {limit} bytes") };
        let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = Zeroizing::new(Vec::with_capacity(announced.unwrap_or(0)));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.transport(call, &error))? {
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn transport(&self, call: Call, error: &reqwest::Error) -> ClientError {
        if error::is_of_time(error) {
            self.clock.distrust();
        }
        error::transport(call, error, REQUEST_TIMEOUT, self.ca_file.as_deref())
    }
}

impl Request<'_> {
    fn json(self, body: &impl Serialize) -> Result<Self, ClientError> {
        let call = self.call;
        let body = serde_json::to_vec(body).map_err(|_| ClientError::Protocol {
            call,
            reason: "its request cannot be written".to_owned(),
        })?;
        let builder = self.builder.header(CONTENT_TYPE, "application/json").body(body);
        Ok(Self { builder, ..self })
    }

    /// Takes a body that is compressed already.
    fn gzip(self, content_type: &'static str, body: Vec<u8>) -> Self {
        let builder =
            self.builder.header(CONTENT_TYPE, content_type).header(CONTENT_ENCODING, "gzip").body(body);
        Self { builder, ..self }
    }

    fn header(self, name: reqwest::header::HeaderName, value: HeaderValue) -> Self {
        Self { builder: self.builder.header(name, value), ..self }
    }
}

/// A whole answer.
struct Answer {
    call: Call,
    response: Response,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    fn unusable(&self, reason: String) -> ClientError {
        ClientError::Protocol { call: self.call, reason }
    }

    /// A body is JSON (documents, preamble). One that says to be something else is not the control plane's, but of a proxy
    /// or a portal in between: its 200 confirms nothing.
    fn check_type(&self) -> Result<(), ClientError> {
        let Some(stated) = self.response.headers().get(CONTENT_TYPE).filter(|_| !self.is_empty()) else {
            return Ok(());
        };
        let stated = String::from_utf8_lossy(stated.as_bytes());
        let essence = stated.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/json") {
            return Ok(());
        }
        let shown: String = essence.chars().take(64).collect();
        Err(self.unusable(format!(
            "its Content-Type is {shown:?}, not application/json; check that 'api' leads to the control plane and not to \
             something before it"
        )))
    }

    /// Returns whether there is no body.
    fn is_empty(&self) -> bool {
        self.body.iter().all(u8::is_ascii_whitespace)
    }
}

/// Returns the time that an answer states.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()
}

fn not_found(call: Call) -> ClientError {
    ClientError::NotFound { call, detail: Detail::default() }
}

fn refusal(call: Call, response: &Response, detail: Detail, now: Timestamp) -> ClientError {
    let status = response.status();
    match status {
        StatusCode::UNAUTHORIZED => ClientError::Unauthorized { call, detail },
        StatusCode::FORBIDDEN => ClientError::Forbidden { call, detail },
        StatusCode::NOT_FOUND => ClientError::NotFound { call, detail },
        StatusCode::CONFLICT => ClientError::Conflict { call, detail },
        StatusCode::PAYLOAD_TOO_LARGE => ClientError::TooLarge { call, detail },
        StatusCode::TOO_MANY_REQUESTS => {
            ClientError::RateLimited { call, retry_after: retry_after(response.headers(), now) }
        }
        StatusCode::REQUEST_TIMEOUT => ClientError::Server { call, status: status.as_u16() },
        _ if status.is_server_error() => ClientError::Server { call, status: status.as_u16() },
        _ if status.is_client_error() => ClientError::BadRequest { call, status: status.as_u16(), detail },
        _ => ClientError::Protocol {
            call,
            reason: format!("status {} (redirects are not followed; check 'api')", status.as_u16()),
        },
    }
}
