//! Where results go. An experiment sees only a [`Context`], which checks every metric against the
//! card before the caller's [`Sink`] gets it. [`MemorySink`] keeps everything; trajectory
//! experiments are previewed and tests are written with it.
//!
//! Invariant: what reaches a sink is declared, has the declared axes and consistent labels.

use std::collections::BTreeMap;

use crate::{
    card::Card,
    error::{Error, Result},
    value::Value,
};

/// The caller asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl From<Cancelled> for Error {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// Receives the results of one experiment.
pub trait Sink {
    /// One metric at one step. Names are plain (`train_loss`).
    fn metric(&mut self, name: &str, step: u64, value: Value) -> Result<()>;
    /// One file.
    fn artifact(&mut self, name: &str, bytes: Vec<u8>) -> Result<()>;
    /// Work done so far; the only place where an experiment can be cancelled.
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled>;
}

/// Output of one experiment: a sink behind the card's promises.
pub struct Context<'a> {
    card: &'static Card,
    step: u64,
    sink: &'a mut dyn Sink,
}

impl<'a> Context<'a> {
    /// `step` is where [`Context::metric`] puts its values.
    pub fn new(card: &'static Card, step: u64, sink: &'a mut dyn Sink) -> Self {
        Self { card, step, sink }
    }

    /// Emits a metric at the step of the input: the checkpoint's, or the last of a trajectory.
    pub fn metric(&mut self, name: &str, value: impl Into<Value>) -> Result<()> {
        self.metric_at(name, self.step, value)
    }

    /// Emits a metric at any step.
    pub fn metric_at(&mut self, name: &str, step: u64, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        check_metric(self.card, name, &value)?;
        self.sink.metric(name, step, value)
    }

    /// Emits a file.
    pub fn artifact(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.sink.artifact(name, bytes)
    }

    /// Emits a JSON file.
    pub fn json(&mut self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| Error::Sink { what: name.to_owned(), source: Box::new(error) })?;
        self.sink.artifact(name, bytes)
    }

    /// Reports progress; an error means that the work is no longer wanted.
    pub fn progress(&mut self, done: u64, total: u64) -> Result<()> {
        Ok(self.sink.progress(done, total)?)
    }
}

/// Fails unless `card` declares `name` with as many axes as `value` has.
pub(crate) fn check_metric(card: &'static Card, name: &str, value: &Value) -> Result<()> {
    let broken = |problem| Error::Card { card: card.name, problem };
    let def =
        card.metric(name).ok_or_else(|| broken(format!("metric `{name}` is not declared")))?;
    if value.shape.len() != def.axes.len() {
        return Err(broken(format!(
            "metric `{name}` has {} axes, declared {}",
            value.shape.len(),
            def.axes.len()
        )));
    }
    if !value.is_consistent() {
        return Err(broken(format!("metric `{name}`: shape, data and labels do not fit together")));
    }
    Ok(())
}

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemorySink {
    /// Metric → step → value; a repeated (metric, step) keeps the last value.
    pub metrics: BTreeMap<String, BTreeMap<u64, Value>>,
    /// Name → bytes.
    pub artifacts: BTreeMap<String, Vec<u8>>,
    /// Number of `progress` calls so far.
    pub n_progress: u64,
    /// Cancels at this many `progress` calls.
    pub cancel_at: Option<u64>,
}

impl MemorySink {
    /// The scalar metric `name` at `step`.
    pub fn scalar(&self, name: &str, step: u64) -> Option<f64> {
        self.metrics.get(name)?.get(&step)?.as_scalar()
    }

    /// The points of the scalar metric `name`, in step order.
    pub fn series(&self, name: &str) -> Vec<(u64, f64)> {
        let points = self.metrics.get(name).into_iter().flatten();
        points.filter_map(|(&step, value)| Some((step, value.as_scalar()?))).collect()
    }
}

impl Sink for MemorySink {
    fn metric(&mut self, name: &str, step: u64, value: Value) -> Result<()> {
        self.metrics.entry(name.to_owned()).or_default().insert(step, value);
        Ok(())
    }

    fn artifact(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.artifacts.insert(name.to_owned(), bytes);
        Ok(())
    }

    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        self.n_progress += 1;
        if self.cancel_at.is_some_and(|limit| self.n_progress >= limit) {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::{Axis, MetricDef, Requires, Stage, Unit};

    static CARD: Card = Card {
        name: "probe",
        version: 1,
        summary: "",
        source: "",
        stage: Stage::Analyse,
        requires: Requires::ANY,
        params: &[],
        metrics: &[MetricDef { name: "score", unit: Unit::Ratio, axes: &[Axis::Head], doc: "" }],
        figures: &[],
    };

    #[test]
    fn context_enforces_the_card() {
        let mut sink = MemorySink { cancel_at: Some(2), ..MemorySink::default() };
        let mut cx = Context::new(&CARD, 7, &mut sink);
        cx.metric("score", Value::vector(vec![1.0, f64::NAN])).unwrap();
        assert!(cx.metric("other", 1.0).unwrap_err().to_string().contains("not declared"));
        assert!(cx.metric("score", 1.0).unwrap_err().to_string().contains("0 axes, declared 1"));
        let torn = Value { shape: vec![3], data: vec![1.0], labels: vec![None] };
        assert!(cx.metric("score", torn).is_err());
        cx.progress(1, 3).unwrap();
        assert!(matches!(cx.progress(2, 3), Err(Error::Cancelled)));
        assert_eq!(sink.metrics["score"][&7].data[0], 1.0);
    }
}
