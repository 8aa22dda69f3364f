//! Do two models say the same?
//!
//! # What it measures
//! Both models see the same rows; their next-token distributions p (first) and q (second) are compared at every position, in
//! float64: `kl` KL(p|q) and `kl_reverse` KL(q|p), `js` Jensen-Shannon divergence (at most ln 2), `total_variation`,
//! `top1_agreement`, each the mean over positions; `logprob_correlation` (Pearson) and `logprob_rms` over all entries of all
//! log-probabilities; `token_correlation` and `token_rms` over the log-probabilities of the tokens that really follow, NaN where
//! the recipe's inputs name no next token. `js_low`, `js_high`: 95 % bootstrap interval of `js` over rows.
//! `n_positions`: predictions compared. Rows are those given, or else the inputs that the recipe names as telling (there
//! only the last position counts).
//!
//! # Interpretation
//! Zero divergence is the same function on these inputs. KL is not symmetric and punishes confident mistakes; JS is, and
//! is bounded.
//!
//! # Source
//! D39; Lin 1991 (Jensen-Shannon divergence).

use sweep_lens::{Kind, Run, Tensor, Transformer};

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    compare::Couple,
    curve::order::interval,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{ParamSet, params},
    random,
    sink::Context,
    value::to_vec,
};

/// See the module documentation.
pub struct OutputSimilarity;

params! {
    /// What both models are shown, and how sure the mean is.
    pub struct Params {
        /// Prompts as lists of token ids.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Prompts as texts for the first model's tokenizer.
        text: Vec<String> = Vec::new();
        /// Whether the BOS token goes in front; null: the model's default for texts, no for tokens.
        prepend_bos: Option<bool> = None;
        /// Bootstrap resamples of rows; 0 gives no interval.
        n_bootstrap: u64 = 200, max = 100_000.0;
        /// Seed of the resampling.
        seed: u64 = 0;
    }
}

impl Experiment for OutputSimilarity {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "output-similarity",
        version: 1,
        summary: "Compares the next-token distributions of two models",
        source: "Lin 1991 (Jensen-Shannon); Kullback-Leibler divergence, total variation, top-1 agreement",
        stage: Stage::Compare,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_vocabulary()?;
        let shown = couple.token_set(&params.tokens, &params.text, params.prepend_bos)?;
        let n_rows = shown.tokens.size()[0] as u64;
        // Where a model answers in other words than it reads, no next token is predicted.
        let config = couple.first.model.config();
        let is_language = config.d_vocab == config.d_vocab_out;
        let run = if shown.last_position_only { Run::LAST_POSITION } else { Run::FULL };
        let mut sums = Sums::default();
        for (tokens, lengths) in shown.batches() {
            let log_probs = |model: &Transformer| {
                model.forward(&tokens, &run, &mut ()).log_softmax(-1, Kind::Double)
            };
            let (p, q) = (log_probs(couple.first.model), log_probs(couple.second.model));
            for (row, &length) in (0i64..).zip(&lengths) {
                let (p, q) = (p.get(row), q.get(row));
                if shown.last_position_only {
                    sums.add(&p, &q);
                } else {
                    let cut = |x: &Tensor| x.narrow(0, 0, length as i64);
                    sums.add(&cut(&p), &cut(&q));
                    if is_language {
                        sums.add_tokens(&p, &q, &tokens.get(row).narrow(0, 0, length as i64));
                    }
                }
            }
            cx.progress(sums.js_of_rows.len() as u64, n_rows)?;
        }
        sums.emit(&params, cx)
    }
}

/// Divergences of positions: log-probabilities `[.., d_vocab]` → f64 `[..]`.
struct Divergences {
    kl: Tensor,
    kl_reverse: Tensor,
    js: Tensor,
    total_variation: Tensor,
}

impl Divergences {
    fn of(p: &Tensor, q: &Tensor) -> Self {
        let (exp_p, exp_q) = (p.exp(), q.exp());
        let sum = |x: Tensor| x.sum_dim_intlist(&[-1i64][..], false, Kind::Double);
        // log((p + q) / 2), exactly p where they are equal.
        let middle = p.maximum(q) + ((-(p - q).abs()).exp() * 0.5 + 0.5).log();
        // An impossible token contributes nothing: 0 * (-inf - x) would be no number.
        let weighted =
            |weight: &Tensor, log: Tensor| sum((weight * log).nan_to_num(0.0, None, None));
        Self {
            kl: weighted(&exp_p, p - q),
            kl_reverse: weighted(&exp_q, q - p),
            js: (weighted(&exp_p, p - &middle) + weighted(&exp_q, q - &middle)) * 0.5,
            total_variation: sum((exp_p - exp_q).abs()) * 0.5,
        }
    }
}

/// Running sums over positions.
#[derive(Default)]
struct Sums {
    n: f64,
    kl: f64,
    kl_reverse: f64,
    js: f64,
    total_variation: f64,
    agreement: f64,
    entries: Moments,
    tokens: Moments,
    /// Sum and number of positions of each row.
    js_of_rows: Vec<(f64, f64)>,
}

impl Sums {
    /// Adds one row: log-probabilities `[pos, d_vocab]`.
    fn add(&mut self, p: &Tensor, q: &Tensor) {
        let total = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        let found = Divergences::of(p, q);
        let n = p.size()[0] as f64;
        let js = total(&found.js);
        self.n += n;
        self.kl += total(&found.kl);
        self.kl_reverse += total(&found.kl_reverse);
        self.js += js;
        self.total_variation += total(&found.total_variation);
        let top = |x: &Tensor| x.argmax(-1, false);
        self.agreement += total(&top(p).eq_tensor(&top(q)));
        self.entries.add(p, q);
        self.js_of_rows.push((js, n));
    }

    /// Adds the tokens that follow in one row: `[pos, d_vocab]`, tokens `[pos]`.
    fn add_tokens(&mut self, p: &Tensor, q: &Tensor, tokens: &Tensor) {
        let n = tokens.size()[0];
        if n < 2 {
            return;
        }
        let next = tokens.narrow(0, 1, n - 1).unsqueeze(-1);
        let chosen = |x: &Tensor| x.narrow(0, 0, n - 1).gather(-1, &next, false);
        self.tokens.add(&chosen(p), &chosen(q));
    }

    fn emit(&self, params: &Params, cx: &mut Context<'_>) -> Result<()> {
        if self.n == 0.0 {
            return Err(Error::params("tokens", "expected a position to compare, found none"));
        }
        cx.metric("kl", self.kl / self.n)?;
        cx.metric("kl_reverse", self.kl_reverse / self.n)?;
        cx.metric("js", self.js / self.n)?;
        cx.metric("total_variation", self.total_variation / self.n)?;
        cx.metric("top1_agreement", self.agreement / self.n)?;
        cx.metric("logprob_correlation", self.entries.correlation())?;
        cx.metric("logprob_rms", self.entries.rms())?;
        cx.metric("token_correlation", self.tokens.correlation())?;
        cx.metric("token_rms", self.tokens.rms())?;
        cx.metric("n_positions", self.n)?;
        let mut rng = random::stream(params.seed, "output-similarity");
        let rows = &self.js_of_rows;
        let samples = (0..params.n_bootstrap).map(|_| {
            let drawn =
                rows.iter().map(|_| rows[random::below(&mut rng, rows.len() as u64) as usize]);
            let (sum, n) = drawn.fold((0.0, 0.0), |(s, n), (js, count)| (s + js, n + count));
            sum / n
        });
        let [low, high] = interval(samples.collect());
        cx.metric("js_low", low)?;
        cx.metric("js_high", high)
    }
}

/// Second moments of pairs of numbers, gathered in one pass and symmetrically.
#[derive(Default)]
struct Moments {
    n: f64,
    mean: [f64; 2],
    /// Sums of squares and of products about the means.
    squares: [f64; 2],
    products: f64,
    differences: f64,
}

impl Moments {
    /// Adds all pairs of entries of two tensors of one shape, those with an infinite one left out.
    fn add(&mut self, x: &Tensor, y: &Tensor) {
        let pairs = to_vec(x).into_iter().zip(to_vec(y));
        let pairs: Vec<(f64, f64)> =
            pairs.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        if pairs.is_empty() {
            return;
        }
        let n = pairs.len() as f64;
        let sum = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>();
        let mean = [sum(&|p| p.0) / n, sum(&|p| p.1) / n];
        let about = |p: &(f64, f64)| [p.0 - mean[0], p.1 - mean[1]];
        let total = self.n + n;
        // Chan's update: both parts about their own means, and the means about each other.
        let shift = [mean[0] - self.mean[0], mean[1] - self.mean[1]];
        let weight = self.n * n / total;
        self.squares[0] += sum(&|p| about(p)[0] * about(p)[0]) + shift[0] * shift[0] * weight;
        self.squares[1] += sum(&|p| about(p)[1] * about(p)[1]) + shift[1] * shift[1] * weight;
        self.products += sum(&|p| about(p)[0] * about(p)[1]) + shift[0] * shift[1] * weight;
        self.differences += sum(&|p| (p.0 - p.1) * (p.0 - p.1));
        self.mean[0] += shift[0] * n / total;
        self.mean[1] += shift[1] * n / total;
        self.n = total;
    }

    /// Pearson's correlation; NaN without pairs or variance.
    fn correlation(&self) -> f64 {
        // The root of a square is exact: anything has correlation 1 with itself.
        self.products / (self.squares[0] * self.squares[1]).sqrt()
    }

    fn rms(&self) -> f64 {
        (self.differences / self.n).sqrt()
    }
}

const METRICS: &[MetricDef] = &[
    scalar("kl", Unit::Nats, "Mean divergence KL(first | second)"),
    scalar("kl_reverse", Unit::Nats, "Mean divergence KL(second | first)"),
    scalar("js", Unit::Nats, "Mean Jensen-Shannon divergence, at most ln 2"),
    scalar("js_low", Unit::Nats, "Lower end of its 95 % bootstrap interval over rows"),
    scalar("js_high", Unit::Nats, "Upper end of that interval"),
    scalar("total_variation", Unit::Probability, "Mean total variation distance"),
    scalar("top1_agreement", Unit::Probability, "Positions at which both expect the same token"),
    scalar("logprob_correlation", Unit::Ratio, "Correlation of all log-probabilities"),
    scalar("logprob_rms", Unit::Nats, "Root mean square difference of all log-probabilities"),
    scalar("token_correlation", Unit::Ratio, "Correlation of the log-probabilities of next tokens"),
    scalar("token_rms", Unit::Nats, "Root mean square difference of those"),
    scalar("n_positions", Unit::Count, "Predictions compared"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "js",
        title: "Divergence between models",
        kind: FigureKind::Pairs,
        metrics: &["js"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "agreement",
        title: "Agreement on the next token",
        kind: FigureKind::Pairs,
        metrics: &["top1_agreement"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use std::f64::consts::LN_2;

    use proptest::prelude::*;

    use super::*;

    fn logs(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).log().unsqueeze(0)
    }

    fn value(x: &Tensor) -> f64 {
        x.double_value(&[0])
    }

    #[test]
    fn divergences_by_hand() {
        let (p, q) = (logs(&[0.5, 0.5]), logs(&[0.25, 0.75]));
        let found = Divergences::of(&p, &q);
        assert!((value(&found.kl) - 0.143_841_036_225_890_42).abs() < 1e-15);
        assert!((value(&found.kl_reverse) - 0.130_812_035_941_137_2).abs() < 1e-15);
        assert!((value(&found.js) - 0.033_822_075_568_605_2).abs() < 1e-15);
        assert!((value(&found.total_variation) - 0.25).abs() < 1e-15);
        // Disjoint distributions: as far apart as can be, and no NaN.
        let apart = Divergences::of(&logs(&[1.0, 0.0]), &logs(&[0.0, 1.0]));
        assert_eq!((value(&apart.js), value(&apart.total_variation)), (LN_2, 1.0));
    }

    #[test]
    fn moments_do_not_depend_on_how_pairs_come() {
        let x: Vec<f64> = (0..50).map(|i| f64::from(i * 7 % 13)).collect();
        let y: Vec<f64> = x.iter().enumerate().map(|(i, x)| 2.0 * x + (i % 3) as f64).collect();
        let tensor = |v: &[f64]| Tensor::from_slice(v);
        let (mut whole, mut parts) = (Moments::default(), Moments::default());
        whole.add(&tensor(&x), &tensor(&y));
        for (x, y) in x.chunks(7).zip(y.chunks(7)) {
            parts.add(&tensor(x), &tensor(y));
        }
        assert!((whole.correlation() - parts.correlation()).abs() < 1e-12);
        assert!((whole.rms() - parts.rms()).abs() < 1e-12);
        let mut own = Moments::default();
        own.add(&tensor(&y), &tensor(&y));
        assert_eq!((own.correlation(), own.rms()), (1.0, 0.0));
        assert!(Moments::default().correlation().is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn divergences_have_their_bounds(raw in proptest::collection::vec((1e-9..1.0f64, 1e-9..1.0f64), 2..9)) {
            let (p, q): (Vec<f64>, Vec<f64>) = raw.into_iter().unzip();
            let normal = |v: &[f64]| {
                Tensor::from_slice(v).unsqueeze(0).log().log_softmax(-1, Kind::Double)
            };
            let (p, q) = (normal(&p), normal(&q));
            let (there, back) = (Divergences::of(&p, &q), Divergences::of(&q, &p));
            prop_assert!((value(&there.js) - value(&back.js)).abs() < 1e-14);
            prop_assert_eq!(value(&there.kl), value(&back.kl_reverse));
            prop_assert!(value(&there.js) >= -1e-15 && value(&there.js) <= LN_2 + 1e-15);
            prop_assert!(value(&there.kl) >= -1e-14);
            let own = Divergences::of(&p, &p);
            prop_assert_eq!([value(&own.kl), value(&own.js), value(&own.total_variation)], [0.0; 3]);
        }
    }
}
