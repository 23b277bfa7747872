//! Binaries of plexd: streamed to disk, and in place only once their checksum was right. Whatever goes wrong, nothing is
//! left behind and what was there before stays.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::endpoints::ARTIFACT;
use super::{Client, ClientError, Credential, Credentials, REQUEST_TIMEOUT};
use crate::storage::StorageError;
use crate::types::Checksum;

/// How long a download may stand still; there is no limit on the whole (contract, section 2).
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// How much is gathered before it is written, in bytes.
const BLOCK: usize = 1024 * 1024;

/// A binary that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Artifact<'a> {
    /// Version, as `1.5.0`.
    pub version: &'a str,
    /// Operating system, as `linux`.
    pub os: &'a str,
    /// Architecture, as `amd64`.
    pub arch: &'a str,
    /// What it has to be, from the action that asks for it.
    pub checksum: Checksum,
}

/// A binary was not downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The control plane did not deliver it.
    #[error(transparent)]
    Call(#[from] ClientError),
    /// It cannot be kept.
    #[error("cannot keep the downloaded binary: {0}")]
    Store(#[from] StorageError),
    /// It is another one than was asked for.
    #[error("the downloaded binary is refused: its checksum is {actual}, not {expected}; it was removed")]
    Checksum {
        /// What it had to be.
        expected: Checksum,
        /// What it is.
        actual: Checksum,
    },
}

impl Client {
    /// `GET /v1/artifacts/plexd/{version}/{os}/{arch}`: downloads a binary to `destination`, mode 0600 (whoever is to
    /// run it makes it executable), and returns its length. At most 256 MiB; given up when nothing comes for 60 s.
    /// Cancelling it leaves nothing behind.
    pub async fn artifact(
        &self,
        who: &Credentials,
        wanted: &Artifact<'_>,
        destination: &Path,
    ) -> Result<u64, ArtifactError> {
        let call = ARTIFACT;
        let request = self.request(call, &[wanted.version, wanted.os, wanted.arch], Credential::Node(who))?;
        let limit = REQUEST_TIMEOUT;
        let head = timeout(limit, self.send(request)).await;
        let mut response = head.map_err(|_| ClientError::Timeout { call, limit })??;
        if response.status() != StatusCode::OK {
            let reason = format!("status {}, not 200", response.status().as_u16());
            return Err(ClientError::Protocol { call, reason }.into());
        }
        if response.content_length().is_some_and(|length| length > max_length()) {
            return Err(too_large().into());
        }
        let path = destination.to_owned();
        let mut download = off_thread(destination, move || Download::create(&path)).await?;
        loop {
            let block = self.block(&mut response).await?;
            if block.is_empty() {
                break;
            }
            if download.length + block.len() as u64 > max_length() {
                return Err(too_large().into());
            }
            download = off_thread(destination, move || download.write(&block)).await?;
        }
        let expected = wanted.checksum;
        off_thread(destination, move || download.finish(expected)).await
    }

    /// Reads until a block is full, or to the end.
    async fn block(&self, response: &mut Response) -> Result<Vec<u8>, ClientError> {
        let mut block = Vec::new();
        while block.len() < BLOCK {
            let chunk = timeout(IDLE_TIMEOUT, response.chunk())
                .await
                .map_err(|_| ClientError::Timeout { call: ARTIFACT, limit: IDLE_TIMEOUT })?
                .map_err(|error| self.transport(ARTIFACT, &error))?;
            match chunk {
                Some(chunk) => block.extend_from_slice(&chunk),
                None => break,
            }
        }
        Ok(block)
    }
}

fn max_length() -> u64 {
    ARTIFACT.max_answer as u64
}

fn too_large() -> ClientError {
    ClientError::Protocol { call: ARTIFACT, reason: format!("it is larger than {} bytes", max_length()) }
}

/// Does what waits for the disk on a thread that serves nobody else.
async fn off_thread<T, E>(
    destination: &Path,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ArtifactError>
where
    T: Send + 'static,
    E: Into<ArtifactError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(StorageError::new("write", destination, io::Error::other(error)).into()),
    }
}

/// A binary on its way to disk, beside its destination under another name; removed when dropped unfinished.
struct Download {
    file: File,
    partial: Partial,
    destination: PathBuf,
    digest: Sha256,
    length: u64,
}

/// The name it has until then.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Already renamed, or not to be helped: the next attempt takes another name.
        let _ = fs::remove_file(&self.0);
    }
}

impl Download {
    fn create(destination: &Path) -> Result<Self, StorageError> {
        let error = |error| StorageError::new("create a file to download to beside", destination, error);
        let Some(name) = destination.file_name() else {
            return Err(error(io::Error::new(io::ErrorKind::IsADirectory, "it names no file")));
        };
        let random = getrandom::u64().map_err(|source| error(io::Error::other(source)))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(format!(".{random:016x}.partial"));
        let partial = destination.with_file_name(partial);
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).map_err(error)?;
        Ok(Self {
            file,
            partial: Partial(partial),
            destination: destination.to_owned(),
            digest: Sha256::new(),
            length: 0,
        })
    }

    fn write(mut self, block: &[u8]) -> Result<Self, StorageError> {
        self.file.write_all(block).map_err(|error| StorageError::new("write", &self.partial.0, error))?;
        self.digest.update(block);
        self.length += block.len() as u64;
        Ok(self)
    }

    /// Puts it in its place, durably, if it is what was expected.
    fn finish(self, expected: Checksum) -> Result<u64, ArtifactError> {
        let Self { file, partial, destination, digest, length } = self;
        let actual = Checksum::from(<[u8; 32]>::from(digest.finalize()));
        if actual != expected {
            return Err(ArtifactError::Checksum { expected, actual });
        }
        let error = |error| StorageError::new("write", &destination, error);
        file.sync_all().map_err(error)?;
        fs::rename(&partial.0, &destination).map_err(error)?;
        // The rename itself is durable only once the directory is.
        let directory = destination.parent().filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(error)?;
        Ok(length)
    }
}
