//! The state on disk: one embedded database, stored entry by entry. A change, the nonce of the event that made it and
//! its id become durable in one transaction, so that a crash neither loses an event nor refuses its redelivery.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::desired::Desired;
use super::disk::{self, OnDisk};
use super::model::DataEntry;
use super::nonces::Nonces;
use super::ordered::{EntryChange, Ordered, Placed};
use super::payload::Texts;
use crate::storage::{self, StorageError};

const PEERS: TableDefinition<&str, &[u8]> = TableDefinition::new("peers");
const METADATA: TableDefinition<&str, &str> = TableDefinition::new("metadata");
/// Key to (position, entry).
const DATA: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("data");
const SECRET_REFS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("secret_refs");
/// Section name to its JSON.
const SECTIONS: TableDefinition<&str, &str> = TableDefinition::new("sections");
/// Nonce to the time in milliseconds until which it is kept.
const NONCES: TableDefinition<&str, i64> = TableDefinition::new("nonces");
/// Single values.
const VALUES: TableDefinition<&str, &[u8]> = TableDefinition::new("values");

const POLICIES: &str = "policies";
const POLICIES_BEFORE: &str = "policies_before";
const POLICIES_REJECTED: &str = "policies_rejected";
const SIGNING_KEYS: &str = "signing_keys";
const OWN_KEY: &str = "own_key";
const LAST_EVENT: &str = "last_event_id";

/// The state on disk.
#[derive(Debug)]
pub struct StateStore {
    path: PathBuf,
    /// `None` after a failure: redb refuses everything after its first I/O error until reopened.
    database: Option<Database>,
    /// What stands in for it until the next write, for those who read.
    to_read: Option<Database>,
}

/// What was on disk.
#[derive(Debug, Default)]
pub struct Stored {
    /// The last state.
    pub desired: Desired,
    /// Id of the last event handled.
    pub last_event_id: Option<String>,
    /// Nonces that may not come again.
    pub nonces: Nonces,
    /// What was wrong with the file, and what became of it.
    pub problem: Option<String>,
}

/// The marks an event leaves, whether it was accepted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventMark {
    /// Its id, unless it has none.
    pub event_id: Option<String>,
    /// Its nonce and when that may be forgotten, if its signature held.
    pub nonce: Option<(String, Timestamp)>,
}

impl StateStore {
    /// Opens the database at `path` and reads it. One that is damaged is set aside, and the state starts empty: the next
    /// pull fills it.
    pub fn open(path: &Path, now: Timestamp) -> Result<(Self, Stored), StorageError> {
        let (database, mut stored, aside) = storage::open_or_set_aside(path, now, |database| {
            create_tables(database)?;
            load(database)
        })?;
        if let Some(aside) = aside {
            let aside = aside.display();
            stored.problem = Some(format!(
                "the stored state was damaged and is now {aside}; it is pulled anew from the control plane"
            ));
        }
        Ok((Self { path: path.into(), database: Some(database), to_read: None }, stored))
    }

    /// Removes the file and makes a new, empty one: in the old one, bytes of what is deleted would stay.
    pub fn start_over(&mut self) -> Result<(), StorageError> {
        (self.database, self.to_read) = (None, None);
        storage::remove(&self.path)?;
        let database = storage::open_database(&self.path)?;
        create_tables(&database).map_err(|source| StorageError::new("write", &self.path, source))?;
        self.database = Some(database);
        Ok(())
    }

    /// Makes `new` and the marks durable; writes only what differs from `old`, which was the last.
    pub fn commit(&mut self, old: &Desired, new: &Desired, mark: Option<&EventMark>) -> io::Result<()> {
        self.to_read = None;
        let found;
        let (database, old) = if let Some(database) = self.database.take() {
            (database, old)
        } else {
            let database = storage::open_database(&self.path).map_err(io::Error::other)?;
            // A write that failed may be on disk all the same, or a part of what was there may be gone.
            create_tables(&database)?;
            found = load(&database)?.desired;
            (database, &found)
        };
        let transaction = database.begin_write().map_err(storage::database_error)?;
        write_changes(&transaction, old, new)?;
        if let Some(mark) = mark {
            write_mark(&transaction, mark)?;
        }
        transaction.commit().map_err(storage::database_error)?;
        self.database = Some(database);
        Ok(())
    }

    /// Reads the payloads of entries; `None` if one of them is not what is there.
    pub(super) fn payloads(&mut self, entries: &[Arc<DataEntry>]) -> io::Result<Option<Vec<Bytes>>> {
        let payloads = self.read_payloads(entries);
        if payloads.is_err() {
            (self.database, self.to_read) = (None, None);
        }
        payloads
    }

    fn read_payloads(&mut self, entries: &[Arc<DataEntry>]) -> io::Result<Option<Vec<Bytes>>> {
        if self.database.is_none() && self.to_read.is_none() {
            self.to_read = Some(storage::reopen(&self.path)?.0);
        }
        let database = self.database.as_ref().or(self.to_read.as_ref());
        let database = database.ok_or_else(|| io::Error::other("the database is closed"))?;
        let read = database.begin_read().map_err(storage::database_error)?;
        let table = read.open_table(DATA).map_err(storage::database_error)?;
        let mut payloads = Vec::with_capacity(entries.len());
        for entry in entries {
            let row = table.get(entry.key.as_str()).map_err(storage::database_error)?;
            let Some(row) = row else { return Ok(None) };
            let payload = disk::payload_on_disk(row.value().1).filter(|text| entry.payload.is(text));
            let Some(payload) = payload else { return Ok(None) };
            payloads.push(Bytes::copy_from_slice(payload));
        }
        Ok(Some(payloads))
    }

    /// Forgets nonces that could not be accepted any more.
    pub fn forget_nonces(&mut self, until: Timestamp) -> io::Result<()> {
        let Some(database) = &self.database else { return Ok(()) };
        let transaction = database.begin_write().map_err(storage::database_error)?;
        let mut nonces = transaction.open_table(NONCES).map_err(storage::database_error)?;
        nonces.retain(|_, expires| expires >= until.as_millisecond()).map_err(storage::database_error)?;
        drop(nonces);
        transaction.commit().map_err(storage::database_error)
    }
}

/// Makes the tables that are missing. Where all are there nothing is written: that takes syncs, and a start waits for them.
fn create_tables(database: &Database) -> io::Result<()> {
    let read = database.begin_read().map_err(storage::database_error)?;
    let there: BTreeSet<String> =
        read.list_tables().map_err(storage::database_error)?.map(|table| table.name().to_owned()).collect();
    drop(read);
    let wanted = [
        PEERS.name(),
        METADATA.name(),
        DATA.name(),
        SECRET_REFS.name(),
        SECTIONS.name(),
        NONCES.name(),
        VALUES.name(),
    ];
    if wanted.into_iter().all(|name| there.contains(name)) {
        return Ok(());
    }
    let transaction = database.begin_write().map_err(storage::database_error)?;
    transaction.open_table(PEERS).map_err(storage::database_error)?;
    transaction.open_table(METADATA).map_err(storage::database_error)?;
    transaction.open_table(DATA).map_err(storage::database_error)?;
    transaction.open_table(SECRET_REFS).map_err(storage::database_error)?;
    transaction.open_table(SECTIONS).map_err(storage::database_error)?;
    transaction.open_table(NONCES).map_err(storage::database_error)?;
    transaction.open_table(VALUES).map_err(storage::database_error)?;
    transaction.commit().map_err(storage::database_error)
}

fn load(database: &Database) -> io::Result<Stored> {
    let read = database.begin_read().map_err(storage::database_error)?;
    let mut desired = Desired::default();
    let mut damaged = Vec::new();

    let peers = read.open_table(PEERS).map_err(storage::database_error)?;
    for row in peers.iter().map_err(storage::database_error)? {
        let (key, text) = row.map_err(storage::database_error)?;
        match super::model::Peer::from_disk(text.value()) {
            Some(peer) => {
                desired.peers.insert(peer.id.clone(), peer.into());
            }
            None => damaged.push(format!("peer {}", key.value())),
        }
    }
    let metadata = read.open_table(METADATA).map_err(storage::database_error)?;
    let mut values = BTreeMap::new();
    for row in metadata.iter().map_err(storage::database_error)? {
        let (key, value) = row.map_err(storage::database_error)?;
        values.insert(key.value().to_owned(), value.value().to_owned());
    }
    desired.metadata = values.into();
    desired.data = load_ordered(&read.open_table(DATA).map_err(storage::database_error)?, &mut damaged)?;
    desired.secret_refs =
        load_ordered(&read.open_table(SECRET_REFS).map_err(storage::database_error)?, &mut damaged)?;
    desired.sections = load_sections(&read.open_table(SECTIONS).map_err(storage::database_error)?)?.into();

    let single = read.open_table(VALUES).map_err(storage::database_error)?;
    let value = |name| single.get(name).map_err(storage::database_error);
    if let Some(text) = value(POLICIES)? {
        match crate::policy::PolicySet::from_disk(text.value()) {
            Some(policies) => desired.policies = policies.into(),
            None => damaged.push("policies".to_owned()),
        }
    }
    if let Some(text) = value(POLICIES_BEFORE)? {
        desired.policies_before = crate::policy::PolicySet::from_disk(text.value()).map(Arc::new);
        if desired.policies_before.is_none() {
            damaged.push("the policies before".to_owned());
        }
    }
    desired.policies_rejected =
        value(POLICIES_REJECTED)?.map(|text| String::from_utf8_lossy(text.value()).into());
    if let Some(text) = value(SIGNING_KEYS)? {
        desired.signing_keys = super::model::SigningKeys::from_disk(text.value());
        if desired.signing_keys.is_none() {
            damaged.push("signing keys".to_owned());
        }
    }
    if let Some(text) = value(OWN_KEY)? {
        match super::model::OwnKey::from_disk(text.value()) {
            Some(own_key) => desired.own_key = own_key,
            None => damaged.push("state of the key rotation".to_owned()),
        }
    }
    let last_event_id = value(LAST_EVENT)?
        .map(|text| String::from_utf8_lossy(text.value()).into_owned())
        .filter(|id| !id.is_empty());

    let mut nonces = Nonces::default();
    for row in
        read.open_table(NONCES).map_err(storage::database_error)?.iter().map_err(storage::database_error)?
    {
        let (nonce, expires) = row.map_err(storage::database_error)?;
        nonces.insert(nonce.value(), Timestamp::from_millisecond(expires.value()).unwrap_or(Timestamp::MAX));
    }
    let problem = (!damaged.is_empty())
        .then(|| format!("stored entries could not be read and are pulled anew: {}", damaged.join(", ")));
    Ok(Stored { desired, last_event_id, nonces, problem })
}

fn load_ordered<T: OnDisk + PartialEq>(
    table: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    damaged: &mut Vec<String>,
) -> io::Result<Ordered<T>> {
    let (mut entries, mut texts) = (Vec::new(), Texts::default());
    for row in table.iter().map_err(storage::database_error)? {
        let (key, value) = row.map_err(storage::database_error)?;
        let (position, text) = value.value();
        match T::from_disk(text) {
            Some(entry) => {
                let entry = entry.gathered(&mut texts).into();
                entries.push((key.value().to_owned(), Placed { position, entry }));
            }
            None => damaged.push(key.value().to_owned()),
        }
    }
    Ok(Ordered::from_placed(entries))
}

fn load_sections(
    table: &impl ReadableTable<&'static str, &'static str>,
) -> io::Result<BTreeMap<&'static str, Box<RawValue>>> {
    let mut sections = BTreeMap::new();
    for name in super::SECTION_NAMES {
        if let Some(text) = table.get(name).map_err(storage::database_error)?
            && let Ok(section) = RawValue::from_string(text.value().to_owned())
        {
            sections.insert(name, section);
        }
    }
    Ok(sections)
}

fn write_changes(transaction: &WriteTransaction, old: &Desired, new: &Desired) -> io::Result<()> {
    write_peers(transaction, old, new)?;
    if old.metadata != new.metadata {
        let mut table = transaction.open_table(METADATA).map_err(storage::database_error)?;
        table.retain(|key, _| new.metadata.contains_key(key)).map_err(storage::database_error)?;
        for (key, value) in new.metadata.iter().filter(|(key, value)| old.metadata.get(*key) != Some(*value))
        {
            table.insert(key.as_str(), value.as_str()).map_err(storage::database_error)?;
        }
    }
    write_ordered(transaction, DATA, &old.data, &new.data)?;
    write_ordered(transaction, SECRET_REFS, &old.secret_refs, &new.secret_refs)?;
    if !Arc::ptr_eq(&old.sections, &new.sections) {
        let mut table = transaction.open_table(SECTIONS).map_err(storage::database_error)?;
        table.retain(|name, _| new.sections.contains_key(name)).map_err(storage::database_error)?;
        for (name, section) in new.sections.iter() {
            table.insert(*name, section.get()).map_err(storage::database_error)?;
        }
    }
    let mut values = transaction.open_table(VALUES).map_err(storage::database_error)?;
    if old.policies != new.policies {
        let text = new.policies.to_disk().map_err(io::Error::other)?;
        values.insert(POLICIES, text.as_slice()).map_err(storage::database_error)?;
    }
    if old.policies_before != new.policies_before {
        match &new.policies_before {
            Some(policies) => {
                let text = policies.to_disk().map_err(io::Error::other)?;
                values.insert(POLICIES_BEFORE, text.as_slice()).map_err(storage::database_error)?
            }
            None => values.remove(POLICIES_BEFORE).map_err(storage::database_error)?,
        };
    }
    if old.policies_rejected != new.policies_rejected {
        match &new.policies_rejected {
            Some(reason) => {
                values.insert(POLICIES_REJECTED, reason.as_bytes()).map_err(storage::database_error)?
            }
            None => values.remove(POLICIES_REJECTED).map_err(storage::database_error)?,
        };
    }
    if old.signing_keys != new.signing_keys
        && let Some(keys) = &new.signing_keys
    {
        let text = keys.to_disk().map_err(io::Error::other)?;
        values.insert(SIGNING_KEYS, text.as_slice()).map_err(storage::database_error)?;
    }
    if old.own_key != new.own_key {
        let text = new.own_key.to_disk().map_err(io::Error::other)?;
        values.insert(OWN_KEY, text.as_slice()).map_err(storage::database_error)?;
    }
    Ok(())
}

fn write_peers(transaction: &WriteTransaction, old: &Desired, new: &Desired) -> io::Result<()> {
    let mut table = transaction.open_table(PEERS).map_err(storage::database_error)?;
    for change in old.peers.diff(&new.peers) {
        match change {
            imbl::ordmap::DiffItem::Add(id, peer)
            | imbl::ordmap::DiffItem::Update { new: (id, peer), .. } => {
                let text = peer.to_disk().map_err(io::Error::other)?;
                table.insert(id.as_str(), text.as_slice()).map_err(storage::database_error)?;
            }
            imbl::ordmap::DiffItem::Remove(id, _) => {
                table.remove(id.as_str()).map_err(storage::database_error)?;
            }
        }
    }
    Ok(())
}

fn write_ordered<T: OnDisk + PartialEq>(
    transaction: &WriteTransaction,
    definition: TableDefinition<'static, &'static str, (u64, &'static [u8])>,
    old: &Ordered<T>,
    new: &Ordered<T>,
) -> io::Result<()> {
    let mut table = transaction.open_table(definition).map_err(storage::database_error)?;
    for change in new.changes_since(old) {
        match change {
            EntryChange::Set(key, placed) => {
                let text = if placed.entry.is_left_to_disk() {
                    // It has moved: what there is of it stays.
                    let row = table.get(key).map_err(storage::database_error)?;
                    row.map(|row| Zeroizing::new(row.value().1.to_vec()))
                } else {
                    Some(placed.entry.to_disk().map_err(io::Error::other)?)
                };
                let gone =
                    || io::Error::other(format!("{} is not where it was stored: {key}", definition.name()));
                let text = text.ok_or_else(gone)?;
                table.insert(key, (placed.position, text.as_slice())).map_err(storage::database_error)?;
            }
            EntryChange::Removed(key) => {
                table.remove(key).map_err(storage::database_error)?;
            }
        }
    }
    Ok(())
}

fn write_mark(transaction: &WriteTransaction, mark: &EventMark) -> io::Result<()> {
    if let Some(event_id) = &mark.event_id {
        let mut values = transaction.open_table(VALUES).map_err(storage::database_error)?;
        values.insert(LAST_EVENT, event_id.as_bytes()).map_err(storage::database_error)?;
    }
    if let Some((nonce, expires)) = &mark.nonce {
        let mut nonces = transaction.open_table(NONCES).map_err(storage::database_error)?;
        // The part of a millisecond that is cut off must not be a part in which the event could be replayed.
        nonces.insert(nonce.as_str(), expires.as_millisecond() + 1).map_err(storage::database_error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
