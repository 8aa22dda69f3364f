//! Models that this system did not train.

use serde_json::{Value, json};
use sweep_proto::pb;

use super::check_in;
use crate::core::{
    event::{Answer, Body},
    plan::Plan,
    scenario::{World, plan, task, test_catalog},
};

fn sweep() -> Value {
    json!({
        "name": "real",
        "models": [{
            "path": "/runs/lm", "dtype": "float64", "checkpoints": { "every": 10 },
            "found": { "at": "file:///runs/lm/{}",
                       "checkpoints": [[0, "step0"], [7, "step7"], [10, "step10"]] },
        }],
        "experiments": ["probe"],
        "trajectory": ["pca"],
    })
}

#[test]
fn an_import_makes_checkpoints_known_and_everything_follows() {
    let mut world = World::new(&sweep());
    world.run("w1 joins");
    // A worker that keeps its last slot free of training still gets the import.
    let Answer::Lease(Some(lease)) = world.acquire("w1", false, &[]) else { panic!("no lease") };
    let Some(pb::lease::Work::Import(work)) = lease.work else { panic!("no import") };
    let names: Vec<&str> = work.checkpoints.iter().map(|found| found.name.as_str()).collect();
    assert_eq!((work.at.as_str(), &names[..]), ("file:///runs/lm/{}", &["step0", "step10"][..]));
    assert_eq!(work.options.unwrap().dtype, "float64");
    world.run("w1 publishes m0/import 0; w1 publishes m0/import 10");
    let Answer::Lease(Some(lease)) = world.acquire("w1", true, &["file-of-step10"]) else {
        panic!("no lease")
    };
    let Some(pb::lease::Work::Analyse(work)) = lease.work else { panic!("no analysis") };
    assert_eq!(work.model, "lm");
    let checkpoint = work.checkpoint.unwrap();
    assert_eq!(checkpoint.step, 10, "the files of step 10 are at hand");
    assert_eq!(checkpoint.imported.unwrap().location, "file:///runs/lm/step10");
    assert_eq!(work.previous.unwrap().step, 0);
    check_in(
        &mut world,
        "w1 finishes m0/step10/e0; w1 acquires; w1 finishes m0/step0/e0; w1 finishes m0/import; w1 acquires",
        "w1 <- 1.3: m0/step0/e0
        w1 <- 1.4: m0/trajectory/t0",
    );
}

#[test]
fn only_what_was_asked_for_can_be_made_known() {
    let mut world = World::new(&sweep());
    world.run("w1 joins; w1 acquires");
    let task = task("m0/import");
    let attempt = *world.workers["w1"].leases.keys().next().unwrap();
    let mut say = |change: &dyn Fn(&mut pb::Checkpoint)| {
        let mut checkpoint = world.imported(task, 10);
        change(&mut checkpoint);
        let verdict = world.say("w1", task, attempt, Body::Checkpoint(checkpoint));
        (verdict, world.run("+0s"))
    };
    let moved = |c: &mut pb::Checkpoint| {
        c.imported.as_mut().unwrap().location = "file:///etc".into();
    };
    let huge = |c: &mut pb::Checkpoint| {
        c.imported.as_mut().unwrap().files = vec![pb::Blob::default(); 2000];
    };
    let mut refuse = |change: &dyn Fn(&mut pb::Checkpoint), problem: &str| {
        let (verdict, told) = say(change);
        assert_eq!(verdict, pb::Verdict::Invalid);
        assert!(told.contains(problem), "{told}");
    };
    refuse(&moved, "expected `file:///runs/lm/step10`");
    refuse(&|c| c.imported = None, "names no location");
    refuse(&|c| c.step = 7, "no checkpoint is wanted at step 7");
    refuse(&huge, "out of bounds");
    assert_eq!(say(&|_| {}).0, pb::Verdict::Accepted);
}

#[test]
fn labels_of_imported_models_are_distinct() {
    let found = json!({ "at": "hub:a/{}", "checkpoints": [[0, "x"]] });
    let model = |source: &str, value: &str| json!({ source: value, "found": found });
    let document = json!({ "name": "real", "experiments": ["probe"], "models": [
        model("path", "/a/lm"), model("path", "/b/lm/"), model("hub", "org/other"),
        { "train": { "recipe": "r", "seeds": 1 } },
    ] });
    let plan = plan(&document);
    let labels: Vec<String> = (0..plan.n_models()).map(|index| plan.model_label(index)).collect();
    assert_eq!(labels, ["lm-entry=0", "lm-entry=1", "other", "r-seed0"]);
    assert_eq!(plan.model(0).unwrap().seed, None);
    let unlisted = json!({ "name": "real", "experiments": ["probe"], "models": ["gpt2"] });
    let problems = Plan::resolve(&unlisted, &test_catalog(), 100).unwrap_err();
    assert!(problems[0].contains("models[0]: its checkpoints were not listed"), "{problems:?}");
}
