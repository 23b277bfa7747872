//! Who may ask for what. A caller on the Unix socket is what the kernel said of it when it connected, a caller on TCP
//! is the token it presents. Decides only; it reads no socket and writes no answer.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use plexd_proto::transport::{ClientSocket, PeerCredentials};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// At the other end of a connection.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A process on `api.sock`.
    Local(Arc<LocalClient>),
    /// A TCP client.
    Tcp,
}

/// A process on `api.sock`.
#[derive(Debug)]
pub struct LocalClient {
    /// Who it was when it connected.
    pub peer: PeerCredentials,
    /// Its connection, for plexd-core to see for itself.
    pub socket: ClientSocket,
}

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Access to the API: the socket's group, or the token.
    Access,
    /// Access to secret values besides: the secrets group, or the token unless it is barred from them.
    Secrets,
}

/// Why a caller gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No token, or not the token.
    #[error("unauthorized")]
    Unauthorized,
    /// The caller is known and may not.
    #[error("forbidden")]
    Forbidden,
}

/// The groups and switches that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Group id that may use the API.
    pub socket_gid: u32,
    /// Group id that may read secret values, on top of the other.
    pub secrets_gid: u32,
    /// Whether the token opens secret values.
    pub tcp_secrets: bool,
}

impl Rules {
    /// Decides whether a process with the credentials `peer` gets what `need` names (contract, section 1).
    pub fn local(&self, peer: &PeerCredentials, need: Need) -> Result<(), Refusal> {
        let allowed = peer.uid == 0
            || peer.has_group(self.socket_gid)
                && match need {
                    Need::Access => true,
                    Need::Secrets => peer.has_group(self.secrets_gid),
                };
        if allowed { Ok(()) } else { Err(Refusal::Forbidden) }
    }

    /// Decides whether a TCP request that presents a token gets what `need` names; `token_sha256` is what plexd-core
    /// said of the token, `None` if there is none.
    pub fn tcp(&self, presented: &[u8], token_sha256: Option<&[u8; 32]>, need: Need) -> Result<(), Refusal> {
        let expected = token_sha256.ok_or(Refusal::Unauthorized)?;
        let digest: [u8; 32] = Sha256::digest(presented).into();
        if !bool::from(digest.ct_eq(expected)) {
            return Err(Refusal::Unauthorized);
        }
        match need {
            Need::Secrets if !self.tcp_secrets => Err(Refusal::Forbidden),
            Need::Access | Need::Secrets => Ok(()),
        }
    }
}

/// Returns the bearer token of a request, if there is exactly one `Authorization` header and it holds one.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    let (scheme, rest) = value.split_at_checked(b"bearer ".len())?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    let token = rest.trim_ascii();
    (!token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { socket_gid: 900, secrets_gid: 901, tcp_secrets: true };

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> PeerCredentials {
        PeerCredentials { uid, gid, pid: 1, groups: groups.to_vec() }
    }

    #[test]
    fn local_callers_are_judged_by_their_real_groups() {
        let table = [
            (peer(1000, 1000, &[]), false, false),
            (peer(1000, 1000, &[900]), true, false),
            (peer(1000, 900, &[]), true, false),
            (peer(1000, 1000, &[900, 901]), true, true),
            (peer(1000, 901, &[900]), true, true),
            (peer(1000, 900, &[901]), true, true),
            // The secrets group alone does not open the API (contract, section 1).
            (peer(1000, 901, &[901]), false, false),
            (peer(0, 0, &[]), true, true),
            (peer(1000, 0, &[0]), false, false),
        ];
        for (peer, access, secrets) in table {
            assert_eq!(RULES.local(&peer, Need::Access).is_ok(), access, "{peer:?}");
            assert_eq!(RULES.local(&peer, Need::Secrets).is_ok(), secrets, "{peer:?}");
        }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    fn tcp(rules: Rules, values: &[&str], digest: Option<&[u8; 32]>, need: Need) -> Result<(), Refusal> {
        rules.tcp(bearer(&headers(values)).ok_or(Refusal::Unauthorized)?, digest, need)
    }

    #[test]
    fn only_the_whole_token_opens_tcp() {
        let digest: [u8; 32] = Sha256::digest(b"s3same").into();
        let ok = ["Bearer s3same", "bearer s3same", "BEARER  s3same "];
        for value in ok {
            assert_eq!(tcp(RULES, &[value], Some(&digest), Need::Secrets), Ok(()), "{value}");
        }
        let bad =
            ["Bearer s3sam", "Bearer s3same1", "Bearer", "Bearer ", "Basic s3same", "s3same", "Bearers3same"];
        for value in bad {
            assert_eq!(
                tcp(RULES, &[value], Some(&digest), Need::Access),
                Err(Refusal::Unauthorized),
                "{value}"
            );
        }
        for values in [&[][..], &["Bearer s3same", "Bearer s3same"]] {
            assert_eq!(tcp(RULES, values, Some(&digest), Need::Access), Err(Refusal::Unauthorized));
        }
    }

    #[test]
    fn without_a_token_nobody_is_authorised() {
        assert_eq!(tcp(RULES, &["Bearer x"], None, Need::Access), Err(Refusal::Unauthorized));
        // Not even the digest of nothing opens anything.
        let empty: [u8; 32] = Sha256::digest(b"").into();
        assert_eq!(tcp(RULES, &["Bearer "], Some(&empty), Need::Access), Err(Refusal::Unauthorized));
    }

    #[test]
    fn the_token_can_be_barred_from_secrets() {
        let digest: [u8; 32] = Sha256::digest(b"t").into();
        let rules = Rules { tcp_secrets: false, ..RULES };
        assert_eq!(tcp(rules, &["Bearer t"], Some(&digest), Need::Access), Ok(()));
        assert_eq!(tcp(rules, &["Bearer t"], Some(&digest), Need::Secrets), Err(Refusal::Forbidden));
        assert_eq!(tcp(rules, &["Bearer x"], Some(&digest), Need::Secrets), Err(Refusal::Unauthorized));
    }
}
