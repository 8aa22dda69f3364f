//! `sweep plan`: what a sweep file would run. Works without a coordinator, from the catalogue that
//! is built in; with one, says also what is done already.

use clap::Args;
use serde_json::{Value, json};
use sweep_proto::{
    catalog, pb,
    spec::{ModelSource, ModelSpec, Problem, Segment, SweepSpec, expand},
};

use crate::{
    context::Context,
    error::{Outcome, Result},
    format, imports,
    problems::FileArgs,
    spec_file::SweepFile,
    table::{self, Align},
};

/// Model labels that are listed.
const LABELS_MAX: usize = 20;

/// Arguments of `sweep plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sweep plan grokking.yaml\n  sweep plan --problem 5.22 --setting full"
)]
pub struct PlanArgs {
    #[command(flatten)]
    file: FileArgs,
}

pub(super) async fn run(cx: &Context, args: PlanArgs) -> Result<Outcome> {
    let file = args.file.read()?;
    let mut spec = file.decode()?;
    imports::list(cx, &file, &mut spec).await?;
    let plan = if cx.connection.target().is_some() {
        let connection = cx.connect().await?;
        let plan: Result<pb::PlanResponse> = async {
            let catalog = cx.catalog(&connection).await?;
            file.check(&spec, &catalog)?;
            let request = pb::SubmitRequest { spec: spec.to_json().to_string(), max_tasks: 0 };
            Ok(connection.sweeps().plan(request).await?.into_inner())
        }
        .await;
        connection.close().await;
        plan?
    } else {
        let known = catalog::embedded();
        file.check(&spec, &known)?;
        without_coordinator(&spec, &known)
    };
    if cx.output.is_json() {
        cx.output.json("sweep.plan/v1", to_json(&plan))?;
        return Ok(Outcome::Success);
    }
    cx.output.table(to_table(&plan))?;
    let shown = plan.model_labels.len() as u64;
    cx.output.line(&format!("\nmodels: {}", plan.model_labels.join(", ")))?;
    if plan.models > shown {
        cx.output.line(&format!("        and {} more", format::count(plan.models - shown)))?;
    }
    if plan.exists {
        cx.output.note("this sweep was submitted before; only what is missing would run");
    }
    Ok(Outcome::Success)
}

fn to_table(plan: &pb::PlanResponse) -> comfy_table::Table {
    let mut table = table::new(&[("tasks", Align::Left), ("number", Align::Right)]);
    let mut row = |name: &str, number: u64| {
        table.add_row(vec![name.to_owned(), format::count(number)]);
    };
    row("train or import", plan.train);
    row("analyse", plan.analyse);
    row("trajectory", plan.trajectory);
    row("all tasks", plan.train + plan.analyse + plan.trajectory);
    row("done already", plan.done);
    row("models", plan.models);
    row("checkpoints", plan.checkpoints);
    table
}

/// The JSON form of a plan.
pub(super) fn to_json(plan: &pb::PlanResponse) -> Value {
    json!({
        "sweep": plan.sweep,
        "exists": plan.exists,
        "tasks": plan.train + plan.analyse + plan.trajectory,
        "train": plan.train,
        "analyse": plan.analyse,
        "trajectory": plan.trajectory,
        "done": plan.done,
        "models": plan.models,
        "checkpoints": plan.checkpoints,
        "model_labels": plan.model_labels,
    })
}

/// Tasks of one entry of `models:`.
struct EntrySize {
    models: u64,
    train: u64,
    checkpoints: u64,
}

fn entry_size(model: &ModelSpec, known: &pb::Catalog) -> EntrySize {
    let ModelSource::Train { recipe, params, seeds } = &model.source else {
        let found = model.import.found.as_ref();
        let steps = found.and_then(|found| found.select(model.checkpoints.as_ref()).ok());
        let checkpoints = steps.map_or(0, |steps| steps.len() as u64);
        return EntrySize { models: 1, train: 1, checkpoints };
    };
    let Some(recipe) = catalog::recipe(known, recipe) else {
        return EntrySize { models: 0, train: 0, checkpoints: 0 };
    };
    let axes = expand::axes(recipe, params);
    let models = expand::grid_size(&axes).saturating_mul(seeds.len() as u64);
    // Only the number of steps decides how many checkpoints a point of the grid has, so that the
    // grid itself, which may be huge, is never walked.
    let steps: Vec<(String, Vec<Value>)> =
        axes.into_iter().filter(|(name, _)| name == "steps").collect();
    let points = expand::grid_size(&steps).max(1);
    let per_point: u64 = (0..points)
        .map(|index| {
            let point = expand::point(params, &steps, index);
            let total = expand::total_steps(recipe, &point);
            expand::training_steps(model.checkpoints.as_ref(), total).len() as u64
        })
        .fold(0, u64::saturating_add);
    let checkpoints = per_point.saturating_mul(models / points);
    EntrySize { models, train: models, checkpoints }
}

/// The plan of a sweep that nobody has seen yet.
pub(super) fn without_coordinator(spec: &SweepSpec, known: &pb::Catalog) -> pb::PlanResponse {
    let mut plan = pb::PlanResponse { sweep: spec.id(), ..Default::default() };
    for model in &spec.models {
        let size = entry_size(model, known);
        plan.models = plan.models.saturating_add(size.models);
        plan.train = plan.train.saturating_add(size.train);
        plan.checkpoints = plan.checkpoints.saturating_add(size.checkpoints);
        let free = LABELS_MAX - plan.model_labels.len();
        plan.model_labels.extend(labels(model, known, free));
    }
    plan.analyse = plan.checkpoints.saturating_mul(spec.experiments.len() as u64);
    plan.trajectory = plan.models.saturating_mul(spec.trajectory.len() as u64);
    plan
}

fn labels(model: &ModelSpec, known: &pb::Catalog, most: usize) -> Vec<String> {
    let ModelSource::Train { recipe, params, seeds } = &model.source else {
        return vec![expand::import_label(model)];
    };
    let Some(recipe) = catalog::recipe(known, recipe) else { return Vec::new() };
    let axes = expand::axes(recipe, params);
    (0..expand::grid_size(&axes))
        .flat_map(|index| {
            let point = expand::point(params, &axes, index);
            let label = |seed: &u64| expand::model_label(model, &axes, &point, *seed);
            seeds.iter().map(label).collect::<Vec<_>>()
        })
        .take(most)
        .collect()
}

/// Refuses a sweep with more than `max_tasks` tasks; points at the entry that makes most of them.
pub(super) fn check_size(
    file: &SweepFile,
    spec: &SweepSpec,
    known: &pb::Catalog,
    max_tasks: Option<u64>,
) -> Result<()> {
    let plan = without_coordinator(spec, known);
    let total = plan.train.saturating_add(plan.analyse).saturating_add(plan.trajectory);
    let Some(max) = max_tasks.filter(|max| total > *max) else { return Ok(()) };
    let per_checkpoint = spec.experiments.len() as u64;
    let tasks = |model: &ModelSpec| {
        let size = entry_size(model, known);
        size.train.saturating_add(size.checkpoints.saturating_mul(per_checkpoint))
    };
    let largest = (0..spec.models.len()).max_by_key(|index| tasks(&spec.models[*index]));
    let problem = Problem {
        path: vec![Segment::Key("models".to_owned()), Segment::Index(largest.unwrap_or(0))],
        at_key: false,
        message: format!(
            "the sweep has {} tasks, more than --max-tasks {max}",
            format::count(total)
        ),
        hint: Some("shorten an axis, the seeds or the checkpoints".to_owned()),
    };
    Err(file.report(&[problem]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> pb::Catalog {
        let param = |name: &str, kind: &str, default: &str| pb::Param {
            name: name.into(),
            kind: kind.into(),
            default: default.into(),
            ..Default::default()
        };
        let params = vec![param("p", "int", "113"), param("steps", "int", "1000")];
        let recipe = pb::Recipe { name: "r".into(), params, ..Default::default() };
        pb::Catalog { recipes: vec![recipe], experiments: vec![] }
    }

    #[test]
    fn grids_are_counted_without_being_walked() {
        let values: Vec<u64> = (0..3000).collect();
        let document = json!({
            "name": "big",
            "models": [{
                "train": { "recipe": "r", "params": { "p": values, "steps": [100, 200] }, "seeds": 10 },
                "checkpoints": { "every": 100 },
            }],
            "experiments": ["a", "b"],
            "trajectory": ["c"],
        });
        let spec = SweepSpec::decode(&document).unwrap();
        let plan = without_coordinator(&spec, &known());
        assert_eq!(plan.models, 60_000);
        // Steps 100: checkpoints 0 and 100; steps 200: 0, 100, 200.
        assert_eq!(plan.checkpoints, 30_000 * 2 + 30_000 * 3);
        assert_eq!(plan.analyse, 2 * plan.checkpoints);
        assert_eq!(plan.trajectory, 60_000);
        assert_eq!(plan.model_labels.len(), LABELS_MAX);
        assert_eq!(plan.model_labels[0], "r-p=0-steps=100-seed0");
    }
}
