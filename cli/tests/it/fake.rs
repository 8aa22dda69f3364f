//! A coordinator in this process: answers from plain lists, remembers what it was asked to do.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use futures::stream::{self, BoxStream, StreamExt};
use sweep_proto::{
    catalog,
    pb::{
        self, SweepState,
        catalog_service_server::{CatalogService, CatalogServiceServer},
        metrics_service_server::{MetricsService, MetricsServiceServer},
        sweep_service_server::{SweepService, SweepServiceServer},
    },
    spec::SweepSpec,
};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What the coordinator knows and was asked.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) sweeps: Vec<pb::SweepStatus>,
    pub(crate) series: Vec<pb::Series>,
    pub(crate) tasks: Vec<pb::TaskInfo>,
    pub(crate) artifacts: Vec<pb::ArtifactInfo>,
    pub(crate) logs: Vec<pb::LogLine>,
    pub(crate) workers: Vec<pb::WorkerInfo>,
    /// Specs that were submitted.
    pub(crate) submitted: Vec<String>,
    /// Statuses of one watch; the stream ends after them.
    pub(crate) watch: Vec<pb::SweepStatus>,
    /// A watch stays open after its statuses, as long as this is set.
    pub(crate) watch_stays: bool,
    /// The next `List` of sweeps is answered by a coordinator that is just stopping.
    pub(crate) stopping: bool,
    /// Axes that `List` does not tell (a metric that appears later).
    pub(crate) unlisted: Vec<String>,
}

/// Shared with the server.
#[derive(Clone, Default)]
pub(crate) struct Fake(pub(crate) Arc<Mutex<State>>);

/// A running server; it stops when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    pub(crate) fn start(&self) -> Server {
        self.start_on("127.0.0.1:0")
    }

    /// Starts on a given address.
    pub(crate) fn start_on(&self, address: &str) -> Server {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let fake = self.clone();
        let address: SocketAddr = address.parse().unwrap();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let serving = tonic::transport::Server::builder()
                    .add_service(SweepServiceServer::new(fake.clone()))
                    .add_service(MetricsServiceServer::new(fake.clone()))
                    .add_service(CatalogServiceServer::new(fake))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                // Dropping the server cuts every connection, as a crash would.
                tokio::select! {
                    result = serving => result.unwrap(),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        let url = format!("http://{}", told.recv().unwrap());
        Server { url, stop: Some(stop), thread: Some(thread) }
    }

    fn find(&self, name: &str) -> Result<pb::SweepStatus, Status> {
        let state = self.0.lock().unwrap();
        let fits = |sweep: &&pb::SweepStatus| name == "last" || sweep.sweep.starts_with(name);
        let found = state.sweeps.iter().rev().find(fits);
        found.cloned().ok_or_else(|| Status::not_found(format!("no sweep `{name}`")))
    }
}

impl Server {
    /// Cuts all connections and frees the port.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Many<T> = BoxStream<'static, Result<T, Status>>;

fn many<T: Send + 'static>(items: Vec<T>) -> Many<T> {
    stream::iter(items.into_iter().map(Ok)).boxed()
}

#[tonic::async_trait]
impl SweepService for Fake {
    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Answer<pb::SubmitResponse> {
        let spec = request.into_inner().spec;
        let decoded = SweepSpec::decode(&serde_json::from_str(&spec).unwrap()).unwrap();
        let sweep = decoded.id();
        let created = self.find(&sweep).is_err();
        self.with(|state| {
            if created {
                let status = pb::SweepStatus {
                    sweep: sweep.clone(),
                    name: decoded.name.clone(),
                    state: SweepState::Running as i32,
                    spec: spec.clone(),
                    ..Default::default()
                };
                state.sweeps.push(status);
            }
            state.submitted.push(spec);
        });
        let plan =
            pb::PlanResponse { sweep: sweep.clone(), train: 1, models: 1, ..Default::default() };
        Ok(Response::new(pb::SubmitResponse { sweep, created, plan: Some(plan) }))
    }

    async fn plan(&self, request: Request<pb::SubmitRequest>) -> Answer<pb::PlanResponse> {
        let spec = serde_json::from_str(&request.into_inner().spec).unwrap();
        let sweep = SweepSpec::decode(&spec).unwrap().id();
        let labels = vec!["a-seed0".to_owned(), "a-seed1".to_owned()];
        Ok(Response::new(pb::PlanResponse {
            sweep,
            exists: true,
            models: 30,
            train: 30,
            analyse: 120_000,
            compare: 0,
            trajectory: 60,
            done: 7,
            checkpoints: 1200,
            model_labels: labels,
        }))
    }

    async fn list(&self, _: Request<pb::ListSweepsRequest>) -> Answer<pb::ListSweepsResponse> {
        if self.with(|state| std::mem::take(&mut state.stopping)) {
            return Err(Status::unavailable("stopping"));
        }
        let sweeps = self.with(|state| state.sweeps.clone());
        Ok(Response::new(pb::ListSweepsResponse { sweeps }))
    }

    async fn get(&self, request: Request<pb::GetSweepRequest>) -> Answer<pb::SweepStatus> {
        Ok(Response::new(self.find(&request.into_inner().sweep)?))
    }

    type WatchStream = Many<pb::SweepStatus>;

    async fn watch(&self, request: Request<pb::GetSweepRequest>) -> Answer<Self::WatchStream> {
        self.find(&request.into_inner().sweep)?;
        let (statuses, stays) = self.with(|state| (state.watch.clone(), state.watch_stays));
        let stream = many(statuses);
        if !stays {
            return Ok(Response::new(stream));
        }
        let fake = self.clone();
        let open = async move {
            while fake.with(|state| state.watch_stays) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let end = stream::once(open).filter_map(|()| std::future::ready(None));
        Ok(Response::new(stream.chain(end).boxed()))
    }

    type TasksStream = Many<pb::TaskInfo>;

    async fn tasks(&self, request: Request<pb::TasksRequest>) -> Answer<Self::TasksStream> {
        let request = request.into_inner();
        let fits = |task: &&pb::TaskInfo| request.state.is_empty() || task.state == request.state;
        let limit = request.limit as usize;
        let tasks = self.with(|s| s.tasks.iter().filter(fits).take(limit).cloned().collect());
        Ok(Response::new(many(tasks)))
    }

    type LogsStream = Many<pb::LogLine>;

    async fn logs(&self, request: Request<pb::LogsRequest>) -> Answer<Self::LogsStream> {
        let task = request.into_inner().task;
        let fits = |line: &&pb::LogLine| line.label.contains(&task);
        Ok(Response::new(many(self.with(|s| s.logs.iter().filter(fits).cloned().collect()))))
    }

    type ArtifactsStream = Many<pb::ArtifactInfo>;

    async fn artifacts(&self, _: Request<pb::GetSweepRequest>) -> Answer<Self::ArtifactsStream> {
        Ok(Response::new(many(self.with(|state| state.artifacts.clone()))))
    }

    async fn cancel(&self, request: Request<pb::GetSweepRequest>) -> Answer<pb::SweepStatus> {
        let mut status = self.find(&request.into_inner().sweep)?;
        if status.state() == SweepState::Done {
            return Err(Status::failed_precondition(format!("{} has ended", status.sweep)));
        }
        status.state = SweepState::Cancelled as i32;
        Ok(Response::new(status))
    }

    async fn retry(&self, request: Request<pb::GetSweepRequest>) -> Answer<pb::SweepStatus> {
        let mut status = self.find(&request.into_inner().sweep)?;
        status.state = SweepState::Running as i32;
        Ok(Response::new(status))
    }

    async fn workers(&self, _: Request<pb::WorkersRequest>) -> Answer<pb::WorkersResponse> {
        let workers = self.with(|state| state.workers.clone());
        Ok(Response::new(pb::WorkersResponse { workers }))
    }
}

#[tonic::async_trait]
impl MetricsService for Fake {
    async fn list(&self, _: Request<pb::ListMetricsRequest>) -> Answer<pb::ListMetricsResponse> {
        let metrics = self.with(|state| {
            let listed = state.series.iter().filter(|s| !state.unlisted.contains(&s.metric));
            let summary = |series: &pb::Series| pb::MetricSummary {
                metric: series.metric.clone(),
                unit: series.unit.clone(),
                axes: series.axes.clone(),
            };
            listed.map(summary).collect()
        });
        Ok(Response::new(pb::ListMetricsResponse { metrics }))
    }

    type QueryStream = Many<pb::Series>;

    async fn query(&self, request: Request<pb::QueryRequest>) -> Answer<Self::QueryStream> {
        let request = request.into_inner();
        let prefix = request.metric.trim_end_matches('*').to_owned();
        let exact = prefix == request.metric && !prefix.is_empty();
        let fits = |series: &&pb::Series| {
            let model = request.model.is_empty() || series.model == request.model;
            let metric = if exact {
                series.metric == request.metric
            } else {
                series.metric.starts_with(&prefix)
            };
            model && metric
        };
        let mut found: Vec<pb::Series> =
            self.with(|state| state.series.iter().filter(fits).cloned().collect());
        if request.latest {
            for series in &mut found {
                let block = series.values.len() / series.steps.len();
                series.steps.drain(..series.steps.len() - 1);
                series.values.drain(..series.values.len() - block);
            }
        }
        Ok(Response::new(many(found)))
    }
}

#[tonic::async_trait]
impl CatalogService for Fake {
    async fn get(&self, _: Request<pb::CatalogRequest>) -> Answer<pb::Catalog> {
        Ok(Response::new(catalog::embedded()))
    }
}

/// A sweep of two seeds in mid-run, with values that a reader can check by eye.
pub(crate) fn example() -> Fake {
    let counts = |total, done, running, failed| {
        Some(pb::Counts {
            total,
            done,
            running,
            failed,
            waiting: total - done - running - failed,
            ..Default::default()
        })
    };
    let status = pb::SweepStatus {
        sweep: "grokking-0123456789".into(),
        name: "grokking".into(),
        state: SweepState::Running as i32,
        total: counts(174, 41, 2, 1),
        train: counts(2, 0, 1, 1),
        analyse: counts(164, 41, 1, 0),
        compare: counts(0, 0, 0, 0),
        trajectory: counts(8, 0, 0, 0),
        submitted_at: 1_700_000_000_000,
        ended_at: 1_700_000_083_000,
        running: vec![pb::RunningTask {
            label: "modular-addition-seed0/train".into(),
            worker: "w1".into(),
            attempt: (1 << 32) | 3,
            progress: 1200,
            progress_total: 4000,
            started_at: 1_700_000_001_000,
            ..Default::default()
        }],
        failures: vec![pb::TaskFailure {
            label: "modular-addition-seed1/train".into(),
            attempt: (1 << 32) | 4,
            failure: Some(pb::Failure {
                class: pb::FailureClass::Permanent as i32,
                message: "loss is NaN at step 300".into(),
            }),
            r#final: true,
            ..Default::default()
        }],
        spec: serde_json::json!({
            "name": "grokking",
            "models": [{ "train": { "recipe": "modular-addition" } }],
            "experiments": ["grokking-progress"],
        })
        .to_string(),
        workers: 1,
        rate: 1.5,
        artifact_root: "memory://".into(),
    };
    let fake = Fake::default();
    fake.with(|state| {
        state.sweeps.push(status);
        state.series = series();
        state.tasks = tasks();
        state.logs = vec![pb::LogLine {
            label: "modular-addition-seed1/train".into(),
            attempt: (1 << 32) | 4,
            time: 1_700_000_002_000,
            level: "warn".into(),
            text: "loss is NaN".into(),
            worker: "w1".into(),
        }];
        state.workers = vec![pb::WorkerInfo {
            worker: "w1".into(),
            name: "laptop".into(),
            device: "cpu".into(),
            slots: 2,
            busy: 2,
            state: "ready".into(),
            last_seen_ms_ago: 1200,
            spool_bytes: 4096,
            tasks_done: 41,
            code_version: "0.1.0".into(),
        }];
    });
    fake
}

fn series() -> Vec<pb::Series> {
    let mut all = Vec::new();
    let analyse = pb::task_key::Kind::Analyse(pb::AnalyseKey::default());
    let trajectory = pb::task_key::Kind::Trajectory(pb::TrajectoryKey::default());
    let mut add =
        |metric: &str, unit: &str, kind: Option<pb::task_key::Kind>, values: [[f64; 2]; 2]| {
            for (model, values) in (0u32..).zip(values) {
                all.push(pb::Series {
                    metric: metric.into(),
                    unit: unit.into(),
                    model_index: model,
                    model: format!("modular-addition-seed{model}"),
                    seed: Some(u64::from(model)),
                    experiment: metric.split('.').next().unwrap().into(),
                    version: 1,
                    params: "{}".into(),
                    task: Some(pb::TaskKey { kind, ..Default::default() }),
                    steps: vec![0, 100],
                    values: values.to_vec(),
                    ..Default::default()
                });
            }
        };
    let nan = f64::NAN;
    let progress = "grokking-progress";
    add(
        &format!("{progress}.test_acc"),
        "probability",
        Some(analyse),
        [[0.0142, 0.9987], [0.01, 1.0]],
    );
    add(&format!("{progress}.test_loss"), "nats", Some(analyse), [[4.262, 0.004_25], [4.3, nan]]);
    add("modular-addition.train_loss", "nats", None, [[4.27, 1.25e-7], [4.3, f64::INFINITY]]);
    add("grokking-phases.grokked_step", "steps", Some(trajectory), [[nan, 1480.0], [nan, nan]]);
    let mut map = all[0].clone();
    map.metric = "grokking-progress.cos_coefficient".into();
    map.unit = "logit".into();
    let labels: Vec<String> = (1..=10).map(|k| k.to_string()).collect();
    map.axes = vec![pb::Axis { name: "frequency".into(), size: 10, labels }];
    map.values = (0..20).map(|i| f64::from(i) / 4.0).collect();
    all.insert(0, map);
    all.sort_by(|a, b| (&a.metric, a.model_index).cmp(&(&b.metric, b.model_index)));
    all
}

fn tasks() -> Vec<pb::TaskInfo> {
    let done = pb::TaskInfo {
        label: "modular-addition-seed0/step100/grokking-progress".into(),
        model: "modular-addition-seed0".into(),
        seed: Some(0),
        experiment: "grokking-progress".into(),
        state: "done".into(),
        attempt: (1 << 32) | 9,
        worker: "w1".into(),
        elapsed_ms: 340,
        finished_at: 1_700_000_020_000,
        ..Default::default()
    };
    let failure = pb::Failure {
        class: pb::FailureClass::Permanent as i32,
        message: "loss is NaN at step 300".into(),
    };
    let failed = pb::TaskInfo {
        label: "modular-addition-seed1/train".into(),
        model: "modular-addition-seed1".into(),
        seed: Some(1),
        experiment: "modular-addition".into(),
        state: "failed".into(),
        worker: "w2".into(),
        failures: vec![failure],
        elapsed_ms: 61_000,
        attempt: (1 << 32) | 4,
        ..done.clone()
    };
    let waiting = pb::TaskInfo {
        label: "modular-addition-seed0/trajectory/pca".into(),
        experiment: "pca".into(),
        state: "waiting".into(),
        attempt: 0,
        worker: String::new(),
        elapsed_ms: 0,
        finished_at: 0,
        ..done.clone()
    };
    vec![done, failed, waiting]
}
