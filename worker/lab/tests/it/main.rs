//! Tests of the public surface: registry, every experiment on a small trained model, the training loop.
//! One binary, because linking libtorch is what takes the time; few and dense tests, because every
//! test process loads it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its own functions too")]

mod addition;
mod circuits;
mod experiments;
mod finetune;
mod heads;
mod integrity;
mod interventions;
mod modular;
mod neurons;
mod pairs;
mod planted;
mod probes;
mod prompts;
mod properties;
mod quanta;
mod recipes;
mod registry;
mod s_curve;
mod training;

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use sweep_lab::{
    CheckpointPlan, Checkpoints, Error, RECIPES, Result, SeedOutcome, Signal, TrainSink, Value,
    lens::{
        Device,
        checkpoint::{self, Checkpoint},
    },
    train,
};

/// A setting that trains in a second.
fn small_params(steps: u64) -> Json {
    json!({
        "p": 11, "frac_train": 0.6, "d_model": 16, "n_heads": 2, "d_mlp": 24, "lr": 1e-2,
        "steps": steps, "eval_every": 5,
    })
}

/// What a training run sent out for one seed.
#[derive(Debug, Default)]
struct Recorded {
    metrics: BTreeMap<(String, u64), f64>,
    checkpoints: BTreeMap<u64, Vec<u8>>,
    states: BTreeMap<u64, Vec<u8>>,
    failures: Vec<(u64, String)>,
}

/// Keeps everything; gives `signal` at step `signal_at`.
#[derive(Debug)]
struct Recorder {
    seeds: BTreeMap<usize, Recorded>,
    signal_at: Option<u64>,
    signal: Signal,
    order: Vec<(usize, &'static str, u64)>,
}

impl Recorder {
    fn new() -> Self {
        Self {
            seeds: BTreeMap::new(),
            signal_at: None,
            signal: Signal::Continue,
            order: Vec::new(),
        }
    }

    fn stopping(at: u64, signal: Signal) -> Self {
        Self { signal_at: Some(at), signal, ..Self::new() }
    }

    fn seed(&mut self, index: usize) -> &mut Recorded {
        self.seeds.entry(index).or_default()
    }

    fn note(&mut self, index: usize, what: &'static str, step: u64) {
        if self.order.last() != Some(&(index, what, step)) {
            self.order.push((index, what, step));
        }
    }
}

impl TrainSink for Recorder {
    fn metric(&mut self, index: usize, name: &str, step: u64, value: Value) -> Result<()> {
        self.note(index, "metric", step);
        for (cell, &number) in value.data.iter().enumerate() {
            // Cells of an array are told apart by their place.
            let name =
                if value.shape.is_empty() { name.to_owned() } else { format!("{name}[{cell}]") };
            let before = self.seed(index).metrics.insert((name, step), number);
            assert!(before.is_none(), "a metric of step {step} came twice");
        }
        Ok(())
    }

    fn checkpoint(&mut self, index: usize, step: u64, file: Vec<u8>) -> Result<()> {
        self.note(index, "checkpoint", step);
        assert!(self.seed(index).checkpoints.insert(step, file).is_none());
        Ok(())
    }

    fn trainer_state(&mut self, index: usize, step: u64, file: Vec<u8>) -> Result<()> {
        self.note(index, "state", step);
        self.seed(index).states.insert(step, file);
        Ok(())
    }

    fn failed(&mut self, index: usize, step: u64, error: Error) -> Result<()> {
        self.seed(index).failures.push((step, error.to_string()));
        Ok(())
    }

    fn signal(&mut self, step: u64, _total: u64) -> Signal {
        if Some(step) == self.signal_at { self.signal } else { Signal::Continue }
    }
}

/// Trains `modular-addition` on one thread and returns what came out.
fn run(
    params: &Json,
    seeds: &[u64],
    resume: &[Option<Vec<u8>>],
    plan: &CheckpointPlan,
    recorder: Recorder,
) -> (Result<Vec<SeedOutcome>>, Recorder) {
    run_recipe("modular-addition", params, seeds, resume, plan, recorder)
}

/// Trains any recipe on one thread and returns what came out.
fn run_recipe(
    name: &str,
    params: &Json,
    seeds: &[u64],
    resume: &[Option<Vec<u8>>],
    plan: &CheckpointPlan,
    mut recorder: Recorder,
) -> (Result<Vec<SeedOutcome>>, Recorder) {
    tch::set_num_threads(1);
    let recipe = RECIPES.iter().find(|recipe| recipe.card().name == name);
    let recipe = *recipe.expect("the recipe is registered");
    let outcome = train(recipe, params, seeds, resume, plan, Device::Cpu, &mut recorder);
    (outcome, recorder)
}

/// Checkpoint files of one seed as a trajectory.
struct Published {
    steps: Vec<u64>,
    files: BTreeMap<u64, Vec<u8>>,
    loads: Vec<u64>,
}

impl Published {
    fn new(files: BTreeMap<u64, Vec<u8>>) -> Self {
        Self { steps: files.keys().copied().collect(), files, loads: Vec::new() }
    }
}

impl Checkpoints for Published {
    fn steps(&self) -> &[u64] {
        &self.steps
    }

    fn load(&mut self, step: u64) -> Result<Checkpoint> {
        self.loads.push(step);
        Ok(checkpoint::decode("checkpoint", &self.files[&step])?)
    }
}
