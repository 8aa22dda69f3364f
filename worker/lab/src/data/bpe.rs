//! Byte-pair tokens: bytes, and what merging the most frequent neighbours makes of them (Sennrich et al. 2016).
//!
//! Main type: [`Bpe`]. Tokens 0 to 255 are bytes; token `256 + i` is what merge `i` made. Merges do not cross words, where a
//! word is a run of bytes that are not white space with the one space in front of it; other white space stands alone.
//! Invariant: learning and encoding are functions of the bytes alone (of equally frequent pairs the smallest is merged), and
//! decoding gives back what was encoded.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    data::text::Bytes,
    error::{Error, Result},
    subject::TextCodec,
};

/// Number of byte tokens.
pub const N_BYTES: i64 = 256;

/// Entry of a checkpoint's `extra` that holds the merges its model was trained with.
pub const KEY: &str = "byte_pairs";

/// Merges in the order in which they were learned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bpe {
    merges: Vec<(i64, i64)>,
}

impl Bpe {
    /// Learns up to `n_merges` merges; fewer if no pair comes twice.
    pub fn learn(text: &[u8], n_merges: usize) -> Self {
        let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
        for word in words(text) {
            *counts.entry(word).or_default() += 1;
        }
        let mut words: Vec<(Vec<i64>, usize)> =
            counts.into_iter().map(|(word, count)| (bytes(word), count)).collect();
        let mut merges = Vec::with_capacity(n_merges);
        while merges.len() < n_merges {
            let mut pairs: BTreeMap<(i64, i64), usize> = BTreeMap::new();
            for (word, count) in &words {
                for pair in word.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_default() += count;
                }
            }
            // The last of equals wins a maximum: the smallest pair, seen from behind.
            let best = pairs.into_iter().rev().max_by_key(|(_, count)| *count);
            let Some((pair, _)) = best.filter(|(_, count)| *count > 1) else { break };
            let merged = N_BYTES + merges.len() as i64;
            for (word, _) in &mut words {
                merge(word, pair, merged);
            }
            merges.push(pair);
        }
        Self { merges }
    }

    /// The merges that a checkpoint's `extra` records, if it does.
    ///
    /// # Errors
    /// [`Error::Input`] if the entry is no list of pairs of older tokens.
    pub fn of_checkpoint(extra: &Json) -> Result<Option<Self>> {
        let Some(entry) = extra.get(KEY) else { return Ok(None) };
        let malformed =
            |problem: &str| Error::Input(format!("checkpoint entry `{KEY}`: {problem}"));
        let bpe = Self::deserialize(entry).map_err(|error| malformed(&error.to_string()))?;
        for (&(left, right), token) in bpe.merges.iter().zip(N_BYTES..) {
            if ![left, right].iter().all(|part| (0..token).contains(part)) {
                return Err(malformed(&format!("token {token} is made of {left} and {right}")));
            }
        }
        Ok(Some(bpe))
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> i64 {
        N_BYTES + self.merges.len() as i64
    }

    /// Tokens of a text.
    pub fn encode(&self, text: &[u8]) -> Vec<i64> {
        let ranks: HashMap<(i64, i64), i64> = self.merges.iter().copied().zip(N_BYTES..).collect();
        let mut known: HashMap<&[u8], Vec<i64>> = HashMap::new();
        let mut tokens = Vec::with_capacity(text.len());
        for word in words(text) {
            let encoded = known.entry(word).or_insert_with(|| {
                let mut word = bytes(word);
                let first = |word: &[i64]| {
                    let found = word.windows(2).filter_map(|pair| {
                        let pair = (pair[0], pair[1]);
                        Some((*ranks.get(&pair)?, pair))
                    });
                    found.min()
                };
                while let Some((merged, pair)) = first(&word) {
                    merge(&mut word, pair, merged);
                }
                word
            });
            tokens.extend_from_slice(encoded);
        }
        tokens
    }

    /// Bytes of a token; none for a number that is no token.
    pub fn decode(&self, token: i64) -> Vec<u8> {
        if let Ok(byte) = u8::try_from(token) {
            return vec![byte];
        }
        let place = usize::try_from(token - N_BYTES).ok();
        match place.and_then(|place| self.merges.get(place)) {
            // Both parts are older tokens, so that this ends.
            Some(&(left, right)) => [self.decode(left), self.decode(right)].concat(),
            None => Vec::new(),
        }
    }
}

impl TextCodec for Bpe {
    fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        Bytes.encode("", prepend_bos)?;
        Ok(self.encode(text.as_bytes()))
    }

    fn decode_token(&self, id: i64) -> String {
        let bytes = self.decode(id);
        match std::str::from_utf8(&bytes) {
            Ok(text) if !text.is_empty() => text.to_owned(),
            _ => format!("<{id}>"),
        }
    }

    fn bos(&self) -> Option<i64> {
        None
    }

    fn hash(&self) -> &'static str {
        "byte pairs"
    }
}

fn bytes(word: &[u8]) -> Vec<i64> {
    word.iter().map(|byte| i64::from(*byte)).collect()
}

/// Words of a text, in order; together they are the text.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let &first = rest.first()?;
        let begins = usize::from(first == b' ');
        let inside = rest[begins..].iter().take_while(|byte| !byte.is_ascii_whitespace()).count();
        // White space that no word follows stands alone.
        let (word, later) = rest.split_at((begins + inside).max(1));
        rest = later;
        Some(word)
    })
}

/// Replaces every occurrence of a pair from the left.
fn merge(word: &mut Vec<i64>, pair: (i64, i64), merged: i64) {
    let mut kept = 0;
    let mut at = 0;
    while at < word.len() {
        let is_pair = at + 1 < word.len() && (word[at], word[at + 1]) == pair;
        word[kept] = if is_pair { merged } else { word[at] };
        kept += 1;
        at += if is_pair { 2 } else { 1 };
    }
    word.truncate(kept);
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::data::text::SHAKESPEARE;

    #[test]
    fn words_keep_the_space_in_front() {
        let found: Vec<&[u8]> = words(b"to be,  or\n\nnot ").collect();
        let expected: [&[u8]; 8] = [b"to", b" be,", b" ", b" or", b"\n", b"\n", b"not", b" "];
        assert_eq!(found, expected);
    }

    #[test]
    fn merges_by_hand() {
        let bpe = Bpe::learn(b"abab abab cd", 10);
        // Of ab (4), " a" (1), ba (2) …: first ab, then ab ab.
        assert_eq!(bpe.merges[..2], [(97, 98), (256, 256)]);
        assert_eq!(bpe.n_tokens(), 258, "no other pair comes twice");
        assert_eq!(bpe.encode(b"ababab"), [257, 256]);
        assert_eq!(bpe.decode(257), b"abab");
        assert!(bpe.decode(258).is_empty() && bpe.decode(-1).is_empty());
        assert_eq!(Bpe::learn(b"", 5), Bpe::default());
    }

    /// `make_bpe.py` learns the same merges by counting pairs in the text itself, word for word.
    #[test]
    fn merges_equal_those_of_another_program() {
        let golden: Json =
            serde_json::from_str(include_str!("../../tests/fixtures/bpe.json")).unwrap();
        let text = &SHAKESPEARE[..golden["n_bytes"].as_u64().unwrap() as usize];
        let merges = golden["merges"].as_array().unwrap();
        let bpe = Bpe::learn(text, merges.len());
        for (found, expected) in bpe.merges.iter().zip(merges) {
            assert_eq!(serde_json::json!([found.0, found.1]), *expected);
        }
        let tokens = bpe.encode(text);
        assert_eq!(tokens.len() as u64, golden["n_tokens"].as_u64().unwrap());
        let back: Vec<u8> = tokens.iter().flat_map(|&token| bpe.decode(token)).collect();
        assert!(back == text);
        let first: Vec<i64> =
            golden["first"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        assert_eq!(tokens[..first.len()], first);
    }
}
