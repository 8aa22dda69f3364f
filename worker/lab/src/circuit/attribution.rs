//! Direct logit attribution (D21): what every component of the residual stream adds to the logit difference at
//! the end of each prompt, with the final norm's scale as it was in the pass.
//!
//! Main type: [`Attribution`]. Norms are taken as they are, folded or not: a weight scales the direction, centring
//! centres it, a bias is a row of its own. Where components are normalized behind (OLMo-2), the direction is
//! taken back through that norm too. Invariant: components sum to the logit difference up to rounding.

use std::collections::BTreeMap;

use sweep_lens::{Hook, Hooks, Kind, Norm, NormPosition, Normalization, Positional, Site, Tensor};

use super::batch::{Batch, Meter, at};
use crate::error::Result;

/// Attribution of a batch.
#[derive(Debug)]
pub(crate) struct Attribution {
    /// Names of the components, in order: `embed`, `pos_embed`, then of every block its heads (`L0H1`), `L0.b_O`,
    /// `L0.mlp` and `L0.b_out`, then `ln_final.b` and `b_U`. What a model lacks is left out.
    pub names: Vec<String>,
    /// f64 `[row, component]`
    pub components: Tensor,
    /// f64 `[row, layer, head]`
    pub heads: Tensor,
    /// f64 `[row]`
    pub logit_diff: Tensor,
}

/// What the pass of an attribution has to keep: activations at the ends, f64 `[row, …]`.
struct Ends<'a> {
    batch: &'a Batch,
    wanted: Vec<Hook>,
    found: BTreeMap<Hook, Tensor>,
}

impl Hooks for Ends<'_> {
    fn wants(&self, hook: Hook) -> bool {
        self.wanted.contains(&hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        let end = at(&activation, &self.batch.end_at).to_kind(Kind::Double);
        self.found.insert(hook, end);
        activation
    }
}

/// Attributes the logit difference of a batch, in a pass that `edits` may change.
pub(crate) fn attribute(
    meter: &Meter<'_>,
    batch: &Batch,
    tokens: &Tensor,
    edits: &mut dyn Hooks,
) -> Result<Attribution> {
    let config = meter.model.config();
    let is_behind =
        config.norm_position == NormPosition::Post && config.normalization != Normalization::None;
    let mut wanted = vec![Hook::Embed, Hook::LnFinal(Norm::Scale)];
    if config.positional == Positional::Learned {
        wanted.push(Hook::PosEmbed);
    }
    for layer in 0..config.n_layers as u32 {
        wanted.extend([Site::Z, Site::MlpOut].map(|site| Hook::block(layer, site)));
        if is_behind {
            let scales = [Site::Ln1(Norm::Scale), Site::Ln2(Norm::Scale)];
            wanted.extend(scales.map(|site| Hook::block(layer, site)));
        }
    }
    let mut hooks = (edits, Ends { batch, wanted, found: BTreeMap::new() });
    let logit_diff = meter.logit_diff(batch, tokens, &mut hooks);
    let ends = hooks.1.found;
    let mut rows = Rows { meter, ends, names: Vec::new(), values: Vec::new() };
    let heads = rows.fill(batch, is_behind)?;
    let Rows { names, values, .. } = rows;
    Ok(Attribution { names, components: Tensor::stack(&values, -1), heads, logit_diff })
}

/// Components while they are listed.
struct Rows<'a> {
    meter: &'a Meter<'a>,
    ends: BTreeMap<Hook, Tensor>,
    names: Vec<String>,
    values: Vec<Tensor>,
}

impl Rows<'_> {
    /// Lists everything; returns the heads, `[row, layer, head]`.
    fn fill(&mut self, batch: &Batch, is_behind: bool) -> Result<Tensor> {
        let config = self.meter.model.config();
        let (unembed, bias) = self.meter.direction(batch);
        let direction = back(
            &unembed,
            self.weight("ln_final.w"),
            self.ends.get(&Hook::LnFinal(Norm::Scale)),
            config.final_normalization.is_centered(),
        );
        for (name, hook) in [("embed", Hook::Embed), ("pos_embed", Hook::PosEmbed)] {
            if let Some(end) = self.ends.get(&hook) {
                self.add(name.to_owned(), dot(end, &direction));
            }
        }
        let is_centered = config.normalization.is_centered();
        let mut layers = Vec::new();
        for layer in 0..config.n_layers as u32 {
            let name = |part: &str| format!("blocks.{layer}.{part}");
            let through = |rows: &Self, part: &str, site: Site| {
                if !is_behind {
                    return (direction.shallow_clone(), None);
                }
                let scale = rows.ends.get(&Hook::block(layer, site));
                let inner =
                    back(&direction, rows.weight(&name(&format!("{part}.w"))), scale, is_centered);
                (inner, rows.weight(&name(&format!("{part}.b"))).map(|b| dot(&b, &direction)))
            };
            let (inner, outer_bias) = through(self, "ln1", Site::Ln1(Norm::Scale));
            let w_o = self.meter.model.weights().require(&name("attn.W_O"))?;
            let w_o = w_o.to_kind(Kind::Double); // [head, d_head, d_model]
            let onto = w_o.flatten(0, 1).matmul(&inner.transpose(0, 1)).transpose(0, 1);
            let z = &self.ends[&Hook::block(layer, Site::Z)]; // [row, head, d_head]
            let heads = (z * onto.reshape(z.size().as_slice())).sum_dim_intlist(
                &[-1i64][..],
                false,
                Kind::Double,
            );
            for head in 0..config.n_heads {
                self.add(format!("L{layer}H{head}"), heads.select(1, head));
            }
            layers.push(heads);
            let b_o = self.weight(&name("attn.b_O")).map(|b| dot(&b, &inner));
            self.add_bias(format!("L{layer}.b_O"), b_o, outer_bias);
            let Some(mlp_out) = self.ends.get(&Hook::block(layer, Site::MlpOut)) else { continue };
            let (inner, outer_bias) = through(self, "ln2", Site::Ln2(Norm::Scale));
            let whole = dot(mlp_out, &direction);
            let b_out = self.weight(&name("mlp.b_out")).map(|b| dot(&b, &inner));
            let bias = sum(b_out, outer_bias);
            let rest = match &bias {
                Some(bias) => whole - bias,
                None => whole,
            };
            self.add(format!("L{layer}.mlp"), rest);
            self.add_bias(format!("L{layer}.b_out"), bias, None);
        }
        let ln_bias = self.weight("ln_final.b").map(|b| dot(&b, &unembed));
        self.add_bias("ln_final.b".to_owned(), ln_bias, None);
        if self.weight("unembed.b_U").is_some() {
            self.add("b_U".to_owned(), bias);
        }
        if layers.is_empty() {
            return Ok(Tensor::zeros(
                [batch.n_rows(), 0, config.n_heads],
                (Kind::Double, unembed.device()),
            ));
        }
        Ok(Tensor::stack(&layers, 1))
    }

    fn weight(&self, name: &str) -> Option<Tensor> {
        self.meter.model.weights().get(name).map(|tensor| tensor.to_kind(Kind::Double))
    }

    fn add(&mut self, name: String, value: Tensor) {
        self.names.push(name);
        self.values.push(value);
    }

    fn add_bias(&mut self, name: String, one: Option<Tensor>, other: Option<Tensor>) {
        if let Some(value) = sum(one, other) {
            self.add(name, value);
        }
    }
}

fn sum(one: Option<Tensor>, other: Option<Tensor>) -> Option<Tensor> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (one, other) => one.or(other),
    }
}

/// Inner products over the last axis.
fn dot(x: &Tensor, direction: &Tensor) -> Tensor {
    (x * direction).sum_dim_intlist(&[-1i64][..], false, Kind::Double)
}

/// Takes a direction, `[row, d_model]`, in front of a norm: what reads the norm's input along the result reads
/// its output along `direction`, the bias apart.
fn back(
    direction: &Tensor,
    w: Option<Tensor>,
    scale: Option<&Tensor>,
    is_centered: bool,
) -> Tensor {
    let scaled = match w {
        Some(w) => direction * w,
        None => direction.shallow_clone(),
    };
    let centered = if is_centered {
        &scaled - scaled.mean_dim(&[-1i64][..], true, Kind::Double)
    } else {
        scaled
    };
    match scale {
        Some(scale) => centered / scale,
        None => centered,
    }
}
