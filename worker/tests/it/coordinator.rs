//! A coordinator in this process that follows a script: hands out the leases that it was given,
//! answers as told, and writes down everything that it hears. Main type: [`Coordinator`].

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sweep_proto::{
    id::{TaskKey, TaskKind},
    pb::{
        self, Verdict,
        record::Body,
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// How long anything may take on a busy machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Lease time that the worker is told.
pub(crate) const TTL: Duration = Duration::from_millis(1200);
pub(crate) const SWEEP: &str = "scripted-0000000000";

/// How a kind of call is answered.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Answers,
    /// Not reached.
    Unavailable,
    /// Heartbeats only: the coordinator has restarted and knows nobody.
    Forgot,
    /// Reports only: the lease belongs to somebody else.
    Fences,
}

/// A record as it came in.
#[derive(Clone)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) record: pb::Record,
    pub(crate) verdict: Verdict,
    /// Of a checkpoint or trainer state, or of everything in a manifest: whether the files were in
    /// the artifact folder, whole, when the record came.
    pub(crate) stored: bool,
}

/// The script and what was heard.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) leases: VecDeque<pb::Lease>,
    pub(crate) heartbeats: Mood,
    pub(crate) reports: Mood,
    pub(crate) revoked: Vec<u64>,
    /// Attempts of leases that it does not know (yet).
    pub(crate) unknown: Vec<u64>,
    pub(crate) heard: Vec<Heard>,
    /// Heartbeats that were answered, and when.
    pub(crate) beats: Vec<(Instant, pb::HeartbeatRequest)>,
    pub(crate) registrations: Vec<pb::RegisterRequest>,
    pub(crate) acquires: usize,
    pub(crate) left: bool,
}

impl State {
    /// Bodies of the accepted records of an attempt, in order.
    pub(crate) fn accepted(&self, attempt: u64) -> Vec<Body> {
        let accepted = self.heard.iter().filter(|h| h.verdict == Verdict::Accepted);
        let own = accepted.filter(|heard| heard.record.attempt == attempt);
        own.map(|heard| heard.record.body.clone().unwrap()).collect()
    }

    /// The failure that ended a task of an attempt.
    pub(crate) fn failure(&self, attempt: u64) -> Option<pb::Failure> {
        self.accepted(attempt).into_iter().find_map(|body| match body {
            Body::Failed(failure) => Some(failure),
            _ => None,
        })
    }

    /// The checkpoints that an attempt published.
    pub(crate) fn checkpoints(&self, attempt: u64) -> Vec<pb::Checkpoint> {
        let published = self.accepted(attempt).into_iter().filter_map(|body| match body {
            Body::Checkpoint(checkpoint) => Some(checkpoint),
            _ => None,
        });
        published.collect()
    }

    /// Whether an attempt is done.
    pub(crate) fn is_done(&self, attempt: u64) -> bool {
        self.accepted(attempt).iter().any(|body| matches!(body, Body::Done(_)))
    }

    /// The last accepted trainer state.
    pub(crate) fn trainer_state(&self) -> Option<pb::TrainerState> {
        self.heard.iter().rev().find_map(|heard| match heard.record.body.as_ref()? {
            Body::TrainerState(state) if heard.verdict == Verdict::Accepted => Some(state.clone()),
            _ => None,
        })
    }
}

/// The scripted coordinator; a clone is the same one.
#[derive(Clone)]
pub(crate) struct Coordinator {
    state: Arc<Mutex<State>>,
    /// Below it lies the artifact folder.
    folder: Arc<tempfile::TempDir>,
    url: Arc<String>,
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let coordinator = Self {
            state: Arc::default(),
            folder: Arc::new(tempfile::tempdir().unwrap()),
            url: Arc::new(format!("http://{}", listener.local_addr().unwrap())),
        };
        let router = tonic::transport::Server::builder()
            .add_service(WorkerServiceServer::new(coordinator.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        coordinator
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where a key of the artifact store lies.
    pub(crate) fn artifact(&self, key: &str) -> std::path::PathBuf {
        self.folder().join("artifacts").join(key)
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let begun = Instant::now();
        while !self.with(|state| condition(state)) {
            assert!(begun.elapsed() < PATIENCE, "{what}: waited in vain");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn is_stored(&self, body: &Body) -> bool {
        let whole = |blob: &pb::Blob| {
            let bytes = std::fs::read(self.artifact(&blob.key)).unwrap_or_default();
            sweep_source::cache::sha256(&bytes) == blob.sha256 && bytes.len() as u64 == blob.size
        };
        match body {
            Body::Checkpoint(checkpoint) => checkpoint.file.as_ref().is_some_and(whole),
            Body::TrainerState(state) => state.file.as_ref().is_some_and(whole),
            Body::Done(manifest) => manifest.artifacts.iter().all(whole),
            _ => true,
        }
    }
}

/// A lease on the training of a small model.
pub(crate) fn training(attempt: u64, steps: u64, publish_steps: &[u64]) -> pb::Lease {
    let params = serde_json::json!({
        "p": 13, "frac_train": 0.5, "d_model": 16, "n_heads": 2, "d_mlp": 32, "lr": 0.003,
        "steps": steps,
    });
    let task = TaskKey { model: 0, kind: TaskKind::Source }.to_pb(SWEEP);
    let seed = pb::TrainSeed { task: Some(task), model: "m".into(), seed: 0, resume: None };
    let work = pb::TrainWork {
        recipe: "modular-addition".into(),
        version: 1,
        params: params.to_string(),
        seeds: vec![seed],
        publish_steps: publish_steps.to_vec(),
    };
    let work = Some(pb::lease::Work::Train(work));
    pb::Lease { attempt, sweep: SWEEP.into(), work }
}

/// A lease on `grokking-progress` of a checkpoint.
pub(crate) fn analysis(attempt: u64, checkpoint: pb::Checkpoint) -> pb::Lease {
    let kind = TaskKind::Analyse { step: checkpoint.step, experiment: 0 };
    let task = pb::AnalyseTask {
        task: Some(TaskKey { model: 0, kind }.to_pb(SWEEP)),
        experiment: "grokking-progress".into(),
        version: 1,
        params: "{}".into(),
    };
    let work = pb::AnalyseWork {
        model: "m".into(),
        checkpoint: Some(checkpoint),
        init: None,
        previous: None,
        tasks: vec![task],
        next: None,
    };
    let work = Some(pb::lease::Work::Analyse(work));
    pb::Lease { attempt, sweep: SWEEP.into(), work }
}

/// A lease on `pca` of the weights over checkpoints, which leaves a file.
pub(crate) fn trajectory(attempt: u64, checkpoints: Vec<pb::Checkpoint>) -> pb::Lease {
    let task = TaskKey { model: 0, kind: TaskKind::Trajectory { index: 0 } }.to_pb(SWEEP);
    let work = pb::TrajectoryWork {
        task: Some(task),
        model: "m".into(),
        model_index: 0,
        experiment: "pca".into(),
        version: 1,
        params: r#"{ "of": "weights", "save_basis": true }"#.into(),
        checkpoints,
        members: Vec::new(),
    };
    let work = Some(pb::lease::Work::Trajectory(work));
    pb::Lease { attempt, sweep: SWEEP.into(), work }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl WorkerService for Coordinator {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Answer<pb::RegisterResponse> {
        let worker = self.with(|state| {
            state.registrations.push(request.into_inner());
            format!("w{}", state.registrations.len())
        });
        Ok(Response::new(pb::RegisterResponse {
            worker,
            heartbeat_ms: TTL.as_millis() as u32 / 6,
            lease_ttl_ms: TTL.as_millis() as u32,
            artifact_root: format!("file://{}", self.folder().join("artifacts").display()),
        }))
    }

    async fn acquire(&self, _: Request<pb::AcquireRequest>) -> Answer<pb::AcquireResponse> {
        let lease = self.with(|state| {
            state.acquires += 1;
            state.leases.pop_front()
        });
        if lease.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Response::new(pb::AcquireResponse { lease }))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Answer<pb::HeartbeatResponse> {
        let request = request.into_inner();
        self.with(|state| match state.heartbeats {
            Mood::Forgot => {
                state.heartbeats = Mood::Answers;
                Err(Status::not_found("who are you?"))
            }
            Mood::Answers => {
                state.beats.push((Instant::now(), request));
                Ok(Response::new(pb::HeartbeatResponse { revoked: state.revoked.clone() }))
            }
            _ => Err(Status::unavailable("no")),
        })
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Answer<pb::ReportResponse> {
        let records = request.into_inner().records;
        let mut answer = pb::ReportResponse::default();
        let (mood, unknown) = self.with(|state| (state.reports, state.unknown.clone()));
        let mut is_lost = mood == Mood::Unavailable;
        for record in records {
            let stored = self.is_stored(record.body.as_ref().unwrap());
            let verdict = match mood {
                // After an unknown lease the rest is not looked at.
                _ if is_lost => Verdict::Unspecified,
                _ if unknown.contains(&record.attempt) => Verdict::UnknownLease,
                Mood::Fences => Verdict::Fenced,
                Mood::Answers | Mood::Unavailable | Mood::Forgot => Verdict::Accepted,
            };
            is_lost |= verdict == Verdict::UnknownLease;
            answer.verdicts.push(verdict as i32);
            let at = Instant::now();
            self.with(|state| state.heard.push(Heard { at, record, verdict, stored }));
        }
        if mood == Mood::Unavailable {
            Err(Status::unavailable("no"))
        } else {
            Ok(Response::new(answer))
        }
    }

    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Answer<pb::LeaveResponse> {
        self.with(|state| state.left = true);
        Ok(Response::new(pb::LeaveResponse {}))
    }
}
