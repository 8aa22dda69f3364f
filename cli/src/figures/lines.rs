//! Values over steps. One panel per unit; colours are metrics, or models where there is one metric;
//! with several of both, each model (or each metric, where models are many) has its own panel.

use super::{FigureSpec, Names, capitalised, say_once, with_unit, words};
use crate::{
    chart::{Axis, Content, Dash, Figure, LegendEntry, Line, Mark, Panel, color, scale::Scale},
    series::{Curve, label},
};

/// More models than this do not get a panel each.
const MODEL_PANELS_MAX: usize = 6;

/// More legend lines than this are not read.
const LEGEND_MAX: usize = 24;

/// One line before it has a colour.
struct Strand {
    unit: String,
    /// Name of the metric alone.
    base: String,
    /// With cell and parameters: what a colour means.
    metric: String,
    model: String,
    points: Vec<(f64, f64)>,
}

/// Which of a strand's names is shown by what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrangement {
    /// Colours are metrics; all in the unit's panel.
    Metrics,
    /// Colours are models; all in the unit's panel.
    Models,
    /// Colours are metrics; a panel per unit and model.
    ModelPanels,
    /// Colours are models; a panel per unit and metric.
    MetricPanels,
}

pub(super) fn lines(spec: &FigureSpec, curves: &[&Curve], names: &Names) -> Option<Figure> {
    let mut strands: Vec<Strand> = curves.iter().flat_map(|curve| strands(curve, names)).collect();
    shorten(&mut strands);
    let at_one_step = curves.iter().all(|curve| curve.series.steps.len() == 1);
    if at_one_step {
        return dots(spec, &strands);
    }
    let metrics = distinct(strands.iter().map(|s| &s.metric));
    let models = distinct(strands.iter().map(|s| &s.model));
    let units = distinct(strands.iter().map(|s| &s.unit));
    let arrangement = arrange(&strands, &units, models.len())?;
    let by_metric = matches!(arrangement, Arrangement::Metrics | Arrangement::ModelPanels);
    let colored = if by_metric { &metrics } else { &models };
    let facets: Vec<Option<&String>> = match arrangement {
        Arrangement::Metrics | Arrangement::Models => vec![None],
        Arrangement::ModelPanels => models.iter().map(Some).collect(),
        Arrangement::MetricPanels => metrics.iter().map(Some).collect(),
    };
    let (columns, size) = page(facets.len(), units.len());
    let x_scale = x_scale(&strands, spec.log_x);
    let mut panels = Vec::new();
    for unit in &units {
        let of_unit: Vec<&Strand> = strands.iter().filter(|s| s.unit == *unit).collect();
        let y_scale = y_scale(&of_unit, unit, spec.log_y);
        for facet in &facets {
            let inside = |strand: &&&Strand| match (arrangement, facet) {
                (Arrangement::ModelPanels, Some(model)) => strand.model == **model,
                (Arrangement::MetricPanels, Some(metric)) => strand.metric == **metric,
                (_, _) => true,
            };
            let line = |strand: &&Strand| {
                let name = if by_metric { &strand.metric } else { &strand.model };
                let index = colored.iter().position(|known| known == name).unwrap_or(0);
                let color = color::category(index, colored.len());
                Line { points: strand.points.clone(), color, dash: Dash::Solid }
            };
            let shown: Vec<Line> = of_unit.iter().filter(inside).map(line).collect();
            if shown.is_empty() {
                continue;
            }
            panels.push(Panel {
                title: facet.cloned().unwrap_or_default(),
                x: Axis { label: "Training step".to_owned(), scale: x_scale.clone() },
                y: Axis { label: y_label(&of_unit, unit), scale: y_scale.clone() },
                content: Content::Lines(shown),
                size,
            });
        }
    }
    say_once(&mut panels, columns);
    Some(Figure {
        title: spec.title.clone(),
        description: String::new(),
        panels,
        columns,
        legend: legend(colored),
        color_bar: None,
    })
}

fn arrange(strands: &[Strand], units: &[String], models: usize) -> Option<Arrangement> {
    let crowded = units.iter().any(|unit| {
        distinct(strands.iter().filter(|s| s.unit == *unit).map(|s| &s.metric)).len() > 1
    });
    match models {
        0 => None,
        1 => Some(Arrangement::Metrics),
        _ if !crowded => Some(Arrangement::Models),
        n if n <= MODEL_PANELS_MAX => Some(Arrangement::ModelPanels),
        _ => Some(Arrangement::MetricPanels),
    }
}

/// Panels per row, and their size.
fn page(facets: usize, units: usize) -> (usize, (f64, f64)) {
    let columns = match facets {
        1 => units.min(2),
        2 | 4 => 2,
        _ => 3,
    };
    match columns {
        1 => (1, (460.0, 270.0)),
        2 => (2, (310.0, 220.0)),
        n => (n, (240.0, 190.0)),
    }
}

fn x_scale(strands: &[Strand], log: bool) -> Scale {
    let steps: Vec<f64> = strands.iter().flat_map(|s| s.points.iter().map(|p| p.0)).collect();
    if log {
        Scale::log(steps.iter().copied(), 0.01, true)
    } else {
        Scale::linear(steps.iter().copied(), 0.01)
    }
}

fn legend(names: &[String]) -> Vec<LegendEntry> {
    if names.len() < 2 {
        return Vec::new();
    }
    let entry = |(index, name): (usize, &String)| LegendEntry {
        label: name.clone(),
        mark: Mark::Line(color::category(index, names.len()), Dash::Solid),
    };
    let mut entries: Vec<LegendEntry> = names.iter().enumerate().map(entry).collect();
    if entries.len() > LEGEND_MAX {
        // Evenly spread over the colours, the ends included.
        let last = entries.len() - 1;
        let keep = |index: usize| index * last / (LEGEND_MAX - 1);
        entries = (0..LEGEND_MAX).map(|index| entries[keep(index)].clone()).collect();
    }
    entries
}

/// Where all lines show one metric, its name is on the axis; a legend needs only the rest.
fn shorten(strands: &mut [Strand]) {
    if distinct(strands.iter().map(|s| &s.base)).len() > 1 {
        return;
    }
    for strand in strands {
        let rest = strand.metric[strand.base.len()..].trim_start_matches([',', ' ']);
        let rest = rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(rest);
        if !rest.is_empty() {
            strand.metric = rest.to_owned();
        }
    }
}

/// Values that exist at one step only (verdicts, boundaries): models side by side.
fn dots(spec: &FigureSpec, strands: &[Strand]) -> Option<Figure> {
    let metrics = distinct(strands.iter().map(|s| &s.metric));
    let models = distinct(strands.iter().map(|s| &s.model));
    if models.is_empty() {
        return None;
    }
    let place = |model: &String| models.iter().position(|known| known == model).unwrap_or(0) as f64;
    let gap = (f64::NAN, f64::NAN);
    let mut panels = Vec::new();
    for unit in distinct(strands.iter().map(|s| &s.unit)) {
        let of_unit: Vec<&Strand> = strands.iter().filter(|s| s.unit == unit).collect();
        let of_metric = |(index, metric): (usize, &String)| Line {
            points: of_unit
                .iter()
                .filter(|s| s.metric == *metric)
                .flat_map(|s| [(place(&s.model), s.points[0].1), gap])
                .collect(),
            color: color::category(index, metrics.len()),
            dash: Dash::Solid,
        };
        panels.push(Panel {
            title: String::new(),
            x: Axis {
                label: String::new(),
                scale: Scale::Names { names: models.clone(), reversed: false },
            },
            y: Axis {
                label: y_label(&of_unit, &unit),
                scale: y_scale(&of_unit, &unit, spec.log_y),
            },
            content: Content::Lines(metrics.iter().enumerate().map(of_metric).collect()),
            size: (320.0, 240.0),
        });
    }
    let columns = panels.len().min(2);
    Some(Figure {
        title: spec.title.clone(),
        description: String::new(),
        panels,
        columns,
        legend: legend(&metrics),
        color_bar: None,
    })
}

/// The lines of a curve: one per cell of its axes.
fn strands(curve: &Curve, names: &Names) -> Vec<Strand> {
    let params = names.params(curve);
    let strand = |cell: usize| {
        let base = words(curve.short_name());
        let mut metric = base.clone();
        for (axis, place) in cell_labels(curve, cell) {
            metric = format!("{metric}, {axis} {place}");
        }
        if !params.is_empty() {
            metric = format!("{metric} ({params})");
        }
        let values = (0..curve.series.steps.len()).map(|index| curve.values_at(index)[cell]);
        let steps = curve.series.steps.iter().map(|step| *step as f64);
        Strand {
            unit: curve.series.unit.clone(),
            base,
            metric,
            model: names.model(curve),
            points: steps.zip(values).collect(),
        }
    };
    (0..curve.block.min(super::LINES_MAX)).map(strand).collect()
}

fn cell_labels(curve: &Curve, mut cell: usize) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    for axis in curve.series.axes.iter().rev() {
        let size = (axis.size as usize).max(1);
        let place = label(axis, cell % size);
        if size > 1 && !place.is_empty() {
            labels.push((axis.name.clone(), place));
        }
        cell /= size;
    }
    labels.reverse();
    labels
}

fn y_scale(strands: &[&Strand], unit: &str, log: bool) -> Scale {
    let values: Vec<f64> = strands.iter().flat_map(|s| s.points.iter().map(|p| p.1)).collect();
    let positive = values.iter().any(|value| *value > 0.0 && value.is_finite());
    // Fractions are not looked at on a logarithmic axis: 0.99 and 1 would be the same.
    let fraction = unit == "probability";
    if log && positive && !fraction {
        return Scale::log(values.iter().copied(), 0.03, false);
    }
    let within = values.iter().all(|value| !value.is_finite() || (0.0..=1.0).contains(value));
    if fraction && within {
        return Scale::Linear { min: -0.03, max: 1.03 };
    }
    Scale::linear(values.iter().copied(), 0.04)
}

/// The metric, or what several metrics have in common, with the unit.
fn y_label(strands: &[&Strand], unit: &str) -> String {
    let metrics = distinct(strands.iter().map(|s| &s.base));
    let name = match metrics.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first, rest @ ..] => {
            // `train loss` and `test loss` are both a loss.
            let word = first.rsplit(' ').next().unwrap_or_default();
            let common =
                !word.is_empty() && rest.iter().all(|m| m.rsplit(' ').next() == Some(word));
            if common { word.to_owned() } else { String::new() }
        }
    };
    let name = match (name.as_str(), unit) {
        ("", "probability") => "fraction".to_owned(),
        ("", "dimensionless" | "ratio" | "truth" | "") => "value".to_owned(),
        (_, _) => name,
    };
    capitalised(&with_unit(&name, unit))
}

fn distinct<'a>(items: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for item in items {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
    list
}
