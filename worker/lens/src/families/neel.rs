//! Files of TransformerLens itself, which Neel Nanda's models are.
//!
//! Names are canonical already; masks are ignored, `unembed.b_U` may be absent, and grouped keys and values
//! have an underscore (`_W_K`). `config.json` has TransformerLens' keys. Files in the layout of the
//! first runs are read by [`super::neel_solu_old`], also from here where the tensors show it.
//! Source: `loading_from_pretrained.py` of TransformerLens 3.9.

use serde_json::Value;

use crate::{
    config::{ActFn, AttnType, Config, Normalization, Positional, RotaryScaling},
    error::{Error, Result},
    families::{
        Family, StateDict, neel_solu_old,
        settings::{Neutral, Settings},
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct Neel;

impl Family for Neel {
    fn name(&self) -> &'static str {
        "neel"
    }

    fn recognises(&self, config: &Value) -> bool {
        let architecture = config.get("architecture").filter(|value| !value.is_null());
        has_keys(config) && architecture.is_none_or(|own| own == self.name())
    }

    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config> {
        let settings = Settings::new(config)?;
        let config = read_config(&settings)?;
        if settings.get("architecture").is_none()
            && !neel_solu_old::is_evident(tensors, &config)
            && neel_solu_old::is_possible(&config)
        {
            return Err(Error::Unsupported(
                "`pos_embed.W_pos` is square and its orientation unknown: the first SoLU models (`*_old`) \
                 have it transposed; name the family `neel-solu-old`, or set `architecture` to `neel` in \
                 config.json"
                    .to_owned(),
            ));
        }
        Ok(config)
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        if neel_solu_old::is_evident(source.source(), config) {
            return neel_solu_old::convert(source, config);
        }
        let mut weights = Weights::new();
        for parameter in config.parameters() {
            let name = stored_name(source, &parameter.name);
            // Only this one may be absent: TransformerLens writes all others, zero or not.
            let tensor = if parameter.name == "unembed.b_U" || is_later(&parameter.name) {
                source.take_optional(&name, &parameter.shape)?
            } else {
                Some(source.take(&name, &parameter.shape)?)
            };
            if let Some(tensor) = tensor {
                weights.insert(parameter.name, tensor);
            }
        }
        Ok(weights)
    }

    fn ignores(&self, tensor: &str) -> bool {
        is_buffer(tensor)
    }
}

/// Whether a configuration has TransformerLens' keys, and is neither Hugging Face's nor our own.
pub(super) fn has_keys(config: &Value) -> bool {
    let is_there = |key: &str| config.get(key).is_some_and(|value| !value.is_null());
    ["d_model", "n_layers", "d_head"].into_iter().all(is_there)
        && !is_there("model_type")
        && !is_there("final_normalization")
}

/// Whether a tensor is a causal mask, what masked scores are set to, or a table of rotations.
pub(super) fn is_buffer(tensor: &str) -> bool {
    [".mask", ".IGNORE", ".rotary_sin", ".rotary_cos"]
        .into_iter()
        .any(|suffix| tensor.ends_with(suffix))
}

/// Reads TransformerLens' keys; training settings beside them mean nothing here.
pub(super) fn read_config(settings: &Settings<'_>) -> Result<Config> {
    settings.refuse(&[
        ("attn_scores_soft_cap", Neutral::Number(-1.0)),
        ("clip_qkv", Neutral::Absent),
        ("num_experts", Neutral::Absent),
        ("output_logits_soft_cap", Neutral::Number(-1.0)),
        ("post_embedding_ln", Neutral::False),
        ("relative_attention_num_buckets", Neutral::Absent),
        ("rmsnorm_uses_offset", Neutral::False),
        ("rotary_adjacent_pairs", Neutral::False),
        ("use_NTK_by_parts_rope", Neutral::False),
        ("use_normalization_before_and_after", Neutral::False),
        ("use_qk_norm", Neutral::False),
    ])?;
    if !matches!(settings.text("attention_dir")?, None | Some("causal")) {
        return Err(settings.unsupported("attention_dir"));
    }
    let n_layers = settings.layers("n_layers")?;
    let (d_model, d_head) = (settings.size("d_model")?, settings.size("d_head")?);
    let (d_vocab, n_ctx) = (settings.size("d_vocab")?, settings.size("n_ctx")?);
    let n_heads = settings.size("n_heads")?;
    let attn_only = settings.flag_or("attn_only", false)?;
    let normalization = normalization(settings)?;
    let final_normalization = match normalization {
        Normalization::Ln if settings.flag_or("final_rms", false)? => Normalization::Rms,
        Normalization::LnPre if settings.flag_or("final_rms", false)? => Normalization::RmsPre,
        other => other,
    };
    let attn_types = attn_types(settings, n_layers)?;
    let scale =
        if settings.flag_or("use_attn_scale", true)? { (d_head as f64).sqrt() } else { 1.0 };
    Ok(Config {
        n_key_value_heads: settings.size_or_none("n_key_value_heads")?.unwrap_or(n_heads),
        d_head,
        d_mlp: match settings.size_or_none("d_mlp")? {
            _ if attn_only => 0,
            Some(d_mlp) => d_mlp,
            None => 4 * d_model,
        },
        d_vocab_out: output_vocabulary(settings)?.unwrap_or(d_vocab),
        act_fn: settings.act_fn("act_fn", ActFn::Gelu)?,
        gated_mlp: settings.flag_or("gated_mlp", false)?,
        attn_only,
        parallel_attn_mlp: settings.flag_or("parallel_attn_mlp", false)?,
        normalization,
        final_normalization,
        eps: settings.number_or("eps", 1e-5)?,
        positional: positional(settings, d_head)?,
        // -1 is TransformerLens' word for "the usual one".
        attn_scale: settings.number_or_none("attn_scale")?.filter(|s| *s > 0.0).unwrap_or(scale),
        scale_attn_by_inverse_layer_idx: settings
            .flag_or("scale_attn_by_inverse_layer_idx", false)?,
        window_size: if attn_types.is_empty() {
            None
        } else {
            settings.size_or_none("window_size")?
        },
        attn_types,
        default_prepend_bos: settings.flag_or("default_prepend_bos", true)?,
        ..Config::toy(n_layers, d_model, n_heads, d_vocab, n_ctx)
    })
}

/// The output vocabulary, where -1 is the input vocabulary.
fn output_vocabulary(settings: &Settings<'_>) -> Result<Option<i64>> {
    if settings.get("d_vocab_out").is_some_and(|value| value == -1) {
        return Ok(None);
    }
    settings.size_or_none("d_vocab_out")
}

fn normalization(settings: &Settings<'_>) -> Result<Normalization> {
    let key = if settings.has("normalization") { "normalization" } else { "normalization_type" };
    if !settings.has(key) {
        return Err(settings.malformed(key, "LN, LNPre, RMS, RMSPre or null"));
    }
    match settings.text(key)? {
        None => Ok(Normalization::None),
        Some("LN") => Ok(Normalization::Ln),
        Some("LNPre") => Ok(Normalization::LnPre),
        Some("RMS") => Ok(Normalization::Rms),
        Some("RMSPre") => Ok(Normalization::RmsPre),
        Some(_) => Err(settings.unsupported(key)),
    }
}

fn positional(settings: &Settings<'_>, d_head: i64) -> Result<Positional> {
    if settings.flag_or("shortformer_pos", false)? {
        return Ok(Positional::Shortformer);
    }
    match settings.text("positional_embedding_type")? {
        None | Some("standard") => Ok(Positional::Learned),
        Some("shortformer") => Ok(Positional::Shortformer),
        Some("rotary") => Ok(Positional::Rotary {
            dim: settings.size_or_none("rotary_dim")?.unwrap_or(d_head),
            base: settings.number_or("rotary_base", 10_000.0)?,
            scaling: RotaryScaling::None,
        }),
        Some(_) => Err(settings.unsupported("positional_embedding_type")),
    }
}

fn attn_types(settings: &Settings<'_>, n_layers: i64) -> Result<Vec<AttnType>> {
    if !settings.flag_or("use_local_attn", false)? {
        return Ok(Vec::new());
    }
    let kinds = settings.list("attn_types")?.unwrap_or_default();
    if kinds.len() as i64 != n_layers {
        return Err(settings.malformed("attn_types", &format!("the kinds of {n_layers} layers")));
    }
    kinds
        .iter()
        .map(|kind| match kind.as_str() {
            Some("global") => Ok(AttnType::Global),
            Some("local") => Ok(AttnType::Local),
            _ => Err(settings.unsupported("attn_types")),
        })
        .collect()
}

/// The name under which a parameter is stored: TransformerLens puts an underscore in front of grouped
/// keys and values.
fn stored_name(source: &StateDict<'_>, name: &str) -> String {
    match name.rsplit_once('.') {
        Some((place, last)) if !source.contains(name) => {
            let grouped = format!("{place}._{last}");
            if source.contains(&grouped) { grouped } else { name.to_owned() }
        }
        _ => name.to_owned(),
    }
}

/// Whether a parameter is one that TransformerLens does not have: it adds `b_in` behind the gate.
fn is_later(name: &str) -> bool {
    name.ends_with(".mlp.b_gate") || name.ends_with(".mlp.b_pre_linear")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(changes: &Value) -> Result<Config> {
        let mut config = json!({
            "d_model": 48, "n_layers": 2, "d_mlp": 96, "d_head": 12, "n_heads": 4, "n_ctx": 32,
            "d_vocab": 101, "act_fn": "solu_ln", "attn_only": false, "normalization": "LN",
            "tokenizer_name": "x", "lr": 1e-3,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = read_config(&Settings::new(&config)?)?;
        config.validate()?;
        Ok(config)
    }

    #[test]
    fn norms_and_positions_are_read() {
        use Normalization::{Ln, LnPre, None, Rms, RmsPre};
        for (changes, blocks, last) in [
            (json!({}), Ln, Ln),
            (json!({"final_rms": true}), Ln, Rms),
            (json!({"normalization": "LNPre", "final_rms": true}), LnPre, RmsPre),
            (json!({"normalization": null}), None, None),
            (json!({"normalization": "RMS"}), Rms, Rms),
        ] {
            let config = config(&changes).unwrap();
            assert_eq!((config.normalization, config.final_normalization), (blocks, last));
        }
        let attn_only = config(&json!({"attn_only": true, "shortformer_pos": true})).unwrap();
        assert_eq!((attn_only.d_mlp, attn_only.positional), (0, Positional::Shortformer));
        let other = json!({
            "positional_embedding_type": "rotary", "rotary_dim": 6, "d_vocab_out": -1, "attn_scale": -1,
            "use_local_attn": true, "attn_types": ["global", "local"], "window_size": 5,
        });
        let other = config(&other).unwrap();
        assert!(matches!(other.positional, Positional::Rotary { dim: 6, .. }));
        assert_eq!((other.d_vocab_out, other.attn_scale), (101, 12f64.sqrt()));
        assert_eq!((other.window(0), other.window(1)), (Option::None, Some(5)));
    }

    #[test]
    fn what_is_not_implemented_is_refused() {
        for (changes, message) in [
            (json!({"act_fn": "solu"}), "`act_fn` is \"solu\""),
            (json!({"normalization": "BN"}), "`normalization` is \"BN\""),
            (json!({"positional_embedding_type": "alibi"}), "\"alibi\""),
            (json!({"attention_dir": "bidirectional"}), "\"bidirectional\""),
            (json!({"num_experts": 8}), "`num_experts` is 8"),
            (json!({"output_logits_soft_cap": 30.0}), "`output_logits_soft_cap` is 30"),
            (json!({"rotary_adjacent_pairs": true}), "`rotary_adjacent_pairs` is true"),
            (json!({"d_head": null}), "`d_head` is missing"),
        ] {
            let error = config(&changes).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let bare = json!({"d_model": 8, "n_layers": 1, "d_head": 4, "n_heads": 2, "d_vocab": 5, "n_ctx": 3});
        let error = read_config(&Settings::new(&bare).unwrap()).unwrap_err().to_string();
        assert!(error.contains("`normalization_type` is absent"), "{error}");
    }
}
