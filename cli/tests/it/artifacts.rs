//! Artifacts from a folder and from a real S3 server.

use std::{fs, path::Path};

use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use sweep_proto::pb;

use crate::{
    fake::{Fake, example},
    run::sweep,
};

/// sha256 of `hello`.
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn artifact(root: &str, name: &str, sha256: &str) -> pb::ArtifactInfo {
    pb::ArtifactInfo {
        model: "m-seed0".into(),
        checkpoint: "step100".into(),
        experiment: "pca".into(),
        file: Some(pb::Blob {
            name: name.into(),
            key: format!("v1/s/m0/step100/e0/1.1/{name}"),
            size: 5,
            sha256: sha256.into(),
        }),
        artifact_root: root.into(),
        attempt: (1 << 32) | 1,
    }
}

fn with_artifacts(artifacts: Vec<pb::ArtifactInfo>) -> Fake {
    let fake = example();
    fake.with(|state| state.artifacts = artifacts);
    fake
}

fn store(root: &Path, name: &str) {
    let folder = root.join("v1/s/m0/step100/e0/1.1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), "hello").unwrap();
}

#[test]
fn a_folder_of_artifacts_is_listed_and_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    store(&root, "a.json");
    store(&root, "b.bin");
    let url = format!("file://{}", root.display());
    let fake =
        with_artifacts(vec![artifact(&url, "a.json", HELLO), artifact(&url, "b.bin", HELLO)]);
    let server = fake.start();
    let run = |arguments: &[&str]| {
        sweep(folder.path(), arguments).env("SWEEP_COORDINATOR", &server.url).run()
    };
    let list = run(&["artifacts", "list", "last", "*.json"]).ok();
    assert!(list.contains("m-seed0/step100/pca/a.json") && !list.contains("b.bin"), "{list}");
    let got = run(&["artifacts", "get", "last", "a*", "--to", "out"]).ok();
    assert_eq!(got, "out/m-seed0/step100/pca/a.json\n");
    let path = folder.path().join("out/m-seed0/step100/pca/a.json");
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert!(
        run(&["artifacts", "get", "last", "*", "--to", "out"]).stderr.contains("1 there already")
    );
    fs::write(&path, "mine!").unwrap();
    run(&["artifacts", "get", "last", "a*", "--to", "out"]).fails(2, &["a different file"]);
    assert_eq!(fs::read(&path).unwrap(), b"mine!");
    run(&["artifacts", "get", "last", "a*", "--to", "out", "--overwrite"]).ok();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    run(&["artifacts", "get", "last", "*.csv", "--to", "out"]).fails(3, &["no artifact"]);
    // Damaged in the store: an error, and no file.
    fs::write(root.join("v1/s/m0/step100/e0/1.1/b.bin"), "hellO").unwrap();
    run(&["artifacts", "get", "last", "b*", "--to", "new"]).fails(1, &["corrupt"]);
    assert!(!folder.path().join("new/m-seed0/step100/pca/b.bin").exists());
    fake.with(|s| s.artifacts = vec![artifact("file:///nowhere/at/all", "a.json", HELLO)]);
    run(&["artifacts", "get", "last", "*", "--to", "new"]).fails(3, &["coordinator's machine"]);
    fake.with(|s| s.artifacts = vec![artifact("memory://", "a.json", HELLO)]);
    run(&["artifacts", "get", "last", "*", "--to", "new"]).fails(2, &["only file:// and s3://"]);
}

/// Serves a folder over the S3 protocol, with signatures checked.
fn s3(folder: &Path) -> String {
    let (tell, told) = std::sync::mpsc::channel();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move {
            let files = s3s_fs::FileSystem::new(folder).unwrap();
            let mut builder = S3ServiceBuilder::new(files);
            builder.set_auth(SimpleAuth::from_single("key", "secret"));
            let service = builder.build();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // The client closes its connections as it likes.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
    });
    format!("http://{}", told.recv().unwrap())
}

#[test]
fn a_bucket_is_read_with_the_usual_variables() {
    let folder = tempfile::tempdir().unwrap();
    let buckets = folder.path().join("buckets");
    store(&buckets.join("lab/runs"), "a.json");
    let endpoint = s3(&buckets);
    let server = with_artifacts(vec![artifact("s3://lab/runs", "a.json", HELLO)]).start();
    let get = |key: &str| {
        sweep(folder.path(), &["artifacts", "get", "last", "*", "--to", "out"])
            .env("SWEEP_COORDINATOR", &server.url)
            .env("AWS_ENDPOINT", &endpoint)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .run()
    };
    let refused = get("stranger");
    assert_ne!(refused.code, 0, "{}", refused.stderr);
    assert!(!folder.path().join("out").join("m-seed0/step100/pca/a.json").exists());
    assert_eq!(get("key").ok(), "out/m-seed0/step100/pca/a.json\n");
    let path = folder.path().join("out/m-seed0/step100/pca/a.json");
    assert_eq!(fs::read(path).unwrap(), b"hello");
}
