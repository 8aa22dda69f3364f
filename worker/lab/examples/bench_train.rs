//! One side of `tests/bench/train.py`: trains the setting named first (`transformer`: p = 71, `mlp`: p = 31) for
//! so many seeds and updates, on as many threads as a worker would, and prints one line of JSON with wall and
//! processor seconds: `cargo run --release -p sweep-lab --example bench_train mlp 32 200 2 cpu`. A sixth argument trains
//! that many seeds as one batched group instead of the recipe's choice (`Recipe::population`).

#![expect(clippy::print_stdout, reason = "a measuring program prints what it measured")]

use std::{fs, thread, time::Instant};

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnyRecipe, CheckpointPlan, Error, RECIPES, Result, Signal, TrainSink, Value,
    lens::{self, Device},
    train,
};

/// As in the worker.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Updates that are not measured.
const WARM_UP: u64 = 5;

/// Drops everything but the time of the first update.
struct Clock {
    /// Updates before this one are warm-up.
    from: u64,
    started: Option<(Instant, f64)>,
}

impl TrainSink for Clock {
    fn metric(&mut self, _: usize, _: &str, _: u64, _: Value) -> Result<()> {
        Ok(())
    }

    fn checkpoint(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn trainer_state(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn failed(&mut self, _: usize, _: u64, error: Error) -> Result<()> {
        Err(error)
    }

    fn signal(&mut self, step: u64, _: u64) -> Signal {
        if step == self.from {
            self.started = Some((Instant::now(), processor_seconds()));
        }
        Signal::Continue
    }
}

/// Processor time of the calling thread, by the Linux scheduler.
fn processor_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}

fn peak_memory_mib() -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Recipe and parameters of a setting.
fn setting(name: &str, steps: u64) -> Result<(&'static dyn AnyRecipe, Json)> {
    let (recipe, mut params) = match name {
        "transformer" => (
            "modular-addition",
            json!({
                "p": 71, "frac_train": 0.4, "d_model": 64, "n_heads": 4, "d_mlp": 256, "lr": 3e-3,
            }),
        ),
        "mlp" => ("modular-addition-mlp", json!({"p": 31})),
        _ => return Err(Error::Input(format!("expected transformer or mlp, found `{name}`"))),
    };
    params["steps"] = steps.into();
    params["eval_every"] = 1_000_000.into();
    let found = RECIPES.iter().copied().find(|known| known.card().name == recipe);
    Ok((found.expect("both recipes are registered"), params))
}

/// Trains seeds in groups, one after the other; returns wall and processor seconds of the updates.
fn lane(
    (recipe, params): (&'static dyn AnyRecipe, &Json),
    seeds: &[u64],
    warm_up: u64,
    (device, n_threads): (Device, i32),
    size: usize,
) -> Result<(f64, f64)> {
    // libtorch counts threads per calling thread.
    tch::set_num_threads(n_threads);
    let mut total = (0.0, 0.0);
    for group in seeds.chunks(size) {
        let mut clock = Clock { from: warm_up, started: None };
        train(recipe, params, group, &[], &CheckpointPlan::default(), device, &mut clock)?;
        if device.is_cuda() {
            tch::Cuda::synchronize(0);
        }
        let (wall, processor) = clock.started.expect("every run has updates behind the warm-up");
        total.0 += wall.elapsed().as_secs_f64();
        total.1 += processor_seconds() - processor;
    }
    Ok(total)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| {
        arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let name = arguments.first().map_or("mlp", String::as_str);
    let (n_seeds, steps, n_threads) = (number(1, 1), number(2, 100), number(3, 1).max(1));
    let is_cuda = arguments.get(4).is_some_and(|text| text == "cuda");
    let device = if is_cuda {
        lens::device::load_cuda()?;
        Device::Cuda(0)
    } else {
        Device::Cpu
    };
    let (recipe, params) = setting(name, steps + WARM_UP)?;
    let seeds: Vec<u64> = (0..n_seeds).collect();
    // As a worker's slots do: seeds side by side before threads side by side; one lane on a GPU.
    let n_lanes = if is_cuda { 1 } else { n_threads.min(n_seeds) } as usize;
    let lanes: Vec<Vec<u64>> = (0..n_lanes)
        .map(|lane| seeds.iter().copied().skip(lane).step_by(n_lanes).collect())
        .collect();
    let threads = (n_threads / n_lanes as u64).max(1) as i32;
    let task = (recipe, &params);
    let size = match number(5, 0) {
        0 => recipe.population(&params, device)?,
        size => size as usize,
    };
    let times = thread::scope(|scope| {
        let running: Vec<_> = lanes
            .iter()
            .map(|seeds| scope.spawn(move || lane(task, seeds, WARM_UP, (device, threads), size)))
            .collect();
        let ended = running.into_iter().map(|lane| lane.join().expect("a lane does not panic"));
        ended.collect::<Result<Vec<_>>>()
    })?;
    let wall = times.iter().map(|time| time.0).fold(0.0, f64::max);
    let processor: f64 = times.iter().map(|time| time.1).sum();
    let updates = (n_seeds * steps) as f64;
    let line = json!({
        "ms_per_step_per_seed": 1e3 * wall / updates,
        "processor_ms_per_step_per_seed": 1e3 * processor / updates,
        "lanes": n_lanes,
        "seeds_per_group": size,
        "peak_memory_mib": peak_memory_mib(),
    });
    println!("{line}");
    Ok(())
}
