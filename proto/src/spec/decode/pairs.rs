//! The `compare:` section: experiments with the keys that select pairs of checkpoints
//! ([`PairSelection`]) among their own parameters.

use super::{At, Decoder};
use crate::{
    catalog::did_you_mean,
    spec::{At as Steps, CompareSpec, Endpoint, PairSelection, pairs::MAX_LISTED},
};

impl Decoder {
    /// Experiments with the keys that select pairs among their parameters.
    pub(super) fn compare(&mut self, root: &At<'_>) -> Vec<CompareSpec> {
        let Some(at) = root.key("compare") else { return Vec::new() };
        if !at.value.is_array() {
            self.expected(&at, "a list of experiments");
            return Vec::new();
        }
        let decode = |item: At<'_>| {
            let mut experiment = self.experiment(&item)?;
            let inner = match item.key("params").filter(|_| item.key("name").is_some()) {
                Some(inner) => Some(inner),
                None => item.key(&experiment.name),
            };
            let pairs = self.pairs(&item, inner.as_ref());
            for key in PairSelection::KEYS {
                experiment.params.remove(key);
            }
            Some(CompareSpec { experiment, pairs: pairs? })
        };
        at.items().into_iter().filter_map(decode).collect()
    }

    fn pairs(&mut self, item: &At<'_>, params: Option<&At<'_>>) -> Option<PairSelection> {
        let Some((params, at)) = params.and_then(|params| Some((params, params.key("pairs")?)))
        else {
            self.problem(item, "`pairs` is missing: which checkpoints are compared");
            self.hint(format!("pairs: {}, or a list of pairs", PairSelection::WORDS.join(", ")));
            return None;
        };
        let word = at.value.as_str();
        let takes_at = !matches!(word, Some("steps" | "consecutive" | "to-final"));
        let steps = match params.key("at") {
            None => None,
            Some(at) if !takes_at => {
                let word = word.unwrap_or_default();
                self.problem(&at, format!("`at` is not for `pairs: {word}`"));
                return None;
            }
            Some(at) => match at.value.as_str() {
                Some("final") => Some(Steps::Final),
                Some("all") => Some(Steps::All),
                _ => {
                    self.problem(&at, format!("`at` must be final or all, found {}", at.value));
                    return None;
                }
            },
        };
        let base = self.text(params, "base");
        if let Some(at) = params.key("base").filter(|_| word != Some("to-base")) {
            self.problem(&at, "`base` is only for `pairs: to-base`");
            return None;
        }
        let last = steps.unwrap_or(Steps::Final);
        match word {
            Some("seeds") => Some(PairSelection::Seeds(last)),
            Some("models") => Some(PairSelection::Models(last)),
            Some("steps") => Some(PairSelection::Steps),
            Some("consecutive") => Some(PairSelection::Consecutive),
            Some("to-final") => Some(PairSelection::ToFinal),
            Some("to-base") => {
                Some(PairSelection::ToBase { base, at: steps.unwrap_or(Steps::All) })
            }
            Some(word) => {
                self.problem(&at, format!("`{word}` is not a selection of pairs"));
                let words = PairSelection::WORDS;
                self.hint(
                    did_you_mean(word, words)
                        .unwrap_or_else(|| format!("use {}, or a list of pairs", words.join(", "))),
                );
                None
            }
            None => Some(PairSelection::Listed(self.listed(&at)?, last)),
        }
    }

    fn listed(&mut self, at: &At<'_>) -> Option<Vec<[Endpoint; 2]>> {
        if !at.value.is_array() {
            self.expected(at, "a selection of pairs or a list of pairs");
            return None;
        }
        let items = at.items();
        if items.is_empty() {
            self.problem(at, "`pairs` is empty: nothing would run");
            return None;
        }
        if items.len() > MAX_LISTED {
            let count = items.len();
            self.problem(at, format!("{count} listed pairs are more than {MAX_LISTED}"));
            return None;
        }
        let before = self.problems.len();
        let mut pairs = Vec::new();
        for item in &items {
            let ends: Vec<Endpoint> =
                item.items().iter().filter_map(|end| self.endpoint(end)).collect();
            match <[Endpoint; 2]>::try_from(ends) {
                Ok(pair) => pairs.push(pair),
                Err(ends) if ends.len() == item.items().len() => {
                    self.problem(item, "a pair is a list of two models: [MODEL@STEP, MODEL]");
                }
                Err(_) => {}
            }
        }
        (self.problems.len() == before).then_some(pairs)
    }

    /// `MODEL` or `MODEL@STEP`; labels of models have no `@`.
    fn endpoint(&mut self, at: &At<'_>) -> Option<Endpoint> {
        let Some(text) = at.value.as_str().filter(|text| !text.is_empty()) else {
            self.expected(at, "a model, or a model and a step: MODEL@STEP");
            return None;
        };
        let Some((model, step)) = text.rsplit_once('@') else {
            return Some(Endpoint { model: text.to_owned(), step: None });
        };
        let Ok(number) = step.parse() else {
            self.problem(at, format!("`{step}` is not a step; write MODEL@STEP"));
            return None;
        };
        Some(Endpoint { model: model.to_owned(), step: Some(number) })
    }

    /// Gives the newest problem a way out.
    fn hint(&mut self, hint: String) {
        if let Some(problem) = self.problems.last_mut() {
            problem.hint = Some(hint);
        }
    }
}
