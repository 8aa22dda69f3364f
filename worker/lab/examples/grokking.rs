//! The main job without the cluster: trains the demo setting (p = 71) for the seeds given as arguments,
//! analyses every checkpoint, and prints curves, phases, transitions and principal components.
//! Run with `cargo run --release -p sweep-lab --example grokking 0 1`.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{collections::BTreeMap, time::Instant};

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, AnyExperiment, AnyRecipe, CheckpointPlan, Checkpoints, EXPERIMENTS, Error, Inputs,
    MemorySink, RECIPES, Result, Series, SeriesTable, Signal, Subject, TrainSink, TrajectoryInput,
    Value, analyse,
    lens::{
        Device, Transformer,
        checkpoint::{self, Checkpoint},
    },
    train, trajectory,
};

/// Keeps checkpoint files and the peak of the test loss.
#[derive(Default)]
struct Run {
    files: BTreeMap<u64, Vec<u8>>,
    peak: f64,
    steps: Vec<u64>,
}

impl TrainSink for Run {
    fn metric(&mut self, _: usize, name: &str, _: u64, value: Value) -> Result<()> {
        if name == "test_loss" {
            self.peak = self.peak.max(value.as_scalar().unwrap_or(f64::NAN));
        }
        Ok(())
    }

    fn checkpoint(&mut self, _: usize, step: u64, file: Vec<u8>) -> Result<()> {
        self.files.insert(step, file);
        self.steps.push(step);
        Ok(())
    }

    fn trainer_state(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn failed(&mut self, _: usize, _: u64, error: Error) -> Result<()> {
        Err(error)
    }

    fn signal(&mut self, _: u64, _: u64) -> Signal {
        Signal::Continue
    }
}

impl Checkpoints for Run {
    fn steps(&self) -> &[u64] {
        &self.steps
    }

    fn load(&mut self, step: u64) -> Result<Checkpoint> {
        Ok(checkpoint::decode("checkpoint", &self.files[&step])?)
    }
}

fn find(name: &str) -> &'static dyn AnyExperiment {
    let found = EXPERIMENTS.iter().find(|experiment| experiment.card().name == name);
    *found.expect("the experiment is registered")
}

fn analyse_all(run: &mut Run) -> Result<MemorySink> {
    let (progress, norms, params) = (find("grokking-progress"), find("weight-norms"), Json::Null);
    let mut sink = MemorySink::default();
    let init = run.load(0)?.weights;
    for step in run.steps.clone() {
        let here = run.load(step)?;
        let model = Transformer::new(here.config.clone(), here.weights.shallow_clone())?;
        let subject = Subject { init: Some(&init), ..Subject::of(&here, &model) };
        let mut other = MemorySink::default();
        let mut jobs = [
            AnalyseJob { experiment: progress, params: &params, sink: &mut sink },
            AnalyseJob { experiment: norms, params: &params, sink: &mut other },
        ];
        analyse(&mut jobs, &subject).into_iter().collect::<Result<Vec<()>>>()?;
    }
    Ok(sink)
}

fn follow(run: &mut Run, name: &str, params: &Json, series: &SeriesTable) -> Result<MemorySink> {
    let experiment = find(name);
    let mut sink = MemorySink::default();
    let checkpoints = match experiment.inputs(params)? {
        Inputs::Checkpoints => Some(run as &mut dyn Checkpoints),
        Inputs::Series(_) | Inputs::Checkpoint { .. } | Inputs::Couple => None,
    };
    let input = TrajectoryInput { checkpoints, series, device: Device::Cpu };
    trajectory(experiment, params, input, &mut sink)?;
    Ok(sink)
}

fn report(seed: u64) -> Result<()> {
    let steps = 2400;
    let params = json!({
        "p": 71, "frac_train": 0.4, "d_model": 64, "n_heads": 4, "d_mlp": 256, "lr": 3e-3, "steps": steps,
    });
    let start = Instant::now();
    let mut run = Run::default();
    let plan = CheckpointPlan::every(60, steps);
    train(recipe(), &params, &[seed], &[], &plan, Device::Cpu, &mut run)?;
    println!(
        "seed {seed}: trained in {:.1} s, peak test loss {:.2}",
        start.elapsed().as_secs_f64(),
        run.peak
    );
    let start = Instant::now();
    let progress = analyse_all(&mut run)?;
    println!("{} checkpoints analysed in {:.1} s", run.steps.len(), start.elapsed().as_secs_f64());
    let start = Instant::now();
    let phases = follow(&mut run, "grokking-phases", &Json::Null, &SeriesTable::new())?;
    println!("phases found in {:.1} s", start.elapsed().as_secs_f64());
    println!(
        "  step   train    test restricted (final keys) excluded (final keys)  gini    fve keys"
    );
    for &step in &run.steps {
        let own = |name: &str| progress.scalar(name, step).unwrap_or(f64::NAN);
        let last = |name: &str| phases.scalar(name, step).unwrap_or(f64::NAN);
        println!(
            "{step:6} {:7.1e} {:7.1e} {:10.1e} {:12.1e} {:8.2} {:12.2} {:5.2} {:6.2} {:4}",
            own("train_loss"),
            own("test_loss"),
            own("restricted_loss"),
            last("restricted_loss"),
            own("excluded_loss"),
            last("excluded_loss"),
            own("gini_embed"),
            own("fve"),
            own("n_key_frequencies"),
        );
    }
    for (name, points) in &phases.metrics {
        if let (1, Some((_, value))) = (points.len(), points.last_key_value())
            && let Some(value) = value.as_scalar()
        {
            println!("{name} {value}");
        }
    }
    let mut series = SeriesTable::new();
    for name in ["test_loss", "restricted_loss", "gini_embed", "test_acc", "cos_coefficient"] {
        let points = progress.metrics[name].clone().into_iter().collect();
        let axes =
            if name == "cos_coefficient" { vec!["frequency".to_owned()] } else { Vec::new() };
        series.insert(format!("m.{name}"), Series { unit: String::new(), axes, points });
    }
    for metric in series.keys() {
        let start = Instant::now();
        let found = follow(&mut run, "phase-transition", &json!({"metric": metric}), &series)?;
        let cell = |name: &str| found.metrics[name][&steps].data[0];
        println!(
            "{metric}: verdict {} midpoint {:.0} [{:.0}, {:.0}] onset {:.0} end {:.0} width {:.2} decades, \
             amplitude {:.2}, dBIC {:.0} / {:.0}, abruptness {:.2} [{:.2}, {:.2}], {:.2} s for {} cells",
            cell("verdict"),
            cell("midpoint"),
            cell("midpoint_low"),
            cell("midpoint_high"),
            cell("onset"),
            cell("end"),
            cell("width_decades"),
            cell("amplitude_fraction"),
            cell("dbic"),
            cell("dbic_ar1"),
            cell("abruptness"),
            cell("abruptness_low"),
            cell("abruptness_high"),
            start.elapsed().as_secs_f64(),
            found.metrics["verdict"][&steps].data.len(),
        );
    }
    for of in ["weights", "logits"] {
        let start = Instant::now();
        let found = follow(&mut run, "pca", &json!({"of": of}), &series)?;
        println!(
            "pca of {of}: evr {:.3?}, {:.1} s",
            found.metrics["evr"][&steps].data,
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn recipe() -> &'static dyn AnyRecipe {
    let found = RECIPES.iter().find(|recipe| recipe.card().name == "modular-addition");
    *found.expect("the recipe is registered")
}

fn main() -> Result<()> {
    tch::set_num_threads(1);
    for seed in std::env::args().skip(1).filter_map(|seed| seed.parse().ok()) {
        report(seed)?;
    }
    Ok(())
}
