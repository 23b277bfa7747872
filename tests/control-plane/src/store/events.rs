//! The events of one node: the replay history, bounded in number and bytes and kept on disk, and the streams that
//! are open now. Signs nothing and decides nothing: it stores and hands on what the model made.

use std::collections::VecDeque;
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::StoreError;
use super::journal::Journal;

const HISTORY: usize = 1_000;
const HISTORY_BYTES: usize = 64 << 20;
/// More than the history: one admin request may announce thousands of peers at once to a stream that is being read.
const STREAM_QUEUE: usize = 16_384;

#[derive(Debug)]
struct Event {
    id: String,
    envelope: String,
    frame: Bytes,
}

/// History and open streams of one node.
#[derive(Debug)]
pub(crate) struct EventLog {
    journal: Journal,
    history: VecDeque<Event>,
    bytes: usize,
    last: u64,
    streams: Vec<mpsc::Sender<Bytes>>,
}

/// What a new stream starts with, and what it goes on with; no event is missed or doubled between the two.
pub(crate) struct Subscription {
    pub(crate) replay: VecDeque<Bytes>,
    pub(crate) live: mpsc::Receiver<Bytes>,
}

#[derive(Deserialize)]
struct Header {
    event_type: String,
    event_id: String,
}

impl EventLog {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("events.journal");
        let (journal, records) = Journal::open(path.clone())?;
        let mut log = Self { journal, history: VecDeque::new(), bytes: 0, last: 0, streams: Vec::new() };
        for envelope in records {
            let header: Header =
                serde_json::from_str(&envelope).map_err(|error| StoreError::damaged(&path, &error))?;
            log.last = log.last.max(number(&header.event_id).unwrap_or_default());
            log.keep(&header.event_type, header.event_id, envelope);
        }
        Ok(log)
    }

    /// The identifier that the event after `ahead` others has to carry: strictly increasing per node, also as text.
    pub(crate) fn next_id(&self, ahead: u64) -> String {
        format!("evt_{:012}", self.last + 1 + ahead)
    }

    /// Stores a signed event and hands it to the open streams; one that does not keep up is ended, never waited for.
    pub(crate) fn push(&mut self, event_type: &str, id: String, envelope: String) -> Result<(), StoreError> {
        self.last += 1;
        self.journal.append(&envelope)?;
        let frame = self.keep(event_type, id, envelope);
        self.streams.retain(|stream| stream.try_send(frame.clone()).is_ok());
        if self.journal.bytes() > 2 * self.bytes + (1 << 20) {
            self.journal.rewrite(self.history.iter().map(|event| event.envelope.as_str()))?;
        }
        Ok(())
    }

    /// Hands an event of the history to the open streams once more; returns whether it is there.
    pub(crate) fn replay(&mut self, id: &str) -> bool {
        let Some(event) = self.history.iter().find(|event| event.id == id) else {
            return false;
        };
        self.streams.retain(|stream| stream.try_send(event.frame.clone()).is_ok());
        true
    }

    /// Opens a stream: events after `last_event_id` when the history still has that one, then what follows.
    pub(crate) fn subscribe(&mut self, last_event_id: Option<&str>) -> Subscription {
        let known = last_event_id.and_then(|id| self.history.iter().position(|event| event.id == id));
        let replay = match known {
            Some(position) => self.history.range(position + 1..).map(|event| event.frame.clone()).collect(),
            None => VecDeque::new(),
        };
        let (sender, live) = mpsc::channel(STREAM_QUEUE);
        self.streams.retain(|stream| !stream.is_closed());
        self.streams.push(sender);
        Subscription { replay, live }
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> usize {
        self.streams.iter().filter(|stream| !stream.is_closed()).count()
    }

    fn keep(&mut self, event_type: &str, id: String, envelope: String) -> Bytes {
        let frame = Bytes::from(format!("id: {id}\nevent: {event_type}\ndata: {envelope}\n\n"));
        self.bytes += envelope.len();
        self.history.push_back(Event { id, envelope, frame: frame.clone() });
        while self.history.len() > HISTORY || (self.bytes > HISTORY_BYTES && self.history.len() > 1) {
            if let Some(old) = self.history.pop_front() {
                self.bytes -= old.envelope.len();
            }
        }
        frame
    }
}

fn number(event_id: &str) -> Option<u64> {
    event_id.strip_prefix("evt_")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{EventLog, HISTORY};

    fn push(log: &mut EventLog) -> String {
        let id = log.next_id(0);
        let envelope = format!(r#"{{"event_type":"rotate_keys","event_id":"{id}"}}"#);
        log.push("rotate_keys", id.clone(), envelope).unwrap();
        id
    }

    #[test]
    fn replay_starts_after_the_known_id_and_is_empty_for_an_unknown_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(dir.path()).unwrap();
        let ids: Vec<String> = (0..3).map(|_| push(&mut log)).collect();
        assert_eq!(log.subscribe(Some(&ids[0])).replay.len(), 2);
        assert_eq!(log.subscribe(Some(&ids[2])).replay.len(), 0);
        assert_eq!(log.subscribe(Some("evt_unknown")).replay.len(), 0);
        assert_eq!(log.subscribe(None).replay.len(), 0);
    }

    #[test]
    fn history_is_bounded_and_ids_go_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(dir.path()).unwrap();
        let first = push(&mut log);
        for _ in 0..HISTORY {
            push(&mut log);
        }
        assert_eq!(log.subscribe(Some(&first)).replay.len(), 0, "trimmed");
        let next = log.next_id(0);
        drop(log);
        let log = EventLog::open(dir.path()).unwrap();
        assert_eq!(log.next_id(0), next);
        assert_eq!(log.history.len(), HISTORY);
    }

    #[test]
    fn an_open_stream_gets_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(dir.path()).unwrap();
        let mut subscription = log.subscribe(None);
        let id = push(&mut log);
        let frame = subscription.live.try_recv().unwrap();
        assert!(frame.starts_with(format!("id: {id}\nevent: rotate_keys\ndata: ").as_bytes()));
        assert_eq!(log.streams(), 1);
        drop(subscription);
        assert_eq!(log.streams(), 0);
    }
}
