//! How alike are heads of equal index in two models, as weights?
//!
//! # What it measures
//! Of two models with equal layers, heads and widths, whatever else they have: `cosine` `[layer, head]` between all weights of the head of that index in
//! both (queries, keys, values, output), `other_cosine` `[layer, head]`, the mean cosine with the other heads of the layer, the control, and
//! `match` `[layer, head]`, the index of the most similar head of the layer in the second model (ties: the lowest). `same_index` is the fraction of heads whose
//! most similar one has their own index.
//!
//! # Interpretation
//! At the first checkpoint: whether models began with the same heads (1), or independently (0). Later: how much of it is left, against `other_cosine`. Heads
//! are compared as they stand; a head that differs only by a change of basis inside it is not recognised.
//!
//! # Source
//! Nanda 2022, 200 Concrete Open Problems, 5.10 (models of one suite share initial heads).

use sweep_lens::{Config, Device, Kind, Tensor, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    compare::Couple,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::NoParams,
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct HeadSimilarity;

impl Experiment for HeadSimilarity {
    type Params = NoParams;
    const CARD: &'static Card = &Card {
        name: "head-similarity",
        version: 1,
        summary: "Measures how alike heads of equal index are in two models",
        source: "Nanda 2022, 200 Concrete Open Problems, 5.10",
        stage: Stage::Compare,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: &[],
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &NoParams) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, _params: NoParams, cx: &mut Context<'_>) -> Result<()> {
        let (a, b) = (&couple.first.checkpoint, &couple.second.checkpoint);
        let shape = |config: &Config| (config.n_layers, config.n_heads);
        if shape(&a.config) != shape(&b.config) {
            let ((a_layers, a_heads), (b_layers, b_heads)) = (shape(&a.config), shape(&b.config));
            return Err(Error::Unsupported(format!(
                "the models have {a_layers} layers of {a_heads} heads and {b_layers} layers of {b_heads}"
            )));
        }
        let similar = similarities(&a.config, (&a.weights, &b.weights))?;
        let (n_layers, n_heads) = (similar.len(), a.config.n_heads as usize);
        let shape = vec![n_layers, n_heads];
        let table = |data: Vec<f64>| Value::array(shape.clone(), data, vec![None; 2]);
        let (mut same, mut other, mut best) = (Vec::new(), Vec::new(), Vec::new());
        for (layer, cosines) in similar.iter().enumerate() {
            for (head, row) in to_vec(cosines).chunks(n_heads).enumerate() {
                let others = row.iter().enumerate().filter(|(index, _)| *index != head);
                let sum: f64 = others.map(|(_, cosine)| cosine).sum();
                same.push(row[head]);
                other.push(sum / (n_heads as f64 - 1.0));
                let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let found = row.iter().position(|cosine| *cosine == most);
                best.push(found.map_or(f64::NAN, |index| index as f64));
            }
            cx.progress(layer as u64 + 1, n_layers as u64)?;
        }
        let own = best.iter().enumerate().filter(|(at, found)| **found == (at % n_heads) as f64);
        cx.metric("same_index", own.count() as f64 / best.len() as f64)?;
        cx.metric("cosine", table(same))?;
        cx.metric("other_cosine", table(other))?;
        cx.metric("match", table(best))
    }
}

/// Cosines of every head of the first with every head of the second model, a matrix f64 `[head, head]` per layer.
fn similarities(config: &Config, (a, b): (&Weights, &Weights)) -> Result<Vec<Tensor>> {
    let flat = |weights: &Weights, layer: i64| -> Result<Tensor> {
        let parts = ["W_Q", "W_K", "W_V", "W_O"].map(|part| {
            let tensor = weights.require(&format!("blocks.{layer}.attn.{part}"))?;
            let exact = tensor.to_device(Device::Cpu).to_kind(Kind::Double);
            if exact.size()[0] == config.n_heads {
                return Ok(exact.flatten(1, -1));
            }
            Err(Error::Unsupported("heads that share keys have no weights of their own".to_owned()))
        });
        Ok(Tensor::cat(&parts.into_iter().collect::<Result<Vec<_>>>()?, 1)) // [head, weight]
    };
    let unit = |x: Tensor| &x / x.norm_scalaropt_dim(2, &[-1i64][..], true);
    let layer = |layer: i64| {
        let (a, b) = (flat(a, layer)?, flat(b, layer)?);
        if a.size() != b.size() {
            let (a, b) = (a.size(), b.size());
            let problem =
                format!("heads and weights are {a:?} in one and {b:?} in the other model");
            return Err(Error::Unsupported(problem));
        }
        Ok(unit(a).matmul(&unit(b).transpose(0, 1)))
    };
    (0..config.n_layers).map(layer).collect()
}

const HEADS: &[Axis] = &[Axis::Layer, Axis::Head];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "cosine",
        unit: Unit::Ratio,
        axes: HEADS,
        doc: "Cosine between the weights of the head of this index in both models",
    },
    MetricDef {
        name: "other_cosine",
        unit: Unit::Ratio,
        axes: HEADS,
        doc: "Mean cosine with the other heads of the layer; NaN where there is none",
    },
    MetricDef {
        name: "match",
        unit: Unit::Count,
        axes: HEADS,
        doc: "Index of the most similar head of the layer in the second model",
    },
    MetricDef {
        name: "same_index",
        unit: Unit::Probability,
        axes: &[],
        doc: "Heads whose most similar one has their own index",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "same-index",
        title: "Heads that are most similar to the one of their index",
        kind: FigureKind::Pairs,
        metrics: &["same_index"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "cosine",
        title: "Cosine of heads of equal index",
        kind: FigureKind::HeatMap,
        metrics: &["cosine"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use sweep_lens::{Parameter, init};

    use super::*;

    fn draw(seed: u64, config: &Config) -> Weights {
        let normal = |p: &Parameter| init::normal(seed, &p.name, &p.shape, 1.0, Device::Cpu);
        config.parameters().iter().map(|p| (p.name.clone(), normal(p))).collect()
    }

    #[test]
    fn heads_are_found_where_they_are() {
        let config = Config::toy(1, 4, 2, 7, 5);
        let (a, mut b) = (draw(1, &config), draw(2, &config));
        for part in ["W_Q", "W_K", "W_V", "W_O"] {
            // The first head of the second model is the second one of the first, twice as large.
            let name = format!("blocks.0.attn.{part}");
            let mixed = b.require(&name).unwrap().copy();
            mixed.get(0).copy_(&(a.require(&name).unwrap().get(1) * 2.0));
            b.insert(name.as_str(), mixed);
        }
        // A perceptron beside the heads does not matter.
        b.insert("blocks.0.mlp.W_in", Tensor::zeros([4, 8], (Kind::Float, Device::Cpu)));
        let found = similarities(&config, (&a, &b)).unwrap();
        let found = to_vec(&found[0]);
        assert!((found[2] - 1.0).abs() < 1e-12 && found[3].abs() < 0.7, "{found:?}");
        let other = Config::toy(1, 6, 2, 7, 5);
        let error = similarities(&config, (&a, &draw(3, &other))).unwrap_err();
        assert!(error.to_string().contains("in one and"), "{error}");
    }
}
