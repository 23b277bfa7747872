//! Secret values: fetched through plexd-core for each request, kept nowhere, wiped when they have been sent.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderValue, Method, StatusCode};
use plexd_proto::node::v1::{LocalCaller, Secret};
use plexd_proto::transport::PeerCredentials;
use zeroize::Zeroizing;

use super::conditional::client_has;
use super::error::ApiError;
use super::message::{self, JSON, Request, Response};
use super::{Api, key};
use crate::auth::{Caller, bearer};
use crate::core_client::Proof;
use crate::mirror::json;

/// Answers one secret. The route's need has been checked by the gate; core has the final say all the same.
pub(super) async fn value(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let key = key::of(request.path())?;
    let proof = match &request.caller {
        Caller::Local(client) => Proof::Socket(client.socket.clone()),
        Caller::Tcp => {
            let token = bearer(request.headers()).ok_or(ApiError::Unauthorized)?;
            Proof::Token(Bytes::copy_from_slice(token))
        }
    };
    let (body, etag) = render(api.core.secret(key, proof).await?)?;
    let mut response = if client_has(request.headers(), &etag) {
        message::empty(StatusCode::NOT_MODIFIED)
    } else {
        let mut response = message::answer(StatusCode::OK, body);
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        response
    };
    response.headers_mut().insert(ETAG, etag);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Notes that the gate refused a read, if that is what the request was: core keeps a record of it.
pub(super) fn refused(api: &Api, request: &Request, error: ApiError) {
    let is_denial = matches!(error, ApiError::Unauthorized | ApiError::Forbidden);
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if is_denial
        && is_read
        && let Ok(key) = key::of(request.path())
    {
        let caller = match &request.caller {
            Caller::Local(client) => Some(local(&client.peer)),
            Caller::Tcp => None,
        };
        api.core.denied(key, caller);
    }
}

fn local(peer: &PeerCredentials) -> LocalCaller {
    LocalCaller { uid: peer.uid, gid: peer.gid, pid: peer.pid, groups: peer.groups.clone() }
}

/// Renders a secret into memory that is wiped when the last of the response is gone.
fn render(secret: Secret) -> Result<(Bytes, HeaderValue), ApiError> {
    let Secret { key, value, version } = secret;
    let text = std::str::from_utf8(&value).map_err(|_| ApiError::DecryptionFailed)?;
    // Every byte may become `\u00XX`: no reallocation leaves a copy behind. The value as it was received is a part of gRPC's
    // buffer, which the next messages are read into.
    let mut out = Zeroizing::new(Vec::with_capacity(6 * (key.len() + text.len()) + 64));
    out.extend_from_slice(b"{\"key\":");
    json(&mut out, &key);
    out.extend_from_slice(b",\"value\":");
    json(&mut out, text);
    out.extend_from_slice(b",\"version\":");
    json(&mut out, &version);
    out.push(b'}');
    Ok((Bytes::from_owner(out), crate::mirror::version_tag(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_reads_as_the_guide_shows_it() {
        let value = Bytes::from_static(b"s3cret-p@ssw0rd");
        let secret = Secret { key: "db/password".into(), value, version: 2 };
        let rendered = render(secret).map(|(body, etag)| (body, etag.as_bytes().to_vec()));
        let expected = r#"{"key":"db/password","value":"s3cret-p@ssw0rd","version":2}"#;
        assert_eq!(rendered, Ok((Bytes::from_static(expected.as_bytes()), b"\"2\"".to_vec())));
    }

    #[test]
    fn a_value_that_is_not_text_is_an_error() {
        let secret = Secret { key: "k".into(), value: Bytes::from_static(b"\xff"), version: 1 };
        assert_eq!(render(secret), Err(ApiError::DecryptionFailed));
    }
}
