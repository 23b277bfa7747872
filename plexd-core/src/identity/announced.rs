//! What the control plane was last told of the node's capabilities, on disk: they are told again only when they have
//! changed. Losing the file costs a request and nothing else.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::control::wire::CapabilitiesPayload;
use crate::storage::{self, DataDir, StorageError};
use crate::types::{Checksum, NodeId};

const FILE: &str = "capabilities";

/// The capabilities that were last announced: one line, the node's id and a digest.
#[derive(Debug, Clone)]
pub struct Announced(PathBuf);

impl Announced {
    /// Keeps it in `directory`.
    pub fn new(directory: &DataDir) -> Self {
        Self(directory.file(FILE))
    }

    /// Returns whether `node` has announced exactly `capabilities`.
    pub fn is(&self, node: &NodeId, capabilities: &CapabilitiesPayload) -> Result<bool, StorageError> {
        let text = storage::read(&self.0)?;
        Ok(text.is_some_and(|text| text.as_slice() == line(node, capabilities).as_bytes()))
    }

    /// Remembers durably that `node` has announced `capabilities`.
    pub fn remember(&self, node: &NodeId, capabilities: &CapabilitiesPayload) -> Result<(), StorageError> {
        storage::replace(&self.0, line(node, capabilities).as_bytes())
    }
}

fn line(node: &NodeId, capabilities: &CapabilitiesPayload) -> String {
    let text = serde_json::to_vec(capabilities).expect("structs of texts always serialise");
    format!("{node} {}\n", Checksum::from(<[u8; 32]>::from(Sha256::digest(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_announced_is_known_for_that_node_and_those_capabilities_only() {
        let folder = tempfile::tempdir().unwrap();
        let announced = Announced::new(&DataDir::open(folder.path()).unwrap());
        let (node, other): (NodeId, NodeId) = ("n_1".parse().unwrap(), "n_2".parse().unwrap());
        let old = CapabilitiesPayload::default();
        let binary = crate::control::wire::BinaryInfo { version: "2".into(), checksum: "sha256:00".into() };
        let new = CapabilitiesPayload { binary: Some(binary), ..CapabilitiesPayload::default() };
        assert!(!announced.is(&node, &old).unwrap());
        announced.remember(&node, &old).unwrap();
        assert!(announced.is(&node, &old).unwrap());
        assert!(!announced.is(&node, &new).unwrap());
        assert!(!announced.is(&other, &old).unwrap());
        std::fs::write(folder.path().join(FILE), "").unwrap();
        assert!(!announced.is(&node, &old).unwrap());
    }
}
