//! Following a sweep: exit codes, lost coordinators, interrupts.

use std::{fs, time::Duration};

use sweep_proto::pb::{self, SweepState};

use crate::{
    fake::{Fake, example},
    run::{eventually, finish, signal, sweep},
};

/// The example in one state.
fn status(fake: &Fake, state: SweepState, done: u64) -> pb::SweepStatus {
    let mut status = fake.with(|state| state.sweeps[0].clone());
    status.state = state as i32;
    status.total = Some(pb::Counts { total: 174, done, ..Default::default() });
    status
}

#[test]
fn the_exit_code_tells_how_the_sweep_ended() {
    let folder = tempfile::tempdir().unwrap();
    for (state, code) in
        [(SweepState::Done, 0), (SweepState::Failed, 10), (SweepState::Cancelled, 11)]
    {
        let fake = example();
        let running = status(&fake, SweepState::Running, 40);
        let last = status(&fake, state, 174);
        fake.with(|s| s.watch = vec![running, last]);
        let server = fake.start();
        let call = sweep(folder.path(), &["watch"]).env("SWEEP_COORDINATOR", &server.url).run();
        assert_eq!((call.code, call.stdout.as_str()), (code, ""), "{}", call.stderr);
        assert!(call.stderr.contains("running: 40/174 done"), "{}", call.stderr);
        assert!(call.stderr.contains("174/174 done"), "{}", call.stderr);
        let words = "failed modular-addition-seed1/train (permanent): loss is NaN at step 300";
        assert_eq!(call.stderr.matches(words).count(), 1, "once, not at every status");
    }
}

#[test]
fn json_is_a_line_per_status() {
    let fake = example();
    let statuses =
        vec![status(&fake, SweepState::Running, 1), status(&fake, SweepState::Done, 174)];
    fake.with(|s| s.watch = statuses);
    let server = fake.start();
    let folder = tempfile::tempdir().unwrap();
    let call = sweep(folder.path(), &["watch", "--output", "json"]);
    let lines = call.env("SWEEP_COORDINATOR", &server.url).run().ok();
    let documents: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[1]["state"], "done");
    assert_eq!(documents[0]["schema"], "sweep.status/v1");
}

#[test]
fn a_restarted_coordinator_is_found_again() {
    let fake = example();
    fake.with(|s| s.watch_stays = true);
    let running = status(&fake, SweepState::Running, 40);
    fake.with(|s| s.watch = vec![running]);
    let server = fake.start();
    let url = server.url.clone();
    let folder = tempfile::tempdir().unwrap();
    let err = fs::File::create(folder.path().join("err")).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sweep"));
    command.args(["watch", "--until-done"]).env("SWEEP_COORDINATOR", &url).stderr(err);
    let mut child = command.spawn().unwrap();
    let said = || fs::read_to_string(folder.path().join("err")).unwrap();
    eventually("the first status", || said().contains("40/174"));
    server.stop();
    eventually("the loss is noticed", || said().contains("waiting for it"));
    let done = status(&fake, SweepState::Done, 174);
    fake.with(|s| s.watch = vec![done]);
    let _server = fake.start_on(url.trim_start_matches("http://"));
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", said());
    assert!(said().contains("174/174"), "{}", said());
}

#[test]
fn an_interrupt_detaches_and_says_so() {
    let fake = example();
    let running = status(&fake, SweepState::Running, 40);
    fake.with(|s| (s.watch, s.watch_stays) = (vec![running], true));
    let server = fake.start();
    let folder = tempfile::tempdir().unwrap();
    for (arguments, code) in [(&["watch"][..], 0), (&["watch", "last", "--until-done"], 1)] {
        let call = sweep(folder.path(), arguments).env("SWEEP_COORDINATOR", &server.url);
        let child = call.start();
        // Long enough to have its handlers; an early signal would end it with no code at all.
        std::thread::sleep(Duration::from_secs(1));
        signal(&child, "-INT");
        let finished = finish(child);
        assert_eq!(finished.code, code, "{}", finished.stderr);
        assert!(finished.stderr.contains("detached; the sweep goes on"), "{}", finished.stderr);
    }
}

#[test]
fn submit_may_wait_for_the_end() {
    let fake = example();
    let last = status(&fake, SweepState::Failed, 170);
    fake.with(|s| s.watch = vec![last]);
    let server = fake.start();
    let folder = tempfile::tempdir().unwrap();
    let file = "name: w\nmodels: [{ train: { recipe: modular-addition } }]\n";
    fs::write(folder.path().join("w.yaml"), file).unwrap();
    let call = sweep(folder.path(), &["submit", "w.yaml", "--watch"]);
    let finished = call.env("SWEEP_COORDINATOR", &server.url).run();
    assert_eq!(finished.code, 10, "{}", finished.stderr);
    assert!(finished.stdout.starts_with("w-") && finished.stdout.lines().count() == 1);
}
