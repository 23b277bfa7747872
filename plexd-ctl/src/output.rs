//! How answers are printed: tables for people, JSON for programs. A [`View`] is what a command shows; its JSON shape is
//! stable (a field is never removed or renamed). What comes from elsewhere never reaches the terminal raw.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};

use crate::cli::{Format, Global};
use crate::failure::Failure;

/// What a command shows.
pub(crate) trait View: Serialize {
    /// Renders the view for people, every line ended.
    fn render(&self, terminal: &Terminal) -> String;
}

/// What rendering depends on, besides the view.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// The time that ages count from.
    pub(crate) now: Timestamp,
    /// Whether to use colours.
    pub(crate) colours: Colours,
}

/// Whether to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    /// None.
    Plain,
    /// The terminal's sixteen.
    Ansi,
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Someone should look.
    Bad,
}

impl Terminal {
    /// Returns `text` in the colour of `tone`.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        match (self.colours, tone) {
            (Colours::Plain, _) => text.into(),
            (Colours::Ansi, Tone::Good) => format!("\x1b[32m{text}\x1b[0m"),
            (Colours::Ansi, Tone::Bad) => format!("\x1b[31m{text}\x1b[0m"),
        }
    }
}

/// Prints a view as the options say.
pub(crate) fn print(view: &impl View, global: &Global, now: Timestamp) -> Result<(), Failure> {
    let text = match global.format() {
        Format::Json => json(view)?,
        Format::Table => view.render(&terminal(global, now)),
    };
    write(&text).map(drop)
}

/// Returns the terminal of the options.
pub(crate) fn terminal(global: &Global, now: Timestamp) -> Terminal {
    Terminal { now, colours: colours(global) }
}

/// Whether anybody still reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// As far as is known.
    Present,
    /// The reader has seen enough: `plexd-ctl peers | head`.
    Gone,
}

/// Writes `text` to standard output.
pub(crate) fn write(text: &str) -> Result<Reader, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(source) => Err(Failure::Local { operation: "write to standard output", source }),
        Ok(()) => Ok(Reader::Present),
    }
}

/// Renders a view for programs: one indented JSON value and a newline.
pub(crate) fn json(view: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(view)
        .map_err(|error| Failure::Local { operation: "write JSON", source: error.into() })?;
    Ok(text + "\n")
}

/// Renders a view for programs that read line by line: one JSON value and a newline.
pub(crate) fn json_line(view: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(view)
        .map_err(|error| Failure::Local { operation: "write JSON", source: error.into() })?;
    Ok(text + "\n")
}

fn colours(global: &Global) -> Colours {
    // https://no-color.org: present and not empty.
    let unwanted = global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if unwanted || !io::stdout().is_terminal() { Colours::Plain } else { Colours::Ansi }
}

/// Lays `rows` out under `header`, each line ended.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| one_line(&cell)).to_vec()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Makes `text` safe to print within a line: whatever could move the cursor or change the terminal is escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => safe.push(' '),
            character if character.is_control() || is_invisible(character) => {
                safe.extend(character.escape_unicode());
            }
            character => safe.push(character),
        }
    }
    safe
}

/// Tells the characters that reorder or hide text (Unicode bidirectional controls, zero-width marks).
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Returns `text`, or nothing when it is empty, as proto3 has it for what is unknown.
pub(crate) fn known(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Returns what a table shows for `text`, `-` when it is unknown.
pub(crate) fn or_dash(text: Option<&str>) -> &str {
    text.unwrap_or("-")
}

/// A moment: RFC 3339 in JSON, an age in tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(Timestamp);

impl Moment {
    /// Returns the moment `age_ms` milliseconds before `now`.
    pub(crate) fn before(now: Timestamp, age_ms: u64) -> Self {
        let age = SignedDuration::from_millis(i64::try_from(age_ms).unwrap_or(i64::MAX));
        Self(now.checked_sub(age).unwrap_or(Timestamp::MIN))
    }

    /// Returns the moment that many milliseconds after 1970 (UTC), or before if negative.
    pub(crate) fn at_unix_ms(milliseconds: i64) -> Self {
        Self(Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MIN))
    }

    /// Returns how long ago that was, as people say it.
    pub(crate) fn ago(self, now: Timestamp) -> String {
        let seconds = now.duration_since(self.0).as_secs();
        format!("{} ago", span(u64::try_from(seconds).unwrap_or(0)))
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Says how many there are, as people do: `1 rule`, `2 rules`.
pub(crate) fn counted(number: impl Into<u64>, one: &str, many: &str) -> String {
    let number = number.into();
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Returns `seconds` as people say them, by the two largest units.
pub(crate) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// Returns a number of bytes as people say it, in binary units.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit, so that no float is needed; the largest u64 is 15.9 EiB.
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10_240 {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_by_their_two_largest_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3599, "59m 59s"), (7260, "2h 1m"), (90_061, "1d 1h")]
        {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn sizes_are_told_in_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (1_048_575, "1023.9 KiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn moments_are_rfc_3339_in_json_and_ages_for_people() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let moment = Moment::before(now, 12_345);
        assert_eq!(serde_json::to_string(&moment).unwrap(), "\"2026-11-21T11:59:47.655Z\"");
        assert_eq!(moment.ago(now), "12s ago");
        assert_eq!(Moment::before(now, u64::MAX), Moment(Timestamp::MIN));
    }

    #[test]
    fn nothing_from_elsewhere_reaches_the_terminal_raw() {
        assert_eq!(one_line("a\x1b[2Jb\nc\u{202e}d\u{9b}"), "a\\u{1b}[2Jb c\\u{202e}d\\u{9b}");
    }

    #[test]
    fn colours_are_left_out_when_plain() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(Terminal { now, colours: Colours::Plain }.paint(Tone::Good, "up"), "up");
        assert_eq!(Terminal { now, colours: Colours::Ansi }.paint(Tone::Bad, "down"), "\x1b[31mdown\x1b[0m");
    }
}
