//! Token rows that a user gives, as ids or as texts, checked against the model before anything runs.
//!
//! [`Prompts`] is a list of rows, possibly of different lengths. Invariant: there is a row, every row
//! has 1 to `n_ctx` tokens (any number where positions do not enter), and every id lies in the
//! vocabulary, so that a forward pass over them cannot fail for their sake.

use sweep_lens::{Architecture, Config, Positional, Tensor, checkpoint::Checkpoint};

use crate::{
    data::{
        bpe::{Bpe, N_BYTES},
        text::Bytes,
    },
    error::{Error, Result},
    recipes::text_lm,
    subject::{Subject, TextCodec},
    vocabulary::Vocabulary,
};

/// Rows of token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompts {
    /// The rows, in the order given.
    pub rows: Vec<Vec<i64>>,
    /// Whether a BOS token was put in front of every row.
    pub prepend_bos: bool,
}

impl Prompts {
    /// Rows from `tokens`, or from `text` by the model's tokenizer; exactly one of them is not empty.
    /// Texts get a BOS token if the model's default or `prepend_bos` says so, token lists only if
    /// `prepend_bos` does: they usually hold what they need.
    pub(crate) fn new(
        subject: &Subject<'_>,
        tokens: &[Vec<i64>],
        text: &[String],
        prepend_bos: Option<bool>,
    ) -> Result<Self> {
        let is_text = !text.is_empty();
        let prepend_bos = prepend_bos.unwrap_or(is_text && subject.prepend_bos);
        let rows = if is_text {
            encode(subject, text, prepend_bos)?
        } else if prepend_bos {
            let bos = require_bos(subject)?;
            tokens
                .iter()
                .map(|row| std::iter::once(bos).chain(row.iter().copied()).collect())
                .collect()
        } else {
            tokens.to_vec()
        };
        let prompts = Self { rows, prepend_bos };
        prompts.check(subject.model.config(), if is_text { "text" } else { "tokens" })?;
        Ok(prompts)
    }

    /// Refuses rows that the model cannot read; `param` is where they come from.
    pub(crate) fn check(&self, config: &Config, param: &str) -> Result<()> {
        let refuse = |problem: String| Err(Error::params(param, problem));
        if self.rows.is_empty() {
            return refuse("expected at least one row, found none".to_owned());
        }
        let is_bounded =
            config.positional != Positional::None || config.architecture == Architecture::Mlp;
        for (index, row) in self.rows.iter().enumerate() {
            if row.is_empty() {
                return refuse(format!("row {index} has no tokens"));
            }
            if is_bounded && row.len() as i64 > config.n_ctx {
                let n_ctx = config.n_ctx;
                return refuse(format!("row {index} has {} tokens, n_ctx is {n_ctx}", row.len()));
            }
            if let Some(id) = row.iter().find(|id| !(0..config.d_vocab).contains(*id)) {
                let last = config.d_vocab - 1;
                return refuse(format!(
                    "row {index} has token {id}, the vocabulary is 0 to {last}"
                ));
            }
        }
        Ok(())
    }

    /// The length of every row, where all are equally long.
    pub(crate) fn common_length(&self) -> Option<usize> {
        let first = self.rows.first()?.len();
        self.rows.iter().all(|row| row.len() == first).then_some(first)
    }

    /// Length of the longest row.
    pub(crate) fn max_length(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The rows as i64 `[row, pos]`, shorter ones filled up at the end with their last token. Attention
    /// is causal, so what stands behind a row's end changes nothing within it.
    pub(crate) fn padded(&self) -> Tensor {
        let length = self.max_length();
        let mut flat = Vec::with_capacity(self.rows.len() * length);
        for row in &self.rows {
            let filler = row.last().copied().unwrap_or(0);
            flat.extend(row.iter().copied().chain(std::iter::repeat(filler)).take(length));
        }
        Tensor::from_slice(&flat).view([self.rows.len() as i64, length as i64])
    }
}

/// The BOS token of the model's tokenizer, or of the vocabulary that its recipe recorded.
fn bos(subject: &Subject<'_>) -> Result<Option<i64>> {
    if let Some(codec) = codec(subject)? {
        return Ok(codec.bos());
    }
    let vocabulary = Vocabulary::of_checkpoint(&subject.checkpoint.extra)?;
    Ok(vocabulary.and_then(|words| words.roles.get("bos")?.first().copied()))
}

/// The BOS token that stands in front of rows, if one does: as asked for, else by the model's default. A small
/// model without a tokenizer has no BOS token, whatever its family's default is.
pub(crate) fn bos_in_front(subject: &Subject<'_>, wanted: Option<bool>) -> Result<Option<i64>> {
    match wanted {
        Some(true) => require_bos(subject).map(Some),
        None if subject.prepend_bos => bos(subject),
        Some(false) | None => Ok(None),
    }
}

/// The BOS token, or a refusal of `prepend_bos`.
fn require_bos(subject: &Subject<'_>) -> Result<i64> {
    bos(subject)?.ok_or_else(|| {
        Error::Unsupported(
            "`prepend_bos` needs a tokenizer with a BOS token, this model has none".to_owned(),
        )
    })
}

/// The model's tokenizer, or the one of its recipe: `text-lm` reads bytes, or the byte pairs that it recorded.
pub(crate) fn codec<'a>(subject: &Subject<'a>) -> Result<Option<Box<dyn TextCodec + 'a>>> {
    if let Some(codec) = subject.text {
        return Ok(Some(Box::new(codec)));
    }
    let Checkpoint { extra, config, .. } = subject.checkpoint;
    if let Some(pairs) = Bpe::of_checkpoint(extra)? {
        return Ok(Some(Box::new(pairs)));
    }
    let is_text =
        [&extra["recipe"], &extra["params"]["recipe"]].iter().any(|name| **name == text_lm::NAME);
    let is_bytes = is_text && config.d_vocab == N_BYTES;
    Ok(is_bytes.then(|| Box::new(Bytes) as Box<dyn TextCodec>))
}

/// What tokens are called, for tables and examples.
pub(crate) struct Names<'a> {
    codec: Option<Box<dyn TextCodec + 'a>>,
    vocabulary: Option<Vocabulary>,
}

impl<'a> Names<'a> {
    pub(crate) fn of(subject: &Subject<'a>) -> Result<Self> {
        let vocabulary = Vocabulary::of_checkpoint(&subject.checkpoint.extra)?;
        Ok(Self { codec: codec(subject)?, vocabulary })
    }

    /// Whether tokens have a text, not just numbers.
    pub(crate) fn has_text(&self) -> bool {
        self.codec.is_some() || self.vocabulary.is_some()
    }

    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { codec: None, vocabulary: None }
    }

    /// The text of tokens: as written where there is a tokenizer, else words or numbers with spaces between.
    pub(crate) fn text(&self, ids: &[i64]) -> String {
        match (&self.codec, &self.vocabulary) {
            (Some(codec), _) => ids.iter().map(|&id| codec.decode_token(id)).collect(),
            (None, Some(words)) => words.decode(ids),
            (None, None) => ids.iter().map(i64::to_string).collect::<Vec<_>>().join(" "),
        }
    }
}

/// Encodes by the tokenizer; without one, by the words that the model's recipe recorded.
pub(crate) fn encode(
    subject: &Subject<'_>,
    text: &[String],
    prepend_bos: bool,
) -> Result<Vec<Vec<i64>>> {
    if let Some(codec) = codec(subject)? {
        return text.iter().map(|text| codec.encode(text, prepend_bos)).collect();
    }
    let Some(words) = Vocabulary::of_checkpoint(&subject.checkpoint.extra)? else {
        return Err(Error::Unsupported(
            "`text` needs the model's tokenizer, this model has none: give `tokens`".to_owned(),
        ));
    };
    let front = if prepend_bos { Some(require_bos(subject)?) } else { None };
    let encode = |text: &String| {
        let ids = words.encode(text).map_err(|error| Error::params("text", error.to_string()))?;
        Ok(front.into_iter().chain(ids).collect())
    };
    text.iter().map(encode).collect()
}
