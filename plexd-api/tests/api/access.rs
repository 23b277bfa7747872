//! Who gets in: groups on the Unix socket, the token on TCP, and how many at once.

use plexd_api::http::Limits;
use plexd_proto::node::v1::secret_read::Caller;
use plexd_proto::node::v1::{DeniedRead, SecretRefusal};

use crate::node::{Node, SECRETS_GID, SOCKET_GID, Setup, TOKEN, registered};

const BODY: &str = r#"{"content_type":"x","payload":1}"#;

#[tokio::test]
async fn a_caller_without_the_group_gets_nothing() {
    let node = Node::start().await;
    for groups in [&[][..], &[SECRETS_GID]] {
        let mut client = node.client_as(1000, groups);
        for path in ["/v1/state", "/v1/state/data/k", "/v1/state/secrets/k", "/v1/state/watch", "/nowhere"] {
            client.get(path).await.is_error(403, "forbidden");
        }
        client.put("/v1/state/report/k", &[], BODY).await.is_error(403, "forbidden");
    }
    assert!(node.core.store().reports.is_empty() && node.core.store().callers.is_empty());
}

#[tokio::test]
async fn secret_values_need_the_second_group() {
    let node = Node::start().await;
    node.core.store().secrets.insert("k".into(), Ok(("v", 1)));
    let mut member = node.client_as(1000, &[SOCKET_GID]);
    assert_eq!(member.get("/v1/state/secrets").await.status, 200);
    member.get("/v1/state/secrets/k").await.is_error(403, "forbidden");
    assert!(node.core.store().callers.is_empty(), "core is not even asked");
    assert_eq!(node.client_as(1000, &[SOCKET_GID, SECRETS_GID]).get("/v1/state/secrets/k").await.status, 200);
    assert_eq!(node.client_as(0, &[]).get("/v1/state/secrets/k").await.status, 200);
    let callers = std::mem::take(&mut node.core.store().callers);
    // Core is not told who they are: it is shown their sockets.
    assert!(callers.iter().all(|read| matches!(read.caller, Some(Caller::Shown(_)))), "{callers:?}");
}

#[tokio::test]
async fn core_is_told_of_refused_reads_of_secrets_and_of_nothing_else() {
    let mut node = Setup { tcp_secrets: false, ..Setup::default() }.start().await;
    let mut member = node.client_as(1000, &[SOCKET_GID]);
    for (method, path) in [
        ("GET", "/v1/state/secrets"),
        ("PUT", "/v1/state/secrets/k"),
        ("GET", "/v1/state/secrets/%0a"),
        ("GET", "/v1/state/secrets/"),
        ("GET", "/nowhere"),
    ] {
        member.request(method, path, &[], None).await;
    }
    member.get("/v1/state/secrets/db%2Fpassword").await.is_error(403, "forbidden");
    member.request("HEAD", "/v1/state/secrets/k", &[], None).await;
    node.client_as(1001, &[]).get("/v1/state/secrets/k").await.is_error(403, "forbidden");
    let mut tcp = node.connect_tcp().await;
    tcp.get("/v1/state/secrets/t1").await.is_error(401, "unauthorized");
    tcp.get_with("/v1/state/secrets/t2", &["Authorization: Bearer x"]).await.is_error(401, "unauthorized");
    let token = format!("Authorization: Bearer {TOKEN}");
    tcp.get_with("/v1/state/secrets/t3", &[&token]).await.is_error(403, "forbidden");

    let told = async |node: &Node, reads: u64| {
        let waited = async {
            while node.core.store().denied.iter().map(|read| read.count).sum::<u64>() < reads {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), waited).await.expect("they are told");
        let denied = std::mem::take(&mut node.core.store().denied);
        let who = |read: &DeniedRead| read.local.as_ref().map(|caller| (caller.uid, caller.gid, caller.pid));
        let mut told: Vec<_> = denied.iter().map(|read| (read.key.clone(), who(read), read.count)).collect();
        told.sort();
        told
    };
    let local = |uid| Some((uid, uid, 42));
    let expected = [
        ("db/password", local(1000)),
        ("k", local(1000)),
        ("k", local(1001)),
        ("t1", None),
        ("t2", None),
        ("t3", None),
    ];
    assert_eq!(told(&node, 6).await, expected.map(|(key, who)| (key.to_owned(), who, 1)));
    assert!(node.core.store().callers.is_empty(), "and it is not asked for them");

    // While core is away they wait, and many are few.
    node.core.kill();
    for _ in 0..100 {
        member.get("/v1/state/secrets/k").await.is_error(403, "forbidden");
    }
    node.core.start();
    let later = told(&node, 100).await;
    assert_eq!(later.iter().map(|(.., count)| count).sum::<u64>(), 100);
    assert!(later.len() < 30, "{later:?}");
}

#[tokio::test]
async fn the_unix_socket_tells_who_connected() {
    let node = Node::start().await;
    let mut client = node.connect_unix().await;
    let answer = client.get("/v1/state").await;
    // The tests' process has none of the made-up groups: it gets in as root or not at all.
    assert_eq!(answer.status, if nix::unistd::geteuid().is_root() { 200 } else { 403 });
}

#[tokio::test]
async fn every_tcp_request_needs_the_token() {
    let node = Node::start().await;
    node.core.store().secrets.insert("k".into(), Ok(("v", 1)));
    let mut client = node.connect_tcp().await;
    for path in ["/v1/state", "/v1/state/secrets/k", "/v1/state/watch", "/nowhere", "/healthz"] {
        let answer = client.get(path).await;
        answer.is_error(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let token = format!("Authorization: Bearer {TOKEN}");
    client.get_with("/v1/state", &[&token, &token]).await.is_error(401, "unauthorized");
    assert_eq!(client.get_with("/v1/state/secrets/k", &[&token]).await.json()["value"], "v");
    let callers = std::mem::take(&mut node.core.store().callers);
    assert!(matches!(&callers[0].caller, Some(Caller::Tcp(caller)) if caller.token == TOKEN.as_bytes()));
}

#[tokio::test]
async fn the_token_can_be_barred_from_secrets() {
    let node = Setup { tcp_secrets: false, ..Setup::default() }.start().await;
    let mut client = node.connect_tcp().await;
    let token = format!("Authorization: Bearer {TOKEN}");
    client.get_with("/v1/state/secrets/k", &[&token]).await.is_error(403, "forbidden");
    client.get("/v1/state/secrets/k").await.is_error(401, "unauthorized");
    assert_eq!(client.get_with("/v1/state/secrets", &[&token]).await.status, 200);
}

#[tokio::test]
async fn without_a_token_at_core_nobody_gets_in_by_tcp() {
    let state = registered().into_iter().take(1).collect();
    let node = Setup { state, ..Setup::default() }.start().await;
    let token = format!("Authorization: Bearer {TOKEN}");
    let mut client = node.connect_tcp().await;
    client.get_with("/v1/state", &[&token]).await.is_error(401, "unauthorized");
}

#[tokio::test]
async fn core_has_the_final_say_on_secrets() {
    let node = Node::start().await;
    let table = [
        (SecretRefusal::NotPermitted, 403, "forbidden"),
        (SecretRefusal::Forbidden, 403, "forbidden"),
        (SecretRefusal::NotFound, 404, "not found"),
        (SecretRefusal::ControlPlaneUnavailable, 503, "control plane unavailable"),
        (SecretRefusal::DecryptionFailed, 500, "decryption failed"),
        (SecretRefusal::NotRegistered, 503, "node not registered"),
        (SecretRefusal::BadToken, 401, "unauthorized"),
        (SecretRefusal::Unproven, 403, "forbidden"),
        (SecretRefusal::Unspecified, 503, "core unavailable"),
    ];
    let mut client = node.client();
    for (refusal, status, text) in table {
        node.core.store().secrets.insert("k".into(), Err(refusal));
        client.get("/v1/state/secrets/k").await.is_error(status, text);
    }
}

#[tokio::test]
async fn connections_over_the_limit_are_turned_away_in_words() {
    let limits = Limits { total: 3, per_uid: 2, tcp: 1 };
    let node = Setup { limits, core: false, ..Setup::default() }.start().await;
    let groups = [SOCKET_GID];
    let mut first = node.client_as(1, &groups);
    let _second = node.client_as(1, &groups);
    node.client_as(1, &groups).answer().await.is_error(503, "too many connections");
    let mut other = node.client_as(2, &groups);
    node.client_as(3, &groups).answer().await.is_error(503, "too many connections");
    node.connect_tcp().await.answer().await.is_error(503, "too many connections");
    assert_eq!(other.get("/healthz").await.status, 200);
    // A place is free again once a connection has ended.
    first.request("GET", "/healthz", &["Connection: close"], None).await;
    assert!(first.closed().await);
    assert_eq!(node.client_as(1, &groups).get("/healthz").await.status, 200);
}

#[tokio::test]
async fn figures_are_for_who_has_the_token_and_only_if_they_are_wanted() {
    let token = format!("Authorization: Bearer {TOKEN}");
    let node = Setup { metrics: true, ..Setup::default() }.start().await;
    node.client().put("/v1/state/report/k", &[], BODY).await;
    let mut tcp = node.connect_tcp().await;
    tcp.get("/metrics").await.is_error(401, "unauthorized");
    tcp.get_with("/v1/state", &[&token]).await;
    let answer = tcp.get_with("/metrics", &[&token]).await;
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    for line in [
        r#"plexd_api_requests_total{method="PUT",route="/v1/state/report/{key}",status="200"} 1"#,
        r#"plexd_api_requests_total{method="GET",route="/metrics",status="401"} 1"#,
        "plexd_api_state_age_seconds 0.0",
        "plexd_api_reports_pending 1",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line} is not in:\n{}", answer.body);
    }
    node.client().get("/metrics").await.is_error(404, "not found");

    let without = Node::start().await;
    without.connect_tcp().await.get_with("/metrics", &[&token]).await.is_error(404, "not found");
}
