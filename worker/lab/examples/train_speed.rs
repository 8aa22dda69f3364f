//! Measures the training loop on one thread: milliseconds per step of the demo setting (p = 71) for
//! one seed, for several seeds as one batched group, and for the same seeds one after the other.
//! The numbers decide `Recipe::population`. Run with `cargo run --release --example train_speed`.
//! `train_speed curve SEED…` instead prints the grokking curve of each seed.

#![expect(clippy::print_stdout, reason = "a measuring program prints what it measured")]

use std::time::Instant;

use serde_json::json;
use sweep_lab::{
    CheckpointPlan, Error, RECIPES, Signal, TrainSink, Value,
    lens::Device,
    train,
};

/// Prints scalar metrics of every `print_every`th step, drops the rest.
struct Printer {
    print_every: u64,
    line: String,
}

impl TrainSink for Printer {
    fn metric(&mut self, seed: usize, name: &str, step: u64, value: Value) -> Result<(), Error> {
        if self.print_every > 0 && step.is_multiple_of(self.print_every) {
            if name == "train_loss" {
                self.line = format!("seed {seed} step {step}");
            }
            let value = value.as_scalar().unwrap_or(f64::NAN);
            self.line += &format!(" {name} {value:.3e}");
            if name == "lr" {
                println!("{}", self.line);
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    fn trainer_state(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    fn failed(&mut self, seed: usize, step: u64, error: Error) -> Result<(), Error> {
        println!("seed {seed} failed at step {step}: {error}");
        Ok(())
    }

    fn signal(&mut self, _: u64, _: u64) -> Signal {
        Signal::Continue
    }
}

fn run(seeds: &[u64], steps: u64, eval_every: u64, print_every: u64) -> f64 {
    let params = json!({
        "p": 71, "frac_train": 0.4, "d_model": 64, "n_heads": 4, "d_mlp": 256, "lr": 3e-3,
        "steps": steps, "eval_every": eval_every,
    });
    let mut sink = Printer { print_every, line: String::new() };
    let recipe = RECIPES[0];
    let start = Instant::now();
    let plan = CheckpointPlan::default();
    let outcome = train(recipe, &params, seeds, &[], &plan, Device::Cpu, &mut sink);
    outcome.expect("the demo setting is valid");
    start.elapsed().as_secs_f64()
}

fn main() {
    tch::set_num_threads(1);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "curve") {
        for seed in arguments[1..].iter().filter_map(|seed| seed.parse().ok()) {
            println!("seed {seed}: {:.1} s", run(&[seed], 2500, 10, 100));
        }
        return;
    }
    let steps = 100;
    run(&[0], 10, 10, 0);
    for seeds in [1u64, 2, 4] {
        let group: Vec<u64> = (0..seeds).collect();
        let batched = run(&group, steps, steps, 0) / (steps * seeds) as f64;
        let alone: f64 =
            group.iter().map(|&seed| run(&[seed], steps, steps, 0)).sum::<f64>() / (steps * seeds) as f64;
        println!(
            "{seeds} seeds: batched {:.2} ms/step/seed, one after the other {:.2} ms/step/seed",
            1e3 * batched,
            1e3 * alone
        );
    }
    let often = run(&[0], steps, 10, 0) / steps as f64;
    println!("1 seed with an evaluation every 10 steps: {:.2} ms/step", 1e3 * often);
}
