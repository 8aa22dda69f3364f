//! Models and comparisons that the tests share.

use sweep_lens::{
    ActFn, AttnType, Config, Device, Kind, NormPosition, Normalization, Positional, RotaryScaling,
    Tensor, Transformer, Weights, init,
};

/// One configuration per feature, between them all features of the transformer.
pub(crate) fn architectures() -> Vec<(&'static str, Config)> {
    let toy = || Config::toy(2, 12, 3, 11, 7);
    let rotary = |dim| Positional::Rotary { dim, base: 100.0, scaling: RotaryScaling::None };
    vec![
        ("toy", toy()),
        (
            "gpt2 with inverse-layer scaling",
            Config {
                act_fn: ActFn::GeluNew,
                normalization: Normalization::Ln,
                final_normalization: Normalization::Ln,
                scale_attn_by_inverse_layer_idx: true,
                ..toy()
            },
        ),
        (
            "neox",
            Config {
                act_fn: ActFn::Gelu,
                normalization: Normalization::Ln,
                final_normalization: Normalization::Ln,
                parallel_attn_mlp: true,
                positional: rotary(2),
                ..toy()
            },
        ),
        (
            "llama",
            Config {
                act_fn: ActFn::Silu,
                gated_mlp: true,
                normalization: Normalization::Rms,
                final_normalization: Normalization::Rms,
                n_heads: 4,
                n_key_value_heads: 2,
                d_head: 4,
                positional: rotary(4),
                d_vocab_out: 5,
                ..toy()
            },
        ),
        (
            "solu",
            Config {
                act_fn: ActFn::SoluLn,
                normalization: Normalization::Ln,
                final_normalization: Normalization::Rms,
                ..toy()
            },
        ),
        (
            "folded solu",
            Config {
                act_fn: ActFn::SoluLn,
                normalization: Normalization::LnPre,
                final_normalization: Normalization::RmsPre,
                ..toy()
            },
        ),
        (
            "shortformer",
            Config { attn_only: true, d_mlp: 0, positional: Positional::Shortformer, ..toy() },
        ),
        (
            "no positions, folded rms",
            Config { positional: Positional::None, normalization: Normalization::RmsPre, ..toy() },
        ),
        (
            "olmo",
            Config {
                act_fn: ActFn::Silu,
                gated_mlp: true,
                normalization: Normalization::LnPre,
                final_normalization: Normalization::LnPre,
                positional: rotary(4),
                clip_qkv: Some(0.7),
                ..toy()
            },
        ),
        (
            "olmo2",
            Config {
                act_fn: ActFn::Silu,
                gated_mlp: true,
                normalization: Normalization::Rms,
                norm_position: NormPosition::Post,
                final_normalization: Normalization::Rms,
                qk_norm: true,
                n_heads: 4,
                n_key_value_heads: 2,
                positional: rotary(4),
                ..toy()
            },
        ),
        (
            "gpt neo",
            Config {
                act_fn: ActFn::GeluNew,
                normalization: Normalization::Ln,
                final_normalization: Normalization::Ln,
                attn_scale: 1.0,
                attn_types: vec![AttnType::Local, AttnType::Global],
                window_size: Some(3),
                ..toy()
            },
        ),
        ("no layers", Config { n_layers: 0, ..toy() }),
    ]
}

/// Draws every parameter at random, biases and norm weights too, so that nothing is accidentally neutral.
pub(crate) fn random_weights(config: &Config, seed: u64) -> Weights {
    // Tests run side by side, and on tensors this small a second thread only waits for the first.
    tch::set_num_threads(1);
    let parameters = config.parameters().into_iter();
    parameters
        .map(|p| {
            let drawn = init::normal(seed, &p.name, &p.shape, 0.4, Device::Cpu);
            let tensor = if p.is_norm_weight { drawn + 1.0 } else { drawn };
            (p.name, tensor.to_kind(Kind::Double))
        })
        .collect()
}

pub(crate) fn random_model(config: &Config, seed: u64) -> Transformer {
    Transformer::new(config.clone(), random_weights(config, seed)).unwrap()
}

/// Fixed tokens `[batch, pos]` that differ between sequences.
pub(crate) fn tokens(config: &Config, batch: i64, pos: i64) -> Tensor {
    let index = Tensor::arange(batch * pos, (Kind::Int64, Device::Cpu));
    (&index * 7 + &index * &index * 3 + 2).remainder(config.d_vocab).view([batch, pos])
}

/// Largest absolute difference; equal infinities differ by nothing.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let difference = (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs();
    let difference = difference.masked_fill(&a.eq_tensor(b), 0.0);
    if difference.numel() == 0 { 0.0 } else { difference.max().double_value(&[]) }
}

#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    let distance = distance(actual, expected);
    assert!(distance <= tolerance, "{what}: differs by {distance:.3e}, allowed {tolerance:.0e}");
}
