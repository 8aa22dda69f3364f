//! Phases of grokking: memorisation, circuit formation, cleanup.
//!
//! # What it measures
//! The losses of `grokking-progress` at every checkpoint, with the key frequencies of the *final* checkpoint
//! (neurons explained to `threshold`, as there), and the boundaries between the phases (D8), all in steps of
//! checkpoints, NaN where a boundary is not reached:
//! - `memorised_step` (t_mem): first checkpoint with training accuracy >= 0.99 or training loss < 0.01;
//! - `circuit_formation_step` (t1): lowest excluded loss from t_mem on, unless it is still falling at the end;
//! - `cleanup_step` (t2): where ln test loss bends down between t1 and t3: the knot of the continuous
//!   two-piece linear fit of least squared error (change-point start);
//! - `steepest_step`: the end of the interval in which ln test loss falls fastest per step, between t1 and t3;
//! - `grokked_step` (t3): first checkpoint after t_mem with test loss < 0.01;
//! - `generalised_step` (t_gen): first checkpoint with test accuracy >= 0.95, `gap` = t_gen - t_mem.
//!
//! # Interpretation
//! Circuit formation starts long before test loss moves: t1 well before t2 is the hidden progress. Knowing the final
//! frequencies, the measures see the circuit while single neurons are still far from pure. They
//! use the future, so they explain a run but cannot predict one.
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217, section 5.2 and figure 7 (boundaries there by eye: 1.4k, 9.4k, 14k).

use sweep_lens::Transformer;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    curve::least_squares::{BrokenLine, broken_line},
    error::Result,
    experiment::{Experiment, Inputs},
    modular,
    params::{ParamSet, params},
    progress_measures::{Measurer, Measures},
    sink::Context,
    trajectory::{TrajectoryInput, load_checked},
    value::Value,
};

/// See the module documentation.
pub struct GrokkingPhases;

params! {
    /// What counts as a key frequency of the final checkpoint.
    pub struct Params {
        /// Fraction of its variance that a neuron's frequency must explain for it to count.
        threshold: f64 = 0.5, min = 0.0, max = 1.0;
        /// Neurons that must count for a frequency to be key.
        min_neurons: u64 = 1, min = 1.0;
    }
}

impl Experiment for GrokkingPhases {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "grokking-phases",
        version: 1,
        summary: "Finds memorisation, circuit formation and cleanup with the final key frequencies",
        source: "Nanda et al. 2023, arXiv 2301.05217, section 5.2",
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
        let last = *steps.last().expect("checkpoints() gives at least one");
        let checkpoint = load_checked(checkpoints, last, Self::CARD)?;
        let measurer = Measurer::new(&checkpoint, device)?;
        let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(device))?;
        let outputs = measurer.outputs(&model);
        let neurons = measurer.neurons(&outputs.neurons, params.threshold);
        let keys = neurons.key_frequencies(params.min_neurons);
        drop(model);
        let mut history = Vec::with_capacity(steps.len());
        for (index, &step) in steps.iter().enumerate() {
            let checkpoint = load_checked(checkpoints, step, Self::CARD)?;
            let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(device))?;
            let outputs = measurer.outputs(&model);
            let neurons = measurer.neurons(&outputs.neurons, params.threshold);
            let measures = measurer.measure(&outputs, model.weights(), neurons, keys.clone())?;
            emit(&measures, step, cx)?;
            history.push(Point::new(step, &measures));
            cx.progress(index as u64 + 1, steps.len() as u64)?;
        }
        let phases = Phases::of(&history);
        for (name, step) in [
            ("memorised_step", phases.memorised),
            ("circuit_formation_step", phases.circuit_formation),
            ("cleanup_step", phases.cleanup),
            ("steepest_step", phases.steepest),
            ("grokked_step", phases.grokked),
            ("generalised_step", phases.generalised),
        ] {
            cx.metric(name, step.unwrap_or(f64::NAN))?;
        }
        let gap = phases.generalised.zip(phases.memorised).map(|(t_gen, t_mem)| t_gen - t_mem);
        cx.metric("gap", gap.unwrap_or(f64::NAN))?;
        cx.metric("n_key_frequencies", keys.len() as f64)?;
        let all = 1..=measurer.basis.n_frequencies();
        let is_key = all.map(|k| f64::from(u8::from(keys.contains(&k)))).collect();
        cx.metric("key_frequency", Value::labelled(measurer.basis.labels(), is_key))
    }
}

fn emit(measures: &Measures, step: u64, cx: &mut Context<'_>) -> Result<()> {
    for (name, value) in [
        ("train_loss", measures.train_loss),
        ("test_loss", measures.test_loss),
        ("train_acc", measures.train_acc),
        ("test_acc", measures.test_acc),
        ("restricted_loss", measures.restricted_loss),
        ("restricted_test_loss", measures.restricted_test_loss),
        ("excluded_loss", measures.excluded_loss),
    ] {
        cx.metric_at(name, step, value)?;
    }
    Ok(())
}

/// What the boundaries are read from.
#[derive(Debug, Clone, Copy)]
struct Point {
    step: f64,
    train_loss: f64,
    train_acc: f64,
    test_loss: f64,
    test_acc: f64,
    excluded_loss: f64,
}

impl Point {
    fn new(step: u64, measures: &Measures) -> Self {
        Self {
            step: step as f64,
            train_loss: measures.train_loss,
            train_acc: measures.train_acc,
            test_loss: measures.test_loss,
            test_acc: measures.test_acc,
            excluded_loss: measures.excluded_loss,
        }
    }
}

/// Boundaries in steps; `None` if not reached.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Phases {
    memorised: Option<f64>,
    circuit_formation: Option<f64>,
    cleanup: Option<f64>,
    steepest: Option<f64>,
    grokked: Option<f64>,
    generalised: Option<f64>,
}

impl Phases {
    fn of(history: &[Point]) -> Self {
        let generalised =
            history.iter().find(|point| point.test_acc >= 0.95).map(|point| point.step);
        let is_memorised = |point: &Point| point.train_acc >= 0.99 || point.train_loss < 0.01;
        let Some(t_mem) = history.iter().position(is_memorised) else {
            return Self { generalised, ..Self::default() };
        };
        let mut phases =
            Self { memorised: Some(history[t_mem].step), generalised, ..Self::default() };
        let later = &history[t_mem..];
        let t3 = later.iter().position(|point| point.test_loss < 0.01);
        phases.grokked = t3.map(|t3| later[t3].step);
        // Memory gives way between memorisation and the end of the run; an excluded loss that is lowest
        // at the very end has not turned yet.
        let lowest = (0..later.len())
            .min_by(|&a, &b| later[a].excluded_loss.total_cmp(&later[b].excluded_loss))
            .filter(|&t1| t1 + 1 < later.len());
        phases.circuit_formation = lowest.map(|t1| later[t1].step);
        if let (Some(t1), Some(t3)) = (lowest, t3)
            && t1 < t3
        {
            let window = &later[t1..=t3];
            phases.cleanup = bend(window);
            phases.steepest = steepest(window);
        }
        phases
    }
}

/// Where ln test loss bends down: the knot of the best continuous two-piece linear fit, among inner
/// checkpoints; the first checkpoint if there is no inner one or the fall does not accelerate.
fn bend(window: &[Point]) -> Option<f64> {
    let x: Vec<f64> = window.iter().map(|point| point.step).collect();
    let y: Vec<f64> = window.iter().map(|point| point.test_loss.ln()).collect();
    let knots = x.get(1..x.len() - 1).unwrap_or_default();
    let fits = knots.iter().map(|&knot| (knot, broken_line(&x, &y, knot)));
    let best = fits.min_by(|a, b| a.1.rss.total_cmp(&b.1.rss));
    match best {
        Some((knot, BrokenLine { change_of_slope, .. })) if change_of_slope < 0.0 => Some(knot),
        Some(_) | None => x.first().copied(),
    }
}

/// End of the interval between neighbours in which ln test loss falls fastest per step.
fn steepest(window: &[Point]) -> Option<f64> {
    let slope = |pair: &[Point]| {
        (pair[1].test_loss.ln() - pair[0].test_loss.ln()) / (pair[1].step - pair[0].step)
    };
    let pairs = window.windows(2);
    pairs.min_by(|a, b| slope(a).total_cmp(&slope(b))).map(|pair| pair[1].step)
}

const METRICS: &[MetricDef] = &[
    scalar("train_loss", Unit::Nats, "Mean loss on the training pairs"),
    scalar("test_loss", Unit::Nats, "Mean loss on the other pairs"),
    scalar("train_acc", Unit::Probability, "Fraction of training pairs answered correctly"),
    scalar("test_acc", Unit::Probability, "Fraction of the other pairs answered correctly"),
    scalar("restricted_loss", Unit::Nats, "Loss on all pairs of the final key frequencies alone"),
    scalar("restricted_test_loss", Unit::Nats, "The same on the test pairs"),
    scalar("excluded_loss", Unit::Nats, "Training loss without the final key frequencies"),
    scalar("memorised_step", Unit::Steps, "t_mem; NaN if not reached"),
    scalar("circuit_formation_step", Unit::Steps, "t1, lowest excluded loss; NaN if not reached"),
    scalar("cleanup_step", Unit::Steps, "t2, ln test loss bends down; NaN if not reached"),
    scalar("steepest_step", Unit::Steps, "ln test loss falls fastest; NaN if not reached"),
    scalar("grokked_step", Unit::Steps, "t3, test loss below 0.01; NaN if not reached"),
    scalar("generalised_step", Unit::Steps, "t_gen, test accuracy 0.95; NaN if not reached"),
    scalar("gap", Unit::Steps, "t_gen - t_mem; NaN if one is not reached"),
    scalar("n_key_frequencies", Unit::Count, "Key frequencies of the final checkpoint"),
    MetricDef {
        name: "key_frequency",
        unit: Unit::Truth,
        axes: &[Axis::Frequency],
        doc: "1 if the frequency is key at the final checkpoint, else 0",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "phases",
    title: "Grokking with the final key frequencies",
    kind: FigureKind::Lines,
    metrics: &["train_loss", "test_loss", "restricted_loss", "excluded_loss"],
    log_x: false,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use super::*;

    /// A run like the paper's: memorised by 300, circuit from 500, cleanup from 1200, grokked at 1600.
    fn grokking_run() -> Vec<Point> {
        (0..=20)
            .map(|i| {
                let step = f64::from(i * 100);
                let test_loss = match step {
                    s if s <= 1200.0 => 10.0 * (-s / 6000.0).exp(),
                    s => 10.0 * (-0.2f64).exp() * (-(s - 1200.0) / 60.0).exp(),
                };
                Point {
                    step,
                    train_loss: if step < 300.0 { 3.0 } else { 1e-4 },
                    train_acc: if step < 300.0 { 0.3 } else { 1.0 },
                    test_loss,
                    test_acc: if step < 1500.0 { 0.1 } else { 1.0 },
                    excluded_loss: (step - 500.0).abs() / 500.0,
                }
            })
            .collect()
    }

    #[test]
    fn boundaries_of_a_grokking_run() {
        let phases = Phases::of(&grokking_run());
        assert_eq!(phases.memorised, Some(300.0));
        assert_eq!(phases.circuit_formation, Some(500.0));
        assert_eq!(phases.cleanup, Some(1200.0));
        assert_eq!(phases.grokked, Some(1700.0));
        assert_eq!(phases.generalised, Some(1500.0));
        let steepest = phases.steepest.unwrap();
        assert!((1300.0..=1700.0).contains(&steepest), "{steepest}");
    }

    #[test]
    fn boundaries_that_are_not_reached_stay_open() {
        let run = grokking_run();
        assert_eq!(Phases::of(&run[..2]), Phases::default());
        // Memorised, excluded loss still falling at the end.
        let phases = Phases::of(&run[..5]);
        assert_eq!(phases, Phases { memorised: Some(300.0), ..Phases::default() });
        // The circuit forms, nothing is cleaned up.
        let phases = Phases::of(&run[..10]);
        assert_eq!(phases.circuit_formation, Some(500.0));
        assert!(phases.cleanup.is_none() && phases.grokked.is_none());
        // Generalises at once: nothing in between.
        let instant: Vec<Point> =
            run.iter().map(|p| Point { test_loss: 1e-3, test_acc: 1.0, ..*p }).collect();
        let phases = Phases::of(&instant);
        assert_eq!((phases.grokked, phases.generalised), (Some(300.0), Some(0.0)));
        assert!(phases.cleanup.is_none());
    }
}
