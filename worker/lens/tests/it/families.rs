//! Converters: parity with the reference implementations, and files as they are found in the wild.
//!
//! `tests/fixtures/make_families.py` says where the numbers come from. Tolerances are those of the
//! parity tests.

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use sweep_lens::{
    Cache, Class, Config, Device, Error, Kind, Run, Tensor, Transformer, Weights, families,
    formats::{TensorSet, TensorSource},
};

use crate::{
    fixtures::{Files, expected},
    models::{architectures, assert_close, distance, random_weights, tokens},
};

/// Models whose expected values transformers computed.
pub(crate) const HUGGING_FACE: [&str; 9] = [
    "gpt-neo-tiny",
    "gpt2-other",
    "llama-tied",
    "llama3-tiny",
    "mingpt-tiny",
    "mistral-tiny",
    "neox-parallel",
    "olmo-tiny",
    "olmo2-tiny",
];

#[test]
fn every_family_matches_its_reference_implementation() {
    tch::set_num_threads(1);
    for name in HUGGING_FACE {
        let files = Files::of(name);
        let model = files.model();
        let expected = expected(name);
        let tokens = expected["tokens"].to_kind(Kind::Int64);
        assert_eq!(tokens.size()[1], model.config().n_ctx, "{name}: the whole context");
        let mut cache = Cache::all();
        let logits = model.forward(&tokens, &Run::FULL, &mut cache);
        let unobserved = model.forward(&tokens, &Run::FULL, &mut ());
        for (what, logits) in [("observed", logits), ("unobserved", unobserved)] {
            let what = format!("{name}, {what}");
            assert_close(&format!("{what}: logits"), &logits, &expected["logits"], 1e-4);
            let log_probs = logits.log_softmax(-1, Kind::Double);
            let reference = expected["logits"].log_softmax(-1, Kind::Double);
            assert_close(&format!("{what}: log-probabilities"), &log_probs, &reference, 1e-5);
        }
        let mut hooks: Vec<String> = cache.iter().map(|(hook, _)| hook.to_string()).collect();
        hooks.retain(|hook| expected.contains_key(hook));
        assert_eq!(hooks.len(), 2 * model.config().n_layers as usize + 1, "{name}: {hooks:?}");
        for hook in hooks {
            let tolerance = if hook.ends_with("pattern") { 1e-5 } else { 1e-4 };
            let actual = &cache[hook.parse().unwrap()];
            assert_close(&format!("{name}: {hook}"), actual, &expected[&hook], tolerance);
        }
        let one = model.forward(&tokens.narrow(1, 0, 1), &Run::FULL, &mut ());
        assert_close(&format!("{name}: one position"), &one, &expected["logits_one"], 1e-4);
        if let Some(reference) = expected.get("logits_f64") {
            let (config, weights) = files.load_as(None, Kind::Double).unwrap();
            let model = Transformer::new(config, weights).unwrap();
            let logits = model.forward(&tokens, &Run::FULL, &mut ());
            assert_close(&format!("{name}: f64"), &logits, reference, 1e-10);
        }
    }
}

/// Whether a beginning-of-sequence token goes in front changes every attention metric.
#[test]
fn families_have_their_own_default_of_the_first_token() {
    for (name, prepend_bos) in [
        ("gpt2-tiny", true),
        ("gpt2-tiny-crfm", true),
        ("gpt-neo-tiny", true),
        ("llama-tied", true),
        ("neel-solu", true),
        ("neel-attn", true),
        ("neox-parallel", false),
        ("neox-tiny", false),
        ("olmo-tiny", false),
        ("olmo2-tiny", false),
    ] {
        let (config, _) = Files::of(name).load().unwrap();
        assert_eq!(config.default_prepend_bos, prepend_bos, "{name}");
    }
    let without = Files::of("neel-solu").set(json!({"default_prepend_bos": false}));
    assert!(!without.load().unwrap().0.default_prepend_bos);
}

/// Asserts that two loaded models are the same, bit for bit.
#[track_caller]
fn assert_same(what: &str, actual: (Config, Weights), expected: &(Config, Weights)) {
    assert_eq!(actual.0, expected.0, "{what}");
    let names = |weights: &Weights| weights.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(&actual.1), names(&expected.1), "{what}");
    for (name, tensor) in expected.1.iter() {
        assert!(actual.1.get(name).unwrap().equal(tensor), "{what}: {name}");
    }
}

#[test]
fn configurations_are_read_in_old_and_new_spelling() {
    let respelled = [
        (
            "neox-tiny",
            json!({"rope_parameters": null, "rotary_pct": 0.5, "rotary_emb_base": 10000}),
        ),
        (
            "neox-parallel",
            json!({"rope_parameters": null, "rope_theta": 10000.0, "model_type": null}),
        ),
        (
            "llama3-tiny",
            json!({"rope_parameters": null, "rope_theta": 500_000.0, "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 12}}),
        ),
        (
            "llama-tied",
            json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        ),
        ("olmo2-tiny", json!({"rope_parameters": null, "rope_theta": 500_000.0})),
        ("gpt2-tiny", json!({"n_positions": null, "n_ctx": 32, "n_inner": 192})),
        ("gpt-neo-tiny", json!({"attention_types": null})),
        ("neel-attn", json!({"normalization": null, "normalization_type": "LN"})),
        (
            "neel-shortformer",
            json!({"shortformer_pos": null, "positional_embedding_type": "shortformer"}),
        ),
    ];
    for (name, changes) in respelled {
        let expected = Files::of(name).load().unwrap();
        let actual = Files::of(name).set(changes).load().unwrap();
        assert_same(name, actual, &expected);
    }
}

#[test]
fn files_that_mean_the_same_load_the_same() {
    let gpt2 = Files::of("gpt2-tiny").load().unwrap();
    let bare = Files::of("gpt2-tiny").rename(|name| name.replace("transformer.", ""));
    assert_same("without prefix", bare.load().unwrap(), &gpt2);
    let strided = Files::of("gpt2-tiny").map(|_, tensor| {
        (tensor.dim() == 2).then(|| tensor.transpose(0, 1).contiguous().transpose(0, 1))
    });
    assert_same("strided", strided.load().unwrap(), &gpt2);

    // Pickles hold a tied unembedding too: as the same memory, or written out.
    for is_alias in [true, false] {
        let mut tied = Files::of("gpt2-tiny");
        let embed = &tied.tensors["transformer.wte.weight"];
        let head = if is_alias { embed.shallow_clone() } else { embed.copy() };
        tied.tensors.insert("lm_head.weight".to_owned(), head);
        assert_same("tied", tied.load().unwrap(), &gpt2);
        let untied = tied.set(json!({"tie_word_embeddings": false}));
        assert_same("said to be untied", untied.load().unwrap(), &gpt2);
    }

    let mut masked = Files::of("gpt2-tiny");
    for layer in 0..3 {
        let place = format!("transformer.h.{layer}.attn");
        let mask = Tensor::ones([1, 1, 32, 32], (Kind::Uint8, Device::Cpu)).tril(0);
        masked.tensors.insert(format!("{place}.bias"), mask);
        masked.tensors.insert(format!("{place}.masked_bias"), Tensor::from(-1e4_f32));
    }
    assert_same("with masks", masked.load().unwrap(), &gpt2);

    let neox = Files::of("neox-tiny").load().unwrap();
    let mut masked = Files::of("neox-tiny");
    for layer in 0..3 {
        let place = format!("gpt_neox.layers.{layer}.attention");
        let mask = Tensor::ones([1, 1, 64, 64], (Kind::Bool, Device::Cpu));
        masked.tensors.insert(format!("{place}.bias"), mask);
        masked.tensors.insert(format!("{place}.masked_bias"), Tensor::from(-1e4_f32));
        let frequencies = Tensor::from_slice(&[1f32, 0.1]);
        masked.tensors.insert(format!("{place}.rotary_emb.inv_freq"), frequencies);
    }
    assert_same("NeoX with masks", masked.load().unwrap(), &neox);
}

#[test]
fn tensors_are_converted_once_and_shared_with_nothing() {
    for (name, embed) in
        [("gpt2-tiny", "transformer.wte.weight"), ("neox-tiny", "gpt_neox.embed_in.weight")]
    {
        for stored in [Kind::Half, Kind::BFloat16, Kind::Float] {
            let files = Files::of(name).map(|_, tensor| Some(tensor.to_kind(stored)));
            let wide =
                Files::of(name).map(|_, tensor| Some(tensor.to_kind(stored).to_kind(Kind::Float)));
            assert_same(name, files.load().unwrap(), &wide.load().unwrap());
            let (_, weights) = files.load_as(None, stored).unwrap();
            assert!(weights.iter().all(|(_, tensor)| tensor.kind() == stored));
            let before = files.tensors[embed].copy();
            for (_, tensor) in weights.iter() {
                let mut tensor = tensor.shallow_clone();
                let _zero = tensor.zero_();
            }
            assert!(files.tensors[embed].equal(&before), "{name} in {stored:?} shares memory");
        }
    }
}

/// Views in other layouts than usual work wherever weights do.
#[test]
fn loaded_models_join_populations() {
    tch::set_num_threads(1);
    for name in ["gpt2-tiny", "neox-tiny", "olmo2-tiny", "gpt-neo-tiny"] {
        let (config, weights) = Files::of(name).load_as(None, Kind::Double).unwrap();
        let other = random_weights(&config, 3);
        let other: Weights =
            other.into_iter().filter(|(name, _)| weights.get(name).is_some()).collect();
        let stacked = Weights::stack(&[&weights, &other]).unwrap();
        let population = Transformer::population(config.clone(), stacked).unwrap();
        let tokens = tokens(&config, 2, 9);
        let logits = population.forward(&tokens, &Run::FULL, &mut ());
        for (index, weights) in (0..).zip([&weights, &other]) {
            let alone = Transformer::new(config.clone(), weights.copy()).unwrap();
            let expected = alone.forward(&tokens, &Run::FULL, &mut ());
            assert_close(name, &logits.get(index), &expected, 1e-10);
        }
    }
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    #[track_caller]
    fn refused(files: Files, message: &str) {
        let error = files.load().unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    let without = |name: &str, tensor: &str| {
        let mut files = Files::of(name);
        assert!(files.tensors.remove(tensor).is_some());
        files
    };
    let with = |name: &str, tensor: &str| {
        let mut files = Files::of(name);
        files.tensors.insert(tensor.to_owned(), Tensor::from_slice(&[1f32]));
        files
    };
    refused(
        without("gpt2-tiny", "transformer.h.2.mlp.c_fc.bias"),
        "tensor `transformer.h.2.mlp.c_fc.bias` is missing",
    );
    refused(
        with("gpt2-tiny", "transformer.h.3.ln_1.weight"),
        "`transformer.h.3.ln_1.weight` is not",
    );
    refused(with("gpt2-tiny", "score.weight"), "tensor `score.weight` is not a parameter");
    refused(Files::of("gpt2-tiny").set(json!({"n_layer": 2})), "h.2.attn.c_attn.bias` is not");
    refused(
        Files::of("gpt2-tiny").set(json!({"vocab_size": 128})),
        "`transformer.wte.weight` has shape [101, 48], expected [128, 48]",
    );
    refused(
        Files::of("gpt2-tiny").set(json!({"add_cross_attention": true})),
        "`add_cross_attention`",
    );
    refused(Files::of("gpt2-tiny").set(json!({"n_head": null})), "`n_head` is missing");
    refused(Files::of("gpt2-tiny").set(json!({"layer_norm_epsilon": -1.0})), "eps is -1");
    refused(without("neox-tiny", "embed_out.weight"), "tensor `embed_out.weight` is missing");
    refused(
        without("neox-tiny", "gpt_neox.layers.1.attention.dense.bias"),
        "`gpt_neox.layers.1.attention.dense.bias` is missing",
    );
    refused(
        Files::of("neox-tiny").set(json!({"attention_bias": false})),
        "`gpt_neox.layers.0.attention.query_key_value.bias` is not a parameter",
    );
    refused(without("olmo2-tiny", "model.layers.0.self_attn.k_norm.weight"), "k_norm.weight");
    refused(with("olmo-tiny", "model.norm.weight"), "tensor `model.norm.weight` is not");
    refused(with("llama3-tiny", "model.layers.0.block_sparse_moe.gate.weight"), "moe.gate");
    refused(
        Files::of("llama-tied").set(json!({"attention_bias": false})),
        "`model.layers.0.self_attn.q_proj.bias` is not a parameter",
    );
    let mut contradictory = Files::of("gpt2-tiny");
    let other = &contradictory.tensors["transformer.wte.weight"] + 1.0;
    contradictory.tensors.insert("lm_head.weight".to_owned(), other);
    refused(contradictory, "`lm_head.weight` differs from `transformer.wte.weight`");
    let damaged = Files::of("neox-tiny").map(|name, tensor| {
        (name == "gpt_neox.layers.1.mlp.dense_h_to_4h.weight").then(|| {
            let damaged = tensor.copy();
            let _filled = damaged.narrow(0, 3, 1).fill_(f64::NAN);
            let _filled = damaged.get(0).narrow(0, 0, 2).fill_(f64::INFINITY);
            damaged
        })
    });
    let error = damaged.load().unwrap_err();
    let is_named = |name: &str| name == "gpt_neox.layers.1.mlp.dense_h_to_4h.weight";
    assert!(matches!(&error, Error::NonFinite { name, count: 50 } if is_named(name)), "{error}");
    let error = Files::of("gpt2-tiny").load_as(Some("gpt_neox"), Kind::Float).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
}

/// The layout of the first SoLU models, made from a model in today's.
fn old_layout(files: Files, transposed: bool) -> Files {
    let files = files.rename(|name| name.replace("ln_final.", "norm.").replace("ln", "norm"));
    files.map(|name, tensor| {
        let is_transposed = name == "pos_embed.W_pos" || (transposed && name.contains("W_"));
        is_transposed.then(|| tensor.transpose(-2, -1).contiguous())
    })
}

#[test]
fn transformer_lens_files_load_in_either_layout() {
    for name in ["neel-solu", "neel-gelu", "neel-solu-rmsfinal"] {
        let expected = Files::of(name).load().unwrap();
        let old = || old_layout(Files::of(name), true);
        assert_same(name, old().load().unwrap(), &expected);
        let said = old().set(json!({"architecture": "neel-solu-old"}));
        assert_same(name, said.load().unwrap(), &expected);
        let named = old().load_as(Some("neel-solu-old"), Kind::Float).unwrap();
        assert_same(name, named, &expected);
    }
    // Seven and eight layers: only positions are transposed. Without parameters of norms the names say
    // nothing, and the shape of the positions does, unless it is square.
    let config = Config {
        n_layers: 8,
        normalization: sweep_lens::Normalization::LnPre,
        final_normalization: sweep_lens::Normalization::LnPre,
        ..Config::toy(8, 8, 2, 5, 6)
    };
    for n_ctx in [6, 8] {
        let config = Config { n_ctx, ..config.clone() };
        let weights = random_weights(&config, 1);
        let files = |weights: &Weights| Files {
            config: json!({
                "n_layers": 8, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 32, "d_vocab": 5,
                "n_ctx": n_ctx, "act_fn": "relu", "normalization": "LNPre", "attn_only": false,
            }),
            tensors: weights.iter().map(|(name, t)| (name.to_owned(), t.copy())).collect(),
        };
        let old = files(&weights)
            .map(|name, t| (name == "pos_embed.W_pos").then(|| t.transpose(0, 1).contiguous()));
        let named = old.load_as(Some("neel-solu-old"), Kind::Double).unwrap();
        assert!(
            named.1.get("pos_embed.W_pos").unwrap().equal(weights.get("pos_embed.W_pos").unwrap())
        );
        if n_ctx == 6 {
            let found = old.load_as(None, Kind::Double).unwrap();
            assert_same("by shape", found, &named);
        } else {
            let error = old.load_as(None, Kind::Double).unwrap_err().to_string();
            assert!(error.contains("`pos_embed.W_pos` is square"), "{error}");
            let said = files(&weights).set(json!({"architecture": "neel"}));
            assert_same("as said", said.load_as(None, Kind::Double).unwrap(), &named);
        }
    }
}

#[test]
fn transformer_lens_files_may_lack_the_output_bias_and_hold_masks() {
    let expected = Files::of("neel-solu").load().unwrap();
    let mut files = Files::of("neel-solu");
    drop(files.tensors.remove("unembed.b_U").unwrap());
    let (config, weights) = files.load().unwrap();
    let logits = |config: &Config, weights: &Weights| {
        let model = Transformer::new(config.clone(), weights.shallow_clone()).unwrap();
        model.forward(&tokens(config, 2, 7), &Run::FULL, &mut ())
    };
    let mut zeroed = expected.1.copy();
    let zeros = zeroed.get("unembed.b_U").unwrap().zeros_like();
    zeroed.insert("unembed.b_U", zeros);
    assert_close("b_U", &logits(&config, &weights), &logits(&expected.0, &zeroed), 1e-6);

    let mut files = Files::of("neel-solu");
    for layer in 0..2 {
        let mask = Tensor::ones([32, 32], (Kind::Bool, Device::Cpu));
        files.tensors.insert(format!("blocks.{layer}.attn.mask"), mask);
        files
            .tensors
            .insert(format!("blocks.{layer}.attn.IGNORE"), Tensor::from(f32::NEG_INFINITY));
    }
    assert_same("with masks", files.load().unwrap(), &expected);
    for name in ["blocks.0.attn.b_Q", "blocks.1.mlp.ln.b", "ln_final.w"] {
        let mut files = Files::of("neel-solu");
        drop(files.tensors.remove(name).unwrap());
        let error = files.load().unwrap_err();
        assert!(matches!(&error, Error::MissingTensor { name: lost } if lost == name), "{error}");
    }
}

#[test]
fn grouped_heads_of_transformer_lens_have_underscores() {
    let config = Config { n_key_value_heads: 1, ..Config::toy(1, 8, 2, 5, 6) };
    let weights = random_weights(&config, 2);
    let files = Files {
        config: json!({
            "n_layers": 1, "d_model": 8, "n_heads": 2, "n_key_value_heads": 1, "d_head": 4, "d_mlp": 32,
            "d_vocab": 5, "n_ctx": 6, "act_fn": "relu", "normalization_type": null,
        }),
        tensors: weights.iter().map(|(name, t)| (name.to_owned(), t.copy())).collect(),
    };
    let files = files.rename(|name| {
        let grouped = ["W_K", "W_V", "b_K", "b_V"].into_iter().find(|last| name.ends_with(last));
        grouped.map_or_else(|| name.to_owned(), |last| name.replace(last, &format!("_{last}")))
    });
    let loaded = files.load_as(None, Kind::Double).unwrap();
    let expected = Config { default_prepend_bos: true, ..config };
    assert_same("grouped", loaded, &(expected, weights));
}

#[test]
fn own_models_load_as_they_are() {
    for (name, config) in architectures() {
        let weights = random_weights(&config, 4);
        let source: TensorSet =
            weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.copy())).collect();
        let json = serde_json::to_value(&config).unwrap();
        let loaded = families::load(&json, None, &source, Kind::Double, Device::Cpu).unwrap();
        assert_same(name, loaded, &(config.clone(), weights.copy()));
        let mut more = source;
        more.insert("blocks.0.attn.extra", Tensor::from_slice(&[1.0]));
        assert_eq!(more.info("blocks.0.attn.extra").unwrap().shape, [1]);
        let error = families::load(&json, None, &more, Kind::Double, Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("`blocks.0.attn.extra` is not"), "{error}");
    }
}

/// Clipping, windows and scaled positions of the fixtures do something: a reference that ignored them
/// would not match.
#[test]
fn features_of_the_fixtures_are_not_neutral() {
    for (name, change) in [
        ("olmo-tiny", json!({"clip_qkv": null})),
        ("mistral-tiny", json!({"sliding_window": 24})),
        ("mistral-tiny", json!({"sliding_window": 7})),
        ("gpt-neo-tiny", json!({"window_size": 24})),
        ("gpt-neo-tiny", json!({"attention_types": [[["local", "global"], 1], [["local"], 1]]})),
        ("llama3-tiny", json!({"rope_parameters": {"rope_theta": 500_000.0}})),
        ("llama3-tiny", json!({"rms_norm_eps": 1e-3})),
        ("llama-tied", json!({"rope_parameters": {"rope_theta": 10_000.0}})),
        ("olmo2-tiny", json!({"rope_parameters": {"rope_theta": 10_000.0}})),
        ("neox-parallel", json!({"use_parallel_residual": false})),
        ("neox-parallel", json!({"rope_parameters": {"partial_rotary_factor": 0.5}})),
        ("gpt2-other", json!({"scale_attn_weights": true})),
        ("gpt2-other", json!({"activation_function": "gelu_new"})),
    ] {
        let expected = expected(name);
        let tokens = expected["tokens"].to_kind(Kind::Int64);
        let changed = Files::of(name).set(change.clone()).model();
        let logits = changed.forward(&tokens, &Run::FULL, &mut ());
        let distance = distance(
            &logits.log_softmax(-1, Kind::Double),
            &expected["logits"].log_softmax(-1, Kind::Double),
        );
        assert!(distance > 1e-4, "{name} with {change}: differs by {distance:.1e} only");
    }
}

/// Values that a damaged or hostile `config.json` may hold in place of sensible ones.
fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![
            Just(0),
            Just(-1),
            Just(1),
            Just(3),
            Just(i64::MAX),
            Just(i64::MIN),
            Just(1 << 24)
        ]
        .prop_map(Value::from),
        prop_oneof![Just(0.0), Just(-1.0), Just(1e308), Just(1e-320), Just(0.5)]
            .prop_map(Value::from),
        prop_oneof![Just("llama3"), Just("linear"), Just("global"), Just("RMS"), Just("")]
            .prop_map(Value::from),
        Just(json!([])),
        Just(json!([[["global", "local"], i64::MAX]])),
        Just(
            json!({"rope_type": "llama3", "factor": 0, "low_freq_factor": 1, "high_freq_factor": 1})
        ),
        Just(json!({"rope_type": "linear", "rope_theta": -1, "partial_rotary_factor": 1e300})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any configuration is read or refused: nothing panics or allocates what a number asks for, and
    /// a model that loads can be built.
    #[test]
    fn odd_configurations_are_read_or_refused(
        model in 0..ODD.len(),
        changes in vec((any::<prop::sample::Index>(), odd_value()), 1..4),
        more in vec((0..ODD_KEYS.len(), odd_value()), 0..3),
    ) {
        let mut files = Files::of(ODD[model]);
        let config = files.config.as_object_mut().unwrap();
        let keys: Vec<String> = config.keys().cloned().collect();
        for (key, value) in changes {
            config.insert(key.get(&keys).clone(), value);
        }
        for (key, value) in more {
            config.insert(ODD_KEYS[key].to_owned(), value);
        }
        match files.load() {
            Ok((config, weights)) => {
                prop_assert!(Transformer::new(config, weights).is_ok());
            }
            Err(error) => {
                prop_assert_eq!(error.class(), Class::Input);
                prop_assert!(error.to_string().len() < 500, "{}", error);
            }
        }
    }
}

const ODD: [&str; 5] = ["gpt-neo-tiny", "gpt2-other", "llama3-tiny", "olmo2-tiny", "neel-attn"];
const ODD_KEYS: [&str; 8] = [
    "attention_layers",
    "head_dim",
    "layer_types",
    "n_key_value_heads",
    "positional_embedding_type",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
];
