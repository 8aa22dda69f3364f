//! The newest values at a glance. Few models stand side by side, one metric per row; many models
//! stand below each other, with one table per experiment.

use std::collections::{BTreeMap, HashMap, HashSet};

use comfy_table::{Cell, Table};
use sweep_proto::pb;

use crate::{
    figures::common_prefix,
    format,
    series::{Curve, Origin, is_numeric, origin},
    table::{self, Align},
};

/// Models that stand side by side.
const COLUMNS_MAX: usize = 5;
/// Characters that a model's name may take as a column.
const COLUMN_CHARS_MAX: usize = 30;
/// Metrics with a few values (shares of three components, say) are shown in one cell.
const VALUES_MAX: usize = 4;
/// Metric columns of one table of many models.
const METRICS_PER_TABLE: usize = 7;
/// Models of a table.
const MODELS_MAX: usize = 200;
/// Places of an axis that has a table of its own.
const PLACES_MAX: usize = 40;

/// Tables with their headings, and what they do not show.
#[derive(Debug, Default)]
pub(in crate::commands) struct Summary {
    /// Heading and table.
    pub(in crate::commands) tables: Vec<(String, Table)>,
    /// What else there is.
    pub(in crate::commands) notes: Vec<String>,
}

/// Makes the summary of curves that hold their newest step only.
pub(in crate::commands) fn summary(mut curves: Vec<Curve>) -> Summary {
    let all = curves.len();
    let groups = by_place(&curves);
    let n_along: usize = groups.iter().map(|(_, group)| group.len()).sum();
    let along: Vec<(String, Table)> = groups
        .into_iter()
        .flat_map(|(heading, group)| places(&group).into_iter().map(move |t| (heading.clone(), t)))
        .collect();
    curves.retain(|curve| (1..=VALUES_MAX).contains(&curve.block) && curve.latest().is_some());
    let hidden = all - curves.len() - n_along;
    // Training first, then analyses, then what looks at the whole trajectory.
    curves.sort_by_key(|curve| match origin(&curve.series) {
        Origin::Train => 0,
        Origin::Analyse => 1,
        Origin::Compare => 2,
        Origin::Trajectory => 3,
    });
    let mut summary = Summary::default();
    for mut curves in by_subject(curves) {
        let models = name_subjects(&mut curves);
        let narrow = models.values().all(|model| model.len() <= COLUMN_CHARS_MAX);
        summary.tables.extend(if models.len() <= COLUMNS_MAX && narrow {
            side_by_side(&curves, &models)
        } else {
            below_each_other(&curves, &models)
        });
        if models.len() > MODELS_MAX {
            let more = format::count((models.len() - MODELS_MAX) as u64);
            summary.notes.push(format!("{more} more models: --output json, or `sweep export`"));
        }
    }
    summary.tables.extend(along);
    if hidden > 0 {
        let what = format::plural(hidden as u64, "series", "series");
        summary.notes.push(format!(
            "{what} with axes (layer, frequency, tensor, …) not shown: --metric NAME, or `sweep plot`"
        ));
    }
    summary
}

/// Models that have tables of their own for an axis.
const TABLES_MAX: usize = 4;

/// What reductions found for each place of one named axis (arms, digits, pairs), where that is too much for
/// a cell: by experiment, model and axis; not of many models, which are a figure's business.
fn by_place(curves: &[Curve]) -> Vec<(String, Vec<&Curve>)> {
    let mut groups: Vec<(String, Vec<&Curve>)> = Vec::new();
    let models = |owner: &str| {
        let mine = curves.iter().filter(|curve| curve.owner() == owner);
        mine.map(|curve| curve.series.model_index).collect::<HashSet<_>>().len()
    };
    for curve in curves.iter().filter(|curve| origin(&curve.series) == Origin::Trajectory) {
        let [axis] = curve.series.axes.as_slice() else { continue };
        let size = axis.size as usize;
        let fits = (VALUES_MAX + 1..=PLACES_MAX).contains(&size);
        // Numbered places (frequencies, positions) are a curve, for a figure.
        let is_named = !axis.labels.is_empty() && !is_numeric(axis);
        if !is_named || !fits || models(&curve.owner()) > TABLES_MAX {
            continue;
        }
        let heading = format!("{}, {} by {}", curve.owner(), curve.series.model, axis.name);
        match groups.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, group)) if group[0].series.axes == curve.series.axes => group.push(curve),
            Some(_) => {}
            None => groups.push((heading, vec![curve])),
        }
    }
    groups
}

/// A row per place of the axis that the curves share. Ends of intervals stand with their estimate.
fn places(curves: &[&Curve]) -> Vec<Table> {
    let axis = &curves[0].series.axes[0];
    let named = |name: String| curves.iter().copied().find(|curve| curve.short_name() == name);
    let ends = |curve: &Curve| {
        let end = |suffix: &str| named(format!("{}{suffix}", curve.short_name()));
        end("_low").zip(end("_high"))
    };
    let is_end = |curve: &Curve| {
        let name = curve.short_name();
        let estimate = name.strip_suffix("_low").or_else(|| name.strip_suffix("_high"));
        estimate.and_then(|name| named(name.to_owned())).is_some_and(|curve| ends(curve).is_some())
    };
    let shown: Vec<&Curve> = curves.iter().copied().filter(|curve| !is_end(curve)).collect();
    let cell = |curve: &Curve, place: usize| {
        let Some((_, values)) = curve.latest() else { return "-".to_owned() };
        let text = |curve: &Curve| {
            let value = curve.latest().map_or(f64::NAN, |(_, values)| values[place]);
            format::value(value, &curve.series.unit)
        };
        match ends(curve) {
            Some((low, high)) if values[place].is_finite() => {
                format!("{} ({} to {})", text(curve), text(low), text(high))
            }
            Some(_) | None => text(curve),
        }
    };
    let table = |part: &[&Curve]| {
        let headers: Vec<String> =
            part.iter().map(|curve| header(curve.short_name(), &curve.series.unit)).collect();
        let mut columns = vec![(axis.name.as_str(), Align::Left)];
        columns.extend(headers.iter().map(|header| (header.as_str(), Align::Right)));
        let mut table = table::new(&columns);
        for place in 0..axis.size as usize {
            let mut row = vec![Cell::new(crate::series::label(axis, place))];
            row.extend(part.iter().map(|curve| Cell::new(cell(curve, place))));
            table.add_row(row);
        }
        table
    };
    shown.chunks(METRICS_PER_TABLE).map(table).collect()
}

/// A metric as the heading of a column.
fn header(name: &str, unit: &str) -> String {
    match unit {
        "" | "dimensionless" | "truth" => name.to_owned(),
        unit => format!("{name} [{}]", unit.replace('_', " ")),
    }
}

/// Curves of single models, of pairs, and of several models together, as far as there are any.
fn by_subject(curves: Vec<Curve>) -> Vec<Vec<Curve>> {
    let single = |curve: &&Curve| matches!(origin(&curve.series), Origin::Train | Origin::Analyse);
    let models: HashSet<String> =
        curves.iter().filter(single).map(|curve| curve.series.model.clone()).collect();
    let (mut of_one, mut pairs, mut together) = (Vec::new(), Vec::new(), Vec::new());
    for curve in curves {
        if !curve.series.partner.is_empty() {
            pairs.push(curve);
        } else if models.contains(&curve.series.model) {
            of_one.push(curve);
        } else {
            together.push(curve);
        }
    }
    [of_one, pairs, together].into_iter().filter(|curves| !curves.is_empty()).collect()
}

/// Numbers what the curves are about, and names it: a model, or both of a pair.
fn name_subjects(curves: &mut [Curve]) -> BTreeMap<u32, String> {
    let subject = |series: &pb::Series| match series.partner.as_str() {
        "" => series.model.clone(),
        partner => format!("{} to {partner}", series.model),
    };
    let mut order: Vec<(u32, String)> =
        curves.iter().map(|curve| (curve.series.model_index, subject(&curve.series))).collect();
    order.sort();
    order.dedup();
    let names: BTreeMap<u32, String> =
        (0u32..).zip(order.into_iter().map(|(_, name)| name)).collect();
    let index: HashMap<&str, u32> = names.iter().map(|(at, name)| (name.as_str(), *at)).collect();
    for curve in curves {
        let name = subject(&curve.series);
        curve.series.model_index = index[name.as_str()];
        curve.series.model = name;
    }
    drop(index);
    names
}

/// Owners (experiment and parameters) in the order of the curves.
fn owners(curves: &[Curve]) -> Vec<String> {
    let mut owners: Vec<String> = Vec::new();
    for curve in curves {
        let owner = curve.owner();
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }
    owners
}

/// Metrics of an owner in the order of the curves, with their units.
fn metrics<'a>(curves: &[&'a Curve]) -> Vec<(&'a str, &'a str)> {
    let mut metrics: Vec<(&str, &str)> = Vec::new();
    for curve in curves {
        let metric = (curve.short_name(), curve.series.unit.as_str());
        if !metrics.iter().any(|(name, _)| *name == metric.0) {
            metrics.push(metric);
        }
    }
    metrics
}

fn text(curve: Option<&&Curve>) -> String {
    let Some((_, values)) = curve.and_then(|curve| curve.latest()) else { return "-".to_owned() };
    let unit = curve.map_or("", |curve| curve.series.unit.as_str());
    if let [value] = values {
        return format::value(*value, unit);
    }
    let texts = values.iter().map(|value| match unit {
        "truth" | "count" | "steps" => format::value(*value, unit),
        _ => format::significant(*value, 3),
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// One table per owner, with the same columns and widths.
fn side_by_side(curves: &[Curve], models: &BTreeMap<u32, String>) -> Vec<(String, Table)> {
    let mut names: Vec<&str> = models.values().map(String::as_str).collect();
    names.sort_unstable();
    // `modular-addition-…` once, `seed0`, `seed1` at the columns.
    let shared = common_prefix(&names);
    let prefix = names.first().map_or("", |name| &name[..shared]);
    let first = if prefix.is_empty() { "metric".to_owned() } else { format!("{prefix}…") };
    let mut columns = vec![(first.as_str(), Align::Left)];
    columns.extend(models.values().map(|model| (&model[shared..], Align::Right)));
    columns.push(("unit", Align::Left));
    let mut rows: Vec<(String, Vec<Vec<String>>)> = Vec::new();
    for owner in owners(curves) {
        let mine: Vec<&Curve> = curves.iter().filter(|curve| curve.owner() == owner).collect();
        let row = |(metric, unit): (&str, &str)| {
            let of_model = |model: &u32| {
                let fits = |c: &&&Curve| c.short_name() == metric && c.series.model_index == *model;
                text(mine.iter().find(fits))
            };
            let mut row = vec![metric.to_owned()];
            row.extend(models.keys().map(of_model));
            row.push(unit.replace('_', " ").replace("dimensionless", "").replace("truth", ""));
            row
        };
        rows.push((owner, metrics(&mine).into_iter().map(row).collect()));
    }
    let width = |column: usize| {
        let cells = rows.iter().flat_map(|(_, rows)| rows.iter().map(move |row| &row[column]));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(columns[column].0.chars().count())
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let table = |(owner, rows): (String, Vec<Vec<String>>)| {
        let mut table = table::new(&columns);
        table.add_rows(rows);
        table::set_widths(&mut table, &widths);
        (owner, table)
    };
    rows.into_iter().map(table).collect()
}

fn below_each_other(curves: &[Curve], models: &BTreeMap<u32, String>) -> Vec<(String, Table)> {
    let mut tables = Vec::new();
    for owner in owners(curves) {
        let mine: Vec<&Curve> = curves.iter().filter(|curve| curve.owner() == owner).collect();
        let found: HashMap<(&str, u32), &Curve> = mine
            .iter()
            .map(|curve| ((curve.short_name(), curve.series.model_index), *curve))
            .collect();
        for part in metrics(&mine).chunks(METRICS_PER_TABLE) {
            let headers: Vec<String> = part.iter().map(|(name, unit)| header(name, unit)).collect();
            let mut columns = vec![("model", Align::Left)];
            columns.extend(headers.iter().map(|header| (header.as_str(), Align::Right)));
            let mut table = table::new(&columns);
            let known = mine.iter().map(|curve| curve.series.model_index).collect::<HashSet<_>>();
            let rows = models.iter().filter(|(index, _)| known.contains(index));
            for (index, model) in rows.take(MODELS_MAX) {
                let mut row = vec![Cell::new(model)];
                row.extend(
                    part.iter().map(|(name, _)| Cell::new(text(found.get(&(*name, *index))))),
                );
                table.add_row(row);
            }
            tables.push((owner.clone(), table));
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reduction's metric over the arms of a sweep.
    fn curve(metric: &str, values: &[f64]) -> Curve {
        let task = pb::TaskKey {
            kind: Some(pb::task_key::Kind::Trajectory(pb::TrajectoryKey::default())),
            ..Default::default()
        };
        let labels = (0..values.len()).map(|arm| format!("arm {arm}")).collect();
        let axis = pb::Axis { name: "arm".into(), size: values.len() as u32, labels };
        let series = pb::Series {
            metric: format!("delay.{metric}"),
            experiment: "delay".into(),
            unit: if metric == "never" { "truth".into() } else { "steps".into() },
            model: "all".into(),
            params: "{}".into(),
            steps: vec![100],
            axes: vec![axis],
            values: values.to_vec(),
            task: Some(task),
            ..Default::default()
        };
        Curve { block: values.len(), series, second_steps: Vec::new() }
    }

    #[test]
    fn a_named_axis_has_a_table_with_intervals_beside_their_estimates() {
        let time = [100.0, 200.0, f64::NAN, 400.0, 500.0];
        let low: Vec<f64> = time.iter().map(|t| t - 10.0).collect();
        let high: Vec<f64> = time.iter().map(|t| t + 10.0).collect();
        let curves = vec![
            curve("never", &[0.0, 0.0, 1.0, 0.0, 0.0]),
            curve("time", &time),
            curve("time_high", &high),
            curve("time_low", &low),
        ];
        let found = summary(curves.clone());
        assert!(found.notes.is_empty(), "nothing is hidden: {:?}", found.notes);
        let [(heading, table)] = found.tables.as_slice() else { panic!() };
        assert_eq!(heading, "delay, all by arm");
        let text = table.to_string();
        assert!(text.contains("time [steps]") && !text.contains("time_low"), "{text}");
        assert!(text.contains("200 (190 to 210)") && text.contains("not reached"), "{text}");
        // Frequencies are no names.
        let mut numbered = curve("time", &time);
        numbered.series.axes[0].labels = (1..=5).map(|place| place.to_string()).collect();
        assert!(summary(vec![numbered]).tables.is_empty());
        // A few values stay in one cell.
        let few: Vec<Curve> = [curve("time", &time[..2])].into();
        assert_eq!(summary(few).tables[0].0, "delay");
    }
}
