//! Secrets on demand: core alone decides who may read one, fetches it from the control plane, decrypts it and gives it
//! away; nothing is kept. What the sidecar says of a local caller is believed as far as its groups go (SECURITY.md); a
//! TCP caller's token is compared here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plexd_proto::node::v1::{self, SecretRefusal, secret_read::Caller};
use tokio::sync::watch;

use super::places::{Places, Requester};
use super::token::ApiToken;
use crate::control::client::{Client, ClientError};
use crate::control::secret;
use crate::identity::{CurrentIdentity, Identity};

/// How long a read may take; shorter than what the sidecar waits.
const DEADLINE: Duration = Duration::from_secs(35);

/// Longest key, in bytes.
pub(super) const MAX_KEY: usize = 256;

/// Reads secrets for callers that may have them.
#[derive(Debug, Clone)]
pub struct SecretReader {
    client: Client,
    identity: CurrentIdentity,
    rules: SecretRules,
    token: watch::Receiver<Option<ApiToken>>,
    places: Arc<Places>,
}

/// Who may read secrets.
#[derive(Debug, Clone, Copy)]
pub struct SecretRules {
    /// The group whose members may use the API at all.
    pub access_group: u32,
    /// The group whose members may read secrets, if they are in the other as well.
    pub secrets_group: u32,
    /// Whether the token opens secrets.
    pub over_tcp: bool,
}

impl SecretReader {
    /// Creates the reader; `token` is that of TCP callers, as it is now and will be.
    pub fn new(
        client: Client,
        identity: CurrentIdentity,
        rules: SecretRules,
        token: watch::Receiver<Option<ApiToken>>,
    ) -> Self {
        Self { client, identity, rules, token, places: Arc::new(Places::new()) }
    }

    /// Returns the token of TCP callers.
    pub(super) fn token(&self) -> watch::Receiver<Option<ApiToken>> {
        self.token.clone()
    }

    /// Reads a secret.
    pub(super) async fn read(&self, request: v1::SecretRead) -> Result<v1::Secret, SecretRefusal> {
        let caller = request.caller.ok_or(SecretRefusal::NotPermitted)?;
        self.rules.check(&caller, *self.token.borrow())?;
        if !(1..=MAX_KEY).contains(&request.key.len()) {
            return Err(SecretRefusal::NotFound);
        }
        let identity = self.identity.borrow().clone().ok_or(SecretRefusal::NotRegistered)?;
        // Waiting for a place counts: the caller does not care what it waits for.
        let read = tokio::time::timeout(DEADLINE, self.fetch(Requester::of(&caller), request.key, &identity));
        read.await.map_err(|_| SecretRefusal::ControlPlaneUnavailable)?
    }

    async fn fetch(
        &self,
        requester: Requester,
        key: String,
        identity: &Identity,
    ) -> Result<v1::Secret, SecretRefusal> {
        let _place = self.places.take(requester).await.ok_or(SecretRefusal::ControlPlaneUnavailable)?;
        let response = self.client.secret(&identity.credentials(), &key).await.map_err(|error| {
            tracing::debug!(key, %error, "secret not fetched");
            match error {
                ClientError::NotFound { .. } => SecretRefusal::NotFound,
                ClientError::Forbidden { .. } => SecretRefusal::Forbidden,
                _ => SecretRefusal::ControlPlaneUnavailable,
            }
        })?;
        let value = secret::decrypt(&identity.secret_key, &response).map_err(|error| {
            tracing::debug!(key, %error, "secret not decrypted");
            SecretRefusal::DecryptionFailed
        })?;
        // Wiped when the message is gone; what it is encoded into is the library's.
        Ok(v1::Secret { key, value: Bytes::from_owner(value), version: response.version })
    }
}

impl SecretRules {
    fn check(&self, caller: &Caller, token: Option<ApiToken>) -> Result<(), SecretRefusal> {
        match caller {
            Caller::Local(caller) => {
                let has = |group| caller.gid == group || caller.groups.contains(&group);
                let may = caller.uid == 0 || has(self.access_group) && has(self.secrets_group);
                if may { Ok(()) } else { Err(SecretRefusal::NotPermitted) }
            }
            Caller::Tcp(caller) => match token {
                Some(token) if !token.matches(&caller.token) => Err(SecretRefusal::BadToken),
                Some(_) if !self.over_tcp => Err(SecretRefusal::NotPermitted),
                Some(_) => Ok(()),
                None => Err(SecretRefusal::BadToken),
            },
        }
    }
}

#[cfg(test)]
mod tests;
