//! Artifacts in a real S3 server (s3s-fs, which checks SigV4 signatures) behind a proxy that can
//! refuse, cut and delay.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use sweep_proto::pb::SweepState;
use sweep_tests::{Cluster, small_sweep};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

const HEALTHY: u8 = 0;
const REFUSE: u8 = 1;
const CUT: u8 = 2;
const SLOW: u8 = 3;

/// What the proxy does, and how often it has done harm.
#[derive(Default)]
struct Faults {
    mode: AtomicU8,
    harmed: AtomicU64,
}

impl Faults {
    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    fn is(&self, mode: u8) -> bool {
        self.mode.load(Ordering::SeqCst) == mode
    }

    fn harm(&self) {
        self.harmed.fetch_add(1, Ordering::SeqCst);
    }
}

/// Starts the S3 server on `root` and the proxy in front of it; returns the proxy's URL.
async fn serve(root: &std::path::Path, faults: Arc<Faults>) -> String {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = builder.build();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = server.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = server.accept().await.unwrap();
            let service = service.clone();
            tokio::spawn(async move {
                let executor = hyper_util::rt::TokioExecutor::new();
                let http = hyper_util::server::conn::auto::Builder::new(executor);
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = proxy.accept().await.unwrap();
            let faults = Arc::clone(&faults);
            tokio::spawn(async move {
                if faults.is(REFUSE) {
                    faults.harm();
                    return;
                }
                let server = TcpStream::connect(upstream).await.unwrap();
                tunnel(client, server, &faults).await;
            });
        }
    });
    url
}

/// Passes bytes on, until the mode says otherwise.
async fn tunnel(client: TcpStream, server: TcpStream, faults: &Faults) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 4096];
        let mut passed = 0;
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            if faults.is(REFUSE) || (faults.is(CUT) && passed > 0) {
                // In the middle of the upload: some of it has arrived.
                faults.harm();
                return;
            }
            if faults.is(SLOW) {
                faults.harm();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            passed += count;
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let down = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! { () = up => {}, _ = down => {} }
}

/// Protections: uploads are repeated until they are complete; a task is done only when everything in
/// its manifest is stored.
#[tokio::test]
async fn refusing_cutting_and_slow_it_only_takes_longer() {
    let bucket = tempfile::tempdir().unwrap();
    fs::create_dir(bucket.path().join("lab")).unwrap();
    let faults = Arc::new(Faults::default());
    let endpoint = serve(bucket.path(), Arc::clone(&faults)).await;
    let environment = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false"),
    ];
    let cluster = Cluster::start(&["--artifacts", "s3://lab/runs"]).await.unwrap();
    let _worker = cluster.worker_with("worker", &[], &environment).unwrap();
    let sweep = cluster.submit(&small_sweep("bucket", 8000, 100, 1)).await.unwrap();
    let done = |count: u64| {
        move |status: &sweep_proto::pb::SweepStatus| {
            status.analyse.as_ref().is_some_and(|analyse| analyse.done >= count)
        }
    };
    cluster.until(&sweep, done(2)).await.unwrap();
    for mode in [REFUSE, CUT, SLOW] {
        faults.set(mode);
        let before = faults.harmed.load(Ordering::SeqCst);
        // The worker pauses between its tries, so harm may take a moment.
        for _ in 0..300 {
            if faults.harmed.load(Ordering::SeqCst) > before + 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(faults.harmed.load(Ordering::SeqCst) > before, "mode {mode} did no harm");
        // Whatever is called done now is really there, although the store is failing.
        stored(&cluster, &sweep, bucket.path()).await;
    }
    faults.set(HEALTHY);
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());
    assert!(stored(&cluster, &sweep, bucket.path()).await >= 20);
    for (label, task) in cluster.tasks(&sweep).await.unwrap() {
        assert!(task.failures.is_empty(), "{label} was given up: {:?}", task.failures);
    }

    let mut get = std::process::Command::new(sweep_tests::binary("sweep"));
    get.current_dir(cluster.folder.path()).envs(environment);
    get.env("SWEEP_COORDINATOR", &cluster.url);
    get.args(["artifacts", "get", &sweep, "*step100*", "--to", "files"]);
    let got = tokio::task::spawn_blocking(move || get.output()).await;
    let got = got.unwrap().unwrap();
    assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    let model = cluster.folder.path().join("files/modular-addition-seed0/step100");
    assert!(model.is_dir(), "{model:?}");
}

/// Every file that the coordinator tells readers of is in the bucket, whole.
async fn stored(cluster: &Cluster, sweep: &str, bucket: &std::path::Path) -> usize {
    let artifacts = cluster.artifacts(sweep).await.unwrap();
    for artifact in &artifacts {
        let file = artifact.file.as_ref().unwrap();
        let path = bucket.join("lab/runs").join(&file.key);
        let size =
            fs::metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
        assert_eq!(size, file.size, "{}", path.display());
    }
    artifacts.len()
}
