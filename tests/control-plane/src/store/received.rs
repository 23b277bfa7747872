//! What a node sent: everything in order per kind, bounded, for inspection; and the latest value of each report key.
//! Bodies are kept byte for byte.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::StoreError;
use super::journal::Journal;
use crate::encoding;

const PER_KIND: usize = 10_000;
const PER_KIND_BYTES: usize = 32 << 20;
const SLACK_BYTES: usize = 4 << 20;

/// The arrays of `GET /admin/nodes/{id}/received`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Heartbeats,
    Drift,
    Reports,
    Endpoint,
    Capabilities,
    Acks,
    Results,
    Metrics,
    Logs,
    Audit,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Heartbeats,
        Self::Drift,
        Self::Reports,
        Self::Endpoint,
        Self::Capabilities,
        Self::Acks,
        Self::Results,
        Self::Metrics,
        Self::Logs,
        Self::Audit,
    ];
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    kind: Kind,
    received_at: String,
    body: Box<RawValue>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    received_at: &'a str,
    body: &'a RawValue,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Line>,
    bytes: usize,
}

/// Everything one node sent.
#[derive(Debug)]
pub(crate) struct Received {
    journal: Journal,
    queues: BTreeMap<Kind, Queue>,
}

impl Received {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("received.journal");
        let (journal, records) = Journal::open(path.clone())?;
        let mut queues: BTreeMap<Kind, Queue> = Kind::ALL.map(|kind| (kind, Queue::default())).into();
        for record in records {
            let line: Line =
                serde_json::from_str(&record).map_err(|error| StoreError::damaged(&path, &error))?;
            queues.entry(line.kind).or_default().push(line);
        }
        Ok(Self { journal, queues })
    }

    /// Keeps `body` as the latest of its kind.
    pub(crate) fn push(&mut self, kind: Kind, body: Box<RawValue>) -> Result<(), StoreError> {
        let line = Line { kind, received_at: encoding::now_text(), body };
        self.journal.append(&text(&line))?;
        self.queues.entry(kind).or_default().push(line);
        let kept: usize = self.queues.values().map(|queue| queue.bytes).sum();
        // A line takes more than its body: the slack and the factor leave room for that.
        if self.journal.bytes() > 4 * kept + SLACK_BYTES {
            let lines: Vec<String> =
                self.queues.values().flat_map(|queue| queue.lines.iter().map(text)).collect();
            self.journal.rewrite(lines.iter().map(String::as_str))?;
        }
        Ok(())
    }

    /// When the last body of `kind` came.
    pub(crate) fn last(&self, kind: Kind) -> Option<&str> {
        Some(&self.queues.get(&kind)?.lines.back()?.received_at)
    }

    /// The arrays, as JSON members, by kind.
    pub(crate) fn shown(&self) -> BTreeMap<Kind, impl Serialize> {
        self.queues
            .iter()
            .map(|(kind, queue)| {
                let bodies: Vec<Shown<'_>> = queue
                    .lines
                    .iter()
                    .map(|line| Shown { received_at: &line.received_at, body: &line.body })
                    .collect();
                (*kind, bodies)
            })
            .collect()
    }
}

impl Queue {
    fn push(&mut self, line: Line) {
        self.bytes += line.body.get().len();
        self.lines.push_back(line);
        while self.lines.len() > PER_KIND || (self.bytes > PER_KIND_BYTES && self.lines.len() > 1) {
            if let Some(old) = self.lines.pop_front() {
                self.bytes -= old.body.get().len();
            }
        }
    }
}

/// The latest value of each report key.
#[derive(Debug)]
pub(crate) struct Reports {
    journal: Journal,
    current: BTreeMap<String, Report>,
    bytes: usize,
}

/// A report entry as it came, with what is compared.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) version: u64,
    pub(crate) content_type: String,
    pub(crate) payload: Box<RawValue>,
    pub(crate) entry: Box<RawValue>,
}

/// The parts of an entry that are read again from what was stored.
#[derive(Deserialize)]
pub(crate) struct EntryParts {
    pub(crate) key: String,
    pub(crate) content_type: String,
    pub(crate) payload: Box<RawValue>,
    pub(crate) version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    Put(Box<RawValue>),
    Deleted(String),
}

impl Reports {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("reports.journal");
        let (journal, records) = Journal::open(path.clone())?;
        let mut reports = Self { journal, current: BTreeMap::new(), bytes: 0 };
        for record in records {
            let damaged = |error: serde_json::Error| StoreError::damaged(&path, &error);
            match serde_json::from_str(&record).map_err(damaged)? {
                Change::Put(entry) => {
                    let parts: EntryParts = serde_json::from_str(entry.get()).map_err(damaged)?;
                    reports.set(parts, entry);
                }
                Change::Deleted(key) => reports.unset(&key),
            }
        }
        Ok(reports)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Report> {
        self.current.get(key)
    }

    /// Stores an entry as it came.
    pub(crate) fn put(&mut self, parts: EntryParts, entry: Box<RawValue>) -> Result<(), StoreError> {
        self.journal.append(&text(&Change::Put(entry.clone())))?;
        self.set(parts, entry);
        self.trim()
    }

    /// Forgets the entry of `key`, if there is one.
    pub(crate) fn delete(&mut self, key: &str) -> Result<(), StoreError> {
        if !self.current.contains_key(key) {
            return Ok(());
        }
        self.journal.append(&text(&Change::Deleted(key.to_owned())))?;
        self.unset(key);
        self.trim()
    }

    /// The entries by key.
    pub(crate) fn shown(&self) -> BTreeMap<&str, &RawValue> {
        self.current.iter().map(|(key, report)| (key.as_str(), &*report.entry)).collect()
    }

    fn set(&mut self, parts: EntryParts, entry: Box<RawValue>) {
        let EntryParts { key, content_type, payload, version } = parts;
        self.unset(&key);
        self.bytes += entry.get().len();
        self.current.insert(key, Report { version, content_type, payload, entry });
    }

    fn unset(&mut self, key: &str) {
        if let Some(old) = self.current.remove(key) {
            self.bytes -= old.entry.get().len();
        }
    }

    fn trim(&mut self) -> Result<(), StoreError> {
        if self.journal.bytes() <= 4 * self.bytes + SLACK_BYTES {
            return Ok(());
        }
        let lines: Vec<String> =
            self.current.values().map(|report| text(&Change::Put(report.entry.clone()))).collect();
        self.journal.rewrite(lines.iter().map(String::as_str))
    }
}

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records have string keys only, which always serialise")
}
