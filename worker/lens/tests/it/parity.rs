//! Parity with TransformerLens on small models of every supported family.
//!
//! `tests/fixtures/make.py` says where the numbers come from. Tolerances are for f32 on different
//! BLAS paths: 1e-5 on patterns and log-probabilities, 1e-4 on logits, as the reference
//! implementations agree among themselves to about 1e-6.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Deserialize;
use sweep_lens::{Cache, Config, Hook, Kind, Run, Tensor, Transformer, Weights, tensor_file};

use crate::models::assert_close;

#[derive(Deserialize)]
struct Record {
    config: Config,
    tied: bool,
    parts: usize,
    tokens: Vec<Vec<i64>>,
    mean_loss: f64,
    hooks: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Expected {
    shape: Vec<i64>,
    /// Sum, sum of squares, dot product with cos(0), cos(1), …
    fingerprint: [f64; 3],
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> BTreeMap<String, Tensor> {
    tensor_file::decode_tensors(name, &fs::read(fixture(name)).unwrap()).unwrap().tensors
}

fn fingerprint(tensor: &Tensor) -> [f64; 3] {
    let flat = tensor.to_kind(Kind::Double).flatten(0, -1);
    let flat = flat.masked_fill(&flat.isinf(), 0.0);
    let probe = Tensor::arange(flat.size()[0], (Kind::Double, flat.device())).cos();
    [flat.sum(None::<Kind>), flat.square().sum(None::<Kind>), flat.dot(&probe)]
        .map(|sum| sum.double_value(&[]))
}

fn check(name: &str) {
    let record = fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    let record: Record = serde_json::from_str(&record).unwrap();
    let mut weights: Weights =
        (0..record.parts).flat_map(|part| read(&format!("{name}.{part}.safetensors"))).collect();
    if record.tied {
        let w_u = weights.get("embed.W_E").unwrap().transpose(0, 1).contiguous();
        weights.insert("unembed.W_U", w_u);
    }
    let model = Transformer::new(record.config, weights).unwrap();
    let tokens = Tensor::from_slice2(&record.tokens);
    let mut cache = Cache::all();
    let logits = model.forward(&tokens, &Run::FULL, &mut cache);
    // The pass that nobody observes may take other kernels.
    let unobserved = model.forward(&tokens, &Run::FULL, &mut ());
    let expected = read(&format!("{name}.expected.safetensors"));
    for (what, logits) in [("observed", &logits), ("unobserved", &unobserved)] {
        let what = format!("{name}, {what}");
        assert_close(&format!("{what}: logits"), logits, &expected["logits"], 1e-4);
        let log_probs = logits.log_softmax(-1, Kind::Double);
        let expected = expected["logits"].log_softmax(-1, Kind::Double);
        assert_close(&format!("{what}: log-probabilities"), &log_probs, &expected, 1e-5);
        let targets = tokens.narrow(1, 1, tokens.size()[1] - 1).unsqueeze(-1);
        let predicted = log_probs.narrow(1, 0, tokens.size()[1] - 1).gather(-1, &targets, false);
        let loss = -predicted.mean(Kind::Double).double_value(&[]);
        assert!((loss - record.mean_loss).abs() < 1e-6, "{what}: loss {loss}");
    }
    let names: Vec<String> = cache.iter().map(|(hook, _)| hook.to_string()).collect();
    for (text, expected) in &record.hooks {
        let hook: Hook = text.parse().unwrap();
        let actual = cache.get(hook).unwrap_or_else(|| panic!("{name}: `{hook}` is not fired"));
        assert_eq!(actual.size(), expected.shape, "{name}: shape of `{hook}`");
        let norm = expected.fingerprint[1].sqrt();
        let tolerances =
            [1e-5 * norm * (actual.numel() as f64).sqrt(), 2e-5 * norm * norm, 1e-5 * norm];
        for ((actual, expected), tolerance) in
            fingerprint(actual).into_iter().zip(expected.fingerprint).zip(tolerances)
        {
            let difference = (actual - expected).abs();
            assert!(difference < tolerance + 1e-6, "{name}: `{hook}` {actual} is not {expected}");
        }
    }
    assert_eq!(names.len(), record.hooks.len(), "{name}: hooks {names:?}");
    for (text, pattern) in expected.iter().filter(|(text, _)| *text != "logits") {
        assert_close(&format!("{name}: {text}"), &cache[text.parse().unwrap()], pattern, 1e-5);
    }
}

#[test]
fn every_activation_matches_transformer_lens() {
    tch::set_num_threads(1);
    for name in [
        "gpt2-tiny",
        "gpt2-tiny-crfm",
        "neox-tiny",
        "neox-serial",
        "llama-tiny",
        "neel-solu",
        "neel-gelu",
        "neel-attn",
        "neel-solu-rmsfinal",
        "neel-shortformer",
    ] {
        check(name);
    }
}
