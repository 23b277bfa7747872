//! Numbered datagrams, sent and received at once: shows what a tunnel loses. Hidden, for the tests and the benchmark.

use std::collections::BTreeSet;
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

/// Time between two datagrams: 1,000 a second.
const BEAT: Duration = Duration::from_millis(1);

/// How long to wait for what is still under way after the last one was sent.
const LINGER: Duration = Duration::from_secs(2);

/// How long to wait for the other end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Room for datagrams that wait for this program, in bytes: what is lost is to be the tunnel's loss.
const BUFFER: usize = 8 << 20;

/// Sends from `own` to `peer` for `seconds`, receives meanwhile, and returns how many were sent, how many different ones
/// came, the longest time in which none did, and how late this program was at most with sending one (a busy machine),
/// both in milliseconds.
pub(crate) fn exchange(own: &str, peer: &str, seconds: &str) -> io::Result<Value> {
    let seconds = seconds.parse().map_err(|_| io::Error::other("the time is a number of seconds"))?;
    let socket = UdpSocket::bind(own)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    socket.connect(peer)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    meet(&socket)?;
    let is_over = AtomicBool::new(false);
    let ((sent, late), (received, gap)) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&socket, &is_over));
        let sent = send(&socket, Duration::from_secs(seconds));
        thread::sleep(LINGER);
        is_over.store(true, Ordering::Relaxed);
        (sent, receiver.join().unwrap_or_default())
    });
    let [gap, late] = [gap, late].map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Ok(json!({ "sent": sent, "received": received.len(), "longest_gap_ms": gap, "latest_ms": late }))
}

/// Greets until the other end does, so that none is lost because nobody listens yet.
fn meet(socket: &UdpSocket) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let _ = socket.send(&[]);
        if socket.recv(&mut [0; 8]).is_ok() {
            // It may have begun before this greeting, and needs one that came while it listened.
            socket.send(&[])?;
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the other end does not answer"))
}

/// Sends one each beat, and returns how many and how late at most; one that the tunnel refuses counts as sent.
fn send(socket: &UdpSocket, time: Duration) -> (u64, Duration) {
    let start = Instant::now();
    let mut number: u64 = 0;
    let mut late = Duration::ZERO;
    while start.elapsed() < time {
        let _ = socket.send(&number.to_be_bytes());
        number += 1;
        let next = BEAT.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
        thread::sleep(next.saturating_sub(start.elapsed()));
        late = late.max(start.elapsed().saturating_sub(next));
    }
    (number, late)
}

fn receive(socket: &UdpSocket, is_over: &AtomicBool) -> (BTreeSet<u64>, Duration) {
    let mut numbers = BTreeSet::new();
    let mut gap = Duration::ZERO;
    let mut last: Option<Instant> = None;
    let mut buffer = [0; 8];
    while !is_over.load(Ordering::Relaxed) {
        // Also an error that the other end's absence causes is no more than a datagram that did not come.
        if !matches!(socket.recv(&mut buffer), Ok(8)) {
            continue;
        }
        let now = Instant::now();
        gap = gap.max(last.map(|last| now - last).unwrap_or_default());
        last = Some(now);
        numbers.insert(u64::from_be_bytes(buffer));
    }
    (numbers, gap)
}
