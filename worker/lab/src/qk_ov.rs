//! What pairs of heads could do with each other, read off the weights: composition scores (D17), their baseline
//! for unrelated heads, and the trace of the joint query-key circuit (D18).
//!
//! Main type: [`Circuits`], the factors of every head's QK and OV circuit. Invariant: no `d_model × d_model` matrix of a
//! head is ever made; norms of products of thin factors are those of their triangular parts, which makes every
//! score invariant under changes of basis within a head.

use sweep_lens::{Config, Device, Kind, NormPosition, Tensor, Weights};

use crate::{error::Result, random::counter::Counter, sequence::first_rows};

/// Factors of the circuits of all heads, row vectors multiplied from the left: `OV = W_V W_O`, `QK = W_Q W_Kᵀ`.
pub(crate) struct Circuits {
    layers: Vec<Factors>,
}

/// Of one layer; grouped keys and values are repeated for every query head.
struct Factors {
    q: Tensor, // [head, d_model, d_head]
    k: Tensor, // [head, d_model, d_head], rotated where asked for
    v: Tensor, // [head, d_model, d_head]
    o: Tensor, // [head, d_head, d_model]
}

/// Composition scores of every ordered pair, `[layer, head, layer, head]`: the writer's, then the reader's;
/// zero unless the reader's layer is later.
pub(crate) struct Compositions {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

impl Circuits {
    /// `rotation` multiplies queries from the right, `[d_head, d_head]`: `QK = W_Q R W_Kᵀ`. Weights of a norm behind
    /// attention belong to what the head writes.
    pub(crate) fn new(
        config: &Config,
        weights: &Weights,
        rotation: Option<&Tensor>,
    ) -> Result<Self> {
        let group = config.n_heads / config.n_key_value_heads;
        let layers = (0..config.n_layers)
            .map(|layer| {
                let factor = |part: &str| -> Result<Tensor> {
                    let w = weights.require(&format!("blocks.{layer}.attn.{part}"))?;
                    let kind = if w.kind() == Kind::Double { Kind::Double } else { Kind::Float };
                    let w = w.to_kind(kind);
                    let is_grouped = group > 1 && w.size()[0] != config.n_heads;
                    Ok(if is_grouped { w.repeat_interleave_self_int(group, 0, None) } else { w })
                };
                let mut factors = Factors {
                    q: factor("W_Q")?,
                    k: factor("W_K")?,
                    v: factor("W_V")?,
                    o: factor("W_O")?,
                };
                if let Some(rotation) = rotation {
                    let rotation = like(rotation, &factors.k);
                    factors.k = factors.k.matmul(&rotation.transpose(0, 1));
                }
                if config.norm_position == NormPosition::Post
                    && let Some(w) = weights.get(&format!("blocks.{layer}.ln1.w"))
                {
                    factors.o = &factors.o * like(w, &factors.o);
                }
                Ok(factors)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { layers })
    }

    /// `‖L R‖ / (‖L‖ ‖R‖)` (Frobenius) with `L` the writer's OV circuit and `R` the reader's QK circuit (Q), its
    /// transpose (K) or its OV circuit (V).
    pub(crate) fn compositions(&self) -> Compositions {
        let writers: Vec<Tensor> =
            self.layers.iter().map(|f| triangular(&f.v).matmul(&f.o)).collect(); // [head, m, d_model]
        let transposed = |w: &Tensor| w.transpose(1, 2);
        let product = |w: &Tensor, of: &Tensor| w.matmul(&transposed(&triangular(of)));
        let of = |reader: &dyn Fn(&Factors) -> Tensor| {
            let readers: Vec<Tensor> = self.layers.iter().map(reader).collect(); // [head, d_model, m]
            pairwise(&writers, &readers)
        };
        Compositions {
            q: of(&|f| product(&f.q, &f.k)),
            k: of(&|f| product(&f.k, &f.q)),
            v: of(&|f| product(&f.v, &transposed(&f.o))),
        }
    }

    /// For every head as an induction head: the trace of `Σ_e p_e W_E W_QK (W_E W_OV^e)ᵀ` over heads `e` of earlier
    /// layers, `p_e` their previous-token scores: how much more a token's query likes the key behind an
    /// earlier place of the same token. f64 `[layer, head]`.
    ///
    /// All earlier heads are added up first, `M = Σ_e p_e W_OV^e`; the trace is that of `W_Kᵀ Mᵀ (W_Eᵀ W_E) W_Q`.
    ///
    /// - `w_e`: `[d_vocab, d_model]`
    /// - `previous`: `[layer, head]`
    pub(crate) fn qk_trace(&self, w_e: &Tensor, previous: &Tensor) -> Tensor {
        let Some(first) = self.layers.first() else {
            return Tensor::zeros([0, 0], (Kind::Double, Device::Cpu));
        };
        let w_e = like(w_e, &first.q);
        let gram = w_e.transpose(0, 1).matmul(&w_e); // [d_model, d_model]
        let mut written = gram.zeros_like();
        let mut rows = Vec::with_capacity(self.layers.len());
        for (layer, factors) in (0..).zip(&self.layers) {
            let seen = written.transpose(0, 1).matmul(&gram); // [d_model, d_model]
            let products = seen.matmul(&factors.q) * &factors.k; // [head, d_model, d_head]
            rows.push(products.sum_dim_intlist(&[1i64, 2][..], false, Kind::Double));
            let weights = like(&previous.get(layer), &factors.v).view([-1, 1, 1]);
            written += side_by_side(&(&factors.v * weights)).matmul(&factors.o.flatten(0, 1));
        }
        Tensor::stack(&rows, 0).to_device(Device::Cpu)
    }
}

/// Composition of `n` pairs of heads with random factors (uniform, scale does not matter), `[n]`: the baseline by
/// Monte Carlo.
pub(crate) fn random_compositions(n: u64, d_model: i64, d_head: i64, seed: u64) -> Tensor {
    let counter = Counter::new(&[seed], "composition/baseline", Device::Cpu);
    let rows = first_rows(n, Device::Cpu);
    let numbers = counter.uniform(&rows, 4 * d_model * d_head).to_kind(Kind::Float) * 2.0 - 1.0;
    let factor = |index, shape: [i64; 2]| {
        let part = numbers.narrow(1, index * d_model * d_head, d_model * d_head);
        part.reshape([n as i64, shape[0], shape[1]])
    };
    let (tall, wide) = ([d_model, d_head], [d_head, d_model]);
    let writer = triangular(&factor(0, tall)).matmul(&factor(1, wide));
    let reader = factor(2, tall).matmul(&triangular(&factor(3, tall)).transpose(1, 2));
    norms(&writer.matmul(&reader)) / (norms(&writer) * norms(&reader))
}

/// Triangular factors of thin matrices: `W = Q R` with orthonormal columns of `Q`.
fn triangular(w: &Tensor) -> Tensor {
    let (_, r) = Tensor::linalg_qr(&w.contiguous(), "r");
    r
}

/// Frobenius norms of the last two axes.
fn norms(x: &Tensor) -> Tensor {
    x.square().sum_dim_intlist(&[-2i64, -1][..], false, Kind::Double).sqrt()
}

fn like(x: &Tensor, other: &Tensor) -> Tensor {
    x.to_kind(other.kind()).to_device(other.device())
}

/// `[head, d_model, m]` to `[d_model, head * m]`.
fn side_by_side(x: &Tensor) -> Tensor {
    let size = x.size();
    x.transpose(0, 1).reshape([size[1], size[0] * size[2]])
}

/// Frobenius norms of the products of every pair: `[a, m, d]` and `[b, d, n]` to f64 `[a, b]`, by one matrix product.
fn norms_of_products(left: &Tensor, right: &Tensor) -> Tensor {
    let (l, r) = (left.size(), right.size());
    let mut products = left.flatten(0, 1).matmul(&side_by_side(right));
    // In place and in the products' own precision: this reads far more numbers than it gives.
    let squares = products.square_().view([l[0], l[1], r[0], r[2]]);
    let by_row = squares.sum_dim_intlist(&[-1i64][..], false, None::<Kind>); // [a, m, b]
    by_row.sum_dim_intlist(&[1i64][..], false, Kind::Double).sqrt()
}

/// Normalised norms of products of writers with readers of later layers, f64 on the CPU.
fn pairwise(writers: &[Tensor], readers: &[Tensor]) -> Tensor {
    let n_layers = writers.len() as i64;
    let n_heads = writers.first().map_or(0, |writer| writer.size()[0]);
    let options = (Kind::Double, Device::Cpu);
    let scores = Tensor::zeros([n_layers, n_heads, n_layers, n_heads], options);
    for (from, writer) in writers.iter().enumerate() {
        for (to, reader) in readers.iter().enumerate().skip(from + 1) {
            let products = norms_of_products(writer, reader);
            let sizes = norms(writer).unsqueeze(1) * norms(reader).unsqueeze(0);
            // A head without weights composes with nothing.
            let found = products / sizes.clamp_min(f64::MIN_POSITIVE);
            scores.select(0, from as i64).select(1, to as i64).copy_(&found);
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use sweep_lens::init;

    use super::*;
    use crate::value::to_vec;

    fn model(config: &Config) -> Weights {
        let parameters = config.parameters().into_iter().filter(|parameter| !parameter.optional);
        parameters
            .map(|p| {
                let tensor = init::normal(5, &p.name, &p.shape, 0.3, Device::Cpu);
                (p.name, tensor.to_kind(Kind::Double))
            })
            .collect()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn scores_are_those_of_the_definition() {
        let config = Config::toy(3, 12, 3, 7, 8);
        let weights = model(&config);
        let found = Circuits::new(&config, &weights, None).unwrap().compositions();
        let w = |layer: i64, part: &str, head: i64| {
            weights.require(&format!("blocks.{layer}.attn.W_{part}")).unwrap().get(head)
        };
        let norm = |x: &Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
        for (from, to) in [(0, 1), (0, 2), (1, 2)] {
            for (a, b) in [(0, 0), (2, 1)] {
                let left = w(from, "V", a).matmul(&w(from, "O", a));
                let qk = w(to, "Q", b).matmul(&w(to, "K", b).transpose(0, 1));
                let ov = w(to, "V", b).matmul(&w(to, "O", b));
                for (right, scores) in
                    [(&qk, &found.q), (&qk.transpose(0, 1), &found.k), (&ov, &found.v)]
                {
                    let expected = norm(&left.matmul(right)) / (norm(&left) * norm(right));
                    let score = scores.double_value(&[from, a, to, b]);
                    assert!((score - expected).abs() < 1e-12, "{score} {expected}");
                }
            }
        }
        assert!(to_vec(&found.k.get(1).select(1, 1)).iter().all(|&score| score == 0.0));
        assert!(to_vec(&found.k.get(2)).iter().all(|&score| score == 0.0));
    }

    #[test]
    fn scores_do_not_depend_on_the_basis_within_a_head() {
        let config = Config::toy(2, 12, 3, 7, 8);
        let mut weights = model(&config);
        let of = |weights: &Weights| {
            let Compositions { q, k, v } =
                Circuits::new(&config, weights, None).unwrap().compositions();
            Tensor::stack(&[q, k, v], 0)
        };
        let before = of(&weights);
        let m = Tensor::eye(4, (Kind::Double, Device::Cpu)) * 2.0
            + Tensor::arange(16, (Kind::Double, Device::Cpu)).view([4, 4]).sin();
        let inverse = Tensor::linalg_inv(&m);
        for layer in 0..2 {
            let mut change = |part: &str, by: &Tensor, from_left: bool| {
                let name = format!("blocks.{layer}.attn.W_{part}");
                let w = weights.require(&name).unwrap();
                let changed = if from_left { by.matmul(w) } else { w.matmul(by) };
                weights.insert(name, changed);
            };
            change("V", &m, false);
            change("O", &inverse, true);
            change("Q", &m, false);
            change("K", &inverse.transpose(0, 1), false);
        }
        assert!(largest_difference(&before, &of(&weights)) < 1e-9);
        assert!(to_vec(&before).iter().all(|score| (0.0..=1.0).contains(score)));
        // A zeroed head composes with nothing.
        weights.insert(
            "blocks.0.attn.W_O",
            weights.require("blocks.0.attn.W_O").unwrap().zeros_like(),
        );
        assert_eq!(to_vec(&of(&weights).sum(Kind::Double)), [0.0]);
    }

    #[test]
    fn random_heads_compose_by_chance() {
        let (d_model, d_head, n) = (48, 12, 400);
        let scores = to_vec(&random_compositions(n, d_model, d_head, 0));
        let mean = scores.iter().sum::<f64>() / n as f64;
        let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let error = (variance / n as f64).sqrt();
        let expected = 1.0 / (d_model as f64).sqrt();
        // The mean square is exactly 1/d_model; the mean is below its root by half the variance over it.
        let expected = expected - variance / (2.0 * expected);
        assert!((mean - expected).abs() < 4.0 * error + 1e-3, "{mean} {expected} {error}");
        assert_eq!(scores[..5], to_vec(&random_compositions(5, d_model, d_head, 0)));
    }

    #[test]
    fn traces_are_those_of_the_whole_matrices() {
        let config = Config { n_key_value_heads: 1, ..Config::toy(2, 12, 3, 7, 8) };
        let weights = model(&config);
        let rotation = Tensor::arange(16, (Kind::Double, Device::Cpu)).view([4, 4]).cos();
        let circuits = Circuits::new(&config, &weights, Some(&rotation)).unwrap();
        let previous = Tensor::from_slice(&[0.5, 0.0, 2.0, 9.0, 9.0, 9.0]).view([2, 3]);
        let w_e = weights.require("embed.W_E").unwrap();
        let found = circuits.qk_trace(w_e, &previous);
        let w = |layer: i64, part: &str| {
            weights.require(&format!("blocks.{layer}.attn.W_{part}")).unwrap().shallow_clone()
        };
        for head in 0..3 {
            let mut expected = 0.0;
            for (e, weight) in [(0, 0.5), (2, 2.0)] {
                let ov = w(0, "V").get(0).matmul(&w(0, "O").get(e));
                let qk =
                    w(1, "Q").get(head).matmul(&rotation).matmul(&w(1, "K").get(0).transpose(0, 1));
                let key = w_e.matmul(&ov);
                let full = w_e.matmul(&qk).matmul(&key.transpose(0, 1)); // [token, token]
                expected += weight * full.trace().double_value(&[]);
            }
            let trace = found.double_value(&[1, head]);
            assert!(
                (trace - expected).abs() < 1e-9 * expected.abs().max(1.0),
                "{trace} {expected}"
            );
        }
        assert_eq!(to_vec(&found.get(0)), [0.0; 3]);
    }
}
