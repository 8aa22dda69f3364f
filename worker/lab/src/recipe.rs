//! The recipe extension point: a reproducible training run, declared; [`crate::train`] executes it.
//!
//! Implementors of [`Recipe`] are unit structs listed in [`crate::RECIPES`]. Invariant: model, data and
//! loss are functions of (parameters, seed, step) alone, so that a resumed run is the same run.

use sweep_lens::{Config, Device, Tensor, Transformer, Weights};

use crate::{
    card::Card,
    data::bpe::Bpe,
    error::{Error, Result},
    experiment::TokenSet,
    interventions::{self, Auxiliary, Interventions, Penalty, UnitKind},
    optimizer::{Rule, Schedule},
    params::{self, ParamDef, ParamSet},
    subject::TextCodec,
    vocabulary::Vocabulary,
};

/// One way to train a model.
pub trait Recipe: Send + Sync + 'static {
    /// Knobs; one of them is `steps`.
    type Params: ParamSet;
    /// Identity, documentation and the metrics streamed while training; `train_loss`,
    /// `weight_norm` and `lr` among them.
    const CARD: &'static Card;

    /// Checks relations between parameters that no limit of a single one can express.
    fn check(&self, params: &Self::Params) -> Result<()> {
        let _ = params;
        Ok(())
    }

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

    /// What the tokens mean; recorded in every checkpoint, so that analyses can build prompts for a
    /// model without a tokenizer.
    fn vocabulary(&self, params: &Self::Params) -> Option<Vocabulary> {
        let _ = params;
        None
    }

    /// The byte pairs of a text's tokens; recorded in every checkpoint, so that analyses read texts as the model does.
    fn byte_pairs(&self, params: &Self::Params) -> Option<Bpe> {
        let _ = params;
        None
    }

    /// The same training for the architecture of a checkpoint that it starts from; `None` if the checkpoint has to have
    /// the architecture that the parameters describe.
    ///
    /// # Errors
    /// A checkpoint that this recipe could train but for something that it lacks.
    fn adapt(&self, params: &Self::Params, base: Base<'_>) -> Result<Option<Box<dyn AnyRecipe>>> {
        let _ = (params, base);
        Ok(None)
    }
}

/// A checkpoint that a training starts from.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Its architecture.
    pub config: &'a Config,
    /// Its weights.
    pub weights: &'a Weights,
    /// Its tokenizer, if it has one.
    pub text: Option<&'a dyn TextCodec>,
    /// What its training recorded, null if nothing.
    pub record: &'a serde_json::Value,
}

/// What the training loop minimises and reports. `model` is a population with a leading model axis if
/// the group has more than one seed, and a plain model otherwise.
pub trait Objective {
    /// Loss of every model of the group, `[n_models]` (or a scalar for a plain model), in nats. The
    /// batch is a function of `step`.
    fn loss(&self, model: &Transformer, step: u64) -> Tensor;

    /// An auxiliary loss term. Only recipes whose answers are waves over their inputs have any.
    ///
    /// # Errors
    /// A term that the recipe does not have, or frequencies that do not exist.
    fn penalty(&self, term: &Auxiliary) -> Result<Penalty> {
        let problem = format!("the recipe has no Fourier circuit for the term `{}`", term.measure);
        Err(Error::params("aux", problem))
    }

    /// How much each head or neuron belongs to the circuit that solves the task, `[n_models, layer, unit]`;
    /// only the order within a layer matters. Called without gradients.
    ///
    /// # Errors
    /// A recipe that does not know its circuit in such units.
    fn circuit(&self, model: &Transformer, kind: UnitKind) -> Result<Tensor> {
        let _ = model;
        let units = if kind == UnitKind::Head { "heads" } else { "neurons" };
        Err(Error::params("edit_select", format!("the recipe knows no circuit of {units}")))
    }

    /// Lets the data come in the order of other seeds, one per model, from the next batch on (D33); what
    /// they are drawn from stays. Returns false if there is no order, as in full-batch training.
    fn reorder(&mut self, seeds: &[u64]) -> bool {
        let _ = seeds;
        false
    }

    /// Held-out examples with one answer each, for analyses of single examples; none where every next token
    /// is an answer. Only asked of a single seed.
    fn examples(&self) -> Option<Examples> {
        None
    }

    /// Named metrics of every model, `[n_models, …]` each with the axes that the card declares behind
    /// the model axis (which a plain model has too, of length 1); called without gradients. `train_loss`
    /// is one of them. `weight_norm` and `lr` are added by the training loop.
    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)>;
}

/// Examples with one answer each, given at the last position.
#[derive(Debug)]
pub struct Examples {
    /// i64 `[n, pos]`
    pub tokens: Tensor,
    /// i64 `[n]`
    pub labels: Tensor,
    /// What the recipe itself knows to be different kinds, one per example; empty if it knows of none.
    pub tasks: Vec<usize>,
}

/// How long and with what to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Number of updates.
    pub steps: u64,
    /// Metrics are streamed at multiples of this and at the end.
    pub eval_every: u64,
    /// What each part of the training is done with; the first one starts at 0, the others later, ascending.
    pub phases: Vec<Phase>,
}

/// A part of a training, with an optimizer of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// Updates before it.
    pub start: u64,
    /// Optimizer; starts without moments.
    pub optimizer: Rule,
    /// Learning rate over the steps of the phase.
    pub schedule: Schedule,
}

impl Plan {
    /// A training with one optimizer from start to end.
    pub fn new(steps: u64, eval_every: u64, optimizer: Rule, schedule: Schedule) -> Self {
        Self { steps, eval_every, phases: vec![Phase { start: 0, optimizer, schedule }] }
    }

    /// The phase of the update that leads from `step` to `step + 1`.
    pub(crate) fn phase(&self, step: u64) -> Phase {
        let phase = self.phases.iter().rfind(|phase| phase.start <= step);
        *phase.expect("the first phase starts at 0")
    }
}

impl Phase {
    /// Learning rate of the update from `step`, counted in updates of the whole training.
    pub(crate) fn lr(&self, step: u64) -> f64 {
        self.schedule.lr(step - self.start)
    }
}

/// Object-safe face of [`Recipe`], implemented once for all of them.
pub trait AnyRecipe: Send + Sync {
    /// Identity and documentation.
    fn card(&self) -> &'static Card;
    /// Its own parameters, then the interventions.
    fn param_defs(&self) -> Vec<ParamDef>;
    /// All defaults of its own parameters.
    fn default_params(&self) -> serde_json::Value;
    /// Strictly checks parameters without running anything.
    fn check_params(&self, params: &serde_json::Value) -> Result<()>;
    /// Own parameters with defaults filled in and the interventions that there are: equal settings give
    /// equal JSON.
    fn canonical_params(&self, params: &serde_json::Value) -> Result<serde_json::Value>;
    /// The interventions among the parameters.
    fn interventions(&self, params: &serde_json::Value) -> Result<Interventions>;
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
    /// See [`Recipe::vocabulary`].
    fn vocabulary(&self, params: &serde_json::Value) -> Result<Option<Vocabulary>>;
    /// See [`Recipe::byte_pairs`].
    fn byte_pairs(&self, params: &serde_json::Value) -> Result<Option<Bpe>>;
    /// See [`Recipe::adapt`].
    fn adapt(
        &self,
        params: &serde_json::Value,
        base: Base<'_>,
    ) -> Result<Option<Box<dyn AnyRecipe>>>;
}

/// A recipe's own parameters, interventions left aside.
fn own<R: Recipe>(params: &serde_json::Value) -> Result<R::Params> {
    params::decode(&interventions::without(params))
}

impl<R: Recipe> AnyRecipe for R {
    fn card(&self) -> &'static Card {
        R::CARD
    }

    fn param_defs(&self) -> Vec<ParamDef> {
        [R::Params::DEFS, Interventions::DEFS].concat()
    }

    fn default_params(&self) -> serde_json::Value {
        params::defaults(R::Params::DEFS)
    }

    fn check_params(&self, params: &serde_json::Value) -> Result<()> {
        let own = own::<R>(params)?;
        Recipe::check(self, &own)?;
        let config = Recipe::config(self, &own);
        config.validate()?;
        Interventions::decode(params)?.check(&config)
    }

    fn canonical_params(&self, params: &serde_json::Value) -> Result<serde_json::Value> {
        let mut canonical = params::canonical::<R::Params>(&interventions::without(params))?;
        let changed = Interventions::decode(params)?.changed()?;
        if let Some(canonical) = canonical.as_object_mut() {
            canonical.extend(changed);
        }
        Ok(canonical)
    }

    fn interventions(&self, params: &serde_json::Value) -> Result<Interventions> {
        Interventions::decode(params)
    }

    fn config(&self, params: &serde_json::Value) -> Result<Config> {
        Ok(Recipe::config(self, &own::<R>(params)?))
    }

    fn init(&self, params: &serde_json::Value, seed: u64) -> Result<Weights> {
        Ok(Recipe::init(self, &own::<R>(params)?, seed))
    }

    fn plan(&self, params: &serde_json::Value) -> Result<Plan> {
        Ok(Recipe::plan(self, &own::<R>(params)?))
    }

    fn objective(
        &self,
        params: &serde_json::Value,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        Recipe::objective(self, &own::<R>(params)?, seeds, device)
    }

    fn probe(&self, params: &serde_json::Value, device: Device) -> Result<TokenSet> {
        Ok(Recipe::probe(self, &own::<R>(params)?, device))
    }

    fn population(&self, params: &serde_json::Value, device: Device) -> Result<usize> {
        Ok(Recipe::population(self, &own::<R>(params)?, device).max(1))
    }

    fn vocabulary(&self, params: &serde_json::Value) -> Result<Option<Vocabulary>> {
        Ok(Recipe::vocabulary(self, &own::<R>(params)?))
    }

    fn byte_pairs(&self, params: &serde_json::Value) -> Result<Option<Bpe>> {
        Ok(Recipe::byte_pairs(self, &own::<R>(params)?))
    }

    fn adapt(
        &self,
        params: &serde_json::Value,
        base: Base<'_>,
    ) -> Result<Option<Box<dyn AnyRecipe>>> {
        Recipe::adapt(self, &own::<R>(params)?, base)
    }
}
