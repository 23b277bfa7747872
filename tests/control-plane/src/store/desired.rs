//! What one node shall be, as its state and its secrets say: the part of the state that an administrator sets.
//! Values are kept byte for byte, wrong ones included, because the tests inject those on purpose.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::node::raw;
use crate::encoding;

/// The settable part of a node's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Desired {
    pub(crate) metadata: Option<Box<RawValue>>,
    pub(crate) policies: Option<Box<RawValue>>,
    pub(crate) data: Vec<Box<RawValue>>,
    /// Replaces the peers that the registry would give.
    pub(crate) peers: Option<Vec<Box<RawValue>>>,
    /// `bridge_config` and its like.
    pub(crate) sections: BTreeMap<String, Box<RawValue>>,
    /// Last version of every data key that ever was: a key that comes back goes on above it.
    data_versions: BTreeMap<String, u64>,
    secrets: BTreeMap<String, Secret>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Secret {
    /// Gone when deleted; the version stays, so that a new value continues above it.
    value: Option<String>,
    version: u64,
    /// Place in the order in which secrets were first set.
    #[serde(default)]
    place: usize,
}

/// A secret's key and version, as `secret_refs` lists them.
#[derive(Debug, Serialize)]
pub(crate) struct SecretRef<'a> {
    key: &'a str,
    version: u64,
}

/// A data entry as an administrator gives it; version and time are made up when absent.
#[derive(Deserialize)]
struct GivenEntry {
    key: String,
    #[serde(default = "json_content_type")]
    content_type: String,
    payload: Box<RawValue>,
    version: Option<u64>,
    updated_at: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    content_type: String,
    payload: Box<RawValue>,
    version: u64,
    updated_at: String,
}

#[derive(Deserialize)]
struct Completeness {
    version: Option<serde::de::IgnoredAny>,
    updated_at: Option<serde::de::IgnoredAny>,
}

fn json_content_type() -> String {
    "application/json".to_owned()
}

impl Desired {
    /// Replaces the data entries; an entry that has a version and a time is kept exactly as given, whatever it holds.
    ///
    /// # Errors
    /// Says which entry cannot be completed, and why; nothing is changed then.
    pub(crate) fn set_data(&mut self, given: Vec<Box<RawValue>>) -> Result<(), String> {
        let known: BTreeMap<String, Entry> = self
            .data
            .iter()
            .filter_map(|entry| serde_json::from_str::<Entry>(entry.get()).ok())
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        let mut data = Vec::with_capacity(given.len());
        let mut versions = Vec::with_capacity(given.len());
        for (index, entry) in given.into_iter().enumerate() {
            if is_complete(&entry) {
                versions.extend(
                    serde_json::from_str::<Entry>(entry.get()).map(|entry| (entry.key, entry.version)),
                );
                data.push(entry);
                continue;
            }
            let entry: GivenEntry =
                serde_json::from_str(entry.get()).map_err(|error| format!("data[{index}]: {error}"))?;
            let completed = self.complete(entry, &known);
            versions.push((completed.key.clone(), completed.version));
            data.push(raw(&completed));
        }
        self.data = data;
        for (key, version) in versions {
            let last = self.data_versions.entry(key).or_default();
            *last = version.max(*last);
        }
        Ok(())
    }

    fn complete(&self, given: GivenEntry, known: &BTreeMap<String, Entry>) -> Entry {
        let same = known.get(&given.key).filter(|entry| {
            entry.content_type == given.content_type && entry.payload.get() == given.payload.get()
        });
        let last = self.data_versions.get(&given.key).copied().unwrap_or(0);
        let version = given.version.or(same.map(|entry| entry.version)).unwrap_or(last + 1);
        let updated_at = given.updated_at.or(same.map(|entry| entry.updated_at.clone()));
        Entry {
            key: given.key,
            content_type: given.content_type,
            payload: given.payload,
            version,
            updated_at: updated_at.unwrap_or_else(encoding::now_text),
        }
    }

    /// Sets a secret and returns its new version.
    pub(crate) fn set_secret(&mut self, key: &str, value: String) -> u64 {
        let place = self.secrets.len();
        let secret = self.secrets.entry(key.to_owned()).or_insert(Secret { value: None, version: 0, place });
        secret.version += 1;
        secret.value = Some(value);
        secret.version
    }

    /// Deletes a secret; says whether there was one.
    pub(crate) fn delete_secret(&mut self, key: &str) -> bool {
        self.secrets.get_mut(key).is_some_and(|secret| secret.value.take().is_some())
    }

    /// A secret's value and version.
    pub(crate) fn secret(&self, key: &str) -> Option<(&str, u64)> {
        let secret = self.secrets.get(key)?;
        Some((secret.value.as_deref()?, secret.version))
    }

    /// Keys and versions of the secrets there are, in the order in which they were first set.
    pub(crate) fn secret_refs(&self) -> Vec<SecretRef<'_>> {
        let mut secrets: Vec<_> = self.secrets.iter().filter(|(_, secret)| secret.value.is_some()).collect();
        secrets.sort_by_key(|(_, secret)| secret.place);
        secrets.into_iter().map(|(key, secret)| SecretRef { key, version: secret.version }).collect()
    }
}

/// Anything but an object that lacks its version or time is taken as it is.
fn is_complete(entry: &RawValue) -> bool {
    match serde_json::from_str::<Completeness>(entry.get()) {
        Ok(entry) => entry.version.is_some() && entry.updated_at.is_some(),
        Err(_) => !entry.get().starts_with('{'),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::{Desired, Entry};

    fn given(texts: &[&str]) -> Vec<Box<RawValue>> {
        texts.iter().map(|text| RawValue::from_string((*text).to_owned()).unwrap()).collect()
    }

    fn version(desired: &Desired, index: usize) -> u64 {
        serde_json::from_str::<Entry>(desired.data[index].get()).unwrap().version
    }

    #[test]
    fn versions_go_up_with_the_content_and_never_back() {
        let mut desired = Desired::default();
        desired.set_data(given(&[r#"{"key":"a","payload":1}"#])).unwrap();
        assert_eq!(version(&desired, 0), 1);
        let first = desired.data[0].get().to_owned();
        desired.set_data(given(&[r#"{"key":"a","payload":1}"#])).unwrap();
        assert_eq!(desired.data[0].get(), first, "unchanged content keeps version and time");
        desired.set_data(given(&[r#"{"key":"a","payload":1.0}"#])).unwrap();
        assert_eq!(version(&desired, 0), 2);
        desired.set_data(Vec::new()).unwrap();
        desired.set_data(given(&[r#"{"key":"a","payload":1}"#])).unwrap();
        assert_eq!(version(&desired, 0), 3, "a deleted key goes on above its last version");
    }

    #[test]
    fn payloads_and_complete_entries_are_kept_byte_for_byte() {
        let mut desired = Desired::default();
        let complete = r#"{"version":"x", "updated_at":7, "key":"../../../pwned"}"#;
        desired
            .set_data(given(&[r#"{"key":"a","payload":{"z": 1.0,  "a":"\u00e9"}}"#, complete, "7"]))
            .unwrap();
        assert!(desired.data[0].get().contains(r#""payload":{"z": 1.0,  "a":"\u00e9"}"#));
        assert_eq!(desired.data[1].get(), complete);
        assert_eq!(desired.data[2].get(), "7");
    }

    #[test]
    fn an_entry_without_key_or_payload_changes_nothing() {
        let mut desired = Desired::default();
        desired.set_data(given(&[r#"{"key":"a","payload":1}"#])).unwrap();
        for bad in [r#"{"payload":1}"#, r#"{"key":"b"}"#] {
            assert!(desired.set_data(given(&[bad])).unwrap_err().starts_with("data[0]: "));
            assert_eq!(desired.data.len(), 1);
        }
    }

    #[test]
    fn secret_versions_continue_after_a_delete() {
        let mut desired = Desired::default();
        assert_eq!(desired.set_secret("k", "one".to_owned()), 1);
        assert_eq!(desired.set_secret("k", "two".to_owned()), 2);
        assert_eq!(desired.secret("k"), Some(("two", 2)));
        assert!(desired.delete_secret("k"));
        assert!(!desired.delete_secret("k"));
        assert_eq!(desired.secret("k"), None);
        assert!(desired.secret_refs().is_empty());
        assert_eq!(desired.set_secret("k", "three".to_owned()), 3);
    }
}
