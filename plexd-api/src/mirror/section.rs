//! The entries of one kind, in order, and the text of their list. Copies share structure: changing one entry of
//! 10,000 costs a few nodes, and the difference between two copies is found without looking at what they share.

use std::sync::{Arc, OnceLock};

use imbl::OrdMap;
use sha2::{Digest, Sha256};

use super::entry::{Entry, Rendered, tag};
use super::pace::Pace;

/// In which order a list shows its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// By the place the control plane gave them.
    ByPlace,
    /// By key.
    ByKey,
}

/// The entries of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Entries {
    by_key: OrdMap<Arc<str>, Arc<Entry>>,
    /// Empty when listed by key.
    by_place: OrdMap<(u64, Arc<str>), Arc<Entry>>,
    listing: Listing,
}

impl Entries {
    pub(crate) fn new(listing: Listing) -> Self {
        Self { by_key: OrdMap::new(), by_place: OrdMap::new(), listing }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.by_key.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_key.keys()
    }

    /// Puts `entry` in, unless the very same is there.
    pub(crate) fn put(&mut self, entry: Arc<Entry>) {
        if self.by_key.get(&entry.key).is_some_and(|known| *known == entry) {
            return;
        }
        let key = Arc::clone(&entry.key);
        let old = self.by_key.insert(Arc::clone(&key), Arc::clone(&entry));
        if self.listing == Listing::ByPlace {
            if let Some(old) = old.filter(|old| old.place != entry.place) {
                self.by_place.remove(&(old.place, Arc::clone(&key)));
            }
            self.by_place.insert((entry.place, key), entry);
        }
    }

    pub(crate) fn remove(&mut self, key: &str) {
        let Some(old) = self.by_key.remove(key) else { return };
        if self.listing == Listing::ByPlace {
            self.by_place.remove(&(old.place, Arc::clone(&old.key)));
        }
    }

    /// Returns whether both are the same copy, or equal copies of the same.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.by_key.ptr_eq(&other.by_key)
    }

    /// Calls `each` for what differs from `old`: with the entry, and whether it is gone.
    pub(crate) fn changes_since(&self, old: &Self, mut each: impl FnMut(&Entry, Change)) {
        for item in old.by_key.diff(&self.by_key) {
            match item {
                imbl::ordmap::DiffItem::Add(_, entry) => each(entry, Change::Written),
                // In another place of the list is not changed.
                imbl::ordmap::DiffItem::Update { old: (_, old), new: (_, new) } => {
                    if (&old.full, &old.summary) != (&new.full, &new.summary) {
                        each(new, Change::Written);
                    }
                }
                imbl::ordmap::DiffItem::Remove(_, entry) => each(entry, Change::Gone),
            }
        }
    }

    fn listed(&self) -> impl Iterator<Item = &Arc<Entry>> {
        // One of the two is empty: entries are listed either way, never both.
        let by_key = (self.listing == Listing::ByKey).then(|| self.by_key.values());
        by_key.into_iter().flatten().chain(self.by_place.values())
    }
}

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is new or changed.
    Written,
    /// It is gone.
    Gone,
}

/// Entries that no longer change, and their list.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) entries: Entries,
    list: OnceLock<Rendered>,
}

impl Section {
    pub(crate) fn new(entries: Entries) -> Self {
        Self { entries, list: OnceLock::new() }
    }

    /// Returns the list, rendered by the first who asks.
    pub(crate) fn list(&self) -> &Rendered {
        self.list.get_or_init(|| {
            let mut out = ListText::new(self.entries.len());
            self.entries.listed().for_each(|entry| out.push(entry));
            out.finish()
        })
    }

    /// Renders the list before anybody asks, giving way to others all the while.
    pub(crate) async fn prepare(&self, pace: &mut Pace) {
        if self.list.get().is_some() {
            return;
        }
        let mut out = ListText::new(self.entries.len());
        for entry in self.entries.listed() {
            out.push(entry);
            pace.step(entry.summary.len()).await;
        }
        // A reader may have been first; both texts are the same.
        let _ = self.list.set(out.finish());
    }
}

/// A list being written. Its digest grows with it, so that no step takes long.
struct ListText {
    out: Vec<u8>,
    digest: Sha256,
}

impl ListText {
    fn new(entries: usize) -> Self {
        let mut out = Vec::with_capacity(entries * 64 + 2);
        out.push(b'[');
        Self { out, digest: Sha256::new() }
    }

    fn push(&mut self, entry: &Entry) {
        if self.out.len() > 1 {
            self.out.push(b',');
        }
        self.out.extend_from_slice(&entry.summary);
        // JSON objects end where they end: the text needs no separator to be unambiguous.
        self.digest.update(&entry.summary);
    }

    fn finish(mut self) -> Rendered {
        self.out.push(b']');
        self.out.shrink_to_fit();
        Rendered { body: self.out.into(), etag: tag(self.digest.finalize().as_ref()) }
    }
}

#[cfg(test)]
mod tests {
    use plexd_proto::node::v1::{ReportEntry, SecretRef};

    use super::*;

    fn secret(key: &str, version: i64, position: u64) -> Arc<Entry> {
        Arc::new(Entry::of_secret(&SecretRef { key: key.into(), version, position }))
    }

    fn list(entries: &Entries) -> String {
        String::from_utf8_lossy(&Section::new(entries.clone()).list().body).into_owned()
    }

    #[test]
    fn lists_keep_the_control_planes_order_also_when_a_place_changes() {
        let mut entries = Entries::new(Listing::ByPlace);
        assert_eq!(list(&entries), "[]");
        entries.put(secret("z", 1, 0));
        entries.put(secret("a", 1, 1));
        assert_eq!(list(&entries), r#"[{"key":"z","version":1},{"key":"a","version":1}]"#);
        entries.put(secret("z", 2, 5));
        assert_eq!(list(&entries), r#"[{"key":"a","version":1},{"key":"z","version":2}]"#);
        entries.remove("a");
        entries.remove("never there");
        assert_eq!(list(&entries), r#"[{"key":"z","version":2}]"#);
        assert_eq!(entries.len(), 1);
    }

    #[test]
    fn reports_are_listed_by_key() {
        let mut entries = Entries::new(Listing::ByKey);
        for (key, revision) in [("b", 1), ("a", 2), ("b", 3)] {
            let entry = ReportEntry { key: key.into(), version: 1, revision, ..ReportEntry::default() };
            entries.put(Arc::new(Entry::of_report(&entry)));
        }
        assert_eq!(list(&entries), r#"[{"key":"a","version":1},{"key":"b","version":1}]"#);
    }

    #[test]
    fn only_what_differs_is_reported_as_changed() {
        let mut old = Entries::new(Listing::ByPlace);
        for n in 0..1000 {
            old.put(secret(&format!("k{n:04}"), 1, n));
        }
        let mut new = old.clone();
        new.put(secret("k0500", 1, 500));
        assert!(new.same(&old), "an equal entry is no change");
        new.put(secret("k0500", 2, 500));
        new.put(secret("l", 1, 1000));
        new.remove("k0001");
        let mut seen = Vec::new();
        new.changes_since(&old, |entry, change| seen.push((entry.key.to_string(), entry.version, change)));
        assert_eq!(
            seen,
            [
                ("k0001".to_owned(), 1, Change::Gone),
                ("k0500".to_owned(), 2, Change::Written),
                ("l".to_owned(), 1, Change::Written)
            ]
        );
    }

    #[tokio::test]
    async fn a_list_prepared_ahead_is_the_list() {
        let mut entries = Entries::new(Listing::ByPlace);
        (0..2000).for_each(|n| entries.put(secret(&format!("k{n}"), 1, n)));
        let (lazy, ahead) = (Section::new(entries.clone()), Section::new(entries));
        ahead.prepare(&mut Pace::new()).await;
        assert_eq!(lazy.list(), ahead.list());
    }
}
