//! Experiments on attention heads: parity with TransformerLens, and that they run on models of every kind.

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, CheckpointPlan, Class, MemorySink, Subject, analyse,
    lens::{
        Config, Device, Transformer, Weights,
        checkpoint::{self, Checkpoint},
        init,
    },
};

use crate::{
    Recorder,
    circuits::run_on,
    prompts::{Fixture, Letters, find, numbers},
    recipes::settings,
    run_recipe,
};

fn golden() -> Json {
    serde_json::from_str(include_str!("../fixtures/heads.json")).unwrap()
}

/// Everything that looks at heads or at what they are good for.
const HEADS: [&str; 7] = [
    "attention-stats",
    "composition",
    "copying",
    "head-detector",
    "in-context-learning",
    "induction-heads",
    "logit-lens",
];

#[track_caller]
fn near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
    }
}

fn cells<'a>(sink: &'a MemorySink, name: &str) -> &'a [f64] {
    &sink.metrics[name][&7].data
}

#[test]
fn detectors_equal_transformer_lens() {
    let golden = golden();
    let models = golden["detect"].as_object().unwrap();
    assert_eq!(models.len(), 12);
    for (model, expected) in models {
        let fixture = Fixture::read(model);
        for (bos, current) in [(false, false), (true, false), (true, true)] {
            let params = json!({
                "tokens": fixture.tokens, "exclude_bos": bos, "exclude_current_token": current,
            });
            let sink = fixture.run("head-detector", &params, None).unwrap();
            for head in ["previous_token_head", "duplicate_token_head", "induction_head"] {
                let of = |measure: &str| {
                    let key = format!("{head} {measure} {} {}", u8::from(bos), u8::from(current));
                    numbers(&expected[key])
                };
                near(cells(&sink, head), &of("mul"), 1e-5, &format!("{model} {head}"));
                // The measure is rounded to three decimals for each of the two rows.
                let name = format!("{head}_abs");
                near(cells(&sink, &name), &of("abs"), 1e-3 + 1e-6, &format!("{model} {name}"));
            }
        }
    }
}

/// Rows of 10 tokens twice behind token 0, as in the golden file.
fn repeats() -> Json {
    let row = |r: i64| -> Vec<i64> {
        let copy = || (0..10).map(|i| ((10 * r + i) * 13 + 5) % 100 + 1);
        std::iter::once(0).chain(copy()).chain(copy()).collect()
    };
    json!([row(0), row(1), row(2)])
}

#[test]
fn scores_on_repeats_equal_transformer_lens() {
    let golden = golden();
    for (model, expected) in golden["repeats"].as_object().unwrap() {
        let fixture = Fixture::read(model);
        let sink = fixture.run("induction-heads", &json!({"tokens": repeats()}), None).unwrap();
        near(cells(&sink, "induction_stripe"), &numbers(&expected["stripe"]), 1e-6, model);
        let losses = numbers(&expected["losses"]);
        let behind: Vec<f64> = losses.chunks(20).flat_map(|row| &row[11..]).copied().collect();
        let mean = behind.iter().sum::<f64>() / behind.len() as f64;
        near(&[sink.scalar("induction_loss", 7).unwrap()], &[mean], 1e-5, model);
        assert_eq!(sink.scalar("seq_len_used", 7), Some(10.0));
        let stats = fixture.run("attention-stats", &json!({"tokens": repeats()}), None).unwrap();
        near(cells(&stats, "entropy"), &numbers(&expected["mean_entropy"]), 1e-5, model);
        let first = json!({"tokens": [repeats()[0]]});
        let detected = fixture.run("head-detector", &first, None).unwrap();
        for head in ["previous_token_head", "duplicate_token_head", "induction_head"] {
            let expected = numbers(&expected["detect"][format!("{head} mul 0 0")]);
            near(cells(&detected, head), &expected, 1e-5, model);
        }
        let icl = json!({"tokens": repeats(), "early": 3, "late": 20});
        let icl = fixture.run("in-context-learning", &icl, None).unwrap();
        let at = |index: usize| losses.iter().skip(index - 1).step_by(20).sum::<f64>() / 3.0;
        near(&[icl.scalar("icl_score", 7).unwrap()], &[at(20) - at(3)], 1e-5, model);
    }
}

#[test]
fn compositions_equal_transformer_lens() {
    let golden = golden();
    for (model, expected) in golden["repeats"].as_object().unwrap() {
        for (steps, key, folded) in
            [("raw", "composition", 0.0), ("folded", "composition_folded", 1.0)]
        {
            let fixture = Fixture::read(model).processed(steps);
            let sink = fixture.run("composition", &json!({}), None).unwrap();
            for (kind, name) in
                [("Q", "q_composition"), ("K", "k_composition"), ("V", "v_composition")]
            {
                let expected = numbers(&expected[key][kind]);
                near(cells(&sink, name), &expected, 1e-5, &format!("{model} {steps} {name}"));
                let best = expected.iter().copied().fold(0.0, f64::max) - 1.0 / 48f64.sqrt();
                near(&[sink.scalar(&format!("{name}_max"), 7).unwrap()], &[best], 1e-5, model);
            }
            assert_eq!(sink.scalar("folded", 7), Some(folded), "{model}");
            let rotary = f64::from(u8::from(model == "neox-tiny"));
            assert_eq!(sink.scalar("rotary", 7), Some(rotary), "{model}");
            let chance = sink.scalar("baseline_monte_carlo", 7).unwrap();
            assert!((chance - 1.0 / 48f64.sqrt()).abs() < 0.01, "{chance}");
        }
    }
    // At one position in front only the QK circuits change.
    let fixture = Fixture::read("neox-tiny");
    let of = |rotary| fixture.run("composition", &json!({ "rotary": rotary }), None).unwrap();
    let (ignored, previous) = (of("ignore"), of("previous"));
    assert_eq!(previous.scalar("rotary", 7), Some(2.0));
    assert_ne!(cells(&ignored, "k_composition"), cells(&previous, "k_composition"));
    assert_ne!(cells(&ignored, "qk_trace"), cells(&previous, "qk_trace"));
    assert_eq!(cells(&ignored, "v_composition"), cells(&previous, "v_composition"));
}

#[test]
fn every_fixture_can_be_analysed_by_default() {
    let golden = golden();
    let models = golden["detect"].as_object().unwrap().keys();
    for model in models {
        let fixture = Fixture::read(model);
        for name in HEADS {
            if name == "composition" && fixture.model.config().n_layers < 2 {
                let words = "needs at least 2 layers, the model has 1";
                fixture.refuse(name, &json!({}), Class::Unsupported, words);
                continue;
            }
            let sink = fixture.run(name, &json!({}), None).unwrap();
            let all = sink.metrics.values().flat_map(|points| &points[&7].data);
            let is_sound = all.clone().all(|number| number.is_finite() || name.starts_with("in-"));
            assert!(is_sound, "{model} {name}");
            for (metric, points) in &sink.metrics {
                let card =
                    sweep_lab::EXPERIMENTS.iter().find(|e| e.card().name == name).unwrap().card();
                let is_probability =
                    card.metric(metric).unwrap().unit == sweep_lab::Unit::Probability;
                let inside = points[&7].data.iter().all(|p| (-1e-6..=1.0 + 1e-5).contains(p));
                assert!(!is_probability || inside, "{model} {name} {metric}");
            }
        }
    }
}

#[test]
fn the_lens_ends_in_the_models_own_prediction() {
    for model in ["gpt2-tiny", "neel-shortformer", "olmo2-lens"] {
        let fixture = Fixture::read(model);
        let lens = fixture.run("logit-lens", &json!({"tokens": fixture.tokens}), None).unwrap();
        let loss = fixture.run("per-token-loss", &json!({"tokens": fixture.tokens}), None).unwrap();
        let n_layers = fixture.model.config().n_layers as usize;
        assert_eq!(cells(&lens, "loss").len(), n_layers + 1);
        near(&cells(&lens, "loss")[n_layers..], &[loss.scalar("loss", 7).unwrap()], 1e-5, model);
        near(&cells(&lens, "kl_to_final")[n_layers..], &[0.0], 1e-6, model);
        assert_eq!(cells(&lens, "top1_agreement")[n_layers], 1.0);
        assert!(cells(&lens, "kl_to_final")[0] > 1e-3, "{model}");
    }
}

#[test]
fn word_pairs_of_any_number_of_tokens_are_aligned() {
    let fixture = Fixture::read("gpt2-tiny");
    let pairs = json!(["ab=cde", "f=g", "hi=j", "k=lm", "n=op", "q=r", "s=t", "u=v"]);
    let sink = fixture.run("soft-induction", &json!({"pairs": pairs}), Some(&Letters)).unwrap();
    assert_eq!(sink.scalar("n_words", 7), Some(4.0));
    for name in ["soft_prefix_matching", "literal_prefix_matching", "control_matching"] {
        assert!(cells(&sink, name).iter().all(|score| (0.0..1.0).contains(score)), "{name}");
    }
    let scalar = |name| sink.scalar(name, 7).unwrap();
    let gain = scalar("control_loss") - scalar("translated_loss");
    near(&[scalar("translation_gain")], &[gain], 1e-12, "gain");
    let ids = json!({"token_pairs": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]});
    assert_eq!(fixture.run("soft-induction", &ids, None).unwrap().scalar("n_words", 7), Some(3.0));
    let refuse = |params, class, words| fixture.refuse("soft-induction", &params, class, words);
    refuse(json!({}), Class::Unsupported, "pairs");
    refuse(json!({"pairs": ["ab", "c=d"]}), Class::Params, "`ab`");
    refuse(json!({"pairs": ["a=b", "c=d", "e=f"]}), Class::Params, "6 or more");
    let mut wrong = ids["token_pairs"].clone();
    wrong[2] = json!([5, 101]);
    refuse(json!({"token_pairs": wrong}), Class::Params, "101");
    wrong[2] = json!([5, 1]);
    refuse(json!({"token_pairs": wrong}), Class::Params, "[1] twice");
    refuse(json!({"token_pairs": [[1, 2], [3], [5, 6]]}), Class::Params, "two tokens");
    refuse(json!({"token_pairs": ids["token_pairs"], "n_words": 4}), Class::Params, "4");
}

#[test]
fn models_of_every_recipe_are_analysed_or_refused_by_name() {
    let sequences = ["induction", "paired-synonyms", "text-lm", "toy-ioi"];
    for (recipe, params) in settings() {
        let plan = CheckpointPlan::at([20]);
        let (_, mut trained) = run_recipe(recipe, &params, &[3], &[], &plan, Recorder::new());
        let file = trained.seeds.remove(&0).unwrap().checkpoints.remove(&20).unwrap();
        let checkpoint = checkpoint::decode("checkpoint", &file).unwrap();
        let config = checkpoint.config.clone();
        let model = Transformer::new(config.clone(), checkpoint.weights.shallow_clone()).unwrap();
        let subject = Subject::of(&checkpoint, &model);
        for name in HEADS.into_iter().chain(["soft-induction"]) {
            let (params, mut sink) = (json!({}), MemorySink::default());
            let mut jobs =
                [AnalyseJob { experiment: find(name), params: &params, sink: &mut sink }];
            let is_expected = if name == "soft-induction" {
                recipe == "paired-synonyms"
            } else {
                sequences.contains(&recipe) && (name != "composition" || config.n_layers > 1)
            };
            match analyse(&mut jobs, &subject).remove(0) {
                Ok(()) => assert!(!sink.metrics.is_empty(), "{recipe} {name}"),
                Err(error) => {
                    assert!(!is_expected, "{recipe} {name}: {error}");
                    assert_eq!(error.class(), Class::Unsupported, "{recipe} {name}: {error}");
                }
            }
        }
    }
}

#[test]
fn words_of_a_recipes_vocabulary_are_read() {
    let (_, params) = settings().into_iter().find(|(name, _)| *name == "toy-ioi").unwrap();
    let plan = CheckpointPlan::at([20]);
    let (_, mut trained) = run_recipe("toy-ioi", &params, &[3], &[], &plan, Recorder::new());
    let file = trained.seeds.remove(&0).unwrap().checkpoints.remove(&20).unwrap();
    let checkpoint = checkpoint::decode("checkpoint", &file).unwrap();
    let weights = checkpoint.weights.shallow_clone();
    let model = Transformer::new(checkpoint.config.clone(), weights).unwrap();
    let words =
        sweep_lab::vocabulary::Vocabulary::of_checkpoint(&checkpoint.extra).unwrap().unwrap();
    let ids: Vec<i64> = (1..7).collect();
    let loss = |params: Json| {
        let subject = Subject::of(&checkpoint, &model);
        let mut sink = MemorySink::default();
        let experiment = find("per-token-loss");
        let mut jobs = [AnalyseJob { experiment, params: &params, sink: &mut sink }];
        analyse(&mut jobs, &subject).remove(0).map(|()| sink)
    };
    let by_ids = loss(json!({"tokens": [ids], "prepend_bos": true})).unwrap();
    let by_words = loss(json!({"text": [words.decode(&ids)], "prepend_bos": true})).unwrap();
    assert_eq!(by_ids.metrics, by_words.metrics);
    assert_eq!(by_ids.scalar("prepend_bos", 20), Some(1.0));
    let error = loss(json!({"text": ["nonsense"]})).unwrap_err();
    assert!(error.class() == Class::Params && error.to_string().contains("`nonsense`"), "{error}");
}

/// Nothing can repeat in three positions, and three words cannot be twenty-five different ones.
#[test]
fn the_smallest_models_are_analysed() {
    let config = Config::toy(2, 4, 2, 3, 3);
    let parameters = config.parameters().into_iter().filter(|parameter| !parameter.optional);
    let weights: Weights = parameters
        .map(|p| (p.name.clone(), init::normal(1, &p.name, &p.shape, 0.4, Device::Cpu)))
        .collect();
    let model = Transformer::new(config.clone(), weights.shallow_clone()).unwrap();
    let checkpoint =
        Checkpoint { config, weights, step: 0, extra: Json::Null, weights_hash: String::new() };
    let subject = Subject::of(&checkpoint, &model);
    for (name, metric) in
        [("copying", "copying"), ("composition", "qk_trace"), ("composition", "previous_token")]
    {
        let sink = run_on(&subject, name, &json!({})).unwrap();
        let found = &sink.metrics[metric][&0].data;
        assert!(
            found.iter().all(|x| x.is_finite()) && found.iter().any(|&x| x != 0.0),
            "{found:?}"
        );
    }
    let error = run_on(&subject, "induction-heads", &json!({})).unwrap_err();
    assert!(error.to_string().contains("do not fit in n_ctx 3"), "{error}");
}

#[test]
fn what_cannot_be_analysed_is_refused() {
    let fixture = Fixture::read("neel-attn");
    let refuse = |name, params: Json, class, words| fixture.refuse(name, &params, class, words);
    refuse(
        "induction-heads",
        json!({"tokens": [[1, 2, 3, 1, 2, 4]]}),
        Class::Params,
        "does not repeat",
    );
    refuse(
        "induction-heads",
        json!({"tokens": [[1, 2, 3], [1, 2]]}),
        Class::Params,
        "equally long",
    );
    refuse("induction-heads", json!({"seq_len": 17}), Class::Params, "more than n_ctx 32");
    refuse(
        "induction-heads",
        json!({"n_copies": 16}),
        Class::Unsupported,
        "do not fit in n_ctx 32",
    );
    refuse("head-detector", json!({"tokens": [[1]]}), Class::Params, "two or more");
    refuse(
        "head-detector",
        json!({"tokens": [[1, 2]], "text": ["ab"]}),
        Class::Params,
        "tokens and text",
    );
    refuse("attention-stats", json!({"tokens": [vec![1; 33]]}), Class::Params, "n_ctx is 32");
    refuse("in-context-learning", json!({"late": 32}), Class::Params, "longest row has");
}
