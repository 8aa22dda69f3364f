//! Prompts with an indirect object for any model, with the places that the circuit looks at (D19).
//!
//! Main type: [`IoiSet`]. It is built from texts, from the words of a toy model, or from tokens that the user
//! gives. Invariants: every prompt has the indirect object and, twice, the subject, fits into the model's context
//! and ends where the answer is predicted.

use sweep_lens::{Config, Positional};

use super::{
    lexicon::{Encoder, Lexicon},
    params::PromptParams,
};
use crate::{
    data::ioi::Template,
    error::{Error, Result},
    prompts, random,
    subject::Subject,
};

/// Where things stand in one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Places {
    /// The indirect object.
    pub io: usize,
    /// The subject's first occurrence.
    pub s1: usize,
    /// Its last one.
    pub s2: usize,
    /// Where the answer is predicted.
    pub end: usize,
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Prompt {
    /// Tokens without the answer.
    pub tokens: Vec<i64>,
    /// Token of the indirect object, the right answer.
    pub io: i64,
    /// Token of the subject, the wrong one.
    pub s: i64,
    /// Index of its template.
    pub template: usize,
    /// Where things stand.
    pub places: Places,
    /// The prompt with three other names, so that nothing tells the answer (ABC), if there are so many.
    pub abc: Option<Vec<i64>>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct IoiSet {
    /// The prompts, in the order in which they were drawn or given.
    pub prompts: Vec<Prompt>,
    /// Names of the templates.
    pub templates: Vec<String>,
    /// How many names there were to choose from.
    pub n_names: usize,
    /// Whether a BOS token was put in front.
    pub prepend_bos: bool,
}

impl IoiSet {
    /// The prompts that `params` ask for, checked against the model.
    pub(crate) fn new(subject: &Subject<'_>, params: &PromptParams) -> Result<Self> {
        let config = subject.model.config();
        let set = if params.tokens.is_empty() {
            if !params.io.is_empty() || !params.s.is_empty() {
                return Err(Error::params(
                    "tokens",
                    "expected prompts for `io` and `s`, found none",
                ));
            }
            let lexicon = Lexicon::of(subject, &params.templates, params.prepend_bos)?;
            Self::drawn(&lexicon, params)?
        } else {
            Self::given(subject, params)?
        };
        set.check(config)?;
        Ok(set)
    }

    /// Prompts from templates.
    fn drawn(lexicon: &Lexicon<'_>, params: &PromptParams) -> Result<Self> {
        let Lexicon { names, templates, .. } = lexicon;
        let n_used = |template: &Template| {
            2 + ["{C}", "{D}"].iter().filter(|slot| template.text.contains(*slot)).count()
        };
        let needed = templates.iter().map(n_used).max().unwrap_or(2);
        if names.len() < needed {
            return Err(Error::Unsupported(format!(
                "prompts need {needed} names that are single tokens of the model, found {} of {}",
                names.len(),
                lexicon.n_tried
            )));
        }
        let mut rng = random::stream(params.seed, "ioi/prompts");
        let mut pick = |n: usize| random::below(&mut rng, n as u64) as usize;
        let mut prompts = Vec::new();
        for row in 0..params.n_prompts as usize {
            // Half of the templates have the subject first: every other prompt is one of those.
            let half = templates.len() / 2;
            let template = match params.templates.as_str() {
                "mixed" => pick(half) + half * (row % 2),
                _ => pick(templates.len()),
            };
            let draw = |n: usize, of: usize, pick: &mut dyn FnMut(usize) -> usize| {
                let mut drawn: Vec<usize> = Vec::new();
                while drawn.len() < n.min(of) {
                    let next = pick(of);
                    if !drawn.contains(&next) {
                        drawn.push(next);
                    }
                }
                drawn
            };
            let used = n_used(&templates[template]);
            let who = draw(used + 3, names.len(), &mut pick);
            let places = draw(2, lexicon.places.len(), &mut pick);
            let object = pick(lexicon.objects.len().max(1));
            let word = |list: &[String], at: Option<&usize>| {
                at.and_then(|&at| list.get(at)).cloned().unwrap_or_default()
            };
            let name = |at: usize| who.get(at).map_or("", |&at| names[at].0.as_str());
            let text = templates[template]
                .text
                .replace("{IO}", name(0))
                .replace("{S}", name(1))
                .replace("{C}", name(2))
                .replace("{D}", name(3))
                .replace("{PLACE}", &word(&lexicon.places, places.first()))
                .replace("{OTHER}", &word(&lexicon.places, places.get(1)))
                .replace("{OBJECT}", &word(&lexicon.objects, Some(&object)));
            let (io, s) = (names[who[0]].1, names[who[1]].1);
            let tokens = lexicon.encode(&text)?;
            let places = locate(&tokens, io, s)
                .map_err(|problem| Error::Input(format!("tokens of `{text}`: {problem}")))?;
            let others = who[used..].iter().map(|&at| names[at].1).collect::<Vec<_>>();
            let abc = renamed(&tokens, places, &others);
            prompts.push(Prompt { tokens, io, s, template, places, abc });
        }
        let prepend_bos = matches!(lexicon.encoder, Encoder::Codec { prepend_bos: true, .. });
        let labels = templates.iter().map(|template| template.label.clone()).collect();
        Ok(Self { prompts, templates: labels, n_names: names.len(), prepend_bos })
    }

    /// Prompts of the user's own.
    fn given(subject: &Subject<'_>, params: &PromptParams) -> Result<Self> {
        let PromptParams { tokens, io, s, .. } = params;
        for (name, list) in [("io", io), ("s", s)] {
            if list.len() != tokens.len() {
                let problem = format!(
                    "expected a token for each of {} rows, found {}",
                    tokens.len(),
                    list.len()
                );
                return Err(Error::params(name, problem));
            }
        }
        let mut pool = if params.names.is_empty() {
            [io.as_slice(), s].concat()
        } else {
            params.names.clone()
        };
        pool.sort_unstable();
        pool.dedup();
        let Config { d_vocab, .. } = *subject.model.config();
        if let Some(id) = pool.iter().find(|id| !(0..d_vocab).contains(*id)) {
            let param = if params.names.is_empty() { "io or s" } else { "names" };
            let problem = format!("token {id} is not in the vocabulary 0 to {}", d_vocab - 1);
            return Err(Error::params(param, problem));
        }
        let bos = prompts::bos_in_front(subject, Some(params.prepend_bos == Some(true)))?;
        let mut rng = random::stream(params.seed, "ioi/others");
        let mut prompts = Vec::new();
        for (row, given) in tokens.iter().enumerate() {
            let tokens: Vec<i64> = bos.into_iter().chain(given.iter().copied()).collect();
            let (io, s) = (io[row], s[row]);
            let places = locate(&tokens, io, s)
                .map_err(|problem| Error::params("tokens", format!("row {row}: {problem}")))?;
            let free: Vec<i64> =
                pool.iter().copied().filter(|name| !tokens.contains(name)).collect();
            let order = random::permutation(&mut rng, free.len());
            let others: Vec<i64> = order.iter().map(|&at| free[at as usize]).collect();
            let counterpart =
                bos.into_iter().chain(params.abc.get(row).into_iter().flatten().copied());
            let abc = if params.abc.is_empty() {
                renamed(&tokens, places, &others)
            } else {
                Some(counterpart.collect::<Vec<_>>()).filter(|abc| abc.len() == tokens.len())
            };
            if !params.abc.is_empty() && abc.is_none() {
                let problem = format!("row {row}: expected as many tokens as in `tokens`");
                return Err(Error::params("abc", problem));
            }
            prompts.push(Prompt { tokens, io, s, template: 0, places, abc });
        }
        let templates = vec!["given".to_owned()];
        Ok(Self { prompts, templates, n_names: pool.len(), prepend_bos: bos.is_some() })
    }

    fn check(&self, config: &Config) -> Result<()> {
        let is_bounded = config.positional != Positional::None;
        let size = config.d_vocab.min(config.d_vocab_out);
        for (row, prompt) in self.prompts.iter().enumerate() {
            if is_bounded && prompt.tokens.len() as i64 > config.n_ctx {
                return Err(Error::Unsupported(format!(
                    "prompt {row} has {} tokens, n_ctx is {}",
                    prompt.tokens.len(),
                    config.n_ctx
                )));
            }
            let answers = [prompt.io, prompt.s];
            let all = prompt.tokens.iter().chain(prompt.abc.iter().flatten());
            if let Some(id) = all.into_iter().find(|id| !(0..config.d_vocab).contains(*id)) {
                let last = config.d_vocab - 1;
                return Err(Error::Input(format!(
                    "prompt {row} has token {id}, the vocabulary is 0 to {last}"
                )));
            }
            if let Some(id) = answers.into_iter().find(|id| !(0..size).contains(id)) {
                return Err(Error::Input(format!(
                    "name {id} of prompt {row} is not in the vocabulary 0 to {}",
                    size - 1
                )));
            }
        }
        Ok(())
    }

    /// Fails unless every prompt has names for the ABC corruption.
    pub(crate) fn need_others(&self) -> Result<()> {
        match self.prompts.iter().position(|prompt| prompt.abc.is_none()) {
            None => Ok(()),
            Some(row) => Err(Error::Unsupported(format!(
                "the ABC corruption needs 3 names that are not in prompt {row}, found {} single-token names in all",
                self.n_names
            ))),
        }
    }

    /// The places of all prompts, if they are the same for all and all are equally long.
    pub(crate) fn common_places(&self) -> Option<Places> {
        let first = self.prompts.first()?.places;
        self.prompts.iter().all(|prompt| prompt.places == first).then_some(first)
    }
}

/// The prompt with other names in the three places, if there are three.
fn renamed(tokens: &[i64], places: Places, others: &[i64]) -> Option<Vec<i64>> {
    let &[io, s1, s2, ..] = others else { return None };
    let mut renamed = tokens.to_vec();
    (renamed[places.io], renamed[places.s1], renamed[places.s2]) = (io, s1, s2);
    Some(renamed)
}

/// Where indirect object and subject stand.
fn locate(tokens: &[i64], io: i64, s: i64) -> Result<Places, String> {
    let all = |token: i64| -> Vec<usize> {
        (0..tokens.len()).filter(|&at| tokens[at] == token).collect()
    };
    if io == s {
        return Err(format!("indirect object and subject are both token {io}"));
    }
    let (io_at, s_at) = (all(io), all(s));
    let (Some(&io_first), [s1, .., s2]) = (io_at.first(), s_at.as_slice()) else {
        return Err(format!(
            "expected the indirect object {io} once and the subject {s} twice, found {} and {}",
            io_at.len(),
            s_at.len()
        ));
    };
    if io_first > *s2 {
        return Err(format!(
            "expected the indirect object in front of {s2}, found it at {io_first}"
        ));
    }
    Ok(Places { io: io_first, s1: *s1, s2: *s2, end: tokens.len() - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_first_and_last_occurrences() {
        // Then , Mary and John went . John gave ring to
        let tokens = [9, 1, 5, 2, 6, 3, 4, 6, 7, 8, 0];
        let places = locate(&tokens, 5, 6).unwrap();
        assert_eq!(places, Places { io: 2, s1: 4, s2: 7, end: 10 });
        assert!(locate(&tokens, 6, 5).unwrap_err().contains("found 2 and 1"));
        assert!(locate(&tokens, 5, 5).is_err());
        assert!(locate(&[6, 6, 5], 5, 6).unwrap_err().contains("in front of"));
    }
}
