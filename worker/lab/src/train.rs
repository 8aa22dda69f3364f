//! The one training loop. [`train`] runs a group of seeds of a recipe, streams metrics, publishes
//! checkpoints and exact trainer states, and stops when told to.
//!
//! # Invariants
//! - At step `s` everything of `s` goes out in this order: metrics, checkpoint, trainer state. A state of
//!   step `s` therefore means that nothing of step `s` is missing, and a resumed run continues with the
//!   update from `s` to `s + 1`: bit for bit the run that was never stopped (same device, thread count
//!   and group of seeds).
//! - Nothing is read back from the device between evaluations.
//! - A seed that leaves the finite numbers is reported at the first evaluation that shows it, leaves a
//!   state that says so, and is taken out of the group; the others go on.

use serde_json::Value as Json;
use sweep_lens::{Device, Tensor, checkpoint};

use crate::{
    error::{Error, Result, catch},
    group::{Group, Member},
    recipe::{AnyRecipe, Plan},
    sink::check_metric,
    trainer_state::{NonFinite, Progress, RunIdentity, TrainerState},
    value::{Value, to_vec},
};

/// Receives what a training run produces. `seed_index` counts in the `seeds` given to [`train`].
pub trait TrainSink {
    /// One point of a metric of one seed.
    fn metric(&mut self, seed_index: usize, name: &str, step: u64, value: Value) -> Result<()>;
    /// A checkpoint file ([`sweep_lens::checkpoint`]).
    fn checkpoint(&mut self, seed_index: usize, step: u64, file: Vec<u8>) -> Result<()>;
    /// A trainer state to hand to a later [`train`] as `resume`; follows every checkpoint, answers
    /// [`Signal::Drain`], and records a failure.
    fn trainer_state(&mut self, seed_index: usize, step: u64, file: Vec<u8>) -> Result<()>;
    /// This seed stops here; the others go on.
    fn failed(&mut self, seed_index: usize, step: u64, error: Error) -> Result<()>;
    /// Asked before every update.
    fn signal(&mut self, step: u64, total: u64) -> Signal;
}

/// What a training run should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Train on.
    Continue,
    /// Save the trainer states and return.
    Drain,
    /// Return at once.
    Cancel,
}

/// How the run of one seed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedOutcome {
    /// All updates done.
    Finished {
        /// Number of updates.
        step: u64,
    },
    /// Stopped by [`Signal::Drain`]; the trainer state was handed out.
    Drained {
        /// Updates done.
        step: u64,
    },
    /// Left the finite numbers; reported by [`TrainSink::failed`].
    Failed {
        /// Evaluation that showed it.
        step: u64,
    },
}

/// Steps at which checkpoints are published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointPlan {
    steps: Vec<u64>,
}

impl CheckpointPlan {
    /// Checkpoints at these steps, in any order.
    pub fn at(steps: impl IntoIterator<Item = u64>) -> Self {
        let mut steps: Vec<u64> = steps.into_iter().collect();
        steps.sort_unstable();
        steps.dedup();
        Self { steps }
    }

    /// Checkpoints at 0, `every`, 2·`every`, … and at `total`.
    pub fn every(every: u64, total: u64) -> Self {
        Self::at((0..=total).step_by(every.max(1) as usize).chain([total]))
    }

    /// The steps, ascending, each once.
    pub fn steps(&self) -> &[u64] {
        &self.steps
    }
}

/// Trains `seeds` of a recipe as one batched group.
///
/// `resume` is empty, or holds one entry per seed: its last trainer state, or `None` to start anew. All
/// running states must be of the same step. The caller decides how many seeds to group
/// ([`AnyRecipe::population`] says how many are worth it).
///
/// # Errors
/// [`Error::Cancelled`] on [`Signal::Cancel`]; whatever the sink returns; parameters, states and
/// checkpoint steps that do not fit. A diverging seed is not an error of the call.
pub fn train(
    recipe: &dyn AnyRecipe,
    params: &Json,
    seeds: &[u64],
    resume: &[Option<Vec<u8>>],
    checkpoints: &CheckpointPlan,
    device: Device,
    sink: &mut dyn TrainSink,
) -> Result<Vec<SeedOutcome>> {
    let params = recipe.canonical_params(params)?;
    let plan = recipe.plan(&params)?;
    if let Some(&step) = checkpoints.steps.last().filter(|&&step| step > plan.steps) {
        return Err(Error::params(
            "steps",
            format!("a checkpoint is asked for at step {step}, training ends at {}", plan.steps),
        ));
    }
    if !(resume.is_empty() || resume.len() == seeds.len()) {
        return Err(Error::Input(format!(
            "expected a trainer state entry for each of {} seeds, found {}",
            seeds.len(),
            resume.len()
        )));
    }
    catch(|| {
        let mut run = TrainingRun {
            recipe,
            params: &params,
            seeds,
            plan,
            checkpoints,
            device,
            sink,
            outcomes: seeds.iter().map(|_| SeedOutcome::Drained { step: 0 }).collect(),
        };
        run.run(resume)?;
        Ok(run.outcomes)
    })
}

struct TrainingRun<'a> {
    recipe: &'a dyn AnyRecipe,
    params: &'a Json,
    seeds: &'a [u64],
    plan: Plan,
    checkpoints: &'a CheckpointPlan,
    device: Device,
    sink: &'a mut dyn TrainSink,
    outcomes: Vec<SeedOutcome>,
}

impl TrainingRun<'_> {
    fn run(&mut self, resume: &[Option<Vec<u8>>]) -> Result<()> {
        let (members, start) = self.members(resume)?;
        let Some(mut group) = self.group(members)? else { return Ok(()) };
        let total = self.plan.steps;
        let mut step = start.unwrap_or(0);
        let mut is_reported = start.is_some();
        loop {
            if !is_reported && self.is_due(step) {
                match self.report(group, step)? {
                    Some(rest) => group = rest,
                    None => return Ok(()),
                }
            }
            if step >= total {
                self.end(&group, SeedOutcome::Finished { step });
                return Ok(());
            }
            match self.sink.signal(step, total) {
                Signal::Continue => {}
                Signal::Cancel => return Err(Error::Cancelled),
                Signal::Drain => {
                    self.save_states(&group, step)?;
                    self.end(&group, SeedOutcome::Drained { step });
                    return Ok(());
                }
            }
            group.update(step, self.plan.schedule.lr(step));
            step += 1;
            is_reported = false;
        }
    }

    /// The seeds that still run, and the step they resume at (`None`: from the start).
    fn members(&mut self, resume: &[Option<Vec<u8>>]) -> Result<(Vec<Member>, Option<u64>)> {
        let mut members = Vec::new();
        let mut start: Option<Option<u64>> = None;
        for (index, &seed) in self.seeds.iter().enumerate() {
            let (member, step) = match resume.get(index).and_then(Option::as_ref) {
                None => (Member::fresh(index, seed, self.recipe.init(self.params, seed)?), None),
                Some(bytes) => {
                    let file = format!("trainer state of seed {seed}");
                    let state = TrainerState::decode(&file, bytes, &self.identity(seed))?;
                    match state.progress {
                        Progress::Failed(failure) => {
                            self.outcomes[index] = SeedOutcome::Failed { step: state.step };
                            self.sink.failed(index, state.step, failure.error(state.step))?;
                            continue;
                        }
                        Progress::Running { weights, exp_avg, exp_avg_sq } => (
                            Member { index, seed, weights, moments: Some((exp_avg, exp_avg_sq)) },
                            Some(state.step),
                        ),
                    }
                }
            };
            match start {
                Some(others) if others != step => {
                    return Err(Error::Input(format!(
                        "expected trainer states of one step, found {} and {}",
                        others.unwrap_or(0),
                        step.unwrap_or(0)
                    )));
                }
                Some(_) | None => start = Some(step),
            }
            members.push(member);
        }
        Ok((members, start.flatten()))
    }

    /// A group of `members`, or `None` if there are none.
    fn group(&self, members: Vec<Member>) -> Result<Option<Group>> {
        if members.is_empty() {
            return Ok(None);
        }
        let seeds: Vec<u64> = members.iter().map(|member| member.seed).collect();
        let objective = self.recipe.objective(self.params, &seeds, self.device)?;
        let config = self.recipe.config(self.params)?;
        Group::new(config, members, objective, self.plan.optimizer, self.device).map(Some)
    }

    fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.plan.eval_every.max(1))
            || step == self.plan.steps
            || self.checkpoints.steps.binary_search(&step).is_ok()
    }

    /// Metrics, then the checkpoint with its state, of one step. Returns the seeds that go on.
    fn report(&mut self, group: Group, step: u64) -> Result<Option<Group>> {
        let mut metrics = tch::no_grad(|| group.evaluate());
        metrics.push(("weight_norm", group.sum_squared_weights()));
        let names: Vec<&str> = metrics.iter().map(|metric| metric.0).collect();
        // One tensor, so that the device is waited for once.
        let columns: Vec<Tensor> = metrics.iter().map(|metric| metric.1.view([-1])).collect();
        let table = to_vec(&Tensor::stack(&columns, 0));
        let n_models = group.members.len();
        let mut failures: Vec<Option<NonFinite>> = vec![None; n_models];
        for (model, &index) in group.members.iter().enumerate() {
            for (row, name) in names.iter().enumerate() {
                let value = table[row * n_models + model];
                self.metric(index, name, step, value)?;
                let is_vital = ["train_loss", "weight_norm"].contains(name);
                if is_vital && !value.is_finite() && failures[model].is_none() {
                    failures[model] = Some(NonFinite { what: (*name).to_owned(), value });
                }
            }
            self.metric(index, "lr", step, self.plan.schedule.lr(step))?;
        }
        let Some(group) = self.drop_failed(group, &failures, step)? else { return Ok(None) };
        if self.checkpoints.steps.binary_search(&step).is_ok() {
            for (model, &index) in group.members.iter().enumerate() {
                let extra = self.identity(self.seeds[index]).to_json();
                let weights = group.weights(model);
                let file = checkpoint::encode(group.config(), &weights, step, &extra)?;
                self.sink.checkpoint(index, step, file)?;
            }
            self.save_states(&group, step)?;
        }
        Ok(Some(group))
    }

    fn metric(&mut self, index: usize, name: &str, step: u64, value: f64) -> Result<()> {
        let value = Value::scalar(value);
        check_metric(self.recipe.card(), name, &value)?;
        self.sink.metric(index, name, step, value)
    }

    fn drop_failed(
        &mut self,
        group: Group,
        failures: &[Option<NonFinite>],
        step: u64,
    ) -> Result<Option<Group>> {
        if failures.iter().all(Option::is_none) {
            return Ok(Some(group));
        }
        let mut rest = Vec::new();
        for (model, failure) in failures.iter().enumerate() {
            let index = group.members[model];
            let Some(failure) = failure else {
                rest.push(group.member(model, self.seeds[index]));
                continue;
            };
            let state = TrainerState { step, progress: Progress::Failed(failure.clone()) };
            let file = state.encode(&self.identity(self.seeds[index]))?;
            self.sink.trainer_state(index, step, file)?;
            self.outcomes[index] = SeedOutcome::Failed { step };
            self.sink.failed(index, step, failure.error(step))?;
        }
        self.group(rest)
    }

    fn save_states(&mut self, group: &Group, step: u64) -> Result<()> {
        for (model, &index) in group.members.iter().enumerate() {
            let seed = self.seeds[index];
            let state = TrainerState { step, progress: group.progress(model) };
            self.sink.trainer_state(index, step, state.encode(&self.identity(seed))?)?;
        }
        Ok(())
    }

    fn end(&mut self, group: &Group, outcome: SeedOutcome) {
        for &index in &group.members {
            self.outcomes[index] = outcome;
        }
    }

    fn identity(&self, seed: u64) -> RunIdentity {
        let card = self.recipe.card();
        RunIdentity { recipe: card.name, version: card.version, params: self.params.clone(), seed }
    }
}
