//! Models that this project's recipes trained.
//!
//! Their configuration is [`Config`] itself (the entry `config` of a checkpoint's metadata, see
//! [`crate::checkpoint`]) and their tensors have canonical names already.

use serde_json::Value;

use crate::{
    config::Config,
    error::{Error, Result},
    families::{Family, StateDict},
    formats::TensorSource,
    weights::Weights,
};

/// The family.
pub(super) struct Native;

impl Family for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn recognises(&self, config: &Value) -> bool {
        self.config(config, &crate::formats::TensorSet::new()).is_ok()
    }

    fn config(&self, config: &Value, _tensors: &dyn TensorSource) -> Result<Config> {
        serde_json::from_value(config.clone())
            .map_err(|error| Error::Config(format!("cannot be read: {error}")))
    }

    fn convert(&self, source: &mut StateDict<'_>, config: &Config) -> Result<Weights> {
        let mut weights = Weights::new();
        for parameter in config.parameters() {
            let tensor = if parameter.optional {
                source.take_optional(&parameter.name, &parameter.shape)?
            } else {
                Some(source.take(&parameter.name, &parameter.shape)?)
            };
            if let Some(tensor) = tensor {
                weights.insert(parameter.name, tensor);
            }
        }
        Ok(weights)
    }
}
