//! What fine-tuning does to the task before it: loss of both tasks, movement of the weights, and what is left inside.
//!
//! # What it measures
//! At every checkpoint of a `finetune` run: held-out loss and accuracy of both tasks. Against the *base*, the
//! checkpoint at the switch (the last one up to it): per tensor `displacement`, `‖W − W₀‖ / ‖W₀‖` (NaN once a tensor of zeros has moved); per layer
//! `cka`, linear CKA of activations at the last position on inputs of the second task; `frequency_overlap`, the
//! shared part of two distributions of the embedding's energy over Fourier frequencies (1 if equal, modular tasks
//! only); `probe_first`, the held-out accuracy of a ridge regression from the last layer's activations to the
//! answers of the first task (modular tasks only).
//!
//! At the end: `forgetting`, rise of `loss_first` from the base to the last checkpoint of the second task; steps
//! from the start of each part to `accuracy` of what it trains (`learn_steps`, `transfer_steps`,
//! `relearn_steps`) and to less than `forgotten` of the first (`forget_steps`), NaN where it never
//! happens, and what is about forgetting and relearning also where the accuracy of the first is below `forgotten` at the base; `barrier` of each task on the straight line from the base to that checkpoint (D33).
//!
//! # Interpretation
//! Accuracy that falls while `probe_first` stays is an answer that is no longer read out, not knowledge that is gone. Of modular
//! tasks that are made of the same waves a model that never saw the first one has a `probe_first` near 1 too: compare with the control.
//! `relearn_steps` below `learn_steps` says the same with weights. Transfer needs the control: a run with
//! `switch_step` 0 has as `transfer_steps` the time from scratch. Steps are as fine as checkpoints are.
//!
//! # Source
//! Kornblith et al. 2019, arXiv 1905.00414 (linear CKA); problem 5.15 of the experiment list, D33 and D40.

use serde_json::{Value as Json, json};
use sweep_lens::{
    Architecture, Cache, Device, Hook, Kind, Run, Site, Tensor, Transformer, Weights,
    checkpoint::Checkpoint,
};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    fourier::Basis,
    interventions::{self, Interventions},
    modular,
    params::{self, ParamSet, params},
    rebasin,
    recipe::Objective,
    recipes::finetune::{self, ACCURACY, Task, named},
    sink::Context,
    trajectory::{Checkpoints, TrajectoryInput, load_checked},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct Forgetting;

params! {
    /// What counts as known.
    pub struct Params {
        /// Accuracy at which a task is learned.
        accuracy: f64 = 0.95, min = 0.0, max = 1.0;
        /// Accuracy below which the first task is forgotten.
        forgotten: f64 = 0.5, min = 0.0, max = 1.0;
        /// Points on the line between base and fine-tuned model; 0 leaves the barrier out.
        barrier_points: u64 = 25, max = 1001.0;
    }
}

impl Experiment for Forgetting {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "forgetting",
        version: 2,
        summary: "Measures what fine-tuning forgets, transfers and keeps",
        source: "Kornblith et al. 2019, arXiv 1905.00414 (linear CKA)",
        stage: Stage::Trajectory,
        requires: Requires { recipes: &[finetune::NAME], ..Requires::ANY },
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
        let device = input.device;
        let checkpoints = input.checkpoints()?;
        let steps = checkpoints.steps().to_vec();
        let _no_grad = tch::no_grad_guard();
        let first = load_checked(checkpoints, steps[0], Self::CARD)?;
        let run = Finetuned::new(&first, device)?;
        let at_switch = steps.iter().rposition(|&step| step <= run.params.switch_step);
        let base_step = steps[at_switch.unwrap_or(0)];
        let base = Seen::new(&run, load_checked(checkpoints, base_step, Self::CARD)?, device)?;
        let mut curves = Vec::new();
        for (index, &step) in steps.iter().enumerate() {
            let checkpoint = load_checked(checkpoints, step, Self::CARD)?;
            let seen = Seen::new(&run, checkpoint, device)?;
            curves.push((step, run.losses(&seen.model)));
            emit(&run, &base, &seen, step, curves[index].1, cx)?;
            cx.progress(index as u64 + 1, steps.len() as u64)?;
        }
        emit_times(&run, &params, base_step, &curves, cx)?;
        let end = curves.iter().rfind(|(step, _)| run.is_before_return(*step));
        let end = end.map_or(base_step, |(step, _)| *step);
        let barriers = run.barriers(&base, checkpoints, end, params.barrier_points as usize)?;
        cx.metric("barrier", Value::labelled(["first", "second"], barriers.to_vec()))
    }
}

/// The run that is looked at: its parameters and both tasks.
struct Finetuned {
    params: finetune::Params,
    objectives: [Box<dyn Objective>; 2],
    /// Whether there is something to forget: a first part, or a checkpoint that the run started from.
    has_first: bool,
    /// i64 `[n, pos]`, inputs of the second task.
    probe: Tensor,
    modular: Option<Modular>,
    device: Device,
}

/// What only tasks on modular pairs have.
struct Modular {
    basis: Basis,
    /// Tokens and answers of the first task, with its split.
    pairs: crate::data::modular::Pairs,
}

/// Held-out loss and accuracy of both tasks.
type Losses = [[f64; 2]; 2];

impl Finetuned {
    fn new(checkpoint: &Checkpoint, device: Device) -> Result<Self> {
        let entry = |name: &str| {
            checkpoint.extra.get(name).ok_or_else(|| {
                Error::Input(format!("the checkpoint's record of its training lacks `{name}`"))
            })
        };
        let params: finetune::Params = params::decode(&interventions::without(entry("params")?))?;
        let seed = entry("seed")?.as_u64().ok_or_else(|| {
            Error::Input("expected an integer as the checkpoint's seed".to_owned())
        })?;
        let has_base = !Interventions::decode(entry("params")?)?.init_from.is_empty();
        let has_first = params.switch_step > 0 || has_base;
        let [first, second] = &params.tasks()?;
        let objectives = [first.objective(&[seed], device)?, second.objective(&[seed], device)?];
        let probe = second.recipe.probe(&second.params, device)?.tokens;
        let modular = modular::RECIPES
            .contains(&params.recipe.as_str())
            .then(|| Modular::new(first, seed, device))
            .transpose()?;
        Ok(Self { params, objectives, has_first, probe, modular, device })
    }

    fn losses(&self, model: &Transformer) -> Losses {
        [0, 1].map(|task: usize| {
            let found = self.objectives[task].evaluate(model);
            [&["test_loss"][..], &ACCURACY[..]].map(|names| to_vec(&named(&found, names))[0])
        })
    }

    /// Whether a checkpoint belongs to the first two parts.
    fn is_before_return(&self, step: u64) -> bool {
        u64::try_from(self.params.return_step).map_or(true, |back| step <= back)
    }

    /// Barrier of each task between the base and the model of `step`.
    fn barriers(
        &self,
        base: &Seen,
        checkpoints: &mut dyn Checkpoints,
        step: u64,
        n_points: usize,
    ) -> Result<[f64; 2]> {
        if n_points == 0 {
            return Ok([f64::NAN; 2]);
        }
        let checkpoint = load_checked(checkpoints, step, Forgetting::CARD)?;
        let end = checkpoint.weights.to_device(self.device);
        let found = rebasin::line(base.model.weights(), &end, n_points, |weights| {
            let model = Transformer::new(checkpoint.config.clone(), weights)?;
            Ok(self.losses(&model).map(|[loss, _]| loss).to_vec())
        })?;
        Ok([found[0].height, found[1].height])
    }
}

impl Modular {
    fn new(first: &Task, seed: u64, device: Device) -> Result<Self> {
        let record: Json =
            json!({"recipe": first.recipe.card().name, "params": first.params, "seed": seed});
        let pairs = modular::pairs(&record, device)?;
        Ok(Self { basis: Basis::new(pairs.p, device)?, pairs })
    }

    /// Share of the embedding's energy in each frequency, `[p/2]`.
    fn spectrum(&self, weights: &Weights) -> Result<Vec<f64>> {
        let embedding = modular::embedding(weights)?.narrow(0, 0, self.pairs.p);
        let energy: Vec<f64> =
            to_vec(&self.basis.norms(&embedding)).iter().map(|norm| norm.powi(2)).collect();
        let total: f64 = energy.iter().sum();
        Ok(energy.iter().map(|energy| energy / total).collect())
    }

    /// Accuracy on held-out pairs of a ridge regression from the last layer's activations to the answers.
    fn probe(&self, model: &Transformer) -> f64 {
        let activations = activations(model, &self.pairs.tokens);
        let Some(last) = activations.last() else { return f64::NAN };
        let ones = Tensor::ones([last.size()[0], 1], (Kind::Double, last.device()));
        let features = Tensor::cat(&[last, &ones], 1); // [pair, d + 1]
        let rows = |table: &Tensor, part: &Tensor| table.index_select(0, part);
        let Modular { pairs, .. } = self;
        let (x, labels) = (rows(&features, &pairs.train), rows(&pairs.labels, &pairs.train));
        let gram = x.transpose(0, 1).matmul(&x);
        let ridge = RIDGE * gram.trace().double_value(&[]) / gram.size()[0] as f64 + 1e-12;
        let gram = gram + Tensor::eye(features.size()[1], (Kind::Double, last.device())) * ridge;
        let answers = labels.one_hot(pairs.p).to_kind(Kind::Double);
        let map = Tensor::linalg_solve(&gram, &x.transpose(0, 1).matmul(&answers), true);
        let guesses = rows(&features, &pairs.test).matmul(&map).argmax(-1, false);
        let correct = guesses.eq_tensor(&rows(&pairs.labels, &pairs.test));
        correct.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    }
}

/// Ridge of the linear probe, in units of the features' mean energy.
const RIDGE: f64 = 1e-3;

/// A checkpoint with what it does on the probe.
struct Seen {
    model: Transformer,
    /// f64 `[row, width]` per layer.
    activations: Vec<Tensor>,
    spectrum: Option<Vec<f64>>,
}

impl Seen {
    fn new(run: &Finetuned, checkpoint: Checkpoint, device: Device) -> Result<Self> {
        let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(device))?;
        let spectrum = run.modular.as_ref().map(|m| m.spectrum(model.weights())).transpose()?;
        Ok(Self { activations: activations(&model, &run.probe), spectrum, model })
    }
}

/// What each layer leaves at the last position: neurons of a perceptron, the residual stream of a
/// transformer; f64 `[row, width]` each.
fn activations(model: &Transformer, tokens: &Tensor) -> Vec<Tensor> {
    let is_mlp = model.config().architecture == Architecture::Mlp;
    let site = if is_mlp { Site::MlpPost } else { Site::ResidPost };
    let mut cache =
        Cache::only(move |hook| matches!(hook, Hook::Block { site: s, .. } if s == site));
    let _logits = model.forward(tokens, &Run::LAST_POSITION, &mut cache);
    let last = cache.iter().map(|(_, activation)| {
        let pos = activation.size()[activation.dim() - 2];
        activation.select(-2, pos - 1).to_kind(Kind::Double)
    });
    last.collect()
}

/// Linear CKA of two sets of activations of the same rows, `[row, width]` each; 1 up to rotation and scale.
fn linear_cka(a: &Tensor, b: &Tensor) -> f64 {
    let centred = |x: &Tensor| x - x.mean_dim(&[0i64][..], true, Kind::Double);
    let (a, b) = (centred(a), centred(b));
    let energy = |x: &Tensor, y: &Tensor| {
        x.transpose(0, 1).matmul(y).square().sum(Kind::Double).double_value(&[])
    };
    energy(&a, &b) / (energy(&a, &a) * energy(&b, &b)).sqrt()
}

fn emit(
    run: &Finetuned,
    base: &Seen,
    seen: &Seen,
    step: u64,
    losses: Losses,
    cx: &mut Context<'_>,
) -> Result<()> {
    let [[loss_first, accuracy_first], [loss_second, accuracy_second]] = losses;
    let shared =
        |(a, b): (&Vec<f64>, &Vec<f64>)| -> f64 { a.iter().zip(b).map(|(a, b)| a.min(*b)).sum() };
    let overlap = base.spectrum.as_ref().zip(seen.spectrum.as_ref()).map_or(f64::NAN, shared);
    let probe = run.modular.as_ref().map_or(f64::NAN, |modular| modular.probe(&seen.model));
    for (name, value) in [
        ("loss_first", loss_first),
        ("loss_second", loss_second),
        ("accuracy_first", accuracy_first),
        ("accuracy_second", accuracy_second),
        ("frequency_overlap", overlap),
        ("probe_first", probe),
    ] {
        cx.metric_at(name, step, value)?;
    }
    let pairs = base.activations.iter().zip(&seen.activations);
    let cka: Vec<f64> = pairs.map(|(a, b)| linear_cka(a, b)).collect();
    let layers: Vec<String> = (0..cka.len()).map(|layer| layer.to_string()).collect();
    cx.metric_at("cka", step, Value::labelled(&layers, cka))?;
    let names: Vec<&str> = base.model.weights().names().collect();
    let moved = base.model.weights().iter().map(|(name, before)| {
        let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
        let after = seen.model.weights().require(name)?;
        let moved = norm(&(after.to_kind(Kind::Double) - before.to_kind(Kind::Double)));
        Ok(match norm(before) {
            0.0 if moved == 0.0 => 0.0,
            0.0 => f64::NAN,
            size => moved / size,
        })
    });
    let moved = moved.collect::<Result<Vec<f64>>>()?;
    cx.metric_at("displacement", step, Value::labelled(&names, moved))
}

fn emit_times(
    run: &Finetuned,
    params: &Params,
    base_step: u64,
    curves: &[(u64, Losses)],
    cx: &mut Context<'_>,
) -> Result<()> {
    let switch = run.params.switch_step;
    let back = u64::try_from(run.params.return_step).unwrap_or(u64::MAX);
    // Steps from `start` to the first checkpoint up to `end` that fits.
    let steps = |start: u64, end: u64, fits: &dyn Fn(&Losses) -> bool| {
        let found = curves.iter().find(|(step, now)| (start..=end).contains(step) && fits(now));
        found.map_or(f64::NAN, |(step, _)| (step - start) as f64)
    };
    let knows = |task: usize| move |now: &Losses| now[task][1] >= params.accuracy;
    let has_first = run.has_first;
    let only_if = |condition: bool, value: f64| if condition { value } else { f64::NAN };
    let is_forgotten = |now: &Losses| now[0][1] < params.forgotten;
    // What was never known cannot be forgotten.
    let at_base = curves.iter().find(|(step, _)| *step == base_step);
    let knew_first = has_first && at_base.is_some_and(|(_, now)| now[0][1] >= params.forgotten);
    let loss_at = |step: u64| curves.iter().find(|(s, _)| *s == step).map(|(_, now)| now[0][0]);
    let end = curves.iter().rfind(|(step, _)| run.is_before_return(*step));
    let forgetting = match (loss_at(base_step), end) {
        (Some(before), Some((_, after))) => after[0][0] - before,
        (None, _) | (_, None) => f64::NAN,
    };
    for (name, value) in [
        ("forgetting", only_if(knew_first, forgetting)),
        ("learn_steps", only_if(switch > 0, steps(0, switch, &knows(0)))),
        ("transfer_steps", steps(switch, back, &knows(1))),
        ("forget_steps", only_if(knew_first, steps(switch, back, &is_forgotten))),
        ("relearn_steps", only_if(knew_first, steps(back, u64::MAX, &knows(0)))),
    ] {
        cx.metric(name, value)?;
    }
    Ok(())
}

const METRICS: &[MetricDef] = &[
    scalar("loss_first", Unit::Nats, "Held-out loss of the first task"),
    scalar("loss_second", Unit::Nats, "Held-out loss of the second task"),
    scalar("accuracy_first", Unit::Probability, "Held-out accuracy on the first task"),
    scalar("accuracy_second", Unit::Probability, "Held-out accuracy on the second task"),
    scalar(
        "frequency_overlap",
        Unit::Ratio,
        "Shared part of the embedding's spectra, base and now",
    ),
    scalar("probe_first", Unit::Probability, "Accuracy of a linear probe for the first task"),
    MetricDef {
        name: "cka",
        unit: Unit::Ratio,
        axes: &[Axis::Layer],
        doc: "Linear CKA of activations with the base's",
    },
    MetricDef {
        name: "displacement",
        unit: Unit::Ratio,
        axes: &[Axis::Tensor],
        doc: "Distance from the base in units of the base's norm",
    },
    scalar("forgetting", Unit::Nats, "Rise of the first task's loss while the second is trained"),
    scalar("learn_steps", Unit::Steps, "Updates until the first task was known"),
    scalar(
        "transfer_steps",
        Unit::Steps,
        "Updates after the switch until the second task was known",
    ),
    scalar("forget_steps", Unit::Steps, "Updates after the switch until the first was forgotten"),
    scalar(
        "relearn_steps",
        Unit::Steps,
        "Updates after the return until the first was known again",
    ),
    MetricDef {
        name: "barrier",
        unit: Unit::Nats,
        axes: &[Axis::Task],
        doc: "Barrier of each task's held-out loss between the base and the fine-tuned model",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "accuracy",
        title: "Both tasks and what a probe still finds of the first",
        kind: FigureKind::Lines,
        metrics: &["accuracy_first", "accuracy_second", "probe_first", "frequency_overlap"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "displacement",
        title: "Movement away from the base",
        kind: FigureKind::Lines,
        metrics: &["displacement"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cka_ignores_rotation_and_scale_and_nothing_else() {
        let a = Tensor::arange(24, (Kind::Double, Device::Cpu)).sin().view([8, 3]);
        let angle = 0.7f64;
        let rotation = Tensor::from_slice(&[
            angle.cos(),
            -angle.sin(),
            0.0,
            angle.sin(),
            angle.cos(),
            0.0,
            0.0,
            0.0,
            1.0,
        ]);
        let b = a.matmul(&rotation.view([3, 3])) * 4.0 + 2.0;
        assert!((linear_cka(&a, &b) - 1.0).abs() < 1e-12);
        let c = Tensor::arange(24, (Kind::Double, Device::Cpu)).square().cos().view([8, 3]);
        assert!((0.0..0.9).contains(&linear_cka(&a, &c)));
        // One column each: the squared correlation.
        let (x, y) = (a.narrow(1, 0, 1), c.narrow(1, 0, 1));
        let centred = |t: &Tensor| t - t.mean(Kind::Double);
        let dot = |s: &Tensor, t: &Tensor| (s * t).sum(Kind::Double).double_value(&[]);
        let (p, q) = (centred(&x), centred(&y));
        let squared = dot(&p, &q).powi(2) / (dot(&p, &p) * dot(&q, &q));
        assert!((linear_cka(&x, &y) - squared).abs() < 1e-12);
    }
}
