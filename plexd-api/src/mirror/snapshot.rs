//! The state at one moment, as one request sees it from beginning to end. Never changes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::entry::{Entry, Rendered, exact, json, metadata_value, tag};
use super::pace::Pace;
use super::section::{Change, Entries, Listing, Section};

/// The kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Data entries of the control plane.
    Data,
    /// Names and versions of secrets.
    Secret,
    /// Report entries of local applications.
    Report,
}

/// The node's metadata.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    values: BTreeMap<Arc<str>, Rendered>,
    all: Option<Rendered>,
}

impl Metadata {
    pub(crate) async fn render(values: BTreeMap<String, String>, pace: &mut Pace) -> Self {
        let mut rendered = BTreeMap::new();
        let mut all = vec![b'{'];
        for (key, value) in values {
            if all.len() > 1 {
                all.push(b',');
            }
            json(&mut all, &key);
            all.push(b':');
            json(&mut all, &value);
            pace.step(key.len() + value.len()).await;
            rendered.insert(Arc::from(key.as_str()), metadata_value(&key, &value));
        }
        all.push(b'}');
        Self { values: rendered, all: Some(Rendered::by_content(exact(all))) }
    }
}

/// The state at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) registered: bool,
    pub(super) token_sha256: Option<[u8; 32]>,
    pub(super) metadata: Arc<Metadata>,
    pub(super) data: Arc<Section>,
    pub(super) secrets: Arc<Section>,
    pub(super) reports: Arc<Section>,
    summary: OnceLock<Rendered>,
}

/// What a snapshot consists of; the texts made from it are its own.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) registered: bool,
    pub(super) token_sha256: Option<[u8; 32]>,
    pub(super) metadata: Arc<Metadata>,
    pub(super) data: Arc<Section>,
    pub(super) secrets: Arc<Section>,
    pub(super) reports: Arc<Section>,
}

impl Default for Parts {
    fn default() -> Self {
        let section = |listing| Arc::new(Section::new(Entries::new(listing)));
        Self {
            registered: false,
            token_sha256: None,
            metadata: Arc::default(),
            data: section(Listing::ByPlace),
            secrets: section(Listing::ByPlace),
            reports: section(Listing::ByKey),
        }
    }
}

impl Snapshot {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { registered, token_sha256, metadata, data, secrets, reports } = parts;
        Self { registered, token_sha256, metadata, data, secrets, reports, summary: OnceLock::new() }
    }

    pub(super) fn parts(&self) -> Parts {
        Parts {
            registered: self.registered,
            token_sha256: self.token_sha256,
            metadata: Arc::clone(&self.metadata),
            data: Arc::clone(&self.data),
            secrets: Arc::clone(&self.secrets),
            reports: Arc::clone(&self.reports),
        }
    }

    /// Returns whether the node is registered with a control plane.
    pub fn registered(&self) -> bool {
        self.registered
    }

    /// Returns the SHA-256 of the token of TCP callers, if there is one.
    pub fn token_sha256(&self) -> Option<&[u8; 32]> {
        self.token_sha256.as_ref()
    }

    /// Returns all metadata, as one JSON object.
    pub fn metadata(&self) -> Rendered {
        // Nothing was ever said of metadata: there is none.
        self.metadata.all.clone().unwrap_or_else(|| Rendered::by_content(Bytes::from_static(b"{}")))
    }

    /// Returns one metadata value.
    pub fn metadata_value(&self, key: &str) -> Option<&Rendered> {
        self.metadata.values.get(key)
    }

    /// Returns the list of all entries of a kind.
    pub fn list(&self, kind: Kind) -> &Rendered {
        self.section(kind).list()
    }

    /// Returns one entry.
    pub fn entry(&self, kind: Kind, key: &str) -> Option<&Arc<Entry>> {
        self.section(kind).entries.get(key)
    }

    /// Returns what `GET /v1/state` answers.
    pub fn summary(&self) -> &Rendered {
        self.summary.get_or_init(|| {
            let parts = [
                ("{\"metadata\":", &self.metadata()),
                (",\"data_keys\":", self.data.list()),
                (",\"secret_keys\":", self.secrets.list()),
                (",\"report_keys\":", self.reports.list()),
            ];
            let length: usize = parts.iter().map(|(name, part)| name.len() + part.body.len()).sum();
            let mut out = Vec::with_capacity(length + 1);
            let mut digest = Sha256::new();
            for (name, part) in parts {
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(&part.body);
                digest.update(part.etag.as_bytes());
            }
            out.push(b'}');
            Rendered { body: out.into(), etag: tag(digest.finalize().as_ref()) }
        })
    }

    /// Calls `each` for everything that differs from `old`: with what it is, its key, its version if it has one, and
    /// whether it is gone.
    pub(crate) fn changes_since(
        &self,
        old: &Self,
        mut each: impl FnMut(&'static str, &str, Option<i64>, Change),
    ) {
        if !Arc::ptr_eq(&self.metadata, &old.metadata) {
            for (key, value) in &self.metadata.values {
                if old.metadata.values.get(key) != Some(value) {
                    each("metadata", key, None, Change::Written);
                }
            }
            for key in old.metadata.values.keys().filter(|key| !self.metadata.values.contains_key(*key)) {
                each("metadata", key, None, Change::Gone);
            }
        }
        for (name, new, old) in [
            ("data", &self.data, &old.data),
            ("secret", &self.secrets, &old.secrets),
            ("report", &self.reports, &old.reports),
        ] {
            let each = |entry: &Entry, change| each(name, &entry.key, Some(entry.version), change);
            new.entries.changes_since(&old.entries, each);
        }
    }

    fn section(&self, kind: Kind) -> &Section {
        match kind {
            Kind::Data => &self.data,
            Kind::Secret => &self.secrets,
            Kind::Report => &self.reports,
        }
    }
}
