//! Fine-tuning: the trunk is the first task's own run, the control is the second task's own run, moments
//! start anew, other tasks take turns too, and `forgetting` tells what happened.

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, Base, CheckpointPlan, Class, EXPERIMENTS, MemorySink, RECIPES, SeriesTable, Signal,
    Subject, TextCodec, TrajectoryInput, analyse,
    lens::{Config, Device, Normalization, Transformer, Weights, checkpoint, init},
    train_from, trajectory,
};

use crate::{Published, Recorded, Recorder, run_recipe};

fn train(recipe: &str, params: &Json, steps: &[u64]) -> Recorded {
    let plan = CheckpointPlan::at(steps.iter().copied());
    let (outcome, mut recorder) = run_recipe(recipe, params, &[3], &[], &plan, Recorder::new());
    outcome.unwrap();
    recorder.seeds.remove(&0).unwrap()
}

fn weights(run: &Recorded, step: u64) -> String {
    checkpoint::decode("checkpoint", &run.checkpoints[&step]).unwrap().weights_hash
}

#[test]
fn trunk_and_control_are_the_tasks_own_runs() {
    let both = json!(["p=11", "d_mlp=20", "lr=0.01", "warmup=3"]);
    let finetune = |switch: u64, back: i64| {
        json!({
            "both": both, "switch_step": switch, "return_step": back, "steps": 30, "eval_every": 10,
        })
    };
    let alone = |operation: &str| {
        json!({
            "p": 11, "d_mlp": 20, "lr": 0.01, "warmup": 3, "operation": operation, "steps": 30,
            "eval_every": 10,
        })
    };
    let own = |operation| train("modular-addition-mlp", &alone(operation), &[10, 30]);
    let (sum, difference) = (own("add"), own("subtract"));
    let tuned = train("finetune", &finetune(10, -1), &[10, 30]);
    assert_eq!(weights(&tuned, 10), weights(&sum, 10), "the first task alone");
    assert_ne!(weights(&tuned, 30), weights(&sum, 30));
    let scratch = train("finetune", &finetune(0, -1), &[10, 30]);
    assert_eq!(weights(&scratch, 30), weights(&difference, 30), "the second task alone");
    let at = |run: &Recorded, name: &str, step| run.metrics[&(name.to_owned(), step)];
    assert_eq!(at(&tuned, "loss_first", 10), at(&sum, "test_loss", 10));
    assert_eq!(at(&scratch, "loss_second", 30), at(&difference, "test_loss", 30));
    // The optimizer starts anew: warm-up again at the switch and at the return.
    assert_eq!((at(&tuned, "lr", 10), at(&tuned, "lr", 20)), (0.0, 0.01));
    let back = train("finetune", &finetune(10, 20), &[10, 20, 30]);
    assert_eq!(weights(&back, 20), {
        let tuned = train("finetune", &finetune(10, -1), &[20]);
        weights(&tuned, 20)
    });
    assert_eq!(at(&back, "lr", 20), 0.0);
    // A state at a switch belongs to the part that ends; what follows is the same as without a stop.
    for stop in [10, 20, 25] {
        let plan = CheckpointPlan::at([10, 20, 30]);
        let params = finetune(10, 20);
        let stopping = Recorder::stopping(stop, Signal::Drain);
        let (_, drained) = run_recipe("finetune", &params, &[3], &[], &plan, stopping);
        let state = Some(drained.seeds[&0].states[&stop].clone());
        let (outcome, rest) =
            run_recipe("finetune", &params, &[3], &[state], &plan, Recorder::new());
        outcome.unwrap();
        assert!(rest.seeds[&0].states[&30] == back.states[&30], "stopped at {stop}");
    }
}

#[test]
fn terms_of_one_tasks_circuit_are_refused() {
    let params = json!({"both": ["p=7", "d_mlp=5"], "steps": 4, "switch_step": 2, "aux": "gini"});
    let plan = CheckpointPlan::default();
    let (outcome, _) = run_recipe("finetune", &params, &[1], &[], &plan, Recorder::new());
    let error = outcome.unwrap_err();
    assert!(error.class() == Class::Params && error.to_string().contains("`gini`"), "{error}");
}

#[test]
fn lists_and_texts_take_turns_too() {
    let lists = json!({
        "recipe": "sorting", "first": ["answer=copy"], "second": ["answer=reverse"],
        "both": ["length=2", "n_values=6", "d_model=32", "n_heads=2", "batch=64", "lr=0.003"],
        "switch_step": 250, "steps": 500, "eval_every": 250,
    });
    let run = train("finetune", &lists, &[]);
    let at = |name: &str, step| run.metrics[&(name.to_owned(), step)];
    assert!(at("accuracy_first", 250) > 0.9, "{}", at("accuracy_first", 250));
    assert!(at("accuracy_second", 500) > 0.9 && at("accuracy_first", 500) < 0.6);
    let texts = json!({
        "recipe": "text-lm", "first": [format!("text={}", "ab".repeat(200))],
        "second": [format!("text={}", "cd".repeat(200))],
        "both": ["n_ctx=8", "d_model=16", "n_heads=2", "d_mlp=16", "batch=8", "lr=0.01",
                 "eval_sequences=4"],
        "switch_step": 120, "steps": 240, "eval_every": 120,
    });
    let run = train("finetune", &texts, &[]);
    let at = |name: &str, step| run.metrics[&(name.to_owned(), step)];
    assert!(at("loss_first", 120) < 0.2 && at("loss_second", 120) > 3.0);
    assert!(at("loss_second", 240) < 0.2 && at("loss_first", 240) > 1.0);
}

#[test]
fn any_recipe_starts_from_a_checkpoint() {
    let params = json!({"p": 11, "d_mlp": 20, "lr": 0.01, "steps": 10, "eval_every": 10});
    let base = train("modular-addition-mlp", &params, &[10]);
    let base = checkpoint::decode("checkpoint", &base.checkpoints[&10]).unwrap();
    let start = |params: &Json, weights: Option<&Weights>| {
        let recipe = RECIPES.iter().find(|r| r.card().name == "modular-addition-mlp").unwrap();
        let (plan, mut recorder) = (CheckpointPlan::at([0, 10]), Recorder::new());
        let seeds = [1, 2];
        let device = Device::Cpu;
        let base = weights.map(|weights| Base {
            config: &base.config,
            weights,
            text: None,
            record: &base.extra,
        });
        train_from(base, *recipe, params, &seeds, &[], &plan, device, &mut recorder)
            .map(|_| recorder)
    };
    let mut from = params.clone();
    (from["init_from"], from["operation"]) = ("some/place".into(), "subtract".into());
    let recorder = start(&from, Some(&base.weights)).unwrap();
    let at = |index: usize, step| weights(&recorder.seeds[&index], step);
    assert_eq!((at(0, 0), at(1, 0)), (base.weights_hash.clone(), base.weights_hash.clone()));
    assert_ne!(at(0, 10), at(1, 10), "each on its own data");
    for (params, weights, word) in [
        (&from, None, "found none"),
        (&params, Some(&base.weights), "found some"),
        (&json!({"p": 11, "d_mlp": 21, "init_from": "x"}), Some(&base.weights), "layers.0.W"),
    ] {
        let error = start(params, weights).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// What a token means must not change between training, analysis and fine-tuning.
#[test]
fn byte_pairs_are_those_of_the_base_wherever_its_models_read_texts() {
    let sentence = "the cat sat on the mat ";
    let params = json!({
        "text": sentence.repeat(40), "n_merges": 20, "n_ctx": 8, "d_model": 16, "n_heads": 2, "n_layers": 1,
        "batch": 16, "lr": 0.01, "steps": 150, "eval_every": 150, "eval_sequences": 8,
    });
    let run = train("text-lm", &params, &[150]);
    let base = checkpoint::decode("checkpoint", &run.checkpoints[&150]).unwrap();
    assert!(base.extra["byte_pairs"].as_array().is_some_and(|pairs| pairs.len() > 5));
    let model = Transformer::new(base.config.clone(), base.weights.shallow_clone()).unwrap();
    let experiment = *EXPERIMENTS.iter().find(|e| e.card().name == "per-token-loss").unwrap();
    let (asked, mut sink) = (json!({"text": ["the cat sat on"]}), MemorySink::default());
    let mut jobs = [AnalyseJob { experiment, params: &asked, sink: &mut sink }];
    analyse(&mut jobs, &Subject::of(&base, &model)).remove(0).unwrap();
    let read = |name| sink.scalar(name, 150).unwrap();
    assert!(
        read("n_predicted") < 8.0 && read("loss") < 1.0,
        "{} {}",
        read("n_predicted"),
        read("loss")
    );

    let recipe = RECIPES.iter().find(|recipe| recipe.card().name == "text-lm").unwrap();
    let mut other = params.clone();
    // Learns other pairs; the last tenth of the tokens, which is held out, are the base's sentences.
    (other["text"], other["init_from"]) =
        (format!("{}{}", "zq xzq ".repeat(100), sentence.repeat(40)).into(), "some/place".into());
    (other["steps"], other["eval_every"]) = (2.into(), 2.into());
    let start = |record: &Json| {
        let base = Base { config: &base.config, weights: &base.weights, text: None, record };
        let plan = CheckpointPlan::at([2]);
        let mut recorder = Recorder::new();
        train_from(Some(base), *recipe, &other, &[1], &[], &plan, Device::Cpu, &mut recorder)
            .map(|_| recorder)
    };
    let tuned = start(&base.extra).unwrap().seeds.remove(&0).unwrap();
    assert!(tuned.metrics[&("test_loss".to_owned(), 0)] < 1.0);
    let tuned = checkpoint::decode("checkpoint", &tuned.checkpoints[&2]).unwrap();
    assert_eq!(tuned.extra["byte_pairs"], base.extra["byte_pairs"]);
    // Analyses that rebuild a recipe's data would learn the new text's pairs.
    assert_ne!(tuned.extra["recipe"], "text-lm");
    let error = start(&Json::Null).unwrap_err().to_string();
    assert!(error.contains("n_merges") && error.contains("no byte pairs"), "{error}");
    let malformed = json!({"byte_pairs": [[3, 256]]});
    assert!(start(&malformed).unwrap_err().to_string().contains("token 256"));
    let two = json!({
        "recipe": "text-lm", "both": ["n_merges=20", "n_ctx=8", "d_model=16", "n_heads=2", "n_layers=1"],
        "first": [format!("text={}", sentence.repeat(40))], "second": [format!("text={}", "zq xzq ".repeat(90))],
        "switch_step": 1, "steps": 2,
    });
    let finetune = RECIPES.iter().find(|recipe| recipe.card().name == "finetune").unwrap();
    assert!(finetune.check_params(&two).unwrap_err().to_string().contains("byte pairs"));
}

/// A tokenizer that knows letters only.
struct Letters;

impl TextCodec for Letters {
    fn encode(&self, text: &str, prepend_bos: bool) -> sweep_lab::Result<Vec<i64>> {
        assert!(!prepend_bos);
        let letters = text.bytes().filter(u8::is_ascii_lowercase);
        Ok(letters.map(|letter| i64::from(letter - b'a')).collect())
    }

    fn decode_token(&self, id: i64) -> String {
        id.to_string()
    }

    fn bos(&self) -> Option<i64> {
        Some(26)
    }

    fn hash(&self) -> &'static str {
        "letters"
    }
}

#[test]
fn a_text_fine_tunes_a_model_of_any_architecture() {
    tch::set_num_threads(1);
    let config = Config {
        default_prepend_bos: true,
        normalization: Normalization::Ln,
        final_normalization: Normalization::Ln,
        ..Config::toy(2, 16, 4, 30, 12)
    };
    let weights: Weights = config
        .parameters()
        .into_iter()
        .map(|p| (p.name.clone(), init::normal(1, &p.name, &p.shape, 0.1, Device::Cpu)))
        .collect();
    let recipe = RECIPES.iter().find(|recipe| recipe.card().name == "text-lm").unwrap();
    let start =
        |params: &Json, text: Option<&dyn TextCodec>, resume: &[Option<Vec<u8>>], recorder| {
            let (plan, mut recorder): (_, Recorder) = (CheckpointPlan::at([0, 120]), recorder);
            let base = Some(Base { config: &config, weights: &weights, text, record: &Json::Null });
            train_from(base, *recipe, params, &[1], resume, &plan, Device::Cpu, &mut recorder)
                .map(|_| recorder)
        };
    let params = json!({
        "init_from": "some/place", "text": "abcd ".repeat(80), "n_ctx": 8, "batch": 8, "lr": 0.01,
        "eval_sequences": 4, "steps": 120, "eval_every": 60,
    });
    let codec = Some(&Letters as &dyn TextCodec);
    let run = start(&params, codec, &[], Recorder::new()).unwrap();
    let of = |step| checkpoint::decode("checkpoint", &run.seeds[&0].checkpoints[&step]).unwrap();
    assert_eq!(of(120).config, config);
    // It starts from the checkpoint, biases and all, and every tensor moves but what nothing reaches.
    for (name, tensor) in weights.iter() {
        assert!(of(0).weights.get(name).unwrap().equal(tensor), "{name}");
        let moved = !of(120).weights.get(name).unwrap().equal(tensor);
        assert!(moved || name.ends_with("b_K"), "{name} is trained");
    }
    let loss = |step| run.seeds[&0].metrics[&("test_loss".to_owned(), step)];
    assert!(loss(0) > 2.0 && loss(120) < 0.3, "{} {}", loss(0), loss(120));
    // A run that was stopped goes on from there.
    let stopped = start(&params, codec, &[], Recorder::stopping(70, Signal::Drain)).unwrap();
    let state = Some(stopped.seeds[&0].states[&70].clone());
    let rest = start(&params, codec, &[state], Recorder::new()).unwrap();
    assert!(rest.seeds[&0].states[&120] == run.seeds[&0].states[&120]);
    // Bytes are not what this model reads: analyses that know the recipe's data keep away.
    assert_ne!(of(120).extra["recipe"], "text-lm");
    let refused = |more: Json, text| {
        let mut params = params.clone();
        for (name, value) in more.as_object().unwrap() {
            params[name] = value.clone();
        }
        start(&params, text, &[], Recorder::new()).unwrap_err().to_string()
    };
    assert!(refused(json!({}), None).contains("no tokenizer"));
    assert!(refused(json!({"n_ctx": 13}), codec).contains("checkpoint's 12"));
    assert!(refused(json!({"n_merges": 3}), codec).contains("n_merges"));
    assert!(refused(json!({"text": "abc"}), codec).contains("training part"));
}

fn forgetting(run: Recorded, params: &Json) -> MemorySink {
    let experiment = *EXPERIMENTS.iter().find(|e| e.card().name == "forgetting").unwrap();
    let mut files = Published::new(run.checkpoints);
    let (series, mut sink) = (SeriesTable::new(), MemorySink::default());
    let input =
        TrajectoryInput { checkpoints: Some(&mut files), series: &series, device: Device::Cpu };
    trajectory(experiment, params, input, &mut sink).unwrap();
    sink
}

#[test]
fn forgetting_transfer_and_relearning_are_told() {
    // Copying and reversing lists of two: learned within 200 steps each.
    let params = json!({
        "recipe": "sorting", "first": ["answer=copy"], "second": ["answer=reverse"],
        "both": ["length=2", "n_values=6", "d_model=32", "n_heads=2", "batch=64", "lr=0.003"],
        "switch_step": 300, "return_step": 600, "steps": 800, "eval_every": 100,
    });
    let steps: Vec<u64> = (0..=40).map(|i| i * 20).collect();
    let run = train("finetune", &params, &steps);
    let series = run.metrics.clone();
    let sink = forgetting(run, &json!({"forgotten": 0.6}));
    let at = |name: &str, step: u64| sink.metrics[name][&step].data[0];
    for step in [0, 300, 600, 800] {
        for name in ["loss_first", "loss_second", "accuracy_first", "accuracy_second"] {
            assert_eq!(at(name, step), series[&(name.to_owned(), step)], "{name} at {step}");
        }
    }
    // The base differs from itself by nothing.
    assert!(sink.metrics["displacement"][&300].data.iter().all(|moved| *moved == 0.0));
    assert!(sink.metrics["cka"][&300].data.iter().all(|cka| (cka - 1.0).abs() < 1e-9));
    assert!(sink.metrics["displacement"][&600].data.iter().all(|moved| *moved > 0.0));
    let end = |name: &str| at(name, 800);
    assert!((end("forgetting") - (at("loss_first", 600) - at("loss_first", 300))).abs() < 1e-12);
    assert!(end("forgetting") > 0.5, "{}", end("forgetting"));
    assert!(end("learn_steps") <= 300.0 && end("transfer_steps") <= 300.0);
    assert!(end("forget_steps") <= end("transfer_steps"), "forgotten before the other is learned");
    assert!(end("relearn_steps") < end("learn_steps"), "{}", end("relearn_steps"));
    assert!(at("frequency_overlap", 300).is_nan() && at("probe_first", 300).is_nan());
    assert!(sink.metrics["barrier"][&800].data.iter().all(|height| *height >= 0.0));
    // From scratch there is nothing to forget.
    let scratch = json!({
        "both": ["p=11", "d_mlp=20", "lr=0.01"], "switch_step": 0, "steps": 20, "eval_every": 10,
    });
    let run = train("finetune", &scratch, &[0, 10, 20]);
    let sink = forgetting(run, &json!({}));
    let at = |name: &str, step: u64| sink.metrics[name][&step].data[0];
    assert!(at("forgetting", 20).is_nan() && at("learn_steps", 20).is_nan());
    assert!((at("frequency_overlap", 0) - 1.0).abs() < 1e-12 && at("frequency_overlap", 20) < 1.0);
    assert!((0.0..=1.0).contains(&at("probe_first", 20)));
}
