//! The leading axes that all activations of one pass share.
//!
//! [`Axes`] builds shapes `[(n_models,) batch, pos, …]`, so that components are written once for a
//! single model and for a population.

use tch::Tensor;

/// Sizes of the leading axes of one pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axes {
    /// Models of a population, `None` for a single model (which has no such axis at all).
    pub(crate) n_models: Option<i64>,
    pub(crate) batch: i64,
    pub(crate) pos: i64,
}

impl Axes {
    /// Reads the axes off the tokens.
    ///
    /// # Panics
    /// When the tokens have neither shape `[batch, pos]` nor, in a population, `[n_models, batch, pos]`.
    pub(crate) fn of(tokens: &Tensor, population: Option<i64>) -> Self {
        match (tokens.size().as_slice(), population) {
            (&[batch, pos], n_models) => Axes { n_models, batch, pos },
            (&[models, batch, pos], Some(n_models)) if models == n_models => {
                Axes { n_models: population, batch, pos }
            }
            (shape, Some(n_models)) => {
                panic!(
                    "tokens have shape {shape:?}, expected [batch, pos] or [{n_models}, batch, pos]"
                )
            }
            (shape, None) => panic!("tokens have shape {shape:?}, expected [batch, pos]"),
        }
    }

    /// The same pass, restricted to its last position.
    pub(crate) fn last_position(self) -> Self {
        Axes { pos: 1, ..self }
    }

    /// `[(n_models,) batch, pos, trailing…]`.
    pub(crate) fn shape(self, trailing: &[i64]) -> Vec<i64> {
        let mut shape = Vec::with_capacity(3 + trailing.len());
        shape.extend(self.n_models);
        shape.extend([self.batch, self.pos]);
        shape.extend(trailing);
        shape
    }

    /// `[(n_models,) batch, trailing…]`.
    pub(crate) fn batch_shape(self, trailing: &[i64]) -> Vec<i64> {
        let mut shape = Vec::with_capacity(2 + trailing.len());
        shape.extend(self.n_models);
        shape.push(self.batch);
        shape.extend(trailing);
        shape
    }
}

/// Restricts `[…, pos, width]` to its last position (a view).
pub(crate) fn last_position(x: &Tensor) -> Tensor {
    let pos = x.size()[x.dim() - 2];
    x.narrow(-2, pos - 1, 1)
}
