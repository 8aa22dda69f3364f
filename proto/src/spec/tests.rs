use serde_json::json;

use super::*;
use crate::pb;

fn catalog() -> pb::Catalog {
    let param = |name: &str, kind: &str, default: &str| pb::Param {
        name: name.into(),
        kind: kind.into(),
        default: default.into(),
        min: (kind == "int").then_some(1.0),
        ..Default::default()
    };
    let metric = |name: &str| pb::Metric { name: name.into(), ..Default::default() };
    pb::Catalog {
        recipes: vec![pb::Recipe {
            name: "modular-addition".into(),
            version: 1,
            params: vec![
                param("p", "int", "113"),
                param("weight_decay", "float", "1.0"),
                param("steps", "int", "1000"),
                param("widths", "int-list", "[1]"),
                pb::Param { divides: "d_model".into(), ..param("n_heads", "int", "4") },
                param("d_model", "int", "64"),
                pb::Param { at_most: "steps".into(), ..param("switch", "int", "1") },
            ],
            metrics: vec![metric("train_loss")],
            ..Default::default()
        }],
        experiments: vec![
            pb::Experiment {
                name: "grokking-progress".into(),
                stage: "analyse".into(),
                params: vec![param("threshold", "float", "0.85")],
                metrics: vec![metric("test_loss")],
                ..Default::default()
            },
            pb::Experiment {
                name: "activations".into(),
                stage: "analyse".into(),
                params: vec![
                    pb::Param { group: "input".into(), ..param("tokens", "int-lists", "[]") },
                    pb::Param { group: "input".into(), ..param("text", "text-list", "[]") },
                    param("prepend_bos", "bool", "null"),
                ],
                ..Default::default()
            },
            pb::Experiment {
                name: "report".into(),
                stage: "trajectory".into(),
                reads: vec!["grokking-progress.test_loss".into()],
                ..Default::default()
            },
            pb::Experiment {
                name: "similarity".into(),
                stage: "compare".into(),
                params: vec![param("k", "int", "1")],
                metrics: vec![metric("js")],
                ..Default::default()
            },
            pb::Experiment {
                name: "phase-transition".into(),
                stage: "trajectory".into(),
                params: vec![param("metric", "metric", "\"\"")],
                ..Default::default()
            },
            pb::Experiment {
                name: "order".into(),
                stage: "trajectory".into(),
                params: vec![param("metrics", "metric-list", "[]")],
                ..Default::default()
            },
        ],
    }
}

fn problems(document: &Value) -> Vec<String> {
    let result = SweepSpec::decode(document).and_then(|spec| spec.check(document, &catalog()));
    result.err().unwrap_or_default().iter().map(Problem::one_line).collect()
}

#[track_caller]
fn check(patch: Value, expected: &str) {
    let mut document = json!({
        "name": "grokking",
        "models": [{ "train": { "recipe": "modular-addition" } }],
        "experiments": ["grokking-progress"],
    });
    for (key, value) in patch.as_object().unwrap() {
        document[key] = value.clone();
    }
    let found = problems(&document).join("\n");
    assert!(
        found.contains(expected) && (found.is_empty() == expected.is_empty()),
        "expected: {expected}\nfound: {found}"
    );
}

#[test]
fn good_files_have_no_problems() {
    check(json!({}), "");
    check(
        json!({ "trajectory": [{ "phase-transition": { "metric": "grokking-progress.test_loss" } }] }),
        "",
    );
    check(
        json!({ "models": [{ "train": { "recipe": "modular-addition",
        "params": { "p": [59, 71], "widths": [1, 2] }, "seeds": 3 }, "checkpoints": { "every": 10 } }] }),
        "",
    );
}

#[test]
fn every_mistake_is_named_with_its_place() {
    check(json!({ "experimets": [] }), "experimets: unknown key `experimets`");
    check(json!({ "experimets": [] }), "did you mean `experiments`?");
    check(json!({ "models": [] }), "models: `models` is empty");
    check(json!({ "models": 3 }), "expected a list of models, found a number");
    check(json!({ "name": "a/b" }), "cannot be a sweep name");
    check(json!({ "experiments": ["groking-progress"] }), "did you mean `grokking-progress`?");
    check(json!({ "experiments": ["phase-transition"] }), "move it to `trajectory`");
    check(json!({ "trajectory": ["phase-transition"] }), "needs the parameter `metric`");
    check(
        json!({ "trajectory": [{ "phase-transition": { "metric": "grokking-progress.tst_loss" } }] }),
        "did you mean `grokking-progress.test_loss`?",
    );
    check(json!({ "trajectory": ["order"] }), "needs the parameter `metrics`");
    let order = |metrics: Value| json!({ "trajectory": [{ "order": { "metrics": metrics } }] });
    check(order(json!(["grokking-progress.test_loss"])), "");
    check(order(json!("grokking-progress.test_loss")), "`metrics` must be a list");
    check(
        order(json!(["grokking-progress.tst_loss"])),
        "did you mean `grokking-progress.test_loss`?",
    );
    check(
        json!({ "experiments": [{ "grokking-progress": { "treshold": 1 } }] }),
        "experiments[0].grokking-progress.treshold: experiment `grokking-progress` has no parameter",
    );
    let train = |train: Value| json!({ "models": [{ "train": train }] });
    check(train(json!({ "recipe": "modular-adition" })), "did you mean `modular-addition`?");
    check(
        train(json!({ "recipe": "modular-addition", "params": { "p": "x" } })),
        "must be a whole number",
    );
    check(
        train(json!({ "recipe": "modular-addition", "params": { "p": [0] } })),
        "params.p[0]: `p` must be at least 1",
    );
    check(
        train(json!({ "recipe": "modular-addition", "params": { "p": [] } })),
        "the axis `p` is empty",
    );
    check(
        train(json!({ "recipe": "modular-addition", "params": { "p": [3, 3] } })),
        "lists 3 twice",
    );
    check(train(json!({ "recipe": "modular-addition", "seeds": 0 })), "`seeds` must be 1 to");
    check(
        train(json!({ "recipe": "modular-addition", "seeds": [1, 1] })),
        "seed 1 is listed twice",
    );
    check(
        json!({ "models": [{ "train": { "recipe": "modular-addition" }, "checkpoints": { "steps": [5000] } }] }),
        "step 5000 lies beyond the training's 1000 steps",
    );
    check(
        json!({ "models": [{ "train": {}, "checkpoints": { "evry": 1 } }] }),
        "did you mean `every`?",
    );
}

#[test]
fn one_of_a_group_and_lists_of_lists() {
    let with = |params: Value| json!({ "experiments": [{ "activations": params }] });
    check(with(json!({ "tokens": [[1, 2], [3]] })), "");
    check(with(json!({ "text": ["a"], "prepend_bos": null })), "");
    check(with(json!({ "text": ["a"], "tokens": [] })), "");
    check(json!({ "experiments": ["activations"] }), "needs one of `tokens`, `text`");
    check(with(json!({ "tokens": [] })), "needs one of `tokens`, `text`");
    check(
        with(json!({ "text": ["a"], "tokens": [[1]] })),
        "experiments[0].activations.text: experiment `activations` takes only one of",
    );
    check(with(json!({ "tokens": [1, 2] })), "`tokens` must be a list of lists, found [1,2]");
    check(with(json!({ "tokens": [[1, "x"]] })), "`tokens` must be a whole number");
    check(with(json!({ "tokens": [[1.5]] })), "`tokens` must be a whole number");
    check(with(json!({ "tokens": [[1]], "prepend_bos": 1 })), "must be true or false");
    check(with(json!({ "text": null })), "`text` must be a list");
}

#[test]
fn relations_hold_for_every_combination() {
    let with = |params: Value| json!({ "models": [{ "train": { "recipe": "modular-addition", "params": params } }] });
    check(with(json!({ "n_heads": [2, 8], "d_model": [16, 64] })), "");
    check(
        with(json!({ "n_heads": [2, 3] })),
        "models[0].train.params.n_heads: `n_heads` 3 does not divide `d_model` 64",
    );
    check(
        with(json!({ "d_model": [64, 66] })),
        "models[0].train.params.d_model: `n_heads` 4 does not divide `d_model` 66",
    );
    check(with(json!({ "switch": 1000 })), "");
    check(with(json!({ "switch": 10, "steps": [10, 9] })), "`switch` 10 is more than `steps` 9");
    // What is wrong by itself is told as that alone.
    let mut document = with(json!({ "n_heads": 0 }));
    document["name"] = json!("grokking");
    assert_eq!(
        problems(&document),
        ["models[0].train.params.n_heads: `n_heads` must be at least 1, found 0"]
    );
}

#[test]
fn what_is_read_has_to_be_produced() {
    check(json!({ "trajectory": ["report"] }), "");
    check(
        json!({ "trajectory": ["report"], "experiments": [] }),
        "trajectory[0]: `report` reads the metric `grokking-progress.test_loss`, which nothing here \
         produces; add `grokking-progress` to `experiments`",
    );
}

#[test]
fn a_metric_means_one_experiment() {
    let with = |experiments: Value, compare: Value, metric: &str| {
        json!({ "experiments": experiments, "compare": compare, "models": [{ "train": {
            "recipe": "modular-addition", "seeds": 2 } }],
            "trajectory": [{ "phase-transition": { "metric": metric } }] })
    };
    let twice = json!(["grokking-progress", { "grokking-progress": { "threshold": 0.5 } }]);
    check(
        with(twice.clone(), json!([]), "grokking-progress.test_loss"),
        "trajectory[0].phase-transition.metric: `grokking-progress.test_loss` means 2 of the 2 \
         experiments `grokking-progress` that are listed; name one, in quotes: \
         `grokking-progress[threshold=].test_loss` or `grokking-progress[threshold=0.5].test_loss`",
    );
    check(with(twice.clone(), json!([]), "grokking-progress[threshold=0.5].test_loss"), "");
    check(with(twice.clone(), json!([]), "grokking-progress[threshold=].test_loss"), "");
    check(
        with(twice, json!([]), "grokking-progress[threshold=2].test_loss"),
        "means none of the 2",
    );
    // Of a model's own series, what compares it with many others is none.
    let none = json!([]);
    let seeds = json!([{ "similarity": { "pairs": "seeds" } }]);
    check(with(none.clone(), seeds, "similarity.js"), "no metric `similarity.js` in this sweep");
    let both =
        json!([{ "similarity": { "pairs": "seeds" } }, { "similarity": { "pairs": "to-final" } }]);
    check(with(none.clone(), both, "similarity.js"), "");
    let two = json!([{ "similarity": { "pairs": "consecutive" } }, { "similarity": { "pairs": "to-final" } }]);
    check(with(none.clone(), two.clone(), "similarity.js"), "`similarity[pairs=to-final].js`");
    check(with(none, two, "similarity[pairs=to-final].js"), "");
}

#[test]
fn lists_of_lists_are_axes_only_one_level_deeper() {
    let param = |kind: &str| pb::Param { kind: kind.into(), ..Default::default() };
    let is_axis = |kind: &str, value: Value| expand::axis_of(&param(kind), &value).is_some();
    assert!(is_axis("int", json!([1])) && !is_axis("int", json!(1)));
    assert!(is_axis("int-list", json!([[1]])) && !is_axis("int-list", json!([1])));
    assert!(is_axis("int-lists", json!([[[1]]])) && !is_axis("int-lists", json!([[1]])));
    assert!(!is_axis("int-lists", json!([])) && is_axis("int", json!([])));
}

#[test]
fn equal_sweeps_have_equal_ids_and_survive_a_round_trip() {
    let short = json!({ "name": "g", "models": [{ "train": { "recipe": "r", "seeds": 2,
        "params": { "b": 1, "a": 2 } } }], "experiments": ["e"] });
    let long = json!({ "experiments": [{ "e": {} }], "name": "g", "priority": 0, "models": [
        { "train": { "params": { "a": 2, "b": 1 }, "recipe": "r", "seeds": [0, 1] } }] });
    let (short, long) = (SweepSpec::decode(&short).unwrap(), SweepSpec::decode(&long).unwrap());
    assert_eq!(short.id(), long.id());
    let again = SweepSpec::decode(&short.to_json()).unwrap();
    assert_eq!(again.id(), short.id());
    assert_eq!(again, short);
}

#[test]
fn checkpoint_selections_cover_start_and_end() {
    use CheckpointSelection::{Every, Final, Last, Log2, Steps};
    let steps = |selection: Option<&CheckpointSelection>| expand::training_steps(selection, 1000);
    assert_eq!(steps(Some(&Every(400))), [0, 400, 800, 1000]);
    assert_eq!(steps(Some(&Final)), [1000]);
    assert_eq!(steps(Some(&Steps(vec![3, 5]))), [3, 5]);
    assert_eq!(steps(Some(&Log2(0, 3))), [0, 1, 2, 4, 8, 1000]);
    assert_eq!(steps(Some(&Last(2))), [975, 1000]);
    assert_eq!(steps(None).len(), 41);
}

fn empty() -> SweepSpec {
    SweepSpec::decode(&json!({ "name": "x", "models": ["a"] })).unwrap()
}

#[test]
fn grids_are_indexed_without_being_built() {
    let catalog = catalog();
    let params = json!({ "p": [59, 71], "weight_decay": [0.1, 0.3, 1.0], "widths": [1, 2] });
    let params = params.as_object().unwrap();
    let axes = expand::axes(&catalog.recipes[0], params);
    assert_eq!(expand::grid_size(&axes), 6);
    let point = expand::point(params, &axes, 4);
    assert_eq!((&point["p"], &point["weight_decay"]), (&json!(71), &json!(0.3)));
    assert_eq!(point["widths"], json!([1, 2]));
    let source = ModelSource::Train {
        recipe: "modular-addition".into(),
        params: params.clone(),
        seeds: vec![7],
    };
    let model = ModelSpec { source, import: Import::default(), checkpoints: None };
    let spec = SweepSpec { models: vec![model], ..empty() };
    let models = Models::new(&spec, &catalog).unwrap();
    assert_eq!(models.len(), 6);
    assert_eq!(models.label(4), "modular-addition-p=71-weight_decay=0.3-seed7");
    assert_eq!(models.entries()[0].label(), "modular-addition");
}

#[test]
fn trained_models_are_called_as_their_entry_says() {
    let entry = |name: &str, params: Value, seeds: u64| json!({ "name": name, "train": { "recipe": "modular-addition", "params": params, "seeds": seeds } });
    let document = json!({ "name": "arms", "models": [
        entry("baseline", json!({}), 1),
        entry("more decay", json!({ "weight_decay": [1.0, 2.0] }), 1),
        entry("twice", json!({ "weight_decay": 0.5 }), 1),
        entry("twice", json!({ "weight_decay": 0.7 }), 1),
    ] });
    let spec = SweepSpec::decode(&document).unwrap();
    assert_eq!(SweepSpec::decode(&spec.to_json()).unwrap(), spec);
    let models = Models::new(&spec, &catalog()).unwrap();
    let labels: Vec<String> = (0..5).map(|index| models.label(index)).collect();
    assert_eq!(
        labels,
        [
            "baseline-seed0",
            "more_decay-weight_decay=1.0-seed0",
            "more_decay-weight_decay=2.0-seed0",
            "twice-weight_decay=0.5-seed0",
            "twice-weight_decay=0.7-seed0",
        ]
    );
}

#[test]
fn imported_models_are_decoded_with_their_settings() {
    let document = json!({ "name": "real", "models": [
        "pythia-160m",
        { "hub": "EleutherAI/pythia-70m", "checkpoints": { "steps": [0, 512] } },
        { "path": "runs/my-lm/", "family": "gpt2", "dtype": "float64",
          "processing": ["center_unembed", "fold_ln"], "prepend_bos": true },
        { "name": "gpt2" },
    ] });
    let spec = SweepSpec::decode(&document).unwrap();
    let labels: Vec<String> = spec.models.iter().map(expand::import_label).collect();
    assert_eq!(labels, ["pythia-160m", "pythia-70m", "my-lm", "gpt2"]);
    assert_eq!(spec.models[2].import.processing.as_deref(), Some("fold_ln+center_unembed"));
    assert_eq!(SweepSpec::decode(&spec.to_json()).unwrap(), spec);
    let problems = spec.check(&document, &catalog()).unwrap_err();
    assert!(problems[0].one_line().contains("models[0]: its checkpoints were not listed"));

    let refuse = |model: serde_json::Value, expected: &str| {
        let document = json!({ "name": "x", "models": [model] });
        let problems = SweepSpec::decode(&document).unwrap_err();
        let lines: Vec<String> = problems.iter().map(Problem::one_line).collect();
        assert!(lines.iter().any(|line| line.contains(expected)), "{lines:?}");
    };
    refuse(json!({ "path": "a", "hub": "b" }), "exactly one of");
    refuse(json!({ "path": "a", "dtype": "float99" }), "`dtype` must be one of");
    refuse(json!({ "path": "a", "processing": "fold" }), "unknown processing `fold`");
    refuse(json!({ "path": "" }), "expected a text");
    refuse(json!({ "train": { "recipe": "r" }, "dtype": "float32" }), "is trained here");
}

#[test]
fn a_listing_decides_which_steps_exist() {
    let document = json!({ "name": "x", "models": [{
        "path": "a", "checkpoints": { "steps": [3] },
        "found": { "at": "file:///a/{}", "checkpoints": [[0, "step0"], [5, "step5"]] },
    }] });
    let spec = SweepSpec::decode(&document).unwrap();
    let problems = spec.check(&document, &catalog()).unwrap_err();
    let line = problems[0].one_line();
    assert!(line.contains("models[0].checkpoints: there is no checkpoint of step 3"), "{line}");
}
