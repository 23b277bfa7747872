//! What the control plane knows, in memory and on disk, behind one lock that is never held across an await.
//! This file owns opening, the lock and the signing keys; the changes are beside it: [`registry`] (tokens, nodes,
//! key rotation), [`peers`] (who sees whom, announcements), [`desired`] (what a node shall be).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::encoding;

pub(crate) mod desired;
pub(crate) mod events;
pub(crate) mod files;
mod journal;
pub(crate) mod node;
pub(crate) mod peers;
pub(crate) mod received;
pub(crate) mod registry;

use node::Node;
use peers::PresharedKeys;
use registry::Token;

/// Why the state on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there and does not hold what it should.
    #[error("{} is damaged ({why}): use another --state directory, or remove this one to start over", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong; never its content.
        why: String,
    },
    /// Another process serves from the same directory.
    #[error("state directory {} is in use by another plexd-devcp", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl StoreError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }

    /// Takes only the place of `error`: its text may quote a key.
    pub(crate) fn damaged(path: &Path, error: &serde_json::Error) -> Self {
        let why = format!("JSON error at line {} column {}", error.line(), error.column());
        Self::Damaged { path: path.to_owned(), why }
    }
}

/// The locked model, and the lock file that keeps a second process out.
#[derive(Debug)]
pub(crate) struct Store {
    model: Mutex<Model>,
    dir: PathBuf,
    _lock: File,
}

/// Everything the control plane knows.
#[derive(Debug)]
pub(crate) struct Model {
    dir: PathBuf,
    signing: Signing,
    tokens: BTreeMap<String, Token>,
    nodes: BTreeMap<String, Node>,
    psks: PresharedKeys,
    next_host: u32,
}

/// Counters that outlive the nodes that used them.
#[derive(Serialize, Deserialize)]
struct Counters {
    next_host: u32,
}

impl Store {
    /// Opens the state directory, making it when it is not there.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        files::make_dir(dir)?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(|source| StoreError::write(&lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: dir.to_owned() });
            }
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(StoreError::write(&lock_path, source));
            }
        }
        Ok(Self { model: Mutex::new(Model::open(dir)?), dir: dir.to_owned(), _lock: lock })
    }

    /// Locks the model. A panic elsewhere does not end service: every change is written before it is answered.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Model {
    fn open(dir: &Path) -> Result<Self, StoreError> {
        let nodes_dir = dir.join("nodes");
        files::make_dir(&nodes_dir)?;
        let mut nodes = BTreeMap::new();
        let entries = std::fs::read_dir(&nodes_dir).map_err(|source| StoreError::read(&nodes_dir, source))?;
        for entry in entries {
            let path = entry.map_err(|source| StoreError::read(&nodes_dir, source))?.path();
            if let Some(node) = Node::open(&path)? {
                nodes.insert(node.record.id.clone(), node);
            }
        }
        let mut tokens: BTreeMap<String, Token> =
            files::read_json(&dir.join("tokens.json"))?.unwrap_or_default();
        // The node is written before its token is marked: a crash in between must not make the token good for another.
        for node in nodes.values() {
            if let Some(token) = tokens.get_mut(&node.record.token) {
                token.used_by = Some(node.record.registration());
            }
        }
        let counters = files::read_json::<Counters>(&dir.join("counters.json"))?;
        let psks = PresharedKeys::open(dir, |id| nodes.contains_key(id))?;
        let signing = Signing::open(dir)?;
        let next_host = counters.map_or(1, |counters| counters.next_host);
        Ok(Self { dir: dir.to_owned(), signing, tokens, nodes, psks, next_host })
    }

    /// The nodes by id.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node with this id.
    pub(crate) fn node(&self, id: &str) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// The node with this id, to change what concerns it alone.
    pub(crate) fn node_mut(&mut self, id: &str) -> Option<&mut Node> {
        self.nodes.get_mut(id)
    }

    /// The signing keys as nodes are told them.
    pub(crate) fn signing_keys(&self) -> SigningKeys {
        self.signing.shown(Timestamp::now())
    }

    /// Makes a new signing key; the old one stays valid for `transition` and signs the announcement.
    pub(crate) fn rotate_signing_key(
        &mut self,
        transition: jiff::SignedDuration,
    ) -> Result<SigningKeys, StoreError> {
        let now = Timestamp::now();
        let expires = now.saturating_add(transition).unwrap_or(Timestamp::MAX);
        let old = self.signing.current.clone();
        self.signing = Signing {
            current: SigningKey::from_bytes(&encoding::random()),
            previous: Some(Previous { key: public_text(&old), expires: encoding::time_text(expires) }),
        };
        self.signing.write(&self.dir)?;
        // Said even when the transition is already over: a node told of no end would assume its own.
        let keys = self.signing.told();
        let payload = node::raw(&keys);
        for node in self.nodes.values_mut() {
            node.emit(&old, "signing_key_rotated", &payload)?;
        }
        Ok(keys)
    }
}

/// Signing keys as in the `signing_keys` section of a state and the `signing_key_rotated` event.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SigningKeys {
    pub(crate) current: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transition_expires: Option<String>,
}

#[derive(Debug)]
struct Signing {
    current: SigningKey,
    previous: Option<Previous>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Previous {
    key: String,
    expires: String,
}

#[derive(Serialize, Deserialize)]
struct SigningFile {
    seed: String,
    previous: Option<Previous>,
}

impl Signing {
    fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("signing.json");
        let Some(file) = files::read_json::<SigningFile>(&path)? else {
            let signing = Self { current: SigningKey::from_bytes(&encoding::random()), previous: None };
            signing.write(dir)?;
            return Ok(signing);
        };
        let Some(seed) = encoding::key32(&file.seed) else {
            return Err(StoreError::Damaged { path, why: "the seed is not 32 bytes of base64".to_owned() });
        };
        Ok(Self { current: SigningKey::from_bytes(&seed), previous: file.previous })
    }

    fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let file =
            SigningFile { seed: encoding::base64(self.current.as_bytes()), previous: self.previous.clone() };
        files::write_json(&dir.join("signing.json"), &file)
    }

    /// The keys with the previous one only while it is valid.
    fn shown(&self, now: Timestamp) -> SigningKeys {
        let valid = |previous: &&Previous| {
            encoding::parse_time(&previous.expires).is_some_and(|expires| now < expires)
        };
        self.with_previous(self.previous.as_ref().filter(valid))
    }

    /// The keys with the previous one, valid or not.
    fn told(&self) -> SigningKeys {
        self.with_previous(self.previous.as_ref())
    }

    fn with_previous(&self, previous: Option<&Previous>) -> SigningKeys {
        SigningKeys {
            current: public_text(&self.current),
            previous: previous.map(|previous| previous.key.clone()),
            transition_expires: previous.map(|previous| previous.expires.clone()),
        }
    }
}

fn public_text(key: &SigningKey) -> String {
    encoding::base64(key.verifying_key().as_bytes())
}
