//! When this program was built, at the earliest: a fixed date of the source, so that the same source makes the same
//! program, or `SOURCE_DATE_EPOCH` where a packager sets it. Reads no clock when built.

use jiff::Timestamp;

/// The last release, or the beginning of the work on the next. To be raised with each release (a test compares it with
/// CHANGELOG.md), never into the future.
const RELEASED: &str = "2026-11-21T00:00:00Z";

/// Seconds since 1970, if they were set when this was compiled (<https://reproducible-builds.org/specs/source-date-epoch/>).
const SOURCE_DATE_EPOCH: Option<&str> = option_env!("SOURCE_DATE_EPOCH");

/// Returns a time before which this program cannot run.
pub fn built() -> Timestamp {
    later_of(RELEASED, SOURCE_DATE_EPOCH)
}

fn later_of(released: &str, epoch: Option<&str>) -> Timestamp {
    let released = released.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    let epoch = epoch.and_then(|text| Timestamp::from_second(text.trim().parse().ok()?).ok());
    epoch.map_or(released, |epoch| released.max(epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_no_earlier_than_the_newest_release() {
        let changes = include_str!("../../../CHANGELOG.md");
        let heads = changes.lines().filter_map(|line| line.strip_prefix("## [")?.split_once("] - "));
        for (version, date) in heads {
            assert!(date.trim() <= &RELEASED[..10], "RELEASED is before version {version}: {date}");
        }
    }

    #[test]
    fn the_build_is_in_the_past_and_no_earlier_than_the_release() {
        assert!(RELEASED.parse::<Timestamp>().is_ok());
        assert!(built() <= Timestamp::now());
        for (epoch, expected) in [
            (None, "2026-11-21T00:00:00Z"),
            (Some("1"), "2026-11-21T00:00:00Z"),
            (Some("soon"), "2026-11-21T00:00:00Z"),
            (Some("1800000000"), "2027-01-15T08:00:00Z"),
        ] {
            assert_eq!(later_of("2026-11-21T00:00:00Z", epoch).to_string(), expected);
        }
    }
}
