//! Experiments on prompts: parity of per-token losses with TransformerLens, activations as they are in the
//! pass, and what is refused.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, AnyExperiment, Class, EXPERIMENTS, MemorySink, Result, Subject, TextCodec, analyse,
    lens::{
        Cache, Config, Device, Kind, Run, Tensor, Transformer,
        checkpoint::{Checkpoint, decode_tensors},
        families,
        formats::TensorFiles,
        processing::{Processing, process},
    },
};

pub(crate) fn find(name: &str) -> &'static dyn AnyExperiment {
    *EXPERIMENTS.iter().find(|experiment| experiment.card().name == name).unwrap()
}

/// A small model of the lens crate, with the tokens and logits that TransformerLens gave for it.
pub(crate) struct Fixture {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) model: Transformer,
    pub(crate) tokens: Json,
}

pub(super) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../lens/tests/fixtures")
}

impl Fixture {
    pub(crate) fn read(name: &str) -> Self {
        let read = |file: String| fs::read(fixtures().join(file)).unwrap();
        let record: Json = serde_json::from_slice(&read(format!("{name}.json"))).unwrap();
        let config: Config = serde_json::from_value(record["config"].clone()).unwrap();
        let folder = fixtures().join("models").join(name);
        let files: BTreeMap<String, PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
            .collect();
        let json = fs::read(folder.join("config.json")).unwrap();
        let tensors = TensorFiles::open(&files).unwrap();
        let (_, weights) = families::load(
            &serde_json::from_slice(&json).unwrap(),
            None,
            &tensors,
            Kind::Float,
            Device::Cpu,
        )
        .unwrap();
        let model = Transformer::new(config.clone(), weights.shallow_clone()).unwrap();
        let checkpoint = Checkpoint {
            config,
            weights,
            step: 7,
            extra: Json::Null,
            weights_hash: "hash".to_owned(),
        };
        Self { checkpoint, model, tokens: record["tokens"].clone() }
    }

    /// The same model with its weights rewritten.
    pub(crate) fn processed(mut self, steps: &str) -> Self {
        let processing = Processing::parse(steps, &self.checkpoint.config).unwrap();
        let (config, weights) =
            process(&self.checkpoint.config, &self.checkpoint.weights, &processing).unwrap();
        self.model = Transformer::new(config, weights).unwrap();
        self
    }

    pub(crate) fn run(
        &self,
        name: &str,
        params: &Json,
        text: Option<&dyn TextCodec>,
    ) -> Result<MemorySink> {
        let subject = Subject { text, ..Subject::of(&self.checkpoint, &self.model) };
        let mut sink = MemorySink::default();
        let mut jobs = [AnalyseJob { experiment: find(name), params, sink: &mut sink }];
        analyse(&mut jobs, &subject).remove(0)?;
        Ok(sink)
    }

    #[track_caller]
    pub(crate) fn refuse(&self, name: &str, params: &Json, class: Class, words: &str) {
        let error = self.run(name, params, Some(&Letters)).unwrap_err();
        assert!(error.class() == class && error.to_string().contains(words), "{error}");
    }
}

/// One token a byte, `a` is 1; 0 is the BOS token.
pub(crate) struct Letters;

impl TextCodec for Letters {
    fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        let letters = text.bytes().map(|byte| i64::from(byte) - 96);
        Ok(prepend_bos.then_some(0).into_iter().chain(letters).collect())
    }

    fn decode_token(&self, id: i64) -> String {
        char::from(id as u8 + 96).to_string()
    }

    fn bos(&self) -> Option<i64> {
        Some(0)
    }

    fn hash(&self) -> &'static str {
        "letters"
    }
}

pub(crate) fn numbers(json: &Json) -> Vec<f64> {
    match json.as_array() {
        Some(items) => items.iter().flat_map(numbers).collect(),
        None => vec![json.as_f64().unwrap()],
    }
}

#[test]
fn per_token_losses_equal_transformer_lens() {
    let golden: Json = serde_json::from_str(include_str!("../fixtures/loss.json")).unwrap();
    let models = golden["models"].as_object().unwrap();
    assert_eq!(models.len(), 10);
    for (name, expected) in models {
        let fixture = Fixture::read(name);
        for (params, key) in [
            (json!({"tokens": fixture.tokens}), "loss"),
            (
                json!({"tokens": fixture.tokens, "d_vocab_trained": expected["d_vocab_trained"]}),
                "trained",
            ),
        ] {
            let sink = fixture.run("per-token-loss", &params, None).unwrap();
            let found = &sink.metrics["loss_per_token"][&7];
            let expected = numbers(&expected[key]);
            assert_eq!((found.shape.as_slice(), expected.len()), (&[2, 19][..], 38));
            for (found, expected) in found.data.iter().zip(&expected) {
                assert!((found - expected).abs() < 2e-5, "{name} {key}: {found}, not {expected}");
            }
            let mean = expected.iter().sum::<f64>() / 38.0;
            assert!((sink.scalar("loss", 7).unwrap() - mean).abs() < 1e-6, "{name}");
            let by_position = &sink.metrics["loss_by_position"][&7].data;
            let expected = f64::midpoint(expected[4], expected[19 + 4]);
            assert!(by_position.len() == 19 && (by_position[4] - expected).abs() < 2e-5);
            assert_eq!(sink.scalar("n_predicted", 7), Some(38.0));
            assert_eq!(sink.scalar("prepend_bos", 7), Some(0.0));
        }
    }
}

#[test]
fn rows_of_any_length_have_the_losses_that_they_have_alone() {
    let fixture = Fixture::read("neox-tiny");
    let rows = json!([[5, 6, 7, 8, 9, 10], [1], [50, 2, 3]]);
    let all = fixture.run("per-token-loss", &json!({"tokens": rows}), None).unwrap();
    let found = &all.metrics["loss_per_token"][&7];
    assert_eq!(found.shape, [3, 5]);
    let mut sum = 0.0;
    for (index, row) in rows.as_array().unwrap().iter().enumerate() {
        let (mine, rest) =
            found.data[5 * index..5 * index + 5].split_at(row.as_array().unwrap().len() - 1);
        assert!(rest.iter().all(|loss| loss.is_nan()));
        if mine.is_empty() {
            continue;
        }
        let alone = fixture.run("per-token-loss", &json!({"tokens": [row]}), None).unwrap();
        let alone = &alone.metrics["loss_per_token"][&7].data;
        assert!(mine.len() == alone.len());
        assert!(mine.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-5), "{mine:?} {alone:?}");
        sum += mine.iter().sum::<f64>();
    }
    assert!((all.scalar("loss", 7).unwrap() - sum / 7.0).abs() < 1e-12);
    let by_position = &all.metrics["loss_by_position"][&7].data;
    assert!((by_position[0] - f64::midpoint(found.data[0], found.data[10])).abs() < 1e-12);
    assert_eq!(by_position[4], found.data[4]);
}

#[test]
fn texts_are_encoded_with_the_models_own_bos_unless_told_otherwise() {
    let fixture = Fixture::read("neel-gelu");
    let default = fixture.model.config().default_prepend_bos;
    let loss = |params: Json| {
        let sink = fixture.run("per-token-loss", &params, Some(&Letters)).unwrap();
        (sink.metrics["loss_per_token"][&7].clone(), sink.scalar("prepend_bos", 7).unwrap())
    };
    let with = loss(json!({"tokens": [[0, 1, 2, 3], [0, 3, 2, 1]]})).0;
    let without = loss(json!({"tokens": [[1, 2, 3], [3, 2, 1]]})).0;
    let text = json!(["abc", "cba"]);
    assert_eq!(loss(json!({"text": text, "prepend_bos": true})), (with.clone(), 1.0));
    assert_eq!(loss(json!({"text": text, "prepend_bos": false})), (without.clone(), 0.0));
    let expected = if default { (with.clone(), 1.0) } else { (without, 0.0) };
    assert_eq!(loss(json!({"text": text})), expected);
    assert_eq!(loss(json!({"tokens": [[1, 2, 3], [3, 2, 1]], "prepend_bos": true})), (with, 1.0));
}

#[test]
fn activations_are_those_of_the_pass() {
    for name in
        ["gpt2-tiny", "neox-tiny", "llama-tiny", "neel-solu", "neel-attn", "neel-shortformer"]
    {
        let fixture = Fixture::read(name);
        let hooks = fixture.model.config().hooks();
        let mut names: Vec<String> = hooks.iter().map(ToString::to_string).collect();
        names.push("logits".to_owned());
        let params = json!({"tokens": fixture.tokens, "names": names});
        let sink = fixture.run("activations", &params, None).unwrap();
        let bytes = &sink.artifacts["activations.safetensors"];
        assert_eq!(sink.scalar("n_bytes", 7), Some(bytes.len() as f64));
        assert_eq!(sink.scalar("n_tokens", 7), Some(40.0));
        let file = decode_tensors("file", bytes).unwrap();
        names.sort();
        assert!(file.tensors.keys().eq(&names), "{name}");
        let mut cache = Cache::all();
        let rows: Vec<Vec<i64>> = serde_json::from_value(fixture.tokens.clone()).unwrap();
        let logits = fixture.model.forward(&Tensor::from_slice2(&rows), &Run::FULL, &mut cache);
        for hook in hooks {
            let found = &file.tensors[&hook.to_string()];
            assert!(found.kind() == Kind::Float && found.equal(&cache[hook]), "{name}: {hook}");
        }
        assert!(file.tensors["logits"].allclose(&logits, 1e-6, 1e-6, false));
        let expected = BTreeMap::from([
            ("tokens", fixture.tokens.to_string()),
            ("prepend_bos", "false".to_owned()),
            ("step", "7".to_owned()),
            ("weights_hash", "hash".to_owned()),
            ("processing", "raw".to_owned()),
        ]);
        let found: BTreeMap<&str, String> =
            file.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        assert_eq!(found, expected);
    }
}

/// Sum, sum of squares and dot product with cos(0), cos(1), …; infinities as 0.
fn fingerprint(tensor: &Tensor) -> [f64; 3] {
    let flat = tensor.to_kind(Kind::Double).flatten(0, -1).nan_to_num(0.0, 0.0, 0.0);
    let probe = Tensor::arange(flat.numel() as i64, (Kind::Double, Device::Cpu)).cos();
    let sum = |t: Tensor| t.sum(Kind::Double).double_value(&[]);
    [sum(flat.shallow_clone()), sum(flat.square()), sum(flat * probe)]
}

/// Every name that `TransformerBridge` and `HookedTransformer` know, on-demand hooks included.
#[test]
fn every_name_of_transformer_lens_works() {
    let record = fs::read("tests/fixtures/hook_names.json").unwrap();
    let record: BTreeMap<String, BTreeMap<String, BTreeMap<String, Json>>> =
        serde_json::from_slice(&record).unwrap();
    let mut n_names = 0;
    for (name, expected) in record.values().flatten() {
        let fixture = Fixture::read(name);
        let names: Vec<&String> = expected.keys().collect();
        let params = json!({"tokens": fixture.tokens, "names": names});
        let sink = fixture.run("activations", &params, None).unwrap();
        let file = decode_tensors("file", &sink.artifacts["activations.safetensors"]).unwrap();
        assert!(file.tensors.keys().eq(names), "{name}");
        for (hook, expected) in expected {
            let found = &file.tensors[hook];
            assert_eq!(json!(found.size()), expected["shape"], "{name}: {hook}");
            let expected: [f64; 3] =
                serde_json::from_value(expected["fingerprint"].clone()).unwrap();
            for (found, expected) in fingerprint(found).into_iter().zip(expected) {
                // Sums of up to 8000 values, each of which may be off by 1e-5.
                let tolerance = 1e-4 * (1.0 + expected.abs());
                assert!((found - expected).abs() < tolerance, "{name}: {hook}: {found} {expected}");
            }
        }
        n_names += expected.len();
    }
    assert!(n_names > 200, "{n_names}");
}

#[test]
fn stars_and_second_names_stand_for_the_same_tensors() {
    let fixture = Fixture::read("neel-solu");
    let names = ["blocks.*.attn.q.hook_out", "blocks.*.attn.hook_q", "hook_unembed", "logits"];
    let params = json!({"tokens": fixture.tokens, "names": names});
    let sink = fixture.run("activations", &params, None).unwrap();
    let file = decode_tensors("file", &sink.artifacts["activations.safetensors"]).unwrap();
    assert_eq!(file.tensors.len(), 6);
    for layer in 0..2 {
        let [a, b] = ["q.hook_out", "hook_q"].map(|name| format!("blocks.{layer}.attn.{name}"));
        assert!(file.tensors[&a].equal(&file.tensors[&b]));
    }
    assert!(file.tensors["logits"].equal(&file.tensors["hook_unembed"]));
    // A second name of what this model lacks is refused like the first.
    let shortformer = Fixture::read("neel-shortformer");
    let params = json!({"tokens": [[1, 2]], "names": ["blocks.0.ln1.hook_out"]});
    shortformer.refuse("activations", &params, Class::Params, "no activation is called");
}

#[test]
fn batches_patterns_and_texts_of_activations() {
    let fixture = Fixture::read("gpt2-tiny");
    // Rows of different batches come together in the order given.
    let rows: Vec<Vec<i64>> =
        (0..90).map(|row| (0..30).map(|i| (row * 7 + i) % 101).collect()).collect();
    let params = json!({"tokens": rows, "names": ["blocks.*.hook_resid_post", "logits"]});
    let sink = fixture.run("activations", &params, Some(&Letters)).unwrap();
    let file = decode_tensors("file", &sink.artifacts["activations.safetensors"]).unwrap();
    assert_eq!(file.tensors.len(), 4);
    assert_eq!(file.metadata["tokenizer_hash"], "letters");
    let last = fixture.model.forward(&Tensor::from_slice2(&rows[89..]), &Run::FULL, &mut ());
    assert!(file.tensors["logits"].narrow(0, 89, 1).allclose(&last, 1e-5, 1e-5, false));
    // A text is its tokens.
    let names = json!(["blocks.1.attn.hook_pattern"]);
    let of = |params: Json| {
        let sink = fixture.run("activations", &params, Some(&Letters)).unwrap();
        decode_tensors("file", &sink.artifacts["activations.safetensors"]).unwrap()
    };
    let text = of(json!({"text": ["abcd"], "names": names, "prepend_bos": true}));
    let tokens = of(json!({"tokens": [[0, 1, 2, 3, 4]], "names": names}));
    let name = "blocks.1.attn.hook_pattern";
    assert_eq!(text.tensors[name].size(), [1, 4, 5, 5]);
    assert!(text.tensors[name].equal(&tokens.tensors[name]));
    assert_eq!(
        (text.metadata["prepend_bos"].as_str(), text.metadata["tokens"].as_str()),
        ("true", "[[0,1,2,3,4]]")
    );
}

#[test]
fn what_cannot_be_run_is_refused_before_it_is() {
    let fixture = Fixture::read("neel-attn");
    let both = ["activations", "per-token-loss"];
    for name in both {
        let refuse = |params: Json, words| fixture.refuse(name, &params, Class::Params, words);
        refuse(json!({}), "exactly one of them, found none");
        refuse(json!({"tokens": [[1]], "text": ["a"]}), "found tokens and text");
        refuse(json!({"tokens": [[1, 2], []]}), "row 1 has no tokens");
        refuse(json!({"tokens": [[1, 101]]}), "row 0 has token 101, the vocabulary is 0 to 100");
        refuse(json!({"tokens": [[1, -1]]}), "below the minimum 0");
        refuse(json!({"tokens": [vec![1; 33]]}), "row 0 has 33 tokens, n_ctx is 32");
        refuse(json!({"text": [""], "prepend_bos": false}), "row 0 has no tokens");
        let error = fixture.run(name, &json!({"text": ["ab"]}), None).unwrap_err();
        assert!(error.class() == Class::Unsupported && error.to_string().contains("give `tokens`"));
        let params = json!({"tokens": [[1, 2]], "prepend_bos": true});
        let error = fixture.run(name, &params, None).unwrap_err();
        assert!(
            error.class() == Class::Unsupported && error.to_string().contains("BOS"),
            "{error}"
        );
    }
    let refuse =
        |params: Json, words| fixture.refuse("per-token-loss", &params, Class::Params, words);
    refuse(json!({"tokens": [[1], [2]]}), "two or more tokens");
    refuse(
        json!({"tokens": [[1, 9]], "d_vocab_trained": 9}),
        "token 9 is to be predicted among 9 only",
    );
    refuse(
        json!({"tokens": [[1, 9]], "d_vocab_trained": 102}),
        "is 102, the unembedding has 101 rows",
    );
    let names = |names: &[&str]| json!({"tokens": [[1, 2]], "names": names});
    let refuse = |params: Json, class, words| fixture.refuse("activations", &params, class, words);
    refuse(names(&[]), Class::Params, "expected at least one name");
    refuse(
        names(&["blocks.0.attn.hook_patterns"]),
        Class::Params,
        "did you mean `blocks.0.attn.hook_pattern`?",
    );
    refuse(
        names(&["patterns of everything"]),
        Class::Params,
        "it has hook_embed, hook_pos_embed, blocks.0.",
    );
    refuse(
        names(&["blocks.2.hook_resid_pre"]),
        Class::Unsupported,
        "did you mean `blocks.0.hook_resid_pre`?",
    );
    refuse(
        names(&["blocks.0.mlp.hook_post"]),
        Class::Unsupported,
        "no activation `blocks.0.mlp.hook_post`",
    );
    refuse(
        json!({"tokens": [[1, 2], [1, 2, 3]]}),
        Class::Params,
        "equally long rows, found 2, 3 tokens",
    );
    refuse(json!({"text": ["abc", "a"]}), Class::Params, "parameter `text`: expected equally long");
    // 400 rows × 32 × 101 logits × 4 bytes are 4.93 MiB, patterns 400 × 4 × 32 × 32 × 4 bytes 6.25 MiB.
    let rows = vec![vec![1; 32]; 400];
    let params =
        json!({"tokens": rows, "names": ["logits", "blocks.0.attn.hook_pattern"], "max_mib": 11});
    refuse(
        params,
        Class::Params,
        "2 tensors of 400 rows × 32 tokens take 12 MiB (`blocks.0.attn.hook_pattern` alone 7 MiB), at most 11",
    );
}
