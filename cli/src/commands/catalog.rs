//! `sweep catalog`: what workers can run, which published models there are, and the open problems. With a coordinator,
//! its word about experiments and recipes; without one, the catalogue that is built in.

mod models;
mod problems;

use clap::{Args, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};
use sweep_proto::{
    catalog::{self, did_you_mean},
    pb,
};

use crate::{
    context::Context,
    error::{CommandError, Outcome, Result},
    table::{self, Align},
};

/// Arguments of `sweep catalog`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sweep catalog experiments\n  sweep catalog grokking-progress\n  \
    sweep catalog models pythia-160m\n  sweep catalog checkpoints pythia-160m\n  sweep catalog problems 5.22"
)]
pub struct CatalogArgs {
    /// experiments, recipes, models, checkpoints, problems, or a name
    #[arg(value_name = "WHAT")]
    what: Option<String>,
    /// Name of an experiment, recipe or model, number of a problem; for checkpoints also a folder, s3:// or hub: location
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Experiments,
    Recipes,
    Models,
    Checkpoints,
    Problems,
}

pub(super) async fn run(cx: &Context, args: CatalogArgs) -> Result<Outcome> {
    let section = args.what.as_deref().and_then(|what| Section::from_str(what, false).ok());
    match section {
        Some(Section::Models) => return models::models(cx, args.name.as_deref()),
        Some(Section::Problems) => return problems::problems(cx, args.name.as_deref()),
        Some(Section::Checkpoints) => return models::checkpoints(cx, args.name.as_deref()).await,
        Some(Section::Experiments | Section::Recipes) | None => {}
    }
    let known = if cx.connection.target().is_some() {
        let connection = cx.connect().await?;
        let known = cx.catalog(&connection).await;
        connection.close().await;
        known?
    } else {
        catalog::embedded()
    };
    let name = match (section, args.what, args.name) {
        (Some(_), _, name) => name,
        (None, what, None) => what,
        (None, Some(what), Some(_)) => {
            return Err(CommandError::usage(format!(
                "`{what}` is none of experiments, recipes, models, checkpoints and problems"
            )));
        }
        (None, None, Some(name)) => Some(name),
    };
    let experiments = section != Some(Section::Recipes);
    let recipes = section != Some(Section::Experiments);
    match name {
        Some(name) => one(cx, &known, &name, experiments, recipes),
        None => all(cx, &known, experiments, recipes),
    }
}

fn all(cx: &Context, known: &pb::Catalog, experiments: bool, recipes: bool) -> Result<Outcome> {
    if cx.output.is_json() {
        let mut fields = serde_json::Map::new();
        if experiments {
            let list: Vec<Value> = known.experiments.iter().map(experiment_json).collect();
            fields.insert("experiments".to_owned(), Value::Array(list));
        }
        if recipes {
            let list: Vec<Value> = known.recipes.iter().map(recipe_json).collect();
            fields.insert("recipes".to_owned(), Value::Array(list));
        }
        cx.output.json("sweep.catalog/v1", Value::Object(fields))?;
        return Ok(Outcome::Success);
    }
    let columns =
        [("name", Align::Left), ("version", Align::Right), ("in", Align::Left), ("", Align::Left)];
    let mut table = table::new(&columns);
    if recipes {
        for recipe in &known.recipes {
            let words = ["models: train", &recipe.summary];
            let mut row = vec![Cell::new(&recipe.name), Cell::new(recipe.version)];
            row.extend(words.iter().map(Cell::new));
            table.add_row(row);
        }
    }
    if experiments {
        for experiment in &known.experiments {
            let words = [section_of(&experiment.stage), &experiment.summary];
            let mut row = vec![Cell::new(&experiment.name), Cell::new(experiment.version)];
            row.extend(words.iter().map(Cell::new));
            table.add_row(row);
        }
    }
    cx.output.table(table)?;
    cx.output.hint("`sweep catalog NAME` shows parameters and metrics");
    Ok(Outcome::Success)
}

/// The key of the sweep file that takes experiments of a stage.
fn section_of(stage: &str) -> &str {
    if stage == "analyse" { "experiments" } else { stage }
}

fn one(
    cx: &Context,
    known: &pb::Catalog,
    name: &str,
    experiments: bool,
    recipes: bool,
) -> Result<Outcome> {
    let experiment = catalog::experiment(known, name).filter(|_| experiments);
    let recipe = catalog::recipe(known, name).filter(|_| recipes);
    if experiment.is_none() && recipe.is_none() {
        if experiments && recipes && sweep_source::published::find(name).is_some() {
            return models::models(cx, Some(name));
        }
        let names = known.experiments.iter().map(|e| e.name.as_str());
        let names = names.chain(known.recipes.iter().map(|r| r.name.as_str()));
        let error = CommandError::not_found(format!("no experiment or recipe `{name}`"));
        return Err(match did_you_mean(name, names) {
            Some(hint) => error.hint(hint),
            None => error.hint("`sweep catalog` lists all"),
        });
    }
    if cx.output.is_json() {
        let fields = json!({
            "experiments": experiment.iter().map(|e| experiment_json(e)).collect::<Vec<_>>(),
            "recipes": recipe.iter().map(|r| recipe_json(r)).collect::<Vec<_>>(),
        });
        cx.output.json("sweep.catalog/v1", fields)?;
        return Ok(Outcome::Success);
    }
    if let Some(experiment) = experiment {
        let place = section_of(&experiment.stage);
        heading(cx, &experiment.name, experiment.version, place)?;
        paragraphs(cx, &experiment.summary, &experiment.source)?;
        details(cx, &experiment.params, &experiment.metrics, &experiment.figures)?;
    }
    if let Some(recipe) = recipe {
        heading(cx, &recipe.name, recipe.version, "models: train")?;
        paragraphs(cx, &recipe.summary, &recipe.source)?;
        details(cx, &recipe.params, &recipe.metrics, &recipe.figures)?;
    }
    Ok(Outcome::Success)
}

fn heading(cx: &Context, name: &str, version: u32, place: &str) -> Result<()> {
    cx.output.line(&format!("{name}  version {version}, for `{place}`"))
}

fn paragraphs(cx: &Context, summary: &str, source: &str) -> Result<()> {
    cx.output.line(summary)?;
    if !source.is_empty() {
        cx.output.line(&format!("Source: {source}"))?;
    }
    Ok(())
}

fn details(
    cx: &Context,
    params: &[pb::Param],
    metrics: &[pb::Metric],
    figures: &[pb::Figure],
) -> Result<()> {
    if !params.is_empty() {
        let mut table = table::new(&[
            ("parameter", Align::Left),
            ("kind", Align::Left),
            ("default", Align::Left),
            ("allowed", Align::Left),
            ("", Align::Left),
        ]);
        for param in params {
            let words = [&param.name, &param.kind, &param.default, &allowed(param), &param.doc];
            table.add_row(words.map(Cell::new));
        }
        cx.output.line("")?;
        cx.output.table(table)?;
    }
    if !metrics.is_empty() {
        let mut table = table::new(&[
            ("metric", Align::Left),
            ("unit", Align::Left),
            ("axes", Align::Left),
            ("", Align::Left),
        ]);
        for metric in metrics {
            let words = [&metric.name, &metric.unit, &metric.axes.join(" × "), &metric.doc];
            table.add_row(words.map(Cell::new));
        }
        cx.output.line("")?;
        cx.output.table(table)?;
    }
    if !figures.is_empty() {
        let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
        cx.output.line(&format!("\nfigures: {}", names.join(", ")))?;
    }
    Ok(())
}

fn allowed(param: &pb::Param) -> String {
    if !param.choices.is_empty() {
        return param.choices.join(", ");
    }
    let mut words = match (param.min, param.max) {
        (Some(min), Some(max)) => vec![format!("{min} to {max}")],
        (Some(min), None) => vec![format!("at least {min}")],
        (None, Some(max)) => vec![format!("at most {max}")],
        (None, None) => vec![],
    };
    for (word, other) in [("at most", &param.at_most), ("divides", &param.divides)] {
        if !other.is_empty() {
            words.push(format!("{word} {other}"));
        }
    }
    words.join(", ")
}

fn param_json(param: &pb::Param) -> Value {
    json!({
        "name": param.name,
        "kind": param.kind,
        "default": serde_json::from_str::<Value>(&param.default).unwrap_or(Value::Null),
        "min": param.min,
        "max": param.max,
        "choices": param.choices,
        "at_most": param.at_most,
        "divides": param.divides,
        "doc": param.doc,
    })
}

fn metric_json(metric: &pb::Metric) -> Value {
    json!({ "name": metric.name, "unit": metric.unit, "axes": metric.axes, "doc": metric.doc })
}

fn figure_json(figure: &pb::Figure) -> Value {
    json!({
        "name": figure.name,
        "title": figure.title,
        "kind": figure.kind,
        "metrics": figure.metrics,
        "log_x": figure.log_x,
        "log_y": figure.log_y,
    })
}

fn experiment_json(experiment: &pb::Experiment) -> Value {
    json!({
        "name": experiment.name,
        "version": experiment.version,
        "stage": experiment.stage,
        "summary": experiment.summary,
        "source": experiment.source,
        "params": experiment.params.iter().map(param_json).collect::<Vec<_>>(),
        "metrics": experiment.metrics.iter().map(metric_json).collect::<Vec<_>>(),
        "figures": experiment.figures.iter().map(figure_json).collect::<Vec<_>>(),
    })
}

fn recipe_json(recipe: &pb::Recipe) -> Value {
    json!({
        "name": recipe.name,
        "version": recipe.version,
        "summary": recipe.summary,
        "source": recipe.source,
        "params": recipe.params.iter().map(param_json).collect::<Vec<_>>(),
        "metrics": recipe.metrics.iter().map(metric_json).collect::<Vec<_>>(),
        "figures": recipe.figures.iter().map(figure_json).collect::<Vec<_>>(),
    })
}
