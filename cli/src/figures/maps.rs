//! Heat maps (axis × step, or layer × head at the last step) and paths of principal components.

use super::{FigureSpec, Names, capitalised, say_once, with_unit, words};
use crate::{
    chart::{
        Axis, Cells, ColorBar, Content, Figure, LegendEntry, Mark, Panel, Path, color::ColorMap,
        scale::Scale,
    },
    series::{Curve, is_numeric, label},
};

/// Heat maps and paths of one figure; more are not looked at one by one.
pub(super) const PANELS_MAX: usize = 24;

pub(super) fn heat_maps(spec: &FigureSpec, curves: &[&Curve], names: &Names) -> Option<Figure> {
    let drawable: Vec<&Curve> = curves
        .iter()
        .copied()
        .filter(|curve| matches!(curve.series.axes.len(), 1 | 2))
        .take(PANELS_MAX)
        .collect();
    if drawable.is_empty() {
        return None;
    }
    let several_metrics =
        drawable.iter().any(|curve| curve.series.metric != drawable[0].series.metric);
    let columns = drawable.len().min(if drawable.len() == 4 { 2 } else { 3 });
    let mut panels = Vec::new();
    for curve in &drawable {
        let mut title = if drawable.len() > 1 { names.panel(curve) } else { String::new() };
        if several_metrics {
            title = format!("{} – {title}", words(curve.short_name()));
        }
        panels.push(match curve.series.axes.as_slice() {
            [axis] => over_steps(spec, curve, axis, title, columns),
            [rows, across] => at_last_step(curve, rows, across, title)?,
            _ => return None,
        });
    }
    Some(figure(spec, panels, columns, &drawable, "no value"))
}

/// Maps that share one bar of colours; `missing` says what has none.
pub(super) fn figure(
    spec: &FigureSpec,
    mut panels: Vec<Panel>,
    columns: usize,
    curves: &[&Curve],
    missing: &str,
) -> Figure {
    let values: Vec<f64> = panels
        .iter()
        .flat_map(|panel| match &panel.content {
            Content::Cells(cells) => cells.values.as_slice(),
            Content::Lines(_) | Content::Paths(_) => &[],
        })
        .copied()
        .collect();
    let several_metrics = curves.iter().any(|curve| curve.series.metric != curves[0].series.metric);
    let name = if several_metrics { String::new() } else { words(curves[0].short_name()) };
    let label = capitalised(&with_unit(&name, &curves[0].series.unit));
    let is_missing = values.iter().any(|value| !value.is_finite());
    say_once(&mut panels, columns);
    Figure {
        title: spec.title.clone(),
        description: String::new(),
        panels,
        columns,
        legend: is_missing
            .then(|| LegendEntry { label: missing.to_owned(), mark: Mark::Missing })
            .into_iter()
            .collect(),
        color_bar: Some(color_bar(label, &values, spec.log_y)),
    }
}

fn color_bar(label: String, values: &[f64], log: bool) -> ColorBar {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let (min, max) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| {
        (min.min(value), max.max(value))
    });
    if log && max > 0.0 {
        return ColorBar { label, scale: Scale::log(finite(), 0.0, false), map: ColorMap::Viridis };
    }
    if min < 0.0 && max > 0.0 {
        let most = max.max(-min);
        let scale = Scale::Linear { min: -most, max: most };
        return ColorBar { label, scale, map: ColorMap::Diverging };
    }
    ColorBar { label, scale: Scale::linear(finite(), 0.0), map: ColorMap::Viridis }
}

/// One axis against the steps.
fn over_steps(
    spec: &FigureSpec,
    curve: &Curve,
    axis: &sweep_proto::pb::Axis,
    title: String,
    columns: usize,
) -> Panel {
    let steps: Vec<f64> = curve.series.steps.iter().map(|step| *step as f64).collect();
    let (x_edges, x_scale) = match curve.series.steps.as_slice() {
        // A single step is a place, not a range.
        [step] => (vec![0.0, 1.0], Scale::Names { names: vec![step.to_string()], reversed: false }),
        _ => step_edges(&steps, spec.log_x),
    };
    let rows = axis.size as usize;
    let (y_edges, y_scale) = axis_edges(axis);
    let at = |row: usize| {
        (0..steps.len()).map(move |column| curve.series.values[column * curve.block + row])
    };
    let values = (0..rows).flat_map(at).collect();
    let row_pixels = if matches!(y_scale, Scale::Names { .. }) { 15.0 } else { 5.0 };
    let size = (
        match columns {
            1 => 420.0,
            2 => 280.0,
            _ => 210.0,
        },
        (rows as f64 * row_pixels).clamp(150.0, 560.0),
    );
    Panel {
        title,
        x: Axis { label: "Training step".to_owned(), scale: x_scale },
        y: Axis { label: capitalised(&words(&axis.name)), scale: y_scale },
        content: Content::Cells(Cells { x_edges, y_edges, values }),
        size,
    }
}

/// Two axes at the newest step.
fn at_last_step(
    curve: &Curve,
    rows: &sweep_proto::pb::Axis,
    across: &sweep_proto::pb::Axis,
    title: String,
) -> Option<Panel> {
    let (step, values) = curve.latest()?;
    let named = |axis: &sweep_proto::pb::Axis, reversed| Scale::Names {
        names: (0..axis.size as usize).map(|index| label(axis, index)).collect(),
        reversed,
    };
    let edges = |count: u32| (0..=count).map(f64::from).collect();
    let cell = |count: u32, most: f64| (most / f64::from(count.max(1))).clamp(6.0, 34.0);
    let cell = cell(across.size, 360.0).min(cell(rows.size, 420.0));
    // A strip of few rows would be a line.
    let height = if rows.size < 4 { cell.max(26.0) } else { cell };
    let place =
        if title.is_empty() { format!("step {step}") } else { format!("{title}, step {step}") };
    Some(Panel {
        title: place,
        x: Axis { label: capitalised(&words(&across.name)), scale: named(across, false) },
        y: Axis { label: capitalised(&words(&rows.name)), scale: named(rows, true) },
        content: Content::Cells(Cells {
            x_edges: edges(across.size),
            y_edges: edges(rows.size),
            values: values.to_vec(),
        }),
        size: (cell * f64::from(across.size.max(1)), height * f64::from(rows.size.max(1))),
    })
}

/// Cells around the steps, which need not be even. On a logarithmic axis step 0 has a cell before
/// the others.
pub(super) fn step_edges(steps: &[f64], log: bool) -> (Vec<f64>, Scale) {
    let positive: Vec<f64> = steps.iter().copied().filter(|step| *step > 0.0).collect();
    if log && positive.len() > 1 {
        let logs: Vec<f64> = positive.iter().map(|step| step.ln()).collect();
        let mut edges: Vec<f64> = around(&logs).into_iter().map(f64::exp).collect();
        let (min, max) = (edges[0], edges[edges.len() - 1]);
        let zero = positive.len() < steps.len();
        if zero {
            edges.insert(0, 0.0);
        }
        return (edges, Scale::Log { min, max, zero });
    }
    let edges = around(steps);
    let scale = Scale::Linear { min: edges[0], max: edges[edges.len() - 1] };
    (edges, scale)
}

/// Edges half-way between neighbours; the outer cells are symmetric.
fn around(centres: &[f64]) -> Vec<f64> {
    let (Some(first), Some(last)) = (centres.first(), centres.last()) else {
        return vec![0.0, 1.0];
    };
    let [a, b, ..] = centres else { return vec![first - 0.5, first + 0.5] };
    let middles = centres.windows(2).map(|pair| f64::midpoint(pair[0], pair[1]));
    let (before, end) =
        (centres[centres.len() - 2], last + (last - centres[centres.len() - 2]) / 2.0);
    debug_assert!(before < *last, "steps rise");
    std::iter::once(a - (b - a) / 2.0).chain(middles).chain([end]).collect()
}

/// Numbered places lie at their numbers; named ones below each other, the first on top.
fn axis_edges(axis: &sweep_proto::pb::Axis) -> (Vec<f64>, Scale) {
    let count = axis.size as usize;
    let labels: Vec<String> = (0..count).map(|index| label(axis, index)).collect();
    let numbers: Vec<f64> = labels.iter().filter_map(|name| name.parse().ok()).collect();
    let rising = numbers.is_sorted_by(|a, b| a < b);
    if is_numeric(axis) && numbers.len() == count && rising && count > 1 {
        let edges = around(&numbers);
        let scale = Scale::Linear { min: edges[0], max: edges[edges.len() - 1] };
        return (edges, scale);
    }
    let edges = (0..=count).map(|edge| edge as f64).collect();
    (edges, Scale::Names { names: labels, reversed: true })
}

/// A way through the plane of two components: of a curve, or of one member of it.
struct Walk<'a> {
    curve: &'a Curve,
    /// Where its first component is in a value.
    at: usize,
    member: Option<String>,
}

/// One walk per curve; one per member where the components are those of several models.
fn walks(curve: &Curve) -> Vec<Walk<'_>> {
    match curve.series.axes.as_slice() {
        [members, components] if components.size >= 2 => (0..members.size as usize)
            .map(|index| Walk {
                curve,
                at: index * components.size as usize,
                member: Some(label(members, index)),
            })
            .collect(),
        _ if curve.block >= 2 => vec![Walk { curve, at: 0, member: None }],
        _ => Vec::new(),
    }
}

pub(super) fn paths(spec: &FigureSpec, curves: &[&Curve], names: &Names) -> Option<Figure> {
    let drawable: Vec<Walk<'_>> =
        curves.iter().flat_map(|curve| walks(curve)).take(PANELS_MAX).collect();
    let members: Vec<&str> = drawable.iter().filter_map(|walk| walk.member.as_deref()).collect();
    let prefix = super::common_prefix(&members);
    let steps = || drawable.iter().flat_map(|walk| steps_of(walk.curve));
    let columns = drawable.len().min(if drawable.len() == 4 { 2 } else { 3 });
    let size = match columns {
        1 => (340.0, 300.0),
        2 => (270.0, 240.0),
        _ => (220.0, 200.0),
    };
    // A member that has no checkpoint at a step has no point there.
    let points = |walk: &Walk<'_>| -> Vec<(f64, (f64, f64))> {
        let steps = steps_of(walk.curve).into_iter().enumerate();
        let point = |index: usize| {
            let values = walk.curve.values_at(index);
            (values[walk.at], values[walk.at + 1])
        };
        steps
            .map(|(index, step)| (step, point(index)))
            .filter(|(_, (x, y))| walk.member.is_none() || x.is_finite() && y.is_finite())
            .collect()
    };
    // Members of one curve share their plane, so they share its axes.
    let shared: Vec<(f64, f64)> = drawable
        .iter()
        .filter(|walk| walk.member.is_some())
        .flat_map(&points)
        .map(|p| p.1)
        .collect();
    let panel = |walk: &Walk<'_>| {
        let (along, points): (Vec<f64>, Vec<(f64, f64)>) = points(walk).into_iter().unzip();
        let inside = if walk.member.is_some() { &shared } else { &points };
        let axis = |number: usize, read: fn(&(f64, f64)) -> f64| {
            let name = match walk.curve.series.axes.last() {
                Some(axis) if axis.name == "component" => {
                    with_unit(&format!("PC {}", number + 1), &walk.curve.series.unit)
                }
                Some(axis) => with_unit(
                    &format!("{} {}", capitalised(&words(&axis.name)), label(axis, number)),
                    &walk.curve.series.unit,
                ),
                None => String::new(),
            };
            Axis { label: name, scale: Scale::linear(inside.iter().map(read), 0.07) }
        };
        let title = match &walk.member {
            _ if drawable.len() == 1 => String::new(),
            Some(member) => Names::short_of(member.get(prefix..).unwrap_or(member)),
            None => names.panel(walk.curve),
        };
        let (x, y) = (axis(0, |point| point.0), axis(1, |point| point.1));
        Panel { title, x, y, content: Content::Paths(vec![Path { points, along }]), size }
    };
    let panels: Vec<Panel> = drawable.iter().map(panel).collect();
    if panels.is_empty() {
        return None;
    }
    let all: Vec<f64> = steps().collect();
    let scale = if spec.log_x {
        Scale::log(all.iter().copied(), 0.0, true)
    } else {
        Scale::linear(all.iter().copied(), 0.0)
    };
    Some(Figure {
        title: spec.title.clone(),
        description: String::new(),
        panels,
        columns,
        legend: vec![
            LegendEntry { label: "first checkpoint".to_owned(), mark: Mark::Start },
            LegendEntry { label: "last checkpoint".to_owned(), mark: Mark::End },
        ],
        color_bar: Some(ColorBar {
            label: "Training step".to_owned(),
            scale,
            map: ColorMap::Viridis,
        }),
    })
}

fn steps_of(curve: &Curve) -> Vec<f64> {
    curve.series.steps.iter().map(|step| *step as f64).collect()
}
