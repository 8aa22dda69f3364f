//! The MLP of a block: plain, gated, or SoLU with a norm of its own.

use tch::Tensor;

use crate::{
    config::{ActFn, Config},
    error::Result,
    hook::{Hook, Site},
    hooks::{self, Hooks},
    linear::affine,
    norm::NormLayer,
    weights::Weights,
};

/// Parameters of one MLP.
#[derive(Debug)]
pub(crate) struct Mlp {
    act_fn: ActFn,
    gate: Option<Gate>,
    w_in: Tensor,         // [d_model, d_mlp]
    b_in: Option<Tensor>, // [d_mlp]
    ln: Option<NormLayer>,
    w_out: Tensor,         // [d_mlp, d_model]
    b_out: Option<Tensor>, // [d_model]
}

/// What a gated MLP has besides. TransformerLens adds its `b_in` to the product of gate and linear map,
/// so the biases in front of the product have names of their own.
#[derive(Debug)]
struct Gate {
    w: Tensor,                    // [d_model, d_mlp]
    b: Option<Tensor>,            // [d_mlp]
    b_pre_linear: Option<Tensor>, // [d_mlp]
}

impl Mlp {
    pub(crate) fn new(layer: i64, config: &Config, weights: &Weights) -> Result<Self> {
        let name = |part: &str| format!("blocks.{layer}.mlp.{part}");
        let optional = |part: &str| weights.get(&name(part)).map(Tensor::shallow_clone);
        let ln = match config.act_fn {
            ActFn::SoluLn => {
                Some(NormLayer::new(&name("ln"), config.mlp_normalization(), config.eps, weights)?)
            }
            ActFn::Identity | ActFn::Relu | ActFn::Gelu | ActFn::GeluNew | ActFn::Silu => None,
        };
        Ok(Mlp {
            act_fn: config.act_fn,
            gate: optional("W_gate").map(|w| Gate {
                w,
                b: optional("b_gate"),
                b_pre_linear: optional("b_pre_linear"),
            }),
            w_in: weights.require(&name("W_in"))?.shallow_clone(),
            b_in: optional("b_in"),
            ln,
            w_out: weights.require(&name("W_out"))?.shallow_clone(),
            b_out: optional("b_out"),
        })
    }

    /// Maps `[(n_models,) batch, pos, d_model]` to what the MLP adds to the residual stream.
    pub(crate) fn forward(&self, x: &Tensor, layer: u32, hooks: &mut dyn Hooks) -> Tensor {
        let site = |site| Hook::block(layer, site);
        let post = if let Some(gate) = &self.gate {
            let pre = affine(x, &gate.w, gate.b.as_ref()); // [batch, pos, d_mlp]
            let pre = hooks::at(hooks, site(Site::MlpPre), pre);
            let linear = affine(x, &self.w_in, gate.b_pre_linear.as_ref()); // [batch, pos, d_mlp]
            let linear = hooks::at(hooks, site(Site::MlpPreLinear), linear);
            let gated = self.act_fn.apply(&pre) * linear; // [batch, pos, d_mlp]
            match &self.b_in {
                Some(b) => &gated + crate::linear::broadcast(b, &gated),
                None => gated,
            }
        } else {
            let pre = affine(x, &self.w_in, self.b_in.as_ref()); // [batch, pos, d_mlp]
            let pre = hooks::at(hooks, site(Site::MlpPre), pre);
            self.act_fn.apply(&pre)
        };
        let post = match &self.ln {
            Some(ln) => {
                let mid = hooks::at(hooks, site(Site::MlpMid), post);
                ln.forward(&mid, |norm| site(Site::MlpLn(norm)), hooks)
            }
            None => post,
        };
        let post = hooks::at(hooks, site(Site::MlpPost), post);
        affine(&post, &self.w_out, self.b_out.as_ref()) // [batch, pos, d_model]
    }
}
