//! What experiments on heads read: a user's prompts, or random tokens that repeat (D11). One place draws
//! them, so that experiments with equal settings read equal tokens and share one forward pass.
//!
//! Main types: [`TokenRows`], made by [`TokenRows::new`], and [`Drawing`], how rows are drawn. Invariant: row
//! `r` of a seed is the same however many are drawn, and every id is one that the model can read and predict.
//!
//! Which tokens are drawn: 100 to 19 999 where the vocabulary has them (as TransformerLens does: no special
//! tokens, no rarest ones); from smaller vocabularies every id but the BOS token, and where a recipe
//! recorded a vocabulary, every id with a word.

use sweep_lens::{Config, Device, Kind, Positional, Tensor};

use crate::{
    error::{Error, Result},
    experiment::TokenSet,
    prompts::{self, Prompts},
    random::counter::Counter,
    sequence::first_rows,
    subject::{Subject, TextCodec},
    vocabulary::Vocabulary,
};

/// How random rows are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing {
    /// Rows.
    pub batch: u64,
    /// Tokens that repeat; `None` for as many as fit, at most [`SEQ_LEN`].
    pub seq_len: Option<u64>,
    /// How often they stand there.
    pub n_copies: u64,
    /// Whether the BOS token replaces the first token of the first copy instead of standing in front.
    pub overwrite_bos: bool,
    /// Whether the tokens of a copy are all different.
    pub distinct: bool,
    pub seed: u64,
}

/// Length of a copy where the context has room for it: that of TransformerLens' demo.
pub(crate) const SEQ_LEN: i64 = 50;

/// Where the copies of random rows stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Position of the first copy: 1 behind a BOS token, else 0.
    pub first: i64,
    pub seq_len: i64,
    pub n_copies: i64,
}

/// What a user asked for.
pub(crate) struct Wanted<'a> {
    pub tokens: &'a [Vec<i64>],
    pub text: &'a [String],
    /// `None`: the model's default.
    pub prepend_bos: Option<bool>,
    /// Used if there are neither tokens nor text.
    pub drawing: Drawing,
}

/// Rows of tokens, and how they were made.
#[derive(Debug)]
pub(crate) struct TokenRows {
    pub prompts: Prompts,
    /// Of rows that were drawn.
    pub layout: Option<Layout>,
}

impl TokenRows {
    pub(crate) fn new(subject: &Subject<'_>, wanted: &Wanted<'_>) -> Result<Self> {
        let Wanted { tokens, text, prepend_bos, drawing } = *wanted;
        match (tokens.is_empty(), text.is_empty()) {
            (true, true) => Self::draw(subject, prepend_bos, drawing),
            (false, false) => Err(Error::params(
                "tokens or text",
                "expected one of them or none, found tokens and text",
            )),
            _ => {
                let prompts = Prompts::new(subject, tokens, text, prepend_bos)?;
                if prompts.rows.iter().any(|row| row.len() < 2) {
                    let param = if text.is_empty() { "tokens" } else { "text" };
                    return Err(Error::params(param, "expected rows of two or more tokens"));
                }
                Ok(Self { prompts, layout: None })
            }
        }
    }

    /// Random rows.
    pub(crate) fn draw(
        subject: &Subject<'_>,
        prepend_bos: Option<bool>,
        drawing: Drawing,
    ) -> Result<Self> {
        let bos = prompts::bos_in_front(subject, prepend_bos)?;
        let config = subject.model.config();
        let first = i64::from(bos.is_some() && !drawing.overwrite_bos);
        let seq_len = seq_len(config, drawing, first)?;
        let layout = Layout { first, seq_len, n_copies: drawing.n_copies as i64 };
        let pool = Pool::of(subject, bos)?;
        let copies = draw_copies(&pool, drawing, seq_len)?;
        let rows = copies
            .into_iter()
            .map(|copy| {
                let mut row: Vec<i64> = bos.filter(|_| first == 1).into_iter().collect();
                for _ in 0..drawing.n_copies {
                    row.extend(&copy);
                }
                if let Some(bos) = bos {
                    row[0] = bos;
                }
                row
            })
            .collect();
        let prompts = Prompts { rows, prepend_bos: bos.is_some() };
        let length = prompts.max_length() as i64;
        if config.positional != Positional::None && length > config.n_ctx {
            let problem = format!("a row has {length} tokens, n_ctx is {}", config.n_ctx);
            return Err(Error::params("seq_len", problem));
        }
        Ok(Self { prompts, layout: Some(layout) })
    }

    /// How many tokens a random row can have behind its BOS token, if there is one, and how many different ones.
    pub(crate) fn room(subject: &Subject<'_>, prepend_bos: Option<bool>) -> Result<[i64; 2]> {
        let bos = prompts::bos_in_front(subject, prepend_bos)?;
        let config = subject.model.config();
        let is_bounded = config.positional != Positional::None;
        let n_positions = config.n_ctx - i64::from(bos.is_some());
        Ok([if is_bounded { n_positions } else { i64::MAX }, Pool::of(subject, bos)?.len()])
    }

    /// Length of each row, i64 `[row]`.
    pub(crate) fn lengths(&self, device: Device) -> Tensor {
        let lengths: Vec<i64> = self.prompts.rows.iter().map(|row| row.len() as i64).collect();
        Tensor::from_slice(&lengths).to_device(device)
    }

    /// The rows on the subject's device, shorter ones filled up, i64 `[row, pos]`.
    pub(crate) fn tokens(&self, subject: &Subject<'_>) -> Tensor {
        self.prompts.padded().to_device(subject.device)
    }

    /// As many rows per pass as keep activations, patterns and `n_statistics` weights of places within
    /// half a gigabyte.
    pub(crate) fn token_set(&self, subject: &Subject<'_>, n_statistics: u64) -> TokenSet {
        const PASS_BYTES: u64 = 512 << 20;
        let tokens = self.tokens(subject);
        let pos = self.prompts.max_length() as u64;
        let per_row = bytes_per_row(subject.model.config(), pos, n_statistics);
        let rows_per_batch =
            ((PASS_BYTES / per_row.max(1)) as i64).clamp(1, tokens.size()[0].max(1));
        TokenSet { tokens, rows_per_batch, last_position_only: false }
    }

    /// Refuses rows whose next tokens the model cannot predict.
    pub(crate) fn check_targets(&self, config: &Config) -> Result<()> {
        let mut targets = self.prompts.rows.iter().flat_map(|row| row.iter().skip(1));
        match targets.find(|&&token| token >= config.d_vocab_out) {
            None => Ok(()),
            Some(token) => Err(Error::Unsupported(format!(
                "losses need next tokens that the model can predict, token {token} is none of its {} outputs",
                config.d_vocab_out
            ))),
        }
    }
}

/// What a pass holds at once for a row: the residual stream in a few places, queries, keys and values, the
/// neurons before and after their non-linearity, scores and pattern of one layer.
pub(crate) fn bytes_per_row(config: &Config, pos: u64, n_statistics: u64) -> u64 {
    let Config { d_model, d_mlp, n_heads, d_head, .. } = *config;
    let [d_model, d_mlp, n_heads, d_head] =
        [d_model, d_mlp, n_heads, d_head].map(i64::unsigned_abs);
    let per_position = 6 * d_model + 3 * d_mlp + 5 * n_heads * d_head;
    let places = pos * pos;
    4 * (pos * per_position + places * (4 * n_heads + n_statistics))
}

/// Length of a copy that fits the context.
fn seq_len(config: &Config, drawing: Drawing, first: i64) -> Result<i64> {
    let n_copies = drawing.n_copies as i64;
    let is_bounded = config.positional != Positional::None;
    let fitting = (config.n_ctx - first) / n_copies;
    if let Some(seq_len) = drawing.seq_len {
        let seq_len = i64::try_from(seq_len).unwrap_or(i64::MAX);
        if is_bounded && seq_len > fitting {
            return Err(Error::params(
                "seq_len",
                format!(
                    "{n_copies} × {seq_len} tokens{} are more than n_ctx {}",
                    if first == 1 { " behind a BOS token" } else { "" },
                    config.n_ctx
                ),
            ));
        }
        return Ok(seq_len);
    }
    let seq_len = if is_bounded { fitting.min(SEQ_LEN) } else { SEQ_LEN };
    if seq_len < MIN_SEQ_LEN {
        return Err(Error::Unsupported(format!(
            "{n_copies} × {MIN_SEQ_LEN} random tokens{} do not fit in n_ctx {}",
            if first == 1 { " behind a BOS token" } else { "" },
            config.n_ctx
        )));
    }
    Ok(seq_len)
}

/// Fewest tokens that make a sequence worth repeating.
const MIN_SEQ_LEN: i64 = 3;

fn draw_copies(pool: &Pool, drawing: Drawing, seq_len: i64) -> Result<Vec<Vec<i64>>> {
    let n = pool.len();
    if drawing.distinct && seq_len > n {
        let problem = format!("{seq_len} different tokens are wanted, {n} can be drawn");
        return Err(Error::params("seq_len", problem));
    }
    let counter = Counter::new(&[drawing.seed], "random-tokens", Device::Cpu);
    let rows = first_rows(drawing.batch, Device::Cpu);
    let places = if drawing.distinct {
        counter.distinct(&rows, seq_len, n)
    } else {
        counter.below(&rows, seq_len, n)
    };
    let flat = Vec::<i64>::try_from(places.to_kind(Kind::Int64).contiguous().view([-1]))
        .map_err(|error| Error::Input(error.to_string()))?;
    let copies = flat.chunks(seq_len as usize);
    Ok(copies.map(|copy| copy.iter().map(|&place| pool.token(place)).collect()).collect())
}

/// Tokens that may be drawn.
enum Pool {
    /// `start..end`.
    Range(i64, i64),
    Listed(Vec<i64>),
}

/// Vocabularies of at least this size have special tokens at their ends and rare ones behind this.
const LARGE: i64 = 20_000;

impl Pool {
    fn of(subject: &Subject<'_>, bos: Option<i64>) -> Result<Self> {
        let config = subject.model.config();
        let end = config.d_vocab.min(config.d_vocab_out);
        if end >= LARGE {
            return Ok(Self::Range(100, LARGE));
        }
        let vocabulary = Vocabulary::of_checkpoint(&subject.checkpoint.extra)?;
        let end = vocabulary.as_ref().map_or(end, |words| end.min(words.words.len() as i64));
        let is_special = |id: i64| {
            let roles = vocabulary.as_ref().and_then(|words| words.roles.get("bos"));
            bos == Some(id)
                || subject.text.and_then(TextCodec::bos) == Some(id)
                || roles.is_some_and(|ids| ids.contains(&id))
        };
        let listed: Vec<i64> = (0..end).filter(|&id| !is_special(id)).collect();
        if listed.len() < 2 {
            return Err(Error::Unsupported(format!(
                "random tokens need a vocabulary of at least 2, this model has {}",
                listed.len()
            )));
        }
        Ok(Self::Listed(listed))
    }

    fn len(&self) -> i64 {
        match self {
            Self::Range(start, end) => end - start,
            Self::Listed(ids) => ids.len() as i64,
        }
    }

    fn token(&self, place: i64) -> i64 {
        match self {
            Self::Range(start, _) => start + place,
            Self::Listed(ids) => ids[place as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sweep_lens::{Transformer, Weights, checkpoint::Checkpoint, init};

    use super::*;

    fn checkpoint(config: Config, extra: serde_json::Value) -> Checkpoint {
        let parameters = config.parameters().into_iter().filter(|parameter| !parameter.optional);
        let weights: Weights = parameters
            .map(|p| (p.name.clone(), init::normal(1, &p.name, &p.shape, 0.1, Device::Cpu)))
            .collect();
        Checkpoint { config, weights, step: 0, extra, weights_hash: String::new() }
    }

    fn with<T>(checkpoint: &Checkpoint, look: impl FnOnce(Subject<'_>) -> T) -> T {
        let weights = checkpoint.weights.shallow_clone();
        let model = Transformer::new(checkpoint.config.clone(), weights).unwrap();
        look(Subject::of(checkpoint, &model))
    }

    const DRAWING: Drawing = Drawing {
        batch: 3,
        seq_len: None,
        n_copies: 2,
        overwrite_bos: false,
        distinct: false,
        seed: 0,
    };

    #[test]
    fn rows_repeat_and_do_not_depend_on_their_number() {
        let large = checkpoint(Config::toy(1, 4, 1, 25_000, 120), json!(null));
        with(&large, |subject| {
            let few = TokenRows::draw(&subject, None, DRAWING).unwrap();
            let many = Drawing { batch: 40, ..DRAWING };
            let many = TokenRows::draw(&subject, None, many).unwrap();
            assert_eq!(few.prompts.rows, many.prompts.rows[..3]);
            assert_eq!(few.layout, Some(Layout { first: 0, seq_len: 50, n_copies: 2 }));
            for row in &many.prompts.rows {
                assert!(row.len() == 100 && row[..50] == row[50..]);
                assert!(row.iter().all(|token| (100..20_000).contains(token)));
            }
            let other = TokenRows::draw(&subject, None, Drawing { seed: 1, ..DRAWING }).unwrap();
            assert_ne!(other.prompts.rows, few.prompts.rows);
            let error = TokenRows::draw(&subject, Some(true), DRAWING).unwrap_err();
            assert!(error.to_string().contains("BOS"), "{error}");
            let long = Drawing { seq_len: Some(61), ..DRAWING };
            let error = TokenRows::draw(&subject, None, long).unwrap_err();
            assert!(error.to_string().contains("2 × 61 tokens are more than n_ctx 120"), "{error}");
        });
    }

    #[test]
    fn small_vocabularies_keep_their_special_tokens_out() {
        let extra = json!({ "vocabulary": {
            "words": ["BOS", "a", "b", "c", "d"], "roles": { "bos": [0] },
        } });
        let mut config = Config::toy(1, 4, 1, 9, 9);
        config.default_prepend_bos = true;
        let toy = checkpoint(config, extra);
        with(&toy, |subject| {
            let rows = TokenRows::draw(&subject, None, Drawing { batch: 50, ..DRAWING }).unwrap();
            assert_eq!(rows.layout.unwrap(), Layout { first: 1, seq_len: 4, n_copies: 2 });
            assert!(rows.prompts.prepend_bos);
            let mut seen = [false; 9];
            for row in &rows.prompts.rows {
                assert!(row.len() == 9 && row[0] == 0 && row[1..5] == row[5..]);
                row[1..].iter().for_each(|&token| seen[token as usize] = true);
            }
            assert_eq!(seen, [false, true, true, true, true, false, false, false, false]);
            // TransformerLens' evaluation writes the BOS token over the first one.
            let over = Drawing { overwrite_bos: true, ..DRAWING };
            let over = TokenRows::draw(&subject, None, over).unwrap();
            assert_eq!(over.layout.unwrap().first, 0);
            assert!(over.prompts.rows.iter().all(|row| row[0] == 0 && row[1..4] == row[5..]));
            let distinct = Drawing { distinct: true, n_copies: 1, seq_len: Some(4), ..DRAWING };
            for row in &TokenRows::draw(&subject, None, distinct).unwrap().prompts.rows {
                let mut sorted = row[1..].to_vec();
                sorted.sort_unstable();
                assert_eq!(sorted, [1, 2, 3, 4]);
            }
            let five = Drawing { seq_len: Some(5), ..distinct };
            assert!(TokenRows::draw(&subject, None, five).is_err());
        });
        let short = checkpoint(Config::toy(1, 4, 1, 9, 5), json!(null));
        with(&short, |subject| {
            let error = TokenRows::draw(&subject, None, DRAWING).unwrap_err();
            assert!(error.to_string().contains("do not fit in n_ctx 5"), "{error}");
        });
    }
}
