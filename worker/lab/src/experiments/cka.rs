//! Do two models represent the same inputs alike, layer by layer?
//!
//! # What it measures
//! Linear centred kernel alignment between the activations X and Y of two models on the same rows, `|Yᵀ X|² / (|Xᵀ X|
//! |Yᵀ Y|)` with centred columns, in float64: `cka_layers` `[layer, partner_layer]` between every layer of the first model
//! and every layer of the second, `cka` `[layer]` its diagonal. A layer's activation is the residual stream behind a
//! transformer's block, or the neurons of a perceptron's layer; every position of every row is a sample. Rows are those
//! given, or else the inputs that the recipe names as telling (there only the last position counts).
//!
//! # Interpretation
//! 1 means equal up to rotation and scale. Values between seeds are high in early layers and fall with depth; with few samples
//! (fewer than the width) CKA is high for anything.
//!
//! # Source
//! Kornblith et al. 2019, arXiv 1905.00414, section 3.

use sweep_lens::{Architecture, Hook, Hooks, Kind, Run, Site, Tensor, Transformer};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    compare::{Couple, Shown},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{ParamSet, params},
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct Cka;

params! {
    /// What both models are shown.
    pub struct Params {
        /// Prompts as lists of token ids.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Prompts as texts for the first model's tokenizer.
        text: Vec<String> = Vec::new();
        /// Whether the BOS token goes in front; null: the model's default for texts, no for tokens.
        prepend_bos: Option<bool> = None;
        /// Samples that are kept at most, evenly spread.
        max_samples: u64 = 4096, min = 2.0, max = 65536.0;
    }
}

impl Experiment for Cka {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "cka",
        version: 1,
        summary: "Measures how alike two models represent the same inputs in each layer",
        source: "Kornblith et al. 2019, arXiv 1905.00414 (linear CKA)",
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
        couple.check_same_vocabulary()?;
        let shown = couple.token_set(&params.tokens, &params.text, params.prepend_bos)?;
        let samples = |model| Layers::of(model, &shown, params.max_samples);
        let first = samples(couple.first.model)?;
        cx.progress(1, 3)?;
        let second = samples(couple.second.model)?;
        cx.progress(2, 3)?;
        let (n, m) = (first.0.len(), second.0.len());
        let alignment = |a: &Tensor, b: &Tensor| cka(a, b);
        let all: Vec<f64> =
            first.0.iter().flat_map(|a| second.0.iter().map(|b| alignment(a, b))).collect();
        let diagonal = (0..n.min(m)).map(|layer| all[layer * m + layer]).collect();
        cx.metric("cka", Value::vector(diagonal))?;
        cx.metric("cka_layers", Value::array(vec![n, m], all, vec![None, None]))
    }
}

/// Linear CKA of centred activations `[n, d]` and `[n, e]`; NaN where one of them is constant.
pub(crate) fn cka(x: &Tensor, y: &Tensor) -> f64 {
    let alignment = |a: &Tensor, b: &Tensor| {
        a.transpose(0, 1).matmul(b).square().sum(Kind::Double).double_value(&[])
    };
    // The root of a square is exact: a model has alignment 1 with itself.
    alignment(x, y) / (alignment(x, x) * alignment(y, y)).sqrt()
}

/// Centred activations of every layer, f64 `[n, d]`.
struct Layers(Vec<Tensor>);

impl Layers {
    fn of(model: &Transformer, shown: &Shown, max_samples: u64) -> Result<Self> {
        let site = match model.config().architecture {
            Architecture::Mlp => Site::MlpPost,
            Architecture::Transformer => Site::ResidPost,
        };
        let n_layers = model.config().n_layers as usize;
        let mut found: Vec<Vec<Tensor>> = (0..n_layers).map(|_| Vec::new()).collect();
        let run =
            Run { skip_unembed: true, last_position_only: shown.last_position_only, ..Run::FULL };
        for (tokens, lengths) in shown.batches() {
            let mut kept = Kept { site, found: Vec::new() };
            let _ = model.forward(&tokens, &run, &mut kept);
            for (layer, activation) in kept.found.into_iter().enumerate().take(n_layers) {
                let is_whole = activation.size()[1] != lengths[0] as i64;
                for (row, length) in (0i64..).zip(&lengths) {
                    let row = activation.get(row);
                    let row = if is_whole { row } else { row.narrow(0, 0, *length as i64) };
                    found[layer].push(row.to_kind(Kind::Double));
                }
            }
        }
        let layers = found.into_iter().map(|rows| {
            let all = Tensor::cat(&rows, 0);
            let n = all.size()[0];
            if n < 2 {
                return Err(Error::params("tokens", "expected two or more samples, found one"));
            }
            let stride = n.unsigned_abs().div_ceil(max_samples).max(1) as i64;
            let kept = all.slice(0, 0, n, stride);
            Ok(&kept - kept.mean_dim(&[0i64][..], true, Kind::Double))
        });
        Ok(Self(layers.collect::<Result<_>>()?))
    }
}

struct Kept {
    site: Site,
    found: Vec<Tensor>,
}

impl Hooks for Kept {
    fn wants(&self, hook: Hook) -> bool {
        matches!(hook, Hook::Block { site, .. } if site == self.site)
    }

    fn visit(&mut self, _hook: Hook, activation: Tensor) -> Tensor {
        self.found.push(activation.shallow_clone());
        activation
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "cka",
        unit: Unit::Ratio,
        axes: &[Axis::Layer],
        doc: "Linear CKA between the same layers of the two models",
    },
    MetricDef {
        name: "cka_layers",
        unit: Unit::Ratio,
        axes: &[Axis::Layer, Axis::PartnerLayer],
        doc: "Linear CKA between every layer of the first and every layer of the second model",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "cka",
    title: "Alignment of representations",
    kind: FigureKind::Pairs,
    metrics: &["cka"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use sweep_lens::{Device, init};

    use super::*;

    fn centred(seed: u64, n: i64, d: i64) -> Tensor {
        let drawn = init::normal(seed, "x", &[n, d], 1.0, Device::Cpu).to_kind(Kind::Double);
        &drawn - drawn.mean_dim(&[0i64][..], true, Kind::Double)
    }

    #[test]
    fn alignment_knows_neither_rotation_nor_scale() {
        let x = centred(1, 200, 8);
        let (rotation, _, _) =
            init::normal(2, "q", &[8, 8], 1.0, Device::Cpu).to_kind(Kind::Double).svd(true, true);
        assert_eq!(cka(&x, &x), 1.0, "exactly");
        assert!((cka(&x, &(x.matmul(&rotation) * 3.5)) - 1.0).abs() < 1e-12);
        let y = centred(3, 200, 5);
        assert!((cka(&x, &y) - cka(&y, &x)).abs() < 1e-14);
        assert!(cka(&x, &y) < 0.1, "independent samples");
        // Through kernels: <K, L> / (|K| |L|).
        let (k, l) = (x.matmul(&x.transpose(0, 1)), y.matmul(&y.transpose(0, 1)));
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
        let expected = dot(&k, &l) / (dot(&k, &k) * dot(&l, &l)).sqrt();
        assert!((cka(&x, &y) - expected).abs() < 1e-12);
    }
}
