//! Modular addition by a plain multi-layer perceptron: the smallest model that groks.
//!
//! # What it trains
//! One-hot a beside one-hot b (2p inputs) → `n_layers` hidden layers of ReLU neurons → p logits, full batch, on a
//! fixed random fraction of all pairs. Initial weights are normal with variance 1 / fan-in; `bias` adds
//! biases that start at zero. Every parameter is in one of the maps `layers.l.W` (`layers.l.b`).
//!
//! # Interpretation
//! The same story as the transformer's: memorisation, a Fourier circuit under cover, then generalisation. With
//! p = 31 a run takes seconds, which is what statistics over many seeds and interventions need; one hidden
//! layer of enough neurons is also where two trained models connect linearly once their neurons are matched.
//!
//! # Source
//! Architecture after Gromov 2023, arXiv 2301.02679; setting and measured numbers: problem 5.37 of the
//! experiment list (p = 31, 256 neurons, 70 % of the pairs, AdamW, learning rate 1e-3, weight decay 1).

use sweep_lens::{Config, Device, Kind, Tensor, Weights, init};

use crate::{
    card::{Card, Requires, Stage},
    data::modular::{Form, OPERATIONS, Operation, Pairs, check_split},
    error::Result,
    experiment::TokenSet,
    modular::{self, FullBatch},
    optimizer::{AdamWConfig, Schedule},
    params::{ParamSet, params},
    recipe::{Objective, Plan, Recipe},
};

/// See the module documentation.
pub struct ModularAdditionMlp;

/// Name of the recipe, which analyses of its models require.
pub(crate) const NAME: &str = "modular-addition-mlp";

params! {
    /// Task, architecture and optimizer.
    pub struct Params {
        /// Modulus; analyses of the Fourier circuit need an odd one.
        p: i64 = 31, min = 3.0, max = 1024.0;
        /// What is asked for: a + b, a - b, a b, or a^2 + a b + b^2.
        operation: String = "add".to_owned(), choices = OPERATIONS;
        /// Fraction of all pairs that is trained on.
        frac_train: f64 = 0.7, min = 0.0, max = 1.0;
        /// Hidden layers.
        n_layers: i64 = 1, min = 1.0, max = 8.0;
        /// Neurons per hidden layer.
        d_mlp: i64 = 256, min = 1.0, max = 16384.0;
        /// Whether the maps have biases.
        bias: bool = false;
        /// Learning rate after the warm-up.
        lr: f64 = 1e-3, min = 0.0;
        /// Decoupled weight decay.
        weight_decay: f64 = 1.0, min = 0.0;
        /// Decay of the first moment.
        beta1: f64 = 0.9, min = 0.0, max = 0.999_999;
        /// Decay of the second moment.
        beta2: f64 = 0.98, min = 0.0, max = 0.999_999;
        /// Updates over which the learning rate rises.
        warmup: u64 = 0, min = 0.0;
        /// Updates in all.
        steps: u64 = 6_000, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 50, min = 1.0;
        /// Seed of the train/test split; -1 is the seed of the run.
        data_seed: i64 = -1, min = -1.0;
    }
}

/// Neuron activations of all training pairs that stay in a core's cache.
const CACHED_ACTIVATIONS: f64 = 65_536.0;

impl Params {
    /// The pairs of a run with this seed, on `device`.
    pub fn pairs(&self, seed: u64, device: Device) -> Pairs {
        let data_seed = u64::try_from(self.data_seed).unwrap_or(seed);
        let operation = Operation::parse(&self.operation);
        Pairs::new(operation, Form::OneHot, self.p, self.frac_train, data_seed, device)
    }
}

impl Recipe for ModularAdditionMlp {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: NAME,
        version: 1,
        summary: "Trains a multi-layer perceptron on addition modulo p until it groks",
        source: "Gromov 2023, arXiv 2301.02679; Nanda et al. 2023, arXiv 2301.05217",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: modular::METRICS,
        figures: modular::FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        check_split(params.p, params.frac_train)
    }

    fn config(&self, params: &Params) -> Config {
        Config::mlp(params.n_layers, 2 * params.p, params.d_mlp, params.p, 2)
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        let config = Recipe::config(self, params);
        let trained =
            config.parameters().into_iter().filter(|parameter| !parameter.optional || params.bias);
        trained
            .map(|parameter| {
                let tensor = if parameter.optional {
                    Tensor::zeros(&parameter.shape, (Kind::Float, Device::Cpu))
                } else {
                    let std = 1.0 / (parameter.shape[0] as f64).sqrt();
                    init::normal(seed, &parameter.name, &parameter.shape, std, Device::Cpu)
                };
                (parameter.name, tensor)
            })
            .collect()
    }

    fn plan(&self, params: &Params) -> Plan {
        let &Params { lr, weight_decay, beta1, beta2, warmup, steps, eval_every, .. } = params;
        let optimizer = AdamWConfig { lr, beta1, beta2, eps: 1e-8, weight_decay };
        let schedule = Schedule { peak: lr, warmup };
        Plan::new(steps, eval_every, optimizer.into(), schedule)
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        let members = seeds.iter().map(|&seed| params.pairs(seed, device)).collect();
        Ok(Box::new(FullBatch::new(members)?))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        modular::probe(params.pairs(0, device).tokens)
    }

    fn population(&self, params: &Params, device: Device) -> usize {
        // A CPU thread spends a step of a tiny model on the overhead of operators, which a group pays once.
        // Beyond that a group's activations leave the cache, and its steps take longer than those of its
        // members one after the other (`make bench-train`: p = 31, 1.8 against 1.4 ms per seed).
        let n_activations = params.frac_train * (params.p * params.p * params.d_mlp) as f64;
        match device.is_cuda() {
            true => 32,
            false if n_activations < CACHED_ACTIVATIONS => 4,
            false => 1,
        }
    }
}
