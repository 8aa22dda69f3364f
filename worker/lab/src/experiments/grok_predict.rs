//! When will it grok? Predictions from what is known at each checkpoint, and how good they were.
//!
//! # What it measures
//! At every checkpoint t, from checkpoints up to t alone (key frequencies are those of t itself), extrapolations to the
//! grok step (first checkpoint with test accuracy >= `accuracy`). For the restricted loss on test pairs, the loss of the circuit
//! alone, and for the test loss itself: a line through ln loss over the last `window` checkpoints is followed down to
//! `threshold`; a loss that has been below it counts from there. The circuit leads the behaviour, so its time is multiplied
//! by `lead`, which must come from *other* runs (default: mod-31 perceptrons). Weight norm and Gini coefficient
//! predict nothing by themselves and are emitted beside, for regressions over runs.
//! `predicted_step` is NaN while the line does not fall; a prediction never lies before t.
//!
//! At the end: `grok_step`, `error` = |predicted - actual| / actual at every checkpoint before it, and `error_at_lead`: the mean of
//! the error (at most 1, and 1 where nothing was predicted) while at least the fraction 0.3 of the way was still ahead, one value per predictor.
//!
//! # Interpretation
//! A predictor is worth something if its error falls long before the test loss moves. NaN throughout means that the run
//! did not grok, and then a prediction that is not NaN was a false alarm (`n_predictions` counts them).
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217 (the measures); Notsawo et al. 2023, arXiv 2306.13253 (prediction of grokking).

use sweep_lens::Transformer;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    curve::least_squares::affine,
    error::Result,
    experiment::{Experiment, Inputs},
    modular,
    params::{ParamSet, params},
    progress_measures::Measurer,
    sink::Context,
    trajectory::{TrajectoryInput, load_checked},
    value::Value,
};

/// See the module documentation.
pub struct GrokPredict;

params! {
    /// What is predicted, and how.
    pub struct Params {
        /// Test accuracy that counts as generalisation.
        accuracy: f64 = 0.95, min = 0.0, max = 1.0;
        /// Loss, in nats, that predictions run down to.
        threshold: f64 = 0.3, min = 1e-9;
        /// Checkpoints that the line goes through.
        window: u64 = 5, min = 2.0, max = 1000.0;
        /// Grok step over the step at which the circuit's loss is at the threshold, from other runs.
        lead: f64 = 4.5, min = 0.1;
        /// Fraction of its variance that a neuron's frequency must explain for it to count.
        explained: f64 = 0.3, min = 0.0, max = 1.0;
    }
}

/// Names of the predictors, in the order of the axis.
const PREDICTORS: [&str; 2] = ["restricted_loss", "test_loss"];

impl Experiment for GrokPredict {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "grok-predict",
        version: 1,
        summary: "Predicts the step of generalisation from what is known at each checkpoint",
        source: "Nanda et al. 2023, arXiv 2301.05217; Notsawo et al. 2023, arXiv 2306.13253",
        stage: Stage::Trajectory,
        requires: Requires { mlp: true, recipes: modular::RECIPES, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoints
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let device = input.device;
        let checkpoints = input.checkpoints()?;
        let steps = checkpoints.steps().to_vec();
        let mut measurer: Option<Measurer> = None;
        let mut losses: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        let (mut accuracy, mut predicted) = (Vec::new(), Vec::new());
        for (index, &step) in steps.iter().enumerate() {
            let checkpoint = load_checked(checkpoints, step, Self::CARD)?;
            if measurer.is_none() {
                measurer = Some(Measurer::new(&checkpoint, device)?);
            }
            let measurer = measurer.as_ref().expect("made at the first checkpoint");
            let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(device))?;
            let outputs = measurer.outputs(&model);
            let neurons = measurer.neurons(&outputs.neurons, params.explained);
            let keys = neurons.key_frequencies(1);
            let found = measurer.measure(&outputs, model.weights(), neurons, keys)?;
            losses[0].push(found.restricted_test_loss);
            losses[1].push(found.test_loss);
            accuracy.push(found.test_acc);
            let known = &steps[..=index];
            let forecast = [
                forecast(known, &losses[0], &params, params.lead),
                forecast(known, &losses[1], &params, 1.0),
            ];
            cx.metric_at("predicted_step", step, Value::labelled(PREDICTORS, forecast.to_vec()))?;
            predicted.push(forecast);
            let norm = model
                .weights()
                .iter()
                .map(|(_, tensor)| tensor.square().sum(sweep_lens::Kind::Double).double_value(&[]));
            for (name, value) in [
                ("restricted_loss", found.restricted_test_loss),
                ("test_loss", found.test_loss),
                ("gini_embed", found.gini_embed),
                ("weight_norm", norm.sum()),
            ] {
                cx.metric_at(name, step, value)?;
            }
            cx.progress(index as u64 + 1, steps.len() as u64)?;
        }
        judge(&steps, &accuracy, &predicted, params.accuracy, cx)
    }
}

/// Step at which the loss will be at the threshold, times `lead`; never before the last known step.
fn forecast(steps: &[u64], losses: &[f64], params: &Params, lead: f64) -> f64 {
    let now = *steps.last().expect("at least the present is known") as f64;
    let last_above = losses.iter().rposition(|&loss| loss > params.threshold || loss.is_nan());
    let reached = match last_above {
        // Below the threshold from here on: it is known when.
        Some(place) if place + 1 < losses.len() => steps[place + 1] as f64,
        None => steps[0] as f64,
        Some(_) => {
            let from = losses.len().saturating_sub(params.window as usize);
            let x: Vec<f64> = steps[from..].iter().map(|&step| step as f64).collect();
            let y: Vec<f64> = losses[from..].iter().map(|loss| loss.ln()).collect();
            let line = affine(&x, &y);
            if x.len() < 2 || line.b.is_nan() || line.b >= 0.0 {
                return f64::NAN;
            }
            (params.threshold.ln() - line.a) / line.b
        }
    };
    (lead * reached).max(now)
}

fn judge(
    steps: &[u64],
    accuracy: &[f64],
    predicted: &[[f64; 2]],
    wanted: f64,
    cx: &mut Context<'_>,
) -> Result<()> {
    let grok = accuracy.iter().position(|&accuracy| accuracy >= wanted);
    let grok_step = grok.map_or(f64::NAN, |place| steps[place] as f64);
    cx.metric("grok_step", grok_step)?;
    let before = grok.unwrap_or(steps.len());
    let error = |place: usize, predictor: usize| {
        (predicted[place][predictor] - grok_step).abs() / grok_step
    };
    for (place, &step) in steps[..before].iter().enumerate() {
        let errors = (0..PREDICTORS.len()).map(|predictor| error(place, predictor)).collect();
        cx.metric_at("error", step, Value::labelled(PREDICTORS, errors))?;
    }
    let early: Vec<usize> =
        (0..before).filter(|&place| steps[place] as f64 <= 0.7 * grok_step).collect();
    let mean = |predictor: usize| {
        // No prediction is as bad as one that is off by everything.
        let bounded = |&place: &usize| match error(place, predictor) {
            error if error.is_nan() => 1.0,
            error => error.min(1.0),
        };
        early.iter().map(bounded).sum::<f64>() / early.len() as f64
    };
    let means = (0..PREDICTORS.len()).map(mean).collect();
    cx.metric("error_at_lead", Value::labelled(PREDICTORS, means))?;
    let count = |predictor: usize| {
        predicted[..before].iter().filter(|forecast| forecast[predictor].is_finite()).count() as f64
    };
    let counts = (0..PREDICTORS.len()).map(count).collect();
    cx.metric("n_predictions", Value::labelled(PREDICTORS, counts))
}

const fn predictor(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Predictor], doc }
}

const METRICS: &[MetricDef] = &[
    predictor("predicted_step", Unit::Steps, "Grok step as foreseen at this checkpoint"),
    predictor("error", Unit::Ratio, "Distance from the actual grok step, relative; NaN if none"),
    predictor("error_at_lead", Unit::Ratio, "Mean error, at most 1, with 30 % of the way ahead"),
    predictor("n_predictions", Unit::Count, "Checkpoints before the grok step with a prediction"),
    scalar("restricted_loss", Unit::Nats, "Loss of this checkpoint's circuit on test pairs"),
    scalar("test_loss", Unit::Nats, "Loss on test pairs"),
    scalar("gini_embed", Unit::Ratio, "Gini coefficient of the embedding's norms per frequency"),
    scalar("weight_norm", Unit::SquaredNorm, "Sum of squares of all parameters"),
    scalar("grok_step", Unit::Steps, "First checkpoint that generalises; NaN if none"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "predictions",
    title: "Predicted grok step",
    kind: FigureKind::Lines,
    metrics: &["predicted_step"],
    log_x: false,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_followed_to_the_threshold_and_no_further_than_the_present() {
        let params = Params { threshold: 0.01, window: 3, ..Params::default() };
        let steps = [0, 100, 200, 300];
        let falling: Vec<f64> = steps.iter().map(|&s| (-(s as f64) / 100.0).exp()).collect();
        // ln 0.01 = -4.605: at step 460.5.
        assert!((forecast(&steps, &falling, &params, 1.0) - 460.517).abs() < 1e-3);
        assert!((forecast(&steps, &falling, &params, 2.0) - 921.034).abs() < 1e-3);
        assert!(forecast(&steps, &[1.0, 2.0, 3.0, 4.0], &params, 1.0).is_nan());
        assert!(forecast(&steps[..1], &[1.0], &params, 1.0).is_nan());
        // At the threshold since step 200, which is behind us; with a lead it may be ahead.
        let low = [1.0, 0.5, 0.001, 0.001];
        assert_eq!(forecast(&steps, &low, &params, 1.0), 300.0);
        assert_eq!(forecast(&steps, &low, &params, 2.0), 400.0);
    }
}
