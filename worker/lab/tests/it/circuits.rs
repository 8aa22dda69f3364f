//! Experiments on indirect objects: parity with TransformerLens, identities that hold for any model, prompts of
//! tokenizers and of toy vocabularies, and what is refused.

use std::{collections::BTreeMap, fs};

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, CheckpointPlan, Class, MemorySink, Result, Subject, TextCodec, analyse,
    lens::{
        Device, Kind, Transformer,
        checkpoint::{self, Checkpoint},
        processing::{self, Processing},
        tokenizer::Tokenizer,
    },
};

use crate::{
    Recorder,
    prompts::{Fixture, find, fixtures, numbers},
    run_recipe,
};

const EXPERIMENTS: [&str; 7] = [
    "ioi",
    "ioi-dla",
    "ioi-attention",
    "ioi-ablation",
    "activation-patching",
    "path-patching",
    "copy-score",
];

pub(super) const MODELS: [&str; 10] = [
    "gpt2-tiny",
    "gpt2-tiny-crfm",
    "neox-tiny",
    "llama-tiny",
    "olmo2-lens",
    "neel-attn",
    "neel-gelu",
    "neel-solu",
    "neel-solu-rmsfinal",
    "neel-shortformer",
];

fn golden() -> Json {
    serde_json::from_str(include_str!("../fixtures/ioi.json")).unwrap()
}

/// The prompts of the golden file, and more parameters.
fn given(more: &Json) -> Json {
    let golden = golden();
    let mut params = json!({});
    for name in ["tokens", "abc", "io", "s"] {
        params[name] = golden[name].clone();
    }
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    params
}

#[track_caller]
fn close(sink: &MemorySink, metric: &str, expected: &Json, tolerance: f64, model: &str) {
    let found = &sink.metrics[metric][&7].data;
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len(), "{model} {metric}");
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error < tolerance, "{model} {metric}[{index}]: {found}, not {expected}");
    }
}

#[test]
fn measures_equal_transformer_lens() {
    let golden = golden();
    let models = golden["models"].as_object().unwrap();
    assert_eq!(models.len(), 5);
    for (name, expected) in models {
        let fixture = Fixture::read(name);
        let run =
            |experiment: &str, more: Json| fixture.run(experiment, &given(&more), None).unwrap();
        let sink = run("ioi", json!({}));
        for metric in
            ["logit_diff_prompt", "logit_diff", "accuracy", "p_io", "p_s", "log_p_io", "rank"]
        {
            close(&sink, metric, &expected["ioi"][metric], 2e-5, name);
        }
        let sink = run("ioi-attention", json!({"classify": false}));
        close(&sink, "attention", &expected["attention"], 1e-6, name);
        let sink = run("activation-patching", json!({}));
        close(&sink, "logit_diff_clean", &expected["patching"]["clean"], 2e-5, name);
        close(&sink, "logit_diff_corrupt", &expected["patching"]["corrupt"], 2e-5, name);
        // Recovery divides by what separates clean and corrupt, which is little in a random model.
        let separation = sink.scalar("logit_diff_clean", 7).unwrap()
            - sink.scalar("logit_diff_corrupt", 7).unwrap();
        for (metric, grid) in expected["patching"].as_object().unwrap() {
            if metric != "clean" && metric != "corrupt" {
                close(&sink, metric, grid, 1e-5 * (1.0 + 2.0 / separation.abs()), name);
            }
        }
        for (method, keep, key) in
            [("zero", false, "zero"), ("zero", true, "zero_kept"), ("mean", false, "mean")]
        {
            let sink = run("ioi-ablation", json!({"method": method, "keep_patterns": keep}));
            close(&sink, "effect", &expected["ablation"][key], 2e-5, name);
            if method == "zero" {
                close(&sink, "logit_diff_no_heads", &expected["ablation"]["no_heads"], 2e-5, name);
            }
        }
        if let Some(dla) = expected.get("dla") {
            let sink = run("ioi-dla", json!({}));
            close(&sink, "dla", &dla["dla"], 2e-5, name);
            close(&sink, "dla_mlp", &dla["dla_mlp"], 2e-5, name);
            assert!(
                (sink.metrics["dla_part"][&7].data[0] - dla["embed"].as_f64().unwrap()).abs()
                    < 2e-5
            );
        }
        if let Some(paths) = expected.get("paths") {
            let last = fixture.model.config().n_layers - 1;
            let receivers = json!([format!("L{last}H0"), format!("L{last}H2")]);
            let sink = run("path-patching", json!({}));
            close(&sink, "effect", &paths["logits"], 2e-5, name);
            let sink = run("path-patching", json!({"receivers": receivers}));
            close(&sink, "effect", &paths["queries"], 2e-5, name);
            let sink = run("path-patching", json!({"receivers": receivers, "kind": "direct"}));
            close(&sink, "effect", &paths["direct"], 2e-5, name);
        }
        if let Some(copying) = expected.get("copying") {
            let sink = run("copy-score", json!({}));
            close(&sink, "copy_score", &copying["copy"], 1e-6, name);
            close(&sink, "negative_copy_score", &copying["negative"], 1e-6, name);
            assert_eq!(sink.scalar("n_names", 7), Some(15.0));
        }
    }
}

#[test]
fn identities_hold_for_every_family() {
    for name in MODELS {
        let fixture = Fixture::read(name);
        let config = fixture.model.config();
        let sum =
            |sink: &MemorySink, metric: &str| sink.metrics[metric][&7].data.iter().sum::<f64>();
        // Parts of the residual stream sum to the logit difference.
        let sink = fixture.run("ioi-dla", &given(&json!({})), None).unwrap();
        assert!(
            sink.scalar("sum_error", 7).unwrap() < 1e-4,
            "{name}: {:?}",
            sink.scalar("sum_error", 7)
        );
        let logit_diff = sink.scalar("logit_diff", 7).unwrap();
        assert!((sum(&sink, "dla_part") - logit_diff).abs() < 1e-4, "{name}");
        let plain = fixture.run("ioi", &given(&json!({})), None).unwrap();
        assert!((plain.scalar("logit_diff", 7).unwrap() - logit_diff).abs() < 1e-5, "{name}");
        // Everything patched is the clean prompt; the first residual stream at all positions, too.
        let sink = fixture.run("activation-patching", &given(&json!({})), None).unwrap();
        assert!((sink.scalar("resid_final", 7).unwrap() - 1.0).abs() < 1e-4, "{name}");
        let first = &sink.metrics["resid_pre"][&7].data[..10];
        assert!(
            (first[7] - 1.0).abs() < 1e-3,
            "{name}: only the second subject differs: {first:?}"
        );
        let others = (0..10).filter(|&position| position != 7).map(|position| first[position]);
        assert!(others.into_iter().all(|recovery| recovery.abs() < 1e-4), "{name}: {first:?}");
        assert_eq!(sink.metrics["mlp_out"][&7].data[0].is_nan(), config.attn_only, "{name}");
        // Paths that carry what they carried anyway change nothing.
        let same = given(&json!({"abc": golden()["tokens"]}));
        for (kind, receivers) in [
            ("full", json!([])),
            ("direct", json!([])),
            ("full", json!(["L1H1"])),
            ("direct", json!(["L1H1"])),
        ] {
            let mut params = same.clone();
            (params["kind"], params["receivers"]) = (kind.into(), receivers);
            let sink = fixture.run("path-patching", &params, None).unwrap();
            let effects = &sink.metrics["effect"][&7].data;
            assert!(effects.iter().all(|effect| effect.abs() < 2e-5), "{name} {kind}: {effects:?}");
        }
        // To the logits, the direct paths of one sender with the norm's scale held are its attribution's change.
        let direct =
            fixture.run("path-patching", &given(&json!({"kind": "direct"})), None).unwrap();
        let effects = &direct.metrics["effect"][&7].data;
        assert!(effects.iter().any(|effect| effect.abs() > 1e-5), "{name}");
        // A sender behind its receivers has no path to them.
        let sink = fixture
            .run("path-patching", &given(&json!({"receivers": ["L1H1"], "input": "v"})), None)
            .unwrap();
        let effects = &sink.metrics["effect"][&7].data;
        let n_heads = config.n_heads as usize;
        assert!(effects[n_heads..].iter().all(|&effect| effect == 0.0), "{name}");
        assert!(effects[..n_heads].iter().any(|&effect| effect != 0.0), "{name}");
    }
}

/// Zero ablation of all heads is the model without attention.
#[test]
fn without_heads_only_the_rest_is_left() {
    for name in MODELS {
        let fixture = Fixture::read(name);
        let params = given(&json!({"method": "zero"}));
        let sink = fixture.run("ioi-ablation", &params, None).unwrap();
        let weights = fixture.model.weights().copy();
        for (tensor_name, tensor) in weights.iter() {
            if tensor_name.ends_with("attn.W_O") {
                let _ = tensor.shallow_clone().zero_();
            }
        }
        let config = fixture.model.config().clone();
        let without = Transformer::new(config, weights).unwrap();
        let subject = Subject::of(&fixture.checkpoint, &without);
        let expected = run_on(&subject, "ioi", &given(&json!({}))).unwrap();
        let (found, expected) = (
            sink.scalar("logit_diff_no_heads", 7).unwrap(),
            expected.scalar("logit_diff", 7).unwrap(),
        );
        assert!((found - expected).abs() < 1e-5, "{name}: {found}, not {expected}");
        // Removed heads have nothing left to attribute.
        let knocked: Vec<f64> = sink.metrics["knocked_out"][&7].data.clone();
        let after = &sink.metrics["dla_knocked_out"][&7].data;
        assert!(knocked.contains(&1.0), "{name}");
        assert!(knocked.iter().zip(after).all(|(&k, &dla)| k == 0.0 || dla == 0.0), "{name}");
    }
}

pub(super) fn run_on(subject: &Subject<'_>, name: &str, params: &Json) -> Result<MemorySink> {
    let mut sink = MemorySink::default();
    let mut jobs = [AnalyseJob { experiment: find(name), params, sink: &mut sink }];
    analyse(&mut jobs, subject).remove(0)?;
    Ok(sink)
}

/// Folding norms into weights changes no attribution, copy score or path.
#[test]
fn processing_changes_nothing() {
    for name in ["gpt2-tiny", "neox-tiny", "neel-attn", "llama-tiny"] {
        let fixture = Fixture::read(name);
        let config = fixture.model.config();
        let steps = Processing { fold_value_biases: false, ..Processing::all_for(config) };
        let (config, weights) =
            processing::process(config, fixture.model.weights(), &steps).unwrap();
        let folded = Transformer::new(config, weights).unwrap();
        let subject = Subject { processing: "folded", ..Subject::of(&fixture.checkpoint, &folded) };
        for (experiment, metric, more) in [
            ("ioi-dla", "dla", json!({})),
            ("copy-score", "copy_score", json!({})),
            ("path-patching", "effect", json!({"receivers": ["L1H0", "L1H1"], "kind": "direct"})),
            ("path-patching", "effect", json!({"kind": "direct"})),
        ] {
            let raw = fixture.run(experiment, &given(&more), None).unwrap();
            let folded = run_on(&subject, experiment, &given(&more)).unwrap();
            let pairs = raw.metrics[metric][&7].data.iter().zip(&folded.metrics[metric][&7].data);
            for (raw, folded) in pairs {
                assert!((raw - folded).abs() < 2e-5, "{name} {experiment} {more}: {raw} {folded}");
            }
        }
    }
}

/// One token a word and punctuation mark; names are 40 and more, words that have no token of their own share
/// the rest.
struct Words {
    n_names: i64,
}

impl Words {
    const NAMES: [&'static str; 10] =
        ["Michael", "Jessica", "David", "James", "John", "Mary", "Paul", "Sarah", "Robert", "Amy"];

    fn id(&self, word: &str) -> i64 {
        let known = Self::NAMES.iter().take(self.n_names as usize).position(|name| *name == word);
        match known {
            Some(name) => 40 + name as i64,
            None => {
                2 + word.bytes().fold(7u64, |sum, byte| (sum * 31 + u64::from(byte)) % 37) as i64
            }
        }
    }
}

impl TextCodec for Words {
    fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        let spaced = text.replace(',', " ,").replace('.', " .");
        let words = spaced.split_whitespace().map(|word| self.id(word));
        Ok(prepend_bos.then_some(0).into_iter().chain(words).collect())
    }

    fn decode_token(&self, id: i64) -> String {
        id.to_string()
    }

    fn bos(&self) -> Option<i64> {
        Some(0)
    }

    fn hash(&self) -> &'static str {
        "words"
    }
}

#[test]
fn every_model_runs_on_texts() {
    for name in MODELS {
        let fixture = Fixture::read(name);
        for experiment in EXPERIMENTS {
            let params = json!({"n_prompts": 12, "prepend_bos": true});
            let sink = fixture.run(experiment, &params, Some(&Words { n_names: 10 })).unwrap();
            let declared = find(experiment).card().metrics.len();
            assert_eq!(sink.metrics.len(), declared, "{name} {experiment}");
        }
        let params = json!({"n_prompts": 200});
        let sink = fixture.run("ioi", &params, Some(&Words { n_names: 10 })).unwrap();
        assert_eq!(sink.metrics["logit_diff_template"][&7].shape, [30]);
        // Names without a token of their own share it with other words and are left out.
        assert_eq!(sink.scalar("n_names", 7), Some(10.0));
        // A random model does not know who gets it: the mean is small against its spread.
        let (mean, se) =
            (sink.scalar("logit_diff", 7).unwrap(), sink.scalar("logit_diff_se", 7).unwrap());
        assert!(mean.abs() < 6.0 * se, "{name}: {mean} {se}");
    }
}

#[test]
fn prompts_are_the_papers() {
    let fixture = Fixture::read("gpt2-tiny");
    let codec = Words { n_names: 10 };
    let record = |params: Json| -> Json {
        let sink = fixture.run("ioi", &params, Some(&codec)).unwrap();
        serde_json::from_slice(&sink.artifacts["prompts.json"]).unwrap()
    };
    let mixed = record(json!({"n_prompts": 400, "prepend_bos": false}));
    let (mut seen, mut n_abba) = (BTreeMap::new(), 0);
    for prompt in mixed["prompts"].as_array().unwrap() {
        let tokens: Vec<i64> = serde_json::from_value(prompt["tokens"].clone()).unwrap();
        let at = |place: &str| prompt["places"][place].as_u64().unwrap() as usize;
        let (io, s) = (prompt["io"].as_i64().unwrap(), prompt["s"].as_i64().unwrap());
        assert_eq!((tokens[at("io")], tokens[at("s1")], tokens[at("s2")]), (io, s, s));
        assert!(at("s1") < at("s2") && at("io") < at("s2") && at("end") == tokens.len() - 1);
        assert_eq!(tokens[at("end")], codec.id("to"));
        assert_eq!(tokens[at("s1").max(at("io")) - 1], codec.id("and"));
        n_abba += usize::from(at("io") < at("s1"));
        *seen.entry(prompt["template"].as_u64().unwrap()).or_insert(0) += 1;
        let abc: Vec<i64> = serde_json::from_value(prompt["abc"].clone()).unwrap();
        let differ: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i] != abc[i]).collect();
        let mut places = vec![at("io"), at("s1"), at("s2")];
        places.sort_unstable();
        assert_eq!(differ, places);
        let others = [abc[at("io")], abc[at("s1")], abc[at("s2")]];
        assert!(others.iter().all(|name| *name != io && *name != s));
        assert!(others[0] != others[1] && others[1] != others[2] && others[0] != others[2]);
    }
    assert_eq!((seen.len(), n_abba), (30, 200));
    // The example of the paper, by its places.
    let one = record(json!({"n_prompts": 60, "templates": "abba", "prepend_bos": true}));
    let is_first = |prompt: &&Json| prompt["template"] == 0;
    let first = one["prompts"].as_array().unwrap().iter().find(is_first).unwrap();
    // BOS Then , Mary and John went to the store . John gave a drink to
    assert_eq!(first["places"], json!({"io": 3, "s1": 5, "s2": 11, "end": 15}));
    // Seeds tell prompts apart, and equal ones do not.
    let again = record(json!({"n_prompts": 400, "prepend_bos": false}));
    let other = record(json!({"n_prompts": 400, "prepend_bos": false, "seed": 1}));
    assert!(again == mixed && other != mixed);
    for set in ["abc", "bac"] {
        let three = record(json!({"n_prompts": 20, "templates": set}));
        assert_eq!(three["templates"].as_array().unwrap().len(), 4);
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let fixture = Fixture::read("gpt2-tiny");
    for experiment in EXPERIMENTS {
        let error = |params: Json, text: Option<&dyn TextCodec>| {
            fixture.run(experiment, &params, text).unwrap_err()
        };
        let none = error(json!({}), None);
        assert!(
            none.class() == Class::Unsupported && none.to_string().contains("tokenizer"),
            "{none}"
        );
        for (params, words) in [
            (json!({"tokens": [[1, 2, 3]]}), "a token for each of 1 rows, found 0"),
            (json!({"tokens": [[1, 2, 3]], "io": [1], "s": [2]}), "found 1 and 1"),
            (json!({"tokens": [[2, 2, 1]], "io": [1], "s": [2]}), "in front of"),
            (json!({"io": [1], "s": [2]}), "found none"),
            (json!({"tokens": [[1, 200, 200, 3]], "io": [1], "s": [200]}), "token 200 is not in"),
            (
                json!({"tokens": [[1, 2, 2, 3]], "io": [1], "s": [2], "names": [1, 2, 500, 5]}),
                "`names`: token 500 is not in",
            ),
            (json!({"n_prompts": 0}), "minimum"),
            (json!({"templates": "abcd"}), "expected one of"),
        ] {
            let error = error(params, None);
            assert!(error.class() == Class::Params && error.to_string().contains(words), "{error}");
        }
        let long: Vec<i64> = (0..40).map(|i| [5, 6, 7][(i % 3) as usize]).collect();
        let long = error(json!({"tokens": [long], "io": [5], "s": [6]}), None);
        assert!(long.to_string().contains("40 tokens, n_ctx is 32"), "{long}");
    }
    let few = fixture.run("ioi", &json!({}), Some(&Broken)).unwrap_err();
    assert!(
        few.class() == Class::Unsupported && few.to_string().contains("found 1 of 99"),
        "{few}"
    );
    let few = json!({"tokens": [[1, 2, 2, 3]], "io": [1], "s": [2]});
    for experiment in ["path-patching", "ioi-ablation", "ioi-attention"] {
        let error = fixture.run(experiment, &few, None).unwrap_err();
        assert!(error.to_string().contains("3 names that are not in prompt 0, found 2"), "{error}");
    }
    let unknown = json!({"receivers": ["L9H0"]});
    let error = fixture.run("path-patching", &given(&unknown), None).unwrap_err();
    assert!(
        error.class() == Class::Params && error.to_string().contains("4 heads in 3 layers"),
        "{error}"
    );
}

/// Knows a single name.
pub(super) struct Broken;

impl TextCodec for Broken {
    fn encode(&self, text: &str, _prepend_bos: bool) -> Result<Vec<i64>> {
        let id = |word: &str| match word {
            "Then" => vec![1],
            "Mary" => vec![2],
            _ => vec![3, 4],
        };
        Ok(text.split(' ').flat_map(id).collect())
    }

    fn decode_token(&self, id: i64) -> String {
        id.to_string()
    }

    fn bos(&self) -> Option<i64> {
        None
    }

    fn hash(&self) -> &'static str {
        "broken"
    }
}

/// The small tokenizers of the lens crate have hardly a name.
#[test]
fn small_tokenizers_say_how_many_names_they_have() {
    let fixture = Fixture::read("neox-tiny");
    for name in ["gpt2", "neox"] {
        let folder = fixtures().join("tokenizers").join(name);
        let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
        let files = entries.map(|e| (e.file_name().into_string().unwrap(), e.path())).collect();
        let tokenizer = Tokenizer::open(&files).unwrap();
        let error = fixture.run("ioi", &json!({}), Some(&tokenizer)).unwrap_err();
        assert_eq!(error.class(), Class::Unsupported);
        assert!(
            error.to_string().contains("2 names that are single tokens of the model, found"),
            "{error}"
        );
    }
}

/// A toy model trained to identify indirect objects.
pub(super) fn toy(steps: u64) -> Vec<Checkpoint> {
    let params = json!({"n_names": 8, "steps": steps, "lr": 4e-3, "batch": 32, "eval_every": 500});
    let plan = CheckpointPlan::at([0, steps]);
    let (outcome, mut recorder) = run_recipe("toy-ioi", &params, &[1], &[], &plan, Recorder::new());
    outcome.unwrap();
    let files = recorder.seeds.remove(&0).unwrap().checkpoints;
    files.values().map(|file| checkpoint::decode("checkpoint", file).unwrap()).collect()
}

#[test]
fn toy_models_are_asked_in_their_own_words() {
    let checkpoints = toy(40);
    for Checkpoint { step, .. } in &checkpoints {
        let checkpoint = checkpoints.iter().find(|other| other.step == *step).unwrap();
        let model = Transformer::new(checkpoint.config.clone(), checkpoint.weights.shallow_clone())
            .unwrap();
        let subject = Subject::of(checkpoint, &model);
        for experiment in EXPERIMENTS {
            let sink = run_on(&subject, experiment, &json!({"n_prompts": 24})).unwrap();
            assert_eq!(sink.metrics.len(), find(experiment).card().metrics.len(), "{experiment}");
        }
        let sink = run_on(&subject, "ioi", &json!({"n_prompts": 24})).unwrap();
        assert_eq!(sink.scalar("n_names", *step), Some(8.0));
        assert_eq!(sink.metrics["logit_diff_template"][step].shape, [12]);
    }
    let subject_of = |model| Subject::of(&checkpoints[0], model);
    let model = Transformer::new(
        checkpoints[0].config.clone(),
        checkpoints[0].weights.to_device(Device::Cpu).to_kind(Kind::Float),
    )
    .unwrap();
    let error = run_on(&subject_of(&model), "ioi", &json!({"templates": "abc"})).unwrap_err();
    assert!(error.to_string().contains("no template of the set `abc`"), "{error}");
}

#[test]
fn weights_without_numbers_do_not_crash() {
    let fixture = Fixture::read("gpt2-tiny");
    let weights = fixture.model.weights().copy();
    let _ = weights.get("blocks.1.attn.W_O").unwrap().shallow_clone().fill_(f64::NAN);
    let broken = Transformer::new(fixture.model.config().clone(), weights).unwrap();
    let subject = Subject::of(&fixture.checkpoint, &broken);
    for experiment in EXPERIMENTS {
        run_on(&subject, experiment, &given(&json!({}))).unwrap();
    }
    let sink = run_on(&subject, "ioi-dla", &given(&json!({}))).unwrap();
    assert!(sink.scalar("sum_error", 7).unwrap().is_nan());
}

/// Without norms and MLPs, what a head writes reaches the next layer and the logits as it is: the direct path
/// is all there is between neighbours.
#[test]
fn direct_paths_are_all_paths_where_nothing_else_is() {
    let fixture = Fixture::read("neel-shortformer");
    for more in [
        json!({}),
        json!({"receivers": ["L1H0", "L1H3"], "input": "q"}),
        json!({"receivers": ["L1H0", "L1H3"], "input": "k"}),
        json!({"receivers": ["L1H2"], "input": "v"}),
    ] {
        let effects = |kind: &str| {
            let mut params = given(&more);
            params["kind"] = kind.into();
            let sink = fixture.run("path-patching", &params, None).unwrap();
            sink.metrics["effect"][&7].data.clone()
        };
        let (full, direct) = (effects("full"), effects("direct"));
        for (full, direct) in full.iter().zip(&direct) {
            assert!((full - direct).abs() < 2e-6, "{more}: {full} {direct}");
        }
        assert!(full[..4].iter().all(|effect| *effect != 0.0), "{more}: {full:?}");
    }
}

#[test]
fn a_trained_toy_answers_by_one_path_that_every_tool_finds() {
    let steps = 1000;
    let toy = toy(steps);
    let run = |checkpoint: &Checkpoint, experiment: &str, more: Json| {
        let model = Transformer::new(checkpoint.config.clone(), checkpoint.weights.shallow_clone())
            .unwrap();
        run_on(&Subject::of(checkpoint, &model), experiment, &more).unwrap()
    };
    let untrained = run(&toy[0], "ioi", json!({}));
    assert!(untrained.scalar("logit_diff", 0).unwrap().abs() < 0.3);
    let sink = run(&toy[1], "ioi", json!({}));
    let (accuracy, logit_diff) =
        (sink.scalar("accuracy", steps).unwrap(), sink.scalar("logit_diff", steps).unwrap());
    assert!(accuracy > 0.9 && logit_diff > 1.0, "{accuracy} {logit_diff}");
    let extreme = |values: &[f64], sign: f64| {
        let order = |a: &usize, b: &usize| (sign * values[*a]).total_cmp(&(sign * values[*b]));
        (0..values.len()).max_by(order).unwrap()
    };
    let of = |experiment: &str, metric: &str, more: Json| {
        run(&toy[1], experiment, more).metrics[metric][&steps].data.clone()
    };
    // The head that writes the answer, by attribution, removal, paths to the logits and patching.
    let dla = of("ioi-dla", "dla", json!({}));
    let writer = extreme(&dla, 1.0);
    assert!(writer >= 4 && dla[writer] > 0.5 * logit_diff, "{dla:?}");
    assert_eq!(extreme(&of("ioi-ablation", "effect", json!({})), -1.0), writer);
    assert_eq!(extreme(&of("path-patching", "effect", json!({})), -1.0), writer);
    assert_eq!(extreme(&of("activation-patching", "z", json!({})), 1.0), writer);
    // The information enters at the second subject and leaves at the end.
    let sink = run(&toy[1], "activation-patching", json!({}));
    let resid = &sink.metrics["resid_pre"][&steps];
    let s2 = resid.labels[1].as_ref().unwrap().iter().position(|label| label == "S2").unwrap();
    assert!((resid.data[s2] - 1.0).abs() < 1e-4, "{:?}", resid.data);
    let total: f64 = resid.data[..8].iter().sum();
    assert!((total - 1.0).abs() < 1e-3, "nothing else differs: {:?}", resid.data);
}
