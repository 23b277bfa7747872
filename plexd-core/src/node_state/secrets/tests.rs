//! Who may read, and what a control plane that does not do as it should comes to.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::control::dev::{DevControlPlane, ScriptedControlPlane};

const RULES: SecretRules = SecretRules { access_group: 989, secrets_group: 990, over_tcp: true };

fn local(uid: u32, gid: u32, groups: &[u32]) -> PeerCredentials {
    PeerCredentials { uid, gid, pid: 1, groups: groups.to_vec() }
}

fn tcp(token: &'static str) -> Asker {
    Asker::Tcp(token.into())
}

/// Reads for whom the token `t` opens secrets.
fn reader(client: Client, identity: Identity) -> SecretReader {
    let identity = watch::channel(Some(Arc::new(identity))).1;
    let proofs = Proofs::new(Path::new("/nonexistent/api.sock"), 100);
    SecretReader::new(client, identity, RULES, watch::channel(Some(ApiToken::of(b"t"))).1, proofs)
}

async fn read(reader: &SecretReader, key: &str) -> Result<v1::Secret, SecretRefusal> {
    reader.read(key.to_owned(), &tcp("t")).await
}

#[test]
fn a_local_caller_needs_both_groups_or_root() {
    let table = [
        (local(1000, 1000, &[]), false),
        (local(1000, 1000, &[989]), false),
        (local(1000, 1000, &[990]), false),
        (local(1000, 990, &[990]), false),
        (local(1000, 1000, &[989, 990]), true),
        (local(1000, 989, &[990]), true),
        (local(1000, 990, &[989]), true),
        (local(0, 0, &[]), true),
        (local(1000, 0, &[0]), false),
    ];
    for (caller, may) in table {
        let expected = if may { Ok(()) } else { Err(SecretRefusal::NotPermitted) };
        assert_eq!(RULES.check_local(&caller), expected, "{caller:?}");
    }
}

#[test]
fn a_tcp_caller_needs_the_token_and_the_permission() {
    let token = Some(ApiToken::of(b"s3cret"));
    assert_eq!(RULES.check(&tcp("s3cret"), token), Ok(()));
    assert_eq!(RULES.check(&tcp("s3cret\n"), token), Err(SecretRefusal::BadToken));
    let barred = SecretRules { over_tcp: false, ..RULES };
    assert_eq!(barred.check(&tcp("s3cret"), token), Err(SecretRefusal::NotPermitted));
    assert_eq!(barred.check(&tcp("other"), token), Err(SecretRefusal::BadToken));
    assert_eq!(RULES.check(&tcp(""), None), Err(SecretRefusal::BadToken));
}

#[tokio::test]
async fn who_asks_for_nothing_or_is_nobody_gets_nothing() {
    let control_plane = ScriptedControlPlane::start(|_| unreachable!("nobody is asked")).await;
    let reader = reader(control_plane.client(), crate::reconcile::tests::identity());
    for refusal in [SecretRefusal::Unproven, SecretRefusal::Unspecified] {
        let nobody = reader.look(Presented::Nothing(refusal));
        assert_eq!(reader.read("k".into(), &nobody).await, Err(refusal));
    }
    for key in [String::new(), "k".repeat(257)] {
        assert_eq!(read(&reader, &key).await, Err(SecretRefusal::NotFound), "{key}");
    }
}

#[tokio::test]
async fn each_read_is_one_request_also_of_many_at_once() {
    let control_plane = DevControlPlane::start().await;
    let identity = control_plane.enrol("a").await;
    let path = format!("nodes/{}/secrets/k", identity.node_id);
    control_plane.manage(reqwest::Method::PUT, &path, json!({ "value": "s3cret" })).await;
    let reader = reader(control_plane.client(), identity);
    let reads = (0..100).map(|_| read(&reader, "k"));
    for read in futures_util::future::join_all(reads).await {
        assert_eq!(read.map(|secret| (secret.value, secret.version)), Ok(("s3cret".into(), 1)));
    }
    let rates = control_plane.get("rates").await;
    let asked =
        rates.as_object().unwrap().values().filter_map(|second| second["requests"]["secrets"].as_u64());
    assert_eq!(asked.sum::<u64>(), 100);
    assert_eq!(read(&reader, "none").await, Err(SecretRefusal::NotFound));
}

#[tokio::test]
async fn an_answer_that_is_no_secret_is_told_apart_and_never_given_away() {
    use SecretRefusal::{ControlPlaneUnavailable, DecryptionFailed, Forbidden, NotFound};
    let table = [
        ("200 OK", "garbage", ControlPlaneUnavailable),
        ("200 OK", "", ControlPlaneUnavailable),
        ("200 OK", "[]", ControlPlaneUnavailable),
        ("200 OK", r#"{"key":"k","version":1}"#, ControlPlaneUnavailable),
        (
            "200 OK",
            r#"{"key":"other","ciphertext":"AAAA","nonce":"AAAA","version":1}"#,
            ControlPlaneUnavailable,
        ),
        ("200 OK", r#"{"key":"k","ciphertext":"AAAA","nonce":"AAAA","version":1}"#, DecryptionFailed),
        ("302 Found", "", ControlPlaneUnavailable),
        ("400 Bad Request", "{}", ControlPlaneUnavailable),
        ("401 Unauthorized", "{}", ControlPlaneUnavailable),
        ("403 Forbidden", "{}", Forbidden),
        ("404 Not Found", "{}", NotFound),
        ("429 Too Many Requests", "{}", ControlPlaneUnavailable),
        ("500 Internal Server Error", "{}", ControlPlaneUnavailable),
    ];
    for (status, body, refusal) in table {
        let control_plane = ScriptedControlPlane::start(move |_| (status, body.to_owned())).await;
        let reader = reader(control_plane.client(), crate::reconcile::tests::identity());
        assert_eq!(read(&reader, "k").await, Err(refusal), "{status} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_says_nothing_ends_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let config = crate::control::client::ClientConfig { base, ca_file: None, version: "1" };
    let reader = reader(Client::new(config).unwrap(), crate::reconcile::tests::identity());
    let started = tokio::time::Instant::now();
    let reads = (0..40).map(|_| read(&reader, "k"));
    for read in futures_util::future::join_all(reads).await {
        assert_eq!(read, Err(SecretRefusal::ControlPlaneUnavailable));
    }
    assert!(started.elapsed() <= DEADLINE, "{:?}", started.elapsed());
}
