//! Heads and neurons as places in the weights.
//!
//! Main type: [`Unit`]; it prints and parses as `L0H1` (head 1 of layer 0) and `L0N17` (neuron 17).
//! [`Unit::places`] lists the slices of tensors that belong to it alone.

use std::{fmt, str::FromStr};

use sweep_lens::{Architecture, Config, Tensor, Weights};

use crate::error::{Error, Result};

/// A head or a neuron.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Unit {
    pub(crate) kind: UnitKind,
    pub(crate) layer: i64,
    pub(crate) index: i64,
}

/// What a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// An attention head.
    Head,
    /// A neuron of an MLP or of a perceptron's hidden layer.
    Neuron,
}

/// One slice of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tensor: String,
    axis: i64,
    index: i64,
}

impl Place {
    /// The slice, as a view.
    pub(crate) fn of(&self, tensor: &Tensor) -> Tensor {
        tensor.select(self.axis, self.index)
    }
}

impl UnitKind {
    /// Units of this kind per layer.
    pub(crate) fn count(self, config: &Config) -> i64 {
        match self {
            Self::Head if config.architecture == Architecture::Mlp => 0,
            Self::Head => config.n_heads,
            Self::Neuron => config.d_mlp,
        }
    }

    /// All units of a layer.
    pub(crate) fn of_layer(self, config: &Config, layer: i64) -> Vec<Unit> {
        (0..self.count(config)).map(|index| Unit { kind: self, layer, index }).collect()
    }
}

impl Unit {
    /// Fails unless a model of this architecture has the unit.
    pub(crate) fn check(self, config: &Config) -> Result<()> {
        if self.kind == UnitKind::Head && config.n_key_value_heads != config.n_heads {
            return Err(Error::params("edit_of", "heads that share keys and values have no own"));
        }
        let n_units = self.kind.count(config);
        if (0..config.n_layers).contains(&self.layer) && (0..n_units).contains(&self.index) {
            return Ok(());
        }
        Err(Error::params(
            "edit_list",
            format!("the model has no {self}: {} layers of {n_units}", config.n_layers),
        ))
    }

    /// Where the unit's own weights are: what it reads first, what it writes last. Absent biases are
    /// listed too.
    pub(crate) fn places(self, config: &Config) -> Vec<Place> {
        let Self { kind, layer, index } = self;
        let place = |tensor: String, axis| Place { tensor, axis, index };
        match kind {
            UnitKind::Head => ["W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O"]
                .map(|part| place(format!("blocks.{layer}.attn.{part}"), 0))
                .to_vec(),
            UnitKind::Neuron if config.architecture == Architecture::Mlp => vec![
                place(format!("layers.{layer}.W"), 1),
                place(format!("layers.{layer}.b"), 0),
                place(format!("layers.{}.W", layer + 1), 0),
            ],
            UnitKind::Neuron => [
                ("W_in", 1),
                ("W_gate", 1),
                ("b_in", 0),
                ("b_gate", 0),
                ("b_pre_linear", 0),
                ("W_out", 0),
            ]
            .map(|(part, axis)| place(format!("blocks.{layer}.mlp.{part}"), axis))
            .to_vec(),
        }
    }

    /// Norm of what it reads times norm of what it writes (for a head: of W_V and W_O).
    pub(crate) fn magnitude(self, config: &Config, weights: &Weights) -> Result<f64> {
        let places = self.places(config);
        let read = match self.kind {
            UnitKind::Head => &places[4],
            UnitKind::Neuron => &places[0],
        };
        let write = &places[places.len() - 1];
        let norm = |place: &Place| -> Result<f64> {
            Ok(place.of(weights.require(&place.tensor)?).norm().double_value(&[]))
        };
        Ok(norm(read)? * norm(write)?)
    }

    /// Sum over its weights of `|w · gradient|`.
    pub(crate) fn sensitivity(self, config: &Config, weights: &Weights, gradient: &Weights) -> f64 {
        let places = self.places(config);
        let parts = places.iter().filter_map(|place| {
            let (w, g) = (weights.get(&place.tensor)?, gradient.get(&place.tensor)?);
            Some((place.of(w) * place.of(g)).abs().sum(sweep_lens::Kind::Double).double_value(&[]))
        });
        parts.sum()
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            UnitKind::Head => 'H',
            UnitKind::Neuron => 'N',
        };
        write!(f, "L{}{kind}{}", self.layer, self.index)
    }
}

impl FromStr for Unit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let rest = text.strip_prefix('L')?;
            let at = rest.find(['H', 'N'])?;
            let kind = if rest[at..].starts_with('H') { UnitKind::Head } else { UnitKind::Neuron };
            let number = |digits: &str| digits.parse::<u32>().ok().map(i64::from);
            Some(Unit { kind, layer: number(&rest[..at])?, index: number(&rest[at + 1..])? })
        };
        parse().ok_or_else(|| {
            Error::params(
                "edit_list",
                format!("expected a unit like L0H1 or L0N17, found `{text}`"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_print_parse_and_are_checked() {
        let config = Config::toy(2, 8, 2, 5, 3);
        for text in ["L0H1", "L1N31"] {
            let unit: Unit = text.parse().unwrap();
            assert_eq!(unit.to_string(), text);
            unit.check(&config).unwrap();
        }
        for text in ["L0H2", "L2H0", "L0N32"] {
            assert!(text.parse::<Unit>().unwrap().check(&config).is_err(), "{text}");
        }
        for text in ["", "L0", "H1", "L0H", "LxH1", "L0H-1", "L0Q1"] {
            assert!(text.parse::<Unit>().is_err(), "{text}");
        }
        let mlp = Config::mlp(1, 6, 8, 3, 2);
        assert!("L0H0".parse::<Unit>().unwrap().check(&mlp).is_err());
        let places = "L0N3".parse::<Unit>().unwrap().places(&mlp);
        assert_eq!(places[2], Place { tensor: "layers.1.W".to_owned(), axis: 0, index: 3 });
    }
}
