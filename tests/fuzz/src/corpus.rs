//! The inputs in the tree: `corpus/TARGET/*`, one file each. Those whose names begin with `find-` once broke a rule.

use std::path::PathBuf;

/// An input in the tree.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its file.
    pub path: PathBuf,
    /// What is in it.
    pub bytes: Vec<u8>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the inputs of a target, by name. Panics if they cannot be read.
pub fn inputs(target: &str) -> Vec<Input> {
    let folder = folder().join("corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a readable folder").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Input { path, bytes }
    };
    paths.into_iter().map(read).collect()
}

/// Returns the words of the dictionary, a file in libFuzzer's format. Panics if it cannot be read.
pub fn words() -> Vec<Vec<u8>> {
    let path = folder().join("dictionary");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let quoted = line.strip_prefix('"').and_then(|line| line.strip_suffix('"'));
            unescape(quoted.unwrap_or_else(|| panic!("{}: {line}", path.display())))
        })
        .collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut word = Vec::new();
    while let Some(byte) = bytes.next() {
        match (byte, byte == b'\\') {
            (_, true) => match bytes.next() {
                Some(b'x') => {
                    let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                    word.push(u8::from_str_radix(&digits, 16).expect("\\x and two digits"));
                }
                Some(escaped) => word.push(escaped),
                None => panic!("a lone backslash"),
            },
            (byte, false) => word.push(byte),
        }
    }
    word
}
