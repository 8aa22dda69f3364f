//! Multitask sparse parity: many tasks of falling frequency, each learned in a sudden drop, all together a power law.
//!
//! # What it trains
//! A perceptron on the parity of `k` out of `n_bits` random bits; which bits, a one-hot task unit says. Tasks are
//! drawn with Zipf frequencies `p_i ∝ i^-(alpha + 1)`, new examples for every update (D37). Initial weights and
//! biases are uniform up to `1/√fan-in`.
//!
//! # Interpretation
//! `task_loss` of a task falls from 1 bit to 0 within a short time, frequent tasks first; their
//! frequency-weighted mean, `train_loss`, falls smoothly. The trajectory experiment `quanta` measures both.
//!
//! # Source
//! Michaud, Liu, Girit, Tegmark 2023, arXiv 2303.13506, section 3; repository `ejmichaud/quantization-model`.

use sweep_lens::{Config, Device, Kind, Run, Tensor, Transformer, Weights, init};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    data::parity::{Parities, ParityRows, frequencies},
    error::Result,
    experiment::TokenSet,
    optimizer::AdamWConfig,
    params::{ParamSet, params},
    recipe::{Examples, Objective, Plan, Recipe},
    sequence::{self, Sampling, per_model},
    value::to_vec,
};

/// See the module documentation.
pub struct MultitaskParity;

params! {
    /// Tasks, architecture and optimizer.
    pub struct Params {
        /// Tasks.
        n_tasks: i64 = 20, min = 1.0, max = 4096.0;
        /// Random bits of an example.
        n_bits: i64 = 30, min = 1.0, max = 1024.0;
        /// Bits whose parity a task asks for.
        k: i64 = 3, min = 1.0, max = 16.0, at_most = n_bits;
        /// The frequency of the task of rank i is proportional to i to the power of -(alpha + 1).
        alpha: f64 = 0.6, min = 0.0, max = 10.0;
        /// Hidden layers.
        n_layers: i64 = 1, min = 1.0, max = 8.0;
        /// Neurons per hidden layer.
        d_mlp: i64 = 200, min = 1.0, max = 16384.0;
        /// Examples per update.
        batch: u64 = 2000, min = 1.0, max = 1_000_000.0;
        /// Held-out examples per task that metrics are measured on.
        eval_per_task: u64 = 200, min = 1.0, max = 10000.0;
        /// Learning rate after the warm-up.
        lr: f64 = 1e-3, min = 0.0;
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0, min = 0.0;
        /// Decay of the first moment.
        beta1: f64 = 0.9, min = 0.0, max = 0.999_999;
        /// Decay of the second moment.
        beta2: f64 = 0.999, min = 0.0, max = 0.999_999;
        /// Updates over which the learning rate rises.
        warmup: u64 = 0, min = 0.0;
        /// Updates in all.
        steps: u64 = 6000, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 100, min = 1.0;
        /// Seed of tasks and examples; -1 is the seed of the run.
        data_seed: i64 = -1, min = -1.0;
    }
}

impl Params {
    fn parities(&self, seeds: &[u64], device: Device) -> Parities {
        Parities::new(self.n_tasks, self.n_bits, self.k, self.alpha, seeds, device)
    }
}

impl Recipe for MultitaskParity {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "multitask-parity",
        version: 1,
        summary: "Trains a perceptron on many sparse-parity tasks of falling frequency",
        source: "Michaud et al. 2023, arXiv 2303.13506, section 3",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn config(&self, params: &Params) -> Config {
        let n_inputs = params.n_tasks + params.n_bits;
        Config::mlp(params.n_layers, n_inputs, params.d_mlp, 2, 1 + params.n_bits)
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        let parameters = Recipe::config(self, params).parameters();
        let mut fan_in = 1;
        let mut draw = |name: String, shape: &[i64]| {
            // A map's weights come before its biases.
            fan_in = if shape.len() == 2 { shape[0] } else { fan_in };
            let bound = 1.0 / (fan_in as f64).sqrt();
            let tensor = init::uniform(seed, &name, shape, bound, Device::Cpu);
            (name, tensor)
        };
        parameters.into_iter().map(|parameter| draw(parameter.name, &parameter.shape)).collect()
    }

    fn plan(&self, params: &Params) -> Plan {
        let &Params { lr, weight_decay, beta1, beta2, warmup, steps, eval_every, .. } = params;
        let optimizer = AdamWConfig { lr, beta1, beta2, eps: 1e-8, weight_decay };
        sequence::plan(optimizer, warmup, steps, eval_every)
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        let data_seeds: Vec<u64> =
            seeds.iter().map(|&seed| u64::try_from(params.data_seed).unwrap_or(seed)).collect();
        let parities = params.parities(&data_seeds, device);
        Ok(Box::new(Tasks {
            sampling: Sampling::new(params.batch, 0, &data_seeds, device),
            held: parities.held_out(params.eval_per_task as i64),
            frequencies: frequencies(params.n_tasks, params.alpha, device),
            parities,
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let tokens = params.parities(&[0], device).held_out(16).tokens;
        TokenSet { rows_per_batch: tokens.size()[0], tokens, last_position_only: true }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        sequence::population(device)
    }
}

/// Loss of the parity.
struct Tasks {
    parities: Parities,
    sampling: Sampling,
    held: ParityRows,
    /// f64 `[n_tasks]`
    frequencies: Tensor,
}

/// Negative log-probability of the parities, f32 `[(n_models,) batch]` in nats.
fn nll(logits: &Tensor, labels: &Tensor) -> Tensor {
    let log_probs = logits.squeeze_dim(-2).log_softmax(-1, Kind::Float);
    -log_probs.gather(-1, &labels.unsqueeze(-1), false).squeeze_dim(-1)
}

impl Objective for Tasks {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let rows = self.parities.rows(&self.sampling.rows(step));
        let logits = model.forward(&rows.tokens, &Run::FULL, &mut ());
        nll(&logits, &rows.labels).mean_dim(&[-1i64][..], false, Kind::Double)
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        self.sampling.reorder(seeds);
        true
    }

    /// A task and its answer are one kind of example: the two answers pull the readout in opposite directions.
    fn examples(&self) -> Option<Examples> {
        let (n, n_tasks) = (self.held.labels.numel(), self.frequencies.numel());
        let labels = self.held.labels.view([-1]);
        let answers = to_vec(&labels).into_iter().map(|answer| answer as usize);
        let tasks = answers.enumerate().map(|(index, answer)| 2 * (index * n_tasks / n) + answer);
        Some(Examples { tokens: self.held.tokens.shallow_clone(), tasks: tasks.collect(), labels })
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let logits = model.forward(&self.held.tokens, &Run::FULL, &mut ());
        let n_tasks = self.frequencies.size()[0];
        let by_task = |values: Tensor| {
            let mut shape = values.size();
            shape.pop();
            shape.extend([n_tasks, -1]);
            values.to_kind(Kind::Double).view(shape.as_slice()).mean_dim(
                &[-1i64][..],
                false,
                Kind::Double,
            )
        };
        let guesses = logits.squeeze_dim(-2).argmax(-1, false);
        let loss = by_task(nll(&logits, &self.held.labels)); // [(n_models,) n_tasks]
        let bits = &loss / std::f64::consts::LN_2;
        let weighted = |values: &Tensor| {
            (values * &self.frequencies).sum_dim_intlist(&[-1i64][..], false, Kind::Double)
        };
        let learned = bits.lt(0.5).to_kind(Kind::Double);
        let metrics = vec![
            ("train_loss", weighted(&loss)),
            ("mean_loss", weighted(&bits)),
            ("n_learned", learned.sum_dim_intlist(&[-1i64][..], false, Kind::Double)),
            ("task_loss", bits),
            ("task_accuracy", by_task(guesses.eq_tensor(&self.held.labels))),
        ];
        metrics.into_iter().map(|(name, values)| (name, per_model(model, values))).collect()
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "train_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on held-out examples, weighted by task frequency; no example comes twice",
    },
    MetricDef { name: "mean_loss", unit: Unit::Bits, axes: &[], doc: "The same in bits" },
    MetricDef {
        name: "n_learned",
        unit: Unit::Count,
        axes: &[],
        doc: "Tasks with a loss below half a bit",
    },
    MetricDef {
        name: "task_loss",
        unit: Unit::Bits,
        axes: &[Axis::Task],
        doc: "Mean loss of each task on held-out examples",
    },
    MetricDef {
        name: "task_accuracy",
        unit: Unit::Probability,
        axes: &[Axis::Task],
        doc: "Fraction of right answers of each task",
    },
    MetricDef {
        name: "weight_norm",
        unit: Unit::SquaredNorm,
        axes: &[],
        doc: "Sum of squares of all parameters",
    },
    MetricDef {
        name: "lr",
        unit: Unit::Dimensionless,
        axes: &[],
        doc: "Learning rate of the next update",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "tasks",
        title: "Loss of each task",
        kind: FigureKind::Lines,
        metrics: &["task_loss", "mean_loss"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "mean",
        title: "Mean loss",
        kind: FigureKind::Lines,
        metrics: &["mean_loss"],
        log_x: true,
        log_y: true,
    },
];
