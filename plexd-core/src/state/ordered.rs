//! Entries by key, in an order that somebody else decides. An entry keeps its place for as long as the order allows, with
//! room between places: what changes when one entry comes, goes or moves is that entry, whoever is told of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;

/// Room between two places: into the same gap an entry can come 32 times before all get new places.
const STEP: u64 = 1 << 32;

/// The first place of all, with room for a billion steps on either side.
const MIDDLE: u64 = 1 << 62;

/// Entries by key that also remember the control plane's order.
#[derive(Debug)]
pub struct Ordered<T> {
    entries: OrdMap<String, Placed<T>>,
}

/// An entry and its place in the control plane's order.
#[derive(Debug)]
pub struct Placed<T> {
    /// Entries are listed by rising position.
    pub position: u64,
    /// The entry.
    pub entry: Arc<T>,
}

impl<T> Clone for Placed<T> {
    fn clone(&self) -> Self {
        Self { position: self.position, entry: Arc::clone(&self.entry) }
    }
}

impl<T: PartialEq> PartialEq for Placed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.position == other.position
            && (Arc::ptr_eq(&self.entry, &other.entry) || self.entry == other.entry)
    }
}

impl<T> Clone for Ordered<T> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone() }
    }
}

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self { entries: OrdMap::new() }
    }
}

/// A change of one entry between two snapshots.
#[derive(Debug)]
pub enum EntryChange<'a, T> {
    /// New, changed or moved.
    Set(&'a str, &'a Placed<T>),
    /// Gone.
    Removed(&'a str),
}

impl<T: PartialEq> Ordered<T> {
    /// Creates the collection from placed entries.
    pub fn from_placed(entries: impl IntoIterator<Item = (String, Placed<T>)>) -> Self {
        Self { entries: entries.into_iter().collect() }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the entry of `key`.
    pub fn get(&self, key: &str) -> Option<&Arc<T>> {
        self.entries.get(key).map(|placed| &placed.entry)
    }

    /// Returns what differs from `old`; costs by the number of differences.
    pub fn changes_since<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = EntryChange<'a, T>> {
        old.entries.diff(&self.entries).map(|item| match item {
            imbl::ordmap::DiffItem::Add(key, placed)
            | imbl::ordmap::DiffItem::Update { new: (key, placed), .. } => {
                EntryChange::Set(key.as_str(), placed)
            }
            imbl::ordmap::DiffItem::Remove(key, _) => EntryChange::Removed(key.as_str()),
        })
    }

    /// Replaces everything by `list`, in its order; entries that are equal stay shared, and keep their places as far as
    /// the order allows.
    pub(super) fn replaced(&self, list: Vec<T>, key: impl Fn(&T) -> &str) -> Self {
        let known: Vec<Option<u64>> = list.iter().map(|entry| self.position(key(entry))).collect();
        let mut next = self.clone();
        let mut named = BTreeSet::new();
        for (position, entry) in places(&known).into_iter().zip(list) {
            let name = key(&entry).to_owned();
            next.place(name.clone(), entry, position);
            named.insert(name);
        }
        for gone in self.entries.keys().filter(|key| !named.contains(*key)) {
            next.entries.remove(gone);
        }
        next
    }

    /// Sets the entries of `list`. One that names every known key is a full set, and its order holds; else new entries
    /// come behind the others.
    pub(super) fn merge(&mut self, list: Vec<T>, key: impl Fn(&T) -> &str) {
        let named: BTreeSet<&str> = list.iter().map(&key).collect();
        if self.entries.keys().all(|known| named.contains(known.as_str())) {
            *self = self.replaced(list, key);
            return;
        }
        let mut end = self.entries.values().map(|placed| placed.position).max().unwrap_or(MIDDLE);
        for entry in list {
            let name = key(&entry).to_owned();
            let position = self.position(&name).unwrap_or_else(|| {
                // What has no room is put in order by the next pull.
                end = end.saturating_add(STEP);
                end
            });
            self.place(name, entry, position);
        }
    }

    fn position(&self, key: &str) -> Option<u64> {
        self.entries.get(key).map(|placed| placed.position)
    }

    fn place(&mut self, key: String, entry: T, position: u64) {
        let known = self.entries.get(&key);
        let entry = match known {
            Some(placed) if *placed.entry == entry => Arc::clone(&placed.entry),
            _ => Arc::new(entry),
        };
        let placed = Placed { position, entry };
        if known != Some(&placed) {
            self.entries.insert(key, placed);
        }
    }
}

impl<T> Ordered<T> {
    /// Returns the entries by key, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Placed<T>)> {
        self.entries.iter().map(|(key, placed)| (key.as_str(), placed))
    }
}

impl<T> PartialEq for Ordered<T>
where
    T: PartialEq,
{
    fn eq(&self, other: &Self) -> bool {
        self.entries.ptr_eq(&other.entries) || self.entries == other.entries
    }
}

/// Returns the places of a list whose entries have these places until now, or none: as many as possible stay.
fn places(known: &[Option<u64>]) -> Vec<u64> {
    let kept = longest_rising(known);
    let anew = || (0_u64..).take(known.len()).map(|n| MIDDLE + n * STEP).collect();
    filled(&kept, known.len()).unwrap_or_else(anew)
}

/// Returns the longest run of indices whose places rise, with those places; costs n log n.
fn longest_rising(known: &[Option<u64>]) -> Vec<(usize, u64)> {
    // By length, less one: the run of that length which ends lowest, by its end.
    let mut ends: Vec<(usize, u64)> = Vec::new();
    let mut before = vec![None; known.len()];
    for (index, place) in known.iter().enumerate() {
        let Some(place) = *place else { continue };
        let length = ends.partition_point(|(_, end)| *end < place);
        before[index] = length.checked_sub(1).map(|shorter| ends[shorter].0);
        match ends.get_mut(length) {
            Some(end) => *end = (index, place),
            None => ends.push((index, place)),
        }
    }
    let mut run = Vec::with_capacity(ends.len());
    let mut next = ends.last().map(|(index, _)| *index);
    while let Some(index) = next {
        run.extend(known[index].map(|place| (index, place)));
        next = before[index];
    }
    run.reverse();
    run
}

/// Returns `count` places of which `kept` are given, by index; `None` if there is no room between two of them.
fn filled(kept: &[(usize, u64)], count: usize) -> Option<Vec<u64>> {
    let mut places = Vec::with_capacity(count);
    let ends = kept.iter().map(|(index, place)| (*index, Some(*place))).chain([(count, None)]);
    for (index, end) in ends {
        let missing = u64::try_from(index - places.len()).ok()?;
        let (first, step) = match (places.last().copied(), end) {
            _ if missing == 0 => (0, 0),
            (None, None) => (MIDDLE, STEP),
            (Some(last), None) => (u64::checked_add(last, STEP)?, STEP),
            (None, Some(end)) => (u64::checked_sub(end, STEP.checked_mul(missing)?)?, STEP),
            (Some(last), Some(end)) => {
                let step = (end - last) / (missing + 1);
                (last + step, step)
            }
        };
        if missing > 0 && step == 0 {
            return None;
        }
        // The last of them has to be there, too.
        first.checked_add(step.checked_mul(missing.saturating_sub(1))?)?;
        places.extend((0..missing).map(|n| first + n * step));
        places.extend(end);
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    fn key(entry: &String) -> &str {
        entry
    }

    fn ordered(keys: &[&str]) -> Ordered<String> {
        Ordered::default().replaced(list(keys), key)
    }

    fn listed(entries: &Ordered<String>) -> Vec<&str> {
        let mut placed: Vec<_> = entries.iter().map(|(key, placed)| (placed.position, key)).collect();
        placed.sort_unstable();
        placed.into_iter().map(|(_, key)| key).collect()
    }

    fn changed<'a>(new: &'a Ordered<String>, old: &'a Ordered<String>) -> Vec<&'a str> {
        let changes = new.changes_since(old);
        changes
            .map(|change| match change {
                EntryChange::Set(key, _) | EntryChange::Removed(key) => key,
            })
            .collect()
    }

    #[test]
    fn only_what_came_went_or_moved_is_a_change() {
        let old = ordered(&["a", "b", "c", "d", "e"]);
        let table: [(&[&str], &[&str]); 9] = [
            (&["b", "c", "d", "e"], &["a"]),
            (&["a", "b", "d", "e"], &["c"]),
            (&["x", "a", "b", "c", "d", "e"], &["x"]),
            (&["a", "b", "x", "y", "c", "d", "e"], &["x", "y"]),
            (&["a", "b", "c", "d", "e", "x"], &["x"]),
            (&["e", "a", "b", "c", "d"], &["e"]),
            (&["b", "c", "d", "e", "a"], &["a"]),
            (&["x"], &["a", "b", "c", "d", "e", "x"]),
            (&[], &["a", "b", "c", "d", "e"]),
        ];
        for (keys, expected) in table {
            let new = old.replaced(list(keys), key);
            assert_eq!((listed(&new), changed(&new, &old)), (keys.to_vec(), expected.to_vec()));
        }
    }

    #[test]
    fn the_first_of_ten_thousand_goes_and_nothing_else_changes() {
        let keys: Vec<String> = (0..10_000).map(|n| format!("{:05}", (n * 7_919) % 10_000)).collect();
        let old = Ordered::default().replaced(keys.clone(), key);
        let new = old.replaced(keys[1..].to_vec(), key);
        assert_eq!(changed(&new, &old), [keys[0].as_str()]);
        let back = new.replaced(keys.clone(), key);
        assert_eq!(changed(&back, &new), [keys[0].as_str()]);
        assert_eq!(listed(&back), keys);
    }

    #[test]
    fn where_there_is_no_room_all_get_new_places() {
        let mut entries = ordered(&["first", "last"]);
        let mut keys = vec!["first".to_owned(), "last".to_owned()];
        let mut all = 0;
        for n in 0..100 {
            keys.insert(1, format!("n{n}"));
            let next = entries.replaced(keys.clone(), key);
            assert_eq!(listed(&next), keys);
            all += usize::from(changed(&next, &entries).len() > 1);
            entries = next;
        }
        assert!((1..=4).contains(&all), "{all} times");
        // As an older version numbered them.
        let dense = |keys: &[&str]| {
            let placed = keys.iter().zip(0..).map(|(key, position)| {
                ((*key).to_owned(), Placed { position, entry: Arc::new((*key).to_owned()) })
            });
            Ordered::from_placed(placed)
        };
        let old = dense(&["a", "b", "c"]);
        for keys in [["x", "a", "b", "c"], ["a", "x", "b", "c"], ["a", "b", "c", "x"]] {
            assert_eq!(listed(&old.replaced(list(&keys), key)), keys);
        }
        for last in [u64::MAX, u64::MAX - STEP + 1] {
            let entry = Arc::new("z".to_owned());
            let old = Ordered::from_placed([("z".to_owned(), Placed { position: last, entry })]);
            assert_eq!(listed(&old.replaced(list(&["z", "a"]), key)), ["z", "a"]);
        }
    }

    proptest! {
        #[test]
        fn any_order_is_kept_and_costs_no_more_than_what_moved(
            lists in prop::collection::vec(prop::collection::vec(0..12_u8, 0..12), 1..8)
        ) {
            let mut entries = Ordered::default();
            for numbers in lists {
                let mut seen = BTreeSet::new();
                let keys: Vec<String> =
                    numbers.into_iter().filter(|n| seen.insert(*n)).map(|n| format!("k{n}")).collect();
                let next = entries.replaced(keys.clone(), key);
                prop_assert_eq!(listed(&next), keys.iter().map(String::as_str).collect::<Vec<_>>());
                let again = next.replaced(keys.clone(), key);
                prop_assert!(again == next && changed(&again, &next).is_empty());
                entries = next;
            }
        }
    }
}
