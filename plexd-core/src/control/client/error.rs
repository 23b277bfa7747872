//! Why a call to the control plane failed, and what that means for trying again. No error holds a credential.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::CertificateError;

use super::endpoints::{self, Call};

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The control plane is not `https`.
    #[error("api: {0} is not an https URL; plain http is never used")]
    NotHttps(String),
    /// The CA file cannot be read.
    #[error("api_ca_file: cannot read {}: {source}", path.display())]
    ReadCa {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The CA file holds no certificate.
    #[error("api_ca_file: {} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", .0.display())]
    NoCertificate(PathBuf),
    /// TLS cannot be set up.
    #[error("cannot set up TLS towards the control plane: {0}")]
    Tls(String),
}

/// A call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection, or it broke.
    #[error("cannot reach the control plane: {reason}")]
    Network {
        /// The call.
        call: Call,
        /// What the network said.
        reason: String,
    },
    /// The control plane's certificate is not trusted.
    #[error("the control plane's certificate is refused: {reason}")]
    Certificate {
        /// The call.
        call: Call,
        /// What is wrong with it, and the way out.
        reason: String,
    },
    /// No answer in time.
    #[error("{call}: the control plane did not answer in time ({} s)", .limit.as_secs())]
    Timeout {
        /// The call.
        call: Call,
        /// The limit that was exceeded.
        limit: Duration,
    },
    /// 401.
    #[error("{call}: the control plane refuses the {}{detail}", refused_credential(*call))]
    Unauthorized {
        /// The call.
        call: Call,
        /// What the control plane said.
        detail: Detail,
    },
    /// 403.
    #[error("{call}: the control plane forbids it{detail}")]
    Forbidden {
        /// The call.
        call: Call,
        /// What the control plane said.
        detail: Detail,
    },
    /// 404.
    #[error("{call}: the control plane does not know {}{detail}", unknown_object(*call))]
    NotFound {
        /// The call.
        call: Call,
        /// What the control plane said.
        detail: Detail,
    },
    /// 409.
    #[error("{call}: {}{detail}", conflict(*call))]
    Conflict {
        /// The call.
        call: Call,
        /// What the control plane said.
        detail: Detail,
    },
    /// 413.
    #[error("{call}: the request is too large for the control plane{detail}")]
    TooLarge {
        /// The call.
        call: Call,
        /// What the control plane said.
        detail: Detail,
    },
    /// 429.
    #[error("{call}: the control plane asks to slow down")]
    RateLimited {
        /// The call.
        call: Call,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// 408 and 5xx.
    #[error("{call}: the control plane failed with status {status}")]
    Server {
        /// The call.
        call: Call,
        /// The status.
        status: u16,
    },
    /// 400, and other 4xx.
    #[error("{call}: the control plane refuses the request with status {status}{detail}")]
    BadRequest {
        /// The call.
        call: Call,
        /// The status.
        status: u16,
        /// What the control plane said.
        detail: Detail,
    },
    /// The answer is not what the documents say.
    #[error("{call}: the control plane's answer is not usable: {reason}")]
    Protocol {
        /// The call.
        call: Call,
        /// What is wrong with it. Never holds key material.
        reason: String,
    },
}

/// What a failure means for trying again (contract, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Try again with backoff.
    Retry,
    /// Try again after that long, else with backoff.
    RetryAfter(Option<Duration>),
    /// The node's identity is refused: register again, or stay up and try every 60 s.
    Identity,
    /// Trying the same again is no use.
    Refused,
}

impl ClientError {
    /// Returns whether there was no conversation at all: the control plane, or the way to it, is down.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Timeout { .. } | Self::Certificate { .. })
    }

    /// Returns whether trying the same again is no use.
    pub fn is_final(&self) -> bool {
        self.class() == Class::Refused
    }

    /// Returns how long the control plane asks to wait, if it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.class() {
            Class::RetryAfter(delay) => delay,
            Class::Retry | Class::Identity | Class::Refused => None,
        }
    }

    /// Returns what the failure means for trying again.
    pub fn class(&self) -> Class {
        match self {
            Self::Network { .. }
            | Self::Certificate { .. }
            | Self::Timeout { .. }
            | Self::Server { .. }
            | Self::Protocol { .. } => Class::Retry,
            Self::RateLimited { retry_after, .. } => Class::RetryAfter(*retry_after),
            Self::Unauthorized { call, .. } if *call != endpoints::REGISTER => Class::Identity,
            Self::NotFound { call, .. } if call.not_found_means_identity() => Class::Identity,
            Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Forbidden { .. }
            | Self::Conflict { .. }
            | Self::TooLarge { .. }
            | Self::BadRequest { .. } => Class::Refused,
        }
    }
}

fn refused_credential(call: Call) -> &'static str {
    if call == endpoints::REGISTER {
        "bootstrap token: it is invalid, expired or already used; get a new one and run 'plexd-ctl join'"
    } else {
        "node's identity: it has to register again"
    }
}

fn unknown_object(call: Call) -> &'static str {
    if call == endpoints::SECRET {
        "the secret"
    } else if call == endpoints::ARTIFACT {
        "a plexd of this version for this system"
    } else if call.not_found_means_identity() {
        "this node: it has to register again"
    } else {
        "it; check that 'api' is the control plane's address"
    }
}

fn conflict(call: Call) -> &'static str {
    if call == endpoints::REGISTER {
        "a node with this host name is registered already; set 'hostname' or remove the other node, then run \
         'plexd-ctl join'"
    } else {
        "the control plane has something newer"
    }
}

/// What the control plane says of an error, fit for a log: short, on one line, without the credential.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail(Option<String>);

impl Detail {
    /// Most that is taken, in bytes of the body and characters of the text.
    pub(super) const MAX: usize = 1024;

    /// Takes the `error` or `message` of a body, unless it holds `credential`.
    pub(super) fn of(body: &[u8], credential: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct Body {
            error: Option<String>,
            message: Option<String>,
        }
        let body: Option<Body> = serde_json::from_slice(body).ok();
        let text = body.and_then(|body| body.error.or(body.message));
        Self(
            text.filter(|text| !text.is_empty() && !text.contains(credential))
                .map(|text| text.chars().take(200).flat_map(char::escape_debug).collect()),
        )
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(text) => write!(f, " (it says: {text})"),
            None => Ok(()),
        }
    }
}

/// Classifies what went wrong below HTTP.
pub(super) fn transport(
    call: Call,
    error: &reqwest::Error,
    limit: Duration,
    ca_file: Option<&Path>,
) -> ClientError {
    if error.is_timeout() {
        return ClientError::Timeout { call, limit };
    }
    match certificate_error(error) {
        Some(problem) => ClientError::Certificate { call, reason: certificate_reason(problem, ca_file) },
        None => ClientError::Network { call, reason: causes(error) },
    }
}

fn certificate_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CertificateError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(problem)) = error.downcast_ref() {
            return Some(problem);
        }
        // The source of an io::Error is the source of what it wraps, not what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

fn certificate_reason(problem: &CertificateError, ca_file: Option<&Path>) -> String {
    match problem {
        // A wrong signature: an authority of the same name, made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match ca_file {
            Some(path) => format!(
                "no authority in api_ca_file ({}) has issued it; put the control plane's CA certificate there",
                path.display()
            ),
            None => {
                "this machine knows no authority that issued it; set api_ca_file to the control plane's CA \
                     certificate"
                    .to_owned()
            }
        },
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired; renew it, or check this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; check this machine's clock".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host name; check 'api'".to_owned()
        }
        other => format!("{other}; check 'api' and api_ca_file"),
    }
}

/// Returns the causes of an error in one line, without the URL.
pub(super) fn causes(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    if causes.is_empty() { "the connection failed".to_owned() } else { causes.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_classed_as_the_contract_has_them() {
        let detail = Detail::default;
        for (error, class) in [
            (ClientError::Server { call: endpoints::STATE, status: 503 }, Class::Retry),
            (ClientError::Protocol { call: endpoints::STATE, reason: String::new() }, Class::Retry),
            (ClientError::Unauthorized { call: endpoints::STATE, detail: detail() }, Class::Identity),
            (ClientError::Unauthorized { call: endpoints::REGISTER, detail: detail() }, Class::Refused),
            (ClientError::NotFound { call: endpoints::EVENTS, detail: detail() }, Class::Identity),
            (ClientError::NotFound { call: endpoints::ROTATE, detail: detail() }, Class::Identity),
            (ClientError::NotFound { call: endpoints::SECRET, detail: detail() }, Class::Refused),
            (ClientError::NotFound { call: endpoints::RESULT, detail: detail() }, Class::Refused),
            (ClientError::NotFound { call: endpoints::ARTIFACT, detail: detail() }, Class::Refused),
            (ClientError::Unauthorized { call: endpoints::ARTIFACT, detail: detail() }, Class::Identity),
            (ClientError::NotFound { call: endpoints::AUDIT, detail: detail() }, Class::Identity),
            (ClientError::Conflict { call: endpoints::REPORT, detail: detail() }, Class::Refused),
            (ClientError::RateLimited { call: endpoints::DRIFT, retry_after: None }, Class::RetryAfter(None)),
        ] {
            assert_eq!(error.class(), class, "{error}");
        }
    }

    #[test]
    fn a_detail_is_short_on_one_line_and_never_holds_the_credential() {
        let of = |body: &str| Detail::of(body.as_bytes(), "hunter2").to_string();
        assert_eq!(of(r#"{"error":"no\nsuch host name"}"#), " (it says: no\\nsuch host name)");
        assert_eq!(of(r#"{"message":"m"}"#), " (it says: m)");
        assert_eq!(of(r#"{"error":"token hunter2 is used"}"#), "");
        assert_eq!(of("<html>"), "");
        assert!(of(&format!(r#"{{"error":"{}"}}"#, "x".repeat(900))).len() < 220);
    }
}
