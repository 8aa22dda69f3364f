//! Checkpoints in a real S3 server (s3s-fs, which checks signatures) behind a proxy that can cut.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use sweep_source::{Access, Error, Source};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{access, names, noise, says, steps};

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// No limit on what passes the proxy.
const OPEN: usize = usize::MAX;

/// How many bytes pass from the server in one connection, counted from the next one on; and how
/// many passed in all.
struct Proxy {
    allowed: AtomicUsize,
    passed: AtomicUsize,
}

async fn serve(root: &Path) -> (String, Arc<Proxy>) {
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
                let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let proxy = Arc::new(Proxy { allowed: AtomicUsize::new(OPEN), passed: AtomicUsize::new(0) });
    let state = Arc::clone(&proxy);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                let server = TcpStream::connect(upstream).await.unwrap();
                tunnel(client, server, &state).await;
            });
        }
    });
    (url, proxy)
}

/// Passes bytes on until the limit, which then is gone.
async fn tunnel(client: TcpStream, server: TcpStream, proxy: &Proxy) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let down = async {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            let allowed = proxy.allowed.load(Ordering::SeqCst);
            if allowed != OPEN && allowed < count {
                proxy.allowed.store(OPEN, Ordering::SeqCst);
                return;
            }
            if allowed != OPEN {
                proxy.allowed.fetch_sub(count, Ordering::SeqCst);
            }
            proxy.passed.fetch_add(count, Ordering::SeqCst);
            if to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    tokio::select! { _ = up => {}, () = down => {} }
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn bucket_access(cache: &Path, endpoint: &str, secret: &str) -> Access {
    let settings = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT", endpoint),
        ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false"),
    ];
    access(cache, &settings, Duration::from_secs(8))
}

#[tokio::test]
async fn a_bucket_is_listed_fetched_and_gone_on_with() {
    let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let weights = noise(4, 600_000);
    write(root.path(), "lab/runs/my-lm/checkpoint-500/model.safetensors", &weights);
    write(root.path(), "lab/runs/my-lm/checkpoint-500/config.json", b"{}");
    write(root.path(), "lab/runs/my-lm/checkpoint-1000/pytorch_model.bin", &noise(5, 10));
    write(root.path(), "lab/runs/my-lm-2/checkpoint-7/model.safetensors", b"another run");
    let (endpoint, proxy) = serve(root.path()).await;
    let access = bucket_access(cache.path(), &endpoint, SECRET);
    let source = Source::Path("s3://lab/runs/my-lm/".to_owned());
    let listing = access.list(&source).await.unwrap();
    assert_eq!(listing.at, "s3://lab/runs/my-lm/{}");
    assert_eq!(steps(&listing), [500, 1000]);
    let place = listing.location(&listing.checkpoints[0]).unwrap();
    let files = access.files(&place).await.unwrap();

    proxy.allowed.store(400_000, Ordering::SeqCst);
    proxy.passed.store(0, Ordering::SeqCst);
    let fetched = access.fetch(&place, &files).await.unwrap();
    assert_eq!(names(&fetched), ["config.json", "model.safetensors"]);
    assert!(fs::read(&fetched.files["model.safetensors"]).unwrap() == weights);
    let passed = proxy.passed.load(Ordering::SeqCst);
    assert!(passed < 750_000, "{passed} bytes: it began again");
    assert_eq!(proxy.allowed.load(Ordering::SeqCst), OPEN, "the connection was cut");
    proxy.passed.store(0, Ordering::SeqCst);
    access.fetch(&place, &files).await.unwrap();
    assert_eq!(proxy.passed.load(Ordering::SeqCst), 0, "nothing is fetched twice");

    // An object that was replaced since it was listed is not taken for it.
    let place = listing.location(&listing.checkpoints[1]).unwrap();
    let files = access.files(&place).await.unwrap();
    write(root.path(), "lab/runs/my-lm/checkpoint-1000/pytorch_model.bin", &noise(6, 10));
    // This server has no entity tags, and times of whole seconds.
    let path = root.path().join("lab/runs/my-lm/checkpoint-1000/pytorch_model.bin");
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(later)).unwrap();
    let error = access.fetch(&place, &files).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[tokio::test]
async fn what_a_bucket_refuses_is_said() {
    let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(root.path(), "lab/runs/notes.txt", b"x");
    let (endpoint, _) = serve(root.path()).await;
    let access = bucket_access(cache.path(), &endpoint, SECRET);
    let list = async |access: &Access, text: &str| {
        access.list(&Source::Path(text.to_owned())).await.unwrap_err()
    };
    says(&list(&access, "s3://lab/runs").await, &["s3://lab/runs", "notes.txt", "checkpoint-<N>"]);
    says(&list(&access, "s3://lab/nothing").await, &["s3://lab/nothing", "it is empty"]);
    says(&list(&access, "s3://nowhere/x").await, &["s3://nowhere", "does not exist"]);
    let stranger = bucket_access(cache.path(), &endpoint, "wrong");
    let error = list(&stranger, "s3://lab/runs").await;
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    says(&error, &["s3://lab/runs", "AWS_SECRET_ACCESS_KEY"]);
}
