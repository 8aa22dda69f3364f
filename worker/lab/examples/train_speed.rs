//! Measures the training loop on one thread: milliseconds per step of the demo setting (p = 71) for
//! one seed, for several seeds as one batched group, and for the same seeds one after the other.
//! The numbers decide `Recipe::population`. Run with `cargo run --release --example train_speed`.

#![expect(clippy::print_stdout, reason = "a measuring program prints what it measured")]

use std::fs;

use serde_json::json;
use sweep_lab::{
    AnyRecipe, CheckpointPlan, Error, RECIPES, Signal, TrainSink, Value, lens::Device, train,
};

/// As in the worker.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Drops everything.
struct Drop;

impl TrainSink for Drop {
    fn metric(&mut self, _: usize, _: &str, _: u64, _: Value) -> Result<(), Error> {
        Ok(())
    }

    fn checkpoint(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    fn trainer_state(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    fn failed(&mut self, _: usize, _: u64, error: Error) -> Result<(), Error> {
        Err(error)
    }

    fn signal(&mut self, _: u64, _: u64) -> Signal {
        Signal::Continue
    }
}

/// Seconds that this thread has computed, by the Linux scheduler: other work on the machine does not count.
fn seconds_computed() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}

/// Seconds of one step of `seeds` as one group: the best of several short runs.
fn seconds_per_step(seeds: &[u64], eval_every: u64) -> f64 {
    const STEPS: u64 = 20;
    let params = json!({
        "p": 71, "frac_train": 0.4, "d_model": 64, "n_heads": 4, "d_mlp": 256, "lr": 3e-3,
        "steps": STEPS, "eval_every": eval_every,
    });
    let one = || {
        let start = seconds_computed();
        let plan = CheckpointPlan::default();
        train(recipe(), &params, seeds, &[], &plan, Device::Cpu, &mut Drop)
            .expect("the demo setting is valid");
        (seconds_computed() - start) / STEPS as f64
    };
    (0..10).map(|_| one()).fold(f64::INFINITY, f64::min)
}

fn recipe() -> &'static dyn AnyRecipe {
    let found = RECIPES.iter().find(|recipe| recipe.card().name == "modular-addition");
    *found.expect("the recipe is registered")
}

fn main() {
    tch::set_num_threads(1);
    let alone = 1e3 * seconds_per_step(&[0], 1000);
    println!("one seed: {alone:.2} ms/step");
    for n_seeds in [2, 4] {
        let group: Vec<u64> = (0..n_seeds).collect();
        let batched = 1e3 * seconds_per_step(&group, 1000) / n_seeds as f64;
        println!("{n_seeds} seeds batched: {batched:.2} ms/step/seed");
    }
    let often = 1e3 * seconds_per_step(&[0], 10);
    println!("one seed, evaluated every 10 steps: {often:.2} ms/step");
}
