//! A coordinator on a free port, clients, and a worker that does as the test says.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};
use sweep_coordinator::{
    Coordinator, ServeError, clock::SystemClock, config::Settings, core::retry::RetryPolicy,
};
use sweep_proto::{
    id::{Attempt, TaskKey, artifact_key},
    pb::{
        self, metrics_service_client::MetricsServiceClient, record::Body,
        sweep_service_client::SweepServiceClient, worker_service_client::WorkerServiceClient,
    },
    timing::LeaseTiming,
};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Streaming, transport::Channel};

/// A catalogue with one recipe and two experiments.
pub(crate) fn catalog() -> pb::Catalog {
    let param = |name: &str, kind: &str, default: &str| pb::Param {
        name: name.into(),
        kind: kind.into(),
        default: default.into(),
        ..Default::default()
    };
    let experiment = |name: &str, stage: &str| pb::Experiment {
        name: name.into(),
        version: 1,
        stage: stage.into(),
        params: vec![param("k", "int", "3")],
        ..Default::default()
    };
    pb::Catalog {
        recipes: vec![pb::Recipe {
            name: "test-recipe".into(),
            version: 1,
            params: vec![param("steps", "int", "200")],
            population: 2,
            ..Default::default()
        }],
        experiments: vec![
            experiment("probe", "analyse"),
            experiment("trace", "trajectory"),
            experiment("match", "compare"),
            pb::Experiment { scope: "sweep".into(), ..experiment("rank", "trajectory") },
        ],
    }
}

/// Two seeds with checkpoints 0, 100, 200, one experiment, one trajectory: 10 tasks.
pub(crate) fn sweep_file() -> Value {
    json!({
        "name": "it",
        "models": [{
            "train": { "recipe": "test-recipe", "seeds": 2 },
            "checkpoints": { "every": 100 },
        }],
        "experiments": ["probe"],
        "trajectory": ["trace"],
    })
}

pub(crate) fn settings(data: &Path) -> Settings {
    Settings {
        data: data.to_owned(),
        artifacts: "file:///artifacts".into(),
        timing: LeaseTiming::from_ttl(Duration::from_secs(3)).unwrap(),
        retry: RetryPolicy::default(),
        max_tasks: 1_000_000,
        tls: None,
        fresh_store: false,
    }
}

/// A coordinator in this process.
pub(crate) struct Server {
    pub(crate) url: String,
    token: CancellationToken,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub(crate) async fn start(settings: Settings) -> Self {
        let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let token = CancellationToken::new();
        let clock = Arc::new(SystemClock::start());
        let tracker = TaskTracker::new();
        let coordinator =
            Coordinator::start(settings, listen, clock, token.clone(), tracker).await.unwrap();
        let url = coordinator.url().to_owned();
        Self { url, token, serving: tokio::spawn(coordinator.serve()) }
    }

    pub(crate) async fn stop(self) {
        self.token.cancel();
        self.serving.await.unwrap().unwrap();
    }

    pub(crate) async fn client(&self) -> Client {
        Client::new(sweep_proto::client::connect(&self.url, None).await.unwrap())
    }
}

/// Clients of all services.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) sweeps: SweepServiceClient<Channel>,
    pub(crate) workers: WorkerServiceClient<Channel>,
    pub(crate) metrics: MetricsServiceClient<Channel>,
    pub(crate) channel: Channel,
}

impl Client {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            sweeps: SweepServiceClient::new(channel.clone()),
            workers: WorkerServiceClient::new(channel.clone()),
            metrics: MetricsServiceClient::new(channel.clone()),
            channel,
        }
    }

    pub(crate) async fn submit(
        &mut self,
        file: &Value,
    ) -> Result<pb::SubmitResponse, tonic::Status> {
        let request = pb::SubmitRequest { spec: file.to_string(), max_tasks: 0 };
        self.sweeps.submit(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn status(&mut self, sweep: &str) -> pb::SweepStatus {
        let request = pb::GetSweepRequest { sweep: sweep.to_owned() };
        self.sweeps.get(request).await.unwrap().into_inner()
    }

    pub(crate) async fn query(&mut self, request: pb::QueryRequest) -> Vec<pb::Series> {
        collect(self.metrics.query(request).await.unwrap().into_inner()).await
    }
}

pub(crate) async fn collect<T>(mut stream: Streaming<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(message) = stream.next().await {
        all.push(message.unwrap());
    }
    all
}

/// A worker that does as it is told.
pub(crate) struct Worker {
    client: Client,
    pub(crate) id: String,
    name: String,
    instance: String,
    sequence: u64,
}

impl Worker {
    pub(crate) async fn join(client: &Client, name: &str, instance: &str) -> Self {
        let mut worker = Self {
            client: client.clone(),
            id: String::new(),
            name: name.into(),
            instance: instance.into(),
            sequence: 0,
        };
        worker.register().await;
        worker
    }

    /// The same process talks to a coordinator that was started again.
    pub(crate) async fn move_to(&mut self, client: &Client) {
        self.client = client.clone();
        self.register().await;
    }

    async fn register(&mut self) {
        let request = pb::RegisterRequest {
            instance: self.instance.clone(),
            name: self.name.clone(),
            catalog: Some(catalog()),
            slots: 1,
            ..Default::default()
        };
        self.id = self.client.workers.register(request).await.unwrap().into_inner().worker;
    }

    pub(crate) async fn acquire(&mut self, wait_ms: u32) -> Option<pb::Lease> {
        let worker = self.id.clone();
        let request = pb::AcquireRequest { worker, training: true, wait_ms, ..Default::default() };
        self.client.workers.acquire(request).await.unwrap().into_inner().lease
    }

    pub(crate) fn record(&mut self, attempt: u64, task: &pb::TaskKey, body: Body) -> pb::Record {
        self.sequence += 1;
        let (task, body) = (Some(task.clone()), Some(body));
        pb::Record { attempt, sequence: self.sequence, task, body }
    }

    pub(crate) async fn report(&mut self, records: Vec<pb::Record>) -> Vec<pb::Verdict> {
        let worker = self.id.clone();
        let request = pb::ReportRequest { worker, records };
        let answer = self.client.workers.report(request).await.unwrap().into_inner();
        answer.verdicts().collect()
    }

    pub(crate) async fn beat(&mut self, attempt: u64, tasks: Vec<pb::TaskKey>) -> Vec<u64> {
        let lease = pb::HeldLease { attempt, tasks, progress: 1, progress_total: 2 };
        let request = pb::HeartbeatRequest {
            worker: self.id.clone(),
            leases: vec![lease],
            ..Default::default()
        };
        self.client.workers.heartbeat(request).await.unwrap().into_inner().revoked
    }

    /// Does everything that a lease asks for, and asserts that it is accepted.
    pub(crate) async fn work(&mut self, lease: &pb::Lease) {
        let attempt = lease.attempt;
        let mut records = Vec::new();
        for task in tasks(lease) {
            let started = Body::Started(pb::Started { resumed_from: None });
            records.push(self.record(attempt, &task, started));
            match lease.work.as_ref().unwrap() {
                pb::lease::Work::Train(work) => {
                    for step in &work.publish_steps {
                        let metric = chunk("test-recipe.loss", *step);
                        records.push(self.record(attempt, &task, metric));
                        let file = Some(blob(&task, attempt, &format!("step{step}.safetensors")));
                        let weights_hash = format!("w{step}");
                        let checkpoint =
                            pb::Checkpoint { step: *step, file, weights_hash, imported: None };
                        records.push(self.record(attempt, &task, Body::Checkpoint(checkpoint)));
                    }
                }
                pb::lease::Work::Analyse(work) => {
                    let step = work.checkpoint.as_ref().unwrap().step;
                    records.push(self.record(attempt, &task, chunk("probe.score", step)));
                }
                pb::lease::Work::Compare(work) => {
                    let step = work.first.as_ref().unwrap().step;
                    records.push(self.record(attempt, &task, chunk("match.distance", step)));
                }
                pb::lease::Work::Import(_) => unreachable!("no test here imports"),
                pb::lease::Work::Trajectory(_) => {
                    let entry = pb::LogEntry { text: "fitted".into(), ..Default::default() };
                    records.push(self.record(attempt, &task, Body::Log(entry)));
                }
            }
            let artifacts = vec![blob(&task, attempt, "result.json")];
            let manifest = pb::Manifest { artifacts, elapsed_ms: 7, ..Default::default() };
            records.push(self.record(attempt, &task, Body::Done(manifest)));
        }
        let verdicts = self.report(records).await;
        assert!(verdicts.iter().all(|verdict| *verdict == pb::Verdict::Accepted), "{verdicts:?}");
    }

    pub(crate) async fn leave(mut self) {
        let worker = self.id.clone();
        self.client.workers.leave(pb::LeaveRequest { worker }).await.unwrap();
    }
}

/// One value, made from its step.
pub(crate) fn chunk(metric: &str, step: u64) -> Body {
    Body::Metrics(pb::MetricChunk {
        reading: None,
        metric: metric.into(),
        unit: "nats".into(),
        axes: vec![],
        steps: vec![step],
        values: vec![step as f64 / 8.0],
    })
}

pub(crate) fn blob(task: &pb::TaskKey, attempt: u64, name: &str) -> pb::Blob {
    let (sweep, key) = TaskKey::from_pb(task).unwrap();
    let key = artifact_key(&sweep, key, Attempt(attempt), name);
    pb::Blob { name: name.into(), key, size: 3, sha256: "00".into() }
}

pub(crate) fn tasks(lease: &pb::Lease) -> Vec<pb::TaskKey> {
    match lease.work.as_ref().unwrap() {
        pb::lease::Work::Train(work) => work.seeds.iter().filter_map(|s| s.task.clone()).collect(),
        pb::lease::Work::Analyse(work) => {
            work.tasks.iter().filter_map(|task| task.task.clone()).collect()
        }
        pb::lease::Work::Trajectory(work) => work.task.clone().into_iter().collect(),
        pb::lease::Work::Import(work) => work.task.clone().into_iter().collect(),
        pb::lease::Work::Compare(work) => {
            work.tasks.iter().filter_map(|task| task.task.clone()).collect()
        }
    }
}
