//! A strict JSON scanner (RFC 8259) that keeps the spelling of values: what is signed is text. Nesting is bounded.

use std::collections::HashMap;

/// Deepest nesting of arrays and objects.
const MAX_DEPTH: usize = 128;

/// Returns the members of the object that is `text`: decoded names, values as spelled. `None` if the text is not one
/// JSON object, or has a member twice.
pub(super) fn members(text: &str) -> Option<HashMap<String, &str>> {
    let mut scanner = Scanner { text, at: 0 };
    let mut members = HashMap::new();
    scanner.space();
    scanner.object(0, |name, value| members.insert(decode(name)?, value).is_none().then_some(()))?;
    scanner.space();
    (scanner.at == text.len()).then_some(members)
}

/// Decodes a string as spelled. `None` if the value is not a string.
pub(super) fn decode(value: &str) -> Option<String> {
    value.starts_with('"').then(|| serde_json::from_str(value).ok())?
}

/// Writes a string with the fewest escapes.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Writes a valid value without insignificant white space, and with `<`, `>`, `&`, U+2028 and U+2029 escaped.
pub(super) fn write_compact(value: &str, out: &mut Vec<u8>) {
    let mut in_string = false;
    let mut escaped = false;
    for character in value.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
            }
            ' ' | '\t' | '\r' | '\n' if !in_string => {}
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek() == Some(byte)).then(|| self.at += 1)
    }

    fn space(&mut self) {
        self.skip(|byte| b" \t\r\n".contains(&byte));
    }

    /// Skips the bytes that are `wanted` and returns how many there were.
    fn skip(&mut self, wanted: impl Fn(u8) -> bool) -> usize {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        self.at - start
    }

    /// Scans a value within `depth` others.
    fn value(&mut self, depth: usize) -> Option<&'a str> {
        let start = self.at;
        match self.peek()? {
            b'{' => self.object(depth, |_, _| Some(()))?,
            b'[' => self.array(depth)?,
            b'"' => {
                self.string()?;
            }
            b't' => self.word("true")?,
            b'f' => self.word("false")?,
            b'n' => self.word("null")?,
            _ => self.number()?,
        }
        Some(&self.text[start..self.at])
    }

    /// Scans an object and shows each member, name and value as spelled, to `member`, which may refuse it.
    fn object(&mut self, depth: usize, mut member: impl FnMut(&'a str, &'a str) -> Option<()>) -> Option<()> {
        self.take(b'{').filter(|()| depth < MAX_DEPTH)?;
        self.space();
        if self.take(b'}').is_some() {
            return Some(());
        }
        loop {
            let name = self.string()?;
            self.space();
            self.take(b':')?;
            self.space();
            let value = self.value(depth + 1)?;
            member(name, value)?;
            self.space();
            if self.take(b'}').is_some() {
                return Some(());
            }
            self.take(b',')?;
            self.space();
        }
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.take(b'[').filter(|()| depth < MAX_DEPTH)?;
        self.space();
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            self.value(depth + 1)?;
            self.space();
            if self.take(b']').is_some() {
                return Some(());
            }
            self.take(b',')?;
            self.space();
        }
    }

    fn string(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.take(b'"')?;
        loop {
            self.skip(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(&self.text[start..self.at]);
                }
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    /// Scans an escape; a surrogate has to be one of a pair.
    fn escape(&mut self) -> Option<()> {
        self.take(b'\\')?;
        let kind = self.peek()?;
        self.at += 1;
        match kind {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => match self.code_unit()? {
                0xd800..0xdc00 => {
                    self.take(b'\\')?;
                    self.take(b'u')?;
                    (0xdc00..0xe000).contains(&self.code_unit()?).then_some(())
                }
                0xdc00..0xe000 => None,
                _ => Some(()),
            },
            _ => None,
        }
    }

    fn code_unit(&mut self) -> Option<u16> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u16::from_str_radix(digits, 16).ok())?
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn number(&mut self) -> Option<()> {
        let digit = |byte: u8| byte.is_ascii_digit();
        let _minus = self.take(b'-');
        if self.take(b'0').is_none() && self.skip(digit) == 0 {
            return None;
        }
        if self.take(b'.').is_some() && self.skip(digit) == 0 {
            return None;
        }
        if self.take(b'e').or_else(|| self.take(b'E')).is_some() {
            let _sign = self.take(b'+').or_else(|| self.take(b'-'));
            if self.skip(digit) == 0 {
                return None;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_value(text: &str) -> bool {
        members(&format!("{{\"v\":{text}}}")).is_some()
    }

    #[test]
    fn the_grammar_is_that_of_rfc_8259() {
        for good in [
            "0",
            "-0",
            "1.0",
            "1e3",
            "-1.5E-7",
            "0.10",
            "true",
            "null",
            "[]",
            "{ }",
            "[1 ,\t2\r\n]",
            r#""\u00e9\/""#,
            r#""\ud83d\udd11""#,
            "\"\u{7f}\u{2028}\"",
            r#"{"a":{"a":1,"a":2}}"#,
        ] {
            assert!(is_value(good), "{good}");
        }
        for bad in [
            "",
            "01",
            "+1",
            "-",
            ".5",
            "1.",
            "1e",
            "1e+",
            "NaN",
            "True",
            "nul",
            "[1,]",
            "[,]",
            "{,}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\"}",
            "'a'",
            "\"\t\"",
            r#""\x""#,
            r#""\u00g0""#,
            r#""\u00""#,
            r#""\u+123""#,
            r#""\ud83d""#,
            r#""\udd11""#,
            r#""\ud83d\ud83d""#,
            r#""\ud83dx""#,
            "\"",
            "[1 2]",
            "\u{a0}1",
            "1\u{0}",
            "/*x*/1",
        ] {
            assert!(!is_value(bad), "{bad}");
        }
        for bad in ["", "[]", "1", "{}{}", "{} x", "\u{feff}{}", r#"{"a":1,"\u0061":2}"#] {
            assert!(members(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(is_value(&nested(MAX_DEPTH - 1)));
        assert!(!is_value(&nested(MAX_DEPTH)));
        assert!(!is_value(&"[".repeat(1_000_000)));
    }

    #[test]
    fn strings_are_written_with_the_fewest_escapes() {
        let text = "\"\\/\u{8}\u{c}\n\r\t\u{0}\u{1f}\u{7f}<>&\u{2028}é🔑";
        let mut out = Vec::new();
        write_string(text, &mut out);
        assert_eq!(
            out,
            b"\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f<>&\xe2\x80\xa8\xc3\xa9\xf0\x9f\x94\x91\""
        );
        assert_eq!(decode(std::str::from_utf8(&out).expect("UTF-8")).as_deref(), Some(text));
    }

    #[test]
    fn values_are_compacted_outside_strings_only() {
        let mut out = Vec::new();
        write_compact("{ \"a b\\\" <\" : [ 1.0 ,\n\"\\\\\" , \"\\u00e9 \u{2029}\" ] }", &mut out);
        assert_eq!(String::from_utf8(out).expect("UTF-8"), r#"{"a b\" \u003c":[1.0,"\\","\u00e9 \u2029"]}"#);
    }
}
