//! What a database stands on: its file, or its file as it is with all that is written to it kept in memory. The latter
//! takes what opening a database writes, and then, sealed, nothing any more.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// Unit of what is kept in memory, in bytes.
const PAGE: usize = 4096;

/// What a database stands on.
#[derive(Debug)]
pub(super) struct Backend {
    file: Option<FileBackend>,
    /// What was written, if it is not to reach the file.
    written: Option<Arc<Mutex<Written>>>,
    #[cfg(test)]
    faults: Arc<faults::Faults>,
}

/// Ends the writing.
#[derive(Debug)]
pub(super) struct Seal(Arc<Mutex<Written>>);

/// What was written over a file.
struct Written {
    len: u64,
    /// By their number.
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Code of the error that every write ends with.
    sealed: Option<i32>,
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.pages.len())
    }
}

impl Seal {
    /// Has every write from here on end with `error`.
    pub(super) fn set(&self, error: &io::Error) {
        lock(&self.0).sealed = Some(error.raw_os_error().unwrap_or(nix::libc::EIO));
    }
}

impl Backend {
    /// Reads and writes `file`.
    #[cfg_attr(not(test), expect(unused_variables, reason = "tests inject faults by path"))]
    pub(super) fn new(file: FileBackend, path: &Path) -> Self {
        Self {
            file: Some(file),
            written: None,
            #[cfg(test)]
            faults: faults::at(path),
        }
    }

    /// Reads `file` (nothing, if there is none), and keeps in memory what is written until it is sealed.
    #[cfg_attr(not(test), expect(unused_variables, reason = "tests inject faults by path"))]
    pub(super) fn over(file: Option<FileBackend>, path: &Path) -> io::Result<(Self, Seal)> {
        let len = file.as_ref().map_or(Ok(0), StorageBackend::len)?;
        let written = Arc::new(Mutex::new(Written { len, pages: BTreeMap::new(), sealed: None }));
        let backend = Self {
            file,
            written: Some(Arc::clone(&written)),
            #[cfg(test)]
            faults: faults::at(path),
        };
        Ok((backend, Seal(written)))
    }

    /// Reads from the file, as far as it goes.
    fn read_file(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let there = usize::try_from(file.len()?.saturating_sub(offset)).unwrap_or(usize::MAX);
        let there = there.min(out.len());
        if there == 0 { Ok(()) } else { file.read(offset, &mut out[..there]) }
    }

    /// Calls `each` with the number of every page that `length` bytes from `offset` on touch, where in the page they
    /// begin, and which of the bytes these are.
    fn pages(offset: u64, length: usize, mut each: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let within = usize::try_from(at % PAGE as u64).unwrap_or(0);
            let next = (done + PAGE - within).min(length);
            each(at / PAGE as u64, within, done..next);
            done = next;
        }
    }
}

impl Written {
    fn check(&self) -> io::Result<()> {
        self.sealed.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
    }
}

fn lock(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        match (&self.written, &self.file) {
            (Some(written), _) => Ok(lock(written).len),
            (None, Some(file)) => file.len(),
            (None, None) => Ok(0),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let Some(written) = &self.written else {
            return self.file.as_ref().map_or(Ok(()), |file| file.read(offset, out));
        };
        let written = lock(written);
        if offset + out.len() as u64 > written.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.fill(0);
        self.read_file(offset, out)?;
        Self::pages(offset, out.len(), |number, within, part| {
            if let Some(page) = written.pages.get(&number) {
                let length = part.len();
                out[part].copy_from_slice(&page[within..within + length]);
            }
        });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let Some(written) = &self.written else {
            #[cfg(test)]
            self.faults.before_write()?;
            return self.file.as_ref().map_or(Ok(()), |file| file.set_len(len));
        };
        let mut written = lock(written);
        written.check()?;
        // What is cut off and grown again reads as what the file has there: redb grows the file, and writes all that it
        // reads.
        written.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match (&self.written, &self.file) {
            (Some(written), _) => lock(written).check(),
            #[cfg(test)]
            (None, Some(file)) => self.faults.around_sync(|| file.sync_data()),
            #[cfg(not(test))]
            (None, Some(file)) => file.sync_data(),
            (None, None) => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(written) = &self.written else {
            #[cfg(test)]
            self.faults.before_write()?;
            return self.file.as_ref().map_or(Ok(()), |file| file.write(offset, data));
        };
        let mut written = lock(written);
        written.check()?;
        let mut missing = Vec::new();
        Self::pages(offset, data.len(), |number, _, _| {
            if !written.pages.contains_key(&number) {
                missing.push(number);
            }
        });
        for number in missing {
            let mut page = Box::new([0; PAGE]);
            self.read_file(number * PAGE as u64, page.as_mut_slice())?;
            written.pages.insert(number, page);
        }
        Self::pages(offset, data.len(), |number, within, part| {
            if let Some(page) = written.pages.get_mut(&number) {
                let length = part.len();
                page[within..within + length].copy_from_slice(&data[part]);
            }
        });
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), StorageBackend::close)
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        match &self.file {
            // What is opened for reading can be locked for reading only, which keeps writers out as well.
            Some(file) if self.written.is_some() => file.try_lock_shared_range(start, end),
            Some(file) => file.try_lock_range(start, end),
            None => Ok(true),
        }
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.as_ref().map_or(Ok(true), |file| file.try_lock_shared_range(start, end))
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        match &self.file {
            Some(file) if self.written.is_some() => file.lock_shared_range(start, end),
            Some(file) => file.lock_range(start, end),
            None => Ok(()),
        }
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.as_ref().map_or(Ok(()), |file| file.lock_shared_range(start, end))
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.as_ref().map_or(Ok(()), |file| file.unlock_range(start, end))
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.as_ref().map_or(Ok(false), |file| file.query_lock_range(start, end))
    }
}

/// Disks that fail, for tests: by path, from a chosen write or sync on.
#[cfg(test)]
pub mod faults {
    use std::collections::HashMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, LazyLock, Mutex};

    static ALL: LazyLock<Mutex<HashMap<PathBuf, Arc<Faults>>>> = LazyLock::new(Mutex::default);

    /// Which calls fail, and how often there were any.
    #[derive(Debug, Default)]
    pub struct Faults(Mutex<Plan>);

    #[derive(Debug, Default)]
    struct Plan {
        /// From which call on, counted from now, with what error code.
        writes: Option<(u64, i32)>,
        syncs: Option<(u64, i32)>,
    }

    /// Returns the faults of the database at `path`.
    pub fn at(path: &Path) -> Arc<Faults> {
        Arc::clone(ALL.lock().unwrap().entry(path.into()).or_default())
    }

    impl Faults {
        /// Has every write fail with `error` once `more` have succeeded.
        pub fn fail_writes_from(&self, more: u64, error: i32) {
            self.0.lock().unwrap().writes = Some((more, error));
        }

        /// Has every sync fail with `error` once `more` have succeeded.
        pub fn fail_syncs_from(&self, more: u64, error: i32) {
            self.0.lock().unwrap().syncs = Some((more, error));
        }

        /// Has nothing fail any more.
        pub fn heal(&self) {
            *self.0.lock().unwrap() = Plan::default();
        }

        pub(super) fn before_write(&self) -> io::Result<()> {
            fails(&mut self.0.lock().unwrap().writes)
        }

        pub(super) fn around_sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
            fails(&mut self.0.lock().unwrap().syncs)?;
            sync()
        }
    }

    fn fails(plan: &mut Option<(u64, i32)>) -> io::Result<()> {
        match plan {
            Some((0, error)) => Err(io::Error::from_raw_os_error(*error)),
            Some((more, _)) => {
                *more -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}
