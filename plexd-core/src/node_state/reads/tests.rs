//! The stream of reads: what is answered when, what is broken off, and what is recorded of it.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::super::audit::tests::taken;
use super::super::proofs::Proofs;
use super::super::secrets::SecretRules;
use super::super::token::ApiToken;
use super::*;
use crate::control::client::{Client, ClientConfig};
use crate::control::dev::DevControlPlane;
use crate::identity::Identity;
use crate::types::SystemClock;

const RULES: SecretRules = SecretRules { access_group: 989, secrets_group: 990, over_tcp: true };

struct Rig {
    secrets: SecretReader,
    auditor: Auditor,
    identity: watch::Sender<Option<Arc<Identity>>>,
}

impl Rig {
    fn new(client: Client, identity: Identity) -> Self {
        let identity = watch::Sender::new(Some(Arc::new(identity)));
        let token = watch::channel(Some(ApiToken::of(GOOD.as_bytes()))).1;
        let proofs = Proofs::new(Path::new("/nonexistent/api.sock"), 100);
        let secrets = SecretReader::new(client, identity.subscribe(), RULES, token, proofs);
        Self { secrets, auditor: Auditor::new(Arc::new(SystemClock), "a"), identity }
    }

    /// A control plane that takes connections and says nothing.
    async fn silent() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let client = Client::new(ClientConfig { base, ca_file: None, version: "1" }).unwrap();
        (Self::new(client, crate::reconcile::tests::identity()), listener)
    }

    fn stream(
        &self,
    ) -> (mpsc::UnboundedSender<Message>, std::pin::Pin<Box<impl Stream<Item = Answers> + use<>>>) {
        let (messages, incoming) = mpsc::unbounded_channel();
        let incoming = UnboundedReceiverStream::new(incoming).map(Ok);
        let reading =
            Reading::new(incoming, self.secrets.clone(), self.auditor.clone(), self.identity.subscribe());
        (messages, Box::pin(reading.answers()))
    }
}

type Message = v1::ReadSecretsRequest;

/// A token that opens secrets, and one that does not.
const GOOD: &str = "t";
const BAD: &str = "u";

fn read(id: u64, key: &str, token: &'static str) -> v1::SecretRead {
    let caller = v1::TcpCaller { token: token.into() };
    v1::SecretRead { id, key: key.into(), caller: Some(Caller::Tcp(caller)) }
}

fn message(reads: Vec<v1::SecretRead>, given_up: Vec<u64>) -> Message {
    v1::ReadSecretsRequest { reads, given_up, ..Default::default() }
}

/// What came of reads, by their ids.
fn results(answers: Answers) -> BTreeMap<u64, Result<String, SecretRefusal>> {
    let result = |answer: v1::SecretAnswer| match answer.result.unwrap() {
        Answered::Secret(secret) => (answer.id, Ok(String::from_utf8(secret.value.to_vec()).unwrap())),
        Answered::Refusal(refusal) => (answer.id, Err(refusal.try_into().unwrap())),
    };
    answers.unwrap().answers.into_iter().map(result).collect()
}

#[tokio::test]
async fn each_read_is_answered_under_its_id_and_recorded() {
    let control_plane = DevControlPlane::start().await;
    let identity = control_plane.enrol("a").await;
    let path = format!("nodes/{}/secrets/k", identity.node_id);
    control_plane.manage(reqwest::Method::PUT, &path, json!({ "value": "s3cret" })).await;
    let rig = Rig::new(control_plane.client(), identity);
    let (messages, mut answers) = rig.stream();
    let first = (0..50).map(|id| read(id, "k", GOOD)).collect();
    messages.send(message(first, Vec::new())).unwrap();
    messages.send(message(vec![read(50, "none", GOOD), read(51, "k", BAD)], Vec::new())).unwrap();
    drop(messages);
    let mut all = BTreeMap::new();
    while let Some(some) = answers.next().await {
        for (id, result) in results(some) {
            assert!(all.insert(id, result).is_none(), "{id} answered twice");
        }
    }
    let mut expected: BTreeMap<_, _> = (0..50).map(|id| (id, Ok("s3cret".to_owned()))).collect();
    expected.insert(50, Err(SecretRefusal::NotFound));
    expected.insert(51, Err(SecretRefusal::BadToken));
    assert_eq!(all, expected);
    assert_eq!(taken(&rig.auditor).await.len(), 52);
}

#[tokio::test]
async fn a_read_that_takes_its_time_holds_up_no_other_and_one_that_is_given_up_is_broken_off_and_recorded() {
    let (rig, _listener) = Rig::silent().await;
    let (messages, mut answers) = rig.stream();
    messages.send(message(vec![read(1, "slow", GOOD), read(2, "k", BAD)], Vec::new())).unwrap();
    let refused = Err(SecretRefusal::BadToken);
    assert_eq!(results(answers.next().await.unwrap()), BTreeMap::from([(2, refused.clone())]));
    // 3 does not exist, and 2 has ended.
    messages.send(message(vec![read(4, "k", BAD)], vec![1, 2, 3])).unwrap();
    assert_eq!(results(answers.next().await.unwrap()), BTreeMap::from([(4, refused)]));
    drop(messages);
    assert!(answers.next().await.is_none(), "nothing is under way");
    let records = taken(&rig.auditor).await;
    let of = |record: &serde_json::Value| (record["object"]["secret"].clone(), record["result"].clone());
    assert_eq!(records.iter().map(of).filter(|of| *of == (json!("slow"), json!("error"))).count(), 1);
    assert_eq!(records.len(), 3);
}

#[tokio::test]
async fn a_stream_that_is_dropped_breaks_its_reads_off_and_each_is_recorded() {
    let (rig, _listener) = Rig::silent().await;
    let (messages, mut answers) = rig.stream();
    let reads = (0..40).map(|id| read(id, "k", GOOD)).collect();
    messages.send(message(reads, Vec::new())).unwrap();
    assert!(answers.next().now_or_never().is_none());
    drop(answers);
    assert_eq!(taken(&rig.auditor).await.len(), 40);
}

#[tokio::test]
async fn a_stream_ends_with_what_is_no_message_and_when_the_process_stops() {
    let (rig, _listener) = Rig::silent().await;
    let many = |count: u64| (0..count).map(|id| read(id, "k", GOOD)).collect::<Vec<_>>();
    let limit = u64::try_from(MAX_READS).unwrap();
    let table = [
        (many(limit + 1), tonic::Code::ResourceExhausted),
        (vec![read(1, "k", BAD), read(1, "k", BAD)], tonic::Code::InvalidArgument),
    ];
    for (reads, code) in table {
        let (messages, mut answers) = rig.stream();
        messages.send(message(reads, Vec::new())).unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), code);
        assert!(answers.next().await.is_none());
    }
    let (messages, mut answers) = rig.stream();
    for first in (0..=4 * limit).step_by(MAX_READS) {
        let reads = many(limit).into_iter().map(|read| v1::SecretRead { id: read.id + first, ..read });
        messages.send(message(reads.collect(), Vec::new())).unwrap();
    }
    assert_eq!(answers.next().await.unwrap().unwrap_err().code(), tonic::Code::ResourceExhausted);
    let (_messages, mut answers) = rig.stream();
    assert!(answers.next().now_or_never().is_none());
    drop(rig.identity);
    assert!(answers.next().await.is_none());
}
