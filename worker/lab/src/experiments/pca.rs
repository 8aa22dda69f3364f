//! Principal components of a training trajectory.
//!
//! # What it measures
//! Each checkpoint is one row: all weights flattened (`of: weights`), or the logits on the recipe's probe inputs
//! flattened (`of: logits`). Rows are centred over checkpoints and decomposed by the Gram trick (D10): `evr`,
//! the share of variance per component; `pc`, the coordinates of each checkpoint; `turn_angle`, the angle in the
//! space of the kept components between the moves into and out of a checkpoint (first and last have none).
//! Sign: the loading of largest magnitude in each component is positive.
//!
//! # Interpretation
//! Two components usually dominate and the path is a bent arc; a large turn angle marks a corner, often the
//! boundary of a phase.
//!
//! # Source
//! Olsson et al. 2022 (per-token loss PCA); standard PCA. With `save_basis`, `basis.safetensors` holds components
//! and mean, so that other checkpoints can be projected.

use std::collections::BTreeMap;

use sweep_lens::{
    Device, Kind, Run, Tensor, Transformer, checkpoint::Checkpoint, checkpoint::encode_tensors,
};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    error::{Error, Result},
    experiment::{Experiment, Inputs, TokenSet},
    gram::{Components, Rows, components},
    params::{ParamSet, params},
    recipes::RECIPES,
    sink::Context,
    trajectory::{Checkpoints, TrajectoryInput, load_checked},
    value::Value,
};

/// See the module documentation.
pub struct Pca;

params! {
    /// What the rows are and how much of them to keep.
    pub struct Params {
        /// What a row is made of: all weights, or logits on the recipe's probe inputs.
        of: String = "weights".to_owned(), choices = ["weights", "logits"];
        /// Components to keep; never more than checkpoints less one.
        components: u64 = 3, min = 1.0, max = 64.0;
        /// Memory for rows held at once, in MiB; a smaller value loads checkpoints more often.
        memory_mib: u64 = 2048, min = 1.0;
        /// Also write components and mean as `basis.safetensors`.
        save_basis: bool = false;
    }
}

impl Experiment for Pca {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "pca",
        version: 1,
        summary: "Follows the trajectory of weights or logits in its principal components",
        source: "Principal components by the Gram trick; Olsson et al. 2022",
        stage: Stage::Trajectory,
        requires: Requires::ANY,
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
        let device = input.device;
        let checkpoints = input.checkpoints()?;
        let steps = checkpoints.steps().to_vec();
        let mut rows = Trajectory {
            n_rows_made: 0,
            probe: None,
            of_logits: params.of == "logits",
            checkpoints,
            steps: &steps,
            device,
            cx,
            shapes: Vec::new(),
        };
        let found = components(&mut rows, params.components as usize, params.memory_mib << 20)?;
        let shapes = rows.shapes;
        cx.metric("evr", Value::vector(found.explained_variance_ratio.clone()))?;
        for (&step, coordinates) in steps.iter().zip(&found.coordinates) {
            cx.metric_at("pc", step, Value::vector(coordinates.clone()))?;
        }
        for (index, window) in found.coordinates.windows(3).enumerate() {
            cx.metric_at("turn_angle", steps[index + 1], turn_angle(window))?;
        }
        if params.save_basis {
            cx.artifact("basis.safetensors", basis_file(&found, &shapes)?)?;
        }
        Ok(())
    }
}

/// Checkpoints as rows.
struct Trajectory<'a, 'cx> {
    checkpoints: &'a mut dyn Checkpoints,
    steps: &'a [u64],
    of_logits: bool,
    device: Device,
    cx: &'a mut Context<'cx>,
    n_rows_made: u64,
    /// Inputs of `of: logits`, made at the first row.
    probe: Option<TokenSet>,
    /// Name and shape of the parts of a row.
    shapes: Vec<(String, Vec<i64>)>,
}

impl Rows for Trajectory<'_, '_> {
    fn count(&self) -> usize {
        self.steps.len()
    }

    fn row(&mut self, index: usize) -> Result<Tensor> {
        self.n_rows_made += 1;
        let n_steps = self.steps.len() as u64;
        // Rows may be made more than once, so the total is a lower bound.
        self.cx.progress(self.n_rows_made.min(n_steps), n_steps)?;
        let checkpoint = load_checked(self.checkpoints, self.steps[index], Pca::CARD)?;
        let parts: Vec<(String, Tensor)> = if self.of_logits {
            vec![("logits".to_owned(), self.logits(checkpoint)?)]
        } else {
            checkpoint.weights.into_iter().collect()
        };
        self.shapes = parts.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
        let flat: Vec<Tensor> = parts.iter().map(|(_, tensor)| tensor.reshape([-1])).collect();
        Ok(Tensor::cat(&flat, 0).to_device(self.device))
    }
}

impl Trajectory<'_, '_> {
    /// Logits on the probe inputs of the recipe that trained the model.
    fn logits(&mut self, checkpoint: Checkpoint) -> Result<Tensor> {
        let probe = match self.probe.take() {
            Some(probe) => probe,
            None => probe_of(&checkpoint, self.device)?,
        };
        let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(self.device))?;
        let run = Run { last_position_only: probe.last_position_only, ..Run::FULL };
        let batches = probe.tokens.split(probe.rows_per_batch.max(1), 0);
        let logits: Vec<Tensor> =
            batches.iter().map(|tokens| model.forward(tokens, &run, &mut ())).collect();
        self.probe = Some(probe);
        Ok(Tensor::cat(&logits, 0))
    }
}

fn probe_of(checkpoint: &Checkpoint, device: Device) -> Result<TokenSet> {
    let name = checkpoint.extra.get("recipe").and_then(serde_json::Value::as_str);
    let recipe =
        RECIPES.iter().find(|recipe| Some(recipe.card().name) == name).ok_or_else(|| {
            Error::Unsupported(format!(
                "`pca` of logits needs a model trained by a known recipe, found {}",
                name.map_or("none".to_owned(), |name| format!("`{name}`"))
            ))
        })?;
    let params = checkpoint.extra.get("params").unwrap_or(&serde_json::Value::Null);
    recipe.probe(params, device)
}

/// Angle in `[0, π]` between the moves into and out of the middle point; NaN if there is no move.
fn turn_angle(window: &[Vec<f64>]) -> f64 {
    let [before, here, after] = window else { return f64::NAN };
    let into: Vec<f64> = here.iter().zip(before).map(|(a, b)| a - b).collect();
    let out: Vec<f64> = after.iter().zip(here).map(|(a, b)| a - b).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    (dot(&into, &out) / (dot(&into, &into) * dot(&out, &out)).sqrt()).clamp(-1.0, 1.0).acos()
}

/// Components `[k, …]` and mean of every part of a row, as f32 safetensors.
pub(super) fn basis_file(found: &Components, shapes: &[(String, Vec<i64>)]) -> Result<Vec<u8>> {
    let k = found.basis.size()[0];
    let mut start = 0;
    let mut tensors = Vec::new();
    for (name, shape) in shapes {
        let length: i64 = shape.iter().product();
        let part = found.basis.narrow(1, start, length).to_kind(Kind::Float);
        let mean = found.mean.narrow(0, start, length).to_kind(Kind::Float);
        tensors
            .push((format!("components/{name}"), part.reshape([&[k], shape.as_slice()].concat())));
        tensors.push((format!("mean/{name}"), mean.reshape(shape.as_slice())));
        start += length;
    }
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    Ok(encode_tensors(named, &BTreeMap::new())?)
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "evr",
        unit: Unit::Ratio,
        axes: &[Axis::Component],
        doc: "Share of the variance over checkpoints that each component explains",
    },
    MetricDef {
        name: "pc",
        unit: Unit::Dimensionless,
        axes: &[Axis::Component],
        doc: "Coordinates of the checkpoint",
    },
    MetricDef {
        name: "turn_angle",
        unit: Unit::Radians,
        axes: &[],
        doc: "Angle between the moves into and out of the checkpoint",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "path",
        title: "Trajectory in the first two principal components",
        kind: FigureKind::Scatter,
        metrics: &["pc"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "turns",
        title: "Turn angle",
        kind: FigureKind::Lines,
        metrics: &["turn_angle"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;

    #[test]
    fn turn_angles() {
        let angle = |points: [[f64; 2]; 3]| turn_angle(&points.map(|point| point.to_vec()));
        assert!(angle([[0., 0.], [1., 0.], [3., 0.]]).abs() < 1e-7);
        assert!((angle([[0., 0.], [1., 0.], [1., 5.]]) - PI / 2.0).abs() < 1e-12);
        assert!((angle([[0., 0.], [1., 0.], [0., 0.]]) - PI).abs() < 1e-7);
        assert!(angle([[0., 0.], [0., 0.], [1., 0.]]).is_nan());
    }
}
