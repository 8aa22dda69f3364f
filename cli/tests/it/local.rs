//! `sweep local`: which processes run when, and what happens when they die.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sweep_proto::pb::{self, SweepState};

use crate::{
    fake::{Fake, Server},
    run::{Finished, Sweep, eventually, finish, script, signal, sweep},
};

const FILE: &str = "name: tiny\nmodels: [{ train: { recipe: modular-addition } }]\n";

/// A folder, a coordinator program that leads to a server in this process, and a worker program.
struct Setup {
    fake: Fake,
    server: Server,
    folder: tempfile::TempDir,
    coordinator: PathBuf,
    worker: PathBuf,
}

/// Writes what happens to it into `life`, in order with the coordinator's.
const WORKER: &str = "life=\"$5/../life\"\necho worker started >> \"$life\"\n\
    trap 'echo worker stopped >> \"$life\"; exit 0' TERM\n\
    echo \"$@\" > \"$5/../worker-arguments\"\n\
    while :; do sleep 0.05; done";

fn setup(worker: &str) -> Setup {
    let fake = Fake::default();
    let server = fake.start();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.yaml"), FILE).unwrap();
    let body = format!(
        "echo coordinator started >> \"$3/life\"\n\
         trap 'echo coordinator stopped >> \"$3/life\"; exit 0' TERM\n\
         echo $$ > \"$3/coordinator-pid\"\necho \"$5\" >> \"$3/listen\"\necho {}\n\
         while read line; do :; done",
        server.url
    );
    let coordinator = script(folder.path(), "coordinator", &body);
    let worker = script(folder.path(), "worker", &format!("mkdir -p \"$5\"\n{worker}"));
    Setup { fake, server, folder, coordinator, worker }
}

impl Setup {
    fn local(&self, more: &[&str]) -> Sweep {
        let arguments = [&["local", "tiny.yaml", "--dir", "data"], more].concat();
        sweep(self.folder.path(), &arguments)
            .env("SWEEP_COORDINATOR_BIN", &self.coordinator)
            .env("SWEEP_WORKER_BIN", &self.worker)
    }

    /// Runs it; the sweep ends in `state` once the worker has begun.
    fn run_to(&self, state: SweepState) -> Finished {
        let begun = self.data().join("worker-arguments");
        let _ = fs::remove_file(&begun);
        self.watch(SweepState::Running, true);
        let child = self.local(&[]).start();
        eventually("the worker runs", || exists(&begun));
        self.watch(state, false);
        finish(child)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn life(&self) -> Vec<String> {
        let text = fs::read_to_string(self.data().join("life")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What a watch says from now on.
    fn watch(&self, state: SweepState, stays: bool) {
        let status = pb::SweepStatus {
            sweep: "tiny".into(),
            state: state as i32,
            spec: serde_json::json!({
                "name": "tiny",
                "models": [{ "train": { "recipe": "modular-addition" } }],
            })
            .to_string(),
            ..Default::default()
        };
        self.fake.with(|s| (s.watch, s.watch_stays) = (vec![status], stays));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.data().join(name)).unwrap_or_default()
    }
}

fn exists(path: &Path) -> bool {
    path.exists()
}

#[test]
fn both_run_while_there_is_work_and_stop_in_order() {
    for (state, code) in [(SweepState::Failed, 10), (SweepState::Cancelled, 11)] {
        let setup = setup(WORKER);
        setup.watch(SweepState::Running, true);
        let child = setup.local(&["--slots", "3", "--threads", "1", "--device", "cuda:1"]).start();
        eventually("the worker runs", || exists(&setup.data().join("worker-arguments")));
        signal(&child, "-INT");
        let finished = finish(child);
        assert_eq!(finished.code, 1, "{}", finished.stderr);
        assert!(
            finished.stderr.contains("sweep local tiny.yaml --dir data"),
            "{}",
            finished.stderr
        );
        let id = finished.stdout.trim();
        assert!(id.starts_with("tiny-") && finished.stdout == format!("{id}\n"));
        let expected =
            ["coordinator started", "worker started", "worker stopped", "coordinator stopped"];
        assert_eq!(setup.life(), expected);
        let arguments = setup.read("worker-arguments");
        let url = &setup.server.url;
        assert!(
            arguments.starts_with(&format!("run --coordinator {url} --cache /")),
            "{arguments}"
        );
        assert!(
            arguments.trim_end().ends_with("--device cuda:1 --slots 3 --threads 1"),
            "{arguments}"
        );
        // The same again: the sweep goes on, and ends once the worker has begun.
        let again = setup.run_to(state);
        assert_eq!((again.code, again.stdout.trim()), (code, id), "{}", again.stderr);
        assert_eq!(setup.life().len(), 8);
    }
}

#[test]
fn a_finished_sweep_starts_no_worker() {
    let setup = setup(WORKER);
    let first = setup.run_to(SweepState::Done);
    assert_eq!(first.code, 0, "{}", first.stderr);
    setup.fake.with(|s| s.sweeps[0].state = SweepState::Done as i32);
    let before = setup.life().iter().filter(|line| *line == "worker started").count();
    let again = setup.local(&["--output", "json"]).run();
    let after = setup.life().iter().filter(|line| *line == "worker started").count();
    assert_eq!((before, after), (1, 1));
    let document: serde_json::Value = serde_json::from_str(&again.ok()).unwrap();
    assert_eq!(
        (&document["schema"], &document["state"]),
        (&"sweep.local/v1".into(), &"done".into())
    );
}

#[test]
fn a_bad_file_starts_nothing() {
    let setup = setup(WORKER);
    fs::write(setup.folder.path().join("tiny.yaml"), "name: tiny\nmodels: []\n").unwrap();
    setup.local(&[]).run().fails(2, &["tiny.yaml:2:9", "nothing would run"]);
    assert!(!setup.data().exists());
    fs::write(setup.folder.path().join("tiny.yaml"), FILE).unwrap();
    setup.local(&["--max-tasks", "0"]).run().fails(2, &["more than --max-tasks 0"]);
    assert!(!setup.data().exists());
}

#[test]
fn a_dying_worker_is_started_again_once() {
    let setup = setup("echo 'worker started' >> \"$5/../life\"\necho 'out of luck' >&2\nexit 7");
    setup.watch(SweepState::Running, true);
    let finished = setup.local(&[]).run();
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    for words in
        ["starting it again", "ended again, with exit status: 7", "out of luck", "worker.log"]
    {
        assert!(finished.stderr.contains(words), "`{words}` is not in\n{}", finished.stderr);
    }
    let expected =
        ["coordinator started", "worker started", "worker started", "coordinator stopped"];
    assert_eq!(setup.life(), expected);
}

#[test]
fn with_keep_going_it_is_started_again_and_again() {
    let setup = setup("echo 'worker started' >> \"$5/../life\"\nexit 7");
    setup.watch(SweepState::Running, true);
    let child = setup.local(&["--keep-going"]).start();
    let starts = || setup.life().iter().filter(|line| *line == "worker started").count();
    eventually("four starts", || starts() >= 4);
    signal(&child, "-TERM");
    assert_eq!(finish(child).code, 1);
}

#[test]
fn a_killed_coordinator_is_started_again_on_its_port() {
    let setup = setup(WORKER);
    setup.watch(SweepState::Running, true);
    let child = setup.local(&[]).start();
    eventually("the worker runs", || exists(&setup.data().join("worker-arguments")));
    std::thread::sleep(Duration::from_millis(500));
    setup.watch(SweepState::Done, false);
    let pid = setup.read("coordinator-pid");
    let killed = std::process::Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap();
    assert!(killed.success());
    let finished = finish(child);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(
        finished.stderr.contains("the coordinator ended with signal: 9"),
        "{}",
        finished.stderr
    );
    let port = setup.server.url.trim_start_matches("http://");
    assert_eq!(setup.read("listen"), format!("127.0.0.1:0\n{port}\n"));
    let life = setup.life();
    assert_eq!(life.iter().filter(|line| *line == "coordinator started").count(), 2);
    assert_eq!(life.iter().filter(|line| *line == "worker started").count(), 1, "{life:?}");
}

#[test]
fn the_coordinator_and_worker_of_another_command_are_used() {
    let setup = setup(WORKER);
    setup.watch(SweepState::Done, false);
    fs::create_dir(setup.data()).unwrap();
    fs::write(setup.data().join("address"), &setup.server.url).unwrap();
    setup.fake.with(|s| {
        s.workers = vec![pb::WorkerInfo { state: "ready".into(), ..Default::default() }];
    });
    let finished = setup.local(&[]).run();
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("runs on data already"), "{}", finished.stderr);
    assert_eq!(setup.life(), Vec::<String>::new());
    // Its worker is gone: one of our own, and only that.
    setup.fake.with(|s| s.workers.clear());
    fs::write(setup.folder.path().join("tiny.yaml"), FILE.replace("tiny", "tiny2")).unwrap();
    assert_eq!(setup.run_to(SweepState::Done).code, 0);
    assert_eq!(setup.life(), ["worker started", "worker stopped"]);
}

#[test]
fn the_user_s_environment_reaches_the_worker() {
    let setup = setup(
        "env > \"$5/../part\"\nmv \"$5/../part\" \"$5/../environment\"\n\
        while :; do sleep 0.05; done",
    );
    setup.watch(SweepState::Running, true);
    let child = setup.local(&[]).env("MALLOC_CONF", "thp:never").start();
    eventually("the worker runs", || exists(&setup.data().join("environment")));
    signal(&child, "-INT");
    assert_eq!(finish(child).code, 1);
    let environment = setup.read("environment");
    assert!(environment.lines().any(|line| line == "MALLOC_CONF=thp:never"), "{environment}");
}
