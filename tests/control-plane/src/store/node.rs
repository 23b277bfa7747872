//! One registered node and its files: `nodes/ID/node.json` (who it is), `desired.json` (what it shall be), and the
//! journals of its events, of what it sent and of its reports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::desired::Desired;
use super::events::EventLog;
use super::received::{Received, Reports};
use super::registry::Registration;
use super::{StoreError, files};
use crate::encoding;
use crate::envelope::{self, Draft};

/// The mesh's UDP port until a heartbeat says another.
const DEFAULT_LISTEN_PORT: u16 = 51_820;

/// A registered node.
#[derive(Debug)]
pub(crate) struct Node {
    dir: PathBuf,
    pub(crate) record: Record,
    pub(crate) desired: Desired,
    pub(crate) events: EventLog,
    pub(crate) received: Received,
    pub(crate) reports: Reports,
}

/// Who a node is and where it was last seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) public_key: String,
    pub(crate) mesh_ip: Ipv4Addr,
    pub(crate) node_secret_key: String,
    pub(crate) token: String,
    pub(crate) registered_key: String,
    pub(crate) registered_at: String,
    pub(crate) metadata: Option<Box<RawValue>>,
    pub(crate) capabilities: Option<Box<RawValue>>,
    pub(crate) source_ip: IpAddr,
    pub(crate) listen_port: Option<u16>,
    pub(crate) public_endpoint: Option<SocketAddr>,
    pub(crate) heartbeat: HeartbeatFlags,
}

/// What the next heartbeat is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HeartbeatFlags {
    pub(crate) reconcile: bool,
    pub(crate) rotate_keys: bool,
}

/// An event to be signed, and how it differs from an honest one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crafted<'a> {
    pub(crate) event_type: &'a str,
    pub(crate) payload: &'a RawValue,
    /// Seconds by which the time of issue is off.
    pub(crate) issued_at_offset: i64,
    /// Whether somebody else signs it.
    pub(crate) forged: bool,
}

impl Record {
    /// What the token of this node was used for.
    pub(crate) fn registration(&self) -> Registration {
        Registration { node_id: self.id.clone(), public_key: self.registered_key.clone() }
    }

    /// Where peers reach the node: what it reported, else where it was last seen and the port it listens on.
    pub(crate) fn endpoint(&self) -> SocketAddr {
        self.public_endpoint.unwrap_or_else(|| {
            SocketAddr::new(self.source_ip.to_canonical(), self.listen_port.unwrap_or(DEFAULT_LISTEN_PORT))
        })
    }
}

impl Node {
    /// Makes a node's directory and first files.
    pub(crate) fn create(nodes_dir: &Path, record: Record) -> Result<Self, StoreError> {
        let dir = nodes_dir.join(&record.id);
        files::make_dir(&dir)?;
        let node = Self::with_record(dir, record)?;
        node.write_record()?;
        Ok(node)
    }

    /// Opens a node's directory; `None` when a crash left one without a record, which then belongs to nobody.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>, StoreError> {
        let Some(record) = files::read_json(&dir.join("node.json"))? else {
            return Ok(None);
        };
        Self::with_record(dir.to_owned(), record).map(Some)
    }

    fn with_record(dir: PathBuf, record: Record) -> Result<Self, StoreError> {
        Ok(Self {
            desired: files::read_json(&dir.join("desired.json"))?.unwrap_or_default(),
            events: EventLog::open(&dir)?,
            received: Received::open(&dir)?,
            reports: Reports::open(&dir)?,
            record,
            dir,
        })
    }

    /// Writes who the node is.
    pub(crate) fn write_record(&self) -> Result<(), StoreError> {
        files::write_json(&self.dir.join("node.json"), &self.record)
    }

    /// Writes what the node shall be.
    pub(crate) fn write_desired(&self) -> Result<(), StoreError> {
        files::write_json(&self.dir.join("desired.json"), &self.desired)
    }

    /// Removes every file of the node, first the one without which the others belong to nobody.
    pub(crate) fn remove_files(&self) -> Result<(), StoreError> {
        std::fs::remove_file(self.dir.join("node.json"))
            .and_then(|()| std::fs::remove_dir_all(&self.dir))
            .map_err(|source| StoreError::write(&self.dir, source))
    }

    /// Signs an event with `key`, stores it and sends it to the open streams; returns its id.
    pub(crate) fn emit(
        &mut self,
        key: &SigningKey,
        event_type: &str,
        payload: &RawValue,
    ) -> Result<String, StoreError> {
        let event_id = self.events.next_id(0);
        let event = Crafted { event_type, payload, issued_at_offset: 0, forged: false };
        self.push(&event, event_id.clone(), key)?;
        Ok(event_id)
    }

    /// Numbers events in the order given, and stores and sends the last first; returns the ids as numbered.
    pub(crate) fn emit_reversed(
        &mut self,
        key: &SigningKey,
        events: &[Crafted<'_>],
    ) -> Result<Vec<String>, StoreError> {
        let ids: Vec<String> = (0..).zip(events).map(|(position, _)| self.events.next_id(position)).collect();
        for (event, id) in events.iter().zip(&ids).rev() {
            self.push(event, id.clone(), key)?;
        }
        Ok(ids)
    }

    fn push(&mut self, event: &Crafted<'_>, event_id: String, key: &SigningKey) -> Result<(), StoreError> {
        let issued_at = Timestamp::now().saturating_add(SignedDuration::from_secs(event.issued_at_offset));
        let strangers_key = event.forged.then(|| SigningKey::from_bytes(&encoding::random()));
        let envelope = envelope::seal(
            &Draft {
                event_type: event.event_type,
                event_id: &event_id,
                issued_at: &encoding::time_text(issued_at.unwrap_or(Timestamp::MAX)),
                nonce: &encoding::random_hex::<16>(),
                payload: event.payload,
            },
            strangers_key.as_ref().unwrap_or(key),
        );
        tracing::debug!(node = %self.record.id, event_type = event.event_type, event_id, "event sent");
        self.events.push(event.event_type, event_id, envelope)
    }
}

/// Writes `value` as JSON text that goes on unchanged.
pub(crate) fn raw<T: Serialize>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("wire values have string keys only, which always serialise")
}
