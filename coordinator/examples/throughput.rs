//! Measures the coordinator without a network: no-op task lifecycles and durable metric points per
//! second, through actor, core and the durable store. Run it with
//! `cargo run --release -p sweep-coordinator --example throughput`.

use std::{
    collections::HashSet,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use sweep_coordinator::{
    actor::{self, Handle},
    clock::SystemClock,
    core::{
        Core, CoreConfig,
        event::{Answer, Body, Event, Hello, Record, Wish},
        plan::Plan,
        time::Now,
    },
    store::{Store, metrics},
};
use sweep_proto::{
    id::{Attempt, TaskKey},
    pb,
    timing::LeaseTiming,
};

/// Workers that ask at the same time.
const WORKERS: usize = 16;
/// Tasks of the lifecycle part.
const TASKS: usize = 20_000;
/// Chunks of the metrics part, and points of each.
const CHUNKS: u64 = 2_000;
const POINTS: u64 = 500;

fn catalog() -> pb::Catalog {
    let lr = pb::Param {
        name: "lr".into(),
        kind: "float".into(),
        default: "0.1".into(),
        ..Default::default()
    };
    let recipe =
        pb::Recipe { name: "r".into(), version: 1, params: vec![lr], ..Default::default() };
    pb::Catalog { recipes: vec![recipe], experiments: vec![] }
}

async fn join(handle: &Handle, name: String) -> String {
    let hello = Hello { instance: "1".into(), name, catalog: catalog(), ..Hello::default() };
    match handle.call(0, move |request| Event::Register { request, hello }).await {
        Ok(Answer::Registered(worker)) => worker,
        other => panic!("{other:?}"),
    }
}

async fn acquire(handle: &Handle, worker: &str) -> Option<Box<pb::Lease>> {
    let wish =
        Wish { worker: worker.to_owned(), training: true, resident: Arc::new(HashSet::new()) };
    let wait = Duration::ZERO;
    match handle.call(0, move |request| Event::Acquire { request, wish, wait }).await {
        Ok(Answer::Lease(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

async fn report(handle: &Handle, worker: &str, records: Vec<Record>) {
    let worker = worker.to_owned();
    let records = records.into_iter().map(Ok).collect();
    match handle.call(0, move |request| Event::Report { request, worker, records }).await {
        Ok(Answer::Verdicts(verdicts)) => {
            assert!(verdicts.iter().all(|verdict| *verdict == pb::Verdict::Accepted));
        }
        other => panic!("{other:?}"),
    }
}

fn record(lease: &pb::Lease, sequence: u64, body: Body) -> Record {
    let Some(pb::lease::Work::Train(work)) = &lease.work else { panic!("no training") };
    let key = work.seeds[0].task.as_ref().expect("every seed has a task");
    let (sweep, task): (String, TaskKey) = TaskKey::from_pb(key).expect("the key is whole");
    Record { attempt: Attempt(lease.attempt), sequence, sweep, task, body }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout();
    let folder = tempfile::tempdir()?;
    let store = Store::open(&folder.path().join("store"))?;
    let config = CoreConfig {
        timing: LeaseTiming::from_ttl(Duration::from_mins(1))?,
        retry: sweep_coordinator::core::retry::RetryPolicy::default(),
        artifact_root: String::new(),
    };
    let now = Now { mono: Duration::ZERO, unix_ms: 0 };
    let core = Core::restore(config, store.begin()?, now)?;
    let (handle, thread) = actor::spawn(core, store.clone(), Arc::new(SystemClock::start()))?;

    let rates: Vec<f64> = (1..=10_000).map(f64::from).collect();
    let train = json!({ "recipe": "r", "params": { "lr": rates }, "seeds": 1000 });
    let document = json!({ "name": "bench", "models": [{ "train": train }] });
    let before = Instant::now();
    let plan =
        Arc::new(Plan::resolve(&document, &catalog(), 10_000_000).map_err(|p| p.join("\n"))?);
    handle.call(0, move |request| Event::Submit { request, plan }).await?;
    writeln!(out, "submit of 10000000 tasks: {:?}", before.elapsed())?;

    let before = Instant::now();
    let workers: Vec<_> = (0..WORKERS)
        .map(|index| {
            let handle = handle.clone();
            tokio::spawn(async move {
                let worker = join(&handle, format!("w{index}")).await;
                for _ in 0..TASKS / WORKERS {
                    let lease = acquire(&handle, &worker).await.expect("there is work");
                    let started = Body::Started { resumed_from: None };
                    let done = Body::Done(pb::Manifest::default());
                    let records = vec![record(&lease, 1, started), record(&lease, 2, done)];
                    report(&handle, &worker, records).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await?;
    }
    let rate = TASKS as f64 / before.elapsed().as_secs_f64();
    writeln!(out, "no-op task lifecycles, {WORKERS} workers, durable: {rate:.0} per second")?;

    let worker = join(&handle, "metrics".to_owned()).await;
    let lease = acquire(&handle, &worker).await.expect("there is work");
    let before = Instant::now();
    for group in 0..CHUNKS / 20 {
        let records = (0..20).map(|index| {
            let first = (group * 20 + index) * POINTS;
            let steps: Vec<u64> = (first..first + POINTS).collect();
            let chunk = pb::MetricChunk {
                reading: None,
                metric: "r.loss".into(),
                unit: "nats".into(),
                axes: vec![],
                values: steps.iter().map(|step| (*step as f64 * 0.01).sin()).collect(),
                steps,
            };
            let body = Body::Metrics(metrics::encode(&chunk).expect("the chunk is sound"));
            record(&lease, group * 20 + index, body)
        });
        report(&handle, &worker, records.collect()).await;
    }
    let rate = (CHUNKS * POINTS) as f64 / before.elapsed().as_secs_f64();
    writeln!(out, "metric points, one worker, {POINTS} per chunk, durable: {rate:.0} per second")?;

    let before = Instant::now();
    let mut points = 0;
    metrics::SeriesReader::new(&store, 1, "r.loss", false).read(
        |_| true,
        |part| {
            points += part.steps.len();
            true
        },
    )?;
    let rate = points as f64 / before.elapsed().as_secs_f64();
    writeln!(out, "metric points read, {points} in one series: {rate:.0} per second")?;
    handle.stop();
    thread.join().map_err(|_| "the writer thread panicked")??;
    Ok(())
}
