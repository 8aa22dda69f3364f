//! The words that prompts are built from, for one model: names, places and objects that are single tokens,
//! templates, and how texts become tokens.
//!
//! Main type: [`Lexicon`]. It is made of the model's tokenizer and the paper's words, or, for a model without
//! a tokenizer, of the vocabulary that its recipe recorded. Invariant: the ids of names are distinct and lie in
//! the model's input and output vocabulary.

use std::collections::BTreeMap;

use sweep_lens::Config;

use crate::{
    data::ioi::{self, Template},
    error::{Error, Result},
    subject::{Subject, TextCodec},
    vocabulary::Vocabulary,
};

/// How texts become tokens.
pub(crate) enum Encoder<'a> {
    /// By the model's tokenizer.
    Codec {
        /// The tokenizer.
        codec: &'a dyn TextCodec,
        /// Whether the BOS token goes in front.
        prepend_bos: bool,
    },
    /// A token for each word.
    Words(Vocabulary),
}

/// See the module documentation.
pub(crate) struct Lexicon<'a> {
    /// Names with their tokens.
    pub names: Vec<(String, i64)>,
    /// How many names were tried.
    pub n_tried: usize,
    /// Places.
    pub places: Vec<String>,
    /// Objects.
    pub objects: Vec<String>,
    /// Templates that the model has the words for.
    pub templates: Vec<Template>,
    /// How texts become tokens.
    pub encoder: Encoder<'a>,
}

impl<'a> Lexicon<'a> {
    /// The lexicon of a model, with the templates of the set `templates`.
    pub(crate) fn of(
        subject: &Subject<'a>,
        templates: &str,
        prepend_bos: Option<bool>,
    ) -> Result<Self> {
        let config = subject.model.config();
        if let Some(codec) = subject.text {
            let prepend_bos = prepend_bos.unwrap_or(subject.prepend_bos);
            return Ok(Self::of_text(codec, config, templates, prepend_bos));
        }
        match Vocabulary::of_checkpoint(&subject.checkpoint.extra)? {
            Some(vocabulary) => Self::of_words(vocabulary, config, templates),
            None => Err(Error::Unsupported(
                "prompts need a tokenizer or a vocabulary with names, this model has neither: give `tokens`, `io` \
                 and `s`"
                    .to_owned(),
            )),
        }
    }

    fn of_text(
        codec: &'a dyn TextCodec,
        config: &Config,
        templates: &str,
        prepend_bos: bool,
    ) -> Self {
        let templates = ioi::templates(templates);
        // A name whose token stands elsewhere in a prompt could not be found again. What cannot be encoded at all fails
        // where it is used.
        let mut taken = Vec::new();
        for template in &templates {
            let bare = template.text.split(' ').filter(|word| !word.starts_with('{'));
            let bare = codec.encode(&bare.collect::<Vec<_>>().join(" "), false);
            taken.extend(bare.unwrap_or_default());
        }
        for word in ioi::PLACES.iter().chain(&ioi::OBJECTS) {
            taken.extend(codec.encode(&format!("Then {word}"), false).unwrap_or_default());
        }
        let single = |words: &[&str]| single_tokens(codec, config, words);
        let mut names = single(&ioi::NAMES);
        names.retain(|(_, id)| !taken.contains(id));
        // Words of several tokens would only shift what follows, so some are better than none.
        let or_all = |words: &[&str]| {
            let found: Vec<String> = single(words).into_iter().map(|(word, _)| word).collect();
            if found.is_empty() {
                words.iter().map(|&word| word.to_owned()).collect()
            } else {
                found
            }
        };
        Self {
            names,
            n_tried: ioi::NAMES.len(),
            places: or_all(&ioi::PLACES),
            objects: or_all(&ioi::OBJECTS),
            templates,
            encoder: Encoder::Codec { codec, prepend_bos },
        }
    }

    fn of_words(vocabulary: Vocabulary, config: &Config, templates: &str) -> Result<Self> {
        let role = |role: &str| -> Vec<(String, i64)> {
            let ids = vocabulary.roles.get(role).into_iter().flatten();
            let inside = ids.filter(|&&id| is_inside(config, id));
            inside.map(|&id| (vocabulary.decode(&[id]), id)).collect()
        };
        let words = |of: &str| role(of).into_iter().map(|(word, _)| word).collect::<Vec<_>>();
        let (names, places, objects) = (role("name"), words("place"), words("object"));
        let is_known = |template: &Template| {
            template.text.split(' ').all(|word| match word {
                "{PLACE}" | "{OTHER}" => places.len() >= 2,
                "{OBJECT}" => !objects.is_empty(),
                _ => word.starts_with('{') || vocabulary.id(word).is_some(),
            })
        };
        let toy = ioi::toy_templates(templates);
        let known: Vec<Template> = toy.into_iter().filter(is_known).collect();
        if known.is_empty() {
            return Err(Error::Unsupported(format!(
                "no template of the set `{templates}` is made of the {} words of the model's vocabulary",
                vocabulary.words.len()
            )));
        }
        Ok(Self {
            n_tried: names.len(),
            names,
            places,
            objects,
            templates: known,
            encoder: Encoder::Words(vocabulary),
        })
    }

    /// Tokens of a text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<i64>> {
        match &self.encoder {
            Encoder::Codec { codec, prepend_bos } => codec.encode(text, *prepend_bos),
            Encoder::Words(vocabulary) => vocabulary.encode(text),
        }
    }
}

fn is_inside(config: &Config, id: i64) -> bool {
    (0..config.d_vocab.min(config.d_vocab_out)).contains(&id)
}

/// The words that are one token behind another word, with it. Words that share their token with another
/// one (as unknown ones do) are left out.
pub(crate) fn single_tokens(
    codec: &dyn TextCodec,
    config: &Config,
    words: &[&str],
) -> Vec<(String, i64)> {
    let Ok(front) = codec.encode("Then", false) else { return Vec::new() };
    let token = |word: &str| -> Option<i64> {
        let both = codec.encode(&format!("Then {word}"), false).ok()?;
        match both.strip_prefix(front.as_slice())? {
            &[id] => is_inside(config, id).then_some(id),
            _ => None,
        }
    };
    let found: Vec<(String, i64)> =
        words.iter().filter_map(|&word| Some((word.to_owned(), token(word)?))).collect();
    let mut uses: BTreeMap<i64, usize> = BTreeMap::new();
    for (_, id) in &found {
        *uses.entry(*id).or_default() += 1;
    }
    found.into_iter().filter(|(_, id)| uses[id] == 1).collect()
}
