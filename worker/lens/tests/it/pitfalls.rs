//! Known mistakes of converters, made on purpose: each must take a model out of the tolerances of its
//! golden values, or the goldens would not notice it.
//!
//! A mistake is made by giving the converter what a wrong one would have read, or by editing the pass.

use std::fs;

use serde_json::{Value, json};
use sweep_lens::{
    Cache, Config, FnHook, Hook, Hooks, Kind, Norm, Run, Site, Tensor, Transformer, Weights,
};

use crate::{
    fixtures::{Files, expected, path},
    models::distance,
};

fn golden_tokens(name: &str) -> Tensor {
    if let Some(tokens) = expected(name).get("tokens") {
        return tokens.to_kind(Kind::Int64);
    }
    let record = fs::read_to_string(path(&format!("{name}.json"))).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let rows: Vec<Vec<i64>> = serde_json::from_value(record["tokens"].clone()).unwrap();
    Tensor::from_slice2(&rows)
}

/// How many times its tolerance the worst of logits, log-probabilities and patterns is off.
fn excess_of(name: &str, model: &Transformer, hooks: &mut dyn Hooks) -> f64 {
    let expected = expected(name);
    let mut cache = Cache::only(|hook| hook.site() == Some(Site::Pattern));
    let logits = model.forward(&golden_tokens(name), &Run::FULL, &mut (hooks, &mut cache));
    let log_probs = |logits: &Tensor| logits.log_softmax(-1, Kind::Double);
    let worst = distance(&logits, &expected["logits"]) / 1e-4;
    let worst = worst.max(distance(&log_probs(&logits), &log_probs(&expected["logits"])) / 1e-5);
    cache.iter().fold(worst, |worst, (hook, pattern)| {
        worst.max(distance(pattern, &expected[&hook.to_string()]) / 1e-5)
    })
}

#[track_caller]
fn caught(name: &str, files: Files) {
    caught_in(name, &files.model(), &mut ());
}

/// Twice the tolerance at least, so that rounding cannot hide the mistake.
#[track_caller]
fn caught_in(name: &str, model: &Transformer, hooks: &mut dyn Hooks) {
    let excess = excess_of(name, model, hooks);
    assert!(excess > 2.0, "{name}: {excess:.2} of the tolerance");
}

fn with_config(name: &str, change: impl FnOnce(&mut Config)) -> Transformer {
    let (mut config, weights) = Files::of(name).load().unwrap();
    change(&mut config);
    Transformer::new(config, weights).unwrap()
}

#[test]
fn models_without_a_mistake_are_within_tolerance() {
    for name in
        ["gpt2-tiny", "gpt2-tiny-crfm", "neox-tiny", "neel-solu", "gpt-neo-tiny", "olmo2-tiny"]
    {
        let excess = excess_of(name, &Files::of(name).model(), &mut ());
        assert!(excess < 1.0, "{name}: {excess:.2} of the tolerance");
    }
}

/// GPT-2's weights are `[d_in, d_out]`, all others `[d_out, d_in]`.
#[test]
fn orientation_of_weights() {
    let transposed = |name: &str, part: &'static str| {
        let files = Files::of(name);
        files.map(move |name, t| name.ends_with(part).then(|| t.transpose(0, 1).contiguous()))
    };
    caught("gpt2-tiny", transposed("gpt2-tiny", "attn.c_proj.weight"));
    caught("neox-tiny", transposed("neox-tiny", "attention.dense.weight"));
    caught("gpt-neo-tiny", transposed("gpt-neo-tiny", "out_proj.weight"));
    caught("gpt-neo-tiny", transposed("gpt-neo-tiny", "attention.q_proj.weight"));
    let error = transposed("gpt2-tiny", "c_attn.weight").load().unwrap_err().to_string();
    assert!(error.contains("has shape [144, 48], expected [48, 144]"), "{error}");
}

/// Columns of GPT-2 are (query/key/value, head), rows of NeoX (head, query/key/value).
#[test]
fn order_of_queries_keys_and_values() {
    let gpt2 = Files::of("gpt2-tiny").map(|name, t| {
        let columns = |t: &Tensor| t.view([-1, 4, 3, 12]).transpose(1, 2).reshape(t.size());
        name.contains("c_attn").then(|| columns(t))
    });
    caught("gpt2-tiny", gpt2);
    let neox = Files::of("neox-tiny").map(|name, t| {
        let rows = |t: &Tensor| t.reshape([3, 4, 12, -1]).transpose(0, 1).reshape(t.size());
        name.contains("query_key_value").then(|| rows(t))
    });
    caught("neox-tiny", neox);
    // (query/key/value of d_head 36 = 3 * 12), but the heads last.
    let neox = Files::of("neox-tiny").map(|name, t| {
        let rows = |t: &Tensor| t.reshape([4, 3, 12, -1]).permute([1, 2, 0, 3]).reshape(t.size());
        name.contains("query_key_value").then(|| rows(t))
    });
    caught("neox-tiny", neox);
}

/// Rotation is half-split, partial, and comes after the bias.
#[test]
fn rotary_positions() {
    // A model that pairs neighbours is ours with the rotated components in another order.
    let adjacent = Files::of("neox-tiny").map(|name, t| {
        name.contains("query_key_value").then(|| {
            let order = Tensor::from_slice(&[0_i64, 3, 1, 4, 2, 5, 6, 7, 8, 9, 10, 11]);
            let parts = t.reshape([4, 3, 12, -1]);
            let (rotated, values) = (parts.narrow(1, 0, 2), parts.narrow(1, 2, 1));
            Tensor::cat(&[rotated.index_select(2, &order), values], 1).reshape(t.size())
        })
    });
    caught("neox-tiny", adjacent);
    for factor in [0.34, 1.0] {
        let rope = json!({"rope_parameters": {"partial_rotary_factor": factor}});
        caught("neox-tiny", Files::of("neox-tiny").set(rope));
    }
    // Rotation before the bias: take the bias out of the projections and add it to what was rotated.
    let (config, weights) = Files::of("neox-tiny").load().unwrap();
    let mut without = weights.shallow_clone();
    for layer in 0..config.n_layers {
        for part in ["b_Q", "b_K"] {
            drop(without.remove(&format!("blocks.{layer}.attn.{part}")).unwrap());
        }
    }
    let model = Transformer::new(config, without).unwrap();
    let bias = |hook: Hook, part: &str| {
        let layer = hook.layer().unwrap();
        weights.get(&format!("blocks.{layer}.attn.{part}")).unwrap().shallow_clone()
    };
    let mut late = FnHook::matching(
        |hook| matches!(hook.site(), Some(Site::RotQ | Site::RotK)),
        |hook, x: Tensor| {
            x + bias(hook, if hook.site() == Some(Site::RotQ) { "b_Q" } else { "b_K" })
        },
    );
    caught_in("neox-tiny", &model, &mut late);
}

/// CRFM's scores are divided by the layer, GPT-Neo's not even by the width.
#[test]
fn scale_of_scores() {
    let name = "gpt2-tiny-crfm";
    let unscaled = Files::of(name).set(json!({"scale_attn_by_inverse_layer_idx": false})).model();
    caught_in(name, &unscaled, &mut ());
    let mut cache = Cache::only(|hook| hook.site() == Some(Site::Pattern));
    let _logits = unscaled.forward(&golden_tokens(name), &Run::FULL, &mut cache);
    let expected = expected(name);
    // The mistake hides in the first layer.
    for (layer, is_hidden) in [(0, true), (1, false), (2, false)] {
        let hook = Hook::block(layer, Site::Pattern);
        let distance = distance(&cache[hook], &expected[&hook.to_string()]);
        assert_eq!(distance < 1e-5, is_hidden, "layer {layer}: {distance:.1e}");
    }
    let scaled =
        with_config("gpt-neo-tiny", |config| config.attn_scale = (config.d_head as f64).sqrt());
    caught_in("gpt-neo-tiny", &scaled, &mut ());
    let unscaled = with_config("gpt2-tiny", |config| config.attn_scale = 1.0);
    caught_in("gpt2-tiny", &unscaled, &mut ());
}

/// GPT-2 has the tanh approximation, NeoX the exact function.
#[test]
fn kinds_of_gelu() {
    caught("gpt2-tiny", Files::of("gpt2-tiny").set(json!({"activation_function": "gelu"})));
    caught("neox-tiny", Files::of("neox-tiny").set(json!({"hidden_act": "gelu_new"})));
    caught("neox-parallel", Files::of("neox-parallel").set(json!({"hidden_act": "gelu_new"})));
}

/// The epsilon stands inside the root, and the variance is the population's.
#[test]
fn norms() {
    let scale = |hook: Hook| {
        hook == Hook::LnFinal(Norm::Scale)
            || matches!(hook.site(), Some(Site::Ln1(Norm::Scale) | Site::Ln2(Norm::Scale)))
    };
    for name in ["gpt2-tiny", "neox-tiny", "gpt2-other"] {
        let model = Files::of(name).model();
        let (eps, width) = (model.config().eps, model.config().d_model as f64);
        let mut outside = FnHook::matching(scale, |_, x: Tensor| (x.square() - eps).sqrt() + eps);
        caught_in(name, &model, &mut outside);
        let mut unbiased = FnHook::matching(scale, |_, x: Tensor| {
            ((x.square() - eps) * (width / (width - 1.0)) + eps).sqrt()
        });
        caught_in(name, &model, &mut unbiased);
    }
}

/// What a file leaves out is the embedding, transposed, and never something else.
#[test]
fn tied_unembedding() {
    let (config, mut weights) = Files::of("gpt2-tiny").load().unwrap();
    let embed = weights.get("embed.W_E").unwrap();
    assert!(weights.get("unembed.W_U").unwrap().equal(&embed.transpose(0, 1)));
    let zeros = embed.transpose(0, 1).zeros_like();
    weights.insert("unembed.W_U", zeros);
    caught_in("gpt2-tiny", &Transformer::new(config, weights).unwrap(), &mut ());
    let mut untied = Files::of("gpt2-other");
    drop(untied.tensors.remove("lm_head.weight").unwrap());
    let error = untied.load().unwrap_err().to_string();
    assert_eq!(error, "tensor `lm_head.weight` is missing");
}

/// Norms of OLMo-2 stand behind the components, and those of queries and keys span all heads.
#[test]
fn norms_of_olmo2() {
    let name = "olmo2-tiny";
    let in_front = with_config(name, |config| config.norm_position = sweep_lens::NormPosition::Pre);
    caught_in(name, &in_front, &mut ());
    let (config, weights) = Files::of(name).load().unwrap();
    let without: Weights = weights
        .iter()
        .filter(|(name, _)| !name.contains("_norm."))
        .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
        .collect();
    let model = Transformer::new(Config { qk_norm: false, ..config.clone() }, without).unwrap();
    caught_in(name, &model, &mut ());
    // One root mean square per head instead of one for all.
    let model = Transformer::new(config, weights).unwrap();
    let is_norm = |hook: Hook| {
        matches!(hook.site(), Some(Site::QNorm(Norm::Normalized) | Site::KNorm(Norm::Normalized)))
    };
    let mut per_head = FnHook::matching(is_norm, |_, x: Tensor| {
        let heads = x.unflatten(-1, [-1_i64, 8]);
        let scale = heads.square().mean_dim(&[-1i64][..], true, None::<Kind>).sqrt();
        (heads / scale).flatten(-2, -1)
    });
    caught_in(name, &model, &mut per_head);
}

/// A final norm that does not subtract the mean, and one that does.
#[test]
fn final_norm() {
    let name = "neel-solu-rmsfinal";
    let centered = with_config(name, |config| {
        config.final_normalization = sweep_lens::Normalization::Ln;
    });
    caught_in(name, &centered, &mut ());
    // Forgotten in the configuration, it is noticed by what the file lacks.
    let error = Files::of(name).set(json!({"final_rms": null})).load().unwrap_err().to_string();
    assert_eq!(error, "tensor `ln_final.b` is missing");
    let shortformer = Files::of("neel-shortformer").set(json!({"shortformer_pos": false}));
    caught("neel-shortformer", shortformer);
}
