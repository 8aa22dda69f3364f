//! Local learning coefficient: how degenerate the loss is around a checkpoint.
//!
//! # What it measures
//! SGLD around the parameters w* of a checkpoint: `Δw = -ε/2 (nβ ∇L_m(w) + γ (w - w*)) + N(0, ε)` on minibatches L_m. The
//! estimate of a chain is `nβ (mean L_m(w) - L_m(w*))` over the draws behind the burn-in, each loss against that of the same minibatch
//! at w*. `llc` is the mean over chains, `llc_std` their standard deviation, `llc_chain` each of them. `negative` is 1 where the mean is
//! below zero and `n_diverged` counts chains that left the finite numbers (they are left out); `n_beta`, `step_size` and
//! `localization` are what was used. `drift` is the slope of the losses over the second half of the draws, in llc per draw: far
//! from 0, the chains have not settled. `traces.json` has every loss. `tensors` restricts the walk (refined LLC).
//!
//! # Interpretation
//! Half the number of parameters for a regular minimum, less for a degenerate one. Absolute values depend on nβ and γ; compare
//! values of equal settings. A negative value means that w* is no minimum on the scale of the walk: nothing can be
//! concluded.
//!
//! # Source
//! Lau et al. 2023, arXiv 2308.12108, Algorithm 1; Wang et al. 2024, arXiv 2410.02984 (refined); devinterp (nβ, localization).

use serde_json::json;
use sweep_lens::{Kind, Tensor, init};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
    surface::{Surface, surface_params},
    value::Value,
};

/// See the module documentation.
pub struct Llc;

surface_params! {
    /// Inverse temperature times number of samples.
    n_beta: f64 = 50.0, min = 1e-9;
    /// Step size ε.
    step_size: f64 = 1e-5, min = 1e-15;
    /// Strength γ of the pull back to the checkpoint.
    localization: f64 = 100.0, min = 0.0;
    /// Independent chains.
    chains: u64 = 4, min = 1.0, max = 64.0;
    /// Steps before losses count.
    burn_in: u64 = 100, max = 100_000.0;
    /// Steps whose losses count.
    draws: u64 = 200, min = 4.0, max = 100_000.0;
}

impl Experiment for Llc {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "llc",
        version: 1,
        summary: "Estimates the local learning coefficient by stochastic gradient Langevin dynamics",
        source: "Lau et al. 2023, arXiv 2308.12108; Wang et al. 2024, arXiv 2410.02984",
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
            let mut chains = Vec::new();
            for chain in 0..params.chains {
                let losses = |theta: &Tensor, index: u64| surface.loss(theta, index);
                let gradient = |theta: &Tensor, index: u64| surface.gradient(theta, index);
                let trace = walk(&surface.start, &params, chain, losses, gradient)?;
                cx.progress(chain + 1, params.chains)?;
                chains.push(trace);
            }
            emit(&params, &chains, cx)
        })))
    }
}

/// Losses of one chain, at w and of the same minibatch at w*; ends early where a loss is not finite.
type Trace = Vec<[f64; 2]>;

/// Walks from `start`.
fn walk(
    start: &Tensor,
    params: &Params,
    chain: u64,
    loss: impl Fn(&Tensor, u64) -> Result<f64>,
    gradient: impl Fn(&Tensor, u64) -> Result<(f64, Tensor)>,
) -> Result<Trace> {
    let Params { n_beta, step_size, localization, burn_in, draws, seed, .. } = *params;
    let mut theta = start.copy();
    let mut trace = Trace::new();
    for step in 0..burn_in + draws {
        let index = chain * (burn_in + draws) + step;
        let (here, slope) = gradient(&theta, index)?;
        if !here.is_finite() {
            break;
        }
        trace.push([here, loss(start, index)?]);
        let name = format!("llc/{chain}/{step}");
        let noise = init::normal(seed, &name, &theta.size(), step_size.sqrt(), theta.device());
        let pull = (&theta - start) * localization;
        theta = theta - (slope * n_beta + pull) * (0.5 * step_size) + noise.to_kind(Kind::Double);
    }
    Ok(trace)
}

/// Estimates of a chain's draws; none where the chain diverged.
fn estimates(params: &Params, trace: &Trace) -> Option<Vec<f64>> {
    let draws = trace.get(params.burn_in as usize..)?;
    let is_whole = draws.len() as u64 == params.draws;
    is_whole.then(|| draws.iter().map(|[here, start]| params.n_beta * (here - start)).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Slope of a least-squares line over the second half.
fn drift(draws: &[f64]) -> f64 {
    let late = &draws[draws.len() / 2..];
    let (centre, middle) = ((late.len() - 1) as f64 / 2.0, mean(late));
    let points = late.iter().enumerate().map(|(i, y)| (i as f64 - centre, y - middle));
    let (xy, xx) = points.fold((0.0, 0.0), |(xy, xx), (x, y)| (xy + x * y, xx + x * x));
    xy / xx
}

fn emit(params: &Params, chains: &[Trace], cx: &mut Context<'_>) -> Result<()> {
    let found: Vec<Option<Vec<f64>>> =
        chains.iter().map(|trace| estimates(params, trace)).collect();
    let kept: Vec<&Vec<f64>> = found.iter().flatten().collect();
    if kept.is_empty() {
        return Err(Error::Input(format!(
            "every chain left the finite numbers: expected a step size below {}",
            params.step_size
        )));
    }
    let means: Vec<f64> = kept.iter().map(|draws| mean(draws)).collect();
    let llc = mean(&means);
    let spread = means.iter().map(|value| (value - llc).powi(2)).sum::<f64>();
    let std = (spread / (means.len() as f64 - 1.0)).sqrt();
    let all = found.iter().map(|draws| draws.as_ref().map_or(f64::NAN, |draws| mean(draws)));
    cx.metric("llc", llc)?;
    cx.metric("llc_std", if means.len() > 1 { std } else { f64::NAN })?;
    cx.metric("llc_chain", Value::vector(all.collect()))?;
    cx.metric("negative", f64::from(u8::from(llc < 0.0)))?;
    cx.metric("n_diverged", (chains.len() - kept.len()) as f64)?;
    cx.metric("drift", mean(&kept.iter().map(|draws| drift(draws)).collect::<Vec<_>>()))?;
    let start: Vec<f64> = chains.iter().flatten().map(|[_, start]| *start).collect();
    cx.metric("init_loss", mean(&start))?;
    cx.metric("n_beta", params.n_beta)?;
    cx.metric("step_size", params.step_size)?;
    cx.metric("localization", params.localization)?;
    let losses = |place: usize| -> Vec<Vec<f64>> {
        chains.iter().map(|trace| trace.iter().map(|pair| pair[place]).collect()).collect()
    };
    cx.json(
        "traces.json",
        &json!({ "burn_in": params.burn_in, "loss": losses(0), "init_loss": losses(1) }),
    )
}

const METRICS: &[MetricDef] = &[
    scalar("llc", Unit::Dimensionless, "Local learning coefficient, mean over chains"),
    scalar("llc_std", Unit::Dimensionless, "Standard deviation over chains; NaN for a single one"),
    MetricDef {
        name: "llc_chain",
        unit: Unit::Dimensionless,
        axes: &[Axis::Chain],
        doc: "Estimate of each chain; NaN where it diverged",
    },
    scalar("negative", Unit::Truth, "1 if the estimate is below zero and says nothing"),
    scalar("n_diverged", Unit::Count, "Chains that left the finite numbers"),
    scalar("drift", Unit::Dimensionless, "Slope of the estimate over late draws, per draw"),
    scalar("init_loss", Unit::Nats, "Mean loss of the checkpoint on the same minibatches"),
    scalar("n_beta", Unit::Dimensionless, "Inverse temperature times number of samples"),
    scalar("step_size", Unit::Dimensionless, "Step size of the walk"),
    scalar("localization", Unit::Dimensionless, "Strength of the pull back"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "llc",
    title: "Local learning coefficient",
    kind: FigureKind::Lines,
    metrics: &["llc"],
    log_x: true,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean estimate over chains on a loss that is given with its gradient.
    fn estimate(d: i64, params: &Params, loss: fn(&Tensor) -> (f64, Tensor)) -> f64 {
        let start = Tensor::zeros([d], (Kind::Double, sweep_lens::Device::Cpu));
        let found: Vec<f64> = (0..params.chains)
            .map(|chain| {
                let at = |w: &Tensor, _: u64| Ok(loss(w));
                let trace = walk(&start, params, chain, |w, i| Ok(at(w, i)?.0), at).unwrap();
                mean(&estimates(params, &trace).unwrap())
            })
            .collect();
        mean(&found)
    }

    #[test]
    fn half_the_dimension_for_a_quadratic() {
        let params = Params {
            n_beta: 100.0,
            localization: 1.0,
            step_size: 1e-3,
            burn_in: 200,
            draws: 2000,
            ..Params::default()
        };
        let found = estimate(10, &params, |w| {
            (0.5 * w.square().sum(Kind::Double).double_value(&[]), w.copy())
        });
        assert!((found - 5.0).abs() < 0.5, "{found}");
    }

    #[test]
    fn a_normal_crossing_is_what_its_integral_says() {
        let params = Params {
            n_beta: 200.0,
            localization: 4.0,
            step_size: 4e-4,
            chains: 12,
            burn_in: 1500,
            draws: 4000,
            ..Params::default()
        };
        let found = estimate(2, &params, |w| {
            let [x, y] = [0, 1].map(|i| w.double_value(&[i]));
            let slope = [2.0 * x * y * y, 2.0 * x * x * y];
            (x * x * y * y, Tensor::from_slice(&slope))
        });
        // nβ E[L] under exp(-nβ L - γ |w|² / 2), by the midpoint rule. The learning coefficient is 1/2 with multiplicity 2:
        // the value at finite nβ is below 1/2, and rises to it like 1 / ln nβ.
        let integral = |n_beta: f64| {
            let n = 1500;
            let at = |k: i32| (f64::from(k) + 0.5) / f64::from(n) * 3.0;
            let (mut weight, mut sum) = (0.0, 0.0);
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let loss = (at(i) * at(j)).powi(2);
                let density = (-n_beta * loss - 2.0 * (at(i).powi(2) + at(j).powi(2))).exp();
                weight += density;
                sum += density * loss;
            }
            n_beta * sum / weight
        };
        let expected = integral(200.0);
        assert!((0.25..0.35).contains(&expected), "{expected}");
        assert!(integral(20_000.0) > expected + 0.05);
        assert!((found - expected).abs() < 0.15 * expected, "{found}, expected {expected}");
    }

    #[test]
    fn a_maximum_is_flagged_and_a_diverged_chain_left_out() {
        let params = Params { burn_in: 0, draws: 4, n_beta: 10.0, ..Params::default() };
        let falling: Trace = vec![[0.9, 1.0]; 4];
        let broken: Trace = vec![[2.0, 1.0]; 2];
        let mut sink = crate::MemorySink::default();
        let mut cx = Context::new(Llc::CARD, 3, &mut sink);
        emit(&params, &[falling, broken.clone()], &mut cx).unwrap();
        assert!((sink.scalar("llc", 3).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(
            (sink.scalar("negative", 3), sink.scalar("n_diverged", 3)),
            (Some(1.0), Some(1.0))
        );
        let mut cx = Context::new(Llc::CARD, 3, &mut sink);
        let error = emit(&params, &[broken], &mut cx).unwrap_err();
        assert!(error.to_string().contains("step size"), "{error}");
    }
}
