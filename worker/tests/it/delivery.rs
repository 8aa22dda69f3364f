//! Delivery: the order of records, repetition, the spool over restarts, files before records.

use std::{fs, time::Duration};

use sweep_proto::pb::{FailureClass, Verdict, record::Body};

use crate::{
    coordinator::{Coordinator, Heard, Mood, State, analysis, training, trajectory},
    process::Worker,
};

/// Steps of the training losses in `bodies`.
fn loss_steps(bodies: &[Body]) -> Vec<u64> {
    let chunks = bodies.iter().filter_map(|body| match body {
        Body::Metrics(chunk) if chunk.metric.ends_with(".train_loss") => Some(&chunk.steps),
        _ => None,
    });
    chunks.flatten().copied().collect()
}

/// Protections: a file is whole in the store before anybody is told of it; a trainer state follows
/// every metric up to its step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_before_their_records_and_metrics_before_trainer_states() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, 400, &[0, 100, 200, 300, 400])));
    let _worker = Worker::start(&coordinator, &[]);
    coordinator.until("the end", |s| s.is_done(7)).await;
    let bodies = coordinator.with(|s| {
        assert!(s.heard.iter().all(|heard| heard.stored));
        s.accepted(7)
    });
    let all = loss_steps(&bodies);
    let mut states = 0;
    for (index, body) in bodies.iter().enumerate() {
        let Body::TrainerState(state) = body else { continue };
        states += 1;
        let before = loss_steps(&bodies[..index]);
        let expected: Vec<u64> = all.iter().copied().filter(|step| *step <= state.step).collect();
        assert_eq!(before, expected, "at the state of step {}", state.step);
        assert_eq!(before.last(), Some(&state.step));
    }
    assert_eq!(states, 5);
    assert!(matches!(bodies.first(), Some(Body::Started(_))));
    assert!(matches!(bodies.last(), Some(Body::Done(_))));
}

/// Protection: what was sent without an answer is sent again, and nothing is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_report_is_repeated_word_for_word() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| {
        s.reports = Mood::Unavailable;
        s.leases.push_back(training(7, 300, &[0, 300]));
    });
    let _worker = Worker::start(&coordinator, &[]);
    coordinator.until("three tries", |s| s.heard.len() > 3).await;
    coordinator.with(|s| s.reports = Mood::Answers);
    coordinator.until("the end", |s| s.is_done(7)).await;
    coordinator.with(|s| {
        let taken: Vec<_> = s.heard.iter().filter(|h| h.verdict == Verdict::Accepted).collect();
        let numbers: Vec<u64> = taken.iter().map(|heard| heard.record.sequence).collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
        for refused in s.heard.iter().filter(|heard| heard.verdict != Verdict::Accepted) {
            let again = taken.iter().find(|t| t.record.sequence == refused.record.sequence);
            assert_eq!(again.unwrap().record, refused.record);
        }
    });
}

/// Protections: the spool outlives its process, in order; records that nobody will ever confirm do
/// not stand in the way of new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_s_successor_delivers_what_is_left_and_goes_on() {
    for known in [true, false] {
        let coordinator = Coordinator::start().await;
        coordinator.with(|s| {
            s.reports = Mood::Unavailable;
            s.leases.push_back(training(7, 300, &[0, 300]));
        });
        let first = Worker::start(&coordinator, &[]);
        // The end of the training is in the spool when the worker takes the next lease.
        coordinator.until("the first training", |s| s.acquires > 1).await;
        first.kill();
        coordinator.with(|s| {
            s.heard.clear();
            s.reports = Mood::Answers;
            s.unknown.extend((!known).then_some(7));
            s.leases.push_back(training(8, 100, &[]));
        });
        let _second = Worker::start(&coordinator, &[]);
        coordinator.until("new work", |s| s.is_done(8)).await;
        coordinator.with(|s| {
            let old = s.heard.iter().filter(|heard| heard.record.attempt == 7);
            let numbers: Vec<u64> = old.map(|heard| heard.record.sequence).collect();
            // What was not looked at is sent again.
            let mut distinct = numbers.clone();
            distinct.dedup();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct, (0..distinct.len() as u64).collect::<Vec<_>>());
            assert_eq!(s.is_done(7), known);
            assert!(!known || numbers == distinct, "{numbers:?}");
            let ends = |heard: &&Heard| matches!(heard.record.body, Some(Body::Done(_)));
            assert_eq!(s.heard.iter().filter(ends).map(|h| h.record.attempt).next(), Some(7));
        });
    }
}

/// Protection: an older trainer state is removed only when a newer one is known to the coordinator,
/// and the newest never: whoever goes on finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trainer_state_that_the_coordinator_knows_stays_in_the_store() {
    for outage in [false, true] {
        let coordinator = Coordinator::start().await;
        let steps: Vec<u64> = (0..=8).map(|n| n * 300).collect();
        coordinator.with(|s| s.leases.push_back(training(7, 2400, &steps)));
        let attempt = coordinator.artifact("v1/scripted-0000000000/m0/train/0.7");
        if !outage {
            // The state of step 1500 cannot be stored: there is a folder in its place.
            fs::create_dir_all(attempt.join("step1500/trainer.safetensors/x")).unwrap();
        }
        let _worker = Worker::start(&coordinator, &["--patience", "1s"]);
        let known = |s: &State| s.trainer_state().is_some_and(|state| state.step >= 600);
        coordinator.until("some states", known).await;
        if outage {
            coordinator.with(|s| s.reports = Mood::Unavailable);
            let files = |step: u64| attempt.join(format!("step{step}/model.safetensors"));
            coordinator.until("the last checkpoint", |_| files(2400).exists()).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        } else {
            coordinator.until("the failure", |s| s.failure(7).is_some()).await;
        }
        let state = coordinator.with(|s| s.trainer_state()).unwrap();
        let file = coordinator.artifact(&state.file.unwrap().key);
        assert!(file.exists(), "outage: {outage}; {} is gone", file.display());
        let state = |step: &&u64| attempt.join(format!("step{step}/trainer.safetensors"));
        let left = steps.iter().filter(|step| state(step).is_file());
        assert!(outage || left.count() < 4, "old states are removed");
    }
}

/// Protection: what the next holder of a lease goes on from is not removed by the former one, although
/// the former one's own later states count as sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_lost_its_lease_removes_no_state() {
    let coordinator = Coordinator::start().await;
    let steps: Vec<u64> = (0..=8).map(|n| n * 300).collect();
    coordinator.with(|s| s.leases.push_back(training(7, 1_000_000, &steps)));
    let attempt = coordinator.artifact("v1/scripted-0000000000/m0/train/0.7");
    // Uploads stand still at the state of step 1200.
    let obstacle = attempt.join("step1200/trainer.safetensors");
    fs::create_dir_all(obstacle.join("x")).unwrap();
    let worker = Worker::start(&coordinator, &["--patience", "60s"]);
    let known = |s: &State| s.trainer_state().is_some_and(|state| state.step >= 300);
    coordinator.until("some states", known).await;
    coordinator.with(|s| s.reports = Mood::Unavailable);
    coordinator.until("the obstacle", |_| worker.log().contains("object store failed")).await;
    let state = coordinator.with(|s| s.trainer_state()).unwrap();
    let queued = |s: &State| s.beats.last().unwrap().1.leases[0].progress >= 1800;
    coordinator.until("uploads behind it", queued).await;
    coordinator.with(|s| s.reports = Mood::Fences);
    coordinator.until("the loss", |_| worker.log().contains("given away")).await;
    fs::remove_dir_all(&obstacle).unwrap();
    coordinator.until("the end of the work", |s| s.acquires > 1).await;
    assert!(attempt.join("step1500/trainer.safetensors").is_file(), "uploads went on");
    let file = coordinator.artifact(&state.file.unwrap().key);
    assert!(file.exists(), "{} is gone\n{}", file.display(), worker.log());
}

/// Protection: a task whose last metrics could not be kept is not done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_the_spool_refused_make_the_task_fail() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 100, &[100])));
    let arguments = ["--spool-bytes", "200", "--patience", "1s"];
    let _worker = Worker::start(&coordinator, &arguments);
    coordinator.until("a training", |s| s.is_done(6)).await;
    let checkpoint = coordinator.with(|s| s.checkpoints(6).remove(0));
    // Once before, because the first time takes longer: metrics of short work are passed on at its
    // very end, and that is the place to look at.
    coordinator.with(|s| s.leases.push_back(analysis(7, checkpoint.clone())));
    coordinator.until("an analysis", |s| s.is_done(7)).await;

    for lease in [training(8, 40, &[]), analysis(9, checkpoint)] {
        let attempt = lease.attempt;
        coordinator.with(|s| {
            s.reports = Mood::Unavailable;
            s.leases.push_back(lease);
            s.acquires = 0;
        });
        coordinator.until("the end of the work", |s| s.leases.is_empty() && s.acquires > 1).await;
        coordinator.with(|s| s.reports = Mood::Answers);
        let ended = |s: &State| s.failure(attempt).is_some() || s.is_done(attempt);
        coordinator.until("the failure", ended).await;
        coordinator.with(|s| {
            let failure = s.failure(attempt).expect("metrics are missing");
            assert_eq!(failure.class(), FailureClass::Transient);
            assert!(failure.message.contains("metric spool"), "{}", failure.message);
            assert!(failure.message.contains("is full"), "{}", failure.message);
        });
    }
}

/// Protection: a task one of whose files could not be stored is not done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_the_store_refused_makes_the_task_fail() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(6, 200, &[0, 100, 200])));
    let _worker = Worker::start(&coordinator, &["--patience", "1s"]);
    coordinator.until("a training", |s| s.is_done(6)).await;
    let checkpoints = coordinator.with(|s| s.checkpoints(6));
    coordinator.with(|s| s.leases.push_back(trajectory(7, checkpoints.clone())));
    coordinator.until("a trajectory", |s| s.is_done(7)).await;
    let manifest = coordinator.with(|s| s.accepted(7).pop()).unwrap();
    let Body::Done(manifest) = manifest else { panic!("{manifest:?}") };
    let [file] = manifest.artifacts.as_slice() else { panic!("{manifest:?}") };
    assert!(coordinator.with(|s| s.heard.iter().all(|heard| heard.stored)));

    // There is a folder where the file of the next attempt goes.
    let next = coordinator.artifact(&file.key.replace("/0.7/", "/0.8/"));
    fs::create_dir_all(next.join("x")).unwrap();
    coordinator.with(|s| s.leases.push_back(trajectory(8, checkpoints)));
    coordinator.until("the end", |s| s.failure(8).is_some() || s.is_done(8)).await;
    let failure = coordinator.with(|s| s.failure(8)).expect("the file is missing");
    assert_eq!(failure.class(), FailureClass::Transient);
    assert!(failure.message.contains("artifact store failed"), "{}", failure.message);
    assert!(failure.message.contains(&file.name), "{}", failure.message);
}

/// Protection: a disk that takes nothing more holds the training back, then fails it with the name of
/// the folder; the failure arrives although it cannot be written down. The limit on the size of files
/// does what a full disk does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_reported_and_loses_nothing_silently() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| {
        s.reports = Mood::Unavailable;
        s.leases.push_back(training(7, 1_000_000, &[]));
    });
    let worker = Worker::start_limited(&coordinator, &["--patience", "2s"], 8);
    coordinator.until("the end of the work", |s| s.acquires > 1).await;
    coordinator.with(|s| s.reports = Mood::Answers);
    coordinator.until("the failure", |s| s.failure(7).is_some()).await;
    let bodies = coordinator.with(|s| {
        let failure = s.failure(7).unwrap();
        assert_eq!(failure.class(), FailureClass::Transient);
        let spool = coordinator.folder().join("cache/spool").display().to_string();
        assert!(failure.message.contains(&spool), "{}", failure.message);
        assert!(failure.message.contains("cannot be written"), "{}", failure.message);
        s.accepted(7)
    });
    let steps = loss_steps(&bodies);
    let gaps: Vec<u64> = steps.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(steps.len() > 10 && steps[0] == 0, "{steps:?}");
    assert!(gaps.iter().all(|gap| *gap == gaps[0]), "a gap in {steps:?}\n{}", worker.log());
}

/// Protection: on a full disk, what the coordinator has taken makes room for what comes; half a record
/// never stays in front of the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_that_empties_again_costs_nothing() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, 1_000_000, &[])));
    let worker = Worker::start_limited(&coordinator, &[], 8);
    for _ in 0..2 {
        coordinator.until("metrics", |s| s.accepted(7).len() > 3).await;
        coordinator.with(|s| s.reports = Mood::Unavailable);
        let progress = || coordinator.with(|s| s.beats.last().unwrap().1.leases[0].progress);
        let mut before = 0;
        while progress() != before {
            before = progress();
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        coordinator.with(|s| s.reports = Mood::Answers);
        let count = coordinator.with(|s| s.accepted(7).len());
        coordinator.until("what waited and more", |s| s.accepted(7).len() > count + 24).await;
    }
    coordinator.with(|s| {
        assert_eq!(s.failure(7), None);
        let taken = s.heard.iter().filter(|heard| heard.verdict == Verdict::Accepted);
        let numbers: Vec<u64> = taken.map(|heard| heard.record.sequence).collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "{}", worker.log());
    });
    let steps = loss_steps(&coordinator.with(|s| s.accepted(7)));
    assert!(steps.windows(2).all(|pair| pair[1] - pair[0] == steps[1] - steps[0]), "{steps:?}");
}
