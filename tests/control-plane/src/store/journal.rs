//! An append-only file of records, for what arrives often: written without fsync, so it survives the end of the
//! process but not always that of the machine; a record that was cut short is dropped when the file is opened.
//! Records carry their length because a body kept byte for byte may contain line ends.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::{StoreError, files};

/// The file; it is opened for every append, so that a thousand nodes do not hold three thousand descriptors.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    bytes: usize,
}

impl Journal {
    /// Opens the journal at `path` and returns its whole records; cuts off what follows the last whole one.
    pub(crate) fn open(path: PathBuf) -> Result<(Self, Vec<String>), StoreError> {
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(StoreError::read(&path, source)),
        };
        let (records, whole) = split(&content);
        if whole < content.len() {
            tracing::warn!(path = %path.display(), lost = content.len() - whole, "dropped a record that was cut short");
            files::write(&path, &content[..whole])?;
        }
        Ok((Self { path, bytes: whole }, records))
    }

    /// Appends one record.
    pub(crate) fn append(&mut self, record: &str) -> Result<(), StoreError> {
        self.append_all(std::iter::once(record))
    }

    /// Appends records with one write.
    pub(crate) fn append_all<'a>(
        &mut self,
        records: impl Iterator<Item = &'a str>,
    ) -> Result<(), StoreError> {
        let text: String = records.map(frame).collect();
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| StoreError::write(&self.path, source))?;
        self.bytes += text.len();
        Ok(())
    }

    /// Bytes of the file, to decide when it holds too much that is no longer needed.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Replaces the content by `records`.
    pub(crate) fn rewrite<'a>(&mut self, records: impl Iterator<Item = &'a str>) -> Result<(), StoreError> {
        let text: String = records.map(frame).collect();
        files::write(&self.path, text.as_bytes())?;
        self.bytes = text.len();
        Ok(())
    }
}

fn frame(record: &str) -> String {
    format!("{}\n{record}\n", record.len())
}

/// Returns the whole records and how many bytes they take.
fn split(content: &[u8]) -> (Vec<String>, usize) {
    let mut records = Vec::new();
    let mut position = 0;
    while let Some((record, length)) = first(&content[position..]) {
        records.push(record);
        position += length;
    }
    (records, position)
}

fn first(content: &[u8]) -> Option<(String, usize)> {
    let header = content.iter().position(|byte| *byte == b'\n')?;
    let length: usize = std::str::from_utf8(&content[..header]).ok()?.parse().ok()?;
    let start = header + 1;
    let end = start.checked_add(length)?;
    if content.get(end) != Some(&b'\n') {
        return None;
    }
    let record = std::str::from_utf8(&content[start..end]).ok()?;
    Some((record.to_owned(), end + 1))
}

#[cfg(test)]
mod tests {
    use super::Journal;

    #[test]
    fn records_come_back_and_a_torn_one_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, records) = Journal::open(path.clone()).unwrap();
        assert!(records.is_empty());
        journal.append("one\nwith a line end").unwrap();
        journal.append("").unwrap();
        journal.append("drei ü").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..8 {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut journal, records) = Journal::open(path.clone()).unwrap();
            assert_eq!(records, ["one\nwith a line end", ""], "cut {cut}");
            journal.append("next").unwrap();
            assert_eq!(Journal::open(path.clone()).unwrap().1.len(), 3);
        }
    }

    #[test]
    fn rewriting_replaces_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(path.clone()).unwrap();
        journal.append("old").unwrap();
        journal.rewrite(["new"].into_iter()).unwrap();
        let (reopened, records) = Journal::open(path).unwrap();
        assert_eq!(records, ["new"]);
        assert_eq!(reopened.bytes(), journal.bytes());
    }
}
