//! In which order a model of addition learns its digits, and what might explain it.
//!
//! # What it measures
//! The loss of every answer digit at every checkpoint, on fixed held-out sums; from it `half_step` (first checkpoint with half
//! of the change done), `rank` by it, and the same for carries by sub-task (`sub_task_half_step`). Predictors, one per digit,
//! known before or at the first checkpoint:
//! - `label_entropy`: entropy of the digit's answers in nats (the leading digit is a carry, nearly a coin);
//! - `carry_probability`: how often a carry comes in;
//! - `n_inputs`: digits of the operands that the answer depends on, through carries;
//! - `gradient_norm`: norm of the gradient of the digit's loss at the first checkpoint.
//!
//! `tau` is Kendall's correlation of each predictor with the half step over digits (NaN if a predictor is constant).
//!
//! # Interpretation
//! One model gives one order. The leading digit comes first and the one behind it second in every run; whether units
//! come before or after the middle varies with the seed, so that orders are only meaningful as distributions over seeds.
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217; Quirke and Barez 2023, arXiv 2310.13121.

use sweep_lens::{Device, Kind, Tensor, Transformer};

use crate::{
    addition_task::Probe,
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    curve::order::{kendall_tau, ranks},
    data::addition::Sums,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    interventions,
    params::{self, NoParams, ParamSet},
    recipes::addition,
    sink::Context,
    trajectory::{TrajectoryInput, load_checked},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct DigitOrder;

impl Experiment for DigitOrder {
    type Params = NoParams;
    const CARD: &'static Card = &Card {
        name: "digit-order",
        version: 1,
        summary: "Orders the digits of addition by when they are learned and looks for reasons",
        source: "Nanda et al. 2023, arXiv 2301.05217; Quirke and Barez 2023, arXiv 2310.13121",
        stage: Stage::Trajectory,
        requires: Requires { recipes: &[addition::NAME], ..Requires::ANY },
        params: NoParams::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &NoParams) -> Inputs {
        Inputs::Checkpoints
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        _params: NoParams,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let device = input.device;
        let checkpoints = input.checkpoints()?;
        let steps = checkpoints.steps().to_vec();
        let first = load_checked(checkpoints, steps[0], Self::CARD)?;
        let task = Task::of(&first.extra)?;
        let probe = Probe::new(&[&task.sums], task.n_digits, device);
        let model = Transformer::new(first.config, first.weights.to_device(device))?;
        let gradient_norm = gradient_norms(&model, &probe);
        drop(model);
        let _no_grad = tch::no_grad_guard();
        let (mut digits, mut sub_tasks) = (Vec::new(), Vec::new());
        for (index, &step) in steps.iter().enumerate() {
            let checkpoint = load_checked(checkpoints, step, Self::CARD)?;
            let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(device))?;
            let reading = probe.read(&model);
            let losses = to_vec(&reading.loss_digit);
            cx.metric_at("loss_digit", step, Value::vector(losses.clone()))?;
            digits.push(losses);
            let [_, make_carry, use_sum9, no_carry9] = reading.loss_sub_task.map(|l| to_vec(&l));
            sub_tasks.push([make_carry, use_sum9, no_carry9]);
            cx.progress(index as u64 + 1, steps.len() as u64)?;
        }
        let n_answers = task.n_digits + 1;
        let curve = |value: &dyn Fn(usize) -> f64| -> f64 {
            half_step(&steps, &(0..steps.len()).map(value).collect::<Vec<_>>())
        };
        let half: Vec<f64> = (0..n_answers).map(|d| curve(&|at| digits[at][d])).collect();
        cx.metric("rank", Value::vector(ranks(&half)))?;
        let of_sub_task = |task: usize, d: usize| curve(&|at| sub_tasks[at][task][d]);
        for (task, name) in
            ["make_carry_step", "use_sum9_step", "no_carry9_step"].iter().enumerate()
        {
            cx.metric(name, Value::vector((0..n_answers).map(|d| of_sub_task(task, d)).collect()))?;
        }
        let predictors = [
            ("label_entropy", task.label_entropy()),
            ("carry_probability", task.carry_probability()),
            ("n_inputs", task.n_inputs()),
            ("gradient_norm", gradient_norm),
        ];
        let tau = predictors.iter().map(|(_, values)| kendall_tau(values, &half)).collect();
        let names: Vec<&str> = predictors.iter().map(|predictor| predictor.0).collect();
        cx.metric("tau", Value::labelled(names, tau))?;
        cx.metric("half_step", Value::vector(half))?;
        for (name, values) in predictors {
            cx.metric(name, Value::vector(values))?;
        }
        Ok(())
    }
}

/// First step at which half of the change from the first to the last value is done; NaN where there is no value or no change.
fn half_step(steps: &[u64], values: &[f64]) -> f64 {
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return f64::NAN };
    let middle = f64::midpoint(*first, *last);
    let reached = |value: f64| if last < first { value <= middle } else { value >= middle };
    // Comparisons with NaN are false, so that a class without example has no step.
    let is_flat = first == last || !middle.is_finite();
    let found = steps.iter().zip(values).find(|(_, value)| !is_flat && reached(**value));
    found.map_or(f64::NAN, |(step, _)| *step as f64)
}

/// The task of a checkpoint.
struct Task {
    n_digits: usize,
    reversed: bool,
    sums: Sums,
}

impl Task {
    fn of(record: &serde_json::Value) -> Result<Self> {
        let lacks = |name: &str| {
            Error::Input(format!("the checkpoint's record of its training lacks `{name}`"))
        };
        let own = interventions::without(record.get("params").ok_or_else(|| lacks("params"))?);
        let params: addition::Params = params::decode(&own)?;
        let seed =
            record.get("seed").and_then(serde_json::Value::as_u64).ok_or_else(|| lacks("seed"))?;
        let [_, sums] = params.evaluation(params.data_seed(seed));
        let generator = params.generator();
        Ok(Self { n_digits: generator.n_digits, reversed: generator.reversed, sums })
    }

    /// One value for each answer digit, of the sums' entries at that digit.
    fn per_digit<T: Copy>(&self, entries: &[T], value: impl Fn(&[T]) -> f64) -> Vec<f64> {
        let n_answers = self.n_digits + 1;
        let column =
            |d: usize| entries.iter().skip(d).step_by(n_answers).copied().collect::<Vec<_>>();
        (0..n_answers).map(|d| value(&column(d))).collect()
    }

    fn label_entropy(&self) -> Vec<f64> {
        self.per_digit(&self.sums.labels, |labels| {
            let shares = (0..10).map(|digit| {
                labels.iter().filter(|&&label| label == digit).count() as f64 / labels.len() as f64
            });
            shares.filter(|&share| share > 0.0).map(|share| -share * share.ln()).sum()
        })
    }

    fn carry_probability(&self) -> Vec<f64> {
        self.per_digit(&self.sums.cascades, |lengths| {
            lengths.iter().filter(|&&length| length > 0).count() as f64 / lengths.len() as f64
        })
    }

    /// Digit d of the answer, most significant first, depends on its own column and all below.
    fn n_inputs(&self) -> Vec<f64> {
        let n = self.n_digits;
        let of = |place: usize| 2.0 * (if place == 0 { n } else { n - place + 1 }) as f64;
        let mut counts: Vec<f64> = (0..=n).map(of).collect();
        if self.reversed {
            counts.reverse();
        }
        counts
    }
}

/// Norm over all parameters of the gradient of each digit's loss.
fn gradient_norms(model: &Transformer, probe: &Probe) -> Vec<f64> {
    let leaves: Vec<Tensor> =
        model.weights().iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
    model.weights().set_requires_grad(true);
    let losses = probe.loss_digit(model).reshape([-1]);
    let n_digits = losses.size()[0];
    let norms = (0..n_digits).map(|digit| {
        let gradients = Tensor::run_backward(&[losses.get(digit)], &leaves, true, false);
        let squares = gradients.iter().filter(|gradient| gradient.defined());
        squares
            .map(|g| g.square().sum(Kind::Double).to_device(Device::Cpu).double_value(&[]))
            .sum::<f64>()
            .sqrt()
    });
    norms.collect()
}

const fn digit(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Digit], doc }
}

const METRICS: &[MetricDef] = &[
    digit("loss_digit", Unit::Nats, "Mean loss of each answer digit on held-out sums"),
    digit("half_step", Unit::Steps, "First checkpoint with half of the change of its loss done"),
    digit("rank", Unit::Count, "Place in the order of half steps, 1 first, ties shared"),
    digit("make_carry_step", Unit::Steps, "Half step of sums whose column below makes a carry"),
    digit("use_sum9_step", Unit::Steps, "Half step of sums whose carry comes through a nine"),
    digit("no_carry9_step", Unit::Steps, "Half step of sums with a nine below and no carry"),
    digit("label_entropy", Unit::Nats, "Entropy of the digit's answers"),
    digit("carry_probability", Unit::Probability, "How often a carry comes in"),
    digit("n_inputs", Unit::Count, "Digits of the operands that the answer depends on"),
    digit("gradient_norm", Unit::Norm, "Norm of the gradient of its loss at the first checkpoint"),
    MetricDef {
        name: "tau",
        unit: Unit::Ratio,
        axes: &[Axis::Predictor],
        doc: "Kendall's tau of a predictor with the half step, over digits",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "digits",
    title: "Loss of each digit",
    kind: FigureKind::Lines,
    metrics: &["loss_digit"],
    log_x: false,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::addition::Generator;

    fn task(reversed: bool) -> Task {
        let generator = Generator { n_digits: 3, carry_rate: None, reversed };
        let sums = generator.batch(&mut crate::random::stream(1, "test"), 20_000);
        Task { n_digits: 3, reversed, sums }
    }

    #[test]
    fn predictors_have_their_textbook_values() {
        let task_msd = task(false);
        let entropy = task_msd.label_entropy();
        // A carry out of three columns comes with probability (1 - 10^-3) / 2.
        assert!((entropy[0] - 2f64.ln()).abs() < 1e-3 && (entropy[3] - 10f64.ln()).abs() < 1e-3);
        let carry = task_msd.carry_probability();
        for (found, expected) in carry.iter().zip([0.4995, 0.495, 0.45, 0.0]) {
            assert!((found - expected).abs() < 0.012, "{carry:?}");
        }
        assert_eq!(task_msd.n_inputs(), [6.0, 6.0, 4.0, 2.0]);
        assert_eq!(task(true).n_inputs(), [2.0, 4.0, 6.0, 6.0]);
        assert_eq!(task(true).carry_probability()[0], 0.0);
    }

    #[test]
    fn half_steps() {
        assert_eq!(half_step(&[0, 10, 20], &[2.0, 1.0, 0.0]), 10.0);
        assert_eq!(half_step(&[0, 10, 20], &[2.0, 1.9, 0.0]), 20.0);
        assert!(half_step(&[0, 10], &[f64::NAN, f64::NAN]).is_nan());
        assert!(half_step(&[0, 10], &[1.0, 1.0]).is_nan());
    }
}
