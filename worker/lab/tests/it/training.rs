//! The training loop: resume is exact, populations are independent, divergence stays contained.

use std::collections::BTreeMap;

use serde_json::json;
use sweep_lab::{
    CheckpointPlan, Class, SeedOutcome, Signal,
    lens::{
        Tensor,
        checkpoint::{self, decode_tensors, encode_tensors},
    },
};

use crate::{Recorder, run, small_params};

#[test]
fn killed_and_resumed_is_the_same_run_bit_for_bit() {
    let params = small_params(40);
    let plan = CheckpointPlan::at([40, 0, 20, 20]);
    for seeds in [vec![3], vec![3, 8]] {
        let (outcome, whole) = run(&params, &seeds, &[], &plan, Recorder::new());
        let finished = vec![SeedOutcome::Finished { step: 40 }; seeds.len()];
        assert_eq!(outcome.unwrap(), finished);
        // Drained between evaluations, and lost after the checkpoint of step 20.
        let stop = Recorder::stopping(27, Signal::Drain);
        let (outcome, drained) = run(&params, &seeds, &[], &plan, stop);
        assert_eq!(outcome.unwrap(), vec![SeedOutcome::Drained { step: 27 }; seeds.len()]);
        for at in [20, 27] {
            let resume: Vec<_> = (0..seeds.len())
                .map(|index| Some(drained.seeds[&index].states[&at].clone()))
                .collect();
            let (outcome, rest) = run(&params, &seeds, &resume, &plan, Recorder::new());
            assert_eq!(outcome.unwrap(), finished);
            for (index, whole) in &whole.seeds {
                let rest = &rest.seeds[index];
                assert_eq!(rest.checkpoints.keys().collect::<Vec<_>>(), [&40]);
                assert!(rest.checkpoints[&40] == whole.checkpoints[&40], "checkpoint from {at}");
                assert!(rest.states[&40] == whole.states[&40], "trainer state from {at}");
                let later: BTreeMap<_, _> =
                    whole.metrics.iter().filter(|((_, step), _)| *step > at).collect();
                assert_eq!(rest.metrics.iter().collect::<BTreeMap<_, _>>(), later);
            }
        }
        let whole = &whole.seeds[&0];
        assert_eq!(whole.checkpoints.keys().copied().collect::<Vec<_>>(), [0, 20, 40]);
        assert_eq!(whole.metrics.len(), 6 * 9, "six metrics at 0, 5, .. 40");
    }
}

#[test]
fn everything_of_a_step_goes_out_before_its_state() {
    let (_, recorder) =
        run(&small_params(10), &[1], &[], &CheckpointPlan::every(10, 10), Recorder::new());
    let order: Vec<_> = recorder.order.iter().map(|(_, what, step)| (*what, *step)).collect();
    let expected = [
        ("metric", 0),
        ("checkpoint", 0),
        ("state", 0),
        ("metric", 5),
        ("metric", 10),
        ("checkpoint", 10),
        ("state", 10),
    ];
    assert_eq!(order, expected);
    let file = &recorder.seeds[&0].checkpoints[&10];
    let published = checkpoint::decode("checkpoint", file).unwrap();
    assert_eq!((published.step, &published.extra["recipe"]), (10, &json!("modular-addition")));
    assert_eq!(
        (&published.extra["seed"], &published.extra["params"]["p"]),
        (&json!(1), &json!(11))
    );
    assert_eq!(published.extra["params"]["beta2"], json!(0.98), "parameters are recorded in full");
}

#[test]
fn each_model_of_a_population_equals_the_model_alone() {
    let params = small_params(12);
    let plan = CheckpointPlan::at([0, 12]);
    let (_, together) = run(&params, &[5, 6, 7], &[], &plan, Recorder::new());
    for (index, seed) in [5, 6, 7].into_iter().enumerate() {
        let (_, alone) = run(&params, &[seed], &[], &plan, Recorder::new());
        let (alone, together) = (&alone.seeds[&0], &together.seeds[&index]);
        assert!(alone.checkpoints[&0] == together.checkpoints[&0], "equal initial weights");
        let weights = |file| checkpoint::decode("checkpoint", file).unwrap().weights;
        let (a, b) = (weights(&alone.checkpoints[&12]), weights(&together.checkpoints[&12]));
        for (name, tensor) in a.iter() {
            let difference = (tensor - b.get(name).unwrap()).abs().max().double_value(&[]);
            assert!(difference < 2e-4, "{name} of seed {seed} differs by {difference}");
        }
        for (key, value) in &alone.metrics {
            let other = together.metrics[key];
            assert!((value - other).abs() < 1e-3 * value.abs().max(1.0), "{key:?} {value} {other}");
        }
    }
}

/// Puts a NaN into the weights of a trainer state.
fn poison(state: &[u8]) -> Vec<u8> {
    let contents = decode_tensors("state", state).unwrap();
    let poisoned: Vec<(String, Tensor)> = contents
        .tensors
        .into_iter()
        .map(|(name, tensor)| {
            let tensor = if name == "weights/unembed.W_U" { tensor * f64::NAN } else { tensor };
            (name, tensor)
        })
        .collect();
    encode_tensors(
        poisoned.iter().map(|(name, tensor)| (name.as_str(), tensor)),
        &contents.metadata,
    )
    .unwrap()
}

#[test]
fn a_diverged_seed_leaves_and_the_others_go_on() {
    let params = small_params(30);
    let plan = CheckpointPlan::at([10, 20, 30]);
    let seeds = [1, 2, 3];
    let (_, healthy) = run(&params, &seeds, &[], &plan, Recorder::new());
    let mut resume: Vec<_> =
        (0..3).map(|index| Some(healthy.seeds[&index].states[&10].clone())).collect();
    resume[1] = resume[1].as_deref().map(poison);
    let (outcome, recorder) = run(&params, &seeds, &resume, &plan, Recorder::new());
    let (finished, failed) = (SeedOutcome::Finished { step: 30 }, SeedOutcome::Failed { step: 15 });
    assert_eq!(outcome.unwrap(), [finished, failed, finished]);
    let sick = &recorder.seeds[&1];
    assert_eq!(sick.failures, [(15, "train_loss is NaN at step 15".to_owned())]);
    assert!(sick.metrics[&("train_loss".to_owned(), 15)].is_nan(), "the value itself is kept");
    assert!(sick.checkpoints.is_empty(), "no checkpoint of a diverged model");
    for index in [0, 2] {
        let (found, expected) = (&recorder.seeds[&index], &healthy.seeds[&index]);
        let key = ("test_loss".to_owned(), 30);
        assert!((found.metrics[&key] - expected.metrics[&key]).abs() < 1e-2);
        assert!(found.failures.is_empty() && found.checkpoints.contains_key(&30));
    }
    // Another node resumes: the failure is remembered, not trained again.
    let resume: Vec<_> =
        (0..3).map(|index| recorder.seeds[&index].states.values().next_back().cloned()).collect();
    let (outcome, again) = run(&params, &seeds, &resume, &plan, Recorder::new());
    assert_eq!(outcome.unwrap(), [finished, failed, finished]);
    assert_eq!(again.seeds[&1].failures, sick.failures);
    // A whole group that diverges ends.
    let wild = json!({"p": 11, "d_model": 16, "n_heads": 2, "d_mlp": 8, "lr": 1e30, "steps": 50, "eval_every": 1});
    let (outcome, _) = run(&wild, &[1, 2], &[], &CheckpointPlan::default(), Recorder::new());
    assert!(outcome.unwrap().iter().all(|outcome| matches!(outcome, SeedOutcome::Failed { .. })));
}

#[test]
fn bad_calls_are_refused_and_cancel_stops() {
    let plan = CheckpointPlan::default();
    let class = |params, seeds: &[u64], resume: &[Option<Vec<u8>>], plan: &CheckpointPlan| {
        run(&params, seeds, resume, plan, Recorder::new()).0.unwrap_err().class()
    };
    assert_eq!(class(json!({"p": "x"}), &[1], &[], &plan), Class::Params);
    assert_eq!(class(small_params(5), &[1], &[], &CheckpointPlan::at([6])), Class::Params);
    assert_eq!(class(small_params(5), &[1, 2], &[None], &plan), Class::Input);
    assert_eq!(class(small_params(5), &[1], &[Some(vec![1, 2, 3])], &plan), Class::Input);
    let heads = json!({"p": 11, "d_model": 16, "n_heads": 3, "steps": 1});
    assert_eq!(class(heads, &[1], &[], &plan), Class::Params);
    let (_, recorder) =
        run(&small_params(10), &[1, 2], &[], &CheckpointPlan::at([5, 10]), Recorder::new());
    let state = |index: usize, step: u64| Some(recorder.seeds[&index].states[&step].clone());
    assert_eq!(class(small_params(10), &[1, 2], &[state(0, 5), state(1, 10)], &plan), Class::Input);
    assert_eq!(class(small_params(10), &[2], &[state(0, 5)], &plan), Class::Input);
    assert_eq!(class(small_params(11), &[1], &[state(0, 5)], &plan), Class::Input);
    let stop = Recorder::stopping(3, Signal::Cancel);
    let (outcome, recorder) = run(&small_params(10), &[1], &[], &plan, stop);
    assert_eq!(outcome.unwrap_err().class(), Class::Cancelled);
    assert!(recorder.seeds[&0].states.is_empty());
    // A run that is already complete has nothing to do.
    let (_, recorder) = run(&small_params(5), &[1], &[], &CheckpointPlan::at([5]), Recorder::new());
    let resume = [Some(recorder.seeds[&0].states[&5].clone())];
    let (outcome, rest) = run(&small_params(5), &[1], &resume, &plan, Recorder::new());
    assert_eq!(outcome.unwrap(), [SeedOutcome::Finished { step: 5 }]);
    assert!(rest.seeds.is_empty());
}

#[test]
fn training_memorises() {
    let params = json!({
        "p": 17, "frac_train": 0.5, "d_model": 32, "n_heads": 2, "d_mlp": 64, "lr": 3e-3,
        "weight_decay": 0.1, "steps": 150, "eval_every": 50,
    });
    let (_, recorder) = run(&params, &[0], &[], &CheckpointPlan::default(), Recorder::new());
    let at = |name: &str, step| recorder.seeds[&0].metrics[&(name.to_owned(), step)];
    let uniform = 17f64.ln();
    assert!(
        (at("train_loss", 0) - uniform).abs() < 0.5 && (at("test_loss", 0) - uniform).abs() < 0.5
    );
    assert!(at("train_loss", 150) < 0.2, "{}", at("train_loss", 150));
    assert!(at("train_acc", 150) > 0.98 && at("test_loss", 150) > uniform);
    assert!(at("weight_norm", 150) > 0.0 && at("lr", 0) == 0.0 && at("lr", 50) == 3e-3);
}
