//! `sweep plot`: figures as PNG and SVG. Without `--metric`, the figures that the sweep's recipes and
//! experiments come with.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use sweep_proto::{pb, spec::SweepSpec};

use super::{SweepArg, with_connection};
use crate::{
    chart::{Figure, raster, to_svg},
    connect::Connection,
    context::Context,
    error::{CommandError, Outcome, Result},
    export::write_atomically,
    figures::{self, FigureSpec},
    series::{Curve, Selection, SeriesStream},
};

/// Arguments of `sweep plot`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sweep plot last\n  \
    sweep plot last --metric grokking-progress.test_loss --metric grokking-progress.train_loss --log-y\n  \
    sweep plot last --figure losses --to losses.svg")]
pub struct PlotArgs {
    #[command(flatten)]
    sweep: SweepArg,
    /// Metric, as experiment.metric; * stands for any characters; may be given several times
    #[arg(long, value_name = "PATTERN")]
    metric: Vec<String>,
    /// Only this figure of the sweep's recipes and experiments
    #[arg(long, value_name = "NAME", conflicts_with = "metric")]
    figure: Option<String>,
    /// Only this model; may be given several times
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
    /// Logarithmic step axis
    #[arg(long)]
    log_x: bool,
    /// Logarithmic value axis (or colours)
    #[arg(long)]
    log_y: bool,
    /// Folder for PNG and SVG, or one .png or .svg file [default: plots/SWEEP]
    #[arg(long, value_name = "DIR|FILE")]
    to: Option<PathBuf>,
}

pub(super) async fn run(cx: &Context, args: PlotArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let status = args.sweep.resolve(connection).await?;
        let (specs, curves) = if args.metric.is_empty() {
            of_catalog(cx, connection, &status, &args).await?
        } else {
            of_metrics(connection, &status, &args).await?
        };
        let files = draw_all(cx, connection, &status.sweep, &specs, &curves, args.to.as_deref())?;
        if files.is_empty() {
            let problem = format!("nothing to draw in {}", status.sweep);
            let hint = "metrics without values are not drawn, nor those with more than two axes beside the steps: \
                        `sweep results` shows what there is, `sweep export` gives all of it";
            return Err(CommandError::not_found(problem).hint(hint));
        }
        if cx.output.is_json() {
            let paths: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
            let fields = json!({ "sweep": status.sweep, "files": paths });
            cx.output.json("sweep.plot/v1", fields)?;
        } else {
            for path in &files {
                cx.output.line(&path.display().to_string())?;
            }
        }
        Ok(Outcome::Success)
    })
    .await
}

type Drawable = (Vec<FigureSpec>, Vec<Curve>);

async fn of_metrics(
    connection: &Connection,
    status: &pb::SweepStatus,
    args: &PlotArgs,
) -> Result<Drawable> {
    let mut curves: Vec<Curve> = Vec::new();
    for pattern in &args.metric {
        let known: Vec<String> = curves.iter().map(|c| c.series.metric.clone()).collect();
        let found = read(connection, &status.sweep, pattern, &args.model).await?;
        if found.is_empty() {
            let message = format!("no values of `{pattern}` in {}", status.sweep);
            return Err(CommandError::not_found(message)
                .hint("`sweep results` lists the metrics that have values"));
        }
        curves.extend(found.into_iter().filter(|c| !known.contains(&c.series.metric)));
    }
    Ok((figures::of_metrics(&curves, args.log_x, args.log_y), curves))
}

async fn of_catalog(
    cx: &Context,
    connection: &Connection,
    status: &pb::SweepStatus,
    args: &PlotArgs,
) -> Result<Drawable> {
    let mut specs = default_specs(cx, connection, status).await?;
    if let Some(name) = &args.figure {
        let all: Vec<String> = specs.iter().map(|spec| spec.stem.clone()).collect();
        specs.retain(|spec| {
            spec.stem == *name || spec.stem.split_once('.').is_some_and(|(_, own)| own == name)
        });
        if specs.is_empty() {
            let message = format!("no figure `{name}` in {}", status.sweep);
            return Err(
                CommandError::not_found(message).hint(format!("there are: {}", all.join(", ")))
            );
        }
    }
    for spec in &mut specs {
        spec.log_x |= args.log_x;
        spec.log_y |= args.log_y;
    }
    let curves = curves_of(connection, &status.sweep, &specs, &args.model).await?;
    Ok((specs, curves))
}

/// Draws the figures that a sweep comes with into a folder.
pub(super) async fn default_figures(
    cx: &Context,
    connection: &Connection,
    status: &pb::SweepStatus,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let specs = default_specs(cx, connection, status).await?;
    let curves = curves_of(connection, &status.sweep, &specs, &[]).await?;
    draw_all(cx, connection, &status.sweep, &specs, &curves, Some(folder))
}

/// The figures that a sweep comes with.
async fn default_specs(
    cx: &Context,
    connection: &Connection,
    status: &pb::SweepStatus,
) -> Result<Vec<FigureSpec>> {
    let known = cx.catalog(connection).await?;
    let document = serde_json::from_str(&status.spec).map_err(|error| {
        CommandError::unexpected("the coordinator sent a broken sweep file").caused_by(error)
    })?;
    let spec = SweepSpec::decode(&document).map_err(|_| {
        CommandError::unexpected("the coordinator sent a sweep file of another version")
    })?;
    Ok(figures::of_sweep(&spec, &known))
}

/// The values that figures show.
async fn curves_of(
    connection: &Connection,
    sweep: &str,
    specs: &[FigureSpec],
    models: &[String],
) -> Result<Vec<Curve>> {
    let mut metrics: Vec<&String> = specs.iter().flat_map(|spec| &spec.metrics).collect();
    metrics.sort();
    metrics.dedup();
    let mut curves = Vec::new();
    for metric in metrics {
        curves.extend(read(connection, sweep, metric, models).await?);
    }
    Ok(curves)
}

async fn read(
    connection: &Connection,
    sweep: &str,
    metric: &str,
    models: &[String],
) -> Result<Vec<Curve>> {
    let all = [String::new()];
    let models = if models.is_empty() { &all[..] } else { models };
    let mut curves = Vec::new();
    for model in models {
        let selection = Selection { metric: metric.to_owned(), model: model.clone(), last: None };
        curves.extend(SeriesStream::open(connection, sweep, &selection).await?.curves().await?);
    }
    Ok(curves)
}

/// Draws figures and writes their files; figures without values are left out.
fn draw_all(
    cx: &Context,
    connection: &Connection,
    sweep: &str,
    specs: &[FigureSpec],
    curves: &[Curve],
    to: Option<&Path>,
) -> Result<Vec<PathBuf>> {
    let description = format!("sweep {sweep}");
    let mut drawn: Vec<(&FigureSpec, Figure)> = Vec::new();
    for spec in specs {
        match figures::draw(spec, curves, &description) {
            Some(figure) => drawn.push((spec, figure)),
            None => cx.output.detail(|| format!("{}: no values to draw", spec.stem)),
        }
    }
    let single = to.filter(|path| extension(path).is_some());
    if let (Some(path), true) = (single, drawn.len() > 1) {
        let names: Vec<&str> = drawn.iter().map(|(spec, _)| spec.stem.as_str()).collect();
        return Err(CommandError::usage(format!(
            "{} figures do not fit into {}: {}",
            drawn.len(),
            path.display(),
            names.join(", ")
        ))
        .hint("--to takes a folder for several figures; --figure chooses one"));
    }
    let base = connection.dir().unwrap_or(Path::new("."));
    let folder = to.map_or_else(|| base.join("plots").join(sweep), Path::to_owned);
    let mut files = Vec::new();
    for (spec, figure) in drawn {
        let svg = to_svg(&figure);
        let targets = match single {
            Some(path) => vec![path.to_owned()],
            None => ["png", "svg"]
                .map(|kind| folder.join(format!("{}.{kind}", file_stem(&spec.stem))))
                .to_vec(),
        };
        for path in targets {
            let bytes = match extension(&path) {
                Some("png") => raster::png(&svg)?,
                Some(_) | None => svg.clone().into_bytes(),
            };
            write_atomically(&path, &bytes)?;
            files.push(path);
        }
    }
    Ok(files)
}

/// A name that is a file name on every system.
fn file_stem(stem: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+=".contains(c);
    stem.chars().map(|c| if plain(c) { c } else { '_' }).collect()
}

fn extension(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    ["png", "svg"].into_iter().find(|known| *known == extension)
}
