//! Soft induction: repeats in another language, in synonyms, in another case.
//!
//! # What it measures
//! Rows of `n_words` different words from a list of aligned pairs, then the same words' partners in the same order (D41);
//! every other row begins with the right-hand words. `soft_prefix_matching` of a head is its attention from the last token of
//! a word in the second copy to the token behind the aligned word in the first copy (`A[i, j + 1]`), mean over rows and all
//! words but the last. `literal_prefix_matching` is the same where the second copy repeats the first word by word,
//! `control_matching` where the first copy holds others of the words, none of the second's, at the same places: what position alone gives.
//! `translated_loss`, `control_loss` and `literal_loss` are mean next-token losses of the second copy behind its first word, in
//! nats; translation and control have the same second copy, and `translation_gain` is the control's loss minus the
//! translation's. Words come from `pairs` (`left=right`, spaces count: ` dog= chien`; encoded by the model's tokenizer, any number
//! of tokens), or `token_pairs`; for models of recipe `paired-synonyms` they are its own.
//!
//! # Interpretation
//! A head with high `soft_prefix_matching` and low `control_matching` looks up meaning rather than form. In language models
//! the gain appears later than literal induction.
//!
//! # Source
//! Olsson et al. 2022, arXiv 2209.11895, argument 4 (translation).

use std::collections::BTreeSet;

use sweep_lens::{Config, Device, Hook, Kind, Positional, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    pattern_sums::PatternSums,
    prompts::{self, Prompts},
    random::counter::Counter,
    sequence::first_rows,
    sink::Context,
    token_rows::TokenRows,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct SoftInduction;

params! {
    /// Which words, and how many rows of them.
    pub struct Params {
        /// Aligned words, `left=right`, each with the spaces that belong to its tokens.
        pairs: Vec<String> = Vec::new();
        /// Aligned tokens, two each.
        token_pairs: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Rows of each kind: translated, control, literal.
        batch: u64 = 16, min = 2.0, max = 16384.0;
        /// Words of one copy; null: 25, or as many as half of them and the context has room for.
        n_words: Option<u64> = None, min = 3.0, max = 4096.0;
        /// Whether there is a BOS token in front; null: the model's default.
        prepend_bos: Option<bool> = None;
        /// Seed of the rows.
        seed: u64 = 0;
    }
}

/// Most words of a copy by default.
const N_WORDS: usize = 25;
/// Fewest words that make a sequence worth repeating.
const MIN_WORDS: usize = 3;

impl Experiment for SoftInduction {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "soft-induction",
        version: 2,
        summary: "Scores every head for induction across translations, synonyms or case",
        source: "Olsson et al. 2022, arXiv 2209.11895, argument 4",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let config = subject.model.config();
        let (words, param) = words(subject, &params)?;
        let bos = prompts::bos_in_front(subject, params.prepend_bos)?;
        let n_words = n_words(&params, &words, config, usize::from(bos.is_some()), param)?;
        let drawn: Vec<Row> = draw(&words, n_words, params.batch, params.seed, bos);
        let rows = drawn.iter().map(|row| row.tokens.clone()).collect();
        let prompts = Prompts { rows, prepend_bos: bos.is_some() };
        prompts.check(config, param)?;
        let rows = TokenRows { prompts, layout: None };
        rows.check_targets(config)?;
        let observer = Translation {
            n_words,
            prepend_bos: bos.is_some(),
            d_vocab: config.d_vocab_out,
            device: subject.device,
            losses: vec![f64::NAN; drawn.len()],
            rows: drawn,
            sums: PatternSums::new(config.n_layers),
        };
        Ok(Analysis::Observe(rows.token_set(subject, 1), Box::new(observer)))
    }
}

/// Tokens of a word in both languages.
type Word = [Vec<i64>; 2];

/// The words, and the parameter that they came from.
fn words(subject: &Subject<'_>, params: &Params) -> Result<(Vec<Word>, &'static str)> {
    match (params.pairs.is_empty(), params.token_pairs.is_empty()) {
        (false, false) => Err(Error::params(
            "pairs or token_pairs",
            "expected one of them, found pairs and token_pairs",
        )),
        (false, true) => Ok((encoded(subject, &params.pairs)?, "pairs")),
        (true, false) => {
            let word = |pair: &Vec<i64>| match pair[..] {
                [left, right] => Ok([vec![left], vec![right]]),
                _ => Err(Error::params(
                    "token_pairs",
                    format!("expected two tokens for each word, found {pair:?}"),
                )),
            };
            Ok((params.token_pairs.iter().map(word).collect::<Result<_>>()?, "token_pairs"))
        }
        (true, true) => {
            let recipe = subject.checkpoint.extra.get("recipe").and_then(|name| name.as_str());
            if recipe != Some("paired-synonyms") {
                return Err(Error::Unsupported(
                    "`soft-induction` needs words: give `pairs` or `token_pairs` (only models of recipe \
                     `paired-synonyms` have their own)"
                        .to_owned(),
                ));
            }
            let n_pairs = subject.model.config().d_vocab / 2;
            Ok(((0..n_pairs).map(|i| [vec![i], vec![n_pairs + i]]).collect(), "token_pairs"))
        }
    }
}

fn encoded(subject: &Subject<'_>, pairs: &[String]) -> Result<Vec<Word>> {
    let word = |pair: &String| {
        let sides = pair.split_once('=').filter(|(a, b)| !a.is_empty() && !b.is_empty());
        let Some((left, right)) = sides else {
            return Err(Error::params("pairs", format!("expected `left=right`, found `{pair}`")));
        };
        let sides = [left.to_owned(), right.to_owned()];
        let mut ids = prompts::encode(subject, &sides, false)?;
        if let Some(empty) = ids.iter().position(Vec::is_empty) {
            return Err(Error::params("pairs", format!("`{}` has no tokens", sides[empty])));
        }
        let (right, left) = (ids.pop().unwrap_or_default(), ids.pop().unwrap_or_default());
        Ok([left, right])
    };
    pairs.iter().map(word).collect()
}

/// Words of a copy, so many that any rows fit.
fn n_words(
    params: &Params,
    words: &[Word],
    config: &Config,
    first: usize,
    param: &str,
) -> Result<usize> {
    // The control says as many others.
    let half = words.len() / 2;
    if half < MIN_WORDS {
        let (needed, found) = (2 * MIN_WORDS, words.len());
        let problem =
            format!("expected {needed} or more words (the control says others), found {found}");
        return Err(Error::params(param, problem));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = words.iter().flatten().find(|&side| !seen.insert(side)) {
        let problem = format!("expected different words, found tokens {twice:?} twice");
        return Err(Error::params(param, problem));
    }
    let longest = words.iter().flatten().map(Vec::len).max().unwrap_or(1);
    let room = match config.positional {
        Positional::None => usize::MAX,
        _ => (config.n_ctx as usize).saturating_sub(first) / (2 * longest),
    };
    match params.n_words {
        Some(wanted) if wanted > half as u64 => Err(Error::params(
            "n_words",
            format!(
                "{wanted} words and as many others for the control are wanted, there are {}",
                words.len()
            ),
        )),
        Some(wanted) if wanted > room as u64 => Err(Error::params(
            "n_words",
            format!(
                "two copies of {wanted} words of up to {longest} tokens do not fit in n_ctx {}",
                config.n_ctx
            ),
        )),
        Some(wanted) => Ok(wanted as usize),
        None if room < MIN_WORDS => Err(Error::Unsupported(format!(
            "two copies of {MIN_WORDS} words of up to {longest} tokens do not fit in n_ctx {}",
            config.n_ctx
        ))),
        None => Ok(N_WORDS.min(half).min(room)),
    }
}

/// What relates the copies of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Translated,
    /// The first copy holds other words.
    Control,
    Literal,
}

/// A row and where to look in it.
struct Row {
    relation: Relation,
    tokens: Vec<i64>,
    /// Queries with the keys behind the aligned words.
    places: Vec<(usize, usize)>,
    /// Positions of the second copy behind its first word, whose tokens are to be predicted.
    targets: std::ops::Range<usize>,
}

impl Row {
    /// `copies`: per copy the language, and the words by number.
    fn new(
        relation: Relation,
        words: &[Word],
        copies: [(usize, &[i64]); 2],
        bos: Option<i64>,
    ) -> Self {
        let mut tokens: Vec<i64> = bos.into_iter().collect();
        // Position behind each word, by copy.
        let ends = copies.map(|(language, numbers)| {
            let end = |number: &i64| {
                tokens.extend(&words[*number as usize][language]);
                tokens.len()
            };
            numbers.iter().map(end).collect::<Vec<usize>>()
        });
        let n = ends[0].len();
        let places = (0..n - 1).map(|word| (ends[1][word] - 1, ends[0][word])).collect();
        Self { relation, targets: ends[1][0]..tokens.len(), tokens, places }
    }
}

/// All rows: `batch` of each relation. A row's control says none of its words.
fn draw(words: &[Word], n_words: usize, batch: u64, seed: u64, bos: Option<i64>) -> Vec<Row> {
    let counter = Counter::new(&[seed], "soft-induction/words", Device::Cpu);
    let rows = first_rows(batch, Device::Cpu);
    let drawn = to_vec(&counter.distinct(&rows, 2 * n_words as i64, words.len() as i64));
    let drawn: Vec<i64> = drawn.into_iter().map(|x| x as i64).collect();
    let mut rows = Vec::with_capacity(3 * batch as usize);
    for relation in [Relation::Translated, Relation::Control, Relation::Literal] {
        for (index, row) in drawn.chunks(2 * n_words).enumerate() {
            let (said, other) = row.split_at(n_words);
            let (from, to) = (index % 2, 1 - index % 2);
            let copies: [(usize, &[i64]); 2] = match relation {
                Relation::Translated => [(from, said), (to, said)],
                Relation::Control => [(from, other), (to, said)],
                Relation::Literal => [(to, said), (to, said)],
            };
            rows.push(Row::new(relation, words, copies, bos));
        }
    }
    rows
}

struct Translation {
    n_words: usize,
    prepend_bos: bool,
    d_vocab: i64,
    device: Device,
    rows: Vec<Row>,
    sums: PatternSums,
    /// Mean loss of each row's targets.
    losses: Vec<f64>,
}

impl Observer for Translation {
    fn wants(&self, hook: Hook) -> bool {
        PatternSums::wants(hook)
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn wants_losses(&self) -> Option<i64> {
        Some(self.d_vocab)
    }

    fn see(&mut self, hook: Hook, first_row: i64, pattern: &Tensor) -> Result<()> {
        let (n_rows, pos) = (pattern.size()[0] as usize, pattern.size()[3] as usize);
        let rows = &self.rows[first_row as usize..first_row as usize + n_rows];
        self.sums.see(hook, first_row, pattern, || {
            let mut weights = vec![0f32; n_rows * pos * pos];
            for (index, row) in rows.iter().enumerate() {
                for &(query, key) in &row.places {
                    weights[(index * pos + query) * pos + key] = 1.0 / row.places.len() as f32;
                }
            }
            let shape = [n_rows as i64, pos as i64, pos as i64, 1];
            Tensor::from_slice(&weights).view(shape).to_device(self.device)
        });
        Ok(())
    }

    fn losses(&mut self, first_row: i64, losses: &Tensor) -> Result<()> {
        let n = losses.size()[1] as usize;
        for (index, found) in to_vec(losses).chunks(n).enumerate() {
            let place = first_row as usize + index;
            // Entry i is about token i + 1.
            let targets = self.rows[place].targets.clone();
            let of = &found[targets.start - 1..targets.end - 1];
            self.losses[place] = of.iter().sum::<f64>() / of.len() as f64;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { n_words, prepend_bos, rows, sums, losses, .. } = *self;
        let sums = sums.finish()?.squeeze_dim(-1); // [layer, row, head]
        let of = |relation: Relation| -> (Tensor, f64) {
            let chosen: Vec<i64> =
                (0..rows.len() as i64).filter(|&i| rows[i as usize].relation == relation).collect();
            let scores = sums.index_select(1, &Tensor::from_slice(&chosen));
            let total: f64 = chosen.iter().map(|&i| losses[i as usize]).sum();
            (scores.mean_dim(&[1i64][..], false, Kind::Double), total / chosen.len() as f64)
        };
        let (soft, translated_loss) = of(Relation::Translated);
        let (control, control_loss) = of(Relation::Control);
        let (literal, literal_loss) = of(Relation::Literal);
        cx.metric("soft_prefix_matching_max", soft.max().double_value(&[]))?;
        cx.metric("literal_prefix_matching_max", literal.max().double_value(&[]))?;
        cx.metric("soft_prefix_matching", Value::from_tensor(&soft))?;
        cx.metric("literal_prefix_matching", Value::from_tensor(&literal))?;
        cx.metric("control_matching", Value::from_tensor(&control))?;
        cx.metric("translated_loss", translated_loss)?;
        cx.metric("control_loss", control_loss)?;
        cx.metric("literal_loss", literal_loss)?;
        cx.metric("translation_gain", control_loss - translated_loss)?;
        cx.metric("n_words", n_words as f64)?;
        cx.metric("prepend_bos", f64::from(u8::from(prepend_bos)))
    }
}

const fn of_head(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Probability, axes: &[Axis::Layer, Axis::Head], doc }
}

const METRICS: &[MetricDef] = &[
    of_head("soft_prefix_matching", "Attention to the token behind the aligned word"),
    of_head(
        "literal_prefix_matching",
        "The same where the second copy repeats the first literally",
    ),
    of_head("control_matching", "The same where the first copy holds other words"),
    scalar("soft_prefix_matching_max", Unit::Probability, "Best head's soft prefix matching"),
    scalar("literal_prefix_matching_max", Unit::Probability, "Best head's literal prefix matching"),
    scalar("translated_loss", Unit::Nats, "Loss of the second copy after its translation"),
    scalar("control_loss", Unit::Nats, "Loss of the same second copy after other words"),
    scalar("literal_loss", Unit::Nats, "Loss of the same second copy after itself"),
    scalar("translation_gain", Unit::Nats, "Control loss minus translated loss"),
    scalar("n_words", Unit::Count, "Words of one copy"),
    scalar("prepend_bos", Unit::Truth, "1 if the rows begin with a BOS token, else 0"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "heads",
        title: "Best head's prefix matching",
        kind: FigureKind::Lines,
        metrics: &["soft_prefix_matching_max", "literal_prefix_matching_max"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "gain",
        title: "What the translation is worth",
        kind: FigureKind::Lines,
        metrics: &["translation_gain"],
        log_x: true,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_word_by_word() {
        let words: Vec<Word> =
            vec![[vec![1, 2], vec![3]], [vec![4], vec![5, 6, 7]], [vec![8], vec![9]]];
        let more: Vec<Word> = (0..7).map(|word| [vec![2 * word], vec![2 * word + 1]]).collect();
        let row =
            Row::new(Relation::Translated, &words, [(0, &[1, 0, 2]), (1, &[1, 0, 2])], Some(0));
        assert_eq!(row.tokens, [0, 4, 1, 2, 8, 5, 6, 7, 3, 9]);
        // From token 7 (end of word 1) to what follows 4, from 3 (word 0) to what follows 1 2.
        assert_eq!(row.places, [(7, 2), (8, 4)]);
        assert_eq!(row.targets, 8..10);
        let rows = draw(&more, 3, 4, 0, None);
        assert_eq!(rows.len(), 12);
        let second = |row: &Row| row.tokens[row.targets.clone()].to_vec();
        for index in 0..4 {
            // One second copy, three first ones.
            assert_eq!(second(&rows[index]), second(&rows[4 + index]));
            assert_eq!(second(&rows[index]), second(&rows[8 + index]));
            assert_eq!(rows[index].relation, Relation::Translated);
            let said: BTreeSet<i64> = rows[index].tokens.iter().map(|token| token / 2).collect();
            let control = &rows[4 + index].tokens[..3];
            assert_eq!(said.len(), 3);
            assert!(
                control.iter().all(|token| !said.contains(&(token / 2))),
                "{control:?} {said:?}"
            );
            let literal = &rows[8 + index].tokens;
            assert_eq!(literal[..literal.len() / 2], literal[literal.len() / 2..]);
        }
    }
}
