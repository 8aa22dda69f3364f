//! Heads by layer and index, as parameters name them (`L9H6`) and metrics list them.
//!
//! Main type: [`Head`]. A value per head is a [`Value`] with axes layer and head.

use std::str::FromStr;

use sweep_lens::{Config, Tensor};

use crate::{
    card::Axis,
    error::{Error, Result},
    interventions::{Unit, UnitKind},
    value::Value,
};

/// Axes of a value per head.
pub(crate) const HEADS: &[Axis] = &[Axis::Layer, Axis::Head];

/// One attention head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Head {
    /// Block.
    pub layer: u32,
    /// Index within the block.
    pub head: i64,
}

impl Head {
    /// Every head of a model, layer by layer.
    pub(crate) fn all(config: &Config) -> Vec<Self> {
        let layers = 0..config.n_layers as u32;
        layers.flat_map(|layer| (0..config.n_heads).map(move |head| Self { layer, head })).collect()
    }

    /// Heads that a parameter names.
    pub(crate) fn parse(param: &str, names: &[String], config: &Config) -> Result<Vec<Self>> {
        let head = |name: &String| {
            let unit = Unit::from_str(name).ok().filter(|unit| unit.kind == UnitKind::Head);
            let unit = unit.ok_or_else(|| {
                Error::params(param, format!("expected heads such as L9H6, found `{name}`"))
            })?;
            if unit.layer >= config.n_layers || unit.index >= config.n_heads {
                let (layers, heads) = (config.n_layers, config.n_heads);
                let problem = format!("`{name}` is none of {heads} heads in {layers} layers");
                return Err(Error::params(param, problem));
            }
            Ok(Self { layer: unit.layer as u32, head: unit.index })
        };
        names.iter().map(head).collect()
    }

    /// Place in a row-major `[layer, head]` array.
    pub(crate) fn index(self, config: &Config) -> usize {
        self.layer as usize * config.n_heads as usize + self.head as usize
    }

    /// The key and value head that it reads with.
    pub(crate) fn key_value(self, config: &Config) -> i64 {
        self.head * config.n_key_value_heads / config.n_heads
    }
}

/// A value per head from a flat list.
pub(crate) fn per_head(config: &Config, values: Vec<f64>) -> Value {
    let shape = vec![config.n_layers as usize, config.n_heads as usize];
    Value::array(shape, values, vec![None, None])
}

/// A flag per head.
pub(crate) fn flags(config: &Config, heads: &[Head]) -> Value {
    let is_in = |head: &Head| f64::from(u8::from(heads.contains(head)));
    per_head(config, Head::all(config).iter().map(is_in).collect())
}

/// Flat entries of a tensor, row-major.
pub(crate) fn flat(tensor: &Tensor) -> Vec<f64> {
    crate::value::to_vec(tensor)
}
