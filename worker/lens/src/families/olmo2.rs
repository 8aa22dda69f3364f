//! OLMo-2.
//!
//! Llama's layout with the norms behind attention and MLP instead of in front, and with norms of queries
//! and keys over all heads together. Source: `modeling_olmo2.py` of transformers 5; OLMo et al. 2025,
//! "2 OLMo 2 Furious", section 3.

use serde_json::Value;

use crate::{
    config::{Config, NormPosition, Normalization},
    error::Result,
    families::{
        Family, StateDict, hugging_face,
        llama::{self, Norms},
    },
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct Olmo2;

impl Family for Olmo2 {
    fn name(&self) -> &'static str {
        "olmo2"
    }

    fn recognises(&self, config: &Value) -> bool {
        hugging_face::is_one_of(config, &["olmo2"], &["Olmo2ForCausalLM", "Olmo2Model"])
    }

    fn config(&self, config: &Value, tensors: &dyn TensorSource) -> Result<Config> {
        let settings = hugging_face::settings(config)?;
        Ok(Config {
            normalization: Normalization::Rms,
            norm_position: NormPosition::Post,
            final_normalization: Normalization::Rms,
            eps: settings.number_or("rms_norm_eps", 1e-5)?,
            qk_norm: true,
            // Trained without a token that begins sequences.
            default_prepend_bos: false,
            ..llama::shared_config(&settings, tensors)?
        })
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        let norms = Norms { ln1: "post_attention_layernorm", ln2: "post_feedforward_layernorm" };
        llama::convert(source, config, Some(norms))
    }

    fn ignores(&self, tensor: &str) -> bool {
        llama::is_buffer(tensor)
    }
}
