//! The bearer token of TCP callers: read from its file by core alone, at start and when asked again. Only its SHA-256 is
//! kept. A file that cannot hold a token, or that others may read or change, is refused with the way out.

use std::fmt;
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Largest token file, in bytes.
const MAX_FILE: u64 = 4096;

/// SHA-256 of the bearer token of TCP callers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ApiToken([u8; 32]);

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(..)")
    }
}

/// The token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiTokenError {
    /// It cannot be read.
    #[error("cannot read node_api.http_token_file {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a pipe or something else.
    #[error("node_api.http_token_file {path} is not a regular file; name the file that holds the token", path = .0.display())]
    NotAFile(PathBuf),
    /// Everybody can read it, or write it and so choose the token.
    #[error("node_api.http_token_file {path} can be read or changed by others; run: chmod 600 {path}", path = .0.display())]
    Exposed(PathBuf),
    /// It holds no token that a client could present.
    #[error("node_api.http_token_file {path} {why}; run: openssl rand -base64 32 > {path}", path = .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content; nothing of it is shown.
        why: &'static str,
    },
}

impl ApiToken {
    /// Reads the token file; line ends at its end are no part of the token.
    ///
    /// # Errors
    /// If the file cannot be read, or is refused.
    pub fn load(path: &Path) -> Result<Self, ApiTokenError> {
        let read = |source| ApiTokenError::Read { path: path.into(), source };
        // Not blocking: to open a pipe must not wait for somebody who writes.
        let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let file = std::fs::File::options().read(true).custom_flags(nonblocking).open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(ApiTokenError::NotAFile(path.into()));
        }
        if metadata.permissions().mode() & 0o006 != 0 {
            return Err(ApiTokenError::Exposed(path.into()));
        }
        let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE + 1).unwrap_or_default()));
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(read)?;
        let token = token_of(&text).map_err(|why| ApiTokenError::Unusable { path: path.into(), why })?;
        Ok(Self(Sha256::digest(token).into()))
    }

    /// Compares a presented token, in constant time.
    pub(super) fn matches(&self, presented: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        digest.ct_eq(&self.0).into()
    }

    /// Returns the digest, with which the sidecar judges requests that are no secrets.
    pub(super) fn sha256(&self) -> [u8; 32] {
        self.0
    }

    /// Makes the token `text`.
    #[cfg(test)]
    pub(super) fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }
}

/// Returns the token in a file, or what is wrong with it: it has to arrive as it is in an HTTP header.
fn token_of(file: &[u8]) -> Result<&[u8], &'static str> {
    if file.len() as u64 > MAX_FILE {
        return Err("is larger than 4096 bytes");
    }
    let end = file.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    let token = &file[..end];
    match token {
        [] => Err("is empty"),
        [b' ' | b'\t', ..] | [.., b' ' | b'\t'] => {
            Err("begins or ends with a blank, which HTTP takes off a header")
        }
        _ if !token.iter().all(|byte| matches!(byte, b' '..=b'~')) => {
            Err("has more than one line, or characters other than visible ASCII, which HTTP does not carry")
        }
        _ => Ok(token),
    }
}

/// The token and where it comes from. Whoever holds its receiver sees when it changes.
#[derive(Debug)]
pub struct TokenSource {
    file: Option<PathBuf>,
    token: watch::Sender<Option<ApiToken>>,
}

impl TokenSource {
    /// Reads the file, if there is one. To be called before privileges are dropped.
    ///
    /// # Errors
    /// If the file cannot be read, or is refused.
    pub fn load(file: Option<&Path>) -> Result<Self, ApiTokenError> {
        let token = file.map(ApiToken::load).transpose()?;
        Ok(Self { file: file.map(Into::into), token: watch::Sender::new(token) })
    }

    /// Returns the token as it is and will be; `None` if there is none.
    pub fn watch(&self) -> watch::Receiver<Option<ApiToken>> {
        self.token.subscribe()
    }

    /// Reads the file again; returns whether the token is another one now. If it cannot be used, the one before stays.
    ///
    /// # Errors
    /// If the file cannot be read by this process as it is now, or is refused.
    pub fn reload(&self) -> Result<bool, ApiTokenError> {
        let Some(file) = &self.file else { return Ok(false) };
        let token = ApiToken::load(file)?;
        Ok(self.token.send_if_modified(|known| known.replace(token) != Some(token)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    fn token_file(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api-token");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn the_token_is_the_content_without_line_ends() {
        for text in ["s3cret", "s3cret\n", "s3cret\r\n", "s3cret\n\n\r\n"] {
            let (_folder, path) = token_file(text.as_bytes(), 0o640);
            let token = ApiToken::load(&path).unwrap();
            assert!(token.matches(b"s3cret"), "{text:?}");
            for other in [&b"s3cret\n"[..], b"s3cre", b"s3cret ", b""] {
                assert!(!token.matches(other), "{text:?} {other:?}");
            }
        }
        let long = "x".repeat(4096);
        let (_folder, path) = token_file(long.as_bytes(), 0o600);
        assert!(ApiToken::load(&path).unwrap().matches(long.as_bytes()));
    }

    #[test]
    fn a_token_file_that_is_open_or_cannot_be_a_token_is_refused_with_the_way_out() {
        let table: [(&[u8], u32, &str, &str); 14] = [
            (b"hush", 0o644, "by others", "chmod 600"),
            (b"hush", 0o602, "by others", "chmod 600"),
            (b"", 0o600, "is empty", "openssl rand"),
            (b"\r\n\n", 0o600, "is empty", "openssl rand"),
            (b" hush\n", 0o600, "a blank", "openssl rand"),
            (b"hush \n", 0o600, "a blank", "openssl rand"),
            (b"\thush", 0o600, "a blank", "openssl rand"),
            (b"hush\nhush\n", 0o600, "more than one line", "openssl rand"),
            (b"hush\rhush", 0o600, "more than one line", "openssl rand"),
            (b"hush\thush", 0o600, "visible ASCII", "openssl rand"),
            (b"hush\0hush", 0o600, "visible ASCII", "openssl rand"),
            (b"hush\xc3\xa9", 0o600, "visible ASCII", "openssl rand"),
            (&[b'x'; 4097], 0o600, "larger than 4096 bytes", "openssl rand"),
            (&[b'\n'; 5000], 0o600, "larger than 4096 bytes", "openssl rand"),
        ];
        for (text, mode, what, way_out) in table {
            let (_folder, path) = token_file(text, mode);
            let error = ApiToken::load(&path).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(way_out), "{error}");
            assert!(error.contains("http_token_file") && !error.contains("hush"), "{error}");
        }
        let (folder, path) = token_file(b"", 0o600);
        fs::remove_file(&path).unwrap();
        assert!(ApiToken::load(&path).unwrap_err().to_string().contains("cannot read"));
        let not_a_file = |path: &Path| ApiToken::load(path).unwrap_err().to_string();
        assert!(not_a_file(folder.path()).contains("not a regular file"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(not_a_file(&path).contains("not a regular file"), "and does not wait");
    }

    #[test]
    fn a_changed_file_is_told_and_one_that_is_refused_leaves_the_token_as_it_was() {
        let (_folder, path) = token_file(b"one\n", 0o600);
        let source = TokenSource::load(Some(&path)).unwrap();
        let mut seen = source.watch();
        assert!(!source.reload().unwrap() && !seen.has_changed().unwrap());
        fs::write(&path, "two\n").unwrap();
        assert!(source.reload().unwrap() && seen.has_changed().unwrap());
        assert!(seen.borrow_and_update().unwrap().matches(b"two"));
        fs::write(&path, "").unwrap();
        assert!(source.reload().is_err() && !seen.has_changed().unwrap());
        assert!(seen.borrow().unwrap().matches(b"two"));
        let none = TokenSource::load(None).unwrap();
        assert!(!none.reload().unwrap() && none.watch().borrow().is_none());
    }
}
