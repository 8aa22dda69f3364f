//! Values over steps. One panel per unit; colours are metrics, or models where there is one metric;
//! with several of both, each model (or each metric, where models are many) has its own panel.

use super::{FigureSpec, Measured, Names, capitalised, say_once, with_unit, words};
use crate::{
    chart::{Axis, Content, Dash, Figure, LegendEntry, Line, Mark, Panel, color, scale::Scale},
    series::{Curve, is_numeric, label},
};

/// More models than this do not get a panel each.
const MODEL_PANELS_MAX: usize = 6;

/// More models than this do not get a colour each.
const MODEL_COLORS_MAX: usize = 8;

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
    /// The model without its seed.
    setting: String,
    points: Vec<(f64, f64)>,
    /// From the lower to the upper end of each point's interval, with gaps between them.
    intervals: Vec<(f64, f64)>,
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

pub(super) fn lines(spec: &FigureSpec, measured: &[Measured<'_>], names: &Names) -> Option<Figure> {
    let mut strands: Vec<Strand> = measured.iter().flat_map(|one| strands(one, names)).collect();
    shorten(&mut strands);
    share_colors(&mut strands);
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
            let drawn = |strand: &&Strand| {
                let name = if by_metric { &strand.metric } else { &strand.model };
                let index = colored.iter().position(|known| known == name).unwrap_or(0);
                let color = color::category(index, colored.len());
                let line = |points: &[(f64, f64)]| Line {
                    points: points.to_vec(),
                    color: color.clone(),
                    dash: Dash::Solid,
                };
                [line(&strand.points), line(&strand.intervals)]
            };
            let shown: Vec<Line> = of_unit
                .iter()
                .filter(inside)
                .flat_map(drawn)
                .filter(|line| !line.points.is_empty())
                .collect();
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

pub(super) fn legend(names: &[String]) -> Vec<LegendEntry> {
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

/// More colours than can be told apart: all seeds of a setting get one, if there are several settings.
fn share_colors(strands: &mut [Strand]) {
    let models = distinct(strands.iter().map(|s| &s.model)).len();
    let settings = distinct(strands.iter().map(|s| &s.setting)).len();
    if models > MODEL_COLORS_MAX && (2..models).contains(&settings) {
        for strand in strands {
            strand.model.clone_from(&strand.setting);
        }
    }
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

/// The lines of a curve: one per cell of its axes.
fn strands(measured: &Measured<'_>, names: &Names) -> Vec<Strand> {
    let curve = measured.curve;
    let params = names.params(curve);
    let strand = |cell: usize| {
        let base = words(curve.short_name());
        let mut metric = base.clone();
        for place in cell_labels(curve, cell) {
            metric = format!("{metric}, {place}");
        }
        if !params.is_empty() {
            metric = format!("{metric} ({params})");
        }
        let steps = || curve.series.steps.iter().map(|step| *step as f64).enumerate();
        let at = |(index, step): (usize, f64)| (step, curve.values_at(index)[cell]);
        let interval = |(index, step): (usize, f64)| {
            let (low, high) = measured.ends?;
            let end = |curve: &Curve| (step, curve.values_at(index)[cell]);
            Some([end(low), end(high), (f64::NAN, f64::NAN)])
        };
        Strand {
            unit: curve.series.unit.clone(),
            base,
            metric,
            model: names.model(curve),
            setting: names.setting(curve),
            points: steps().map(at).collect(),
            intervals: steps().filter_map(interval).flatten().collect(),
        }
    };
    (0..curve.block.min(super::LINES_MAX)).map(strand).collect()
}

fn cell_labels(curve: &Curve, mut cell: usize) -> Vec<String> {
    let mut labels = Vec::new();
    for axis in curve.series.axes.iter().rev() {
        let size = (axis.size as usize).max(1);
        let place = label(axis, cell % size);
        if size > 1 && !place.is_empty() {
            // A number says nothing without its axis, a name does.
            let is_name = !axis.labels.is_empty() && !is_numeric(axis);
            labels.push(if is_name { place } else { format!("{} {place}", words(&axis.name)) });
        }
        cell /= size;
    }
    labels.reverse();
    labels
}

fn y_scale(strands: &[&Strand], unit: &str, log: bool) -> Scale {
    let values: Vec<f64> =
        strands.iter().flat_map(|s| s.points.iter().chain(&s.intervals).map(|p| p.1)).collect();
    value_scale(&values, unit, log)
}

/// The scale of values with a unit.
pub(super) fn value_scale(values: &[f64], unit: &str, log: bool) -> Scale {
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

fn y_label(strands: &[&Strand], unit: &str) -> String {
    value_label(&distinct(strands.iter().map(|s| &s.base)), unit)
}

/// The metric, or what several metrics have in common, with the unit.
pub(super) fn value_label(metrics: &[String], unit: &str) -> String {
    let name = match metrics {
        [] => String::new(),
        [one] => one.clone(),
        [first, rest @ ..] => {
            // `train loss` and `test loss` are both a loss, and so are `loss first` and `loss repeat`;
            // the best of several scores is not called `max`.
            let shared = |word: fn(&String) -> &str| {
                let word_of_first = word(first);
                rest.iter().all(|name| word(name) == word_of_first).then_some(word_of_first)
            };
            let last = shared(|name| name.rsplit(' ').next().unwrap_or_default());
            let start = || shared(|name| name.split(' ').next().unwrap_or_default());
            let is_said = |word: &&str| !STATISTICS.contains(word);
            last.filter(is_said).or_else(|| start().filter(is_said)).unwrap_or_default().to_owned()
        }
    };
    let name = match (name.as_str(), unit) {
        ("", "probability") => "fraction".to_owned(),
        ("", "dimensionless" | "ratio" | "truth" | "") => "value".to_owned(),
        (_, _) => name,
    };
    capitalised(&with_unit(&name, unit))
}

/// Words that tell how a value was made, not what it is.
const STATISTICS: [&str; 6] = ["max", "min", "mean", "median", "best", "total"];

pub(super) fn distinct<'a>(items: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for item in items {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
    list
}
