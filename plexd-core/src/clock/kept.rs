//! What is known of the time, on disk. Losing the file costs what a machine without a clock of its own knew, nothing else.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::storage::{self, DataDir, StorageError};
use crate::types::PublicKey;

const FILE: &str = "clock.json";

/// What outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// When the machine's clock and the control plane last agreed.
    pub known: Option<Timestamp>,
    /// What the control plane last said, if the machine's clock did not agree.
    pub told: Option<Timestamp>,
    /// The latest time that this node's handshakes can have carried.
    pub highest: Option<Highest>,
}

/// The latest time of handshakes with one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Highest {
    /// The time.
    pub time: Timestamp,
    /// The node's public key: another key's handshakes begin anew.
    pub key: PublicKey,
}

/// The file's shape.
#[derive(Serialize, Deserialize)]
struct Shape {
    known: Option<String>,
    told: Option<String>,
    highest: Option<(String, String)>,
}

impl From<&Kept> for Shape {
    fn from(kept: &Kept) -> Self {
        let text = |time: Timestamp| time.to_string();
        Self {
            known: kept.known.map(text),
            told: kept.told.map(text),
            highest: kept.highest.map(|highest| (text(highest.time), highest.key.to_string())),
        }
    }
}

impl Shape {
    /// Reads what it says; `None` if any of it makes no sense.
    fn kept(&self) -> Option<Kept> {
        let known = self.known.as_deref().map(time).transpose().ok()?;
        let told = self.told.as_deref().map(time).transpose().ok()?;
        let highest = match &self.highest {
            None => None,
            Some((at, key)) => Some(Highest { time: time(at).ok()?, key: PublicKey::from_base64(key).ok()? }),
        };
        Some(Kept { known, told, highest })
    }
}

fn time(text: &str) -> Result<Timestamp, jiff::Error> {
    text.parse()
}

/// The file.
#[derive(Debug, Clone)]
pub struct ClockFile(PathBuf);

impl ClockFile {
    /// Keeps it in `directory`.
    pub fn new(directory: &DataDir) -> Self {
        Self(directory.file(FILE))
    }

    /// Reads it. A damaged one is set aside; then the second value says so.
    pub fn load(&self, now: Timestamp) -> Result<(Kept, Option<String>), StorageError> {
        let Some(text) = storage::read(&self.0)? else { return Ok((Kept::default(), None)) };
        if let Some(kept) = serde_json::from_slice::<Shape>(&text).ok().and_then(|shape| shape.kept()) {
            return Ok((kept, None));
        }
        let aside = storage::set_aside(&self.0, now)?;
        let problem = format!(
            "the file with the last known time was damaged and is now {}; it is written anew once the control plane answers",
            aside.display()
        );
        Ok((Kept::default(), Some(problem)))
    }

    /// Replaces it durably.
    pub fn save(&self, kept: &Kept) -> Result<(), StorageError> {
        let mut text = serde_json::to_vec(&Shape::from(kept))
            .map_err(|e| StorageError::new("write", &self.0, e.into()))?;
        text.push(b'\n');
        storage::replace(&self.0, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_back_and_what_is_damaged_is_set_aside_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = ClockFile::new(&DataDir::open(folder.path()).unwrap());
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(file.load(now).unwrap(), (Kept::default(), None));
        let time = "2026-11-21T12:00:00.5Z".parse().unwrap();
        let key = PublicKey::from_bytes([7; 32]);
        let kept = Kept { known: Some(time), told: None, highest: Some(Highest { time, key }) };
        file.save(&kept).unwrap();
        assert_eq!(file.load(now).unwrap(), (kept, None));
        for damage in ["", "{", r#"{"known":"yesterday"}"#] {
            std::fs::write(folder.path().join(FILE), damage).unwrap();
            let (kept, problem) = file.load(now).unwrap();
            assert_eq!(kept, Kept::default());
            assert!(problem.unwrap().contains("clock.json.damaged-0"));
            assert!(!folder.path().join(FILE).exists());
        }
    }
}
