//! The layout of Neel Nanda's first SoLU models (`SoLU_*_old`, trained on the Pile).
//!
//! Norms are called `norm`, the final one has no `_final`. Weights of models up to six layers stand
//! `[d_out, d_in]`; up to eight layers the positional embedding is `[d_model, n_ctx]`. Names and shapes show the
//! layout, except where norms have no parameters and the positional embedding is square (the
//! eight-layer model): there `architecture` or the family's name must say. Source:
//! `convert_neel_solu_old_weights` of TransformerLens 3.9.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    config::{Config, Normalization, Positional},
    error::{Error, Result},
    families::{
        Family, StateDict,
        neel::{has_keys, is_buffer, read_config},
        settings::Settings,
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct NeelSoluOld;

/// Deepest model whose weights stand `[d_out, d_in]`.
const TRANSPOSED_LAYERS_MAX: i64 = 6;
/// Deepest model whose positional embedding stands `[d_model, n_ctx]`.
const TRANSPOSED_POSITIONS_LAYERS_MAX: i64 = 8;

impl Family for NeelSoluOld {
    fn name(&self) -> &'static str {
        "neel-solu-old"
    }

    fn recognises(&self, config: &Value) -> bool {
        has_keys(config) && config.get("architecture").is_some_and(|own| own == self.name())
    }

    fn config(&self, config: &Value, _tensors: &dyn TensorSource) -> Result<Config> {
        read_config(&Settings::new(config)?)
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        convert(source, config)
    }

    fn ignores(&self, tensor: &str) -> bool {
        is_buffer(tensor)
    }
}

/// Whether names or shapes show this layout.
pub(super) fn is_evident(tensors: &dyn TensorSource, config: &Config) -> bool {
    let is_transposed = |name: &str, shape: [i64; 2]| {
        let found = tensors.info(name).map(|info| info.shape.as_slice());
        shape[0] != shape[1] && found == Some(&[shape[1], shape[0]])
    };
    tensors.names().iter().any(|name| name.contains("norm"))
        || is_transposed("embed.W_E", [config.d_vocab, config.d_model])
        || is_transposed("pos_embed.W_pos", [config.n_ctx, config.d_model])
}

/// Whether a model may have this layout without showing it.
pub(super) fn is_possible(config: &Config) -> bool {
    config.normalization == Normalization::LnPre
        && config.positional == Positional::Learned
        && config.n_ctx == config.d_model
        && config.n_layers <= TRANSPOSED_POSITIONS_LAYERS_MAX
}

/// Translates the tensors.
pub(super) fn convert(source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
    let mut stored = BTreeMap::new();
    for name in source.source().names() {
        if let Some(other) = stored.insert(renamed(name), name) {
            return Err(Error::Config(format!(
                "tensors `{other}` and `{name}` are the same parameter"
            )));
        }
    }
    let mut weights = Weights::new();
    for parameter in config.parameters() {
        let Some(&name) = stored.get(&parameter.name) else {
            if parameter.name == "unembed.b_U" {
                continue;
            }
            return Err(Error::MissingTensor { name: parameter.name });
        };
        let layers_max = match parameter.name.as_str() {
            "pos_embed.W_pos" => TRANSPOSED_POSITIONS_LAYERS_MAX,
            name if name.contains("W_") => TRANSPOSED_LAYERS_MAX,
            _ => -1,
        };
        let mut shape = parameter.shape;
        let tensor = if config.n_layers <= layers_max {
            let last = shape.len() - 1;
            shape.swap(last - 1, last);
            source.take(name, &shape)?.transpose(-2, -1)
        } else {
            source.take(name, &shape)?
        };
        weights.insert(parameter.name, tensor);
    }
    Ok(weights)
}

/// Returns the canonical name of a stored one.
fn renamed(name: &str) -> String {
    let name = name.replace("norm", "ln");
    match name.strip_prefix("ln.") {
        Some(rest) => format!("ln_final.{rest}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        for (old, new) in [
            ("norm.w", "ln_final.w"),
            ("ln.b", "ln_final.b"),
            ("blocks.0.norm1.w", "blocks.0.ln1.w"),
            ("blocks.3.mlp.norm.b", "blocks.3.mlp.ln.b"),
            ("blocks.0.ln2.w", "blocks.0.ln2.w"),
            ("unembed.W_U", "unembed.W_U"),
        ] {
            assert_eq!(renamed(old), new);
        }
    }
}
