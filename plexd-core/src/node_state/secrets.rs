//! Secrets on demand: core alone decides who may read one, fetches it from the control plane, decrypts it and gives it
//! away; nothing is kept. A local caller is who core sees at the other end of the caller's own socket, when it asks and
//! still when it is answered; a TCP caller's token is compared here. What the sidecar says of a caller is not even heard.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plexd_proto::node::v1::{self, SecretRefusal};
use plexd_proto::transport::PeerCredentials;
use tokio::sync::watch;

use super::places::{Places, Requester};
use super::proofs::{Proofs, Socket};
use super::token::ApiToken;
use super::turns::Turns;
use super::witness;
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
    proofs: Proofs,
    turns: Arc<Turns>,
}

/// What a caller has to show.
#[derive(Debug)]
pub(super) enum Presented {
    /// Its socket.
    Socket(Socket),
    /// A token.
    Token(Bytes),
    /// Nothing that counts, for which it is refused.
    Nothing(SecretRefusal),
}

/// Who asks, as far as core knows by itself.
#[derive(Debug)]
pub(super) enum Asker {
    /// A process connected to `api.sock`.
    Local(witness::Client<Socket>),
    /// A TCP client, with the token it presented.
    Tcp(Bytes),
    /// Nobody knows, for which it is refused.
    Unknown(SecretRefusal),
}

impl Asker {
    pub(super) fn requester(&self) -> Requester {
        match self {
            Self::Local(client) => Requester::Uid(client.peer.uid),
            Self::Tcp(_) => Requester::Tcp,
            Self::Unknown(_) => Requester::Unknown,
        }
    }
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
    /// Creates the reader; `token` is that of TCP callers, as it is now and will be, and `proofs` what is shown of others.
    pub fn new(
        client: Client,
        identity: CurrentIdentity,
        rules: SecretRules,
        token: watch::Receiver<Option<ApiToken>>,
        proofs: Proofs,
    ) -> Self {
        let (places, turns) = (Arc::new(Places::new()), Arc::default());
        Self { client, identity, rules, token, places, proofs, turns }
    }

    /// Returns the token of TCP callers.
    pub(super) fn token(&self) -> watch::Receiver<Option<ApiToken>> {
        self.token.clone()
    }

    /// Returns what is shown of local callers.
    pub(super) fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// Returns who it is that presents this.
    pub(super) fn look(&self, presented: Presented) -> Asker {
        match presented {
            Presented::Socket(socket) => match self.proofs.see(socket) {
                Ok(client) => Asker::Local(client),
                Err(error) => {
                    tracing::debug!(%error, "no proof of a client");
                    Asker::Unknown(SecretRefusal::Unproven)
                }
            },
            Presented::Token(token) => Asker::Tcp(token),
            Presented::Nothing(refusal) => Asker::Unknown(refusal),
        }
    }

    /// Reads the secret `key`.
    pub(super) async fn read(&self, key: String, asker: &Asker) -> Result<v1::Secret, SecretRefusal> {
        self.rules.check(asker, *self.token.borrow())?;
        if !(1..=MAX_KEY).contains(&key.len()) {
            return Err(SecretRefusal::NotFound);
        }
        let identity = self.identity.borrow().clone().ok_or(SecretRefusal::NotRegistered)?;
        // Waiting for a turn and a place counts: the caller does not care what it waits for.
        let read = tokio::time::timeout(DEADLINE, self.read_in_turn(key, asker, &identity));
        read.await.map_err(|_| SecretRefusal::ControlPlaneUnavailable)?
    }

    async fn read_in_turn(
        &self,
        key: String,
        asker: &Asker,
        identity: &Identity,
    ) -> Result<v1::Secret, SecretRefusal> {
        let Asker::Local(client) = asker else {
            return self.fetch(asker.requester(), key, identity).await;
        };
        let _turn = self.turns.take(client.cookie).await.ok_or(SecretRefusal::Unproven)?;
        let secret = self.fetch(asker.requester(), key, identity).await?;
        // Nobody is left to have it, which is no denial.
        if client.is_connected() { Ok(secret) } else { Err(SecretRefusal::Unspecified) }
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
    fn check(&self, asker: &Asker, token: Option<ApiToken>) -> Result<(), SecretRefusal> {
        match asker {
            Asker::Local(client) => self.check_local(&client.peer),
            Asker::Tcp(presented) => match token {
                Some(token) if !token.matches(presented) => Err(SecretRefusal::BadToken),
                Some(_) if !self.over_tcp => Err(SecretRefusal::NotPermitted),
                Some(_) => Ok(()),
                None => Err(SecretRefusal::BadToken),
            },
            Asker::Unknown(refusal) => Err(*refusal),
        }
    }

    fn check_local(&self, peer: &PeerCredentials) -> Result<(), SecretRefusal> {
        let may = peer.uid == 0 || peer.has_group(self.access_group) && peer.has_group(self.secrets_group);
        if may { Ok(()) } else { Err(SecretRefusal::NotPermitted) }
    }
}

#[cfg(test)]
mod tests;
