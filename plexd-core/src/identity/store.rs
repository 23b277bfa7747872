//! The identity on disk: `wireguard.key`, written before the node registers, `identity.json`, written before anything
//! acts on the registration, and during a rotation `wireguard.key.pending`, the key that is to come. A damaged file is
//! set aside and told, never replaced in silence.

use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::departure::Departure;
use super::{Announced, Identity};
use crate::storage::{self, DataDir, StorageError};
use crate::types::{Clock, NodeSecretKey, PrivateKey, PublicKey, SigningPublicKey};

const KEY_FILE: &str = "wireguard.key";
const PENDING_KEY_FILE: &str = "wireguard.key.pending";
const IDENTITY_FILE: &str = "identity.json";

/// Keeps the identity.
#[derive(Debug, Clone)]
pub struct IdentityStore {
    directory: DataDir,
}

/// What is on disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The identity, if the node is enrolled.
    pub identity: Option<Identity>,
    /// The key to register with, if there is one already.
    pub private_key: Option<PrivateKey>,
    /// A key that the control plane was asked to accept, or is to be, and has not confirmed.
    pub pending_key: Option<PrivateKey>,
    /// What was wrong with the files, and what to do.
    pub problem: Option<String>,
}

/// The file's shape.
#[derive(Serialize, Deserialize)]
struct IdentityFile {
    node_id: String,
    mesh_ip: std::net::IpAddr,
    node_secret_key: Zeroizing<String>,
    signing_public_key: String,
}

impl IdentityStore {
    /// Keeps the identity in `directory`.
    pub fn new(directory: DataDir) -> Self {
        Self { directory }
    }

    /// Returns where it is kept what was told of the node's capabilities.
    pub fn announced(&self) -> Announced {
        Announced::new(&self.directory)
    }

    /// Returns what removes it.
    pub(super) fn departure(&self) -> Departure {
        Departure::new(self.directory.clone())
    }

    /// Reads what is there.
    pub fn load(&self, clock: &dyn Clock) -> Result<Loaded, StorageError> {
        let key_path = self.directory.file(KEY_FILE);
        let identity_path = self.directory.file(IDENTITY_FILE);
        let mut loaded = Loaded { pending_key: self.load_pending_key(clock)?, ..Loaded::default() };
        if let Some(text) = storage::read(&key_path)? {
            loaded.private_key = parse_key(&text);
            if loaded.private_key.is_none() {
                loaded.problem = Some(set_aside("key", &key_path, clock)?);
            }
        }
        let Some(text) = storage::read(&identity_path)? else { return Ok(loaded) };
        match (parse_identity(&text), &loaded.private_key) {
            (Some(parsed), Some(key)) => loaded.identity = Some(parsed.with_key(key.clone())),
            // An identity must never be found together with the key of a later attempt to enrol.
            (Some(_), None) => {
                let aside = storage::set_aside(&identity_path, clock.now())?;
                let message = format!(
                    "the key file is missing, and the identity file useless without it (it is now {}); enrol again with a \
                     new token: plexd-ctl join",
                    aside.display()
                );
                loaded.problem.get_or_insert(message);
            }
            (None, _) => loaded.problem = Some(set_aside("identity", &identity_path, clock)?),
        }
        Ok(loaded)
    }

    /// Makes a pending key that is the one the control plane `confirmed` last the node's: a crash came between the two.
    pub fn complete_rotation(
        &self,
        loaded: &mut Loaded,
        confirmed: Option<PublicKey>,
    ) -> Result<(), StorageError> {
        if let Some(key) = loaded.pending_key.take_if(|key| confirmed == Some(key.public())) {
            self.promote_pending_key()?;
            tracing::info!(public_key = %key.public(), "key rotation completed after a restart");
            if let Some(identity) = &mut loaded.identity {
                identity.private_key = key.clone();
            }
            loaded.private_key = Some(key);
        }
        Ok(())
    }

    /// Reads the pending key. One that is damaged is set aside: the control plane is asked to accept another.
    fn load_pending_key(&self, clock: &dyn Clock) -> Result<Option<PrivateKey>, StorageError> {
        let path = self.directory.file(PENDING_KEY_FILE);
        let Some(text) = storage::read(&path)? else { return Ok(None) };
        let key = parse_key(&text);
        if key.is_none() {
            let aside = storage::set_aside(&path, clock.now())?;
            tracing::warn!(aside = %aside.display(), "the pending key was damaged");
        }
        Ok(key)
    }

    /// Writes a pending key durably, before the control plane is asked to accept it.
    pub fn save_pending_key(&self, key: &PrivateKey) -> Result<(), StorageError> {
        write_key(&self.directory.file(PENDING_KEY_FILE), key)
    }

    /// Makes the pending key the key, durably and at once.
    pub fn promote_pending_key(&self) -> Result<(), StorageError> {
        storage::rename_over(&self.directory.file(PENDING_KEY_FILE), &self.directory.file(KEY_FILE))
    }

    /// Removes the pending key, if there is one.
    pub fn remove_pending_key(&self) -> Result<(), StorageError> {
        storage::remove(&self.directory.file(PENDING_KEY_FILE))
    }

    /// Writes a key durably, before it is used to register.
    pub fn save_key(&self, key: &PrivateKey) -> Result<(), StorageError> {
        write_key(&self.directory.file(KEY_FILE), key)
    }

    /// Writes the identity durably, before anything acts on it.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), StorageError> {
        let path = self.directory.file(IDENTITY_FILE);
        let file = IdentityFile {
            node_id: identity.node_id.to_string(),
            mesh_ip: identity.mesh_ip,
            node_secret_key: Zeroizing::new(identity.secret_key.as_str().to_owned()),
            signing_public_key: identity.signing_key.to_string(),
        };
        let text = serde_json::to_vec_pretty(&file)
            .map(Zeroizing::new)
            .map_err(|error| StorageError::new("write", &path, error.into()))?;
        storage::replace(&path, &text)
    }
}

fn write_key(path: &Path, key: &PrivateKey) -> Result<(), StorageError> {
    let mut text = key.to_base64();
    text.push('\n');
    storage::replace(path, text.as_bytes())
}

/// Sets a damaged file aside and says so.
fn set_aside(what: &str, path: &Path, clock: &dyn Clock) -> Result<String, StorageError> {
    let aside = storage::set_aside(path, clock.now())?;
    let aside = aside.display();
    Ok(format!(
        "the {what} file was damaged and is now {aside}; enrol again with a new token: plexd-ctl join"
    ))
}

fn parse_key(text: &[u8]) -> Option<PrivateKey> {
    PrivateKey::from_base64(std::str::from_utf8(text).ok()?.trim()).ok()
}

/// The identity file, parsed, still without the key.
struct Parsed {
    node_id: crate::types::NodeId,
    mesh_ip: std::net::IpAddr,
    secret_key: NodeSecretKey,
    signing_key: SigningPublicKey,
}

impl Parsed {
    fn with_key(self, private_key: PrivateKey) -> Identity {
        let Self { node_id, mesh_ip, secret_key, signing_key } = self;
        Identity { node_id, mesh_ip, secret_key, signing_key, private_key }
    }
}

fn parse_identity(text: &[u8]) -> Option<Parsed> {
    let file: IdentityFile = serde_json::from_slice(text).ok()?;
    Some(Parsed {
        node_id: file.node_id.parse().ok()?,
        mesh_ip: file.mesh_ip,
        secret_key: NodeSecretKey::parse(&file.node_secret_key).ok()?,
        signing_key: SigningPublicKey::from_base64(&file.signing_public_key).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SystemClock;

    fn identity(private_key: PrivateKey) -> Identity {
        Identity {
            node_id: "n_1".parse().unwrap(),
            mesh_ip: [10, 100, 0, 1].into(),
            secret_key: NodeSecretKey::parse("FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlGo=").unwrap(),
            signing_key: SigningPublicKey::from_base64("lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=")
                .unwrap(),
            private_key,
        }
    }

    fn store() -> (tempfile::TempDir, IdentityStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(DataDir::open(folder.path()).unwrap());
        (folder, store)
    }

    #[test]
    fn an_identity_is_read_back_as_it_was_written() {
        let (_folder, store) = store();
        let key = PrivateKey::generate().unwrap();
        store.save_key(&key).unwrap();
        let before = store.load(&SystemClock).unwrap();
        assert!(before.identity.is_none() && before.problem.is_none());
        assert_eq!(before.private_key.unwrap().public(), key.public());
        store.save_identity(&identity(key.clone())).unwrap();
        let loaded = store.load(&SystemClock).unwrap().identity.unwrap();
        assert_eq!(loaded.node_id.as_str(), "n_1");
        assert_eq!(loaded.private_key.public(), key.public());
        assert_eq!(loaded.secret_key.as_str(), "FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlGo=");
    }

    #[test]
    fn a_pending_key_becomes_the_key_only_once_it_is_confirmed() {
        let load = |store: &IdentityStore, confirmed| {
            let mut loaded = store.load(&SystemClock).unwrap();
            store.complete_rotation(&mut loaded, confirmed).unwrap();
            loaded
        };
        let (folder, store) = store();
        let [old, new, other] = [(); 3].map(|()| PrivateKey::generate().unwrap());
        store.save_key(&old).unwrap();
        store.save_identity(&identity(old.clone())).unwrap();
        store.save_pending_key(&new).unwrap();
        for confirmed in [None, Some(old.public()), Some(other.public())] {
            let loaded = load(&store, confirmed);
            assert_eq!(loaded.identity.unwrap().private_key.public(), old.public());
            assert_eq!(loaded.pending_key.unwrap().public(), new.public());
        }
        for _ in 0..2 {
            let loaded = load(&store, Some(new.public()));
            assert_eq!(loaded.identity.unwrap().private_key.public(), new.public());
            assert!(loaded.pending_key.is_none());
        }
        store.save_pending_key(&other).unwrap();
        std::fs::write(folder.path().join(PENDING_KEY_FILE), "half a k").unwrap();
        let loaded = load(&store, Some(new.public()));
        assert_eq!(loaded.identity.unwrap().private_key.public(), new.public());
        assert!(loaded.pending_key.is_none() && loaded.problem.is_none());
        store.save_pending_key(&other).unwrap();
        store.remove_pending_key().unwrap();
        store.remove_pending_key().unwrap();
        assert!(store.load(&SystemClock).unwrap().pending_key.is_none());
    }

    #[test]
    fn leftovers_of_interrupted_writes_do_not_matter() {
        let (folder, store) = store();
        let key = PrivateKey::generate().unwrap();
        store.save_key(&key).unwrap();
        store.save_identity(&identity(key)).unwrap();
        for name in [".identity.json.a1B2c3", "identity.json.tmp", ".wireguard.key.x", "format.tmp"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let store = IdentityStore::new(DataDir::open(folder.path()).unwrap());
        let loaded = store.load(&SystemClock).unwrap();
        assert!(loaded.identity.is_some() && loaded.problem.is_none());
    }

    #[test]
    fn damaged_files_are_set_aside_and_told() {
        let (folder, store) = store();
        let key = PrivateKey::generate().unwrap();
        store.save_key(&key).unwrap();
        store.save_identity(&identity(key)).unwrap();
        for (file, word) in [(IDENTITY_FILE, "identity file"), (KEY_FILE, "key file")] {
            std::fs::write(folder.path().join(file), "").unwrap();
            let loaded = store.load(&SystemClock).unwrap();
            assert!(loaded.identity.is_none());
            let problem = loaded.problem.unwrap();
            assert!(problem.contains(word) && problem.contains("plexd-ctl join"), "{problem}");
            assert!(!folder.path().join(file).exists());
        }
        let aside = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(
            aside.filter(|f| f.as_ref().unwrap().path().display().to_string().contains("damaged")).count(),
            2
        );
    }
}
