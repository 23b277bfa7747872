//! What is known of all reports without reading them: which key has which revision, which were deleted last, and how
//! much there is. Nobody who watches has payloads kept for him: what he does not know yet follows from here.

use std::collections::{BTreeMap, VecDeque};

use crate::reports::Cursor;

/// Deletions remembered for those who watch; who does not know of an older one is told everything anew.
const MAX_DELETED: usize = 10_000;

/// The reports, by revision.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The highest revision given so far.
    pub(super) revision: u64,
    /// Bytes of all entries.
    pub(super) bytes: u64,
    /// Keys by the revision of their newest write.
    entries: BTreeMap<u64, Box<str>>,
    /// Deleted keys by rising revision. One that was written again since is here, too.
    deleted: VecDeque<(u64, Box<str>)>,
    /// Deletions up to this revision are not remembered.
    forgotten: u64,
}

/// What one write changes, once it is durable.
#[derive(Debug)]
pub(super) enum Step {
    Put { key: Box<str>, revision: u64, before: Option<u64> },
    Deleted { key: Box<str>, revision: u64, before: u64 },
}

/// A change that somebody who watches does not know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News<'a> {
    Put(u64, &'a str),
    Deleted(u64, &'a str),
}

impl News<'_> {
    pub(super) fn revision(&self) -> u64 {
        match self {
            Self::Put(revision, _) | Self::Deleted(revision, _) => *revision,
        }
    }
}

impl Index {
    /// Starts with what a database holds: keys, revisions and sizes.
    pub(super) fn new(revision: u64, entries: impl IntoIterator<Item = (String, u64, u64)>) -> Self {
        let mut index = Self { revision, forgotten: revision, ..Self::default() };
        for (key, revision, bytes) in entries {
            index.bytes += bytes;
            index.entries.insert(revision, key.into());
        }
        index
    }

    /// Follows a durable commit.
    pub(super) fn follow(&mut self, steps: Vec<Step>, revision: u64, bytes: u64) {
        for step in steps {
            match step {
                Step::Put { key, revision, before } => {
                    if let Some(before) = before {
                        self.entries.remove(&before);
                    }
                    self.entries.insert(revision, key);
                }
                Step::Deleted { key, revision, before } => {
                    self.entries.remove(&before);
                    self.remember_deleted(revision, key);
                }
            }
        }
        self.revision = revision;
        self.bytes = bytes;
    }

    /// Forgets everything; the deletions take revisions of their own.
    pub(super) fn clear(&mut self, keys: Vec<String>) {
        self.entries.clear();
        self.bytes = 0;
        for key in keys {
            self.revision += 1;
            self.remember_deleted(self.revision, key.into());
        }
    }

    /// Returns whether what `cursor` does not know can still be told.
    pub(super) fn knows_since(&self, cursor: Cursor) -> bool {
        cursor.deletions >= self.forgotten
    }

    /// Returns the changes that `cursor` does not know, by rising revision.
    pub(super) fn since(&self, cursor: Cursor) -> impl Iterator<Item = News<'_>> {
        let from = self.deleted.partition_point(|(revision, _)| *revision <= cursor.deletions);
        let mut deleted =
            self.deleted.range(from..).map(|(revision, key)| News::Deleted(*revision, key)).peekable();
        let mut entries = self
            .entries
            .range(cursor.entries.saturating_add(1)..)
            .map(|(revision, key)| News::Put(*revision, key))
            .peekable();
        std::iter::from_fn(move || match (entries.peek(), deleted.peek()) {
            (Some(entry), Some(gone)) if gone.revision() < entry.revision() => deleted.next(),
            (Some(_), _) => entries.next(),
            (None, _) => deleted.next(),
        })
    }

    fn remember_deleted(&mut self, revision: u64, key: Box<str>) {
        self.deleted.push_back((revision, key));
        while self.deleted.len() > MAX_DELETED {
            if let Some((revision, _)) = self.deleted.pop_front() {
                self.forgotten = revision;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(told: u64) -> Cursor {
        Cursor { generation: 1, entries: told, deletions: told }
    }

    fn put(key: &str, revision: u64, before: Option<u64>) -> Step {
        Step::Put { key: key.into(), revision, before }
    }

    #[test]
    fn what_is_not_known_comes_by_revision_each_key_with_its_newest() {
        let mut index = Index::new(2, [("a".to_owned(), 1, 10), ("b".to_owned(), 2, 10)]);
        let gone = Step::Deleted { key: "b".into(), revision: 4, before: 2 };
        index.follow(vec![put("a", 3, Some(1)), gone, put("c", 5, None)], 5, 20);
        let since = |told| index.since(cursor(told)).collect::<Vec<_>>();
        assert_eq!(since(2), [News::Put(3, "a"), News::Deleted(4, "b"), News::Put(5, "c")]);
        assert_eq!(since(4), [News::Put(5, "c")]);
        assert_eq!(since(5), []);
        // A snapshot under way needs no deletions from before it began.
        let begun = Cursor { generation: 1, entries: 0, deletions: 4 };
        assert_eq!(index.since(begun).collect::<Vec<_>>(), [News::Put(3, "a"), News::Put(5, "c")]);
    }

    #[test]
    fn deletions_are_remembered_up_to_a_number() {
        let mut index = Index::new(3, []);
        assert!(index.knows_since(cursor(3)) && !index.knows_since(cursor(2)), "of an earlier process");
        index.clear((0..10_000).map(|n| format!("k{n}")).collect());
        assert!(index.knows_since(cursor(3)));
        index.clear(vec!["one more".to_owned()]);
        assert!(!index.knows_since(cursor(3)) && index.knows_since(cursor(4)));
        assert_eq!(index.since(cursor(4)).count(), 10_000);
    }
}
