//! Classes of addresses as a map of intervals: the kernel finds the one an address is in among thousands, and gives the
//! address that names its class. Addresses of the class that is the rest are in no interval.

use std::net::IpAddr;

use super::data::Data;
use super::layout::{address_bytes, address_type, class_bytes, class_type};
use super::maps::{At, Element, Extra, Kind, Place, Stored};
use super::numbers::{ELEMENT_IS_END, SET_IS_INTERVAL, SET_IS_MAP};
use crate::policy::table::{Classes, Family};

/// Addresses one after the other that are of the same class.
#[derive(Clone, Copy)]
struct Interval {
    class: IpAddr,
    first: IpAddr,
    /// The first address after it; `None` if it goes on to the last there is.
    end: Option<IpAddr>,
}

/// Returns the map of a division into classes.
pub(super) fn stored(classes: &Classes) -> Stored<'_> {
    let key_length = match classes.family {
        Family::V4 => 4,
        Family::V6 => 16,
    };
    let kind = Kind {
        flags: SET_IS_MAP | SET_IS_INTERVAL,
        key_length,
        data_type: class_type(classes.family),
        data_length: 4 + key_length,
        extra: Extra::Nothing,
    };
    let key_type = address_type(classes.family);
    let rest = Element::rest(Data::Value(class_bytes(classes.rest)));
    let elements = intervals(classes).flat_map(elements).chain([rest]);
    Stored { name: &classes.name, kind, key_type, size: None, elements: Box::new(elements) }
}

/// Returns the intervals in order; starts that do not begin another class begin nothing.
fn intervals(classes: &Classes) -> impl Iterator<Item = Interval> {
    let mut starts = classes.starts.iter().peekable();
    let runs = std::iter::from_fn(move || {
        let (first, class) = starts.next()?;
        while starts.next_if(|(_, next)| *next == class).is_some() {}
        Some(Interval { class: *class, first: *first, end: starts.peek().map(|(next, _)| **next) })
    });
    runs.filter(|interval| interval.class != classes.rest)
}

/// Returns an interval's elements. Where one interval ends and another begins, the end comes first.
fn elements<'a>(interval: Interval) -> impl Iterator<Item = Element<'a>> {
    let Interval { class, first, end } = interval;
    let start = Element {
        at: At::Start(first),
        place: Place { key: address_bytes(first), flags: 0 },
        data: Some(Data::Value(class_bytes(class))),
        rule: None,
    };
    let end = end.map(|end| Element {
        at: At::End(end),
        place: Place { key: address_bytes(end), flags: ELEMENT_IS_END },
        data: None,
        rule: None,
    });
    [start].into_iter().chain(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_class_are_intervals_and_the_rest_is_between_them() {
        let starts = [
            ("10.0.0.0", "10.0.0.0"),
            ("10.0.0.5", "10.0.0.0"),
            ("10.0.0.8", "10.0.0.8"),
            ("10.0.0.9", "10.0.0.0"),
            ("10.0.1.0", "0.0.0.0"),
            ("10.0.2.0", "0.0.0.0"),
            ("255.255.255.255", "10.0.0.8"),
        ];
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let classes = Classes {
            name: "c".to_owned(),
            family: Family::V4,
            starts: starts.map(|(start, class)| (address(start), address(class))).into(),
            rest: address("0.0.0.0"),
        };
        let shown: Vec<_> = stored(&classes).elements.map(|e| format!("{}: {:?}", e.at, e.data)).collect();
        let value = |class: u8| format!("Some(Value([0, 0, 0, 0, 10, 0, 0, {class}]))");
        assert_eq!(
            shown,
            [
                format!("addresses from 10.0.0.0 on: {}", value(0)),
                "the end of a class before 10.0.0.8: None".to_owned(),
                format!("addresses from 10.0.0.8 on: {}", value(8)),
                "the end of a class before 10.0.0.9: None".to_owned(),
                format!("addresses from 10.0.0.9 on: {}", value(0)),
                "the end of a class before 10.0.1.0: None".to_owned(),
                format!("addresses from 255.255.255.255 on: {}", value(8)),
                "all else: Some(Value([0, 0, 0, 0, 0, 0, 0, 0]))".to_owned(),
            ]
        );
    }
}
