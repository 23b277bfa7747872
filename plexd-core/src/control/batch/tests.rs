use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::control::client::{Call, Detail, Framing};
use crate::control::wire::LogEntry;

/// Half of the range: no jitter.
const MIDDLE: u32 = u32::MAX / 2;

#[derive(Serialize)]
struct Number(u32);

impl Observed for Number {
    const NAME: &'static str = "numbers";
    const CALL: Call = LogEntry::CALL;
    const FRAMING: Framing = Framing::Lines;
}

const CALL: Call = Number::CALL;

/// When they were made, in seconds, and with which batch.
type Attempts = Vec<(u64, Vec<u32>)>;

/// Judges a batch, given how many came before it.
type Judge = Box<dyn FnMut(usize, &[u32]) -> Result<(), ClientError> + Send>;

/// Answers as the judge says, and keeps what came and when.
struct Script {
    judge: Judge,
    started: Instant,
    attempts: Arc<Mutex<Attempts>>,
}

impl Carrier<Number> for Script {
    async fn ready(&mut self, _shutdown: &Shutdown) -> bool {
        true
    }

    async fn deliver(&mut self, batch: &[Record<Number>]) -> Result<(), ClientError> {
        let numbers: Vec<u32> =
            batch.iter().map(|record| serde_json::from_slice(record.json()).unwrap()).collect();
        let mut attempts = self.attempts.lock().unwrap();
        let answer = (self.judge)(attempts.len(), &numbers);
        attempts.push((self.started.elapsed().as_secs(), numbers));
        answer
    }

    fn delay(&mut self, error: &ClientError, backoff: &mut Backoff) -> Duration {
        let own = backoff.next(MIDDLE);
        error.retry_after().unwrap_or(own.max(Duration::from_secs(1)))
    }

    fn refused(&mut self, error: &ClientError) {
        assert!(error.is_final());
    }

    fn tell(&mut self, counts: Counts) {
        assert!(counts.waiting <= 10_000);
    }
}

/// A sender that runs, and what it does.
struct Running {
    queue: Queue<Number>,
    attempts: Arc<Mutex<Attempts>>,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(
        limits: Limits,
        judge: impl FnMut(usize, &[u32]) -> Result<(), ClientError> + Send + 'static,
    ) -> Self {
        let queue = Queue::new(limits);
        let attempts = Arc::default();
        let script =
            Script { judge: Box::new(judge), started: Instant::now(), attempts: Arc::clone(&attempts) };
        let shutdown = Shutdown::new();
        let task = tokio::spawn(BatchSender::new(queue.clone(), script).run(shutdown.clone()));
        Self { queue, attempts, shutdown, task }
    }

    fn push(&self, numbers: impl IntoIterator<Item = u32>) {
        numbers.into_iter().for_each(|number| self.queue.push(&Number(number)));
    }

    fn attempts(&self) -> Attempts {
        self.attempts.lock().unwrap().clone()
    }

    async fn stop(self) -> Attempts {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.attempts.lock().unwrap().clone()
    }
}

/// Records of one or two bytes, batches of 4, a flush after 10 s.
fn limits() -> Limits {
    Limits { records: 100, bytes: 1000, batch_records: 4, batch_bytes: 100, ..Limits::default() }
}

fn too_large() -> Result<(), ClientError> {
    Err(ClientError::TooLarge { call: CALL, detail: Detail::default() })
}

fn counts(waiting: u64, sent: u64, overflowed: u64, refused: u64) -> Counts {
    Counts { waiting, sent, overflowed, refused }
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_when_it_is_full_or_its_first_record_has_waited() {
    let running = Running::start(limits(), |_, _| Ok(()));
    running.push(0..3);
    sleep(Duration::from_secs(9)).await;
    assert_eq!(running.attempts(), []);
    sleep(Duration::from_secs(2)).await;
    running.push(3..8);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.attempts(), [(10, vec![0, 1, 2]), (11, vec![3, 4, 5, 6])]);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.attempts()[2..], [(21, vec![7])]);
    assert_eq!(running.queue.counts(), counts(0, 8, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_bounded_in_bytes_but_a_large_record_goes_alone() {
    let running = Running::start(Limits { batch_bytes: 4, ..limits() }, |_, _| Ok(()));
    running.push([10, 11, 12, 123_456, 7]);
    let attempts = running.stop().await;
    let batches: Vec<_> = attempts.into_iter().map(|(_, batch)| batch).collect();
    assert_eq!(batches, [vec![10, 11], vec![12], vec![123_456], vec![7]]);
}

#[test]
fn a_full_queue_drops_its_oldest_records_and_counts_them() {
    let queue = Queue::new(Limits { records: 3, bytes: 6, ..limits() });
    (0..5).for_each(|number| queue.push(&Number(number)));
    assert_eq!(queue.counts(), counts(3, 0, 2, 0));
    queue.push(&Number(5555));
    assert_eq!(queue.counts(), counts(3, 0, 3, 0));
    queue.push(&Number(6666));
    assert_eq!(queue.counts(), counts(1, 0, 6, 0), "8 bytes are too many");
    queue.push(&Number(7_777_777));
    assert_eq!(queue.counts(), counts(1, 0, 6, 1), "what never fits costs no other its place");
    assert_eq!(queue.counts().lost(), 7);
}

#[tokio::test(start_paused = true)]
async fn the_one_record_that_is_too_large_is_found_and_dropped_and_the_others_arrive_in_order() {
    let limits = Limits { batch_records: 64, ..limits() };
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&accepted);
    let running = Running::start(limits, move |_, batch| {
        if batch.contains(&37) {
            return too_large();
        }
        kept.lock().unwrap().extend_from_slice(batch);
        Ok(())
    });
    running.push(0..64);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.queue.counts(), counts(0, 63, 0, 1));
    let attempts = running.stop().await;
    assert!(attempts.len() <= 14, "{} attempts", attempts.len());
    assert_eq!(*accepted.lock().unwrap(), (0..64).filter(|number| *number != 37).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn how_much_the_control_plane_takes_is_learned_and_tried_again_now_and_then() {
    let running = Running::start(Limits { batch_records: 8, ..limits() }, |_, batch| match batch.len() {
        ..=3 => Ok(()),
        _ => too_large(),
    });
    running.push(0..88);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(running.queue.counts(), counts(0, 88, 0, 0));
    let attempts = running.stop().await;
    let refused = attempts.iter().filter(|(_, batch)| batch.len() > 3).count();
    assert_eq!((attempts.len() - refused, refused), (44, 2 + 2), "batches of 2, and two attempts at 4");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_may_pass_is_waited_for_as_long_as_asked_or_with_growing_delays() {
    let running = Running::start(limits(), |attempt, _| match attempt {
        0 => Err(ClientError::RateLimited { call: CALL, retry_after: Some(Duration::from_mins(2)) }),
        1 => Err(ClientError::RateLimited { call: CALL, retry_after: None }),
        2 => Err(ClientError::Server { call: CALL, status: 500 }),
        3 => Err(ClientError::Network { call: CALL, reason: "refused".to_owned() }),
        4 => Err(ClientError::Unauthorized { call: CALL, detail: Detail::default() }),
        _ => Ok(()),
    });
    running.push(0..4);
    sleep(Duration::from_mins(5)).await;
    let attempts = running.attempts();
    assert!(attempts.iter().all(|(_, batch)| *batch == [0, 1, 2, 3]), "{attempts:?}");
    let waits: Vec<u64> = attempts.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    // The first failure counts for the delays too.
    for (wait, wanted) in waits.iter().zip([120, 2, 4, 8, 16]) {
        assert!(wait.abs_diff(wanted) <= 1, "{waits:?}");
    }
    assert_eq!(running.queue.counts(), counts(0, 4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_dropped_and_what_follows_is_sent() {
    let running = Running::start(limits(), |attempt, _| match attempt {
        0 => Err(ClientError::BadRequest { call: CALL, status: 400, detail: Detail::default() }),
        _ => Ok(()),
    });
    running.push(0..8);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.attempts(), [(0, vec![0, 1, 2, 3]), (0, vec![4, 5, 6, 7])]);
    assert_eq!(running.queue.counts(), counts(0, 4, 0, 4));
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_the_oldest_records_and_no_more_memory() {
    let limits = Limits { records: 6, ..limits() };
    let running = Running::start(limits, |attempt, _| match attempt {
        0..5 => Err(ClientError::Server { call: CALL, status: 503 }),
        _ => Ok(()),
    });
    for number in 0..60 {
        running.push([number]);
        sleep(Duration::from_millis(500)).await;
        assert!(running.queue.counts().waiting <= 6);
    }
    sleep(Duration::from_mins(2)).await;
    let total = running.queue.counts();
    assert_eq!((total.waiting, total.refused, total.sent + total.overflowed), (0, 0, 60));
    let sent: Vec<u32> = running.attempts()[5..].iter().flat_map(|(_, batch)| batch.clone()).collect();
    assert_eq!(sent.len() as u64, total.sent);
    assert!(sent.is_sorted() && sent.last() == Some(&59), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_sends_what_is_left_once_and_is_not_held_up() {
    let running = Running::start(limits(), |_, _| Ok(()));
    running.push(0..6);
    assert_eq!(running.stop().await, [(0, vec![0, 1, 2, 3]), (0, vec![4, 5])]);

    let running = Running::start(limits(), |_, _| Err(ClientError::Server { call: CALL, status: 503 }));
    running.push(0..6);
    let started = Instant::now();
    assert_eq!(running.stop().await.len(), 1);
    assert!(started.elapsed() < LAST_CALL);
}

/// Delivers never.
struct Hanging;

impl Carrier<Number> for Hanging {
    async fn ready(&mut self, _shutdown: &Shutdown) -> bool {
        true
    }

    async fn deliver(&mut self, _batch: &[Record<Number>]) -> Result<(), ClientError> {
        std::future::pending().await
    }

    fn delay(&mut self, _error: &ClientError, _backoff: &mut Backoff) -> Duration {
        Duration::ZERO
    }

    fn refused(&mut self, _error: &ClientError) {}

    fn tell(&mut self, _counts: Counts) {}
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_hangs_ends_with_the_last_call_and_its_records_are_not_forgotten() {
    let queue = Queue::new(limits());
    let shutdown = Shutdown::new();
    queue.push(&Number(1));
    shutdown.cancel();
    let started = Instant::now();
    BatchSender::new(queue.clone(), Hanging).run(shutdown).await.unwrap();
    assert_eq!(started.elapsed(), LAST_CALL);
    assert_eq!(queue.counts(), counts(1, 0, 0, 0));
}

proptest! {
    #[test]
    fn every_record_is_sent_once_and_in_order_or_counted_as_lost(
        pushes in prop::collection::vec(0..30_u32, 1..12),
        answers in prop::collection::vec(0..5_u8, 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let accepted = Arc::new(Mutex::new(Vec::new()));
            let kept = Arc::clone(&accepted);
            let running = Running::start(Limits { records: 20, ..limits() }, move |attempt, batch| {
                match answers.get(attempt) {
                    Some(0) => return too_large(),
                    Some(1) => return Err(ClientError::Server { call: CALL, status: 500 }),
                    Some(2) => return Err(ClientError::Forbidden { call: CALL, detail: Detail::default() }),
                    _ => kept.lock().unwrap().extend_from_slice(batch),
                }
                Ok(())
            });
            let mut pushed = 0;
            for count in pushes {
                running.push(pushed..pushed + count);
                pushed += count;
                sleep(Duration::from_secs(3)).await;
            }
            sleep(Duration::from_hours(1)).await;
            let total = running.queue.counts();
            let accepted = accepted.lock().unwrap();
            assert_eq!((total.waiting, total.sent), (0, accepted.len() as u64));
            assert_eq!(total.sent + total.lost(), u64::from(pushed));
            assert!(accepted.is_sorted_by(|a, b| a < b));
        });
    }
}
