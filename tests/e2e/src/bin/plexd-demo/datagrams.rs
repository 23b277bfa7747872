//! Numbered datagrams, sent and received at once: shows what a tunnel loses. Hidden, for the tests and the benchmark.

use std::collections::BTreeSet;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

/// Time between two datagrams: 1,000 a second.
const BEAT: Duration = Duration::from_millis(1);

/// How late a beat may be and still be made up for.
const BEHIND: Duration = Duration::from_millis(50);

/// How long to wait for what is still under way after the last one was sent.
const LINGER: Duration = Duration::from_secs(2);

/// After how long one that arrives is of no use, in microseconds.
const LATE: u64 = 1_000_000;

/// Length of a datagram, in bytes: its number, and when it was sent.
const DATAGRAM: usize = 16;

/// How long to wait for the other end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Room for datagrams that wait for this program, in bytes: what is lost is to be the tunnel's loss.
const BUFFER: usize = 8 << 20;

/// Sends from `own` to `peer` for `seconds`, or until SIGTERM, receives meanwhile, and returns how many were sent, how many different ones
/// came in time and how many too late, the longest time in which none came in time, and how late this program was at most
/// with sending one (a busy machine), both in milliseconds.
pub(crate) fn exchange(own: &str, peer: &str, seconds: &str) -> io::Result<Value> {
    let seconds = seconds.parse().map_err(|_| io::Error::other("the time is a number of seconds"))?;
    let socket = UdpSocket::bind(own)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    socket.connect(peer)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let is_asked_to_stop = stop_on_sigterm()?;
    meet(&socket)?;
    let is_over = AtomicBool::new(false);
    let ((sent, latest), received) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&socket, &is_over));
        let sent = send(&socket, Duration::from_secs(seconds), &is_asked_to_stop);
        thread::sleep(LINGER);
        is_over.store(true, Ordering::Relaxed);
        (sent, receiver.join().unwrap_or_default())
    });
    let [gap, latest] =
        [received.gap, latest].map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Ok(json!({
        "sent": sent,
        "in_time": received.in_time.len(),
        "too_late": received.late.len(),
        "longest_gap_ms": gap,
        "latest_ms": latest,
    }))
}

/// Returns what is true once the process was asked to end. Threads that are started later leave the signal to this.
fn stop_on_sigterm() -> io::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let is_asked_to_stop = Arc::<AtomicBool>::default();
    let told = Arc::clone(&is_asked_to_stop);
    thread::spawn(move || {
        if signals.wait().is_ok() {
            told.store(true, Ordering::Relaxed);
        }
    });
    Ok(is_asked_to_stop)
}

/// Greets until the other end does, so that none is lost because nobody listens yet.
fn meet(socket: &UdpSocket) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let _ = socket.send(&[]);
        if socket.recv(&mut [0; DATAGRAM]).is_ok() {
            // It may have begun before this greeting, and needs one that came while it listened.
            socket.send(&[])?;
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the other end does not answer"))
}

/// Sends one each beat until the time is over or it is asked to stop, and returns how many and how late at most; one that
/// the tunnel refuses counts as sent. Beats that were missed by more than [`BEHIND`] are given up: to make up for them in one
/// go would be another flow, which no queue bridges.
fn send(socket: &UdpSocket, time: Duration, is_asked_to_stop: &AtomicBool) -> (u64, Duration) {
    let end = Instant::now() + time;
    let mut next = Instant::now();
    let mut number: u64 = 0;
    let mut latest = Duration::ZERO;
    while Instant::now() < end && !is_asked_to_stop.load(Ordering::Relaxed) {
        let datagram = u128::from(number) << 64 | u128::from(clock());
        let _ = socket.send(&datagram.to_be_bytes());
        number += 1;
        next += BEAT;
        // The beat of the flow.
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let late = next.elapsed();
        latest = latest.max(late);
        if late > BEHIND {
            next += late;
        }
    }
    (number, latest)
}

/// What came.
#[derive(Default)]
struct Received {
    in_time: BTreeSet<u64>,
    /// Those that came after [`LATE`]: whoever waited for them has given up.
    late: BTreeSet<u64>,
    gap: Duration,
}

fn receive(socket: &UdpSocket, is_over: &AtomicBool) -> Received {
    let mut received = Received::default();
    let mut last: Option<Instant> = None;
    let mut buffer = [0; DATAGRAM];
    while !is_over.load(Ordering::Relaxed) {
        // Also an error that the other end's absence causes is no more than a datagram that did not come.
        if !matches!(socket.recv(&mut buffer), Ok(DATAGRAM)) {
            continue;
        }
        let [number, sent] = split(&buffer);
        if clock().saturating_sub(sent) > LATE {
            received.late.insert(number);
            continue;
        }
        let now = Instant::now();
        received.gap = received.gap.max(last.map(|last| now - last).unwrap_or_default());
        last = Some(now);
        received.in_time.insert(number);
    }
    received
}

/// Both ends are on one machine, and so is their clock, in microseconds.
fn clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Returns a datagram's number and when it was sent.
fn split(datagram: &[u8; DATAGRAM]) -> [u64; 2] {
    let value = u128::from_be_bytes(*datagram);
    [value >> 64, value & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(u64::MAX))
}
