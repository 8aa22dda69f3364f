//! Families of published models: how their configurations and tensors become ours.
//!
//! A [`Family`] is a unit struct in a file of its own, listed in [`FAMILIES`]; [`load`] is what callers
//! use. A converter reads tensors through [`StateDict`], which checks every shape, moves each tensor
//! once to the wanted element type and device, and fails when one is left unread: a feature that the
//! converter does not know cannot be dropped silently. Settings are read through `settings::Settings`,
//! which refuses values that the transformer does not implement.

mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod hugging_face;
mod llama;
mod mingpt;
mod native;
mod neel;
mod neel_solu_old;
mod olmo;
mod olmo2;
mod settings;
mod state_dict;

use serde_json::Value;
use tch::{Device, Kind};

use crate::{
    config::Config,
    error::{Error, Result},
    formats::TensorSource,
    weights::Weights,
};

pub use state_dict::StateDict;

/// A family of models that share tensor names and an architecture.
pub trait Family: Send + Sync + 'static {
    /// Name, as `family:` of a sweep file takes it; never changed.
    fn name(&self) -> &'static str;

    /// Whether this `config.json` is of this family (`model_type`, `architectures` or TransformerLens'
    /// keys).
    fn recognises(&self, config: &Value) -> bool;

    /// Translates a `config.json`.
    ///
    /// # Errors
    /// A missing or malformed setting, or one that the transformer does not implement; it is named with
    /// its value.
    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config>;

    /// Translates the tensors; `config` is what [`Family::config`] returned.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than the configuration asks for.
    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights>;

    /// Whether a tensor that the converter leaves unread is a buffer without information (a causal mask,
    /// rotary frequencies).
    fn ignores(&self, tensor: &str) -> bool {
        let _ = tensor;
        false
    }
}

/// Every family. The first that recognises a configuration takes it.
pub const FAMILIES: &[&dyn Family] = &[
    &gpt2::Gpt2,
    &gpt_neo::GptNeo,
    &gpt_neox::GptNeoX,
    &llama::Llama,
    &mingpt::MinGpt,
    &native::Native,
    &neel::Neel,
    &neel_solu_old::NeelSoluOld,
    &olmo::Olmo,
    &olmo2::Olmo2,
];

/// Returns the family of this name.
///
/// # Errors
/// [`Error::Unsupported`] naming all families.
pub fn named(name: &str) -> Result<&'static dyn Family> {
    let found = FAMILIES.iter().find(|family| family.name() == name);
    found.copied().ok_or_else(|| {
        Error::Unsupported(format!("model family `{name}`, known are {}", known_names()))
    })
}

/// Returns the family that a `config.json` is of.
///
/// # Errors
/// [`Error::Unsupported`] naming what the configuration calls itself, and all families.
pub fn recognise(config: &Value) -> Result<&'static dyn Family> {
    let found = FAMILIES.iter().find(|family| family.recognises(config));
    found.copied().ok_or_else(|| {
        let own = ["model_type", "architectures", "architecture"]
            .into_iter()
            .find_map(|key| config.get(key).map(|value| format!("`{key}` {value}")));
        let own = own.unwrap_or_else(|| "no `model_type`".to_owned());
        Error::Unsupported(format!(
            "a model whose configuration has {own}, known families are {}",
            known_names()
        ))
    })
}

/// Reads a model: `family` names its family when its configuration does not.
///
/// Every tensor is copied once, into the wanted element type on the wanted device; the result shares
/// nothing with the source. Weights are views of what was copied and need not be contiguous; a tied
/// unembedding shares the embedding's memory ([`Weights::copy`] separates them).
///
/// # Errors
/// What [`Family::config`] and [`Family::convert`] refuse; [`Error::UnexpectedTensor`] when a tensor was
/// left unread; [`Error::NonFinite`]; [`Error::OutOfMemory`].
pub fn load(
    config_json: &Value,
    family: Option<&str>,
    tensors: &dyn TensorSource,
    kind: Kind,
    device: Device,
) -> Result<(Config, Weights)> {
    match load_as_is(config_json, family, tensors, kind, device)? {
        (config, weights, None) => Ok((config, weights)),
        (_, _, Some(error)) => Err(error),
    }
}

/// [`load`] of weights that may hold NaN or infinities: [`Error::NonFinite`], which names the first such tensor, comes with them.
///
/// # Errors
/// As [`load`] otherwise.
pub fn load_as_is(
    config_json: &Value,
    family: Option<&str>,
    tensors: &dyn TensorSource,
    kind: Kind,
    device: Device,
) -> Result<(Config, Weights, Option<Error>)> {
    let family = match family {
        Some(name) => named(name)?,
        None => recognise(config_json)?,
    };
    let config = family.config(config_json, tensors)?;
    config.validate()?;
    let mut source = StateDict::new(tensors, kind, device);
    let weights = tch::no_grad(|| family.convert(&mut source, &config))?;
    let defect = source.finish(|name| family.ignores(name))?;
    Ok((config, weights, defect))
}

fn known_names() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.name()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for (index, family) in FAMILIES.iter().enumerate() {
            let name = family.name();
            assert!(FAMILIES[..index].iter().all(|other| other.name() != name), "{name}");
            assert_eq!(named(name).unwrap().name(), name);
        }
        let error = named("bert").err().unwrap().to_string();
        assert!(error.contains("`bert`") && error.contains("gpt_neox"), "{error}");
    }

    #[test]
    fn configurations_find_their_family_and_strangers_are_named() {
        for (config, expected) in [
            (json!({"model_type": "gpt2"}), "gpt2"),
            (json!({"architectures": ["GPT2LMHeadModel"]}), "gpt2"),
            (json!({"model_type": "gpt_neo"}), "gpt_neo"),
            (
                json!({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}),
                "gpt_neox",
            ),
            (json!({"model_type": "llama"}), "llama"),
            (json!({"architectures": ["MistralForCausalLM"]}), "llama"),
            (json!({"model_type": "olmo"}), "olmo"),
            (json!({"model_type": "olmo2"}), "olmo2"),
            (json!({"d_model": 8, "n_layers": 1, "d_head": 4, "act_fn": "gelu"}), "neel"),
            (
                json!({"d_model": 8, "n_layers": 1, "d_head": 4, "architecture": "neel-solu-old"}),
                "neel-solu-old",
            ),
            (json!({"d_model": 8, "n_layers": 1, "d_head": 4, "architecture": "mingpt"}), "mingpt"),
            (serde_json::to_value(Config::toy(1, 8, 2, 5, 4)).unwrap(), "native"),
        ] {
            assert_eq!(recognise(&config).unwrap().name(), expected, "{config}");
            let takers = FAMILIES.iter().filter(|family| family.recognises(&config));
            assert_eq!(takers.count(), 1, "{config}");
        }
        for (config, message) in [
            (json!({"model_type": "mixtral"}), "`model_type` \"mixtral\""),
            (json!({"architecture": "rwkv", "d_model": 8}), "`architecture` \"rwkv\""),
            (json!({}), "no `model_type`"),
            (json!([1]), "no `model_type`"),
            (json!({"model_type": 3}), "`model_type` 3"),
        ] {
            let error = recognise(&config).err().unwrap().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
