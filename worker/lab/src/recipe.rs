//! The recipe extension point: a reproducible training run, declared; [`crate::train`] executes it.
//!
//! Implementors of [`Recipe`] are unit structs listed in [`crate::RECIPES`]. Invariant: model, data and
//! loss are functions of (parameters, seed, step) alone, so that a resumed run is the same run.

use sweep_lens::{Config, Device, Tensor, Transformer, Weights};

use crate::{
    card::Card,
    error::Result,
    experiment::TokenSet,
    optimizer::{AdamWConfig, Schedule},
    params::{self, ParamSet},
};

/// One way to train a model.
pub trait Recipe: Send + Sync + 'static {
    /// Knobs; one of them is `steps`.
    type Params: ParamSet;
    /// Identity, documentation and the metrics streamed while training; `train_loss`,
    /// `weight_norm` and `lr` among them.
    const CARD: &'static Card;

    /// Architecture.
    fn config(&self, params: &Self::Params) -> Config;

    /// Parameters before the first update, float32 on the CPU.
    fn init(&self, params: &Self::Params, seed: u64) -> Weights;

    /// Length, optimizer and evaluation interval.
    fn plan(&self, params: &Self::Params) -> Plan;

    /// Data and loss of a group of seeds that train together.
    fn objective(
        &self,
        params: &Self::Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>>;

    /// Inputs that characterise what the model does, for analyses of its outputs.
    fn probe(&self, params: &Self::Params, device: Device) -> TokenSet;

    /// How many seeds are worth training as one batched model on `device`.
    fn population(&self, params: &Self::Params, device: Device) -> usize;
}

/// What the training loop minimises and reports. `model` is a population with a leading model axis if
/// the group has more than one seed, and a plain model otherwise.
pub trait Objective {
    /// Loss of every model of the group, `[n_models]` (or a scalar for a plain model), in nats. The
    /// batch is a function of `step`.
    fn loss(&self, model: &Transformer, step: u64) -> Tensor;

    /// Named metrics of every model, f64 `[n_models]` each; called without gradients. `train_loss` is
    /// one of them. `weight_norm` and `lr` are added by the training loop.
    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)>;
}

/// How long and with what to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Number of updates.
    pub steps: u64,
    /// Metrics are streamed at multiples of this and at the end.
    pub eval_every: u64,
    /// Optimizer.
    pub optimizer: AdamWConfig,
    /// Learning rate over steps.
    pub schedule: Schedule,
}

/// Object-safe face of [`Recipe`], implemented once for all of them.
pub trait AnyRecipe: Send + Sync {
    /// Identity and documentation.
    fn card(&self) -> &'static Card;
    /// All defaults.
    fn default_params(&self) -> serde_json::Value;
    /// Strictly checks parameters without running anything.
    fn check_params(&self, params: &serde_json::Value) -> Result<()>;
    /// Parameters with defaults filled in: equal settings give equal JSON.
    fn canonical_params(&self, params: &serde_json::Value) -> Result<serde_json::Value>;
    /// See [`Recipe::config`].
    fn config(&self, params: &serde_json::Value) -> Result<Config>;
    /// See [`Recipe::init`].
    fn init(&self, params: &serde_json::Value, seed: u64) -> Result<Weights>;
    /// See [`Recipe::plan`].
    fn plan(&self, params: &serde_json::Value) -> Result<Plan>;
    /// See [`Recipe::objective`].
    fn objective(
        &self,
        params: &serde_json::Value,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>>;
    /// See [`Recipe::probe`].
    fn probe(&self, params: &serde_json::Value, device: Device) -> Result<TokenSet>;
    /// See [`Recipe::population`].
    fn population(&self, params: &serde_json::Value, device: Device) -> Result<usize>;
}

impl<R: Recipe> AnyRecipe for R {
    fn card(&self) -> &'static Card {
        R::CARD
    }

    fn default_params(&self) -> serde_json::Value {
        params::defaults(R::Params::DEFS)
    }

    fn check_params(&self, params: &serde_json::Value) -> Result<()> {
        let params: R::Params = params::decode(params)?;
        Ok(Recipe::config(self, &params).validate()?)
    }

    fn canonical_params(&self, params: &serde_json::Value) -> Result<serde_json::Value> {
        params::canonical::<R::Params>(params)
    }

    fn config(&self, params: &serde_json::Value) -> Result<Config> {
        Ok(Recipe::config(self, &params::decode(params)?))
    }

    fn init(&self, params: &serde_json::Value, seed: u64) -> Result<Weights> {
        Ok(Recipe::init(self, &params::decode(params)?, seed))
    }

    fn plan(&self, params: &serde_json::Value) -> Result<Plan> {
        Ok(Recipe::plan(self, &params::decode(params)?))
    }

    fn objective(
        &self,
        params: &serde_json::Value,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        Recipe::objective(self, &params::decode(params)?, seeds, device)
    }

    fn probe(&self, params: &serde_json::Value, device: Device) -> Result<TokenSet> {
        Ok(Recipe::probe(self, &params::decode(params)?, device))
    }

    fn population(&self, params: &serde_json::Value, device: Device) -> Result<usize> {
        Ok(Recipe::population(self, &params::decode(params)?, device).max(1))
    }
}
