//! Where heads look, whatever the text says: attention sinks, diffuse heads, positional heads.
//!
//! # What it measures
//! For every head, means over rows and over all queries but the first (which sees nothing but itself):
//! - `first_token`: attention to the first position (the BOS token where there is one);
//! - `current_token`, `previous_token`: attention to the query itself and to the position in front;
//! - `entropy`: of the attention over keys, in nats, and `entropy_normalized`, divided by its largest possible
//!   value ln(i + 1) at query i;
//! - `distance`: mean number of positions looked back.
//!
//! `positional` is the attention to the one fixed offset, from 1 to 32 positions back, that gets most of it in
//! different rows; `positional_offset` says which. Attention to the first position does not count there, and of
//! repeated random tokens only queries in the first copy do, so that nothing but the distance leads to the key. Offsets
//! that less than half of these queries can look back are left out. Rows are `tokens` or `text`; without either,
//! repeated random tokens as in `induction-heads`.
//!
//! # Interpretation
//! `first_token` near 1 is a resting head (attention sink). Low `entropy_normalized` is a focused head, 1 is uniform
//! attention. A previous-token head has `positional` near 1 at offset 1. Whether a BOS token stands in
//! front (`prepend_bos`) changes every number.
//!
//! # Source
//! Elhage et al. 2021; TransformerLens `head_detector`; Xiao et al. 2023, arXiv 2309.17453 (sinks).

use sweep_lens::{Device, Hook, Kind, Tensor};

use crate::{
    card::{Card, Figure, MetricDef, Requires, Stage, Unit, heat_map, of_head},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    pattern_sums::{PatternSums, places},
    sink::Context,
    token_rows::{Drawing, TokenRows, Wanted},
    value::Value,
};

/// See the module documentation.
pub struct AttentionStats;

params! {
    /// What is read.
    pub struct Params {
        /// Rows of token ids.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Texts for the model's tokenizer, or words of the vocabulary that a recipe recorded.
        text: Vec<String> = Vec::new();
        /// Whether the BOS token goes in front; null: the model's default, for tokens no.
        prepend_bos: Option<bool> = None;
        /// Rows of random tokens, if there are neither tokens nor text.
        batch: u64 = 16, min = 1.0, max = 65536.0;
        /// Random tokens that repeat; null: 50, or as many as the context has room for.
        seq_len: Option<u64> = None, min = 2.0, max = 65536.0;
        /// How often they stand there.
        n_copies: u64 = 2, min = 1.0, max = 64.0;
        /// Seed of the random tokens.
        seed: u64 = 0;
    }
}

impl Experiment for AttentionStats {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "attention-stats",
        version: 1,
        summary: "Measures where every head looks: first, current, fixed offset, entropy, distance",
        source: "Elhage et al. 2021; TransformerLens head_detector; Xiao et al. 2023",
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
            overwrite_bos: false,
            distinct: false,
            seed: params.seed,
        };
        let wanted = Wanted {
            tokens: &params.tokens,
            text: &params.text,
            prepend_bos: params.prepend_bos,
            drawing,
        };
        let rows = TokenRows::new(subject, &wanted)?;
        let token_set = rows.token_set(subject, 2 * N_STATISTICS);
        let lengths = rows.lengths(subject.device);
        let first_copy = rows.layout.map(|layout| layout.first + layout.seq_len);
        let unrepeated =
            first_copy.map_or_else(|| lengths.shallow_clone(), |end| lengths.clamp_max(end));
        let n_layers = subject.model.config().n_layers;
        let observer = Stats {
            lengths,
            unrepeated,
            n_offsets: (rows.prompts.max_length() as i64 - 1).min(MAX_OFFSET),
            prepend_bos: rows.prompts.prepend_bos,
            sums: PatternSums::new(n_layers),
            entropies: PatternSums::new(n_layers),
            queries_at: None,
            offsets: (0..n_layers).map(|_| None).collect(),
        };
        Ok(Analysis::Observe(token_set, Box::new(observer)))
    }
}

/// Largest offset of a positional head.
const MAX_OFFSET: i64 = 32;
/// First, current and previous position, distance.
const N_STATISTICS: u64 = 4;

struct Stats {
    /// i64 `[row]`
    lengths: Tensor,
    /// How many positions of a row stand in front of the first repeat, i64 `[row]`.
    unrepeated: Tensor,
    n_offsets: i64,
    prepend_bos: bool,
    sums: PatternSums,
    /// The same machinery for entropies, which are one number per query: `[batch, head, query, 1]`.
    entropies: PatternSums,
    /// First row of the batch at hand and, by offset, its queries that count, f32 `[batch, 1, query]` without those that
    /// are too early.
    queries_at: Option<(i64, Vec<Tensor>)>,
    /// By layer: summed attention at each offset, f64 `[head, offset]`.
    offsets: Vec<Option<Tensor>>,
}

impl Stats {
    /// Queries that count: within their row, not the first. f32 `[batch, query]`
    fn queries(&self, first_row: i64, n_rows: i64, pos: i64) -> Tensor {
        let within = places::within(&self.lengths.narrow(0, first_row, n_rows), pos);
        within.logical_and(&positions(pos, &self.lengths).gt(0)).to_kind(Kind::Float)
    }

    /// f32 `[batch, query, key, statistic]`
    fn weights(&self, first_row: i64, n_rows: i64, pos: i64) -> Tensor {
        let distance = places::distance(pos, &self.lengths); // [query, key]
        let is_first = positions(pos, &self.lengths).eq(0).expand_as(&distance);
        let places = Tensor::stack(
            &[
                is_first.to_kind(Kind::Float),
                float(&distance.eq(0)),
                float(&distance.eq(1)),
                float(&distance),
            ],
            -1,
        );
        self.queries(first_row, n_rows, pos).view([n_rows, pos, 1, 1]) * places.unsqueeze(0)
    }

    /// Queries that count at each offset: f32 `[batch, query]`.
    fn offset_queries(&self, first_row: i64, n_rows: i64, pos: i64, offset: i64) -> Tensor {
        let within = places::within(&self.unrepeated.narrow(0, first_row, n_rows), pos);
        within.logical_and(&positions(pos, &self.lengths).gt(offset)).to_kind(Kind::Float)
    }

    fn see_offsets(&mut self, layer: usize, first_row: i64, pattern: &Tensor) {
        let (n_rows, pos) = (pattern.size()[0], pattern.size()[3]);
        if self.queries_at.as_ref().is_none_or(|(row, _)| *row != first_row) {
            let queries = (1..=self.n_offsets).map(|offset| {
                let queries = self.offset_queries(first_row, n_rows, pos, offset);
                queries.narrow(1, offset, pos - offset).unsqueeze(1)
            });
            self.queries_at = Some((first_row, queries.collect()));
        }
        let (_, queries_at) = self.queries_at.as_ref().expect("made above");
        let by_offset: Vec<Tensor> = (1..)
            .zip(queries_at)
            .map(|(offset, queries)| {
                let diagonal = pattern.diagonal(-offset, -2, -1); // [batch, head, query]
                (diagonal * queries).sum_dim_intlist(&[0i64, 2][..], false, Kind::Double)
            })
            .collect();
        let found = Tensor::stack(&by_offset, -1); // [head, offset]
        self.offsets[layer] = Some(match self.offsets[layer].take() {
            Some(sum) => sum + found,
            None => found,
        });
    }

    /// Best offset and its mean attention, `[layer, head]` each.
    fn positional(&self) -> (Tensor, Tensor) {
        let (n_rows, pos) = (self.lengths.size()[0], self.n_offsets + 1);
        let pos = pos.max(self.lengths.max().int64_value(&[]));
        let count = |offset| {
            self.offset_queries(0, n_rows, pos, offset).sum(Kind::Double).double_value(&[])
        };
        let all = (self.unrepeated.sum(Kind::Double) - n_rows as f64).double_value(&[]);
        let counts: Vec<f64> = (1..=self.n_offsets).map(count).collect();
        // Too few queries say little; the nearest offset always counts.
        let n =
            counts.iter().enumerate().filter(|(i, n)| *i == 0 || 2.0 * **n >= all).count() as i64;
        let layers: Vec<Tensor> =
            self.offsets.iter().flatten().map(Tensor::shallow_clone).collect();
        let counts = Tensor::from_slice(&counts).clamp_min(1.0);
        let means = Tensor::stack(&layers, 0).to_device(Device::Cpu) / counts; // [layer, head, offset]
        let (best, offset) = means.narrow(-1, 0, n).max_dim(-1, false);
        (best, offset + 1)
    }
}

fn positions(pos: i64, like: &Tensor) -> Tensor {
    Tensor::arange(pos, (Kind::Int64, like.device()))
}

fn float(mask: &Tensor) -> Tensor {
    mask.to_kind(Kind::Float)
}

/// Entropy of each query's attention in nats: `[batch, head, query, key]` to `[batch, head, query, 1]`.
fn entropies(pattern: &Tensor) -> Tensor {
    let kind = if pattern.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let pattern = pattern.to_kind(kind);
    // What is below this adds nothing to a sum of f32, and zero has no logarithm.
    let mut terms = pattern.clamp_min(1e-37).log_();
    terms *= &pattern;
    -terms.sum_dim_intlist(&[-1i64][..], true, None::<Kind>)
}

impl Observer for Stats {
    fn wants(&self, hook: Hook) -> bool {
        PatternSums::wants(hook)
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn see(&mut self, hook: Hook, first_row: i64, pattern: &Tensor) -> Result<()> {
        let Some(layer) = hook.layer() else { return Ok(()) };
        let (n_rows, pos) = (pattern.size()[0], pattern.size()[3]);
        let mut sums = std::mem::replace(&mut self.sums, PatternSums::new(0));
        sums.see(hook, first_row, pattern, || self.weights(first_row, n_rows, pos));
        self.sums = sums;
        let mut sums = std::mem::replace(&mut self.entropies, PatternSums::new(0));
        sums.see(hook, first_row, &entropies(pattern), || {
            let queries = self.queries(first_row, n_rows, pos).view([n_rows, pos, 1, 1]);
            let largest = (positions(pos, &self.lengths) + 1).to_kind(Kind::Float).log();
            let normalized = &queries / largest.clamp_min(1e-30).view([1, pos, 1, 1]);
            Tensor::cat(&[&queries, &normalized], -1)
        });
        self.entropies = sums;
        self.see_offsets(layer as usize, first_row, pattern);
        Ok(())
    }

    fn finish(mut self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let pos = self.lengths.max().int64_value(&[]);
        let n_queries = self.queries(0, self.lengths.size()[0], pos).sum(Kind::Double);
        let n_queries = n_queries.double_value(&[]).max(1.0);
        let mean = |sums: &mut PatternSums| -> Result<Tensor> {
            let sums = std::mem::replace(sums, PatternSums::new(0)).finish()?;
            Ok(sums.sum_dim_intlist(&[1i64][..], false, Kind::Double) / n_queries)
        };
        let means = mean(&mut self.sums)?; // [layer, head, statistic]
        let entropies = mean(&mut self.entropies)?;
        let (best, offset) = self.positional();
        let of = |means: &Tensor, index| Value::from_tensor(&means.select(-1, index));
        cx.metric("first_token", of(&means, 0))?;
        cx.metric("current_token", of(&means, 1))?;
        cx.metric("previous_token", of(&means, 2))?;
        cx.metric("distance", of(&means, 3))?;
        cx.metric("entropy", of(&entropies, 0))?;
        cx.metric("entropy_normalized", of(&entropies, 1))?;
        cx.metric("positional", Value::from_tensor(&best))?;
        cx.metric("positional_offset", Value::from_tensor(&offset))?;
        cx.metric("prepend_bos", f64::from(u8::from(self.prepend_bos)))
    }
}

const METRICS: &[MetricDef] = &[
    of_head("first_token", Unit::Probability, "Mean attention to the first position"),
    of_head("current_token", Unit::Probability, "Mean attention to the query itself"),
    of_head("previous_token", Unit::Probability, "Mean attention to the position in front"),
    of_head("distance", Unit::Count, "Mean number of positions looked back"),
    of_head("entropy", Unit::Nats, "Mean entropy of the attention over keys"),
    of_head(
        "entropy_normalized",
        Unit::Ratio,
        "Mean entropy divided by its largest possible value at each query",
    ),
    of_head("positional", Unit::Probability, "Mean attention to the best fixed offset"),
    of_head("positional_offset", Unit::Count, "How far back that offset is"),
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Truth,
        axes: &[],
        doc: "1 if the rows begin with a BOS token, else 0",
    },
];

const FIGURES: &[Figure] = &[
    heat_map("first-token", "Attention to the first position", &["first_token"]),
    heat_map("entropy", "Normalised entropy of attention", &["entropy_normalized"]),
    heat_map("positional", "Attention to the best fixed offset", &["positional"]),
];

#[cfg(test)]
mod tests {
    use sweep_lens::Site;

    use super::*;
    use crate::sink::MemorySink;

    /// Statistics of one head; `pattern(row, query, key)`.
    fn stats(
        lengths: &[i64],
        unrepeated: &[i64],
        pattern: impl Fn(i64, i64, i64) -> f32,
    ) -> MemorySink {
        let (n, pos) = (lengths.len() as i64, *lengths.iter().max().unwrap());
        let mut cells = Vec::new();
        for row in 0..n {
            cells.extend((0..pos * pos).map(|i| pattern(row, i / pos, i % pos)));
        }
        let patterns = Tensor::from_slice(&cells).view([n, 1, pos, pos]);
        let mut observer = Box::new(Stats {
            lengths: Tensor::from_slice(lengths),
            unrepeated: Tensor::from_slice(unrepeated),
            n_offsets: (pos - 1).min(MAX_OFFSET),
            prepend_bos: true,
            sums: PatternSums::new(1),
            entropies: PatternSums::new(1),
            queries_at: None,
            offsets: vec![None],
        });
        let hook = Hook::block(0, Site::Pattern);
        observer.see(hook, 0, &patterns.narrow(0, 0, 1)).unwrap();
        if n > 1 {
            observer.see(hook, 1, &patterns.narrow(0, 1, n - 1)).unwrap();
        }
        let mut sink = MemorySink::default();
        observer.finish(&mut Context::new(AttentionStats::CARD, 0, &mut sink)).unwrap();
        sink
    }

    #[track_caller]
    fn check(sink: &MemorySink, expected: &[(&str, f64)]) {
        for (name, expected) in expected {
            let found = sink.metrics[*name][&0].data[0];
            assert!((found - expected).abs() < 1e-6, "{name}: {found}, expected {expected}");
        }
    }

    fn one(is: bool) -> f32 {
        f32::from(u8::from(is))
    }

    #[test]
    fn known_patterns() {
        let uniform =
            stats(&[5, 3], &[5, 3], |_, q, k| if k <= q { 1.0 / (q + 1) as f32 } else { 0.0 });
        // Queries 1 to 4 and 1 to 2.
        let mean = |of: fn(f64) -> f64| (2.0 * of(1.0) + 2.0 * of(2.0) + of(3.0) + of(4.0)) / 6.0;
        check(
            &uniform,
            &[
                ("first_token", mean(|q| 1.0 / (q + 1.0))),
                ("current_token", mean(|q| 1.0 / (q + 1.0))),
                ("previous_token", mean(|q| 1.0 / (q + 1.0))),
                ("distance", mean(|q| q / 2.0)),
                ("entropy", mean(|q| (q + 1.0).ln())),
                ("entropy_normalized", 1.0),
                // Offset 1 from queries 2 to 4 and 2, the first position left out.
                ("positional", (2.0 / 3.0 + 0.25 + 0.2) / 4.0),
                ("positional_offset", 1.0),
            ],
        );
        let two_back = stats(&[9], &[9], |_, q, k| one(if q < 2 { k == 0 } else { q - k == 2 }));
        check(
            &two_back,
            &[
                ("first_token", 2.0 / 8.0),
                ("entropy", 0.0),
                ("distance", (1.0 + 7.0 * 2.0) / 8.0),
                ("positional", 1.0),
                ("positional_offset", 2.0),
            ],
        );
        let sink = stats(&[9], &[9], |_, _, k| one(k == 0));
        check(&sink, &[("first_token", 1.0), ("positional", 0.0), ("current_token", 0.0)]);
        // A stripe that only repeats explain: 4 back, in the second copy of 5.
        let stripe = stats(&[11], &[6], |_, q, k| one(if q < 6 { k == 0 } else { q - k == 4 }));
        check(&stripe, &[("positional", 0.0)]);
    }
}
