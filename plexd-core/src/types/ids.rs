//! Node ids.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// Longest id, in bytes.
const MAX_LENGTH: usize = 128;

/// Id of a node, this one or a peer: a letter, then letters, digits, `_`, `-`, `.` or `:`, 128 at most in all. That it
/// begins with a letter keeps it apart from an address (contract, section 5).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Box<str>);

/// The text is not a node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a node id (a letter, then at most 127 letters, digits, '_', '-', '.' or ':')")]
pub struct NodeIdError(String);

impl NodeId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        let starts_with_letter = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if starts_with_letter && text.len() <= MAX_LENGTH && text.bytes().all(allowed) {
            return Ok(Self(text.into()));
        }
        Err(NodeIdError(text.chars().take(MAX_LENGTH).collect()))
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_begin_with_a_letter_and_cannot_be_paths() {
        for good in ["n_abc123", "edge-us-west-42", "a", &"n".repeat(128)] {
            assert!(good.parse::<NodeId>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "10.0.0.1", "n/../x", "n b", "né", "*", &"n".repeat(129)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}
