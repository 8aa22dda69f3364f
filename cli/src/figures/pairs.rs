//! Comparisons as maps: first × second models, and first × second steps of one model.

use super::{
    FigureSpec, Names, capitalised,
    maps::{self, PANELS_MAX, step_edges},
    words,
};
use crate::{
    chart::{Axis, Cells, Content, Figure, Panel, scale::Scale},
    series::{Curve, label},
};

/// Whether a map would show little but that most models are not compared: less than half of all pairs are.
pub(super) fn is_sparse(curves: &[&Curve]) -> bool {
    let mut models: Vec<&str> = Vec::new();
    let mut pairs: Vec<[&str; 2]> = Vec::new();
    for curve in curves.iter().filter(|curve| !curve.series.partner.is_empty()) {
        let pair = [curve.series.model.as_str(), curve.series.partner.as_str()];
        models.extend(pair);
        pairs.push(pair);
    }
    models.sort_unstable();
    models.dedup();
    pairs.sort_unstable();
    pairs.dedup();
    4 * pairs.len() < models.len() * models.len().saturating_sub(1)
}

/// First against second models at the newest step; a panel per metric and cell.
pub(super) fn models(spec: &FigureSpec, curves: &[&Curve], names: &Names) -> Option<Figure> {
    let mut models: Vec<&str> = Vec::new();
    let between: Vec<&Curve> =
        curves.iter().copied().filter(|curve| !curve.series.partner.is_empty()).collect();
    let sides = |of: fn(&Curve) -> &str| between.iter().map(move |curve| of(curve));
    for name in sides(|c| &c.series.model).chain(sides(|c| &c.series.partner)) {
        if !models.contains(&name) {
            models.push(name);
        }
    }
    let mut cells: Vec<(&str, String, usize)> = Vec::new();
    for curve in &between {
        let metric = curve.series.metric.as_str();
        if cells.iter().all(|(known, ..)| *known != metric) {
            let labels = (0..curve.block).map(|cell| (metric, named_cell(curve, cell), cell));
            cells.extend(labels.take(CELLS_MAX));
        }
    }
    let several_metrics = cells.iter().any(|(metric, ..)| *metric != cells[0].0);
    let scale = |reversed| Scale::Names {
        names: models.iter().map(|model| names.short(model)).collect(),
        reversed,
    };
    let edges: Vec<f64> = (0..=models.len()).map(|edge| edge as f64).collect();
    let side = (300.0 / models.len() as f64).clamp(6.0, 40.0) * models.len() as f64;
    let panel = |(metric, cell_name, cell): &(&str, String, usize)| {
        let mut values = vec![f64::NAN; models.len() * models.len()];
        for curve in between.iter().filter(|curve| curve.series.metric == *metric) {
            let place = |name: &str| models.iter().position(|model| *model == name);
            let at = place(&curve.series.model).zip(place(&curve.series.partner));
            let value = curve.latest().and_then(|(_, values)| values.get(*cell).copied());
            if let (Some((row, column)), Some(value)) = (at, value) {
                values[row * models.len() + column] = value;
            }
        }
        let short = words(crate::series::short_name(metric));
        let title = match (several_metrics, cell_name.is_empty()) {
            (true, true) => capitalised(&short),
            (true, false) => format!("{}, {cell_name}", capitalised(&short)),
            (false, _) => cell_name.clone(),
        };
        Panel {
            title,
            x: Axis { label: "Second model".to_owned(), scale: scale(false) },
            y: Axis { label: "First model".to_owned(), scale: scale(true) },
            content: Content::Cells(Cells {
                x_edges: edges.clone(),
                y_edges: edges.clone(),
                values,
            }),
            size: (side, side),
        }
    };
    let panels: Vec<Panel> = cells.iter().take(PANELS_MAX).map(panel).collect();
    let columns = panels.len().min(3);
    (!between.is_empty()).then(|| maps::figure(spec, panels, columns, &between, NOT_COMPARED))
}

/// What a place without a value means.
const NOT_COMPARED: &str = "not compared";

/// Cells of a metric that are drawn for all pairs.
const CELLS_MAX: usize = 6;

/// First against second steps of each model; a panel per metric, model and cell. A pair stands where it was computed:
/// below the diagonal.
pub(super) fn steps(spec: &FigureSpec, curves: &[&Curve], names: &Names) -> Option<Figure> {
    let first = *curves.first()?;
    let several_metrics = curves.iter().any(|curve| curve.series.metric != first.series.metric);
    let several_models = curves.iter().any(|c| c.series.model_index != first.series.model_index);
    let mut panels = Vec::new();
    for curve in curves {
        for cell in 0..curve.block.min(CELLS_MAX) {
            let mut parts = Vec::new();
            if several_metrics {
                parts.push(words(curve.short_name()));
            }
            if several_models || !names.params(curve).is_empty() {
                parts.push(names.panel(curve));
            }
            parts.extend(Some(named_cell(curve, cell)).filter(|name| !name.is_empty()));
            panels.push(step_by_step(curve, cell, capitalised(&parts.join(", ")), spec.log_x));
        }
    }
    panels.truncate(PANELS_MAX);
    let columns = panels.len().min(if panels.len() == 4 { 2 } else { 3 });
    Some(maps::figure(spec, panels, columns, curves, NOT_COMPARED))
}

fn step_by_step(curve: &Curve, cell: usize, title: String, log: bool) -> Panel {
    let mut steps: Vec<u64> =
        curve.series.steps.iter().chain(&curve.second_steps).copied().collect();
    steps.sort_unstable();
    steps.dedup();
    let mut values = vec![f64::NAN; steps.len() * steps.len()];
    let sides = curve.series.steps.iter().zip(&curve.second_steps).enumerate();
    for (index, (first, second)) in sides {
        if let (Ok(row), Ok(column)) = (steps.binary_search(first), steps.binary_search(second)) {
            values[row * steps.len() + column] = curve.values_at(index)[cell];
        }
    }
    let numbers: Vec<f64> = steps.iter().map(|step| *step as f64).collect();
    let (edges, scale) = step_edges(&numbers, log);
    let axis = |label: &str| Axis { label: label.to_owned(), scale: scale.clone() };
    Panel {
        title,
        x: axis("Step of the second checkpoint"),
        y: axis("Step of the first checkpoint"),
        content: Content::Cells(Cells { x_edges: edges.clone(), y_edges: edges.clone(), values }),
        size: (240.0, 240.0),
    }
}

/// What an entry of a value is called: `train`, `2, 3`; empty for a scalar.
fn cell_label(curve: &Curve, cell: usize) -> String {
    let mut rest = cell;
    let mut parts: Vec<String> = Vec::new();
    for axis in curve.series.axes.iter().rev() {
        let size = (axis.size as usize).max(1);
        parts.push(label(axis, rest % size));
        rest /= size;
    }
    parts.reverse();
    parts.join(", ")
}

/// The same with the name of its axis where there is one: `layer 1`.
fn named_cell(curve: &Curve, cell: usize) -> String {
    match curve.series.axes.as_slice() {
        [axis] if axis.size > 1 => format!("{} {}", words(&axis.name), label(axis, cell)),
        _ if curve.block > 1 => cell_label(curve, cell),
        _ => String::new(),
    }
}
