//! `plexd-ctl join`: enrols the node with a one-time token (contract, section 4). Reads the token with the caller's
//! rights, hands it to plexd-core and deletes the token file once plexd-core says that the identity is durable, or that
//! there is one already: it may have gone on with the token of an attempt that failed here. Never prints the token, and
//! refuses it as an argument.

mod prompt;

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::cli::{Global, Join};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Terminal, View, known, one_line, or_dash};

/// Longest token, in characters (contract, section 4).
const MAX_TOKEN: usize = 512;

/// Most that is read in search of a token, in bytes; white space around it is forgiven.
const MAX_INPUT: u64 = 4096;

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token file {path}: {source}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Standard input cannot be read.
    #[error("cannot read the token from standard input: {0}")]
    Input(#[source] io::Error),
    /// The prompt was left.
    #[error("no token given: interrupted")]
    Interrupted,
    /// There is nothing but white space.
    #[error("the token is empty; get one from your control plane")]
    Empty,
    /// It is too long.
    #[error("the token is longer than {MAX_TOKEN} characters; is it the right file?")]
    TooLong,
    /// It has characters that no token has.
    #[error("the token has a space or another character that no token has; is it the right file?")]
    NotPrintable,
}

/// The node is enrolled. Its fields are the stable JSON shape.
#[derive(Debug, Serialize)]
struct Joined {
    node_id: String,
    mesh_ip: Option<String>,
    /// Whether it was so before; the token was then not used now.
    already_enrolled: bool,
}

impl View for Joined {
    fn render(&self, _terminal: &Terminal) -> String {
        let (node, mesh_ip) = (one_line(&self.node_id), one_line(or_dash(self.mesh_ip.as_deref())));
        if self.already_enrolled {
            return format!("already enrolled as {node}, mesh IP {mesh_ip}; the token was not used now\n");
        }
        format!("enrolled as {node}, mesh IP {mesh_ip}\n")
    }
}

impl Joined {
    fn now(response: wire::JoinResponse) -> Self {
        Self { node_id: response.node_id, mesh_ip: known(response.mesh_ip), already_enrolled: false }
    }

    fn before(response: wire::StatusResponse) -> Self {
        let identity = response.identity.unwrap_or_default();
        Self { node_id: identity.node_id, mesh_ip: known(identity.mesh_ip), already_enrolled: true }
    }
}

/// Where the token comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Input,
    Prompt,
}

/// Enrols the node.
pub(crate) async fn run(client: Client, arguments: Join, global: &Global) -> Result<(), Failure> {
    let source = Source::choose(arguments, io::stdin().is_terminal())?;
    let token = check(&source.read()?)?;
    let joined = match (client.clone().join(&token).await, &source) {
        (Ok(response), _) => Ok(Joined::now(response)),
        (Err(Failure::AlreadyEnrolled(_)), Source::File(_)) => client.status().await.map(Joined::before),
        (Err(failure), _) => return Err(failure),
    };
    // First what matters: printing may fail, and the token is of no use any more.
    let deleted = match &source {
        Source::File(path) => {
            delete(path).map_err(|source| Failure::TokenFileKept { path: path.clone(), source })
        }
        Source::Input | Source::Prompt => Ok(()),
    };
    let told = joined.and_then(|joined| output::print(&joined, global, Timestamp::now()));
    match (deleted, told) {
        (Err(kept), Err(telling)) => {
            Err(Failure::TokenFileKeptUntold { kept: Box::new(kept), telling: Box::new(telling) })
        }
        (deleted, told) => deleted.and(told),
    }
}

impl Source {
    fn choose(arguments: Join, terminal: bool) -> Result<Self, Failure> {
        match (arguments.token_file, arguments.stdin.as_deref()) {
            (Some(path), _) if path == Path::new("-") => Ok(Self::Input),
            (Some(path), _) => Ok(Self::File(path)),
            (None, Some("-")) => Ok(Self::Input),
            (None, Some(_)) => Err(Failure::Usage(
                "a token on the command line can be seen by every user of this machine; \
                 use: plexd-ctl join --token-file FILE, or - to read it from standard input",
            )),
            (None, None) if terminal => Ok(Self::Prompt),
            (None, None) => Ok(Self::Input),
        }
    }

    fn read(&self) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        match self {
            Self::File(path) => {
                let failed = |source| TokenError::File { path: path.clone(), source };
                read(File::open(path).map_err(failed)?).map_err(failed)
            }
            Self::Input => read(io::stdin().lock()).map_err(TokenError::Input),
            Self::Prompt => prompt::ask("Token: ", &io::stdin(), &mut io::stderr()),
        }
    }
}

fn read(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(8192));
    from.take(MAX_INPUT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the token in `bytes` without the white space around it.
fn check(bytes: &[u8]) -> Result<Zeroizing<String>, TokenError> {
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(TokenError::Empty);
    }
    if token.len() > MAX_TOKEN {
        return Err(TokenError::TooLong);
    }
    let printable = token.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(token).ok().filter(|_| printable).ok_or(TokenError::NotPrintable)?;
    Ok(Zeroizing::new(text.into()))
}

/// Deletes the token file, through a link to it; what is no file (a pipe, say) holds nothing any more.
fn delete(path: &Path) -> io::Result<()> {
    if !fs::metadata(path)?.is_file() {
        return Ok(());
    }
    fs::remove_file(fs::canonicalize(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(token_file: Option<&str>, stdin: Option<&str>, terminal: bool) -> Result<Source, Failure> {
        let arguments = Join { token_file: token_file.map(PathBuf::from), stdin: stdin.map(String::from) };
        Source::choose(arguments, terminal)
    }

    #[test]
    fn the_token_comes_from_where_the_arguments_say() {
        let cases = [
            (choose(Some("/f"), None, true), Source::File("/f".into())),
            (choose(Some("-"), None, true), Source::Input),
            (choose(None, Some("-"), true), Source::Input),
            (choose(None, None, false), Source::Input),
            (choose(None, None, true), Source::Prompt),
        ];
        for (chosen, expected) in cases {
            assert_eq!(chosen.unwrap(), expected);
        }
    }

    #[test]
    fn a_token_as_an_argument_is_refused_without_showing_it() {
        let failure = choose(None, Some("plx_enroll_secret"), true).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(!failure.to_string().contains("plx_enroll"), "{failure}");
    }

    #[test]
    fn tokens_are_trimmed_and_limited_to_printable_ascii() {
        assert_eq!(check(b" \tplx_enroll_1\r\n").unwrap().as_str(), "plx_enroll_1");
        assert_eq!(check(&[b'a'; 512]).unwrap().len(), 512);
        assert!(matches!(check(b"\n"), Err(TokenError::Empty)));
        assert!(matches!(check(&[b'a'; 513]), Err(TokenError::TooLong)));
        for bad in [&b"a b"[..], b"a\nb", b"a\x00", "ä".as_bytes(), b"\xff"] {
            assert!(matches!(check(bad), Err(TokenError::NotPrintable)), "{bad:?}");
        }
    }

    #[test]
    fn endless_input_is_not_read_to_its_end() {
        assert!(matches!(check(&read(io::repeat(b'a')).unwrap()), Err(TokenError::TooLong)));
    }

    #[test]
    fn the_token_file_behind_a_link_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("token"), folder.path().join("link"));
        fs::write(&file, "t").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        delete(&link).unwrap();
        assert!(!file.exists());
    }
}
