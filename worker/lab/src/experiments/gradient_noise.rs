//! Gradient noise scale: how large a minibatch is worth its cost.
//!
//! # What it measures
//! Gradients of `n_batches` minibatches of B examples at one checkpoint, in f64: with `|G_s|²` the mean of their squared norms and `|G_b|²`
//! that of the mean gradient (B_b = n_batches · B examples), `grad_norm_squared` `|G|² = (B_b |G_b|² - B |G_s|²) / (B_b - B)`,
//! `trace_sigma` `S = (|G_s|² - |G_b|²) / (1/B - 1/B_b)`, the trace of the covariance of one example's gradient, and
//! `b_simple` `S / |G|²` (D of McCandlish et al., appendix A.1). `b_simple_low`, `b_simple_high`: 95 % jackknife interval over
//! minibatches. `resolved` is 0, and `b_simple` NaN, where the estimate of `|G|²` is not positive: more minibatches are needed.
//!
//! # Interpretation
//! Minibatches much smaller than `b_simple` are mostly noise, much larger ones waste examples. It grows as the loss falls. Training
//! on all examples at once has no noise: 0. An example is a row (or what a recipe calls one).
//!
//! # Source
//! McCandlish et al. 2018, arXiv 1812.06162, equations 2.8 and A.2-A.4.

use sweep_lens::{Kind, Tensor};

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
    surface::{Surface, surface_params},
};

/// See the module documentation.
pub struct GradientNoise;

surface_params! {
    /// Minibatches.
    n_batches: u64 = 32, min = 3.0, max = 100_000.0;
}

impl Experiment for GradientNoise {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "gradient-noise",
        version: 1,
        summary: "Measures the gradient noise scale of minibatches",
        source: "McCandlish et al. 2018, arXiv 1812.06162",
        stage: Stage::Analyse,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let surface = Surface::new(subject, &params.choice())?;
        Ok(Analysis::Procedure(Box::new(move |cx| {
            let n = params.n_batches;
            let gradient = |index, cx: &mut Context<'_>| {
                cx.progress(index, 2 * n)?;
                Ok(surface.gradient(&surface.start, index % n)?.1)
            };
            let found = Norms::of(n, |index| gradient(index, cx))?;
            found.emit(surface.batch, cx)
        })))
    }
}

/// Squared norms of gradients.
struct Norms {
    /// Of each minibatch.
    single: Vec<f64>,
    /// Products of each with the mean.
    along: Vec<f64>,
    /// Of the mean.
    mean: f64,
}

/// S, |G|² and their quotient.
#[derive(Debug, Clone, Copy)]
struct Scale {
    trace_sigma: f64,
    grad_norm_squared: f64,
    b_simple: f64,
}

impl Scale {
    /// From the mean squared norm of `n` minibatches of `batch` examples and that of their mean.
    fn of(small: f64, big: f64, n: f64, batch: f64) -> Self {
        let b_big = n * batch;
        let grad_norm_squared = (b_big * big - batch * small) / (b_big - batch);
        let trace_sigma = (small - big) / (1.0 / batch - 1.0 / b_big);
        Self { trace_sigma, grad_norm_squared, b_simple: trace_sigma / grad_norm_squared }
    }
}

impl Norms {
    /// Asks for the gradients `0..n` and then, as `n..2n`, for the same again: they are never all in memory.
    fn of(n: u64, mut gradient: impl FnMut(u64) -> Result<Tensor>) -> Result<Self> {
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
        let mut single = Vec::new();
        let mut sum: Option<Tensor> = None;
        for index in 0..n {
            let found = gradient(index)?;
            single.push(dot(&found, &found));
            sum = Some(match sum {
                Some(sum) => sum + found,
                None => found,
            });
        }
        let mean = sum.expect("there are minibatches") / n as f64;
        let along = (n..2 * n).map(|index| Ok(dot(&gradient(index)?, &mean)));
        Ok(Self { along: along.collect::<Result<_>>()?, mean: dot(&mean, &mean), single })
    }

    fn scale(&self, batch: f64) -> Scale {
        let n = self.single.len() as f64;
        Scale::of(self.single.iter().sum::<f64>() / n, self.mean, n, batch)
    }

    /// The scale without minibatch `out`.
    fn without(&self, out: usize, batch: f64) -> Scale {
        let n = self.single.len() as f64;
        let small = (self.single.iter().sum::<f64>() - self.single[out]) / (n - 1.0);
        let big = n * n * self.mean - 2.0 * n * self.along[out] + self.single[out];
        Scale::of(small, big / ((n - 1.0) * (n - 1.0)), n - 1.0, batch)
    }

    fn emit(&self, batch: f64, cx: &mut Context<'_>) -> Result<()> {
        let n = self.single.len();
        let scale = self.scale(batch);
        // Rounding of equal gradients is no noise.
        let is_noise = scale.trace_sigma > 1e-12 * batch * self.mean;
        let resolved = scale.grad_norm_squared > 0.0;
        let b_simple = match (resolved, is_noise) {
            (false, _) => f64::NAN,
            (true, false) => 0.0,
            (true, true) => scale.b_simple,
        };
        let others: Vec<f64> = (0..n).map(|out| self.without(out, batch).b_simple).collect();
        let mean = others.iter().sum::<f64>() / n as f64;
        let spread: f64 = others.iter().map(|value| (value - mean).powi(2)).sum();
        let error = if is_noise { (spread * (n as f64 - 1.0) / n as f64).sqrt() } else { 0.0 };
        cx.metric("b_simple", b_simple)?;
        cx.metric("b_simple_low", b_simple - 1.96 * error)?;
        cx.metric("b_simple_high", b_simple + 1.96 * error)?;
        cx.metric("trace_sigma", if is_noise { scale.trace_sigma } else { 0.0 })?;
        cx.metric("grad_norm_squared", scale.grad_norm_squared)?;
        cx.metric("resolved", f64::from(u8::from(resolved)))?;
        cx.metric("batch", batch)
    }
}

const METRICS: &[MetricDef] = &[
    scalar("b_simple", Unit::Count, "Gradient noise scale in examples; NaN if not resolved"),
    scalar("b_simple_low", Unit::Count, "Lower end of its 95 % jackknife interval"),
    scalar("b_simple_high", Unit::Count, "Upper end of that interval"),
    scalar("trace_sigma", Unit::SquaredNorm, "Trace of the covariance of an example's gradient"),
    scalar("grad_norm_squared", Unit::SquaredNorm, "Squared norm of the true gradient, unbiased"),
    scalar("resolved", Unit::Truth, "1 if that estimate is positive"),
    scalar("batch", Unit::Count, "Examples in a minibatch; 1 for training on all at once"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "noise-scale",
    title: "Gradient noise scale",
    kind: FigureKind::Intervals,
    metrics: &["b_simple", "b_simple_low", "b_simple_high"],
    log_x: true,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use sweep_lens::{Device, init};

    use super::*;

    #[test]
    fn the_scale_of_drawn_gradients() {
        // Gradient of an example: G + noise with |G|² = 4 and S = 3² · 50.
        let (n, batch) = (400u64, 8i64);
        let truth = Tensor::from_slice(&[2.0f64]).constant_pad_nd([0, 49]);
        let draw = |index: u64| {
            let name = format!("{}", index % n);
            let noise = init::normal(0, &name, &[batch, 50], 3.0, Device::Cpu);
            let mean = noise.to_kind(Kind::Double).mean_dim(&[0i64][..], false, Kind::Double);
            Ok(&truth + mean)
        };
        let found = Norms::of(n, draw).unwrap();
        let scale = found.scale(8.0);
        assert!((scale.trace_sigma - 450.0).abs() < 10.0, "{scale:?}");
        assert!((scale.grad_norm_squared - 4.0).abs() < 0.5, "{scale:?}");
        // The definition by the sample variance.
        let all: Vec<Tensor> = (0..n).map(|index| draw(index).unwrap()).collect();
        let all = Tensor::stack(&all, 0);
        let variance = all.var_dim(&[0i64][..], true, false).sum(Kind::Double).double_value(&[]);
        assert!((scale.trace_sigma - 8.0 * variance).abs() < 1e-9 * scale.trace_sigma);
        // Leaving one out, by hand.
        let some = all.narrow(0, 1, n as i64 - 1);
        let mean = some.mean_dim(&[0i64][..], false, Kind::Double);
        let total = |x: Tensor| x.sum(Kind::Double).double_value(&[]);
        let small = total(some.square()) / (n as f64 - 1.0);
        let by_hand = Scale::of(small, total(mean.square()), n as f64 - 1.0, 8.0);
        assert!((found.without(0, 8.0).b_simple / by_hand.b_simple - 1.0).abs() < 1e-9);
    }
}
