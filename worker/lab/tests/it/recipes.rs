//! Promises that every recipe keeps, on a small setting of each: what is declared is emitted, resume is
//! exact, and each model of a population equals the model alone. Then what single recipes promise.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};
use sweep_lab::{
    CheckpointPlan, Class, RECIPES, SeedOutcome, Signal,
    lens::{
        Kind, Tensor,
        checkpoint::{self, decode_tensors, encode_tensors},
    },
    vocabulary::Vocabulary,
};

use crate::{Recorded, Recorder, run_recipe, small_params};

/// A setting of each recipe that trains 20 updates in a second.
pub(crate) fn settings() -> Vec<(&'static str, Json)> {
    let sizes = json!({ "d_model": 16, "n_heads": 2, "d_mlp": 24, "batch": 4, "steps": 20, "eval_every": 10 });
    let with = |extra: Json| {
        let mut params = sizes.clone();
        for (name, value) in extra.as_object().unwrap() {
            params[name] = value.clone();
        }
        params
    };
    vec![
        ("addition", with(json!({ "n_digits": 2, "n_examples": 30, "eval_size": 40 }))),
        (
            "finetune",
            json!({
                "both": ["p=11", "d_mlp=20", "lr=0.01"], "switch_step": 8, "return_step": 15,
                "steps": 20, "eval_every": 10,
            }),
        ),
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
        (
            "s-curve",
            json!({
                "n": 8, "rank": 3, "target_rank": 2, "depth": 3, "init_scale": 0.3, "batch": 5,
                "momentum": 0.5, "layer_norm": true, "steps": 20, "eval_every": 10,
            }),
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
            // Classes of sums without an example have no loss; everything else is a number.
            let may_be_empty = |metric: &str| {
                ["loss_base", "loss_make", "loss_use", "loss_no_carry9", "loss_cascade"]
                    .iter()
                    .any(|class| name == "addition" && metric.starts_with(class))
            };
            let mut metrics = whole.seeds[&0].metrics.iter();
            let infinite = metrics.find(|((m, _), value)| !value.is_finite() && !may_be_empty(m));
            assert!(infinite.is_none(), "{name} {infinite:?}");
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
                let is_absent = value.is_nan() && other.is_nan();
                assert!(difference < 2e-3 || is_absent, "{name} {key:?} {value} {other}");
            }
        }
        let (_, other) = run_recipe(name, &params, &[5], &[], &plan, Recorder::new());
        let (a, b) = (&other.seeds[&0], &together.seeds[&1]);
        assert!(a.checkpoints[&0] != b.checkpoints[&0], "{name}: seeds differ");
    }
}

/// A trainer state with every tensor in float64.
fn in_float64(state: &[u8]) -> Vec<u8> {
    let contents = decode_tensors("state", state).unwrap();
    let tensors: Vec<(String, Tensor)> = contents
        .tensors
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_kind(Kind::Double)))
        .collect();
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    encode_tensors(named, &contents.metadata).unwrap()
}

#[test]
fn in_float64_a_population_follows_its_members_for_two_hundred_steps() {
    let seeds = [5, 6, 7];
    for (name, mut params) in settings() {
        (params["steps"], params["eval_every"]) = (200.into(), 20.into());
        let train = |seeds: &[u64], states: &[Option<Vec<u8>>]| {
            let plan = CheckpointPlan::at([0]);
            let stop = match states {
                [] => Recorder::stopping(0, Signal::Drain),
                _ => Recorder::new(),
            };
            let (outcome, recorder) = run_recipe(name, &params, seeds, states, &plan, stop);
            outcome.unwrap();
            recorder
        };
        let initial = train(&seeds, &[]);
        let states: Vec<_> = (0..seeds.len())
            .map(|index| Some(in_float64(&initial.seeds[&index].states[&0])))
            .collect();
        let together = train(&seeds, &states);
        for (index, &seed) in seeds.iter().enumerate() {
            let alone = train(&[seed], &states[index..=index]);
            for (key, value) in &alone.seeds[&0].metrics {
                let other = together.seeds[&index].metrics[key];
                let is_absent = value.is_nan() && other.is_nan();
                // Accuracies of ties and flags may step; losses and norms may not.
                let is_curve = ["loss", "norm"].iter().any(|part| key.0.contains(part));
                let difference = (value - other).abs() / value.abs().max(1.0);
                assert!(
                    !is_curve || is_absent || difference < 1e-5,
                    "{name} {key:?} {value} {other}"
                );
            }
        }
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
    assert!(refused("multitask-parity", json!({ "n_bits": 2 })).contains("more than n_bits 2"));
    assert!(refused("s-curve", json!({ "n": 8, "batch": 9 })).contains("more than n 8"));
    assert!(refused("toy-ioi", json!({ "d_model": 6 })).contains("does not divide d_model 6"));
}

#[test]
fn fixed_periods_raise_the_shortcut_flag_and_one_layer_has_no_induction() {
    let params = |period_min: u64, n_layers: u64, n_ctx: u64| {
        json!({
            "period_min": period_min, "period_max": 6, "n_ctx": n_ctx, "d_vocab": 16, "d_model": 32,
            "n_heads": 2, "n_layers": n_layers, "eval_sequences": 64, "steps": 400, "eval_every": 400,
        })
    };
    let train = |params: &Json| {
        let plan = CheckpointPlan::default();
        let (_, recorder) = run_recipe("induction", params, &[0], &[], &plan, Recorder::new());
        move |name: &str| recorder.seeds[&0].metrics[&(name.to_owned(), 400)]
    };
    let fixed = train(&params(6, 2, 12));
    assert_eq!(fixed("positional_shortcut"), 1.0);
    assert!(fixed("loss_repeat") < 0.3 && fixed("best_stripe") > 0.8);
    assert!(fixed("best_previous_token") < 0.2);
    // Random periods cannot be known by position, and one layer cannot look them up.
    let shallow = train(&params(3, 1, 16));
    assert_eq!(shallow("positional_shortcut"), 0.0);
    assert!(shallow("best_prefix_matching") < 0.5 && shallow("loss_repeat") > 1.0);
    assert!(shallow("loss_first") > 2.5, "{}", shallow("loss_first"));
}

#[test]
fn short_lists_get_sorted_and_frequent_parities_come_first() {
    let plan = CheckpointPlan::default();
    let params = json!({
        "length": 2, "n_values": 8, "d_model": 32, "n_heads": 2, "batch": 64, "steps": 400,
        "eval_every": 400, "lr": 3e-3,
    });
    let (_, recorder) = run_recipe("sorting", &params, &[1], &[], &plan, Recorder::new());
    let at = |name: &str| recorder.seeds[&0].metrics[&(name.to_owned(), 400)];
    assert!(at("exact") > 0.9 && at("accuracy_position[0]") > 0.9, "{}", at("exact"));
    let params = json!({
        "n_tasks": 6, "n_bits": 8, "k": 2, "alpha": 1.5, "d_mlp": 64, "batch": 500, "lr": 5e-3,
        "steps": 300, "eval_every": 300,
    });
    let (_, recorder) = run_recipe("multitask-parity", &params, &[1], &[], &plan, Recorder::new());
    let seed = &recorder.seeds[&0].metrics;
    let task = |index: usize, step| seed[&(format!("task_loss[{index}]"), step)];
    assert!((0.8..1.3).contains(&task(0, 0)) && (0.8..1.3).contains(&task(5, 0)), "one bit each");
    assert!(task(0, 300) < 0.1 && task(5, 300) > 0.5, "{} {}", task(0, 300), task(5, 300));
}

#[test]
fn text_is_a_parameter_and_has_to_be_long_enough() {
    let plan = CheckpointPlan::default();
    let params = json!({
        "text": "ab".repeat(200), "n_ctx": 8, "d_model": 16, "n_heads": 2, "d_mlp": 16, "batch": 8,
        "eval_sequences": 4, "steps": 150, "eval_every": 150, "lr": 1e-2,
    });
    let (_, recorder) = run_recipe("text-lm", &params, &[1], &[], &plan, Recorder::new());
    let at = |name: &str, step| recorder.seeds[&0].metrics[&(name.to_owned(), step)];
    assert!((at("test_loss", 0) - 256f64.ln()).abs() < 1.0, "{}", at("test_loss", 0));
    assert!(at("test_loss", 150) < 0.05 && at("test_acc", 150) > 0.99, "{}", at("test_loss", 150));
    // Byte pairs: fewer tokens for the same text, and a vocabulary that has room for them.
    let mut merged = params.clone();
    merged["n_merges"] = 2.into();
    let (_, merged) = run_recipe("text-lm", &merged, &[1], &[], &plan, Recorder::new());
    let loss = merged.seeds[&0].metrics[&("test_loss".to_owned(), 0)];
    assert!((loss - 258f64.ln()).abs() < 1.0 && loss != at("test_loss", 0), "{loss}");
    let recipe = RECIPES.iter().find(|recipe| recipe.card().name == "text-lm").unwrap();
    let short = json!({ "text": "too short", "n_ctx": 8 });
    assert!(recipe.check_params(&short).unwrap_err().to_string().contains("test part"));
}

#[test]
fn checkpoints_say_what_their_tokens_mean() {
    let (_, params) = settings().into_iter().find(|setting| setting.0 == "toy-ioi").unwrap();
    let plan = CheckpointPlan::at([20]);
    let (_, recorder) = run_recipe("toy-ioi", &params, &[1], &[], &plan, Recorder::new());
    let file = &recorder.seeds[&0].checkpoints[&20];
    let published = checkpoint::decode("checkpoint", file).unwrap();
    let vocabulary = Vocabulary::of_checkpoint(&published.extra).unwrap().unwrap();
    assert_eq!(vocabulary.words.len() as i64, published.config.d_vocab);
    assert_eq!(vocabulary.roles.keys().collect::<Vec<_>>(), ["bos", "name", "object", "place"]);
    assert_eq!(vocabulary.roles["name"].len(), 6);
    let sentence = "BOS Ann and Tom were at the park . Mary left the store . so Tom decided to give a book to Ann";
    assert_eq!(vocabulary.encode(sentence).unwrap().len(), 23);
    // Recipes on numbers have no words.
    let (_, params) = settings().into_iter().find(|setting| setting.0 == "sorting").unwrap();
    let (_, recorder) = run_recipe("sorting", &params, &[1], &[], &plan, Recorder::new());
    let published = checkpoint::decode("checkpoint", &recorder.seeds[&0].checkpoints[&20]).unwrap();
    assert_eq!(Vocabulary::of_checkpoint(&published.extra).unwrap(), None);
}

#[test]
fn a_branch_takes_other_data_from_its_step_on() {
    let plan = CheckpointPlan::at([10, 20]);
    for name in
        ["induction", "multitask-parity", "paired-synonyms", "sorting", "text-lm", "toy-ioi"]
    {
        let (_, params) = settings().into_iter().find(|setting| setting.0 == name).unwrap();
        let mut branch = params.clone();
        (branch["branch_step"], branch["branch_seed"]) = (10.into(), 77.into());
        let run = |params: &Json, seeds: &[u64]| {
            run_recipe(name, params, seeds, &[], &plan, Recorder::new()).1
        };
        let weights = |recorder: &Recorder, step| {
            checkpoint::decode("checkpoint", &recorder.seeds[&0].checkpoints[&step])
                .unwrap()
                .weights_hash
        };
        let (plain, branched) = (run(&params, &[2]), run(&branch, &[2]));
        assert_eq!(weights(&plain, 10), weights(&branched, 10), "{name}");
        assert_ne!(weights(&plain, 20), weights(&branched, 20), "{name}");
        let together = run(&branch, &[2, 3]);
        let loss = |recorder: &Recorder| recorder.seeds[&0].metrics[&("train_loss".to_owned(), 20)];
        assert!((loss(&branched) - loss(&together)).abs() < 2e-3, "{name}");
    }
}
