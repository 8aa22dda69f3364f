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

use serde_json::{Value as Json, json};
use sweep_lens::{Config, Device, Kind, Tensor, Transformer, Weights, checkpoint};

use crate::{
    data::bpe,
    error::{Error, Result, catch},
    group::{Group, Member, reorder},
    interventions::{self, Interventions, Reference},
    recipe::{AnyRecipe, Base, Objective, Plan},
    sink::check_metric,
    trainer_state::{NonFinite, Progress, RunIdentity, TrainerState},
    value::{Value, to_vec},
    vocabulary,
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
    train_from(None, recipe, params, seeds, resume, checkpoints, device, sink)
}

/// [`train`] from the checkpoint that the parameter `init_from` names, if it names one; every seed starts from its
/// weights, in its architecture where the recipe can take that ([`AnyRecipe::adapt`]).
///
/// # Errors
/// As [`train`]; a checkpoint without the parameter or the parameter without a checkpoint; weights of
/// another architecture than the recipe's (the tensor is named).
#[expect(clippy::too_many_arguments, reason = "the arguments of `train` and one more")]
pub fn train_from(
    base: Option<Base<'_>>,
    recipe: &dyn AnyRecipe,
    params: &Json,
    seeds: &[u64],
    resume: &[Option<Vec<u8>>],
    checkpoints: &CheckpointPlan,
    device: Device,
    sink: &mut dyn TrainSink,
) -> Result<Vec<SeedOutcome>> {
    let params = recipe.canonical_params(params)?;
    recipe.check_params(&params)?;
    let plan = recipe.plan(&params)?;
    let interventions = recipe.interventions(&params)?;
    if interventions.init_from.is_empty() == base.is_some() {
        let found = if base.is_some() { "some" } else { "none" };
        return Err(Error::params(
            "init_from",
            format!("expected weights exactly if it names a checkpoint, found {found}"),
        ));
    }
    let adapted = base.map(|base| recipe.adapt(&params, base)).transpose()?.flatten();
    let recipe = adapted.as_deref().unwrap_or(recipe);
    let base = base.map(|base| initial(base.weights, &recipe.config(&params)?)).transpose()?;
    if let Some((at, _)) = interventions.branch()
        && at > 0
        && at >= plan.steps
    {
        let problem = format!("{at} is no update of a training of {} steps", plan.steps);
        return Err(Error::params("branch_step", problem));
    }
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
            interventions,
            base,
            checkpoints,
            device,
            sink,
            tokens: meaning_of_tokens(recipe, &params)?,
            outcomes: seeds.iter().map(|_| SeedOutcome::Drained { step: 0 }).collect(),
        };
        run.run(resume)?;
        Ok(run.outcomes)
    })
}

/// Weights of a checkpoint as initial ones, float32 on the CPU, if they are those of `config`.
fn initial(weights: &Weights, config: &Config) -> Result<Weights> {
    let weights = weights.to_device(Device::Cpu).to_kind(Kind::Float).copy();
    // Names every tensor that is missing, unexpected or of another shape.
    Ok(Transformer::new(config.clone(), weights)?.into_weights())
}

/// What a recipe says about its tokens, by the entries of a checkpoint's `extra`. Byte pairs are learned for it, which takes time.
fn meaning_of_tokens(recipe: &dyn AnyRecipe, params: &Json) -> Result<Vec<(&'static str, Json)>> {
    let words = recipe.vocabulary(params)?.map(|words| (vocabulary::KEY, words.to_json()));
    let pairs = recipe.byte_pairs(params)?.map(|pairs| (bpe::KEY, json!(pairs)));
    Ok(words.into_iter().chain(pairs).collect())
}

/// What is left to train after the edit of the initial weights.
enum Edited {
    Members(Vec<Member>),
    /// The caller wanted to leave; nothing has begun.
    Drained,
}

struct TrainingRun<'a> {
    recipe: &'a dyn AnyRecipe,
    params: &'a Json,
    seeds: &'a [u64],
    plan: Plan,
    interventions: Interventions,
    /// Where every seed starts, if not from weights of its own.
    base: Option<Weights>,
    checkpoints: &'a CheckpointPlan,
    device: Device,
    sink: &'a mut dyn TrainSink,
    /// What the tokens mean, as checkpoints record it.
    tokens: Vec<(&'static str, Json)>,
    outcomes: Vec<SeedOutcome>,
}

impl TrainingRun<'_> {
    fn run(&mut self, resume: &[Option<Vec<u8>>]) -> Result<()> {
        if self.interventions.branch().is_some() {
            // Says at once that there is no order to change, not when the branch comes.
            reorder(self.objective(&[0])?.as_mut(), &[0])?;
        }
        let (members, start) = self.members(resume)?;
        let members = if start.is_none() { self.edit(members)? } else { Edited::Members(members) };
        let members = match members {
            Edited::Members(members) => members,
            Edited::Drained => return Ok(()),
        };
        let Some(mut group) = self.group(members, start.unwrap_or(0))? else { return Ok(()) };
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
            self.update(&mut group, step)?;
            step += 1;
            is_reported = false;
        }
    }

    /// The update that leads from `step` to `step + 1`. A resumed run may stand at the start of a phase, so
    /// that the optimizer is begun here and not where the phase before ends.
    fn update(&self, group: &mut Group, step: u64) -> Result<()> {
        if let Some((at, seed)) = self.interventions.branch()
            && step >= at
        {
            group.branch(seed)?;
        }
        let phase = self.plan.phase(step);
        if phase.start == step && step > 0 {
            group.begin(phase.optimizer);
        }
        group.update(step, phase.lr(step), step - phase.start + 1);
        Ok(())
    }

    /// Edits the initial weights of members that start, after a reference run where one is needed.
    fn edit(&mut self, members: Vec<Member>) -> Result<Edited> {
        if !self.interventions.has_edit() || members.is_empty() {
            return Ok(Edited::Members(members));
        }
        let mut references = Vec::new();
        if interventions::needs_reference(&self.interventions) {
            let copies = members.iter().map(|m| Member::fresh(m.index, m.seed, m.weights.copy()));
            match self.references(copies.collect())? {
                Some(found) => references = found,
                None => return Ok(Edited::Drained),
            }
        }
        let config = self.recipe.config(self.params)?;
        let fresh = |seed| self.recipe.init(self.params, seed);
        let mut edited = Vec::new();
        for (place, member) in members.into_iter().enumerate() {
            let reference = references.get(place);
            if let Some(Err(error)) = reference.map(|r| r.weights.check_finite()) {
                self.outcomes[member.index] = SeedOutcome::Failed { step: 0 };
                let problem =
                    format!("the reference run of the edit left the finite numbers: {error}");
                self.sink.failed(member.index, 0, Error::Input(problem))?;
                continue;
            }
            let Member { index, seed, weights, .. } = member;
            let (weights, chosen) = interventions::apply(
                &self.interventions,
                &config,
                &weights,
                seed,
                reference,
                &fresh,
            )?;
            let held = self.interventions.edit_hold.then_some(chosen);
            edited.push(Member { index, seed, weights, moments: None, held });
        }
        Ok(Edited::Members(edited))
    }

    /// Trains copies without edit and without a word; `None` if the caller wants to leave.
    fn references(&mut self, members: Vec<Member>) -> Result<Option<Vec<Reference>>> {
        let steps = u64::try_from(self.interventions.edit_reference_steps);
        let steps = steps.unwrap_or(self.plan.steps);
        let Some(mut group) = self.group(members, 0)? else { return Ok(Some(Vec::new())) };
        let circuit = interventions::circuit_of(&self.interventions);
        if let Some(kind) = circuit {
            // Says at once that the recipe knows no circuit, not when the reference run ends.
            let _scores = group.circuit(kind)?;
        }
        for step in 0..steps {
            match self.sink.signal(0, self.plan.steps) {
                Signal::Continue => {}
                Signal::Cancel => return Err(Error::Cancelled),
                Signal::Drain => {
                    self.end(&group, SeedOutcome::Drained { step: 0 });
                    return Ok(None);
                }
            }
            self.update(&mut group, step)?;
        }
        group.references(steps, circuit).map(Some)
    }

    fn objective(&self, seeds: &[u64]) -> Result<Box<dyn Objective>> {
        self.recipe.objective(self.params, seeds, self.device)
    }

    /// The seeds that still run, and the step they resume at (`None`: from the start).
    fn members(&mut self, resume: &[Option<Vec<u8>>]) -> Result<(Vec<Member>, Option<u64>)> {
        let mut members = Vec::new();
        let mut start: Option<Option<u64>> = None;
        for (index, &seed) in self.seeds.iter().enumerate() {
            let (member, step) = match resume.get(index).and_then(Option::as_ref) {
                None => {
                    let init_seed = self.interventions.seed_of_init(seed);
                    let weights = match &self.base {
                        Some(base) => base.copy(),
                        None => self.recipe.init(self.params, init_seed)?,
                    };
                    (Member::fresh(index, seed, weights), None)
                }
                Some(bytes) => {
                    let file = format!("trainer state of seed {seed}");
                    let state = TrainerState::decode(&file, bytes, &self.identity(seed))?;
                    match state.progress {
                        Progress::Failed(failure) => {
                            self.outcomes[index] = SeedOutcome::Failed { step: state.step };
                            self.sink.failed(index, state.step, failure.error(state.step))?;
                            continue;
                        }
                        Progress::Running { weights, exp_avg, exp_avg_sq, held } => {
                            let moments = Some((exp_avg, exp_avg_sq));
                            let held = Some(held).filter(|held| !held.is_empty());
                            (Member { index, seed, weights, moments, held }, Some(state.step))
                        }
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

    /// A group of `members` that stand at `step`, or `None` if there are none.
    fn group(&self, members: Vec<Member>, step: u64) -> Result<Option<Group>> {
        if members.is_empty() {
            return Ok(None);
        }
        let seeds: Vec<u64> = members.iter().map(|member| member.seed).collect();
        let objective = self.objective(&seeds)?;
        let config = self.recipe.config(self.params)?;
        let rule = self.plan.phase(step).optimizer;
        let mut group = Group::new(config, members, objective, rule, self.device)?;
        let factor = self.interventions.aux_weight;
        if let Some(term) = self.interventions.auxiliary() {
            let penalty = group.penalty(&term)?;
            group.penalise(factor, penalty);
        } else if self.interventions.penalises_norm() {
            group.penalise(factor, interventions::norm_penalty());
        }
        Ok(Some(group))
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
        let n_models = group.members.len();
        // One tensor, so that the device is waited for once.
        let columns: Vec<Tensor> = metrics
            .iter()
            .map(|(_, values)| values.to_kind(Kind::Double).reshape([n_models as i64, -1]))
            .collect();
        let table = to_vec(&Tensor::cat(&columns, 1));
        let row = table.len() / n_models;
        let mut failures: Vec<Option<NonFinite>> = vec![None; n_models];
        for (model, &index) in group.members.iter().enumerate() {
            let mut cells = &table[model * row..][..row];
            for (name, values) in &metrics {
                let shape: Vec<usize> =
                    values.size().iter().skip(1).map(|&length| length as usize).collect();
                let (data, rest) = cells.split_at(shape.iter().product());
                cells = rest;
                let is_vital = ["train_loss", "weight_norm"].contains(name);
                let wrong = data.iter().find(|value| is_vital && !value.is_finite());
                if let (Some(&value), None) = (wrong, &failures[model]) {
                    failures[model] = Some(NonFinite { what: (*name).to_owned(), value });
                }
                let labels = vec![None; shape.len()];
                self.metric(index, name, step, Value::array(shape, data.to_vec(), labels))?;
            }
            self.metric(index, "lr", step, Value::scalar(self.plan.phase(step).lr(step)))?;
        }
        let Some(group) = self.drop_failed(group, &failures, step)? else { return Ok(None) };
        if self.checkpoints.steps.binary_search(&step).is_ok() {
            for (model, &index) in group.members.iter().enumerate() {
                let mut extra = self.identity(self.seeds[index]).to_json();
                for (key, tokens) in &self.tokens {
                    extra[key] = tokens.clone();
                }
                let weights = group.weights(model);
                let file = checkpoint::encode(group.config(), &weights, step, &extra)?;
                self.sink.checkpoint(index, step, file)?;
            }
            self.save_states(&group, step)?;
        }
        Ok(Some(group))
    }

    fn metric(&mut self, index: usize, name: &str, step: u64, value: Value) -> Result<()> {
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
        self.group(rest, step)
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
