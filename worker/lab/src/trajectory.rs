//! Inputs of trajectory experiments, and the call that runs one.
//!
//! Main items: [`Checkpoints`] (a model's checkpoints, one in memory at a time), [`SeriesTable`]
//! (metric series), [`trajectory`].

use std::collections::BTreeMap;

use sweep_lens::{Device, checkpoint::Checkpoint};

use crate::{
    card::{Card, Stage},
    error::{Error, Result, catch},
    experiment::AnyExperiment,
    sink::{Context, Sink},
    subject::TextCodec,
    value::Value,
};

/// All checkpoints of one model. May be walked more than once, in any order.
pub trait Checkpoints {
    /// Steps in ascending order.
    fn steps(&self) -> &[u64];
    /// Loads the checkpoint of one of [`Checkpoints::steps`] onto the device of the task.
    fn load(&mut self, step: u64) -> Result<Checkpoint>;
    /// The tokenizer of the checkpoint loaded last, if it has one.
    fn text(&self) -> Option<&dyn TextCodec> {
        None
    }
}

/// One metric over the steps of one model.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Unit name.
    pub unit: String,
    /// Axis names.
    pub axes: Vec<String>,
    /// Values in ascending step order.
    pub points: Vec<(u64, Value)>,
}

/// One cell of a metric over all steps.
#[derive(Debug, Clone)]
pub struct Cell {
    /// `axis=label,…`; empty for a scalar.
    pub label: String,
    /// One per point; NaN where the label is missing.
    pub values: Vec<f64>,
}

impl Series {
    /// Splits a series into cells. Cells go by label, so that a label that is missing at some step is NaN there.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = Vec::new();
        for (point, (_, value)) in self.points.iter().enumerate() {
            for (flat, &number) in value.data.iter().enumerate() {
                let label = self.label(value, flat);
                // Cells keep their place from step to step, so the guess is nearly always right.
                let place = match cells.get(flat) {
                    Some(cell) if cell.label == label => Some(flat),
                    Some(_) | None => cells.iter().position(|cell| cell.label == label),
                };
                let place = place.unwrap_or_else(|| {
                    cells.push(Cell { label, values: vec![f64::NAN; self.points.len()] });
                    cells.len() - 1
                });
                cells[place].values[point] = number;
            }
        }
        cells
    }

    /// `axis=label,…` of an entry; empty for a scalar.
    fn label(&self, value: &Value, flat: usize) -> String {
        let mut rest = flat;
        let mut parts = Vec::with_capacity(value.shape.len());
        for (axis, &length) in value.shape.iter().enumerate().rev() {
            let name = self.axes.get(axis).map_or("axis", String::as_str);
            parts.push(format!("{name}={}", value.label(axis, rest % length)));
            rest /= length;
        }
        parts.reverse();
        parts.join(",")
    }
}

/// Full metric name → series.
pub type SeriesTable = BTreeMap<String, Series>;

/// What a trajectory experiment may read.
pub struct TrajectoryInput<'a> {
    /// Checkpoints: always if [`crate::Inputs::Checkpoints`] was asked for, else where they are known.
    pub checkpoints: Option<&'a mut dyn Checkpoints>,
    /// Series, as [`crate::Inputs::Series`] asked.
    pub series: &'a SeriesTable,
    /// Where to compute.
    pub device: Device,
}

impl<'a> TrajectoryInput<'a> {
    /// The checkpoints, of which there is at least one.
    pub fn checkpoints(&mut self) -> Result<&mut (dyn Checkpoints + 'a)> {
        match &mut self.checkpoints {
            Some(checkpoints) if !checkpoints.steps().is_empty() => Ok(&mut **checkpoints),
            Some(_) => Err(Error::Input("the model has no checkpoints".to_owned())),
            None => Err(Error::Input("expected checkpoints, found none".to_owned())),
        }
    }

    /// The series of one metric, with at least one point.
    pub fn series(&self, metric: &str) -> Result<&'a Series> {
        let series = self.series.get(metric);
        series.filter(|series| !series.points.is_empty()).ok_or_else(|| {
            Error::Input(format!("expected points of metric `{metric}`, found none"))
        })
    }

    fn last_step(&self) -> u64 {
        let checkpoint = self.checkpoints.as_ref().and_then(|c| c.steps().last().copied());
        let point = self.series.values().filter_map(|s| Some(s.points.last()?.0)).max();
        checkpoint.or(point).unwrap_or(0)
    }
}

/// Loads one checkpoint and checks that it is what `card` asks for.
pub(crate) fn load_checked(
    checkpoints: &mut dyn Checkpoints,
    step: u64,
    card: &Card,
) -> Result<Checkpoint> {
    let checkpoint = checkpoints.load(step)?;
    let recipe = checkpoint.extra.get("recipe").and_then(serde_json::Value::as_str);
    card.requires.check(card.name, &checkpoint.config, recipe)?;
    Ok(checkpoint)
}

/// Runs one trajectory experiment. A panic in it becomes its error.
pub fn trajectory(
    experiment: &dyn AnyExperiment,
    params: &serde_json::Value,
    mut input: TrajectoryInput<'_>,
    sink: &mut dyn Sink,
) -> Result<()> {
    let card = experiment.card();
    if card.stage != Stage::Trajectory {
        return Err(Error::Unsupported(format!("`{}` is not a trajectory experiment", card.name)));
    }
    let mut cx = Context::new(card, input.last_step(), sink);
    catch(|| experiment.trajectory(&mut input, params, &mut cx))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_labels() {
        let table = |labels: &[&str], data: Vec<f64>| {
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            Value::array(vec![2, 2], data, vec![None, Some(labels)])
        };
        let series = Series {
            unit: "nats".to_owned(),
            axes: vec!["layer".to_owned(), "digit".to_owned()],
            points: vec![
                (0, table(&["a", "b"], vec![1., 2., 3., 4.])),
                (5, table(&["b", "c"], vec![20., 30., 40., 50.])),
            ],
        };
        let cells = series.cells();
        let labels: Vec<&str> = cells.iter().map(|cell| cell.label.as_str()).collect();
        assert_eq!(
            labels[..4],
            ["layer=0,digit=a", "layer=0,digit=b", "layer=1,digit=a", "layer=1,digit=b"]
        );
        assert_eq!(cells[1].values, [2.0, 20.0]);
        assert_eq!(cells[3].values, [4.0, 40.0]);
        assert!(cells[0].values[1].is_nan() && cells[4].values[0].is_nan());
        assert_eq!((labels[4], cells[4].values[1]), ("layer=0,digit=c", 30.0));
    }
}
