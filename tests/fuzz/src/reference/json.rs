//! JSON as a list of tokens (RFC 8259). Strings and numbers are `serde_json`'s to judge.

use serde_json::value::RawValue;

/// Deepest nesting of arrays and objects.
const MAX_DEPTH: usize = 128;

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A member of an object: its name, decoded, and the tokens of its value.
pub type Member<'t, 'a> = (String, &'t [&'a str]);

/// Returns the tokens of a text, `None` if one of them is none.
pub fn tokens(text: &str) -> Option<Vec<&str>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(SPACE);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '{' | '}' | '[' | ']' | ':' | ',' => 1,
            '"' => string_length(rest)?,
            _ => rest.find([' ', '\t', '\r', '\n', '{', '}', '[', ']', ':', ',', '"']).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(length);
        let is_good = match first {
            '{' | '}' | '[' | ']' | ':' | ',' => true,
            '"' => decoded(token).is_some(),
            _ => serde_json::from_str::<&RawValue>(token).is_ok(),
        };
        if !is_good {
            return None;
        }
        tokens.push(token);
        rest = after.trim_start_matches(SPACE);
    }
    Some(tokens)
}

/// Returns the decoded text of a token that is a string.
pub fn decoded(token: &str) -> Option<String> {
    token.starts_with('"').then(|| serde_json::from_str(token).ok())?
}

/// Length of the string that `text` begins with, quotes included.
fn string_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Returns how many tokens the value that `tokens` begins with has; `None` if there is no value or it nests too deep.
fn value_length(tokens: &[&str]) -> Option<usize> {
    // What is open, by its closing token.
    let mut open: Vec<&str> = Vec::new();
    let mut at = 0;
    loop {
        // A value begins here.
        let token = *tokens.get(at)?;
        at += 1;
        match token {
            "{" | "[" => {
                let close = if token == "{" { "}" } else { "]" };
                open.push(close);
                if open.len() > MAX_DEPTH {
                    return None;
                }
                if *tokens.get(at)? != close {
                    at = name(tokens, at, close)?;
                    continue;
                }
                open.pop();
                at += 1;
            }
            "}" | "]" | ":" | "," => return None,
            _ => {}
        }
        // A value ended here.
        loop {
            let Some(close) = open.last().copied() else { return Some(at) };
            let token = *tokens.get(at)?;
            at += 1;
            if token == "," {
                at = name(tokens, at, close)?;
                break;
            }
            if token != close {
                return None;
            }
            open.pop();
        }
    }
}

/// Skips name and colon where a member of an object begins.
fn name(tokens: &[&str], at: usize, close: &str) -> Option<usize> {
    if close == "]" {
        return Some(at);
    }
    let is_member = tokens.get(at)?.starts_with('"') && *tokens.get(at + 1)? == ":";
    is_member.then_some(at + 2)
}

/// Returns the members of the one object that `tokens` are.
pub fn members<'t, 'a>(tokens: &'t [&'a str]) -> Option<Vec<Member<'t, 'a>>> {
    if *tokens.first()? != "{" || value_length(tokens)? != tokens.len() {
        return None;
    }
    let mut members = Vec::new();
    let mut rest = &tokens[1..];
    while rest.len() > 1 {
        let value = &rest[2..];
        let length = value_length(value)?;
        members.push((decoded(rest[0])?, &value[..length]));
        // Behind a comma, or the end.
        rest = &value[length + 1..];
    }
    Some(members)
}
