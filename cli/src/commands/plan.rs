//! `sweep plan`: what a sweep file would run. Works without a coordinator, from the catalogue that
//! is built in; with one, says also what is done already.

use clap::Args;
use serde_json::{Value, json};
use sweep_proto::{
    catalog, pb,
    spec::{ExperimentSpec, Models, Problem, Segment, SweepSpec},
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
    if plan.compare > 0 {
        row("compare", plan.compare);
    }
    row("trajectory", plan.trajectory);
    row("all tasks", tasks(plan));
    row("done already", plan.done);
    row("models", plan.models);
    row("checkpoints", plan.checkpoints);
    table
}

/// All tasks of a plan.
fn tasks(plan: &pb::PlanResponse) -> u64 {
    [plan.train, plan.analyse, plan.compare, plan.trajectory]
        .into_iter()
        .fold(0, u64::saturating_add)
}

/// The JSON form of a plan.
pub(super) fn to_json(plan: &pb::PlanResponse) -> Value {
    json!({
        "sweep": plan.sweep,
        "exists": plan.exists,
        "tasks": tasks(plan),
        "train": plan.train,
        "analyse": plan.analyse,
        "compare": plan.compare,
        "trajectory": plan.trajectory,
        "done": plan.done,
        "models": plan.models,
        "checkpoints": plan.checkpoints,
        "model_labels": plan.model_labels,
    })
}

/// The plan of a sweep that nobody has seen yet; it was checked before.
pub(super) fn without_coordinator(spec: &SweepSpec, known: &pb::Catalog) -> pb::PlanResponse {
    let mut plan = pb::PlanResponse { sweep: spec.id(), ..Default::default() };
    let Ok(models) = Models::new(spec, known) else { return plan };
    plan.models = u64::from(models.len());
    plan.train = plan.models;
    plan.checkpoints = models.n_checkpoints();
    plan.model_labels =
        (0..models.len()).take(LABELS_MAX).map(|model| models.label(model)).collect();
    plan.analyse = plan.checkpoints.saturating_mul(spec.experiments.len() as u64);
    let pairs = spec.compare.iter().filter_map(|compare| compare.pairs.resolve(&models).ok());
    plan.compare = pairs.map(|pairs| pairs.count(&models)).fold(0, u64::saturating_add);
    let groups = |experiment: &ExperimentSpec| {
        let scope = catalog::experiment(known, &experiment.name).map(|known| known.scope.as_str());
        match scope {
            Some("sweep") => 1,
            Some("entry") => models.entries().len() as u64,
            _ => plan.models,
        }
    };
    plan.trajectory = spec.trajectory.iter().map(groups).fold(0, u64::saturating_add);
    plan
}

/// Refuses a sweep with more than `max_tasks` tasks; points at the entry that makes most of them.
pub(super) fn check_size(
    file: &SweepFile,
    spec: &SweepSpec,
    known: &pb::Catalog,
    max_tasks: Option<u64>,
) -> Result<()> {
    let Some(max) = max_tasks else { return Ok(()) };
    let total = tasks(&without_coordinator(spec, known));
    if total <= max {
        return Ok(());
    }
    let per_checkpoint = spec.experiments.len() as u64;
    let models = Models::new(spec, known).ok();
    let largest = models.iter().flat_map(Models::entries).max_by_key(|entry| {
        let analyses = entry.n_checkpoints().saturating_mul(per_checkpoint);
        analyses.saturating_add(entry.models().len() as u64)
    });
    let largest = largest.map_or(0, sweep_proto::spec::Entry::index);
    let problem = Problem {
        path: vec![Segment::Key("models".to_owned()), Segment::Index(largest)],
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
