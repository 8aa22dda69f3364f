//! GPT-Neo: TinyStories and EleutherAI's first models.
//!
//! Like GPT-2 in outline, but projections are `Linear` weights `[d_out, d_in]` without bias, scores are
//! not divided by `sqrt(d_head)`, and `attention_types` says which layers see a window of
//! `window_size` positions only. Source: `modeling_gpt_neo.py` of transformers 5.

use serde_json::Value;

use crate::{
    config::{ActFn, AttnType, Config, Normalization, Positional},
    error::{Error, Result},
    families::{
        Family, StateDict,
        hugging_face::{self, Names, is_layer_buffer},
        settings::Settings,
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct GptNeo;

impl Family for GptNeo {
    fn name(&self) -> &'static str {
        "gpt_neo"
    }

    fn recognises(&self, config: &Value) -> bool {
        hugging_face::is_one_of(config, &["gpt_neo"], &["GPTNeoForCausalLM", "GPTNeoModel"])
    }

    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config> {
        let settings = hugging_face::settings(config)?;
        let (d_model, n_heads, d_head) =
            hugging_face::d_head(&settings, "hidden_size", "num_heads")?;
        let (d_vocab, n_ctx) =
            (settings.size("vocab_size")?, settings.size("max_position_embeddings")?);
        let n_layers = settings.layers("num_layers")?;
        let window_size = settings.size_or_none("window_size")?.unwrap_or(256);
        let attn_types = attn_types(&settings, n_layers)?;
        // A window as long as the context hides nothing.
        let has_windows = attn_types.contains(&AttnType::Local) && window_size < n_ctx;
        names(tensors).check_head(tensors, settings.flag_or("tie_word_embeddings", true)?)?;
        Ok(Config {
            d_head,
            d_mlp: settings.size_or_none("intermediate_size")?.unwrap_or(4 * d_model),
            act_fn: settings.act_fn("activation_function", ActFn::GeluNew)?,
            normalization: Normalization::Ln,
            final_normalization: Normalization::Ln,
            eps: settings.number_or("layer_norm_epsilon", 1e-5)?,
            positional: Positional::Learned,
            attn_scale: 1.0,
            attn_types: if has_windows { attn_types } else { Vec::new() },
            window_size: has_windows.then_some(window_size),
            default_prepend_bos: true,
            ..Config::toy(n_layers, d_model, n_heads, d_vocab, n_ctx)
        })
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        let Config { d_model, n_heads, d_head, d_mlp, .. } = *config;
        let names = names(source.source());
        let heads = [n_heads, d_head, d_model];
        let mut weights = Weights::new();
        let (embed, unembed) = names.take_embeddings(source, config)?;
        weights.insert("embed.W_E", embed);
        weights.insert("unembed.W_U", unembed);
        let positions = source.take(&names.base("wpe.weight"), &[config.n_ctx, d_model])?;
        weights.insert("pos_embed.W_pos", positions);
        for layer in 0..config.n_layers {
            let from = |name: &str| names.base(&format!("h.{layer}.{name}"));
            let to = |name: &str| format!("blocks.{layer}.{name}");
            for (letter, theirs) in [("Q", "q_proj"), ("K", "k_proj"), ("V", "v_proj")] {
                let name = from(&format!("attn.attention.{theirs}.weight"));
                weights
                    .insert(to(&format!("attn.W_{letter}")), source.take_heads_in(&name, heads)?);
            }
            let w_o = source.take_heads_out(&from("attn.attention.out_proj.weight"), heads)?;
            weights.insert(to("attn.W_O"), w_o);
            let w_in = source.take_linear(&from("mlp.c_fc.weight"), d_model, d_mlp)?;
            weights.insert(to("mlp.W_in"), w_in);
            let w_out = source.take_linear(&from("mlp.c_proj.weight"), d_mlp, d_model)?;
            weights.insert(to("mlp.W_out"), w_out);
            for (ours, theirs, width) in [
                ("ln1.w", "ln_1.weight", d_model),
                ("ln1.b", "ln_1.bias", d_model),
                ("attn.b_O", "attn.attention.out_proj.bias", d_model),
                ("ln2.w", "ln_2.weight", d_model),
                ("ln2.b", "ln_2.bias", d_model),
                ("mlp.b_in", "mlp.c_fc.bias", d_mlp),
                ("mlp.b_out", "mlp.c_proj.bias", d_model),
            ] {
                weights.insert(to(ours), source.take(&from(theirs), &[width])?);
            }
        }
        weights.insert("ln_final.w", source.take(&names.base("ln_f.weight"), &[d_model])?);
        weights.insert("ln_final.b", source.take(&names.base("ln_f.bias"), &[d_model])?);
        Ok(weights)
    }

    fn ignores(&self, tensor: &str) -> bool {
        is_layer_buffer(tensor, &["attn.attention.bias", "attn.attention.masked_bias"])
    }
}

fn names(tensors: &dyn TensorSource) -> Names {
    Names::of(tensors, "transformer.", "wte.weight", "lm_head.weight")
}

/// Reads the kind of each layer: `attention_layers` lists them, `attention_types` lists patterns and how
/// often each repeats, `[[["global", "local"], 4]]`.
fn attn_types(settings: &Settings<'_>, n_layers: i64) -> Result<Vec<AttnType>> {
    let (key, layers) = match settings.list("attention_types")? {
        Some(patterns) => ("attention_types", expanded(settings, patterns, n_layers)?),
        None => match settings.list("attention_layers")? {
            Some(layers) => ("attention_layers", layers.iter().collect()),
            None => return Err(settings.malformed("attention_types", "a list")),
        },
    };
    if layers.len() as i64 != n_layers {
        return Err(settings.malformed(key, &format!("the kinds of {n_layers} layers")));
    }
    layers
        .into_iter()
        .map(|kind| match kind.as_str() {
            Some("global") => Ok(AttnType::Global),
            Some("local") => Ok(AttnType::Local),
            _ => Err(Error::Unsupported(format!("attention layer of kind {kind} in config.json"))),
        })
        .collect()
}

fn expanded<'a>(
    settings: &Settings<'_>,
    patterns: &'a [Value],
    n_layers: i64,
) -> Result<Vec<&'a Value>> {
    let mut layers = Vec::new();
    for pattern in patterns {
        let parts = pattern.get(0).and_then(Value::as_array).zip(pattern.get(1));
        let parts = parts.and_then(|(kinds, times)| Some((kinds, times.as_i64()?)));
        let Some((kinds, times)) = parts else {
            return Err(settings.malformed("attention_types", "[[[kind, …], repeats], …]"));
        };
        // One layer too many suffices to be refused, however often the file says.
        for _ in 0..times.min(n_layers + 1) {
            layers.extend(kinds);
            if layers.len() as i64 > n_layers {
                return Ok(layers);
            }
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::formats::TensorSet;

    fn config(changes: &Value) -> Result<Config> {
        let mut config = json!({
            "model_type": "gpt_neo", "hidden_size": 64, "num_heads": 16, "num_layers": 4, "vocab_size": 9,
            "max_position_embeddings": 2048, "attention_types": [[["global", "local"], 2]],
            "window_size": 256, "intermediate_size": null, "activation_function": "gelu_new",
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        GptNeo.config(&config, &TensorSet::new())
    }

    #[test]
    fn layers_alternate_and_scores_are_not_scaled() {
        use AttnType::{Global, Local};
        let stories = config(&json!({})).unwrap();
        assert_eq!(stories.attn_types, [Global, Local, Global, Local]);
        assert_eq!((stories.attn_scale, stories.d_head, stories.d_mlp), (1.0, 4, 256));
        assert_eq!((stories.window(1), stories.window(2)), (Some(256), None));
        let listed = json!({
            "attention_types": null, "attention_layers": ["local", "global", "global", "local"],
        });
        assert_eq!(config(&listed).unwrap().attn_types, [Local, Global, Global, Local]);
        let wide = config(&json!({"window_size": 2048})).unwrap();
        assert_eq!((wide.attn_types.len(), wide.window_size), (0, None));
    }

    #[test]
    fn odd_lists_of_layers_are_refused() {
        for (changes, message) in [
            (json!({"attention_types": [[["global", "local"], 3]]}), "the kinds of 4 layers"),
            (
                json!({"attention_types": [[["global"], 1_000_000_000_000_i64]]}),
                "the kinds of 4 layers",
            ),
            (json!({"attention_types": [[["sparse"], 4]]}), "kind \"sparse\""),
            (json!({"attention_types": [["global", 4]]}), "repeats"),
            (json!({"attention_types": null}), "`attention_types` is null"),
            (json!({"num_heads": 7}), "a divisor of `hidden_size` 64"),
            (json!({"tie_word_embeddings": false}), "`lm_head.weight` is missing"),
        ] {
            let error = config(&changes).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
