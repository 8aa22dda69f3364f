//! Pairings against plain enumeration, and what is said about selections that make no sense.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{pb, spec::SweepSpec};

fn catalog() -> pb::Catalog {
    let param = |name: &str, kind: &str, default: &str| pb::Param {
        name: name.into(),
        kind: kind.into(),
        default: default.into(),
        ..Default::default()
    };
    pb::Catalog {
        recipes: vec![pb::Recipe {
            name: "r".into(),
            params: vec![param("steps", "int", "200"), param("lr", "float", "0.1")],
            ..Default::default()
        }],
        experiments: vec![pb::Experiment {
            name: "match".into(),
            stage: "compare".into(),
            params: vec![param("k", "int", "3")],
            ..Default::default()
        }],
    }
}

fn sweep(models: &Value, params: &Value) -> Value {
    json!({ "name": "s", "models": models, "compare": [{ "match": params }] })
}

/// The first problem of a sweep, decoded and checked.
fn problem(models: &Value, params: &Value) -> String {
    let document = sweep(models, params);
    let problems = match SweepSpec::decode(&document) {
        Ok(spec) => spec.check(&document, &catalog()).unwrap_err(),
        Err(problems) => problems,
    };
    problems[0].one_line()
}

fn resolve(models: &Value, params: &Value) -> (Models, Pairing) {
    let document = sweep(models, params);
    let spec = SweepSpec::decode(&document).unwrap();
    spec.check(&document, &catalog()).unwrap();
    let models = Models::new(&spec, &catalog()).unwrap();
    let pairing = spec.compare[0].pairs.resolve(&models).unwrap();
    (models, pairing)
}

/// Every pair, by walking all first checkpoints and indices.
fn all(models: &Models, pairing: &Pairing) -> BTreeSet<Pair> {
    let mut pairs = BTreeSet::new();
    for model in 0..models.len() {
        for &step in models.steps(model) {
            let first = CheckpointRef { model, step };
            for index in 0..pairing.indices(models, model) {
                if let Some(second) = pairing.second(models, first, index) {
                    assert!(models.steps(second.model).contains(&second.step));
                    pairs.insert(Pair { first, second, index });
                }
            }
        }
    }
    pairs
}

/// `m0@100-m1@100 …`
fn shown(models: &Value, params: &Value) -> String {
    let (models, pairing) = resolve(models, params);
    let end = |at: CheckpointRef| format!("m{}@{}", at.model, at.step);
    let pairs = all(&models, &pairing);
    let text = pairs.iter().map(|pair| format!("{}-{}", end(pair.first), end(pair.second)));
    text.collect::<Vec<_>>().join(" ")
}

fn trained(seeds: u32) -> Value {
    json!([{ "train": { "recipe": "r", "seeds": seeds }, "checkpoints": { "every": 100 } }])
}

#[test]
fn selections_mean_what_they_say() {
    let two = trained(2);
    assert_eq!(shown(&two, &json!({ "pairs": "seeds" })), "m0@200-m1@200");
    assert_eq!(
        shown(&two, &json!({ "pairs": "seeds", "at": "all" })),
        "m0@0-m1@0 m0@100-m1@100 m0@200-m1@200"
    );
    assert_eq!(
        shown(&trained(3), &json!({ "pairs": "models" })),
        "m0@200-m1@200 m0@200-m2@200 m1@200-m2@200"
    );
    let one = trained(1);
    assert_eq!(shown(&one, &json!({ "pairs": "steps" })), "m0@100-m0@0 m0@200-m0@0 m0@200-m0@100");
    assert_eq!(shown(&one, &json!({ "pairs": "consecutive" })), "m0@100-m0@0 m0@200-m0@100");
    assert_eq!(shown(&one, &json!({ "pairs": "to-base" })), "m0@100-m0@0 m0@200-m0@0");
    assert_eq!(shown(&one, &json!({ "pairs": "to-base", "at": "final" })), "m0@200-m0@0");
    assert_eq!(shown(&one, &json!({ "pairs": "to-final" })), "m0@0-m0@200 m0@100-m0@200");
    assert_eq!(
        shown(&two, &json!({ "pairs": "to-base", "base": "r-seed1", "at": "final" })),
        "m0@200-m1@200"
    );
    assert_eq!(
        shown(&two, &json!({ "pairs": "to-base", "base": "r-seed0" })),
        "m1@0-m0@200 m1@100-m0@200 m1@200-m0@200"
    );
    let listed = json!({ "pairs": [["r-seed1@100", "r-seed0"], ["r-seed0", "r-seed0"]] });
    assert_eq!(shown(&two, &listed), "m0@200-m0@200 m1@100-m0@200");
    let all = json!({ "pairs": [["r-seed1", "r-seed0"]], "at": "all" });
    assert_eq!(shown(&two, &all), "m1@0-m0@0 m1@100-m0@100 m1@200-m0@200");
}

#[test]
fn grid_points_have_seeds_of_their_own() {
    let grid = json!([{
        "train": { "recipe": "r", "params": { "lr": [0.1, 0.2] }, "seeds": 2 },
        "checkpoints": "final",
    }]);
    assert_eq!(shown(&grid, &json!({ "pairs": "seeds" })), "m0@200-m1@200 m2@200-m3@200");
}

#[test]
fn senseless_selections_are_refused_where_they_are_written() {
    let check = |models: &Value, params: Value, expected: &str| {
        let line = problem(models, &params);
        assert!(line.contains(expected), "{line}");
    };
    let (one, two) = (trained(1), trained(2));
    check(&two, json!({}), "compare[0]: `pairs` is missing");
    check(&two, json!({ "pairs": "seds" }), "did you mean `seeds`?");
    check(&two, json!({ "pairs": [] }), "compare[0].match.pairs: `pairs` is empty");
    check(&two, json!({ "pairs": "seeds", "k": "x" }), "`k` must be a whole number");
    check(&two, json!({ "pairs": "seeds", "kk": 1 }), "did you mean `k`?");
    check(&two, json!({ "pairs": "seeds", "at": "some" }), "`at` must be final or all");
    check(&two, json!({ "pairs": "consecutive", "at": "all" }), "`at` is not for");
    check(&two, json!({ "pairs": "seeds", "base": "x" }), "`base` is only for");
    check(&one, json!({ "pairs": "seeds" }), "match.pairs: `pairs: seeds` makes no pairs");
    check(&one, json!({ "pairs": "models" }), "the sweep has a single model");
    let last = json!([{ "train": { "recipe": "r" }, "checkpoints": "final" }]);
    check(&last, json!({ "pairs": "consecutive" }), "every model of the sweep has a single");
    check(&last, json!({ "pairs": "steps" }), "every model of the sweep has a single");
    check(&two, json!({ "pairs": "steps", "at": "all" }), "`at` is not for `pairs: steps`");
    check(
        &two,
        json!({ "pairs": "to-base", "base": "r-sed1" }),
        "match.base: the sweep has no model `r-sed1`; did you mean `r-seed1`?",
    );
    check(
        &two,
        json!({ "pairs": [["r-seed0", "r-seed7"]] }),
        "match.pairs[0][1]: the sweep has no model `r-seed7`; did you mean",
    );
    check(
        &two,
        json!({ "pairs": [["r-seed0@150", "r-seed1"]] }),
        "pairs[0][0]: `r-seed0` has no checkpoint of step 150; the nearest one is 100",
    );
    check(&two, json!({ "pairs": [["r-seed0"]] }), "pairs[0]: a pair is a list of two models");
    check(&two, json!({ "pairs": [["r-seed0@x", "r-seed1"]] }), "`x` is not a step");
    check(
        &two,
        json!({ "pairs": [["r-seed0", "r-seed1"], ["r-seed0@200", "r-seed1@200"]] }),
        "pairs[1]: this pair is listed twice",
    );
    let unequal = json!([
        { "train": { "recipe": "r" }, "checkpoints": { "every": 100 } },
        { "train": { "recipe": "r", "params": { "lr": 0.5 } }, "checkpoints": { "every": 50 } },
    ]);
    let expected = "match.at: `r-lr=0.1-seed0` and `r-lr=0.5-seed0` have different step grids: \
                    `r-lr=0.1-seed0` has no checkpoint of step 50";
    check(&unequal, json!({ "pairs": "models", "at": "all" }), expected);
    assert_eq!(shown(&unequal, &json!({ "pairs": "models" })), "m0@200-m1@200");
}

#[test]
fn selections_survive_the_canonical_form() {
    for params in [
        json!({ "pairs": "seeds" }),
        json!({ "pairs": "to-base", "base": "r-seed1", "k": 4 }),
        json!({ "pairs": [["r-seed1@100", "r-seed0"]], "at": "all" }),
        json!({ "pairs": "consecutive" }),
    ] {
        let spec = SweepSpec::decode(&sweep(&trained(2), &params)).unwrap();
        assert_eq!(SweepSpec::decode(&spec.to_json()).unwrap(), spec);
    }
    let id = |params: Value| SweepSpec::decode(&sweep(&trained(2), &params)).unwrap().id();
    let short = id(json!({ "pairs": "seeds" }));
    assert_eq!(short, id(json!({ "at": "final", "pairs": "seeds" })), "defaults change nothing");
    assert_ne!(short, id(json!({ "pairs": "seeds", "at": "all" })));
}

fn selection() -> impl Strategy<Value = Value> {
    let at = prop_oneof![Just("final"), Just("all")];
    let word = prop_oneof![Just("seeds"), Just("models"), Just("to-base")];
    let end = (0..2u32, 0..3u32, prop_oneof![Just(""), Just("@0"), Just("@200")])
        .prop_map(|(entry, seed, step)| format!("r-lr=0.{}-seed{seed}{step}", entry + 1));
    let pairs = proptest::collection::btree_set((end.clone(), end), 1..6);
    prop_oneof![
        (word, at.clone()).prop_map(|(word, at)| json!({ "pairs": word, "at": at })),
        Just(json!({ "pairs": "steps" })),
        Just(json!({ "pairs": "consecutive" })),
        Just(json!({ "pairs": "to-final" })),
        Just(json!({ "pairs": "to-base", "base": "r-lr=0.2-seed1" })),
        (pairs, at).prop_map(|(pairs, at)| {
            let pairs: Vec<Value> = pairs.into_iter().map(|(a, b)| json!([a, b])).collect();
            json!({ "pairs": pairs, "at": at })
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The count is that of the enumeration, and every pair is found from either side, once.
    #[test]
    fn arithmetic_equals_enumeration(params in selection()) {
        let grid = json!([{
            "train": { "recipe": "r", "params": { "lr": [0.1, 0.2] }, "seeds": 3 },
            "checkpoints": { "every": 100 },
        }]);
        let document = sweep(&grid, &params);
        let spec = SweepSpec::decode(&document).unwrap();
        let models = Models::new(&spec, &catalog()).unwrap();
        // A pair that is listed in two ways is refused.
        let Ok(pairing) = spec.compare[0].pairs.resolve(&models) else { return Ok(()) };
        let pairs = all(&models, &pairing);
        prop_assert_eq!(pairing.count(&models), pairs.len() as u64);
        for model in 0..models.len() {
            for &step in models.steps(model) {
                let at = CheckpointRef { model, step };
                let mut seen = BTreeSet::new();
                pairing.touching(&models, at, &|range| range.collect(), &mut |pair| {
                    assert!(seen.insert(pair), "{pair:?} is visited once");
                });
                let touches = |pair: &&Pair| pair.first == at || pair.second == at;
                let expected: BTreeSet<Pair> = pairs.iter().filter(touches).copied().collect();
                prop_assert_eq!(seen, expected);
            }
        }
    }
}
