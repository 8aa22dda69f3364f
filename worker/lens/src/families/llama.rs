//! Llama and what shares its layout: SmolLM2, Mistral; OLMo and OLMo-2 differ in their norms.
//!
//! Root-mean-square norms, SwiGLU, grouped keys and values, rotary positions over whole heads.
//! Mistral's sliding window is a window of every layer. Source: `modeling_llama.py` and
//! `modeling_mistral.py` of transformers 5.

use serde_json::Value;

use crate::{
    config::{ActFn, AttnType, Config, Normalization},
    error::Result,
    families::{
        Family, StateDict,
        hugging_face::{self, Names, check_presence},
        settings::Settings,
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct Llama;

/// Mistral's window where its configuration does not say; `null` says that there is none.
const MISTRAL_WINDOW: i64 = 4096;

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn recognises(&self, config: &Value) -> bool {
        const ARCHITECTURES: [&str; 4] =
            ["LlamaForCausalLM", "LlamaModel", "MistralForCausalLM", "MistralModel"];
        hugging_face::is_one_of(config, &["llama", "mistral"], &ARCHITECTURES)
    }

    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config> {
        let settings = hugging_face::settings(config)?;
        let base = Config {
            normalization: Normalization::Rms,
            final_normalization: Normalization::Rms,
            eps: settings.number_or("rms_norm_eps", 1e-6)?,
            default_prepend_bos: true,
            ..shared_config(&settings, tensors)?
        };
        let window = settings.size_or_none("sliding_window")?;
        let is_mistral = hugging_face::is_one_of(config, &["mistral"], &["MistralForCausalLM"]);
        let window = if is_mistral && !settings.has("sliding_window") {
            Some(MISTRAL_WINDOW)
        } else {
            window
        };
        match window.filter(|&window| window < base.n_ctx) {
            None => Ok(base),
            Some(window) if is_mistral => Ok(Config {
                attn_types: vec![AttnType::Local; base.n_layers as usize],
                window_size: Some(window),
                ..base
            }),
            Some(_) => Err(settings.unsupported("sliding_window")),
        }
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        convert(
            source,
            config,
            Some(Norms { ln1: "input_layernorm", ln2: "post_attention_layernorm" }),
        )
    }

    fn ignores(&self, tensor: &str) -> bool {
        is_buffer(tensor)
    }
}

/// Names of the norms of a layer.
pub(super) struct Norms {
    pub(super) ln1: &'static str,
    pub(super) ln2: &'static str,
}

/// Whether a tensor is the table of rotary frequencies, which older files hold.
pub(super) fn is_buffer(tensor: &str) -> bool {
    tensor.ends_with("rotary_emb.inv_freq")
}

/// Reads what these configurations share; norms are the caller's.
pub(super) fn shared_config(settings: &Settings<'_>, tensors: &dyn TensorSource) -> Result<Config> {
    hugging_face::refuse_other_layers(settings)?;
    let (d_model, n_heads, d_head) =
        hugging_face::d_head(settings, "hidden_size", "num_attention_heads")?;
    let (d_vocab, n_ctx) =
        (settings.size("vocab_size")?, settings.size("max_position_embeddings")?);
    let n_layers = settings.layers("num_hidden_layers")?;
    let names = names(tensors);
    names.check_head(tensors, settings.flag_or("tie_word_embeddings", false)?)?;
    let biases = |parts: [&'static str; 4], block: &'static str| {
        let names = &names;
        (0..n_layers).flat_map(move |layer| {
            parts
                .into_iter()
                .filter(|part| !part.is_empty())
                .map(move |part| names.base(&format!("layers.{layer}.{block}.{part}.bias")))
        })
    };
    let attention = biases(["q_proj", "k_proj", "v_proj", "o_proj"], "self_attn");
    check_presence(tensors, attention, settings.flag_or("attention_bias", false)?)?;
    let mlp = biases(["gate_proj", "up_proj", "down_proj", ""], "mlp");
    check_presence(tensors, mlp, settings.flag_or("mlp_bias", false)?)?;
    Ok(Config {
        n_key_value_heads: settings.size_or_none("num_key_value_heads")?.unwrap_or(n_heads),
        d_head,
        d_mlp: settings.size("intermediate_size")?,
        act_fn: settings.act_fn("hidden_act", ActFn::Silu)?,
        gated_mlp: true,
        positional: hugging_face::rotary(settings, d_head, None)?,
        attn_scale: (d_head as f64).sqrt(),
        ..Config::toy(n_layers, d_model, n_heads, d_vocab, n_ctx)
    })
}

/// Translates the tensors of a Llama-like model; `norms` is absent where norms have no parameters.
pub(super) fn convert(
    source: &mut StateDict<'_>,
    config: &Config,
    norms: Option<Norms>,
) -> Result<Weights> {
    let names = names(source.source());
    let mut weights = Weights::new();
    let (embed, unembed) = names.take_embeddings(source, config)?;
    weights.insert("embed.W_E", embed);
    weights.insert("unembed.W_U", unembed);
    for layer in 0..config.n_layers {
        let from = |name: &str| names.base(&format!("layers.{layer}.{name}"));
        let to = |name: &str| format!("blocks.{layer}.{name}");
        convert_attention(source, config, &mut weights, from, to)?;
        convert_mlp(source, config, &mut weights, from, to)?;
        if let Some(norms) = &norms {
            for (ours, theirs) in [("ln1.w", norms.ln1), ("ln2.w", norms.ln2)] {
                let name = from(&format!("{theirs}.weight"));
                weights.insert(to(ours), source.take(&name, &[config.d_model])?);
            }
        }
    }
    if norms.is_some() {
        let name = names.base("norm.weight");
        weights.insert("ln_final.w", source.take(&name, &[config.d_model])?);
    }
    Ok(weights)
}

fn convert_attention(
    source: &mut StateDict<'_>,
    config: &Config,
    weights: &mut Weights,
    from: impl Fn(&str) -> String,
    to: impl Fn(&str) -> String,
) -> Result<()> {
    let Config { d_model, n_heads, n_key_value_heads, d_head, .. } = *config;
    for (letter, part, heads) in
        [("Q", "q", n_heads), ("K", "k", n_key_value_heads), ("V", "v", n_key_value_heads)]
    {
        let w = from(&format!("self_attn.{part}_proj.weight"));
        let w = source.take_heads_in(&w, [heads, d_head, d_model])?;
        weights.insert(to(&format!("attn.W_{letter}")), w);
        let b = from(&format!("self_attn.{part}_proj.bias"));
        if let Some(b) = source.take_optional(&b, &[heads * d_head])? {
            weights.insert(to(&format!("attn.b_{letter}")), b.view([heads, d_head]));
        }
    }
    let w_o =
        source.take_heads_out(&from("self_attn.o_proj.weight"), [n_heads, d_head, d_model])?;
    weights.insert(to("attn.W_O"), w_o);
    if let Some(b_o) = source.take_optional(&from("self_attn.o_proj.bias"), &[d_model])? {
        weights.insert(to("attn.b_O"), b_o);
    }
    if config.qk_norm {
        for (part, heads) in [("q_norm", n_heads), ("k_norm", n_key_value_heads)] {
            let w = source.take(&from(&format!("self_attn.{part}.weight")), &[heads * d_head])?;
            weights.insert(to(&format!("attn.{part}.w")), w);
        }
    }
    Ok(())
}

fn convert_mlp(
    source: &mut StateDict<'_>,
    config: &Config,
    weights: &mut Weights,
    from: impl Fn(&str) -> String,
    to: impl Fn(&str) -> String,
) -> Result<()> {
    let Config { d_model, d_mlp, .. } = *config;
    for (w, b, theirs, d_in, d_out) in [
        ("mlp.W_gate", "mlp.b_gate", "mlp.gate_proj", d_model, d_mlp),
        ("mlp.W_in", "mlp.b_pre_linear", "mlp.up_proj", d_model, d_mlp),
        ("mlp.W_out", "mlp.b_out", "mlp.down_proj", d_mlp, d_model),
    ] {
        let weight = source.take_linear(&from(&format!("{theirs}.weight")), d_in, d_out)?;
        weights.insert(to(w), weight);
        if let Some(bias) = source.take_optional(&from(&format!("{theirs}.bias")), &[d_out])? {
            weights.insert(to(b), bias);
        }
    }
    Ok(())
}

fn names(tensors: &dyn TensorSource) -> Names {
    Names::of(tensors, "model.", "embed_tokens.weight", "lm_head.weight")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::formats::TensorSet;

    fn config(changes: &Value) -> Result<Config> {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 2, "intermediate_size": 40, "vocab_size": 9, "tie_word_embeddings": true,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        Llama.config(&config, &TensorSet::new())
    }

    #[test]
    fn widths_of_heads_and_groups_are_read() {
        let plain = config(&json!({})).unwrap();
        assert_eq!((plain.d_head, plain.n_key_value_heads, plain.attn_scale), (8, 2, 8f64.sqrt()));
        let wide = config(&json!({"head_dim": 10, "num_key_value_heads": null})).unwrap();
        assert_eq!((wide.d_head, wide.n_key_value_heads, wide.attn_scale), (10, 4, 10f64.sqrt()));
    }

    #[test]
    fn windows_are_mistrals() {
        let mistral = |window: Value| json!({"model_type": "mistral", "sliding_window": window});
        let windowed = config(&mistral(json!(100))).unwrap();
        assert_eq!((windowed.window(0), windowed.window(1)), (Some(100), Some(100)));
        assert_eq!(config(&mistral(json!(null))).unwrap().window(0), None);
        assert_eq!(config(&mistral(json!(8192))).unwrap().window(0), None);
        assert_eq!(config(&json!({"model_type": "mistral"})).unwrap().window(0), Some(4096));
        assert_eq!(config(&json!({"sliding_window": 8192})).unwrap().window(0), None);
        let error = config(&json!({"sliding_window": 100})).unwrap_err().to_string();
        assert_eq!(error, "unsupported: `sliding_window` is 100 in config.json");
    }

    #[test]
    fn settings_that_are_not_implemented_are_refused() {
        for (changes, message) in [
            (json!({"attention_bias": true}), "layers.0.self_attn.q_proj.bias` is missing"),
            (json!({"mlp_bias": true}), "gate_proj.bias` is missing"),
            (json!({"hidden_act": "gelu_10"}), "`hidden_act` is \"gelu_10\""),
            (json!({"layer_types": ["full_attention", "sliding_attention"]}), "`layer_types`"),
            (json!({"rope_scaling": {"rope_type": "longrope"}}), "\"longrope\""),
            (json!({"num_local_experts": 4}), "`num_local_experts` is 4"),
            (json!({"residual_multiplier": 0.22}), "`residual_multiplier` is 0.22"),
            (json!({"num_hidden_layers": 1e15}), "`num_hidden_layers` is 1"),
            (json!({"tie_word_embeddings": false}), "`lm_head.weight` is missing"),
        ] {
            let error = config(&changes).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
