//! Leases: silence, revocation, fencing, re-attachment, giving back.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use sweep_proto::{
    id,
    pb::{self, FailureClass, Verdict, lease::Work, record::Body},
};
use sweep_source::{Access, Cache};
use sweep_worker::{artifacts::ArtifactStore, deliver::Outlet, session::Session, spool::Spool};

use crate::{
    coordinator::{Coordinator, Mood, TTL, training},
    process::Worker,
};

/// A training that does not end by itself while a test lasts.
const ENDLESS: u64 = 1_000_000;

/// Protection: results of a lease are not sent once a lease time has passed since the last answered
/// renewal, because somebody else may hold it by then; they wait, and none is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answered_renewal_it_falls_silent_and_then_catches_up() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, ENDLESS, &[0])));
    let worker = Worker::start(&coordinator, &[]);
    coordinator.until("metrics", |s| s.accepted(7).len() > 3).await;
    coordinator.with(|s| s.heartbeats = Mood::Unavailable);
    tokio::time::sleep(TTL * 3).await;
    let (renewed, last, count) = coordinator.with(|s| {
        let renewed = s.beats.last().unwrap().0;
        (renewed, s.heard.last().unwrap().at, s.heard.len())
    });
    // It counts from when the renewal was sent, so this is generous.
    assert!(last < renewed + TTL, "{:?} after the last renewal\n{}", last - renewed, worker.log());
    coordinator.with(|s| s.heartbeats = Mood::Answers);
    coordinator.until("the rest", |s| s.heard.len() > count + 5).await;
    contiguous(&coordinator, 7);
}

/// Protections: a revoked or fenced lease stops its work, so that the slot is free; nothing is sent
/// for it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_away_is_stopped_at_once() {
    for fenced in [false, true] {
        let coordinator = Coordinator::start().await;
        coordinator.with(|s| s.leases.push_back(training(7, ENDLESS, &[0])));
        let worker = Worker::start(&coordinator, &[]);
        coordinator.until("metrics", |s| s.accepted(7).len() > 3).await;
        coordinator.with(|s| {
            if fenced {
                s.reports = Mood::Fences;
            } else {
                s.revoked.push(7);
            }
            s.acquires = 0;
        });
        coordinator.until("the slot is free", |s| s.acquires > 0).await;
        coordinator.with(|s| {
            s.reports = Mood::Answers;
            s.leases.push_back(training(8, 200, &[]));
        });
        coordinator.until("the next lease", |s| s.is_done(8)).await;
        coordinator.with(|s| s.beats.clear());
        coordinator.until("heartbeats", |s| s.beats.len() > 1).await;
        coordinator.with(|s| {
            let held = &s.beats.last().unwrap().1.leases;
            assert!(held.iter().all(|lease| lease.attempt != 7), "{}", worker.log());
            let first = s.heard.iter().position(|heard| heard.record.attempt == 8).unwrap();
            assert!(s.heard[first..].iter().all(|heard| heard.record.attempt == 8));
        });
    }
}

/// Protections: a coordinator that has restarted is told what this process holds; records that it
/// cannot place yet are kept and sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_forgot_it_is_told_what_it_holds() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, ENDLESS, &[0])));
    let _worker = Worker::start(&coordinator, &[]);
    coordinator.until("metrics", |s| s.accepted(7).len() > 3).await;
    coordinator.with(|s| {
        s.unknown.push(7);
        s.heartbeats = Mood::Forgot;
        s.beats.clear();
    });
    let held = |s: &crate::coordinator::State| {
        s.registrations.len() == 2 && s.beats.iter().any(|(_, beat)| beat.worker == "w2")
    };
    coordinator.until("a second registration", held).await;
    coordinator.with(|s| {
        assert_eq!(s.registrations[0].instance, s.registrations[1].instance);
        let (_, beat) = s.beats.iter().find(|(_, beat)| beat.worker == "w2").unwrap();
        assert_eq!((beat.leases[0].attempt, beat.leases[0].tasks.len()), (7, 1));
    });
    tokio::time::sleep(Duration::from_millis(600)).await;
    let count = coordinator.with(|s| {
        s.unknown.clear();
        s.accepted(7).len()
    });
    coordinator.until("more metrics", |s| s.accepted(7).len() > count + 3).await;
    contiguous(&coordinator, 7);
}

/// Protections: SIGTERM saves where the training is, not only where its last checkpoint was; the
/// worker leaves when everything has been taken, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_leave_it_saves_its_place_and_delivers_everything() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, ENDLESS, &[0])));
    let worker = Worker::start(&coordinator, &[]);
    let states = |s: &crate::coordinator::State| s.trainer_state().is_some();
    coordinator.until("the first state", states).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    // Slow to take things: leaving must not be quicker than that.
    coordinator.with(|s| s.reports = Mood::Unavailable);
    let slow = coordinator.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        slow.with(|s| s.reports = Mood::Answers);
    });
    let (code, _) = worker.terminate().await;
    assert_eq!(code, Some(0));
    coordinator.with(|s| {
        assert!(s.left);
        assert!(s.beats.last().unwrap().1.draining);
        let accepted = s.accepted(7);
        let failure = s.failure(7).expect("the training is given back");
        assert_eq!(failure.class(), FailureClass::Preempted, "{failure:?}");
        let saved = s.trainer_state().unwrap();
        assert!(saved.step > 0, "nothing was saved on leaving");
        let given_back = format!("at step {}", saved.step);
        assert!(failure.message.ends_with(&given_back), "{} != {saved:?}", failure.message);
        assert!(matches!(accepted[accepted.len() - 2], Body::TrainerState(_)));
        assert!(s.heard.iter().all(|heard| heard.stored));
    });
    contiguous(&coordinator, 7);
}

/// Protection: a worker that cannot deliver leaves nevertheless, within the time that it was given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_does_not_last_for_ever() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, ENDLESS, &[0])));
    let worker = Worker::start(&coordinator, &["--drain-timeout", "1s"]);
    coordinator.until("metrics", |s| s.accepted(7).len() > 3).await;
    coordinator.with(|s| s.reports = Mood::Unavailable);
    let (code, took) = worker.terminate().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(coordinator.with(|s| s.left));
}

/// Accepted records of an attempt are numbered 0, 1, 2, … with none twice and none missing.
#[track_caller]
fn contiguous(coordinator: &Coordinator, attempt: u64) {
    let numbers: Vec<u64> = coordinator.with(|s| {
        let own = s.heard.iter().filter(|heard| heard.record.attempt == attempt);
        let taken = own.filter(|heard| heard.verdict == Verdict::Accepted);
        taken.map(|heard| heard.record.sequence).collect()
    });
    let expected: Vec<u64> = (0..numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
}

/// Protection: heartbeats come from a thread of their own, so that a lane deep in computation and a
/// blocked spool do not lose the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_go_on_while_the_spool_blocks() {
    let coordinator = Coordinator::start().await;
    coordinator.with(|s| s.leases.push_back(training(7, ENDLESS, &[0])));
    let _worker = Worker::start(&coordinator, &["--spool-bytes", "2KiB", "--patience", "60s"]);
    coordinator.until("metrics", |s| s.accepted(7).len() > 3).await;
    coordinator.with(|s| s.reports = Mood::Unavailable);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    tokio::time::sleep(TTL).await;
    let beats = coordinator.with(|s| s.beats.iter().filter(|(at, _)| *at > begun).count());
    assert!(beats >= 3, "{beats} heartbeats in a lease time");
    let progress = || coordinator.with(|s| s.beats.last().unwrap().1.leases[0].progress);
    let stands = progress();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(progress(), stands, "a full spool holds the training back");
}

/// Protection: a worker whose device is broken takes no more work; every other task would fail as well.
#[tokio::test]
async fn a_broken_device_ends_the_worker() {
    let coordinator = Coordinator::start().await;
    let folder = |name: &str| coordinator.folder().join(name);
    let spool = Spool::open(&folder("spool"), 1 << 20, Duration::ZERO).unwrap();
    let cache = Arc::new(Cache::open(&folder("cache"), 1 << 20).unwrap());
    let access = Access::new(BTreeMap::new(), Some(Arc::clone(&cache)), Duration::ZERO).unwrap();
    let request = pb::RegisterRequest::default();
    let session = Session::start(coordinator.url(), None, request, spool, cache).await.unwrap();
    let session = Arc::new(session);
    let root = session.registration().artifact_root;
    let store = ArtifactStore::open(&root, &BTreeMap::new(), Duration::ZERO).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let access = Arc::new(access);
    let outlet =
        Outlet { session: Arc::clone(&session), store, access, memory_bytes: None, runtime };
    let Some(Work::Train(work)) = training(7, 100, &[]).work else { panic!("it is a training") };
    let key = work.seeds[0].task.clone().unwrap();
    let lease = session.leases.add(7, vec![key.clone()], Instant::now());
    let task = outlet.task(&lease, &key).unwrap();
    task.end(Body::Failed(id::failure(id::FailureClass::OutOfMemory, "too large")));
    assert!(!session.is_draining());
    task.end(Body::Failed(id::failure(id::FailureClass::Poisoned, "illegal memory access")));
    assert!(session.is_draining());
    tokio::time::timeout(Duration::from_secs(1), session.broken()).await.unwrap();
}
