//! OLMo (the first one, in the Hugging Face format).
//!
//! Llama's layout with layer norms that have no parameters, and queries, keys and values that are
//! clipped to `clip_qkv`. Source: `modeling_olmo.py` of transformers 5, which fixes the norms' epsilon.

use serde_json::Value;

use crate::{
    config::{Config, Normalization},
    error::Result,
    families::{Family, StateDict, hugging_face, llama},
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct Olmo;

impl Family for Olmo {
    fn name(&self) -> &'static str {
        "olmo"
    }

    fn recognises(&self, config: &Value) -> bool {
        hugging_face::is_one_of(config, &["olmo"], &["OlmoForCausalLM", "OlmoModel"])
    }

    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config> {
        let settings = hugging_face::settings(config)?;
        Ok(Config {
            normalization: Normalization::LnPre,
            final_normalization: Normalization::LnPre,
            eps: 1e-5,
            clip_qkv: settings.number_or_none("clip_qkv")?,
            // Trained without a token that begins sequences.
            default_prepend_bos: false,
            ..llama::shared_config(&settings, tensors)?
        })
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        llama::convert(source, config, None)
    }

    fn ignores(&self, tensor: &str) -> bool {
        llama::is_buffer(tensor)
    }
}
