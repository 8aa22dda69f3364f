//! Induction heads: attention to what followed earlier, and what it is worth.
//!
//! # What it measures
//! On `batch` rows of `seq_len` random tokens that stand there `n_copies` times, behind a BOS token where the
//! model wants one, for every head:
//! - `induction_stripe`: attention from each position to the one `seq_len - 1` before it, the mean over rows and all
//!   entries of that diagonal (TransformerLens' demo counts those in the first copy too).
//! - `prefix_matching`: attention to all positions that follow an earlier occurrence of the query's token,
//!   summed per query, mean over the queries of the later copies that have such a position (Olsson et al.; their
//!   setting is `seq_len: 25, n_copies: 4, batch: 10`).
//! - `previous_token`: attention to the position in front, mean over all queries but the first.
//!
//! `induction_loss` is the mean next-token loss from shifted position `seq_len + 1` on, in nats: with
//! `layout: overwrite` (BOS written over the first token), `seq_len: 384`, `batch: 4` exactly TransformerLens'
//! `evals.induction_loss`. `first_copy_loss` is that of the first copy, which nothing can predict. `*_max` is the best
//! head's score. `prepend_bos` is 1 where a BOS token stands in front; `seq_len_used` is the length that fitted.
//!
//! # Interpretation
//! An induction head has `prefix_matching` near 1 in a layer behind a head with high `previous_token`. The stripe
//! alone can be a head that looks a fixed distance back: compare `attention-stats`' positional score. Floors of
//! the loss: ln(number of tokens drawn) for guessing, ln(seq_len) for copying any token seen.
//!
//! # Source
//! TransformerLens `Main_Demo` and `evals.induction_loss`; Olsson et al. 2022, arXiv 2209.11895, head activation
//! evaluators.

use sweep_lens::{Hook, Kind, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    pattern_sums::{PatternSums, places},
    prompts::Prompts,
    sink::Context,
    token_rows::{Drawing, Layout, TokenRows},
    value::Value,
};

/// See the module documentation.
pub struct InductionHeads;

params! {
    /// Which random tokens.
    pub struct Params {
        /// Rows that repeat already, equally long, possibly behind one more token; none: random ones.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Rows of random tokens.
        batch: u64 = 16, min = 1.0, max = 65536.0;
        /// Tokens that repeat; null: 50, or as many as the context has room for.
        seq_len: Option<u64> = None, min = 3.0, max = 65536.0;
        /// How often they stand there.
        n_copies: u64 = 2, min = 2.0, max = 64.0;
        /// Where a BOS token stands: in front, or over the first token of the first copy.
        layout: String = "prepend".to_owned(), choices = ["prepend", "overwrite"];
        /// Whether there is a BOS token; null: the model's default.
        prepend_bos: Option<bool> = None;
        /// Seed of the tokens.
        seed: u64 = 0;
    }
}

impl Experiment for InductionHeads {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "induction-heads",
        version: 1,
        summary: "Scores every head for induction on repeated random tokens, and the loss on the repeats",
        source: "TransformerLens Main_Demo, evals.induction_loss; Olsson et al. 2022, arXiv 2209.11895",
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
        let drawing = Drawing {
            batch: params.batch,
            seq_len: params.seq_len,
            n_copies: params.n_copies,
            overwrite_bos: params.layout == "overwrite",
            distinct: false,
            seed: params.seed,
        };
        let (rows, layout) = if params.tokens.is_empty() {
            let rows = TokenRows::draw(subject, params.prepend_bos, drawing)?;
            let layout = rows.layout.expect("drawn rows have a layout");
            (rows, layout)
        } else {
            let prompts = Prompts::new(subject, &params.tokens, &[], params.prepend_bos)?;
            let layout = layout_of(&prompts, params.n_copies as i64, params.seq_len)?;
            (TokenRows { prompts, layout: Some(layout) }, layout)
        };
        rows.check_targets(subject.model.config())?;
        let token_set = rows.token_set(subject, N_STATISTICS);
        let observer = Scores {
            tokens: token_set.tokens.shallow_clone(),
            layout,
            prepend_bos: rows.prompts.prepend_bos,
            d_vocab: subject.model.config().d_vocab_out,
            sums: PatternSums::new(subject.model.config().n_layers),
            losses: Vec::new(),
        };
        Ok(Analysis::Observe(token_set, Box::new(observer)))
    }
}

/// Where the copies of given rows stand. The first token may be a BOS token in front of the first copy or in
/// its place; everything else has to repeat.
fn layout_of(prompts: &Prompts, n_copies: i64, seq_len: Option<u64>) -> Result<Layout> {
    let refuse = |problem: String| Err(Error::params("tokens", problem));
    let Some(length) = prompts.common_length() else {
        return refuse("expected equally long rows".to_owned());
    };
    let (first, found) = (length as i64 % n_copies, length as i64 / n_copies);
    if first > 1 || found < 3 || seq_len.is_some_and(|seq_len| seq_len as i64 != found) {
        let wanted = seq_len.map_or("3 or more".to_owned(), |seq_len| seq_len.to_string());
        return refuse(format!(
            "rows of {length} tokens are not {n_copies} copies of {wanted}, or one token more"
        ));
    }
    let is_repeat = |row: &[i64]| {
        let start = first as usize;
        (start.max(1)..length - found as usize).all(|i| row[i] == row[i + found as usize])
    };
    match prompts.rows.iter().position(|row| !is_repeat(row)) {
        Some(row) => refuse(format!("row {row} does not repeat after {found} tokens")),
        None => Ok(Layout { first, seq_len: found, n_copies }),
    }
}

/// Stripe, prefix matching, previous token.
const N_STATISTICS: u64 = 3;

struct Scores {
    tokens: Tensor, // i64 [row, pos]
    layout: Layout,
    prepend_bos: bool,
    d_vocab: i64,
    sums: PatternSums,
    /// f64 `[batch, pos - 1]` of every batch so far.
    losses: Vec<Tensor>,
}

/// Where the scores look. Masks are `[batch, query, key]`.
struct Places {
    stripe: Tensor,
    matches: Tensor,
    previous: Tensor,
}

impl Places {
    fn new(tokens: &Tensor, layout: Layout) -> Self {
        let pos = tokens.size()[1];
        let distance = places::distance(pos, tokens).unsqueeze(0);
        let all = |mask: Tensor| mask.expand([tokens.size()[0], pos, pos], false);
        let matches = places::after_duplicates(tokens);
        let position = Tensor::arange(pos, (Kind::Int64, tokens.device()));
        let is_later = position.ge(layout.first + layout.seq_len).view([1, pos, 1]);
        Self {
            stripe: all(distance.eq(layout.seq_len - 1)),
            matches: matches.logical_and(&is_later),
            previous: all(distance.eq(1)),
        }
    }

    /// f32 `[batch, query, key, statistic]`.
    fn weights(&self) -> Tensor {
        Tensor::stack(&[&self.stripe, &self.matches, &self.previous], -1).to_kind(Kind::Float)
    }

    /// Queries that have a place, of each statistic, over all rows; the first two statistics count them.
    fn n_queries(&self) -> Vec<f64> {
        [&self.stripe, &self.matches, &self.previous]
            .into_iter()
            .map(|mask| mask.any_dim(-1, false).sum(Kind::Double).double_value(&[]))
            .collect()
    }
}

impl Observer for Scores {
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
        let tokens = self.tokens.narrow(0, first_row, pattern.size()[0]);
        self.sums.see(hook, first_row, pattern, || Places::new(&tokens, self.layout).weights());
        Ok(())
    }

    fn losses(&mut self, _first_row: i64, losses: &Tensor) -> Result<()> {
        self.losses.push(losses.shallow_clone());
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { tokens, layout, prepend_bos, sums, losses, .. } = *self;
        let totals = sums.finish()?.sum_dim_intlist(&[1i64][..], false, None::<Kind>); // [layer, head, statistic]
        let n_queries = Places::new(&tokens, layout).n_queries();
        for (index, name) in
            ["induction_stripe", "prefix_matching", "previous_token"].into_iter().enumerate()
        {
            let scores = totals.select(-1, index as i64) / n_queries[index].max(1.0);
            cx.metric(&format!("{name}_max"), scores.max().double_value(&[]))?;
            cx.metric(name, Value::from_tensor(&scores))?;
        }
        if losses.is_empty() {
            return Err(Error::Input("the forward pass gave no losses".to_owned()));
        }
        let losses = Tensor::cat(&losses, 0); // [row, pos - 1]
        let mean = |from: i64, to: i64| {
            losses.narrow(1, from, to - from).mean(Kind::Double).double_value(&[])
        };
        let Layout { first, seq_len, .. } = layout;
        cx.metric("induction_loss", mean(seq_len + 1, losses.size()[1]))?;
        cx.metric("first_copy_loss", mean(first, first + seq_len - 1))?;
        cx.metric("prepend_bos", f64::from(u8::from(prepend_bos)))?;
        cx.metric("seq_len_used", seq_len as f64)
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "induction_stripe",
        unit: Unit::Probability,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Attention to the position one copy minus one before, mean over the whole diagonal",
    },
    MetricDef {
        name: "prefix_matching",
        unit: Unit::Probability,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Attention to all positions that follow an earlier occurrence of the token, in later copies",
    },
    MetricDef {
        name: "previous_token",
        unit: Unit::Probability,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Attention to the position in front",
    },
    MetricDef {
        name: "induction_stripe_max",
        unit: Unit::Probability,
        axes: &[],
        doc: "Largest stripe score of any head",
    },
    MetricDef {
        name: "prefix_matching_max",
        unit: Unit::Probability,
        axes: &[],
        doc: "Largest prefix-matching score of any head",
    },
    MetricDef {
        name: "previous_token_max",
        unit: Unit::Probability,
        axes: &[],
        doc: "Largest previous-token score of any head",
    },
    MetricDef {
        name: "induction_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean next-token loss behind the first copy, from shifted position seq_len + 1 on",
    },
    MetricDef {
        name: "first_copy_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean next-token loss within the first copy",
    },
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Truth,
        axes: &[],
        doc: "1 if the rows begin with a BOS token, else 0",
    },
    MetricDef { name: "seq_len_used", unit: Unit::Count, axes: &[], doc: "Tokens of one copy" },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "heads",
        title: "Best head's scores",
        kind: FigureKind::Lines,
        metrics: &["prefix_matching_max", "induction_stripe_max", "previous_token_max"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "prefix-matching",
        title: "Prefix matching of every head",
        kind: FigureKind::HeatMap,
        metrics: &["prefix_matching"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "loss",
        title: "Loss on the repeats",
        kind: FigureKind::Lines,
        metrics: &["induction_loss", "first_copy_loss"],
        log_x: true,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use sweep_lens::{Device, Site};

    use super::*;
    use crate::sink::MemorySink;

    /// Scores of one pattern `[query, key]`, every row and head alike, on repeats of 1, 2, ….
    fn scores(layout: Layout, pattern: impl Fn(i64, i64) -> f32) -> MemorySink {
        let pos = layout.first + layout.seq_len * layout.n_copies;
        let token =
            |i: i64| if i < layout.first { 0 } else { 1 + (i - layout.first) % layout.seq_len };
        let tokens: Vec<i64> = (0..pos).map(token).collect();
        let cells: Vec<f32> = (0..pos)
            .flat_map(|q| (0..pos).map(move |k| (q, k)))
            .map(|(q, k)| pattern(q, k))
            .collect();
        let pattern = Tensor::from_slice(&cells).view([1, 1, pos, pos]);
        let mut observer = Box::new(Scores {
            tokens: Tensor::from_slice(&tokens).view([1, pos]),
            layout,
            prepend_bos: layout.first == 1,
            d_vocab: 9,
            sums: PatternSums::new(1),
            losses: Vec::new(),
        });
        observer.see(Hook::block(0, Site::Pattern), 0, &pattern).unwrap();
        let losses = Tensor::arange(pos - 1, (Kind::Double, Device::Cpu)).unsqueeze(0);
        observer.losses(0, &losses).unwrap();
        let mut sink = MemorySink::default();
        observer.finish(&mut Context::new(InductionHeads::CARD, 0, &mut sink)).unwrap();
        sink
    }

    #[test]
    fn known_patterns_have_known_scores() {
        let layout = Layout { first: 1, seq_len: 5, n_copies: 2 };
        // Perfect induction: 4 back wherever there is something, as the second copy wants it.
        let perfect =
            scores(layout, |q, k| f32::from(u8::from(if q < 4 { k == 0 } else { q - k == 4 })));
        assert_eq!(perfect.scalar("induction_stripe_max", 0), Some(1.0));
        assert_eq!(perfect.scalar("prefix_matching_max", 0), Some(1.0));
        assert_eq!(perfect.scalar("previous_token_max", 0), Some(0.1), "only query 1");
        // Uniform attention: the mean of n_i / (i + 1).
        let uniform = scores(layout, |q, k| if k <= q { 1.0 / (q + 1) as f32 } else { 0.0 });
        let mean = |queries: std::ops::Range<i64>| {
            let n = queries.end - queries.start;
            queries.map(|q| 1.0 / (q + 1) as f64).sum::<f64>() / n as f64
        };
        let near = |name, expected: f64| {
            let found = uniform.scalar(name, 0).unwrap();
            assert!((found - expected).abs() < 1e-6, "{name} {found} {expected}");
        };
        near("prefix_matching_max", mean(6..11));
        near("induction_stripe_max", mean(4..11));
        near("previous_token_max", mean(1..11));
        // Shifted losses 6..10 of 10; those of the first copy are 1..5.
        near("induction_loss", 7.5);
        near("first_copy_loss", 2.5);
        // Four copies: queries of copy c have c places; a head that looks at all of them evenly has 1.
        let layout = Layout { first: 1, seq_len: 3, n_copies: 4 };
        let all = scores(layout, |q, k| {
            let copy = (q - 1).div_euclid(3);
            let is_place = k > 0 && q > k && (q - k + 1) % 3 == 0 && k != 1;
            if copy < 1 {
                f32::from(u8::from(k == 0))
            } else {
                f32::from(u8::from(is_place)) / copy as f32
            }
        });
        let found = all.scalar("prefix_matching_max", 0).unwrap();
        assert!((found - 1.0).abs() < 1e-6, "{found}");
    }
}
