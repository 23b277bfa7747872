//! The one-time bootstrap token: where it may be (contract, section 4), and what a token looks like.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::config::TokenSources;

/// Longest token, in characters.
const MAX_LENGTH: usize = 512;

/// Most tokens that are known to have been tried.
const MAX_TRIED: usize = 16;

/// Name of the systemd credential.
const CREDENTIAL: &str = "bootstrap-token";

/// A bootstrap token: 1 to 512 printable ASCII characters.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Token(String);

impl Token {
    /// Parses a token, without the white space around it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text.to_owned()));
        }
        Err(TokenError)
    }

    /// Returns the text, for the registration request only.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The text is not a token. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bootstrap token is 1 to 512 printable ASCII characters without spaces")]
pub struct TokenError;

/// What was found where tokens may be.
#[derive(Debug)]
pub enum TokenLookup {
    /// A token.
    Found(Token),
    /// None anywhere.
    Missing,
    /// There is one, or there should be, and it cannot be used: what is wrong and the way out.
    Unusable(String),
}

/// Looks for tokens again, once the control plane refuses the identity: somebody may have put a new one there. As the
/// process has given root up, it sees only what user plexd-core can read. A token is tried once.
#[derive(Debug)]
pub struct TokenSearch {
    sources: TokenSources,
    period: Duration,
    tried: VecDeque<[u8; 32]>,
}

impl TokenSearch {
    /// Searches `sources`, every `period`.
    pub fn new(sources: TokenSources, period: Duration) -> Self {
        Self { sources, period, tried: VecDeque::new() }
    }

    /// Returns how often to look.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Notes that a token was used, or refused: it is not found again.
    pub fn tried(&mut self, token: &Token) {
        if self.tried.len() == MAX_TRIED {
            self.tried.pop_front();
        }
        self.tried.push_back(digest(token));
    }

    /// Looks for a token that was not tried yet.
    ///
    /// # Errors
    /// What is in the way, and the way out.
    pub fn look(&self, env: impl Fn(&str) -> Option<String>) -> Result<Token, String> {
        match find_but(&self.sources, env, &|token| self.tried.contains(&digest(token))) {
            TokenLookup::Found(token) => Ok(token),
            TokenLookup::Unusable(problem) => Err(problem),
            TokenLookup::Missing => Err(format!(
                "there is no new bootstrap token; put one into {} so that user plexd-core can read it, or run: plexd-ctl join",
                self.sources.file.display()
            )),
        }
    }
}

fn digest(token: &Token) -> [u8; 32] {
    Sha256::digest(token.as_str()).into()
}

/// Looks for the token: systemd credential, file, environment. To be called before privileges are dropped, as the file
/// is root's.
pub fn find(sources: &TokenSources, env: impl Fn(&str) -> Option<String>) -> TokenLookup {
    find_but(sources, env, &|_| false)
}

/// Looks for a token that is not one of those that `was_tried` knows.
fn find_but(
    sources: &TokenSources,
    env: impl Fn(&str) -> Option<String>,
    was_tried: &dyn Fn(&Token) -> bool,
) -> TokenLookup {
    let is_known = |lookup: &TokenLookup| matches!(lookup, TokenLookup::Found(token) if was_tried(token));
    let mut any_tried = false;
    if let Some(directory) = env("CREDENTIALS_DIRECTORY") {
        match from_file(&Path::new(&directory).join(CREDENTIAL)) {
            // SetCredential= with nothing in it is how a unit makes a credential optional.
            Lookup::Missing | Lookup::Empty => {}
            Lookup::Is(lookup) if is_known(&lookup) => any_tried = true,
            Lookup::Is(lookup) => return lookup,
        }
    }
    match from_file(&sources.file) {
        Lookup::Is(lookup) if is_known(&lookup) => any_tried = true,
        Lookup::Is(lookup) => return lookup,
        Lookup::Empty => {
            let path = sources.file.display();
            return TokenLookup::Unusable(format!("token file {path} is empty; write the token into it"));
        }
        Lookup::Missing => {}
    }
    if let Some(text) = env(&sources.env).map(Zeroizing::new) {
        let lookup = Token::parse(&text).map_or_else(
            |error| {
                TokenLookup::Unusable(format!(
                    "the token in the environment ({}) is unusable: {error}",
                    sources.env
                ))
            },
            TokenLookup::Found,
        );
        if !is_known(&lookup) {
            return lookup;
        }
        any_tried = true;
    }
    if any_tried {
        return TokenLookup::Missing;
    }
    if sources.file_configured {
        let path = sources.file.display();
        return TokenLookup::Unusable(format!(
            "token file {path} does not exist; put a token there and restart, or run: plexd-ctl join"
        ));
    }
    TokenLookup::Missing
}

enum Lookup {
    Is(TokenLookup),
    Empty,
    Missing,
}

fn from_file(path: &Path) -> Lookup {
    let text = match read_bounded(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Lookup::Missing,
        Err(error) => return Lookup::Is(TokenLookup::Unusable(unreadable(path, &error))),
    };
    if text.trim().is_empty() {
        return Lookup::Empty;
    }
    Lookup::Is(Token::parse(&text).map_or_else(
        |error| TokenLookup::Unusable(format!("token file {} is unusable: {error}", path.display())),
        TokenLookup::Found,
    ))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!(
        "token file {} cannot be read: {error}; make it a file that plexd-core can read, or run: plexd-ctl join --token-file {0}",
        path.display()
    )
}

fn read_bounded(path: &Path) -> io::Result<Zeroizing<String>> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path)?;
    file.take(64 * 1024).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(file: &Path) -> TokenSources {
        TokenSources { file: file.into(), file_configured: true, env: "PLEXD_BOOTSTRAP_TOKEN".into() }
    }

    fn found(lookup: &TokenLookup) -> Option<&str> {
        match lookup {
            TokenLookup::Found(token) => Some(token.as_str()),
            _ => None,
        }
    }

    fn problem(lookup: TokenLookup) -> String {
        match lookup {
            TokenLookup::Unusable(problem) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_credential_comes_before_the_file_and_the_file_before_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let environment = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(folder.path().display().to_string()),
            "PLEXD_BOOTSTRAP_TOKEN" => Some(" from-env ".into()),
            _ => None,
        };
        assert_eq!(found(&find(&sources(&file), environment)), Some("from-env"));
        std::fs::write(&file, "from-file\n").unwrap();
        assert_eq!(found(&find(&sources(&file), environment)), Some("from-file"));
        std::fs::write(folder.path().join(CREDENTIAL), "").unwrap();
        assert_eq!(found(&find(&sources(&file), environment)), Some("from-file"));
        std::fs::write(folder.path().join(CREDENTIAL), "from-credential").unwrap();
        assert_eq!(found(&find(&sources(&file), environment)), Some("from-credential"));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert!(problem(find(&sources(&file), |_| None)).contains("does not exist; put a token there"));
        std::fs::write(&file, "\n").unwrap();
        assert!(problem(find(&sources(&file), |_| None)).contains("is empty"));
        std::fs::write(&file, "two words").unwrap();
        let message = problem(find(&sources(&file), |_| None));
        assert!(message.contains("1 to 512 printable") && !message.contains("two words"), "{message}");
        assert!(problem(find(&sources(folder.path()), |_| None)).contains("cannot be read"));
    }

    #[test]
    fn a_token_that_was_tried_is_passed_over_for_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let credential = folder.path().join(CREDENTIAL);
        let environment = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(folder.path().display().to_string()),
            "PLEXD_BOOTSTRAP_TOKEN" => Some("from-env".into()),
            _ => None,
        };
        let mut search = TokenSearch::new(sources(&file), Duration::from_mins(1));
        std::fs::write(&credential, "from-credential").unwrap();
        std::fs::write(&file, "from-file").unwrap();
        for expected in ["from-credential", "from-file", "from-env"] {
            let token = search.look(environment).unwrap();
            assert_eq!(token.as_str(), expected);
            search.tried(&token);
        }
        let problem = search.look(environment).unwrap_err();
        assert!(problem.contains("put one into ") && problem.contains("plexd-ctl join"), "{problem}");
        std::fs::write(&file, "").unwrap();
        assert!(search.look(environment).unwrap_err().contains("is empty; write the token into it"));
        std::fs::write(&file, "another").unwrap();
        assert_eq!(search.look(environment).unwrap().as_str(), "another");
        for n in 0..MAX_TRIED {
            search.tried(&Token::parse(&n.to_string()).unwrap());
        }
        assert_eq!(search.tried.len(), MAX_TRIED);
    }

    #[test]
    fn tokens_are_printable_and_bounded() {
        assert!(Token::parse(&"x".repeat(512)).is_ok());
        for bad in ["", "  ", "a b", "tab\tbed", "ü", &"x".repeat(513)] {
            assert_eq!(Token::parse(bad), Err(TokenError));
        }
        assert_eq!(format!("{:?}", Token::parse("secret").unwrap()), "Token(..)");
    }
}
