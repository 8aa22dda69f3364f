//! The shape of a model's representations: how many directions it uses, sinks of attention, dead neurons.
//!
//! # What it measures
//! Over all counted positions of a text, for the residual stream behind each block with centred covariance eigenvalues λ:
//! `participation_ratio` `(Σλ)² / Σλ²`; `effective_rank` `exp(H(σ / Σσ))` of the singular values `σ = √λ` (D40);
//! `residual_norm`, mean Euclidean norm; `outlier_ratio`, largest over median root mean square of a dimension (massive activations).
//! `sink` `[layer, head]`: mean attention that queries behind the first position pay to the first one; `sink_fraction` `[layer]`:
//! heads with a `sink` above `sink_threshold`; `sink_uniform`: the same mean for attention spread evenly, to compare with. `dead` `[layer]`:
//! neurons never above 0 (NaN without an MLP). The text streams; moments are kept in f64.
//!
//! # Interpretation
//! Both dimensions are 1 for a line and the width for white noise; the participation ratio sees the largest directions, the effective
//! rank the tail too. A few massive dimensions make both small. Heads that rest attend to the first token.
//!
//! # Source
//! Gao et al. 2017 (participation ratio); Roy and Vetterli 2007 (effective rank); Sun et al. 2024, arXiv 2402.17762 (massive
//! activations); Gu et al. 2024, arXiv 2410.10781 (sinks, threshold 0.3).

use sweep_lens::{Hook, Hooks, Kind, Run, Site, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    curve::transition::quantile,
    documents::{Batch, Documents, document_params},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    neurons::counted,
    params::ParamSet,
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct Representation;

document_params! {
    /// A head is a sink from this attention to the first position on.
    sink_threshold: f64 = 0.3, min = 0.0, max = 1.0;
}

impl Experiment for Representation {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "representation",
        version: 1,
        summary: "Measures dimension and scale of the residual stream, attention sinks and dead neurons",
        source: "Gao et al. 2017; Roy and Vetterli 2007; Gu et al. 2024, arXiv 2410.10781",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let documents = Documents::new(subject, &params.wanted())?;
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| {
            let config = subject.model.config();
            let mut seen = Seen::new(config.n_layers as usize, config.n_heads as usize);
            let run = Run { stop_after_layer: Some(config.n_layers as u32 - 1), ..Run::FULL };
            documents.for_each(&subject, |batch| {
                let mut reader = Reader { seen: &mut seen, batch };
                let _ = subject.model.forward(&batch.tokens, &run, &mut reader);
                seen.count_uniform(batch);
                cx.progress(batch.progress.0, batch.progress.1)
            })?;
            seen.emit(params.sink_threshold, cx)
        })))
    }
}

/// Sums over positions.
struct Seen {
    layers: Vec<Layer>,
    /// Attention to the first position, `[layer][head]`, and the queries it is a sum over.
    sink: Vec<Vec<f64>>,
    queries: f64,
    uniform: f64,
}

#[derive(Default)]
struct Layer {
    n: f64,
    /// f64 `[d]` and `[d, d]`: mean, and products about it.
    mean: Option<Tensor>,
    products: Option<Tensor>,
    /// f64 `[d]`
    squares: Option<Tensor>,
    norms: f64,
    /// Largest activation of each neuron, `[d_mlp]`.
    best: Option<Tensor>,
}

fn sum(x: &Tensor) -> Tensor {
    x.sum_dim_intlist(&[0i64][..], false, Kind::Double)
}

fn plus(total: &mut Option<Tensor>, part: Tensor) {
    *total = Some(match total.take() {
        Some(total) => total + part,
        None => part,
    });
}

impl Layer {
    /// Adds residual streams `[place, d]`: both parts about their own means, and the means about each other.
    fn add(&mut self, resid: &Tensor) {
        let x = resid.to_kind(Kind::Double);
        let n = x.size()[0] as f64;
        if n == 0.0 {
            return;
        }
        let mean = sum(&x) / n;
        let about = &x - &mean;
        let mut products = about.transpose(0, 1).matmul(&about);
        plus(&mut self.squares, sum(&x.square()));
        self.norms += x
            .square()
            .sum_dim_intlist(&[-1i64][..], false, Kind::Double)
            .sqrt()
            .sum(Kind::Double)
            .double_value(&[]);
        let total = self.n + n;
        self.mean = Some(match self.mean.take() {
            Some(before) => {
                let shift = &mean - &before;
                products += shift.outer(&shift) * (self.n * n / total);
                before + shift * (n / total)
            }
            None => mean,
        });
        plus(&mut self.products, products);
        self.n = total;
    }

    /// Singular values over the root of n, largest first.
    fn singular_values(&self) -> Vec<f64> {
        let Some(products) = &self.products else { return Vec::new() };
        let (values, _) = (products / self.n).linalg_eigh("L");
        let mut values: Vec<f64> = to_vec(&values).iter().map(|v| v.max(0.0).sqrt()).collect();
        values.reverse();
        values
    }
}

impl Seen {
    fn new(n_layers: usize, n_heads: usize) -> Self {
        Self {
            layers: (0..n_layers).map(|_| Layer::default()).collect(),
            sink: vec![vec![0.0; n_heads]; n_layers],
            queries: 0.0,
            uniform: 0.0,
        }
    }

    /// Queries of a batch, and what they would pay to the first position if they attended evenly.
    fn count_uniform(&mut self, batch: &Batch) {
        for query in batch.rows.iter().flat_map(|row| 1..row.len()) {
            self.queries += 1.0;
            self.uniform += 1.0 / (query + 1) as f64;
        }
    }

    fn emit(&self, threshold: f64, cx: &mut Context<'_>) -> Result<()> {
        let spectra: Vec<Vec<f64>> = self.layers.iter().map(Layer::singular_values).collect();
        let each = |read: &dyn Fn(&Layer, &[f64]) -> f64| {
            Value::vector(self.layers.iter().zip(&spectra).map(|(l, s)| read(l, s)).collect())
        };
        cx.metric("participation_ratio", each(&|_, s| participation_ratio(s)))?;
        cx.metric("effective_rank", each(&|_, s| effective_rank(s)))?;
        cx.metric("residual_norm", each(&|layer, _| layer.norms / layer.n))?;
        cx.metric(
            "outlier_ratio",
            each(&|layer, _| {
                let mut squares = layer.squares.as_ref().map_or_else(Vec::new, to_vec);
                squares.sort_by(f64::total_cmp);
                let Some(largest) = squares.last() else { return f64::NAN };
                (largest / quantile(&squares, 0.5)).sqrt()
            }),
        )?;
        cx.metric(
            "dead",
            each(&|layer, _| {
                let Some(best) = &layer.best else { return f64::NAN };
                let best = to_vec(best);
                best.iter().filter(|value| **value <= 0.0).count() as f64 / best.len() as f64
            }),
        )?;
        let sink: Vec<Vec<f64>> = self
            .sink
            .iter()
            .map(|heads| heads.iter().map(|sum| sum / self.queries).collect())
            .collect();
        let fraction = |heads: &Vec<f64>| {
            heads.iter().filter(|sink| **sink > threshold).count() as f64 / heads.len() as f64
        };
        cx.metric("sink_fraction", Value::vector(sink.iter().map(fraction).collect()))?;
        cx.metric("sink_uniform", self.uniform / self.queries)?;
        let shape = vec![sink.len(), sink[0].len()];
        cx.metric("sink", Value::array(shape, sink.concat(), vec![None, None]))?;
        cx.metric("n_positions", self.layers[0].n)
    }
}

fn participation_ratio(singular_values: &[f64]) -> f64 {
    let (sum, squares) = singular_values
        .iter()
        .map(|s| s * s)
        .fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
    sum * sum / squares
}

fn effective_rank(singular_values: &[f64]) -> f64 {
    let total: f64 = singular_values.iter().sum();
    let shares = singular_values.iter().map(|s| s / total).filter(|share| *share > 0.0);
    shares.map(|share| -share * share.ln()).sum::<f64>().exp()
}

struct Reader<'a> {
    seen: &'a mut Seen,
    batch: &'a Batch,
}

impl Hooks for Reader<'_> {
    fn wants(&self, hook: Hook) -> bool {
        matches!(hook.site(), Some(Site::ResidPost | Site::Pattern | Site::MlpPost))
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        let (Some(layer), Some(site)) = (hook.layer(), hook.site()) else { return activation };
        let layer = layer as usize;
        match site {
            Site::ResidPost => {
                self.seen.layers[layer].add(&counted(&activation, &self.batch.counted));
            }
            Site::MlpPost => {
                let best = counted(&activation, &self.batch.counted).amax(&[0i64][..], false);
                let before = self.seen.layers[layer].best.take();
                self.seen.layers[layer].best = Some(
                    before.map_or_else(|| best.shallow_clone(), |before| before.maximum(&best)),
                );
            }
            _ => {
                // [batch, head, query, key] → attention to the first key of queries 1.. of each row.
                let first = activation.select(-1, 0).to_kind(Kind::Double);
                for (row, ids) in (0i64..).zip(&self.batch.rows) {
                    let inside = first.get(row).narrow(-1, 1, ids.len() as i64 - 1);
                    let heads = to_vec(&inside.sum_dim_intlist(&[-1i64][..], false, Kind::Double));
                    self.seen.sink[layer]
                        .iter_mut()
                        .zip(heads)
                        .for_each(|(sum, part)| *sum += part);
                }
            }
        }
        activation
    }
}

const LAYERS: &[Axis] = &[Axis::Layer];

const fn layer(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: LAYERS, doc }
}

const METRICS: &[MetricDef] = &[
    layer("participation_ratio", Unit::Count, "Participation ratio of the residual stream"),
    layer("effective_rank", Unit::Count, "Effective rank of the centred residual stream"),
    layer("residual_norm", Unit::Norm, "Mean norm of the residual stream"),
    layer("outlier_ratio", Unit::Ratio, "Largest over median root mean square of a dimension"),
    layer("dead", Unit::Probability, "Neurons never above 0; NaN without an MLP"),
    layer("sink_fraction", Unit::Probability, "Heads that are sinks"),
    MetricDef {
        name: "sink",
        unit: Unit::Probability,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Mean attention to the first position from behind it",
    },
    MetricDef {
        name: "sink_uniform",
        unit: Unit::Probability,
        axes: &[],
        doc: "The same for attention spread evenly",
    },
    MetricDef { name: "n_positions", unit: Unit::Count, axes: &[], doc: "Positions that counted" },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "dimension",
        title: "Dimension of the residual stream",
        kind: FigureKind::Lines,
        metrics: &["participation_ratio", "effective_rank"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "sinks",
        title: "Attention to the first position",
        kind: FigureKind::HeatMap,
        metrics: &["sink"],
        log_x: true,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use sweep_lens::{Device, init};

    use super::*;

    #[test]
    fn dimensions_by_hand_and_however_batched() {
        assert_eq!(participation_ratio(&[2.0, 2.0, 0.0]), 2.0);
        assert!((effective_rank(&[1.0, 1.0, 1.0, 0.0]) - 3.0).abs() < 1e-12);
        assert_eq!((participation_ratio(&[5.0, 0.0]), effective_rank(&[5.0, 0.0])), (1.0, 1.0));
        let x = init::normal(1, "x", &[300, 6], 1.0, Device::Cpu) + 100.0;
        let (mut whole, mut parts) = (Layer::default(), Layer::default());
        whole.add(&x);
        for (first, length) in [(0, 1), (1, 99), (100, 200)] {
            parts.add(&x.narrow(0, first, length));
        }
        let centred = x.to_kind(Kind::Double);
        let centred = &centred - centred.mean_dim(&[0i64][..], true, Kind::Double);
        let (_, expected, _) = centred.svd(true, false);
        let expected: Vec<f64> = to_vec(&expected).iter().map(|s| s / 300f64.sqrt()).collect();
        for found in [whole.singular_values(), parts.singular_values()] {
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        }
    }
}
