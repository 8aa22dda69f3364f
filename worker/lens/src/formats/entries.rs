//! A JSON object as a list of its entries, in the order of the text.
//!
//! serde's maps keep the last of two entries with one name without a word; in a file from elsewhere
//! that is damage, and the reader wants to say which name it was.

use std::{collections::BTreeSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::error::Problem;

/// The entry of a safetensors header that is not a tensor.
const METADATA: &str = "__metadata__";

/// All entries of an object but `__metadata__`, repeated names included.
#[derive(Debug)]
pub(super) struct Entries<V>(pub(super) Vec<(String, V)>);

impl<V> Entries<V> {
    /// Returns the first name that occurs twice.
    pub(super) fn repeated(&self) -> Option<&str> {
        let mut seen = BTreeSet::new();
        self.0.iter().map(|(name, _)| name.as_str()).find(|name| !seen.insert(*name))
    }

    /// Parses text that must be one object.
    pub(super) fn parse<'a>(text: &'a [u8]) -> Result<Self, serde_json::Error>
    where
        V: Deserialize<'a>,
    {
        serde_json::from_slice(text)
    }

    /// Returns an error when a name occurs twice, with that name.
    pub(super) fn check_names(&self) -> Result<(), (String, Problem)> {
        match self.repeated() {
            Some(name) => Err((name.to_owned(), Problem::DuplicateName)),
            None => Ok(()),
        }
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
    type Value = Entries<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_order_and_repeated_names() {
        let entries: Entries<u8> =
            Entries::parse(br#"{"b":1,"__metadata__":{"a":[]},"a":2}"#).unwrap();
        assert_eq!(entries.0, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
        assert_eq!(entries.check_names(), Ok(()));
        let entries: Entries<u8> = Entries::parse(br#"{"b":1,"a":2,"b":1}"#).unwrap();
        assert_eq!(entries.check_names(), Err(("b".to_owned(), Problem::DuplicateName)));
        for wrong in [&b"[]"[..], b"{\"a\":1}x", b"{\"a\":\"\"}", b"{1:1}", b""] {
            assert!(Entries::<u8>::parse(wrong).is_err());
        }
    }
}
