//! Metric series as they come from the coordinator: [`SeriesStream`] reads them one message at a
//! time, [`points`] walks the values of a message, [`Curve`] holds one whole series.
//!
//! Values are passed on bit for bit. A message whose value count does not fit its axes is an error,
//! never a guess.

use std::collections::{HashMap, VecDeque};

use sweep_proto::pb;
use tonic::Streaming;

use crate::{
    connect::Connection,
    error::{CommandError, Result},
};

/// A series with more values per step than this is a broken message.
const BLOCK_MAX: usize = 1 << 26;

/// Which series to read.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Exact name or a pattern with `*`; empty for all.
    pub metric: String,
    /// Model label; empty for all.
    pub model: String,
    /// Only the newest N steps of each series.
    pub last: Option<usize>,
}

/// Series of a sweep, in order of metric, model, step.
#[derive(Debug)]
pub struct SeriesStream {
    stream: Streaming<pb::Series>,
    last: Option<usize>,
    /// The newest steps of the series that is read, in one or more parts.
    held: Vec<pb::Series>,
    /// Parts of complete series.
    ready: VecDeque<pb::Series>,
}

impl SeriesStream {
    /// Asks the coordinator for series.
    pub async fn open(connection: &Connection, sweep: &str, selection: &Selection) -> Result<Self> {
        let request = pb::QueryRequest {
            sweep: sweep.to_owned(),
            metric: selection.metric.clone(),
            model: selection.model.clone(),
            latest: selection.last == Some(1),
        };
        let stream = connection.metrics().query(request).await?.into_inner();
        Ok(Self { stream, last: selection.last, held: Vec::new(), ready: VecDeque::new() })
    }

    /// The next part of a series; with a limit on steps, only of its newest ones.
    pub async fn next(&mut self) -> Result<Option<pb::Series>> {
        let Some(last) = self.last else { return self.message().await };
        loop {
            if let Some(done) = self.ready.pop_front() {
                return Ok(Some(done));
            }
            let part = self.message().await?;
            let goes_on = match (&part, self.held.last()) {
                (Some(part), Some(known)) => is_same_series(known, part),
                (Some(_), None) => true,
                (None, None) => return Ok(None),
                (None, Some(_)) => false,
            };
            if !goes_on {
                self.ready.extend(std::mem::take(&mut self.held));
            }
            if let Some(part) = part {
                hold(&mut self.held, part, last);
            }
        }
    }

    async fn message(&mut self) -> Result<Option<pb::Series>> {
        let message = self.stream.message().await?;
        if let Some(series) = &message {
            check_shape(series)?;
        }
        Ok(message)
    }

    /// Reads everything into memory.
    pub async fn curves(mut self) -> Result<Vec<Curve>> {
        let mut curves: Vec<Curve> = Vec::new();
        let mut known: HashMap<Identity, usize> = HashMap::new();
        while let Some(series) = self.next().await? {
            let at = *known.entry(Identity::of(&series)).or_insert(curves.len());
            match curves.get_mut(at) {
                Some(curve) => curve.extend(&series),
                None => curves.push(Curve::new(series)),
            }
        }
        for curve in &mut curves {
            curve.sort();
        }
        Ok(curves)
    }
}

/// What tells series apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    metric: String,
    model_index: u32,
    version: u32,
    params: String,
    partner: String,
    kind: Origin,
}

impl Identity {
    fn of(series: &pb::Series) -> Self {
        Self {
            metric: series.metric.clone(),
            model_index: series.model_index,
            version: series.version,
            params: series.params.clone(),
            partner: series.partner.clone(),
            kind: origin(series),
        }
    }
}

fn is_same_series(a: &pb::Series, b: &pb::Series) -> bool {
    a.metric == b.metric
        && a.model_index == b.model_index
        && a.version == b.version
        && a.params == b.params
        && a.partner == b.partner
        && origin(a) == origin(b)
}

/// The weight processing under which the values were computed; empty for what a training reports.
pub fn processing(series: &pb::Series) -> &str {
    series.reading.as_ref().map_or("", |reading| &reading.processing)
}

/// Whether texts began with the beginning-of-sequence token, if it is known.
pub fn prepend_bos(series: &pb::Series) -> Option<bool> {
    series.reading.as_ref()?.prepend_bos
}

/// What kind of task produced a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Training.
    Train,
    /// An experiment on one checkpoint.
    Analyse,
    /// An experiment on two checkpoints.
    Compare,
    /// A reduction over all checkpoints.
    Trajectory,
}

/// What kind of task produced a series.
pub fn origin(series: &pb::Series) -> Origin {
    match series.task.as_ref().and_then(|task| task.kind.as_ref()) {
        Some(pb::task_key::Kind::Trajectory(_)) => Origin::Trajectory,
        Some(pb::task_key::Kind::Analyse(_)) => Origin::Analyse,
        Some(pb::task_key::Kind::Compare(_)) => Origin::Compare,
        Some(pb::task_key::Kind::Source(_)) | None => Origin::Train,
    }
}

/// The `checkpoint` column: where artifacts of the same task lie.
pub fn checkpoint(origin: Origin, step: u64) -> String {
    match origin {
        Origin::Train => "train".to_owned(),
        Origin::Analyse | Origin::Compare => format!("step{step}"),
        Origin::Trajectory => "trajectory".to_owned(),
    }
}

/// Values per step.
pub fn block_size(axes: &[pb::Axis]) -> usize {
    axes.iter().map(|axis| axis.size as usize).product()
}

/// The second checkpoint's step for each step of a part of a comparison, from the label of its axis
/// `partner`: `MODEL@STEP`.
fn second_steps(series: &pb::Series) -> Vec<u64> {
    let label = series.axes.first().and_then(|axis| axis.labels.first());
    let step = label.filter(|_| !series.partner.is_empty()).and_then(|label| {
        let (_, step) = label.rsplit_once('@')?;
        step.parse().ok()
    });
    step.map_or_else(Vec::new, |step| vec![step; series.steps.len()])
}

fn check_shape(series: &pb::Series) -> Result<()> {
    let mut block: usize = 1;
    for axis in &series.axes {
        block = block.saturating_mul(axis.size as usize);
    }
    let expected = block.checked_mul(series.steps.len());
    if block > BLOCK_MAX || expected != Some(series.values.len()) {
        return Err(CommandError::unexpected(format!(
            "the coordinator sent {} values of `{}` for {} steps of {block} values",
            series.values.len(),
            series.metric,
            series.steps.len()
        )));
    }
    Ok(())
}

/// Adds a part to a series and drops what is not among its `last` steps. Parts of a comparison
/// differ in the second checkpoint and stay apart.
fn hold(held: &mut Vec<pb::Series>, part: pb::Series, last: usize) {
    match held.last_mut() {
        Some(known) if known.axes == part.axes || part.partner.is_empty() => {
            known.steps.extend(part.steps);
            known.values.extend(part.values);
        }
        Some(_) | None => held.push(part),
    }
    let mut excess = held.iter().map(|part| part.steps.len()).sum::<usize>().saturating_sub(last);
    while excess > 0 {
        let first = &mut held[0];
        let drop = excess.min(first.steps.len());
        first.values.drain(..drop * block_size(&first.axes));
        first.steps.drain(..drop);
        excess -= drop;
        if first.steps.is_empty() {
            held.remove(0);
        }
    }
}

/// One value of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Point<'a> {
    /// Checkpoint or training step.
    pub step: u64,
    /// One index per axis.
    pub coordinates: &'a [usize],
    /// The value.
    pub value: f64,
}

/// Calls `visit` for every value of a message, in order.
pub fn points<E>(
    series: &pb::Series,
    mut visit: impl FnMut(&Point<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let block = block_size(&series.axes);
    if block == 0 {
        return Ok(());
    }
    let mut coordinates = vec![0; series.axes.len()];
    for (values, step) in series.values.chunks_exact(block).zip(&series.steps) {
        coordinates.fill(0);
        for value in values {
            visit(&Point { step: *step, coordinates: &coordinates, value: *value })?;
            advance(&mut coordinates, &series.axes);
        }
    }
    Ok(())
}

/// The next coordinates in row-major order.
fn advance(coordinates: &mut [usize], axes: &[pb::Axis]) {
    for (coordinate, axis) in coordinates.iter_mut().zip(axes).rev() {
        *coordinate += 1;
        if *coordinate < axis.size as usize {
            return;
        }
        *coordinate = 0;
    }
}

/// The name of one place on an axis.
pub fn label(axis: &pb::Axis, index: usize) -> String {
    axis.labels.get(index).cloned().unwrap_or_else(|| index.to_string())
}

/// Whether every place of an axis has a whole number as its name.
pub fn is_numeric(axis: &pb::Axis) -> bool {
    axis.labels
        .iter()
        .all(|label| label.parse::<i64>().is_ok_and(|number| number.to_string() == *label))
}

/// One whole series in memory.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Metric, model, parameters: everything but the data.
    pub series: pb::Series,
    /// Values per step.
    pub block: usize,
    /// The second checkpoint's step for each step; empty for what is no comparison.
    pub second_steps: Vec<u64>,
}

impl Curve {
    fn new(mut series: pb::Series) -> Self {
        let second_steps = second_steps(&series);
        if !series.partner.is_empty() && !series.axes.is_empty() {
            // The axis only names the second checkpoint, which differs from step to step.
            series.axes.remove(0);
        }
        let block = block_size(&series.axes);
        Self { series, block, second_steps }
    }

    fn extend(&mut self, part: &pb::Series) {
        // A later checkpoint may know more labels than the first one (axes that grow).
        if block_size(&part.axes) == self.block {
            self.series.steps.extend(&part.steps);
            self.series.values.extend(&part.values);
            self.second_steps.extend(second_steps(part));
        }
    }

    fn sort(&mut self) {
        let key = |index: usize| (self.series.steps[index], self.second_steps.get(index).copied());
        let mut order: Vec<usize> = (0..self.series.steps.len()).collect();
        if order.is_sorted_by_key(|index| key(*index)) {
            return;
        }
        order.sort_by_key(|index| key(*index));
        if !self.second_steps.is_empty() {
            self.second_steps = order.iter().map(|index| self.second_steps[*index]).collect();
        }
        let steps = order.iter().map(|index| self.series.steps[*index]).collect();
        let values = order.iter().flat_map(|index| self.values_at(*index).to_vec()).collect();
        self.series.steps = steps;
        self.series.values = values;
    }

    /// Whether one checkpoint is compared with several others of one model.
    pub fn is_between_steps(&self) -> bool {
        !self.second_steps.is_empty() && self.series.steps.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// The values of step number `index`, row-major over the axes.
    pub fn values_at(&self, index: usize) -> &[f64] {
        &self.series.values[index * self.block..(index + 1) * self.block]
    }

    /// The values of the newest step.
    pub fn latest(&self) -> Option<(u64, &[f64])> {
        let index = self.series.steps.len().checked_sub(1)?;
        Some((self.series.steps[index], self.values_at(index)))
    }

    /// Name of the metric without the experiment.
    pub fn short_name(&self) -> &str {
        short_name(&self.series.metric)
    }

    /// The experiment and, where they are not empty, its parameters: `pca (of=weights)`. A training's
    /// parameters are not named: those that vary are part of the model's label.
    pub fn owner(&self) -> String {
        if origin(&self.series) == Origin::Train {
            return self.series.experiment.clone();
        }
        match params_text(&self.series.params) {
            params if params.is_empty() => self.series.experiment.clone(),
            params => format!("{} ({params})", self.series.experiment),
        }
    }
}

/// Name of a metric without the experiment.
pub fn short_name(metric: &str) -> &str {
    metric.split_once('.').map_or(metric, |(_, name)| name)
}

/// Characters of a parameter's value that are shown, and what stays of a longer one.
const VALUE_SHOWN: usize = 60;
const VALUE_KEPT: usize = 40;

/// Parameters as `name=value, …`; long values (token lists, texts) are cut.
pub fn params_text(params: &str) -> String {
    let Ok(serde_json::Value::Object(map)) = serde_json::from_str(params) else {
        return String::new();
    };
    let pair = |(name, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::String(text) => format!("{name}={}", cut(text)),
        other => format!("{name}={}", cut(&other.to_string())),
    };
    map.iter().map(pair).collect::<Vec<_>>().join(", ")
}

fn cut(text: &str) -> String {
    let length = text.chars().count();
    if length <= VALUE_SHOWN {
        return text.to_owned();
    }
    let kept: String = text.chars().take(VALUE_KEPT).collect();
    format!("{kept}… (+{} characters)", length - VALUE_KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_parameters_are_cut_and_short_ones_are_not() {
        let tokens = vec![vec![7; 100]];
        let text = params_text(&serde_json::json!({ "k": 3, "tokens": tokens }).to_string());
        assert_eq!(text, "k=3, tokens=[[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,… (+163 characters)");
    }

    fn axis(name: &str, size: u32, labels: &[&str]) -> pb::Axis {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        pb::Axis { name: name.into(), size, labels }
    }

    fn series(axes: Vec<pb::Axis>, steps: Vec<u64>, values: Vec<f64>) -> pb::Series {
        pb::Series { metric: "e.m".into(), axes, steps, values, ..Default::default() }
    }

    #[test]
    fn points_walk_the_axes_in_row_major_order() {
        let axes = vec![axis("layer", 2, &[]), axis("head", 3, &[])];
        let series = series(axes, vec![5, 9], (0..12).map(f64::from).collect());
        let mut seen = Vec::new();
        points::<()>(&series, |point| {
            seen.push((point.step, point.coordinates.to_vec(), point.value));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.len(), 12);
        assert_eq!(seen[5], (5, vec![1, 2], 5.0));
        assert_eq!(seen[6], (9, vec![0, 0], 6.0));
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        assert!(check_shape(&series(vec![axis("head", 2, &[])], vec![1], vec![0.0; 3])).is_err());
        assert!(check_shape(&series(vec![], vec![1, 2], vec![0.0; 2])).is_ok());
        let huge = axis("a", u32::MAX, &[]);
        assert!(
            check_shape(&series(vec![huge.clone(), huge.clone(), huge], vec![], vec![])).is_err()
        );
    }

    #[test]
    fn the_newest_steps_are_kept() {
        let axes = vec![axis("head", 2, &[])];
        let mut held = Vec::new();
        hold(&mut held, series(axes.clone(), vec![1, 2, 3], vec![1., 2., 3., 4., 5., 6.]), 2);
        assert_eq!((&held[0].steps, &held[0].values), (&vec![2, 3], &vec![3., 4., 5., 6.]));
        hold(&mut held, series(axes, vec![4], vec![7., 8.]), 2);
        assert_eq!((held.len(), &held[0].steps), (1, &vec![3, 4]));
    }

    #[test]
    fn comparisons_keep_the_name_of_each_second_checkpoint() {
        let part = |step: u64| pb::Series {
            partner: "m".into(),
            ..series(vec![axis("partner", 1, &[&format!("m@{}", step - 1)])], vec![step], vec![0.5])
        };
        let mut held = Vec::new();
        for step in 1..=4 {
            hold(&mut held, part(step), 2);
        }
        let names: Vec<_> =
            held.iter().map(|p| (p.steps[0], p.axes[0].labels[0].clone())).collect();
        assert_eq!(names, [(3, "m@2".to_owned()), (4, "m@3".to_owned())]);
        let mut curve = Curve::new(part(1));
        curve.extend(&part(2));
        assert!(curve.series.axes.is_empty());
        assert_eq!((curve.series.steps.clone(), curve.block), (vec![1, 2], 1));
    }

    #[test]
    fn numeric_axes_are_recognised() {
        assert!(is_numeric(&axis("head", 2, &[])));
        assert!(is_numeric(&axis("frequency", 2, &["1", "2"])));
        assert!(!is_numeric(&axis("quantile", 2, &["0.5", "1"])));
        assert!(!is_numeric(&axis("tensor", 1, &["W_E"])));
    }

    #[test]
    fn unsorted_parts_are_put_in_order() {
        let mut curve = Curve::new(series(vec![axis("head", 2, &[])], vec![3], vec![5., 6.]));
        curve.extend(&series(vec![axis("head", 2, &[])], vec![1], vec![1., 2.]));
        curve.sort();
        assert_eq!(curve.series.values, [1., 2., 5., 6.]);
        assert_eq!(curve.latest(), Some((3, &[5.0, 6.0][..])));
    }
}
