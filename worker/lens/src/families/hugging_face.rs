//! What the configurations and files of the Hugging Face families share.
//!
//! Recognition by `model_type` or `architectures`, settings that no family here implements, rotary
//! positions in the old spelling (`rope_theta`, `rope_scaling`, `rotary_pct`) and the new one
//! (`rope_parameters`), the optional prefix of tensor names, and the tied unembedding.

use serde_json::Value;
use tch::Tensor;

use crate::{
    config::{Config, Positional, RotaryScaling},
    error::{Error, Result},
    families::{
        settings::{Neutral, Settings},
        state_dict::{StateDict, is_same_memory},
    },
    formats::TensorSource,
};

/// Base of rotary frequencies where a configuration names none.
const DEFAULT_BASE: f64 = 10_000.0;

/// Whether a configuration calls itself one of these.
pub(super) fn is_one_of(config: &Value, model_types: &[&str], architectures: &[&str]) -> bool {
    if let Some(model_type) = config.get("model_type").filter(|value| !value.is_null()) {
        return model_type.as_str().is_some_and(|own| model_types.contains(&own));
    }
    let own = config.get("architectures").and_then(Value::as_array);
    own.is_some_and(|own| {
        own.iter().filter_map(Value::as_str).any(|own| architectures.contains(&own))
    })
}

/// Reads a configuration and refuses what none of the families implements: mixtures of experts, soft
/// caps, multipliers, quantized weights, cross attention.
pub(super) fn settings(config: &Value) -> Result<Settings<'_>> {
    let settings = Settings::new(config)?;
    settings.refuse(&[
        ("add_cross_attention", Neutral::False),
        ("alibi", Neutral::False),
        ("attention_multiplier", Neutral::Absent),
        ("attn_logit_softcapping", Neutral::Absent),
        ("embedding_multiplier", Neutral::Number(1.0)),
        ("final_logit_softcapping", Neutral::Absent),
        ("is_encoder_decoder", Neutral::False),
        ("logit_scale", Neutral::Number(1.0)),
        ("logits_scaling", Neutral::Number(1.0)),
        ("n_routed_experts", Neutral::Absent),
        ("num_experts", Neutral::Absent),
        ("num_local_experts", Neutral::Absent),
        ("qk_layernorm", Neutral::False),
        ("quantization_config", Neutral::Absent),
        ("residual_multiplier", Neutral::Number(1.0)),
        ("rope_interleaved", Neutral::False),
        ("use_qk_norm", Neutral::False),
        ("use_sliding_window", Neutral::False),
    ])?;
    Ok(settings)
}

/// Width of one head: `head_dim`, or the width of the model divided by its heads.
pub(super) fn d_head(
    settings: &Settings<'_>,
    width_key: &str,
    heads_key: &str,
) -> Result<(i64, i64, i64)> {
    let (d_model, n_heads) = (settings.size(width_key)?, settings.size(heads_key)?);
    let d_head = match settings.size_or_none("head_dim")? {
        Some(d_head) => d_head,
        None if d_model % n_heads == 0 => d_model / n_heads,
        None => {
            let expected = format!("a divisor of `{width_key}` {d_model}");
            return Err(settings.malformed(heads_key, &expected));
        }
    };
    Ok((d_model, n_heads, d_head))
}

/// Reads rotary positions in either spelling; `partial` is the rotated part of a head unless the
/// configuration says otherwise, `None` where the architecture always rotates all of it.
pub(super) fn rotary(
    settings: &Settings<'_>,
    d_head: i64,
    partial: Option<f64>,
) -> Result<Positional> {
    let section = match settings.section("rope_scaling")? {
        Some(section) => Some(section),
        None => settings.section("rope_parameters")?,
    };
    // What stands beside the frequencies they belong to is newer than what stands at the top.
    let number = |inner: &str, outer: [&str; 2], default: f64| -> Result<f64> {
        if let Some(value) = section.as_ref().map_or(Ok(None), |s| s.number_or_none(inner))? {
            return Ok(value);
        }
        for key in outer {
            if let Some(value) = settings.number_or_none(key)? {
                return Ok(value);
            }
        }
        Ok(default)
    };
    let base = number("rope_theta", ["rope_theta", "rotary_emb_base"], DEFAULT_BASE)?;
    let factor = number(
        "partial_rotary_factor",
        ["partial_rotary_factor", "rotary_pct"],
        partial.unwrap_or(1.0),
    )?;
    if partial.is_none() && factor != 1.0 {
        return Err(Error::Unsupported(format!(
            "`partial_rotary_factor` is {factor} in config.json, in a family that rotates whole heads"
        )));
    }
    let scaling = match &section {
        None => RotaryScaling::None,
        Some(section) => rotary_scaling(settings, section)?,
    };
    // Truncated, as the reference implementation does.
    Ok(Positional::Rotary { dim: (d_head as f64 * factor) as i64, base, scaling })
}

fn rotary_scaling(settings: &Settings<'_>, section: &Settings<'_>) -> Result<RotaryScaling> {
    let key = if section.get("rope_type").is_some() { "rope_type" } else { "type" };
    match section.text(key)? {
        // Parameters per kind of layer (`{"full_attention": {…}}`) have no type of their own.
        None if section.has("full_attention") || section.has("sliding_attention") => {
            Err(section.unsupported("full_attention"))
        }
        None | Some("default") => Ok(RotaryScaling::None),
        Some("linear") => Ok(RotaryScaling::Linear { factor: section.number("factor")? }),
        Some("llama3") => {
            let original = section.size_or_none("original_max_position_embeddings")?;
            Ok(RotaryScaling::Llama3 {
                factor: section.number("factor")?,
                low_freq_factor: section.number("low_freq_factor")?,
                high_freq_factor: section.number("high_freq_factor")?,
                original_n_ctx: match original {
                    Some(original) => original,
                    None => settings.size("max_position_embeddings")?,
                },
            })
        }
        Some(_) => Err(section.unsupported(key)),
    }
}

/// Refuses layers of other kinds than full attention, where a configuration lists kinds.
pub(super) fn refuse_other_layers(settings: &Settings<'_>) -> Result<()> {
    let kinds = settings.list("layer_types")?.unwrap_or_default();
    if kinds.iter().all(|kind| kind == "full_attention") {
        Ok(())
    } else {
        Err(settings.unsupported("layer_types"))
    }
}

/// Names of a file's tensors: base models are saved without the prefix that whole models have.
pub(super) struct Names {
    prefix: &'static str,
    embed: String,
    head: &'static str,
}

impl Names {
    /// Finds out whether the tensors have the prefix, by that of the embedding.
    pub(super) fn of(
        tensors: &dyn TensorSource,
        prefix: &'static str,
        embed: &str,
        head: &'static str,
    ) -> Self {
        let prefix = if tensors.info(embed).is_some() { "" } else { prefix };
        Names { prefix, embed: format!("{prefix}{embed}"), head }
    }

    /// Returns the full name of a tensor of the base model.
    pub(super) fn base(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Checks that the unembedding is as `tied` says: the embedding, or a tensor of its own.
    ///
    /// A file may hold a tied unembedding as well, but then it must be the embedding: which of the two
    /// an author meant otherwise cannot be known.
    pub(super) fn check_head(&self, tensors: &dyn TensorSource, tied: bool) -> Result<()> {
        let has_head = tensors.info(self.head).is_some();
        if !tied {
            return if has_head {
                Ok(())
            } else {
                Err(Error::MissingTensor { name: self.head.to_owned() })
            };
        }
        if !has_head {
            return Ok(());
        }
        let (head, embed) = (tensors.tensor(self.head)?, tensors.tensor(&self.embed)?);
        let is_comparable = head.kind() == embed.kind() && head.size() == embed.size();
        if is_same_memory(&head, &embed) || (is_comparable && head.f_equal(&embed)?) {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "`tie_word_embeddings` is true in config.json, but tensor `{}` differs from `{}`",
            self.head, self.embed
        )))
    }

    /// Takes embedding `[d_vocab, d_model]` and unembedding `[d_model, d_vocab]`; the latter is a view
    /// of the former where the file holds no other.
    pub(super) fn take_embeddings(
        &self,
        source: &mut StateDict<'_>,
        config: &Config,
    ) -> Result<(Tensor, Tensor)> {
        let embed = source.take(&self.embed, &[config.d_vocab, config.d_model])?;
        let is_embed = !source.contains(self.head) || source.read_alias(self.head, &self.embed)?;
        let head = if is_embed {
            embed.shallow_clone()
        } else {
            source.take(self.head, &[config.d_vocab_out, config.d_model])?
        };
        Ok((embed, head.transpose(0, 1)))
    }
}

/// Checks that tensors are there exactly when the configuration says so; converters take optional
/// tensors by presence.
pub(super) fn check_presence(
    tensors: &dyn TensorSource,
    names: impl IntoIterator<Item = String>,
    expected: bool,
) -> Result<()> {
    for name in names {
        match (tensors.info(&name).is_some(), expected) {
            (true, false) => return Err(Error::UnexpectedTensor { name }),
            (false, true) => return Err(Error::MissingTensor { name }),
            (true, true) | (false, false) => {}
        }
    }
    Ok(())
}

/// Whether a name is `{…}{number}.{suffix}` with one of the suffixes: a buffer of a layer.
pub(super) fn is_layer_buffer(name: &str, suffixes: &[&str]) -> bool {
    suffixes.iter().any(|suffix| {
        let layer = name.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.'));
        let number = layer.and_then(|rest| rest.rsplit('.').next());
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tch::{Device, Kind};

    use super::*;
    use crate::formats::TensorSet;

    fn rotary_of(config: &Value, partial: Option<f64>) -> Result<Positional> {
        rotary(&settings(config)?, 32, partial)
    }

    #[test]
    fn both_spellings_of_rotary_positions_are_read() {
        let plain = |dim, base| Positional::Rotary { dim, base, scaling: RotaryScaling::None };
        for (config, partial, expected) in [
            (json!({}), None, plain(32, 1e4)),
            (json!({"rotary_pct": 0.25, "rotary_emb_base": 500}), Some(1.0), plain(8, 500.0)),
            (json!({"rope_theta": 5e5, "rope_scaling": null}), None, plain(32, 5e5)),
            (
                json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1.0}),
                None,
                plain(32, 5e5),
            ),
            (
                json!({"rope_parameters": {"rope_theta": 2e4, "partial_rotary_factor": 0.5}}),
                Some(0.25),
                plain(16, 2e4),
            ),
            (json!({"rotary_pct": null}), Some(0.25), plain(8, 1e4)),
        ] {
            assert_eq!(rotary_of(&config, partial).unwrap(), expected, "{config}");
        }
    }

    #[test]
    fn scaled_rotary_positions_are_read_and_unknown_ones_refused() {
        let linear = RotaryScaling::Linear { factor: 4.0 };
        let llama3 = RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_n_ctx: 64,
        };
        let long = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        for (config, expected) in [
            (json!({"rope_scaling": {"type": "linear", "factor": 4.0}}), linear),
            (json!({"rope_parameters": {"rope_type": "linear", "factor": 4}}), linear),
            (json!({"rope_scaling": long}), llama3),
            (json!({"rope_parameters": long, "rope_theta": 3.0}), llama3),
        ] {
            let Positional::Rotary { scaling, .. } = rotary_of(&config, None).unwrap() else {
                panic!("not rotary")
            };
            assert_eq!(scaling, expected, "{config}");
        }
        for (config, message) in [
            (
                json!({"rope_scaling": {"rope_type": "yarn"}}),
                "`rope_scaling.rope_type` is \"yarn\"",
            ),
            (json!({"rope_scaling": {"type": "dynamic", "factor": 2}}), "`rope_scaling.type`"),
            (json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor` is missing"),
            (json!({"rope_parameters": {"full_attention": {}}}), "full_attention"),
            (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5"),
            (json!({"num_local_experts": 8}), "`num_local_experts` is 8"),
            (json!({"quantization_config": {"bits": 4}}), "`quantization_config`"),
        ] {
            let error = rotary_of(&config, None).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn buffers_of_layers_are_told_from_parameters() {
        let suffixes = ["attn.bias", "attn.masked_bias"];
        for name in ["transformer.h.11.attn.bias", "h.0.attn.masked_bias"] {
            assert!(is_layer_buffer(name, &suffixes), "{name}");
        }
        for name in
            ["h.0.attn.c_attn.bias", "h.attn.bias", "attn.bias", "h.0.xattn.bias", "h..attn.bias"]
        {
            assert!(!is_layer_buffer(name, &suffixes), "{name}");
        }
    }

    #[test]
    fn unembeddings_that_contradict_the_configuration_are_refused() {
        let names =
            |tensors: &TensorSet| Names::of(tensors, "model.", "embed.weight", "head.weight");
        let values = |value: f64| Tensor::full([3, 2], value, (Kind::Float, Device::Cpu));
        let mut tensors = TensorSet::new();
        tensors.insert("model.embed.weight", values(1.0));
        names(&tensors).check_head(&tensors, true).unwrap();
        let error = names(&tensors).check_head(&tensors, false).unwrap_err().to_string();
        assert_eq!(error, "tensor `head.weight` is missing");
        tensors.insert("head.weight", values(1.0));
        names(&tensors).check_head(&tensors, true).unwrap();
        tensors.insert("head.weight", values(2.0));
        names(&tensors).check_head(&tensors, false).unwrap();
        let error = names(&tensors).check_head(&tensors, true).unwrap_err().to_string();
        assert!(error.contains("`head.weight` differs from `model.embed.weight`"), "{error}");
    }
}
