//! Modular addition: the setting in which grokking was reverse-engineered.
//!
//! # What it trains
//! A one-layer ReLU transformer without norms on `a b =` → `(a + b) mod p`, full batch, on a fixed random
//! fraction of all pairs; the other pairs are the test set (D0). `operation` asks for something else than the sum.
//!
//! # Interpretation
//! The model first memorises (train loss falls, test loss rises far above `ln p`), then builds a Fourier
//! circuit under cover of the memorised answers, and groks when weight decay removes the memory.
//!
//! # Source
//! Nanda, Chan, Lieberum, Smith, Steinhardt 2023, arXiv 2301.05217, `transformers.py`. Attention, embedding
//! and unembedding have no biases; the MLP's are trained. Loss in float64: a float32 log-softmax
//! cannot resolve losses below 1.2e-7 and the training then spikes.

use sweep_lens::{Config, Device, Weights};

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
pub struct ModularAddition;

/// Name of the recipe, which analyses of its models require.
pub(crate) const NAME: &str = "modular-addition";

params! {
    /// Task, architecture and optimizer; the defaults are the paper's main run.
    pub struct Params {
        /// Modulus; analyses of the Fourier circuit need an odd one.
        p: i64 = 113, min = 3.0, max = 1024.0;
        /// What is asked for: a + b, a - b, a b, or a^2 + a b + b^2.
        operation: String = "add".to_owned(), choices = OPERATIONS;
        /// Fraction of all pairs that is trained on.
        frac_train: f64 = 0.3, min = 0.0, max = 1.0;
        /// Width of the residual stream.
        d_model: i64 = 128, min = 1.0, max = 4096.0;
        /// Attention heads; they share d_model.
        n_heads: i64 = 4, min = 1.0, max = 64.0, divides = d_model;
        /// Neurons.
        d_mlp: i64 = 512, min = 1.0, max = 16384.0;
        /// Learning rate after the warm-up.
        lr: f64 = 1e-3, min = 0.0;
        /// Decoupled weight decay.
        weight_decay: f64 = 1.0, min = 0.0;
        /// Decay of the first moment.
        beta1: f64 = 0.9, min = 0.0, max = 0.999_999;
        /// Decay of the second moment.
        beta2: f64 = 0.98, min = 0.0, max = 0.999_999;
        /// Updates over which the learning rate rises.
        warmup: u64 = 10, min = 0.0;
        /// Updates in all.
        steps: u64 = 40_000, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 10, min = 1.0;
        /// Seed of the train/test split; -1 is the seed of the run.
        data_seed: i64 = -1, min = -1.0;
    }
}

impl Params {
    /// The pairs of a run with this seed, on `device`.
    pub fn pairs(&self, seed: u64, device: Device) -> Pairs {
        let data_seed = u64::try_from(self.data_seed).unwrap_or(seed);
        let operation = Operation::parse(&self.operation);
        Pairs::new(operation, Form::Sequence, self.p, self.frac_train, data_seed, device)
    }
}

impl Recipe for ModularAddition {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: NAME,
        version: 1,
        summary: "Trains a one-layer transformer on addition modulo p until it groks",
        source: "Nanda et al. 2023, arXiv 2301.05217, transformers.py",
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
        Config {
            d_mlp: params.d_mlp,
            d_vocab_out: params.p,
            ..Config::toy(1, params.d_model, params.n_heads, params.p + 1, 3)
        }
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        let config = Recipe::config(self, params);
        modular::initial(&config, 1.0 / (config.d_vocab as f64).sqrt(), seed)
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

    fn population(&self, _params: &Params, device: Device) -> usize {
        // One CPU thread is bound by arithmetic: 13.7 ms per step for one seed of the demo setting, 14.2 per
        // seed for groups of 2 and 4 (example `train_speed`). A GPU is bound by kernel launches at this
        // size, so that a group costs little more than one.
        if device.is_cuda() { 32 } else { 1 }
    }
}
