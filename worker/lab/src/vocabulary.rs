//! What the tokens of a model without a tokenizer mean: a word for each, and which of them play a
//! part that prompts are built from (names, places, objects).
//!
//! Main type: [`Vocabulary`]. A recipe that trains on words declares one; the training loop records it
//! under [`KEY`] in every checkpoint, where [`Vocabulary::of_checkpoint`] finds it. Invariant: every
//! role lists ids that have a word, in ascending order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::{Error, Result};

/// Entry of a checkpoint's `extra` that holds the vocabulary.
pub const KEY: &str = "vocabulary";

/// Words of token ids, and the ids of each role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// The word of token `i` is `words[i]`; no word comes twice.
    pub words: Vec<String>,
    /// Ids by role, for instance `name`, `place`, `object`.
    pub roles: BTreeMap<String, Vec<i64>>,
}

impl Vocabulary {
    /// The id of a word.
    pub fn id(&self, word: &str) -> Option<i64> {
        self.words.iter().position(|known| known == word).map(|index| index as i64)
    }

    /// The ids of words separated by single spaces.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first word that is not in the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        text.split(' ')
            .map(|word| {
                self.id(word).ok_or_else(|| {
                    Error::Input(format!(
                        "expected one of {} words of the model's vocabulary, found `{word}`",
                        self.words.len()
                    ))
                })
            })
            .collect()
    }

    /// The words of ids, separated by spaces; an id without a word is shown as its number in brackets.
    pub fn decode(&self, ids: &[i64]) -> String {
        let word = |&id: &i64| {
            let word = usize::try_from(id).ok().and_then(|id| self.words.get(id));
            word.cloned().unwrap_or_else(|| format!("[{id}]"))
        };
        ids.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    /// As recorded in checkpoints.
    pub fn to_json(&self) -> Json {
        serde_json::json!({ "words": self.words, "roles": self.roles })
    }

    /// The vocabulary recorded in a checkpoint's `extra`, if there is one.
    ///
    /// # Errors
    /// [`Error::Input`] if the entry is not a vocabulary or a role lists an id without a word.
    pub fn of_checkpoint(extra: &Json) -> Result<Option<Self>> {
        let Some(entry) = extra.get(KEY) else { return Ok(None) };
        let malformed =
            |problem: String| Error::Input(format!("checkpoint entry `{KEY}`: {problem}"));
        let vocabulary = Self::deserialize(entry).map_err(|error| malformed(error.to_string()))?;
        let n_words = vocabulary.words.len() as i64;
        for (role, ids) in &vocabulary.roles {
            if let Some(id) = ids.iter().find(|id| !(0..n_words).contains(*id)) {
                return Err(malformed(format!(
                    "role `{role}` lists token {id}, expected 0 to {}",
                    n_words - 1
                )));
            }
        }
        Ok(Some(vocabulary))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_and_ids_round_trip_through_a_checkpoint() {
        let vocabulary = Vocabulary {
            words: ["BOS", "Ann", "saw", "Tom"].map(str::to_owned).to_vec(),
            roles: BTreeMap::from([("name".to_owned(), vec![1, 3])]),
        };
        let ids = vocabulary.encode("BOS Tom saw Ann").unwrap();
        assert_eq!(ids, [0, 3, 2, 1]);
        assert_eq!(vocabulary.decode(&ids), "BOS Tom saw Ann");
        assert_eq!(vocabulary.decode(&[1, 9, -1]), "Ann [9] [-1]");
        assert!(vocabulary.encode("Tom met Ann").unwrap_err().to_string().contains("`met`"));
        let extra = json!({ "recipe": "r", KEY: vocabulary.to_json() });
        assert_eq!(Vocabulary::of_checkpoint(&extra).unwrap().unwrap(), vocabulary);
        assert_eq!(Vocabulary::of_checkpoint(&json!({ "recipe": "r" })).unwrap(), None);
        let wrong = json!({ KEY: { "words": ["a"], "roles": { "name": [1] } } });
        let message = Vocabulary::of_checkpoint(&wrong).unwrap_err().to_string();
        assert!(message.contains("role `name` lists token 1, expected 0 to 0"), "{message}");
        assert!(Vocabulary::of_checkpoint(&json!({ KEY: 3 })).is_err());
    }
}
