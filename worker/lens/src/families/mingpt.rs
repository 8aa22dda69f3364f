//! minGPT's files with TransformerLens' configuration (Othello-GPT).
//!
//! GPT-2's architecture with separate queries, keys and values, `Linear` weights `[d_out, d_in]`, an untied
//! unembedding without a bias and a positional embedding `[1, n_ctx, d_model]`. `config.json` has TransformerLens'
//! keys and `architecture: mingpt`. Source: `convert_mingpt_weights` of TransformerLens 3.9; minGPT's `model.py`.

use serde_json::Value;

use crate::{
    config::Config,
    error::Result,
    families::{
        Family, StateDict,
        hugging_face::is_layer_buffer,
        neel::{has_keys, read_config},
        settings::Settings,
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct MinGpt;

impl Family for MinGpt {
    fn name(&self) -> &'static str {
        "mingpt"
    }

    fn recognises(&self, config: &Value) -> bool {
        has_keys(config) && config.get("architecture").is_some_and(|own| own == self.name())
    }

    fn config(&self, config: &Value, _tensors: &dyn TensorSource) -> Result<Config> {
        read_config(&Settings::new(config)?)
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        let Config { d_model, d_mlp, d_head, n_heads, n_ctx, d_vocab, d_vocab_out, .. } = *config;
        let mut weights = Weights::new();
        weights.insert("embed.W_E", source.take("tok_emb.weight", &[d_vocab, d_model])?);
        let positions = source.take("pos_emb", &[1, n_ctx, d_model])?;
        weights.insert("pos_embed.W_pos", positions.squeeze_dim(0));
        weights.insert("unembed.W_U", source.take_linear("head.weight", d_model, d_vocab_out)?);
        take_norm(source, &mut weights, ["ln_f", "ln_final"], d_model)?;
        for layer in 0..config.n_layers {
            let name = |name: &str| format!("blocks.{layer}.{name}");
            for norm in ["ln1", "ln2"] {
                take_norm(source, &mut weights, [&name(norm), &name(norm)], d_model)?;
            }
            for (letter, part) in [("Q", "query"), ("K", "key"), ("V", "value")] {
                let w = name(&format!("attn.{part}.weight"));
                let w = source.take_heads_in(&w, [n_heads, d_head, d_model])?;
                weights.insert(name(&format!("attn.W_{letter}")), w);
                let b = source.take(&name(&format!("attn.{part}.bias")), &[n_heads * d_head])?;
                weights.insert(name(&format!("attn.b_{letter}")), b.view([n_heads, d_head]));
            }
            let heads = [n_heads, d_head, d_model];
            let w_o = source.take_heads_out(&name("attn.proj.weight"), heads)?;
            weights.insert(name("attn.W_O"), w_o);
            weights.insert(name("attn.b_O"), source.take(&name("attn.proj.bias"), &[d_model])?);
            for (ours, theirs, d_in, d_out) in
                [("in", "mlp.0", d_model, d_mlp), ("out", "mlp.2", d_mlp, d_model)]
            {
                let w = source.take_linear(&name(&format!("{theirs}.weight")), d_in, d_out)?;
                weights.insert(name(&format!("mlp.W_{ours}")), w);
                let b = source.take(&name(&format!("{theirs}.bias")), &[d_out])?;
                weights.insert(name(&format!("mlp.b_{ours}")), b);
            }
        }
        Ok(weights)
    }

    fn ignores(&self, tensor: &str) -> bool {
        is_layer_buffer(tensor, &["attn.mask"])
    }
}

/// Takes weight and bias of a norm: its name there, and ours.
fn take_norm(
    source: &mut StateDict<'_>,
    weights: &mut Weights,
    [theirs, ours]: [&str; 2],
    width: i64,
) -> Result<()> {
    for (part, name) in [("w", "weight"), ("b", "bias")] {
        let tensor = source.take(&format!("{theirs}.{name}"), &[width])?;
        weights.insert(format!("{ours}.{part}"), tensor);
    }
    Ok(())
}
