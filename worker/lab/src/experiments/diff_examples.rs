//! On which tokens do two models differ most?
//!
//! # What it measures
//! Both models read the same text; a token's `difference` is its log-probability under the first minus that under the second model. Over all
//! predicted tokens: `loss_first`, `loss_second`, `mean_difference` (exactly the second loss minus the first) with a
//! 95 % bootstrap interval over rows (`mean_difference_low`, `mean_difference_high`), `rms`; `quantiles` (of up to 131 072 evenly spread tokens);
//! `gain_survival` and `drop_survival` `[threshold]`, fractions of tokens that the first gives more than that much more or less.
//! By class of token: `class_share`, `class_difference` (mean), and the share of the class among tokens gained or lost by more than
//! `margin` over its share of all: `gain_enrichment`, `drop_enrichment` (NaN without such tokens). `gains.jsonl` and `drops.jsonl`
//! hold the `k` largest with `context` tokens on both sides, `examples.md` a readable part. The text streams.
//!
//! Classes: by what the text of a token is (`without text` for models of plain numbers), `seen in the row` (the token stood there before),
//! `follows as before` (the same pair of tokens stood there before: what copying predicts), first and last quarter of a row.
//!
//! # Interpretation
//! Run it on a fine-tuned model against its base and, as the noise, on two seeds of the base: only what exceeds the second
//! is fine-tuning. Enrichment 1 is no preference.
//!
//! # Source
//! Problem 5.17 of the experiment list, D39; classes after Olsson et al. 2022, arXiv 2209.11895 (repeated tokens).

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, metric},
    compare::Couple,
    curve::{order::interval, transition::quantile},
    documents::{Documents, document_params},
    error::Result,
    experiment::{Experiment, Inputs},
    params::ParamSet,
    prompts::Names,
    random,
    sink::Context,
    token_difference::{CLASSES, Classes, Ranking, Token, for_each_token},
    value::Value,
};

/// See the module documentation.
pub struct DiffExamples;

document_params! {
    /// Examples that are kept on each side.
    k: u64 = 100, max = 100_000.0;
    /// Tokens of context on each side.
    context: u64 = 30, max = 1000.0;
    /// Difference in nats from which a token counts as gained or lost.
    margin: f64 = 1.0, min = 0.0;
    /// Bootstrap resamples of rows; 0 gives no interval.
    n_bootstrap: u64 = 200, max = 100_000.0;
    /// Seed of the resampling.
    seed: u64 = 0;
}

/// Thresholds of the survival curves, in nats.
const THRESHOLDS: [f64; 9] = [0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0];
const QUANTILES: [f64; 9] = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999];
/// Differences that quantiles are taken of.
const SAMPLE: usize = 1 << 17;
/// Examples in the readable table.
const SHOWN: usize = 30;

impl Experiment for DiffExamples {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "diff-examples",
        version: 2,
        summary: "Finds the tokens on which two models differ most, and what kind they are",
        source: "Olsson et al. 2022, arXiv 2209.11895 (classes of tokens)",
        stage: Stage::Compare,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_vocabulary()?;
        let documents = Documents::new(&couple.first, &params.wanted())?;
        let names = Names::of(&couple.first)?;
        let mut sums = Sums::default();
        let ranking = || Ranking::new(params.k, params.context);
        let (mut gains, mut drops) = (ranking(), ranking());
        let see = |token: &Token, row: &[i64]| {
            sums.add(token, params.margin);
            gains.add(token.difference(), token, row, &names);
            drops.add(-token.difference(), token, row, &names);
        };
        let mut classes = Classes::new(&names);
        for_each_token(couple, &documents, &mut classes, see, |(done, total)| {
            cx.progress(done, total)
        })?;
        sums.emit(&params, cx)?;
        cx.artifact("gains.jsonl", gains.lines())?;
        cx.artifact("drops.jsonl", drops.lines())?;
        let table = gains.table("The first model is better", SHOWN)
            + &drops.table("The second model is better", SHOWN);
        cx.artifact("examples.md", table.into_bytes())
    }
}

/// Running sums over tokens.
#[derive(Default)]
struct Sums {
    n: f64,
    first: f64,
    second: f64,
    squares: f64,
    above: [f64; THRESHOLDS.len()],
    below: [f64; THRESHOLDS.len()],
    /// By class: tokens, sum of differences, gained, lost.
    classes: [[f64; 4]; CLASSES.len()],
    gained: f64,
    lost: f64,
    /// By row: sum of differences and tokens.
    rows: Vec<(f64, f64)>,
    sample: Vec<f64>,
    stride: usize,
}

impl Sums {
    fn add(&mut self, token: &Token, margin: f64) {
        let difference = token.difference();
        self.stride = self.stride.max(1);
        if (self.n as usize).is_multiple_of(self.stride) {
            self.sample.push(difference);
        }
        if self.sample.len() >= 2 * SAMPLE {
            let kept = std::mem::take(&mut self.sample);
            self.sample = kept.into_iter().step_by(2).collect();
            self.stride *= 2;
        }
        self.n += 1.0;
        self.first += token.first;
        self.second += token.second;
        self.squares += difference * difference;
        for (index, threshold) in THRESHOLDS.iter().enumerate() {
            self.above[index] += f64::from(u8::from(difference > *threshold));
            self.below[index] += f64::from(u8::from(-difference > *threshold));
        }
        let [gained, lost] =
            [difference, -difference].map(|side| f64::from(u8::from(side > margin)));
        self.gained += gained;
        self.lost += lost;
        for (class, sums) in self.classes.iter_mut().enumerate() {
            if token.is_of(class) {
                let parts = [1.0, difference, gained, lost];
                sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
            }
        }
        let row = token.row as usize;
        if self.rows.len() <= row {
            self.rows.resize(row + 1, (0.0, 0.0));
        }
        self.rows[row].0 += difference;
        self.rows[row].1 += 1.0;
    }

    fn emit(mut self, params: &Params, cx: &mut Context<'_>) -> Result<()> {
        let n = self.n;
        cx.metric("loss_first", -self.first / n)?;
        cx.metric("loss_second", -self.second / n)?;
        cx.metric("mean_difference", (self.first - self.second) / n)?;
        let mut rng = random::stream(params.seed, "diff-examples");
        let rows = &self.rows;
        let samples = (0..params.n_bootstrap).map(|_| {
            let drawn =
                rows.iter().map(|_| rows[random::below(&mut rng, rows.len() as u64) as usize]);
            let (sum, count) = drawn.fold((0.0, 0.0), |(s, n), (d, count)| (s + d, n + count));
            sum / count
        });
        let [low, high] = interval(samples.collect());
        cx.metric("mean_difference_low", low)?;
        cx.metric("mean_difference_high", high)?;
        cx.metric("rms", (self.squares / n).sqrt())?;
        cx.metric("n_tokens", n)?;
        self.sample.sort_by(f64::total_cmp);
        let quantiles = QUANTILES.iter().map(|&level| quantile(&self.sample, level)).collect();
        cx.metric("quantiles", Value::labelled(QUANTILES, quantiles))?;
        let survival = |counts: &[f64]| {
            Value::labelled(THRESHOLDS, counts.iter().map(|count| count / n).collect())
        };
        cx.metric("gain_survival", survival(&self.above))?;
        cx.metric("drop_survival", survival(&self.below))?;
        let by_class = |read: &dyn Fn(&[f64; 4]) -> f64| {
            Value::labelled(CLASSES, self.classes.iter().map(read).collect())
        };
        cx.metric("class_share", by_class(&|class| class[0] / n))?;
        cx.metric("class_difference", by_class(&|class| class[1] / class[0]))?;
        let enrichment = |part: f64, all: f64, class: f64| (part / all) / (class / n);
        cx.metric("gain_enrichment", by_class(&|c| enrichment(c[2], self.gained, c[0])))?;
        cx.metric("drop_enrichment", by_class(&|c| enrichment(c[3], self.lost, c[0])))
    }
}

const CLASS: &[Axis] = &[Axis::TokenClass];
const THRESHOLD: &[Axis] = &[Axis::Threshold];

const METRICS: &[MetricDef] = &[
    metric("loss_first", Unit::Nats, &[], "Mean loss of the first model"),
    metric("loss_second", Unit::Nats, &[], "Mean loss of the second model"),
    metric(
        "mean_difference",
        Unit::Nats,
        &[],
        "Mean log-probability of the first minus the second",
    ),
    metric(
        "mean_difference_low",
        Unit::Nats,
        &[],
        "Lower end of its 95 % bootstrap interval over rows",
    ),
    metric("mean_difference_high", Unit::Nats, &[], "Upper end of that interval"),
    metric("rms", Unit::Nats, &[], "Root mean square difference"),
    metric("n_tokens", Unit::Count, &[], "Predicted tokens"),
    metric("quantiles", Unit::Nats, &[Axis::Quantile], "Quantiles of the difference"),
    metric("gain_survival", Unit::Probability, THRESHOLD, "Tokens gained by more than a threshold"),
    metric("drop_survival", Unit::Probability, THRESHOLD, "Tokens lost by more than a threshold"),
    metric("class_share", Unit::Probability, CLASS, "Share of a class among all tokens"),
    metric("class_difference", Unit::Nats, CLASS, "Mean difference of a class"),
    metric("gain_enrichment", Unit::Ratio, CLASS, "Share among gained tokens over share of all"),
    metric("drop_enrichment", Unit::Ratio, CLASS, "Share among lost tokens over share of all"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "mean-difference",
        title: "Mean log-probability of the first model minus the second",
        kind: FigureKind::Intervals,
        metrics: &["mean_difference", "mean_difference_low", "mean_difference_high"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "classes",
        title: "Mean difference by class of token",
        kind: FigureKind::HeatMap,
        metrics: &["class_difference"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "gains",
        title: "Tokens gained by more than a threshold",
        kind: FigureKind::HeatMap,
        metrics: &["gain_survival"],
        log_x: false,
        log_y: false,
    },
];
