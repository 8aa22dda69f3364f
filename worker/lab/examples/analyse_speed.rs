//! Times analyses of one checkpoint; `make bench-analyse` compares them with TransformerLens.
//!
//! `cargo run --release -p sweep-lab --example analyse_speed FOLDER`, a model as transformers saves it. Reads one
//! request per line from standard input and answers with one line of JSON:
//! - `{"jobs": [{"name": "head-detector", "params": {…}}, …]}` runs the experiments as one bundle and gives `seconds`, the
//!   `cpu_seconds` of this thread (all of them with OMP_NUM_THREADS=1) and what they emitted (`metrics`, by `experiment.metric`);
//! - `{"matmul": [m, k, n]}` gives the `flops` per second of that product, at its `best` and as `sustained` (the median).
//!
//! The model is loaded once; `load_seconds` of the first line says how long that took.
#![expect(clippy::print_stdout, reason = "a report for the program that runs it")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead},
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Deserialize;
use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, EXPERIMENTS, Error, MemorySink, Result, Subject, analyse,
    lens::{
        Device, Kind, Tensor, Transformer, checkpoint::Checkpoint, families, formats::TensorFiles,
    },
};

/// As in the worker.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Deserialize)]
struct Job {
    name: String,
    params: Json,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Request {
    Jobs { jobs: Vec<Job> },
    Matmul { matmul: [i64; 3] },
}

fn main() -> Result<()> {
    let folder = env::args().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| Error::Input("expected a folder".to_owned()))?;
    let begun = Instant::now();
    let checkpoint = load(&folder)?;
    let weights = checkpoint.weights.shallow_clone();
    let model = Transformer::new(checkpoint.config.clone(), weights)?;
    let subject = Subject::of(&checkpoint, &model);
    println!("{}", json!({ "load_seconds": begun.elapsed().as_secs_f64() }));
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| Error::Input(error.to_string()))?;
        let request: Request =
            serde_json::from_str(&line).map_err(|error| Error::Input(error.to_string()))?;
        let answer = match request {
            Request::Jobs { jobs } => run(&jobs, &subject)?,
            Request::Matmul { matmul } => flops(matmul),
        };
        println!("{answer}");
    }
    Ok(())
}

fn load(folder: &Path) -> Result<Checkpoint> {
    let unreadable =
        |error: &dyn std::fmt::Display| Error::Input(format!("{}: {error}", folder.display()));
    let names = ["config.json", "model.safetensors"];
    let files: BTreeMap<String, PathBuf> =
        names.iter().map(|name| ((*name).to_owned(), folder.join(name))).collect();
    let json = fs::read(&files["config.json"]).map_err(|error| unreadable(&error))?;
    let json: Json = serde_json::from_slice(&json).map_err(|error| unreadable(&error))?;
    let tensors = TensorFiles::open(&files)?;
    let (config, weights) = families::load(&json, None, &tensors, Kind::Float, Device::Cpu)?;
    Ok(Checkpoint { config, weights, step: 0, extra: Json::Null, weights_hash: String::new() })
}

fn run(jobs: &[Job], subject: &Subject<'_>) -> Result<Json> {
    let mut sinks: Vec<MemorySink> = jobs.iter().map(|_| MemorySink::default()).collect();
    let (begun, computed) = (Instant::now(), seconds_computed());
    let mut work = Vec::with_capacity(jobs.len());
    for (job, sink) in jobs.iter().zip(&mut sinks) {
        let experiment = EXPERIMENTS.iter().find(|experiment| experiment.card().name == job.name);
        let experiment =
            *experiment.ok_or_else(|| Error::Input(format!("no experiment `{}`", job.name)))?;
        work.push(AnalyseJob { experiment, params: &job.params, sink });
    }
    for result in analyse(&mut work, subject) {
        result?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_seconds = seconds_computed() - computed;
    let mut metrics = BTreeMap::new();
    for (job, sink) in jobs.iter().zip(sinks) {
        for (name, points) in sink.metrics {
            let value = points.into_values().next();
            let data = value.map(|value| value.data).unwrap_or_default();
            metrics.insert(format!("{}.{name}", job.name), data);
        }
    }
    Ok(json!({ "seconds": seconds, "cpu_seconds": cpu_seconds, "metrics": metrics }))
}

/// Seconds that this thread has computed, by the Linux scheduler: other work on the machine does not count.
fn seconds_computed() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}

/// Floating-point operations per second of a matrix product by the fastest of the ways that libtorch has: the BLAS, and
/// oneDNN's convolutions of one pixel, plain and transposed.
fn flops([m, k, n]: [i64; 3]) -> Json {
    let options = (Kind::Float, Device::Cpu);
    let (a, b) = (Tensor::rand([m, k], options), Tensor::rand([k, n], options));
    let is_single = tch::get_num_threads() == 1;
    let pixels = a.view([1, m, 1, k]).permute([0, 3, 1, 2]);
    let kernels = b.transpose(0, 1).contiguous().view([n, k, 1, 1]);
    let turned = b.view([k, n, 1, 1]);
    let once = |way: usize| {
        let (begun, computed) = (Instant::now(), seconds_computed());
        let (none, one, zero) = (None::<Tensor>, [1i64, 1], [0i64, 0]);
        drop(match way {
            0 => a.matmul(&b),
            1 => pixels.mkldnn_convolution(&kernels, none, zero, one, one, 1),
            _ => pixels.conv_transpose2d(&turned, none, one, zero, zero, 1, one),
        });
        if is_single { seconds_computed() - computed } else { begun.elapsed().as_secs_f64() }
    };
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..9 {
        for (way, times) in times.iter_mut().enumerate() {
            times.push(once(way));
        }
    }
    let of_fastest = |place: usize| {
        let times = times.iter_mut().map(|times| {
            times.sort_by(f64::total_cmp);
            times[place]
        });
        2.0 * (m * k * n) as f64 / times.fold(f64::INFINITY, f64::min)
    };
    let [best, sustained] = [0, 4].map(of_fastest);
    json!({ "best": best, "sustained": sustained })
}
