//! Files that are missing, damaged or cannot be stored: what the coordinator is told.

use std::{
    fs,
    time::{Duration, Instant},
};

use sweep_proto::pb::{self, FailureClass, record::Body};

use crate::{
    coordinator::{Coordinator, analysis, training},
    process::Worker,
};

/// Protections: the bytes of a checkpoint are compared with the recorded hash, whatever is wrong with
/// them; missing and corrupt files are told apart, and neither is tried for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_swapped_and_damaged_checkpoints_are_told_apart() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 200, &[0, 100, 200])));
    let first = Worker::start(&coordinator, &[]);
    coordinator.until("checkpoints", |s| s.checkpoints(6).len() == 3).await;
    let published = coordinator.with(|s| s.checkpoints(6));
    assert_eq!(first.terminate().await.0, Some(0));
    let path = |index: usize| {
        let file = published[index].file.as_ref().unwrap();
        coordinator.artifact(&file.key)
    };
    // A whole file, but not the right one; half a file; no file.
    fs::copy(path(1), path(0)).unwrap();
    let bytes = fs::read(path(1)).unwrap();
    fs::write(path(1), &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(path(2)).unwrap();
    // And nothing of them at hand.
    fs::remove_dir_all(coordinator.folder().join("cache")).unwrap();

    coordinator.with(|s| {
        let leases = published.iter().zip(7..).map(|(c, attempt)| analysis(attempt, c.clone()));
        s.leases.extend(leases);
    });
    let _second = Worker::start(&coordinator, &[]);
    coordinator.until("three failures", |s| (7..10).all(|n| s.failure(n).is_some())).await;
    let failures: Vec<pb::Failure> =
        coordinator.with(|s| (7..10).map(|n| s.failure(n).unwrap()).collect());
    let expected: [(FailureClass, &str, &str); 3] = [
        (FailureClass::Permanent, "step0/model.safetensors", "sha256"),
        (FailureClass::Permanent, "step100/model.safetensors", "truncated"),
        (FailureClass::InputMissing, "step200/model.safetensors", "is not in the artifact store"),
    ];
    for (failure, (class, file, word)) in failures.iter().zip(expected) {
        assert_eq!(failure.class(), class, "{failure:?}");
        assert!(failure.message.contains(file), "{}", failure.message);
        assert!(failure.message.contains(word), "{}", failure.message);
    }
}

/// Protection: the cache believes no file by its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_in_the_cache_is_fetched_again() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 100, &[100])));
    let _worker = Worker::start(&coordinator, &[]);
    coordinator.until("a checkpoint", |s| s.checkpoints(6).len() == 1).await;
    let checkpoint = coordinator.with(|s| s.checkpoints(6).remove(0));
    let hash = checkpoint.file.as_ref().unwrap().sha256.clone();
    let cached = coordinator.folder().join("cache/checkpoints").join(hash);
    let mut bytes = fs::read(&cached).unwrap();
    let whole = bytes.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&cached, bytes).unwrap();
    coordinator.with(|s| s.leases.push_back(analysis(7, checkpoint)));
    coordinator.until("the analysis", |s| s.is_done(7)).await;
    assert_eq!(fs::read(&cached).unwrap(), whole);
}

/// Protection: a checkpoint that does not fit into the memory is refused before it is loaded, this system's own and
/// other people's; nothing crashes, and a worker with more memory takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_does_not_fit_is_out_of_memory() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 100, &[100])));
    let trainer = Worker::start(&coordinator, &[]);
    coordinator.until("the training", |s| s.is_done(6)).await;
    assert_eq!(trainer.terminate().await.0, Some(0));
    let own = coordinator.with(|s| s.checkpoints(6).remove(0));
    let folder = coordinator.folder().join("elsewhere/step100");
    fs::create_dir_all(&folder).unwrap();
    let file = coordinator.artifact(&own.file.as_ref().unwrap().key);
    fs::copy(file, folder.join("model.safetensors")).unwrap();
    let location = format!("file://{}", folder.display());
    let imported = pb::Imported { location, ..pb::Imported::default() };
    let elsewhere = pb::Checkpoint { file: None, imported: Some(imported), ..own.clone() };
    let leases = |first| [analysis(first, own.clone()), analysis(first + 1, elsewhere.clone())];

    coordinator.with(|s| s.leases.extend(leases(7)));
    let small = Worker::start(&coordinator, &["--memory-bytes", "4KiB"]);
    coordinator.until("two failures", |s| s.failure(7).is_some() && s.failure(8).is_some()).await;
    for (attempt, what) in [(7, "step100/model.safetensors"), (8, "elsewhere/step100")] {
        let failure = coordinator.with(|s| s.failure(attempt).unwrap());
        assert_eq!(failure.class(), FailureClass::OutOfMemory, "{failure:?}");
        let words = [what, "GiB of memory are free"];
        assert!(words.iter().all(|word| failure.message.contains(word)), "{}", failure.message);
    }
    assert_eq!(small.terminate().await.0, Some(0), "it went on");

    coordinator.with(|s| s.leases.extend(leases(9)));
    let _large = Worker::start(&coordinator, &[]);
    coordinator.until("both analyses", |s| s.is_done(9) && s.is_done(10)).await;
}

/// Protection: while a checkpoint is computed on, the next one comes here already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_checkpoint_is_fetched_in_advance() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 100, &[0, 100])));
    let trainer = Worker::start(&coordinator, &[]);
    coordinator.until("the training", |s| s.is_done(6)).await;
    let (first, next) = coordinator.with(|s| {
        let mut published = s.checkpoints(6);
        (published.remove(0), published.remove(0))
    });
    trainer.kill();
    let hash = next.file.as_ref().unwrap().sha256.clone();
    let cached = coordinator.folder().join("cache/checkpoints").join(hash);
    fs::remove_file(&cached).unwrap();
    let mut lease = analysis(7, first);
    if let Some(pb::lease::Work::Analyse(work)) = &mut lease.work {
        work.next = Some(next);
    }
    coordinator.with(|s| s.leases.push_back(lease));
    let _worker = Worker::start(&coordinator, &[]);
    coordinator
        .until("the analysis, and the file of the next one", |s| s.is_done(7) && cached.exists())
        .await;
}

/// Protection: a store that never answers is given up when the patience is over, with its name and the
/// file's, as something that may pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_for_longer_than_the_patience_fails_the_task() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, 100, &[0, 100])));
    let environment = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT", "http://127.0.0.1:1"),
    ];
    let arguments = ["--artifacts", "s3://lab/runs", "--patience", "3s"];
    let begun = Instant::now();
    let worker = Worker::start_with(&coordinator, &arguments, &environment);
    coordinator.until("the failure", |s| s.failure(7).is_some()).await;
    let failure = coordinator.with(|s| s.failure(7)).unwrap();
    assert_eq!(failure.class(), FailureClass::Transient);
    assert!(failure.message.contains("artifact store failed"), "{}", failure.message);
    assert!(failure.message.contains("step0/model.safetensors"), "{}", failure.message);
    assert!(worker.log().contains("trying again"), "{}", worker.log());
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    coordinator.with(|s| {
        let told = s.accepted(7).iter().any(|body| matches!(body, Body::Checkpoint(_)));
        assert!(!told, "a checkpoint that is nowhere");
    });
}

/// Protection: a training whose saved state is damaged says so instead of starting from nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_trainer_state_is_named() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 200, &[0, 100])));
    let _worker = Worker::start(&coordinator, &[]);
    coordinator.until("the first training", |s| s.is_done(6)).await;
    let state = coordinator.with(|s| s.trainer_state()).unwrap();
    let path = coordinator.artifact(&state.file.as_ref().unwrap().key);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    fs::write(&path, bytes).unwrap();
    let mut lease = training(7, 200, &[0, 100]);
    if let Some(pb::lease::Work::Train(work)) = &mut lease.work {
        work.seeds[0].resume = Some(state);
    }
    coordinator.with(|s| s.leases.push_back(lease));
    coordinator.until("the failure", |s| s.failure(7).is_some()).await;
    let failure = coordinator.with(|s| s.failure(7)).unwrap();
    assert_eq!(failure.class(), FailureClass::Permanent);
    assert!(failure.message.contains("step100/trainer.safetensors"), "{}", failure.message);
    assert!(failure.message.contains("tensor `"), "{}", failure.message);
}

/// Protection: a training that names a checkpoint to start from starts from its very weights, and says
/// which tensor does not fit instead of starting from anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_starts_from_the_checkpoint_that_it_names() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 100, &[0, 100])));
    let _worker = Worker::start(&coordinator, &[]);
    coordinator.until("the first training", |s| s.is_done(6)).await;
    let base = coordinator.with(|s| s.checkpoints(6)).pop().unwrap();
    let file = coordinator.artifact(&base.file.as_ref().unwrap().key);
    let from = |attempt: u64, place: &str, d_mlp: u64| {
        let mut lease = training(attempt, 100, &[0]);
        if let Some(pb::lease::Work::Train(work)) = &mut lease.work {
            let mut params: serde_json::Value = serde_json::from_str(&work.params).unwrap();
            params["init_from"] = place.into();
            params["d_mlp"] = d_mlp.into();
            work.params = params.to_string();
        }
        lease
    };
    let folder = file.parent().unwrap().to_str().unwrap();
    coordinator.with(|s| {
        s.leases.extend([from(7, folder, 32), from(8, folder, 16), from(9, "/nowhere/at/all", 32)]);
    });
    coordinator.until("the second training", |s| s.is_done(7)).await;
    let start = coordinator.with(|s| s.checkpoints(7)).remove(0);
    assert_eq!((start.step, &start.weights_hash), (0, &base.weights_hash));
    coordinator.until("failures", |s| s.failure(8).is_some() && s.failure(9).is_some()).await;
    let [shape, missing] = coordinator.with(|s| [8, 9].map(|n| s.failure(n).unwrap()));
    assert_eq!(shape.class(), FailureClass::Permanent);
    assert!(shape.message.contains("blocks.0.mlp"), "{}", shape.message);
    assert!(missing.message.contains("/nowhere/at/all"), "{}", missing.message);
}
