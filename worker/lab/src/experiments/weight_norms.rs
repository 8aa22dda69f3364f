//! Size, movement and effective rank of every parameter tensor.
//!
//! # What it measures
//! Per tensor: Euclidean `norm`; `distance_from_init`, the norm of the difference from the weights before
//! training; `cosine_to_previous`, the cosine between the tensor here and at the checkpoint before;
//! `effective_rank`, `exp H(σ / Σσ)` over singular values σ (1 for a vector or a rank-one matrix, n for n
//! equal singular values, 0 for a zero tensor). Attention weights `[head, …, …]` are matrices per head:
//! `effective_rank` is their mean over heads, `effective_rank_head` lists them (with fewer key-value heads
//! than heads, head h shows the key-value head it reads).
//!
//! # Interpretation
//! A norm that falls late while accuracy rises is cleanup. A cosine well below 1 between neighbouring checkpoints
//! marks fast movement, and exactly 1 a duplicated checkpoint.
//!
//! # Source
//! Roy and Vetterli 2007, "The effective rank"; norms and cosines as in most training-dynamics work.

use sweep_lens::{Device, Kind, Tensor, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::{NoParams, ParamSet},
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct WeightNorms;

impl Experiment for WeightNorms {
    type Params = NoParams;
    const CARD: &'static Card = &Card {
        name: "weight-norms",
        version: 1,
        summary: "Measures norm, movement and effective rank of every parameter tensor",
        source: "Roy and Vetterli 2007 (effective rank)",
        stage: Stage::Analyse,
        requires: Requires::ANY,
        params: NoParams::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &NoParams) -> Inputs {
        Inputs::Checkpoint { init: true, previous: true }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, _params: NoParams) -> Result<Analysis<'a>> {
        let weights = subject.model.weights();
        let n_heads = subject.checkpoint.config.n_heads;
        let (init, previous, device) = (subject.init, subject.previous, subject.device);
        Ok(Analysis::Procedure(Box::new(move |cx| {
            let per_tensor = |value: &dyn Fn(&str, &Tensor) -> Result<f64>| -> Result<Value> {
                let values: Result<Vec<f64>> =
                    weights.iter().map(|(name, tensor)| value(name, tensor)).collect();
                Ok(Value::labelled(weights.names(), values?))
            };
            cx.metric("norm", per_tensor(&|_, tensor| Ok(norm(&in_f64(tensor))))?)?;
            if let Some(init) = init {
                let distance = |name: &str, tensor: &Tensor| {
                    Ok(norm(&(in_f64(tensor) - other(init, name, device)?)))
                };
                cx.metric("distance_from_init", per_tensor(&distance)?)?;
            }
            if let Some((_, previous)) = previous {
                let cosine = |name: &str, tensor: &Tensor| {
                    Ok(cosine(&in_f64(tensor), &other(previous, name, device)?))
                };
                cx.metric("cosine_to_previous", per_tensor(&cosine)?)?;
            }
            effective_ranks(weights, n_heads, cx)
        })))
    }
}

fn effective_ranks(weights: &Weights, n_heads: i64, cx: &mut Context<'_>) -> Result<()> {
    let (mut means, mut heads, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (done, (name, tensor)) in weights.iter().enumerate() {
        let ranks = effective_rank(tensor);
        means.push(ranks.iter().sum::<f64>() / ranks.len() as f64);
        if tensor.dim() == 3 {
            let repeats = n_heads as usize / ranks.len().max(1);
            heads.extend(ranks.iter().flat_map(|&rank| std::iter::repeat_n(rank, repeats)));
            names.push(name.to_owned());
        }
        cx.progress(done as u64 + 1, weights.len() as u64)?;
    }
    cx.metric("effective_rank", Value::labelled(weights.names(), means))?;
    let shape = vec![names.len(), n_heads as usize];
    cx.metric("effective_rank_head", Value::array(shape, heads, vec![Some(names), None]))
}

/// `exp H(σ / Σσ)` of a matrix, of each matrix of a stack `[n, rows, columns]`, or of a vector as a
/// one-row matrix.
fn effective_rank(tensor: &Tensor) -> Vec<f64> {
    let matrices = match tensor.dim() {
        0 | 1 => in_f64(tensor).view([1, 1, -1]),
        2 => in_f64(tensor).unsqueeze(0),
        _ => in_f64(tensor).flatten(0, -3),
    };
    let sigma = singular_values(&matrices);
    let total = sigma.sum_dim_intlist(&[-1i64][..], true, Kind::Double);
    let share = &sigma / total.clamp_min(f64::MIN_POSITIVE);
    // The limit of -s ln s at 0 is 0.
    let entropy = -(&share * share.clamp_min(f64::MIN_POSITIVE).log()).sum_dim_intlist(
        &[-1i64][..],
        false,
        Kind::Double,
    );
    let is_zero = total.squeeze_dim(-1).eq(0.0);
    to_vec(&entropy.exp().masked_fill(&is_zero, 0.0))
}

/// Singular values of a stack of matrices, f64 `[n, min(rows, columns)]`.
fn singular_values(matrices: &Tensor) -> Tensor {
    let (rows, columns) = (matrices.size()[1], matrices.size()[2]);
    let (long, short) = (rows.max(columns), rows.min(columns));
    if long < 8 * short || long < 4096 {
        return matrices.svd(true, false).1;
    }
    // Embeddings of published models: the Gram matrix is twenty times faster; in f64 it loses singular
    // values below 1e-8 of the largest, which weigh nothing in the entropy.
    let tall = if rows >= columns { matrices.shallow_clone() } else { matrices.transpose(1, 2) };
    let gram = tall.transpose(1, 2).matmul(&tall);
    gram.linalg_eigvalsh("L").clamp_min(0.0).sqrt()
}

fn in_f64(tensor: &Tensor) -> Tensor {
    tensor.detach().to_kind(Kind::Double)
}

fn other(weights: &Weights, name: &str, device: Device) -> Result<Tensor> {
    Ok(in_f64(weights.require(name)?).to_device(device))
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.square().sum(Kind::Double).sqrt().double_value(&[])
}

/// NaN if one of them is zero: then there is no direction to compare.
fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).sum(Kind::Double).double_value(&[]) / (norm(a) * norm(b))
}

const METRICS: &[MetricDef] = &[
    MetricDef { name: "norm", unit: Unit::Norm, axes: &[Axis::Tensor], doc: "Euclidean norm" },
    MetricDef {
        name: "distance_from_init",
        unit: Unit::Norm,
        axes: &[Axis::Tensor],
        doc: "Norm of the difference from the weights before training; absent if those are unknown",
    },
    MetricDef {
        name: "cosine_to_previous",
        unit: Unit::Ratio,
        axes: &[Axis::Tensor],
        doc: "Cosine to the previous checkpoint; absent at the first, NaN for a zero tensor",
    },
    MetricDef {
        name: "effective_rank",
        unit: Unit::Dimensionless,
        axes: &[Axis::Tensor],
        doc: "exp of the entropy of normalised singular values; mean over heads for attention",
    },
    MetricDef {
        name: "effective_rank_head",
        unit: Unit::Dimensionless,
        axes: &[Axis::Tensor, Axis::Head],
        doc: "The same per head of each attention weight",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "norms",
        title: "Norm of every tensor",
        kind: FigureKind::Lines,
        metrics: &["norm"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "effective-rank",
        title: "Effective rank of every tensor",
        kind: FigureKind::Lines,
        metrics: &["effective_rank"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_rank_of_known_spectra() {
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        };
        let eye = Tensor::eye(5, (Kind::Float, Device::Cpu));
        close(effective_rank(&eye), &[5.0]);
        close(effective_rank(&Tensor::from_slice(&[1.0f32, 2.0, 3.0])), &[1.0]);
        close(effective_rank(&eye.zeros_like()), &[0.0]);
        // Two heads: a rank-one matrix, and singular values 3 and 1.
        let heads = Tensor::from_slice(&[1.0, 2.0, 2.0, 4.0, 3.0, 0.0, 0.0, 1.0]).view([2, 2, 2]);
        let entropy = -(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        close(effective_rank(&heads), &[1.0, entropy.exp()]);
    }

    #[test]
    fn gram_path_agrees_with_the_svd() {
        let entries = Tensor::arange(4096 * 3, (Kind::Double, Device::Cpu)).square() * 0.01;
        let tall = entries.sin().view([1, 4096, 3]);
        let wide = tall.transpose(1, 2);
        let exact = to_vec(&tall.svd(true, false).1);
        for matrices in [&tall, &wide] {
            let mut found = to_vec(&singular_values(matrices));
            found.reverse();
            assert!(found.iter().zip(&exact).all(|(a, b)| (a / b - 1.0).abs() < 1e-9));
        }
    }

    #[test]
    fn norms_and_cosines() {
        let (a, b) = (Tensor::from_slice(&[3.0, 4.0]), Tensor::from_slice(&[-4.0, 3.0]));
        assert_eq!(norm(&a), 5.0);
        assert_eq!((cosine(&a, &b), cosine(&a, &(&a * 2.0))), (0.0, 1.0));
        assert!(cosine(&a, &a.zeros_like()).is_nan());
    }
}
