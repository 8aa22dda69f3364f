//! GPT-2, and Stanford CRFM's runs of it.
//!
//! Weights are those of `Conv1D`, `[d_in, d_out]`: they multiply from the right as they are. The columns of
//! `c_attn` are all queries, then all keys, then all values, each by head. CRFM's models divide the scores
//! of layer `l` by `l + 1` as well; their `reorder_and_upcast_attn` asks for a softmax in f32, which
//! ours always is. Source: `modeling_gpt2.py` of transformers 5.

use serde_json::Value;

use crate::{
    config::{ActFn, Config, Normalization, Positional},
    error::Result,
    families::{
        Family, StateDict,
        hugging_face::{self, Names, is_layer_buffer},
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct Gpt2;

impl Family for Gpt2 {
    fn name(&self) -> &'static str {
        "gpt2"
    }

    fn recognises(&self, config: &Value) -> bool {
        hugging_face::is_one_of(config, &["gpt2"], &["GPT2LMHeadModel", "GPT2Model"])
    }

    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config> {
        let settings = hugging_face::settings(config)?;
        let (d_model, n_heads, d_head) = hugging_face::d_head(&settings, "n_embd", "n_head")?;
        let n_ctx = match settings.size_or_none("n_positions")? {
            Some(n_ctx) => n_ctx,
            None => settings.size("n_ctx")?,
        };
        let d_vocab = settings.size("vocab_size")?;
        let is_scaled = settings.flag_or("scale_attn_weights", true)?;
        names(tensors).check_head(tensors, settings.flag_or("tie_word_embeddings", true)?)?;
        Ok(Config {
            d_head,
            d_mlp: settings.size_or_none("n_inner")?.unwrap_or(4 * d_model),
            act_fn: settings.act_fn("activation_function", ActFn::GeluNew)?,
            normalization: Normalization::Ln,
            final_normalization: Normalization::Ln,
            eps: settings.number_or("layer_norm_epsilon", 1e-5)?,
            positional: Positional::Learned,
            attn_scale: if is_scaled { (d_head as f64).sqrt() } else { 1.0 },
            scale_attn_by_inverse_layer_idx: settings
                .flag_or("scale_attn_by_inverse_layer_idx", false)?,
            default_prepend_bos: true,
            ..Config::toy(settings.layers("n_layer")?, d_model, n_heads, d_vocab, n_ctx)
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
        let positions = source.take(&names.base("wpe.weight"), &[config.n_ctx, d_model])?;
        weights.insert("pos_embed.W_pos", positions);
        for layer in 0..config.n_layers {
            let from = |name: &str| names.base(&format!("h.{layer}.{name}"));
            let to = |name: &str| format!("blocks.{layer}.{name}");
            for (ours, theirs) in [("ln1", "ln_1"), ("ln2", "ln_2")] {
                let w = source.take(&from(&format!("{theirs}.weight")), &[d_model])?;
                let b = source.take(&from(&format!("{theirs}.bias")), &[d_model])?;
                weights.insert(to(&format!("{ours}.w")), w);
                weights.insert(to(&format!("{ours}.b")), b);
            }
            let qkv_w = source.take(&from("attn.c_attn.weight"), &[d_model, 3 * width])?;
            let qkv_b = source.take(&from("attn.c_attn.bias"), &[3 * width])?;
            let qkv_w = qkv_w.view([d_model, 3, n_heads, d_head]);
            let qkv_b = qkv_b.view([3, n_heads, d_head]);
            for (index, letter) in (0..).zip(["Q", "K", "V"]) {
                let w = qkv_w.select(1, index).transpose(0, 1); // [head, d_model, d_head]
                weights.insert(to(&format!("attn.W_{letter}")), w);
                weights.insert(to(&format!("attn.b_{letter}")), qkv_b.get(index));
            }
            let w_o = source.take(&from("attn.c_proj.weight"), &[width, d_model])?;
            weights.insert(to("attn.W_O"), w_o.view([n_heads, d_head, d_model]));
            for (ours, theirs, shape) in [
                ("attn.b_O", "attn.c_proj.bias", [d_model].as_slice()),
                ("mlp.W_in", "mlp.c_fc.weight", &[d_model, d_mlp]),
                ("mlp.b_in", "mlp.c_fc.bias", &[d_mlp]),
                ("mlp.W_out", "mlp.c_proj.weight", &[d_mlp, d_model]),
                ("mlp.b_out", "mlp.c_proj.bias", &[d_model]),
            ] {
                weights.insert(to(ours), source.take(&from(theirs), shape)?);
            }
        }
        weights.insert("ln_final.w", source.take(&names.base("ln_f.weight"), &[d_model])?);
        weights.insert("ln_final.b", source.take(&names.base("ln_f.bias"), &[d_model])?);
        Ok(weights)
    }

    fn ignores(&self, tensor: &str) -> bool {
        is_layer_buffer(tensor, &["attn.bias", "attn.masked_bias"])
    }
}

fn names(tensors: &dyn TensorSource) -> Names {
    Names::of(tensors, "transformer.", "wte.weight", "lm_head.weight")
}
