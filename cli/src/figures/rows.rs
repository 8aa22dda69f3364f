//! Values of one step: a row per model, parameters and place on an axis, a dot for the value and a
//! bar for its interval. One panel per unit; colours are metrics.

use super::{FigureSpec, Measured, Names, capitalised, common_prefix, lines, words};
use crate::{
    chart::{Axis, Content, Dash, Figure, Line, Panel, color, scale::Scale},
    series::{Curve, label},
};

/// More rows than this do not fit a page.
const ROWS_MAX: usize = 60;

/// More rows than this are not compared by eye: then all seeds of a setting share one.
const ROWS_SINGLE: usize = 24;

/// Room for a row and its name.
const ROW_PIXELS: f64 = 17.0;

/// One value before it has a place.
struct Entry {
    unit: String,
    metric: String,
    row: String,
    /// The row of all seeds of the setting.
    setting: String,
    value: f64,
    interval: Option<(f64, f64)>,
}

pub(super) fn rows(spec: &FigureSpec, measured: &[Measured<'_>], names: &Names) -> Option<Figure> {
    let several_models = measured.iter().any(|one| {
        let series = &one.curve.series;
        let first = &measured[0].curve.series;
        series.model_index != first.model_index || series.partner != first.partner
    });
    let mut entries: Vec<Entry> =
        measured.iter().flat_map(|one| entries(one, names, several_models)).collect();
    if lines::distinct(entries.iter().map(|entry| &entry.row)).len() > ROWS_SINGLE {
        share_rows(&mut entries);
    }
    let one_row = lines::distinct(entries.iter().map(|entry| &entry.row)).len() == 1;
    if one_row && lines::distinct(entries.iter().map(|entry| &entry.metric)).len() > 1 {
        for entry in &mut entries {
            entry.row = capitalised(&entry.metric);
        }
    }
    let metrics = lines::distinct(entries.iter().map(|entry| &entry.metric));
    let mut panels = Vec::new();
    for unit in lines::distinct(entries.iter().map(|entry| &entry.unit)) {
        let of_unit: Vec<&Entry> = entries.iter().filter(|entry| entry.unit == unit).collect();
        panels.push(panel(spec, &of_unit, &unit, &metrics, one_row)?);
    }
    let columns = panels.len().min(2);
    Some(Figure {
        title: spec.title.clone(),
        description: String::new(),
        panels,
        columns,
        legend: if one_row { Vec::new() } else { lines::legend(&metrics) },
        color_bar: None,
    })
}

/// Puts all seeds of a setting into one row, as dots without bars, if there are settings with several.
fn share_rows(entries: &mut [Entry]) {
    let settings = lines::distinct(entries.iter().map(|entry| &entry.setting)).len();
    if settings < lines::distinct(entries.iter().map(|entry| &entry.row)).len() {
        for entry in entries {
            entry.row.clone_from(&entry.setting);
            entry.interval = None;
        }
    }
}

fn panel(
    spec: &FigureSpec,
    entries: &[&Entry],
    unit: &str,
    metrics: &[String],
    one_row: bool,
) -> Option<Panel> {
    let mut names = lines::distinct(entries.iter().map(|entry| &entry.row));
    let all = names.len();
    names.truncate(ROWS_MAX);
    let shown: Vec<&&Entry> = entries.iter().filter(|entry| names.contains(&entry.row)).collect();
    let ends = |entry: &Entry| entry.interval.map_or([entry.value; 2], |(low, high)| [low, high]);
    let values: Vec<f64> =
        shown.iter().flat_map(|entry| [entry.value].into_iter().chain(ends(entry))).collect();
    let of_unit = lines::distinct(shown.iter().map(|entry| &entry.metric));
    // Metrics of a row stand a little below each other, so that their intervals do not cover.
    let bars = shown.iter().any(|entry| entry.interval.is_some());
    let spread = if bars && !one_row { 0.5 / of_unit.len().max(1) as f64 } else { 0.0 };
    let mut drawn = Vec::new();
    for entry in &shown {
        let row = names.iter().position(|name| *name == entry.row)? as f64;
        let place = of_unit.iter().position(|name| *name == entry.metric).unwrap_or(0) as f64;
        let y = row + spread * (place - (of_unit.len() as f64 - 1.0) / 2.0);
        let index = metrics.iter().position(|name| *name == entry.metric).unwrap_or(0);
        let line = |points| Line {
            points,
            color: color::category(if one_row { 0 } else { index }, metrics.len()),
            dash: Dash::Solid,
        };
        if let Some((low, high)) = entry.interval {
            drawn.push(line(vec![(low, y), (high, y)]));
        }
        drawn.push(line(vec![(entry.value, y)]));
    }
    // What has no place on the axis says so, or it would look forgotten.
    let is_infinite = |name: &String| {
        shown.iter().any(|entry| entry.row == *name && entry.value == f64::INFINITY)
    };
    let names: Vec<String> = names
        .into_iter()
        .map(|name| if is_infinite(&name) { format!("{name} (∞)") } else { name })
        .collect();
    let mut bases = of_unit;
    if one_row {
        bases.dedup();
    }
    let height = (names.len() as f64 * ROW_PIXELS).max(2.0 * ROW_PIXELS);
    Some(Panel {
        title: if all > ROWS_MAX { format!("{ROWS_MAX} of {all}") } else { String::new() },
        x: Axis {
            label: lines::value_label(&bases, unit),
            scale: lines::value_scale(&values, unit, spec.log_y),
        },
        y: Axis { label: String::new(), scale: Scale::Names { names, reversed: true } },
        content: Content::Lines(drawn),
        size: (360.0, height),
    })
}

/// The values of a curve's only step, row by row.
fn entries(measured: &Measured<'_>, names: &Names, with_model: bool) -> Vec<Entry> {
    let curve = measured.curve;
    let cells = cell_names(curve);
    let params = names.params(curve);
    let model = if with_model { names.model(curve) } else { String::new() };
    let setting = if with_model { names.setting(curve) } else { String::new() };
    let entry = |cell: usize| {
        let join = |model: &str| {
            let parts = [params.as_str(), &cells[cell], model];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
        };
        let end = |curve: &Curve| curve.values_at(0)[cell];
        Entry {
            unit: curve.series.unit.clone(),
            metric: words(curve.short_name()),
            row: join(&model),
            setting: join(&setting),
            value: end(curve),
            interval: measured.ends.map(|(low, high)| (end(low), end(high))),
        }
    };
    (0..curve.block).map(entry).collect()
}

/// Settings `a=1,b=2` without the parameters that all of them share; names without parameters stay.
fn without_shared(settings: &[String]) -> Vec<String> {
    // A list among the values has commas of its own.
    let parts = |setting: &String| {
        let mut parts: Vec<String> = Vec::new();
        for piece in setting.split(',') {
            match parts.last_mut() {
                Some(part) if !piece.contains('=') => *part = format!("{part},{piece}"),
                _ => parts.push(piece.to_owned()),
            }
        }
        parts
    };
    let all: Vec<Vec<String>> =
        settings.iter().filter(|setting| setting.contains('=')).map(parts).collect();
    let is_shared = |part: &String| all.iter().all(|setting| setting.contains(part));
    let shorter = |setting: &String| {
        let kept: Vec<String> =
            parts(setting).into_iter().filter(|part| !is_shared(part)).collect();
        if kept.is_empty() || !setting.contains('=') { setting.clone() } else { kept.join(",") }
    };
    settings.iter().map(shorter).collect()
}

/// What the places of the first axis are called; those of a second one share its row. Names of models lose what they share.
fn cell_names(curve: &Curve) -> Vec<String> {
    let Some(axis) = curve.series.axes.first() else { return vec![String::new(); curve.block] };
    let size = (axis.size as usize).max(1);
    let labels: Vec<String> = (0..size).map(|place| label(axis, place)).collect();
    let names: Vec<String> = if axis.labels.is_empty() || crate::series::is_numeric(axis) {
        labels.iter().map(|place| format!("{} {place}", words(&axis.name))).collect()
    } else {
        let all: Vec<&str> = labels.iter().map(String::as_str).collect();
        let prefix = if axis.name == "member" { common_prefix(&all) } else { 0 };
        // Cells of another metric are named `layer=0,head=3`.
        let spoken = |name: &str| {
            if axis.name == "cell" {
                name.replace('=', " ").replace(',', ", ")
            } else {
                name.to_owned()
            }
        };
        let shorter = if axis.name == "arm" { without_shared(&labels) } else { labels };
        shorter.iter().map(|name| spoken(&name[prefix..])).collect()
    };
    let is_only = size == 1 && curve.series.axes.len() > 1;
    let name = |cell: usize| {
        if is_only { String::new() } else { names[cell / (curve.block / size)].clone() }
    };
    (0..curve.block).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::without_shared;

    #[test]
    fn what_all_settings_share_is_left_out() {
        let shorter = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|&text| text.to_owned()).collect();
            without_shared(&settings)
        };
        assert_eq!(
            shorter(&["base", "edit=zero,of=[a,b],n=1", "edit=zero,of=[a,c],n=1"]),
            ["base", "of=[a,b]", "of=[a,c]"]
        );
        assert_eq!(shorter(&["base", "edit=zero"]), ["base", "edit=zero"]);
        assert_eq!(shorter(&["a=1", "a=2,b=1"]), ["a=1", "a=2,b=1"]);
    }
}
