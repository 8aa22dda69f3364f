//! Times `phase-transition`; `make bench-curves` compares it with scipy.
//!
//! `cargo run --release -p sweep-lab --example curves_speed` reads one line of JSON from standard input, `{"steps": […], "curves": [[…], …],
//! "n_bootstrap": 200}`, tests the curves as the cells of one metric, and prints one line: `seconds`, and `midpoint` and `verdict` of
//! each curve.

#![expect(clippy::print_stdout, reason = "a measuring program prints what it measured")]

use std::{io, time::Instant};

use serde::Deserialize;
use serde_json::json;
use sweep_lab::{
    EXPERIMENTS, Error, MemorySink, Result, Series, SeriesTable, TrajectoryInput, Value,
    lens::Device, trajectory,
};

/// As in the worker.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Deserialize)]
struct Request {
    steps: Vec<u64>,
    curves: Vec<Vec<f64>>,
    n_bootstrap: u64,
}

fn main() -> Result<()> {
    let text = io::read_to_string(io::stdin()).map_err(|error| Error::Input(error.to_string()))?;
    let request: Request =
        serde_json::from_str(&text).map_err(|error| Error::Input(error.to_string()))?;
    let at = |point: usize| request.curves.iter().map(|curve| curve[point]).collect();
    let points = request.steps.iter().enumerate();
    let series = Series {
        unit: "nats".to_owned(),
        axes: vec!["token".to_owned()],
        points: points.map(|(point, step)| (*step, Value::vector(at(point)))).collect(),
    };
    let table: SeriesTable = [("per-token-loss.loss".to_owned(), series)].into_iter().collect();
    let experiment = EXPERIMENTS.iter().find(|known| known.card().name == "phase-transition");
    let experiment = experiment.ok_or_else(|| Error::Input("no such experiment".to_owned()))?;
    let params = json!({"metric": "per-token-loss.loss", "n_bootstrap": request.n_bootstrap});
    let input = TrajectoryInput { checkpoints: None, series: &table, device: Device::Cpu };
    let mut sink = MemorySink::default();
    let begun = Instant::now();
    trajectory(*experiment, &params, input, &mut sink)?;
    let seconds = begun.elapsed().as_secs_f64();
    let last = |name: &str| sink.metrics[name].values().next_back().map(|value| value.data.clone());
    println!(
        "{}",
        json!({ "seconds": seconds, "midpoint": last("midpoint"), "verdict": last("verdict") })
    );
    Ok(())
}
