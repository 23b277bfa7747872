//! What giving the identity up removes from disk, and the mark that says that it began: a crash in the middle leaves the
//! mark, and the next start goes on. Removing twice does no harm. Decides nothing and talks to nobody.

use crate::storage::{self, DataDir, StorageError};

/// The mark: its presence says that the identity is given up, its content how much with it.
const MARK: &str = "deregistering";

const ONLY_IDENTITY: &str = "identity\n";
const EVERYTHING: &str = "everything\n";

/// What hold the identity, or keys that peers know it by: files of these names, what was set aside of them when they were
/// damaged, and what an interrupted write left of them.
const OF_IDENTITY: &[&str] = &["identity.json", "wireguard.key", "capabilities"];

/// The state, and what was set aside of it: it holds preshared keys.
const STATE: &str = "state.redb";

/// Files of a node that has no identity, open while it runs.
const OPEN: &[&str] = &[STATE, "reports.redb"];

/// How much is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Identity, keys and state; what applications reported stays.
    Identity,
    /// All that is kept on disk.
    Everything,
}

/// Removes what belongs to an identity.
#[derive(Debug, Clone)]
pub(super) struct Departure {
    directory: DataDir,
}

/// A departure that a process before this one began: files are removed by now, the kernel is to follow.
#[derive(Debug)]
pub struct Unfinished {
    departure: Departure,
    /// What could not be removed; nothing that the node is known by.
    pub remains: Vec<StorageError>,
}

impl Unfinished {
    /// States that the rest is done, too.
    pub fn finish(&self) -> Result<(), StorageError> {
        self.departure.finish()
    }
}

/// Goes on with a departure that was broken off, before anything in the directory is opened.
///
/// # Errors
/// If identity, keys or state cannot be removed: the node must not start with them.
pub fn resume(directory: &DataDir) -> Result<Option<Unfinished>, StorageError> {
    let Some(mark) = storage::read(&directory.file(MARK))? else { return Ok(None) };
    let departure = Departure::new(directory.clone());
    let mut errors = departure.remove_identity();
    errors.extend(directory.remove_all(|name| is_of(name, STATE)));
    if !errors.is_empty() {
        return Err(errors.remove(0));
    }
    let remains = if mark.as_slice() == EVERYTHING.as_bytes() {
        directory.remove_all(|name| !is_kept(name))
    } else {
        Vec::new()
    };
    Ok(Some(Unfinished { departure, remains }))
}

impl Departure {
    pub(super) fn new(directory: DataDir) -> Self {
        Self { directory }
    }

    /// States durably that the identity is given up.
    pub(super) fn begin(&self, extent: Extent) -> Result<(), StorageError> {
        let text = match extent {
            Extent::Identity => ONLY_IDENTITY,
            Extent::Everything => EVERYTHING,
        };
        storage::replace(&self.directory.file(MARK), text.as_bytes())
    }

    /// Removes the identity and its keys, what was set aside of the state, and what interrupted writes left. The identity
    /// goes first: without it no start takes the rest for a node.
    pub(super) fn remove_identity(&self) -> Vec<StorageError> {
        let mut errors = Vec::new();
        for file in OF_IDENTITY {
            errors.extend(self.directory.remove_all(|name| is_of(name, file)));
        }
        for file in [STATE, MARK] {
            errors.extend(self.directory.remove_all(|name| is_of(name, file) && name != file));
        }
        errors
    }

    /// Removes everything that is not open.
    pub(super) fn remove_everything_else(&self) -> Vec<StorageError> {
        self.directory.remove_all(|name| !is_kept(name) && !OPEN.contains(&name))
    }

    /// States durably that nothing is left to be done.
    pub(super) fn finish(&self) -> Result<(), StorageError> {
        storage::remove(&self.directory.file(MARK))
    }
}

/// Returns whether the file `name` is `file`, was set aside of it, or is what an interrupted write left of it.
fn is_of(name: &str, file: &str) -> bool {
    name.strip_prefix('.').unwrap_or(name).starts_with(file)
}

/// Returns whether a directory without anything in it has this file.
fn is_kept(name: &str) -> bool {
    name == "format" || name == MARK
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_NODE: [&str; 10] = [
        ".identity.json.a1B2c3",
        ".wireguard.key.x",
        "capabilities",
        "identity.json",
        "identity.json.damaged-1",
        "state.redb",
        "state.redb.damaged-1",
        "wireguard.key",
        "wireguard.key.damaged-1",
        "wireguard.key.pending",
    ];

    fn full() -> (tempfile::TempDir, DataDir) {
        let folder = tempfile::tempdir().unwrap();
        let directory = DataDir::open(folder.path()).unwrap();
        for name in OF_NODE.iter().chain(&[".deregistering.a1B2c3", "reports.redb", "something"]) {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        (folder, directory)
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_start_goes_on_with_a_departure_that_was_broken_off_however_often() {
        for (extent, left) in [
            (Extent::Identity, &["deregistering", "format", "reports.redb", "something"][..]),
            (Extent::Everything, &["deregistering", "format"]),
        ] {
            let (folder, directory) = full();
            assert!(resume(&directory).unwrap().is_none());
            assert_eq!(names(&folder).len(), OF_NODE.len() + 4, "without the mark nothing is touched");
            Departure::new(directory.clone()).begin(extent).unwrap();
            for _ in 0..2 {
                assert!(resume(&directory).unwrap().unwrap().remains.is_empty());
                assert_eq!(names(&folder), left);
            }
            resume(&directory).unwrap().unwrap().finish().unwrap();
            std::fs::write(folder.path().join("wireguard.key"), "of the next identity").unwrap();
            assert!(resume(&directory).unwrap().is_none());
            assert!(names(&folder).contains(&"wireguard.key".to_owned()));
        }
    }

    #[test]
    fn while_the_node_runs_the_open_files_are_left_to_their_owners() {
        let (folder, directory) = full();
        let departure = Departure::new(directory);
        assert!(departure.remove_identity().is_empty());
        assert_eq!(names(&folder), ["format", "reports.redb", "something", "state.redb"]);
        assert!(departure.remove_everything_else().is_empty());
        assert_eq!(names(&folder), ["format", "reports.redb", "state.redb"]);
    }

    #[test]
    fn what_cannot_be_removed_stops_the_start_with_its_name() {
        let (folder, directory) = full();
        Departure::new(directory.clone()).begin(Extent::Identity).unwrap();
        let mark = folder.path().join(MARK);
        std::fs::remove_file(&mark).unwrap();
        std::fs::create_dir(&mark).unwrap();
        let error = resume(&directory).unwrap_err().to_string();
        assert!(error.contains("deregistering"), "{error}");
    }
}
