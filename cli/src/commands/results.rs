//! `sweep results`: metric values. Without `--metric`, the newest value of every scalar metric; with
//! it, every value.

mod rows;
mod summary;

use std::io::Write;

use clap::Args;
use serde_json::Value;
use sweep_proto::{
    catalog::{self, did_you_mean},
    pb,
    spec::{ModelSource, SweepSpec},
};

pub(super) use self::summary::summary;
use super::{SweepArg, with_connection};
use crate::{
    connect::Connection,
    context::Context,
    error::{CommandError, Outcome, Result},
    export::{JsonRows, RowWriter},
    series::{Selection, SeriesStream},
};

/// Arguments of `sweep results`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sweep results last\n  \
    sweep results last --metric grokking-progress.test_loss --output json\n  \
    sweep results last --metric 'grokking-progress.*' --latest\n\n\
    Values that JSON has no number for are the strings \"NaN\", \"inf\" and \"-inf\".")]
pub struct ResultsArgs {
    #[command(flatten)]
    sweep: SweepArg,
    /// Metric, as experiment.metric; * stands for any characters
    #[arg(long, value_name = "PATTERN")]
    metric: Option<String>,
    /// Only this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Only the newest step of each series
    #[arg(long, conflicts_with = "last")]
    latest: bool,
    /// Only the newest N steps of each series
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,
    /// Show at most this many rows in a table (JSON has them all)
    #[arg(long, value_name = "N", default_value_t = 2000)]
    limit: usize,
}

impl ResultsArgs {
    fn selection(&self) -> Selection {
        let everything = self.metric.is_none();
        let last = self.last.map(|n| n as usize);
        Selection {
            metric: self.metric.clone().unwrap_or_default(),
            model: self.model.clone().unwrap_or_default(),
            last: if self.latest || (everything && last.is_none()) { Some(1) } else { last },
        }
    }
}

pub(super) async fn run(cx: &Context, args: ResultsArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let status = args.sweep.resolve(connection).await?;
        let selection = args.selection();
        require_metric(connection, &status, &selection).await?;
        let stream = SeriesStream::open(connection, &status.sweep, &selection).await?;
        if cx.output.is_json() {
            return to_json(cx, &status.sweep, stream).await;
        }
        if args.metric.is_some() {
            rows::show(cx, stream, args.limit).await?;
            return Ok(Outcome::Success);
        }
        let summary = summary(stream.curves().await?);
        if summary.tables.is_empty() {
            cx.output.note("no values yet");
        }
        for (heading, table) in summary.tables {
            cx.output.line(&format!("{heading}:"))?;
            cx.output.table(table)?;
            cx.output.line("")?;
        }
        for note in summary.notes {
            cx.output.hint(&note);
        }
        Ok(Outcome::Success)
    })
    .await
}

async fn to_json(cx: &Context, sweep: &str, mut stream: SeriesStream) -> Result<Outcome> {
    // The first message decides whether there is a result at all.
    let mut next = stream.next().await?;
    let mut out = cx.output.stream();
    write!(out, "{{\n\"schema\": \"sweep.results/v1\",\n\"rows\": [")?;
    let mut rows = JsonRows::elements(out);
    while let Some(series) = next {
        rows.series(sweep, &series)?;
        next = stream.next().await?;
    }
    let mut out = rows.into_writer();
    writeln!(out, "\n]\n}}")?;
    out.finish()?;
    Ok(Outcome::Success)
}

/// A metric that the sweep will never have is an error; one that has no values yet is not.
async fn require_metric(
    connection: &Connection,
    status: &pb::SweepStatus,
    selection: &Selection,
) -> Result<()> {
    let pattern = &selection.metric;
    if pattern.is_empty() {
        return Ok(());
    }
    let request = pb::ListMetricsRequest { sweep: status.sweep.clone() };
    let listed = connection.metrics().list(request).await?.into_inner().metrics;
    let mut names: Vec<String> = listed.into_iter().map(|metric| metric.metric).collect();
    if names.iter().any(|name| fits(pattern, name)) {
        return Ok(());
    }
    let known = connection.catalog().get(pb::CatalogRequest {}).await?.into_inner();
    names.extend(declared(&status.spec, &known));
    if names.iter().any(|name| fits(pattern, name)) {
        return Ok(());
    }
    let error = CommandError::not_found(format!("no metric `{pattern}` in {}", status.sweep));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Err(match did_you_mean(pattern, names) {
        Some(hint) => error.hint(hint),
        None => error.hint("`sweep results` without --metric lists them"),
    })
}

fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    let (last, middle) = parts.split_last().unwrap_or((&"", &[]));
    for part in middle {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

/// Names of all metrics that the sweep's recipes and experiments may produce.
fn declared(spec: &str, known: &pb::Catalog) -> Vec<String> {
    let document: Value = serde_json::from_str(spec).unwrap_or_default();
    let Ok(spec) = SweepSpec::decode(&document) else { return Vec::new() };
    let mut names = Vec::new();
    let mut add = |owner: &str, metrics: &[pb::Metric]| {
        names.extend(metrics.iter().map(|metric| format!("{owner}.{}", metric.name)));
    };
    for model in &spec.models {
        if let ModelSource::Train { recipe, .. } = &model.source
            && let Some(recipe) = catalog::recipe(known, recipe)
        {
            add(&recipe.name, &recipe.metrics);
        }
    }
    for experiment in spec.all_experiments() {
        if let Some(experiment) = catalog::experiment(known, &experiment.name) {
            add(&experiment.name, &experiment.metrics);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*", "a.bc", true),
            ("*", "a.bc", true),
            ("*loss", "a.test_loss", true),
            ("*_*_x", "a_b_x", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("b*", "abc", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
