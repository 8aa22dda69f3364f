//! Promises that every recipe keeps, on a small setting of each: what is declared is emitted, resume is
//! exact, and each model of a population equals the model alone. Then what single recipes promise.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};
use sweep_lab::{CheckpointPlan, Class, RECIPES, SeedOutcome, Signal};

use crate::{Recorded, Recorder, run_recipe, small_params};

/// A setting of each recipe that trains 20 updates in a second.
fn settings() -> Vec<(&'static str, Json)> {
    let sizes = json!({ "d_model": 16, "n_heads": 2, "d_mlp": 24, "batch": 4, "steps": 20, "eval_every": 10 });
    let with = |extra: Json| {
        let mut params = sizes.clone();
        for (name, value) in extra.as_object().unwrap() {
            params[name] = value.clone();
        }
        params
    };
    vec![
        (
            "induction",
            with(json!({
                "variant": "solu", "normalization": "ln", "d_vocab": 12, "n_ctx": 14,
                "period_min": 3, "period_max": 6, "eval_sequences": 8, "n_sequences": 30,
            })),
        ),
        ("modular-addition", small_params(20)),
        (
            "modular-addition-mlp",
            json!({ "p": 11, "d_mlp": 20, "lr": 1e-2, "steps": 20, "eval_every": 10 }),
        ),
        (
            "multitask-parity",
            json!({
                "n_tasks": 3, "n_bits": 6, "k": 2, "d_mlp": 12, "batch": 16, "eval_per_task": 5,
                "steps": 20, "eval_every": 10,
            }),
        ),
        (
            "paired-synonyms",
            with(json!({
                "n_pairs": 8, "n_ctx": 14, "period_min": 3, "period_max": 6, "eval_sequences": 8,
            })),
        ),
        ("sorting", with(json!({ "length": 3, "n_values": 6, "eval_sequences": 8 }))),
        ("text-lm", with(json!({ "n_ctx": 12, "eval_sequences": 8, "variant": "gelu" }))),
        ("toy-ioi", with(json!({ "n_names": 6, "eval_sequences": 8, "variant": "relu" }))),
    ]
}

#[test]
fn every_recipe_emits_what_it_declares_and_resumes_exactly() {
    let named: Vec<&str> = RECIPES.iter().map(|recipe| recipe.card().name).collect();
    assert_eq!(settings().iter().map(|setting| setting.0).collect::<Vec<_>>(), named);
    let plan = CheckpointPlan::at([0, 10, 20]);
    for (name, params) in settings() {
        let card = RECIPES.iter().find(|recipe| recipe.card().name == name).unwrap().card();
        for seeds in [vec![3], vec![3, 8]] {
            let (outcome, whole) = run_recipe(name, &params, &seeds, &[], &plan, Recorder::new());
            let finished = vec![SeedOutcome::Finished { step: 20 }; seeds.len()];
            assert_eq!(outcome.unwrap(), finished, "{name}");
            let found: BTreeSet<&str> = whole.seeds[&0]
                .metrics
                .keys()
                .map(|(metric, _)| metric.split('[').next().unwrap())
                .collect();
            let declared: BTreeSet<&str> = card.metrics.iter().map(|metric| metric.name).collect();
            assert_eq!(found, declared, "{name}");
            let infinite = whole.seeds[&0].metrics.iter().find(|(_, value)| !value.is_finite());
            assert_eq!(infinite, None, "{name}");
            let stop = Recorder::stopping(13, Signal::Drain);
            let (_, drained) = run_recipe(name, &params, &seeds, &[], &plan, stop);
            let resume: Vec<_> = (0..seeds.len())
                .map(|index| Some(drained.seeds[&index].states[&13].clone()))
                .collect();
            let (outcome, rest) =
                run_recipe(name, &params, &seeds, &resume, &plan, Recorder::new());
            assert_eq!(outcome.unwrap(), finished, "{name}");
            for (index, whole) in &whole.seeds {
                let rest = &rest.seeds[index];
                assert!(rest.checkpoints[&20] == whole.checkpoints[&20], "{name}");
                assert!(rest.states[&20] == whole.states[&20], "{name}");
                let last = |seed: &Recorded| -> Vec<_> {
                    let at_end = seed.metrics.iter().filter(|((_, step), _)| *step == 20);
                    at_end.map(|((metric, _), value)| (metric.clone(), value.to_bits())).collect()
                };
                assert_eq!(last(rest), last(whole), "{name}");
            }
            assert!(whole.seeds[&0].checkpoints[&20] != whole.seeds[&0].checkpoints[&0], "{name}");
        }
    }
}

#[test]
fn each_model_of_a_population_of_any_recipe_equals_the_model_alone() {
    let plan = CheckpointPlan::at([0, 20]);
    for (name, params) in settings() {
        let (_, together) = run_recipe(name, &params, &[5, 6, 7], &[], &plan, Recorder::new());
        for (index, seed) in [5, 6, 7].into_iter().enumerate() {
            let (_, alone) = run_recipe(name, &params, &[seed], &[], &plan, Recorder::new());
            let (alone, together) = (&alone.seeds[&0], &together.seeds[&index]);
            assert!(alone.checkpoints[&0] == together.checkpoints[&0], "equal initial weights");
            assert_eq!(alone.metrics.len(), together.metrics.len(), "{name}");
            for (key, value) in &alone.metrics {
                let other = together.metrics[key];
                let difference = (value - other).abs() / value.abs().max(1.0);
                assert!(difference < 2e-3, "{name} {key:?} {value} {other}");
            }
        }
        let (_, other) = run_recipe(name, &params, &[5], &[], &plan, Recorder::new());
        let (a, b) = (&other.seeds[&0], &together.seeds[&1]);
        assert!(a.checkpoints[&0] != b.checkpoints[&0], "{name}: seeds differ");
    }
}

#[test]
fn relations_between_parameters_are_checked() {
    let refused = |name: &str, params: Json| {
        let recipe = RECIPES.iter().find(|recipe| recipe.card().name == name).unwrap();
        let error = recipe.check_params(&params).unwrap_err();
        assert_eq!(error.class(), Class::Params, "{error}");
        let plan = CheckpointPlan::default();
        assert!(run_recipe(name, &params, &[1], &[], &plan, Recorder::new()).0.is_err());
        error.to_string()
    };
    let message = refused("induction", json!({ "n_heads": 3 }));
    assert!(message.contains("`n_heads`") && message.contains("64"), "{message}");
    assert!(refused("induction", json!({ "period_min": 30 })).contains("period_max"));
    assert!(refused("induction", json!({ "n_ctx": 25 })).contains("25"));
}
