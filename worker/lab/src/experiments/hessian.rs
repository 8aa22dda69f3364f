//! Curvature of the loss at a checkpoint: largest eigenvalues of the Hessian and its trace.
//!
//! # What it measures
//! Second derivatives of the mean training loss of `n_batches` minibatches, in f64, by double backward (for a transformer on the data of its
//! own recipe, whose attention runs in one kernel, by central differences of gradients): `eigenvalues`
//! `[component]`, the `k` largest, and `smallest`, by Lanczos' method with full reorthogonalisation from a random vector;
//! `residual` `[component]`, norm of `H v - λ v` for each, which bounds its error. `trace`, Hutchinson's mean of `vᵀ H v`
//! over random signs, `trace_error` its standard error; `trace_per_parameter`. `tensors` restricts the parameters.
//!
//! # Interpretation
//! Full-batch gradient descent with step size η is stable where the largest eigenvalue is below 2/η (edge of stability).
//! Negative eigenvalues say that the checkpoint is no minimum. An eigenvalue whose residual is not small has not
//! converged: raise `iterations`.
//!
//! # Source
//! Ghorbani et al. 2019, arXiv 1901.10159 (Lanczos); Hutchinson 1990; Cohen et al. 2021, arXiv 2103.00065.

use sweep_lens::{Device, Kind, Tensor, init};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    random::counter::Counter,
    sequence::first_rows,
    sink::Context,
    surface::{Surface, surface_params},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct Hessian;

surface_params! {
    /// Largest eigenvalues that are reported.
    k: u64 = 5, min = 1.0, max = 256.0;
    /// Iterations of Lanczos' method.
    iterations: u64 = 40, min = 2.0, max = 1024.0;
    /// Random vectors for the trace.
    probes: u64 = 20, min = 2.0, max = 100_000.0;
    /// Minibatches that the loss is a mean of.
    n_batches: u64 = 1, min = 1.0, max = 100_000.0;
}

/// Memory for the vectors of Lanczos' method.
const MAX_BYTES: u64 = 8 << 30;

impl Experiment for Hessian {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "hessian",
        version: 1,
        summary: "Measures the largest eigenvalues and the trace of the loss's Hessian",
        source: "Ghorbani et al. 2019, arXiv 1901.10159; Hutchinson 1990",
        stage: Stage::Analyse,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let surface = Surface::new(subject, &params.choice())?;
        let bytes = surface.dimension().unsigned_abs().saturating_mul(8 * params.iterations);
        if bytes > MAX_BYTES {
            return Err(Error::Unsupported(format!(
                "{} vectors of {} parameters do not fit in 8 GiB: choose fewer `iterations`, or some `tensors`",
                params.iterations,
                surface.dimension()
            )));
        }
        Ok(Analysis::Procedure(Box::new(move |cx| {
            let total = params.iterations + params.probes;
            let mut done = 0;
            let mut times = |vector: &Tensor, cx: &mut Context<'_>| {
                done += 1;
                cx.progress(done.min(total), total)?;
                surface.hessian_times(vector, params.n_batches)
            };
            let start = random_vector(&surface.start, params.seed);
            let spectrum = lanczos(&start, params.iterations as usize, |vector| times(vector, cx))?;
            let mut samples = Vec::new();
            let signs = Counter::new(&[params.seed], "hessian/signs", Device::Cpu);
            for probe in 0..params.probes {
                let row = first_rows(1, Device::Cpu) + probe as i64;
                let bits = signs.below(&row, surface.dimension(), 2).squeeze_dim(0);
                let vector = (bits.to_kind(Kind::Double) * 2.0 - 1.0).to_device(start.device());
                let product = times(&vector, cx)?;
                samples.push((vector * product).sum(Kind::Double).double_value(&[]));
            }
            emit(&params, &spectrum, &samples, surface.dimension(), cx)
        })))
    }
}

fn random_vector(like: &Tensor, seed: u64) -> Tensor {
    let drawn = init::normal(seed, "hessian/start", &like.size(), 1.0, like.device());
    drawn.to_kind(Kind::Double)
}

/// Eigenvalues of a symmetric map, largest first, with the norm of `A v - λ v` of each.
fn lanczos(
    start: &Tensor,
    iterations: usize,
    mut times: impl FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Vec<(f64, f64)>> {
    let norm = |x: &Tensor| x.square().sum(Kind::Double).double_value(&[]).sqrt();
    let (mut basis, mut diagonal, mut side) = (Vec::new(), Vec::new(), Vec::new());
    let mut vector = start / norm(start);
    let mut left = 0.0;
    let n = iterations.min(start.size()[0] as usize);
    while basis.len() < n {
        let mut next = times(&vector)?;
        diagonal.push((&next * &vector).sum(Kind::Double).double_value(&[]));
        basis.push(vector);
        // Twice is enough: what is left along the basis is rounding.
        for _ in 0..2 {
            for known in &basis {
                let along = (&next * known).sum(Kind::Double).double_value(&[]);
                next -= known * along;
            }
        }
        left = norm(&next);
        let scale: f64 = diagonal.iter().chain(&side).map(|x: &f64| x.abs()).fold(0.0, f64::max);
        if !left.is_finite() {
            return Err(Error::Input("the Hessian is not finite at this checkpoint".to_owned()));
        }
        if basis.len() == n || left <= 1e-12 * scale {
            break;
        }
        side.push(left);
        vector = next / left;
    }
    let m = diagonal.len() as i64;
    let options = (Kind::Double, Device::Cpu);
    let mut small = Tensor::zeros([m, m], options) + Tensor::from_slice(&diagonal).diag(0);
    if m > 1 {
        let side = Tensor::from_slice(&side[..diagonal.len() - 1]);
        small = small + side.diag(1) + side.diag(-1);
    }
    let (values, vectors) = small.linalg_eigh("L");
    let last = to_vec(&vectors.get(m - 1));
    let pairs = to_vec(&values).into_iter().zip(last);
    let mut pairs: Vec<(f64, f64)> = pairs.map(|(v, s)| (v, (left * s).abs())).collect();
    pairs.reverse();
    Ok(pairs)
}

fn emit(
    params: &Params,
    spectrum: &[(f64, f64)],
    samples: &[f64],
    dimension: i64,
    cx: &mut Context<'_>,
) -> Result<()> {
    let top = || (0..params.k as usize).map(|i| spectrum.get(i).copied());
    let of = |read: fn((f64, f64)) -> f64| {
        Value::vector(top().map(|pair| pair.map_or(f64::NAN, read)).collect())
    };
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    cx.metric("eigenvalues", of(|pair| pair.0))?;
    cx.metric("residual", of(|pair| pair.1))?;
    cx.metric("largest", spectrum.first().map_or(f64::NAN, |pair| pair.0))?;
    cx.metric("smallest", spectrum.last().map_or(f64::NAN, |pair| pair.0))?;
    cx.metric("trace", mean)?;
    cx.metric("trace_error", (variance / n).sqrt())?;
    cx.metric("trace_per_parameter", mean / dimension as f64)?;
    cx.metric("n_parameters", dimension as f64)
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "eigenvalues",
        unit: Unit::Dimensionless,
        axes: &[Axis::Component],
        doc: "Largest eigenvalues, largest first; NaN behind the number of parameters",
    },
    MetricDef {
        name: "residual",
        unit: Unit::Dimensionless,
        axes: &[Axis::Component],
        doc: "Bound of the error of each",
    },
    scalar("largest", Unit::Dimensionless, "Largest eigenvalue"),
    scalar("smallest", Unit::Dimensionless, "Smallest eigenvalue that was found"),
    scalar("trace", Unit::Dimensionless, "Hutchinson's estimate of the trace"),
    scalar("trace_error", Unit::Dimensionless, "Its standard error"),
    scalar("trace_per_parameter", Unit::Dimensionless, "Trace over the number of parameters"),
    scalar("n_parameters", Unit::Count, "Parameters that counted"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "eigenvalues",
    title: "Largest eigenvalues of the Hessian",
    kind: FigureKind::Lines,
    metrics: &["eigenvalues"],
    log_x: true,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvalues_of_an_explicit_matrix() {
        let a = init::normal(1, "a", &[40, 40], 1.0, Device::Cpu).to_kind(Kind::Double);
        let a = &a + a.transpose(0, 1);
        let (values, _) = a.linalg_eigh("L");
        let mut expected = to_vec(&values);
        expected.reverse();
        let start = random_vector(&a.get(0), 0);
        // As many iterations as dimensions: all of them.
        let all = lanczos(&start, 100, |v| Ok(a.matmul(v))).unwrap();
        assert_eq!(all.len(), 40);
        for (found, expected) in all.iter().zip(&expected) {
            assert!((found.0 - expected).abs() < 1e-9, "{found:?} {expected}");
        }
        // Fewer: the residual bounds the error.
        let some = lanczos(&start, 15, |v| Ok(a.matmul(v))).unwrap();
        assert!(some[0].1 > 1e-6, "not converged");
        let error = expected.iter().map(|e| (e - some[0].0).abs()).fold(f64::INFINITY, f64::min);
        assert!(error <= some[0].1, "{error} {}", some[0].1);
        // An invariant subspace ends the iteration.
        let projector = Tensor::ones([5, 5], (Kind::Double, Device::Cpu));
        let start = Tensor::ones([5], (Kind::Double, Device::Cpu));
        let found = lanczos(&start, 5, |v| Ok(projector.matmul(v))).unwrap();
        assert!(found.len() == 1 && (found[0].0 - 5.0).abs() < 1e-12);
    }
}
