//! Datagrams at an even rate that must not arrive, and when each of those did that arrived all the same.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::Host;

/// How often some are sent.
const BEAT: Duration = Duration::from_millis(1);

/// How many are sent each time: 10,000 a second.
const AT_ONCE: u64 = 10;

/// How late a beat may be and still be made up for: more would be a burst.
const BEHIND: Duration = Duration::from_millis(50);

/// How often a receiver looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);

/// Room for datagrams that wait to be counted, in bytes.
const BUFFER: usize = 8 << 20;

/// 10,000 datagrams a second. The sockets may be of any network namespace. Dropping it ends it.
#[derive(Debug)]
pub struct Barrage {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    sent: AtomicU64,
    arrivals: Mutex<Vec<Instant>>,
}

impl Barrage {
    /// Starts one in a mesh, from a host to the address that another has there. Nothing may listen on `port` otherwise.
    #[track_caller]
    pub fn over_mesh(from: &Host, (to, address): (&Host, &str), port: u16) -> Self {
        let made = |made: io::Result<UdpSocket>| made.unwrap_or_else(|error| panic!("no socket: {error}"));
        let sender = made(from.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((address, port))?;
            Ok(socket)
        }));
        let receiver = made(to.within(|| UdpSocket::bind(("0.0.0.0", port))));
        Self::start(vec![sender], vec![receiver])
    }

    /// Starts it: `senders`, which are connected, send in turn; `receivers` are where that would arrive.
    ///
    /// # Panics
    /// Without a sender, or if a receiver cannot be set up.
    pub fn start(senders: Vec<UdpSocket>, receivers: Vec<UdpSocket>) -> Self {
        assert!(!senders.is_empty(), "nobody sends");
        let shared = Arc::<Shared>::default();
        let mut threads = Vec::new();
        for receiver in receivers {
            let ready = setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER)
                .map_err(Into::into)
                .and_then(|()| receiver.set_read_timeout(Some(LOOK)));
            assert!(ready.is_ok(), "cannot set a receiver up: {ready:?}");
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || shared.receive(&receiver)));
        }
        let sending = Arc::clone(&shared);
        threads.push(thread::spawn(move || sending.send(&senders)));
        Self { shared, threads }
    }

    /// Returns how many were sent so far, those that their own host dropped among them.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until `count` more were sent than now.
    pub fn wait_sent(&self, count: u64) {
        let enough = self.sent() + count;
        while self.sent() < enough {
            // As often as the count can have grown.
            thread::sleep(BEAT);
        }
    }

    /// Returns when those arrived that did so far.
    pub fn arrivals(&self) -> Vec<Instant> {
        self.shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, and returns how many were sent and when those arrived that did.
    pub fn stop(mut self) -> (u64, Vec<Instant>) {
        self.end();
        (self.sent(), self.arrivals())
    }

    fn end(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Barrage {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn send(&self, senders: &[UdpSocket]) {
        let mut next = Instant::now();
        let mut turns = senders.iter().cycle();
        while !self.is_over.load(Ordering::Relaxed) {
            for sender in turns.by_ref().take(usize::try_from(AT_ONCE).unwrap_or(1)) {
                // Refused by the own host, or answered by an error: sent all the same.
                let _ = sender.send(b"must not arrive");
            }
            self.sent.fetch_add(AT_ONCE, Ordering::Relaxed);
            next += BEAT;
            // This is what paces the packets; a beat that was missed is made up for.
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let late = next.elapsed();
            if late > BEHIND {
                next += late;
            }
        }
    }

    fn receive(&self, receiver: &UdpSocket) {
        let mut buffer = [0; 32];
        // The last look comes after what was sent last.
        loop {
            let is_last = self.is_over.load(Ordering::Relaxed);
            while receiver.recv(&mut buffer).is_ok() {
                self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
            if is_last {
                return;
            }
        }
    }
}
