//! Secrets on demand: core alone decides who may read one, fetches it from the control plane, decrypts it and gives it
//! away; nothing is kept. What the sidecar says of a local caller is believed as far as its group goes (SECURITY.md); a
//! TCP caller's token is compared here.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plexd_proto::node::v1::{self, SecretRefusal, get_secret_request::Caller};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use zeroize::{Zeroize, Zeroizing};

use crate::control::client::{Client, ClientError};
use crate::control::secret;
use crate::identity::{CurrentIdentity, Identity};

/// Secrets fetched at a time.
const MAX_FETCHES: usize = 32;

/// How long a read may take; shorter than what the sidecar waits.
const DEADLINE: Duration = Duration::from_secs(35);

/// Longest key, in bytes.
const MAX_KEY: usize = 256;

/// SHA-256 of the bearer token of TCP callers.
#[derive(Clone, Copy)]
pub struct ApiToken([u8; 32]);

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(..)")
    }
}

/// The token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiTokenError {
    /// It cannot be read.
    #[error("cannot read node_api.http_token_file {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Everybody can read it.
    #[error("node_api.http_token_file {path} can be read by others; run: chmod 600 {path}", path = .0.display())]
    Exposed(PathBuf),
    /// It holds no token.
    #[error("node_api.http_token_file {path} is empty; run: openssl rand -base64 32 > {path}", path = .0.display())]
    Empty(PathBuf),
}

impl ApiToken {
    /// Reads the token file; a newline at its end is no part of the token. To be called before privileges are dropped.
    pub fn load(path: &Path) -> Result<Self, ApiTokenError> {
        let read = |source| ApiTokenError::Read { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.permissions().mode() & 0o004 != 0 {
            return Err(ApiTokenError::Exposed(path.into()));
        }
        let mut text = Zeroizing::new(Vec::new());
        io::Read::read_to_end(&mut io::Read::take(file, 64 * 1024), &mut text).map_err(read)?;
        let token =
            text.strip_suffix(b"\n").map_or(text.as_slice(), |line| line.strip_suffix(b"\r").unwrap_or(line));
        if token.is_empty() {
            return Err(ApiTokenError::Empty(path.into()));
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    fn matches(&self, presented: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        digest.ct_eq(&self.0).into()
    }
}

/// Reads secrets for callers that may have them.
#[derive(Debug, Clone)]
pub struct SecretReader {
    client: Client,
    identity: CurrentIdentity,
    rules: SecretRules,
    fetches: Arc<Semaphore>,
}

/// Who may read secrets.
#[derive(Debug, Clone, Copy)]
pub struct SecretRules {
    /// The group whose members may.
    pub group: u32,
    /// The token of TCP callers.
    pub token: Option<ApiToken>,
    /// Whether the token opens secrets.
    pub over_tcp: bool,
}

impl SecretReader {
    /// Creates the reader.
    pub fn new(client: Client, identity: CurrentIdentity, rules: SecretRules) -> Self {
        Self { client, identity, rules, fetches: Arc::new(Semaphore::new(MAX_FETCHES)) }
    }

    /// Returns the digest of the TCP callers' token, with which the sidecar judges requests that are no secrets.
    pub(super) fn token_sha256(&self) -> Option<[u8; 32]> {
        self.rules.token.map(|token| token.0)
    }

    /// Reads a secret.
    pub(super) async fn read(&self, request: v1::GetSecretRequest) -> Result<v1::Secret, SecretRefusal> {
        self.rules.check(request.caller)?;
        if !(1..=MAX_KEY).contains(&request.key.len()) {
            return Err(SecretRefusal::NotFound);
        }
        let identity = self.identity.borrow().clone().ok_or(SecretRefusal::NotRegistered)?;
        // Waiting for a place counts: the caller does not care what it waits for.
        let read = tokio::time::timeout(DEADLINE, self.fetch(request.key, &identity));
        read.await.map_err(|_| SecretRefusal::ControlPlaneUnavailable)?
    }

    async fn fetch(&self, key: String, identity: &Identity) -> Result<v1::Secret, SecretRefusal> {
        let _permit = self.fetches.acquire().await.map_err(|_| SecretRefusal::ControlPlaneUnavailable)?;
        let response = self.client.secret(&identity.credentials(), &key).await.map_err(|error| {
            tracing::debug!(key, %error, "secret not fetched");
            match error {
                ClientError::NotFound { .. } => SecretRefusal::NotFound,
                ClientError::Forbidden { .. } => SecretRefusal::Forbidden,
                _ => SecretRefusal::ControlPlaneUnavailable,
            }
        })?;
        let mut value = secret::decrypt(&identity.secret_key, &response).map_err(|error| {
            tracing::debug!(key, %error, "secret not decrypted");
            SecretRefusal::DecryptionFailed
        })?;
        let bytes = Bytes::copy_from_slice(value.as_bytes());
        value.zeroize();
        Ok(v1::Secret { key, value: bytes, version: response.version })
    }
}

impl SecretRules {
    fn check(&self, caller: Option<Caller>) -> Result<(), SecretRefusal> {
        match caller {
            Some(Caller::Local(caller)) => {
                let is_member = caller.gid == self.group || caller.groups.contains(&self.group);
                if caller.uid == 0 || is_member { Ok(()) } else { Err(SecretRefusal::NotPermitted) }
            }
            Some(Caller::Tcp(caller)) => match self.token {
                Some(token) if !token.matches(&caller.token) => Err(SecretRefusal::BadToken),
                Some(_) if !self.over_tcp => Err(SecretRefusal::NotPermitted),
                Some(_) => Ok(()),
                None => Err(SecretRefusal::BadToken),
            },
            None => Err(SecretRefusal::NotPermitted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api-token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn rules(token: Option<ApiToken>, over_tcp: bool) -> SecretRules {
        SecretRules { group: 990, token, over_tcp }
    }

    fn local(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller::Local(v1::LocalCaller { uid, gid, pid: 1, groups: groups.to_vec() })
    }

    fn tcp(token: &str) -> Caller {
        Caller::Tcp(v1::TcpCaller { token: token.to_owned().into() })
    }

    #[test]
    fn a_local_caller_needs_the_group_or_root() {
        let rules = rules(None, true);
        assert_eq!(rules.check(Some(local(1000, 1000, &[989]))), Err(SecretRefusal::NotPermitted));
        assert_eq!(rules.check(Some(local(1000, 990, &[]))), Ok(()));
        assert_eq!(rules.check(Some(local(1000, 1000, &[989, 990]))), Ok(()));
        assert_eq!(rules.check(Some(local(0, 0, &[]))), Ok(()));
        assert_eq!(rules.check(None), Err(SecretRefusal::NotPermitted));
    }

    #[test]
    fn a_tcp_caller_needs_the_token_and_the_permission() {
        let (_folder, path) = token_file("s3cret\n", 0o600);
        let token = ApiToken::load(&path).unwrap();
        assert_eq!(rules(Some(token), true).check(Some(tcp("s3cret"))), Ok(()));
        assert_eq!(rules(Some(token), true).check(Some(tcp("s3cret\n"))), Err(SecretRefusal::BadToken));
        assert_eq!(rules(Some(token), false).check(Some(tcp("s3cret"))), Err(SecretRefusal::NotPermitted));
        assert_eq!(rules(None, true).check(Some(tcp(""))), Err(SecretRefusal::BadToken));
    }

    #[test]
    fn a_token_file_that_is_open_or_empty_is_refused_with_the_way_out() {
        let (_folder, path) = token_file("token", 0o644);
        assert!(ApiToken::load(&path).unwrap_err().to_string().contains("chmod 600"));
        let (_folder, path) = token_file("\n", 0o600);
        assert!(ApiToken::load(&path).unwrap_err().to_string().contains("is empty"));
        assert!(
            ApiToken::load(Path::new("/nonexistent")).unwrap_err().to_string().contains("http_token_file")
        );
    }
}
