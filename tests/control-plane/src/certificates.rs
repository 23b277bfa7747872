//! The certificate that is served with: issued anew when told so, by the control plane's own authority or by one that
//! nobody knows. Open connections are those of the certificate before, and end with it.

use std::sync::Arc;

use rustls::ServerConfig;
use serde::Deserialize;
use tokio::sync::watch;

use crate::ca::{self, Authority, CaError};

/// Who issues the next certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Issuer {
    /// The authority of `ca.pem`.
    Own,
    /// Another one of the same name, made for this certificate and forgotten.
    Stranger,
}

/// The certificate in force and what the next one needs.
#[derive(Debug)]
pub(crate) struct Certificates {
    authority: Authority,
    names: Vec<String>,
    current: watch::Sender<Arc<ServerConfig>>,
}

impl Certificates {
    /// Issues the first one.
    pub(crate) fn new(authority: Authority, names: Vec<String>) -> Result<Self, CaError> {
        let current = watch::Sender::new(authority.server_config(&names)?);
        Ok(Self { authority, names, current })
    }

    /// Serves with a new one from now on.
    pub(crate) fn swap(&self, issuer: Issuer) -> Result<(), CaError> {
        let config = match issuer {
            Issuer::Own => self.authority.server_config(&self.names)?,
            Issuer::Stranger => ca::strangers_config(&self.names)?,
        };
        self.current.send_replace(config);
        Ok(())
    }

    /// The one in force; changes when the next one is.
    pub(crate) fn current(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.current.subscribe()
    }

    /// The authority.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }
}
