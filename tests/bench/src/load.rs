//! The load: so many connections, each with one request under way at any time, from one thread. What it does besides
//! is little, so that on two processors the other end is what is measured.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::answer::{Incoming, Request};
use crate::door::{Connection, Door};

/// How long the load is on before anything counts.
const WARM_UP: Duration = Duration::from_millis(200);

/// How long the other end may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// What is read at once.
const BUFFER: usize = 256 * 1024;

/// A load.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    /// Where it goes.
    pub(crate) door: &'a Door,
    /// What is asked: each connection takes its turn in these, at as many places as there are connections.
    pub(crate) requests: &'a [Request],
    /// Connections, kept open.
    pub(crate) connections: usize,
    /// What it does when there is no answer to take.
    pub(crate) waits: Waits,
}

/// How answers are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Looking all the time, on a processor of its own: to wake it costs the other end more than many an answer.
    Awake,
    /// Asleep, where the other end is several processes that need the processors.
    Asleep,
}

/// What came of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Answers.
    pub(crate) answers: f64,
    /// Answers per second.
    pub(crate) rate: f64,
    /// Half of the answers took at most so long, in µs.
    pub(crate) p50: f64,
    /// 99 of 100 answers took at most so long, in µs.
    pub(crate) p99: f64,
}

struct Client<'a> {
    connection: Connection,
    incoming: Incoming,
    next: usize,
    asked: &'a Request,
    since: Instant,
}

impl Load<'_> {
    /// Is on for `time` after a moment to warm up; returns what came of it, and what `meter` read at the beginning and
    /// at the end. Panics when an answer is wrong or does not come.
    pub(crate) fn run<T>(&self, time: Duration, meter: impl Fn() -> T) -> (Outcome, T, T) {
        self.drive(time, meter).unwrap_or_else(|error| panic!("the load on {:?}: {error}", self.door))
    }

    fn drive<T>(&self, time: Duration, meter: impl Fn() -> T) -> io::Result<(Outcome, T, T)> {
        let mut poll = Poll::new()?;
        let mut clients = self.connect(&poll)?;
        let mut events = Events::with_capacity(clients.len());
        let mut buffer = vec![0; BUFFER];
        let mut taken: Vec<Duration> = Vec::with_capacity(1 << 20);
        let warm = Instant::now() + WARM_UP;
        let mut began = None;
        let mut heard = Instant::now();
        let patience = if self.waits == Waits::Awake { Duration::ZERO } else { SILENCE };
        for client in &mut clients {
            client.ask()?;
        }
        loop {
            poll.poll(&mut events, Some(patience))?;
            if !events.is_empty() {
                heard = Instant::now();
            } else if heard.elapsed() >= SILENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
            }
            for event in &events {
                let client = &mut clients[event.token().0];
                if client.hear(&mut buffer)? {
                    let now = Instant::now();
                    if began.is_some() {
                        taken.push(now - client.since);
                    }
                    client.next = (client.next + self.connections) % self.requests.len();
                    client.asked = &self.requests[client.next];
                    client.since = now;
                    client.ask()?;
                }
            }
            match &began {
                None if Instant::now() >= warm => began = Some((meter(), Instant::now())),
                Some((_, at)) if at.elapsed() >= time => break,
                _ => {}
            }
        }
        let (before, at) = began.expect("the loop ends no sooner");
        let seconds = at.elapsed().as_secs_f64();
        Ok((outcome(taken, seconds), before, meter()))
    }

    fn connect(&self, poll: &Poll) -> io::Result<Vec<Client<'_>>> {
        let connect = |number| {
            let mut connection = self.door.connect()?;
            connection.register(poll.registry(), Token(number))?;
            let next = number % self.requests.len();
            let asked = &self.requests[next];
            Ok(Client { connection, incoming: Incoming::new(), next, asked, since: Instant::now() })
        };
        (0..self.connections).map(connect).collect()
    }
}

impl Client<'_> {
    fn ask(&mut self) -> io::Result<()> {
        self.connection.send(&self.asked.bytes)
    }

    /// Takes what is there; returns whether the answer is complete. There is nothing after it, so that nothing is
    /// missed by not reading on.
    fn hear(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            match self.connection.receive(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    if self.incoming.feed(&buffer[..read], self.asked.length) {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

fn outcome(mut taken: Vec<Duration>, seconds: f64) -> Outcome {
    taken.sort_unstable();
    let part = |hundredths: usize| {
        let index = (taken.len() * hundredths / 100).min(taken.len().saturating_sub(1));
        taken.get(index).map_or(f64::NAN, |taken| taken.as_secs_f64() * 1e6)
    };
    #[expect(clippy::cast_precision_loss, reason = "millions at most")]
    let answers = taken.len() as f64;
    Outcome { answers, rate: answers / seconds, p50: part(50), p99: part(99) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentiles_are_those_of_the_answers() {
        let taken = (1..=1000).rev().map(Duration::from_micros).collect();
        let outcome = outcome(taken, 2.0);
        assert_eq!((outcome.answers, outcome.rate), (1000.0, 500.0));
        assert!((outcome.p50 - 501.0).abs() < 0.1 && (outcome.p99 - 991.0).abs() < 0.1, "{outcome:?}");
    }
}
