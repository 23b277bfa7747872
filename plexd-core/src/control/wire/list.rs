//! Lists and maps of what is received, read like an absent one when null, and bounded: an answer of 64 MiB has room for 32
//! million elements, each of which takes many times its two bytes of memory.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Most elements of a list or map.
pub const MAX_ELEMENTS: usize = 1_000_000;

/// Reads a list.
pub(super) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_option(Elements::<Vec<T>>::new(MAX_ELEMENTS))
}

/// Reads a map.
pub(super) fn map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    deserializer.deserialize_option(Elements::<BTreeMap<String, T>>::new(MAX_ELEMENTS))
}

/// What reads the elements of a list or map.
struct Elements<C> {
    max: usize,
    kind: PhantomData<C>,
}

impl<C> Elements<C> {
    fn new(max: usize) -> Self {
        Self { max, kind: PhantomData }
    }

    /// Of the text, [`super::reason`] leaves what is expected.
    fn check<E: Error>(&self, count: usize) -> Result<(), E> {
        if count < self.max {
            return Ok(());
        }
        Err(E::custom(format_args!("too many elements, expected at most {} elements", self.max)))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<Vec<T>> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            self.check(elements.len())?;
            elements.push(element);
        }
        Ok(elements)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<BTreeMap<String, T>> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut elements = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            self.check(elements.len())?;
            elements.insert(key, value);
        }
        Ok(elements)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Deserializer as Json;

    use super::super::{KeyRotateResponse, StateResponse, parse_object, reason};
    use super::*;

    #[test]
    fn a_list_or_map_has_at_most_so_many_elements() {
        let list = |text: &str| -> Result<Vec<u8>, String> {
            (&mut Json::from_str(text))
                .deserialize_option(Elements::<Vec<u8>>::new(3))
                .map_err(|error| reason(&error))
        };
        let map = |text: &str| -> Result<BTreeMap<String, u8>, String> {
            let elements = Elements::<BTreeMap<String, u8>>::new(3);
            (&mut Json::from_str(text)).deserialize_option(elements).map_err(|error| reason(&error))
        };
        assert_eq!(list(" [1, 2,3]"), Ok(vec![1, 2, 3]));
        assert_eq!(list("null"), Ok(vec![]));
        assert_eq!(list("[1,2,3,4]"), Err("expected at most 3 elements at line 1 column 9".to_owned()));
        assert_eq!(map(r#"{"a":1,"a":2,"b":3,"c":4}"#).map(|map| map.len()), Ok(3));
        assert_eq!(map("null"), Ok(BTreeMap::new()));
        let error = map(r#"{"a":1,"b":2,"c":3,"d":4}"#).unwrap_err();
        assert!(error.starts_with("expected at most 3 elements"), "{error}");
    }

    #[test]
    fn an_answer_with_more_than_a_million_elements_is_unusable() {
        let text = format!(r#"{{"updated_peers":[{}1]}}"#, "1,".repeat(MAX_ELEMENTS));
        let error = parse_object::<KeyRotateResponse<'_>>(text.as_bytes()).unwrap_err();
        assert!(error.starts_with("expected at most 1000000 elements at line 1"), "{error}");
    }

    #[test]
    fn what_is_no_list_is_refused_as_such() {
        for text in [r#"{"updated_peers":{}}"#, r#"{"updated_peers":"x"}"#] {
            let error = parse_object::<KeyRotateResponse<'_>>(text.as_bytes()).unwrap_err();
            assert!(error.starts_with("expected a sequence at line 1"), "{error}");
        }
        let error = parse_object::<StateResponse<'_>>(br#"{"metadata":[]}"#).unwrap_err();
        assert!(error.starts_with("expected a map at line 1"), "{error}");
    }
}
