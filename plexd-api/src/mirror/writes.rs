//! Writes that plexd-core acknowledged and the stream may not have told of yet. They show at once, whatever the
//! stream does, and no older word of the stream undoes them: revisions order all writes of the node.
//!
//! What is remembered here, the newest of each key, is forgotten once the stream has passed its revision, or begins anew
//! after it: core answers only what it has stored, so a snapshot asked for after an answer contains what was answered.
//! Until then it also keeps older answers that arrive late from showing; without a stream that is all it does after a
//! while, and it is forgotten once no such answer can arrive any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::Entry;
use super::section::Entries;

/// How long an older answer may arrive after a newer one: more than a call to core may take.
const LATE: Duration = Duration::from_secs(20);

/// Acknowledged writes.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// Counts the streams opened so far.
    stream: u64,
    /// Highest revision this stream has told of.
    passed: u64,
    /// The newest of each key, as far as the stream has not passed it.
    pending: HashMap<Arc<str>, Write>,
}

#[derive(Debug)]
struct Write {
    revision: u64,
    /// `None` for a deletion.
    entry: Option<Arc<Entry>>,
    /// The stream that was open when it was acknowledged.
    stream: u64,
    /// When it was acknowledged.
    at: Instant,
}

impl Writes {
    /// Notes that a stream is about to be asked for. It may be one of a core with a new store, whose revisions begin
    /// anew.
    pub(crate) fn stream_opened(&mut self) {
        self.stream += 1;
        self.passed = 0;
        self.pending.retain(|_, write| write.at.elapsed() < LATE);
    }

    /// Notes that `entry` was written, or `key` deleted if there is none, and shows it in `entries` unless they know
    /// better.
    pub(crate) fn acknowledged(
        &mut self,
        key: Arc<str>,
        revision: u64,
        entry: Option<Arc<Entry>>,
        entries: &mut Entries,
    ) {
        let superseded = self.pending.get(&key).is_some_and(|newest| newest.revision > revision);
        // What the stream has passed is in what it told.
        if superseded || revision <= self.passed {
            return;
        }
        let write = Write { revision, entry, stream: self.stream, at: Instant::now() };
        write.show(&key, self.passed, entries);
        self.pending.insert(key, write);
    }

    /// Notes that the stream has told of everything up to `highest` (0: of no report), anew if `reset`, and corrects
    /// `entries`, which are what it told, by what it could not know.
    pub(crate) fn told(&mut self, reset: bool, highest: u64, entries: &mut Entries) {
        // A snapshot within a stream does not tell of deletions, so that its highest revision may be a lower one.
        self.passed = self.passed.max(highest);
        if reset {
            let stream = self.stream;
            self.pending.retain(|_, write| write.stream == stream);
        }
        for (key, write) in &self.pending {
            write.show(key, self.passed, entries);
        }
        let passed = self.passed;
        self.pending.retain(|_, write| write.revision > passed);
    }
}

impl Write {
    fn show(&self, key: &str, passed: u64, entries: &mut Entries) {
        let news = match entries.get(key) {
            Some(known) => known.place < self.revision,
            // Either never heard of, or deleted since.
            None => self.revision > passed,
        };
        match &self.entry {
            _ if !news => {}
            Some(entry) => entries.put(Arc::clone(entry)),
            None => entries.remove(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use plexd_proto::node::v1::ReportEntry;

    use super::super::section::Listing;
    use super::*;

    fn entry(key: &str, revision: u64) -> Arc<Entry> {
        let entry = ReportEntry { key: key.into(), version: 1, revision, ..ReportEntry::default() };
        Arc::new(Entry::of_report(&entry))
    }

    struct Bench {
        writes: Writes,
        entries: Entries,
    }

    impl Bench {
        fn new() -> Self {
            let mut writes = Writes::default();
            writes.stream_opened();
            Self { writes, entries: Entries::new(Listing::ByKey) }
        }

        fn put(&mut self, key: &str, revision: u64) {
            self.writes.acknowledged(key.into(), revision, Some(entry(key, revision)), &mut self.entries);
        }

        fn delete(&mut self, key: &str, revision: u64) {
            self.writes.acknowledged(key.into(), revision, None, &mut self.entries);
        }

        /// The stream's snapshot.
        fn snapshot(&mut self, told: &[(&str, u64)]) {
            self.entries = Entries::new(Listing::ByKey);
            for (key, revision) in told {
                self.entries.put(entry(key, *revision));
            }
            let highest = told.iter().map(|(_, revision)| *revision).max().unwrap_or(0);
            self.writes.told(true, highest, &mut self.entries);
        }

        fn revision(&self, key: &str) -> Option<u64> {
            self.entries.get(key).map(|entry| entry.place)
        }
    }

    #[test]
    fn answers_that_arrive_out_of_order_leave_the_newest() {
        let mut bench = Bench::new();
        bench.put("k", 2);
        bench.put("k", 1);
        assert_eq!(bench.revision("k"), Some(2));
        bench.delete("k", 4);
        bench.put("k", 3);
        assert_eq!(bench.revision("k"), None, "a write before the deletion does not undo it");
    }

    #[test]
    fn a_snapshot_older_than_an_answer_does_not_undo_it() {
        let mut bench = Bench::new();
        bench.snapshot(&[("k", 1), ("l", 2)]);
        bench.put("k", 3);
        bench.delete("l", 4);
        bench.put("m", 5);
        bench.snapshot(&[("k", 1), ("l", 2)]);
        assert_eq!([bench.revision("k"), bench.revision("l"), bench.revision("m")], [Some(3), None, Some(5)]);
    }

    #[test]
    fn a_snapshot_newer_than_an_answer_wins() {
        let mut bench = Bench::new();
        bench.put("k", 3);
        bench.put("l", 4);
        bench.snapshot(&[("l", 6)]);
        assert_eq!(
            [bench.revision("k"), bench.revision("l")],
            [None, Some(6)],
            "k was deleted by revision 5"
        );
        assert!(bench.writes.pending.is_empty());
    }

    #[test]
    fn what_was_acknowledged_before_a_stream_was_asked_for_is_in_its_snapshot() {
        let mut bench = Bench::new();
        bench.put("k", 9);
        bench.writes.stream_opened();
        bench.snapshot(&[]);
        assert_eq!(bench.revision("k"), None, "gone since, or core has a new store");
        assert!(bench.writes.pending.is_empty());
    }

    #[test]
    fn answers_are_forgotten_once_the_stream_has_passed_them() {
        let mut bench = Bench::new();
        bench.put("k", 1);
        bench.delete("k", 2);
        bench.put("l", 3);
        let Bench { writes, entries } = &mut bench;
        writes.told(false, 2, entries);
        assert_eq!(writes.pending.values().map(|write| write.revision).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_snapshot_within_a_stream_does_not_let_an_older_answer_undo_a_deletion() {
        let mut bench = Bench::new();
        bench.snapshot(&[("l", 1)]);
        bench.put("m", 2);
        // Revisions 3 and 4 put and deleted k.
        let Bench { writes, entries } = &mut bench;
        writes.told(false, 4, entries);
        bench.snapshot(&[("l", 1), ("m", 2)]);
        bench.put("k", 3);
        assert_eq!(bench.revision("k"), None);
        assert!(bench.writes.pending.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_stream_no_more_is_remembered_than_late_answers_need() {
        let mut bench = Bench::new();
        for revision in 1..1000 {
            bench.put("k", revision);
        }
        assert_eq!(bench.writes.pending.len(), 1, "the newest of each key");
        for revision in 1000..2000 {
            bench.delete(&format!("k{revision}"), revision);
            bench.writes.stream_opened();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(bench.writes.pending.len() <= 20);
        bench.put("k1999", 5);
        assert_eq!(bench.revision("k1999"), None, "superseded");
        assert_eq!(bench.revision("k"), Some(999), "still shown");
    }
}
