//! In which order models of addition learn their digits, how far seeds agree on it, and what might explain it.
//!
//! # What it measures
//! For every model of one entry (its seeds and grid points): the loss of every answer digit at every checkpoint, on fixed held-out
//! sums (`loss_digit`); from it `half_step` (first checkpoint with half of the fall done; NaN, and last in rank, for a digit that
//! keeps more than half of its loss), `rank` by it, and the same for
//! carries by sub-task (`make_carry_step`, `use_sum9_step`, `no_carry9_step`). Predictors, one per digit, known before or at the
//! first checkpoint:
//! - `label_entropy`: entropy of the digit's answers in nats (the leading digit is a carry, nearly a coin);
//! - `carry_probability`: how often a carry comes in;
//! - `n_inputs`: digits of the operands that the answer depends on, through carries;
//! - `gradient_norm`: norm of the gradient of the digit's loss at the first checkpoint.
//!
//! `tau` is Kendall's correlation of each predictor with the half step over digits (NaN if a predictor is constant). Over
//! models: `mean_rank` of each digit, `agreement` (mean Kendall's tau over pairs of models), `precedence` (fraction of models in
//! which one digit comes before another), `mean_tau` of each predictor; `…_low` and `…_high` are 95 % bootstrap intervals over
//! models, which take two of them, that of the agreement three, and are too narrow for fewer than about eight. A model whose training failed is left out of all of these and named in `members.json`.
//!
//! # Interpretation
//! One model gives one order. The leading digit comes first and the one behind it second in every run; whether units
//! come before or after the middle varies with the seed, so that orders are only meaningful as distributions over seeds.
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217; Quirke and Barez 2023, arXiv 2310.13121.

use std::collections::BTreeMap;

use sweep_lens::{Device, Kind, Tensor, Transformer};

use crate::{
    addition_task::Probe,
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit},
    cohort::{Cohort, CohortCheckpoints, REPORT, load_member},
    curve::order::{Agreement, interval, kendall_tau, ranks},
    data::addition::Sums,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    interventions,
    params::{self, ParamSet, params},
    random,
    recipes::addition,
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct DigitOrder;

params! {
    /// How sure the statistics over models are.
    pub struct Params {
        /// Bootstrap resamples of models; 0 gives no intervals.
        n_bootstrap: u64 = 1000, max = 100_000.0;
        /// Seed of the resampling.
        seed: u64 = 0;
    }
}

impl Experiment for DigitOrder {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "digit-order",
        version: 3,
        summary: "Orders the digits of addition by when they are learned, over seeds, and looks for reasons",
        source: "Nanda et al. 2023, arXiv 2301.05217; Quirke and Barez 2023, arXiv 2310.13121",
        stage: Stage::Joint(Scope::Entry),
        requires: Requires { recipes: &[addition::NAME], ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoints
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        cohort.report(cx)?;
        let (members, device) = (cohort.members, cohort.device);
        let checkpoints = cohort.checkpoints()?;
        let usable: Vec<usize> = (0..members.len())
            .filter(|&member| members[member].failure.is_none())
            .filter(|&member| !checkpoints.steps(member).is_empty())
            .collect();
        if let Some(short) = usable.iter().find(|member| checkpoints.steps(**member).len() < 3) {
            let (label, n) = (&members[*short].label, checkpoints.steps(*short).len());
            return Err(Error::Input(format!(
                "`{label}` has {n} checkpoints, expected 3 or more: an order needs the course of the losses"
            )));
        }
        let total: usize = usable.iter().map(|&member| checkpoints.steps(member).len()).sum();
        let (mut runs, mut labels): (Vec<Run>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut done = 0;
        for &member in &usable {
            let run = Run::read(checkpoints, member, device, &mut || {
                done += 1;
                cx.progress(done, total as u64)
            })?;
            if let Some(first) = runs.first().filter(|first| first.half.len() != run.half.len()) {
                return Err(Error::Input(format!(
                    "`{}` answers with {} digits, `{}` with {}: give them entries of their own",
                    labels[0],
                    first.half.len(),
                    members[member].label,
                    run.half.len()
                )));
            }
            runs.push(run);
            labels.push(&members[member].label);
        }
        if runs.is_empty() {
            return Err(Error::Input("no model has a complete training".to_owned()));
        }
        per_model(&runs, &labels, cx)?;
        over_models(&runs, &params, cx)
    }
}

/// Names of the predictors, in order.
const PREDICTORS: [&str; 4] = ["label_entropy", "carry_probability", "n_inputs", "gradient_norm"];

/// Names of the half steps by sub-task, in order.
const SUB_TASKS: [&str; 3] = ["make_carry_step", "use_sum9_step", "no_carry9_step"];

/// What is read off one model.
struct Run {
    /// Step → loss of each digit.
    losses: BTreeMap<u64, Vec<f64>>,
    /// One per digit.
    half: Vec<f64>,
    /// By sub-task, one per digit.
    sub_task_half: [Vec<f64>; 3],
    /// By predictor, one per digit.
    predictors: [Vec<f64>; 4],
    /// By predictor.
    tau: Vec<f64>,
}

impl Run {
    fn read(
        checkpoints: &mut dyn CohortCheckpoints,
        member: usize,
        device: Device,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let steps = checkpoints.steps(member).to_vec();
        let first = load_member(checkpoints, member, steps[0], DigitOrder::CARD)?;
        let task = Task::of(&first.extra)?;
        let probe = Probe::new(&[&task.sums], task.n_digits, device);
        let model = Transformer::new(first.config, first.weights.to_device(device))?;
        let gradient_norm = gradient_norms(&model, &probe);
        drop(model);
        let _no_grad = tch::no_grad_guard();
        let (mut losses, mut sub_tasks) = (BTreeMap::new(), Vec::new());
        for &step in &steps {
            let checkpoint = load_member(checkpoints, member, step, DigitOrder::CARD)?;
            let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(device))?;
            let reading = probe.read(&model);
            losses.insert(step, to_vec(&reading.loss_digit));
            let [_, make_carry, use_sum9, no_carry9] = reading.loss_sub_task.map(|l| to_vec(&l));
            sub_tasks.push([make_carry, use_sum9, no_carry9]);
            progress()?;
        }
        let n_answers = task.n_digits + 1;
        let curve = |values: Vec<f64>| half_step(&steps, &values);
        let half: Vec<f64> = (0..n_answers)
            .map(|digit| curve(losses.values().map(|losses: &Vec<f64>| losses[digit]).collect()))
            .collect();
        let sub_task_half = std::array::from_fn(|task| {
            let of_digit =
                |digit: usize| curve(sub_tasks.iter().map(|at| at[task][digit]).collect());
            (0..n_answers).map(of_digit).collect()
        });
        let predictors =
            [task.label_entropy(), task.carry_probability(), task.n_inputs(), gradient_norm];
        let tau = predictors.iter().map(|values| kendall_tau(values, &half)).collect();
        Ok(Self { losses, half, sub_task_half, predictors, tau })
    }
}

/// Values `[member, digit]`, or with another second axis.
fn by_member<'r>(
    labels: &[&str],
    columns: Option<Vec<String>>,
    rows: impl Iterator<Item = &'r Vec<f64>>,
) -> Value {
    let rows: Vec<&Vec<f64>> = rows.collect();
    let width = rows.first().map_or(0, |row| row.len());
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    let data = rows.iter().flat_map(|row| row.iter().copied()).collect();
    Value::array(vec![rows.len(), width], data, vec![Some(labels), columns])
}

fn per_model(runs: &[Run], labels: &[&str], cx: &mut Context<'_>) -> Result<()> {
    let mut steps: Vec<u64> = runs.iter().flat_map(|run| run.losses.keys().copied()).collect();
    steps.sort_unstable();
    steps.dedup();
    for step in steps {
        let here: Vec<(&str, &Vec<f64>)> = runs
            .iter()
            .zip(labels)
            .filter_map(|(run, label)| Some((*label, run.losses.get(&step)?)))
            .collect();
        let names: Vec<&str> = here.iter().map(|(label, _)| *label).collect();
        let value = by_member(&names, None, here.iter().map(|(_, losses)| *losses));
        cx.metric_at("loss_digit", step, value)?;
    }
    let ranked: Vec<Vec<f64>> = runs.iter().map(|run| ranks(&run.half)).collect();
    cx.metric("rank", by_member(labels, None, ranked.iter()))?;
    cx.metric("half_step", by_member(labels, None, runs.iter().map(|run| &run.half)))?;
    for (task, name) in SUB_TASKS.iter().enumerate() {
        let rows = runs.iter().map(|run| &run.sub_task_half[task]);
        cx.metric(name, by_member(labels, None, rows))?;
    }
    for (index, name) in PREDICTORS.iter().enumerate() {
        let rows = runs.iter().map(|run| &run.predictors[index]);
        cx.metric(name, by_member(labels, None, rows))?;
    }
    let names = PREDICTORS.map(str::to_owned).to_vec();
    cx.metric("tau", by_member(labels, Some(names), runs.iter().map(|run| &run.tau)))
}

fn over_models(runs: &[Run], params: &Params, cx: &mut Context<'_>) -> Result<()> {
    let halves: Vec<Vec<f64>> = runs.iter().map(|run| run.half.clone()).collect();
    let mut rng = random::stream(params.seed, "digit-order");
    let found = Agreement::of(&halves, params.n_bootstrap as usize, &mut rng);
    let n_answers = found.mean_rank.len();
    let end = |place: usize| found.interval.iter().map(|ends| ends[place]).collect();
    cx.metric("mean_rank", Value::vector(found.mean_rank.clone()))?;
    cx.metric("mean_rank_low", Value::vector(end(0)))?;
    cx.metric("mean_rank_high", Value::vector(end(1)))?;
    cx.metric("agreement", found.tau)?;
    cx.metric("agreement_low", found.tau_interval[0])?;
    cx.metric("agreement_high", found.tau_interval[1])?;
    let precedence = found.precedence.concat();
    cx.metric(
        "precedence",
        Value::array(vec![n_answers, n_answers], precedence, vec![None, None]),
    )?;
    let (mut means, mut lows, mut highs) = (Vec::new(), Vec::new(), Vec::new());
    for predictor in 0..PREDICTORS.len() {
        let taus: Vec<f64> =
            runs.iter().map(|run| run.tau[predictor]).filter(|tau| tau.is_finite()).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let samples = (0..params.n_bootstrap).map(|_| {
            let draw = || taus[random::below(&mut rng, taus.len() as u64) as usize];
            mean(&std::iter::repeat_with(draw).take(taus.len()).collect::<Vec<f64>>())
        });
        let ends = if taus.len() < 2 { [f64::NAN; 2] } else { interval(samples.collect()) };
        means.push(mean(&taus));
        lows.push(ends[0]);
        highs.push(ends[1]);
    }
    for (name, values) in [("mean_tau", means), ("mean_tau_low", lows), ("mean_tau_high", highs)] {
        cx.metric(name, Value::labelled(PREDICTORS, values))?;
    }
    Ok(())
}

/// First step at which half of the fall from the first to the last value is done; NaN where there is no value, or less than half
/// of it is gone at the end.
fn half_step(steps: &[u64], values: &[f64]) -> f64 {
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return f64::NAN };
    let middle = f64::midpoint(*first, *last);
    // Comparisons with NaN are false, so that a class without example has no step.
    let is_learned = *last <= 0.5 * first;
    let found = steps.iter().zip(values).find(|(_, value)| is_learned && **value <= middle);
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

const fn of_digit(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Digit], doc }
}

const fn member_digit(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Member, Axis::Digit], doc }
}

const fn of_predictor(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Ratio, axes: &[Axis::Predictor], doc }
}

const fn scalar(name: &'static str, doc: &'static str) -> MetricDef {
    const NONE: &[Axis] = &[];
    MetricDef { name, unit: Unit::Ratio, axes: NONE, doc }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    member_digit("loss_digit", Unit::Nats, "Mean loss of each answer digit on held-out sums"),
    member_digit(
        "half_step",
        Unit::Steps,
        "First checkpoint with half of the change of its loss done",
    ),
    member_digit("rank", Unit::Count, "Place in the order of half steps, 1 first, ties shared"),
    member_digit(
        "make_carry_step",
        Unit::Steps,
        "Half step of sums whose column below makes a carry",
    ),
    member_digit(
        "use_sum9_step",
        Unit::Steps,
        "Half step of sums whose carry comes through a nine",
    ),
    member_digit("no_carry9_step", Unit::Steps, "Half step of sums with a nine below and no carry"),
    member_digit("label_entropy", Unit::Nats, "Entropy of the digit's answers"),
    member_digit("carry_probability", Unit::Probability, "How often a carry comes in"),
    member_digit("n_inputs", Unit::Count, "Digits of the operands that the answer depends on"),
    member_digit(
        "gradient_norm",
        Unit::Norm,
        "Norm of the gradient of its loss at the first checkpoint",
    ),
    MetricDef {
        name: "tau",
        unit: Unit::Ratio,
        axes: &[Axis::Member, Axis::Predictor],
        doc: "Kendall's tau of a predictor with the half step, over digits",
    },
    of_digit("mean_rank", Unit::Count, "Mean over models of the place in the order"),
    of_digit("mean_rank_low", Unit::Count, "Lower end of its 95 % bootstrap interval over models"),
    of_digit("mean_rank_high", Unit::Count, "Upper end of that interval"),
    scalar("agreement", "Mean Kendall's tau between the orders of two models"),
    scalar("agreement_low", "Lower end of its 95 % bootstrap interval over models"),
    scalar("agreement_high", "Upper end of that interval"),
    MetricDef {
        name: "precedence",
        unit: Unit::Probability,
        axes: &[Axis::Digit, Axis::OtherDigit],
        doc: "Fraction of models that learn a digit before another one, ties half",
    },
    of_predictor("mean_tau", "Mean over models of a predictor's tau"),
    of_predictor("mean_tau_low", "Lower end of its 95 % bootstrap interval over models"),
    of_predictor("mean_tau_high", "Upper end of that interval"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "ranks",
        title: "Order of the digits in each model",
        kind: FigureKind::HeatMap,
        metrics: &["rank"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "order",
        title: "Mean place of each digit",
        kind: FigureKind::Intervals,
        metrics: &["mean_rank", "mean_rank_low", "mean_rank_high"],
        log_x: false,
        log_y: false,
    },
];

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
        assert!(half_step(&[0, 10, 20], &[2.5, 2.3, 2.3]).is_nan(), "not learned");
    }
}
