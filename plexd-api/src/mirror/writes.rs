//! Writes that plexd-core acknowledged and the stream may not have told of yet. They show at once, whatever the
//! stream does, and no older word of the stream undoes them: revisions order all writes of the node.
//!
//! What is remembered here is forgotten once the stream has passed its revision, or begins anew after it: core
//! answers only what it has stored, so a snapshot asked for after an answer contains what was answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entry::Entry;
use super::section::Entries;

/// Acknowledged writes, by revision.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// Counts the streams opened so far.
    stream: u64,
    /// Highest revision this stream has told of.
    passed: u64,
    pending: BTreeMap<u64, Write>,
}

#[derive(Debug)]
struct Write {
    key: Arc<str>,
    /// `None` for a deletion.
    entry: Option<Arc<Entry>>,
    /// The stream that was open when it was acknowledged.
    stream: u64,
}

impl Writes {
    /// Notes that a stream is about to be asked for.
    pub(crate) fn stream_opened(&mut self) {
        self.stream += 1;
        self.passed = 0;
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
        let superseded = self.pending.range(revision.saturating_add(1)..).any(|(_, later)| later.key == key);
        let write = Write { key, entry, stream: self.stream };
        if !superseded {
            write.show(revision, self.passed, entries);
        }
        self.pending.insert(revision, write);
    }

    /// Notes that the stream has told of everything up to `highest` (0: of no report), anew if `reset`, and corrects
    /// `entries`, which are what it told, by what it could not know.
    pub(crate) fn told(&mut self, reset: bool, highest: u64, entries: &mut Entries) {
        self.passed = if reset { highest } else { self.passed.max(highest) };
        if reset {
            let stream = self.stream;
            self.pending.retain(|_, write| write.stream == stream);
        }
        for (revision, write) in &self.pending {
            write.show(*revision, self.passed, entries);
        }
        self.pending = self.pending.split_off(&self.passed.saturating_add(1));
    }
}

impl Write {
    fn show(&self, revision: u64, passed: u64, entries: &mut Entries) {
        let news = match entries.get(&self.key) {
            Some(known) => known.place < revision,
            // Either never heard of, or deleted since.
            None => revision > passed,
        };
        match &self.entry {
            _ if !news => {}
            Some(entry) => entries.put(Arc::clone(entry)),
            None => entries.remove(&self.key),
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
        assert_eq!(writes.pending.keys().copied().collect::<Vec<_>>(), [3]);
    }
}
