//! Parity with TransformerLens on small models of every supported family.
//!
//! `tests/fixtures/make.py` says where the numbers come from. Tolerances are for f32 on different
//! BLAS paths: 1e-5 on patterns and log-probabilities, 1e-4 on logits, as the reference
//! implementations agree among themselves to about 1e-6.

use std::{collections::BTreeMap, fs};

use serde::Deserialize;
use sweep_lens::{
    Cache, Config, Device, Hook, Kind, Positional, RotaryScaling, Run, Site, Tensor, Transformer,
};

use crate::{
    fixtures::{Files, expected, path},
    models::assert_close,
};

#[derive(Deserialize)]
struct Record {
    config: Config,
    tokens: Vec<Vec<i64>>,
    tokens_n_ctx: Vec<Vec<i64>>,
    mean_loss: f64,
    hooks: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Expected {
    shape: Vec<i64>,
    /// Sum, sum of squares, dot product with cos(0), cos(1), …
    fingerprint: [f64; 3],
}

fn fingerprint(tensor: &Tensor) -> [f64; 3] {
    let flat = tensor.to_kind(Kind::Double).flatten(0, -1);
    let flat = flat.masked_fill(&flat.isinf(), 0.0);
    let probe = Tensor::arange(flat.size()[0], (Kind::Double, flat.device())).cos();
    [flat.sum(None::<Kind>), flat.square().sum(None::<Kind>), flat.dot(&probe)]
        .map(|sum| sum.double_value(&[]))
}

fn check(name: &str) {
    let record = fs::read_to_string(path(&format!("{name}.json"))).unwrap();
    let record: Record = serde_json::from_str(&record).unwrap();
    let files = Files::of(name);
    let model = files.model();
    // TransformerLens itself puts the token in front unless the family says otherwise.
    let described =
        Config { default_prepend_bos: record.config.default_prepend_bos, ..model.config().clone() };
    assert_eq!(described, record.config, "{name}");
    let tokens = Tensor::from_slice2(&record.tokens);
    let mut cache = Cache::all();
    let logits = model.forward(&tokens, &Run::FULL, &mut cache);
    // The pass that nobody observes may take other kernels.
    let unobserved = model.forward(&tokens, &Run::FULL, &mut ());
    let expected = expected(name);
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
    check_edges(name, &record, &files, &expected);
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
    for (text, pattern) in expected.iter().filter(|(text, _)| text.starts_with("blocks")) {
        assert_close(&format!("{name}: {text}"), &cache[text.parse().unwrap()], pattern, 1e-5);
    }
}

/// One position, as many as the context has, and double precision.
fn check_edges(name: &str, record: &Record, files: &Files, expected: &BTreeMap<String, Tensor>) {
    let model = files.model();
    let tokens = Tensor::from_slice2(&record.tokens);
    let one = model.forward(&tokens.narrow(1, 0, 1), &Run::FULL, &mut ());
    let first = expected["logits"].narrow(1, 0, 1);
    assert_close(&format!("{name}: one position"), &one, &first, 1e-4);
    let whole = Tensor::from_slice2(&record.tokens_n_ctx);
    assert_eq!(whole.size(), [1, model.config().n_ctx]);
    let logits = model.forward(&whole, &Run::FULL, &mut ());
    assert_close(&format!("{name}: whole context"), &logits, &expected["logits_n_ctx"], 1e-4);
    let (config, weights) = files.load_as(None, Kind::Double).unwrap();
    let model = Transformer::new(config, weights).unwrap();
    let logits = model.forward(&tokens, &Run::FULL, &mut ());
    // TransformerLens computes stretched rotary frequencies in f32 whatever the model is in.
    let is_stretched = matches!(
        model.config().positional,
        Positional::Rotary { scaling: RotaryScaling::Llama3 { .. }, .. }
    );
    let tolerance = if is_stretched { 1e-6 } else { 1e-10 };
    assert_close(&format!("{name}: f64"), &logits, &expected["logits_f64"], tolerance);
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
        "olmo2-lens",
        "gpt-neo-lens",
        "neel-solu",
        "neel-gelu",
        "neel-attn",
        "neel-solu-rmsfinal",
        "neel-shortformer",
    ] {
        check(name);
    }
}

/// Totals that were measured independently of the golden files: sum of squared logits, mean loss, sum of
/// squares of the residual stream behind each layer, last logits (Hugging Face's models), sum of logits
/// (TransformerLens' own).
#[test]
fn totals_are_those_measured_elsewhere() {
    let sumsq = |x: &Tensor| x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    let pass = |name: &str, starts_with_zero: bool| {
        let model = Files::of(name).model();
        let tokens =
            (Tensor::arange(40, (Kind::Int64, Device::Cpu)) * 7).remainder(101).view([2, 20]);
        if starts_with_zero {
            drop(tokens.narrow(1, 0, 1).fill_(0));
        }
        let mut cache = Cache::only(|hook| hook.site() == Some(Site::ResidPost));
        let logits = model.forward(&tokens, &Run::FULL, &mut cache);
        let log_probs = logits.log_softmax(-1, Kind::Double).narrow(1, 0, 19);
        let targets = tokens.narrow(1, 1, 19).unsqueeze(-1);
        let loss = -log_probs.gather(-1, &targets, false).mean(Kind::Double).double_value(&[]);
        let resid: Vec<f64> = cache.iter().map(|(_, resid)| sumsq(resid)).collect();
        (logits, loss, resid)
    };
    let check = |what: String, actual: f64, expected: f64, tolerance: f64| {
        assert!((actual - expected).abs() <= tolerance, "{what}: {actual} is not {expected}");
    };
    for (name, total, mean_loss, resid_post, last) in [
        (
            "gpt2-tiny",
            606.955,
            4.683_471,
            [117.499, 238.720, 319.482],
            [-0.150_372, -0.320_211, 0.218_745, 0.067_890, 0.435_436],
        ),
        (
            "gpt2-tiny-crfm",
            556.903,
            4.671_989,
            [87.761, 201.341, 370.407],
            [0.157_410, 0.086_957, 0.450_248, 0.185_284, -0.429_080],
        ),
        (
            "neox-tiny",
            663.931,
            4.716_912,
            [110.404, 253.065, 333.999],
            [0.351_135, 0.003_908, -1.324_221, -0.065_952, -0.038_277],
        ),
    ] {
        let (logits, loss, resid) = pass(name, true);
        check(format!("{name}: logits"), sumsq(&logits), total, 1e-3);
        check(format!("{name}: loss"), loss, mean_loss, 2e-6);
        for (layer, expected) in resid_post.into_iter().enumerate() {
            check(format!("{name}: layer {layer}"), resid[layer], expected, 1e-3);
        }
        for (token, expected) in (0..).zip(last) {
            let logit = logits.double_value(&[0, 19, token]);
            check(format!("{name}: logit {token}"), logit, expected, 1e-5);
        }
    }
    for (name, total, mean_loss, sum) in [
        ("neel-solu", 4620.742, 5.204_574, 127.214_2),
        ("neel-attn", 4835.661, 5.118_021, 50.041_0),
        ("neel-gelu", 4668.180, 5.258_594, 391.830_0),
        ("neel-solu-rmsfinal", 4136.877, 5.139_207, 131.788_0),
        ("neel-shortformer", 572.042_9, 4.685_004, -93.832_58),
    ] {
        let (logits, loss, _) = pass(name, false);
        check(format!("{name}: logits"), sumsq(&logits), total, 2e-3);
        check(format!("{name}: loss"), loss, mean_loss, 2e-6);
        let logit_sum = logits.sum(Kind::Double).double_value(&[]);
        check(format!("{name}: sum"), logit_sum, sum, 1e-3);
    }
}
