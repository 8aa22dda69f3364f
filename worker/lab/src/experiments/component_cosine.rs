//! Do the two components of a head, what it looks at and what it moves, turn to their final form together?
//!
//! # What it measures
//! For every checkpoint and head, the cosine (Frobenius) of the QK circuit `W_Q W_Kᵀ` and of the OV circuit `W_V W_O` to those of the
//! last checkpoint, `qk_cosine` and `ov_cosine` `[layer, head]`, and their norms `qk_norm`, `ov_norm`. From these `qk_half` and `ov_half`
//! `[layer, head]`: the first checkpoint from which the cosine stays at `half` or above; `half_lead`, the second minus
//! the first (steps; positive: QK first). `together` is the Pearson correlation of both cosines over the checkpoints. All are independent of the
//! basis inside a head; the rotation of rotary models is left out.
//!
//! # Interpretation
//! Two components that need each other grow at one rate and turn together (Jermyn and Shlegeris): `half_lead` near 0 against the width of the
//! phase change, `together` near 1. A head that is there from the start, or never forms, turns slowly in both. The cosine to the end is 1 at the
//! last checkpoint by construction and rises in any training: compare heads that form with those that do not.
//!
//! # Source
//! Jermyn and Shlegeris 2022, Multi-component learning and S-curves; Elhage et al. 2021 (QK and OV circuits).

use sweep_lens::{Config, Kind, Tensor, Weights};

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, of_head},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{ParamSet, params},
    sink::Context,
    trajectory::{TrajectoryInput, load_checked},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct ComponentCosine;

params! {
    /// When a component counts as formed.
    pub struct Params {
        /// Cosine to the last checkpoint.
        half: f64 = 0.5, min = 0.0, max = 1.0;
    }
}

impl Experiment for ComponentCosine {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "component-cosine",
        version: 1,
        summary: "Measures when the QK and OV circuits of every head turn to their final form",
        source: "Jermyn and Shlegeris 2022, Multi-component learning and S-curves; Elhage et al. 2021",
        stage: Stage::Trajectory,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoints
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let checkpoints = input.checkpoints()?;
        let steps = checkpoints.steps().to_vec();
        let last = *steps.last().expect("there is a checkpoint");
        let end = load_checked(checkpoints, last, Self::CARD)?;
        let end = Heads::of(&end.config, &end.weights)?;
        let shape = end.shape;
        let (mut qk, mut ov) = (Vec::new(), Vec::new());
        for (index, &step) in steps.iter().enumerate() {
            let here = load_checked(checkpoints, step, Self::CARD)?;
            let here = Heads::of(&here.config, &here.weights)?;
            let cosine = |of: fn(&Heads) -> &Circuit| {
                let (a, b) = (of(&here), of(&end));
                a.dot(b) / (a.dot(a) * b.dot(b)).sqrt()
            };
            let found = [
                ("qk_cosine", cosine(|heads| &heads.qk)),
                ("ov_cosine", cosine(|heads| &heads.ov)),
                ("qk_norm", here.qk.dot(&here.qk).sqrt()),
                ("ov_norm", here.ov.dot(&here.ov).sqrt()),
            ];
            qk.push(to_vec(&found[0].1));
            ov.push(to_vec(&found[1].1));
            for (name, value) in found {
                let shape = shape.map(|length| length as i64);
                cx.metric_at(name, step, Value::from_tensor(&value.view(shape)))?;
            }
            cx.progress(index as u64 + 1, steps.len() as u64)?;
        }
        let n = shape[0] * shape[1];
        let curve =
            |of: &[Vec<f64>], head: usize| of.iter().map(|row| row[head]).collect::<Vec<_>>();
        let formed = |of: &[Vec<f64>], head: usize| {
            let curve = curve(of, head);
            let below = curve.iter().rposition(|cosine| cosine.is_nan() || *cosine < params.half);
            steps.get(below.map_or(0, |at| at + 1)).map_or(f64::NAN, |step| *step as f64)
        };
        let of_heads = |read: &dyn Fn(usize) -> f64| {
            Value::array(shape.to_vec(), (0..n).map(read).collect(), vec![None; 2])
        };
        cx.metric("qk_half", of_heads(&|head| formed(&qk, head)))?;
        cx.metric("ov_half", of_heads(&|head| formed(&ov, head)))?;
        cx.metric("half_lead", of_heads(&|head| formed(&ov, head) - formed(&qk, head)))?;
        cx.metric("together", of_heads(&|head| pearson(&curve(&qk, head), &curve(&ov, head))))
    }
}

/// Products `left right` of thin factors, one per head, layers one after the other.
struct Circuit {
    left: Tensor,  // [head, d_model, d_head]
    right: Tensor, // [head, d_head, d_model]
}

impl Circuit {
    /// Inner products of equal heads of two models, f64 `[head]`: `tr((L R)ᵀ L' R') = Σ (Lᵀ L') ∘ (R R'ᵀ)`.
    fn dot(&self, other: &Self) -> Tensor {
        let inner = self.left.transpose(1, 2).matmul(&other.left);
        let outer = self.right.matmul(&other.right.transpose(1, 2));
        (inner * outer).sum_dim_intlist(&[1i64, 2][..], false, Kind::Double)
    }
}

/// Both circuits of all heads of a model.
struct Heads {
    /// Layers, heads of each.
    shape: [usize; 2],
    qk: Circuit,
    ov: Circuit,
}

impl Heads {
    fn of(config: &Config, weights: &Weights) -> Result<Self> {
        let group = config.n_heads / config.n_key_value_heads;
        let all = |part: &str| -> Result<Tensor> {
            let of_layer = |layer: i64| -> Result<Tensor> {
                let w = weights.require(&format!("blocks.{layer}.attn.{part}"))?;
                let w = w.to_kind(Kind::Double);
                let is_grouped = group > 1 && w.size()[0] != config.n_heads;
                Ok(if is_grouped { w.repeat_interleave_self_int(group, 0, None) } else { w })
            };
            let layers = (0..config.n_layers).map(of_layer).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(&layers, 0))
        };
        if config.n_layers == 0 || weights.get("blocks.0.attn.W_Q").is_none() {
            return Err(Error::Unsupported("the model has no attention heads".to_owned()));
        }
        Ok(Self {
            shape: [config.n_layers as usize, config.n_heads as usize],
            qk: Circuit { left: all("W_Q")?, right: all("W_K")?.transpose(1, 2) },
            ov: Circuit { left: all("W_V")?, right: all("W_O")? },
        })
    }
}

/// NaN of constant curves.
fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |read: &dyn Fn(f64, f64) -> f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| read(a - mean_a, b - mean_b)).sum()
    };
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}

const METRICS: &[MetricDef] = &[
    of_head("qk_cosine", Unit::Ratio, "Cosine of the QK circuit to that of the last checkpoint"),
    of_head("ov_cosine", Unit::Ratio, "Cosine of the OV circuit to that of the last checkpoint"),
    of_head("qk_norm", Unit::Norm, "Norm of the QK circuit"),
    of_head("ov_norm", Unit::Norm, "Norm of the OV circuit"),
    of_head("qk_half", Unit::Steps, "First checkpoint from which `qk_cosine` stays at `half`"),
    of_head("ov_half", Unit::Steps, "First checkpoint from which `ov_cosine` stays at `half`"),
    of_head("half_lead", Unit::Steps, "`ov_half` minus `qk_half`; positive: QK first"),
    of_head("together", Unit::Ratio, "Correlation of both cosines over the checkpoints"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "qk",
        title: "Cosine of each head's QK circuit to its final form",
        kind: FigureKind::Lines,
        metrics: &["qk_cosine"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "ov",
        title: "Cosine of each head's OV circuit to its final form",
        kind: FigureKind::Lines,
        metrics: &["ov_cosine"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "half-lead",
        title: "Steps by which QK is ahead of OV",
        kind: FigureKind::HeatMap,
        metrics: &["half_lead"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sweep_lens::{Device, checkpoint::Checkpoint, init};

    use super::*;
    use crate::{MemorySink, SeriesTable, trajectory::Checkpoints};

    /// Random heads at step 0 whose OV circuit turns to its end at step 10, and QK at step 20; at 20 written in another basis
    /// inside the head.
    struct Turning(Vec<u64>);

    fn draw(seed: u64) -> (Config, Weights) {
        let config = Config::toy(1, 6, 2, 7, 5);
        let parameters = config.parameters();
        let normal =
            |p: &sweep_lens::Parameter| init::normal(seed, &p.name, &p.shape, 1.0, Device::Cpu);
        let weights = parameters.iter().map(|p| (p.name.clone(), normal(p))).collect();
        (config, weights)
    }

    impl Checkpoints for Turning {
        fn steps(&self) -> &[u64] {
            &self.0
        }

        fn load(&mut self, step: u64) -> Result<Checkpoint> {
            let (config, mut weights) = draw(1);
            let (_, end) = draw(2);
            let taken: &[&str] = match step {
                0 => &[],
                10 => &["W_V", "W_O"],
                _ => &["W_V", "W_O", "W_Q", "W_K"],
            };
            for part in taken {
                let name = format!("blocks.0.attn.{part}");
                weights.insert(name.as_str(), end.require(&name)?.shallow_clone());
            }
            if step == 20 {
                let scale = Tensor::from_slice(&[2.0f32, 0.5, 4.0]);
                let change = |weights: &mut Weights, part: &str, factor: Tensor| {
                    let name = format!("blocks.0.attn.{part}");
                    let changed = weights.require(&name).unwrap() * factor;
                    weights.insert(name.as_str(), changed);
                };
                change(&mut weights, "W_Q", scale.shallow_clone());
                change(&mut weights, "W_K", scale.reciprocal());
            }
            let weights_hash = String::new();
            Ok(Checkpoint { config, weights, step, extra: json!(null), weights_hash })
        }
    }

    #[test]
    fn components_that_turn_at_different_times_are_told_apart() {
        let mut checkpoints = Turning(vec![0, 10, 20, 30]);
        let table = SeriesTable::default();
        let input = TrajectoryInput {
            checkpoints: Some(&mut checkpoints),
            series: &table,
            device: Device::Cpu,
        };
        let mut sink = MemorySink::default();
        crate::trajectory(&ComponentCosine, &json!({}), input, &mut sink).unwrap();
        let at = |name: &str, step: u64| sink.metrics[name][&step].data.clone();
        assert_eq!((at("qk_half", 30), at("ov_half", 30)), (vec![20.0; 2], vec![10.0; 2]));
        assert_eq!(at("half_lead", 30), [-10.0; 2]);
        for (name, step) in [("ov_cosine", 10), ("qk_cosine", 20), ("qk_cosine", 30)] {
            assert!(
                at(name, step).iter().all(|cosine| (cosine - 1.0).abs() < 1e-6),
                "{name} {step}"
            );
        }
        assert!(at("qk_cosine", 10).iter().all(|cosine| cosine.abs() < 0.9));
        // Against the products themselves.
        let (_, weights) = draw(1);
        let head = |part: &str| {
            let w = weights.require(&format!("blocks.0.attn.{part}")).unwrap();
            w.get(1).to_kind(Kind::Double)
        };
        let product = head("W_Q").matmul(&head("W_K").transpose(0, 1));
        let norm = product.square().sum(Kind::Double).double_value(&[]).sqrt();
        assert!((at("qk_norm", 0)[1] - norm).abs() < 1e-9);
    }
}
