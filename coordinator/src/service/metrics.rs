//! `MetricsService`: exact values, streamed from the store.

use std::{cell::RefCell, collections::HashMap};

use sweep_proto::{
    id::{TaskKey, TaskKind},
    pb::{self, metrics_service_server::MetricsService},
};
use tonic::{Request, Response, Status};

use crate::{
    core::{
        plan::{Plan, Scope},
        report::partner_axis,
    },
    error::Error,
    store::metrics::{SeriesPart, SeriesReader},
};

use super::{Shared, Stream};

/// The service.
pub(super) struct Metrics(pub(super) Shared);

#[tonic::async_trait]
impl MetricsService for Metrics {
    async fn list(
        &self,
        request: Request<pb::ListMetricsRequest>,
    ) -> Result<Response<pb::ListMetricsResponse>, Status> {
        let (number, _) = self.0.find(&request.into_inner().sweep).await?;
        let store = self.0.store.clone();
        let names = self.0.blocking(move || store.metric_names(number)).await?;
        let metrics = names.map_err(Error::from)?;
        Ok(Response::new(pb::ListMetricsResponse { metrics }))
    }

    type QueryStream = Stream<pb::Series>;

    async fn query(
        &self,
        request: Request<pb::QueryRequest>,
    ) -> Result<Response<Self::QueryStream>, Status> {
        let pb::QueryRequest { sweep, metric, model, latest } = request.into_inner();
        let (number, plan) = self.0.find(&sweep).await?;
        Ok(Response::new(self.0.stream(move |store, sink| {
            let labels = Labels { plan: &plan, known: RefCell::default() };
            let wanted = |task: TaskKey| model.is_empty() || labels.subject(task) == model;
            for summary in store.metric_names(number)? {
                if !metric.is_empty() && !matches(&metric, &summary.metric) {
                    continue;
                }
                let mut go_on = true;
                SeriesReader::new(store, number, &summary.metric, latest).read(wanted, |part| {
                    let mut series = labels.series(&summary.metric, part);
                    go_on = series.all(|series| sink.send(series));
                    go_on
                })?;
                if !go_on {
                    break;
                }
            }
            Ok(())
        })))
    }
}

/// Names for indices, computed once each.
struct Labels<'p> {
    plan: &'p Plan,
    known: RefCell<HashMap<u32, String>>,
}

impl Labels<'_> {
    fn model(&self, index: u32) -> String {
        let mut known = self.known.borrow_mut();
        known.entry(index).or_insert_with(|| self.plan.model_label(index)).clone()
    }

    fn subject(&self, task: TaskKey) -> String {
        let scope = self.plan.experiment(task.kind).map_or(Scope::Model, |pinned| pinned.scope);
        if scope == Scope::Model { self.model(task.model) } else { self.plan.subject(task) }
    }

    /// A part of a series as messages: one, or for comparisons one per second checkpoint.
    fn series(&self, metric: &str, part: SeriesPart) -> impl Iterator<Item = pb::Series> {
        let TaskKey { model, kind } = part.task;
        let reference = self.plan.model(model);
        let pinned = self.plan.experiment(kind);
        let recipe = reference.map(|model| model.entry.recipe());
        let (experiment, version, params) = match (kind, pinned) {
            (TaskKind::Source, _) | (_, None) => (
                recipe.map(|recipe| recipe.name.clone()).unwrap_or_default(),
                recipe.map_or(0, |recipe| recipe.version),
                reference
                    .map(|model| serde_json::Value::Object(model.written()).to_string())
                    .unwrap_or_default(),
            ),
            (_, Some(pinned)) => (pinned.name.clone(), pinned.version, pinned.written.clone()),
        };
        let whole = pb::Series {
            metric: metric.to_owned(),
            unit: part.form.unit,
            axes: part.form.axes,
            reading: part.form.reading,
            model_index: model,
            model: self.subject(part.task),
            seed: self.plan.seed(part.task),
            experiment,
            version,
            params,
            task: Some(part.task.to_pb(self.plan.id())),
            steps: part.steps,
            values: part.values,
            partner: String::new(),
        };
        self.by_partner(part.task, whole, &part.checkpoints).into_iter()
    }

    /// Cuts the series of a comparison where its second checkpoint changes, and names it in the axis
    /// `partner`.
    fn by_partner(&self, task: TaskKey, whole: pb::Series, checkpoints: &[u64]) -> Vec<pb::Series> {
        let TaskKind::Compare { experiment, pair, .. } = task.kind else { return vec![whole] };
        let block = whole.values.len() / whole.steps.len().max(1);
        let at = |step: u64| TaskKind::Compare { step, experiment, pair };
        let partner = |step: u64| self.plan.partner(TaskKey { kind: at(step), ..task });
        let mut parts = Vec::new();
        let mut from = 0;
        for run in checkpoints.chunk_by(|a, b| partner(*a) == partner(*b)) {
            let to = from + run.len();
            let second = partner(run[0]);
            let name = second.map(|second| self.model(second.model)).unwrap_or_default();
            let step = second.map_or(0, |second| second.step);
            let mut axes = vec![partner_axis(format!("{name}@{step}"))];
            axes.extend(whole.axes.iter().cloned());
            parts.push(pb::Series {
                axes,
                task: Some(TaskKey { kind: at(run[0]), ..task }.to_pb(self.plan.id())),
                steps: whole.steps[from..to].to_vec(),
                values: whole.values[from * block..to * block].to_vec(),
                partner: name,
                ..whole.clone()
            });
            from = to;
        }
        parts
    }
}

/// Whether `text` fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text, expected) in [
            ("a.loss", "a.loss", true),
            ("a.loss", "a.loss2", false),
            ("*", "", true),
            ("*loss", "a.train_loss", true),
            ("a.*", "b.loss", false),
            ("a.*_loss", "a.train_loss", true),
            ("a.*_loss", "a.train_acc", false),
            ("a*a", "a", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
