//! Which coordinator a command uses, and the one that it starts by itself.

use std::fs;

use crate::{
    fake::{Fake, example},
    run::{eventually, script, sweep},
};

/// A coordinator program that leads to a server in this process and notes its life in its folder.
fn coordinator(url: &str) -> String {
    format!(
        "echo $$ > \"$3/pid\"; echo started >> \"$3/life\"\n\
         trap 'echo stopped >> \"$3/life\"; exit 0' TERM\n\
         echo {url}\n\
         while read line; do :; done; echo orphaned >> \"$3/life\""
    )
}

#[test]
fn without_anything_there_is_help() {
    let folder = tempfile::tempdir().unwrap();
    let hints = ["sweep local FILE", "--coordinator", "--dir"];
    sweep(folder.path(), &["list"]).run().fails(6, &hints);
    sweep(folder.path(), &["list", "--dir", "nowhere"]).run().fails(3, &["nowhere"]);
}

#[test]
fn a_named_coordinator_wins_over_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".sweep")).unwrap();
    let never = script(folder.path(), "never", "touch started; exit 1");
    let server = example().start();
    let list = |arguments: &[&str], variable: &str| {
        let call = sweep(folder.path(), arguments).env("SWEEP_COORDINATOR_BIN", &never);
        call.env("SWEEP_COORDINATOR", variable).run().ok()
    };
    assert!(list(&["list"], &server.url).contains("grokking-0123456789"));
    let flag = ["list", "--coordinator", &server.url, "--dir", ".sweep"];
    assert!(list(&flag, "http://127.0.0.1:1").contains("grokking-0123456789"));
    assert!(!folder.path().join("started").exists());
}

#[test]
fn a_running_coordinator_of_the_folder_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let server = example().start();
    fs::create_dir(folder.path().join(".sweep")).unwrap();
    fs::write(folder.path().join(".sweep/address"), format!("{}\n", server.url)).unwrap();
    let never = script(folder.path(), "never", "touch started; exit 1");
    let call = sweep(folder.path(), &["list", "-v"]).env("SWEEP_COORDINATOR_BIN", &never).run();
    assert!(call.stderr.contains("running on .sweep"), "{}", call.stderr);
    assert!(call.ok().contains("grokking-0123456789"));
    assert!(!folder.path().join("started").exists());
}

#[test]
fn a_coordinator_that_another_command_takes_away_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let fake = example();
    let server = fake.start();
    fs::create_dir(folder.path().join(".sweep")).unwrap();
    fs::write(folder.path().join(".sweep/address"), &server.url).unwrap();
    fake.with(|state| state.stopping = true);
    assert!(sweep(folder.path(), &["list"]).run().ok().contains("grokking-0123456789"));
    // A coordinator with a name is the user's own affair: no second try.
    fake.with(|state| state.stopping = true);
    let named = sweep(folder.path(), &["list", "--coordinator", &server.url]).run();
    named.fails(6, &["does not answer", "stopping"]);
}

#[test]
fn a_coordinator_is_started_for_the_command_and_stopped_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    // An address of one that is gone.
    fs::write(data.join("address"), "http://127.0.0.1:1\n").unwrap();
    let server = example().start();
    let program = script(folder.path(), "coordinator", &coordinator(&server.url));
    for arguments in [&["list", "--dir", "data"][..], &["status", "--dir", "data"]] {
        let call = sweep(folder.path(), arguments).env("SWEEP_COORDINATOR_BIN", &program);
        assert!(call.run().ok().contains("grokking-0123456789"));
    }
    let life = fs::read_to_string(data.join("life")).unwrap();
    assert_eq!(life, "started\nstopped\nstarted\nstopped\n");
    let failing = sweep(folder.path(), &["status", "x", "--dir", "data"]);
    failing.env("SWEEP_COORDINATOR_BIN", &program).run().fails(3, &["no sweep `x`"]);
    assert!(fs::read_to_string(data.join("life")).unwrap().ends_with("started\nstopped\n"));
}

#[test]
fn a_coordinator_that_does_not_start_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".sweep")).unwrap();
    let body = "echo 'the store was written by a newer version' >&2; exit 1";
    let program = script(folder.path(), "coordinator", body);
    let call = sweep(folder.path(), &["list"]).env("SWEEP_COORDINATOR_BIN", &program).run();
    call.fails(1, &["exit status: 1", "written by a newer version", "coordinator.log"]);
    let missing = sweep(folder.path(), &["list"]).env("SWEEP_COORDINATOR_BIN", "./nothing").run();
    missing.fails(1, &["cannot start `./nothing`", "SWEEP_COORDINATOR_BIN"]);
}

#[test]
fn a_killed_command_leaves_no_coordinator_behind() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join(".sweep");
    fs::create_dir(&data).unwrap();
    let fake = Fake::default();
    let server = fake.start();
    // Waits before it gives its address, so that the command can be killed in between.
    let life = coordinator(&server.url);
    let body = format!("trap '' PIPE\ntouch \"$3/up\"\nsleep 1\n{life}");
    let program = script(folder.path(), "coordinator", &body);
    let call = sweep(folder.path(), &["list"]).env("SWEEP_COORDINATOR_BIN", &program);
    let mut child = call.start();
    eventually("the coordinator runs", || data.join("up").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let life = || fs::read_to_string(data.join("life")).unwrap_or_default();
    eventually("it notices", || life().contains("orphaned"));
}
