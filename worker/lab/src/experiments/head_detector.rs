//! Previous-token, duplicate-token and induction heads, as TransformerLens detects them on any text.
//!
//! # What it measures
//! For every head, how much its attention pattern `A` looks like a detection pattern `P` of ones and zeros:
//! ones at the position in front (`previous_token_head`), at earlier places of the same token
//! (`duplicate_token_head`), at the positions that follow those (`induction_head`). `mul` is `sum(A∘P) / sum(A)`, the
//! share of attention that goes there; `…_abs` is `1 - round(mean(|A - P|) · T, 3)` for `T` tokens. With `exclude_bos`
//! attention to the first position, with `exclude_current_token` attention to the query itself does not count
//! (in `mul` it leaves `A`, in `abs` the difference). Several rows: the mean of their scores. A head with no attention left
//! to count scores 0. Rows are `tokens` or `text`; without either, repeated random tokens as in `induction-heads`.
//!
//! # Interpretation
//! `mul` is a fraction of attention. `abs` punishes attention elsewhere and is negative for most heads on most
//! texts: it is close to 1 only where every query has exactly one place to look at and looks there.
//!
//! # Source
//! TransformerLens 4.3 `head_detector.detect_head`.

use sweep_lens::{Hook, Kind, Tensor};

use crate::{
    card::{Axis, Card, Figure, MetricDef, Requires, Stage, Unit, heat_map},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    pattern_sums::{PatternSums, places},
    sink::Context,
    token_rows::{Drawing, TokenRows, Wanted},
    value::Value,
};

/// See the module documentation.
pub struct HeadDetector;

params! {
    /// What is read and what counts.
    pub struct Params {
        /// Rows of token ids.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Texts for the model's tokenizer, or words of the vocabulary that a recipe recorded.
        text: Vec<String> = Vec::new();
        /// Whether the BOS token goes in front; null: the model's default, for tokens no.
        prepend_bos: Option<bool> = None;
        /// Whether attention to the first position does not count.
        exclude_bos: bool = false;
        /// Whether attention to the query itself does not count.
        exclude_current_token: bool = false;
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

impl Experiment for HeadDetector {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "head-detector",
        version: 1,
        summary: "Scores every head as previous-token, duplicate-token and induction head on any text",
        source: "TransformerLens head_detector.detect_head",
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
        let token_set = rows.token_set(subject, N_STATISTICS);
        let observer = Detector {
            tokens: token_set.tokens.shallow_clone(),
            lengths: rows.lengths(subject.device),
            exclude_bos: params.exclude_bos,
            exclude_current_token: params.exclude_current_token,
            prepend_bos: rows.prompts.prepend_bos,
            sums: PatternSums::new(subject.model.config().n_layers),
        };
        Ok(Analysis::Observe(token_set, Box::new(observer)))
    }
}

/// Detection patterns, by metric.
const HEADS: [(&str, &str); 3] = [
    ("previous_token_head", "previous_token_head_abs"),
    ("duplicate_token_head", "duplicate_token_head_abs"),
    ("induction_head", "induction_head_abs"),
];
/// Attention on each detection pattern, and all attention that counts.
const N_STATISTICS: u64 = 4;

struct Detector {
    tokens: Tensor,  // i64 [row, pos]
    lengths: Tensor, // i64 [row]
    exclude_bos: bool,
    exclude_current_token: bool,
    prepend_bos: bool,
    sums: PatternSums,
}

impl Detector {
    /// Detection patterns where attention counts, and all such places.
    ///
    /// bool `[batch, query, key, statistic]`
    fn places(&self, first_row: i64, n_rows: i64) -> Tensor {
        let tokens = self.tokens.narrow(0, first_row, n_rows);
        let pos = tokens.size()[1];
        let distance = places::distance(pos, &tokens);
        let mut counts = distance.ge(0); // [query, key]
        if self.exclude_current_token {
            counts = counts.logical_and(&distance.ne(0));
        }
        if self.exclude_bos {
            counts = counts.logical_and(&Tensor::arange(pos, (Kind::Int64, tokens.device())).ne(0));
        }
        let within = places::within(&self.lengths.narrow(0, first_row, n_rows), pos).unsqueeze(-1);
        let counts = within.logical_and(&counts.unsqueeze(0)); // [batch, query, key]
        let previous = distance.eq(1).unsqueeze(0).logical_and(&counts);
        let duplicates = places::duplicates(&tokens).logical_and(&counts);
        let after = places::after_duplicates(&tokens).logical_and(&counts);
        Tensor::stack(&[previous, duplicates, after, counts], -1)
    }

    /// Number of ones of each detection pattern where attention counts, f64 `[row, pattern]` on the CPU.
    fn n_ones(&self) -> Tensor {
        let rows: Vec<Tensor> = (0..self.tokens.size()[0])
            .map(|row| self.places(row, 1).sum_dim_intlist(&[1i64, 2][..], false, Kind::Double))
            .collect();
        Tensor::cat(&rows, 0).narrow(1, 0, 3).to_device(sweep_lens::Device::Cpu)
    }
}

impl Observer for Detector {
    fn wants(&self, hook: Hook) -> bool {
        PatternSums::wants(hook)
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn see(&mut self, hook: Hook, first_row: i64, pattern: &Tensor) -> Result<()> {
        let mut sums = std::mem::replace(&mut self.sums, PatternSums::new(0));
        let n_rows = pattern.size()[0];
        sums.see(hook, first_row, pattern, || self.places(first_row, n_rows).to_kind(Kind::Float));
        self.sums = sums;
        Ok(())
    }

    fn finish(mut self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let sums = std::mem::replace(&mut self.sums, PatternSums::new(0)).finish()?;
        let total = sums.narrow(-1, 3, 1); // [layer, row, head, 1]
        let on = sums.narrow(-1, 0, 3); // [layer, row, head, pattern]
        let mul =
            (&on / total.clamp_min(f64::MIN_POSITIVE)).mean_dim(&[1i64][..], false, Kind::Double);
        let n_ones = self.n_ones().unsqueeze(1); // [row, 1, pattern]
        let n_tokens =
            self.lengths.to_device(sweep_lens::Device::Cpu).to_kind(Kind::Double).view([-1, 1, 1]);
        // |A - P| is A + P - 2AP where P is 0 or 1 and A within.
        let differences = (total + n_ones - &on * 2.0) / n_tokens;
        let abs: Tensor = 1.0 - differences.round_decimals(3);
        let abs = abs.mean_dim(&[1i64][..], false, Kind::Double);
        for (index, (name, name_abs)) in HEADS.into_iter().enumerate() {
            cx.metric(name, Value::from_tensor(&mul.select(-1, index as i64)))?;
            cx.metric(name_abs, Value::from_tensor(&abs.select(-1, index as i64)))?;
        }
        cx.metric("prepend_bos", f64::from(u8::from(self.prepend_bos)))
    }
}

const fn score(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Layer, Axis::Head], doc }
}

const METRICS: &[MetricDef] = &[
    score("previous_token_head", Unit::Probability, "Share of attention to the position in front"),
    score("previous_token_head_abs", Unit::Dimensionless, "The same by absolute difference"),
    score(
        "duplicate_token_head",
        Unit::Probability,
        "Share of attention to earlier places of the same token",
    ),
    score("duplicate_token_head_abs", Unit::Dimensionless, "The same by absolute difference"),
    score(
        "induction_head",
        Unit::Probability,
        "Share of attention to positions that follow earlier places of the same token",
    ),
    score("induction_head_abs", Unit::Dimensionless, "The same by absolute difference"),
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Truth,
        axes: &[],
        doc: "1 if the rows begin with a BOS token, else 0",
    },
];

const FIGURES: &[Figure] = &[
    heat_map("induction-head", "Attention behind earlier places of the token", &["induction_head"]),
    heat_map("previous-token-head", "Attention to the position in front", &["previous_token_head"]),
    heat_map(
        "duplicate-token-head",
        "Attention to earlier places of the token",
        &["duplicate_token_head"],
    ),
];

#[cfg(test)]
mod tests {
    use sweep_lens::Site;

    use super::*;
    use crate::sink::MemorySink;

    /// Scores of patterns `[row, query, key]` of one head.
    fn scores(
        tokens: &[[i64; 4]],
        lengths: &[i64],
        pattern: &[f32],
        exclude: [bool; 2],
    ) -> MemorySink {
        let n_rows = tokens.len() as i64;
        let mut observer = Box::new(Detector {
            tokens: Tensor::from_slice(tokens.as_flattened()).view([n_rows, 4]),
            lengths: Tensor::from_slice(lengths),
            exclude_bos: exclude[0],
            exclude_current_token: exclude[1],
            prepend_bos: false,
            sums: PatternSums::new(1),
        });
        let pattern = Tensor::from_slice(pattern).view([n_rows, 1, 4, 4]);
        for row in 0..n_rows {
            observer.see(Hook::block(0, Site::Pattern), row, &pattern.narrow(0, row, 1)).unwrap();
        }
        let mut sink = MemorySink::default();
        observer.finish(&mut Context::new(HeadDetector::CARD, 0, &mut sink)).unwrap();
        sink
    }

    #[track_caller]
    fn check(sink: &MemorySink, name: &str, expected: f64) {
        let found = sink.metrics[name][&0].data[0];
        assert!((found - expected).abs() < 1e-6, "{name}: {found}, expected {expected}");
    }

    #[rustfmt::skip]
    const PATTERN: [f32; 16] = [
        1.0, 0.0, 0.0, 0.0,
        0.5, 0.5, 0.0, 0.0,
        0.1, 0.2, 0.7, 0.0,
        0.4, 0.3, 0.2, 0.1,
    ];

    #[test]
    fn a_known_pattern_on_known_tokens() {
        let tokens = [[1, 2, 1, 2]];
        let plain = scores(&tokens, &[4], &PATTERN, [false, false]);
        check(&plain, "previous_token_head", (0.5 + 0.2 + 0.2) / 4.0);
        check(&plain, "duplicate_token_head", (0.1 + 0.3) / 4.0);
        check(&plain, "induction_head", (0.2 + 0.2) / 4.0);
        // |A - P| for induction: 4 + 2 - 2 · 0.4 over 16 cells, times 4.
        check(&plain, "induction_head_abs", 1.0 - 5.2 / 4.0);
        let no_bos = scores(&tokens, &[4], &PATTERN, [true, false]);
        let total = 0.5 + 0.2 + 0.7 + 0.3 + 0.2 + 0.1;
        check(&no_bos, "duplicate_token_head", 0.3 / total);
        check(&no_bos, "duplicate_token_head_abs", 1.0 - (total + 1.0 - 0.6) / 4.0);
        let neither = scores(&tokens, &[4], &PATTERN, [true, true]);
        let total = 0.2 + 0.3 + 0.2;
        check(&neither, "induction_head", 0.4 / total);
        check(&neither, "previous_token_head", 0.4 / total);
    }

    #[test]
    fn rows_count_alone_and_to_their_ends() {
        let short = scores(&[[1, 2, 1, 1]], &[3], &PATTERN, [false, false]);
        check(&short, "previous_token_head", (0.5 + 0.2) / 3.0);
        check(&short, "induction_head", 0.2 / 3.0);
        let both = [PATTERN, PATTERN].concat();
        let both = scores(&[[1, 2, 1, 2], [1, 2, 1, 1]], &[4, 3], &both, [false, false]);
        check(&both, "induction_head", f64::midpoint(0.1, 0.2 / 3.0));
        // All attention on the BOS token, which does not count.
        let sink = [[1f32, 0., 0., 0.]; 4].concat();
        let sink = scores(&[[1, 1, 1, 1]], &[4], &sink, [true, true]);
        check(&sink, "induction_head", 0.0);
    }
}
