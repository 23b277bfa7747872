//! What became of the newest events, for administrators: types, ids and times, never a payload, as that may hold
//! secrets. Bounded, in memory only; what is written here decides nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

/// Events that are remembered.
pub const MAX: usize = 1_000;

/// Characters that are kept of what an event says of itself.
const MAX_TEXT: usize = 128;

/// An event that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When it came.
    pub received: Timestamp,
    /// As it says of itself; empty if it could not be read.
    pub event_type: String,
    /// As it says of itself, else the stream's; empty if neither could be read.
    pub event_id: String,
    /// As it says of itself, if that could be read.
    pub issued_at: Option<Timestamp>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was verified and took effect.
    Applied,
    /// It was verified; this version has no feature for it.
    Unsupported,
    /// It was verified; this version does not know its type.
    Unknown,
    /// It was refused, for this reason, and changed nothing.
    Rejected(&'static str),
}

/// The newest events, oldest first. Cheap to clone; its lock is never held across an await.
#[derive(Debug, Clone, Default)]
pub struct History {
    content: Arc<Mutex<Content>>,
    /// Events recorded so far.
    recorded: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Content {
    events: VecDeque<Seen>,
    /// Events that were recorded and are not remembered any more.
    forgotten: u64,
}

/// What a reader of the history does not know yet.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    /// Events that are not remembered any more.
    pub missed: u64,
    /// Those that are, oldest first.
    pub events: Vec<Seen>,
    /// Where to read on.
    pub next: u64,
}

impl History {
    /// Remembers an event; the oldest one makes room.
    pub fn record(&self, mut seen: Seen) {
        shorten(&mut seen.event_type);
        shorten(&mut seen.event_id);
        let mut content = self.content();
        content.events.push_back(seen);
        if content.events.len() > MAX {
            content.events.pop_front();
            content.forgotten += 1;
        }
        let recorded = content.forgotten + content.events.len() as u64;
        drop(content);
        self.recorded.send_replace(recorded);
    }

    /// Returns where a reader begins who wants to know of the last `most` events.
    pub fn position_of_last(&self, most: usize) -> u64 {
        let content = self.content();
        content.forgotten + content.events.len().saturating_sub(most) as u64
    }

    /// Returns what came at `position` and after it.
    pub fn since(&self, position: u64) -> News {
        let content = self.content();
        let skipped = usize::try_from(position.saturating_sub(content.forgotten)).unwrap_or(usize::MAX);
        News {
            missed: content.forgotten.saturating_sub(position),
            events: content.events.iter().skip(skipped).cloned().collect(),
            next: content.forgotten + content.events.len() as u64,
        }
    }

    /// Returns how many events were recorded, to be watched.
    pub fn recorded(&self) -> watch::Receiver<u64> {
        self.recorded.subscribe()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing that can panic is called between the changes of one operation.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts what a stranger may have made very long.
fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(event_id: &str) -> Seen {
        Seen {
            received: Timestamp::UNIX_EPOCH,
            event_type: "peer_added".to_owned(),
            event_id: event_id.to_owned(),
            issued_at: None,
            outcome: Outcome::Applied,
        }
    }

    fn ids(news: &News) -> Vec<&str> {
        news.events.iter().map(|seen| seen.event_id.as_str()).collect()
    }

    #[test]
    fn a_reader_gets_the_last_events_and_then_each_once() {
        let history = History::default();
        for id in ["a", "b", "c"] {
            history.record(seen(id));
        }
        let news = history.since(history.position_of_last(2));
        assert_eq!((ids(&news), news.missed), (vec!["b", "c"], 0));
        assert_eq!(history.since(news.next).events, []);
        history.record(seen("d"));
        assert_eq!(ids(&history.since(news.next)), ["d"]);
        assert_eq!(history.position_of_last(usize::MAX), 0);
        assert_eq!(history.since(history.position_of_last(0)).events, []);
    }

    #[test]
    fn the_history_is_bounded_and_a_reader_that_is_too_slow_learns_what_it_missed() {
        let history = History::default();
        let start = history.position_of_last(0);
        for number in 0..MAX + 7 {
            history.record(seen(&number.to_string()));
        }
        let news = history.since(start);
        assert_eq!((news.missed, news.events.len(), news.events[0].event_id.as_str()), (7, MAX, "7"));
        assert_eq!(*history.recorded().borrow(), news.next);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let history = History::default();
        history.record(seen(&"é".repeat(10_000)));
        assert_eq!(history.since(0).events[0].event_id, "é".repeat(MAX_TEXT));
    }
}
