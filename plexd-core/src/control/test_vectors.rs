//! Reads the test vectors, from `PLEXD_VECTORS` when it is set.

use std::path::PathBuf;

use serde::de::DeserializeOwned;

pub(super) fn read<T: DeserializeOwned>(file: &str) -> Vec<T> {
    let default = || concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors").into();
    let path = std::env::var_os("PLEXD_VECTORS").unwrap_or_else(default);
    let path = PathBuf::from(path).join(file);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
