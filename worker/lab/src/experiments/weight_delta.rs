//! How far apart two models are as weights, and in how many directions.
//!
//! # What it measures
//! Of the first checkpoint A against the second, B (a base, an earlier one): `relative_norm` `[tensor]`, `|A - B| / |B|`
//! (Frobenius), and `relative_norm_total` over all parameters; `cosine_total`. For every matrix (heads side by side):
//! `effective_rank` of A - B, `exp(H(σ / Σσ))` over its singular values, 0 where nothing changed, and
//! `subspace_overlap`, `|U_k(A)ᵀ U_k(B)|² / k`, U_k the k leading singular vectors of the shorter side: 1 for equal
//! subspaces, about k/n for random ones.
//!
//! # Interpretation
//! Fine-tuning is a small change of low effective rank that leaves the leading subspaces alone; training from another
//! seed leaves nothing of them.
//!
//! # Source
//! D40; effective rank: Roy and Vetterli 2007.

use sweep_lens::{Device, Kind, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    compare::Couple,
    error::Result,
    experiment::{Experiment, Inputs},
    params::{ParamSet, params},
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct WeightDelta;

params! {
    /// How many directions.
    pub struct Params {
        /// Leading singular vectors that are compared; at most the shorter side of a matrix.
        k: u64 = 10, min = 1.0;
    }
}

impl Experiment for WeightDelta {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "weight-delta",
        version: 1,
        summary: "Measures size, rank and direction of the difference between two models' weights",
        source: "Roy and Vetterli 2007 (effective rank); subspace overlap of leading singular vectors",
        stage: Stage::Compare,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_shapes()?;
        let (a, b) = (&couple.first.checkpoint.weights, &couple.second.checkpoint.weights);
        let n_tensors = a.iter().count() as u64;
        let (mut names, mut relative) = (Vec::new(), Vec::new());
        let (mut matrices, mut ranks, mut overlaps) = (Vec::new(), Vec::new(), Vec::new());
        let mut sums = [0.0; 4];
        for (index, (name, a)) in a.iter().enumerate() {
            let exact = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Double);
            let (a, b) = (exact(a), exact(b.require(name)?));
            let delta = &a - &b;
            let dot = |x: &Tensor, y: &Tensor| (x * y).sum(Kind::Double).double_value(&[]);
            let here = [dot(&delta, &delta), dot(&a, &a), dot(&b, &b), dot(&a, &b)];
            sums.iter_mut().zip(here).for_each(|(sum, value)| *sum += value);
            names.push(name.to_owned());
            relative.push(quotient(here[0], here[2]));
            if let Some(delta) = matrix(name, &delta) {
                let side = |t: &Tensor| matrix(name, t).map(|m| Spectrum::of(&m));
                matrices.push(name.to_owned());
                ranks.push(Spectrum::of(&delta).effective_rank());
                let spectra = side(&a).zip(side(&b));
                overlaps.push(spectra.map_or(f64::NAN, |(a, b)| a.overlap(&b, params.k as i64)));
            }
            cx.progress(index as u64 + 1, n_tensors)?;
        }
        cx.metric("relative_norm", Value::labelled(names, relative))?;
        cx.metric("relative_norm_total", quotient(sums[0], sums[2]))?;
        cx.metric("cosine_total", sums[3] / (sums[1] * sums[2]).sqrt())?;
        cx.metric("effective_rank", Value::labelled(&matrices, ranks))?;
        cx.metric("subspace_overlap", Value::labelled(matrices, overlaps))
    }
}

/// Root of the quotient of two sums of squares; 0 if the first is.
fn quotient(above: f64, below: f64) -> f64 {
    if above == 0.0 { 0.0 } else { (above / below).sqrt() }
}

/// A tensor as a matrix, heads side by side; none for vectors.
fn matrix(name: &str, tensor: &Tensor) -> Option<Tensor> {
    match tensor.dim() {
        2 if !name.contains(".b_") => Some(tensor.shallow_clone()),
        // [head, d_head, d_model] → [head * d_head, d_model]
        3 if name.ends_with("W_O") => Some(tensor.reshape([-1, tensor.size()[2]])),
        // [head, d_model, d_head] → [d_model, head * d_head]
        3 => Some(tensor.permute([1, 0, 2]).reshape([tensor.size()[1], -1])),
        _ => None,
    }
}

/// Singular values, and vectors of the shorter side.
struct Spectrum {
    /// Descending.
    values: Vec<f64>,
    /// `[n, n]`, one column per value.
    vectors: Tensor,
}

impl Spectrum {
    fn of(matrix: &Tensor) -> Self {
        let (rows, columns) = (matrix.size()[0], matrix.size()[1]);
        let wide = if rows <= columns { matrix.shallow_clone() } else { matrix.transpose(0, 1) };
        let (vectors, values, _) = wide.svd(true, true);
        Self { values: to_vec(&values), vectors }
    }

    /// `exp(H(σ / Σσ))`; 0 for a matrix of zeros.
    fn effective_rank(&self) -> f64 {
        let total: f64 = self.values.iter().sum();
        if total == 0.0 {
            return 0.0;
        }
        let shares = self.values.iter().map(|value| value / total).filter(|share| *share > 0.0);
        shares.map(|share| -share * share.ln()).sum::<f64>().exp()
    }

    fn overlap(&self, other: &Self, k: i64) -> f64 {
        let k = k.min(self.vectors.size()[1]);
        let leading = |spectrum: &Self| spectrum.vectors.narrow(1, 0, k);
        let products = leading(self).transpose(0, 1).matmul(&leading(other));
        products.square().sum(Kind::Double).double_value(&[]) / k as f64
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "relative_norm",
        unit: Unit::Ratio,
        axes: &[Axis::Tensor],
        doc: "Norm of the difference over the norm of the second model's tensor",
    },
    MetricDef {
        name: "relative_norm_total",
        unit: Unit::Ratio,
        axes: &[],
        doc: "The same over all parameters",
    },
    MetricDef {
        name: "cosine_total",
        unit: Unit::Ratio,
        axes: &[],
        doc: "Cosine between all parameters of the two models",
    },
    MetricDef {
        name: "effective_rank",
        unit: Unit::Dimensionless,
        axes: &[Axis::Tensor],
        doc: "Exponential of the entropy of the difference's singular values",
    },
    MetricDef {
        name: "subspace_overlap",
        unit: Unit::Ratio,
        axes: &[Axis::Tensor],
        doc: "Mean squared cosine between the leading singular subspaces of the two models",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "distance",
        title: "Distance between models",
        kind: FigureKind::Pairs,
        metrics: &["relative_norm_total"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "tensors",
        title: "Change of each tensor",
        kind: FigureKind::HeatMap,
        metrics: &["relative_norm"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_overlaps_by_hand() {
        let diagonal = |values: &[f64]| Tensor::from_slice(values).diag(0);
        let equal = Spectrum::of(&diagonal(&[2.0, 2.0, 2.0]));
        assert!((equal.effective_rank() - 3.0).abs() < 1e-12);
        assert_eq!(Spectrum::of(&diagonal(&[0.0, 0.0])).effective_rank(), 0.0);
        // H(2/3, 1/3) in nats.
        let two = Spectrum::of(&diagonal(&[2.0, 1.0, 0.0])).effective_rank();
        assert!((two - 0.636_514_168_294_813_f64.exp()).abs() < 1e-12);
        let (a, b) = (diagonal(&[3.0, 2.0, 1.0]), diagonal(&[3.0, 1.0, 2.0]));
        let (a, b) = (Spectrum::of(&a), Spectrum::of(&b));
        assert!((a.overlap(&b, 1) - 1.0).abs() < 1e-12);
        assert!((a.overlap(&b, 2) - 0.5).abs() < 1e-12);
        assert!((a.overlap(&b, 3) - 1.0).abs() < 1e-12);
        assert_eq!(a.overlap(&a, 9), 1.0);
    }

    #[test]
    fn heads_stand_side_by_side() {
        let heads = Tensor::zeros([3, 5, 2], (Kind::Double, Device::Cpu));
        let shape = |name: &str, t: &Tensor| matrix(name, t).map(|m| m.size());
        assert_eq!(shape("blocks.0.attn.W_Q", &heads), Some(vec![5, 6]));
        assert_eq!(shape("blocks.0.attn.W_O", &heads), Some(vec![15, 2]));
        assert_eq!(shape("blocks.0.attn.b_Q", &heads.get(0)), None);
        assert_eq!(shape("embed.W_E", &heads.get(0)), Some(vec![5, 2]));
    }
}
