//! The experiment extension point: what an experiment is, what it may read, and its object-safe face.
//!
//! Implementors of [`Experiment`] are unit structs listed in [`crate::EXPERIMENTS`]. Everything one
//! may read is handed in; everything it produces goes through [`Context`]. It performs no I/O, reads no
//! clock, environment or global random state. Contract: equal inputs and parameters on the same
//! device kind give equal metrics.

use sweep_lens::{Hook, Tensor, checkpoint::Checkpoint};

use crate::{
    card::{Card, Scope, Stage},
    cohort::Cohort,
    compare::Couple,
    error::{Error, Result},
    params::{self, ParamSet},
    sink::Context,
    trajectory::TrajectoryInput,
};

pub(crate) use crate::subject::Subject;

/// One analysis. Implement the one method that [`Card::stage`] asks for: [`Experiment::analyse`],
/// [`Experiment::compare`], [`Experiment::trajectory`] or [`Experiment::joint`].
pub trait Experiment: Send + Sync + 'static {
    /// Knobs; `Default` is what the paper uses.
    type Params: ParamSet;
    /// Identity and documentation.
    const CARD: &'static Card;

    /// What must be fetched before a run.
    fn inputs(&self, params: &Self::Params) -> Inputs;

    /// Stage [`Stage::Analyse`]: how to look at one checkpoint.
    fn analyse<'a>(&self, subject: &Subject<'a>, params: Self::Params) -> Result<Analysis<'a>> {
        let _ = (subject, params);
        Err(wrong_stage(Self::CARD, Stage::Analyse))
    }

    /// Stage [`Stage::Compare`]: looks at two checkpoints.
    fn compare(
        &self,
        couple: &Couple<'_>,
        params: Self::Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let _ = (couple, params, cx);
        Err(wrong_stage(Self::CARD, Stage::Compare))
    }

    /// Stage [`Stage::Trajectory`]: looks at all checkpoints or at metric series.
    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: Self::Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let _ = (input, params, cx);
        Err(wrong_stage(Self::CARD, Stage::Trajectory))
    }

    /// Stage [`Stage::Joint`]: looks at checkpoints or metric series of several models.
    fn joint(
        &self,
        cohort: &mut Cohort<'_>,
        params: Self::Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let _ = (cohort, params, cx);
        Err(wrong_stage(Self::CARD, Stage::Joint(Scope::Sweep)))
    }
}

fn wrong_stage(card: &'static Card, asked: Stage) -> Error {
    Error::Unsupported(format!(
        "`{}` is run at stage `{}`, not `{}`",
        card.name,
        card.stage.name(),
        asked.name()
    ))
}

/// What an experiment needs fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inputs {
    /// One checkpoint.
    Checkpoint {
        /// The weights before training too.
        init: bool,
        /// The weights of the checkpoint before it too.
        previous: bool,
    },
    /// Two checkpoints.
    Couple,
    /// All checkpoints of the model (or of several), streamed one at a time in step order.
    Checkpoints,
    /// Only these metric series, by full name `experiment.metric`.
    Series(Vec<String>),
}

/// How an experiment looks at a checkpoint.
pub enum Analysis<'a> {
    /// Only reads activations of a token set; shares forward passes with others that read the same.
    Observe(TokenSet, Box<dyn Observer + 'a>),
    /// Runs passes of its own, or none.
    Procedure(Procedure<'a>),
}

/// What a procedure does when its turn comes.
pub type Procedure<'a> = Box<dyn FnOnce(&mut Context<'_>) -> Result<()> + 'a>;

/// Inputs of a forward pass.
#[derive(Debug)]
pub struct TokenSet {
    /// i64 `[n, pos]`.
    pub tokens: Tensor,
    /// Rows in one forward pass; bounds the memory of activations.
    pub rows_per_batch: i64,
    /// Only the final position of the last layer is read: skips what nobody reads.
    pub last_position_only: bool,
}

/// Reads activations, a batch of rows at a time, then reports. Each batch brings every wanted hook in
/// the order of the computation, then logits and losses.
pub trait Observer {
    /// Whether [`Observer::see`] wants this activation.
    fn wants(&self, hook: Hook) -> bool;

    /// Whether [`Observer::logits`] is wanted; if nobody wants them the unembedding is skipped.
    fn wants_logits(&self) -> bool;

    /// One activation of rows `first_row..` of the token set, with TransformerLens' shape.
    fn see(&mut self, hook: Hook, first_row: i64, activation: &Tensor) -> Result<()> {
        let _ = (hook, first_row, activation);
        Ok(())
    }

    /// The logits `[batch, pos, d_vocab_out]` of rows `first_row..`.
    fn logits(&mut self, first_row: i64, logits: &Tensor) -> Result<()> {
        let _ = (first_row, logits);
        Ok(())
    }

    /// Over how many first entries of the vocabulary it wants next-token losses, if it wants them. They
    /// are computed once for everybody, without keeping logits; every token but the first of a row has to
    /// be among those entries.
    fn wants_losses(&self) -> Option<i64> {
        None
    }

    /// Next-token losses of rows `first_row..`: f64 `[batch, pos - 1]` in nats, entry `i` about token `i + 1`.
    fn losses(&mut self, first_row: i64, losses: &Tensor) -> Result<()> {
        let _ = (first_row, losses);
        Ok(())
    }

    /// All rows were seen: computes and emits.
    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()>;
}

/// Object-safe face of [`Experiment`], implemented once for all of them.
pub trait AnyExperiment: Send + Sync {
    /// Identity and documentation.
    fn card(&self) -> &'static Card;
    /// All defaults.
    fn default_params(&self) -> serde_json::Value;
    /// Strictly checks parameters without running anything.
    fn check_params(&self, params: &serde_json::Value) -> Result<()>;
    /// Parameters with defaults filled in: equal settings give equal JSON.
    fn canonical_params(&self, params: &serde_json::Value) -> Result<serde_json::Value>;
    /// What must be fetched.
    fn inputs(&self, params: &serde_json::Value) -> Result<Inputs>;
    /// See [`Experiment::analyse`].
    fn analyse<'a>(
        &self,
        subject: &Subject<'a>,
        params: &serde_json::Value,
    ) -> Result<Analysis<'a>>;
    /// See [`Experiment::compare`].
    fn compare(
        &self,
        couple: &Couple<'_>,
        params: &serde_json::Value,
        cx: &mut Context<'_>,
    ) -> Result<()>;
    /// See [`Experiment::trajectory`].
    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: &serde_json::Value,
        cx: &mut Context<'_>,
    ) -> Result<()>;
    /// See [`Experiment::joint`].
    fn joint(
        &self,
        cohort: &mut Cohort<'_>,
        params: &serde_json::Value,
        cx: &mut Context<'_>,
    ) -> Result<()>;
}

impl<E: Experiment> AnyExperiment for E {
    fn card(&self) -> &'static Card {
        E::CARD
    }

    fn default_params(&self) -> serde_json::Value {
        params::defaults(E::Params::DEFS)
    }

    fn check_params(&self, params: &serde_json::Value) -> Result<()> {
        params::decode::<E::Params>(params).map(drop)
    }

    fn canonical_params(&self, params: &serde_json::Value) -> Result<serde_json::Value> {
        params::canonical::<E::Params>(params)
    }

    fn inputs(&self, params: &serde_json::Value) -> Result<Inputs> {
        Ok(Experiment::inputs(self, &params::decode(params)?))
    }

    fn analyse<'a>(
        &self,
        subject: &Subject<'a>,
        params: &serde_json::Value,
    ) -> Result<Analysis<'a>> {
        let params = params::decode(params)?;
        let Checkpoint { config, extra, .. } = subject.checkpoint;
        let recipe = extra.get("recipe").and_then(serde_json::Value::as_str);
        E::CARD.requires.check(E::CARD.name, config, recipe)?;
        Experiment::analyse(self, subject, params)
    }

    fn compare(
        &self,
        couple: &Couple<'_>,
        params: &serde_json::Value,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let params = params::decode(params)?;
        for Checkpoint { config, extra, .. } in [couple.first.checkpoint, couple.second.checkpoint]
        {
            let recipe = extra.get("recipe").and_then(serde_json::Value::as_str);
            E::CARD.requires.check(E::CARD.name, config, recipe)?;
        }
        Experiment::compare(self, couple, params, cx)
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: &serde_json::Value,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        Experiment::trajectory(self, input, params::decode(params)?, cx)
    }

    fn joint(
        &self,
        cohort: &mut Cohort<'_>,
        params: &serde_json::Value,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        Experiment::joint(self, cohort, params::decode(params)?, cx)
    }
}
