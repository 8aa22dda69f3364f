//! The services over a real socket, with the durable store behind them.

use std::time::{Duration, Instant};

use serde_json::json;
use sweep_proto::pb::{self, catalog_service_client::CatalogServiceClient, record::Body};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{Client, Server, Worker, chunk, collect, settings, sweep_file, tasks};

/// A coordinator with the sweep submitted and one worker.
async fn with_worker(data: &std::path::Path) -> (Server, Client, Worker, String) {
    let server = Server::start(settings(data)).await;
    let mut client = server.client().await;
    let worker = Worker::join(&client, "a", "1").await;
    let sweep = client.submit(&sweep_file()).await.unwrap().sweep;
    (server, client, worker, sweep)
}

#[tokio::test]
async fn a_sweep_runs_to_its_end_and_everything_is_readable() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client, mut worker, sweep) = with_worker(data.path()).await;
    let request = pb::GetSweepRequest { sweep: sweep.clone() };
    let watched = client.sweeps.watch(request.clone()).await.unwrap().into_inner();
    let watched = tokio::spawn(collect(watched));
    while let Some(lease) = worker.acquire(0).await {
        worker.work(&lease).await;
    }
    let statuses = watched.await.unwrap();
    assert_eq!(statuses.last().unwrap().state(), pb::SweepState::Done);
    assert!(statuses.len() >= 2, "one at once, one at the end");

    let status = client.status("last").await;
    assert_eq!(status.total.unwrap().done, 10);
    assert_eq!((status.workers, status.name.as_str()), (1, "it"));
    assert!(status.ended_at >= status.submitted_at && status.submitted_at > 1_600_000_000_000);

    let series = client
        .query(pb::QueryRequest {
            sweep: "it".into(),
            metric: "*.loss".into(),
            ..Default::default()
        })
        .await;
    assert_eq!(series.len(), 2);
    assert_eq!(series[1].model, "test-recipe-seed1");
    assert_eq!((series[0].seed, series[1].seed), (Some(0), Some(1)));
    assert_eq!(series[0].steps, [0, 100, 200]);
    assert_eq!(series[0].values, [0.0, 12.5, 25.0]);
    let model = "test-recipe-seed1".to_owned();
    let latest = client
        .query(pb::QueryRequest { sweep: sweep.clone(), model, latest: true, ..Default::default() })
        .await;
    let names: Vec<_> = latest.iter().map(|s| (s.metric.as_str(), s.steps.clone())).collect();
    assert_eq!(names, [("probe.score", vec![200]), ("test-recipe.loss", vec![200])]);
    assert_eq!((latest[0].experiment.as_str(), latest[0].version), ("probe", 1));
    assert_eq!(latest[0].params, "{}");
    let listed = client.metrics.list(pb::ListMetricsRequest { sweep: sweep.clone() }).await;
    assert_eq!(listed.unwrap().into_inner().metrics.len(), 2);

    let infos =
        client.sweeps.tasks(pb::TasksRequest { sweep: sweep.clone(), ..Default::default() });
    let infos = collect(infos.await.unwrap().into_inner()).await;
    assert_eq!(infos.len(), 10);
    assert_eq!(infos[1].label, "test-recipe-seed0/step0/probe");
    assert!(infos.iter().all(|t| t.state == "done" && t.elapsed_ms == 7 && t.worker == "a"));

    let files = collect(client.sweeps.artifacts(request).await.unwrap().into_inner()).await;
    let place = |file: &pb::ArtifactInfo| {
        let name = file.file.as_ref().unwrap().name.clone();
        format!("{}/{}/{}/{name}", file.model, file.checkpoint, file.experiment)
    };
    let places: Vec<String> = files.iter().map(place).collect();
    assert_eq!(places.len(), 16);
    for expected in [
        "test-recipe-seed0/train/test-recipe/result.json",
        "test-recipe-seed0/step100/probe/result.json",
        "test-recipe-seed1/trajectory/trace/result.json",
        "test-recipe-seed1/step200/train/model.safetensors",
    ] {
        assert!(places.iter().any(|place| place == expected), "{expected} is missing: {places:#?}");
    }
    let logs = pb::LogsRequest { sweep, task: "seed1/trajectory".into() };
    let logs = collect(client.sweeps.logs(logs).await.unwrap().into_inner()).await;
    assert_eq!(logs.len(), 1);
    assert_eq!((logs[0].text.as_str(), logs[0].worker.as_str()), ("fitted", "a"));
    server.stop().await;
}

#[tokio::test]
async fn results_of_pairs_name_both_checkpoints() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(settings(data.path())).await;
    let mut client = server.client().await;
    let mut worker = Worker::join(&client, "a", "1").await;
    let mut file = sweep_file();
    file["compare"] = json!([
        { "match": { "pairs": "seeds", "at": "all" } },
        { "match": { "pairs": "consecutive" } },
    ]);
    file["trajectory"] = json!(["rank"]);
    let answer = client.submit(&file).await.unwrap();
    let plan = answer.plan.unwrap();
    assert_eq!((plan.compare, plan.trajectory), (3 + 4, 1));
    while let Some(lease) = worker.acquire(0).await {
        worker.work(&lease).await;
    }
    let status = client.status("last").await;
    assert_eq!(status.state(), pb::SweepState::Done);
    assert_eq!(status.compare.unwrap().done, 7);
    let request = pb::QueryRequest {
        sweep: answer.sweep.clone(),
        metric: "match.*".into(),
        ..Default::default()
    };
    let found = client.query(request).await;
    let shown: Vec<String> = found
        .iter()
        .map(|part| {
            assert_eq!((part.axes[0].name.as_str(), part.axes.len()), ("partner", 1));
            let label = &part.axes[0].labels[0];
            format!("{} {:?} {} {label}", part.model, part.steps, part.partner)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "test-recipe-seed0 [0] test-recipe-seed1 test-recipe-seed1@0",
            "test-recipe-seed0 [100] test-recipe-seed1 test-recipe-seed1@100",
            "test-recipe-seed0 [200] test-recipe-seed1 test-recipe-seed1@200",
            "test-recipe-seed0 [100] test-recipe-seed0 test-recipe-seed0@0",
            "test-recipe-seed0 [200] test-recipe-seed0 test-recipe-seed0@100",
            "test-recipe-seed1 [100] test-recipe-seed1 test-recipe-seed1@0",
            "test-recipe-seed1 [200] test-recipe-seed1 test-recipe-seed1@100",
        ]
    );
    assert_eq!(found[3].params, r#"{"pairs":"consecutive"}"#);
    let listed = client.metrics.list(pb::ListMetricsRequest { sweep: answer.sweep.clone() }).await;
    let listed = listed.unwrap().into_inner().metrics;
    let metric = listed.iter().find(|metric| metric.metric == "match.distance").unwrap();
    assert_eq!(metric.axes[0].name, "partner");
    let request = pb::GetSweepRequest { sweep: answer.sweep };
    let files = collect(client.sweeps.artifacts(request).await.unwrap().into_inner()).await;
    let places: Vec<String> =
        files.iter().map(|f| format!("{}/{}/{}", f.model, f.checkpoint, f.experiment)).collect();
    for expected in [
        "test-recipe-seed0/step200/match-pairs=seeds-at=all-test-recipe-seed1@200",
        "all/trajectory/rank",
    ] {
        assert!(places.iter().any(|place| place == expected), "{expected}: {places:#?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_same_file_is_the_same_sweep_also_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client, mut worker, sweep) = with_worker(data.path()).await;
    let again = client.submit(&sweep_file()).await.unwrap();
    assert_eq!((again.sweep.as_str(), again.created), (sweep.as_str(), false));
    while let Some(lease) = worker.acquire(0).await {
        worker.work(&lease).await;
    }
    worker.leave().await;
    server.stop().await;
    let server = Server::start(settings(data.path())).await;
    let mut client = server.client().await;
    let again = client.submit(&sweep_file()).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.plan.unwrap().done, 10);
    let mut worker = Worker::join(&client, "a", "2").await;
    assert!(worker.acquire(0).await.is_none(), "nothing runs again");
    assert_eq!(client.status(&sweep).await.state(), pb::SweepState::Done);
    server.stop().await;
}

#[tokio::test]
async fn a_worker_re_attaches_after_a_restart_and_its_results_arrive() {
    let data = tempfile::tempdir().unwrap();
    let (server, _, mut worker, sweep) = with_worker(data.path()).await;
    let lease = worker.acquire(0).await.unwrap();
    server.stop().await;
    let server = Server::start(settings(data.path())).await;
    let mut client = server.client().await;
    let mut other = Worker::join(&client, "b", "1").await;
    assert!(other.acquire(0).await.is_none(), "a worker may still be at it");
    worker.move_to(&client).await;
    let key = &tasks(&lease)[0];
    let record = worker.record(lease.attempt, key, chunk("test-recipe.loss", 0));
    assert_eq!(worker.report(vec![record.clone()]).await, [pb::Verdict::UnknownLease]);
    assert!(worker.beat(lease.attempt, tasks(&lease)).await.is_empty());
    assert_eq!(worker.report(vec![record]).await, [pb::Verdict::Accepted]);
    worker.work(&lease).await;
    assert_eq!(client.status(&sweep).await.train.unwrap().done, 2);
    server.stop().await;
}

#[tokio::test]
async fn a_clean_stop_without_leases_needs_no_grace() {
    let data = tempfile::tempdir().unwrap();
    let (server, _, worker, _) = with_worker(data.path()).await;
    drop(worker);
    server.stop().await;
    let server = Server::start(settings(data.path())).await;
    let client = server.client().await;
    let mut other = Worker::join(&client, "b", "1").await;
    assert!(other.acquire(0).await.is_some());
    server.stop().await;
}

#[tokio::test]
async fn a_waiting_worker_is_woken_by_a_submission() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(settings(data.path())).await;
    let mut client = server.client().await;
    let mut worker = Worker::join(&client, "a", "1").await;
    let waiting = tokio::spawn(async move { worker.acquire(20_000).await });
    // The call is on its way while this one is answered.
    client.status_of_nothing().await;
    let before = Instant::now();
    client.submit(&sweep_file()).await.unwrap();
    assert!(waiting.await.unwrap().is_some());
    assert!(before.elapsed() < Duration::from_secs(10), "not only when the time was up");
    server.stop().await;
}

impl Client {
    async fn status_of_nothing(&mut self) {
        let request = pb::GetSweepRequest { sweep: "last".into() };
        assert_eq!(self.sweeps.get(request).await.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test]
async fn a_lease_that_nobody_waits_for_any_more_goes_to_the_next() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(settings(data.path())).await;
    let mut client = server.client().await;
    let mut gone = Worker::join(&client, "gone", "1").await;
    let call = tokio::time::timeout(Duration::from_millis(300), gone.acquire(20_000)).await;
    assert!(call.is_err(), "the caller hangs up");
    let mut here = Worker::join(&client, "here", "1").await;
    client.submit(&sweep_file()).await.unwrap();
    // Both seeds: none of them is stuck with the caller that went away.
    let lease = here.acquire(2_000).await.expect("long before a lease expires");
    assert_eq!(tasks(&lease).len(), 2);
    assert!(client.status("last").await.failures.is_empty(), "nobody is to blame");
    server.stop().await;
}

#[tokio::test]
async fn expired_leases_are_fenced_over_the_wire() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client, mut zombie, sweep) = with_worker(data.path()).await;
    let lease = zombie.acquire(0).await.unwrap();
    let mut other = Worker::join(&client, "b", "1").await;
    // The lease time of these tests is 3 s; the zombie sends no heartbeat.
    let taken = other.acquire(10_000).await.expect("the lease expires while this call waits");
    assert!(taken.attempt > lease.attempt);
    let done = zombie.record(lease.attempt, &tasks(&lease)[0], Body::Done(pb::Manifest::default()));
    assert_eq!(zombie.report(vec![done]).await, [pb::Verdict::Fenced]);
    assert_eq!(zombie.beat(lease.attempt, tasks(&lease)).await, [lease.attempt]);
    other.work(&taken).await;
    let request = pb::QueryRequest { sweep: sweep.clone(), ..Default::default() };
    assert_eq!(client.query(request).await.len(), 2);
    let failures = client.status(&sweep).await.failures;
    assert_eq!(failures[0].failure.as_ref().unwrap().class(), pb::FailureClass::WorkerLost);
    server.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_reasons() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client, mut worker, sweep) = with_worker(data.path()).await;
    let mut bad = sweep_file();
    bad["experiments"] = json!(["prob", { "probe": { "kk": 1 } }]);
    bad["colour"] = json!("red");
    let status = client.submit(&bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("unknown key `colour`"), "{}", status.message());
    bad.as_object_mut().unwrap().remove("colour");
    let status = client.submit(&bad).await.unwrap_err();
    assert_eq!(status.message().lines().count(), 2, "{}", status.message());
    assert!(status.message().contains("did you mean `probe`?"));
    let huge = pb::SubmitRequest { spec: sweep_file().to_string(), max_tasks: 3 };
    let known = client.sweeps.plan(huge.clone()).await.unwrap().into_inner();
    assert!(known.exists, "limits are for new sweeps");
    let spec = sweep_file().to_string().replace("\"it\"", "\"other\"");
    let status = client.sweeps.submit(pb::SubmitRequest { spec, ..huge }).await.unwrap_err();
    assert!(status.message().contains("more than the limit of 3"), "{}", status.message());
    let junk = pb::SubmitRequest { spec: "{".into(), max_tasks: 0 };
    assert_eq!(client.sweeps.submit(junk).await.unwrap_err().code(), Code::InvalidArgument);

    let missing = pb::GetSweepRequest { sweep: "nothing".into() };
    assert_eq!(client.sweeps.cancel(missing.clone()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.sweeps.watch(missing).await.unwrap_err().code(), Code::NotFound);
    let state = pb::TasksRequest { sweep, state: "lazy".into(), ..Default::default() };
    assert_eq!(client.sweeps.tasks(state).await.unwrap_err().code(), Code::InvalidArgument);

    let nameless = pb::RegisterRequest::default();
    let status = client.workers.register(nameless).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let request = pb::AcquireRequest { worker: "nobody".into(), ..Default::default() };
    let status = client.workers.acquire(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().starts_with("UNKNOWN_WORKER"));
    let empty = pb::Record::default();
    assert_eq!(worker.report(vec![empty]).await, [pb::Verdict::Invalid]);
    server.stop().await;
}

#[tokio::test]
async fn large_reports_fit_and_waiting_tasks_are_listed_lazily() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client, mut worker, sweep) = with_worker(data.path()).await;
    let lease = worker.acquire(0).await.unwrap();
    let task = tasks(&lease)[0].clone();
    let metrics = |first: u64| {
        let steps: Vec<u64> = (first..first + 50_000).collect();
        Body::Metrics(pb::MetricChunk {
            reading: None,
            metric: "test-recipe.loss".into(),
            unit: "nats".into(),
            axes: vec![],
            values: steps.iter().map(|step| (*step as f64).sin()).collect(),
            steps,
        })
    };
    let records = (0..10).map(|i| worker.record(lease.attempt, &task, metrics(i * 50_000)));
    let records = records.collect();
    let verdicts = worker.report(records).await;
    assert!(verdicts.iter().all(|verdict| *verdict == pb::Verdict::Accepted));
    let request = pb::QueryRequest { sweep: sweep.clone(), ..Default::default() };
    let series = client.query(request).await;
    assert!(series.len() > 5, "long series come in several messages");
    let steps: Vec<u64> = series.iter().flat_map(|part| part.steps.iter().copied()).collect();
    assert_eq!(steps, (0..500_000).collect::<Vec<_>>());
    let values = series.iter().flat_map(|part| part.values.iter());
    assert!(values.zip(0u64..).all(|(value, step)| *value == (step as f64).sin()));
    let request =
        pb::TasksRequest { sweep, state: "waiting".into(), limit: 3, ..Default::default() };
    let waiting = collect(client.sweeps.tasks(request).await.unwrap().into_inner()).await;
    assert_eq!(waiting.len(), 3);
    server.stop().await;
}

#[tokio::test]
async fn cancel_ends_watchers_and_stop_ends_everything() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client, mut worker, sweep) = with_worker(data.path()).await;
    let lease = worker.acquire(0).await.unwrap();
    let request = pb::GetSweepRequest { sweep: sweep.clone() };
    let mut watched = client.sweeps.watch(request.clone()).await.unwrap().into_inner();
    assert_eq!(watched.next().await.unwrap().unwrap().state(), pb::SweepState::Running);
    let status = client.sweeps.cancel(request.clone()).await.unwrap().into_inner();
    assert_eq!(status.state(), pb::SweepState::Cancelled);
    assert_eq!(status.total.unwrap().cancelled, 10);
    let rest = collect(watched).await;
    assert_eq!(rest.last().unwrap().state(), pb::SweepState::Cancelled);
    assert_eq!(worker.beat(lease.attempt, tasks(&lease)).await, [lease.attempt]);
    client.sweeps.retry(request.clone()).await.unwrap();
    let listed = client.sweeps.list(pb::ListSweepsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.sweeps[0].state(), pb::SweepState::Running);
    // A watcher and a waiting worker do not keep the coordinator from stopping.
    let mut watched = client.sweeps.watch(request).await.unwrap().into_inner();
    watched.next().await.unwrap().unwrap();
    worker.acquire(0).await.unwrap();
    let call =
        pb::AcquireRequest { worker: worker.id.clone(), wait_ms: 30_000, ..Default::default() };
    let mut workers = client.workers.clone();
    let waiting = tokio::spawn(async move { workers.acquire(call).await });
    let before = Instant::now();
    server.stop().await;
    assert!(before.elapsed() < Duration::from_secs(4), "took {:?}", before.elapsed());
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test]
async fn health_reflection_and_catalogue_answer() {
    let data = tempfile::tempdir().unwrap();
    let (server, client, _worker, _) = with_worker(data.path()).await;
    let service = "sweep.v1.WorkerService".to_owned();
    let mut health = HealthClient::new(client.channel.clone());
    let health = health.check(HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(health.status, 1);
    let catalog =
        CatalogServiceClient::new(client.channel.clone()).get(pb::CatalogRequest {}).await;
    let catalog = catalog.unwrap().into_inner();
    assert!(catalog.recipes.iter().any(|recipe| recipe.name == "test-recipe"));
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut reflection = ServerReflectionClient::new(client.channel.clone());
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answers = collect(answers.into_inner()).await;
    let Some(MessageResponse::ListServicesResponse(services)) = &answers[0].message_response else {
        panic!("{answers:?}");
    };
    let names: Vec<&str> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["SweepService", "WorkerService", "MetricsService", "CatalogService"] {
        assert!(names.contains(&format!("sweep.v1.{name}").as_str()), "{names:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn tls_is_spoken_when_asked_for() {
    let data = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.pem();
    let mut settings = settings(data.path());
    settings.tls = Some((
        certificate.clone().into_bytes(),
        certified.signing_key.serialize_pem().into_bytes(),
    ));
    let server = Server::start(settings).await;
    let port = server.url.rsplit(':').next().unwrap();
    assert!(server.url.starts_with("https://"));
    let url = format!("https://localhost:{port}");
    let channel = sweep_proto::client::connect(&url, Some(certificate.as_bytes())).await.unwrap();
    let mut client = Client::new(channel);
    assert!(client.sweeps.list(pb::ListSweepsRequest {}).await.is_ok());
    assert!(sweep_proto::client::connect(&url, None).await.is_err(), "nobody signed that");
    server.stop().await;
}
