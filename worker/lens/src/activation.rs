//! Non-linearities of the MLP.

use tch::{Kind, Tensor};

use crate::config::ActFn;

impl ActFn {
    /// Applies the function to each neuron (for SoLU, to the neurons of one position together; its
    /// norm is the MLP's business).
    ///
    /// # Shapes
    /// `[…, d_mlp]` to the same.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            ActFn::Identity => x.shallow_clone(),
            ActFn::Relu => x.relu(),
            ActFn::Gelu => x.gelu("none"),
            ActFn::GeluNew => x.gelu("tanh"),
            ActFn::Silu => x.silu(),
            ActFn::SoluLn => x * x.softmax(-1, None::<Kind>),
        }
    }
}
