//! The payload of a data entry. It is in memory until it is on disk and whoever watches has had time to be told, and is
//! read from disk for whoever asks later. Payloads are most of a large state, and hardly ever asked for again.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::keeper::Request;
use super::model::DataEntry;

/// Payloads up to this length stay in memory: what is kept instead takes as much. In bytes.
const SHORT: usize = 128;

/// Size of a block of texts, in bytes: enough to be given back to the system by itself.
const BLOCK: usize = 256 * 1024;

/// Who reads what is on disk. Weak: the task that owns the disk ends when nobody can ask it any more.
pub(super) type Disk = mpsc::WeakSender<Request>;

/// One JSON value, byte for byte as received. Equal to another if the bytes are, wherever they are.
pub struct Payload(Mutex<Held>);

#[derive(Clone)]
enum Held {
    Text(Bytes),
    OnDisk { sha256: [u8; 32], length: usize, disk: Disk },
}

impl Payload {
    /// Returns the text, if it is in memory.
    pub fn in_memory(&self) -> Option<Bytes> {
        match &*self.held() {
            Held::Text(text) => Some(text.clone()),
            Held::OnDisk { .. } => None,
        }
    }

    /// Returns how long it is, in bytes.
    pub fn length(&self) -> usize {
        match &*self.held() {
            Held::Text(text) => text.len(),
            Held::OnDisk { length, .. } => *length,
        }
    }

    /// Returns whether `text` is it.
    pub(super) fn is(&self, text: &[u8]) -> bool {
        self.held().is(text)
    }

    /// Forgets the text, which `disk` has; returns whether it was in memory and is not any more.
    pub(super) fn leave_to(&self, disk: &Disk) -> bool {
        let mut held = self.held();
        let left = match &*held {
            Held::Text(text) if text.len() > SHORT => {
                Held::OnDisk { sha256: Sha256::digest(text).into(), length: text.len(), disk: disk.clone() }
            }
            Held::Text(_) | Held::OnDisk { .. } => return false,
        };
        *held = left;
        true
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Whatever is in it is complete.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes payloads, their texts side by side in blocks: once all of a block are left to the disk, the system has it back.
/// Between other things each would leave a hole, which nobody has any use for.
#[derive(Debug, Default)]
pub struct Texts {
    block: BytesMut,
}

impl Texts {
    /// Makes a payload of a copy of `text`.
    pub fn payload(&mut self, text: &[u8]) -> Payload {
        if text.len() <= SHORT {
            // It stays in memory, and would keep the block.
            return Bytes::copy_from_slice(text).into();
        }
        if self.block.capacity() < text.len() {
            self.block = BytesMut::with_capacity(text.len().max(BLOCK));
        }
        self.block.extend_from_slice(text);
        self.block.split().freeze().into()
    }
}

impl Held {
    fn is(&self, other: &[u8]) -> bool {
        match self {
            Self::Text(text) => text == other,
            Self::OnDisk { sha256, length, .. } => {
                *length == other.len() && *sha256 == <[u8; 32]>::from(Sha256::digest(other))
            }
        }
    }
}

impl From<Bytes> for Payload {
    fn from(text: Bytes) -> Self {
        Self(Mutex::new(Held::Text(text)))
    }
}

impl Clone for Payload {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.held().clone()))
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        // A copy, so that never two are locked.
        let other = other.held().clone();
        match (&*self.held(), &other) {
            (held, Held::Text(text)) => held.is(text),
            (Held::Text(text), other) => other.is(text),
            (
                Held::OnDisk { sha256, length, .. },
                Held::OnDisk { sha256: other_sha256, length: other_length, .. },
            ) => sha256 == other_sha256 && length == other_length,
        }
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.length())
    }
}

/// Returns the payloads of entries of one state, in their order; `None` if one of them is not what is on disk any more,
/// because a newer state is known.
///
/// # Errors
/// If the disk cannot be read, or the state's task has ended.
pub async fn payloads(entries: &[Arc<DataEntry>]) -> io::Result<Option<Vec<Bytes>>> {
    let mut texts: Vec<Option<Bytes>> = Vec::with_capacity(entries.len());
    let (mut missing, mut disk) = (Vec::new(), None);
    for entry in entries {
        let held = entry.payload.held().clone();
        texts.push(match held {
            Held::Text(text) => Some(text),
            Held::OnDisk { disk: its, .. } => {
                missing.push(Arc::clone(entry));
                disk = Some(its);
                None
            }
        });
    }
    let mut read = match disk {
        None => Vec::new(),
        Some(disk) => match ask(&disk, missing).await? {
            Some(read) => read,
            None => return Ok(None),
        },
    }
    .into_iter();
    // As many were read as were missing.
    Ok(texts.into_iter().map(|text| text.or_else(|| read.next())).collect())
}

async fn ask(disk: &Disk, entries: Vec<Arc<DataEntry>>) -> io::Result<Option<Vec<Bytes>>> {
    let stopped = || io::Error::other("the state keeper has stopped");
    let (reply, answer) = oneshot::channel();
    let disk = disk.upgrade().ok_or_else(stopped)?;
    disk.send(Request::Payloads { entries, reply }).await.map_err(|_| stopped())?;
    answer.await.map_err(|_| stopped())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_equal_to_the_same_bytes_in_memory_or_on_disk() {
        let (sender, _requests) = mpsc::channel(1);
        let disk = sender.downgrade();
        let long = |last: &str| Payload::from(Bytes::from(format!("\"{}{last}\"", "x".repeat(SHORT))));
        let (memory, other, left) = (long("a"), long("b"), long("a"));
        assert!(left.leave_to(&disk) && !left.leave_to(&disk), "once");
        assert!(left.in_memory().is_none() && left.length() == memory.length());
        for (one, two) in [(&memory, &left), (&left, &memory), (&left, &left), (&left, &left.clone())] {
            assert_eq!(one, two);
        }
        for (one, two) in [(&other, &left), (&left, &other), (&memory, &other)] {
            assert_ne!(one, two);
        }
        assert!(other.leave_to(&disk));
        assert_ne!(other, left);
    }

    #[test]
    fn texts_are_what_they_were_wherever_a_block_ends() {
        let mut texts = Texts::default();
        let all: Vec<Bytes> = (0..9)
            .map(|n| vec![b'0' + n; [10, 1_000, 200_000, 300_000][usize::from(n) % 4]].into())
            .collect();
        let payloads: Vec<Payload> = all.iter().map(|text| texts.payload(text)).collect();
        drop(texts);
        assert!(payloads.iter().map(Payload::in_memory).eq(all.into_iter().map(Some)));
    }

    #[test]
    fn a_short_payload_stays() {
        let (sender, _requests) = mpsc::channel(1);
        let short = Payload::from(Bytes::from_static(b"1"));
        assert!(!short.leave_to(&sender.downgrade()));
        assert_eq!(short.in_memory().unwrap(), "1");
    }
}
