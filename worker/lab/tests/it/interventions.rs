//! Interventions in the training loop: what is held stays, seeds are told apart, resumed runs are the same.

use serde_json::{Value as Json, json};
use sweep_lab::{
    CheckpointPlan, Class, RECIPES, SeedOutcome, Signal,
    lens::{Kind, Tensor, Weights, checkpoint},
};

use crate::{Recorder, run_recipe};

const MLP: &str = "modular-addition-mlp";

fn setting(more: &Json) -> Json {
    let mut params = json!({"p": 11, "d_mlp": 20, "lr": 1e-2, "steps": 30, "eval_every": 10});
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    params
}

fn train(more: &Json, seeds: &[u64]) -> Recorder {
    let plan = CheckpointPlan::at([0, 30]);
    let (outcome, recorder) = run_recipe(MLP, &setting(more), seeds, &[], &plan, Recorder::new());
    let finished = outcome.unwrap();
    assert!(finished.iter().all(|outcome| *outcome == SeedOutcome::Finished { step: 30 }));
    recorder
}

fn weights(recorder: &Recorder, index: usize, step: u64) -> Weights {
    checkpoint::decode("checkpoint", &recorder.seeds[&index].checkpoints[&step]).unwrap().weights
}

fn first(weights: &Weights) -> &Tensor {
    weights.get("layers.0.W").unwrap()
}

#[test]
fn held_places_stay_for_ever_and_others_move() {
    let zero = json!({
        "edit": "zero", "edit_of": "neurons", "edit_list": ["L0N3", "L0N7"], "edit_hold": true,
    });
    let recorder = train(&zero, &[2, 5]);
    for index in 0..2 {
        let weights = weights(&recorder, index, 30);
        assert_eq!(dead_neurons(&weights), [3, 7]);
    }
    // Frozen weights keep their bits although weight decay and gradients pull at them.
    let freeze = json!({
        "edit": "freeze", "edit_select": "random-matched", "edit_fraction": 0.25, "edit_hold": true,
    });
    let recorder = train(&freeze, &[4]);
    let (before, after) = (weights(&recorder, 0, 0), weights(&recorder, 0, 30));
    for (name, tensor) in before.iter() {
        let same = tensor.eq_tensor(after.get(name).unwrap()).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(same, tensor.numel() as i64 / 4, "{name}");
    }
    // Only zeroed at the start, they move again.
    let once = json!({"edit": "zero", "edit_select": "random", "edit_fraction": 0.5});
    let recorder = train(&once, &[4]);
    let zeros = |weights: &Weights| first(weights).eq(0.0).sum(Kind::Int64).int64_value(&[]);
    assert!(zeros(&weights(&recorder, 0, 0)) > 150 && zeros(&weights(&recorder, 0, 30)) == 0);
}

/// Neurons of a one-hidden-layer perceptron that read nothing.
fn dead_neurons(weights: &Weights) -> Vec<i64> {
    let norms = first(weights).square().sum_dim_intlist(&[0i64][..], false, Kind::Double);
    (0..norms.size()[0]).filter(|&n| norms.double_value(&[n]) == 0.0).collect()
}

#[test]
fn circuits_of_a_trained_model_are_knocked_out_beside_controls_of_equal_size() {
    let arm = |select: &str, complement: bool| {
        json!({
            "edit": "zero", "edit_of": "neurons", "edit_select": select, "edit_fraction": 0.3,
            "edit_hold": true, "edit_complement": complement, "edit_reference_steps": 15,
        })
    };
    let dead = |arm: &Json, index: usize| {
        let recorder = train(arm, &[2, 5]);
        let dead = dead_neurons(&weights(&recorder, index, 30));
        assert_eq!(dead, dead_neurons(&weights(&recorder, index, 0)), "from first to last");
        dead
    };
    let circuit = dead(&arm("circuit", false), 1);
    assert_eq!(circuit.len(), 6);
    for control in ["magnitude", "gradient", "least-magnitude", "random", "random-matched"] {
        assert_eq!(dead(&arm(control, false), 1).len(), 6, "{control}");
    }
    assert_ne!(circuit, dead(&arm("random-matched", false), 1));
    // The ticket is what the knock-out leaves out.
    let kept: Vec<i64> = (0..20).filter(|n| !circuit.contains(n)).collect();
    assert_eq!(dead(&arm("circuit", true), 1), kept);
    assert_eq!(circuit, {
        let recorder = train(&arm("circuit", false), &[5]);
        dead_neurons(&weights(&recorder, 0, 30))
    });
}

#[test]
fn heads_are_frozen_zeroed_and_copied() {
    let params = |more: Json| {
        let mut params = json!({
            "d_vocab": 12, "n_ctx": 14, "period_min": 3, "period_max": 6, "eval_sequences": 8,
            "d_model": 16, "n_heads": 2, "batch": 4, "steps": 12, "eval_every": 6,
        });
        for (name, value) in more.as_object().unwrap() {
            params[name] = value.clone();
        }
        params
    };
    let train = |more: Json| {
        let plan = CheckpointPlan::at([0, 12]);
        let (outcome, recorder) =
            run_recipe("induction", &params(more), &[3], &[], &plan, Recorder::new());
        outcome.unwrap();
        let at = |step| weights(&recorder, 0, step).get("blocks.1.attn.W_O").unwrap().copy();
        (at(0), at(12))
    };
    let heads = |edit: &str, hold: bool| {
        train(json!({
            "edit": edit, "edit_of": "heads", "edit_list": ["L1H1"], "edit_source": ["L0H0"],
            "edit_hold": hold, "edit_factor": 0.5,
        }))
    };
    let (plain, _) = train(json!({}));
    let same = |a: &Tensor, b: &Tensor, head: i64| a.get(head).equal(&b.get(head));
    let (before, after) = heads("freeze", true);
    assert!(same(&before, &after, 1) && !same(&before, &after, 0) && before.equal(&plain));
    let (before, after) = heads("zero", true);
    assert!(after.get(1).eq(0.0).all().int64_value(&[]) == 1 && !same(&before, &after, 0));
    let (before, after) = heads("scale", false);
    assert!(before.get(1).equal(&(plain.get(1) * 0.5)) && !same(&before, &after, 1));
    let (before, _) = heads("copy", false);
    assert!(!same(&before, &plain, 1) && same(&before, &plain, 0));
    let (circuit, after) = train(json!({
        "edit": "zero", "edit_of": "heads", "edit_select": "circuit", "edit_fraction": 0.5,
        "edit_hold": true, "edit_reference_steps": 5,
    }));
    let dead = |weights: &Tensor| {
        (0..2).filter(|&h| weights.get(h).eq(0.0).all().int64_value(&[]) == 1).count()
    };
    assert_eq!((dead(&circuit), dead(&after)), (1, 1));
}

#[test]
fn an_edited_run_goes_on_where_it_stopped() {
    let edit = json!({
        "edit": "zero", "edit_select": "magnitude", "edit_fraction": 0.2, "edit_hold": true,
        "edit_reference_steps": 12, "aux": "excluded", "aux_weight": -0.1,
    });
    let circuit = json!({
        "edit": "zero", "edit_of": "neurons", "edit_select": "circuit", "edit_hold": true,
    });
    let (once, again) = (train(&circuit, &[1]), train(&circuit, &[1]));
    assert!(once.seeds[&0].states[&30] == again.seeds[&0].states[&30], "the arm reproduces");
    for seeds in [vec![1], vec![1, 6]] {
        let whole = train(&edit, &seeds);
        let plan = CheckpointPlan::at([0, 30]);
        let stop = Recorder::stopping(17, Signal::Drain);
        let (_, drained) = run_recipe(MLP, &setting(&edit), &seeds, &[], &plan, stop);
        let resume: Vec<_> =
            (0..seeds.len()).map(|i| Some(drained.seeds[&i].states[&17].clone())).collect();
        let (outcome, rest) =
            run_recipe(MLP, &setting(&edit), &seeds, &resume, &plan, Recorder::new());
        outcome.unwrap();
        for index in 0..seeds.len() {
            let (rest, whole) = (&rest.seeds[&index], &whole.seeds[&index]);
            assert!(rest.checkpoints[&30] == whole.checkpoints[&30]);
            assert!(rest.states[&30] == whole.states[&30], "the held places are part of the state");
        }
    }
    // The reference is the run itself without the edit.
    let plain = train(&json!({}), &[1]);
    let edited =
        train(&json!({"edit": "zero", "edit_select": "magnitude", "edit_fraction": 0.2}), &[1]);
    let (trained, before) = (weights(&plain, 0, 30), weights(&plain, 0, 0));
    let zeroed = first(&weights(&edited, 0, 0)).eq(0.0);
    let size = first(&trained).abs();
    let least = size.masked_fill(&zeroed.logical_not(), f64::INFINITY).min().double_value(&[]);
    let most = size.masked_fill(&zeroed, 0.0).max().double_value(&[]);
    assert!(least >= most, "the largest fifth of the trained weights");
    let kept = first(&before).masked_fill(&zeroed, 0.0);
    assert!(first(&weights(&edited, 0, 0)).equal(&kept));
}

#[test]
fn seeds_of_weights_and_data_are_separate() {
    let of = |more: &Json, seed: u64| {
        let recorder = train(more, &[seed]);
        let loss = recorder.seeds[&0].metrics[&("train_loss".to_owned(), 30)];
        (first(&weights(&recorder, 0, 0)).copy(), loss)
    };
    let (own, loss) = of(&json!({}), 3);
    let (swapped, other) = of(&json!({"init_seed": 3}), 4);
    assert!(own.equal(&swapped) && loss != other, "equal start, other data");
    let (fresh, third) = of(&json!({"data_seed": 3}), 4);
    assert!(!own.equal(&fresh) && third != loss);
    let (same, again) = of(&json!({"data_seed": 3, "init_seed": 3}), 9);
    assert!(own.equal(&same) && again == loss, "the seeds are all that makes the run");
}

#[test]
fn auxiliary_terms_change_the_training_and_only_if_they_are_there() {
    let plain = train(&json!({}), &[3]);
    let state = |recorder: &Recorder| recorder.seeds[&0].states[&30].clone();
    let off = train(&json!({"aux": "none", "edit": "none"}), &[3]);
    assert!(state(&plain) == state(&off), "an intervention that is not there leaves no trace");
    let norm = |more: &Json| {
        let recorder = train(more, &[3]);
        recorder.seeds[&0].metrics[&("weight_norm".to_owned(), 30)]
    };
    let (base, pulled, pushed) = (
        norm(&json!({"weight_decay": 0.0})),
        norm(&json!({"weight_decay": 0.0, "aux": "norm", "aux_weight": 1e-2})),
        norm(&json!({"weight_decay": 0.0, "aux": "norm", "aux_weight": -1e-2})),
    );
    assert!(pulled < base && base < pushed, "{pulled} {base} {pushed}");
}

#[test]
fn a_branch_shares_the_trunk_and_takes_other_data_from_there() {
    let setting = |more: Json| {
        let mut params = json!({
            "n_digits": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24, "batch": 8, "eval_size": 50,
            "steps": 30, "eval_every": 10,
        });
        for (name, value) in more.as_object().unwrap() {
            params[name] = value.clone();
        }
        params
    };
    for examples in [0, 40] {
        let train = |more: Json, resume: Option<Vec<u8>>, recorder: Recorder| {
            let mut more = more;
            more["n_examples"] = examples.into();
            let resume: Vec<_> = resume.into_iter().map(Some).collect();
            let plan = CheckpointPlan::at([20, 30]);
            let (outcome, mut recorder) =
                run_recipe("addition", &setting(more), &[5], &resume, &plan, recorder);
            outcome.unwrap();
            recorder.seeds.remove(&0).unwrap()
        };
        let weights = |file: &[u8]| {
            let weights = checkpoint::decode("checkpoint", file).unwrap().weights;
            checkpoint::weights_hash(&weights).unwrap()
        };
        let trunk = train(json!({}), None, Recorder::new());
        let branch = json!({"branch_step": 20, "branch_seed": 77});
        let one = train(branch.clone(), None, Recorder::new());
        let other = train(json!({"branch_step": 20, "branch_seed": 78}), None, Recorder::new());
        let at = |run: &crate::Recorded, step: u64| weights(&run.checkpoints[&step]);
        assert!(at(&trunk, 20) == at(&one, 20) && at(&trunk, 20) == at(&other, 20));
        assert!(at(&trunk, 30) != at(&one, 30) && at(&one, 30) != at(&other, 30));
        // What is measured is measured on the same sums.
        let loss = |run: &crate::Recorded| run.metrics[&("test_loss".to_owned(), 20)];
        assert!(loss(&trunk) == loss(&one));
        let stop = Recorder::stopping(26, Signal::Drain);
        let drained = train(branch.clone(), None, stop);
        let rest = train(branch, Some(drained.states[&26].clone()), Recorder::new());
        assert!(rest.checkpoints[&30] == one.checkpoints[&30], "resumed behind the branch");
    }
}

#[test]
fn interventions_that_cannot_be_are_refused() {
    let class = |more: &Json| {
        let plan = CheckpointPlan::default();
        let (outcome, _) = run_recipe(MLP, &setting(more), &[1], &[], &plan, Recorder::new());
        outcome.unwrap_err().class()
    };
    assert_eq!(class(&json!({"branch_step": 5})), Class::Params, "full batches have no order");
    assert_eq!(class(&json!({"aux": "gini", "aux_weight": "x"})), Class::Params);
    assert_eq!(class(&json!({"aux": "excluded", "aux_frequencies": [6]})), Class::Params);
    assert_eq!(class(&json!({"aux": "excluded", "operation": "multiply"})), Class::Params);
    assert_eq!(
        class(&json!({
            "edit": "zero", "edit_of": "neurons", "edit_select": "circuit", "operation": "quadratic",
        })),
        Class::Params
    );
    assert_eq!(
        class(&json!({"edit": "zero", "edit_of": "heads", "edit_list": ["L0H0"]})),
        Class::Params
    );
    // Choices that would be left aside.
    let recipe = RECIPES.iter().find(|recipe| recipe.card().name == MLP).unwrap();
    let refused = |more: Json| {
        let error = recipe.check_params(&setting(&more)).unwrap_err();
        assert_eq!(error.class(), Class::Params);
        error.to_string()
    };
    let units = json!({"edit": "zero", "edit_of": "neurons", "edit_select": "random", "edit_list": ["L0N1"]});
    assert!(refused(units).contains("chosen among all of a layer"));
    // Every recipe takes them, and says so.
    for recipe in RECIPES {
        let names: Vec<&str> = recipe.param_defs().iter().map(|def| def.name).collect();
        for name in ["steps", "init_seed", "branch_step", "aux", "edit", "edit_hold"] {
            assert_eq!(names.iter().filter(|n| **n == name).count(), 1, "{name}");
        }
        let canonical = recipe.canonical_params(&json!({"init_seed": 2, "edit": "none"})).unwrap();
        assert_eq!((canonical.get("init_seed"), canonical.get("edit")), (Some(&json!(2)), None));
    }
}
