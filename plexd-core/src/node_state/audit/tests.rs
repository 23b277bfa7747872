//! Records as they would be sent.

use plexd_proto::node::v1::LocalCaller;
use serde_json::{Value, json};

use super::*;
use crate::control::backoff::Backoff;
use crate::control::batch::{Carrier, Counts};
use crate::control::client::{ClientError, Record};
use crate::state::samples::StandingClock;

const REFUSALS: [(SecretRefusal, &str); 9] = [
    (SecretRefusal::Unspecified, "error"),
    (SecretRefusal::NotPermitted, "denied"),
    (SecretRefusal::Forbidden, "denied"),
    (SecretRefusal::NotFound, "error"),
    (SecretRefusal::ControlPlaneUnavailable, "error"),
    (SecretRefusal::DecryptionFailed, "error"),
    (SecretRefusal::NotRegistered, "error"),
    (SecretRefusal::BadToken, "denied"),
    (SecretRefusal::Unproven, "denied"),
];

fn auditor() -> Auditor {
    Auditor::new(Arc::new(StandingClock::default()), "web-01")
}

fn local(uid: u32) -> LocalCaller {
    LocalCaller { uid, gid: 100, pid: 42, groups: vec![990] }
}

/// A read of `k` that user `uid` begins.
fn begin(auditor: &Auditor, uid: u32) -> Read<'_> {
    let subject = Subject::of(&PeerCredentials { uid, gid: 100, pid: 42, groups: vec![990] });
    auditor.begin_of(Requester::Uid(uid), subject, "k")
}

fn refused(uid: u32, key: &str, count: u64) -> DeniedRead {
    DeniedRead { key: key.into(), local: Some(local(uid)), count, age_ms: 0 }
}

/// Takes whatever there is.
struct Collector(Arc<Mutex<Vec<Value>>>);

impl Carrier<AuditEntry> for Collector {
    async fn ready(&mut self, _shutdown: &Shutdown) -> bool {
        true
    }

    async fn deliver(&mut self, batch: &[Record<AuditEntry>]) -> Result<(), ClientError> {
        let records = batch.iter().map(|record| serde_json::from_slice::<Value>(record.json()).unwrap());
        self.0.lock().unwrap().extend(records);
        Ok(())
    }

    fn delay(&mut self, error: &ClientError, _backoff: &mut Backoff) -> Duration {
        panic!("{error}")
    }

    fn refused(&mut self, error: &ClientError) {
        panic!("{error}")
    }

    fn tell(&mut self, _counts: Counts) {}
}

/// Takes what waits to be sent.
pub(in crate::node_state) async fn taken(auditor: &Auditor) -> Vec<Value> {
    let stopping = Shutdown::new();
    stopping.cancel();
    let collected = Arc::default();
    let collector = Collector(Arc::clone(&collected));
    BatchSender::new(auditor.shared.queue.clone(), collector).run(stopping).await.unwrap();
    std::mem::take(&mut *collected.lock().unwrap())
}

/// How many records and how many reads they stand for.
fn reads(records: &[Value]) -> (usize, u64) {
    let of = |record: &Value| match record["raw"].as_str().unwrap() {
        "" => 1,
        raw => serde_json::from_str::<Value>(raw).unwrap()["reads"].as_u64().unwrap(),
    };
    (records.len(), records.iter().map(of).sum())
}

#[tokio::test]
async fn a_record_has_the_fields_of_the_contract_and_no_value() {
    let auditor = auditor();
    begin(&auditor, 1000).ended(&Ok("s3cret"));
    auditor.begin(&Asker::Tcp("t0ken".into()), "db/password").ended(&Ok("s3cret"));
    let unknown = Asker::Unknown(SecretRefusal::Unproven);
    auditor.begin(&unknown, "k").ended::<()>(&Err(SecretRefusal::Unproven));
    let record = |subject: Value, key: &str, result: &str| {
        json!({
            "timestamp": "2026-01-15T10:30:00.123456789Z", "source": "plexd", "event_type": "SECRET_READ",
            "subject": subject, "object": { "secret": key }, "action": "read", "result": result,
            "hostname": "web-01", "raw": "",
        })
    };
    let expected = [
        record(json!({ "uid": 1000, "gid": 100, "pid": 42 }), "k", "success"),
        record(json!({ "via": "tcp" }), "db/password", "success"),
        record(json!({ "via": "unknown" }), "k", "denied"),
    ];
    assert_eq!(taken(&auditor).await, expected);
}

#[tokio::test]
async fn every_way_out_leaves_one_record() {
    let auditor = auditor();
    for (uid, (refusal, result)) in (0..).zip(REFUSALS) {
        begin(&auditor, uid).ended::<()>(&Err(refusal));
        let records = taken(&auditor).await;
        assert_eq!((records.len(), &records[0]["result"]), (1, &json!(result)), "{refusal:?}");
    }
    drop(begin(&auditor, 1));
    let records = taken(&auditor).await;
    assert_eq!((records.len(), &records[0]["result"]), (1, &json!("error")), "who asked has left");
}

#[tokio::test(start_paused = true)]
async fn refused_reads_are_recorded_ten_a_second_and_then_counted() {
    let auditor = auditor();
    let sums = tokio::spawn({
        let auditor = auditor.clone();
        async move { auditor.sum_up().await }
    });
    for n in 0..1_000 {
        auditor.denied(&refused(1, &format!("k{n}"), 0));
    }
    // Others have counts of their own, core's own refusals are counted with them.
    for uid in [2, 3] {
        auditor.denied(&refused(uid, "k", 1));
        begin(&auditor, uid).ended::<()>(&Err(SecretRefusal::NotPermitted));
    }
    auditor.denied(&DeniedRead { local: None, ..refused(0, "k", 1) });
    assert_eq!(reads(&taken(&auditor).await), (10 + 4 + 1, 10 + 4 + 1));
    sleep(WINDOW * 2).await;
    let rest = taken(&auditor).await;
    assert_eq!(reads(&rest), (1, 990));
    assert_eq!(rest[0]["object"], json!({ "secret": "k999" }));
    assert_eq!(rest[0]["subject"], json!({ "uid": 1, "gid": 100, "pid": 42 }));
    assert!(auditor.windows().is_empty(), "nothing is kept of who was refused once");
    // What the sidecar counted is never recorded as one.
    auditor.denied(&refused(1, "k", 500));
    auditor.denied(&refused(1, "k", 1));
    assert_eq!(reads(&taken(&auditor).await), (1, 1));
    sleep(WINDOW * 2).await;
    assert_eq!(reads(&taken(&auditor).await), (1, 500));
    sums.abort();
}

#[tokio::test(start_paused = true)]
async fn callers_without_number_take_bounded_memory_and_nothing_is_lost() {
    let auditor = auditor();
    let count = u32::try_from(MAX_WINDOWS).unwrap() + 900;
    let mut total = 0;
    for uid in 0..count {
        auditor.denied(&refused(uid, "k", 1));
        auditor.denied(&refused(uid, "k", 7));
        if uid % 500 == 0 {
            total += reads(&taken(&auditor).await).1;
        }
        assert!(auditor.windows().len() <= MAX_WINDOWS);
    }
    auditor.close_all();
    assert_eq!(total + reads(&taken(&auditor).await).1, 8 * u64::from(count));
}

#[tokio::test]
async fn a_time_that_has_passed_is_taken_off_and_a_key_that_is_none_is_cut() {
    let auditor = auditor();
    auditor.denied(&DeniedRead { age_ms: 1_500, ..refused(1, &"ü".repeat(200_000), 1) });
    auditor.denied(&DeniedRead { age_ms: u64::MAX, ..refused(1, "k", 1) });
    let records = taken(&auditor).await;
    assert_eq!(records[0]["timestamp"], "2026-01-15T10:29:58.623456789Z");
    assert_eq!(records[0]["object"]["secret"].as_str().unwrap(), "ü".repeat(128));
    assert_eq!(records[1]["timestamp"], "2026-01-15T10:30:00.123456789Z");
}
