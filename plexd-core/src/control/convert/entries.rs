//! Data entries, metadata and secret references.

use std::collections::{BTreeMap, HashSet};

use crate::state::{DataEntry, Rejected, SecretRef, Texts};

use super::super::wire::{self, Raw};
use super::{Refusals, Sifted, name_of, shown};

/// Longest key, in bytes (contract, section 6).
const MAX_KEY: usize = 256;

/// Converts data entries. One whose key an earlier one has is left out.
pub fn data_entries(list: &[Raw<'_>]) -> Sifted<DataEntry> {
    let mut texts = Texts::default();
    keyed("data", list, |text| data_entry(text, &mut texts), |entry| &entry.key)
}

/// Converts secret references. One whose key an earlier one has is left out.
pub fn secret_refs(list: &[Raw<'_>]) -> Sifted<SecretRef> {
    keyed("secret", list, secret_ref, |secret| &secret.key)
}

/// Converts metadata.
pub fn metadata(map: &BTreeMap<String, Raw<'_>>) -> (BTreeMap<String, String>, Vec<Rejected>) {
    let mut accepted = BTreeMap::new();
    let mut refusals = Refusals::default();
    for (key, value) in map {
        let value = check_key(key).and_then(|()| wire::parse::<String>(value.text().as_bytes()));
        match value {
            Ok(value) => {
                accepted.insert(key.clone(), value);
            }
            Err(reason) => refusals.add(|| format!("metadata {}", shown(key)), reason),
        }
    }
    (accepted, refusals.into_list("metadata"))
}

fn keyed<T>(
    kind: &str,
    list: &[Raw<'_>],
    mut convert: impl FnMut(&str) -> Result<T, String>,
    key: impl Fn(&T) -> &String,
) -> Sifted<T> {
    let mut accepted = Vec::with_capacity(list.len());
    let mut refusals = Refusals::default();
    let mut seen = HashSet::new();
    for (index, element) in list.iter().enumerate() {
        let checked = convert(element.text()).and_then(|entry| {
            if !seen.insert(key(&entry).clone()) {
                return Err("an earlier entry has the same key".to_owned());
            }
            Ok(entry)
        });
        match checked {
            Ok(entry) => accepted.push(entry),
            Err(reason) => {
                refusals.add(|| format!("{kind} {}", name_of(*element, "key", "entry", index)), reason);
            }
        }
    }
    Sifted { accepted, rejected: refusals.into_list(kind) }
}

fn data_entry(text: &str, texts: &mut Texts) -> Result<DataEntry, String> {
    let entry: wire::DataEntry<'_> = wire::parse_object(text.as_bytes())?;
    check_key(&entry.key)?;
    Ok(DataEntry {
        key: entry.key,
        content_type: entry.content_type,
        payload: texts.payload(entry.payload.text().as_bytes()),
        version: entry.version,
        updated_at: entry.updated_at,
    })
}

fn secret_ref(text: &str) -> Result<SecretRef, String> {
    let secret: wire::SecretRef = wire::parse_object(text.as_bytes())?;
    check_key(&secret.key)?;
    Ok(SecretRef { key: secret.key, version: secret.version })
}

/// Refuses keys that the Local Node API could not name (contract, section 6).
fn check_key(key: &str) -> Result<(), String> {
    match key {
        "" => Err("the key is empty".to_owned()),
        _ if key.len() > MAX_KEY => Err(format!("the key has {} bytes, more than {MAX_KEY}", key.len())),
        _ if key.chars().any(char::is_control) => Err("the key has control characters".to_owned()),
        _ => Ok(()),
    }
}
