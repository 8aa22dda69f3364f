//! GPT-NeoX: Pythia and PolyPythia.
//!
//! Rows of `query_key_value` are ordered (head, query/key/value, d_head). Rotary positions cover the first
//! part of each head, in half-split pairs. Attention and MLP read the same residual stream unless
//! `use_parallel_residual` is false. The vocabulary is padded; the rows beyond the tokenizer's are kept.
//! Source: `modeling_gpt_neox.py` of transformers 5.

use serde_json::Value;

use crate::{
    config::{ActFn, Config, Normalization},
    error::Result,
    families::{
        Family, StateDict,
        hugging_face::{self, Names, check_presence, is_layer_buffer},
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct GptNeoX;

/// Part of each head that is rotated where a configuration does not say.
const ROTARY_PCT: f64 = 0.25;

impl Family for GptNeoX {
    fn name(&self) -> &'static str {
        "gpt_neox"
    }

    fn recognises(&self, config: &Value) -> bool {
        hugging_face::is_one_of(config, &["gpt_neox"], &["GPTNeoXForCausalLM", "GPTNeoXModel"])
    }

    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config> {
        let settings = hugging_face::settings(config)?;
        let (d_model, n_heads, d_head) =
            hugging_face::d_head(&settings, "hidden_size", "num_attention_heads")?;
        let (d_vocab, n_ctx) =
            (settings.size("vocab_size")?, settings.size("max_position_embeddings")?);
        let n_layers = settings.layers("num_hidden_layers")?;
        let names = names(tensors);
        names.check_head(tensors, settings.flag_or("tie_word_embeddings", false)?)?;
        let biases = (0..n_layers).flat_map(|layer| {
            ["query_key_value", "dense"]
                .map(|part| names.base(&format!("layers.{layer}.attention.{part}.bias")))
        });
        check_presence(tensors, biases, settings.flag_or("attention_bias", true)?)?;
        Ok(Config {
            d_head,
            d_mlp: settings.size("intermediate_size")?,
            act_fn: settings.act_fn("hidden_act", ActFn::Gelu)?,
            parallel_attn_mlp: settings.flag_or("use_parallel_residual", true)?,
            normalization: Normalization::Ln,
            final_normalization: Normalization::Ln,
            eps: settings.number_or("layer_norm_eps", 1e-5)?,
            positional: hugging_face::rotary(&settings, d_head, Some(ROTARY_PCT))?,
            attn_scale: (d_head as f64).sqrt(),
            default_prepend_bos: false,
            ..Config::toy(n_layers, d_model, n_heads, d_vocab, n_ctx)
        })
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        let Config { d_model, n_heads, d_head, d_mlp, .. } = *config;
        let names = names(source.source());
        let width = n_heads * d_head;
        let mut weights = Weights::new();
        let (embed, unembed) = names.take_embeddings(source, config)?;
        weights.insert("embed.W_E", embed);
        weights.insert("unembed.W_U", unembed);
        for layer in 0..config.n_layers {
            let from = |name: &str| names.base(&format!("layers.{layer}.{name}"));
            let to = |name: &str| format!("blocks.{layer}.{name}");
            let qkv_w = source.take_arranged(
                &from("attention.query_key_value.weight"),
                &[3 * width, d_model],
                |w| w.reshape([n_heads, 3, d_head, d_model]).transpose(0, 1),
            )?; // [query/key/value, head, d_head, d_model]
            let name = from("attention.query_key_value.bias");
            let qkv_b = if source.contains(&name) {
                Some(source.take_arranged(&name, &[3 * width], |b| {
                    b.reshape([n_heads, 3, d_head]).transpose(0, 1)
                })?) // [query/key/value, head, d_head]
            } else {
                None
            };
            for (index, letter) in (0..).zip(["Q", "K", "V"]) {
                weights.insert(to(&format!("attn.W_{letter}")), qkv_w.get(index).transpose(1, 2));
                if let Some(b) = &qkv_b {
                    weights.insert(to(&format!("attn.b_{letter}")), b.get(index));
                }
            }
            let heads = [n_heads, d_head, d_model];
            let w_o = source.take_heads_out(&from("attention.dense.weight"), heads)?;
            weights.insert(to("attn.W_O"), w_o);
            if let Some(b_o) = source.take_optional(&from("attention.dense.bias"), &[d_model])? {
                weights.insert(to("attn.b_O"), b_o);
            }
            let w_in = source.take_linear(&from("mlp.dense_h_to_4h.weight"), d_model, d_mlp)?;
            weights.insert(to("mlp.W_in"), w_in);
            let w_out = source.take_linear(&from("mlp.dense_4h_to_h.weight"), d_mlp, d_model)?;
            weights.insert(to("mlp.W_out"), w_out);
            for (ours, theirs, width) in [
                ("ln1.w", "input_layernorm.weight", d_model),
                ("ln1.b", "input_layernorm.bias", d_model),
                ("ln2.w", "post_attention_layernorm.weight", d_model),
                ("ln2.b", "post_attention_layernorm.bias", d_model),
                ("mlp.b_in", "mlp.dense_h_to_4h.bias", d_mlp),
                ("mlp.b_out", "mlp.dense_4h_to_h.bias", d_model),
            ] {
                weights.insert(to(ours), source.take(&from(theirs), &[width])?);
            }
        }
        for (ours, theirs) in [("ln_final.w", "weight"), ("ln_final.b", "bias")] {
            let name = names.base(&format!("final_layer_norm.{theirs}"));
            weights.insert(ours, source.take(&name, &[d_model])?);
        }
        Ok(weights)
    }

    fn ignores(&self, tensor: &str) -> bool {
        is_layer_buffer(tensor, &["attention.bias", "attention.masked_bias"])
            || tensor.ends_with("rotary_emb.inv_freq")
    }
}

fn names(tensors: &dyn TensorSource) -> Names {
    Names::of(tensors, "gpt_neox.", "embed_in.weight", "embed_out.weight")
}
