//! Every value of the chosen metrics as a table row.

use comfy_table::Cell;
use sweep_proto::pb;

use crate::{
    context::Context,
    error::Result,
    format,
    series::{SeriesStream, block_size, label, params_text, points, processing},
    table::{self, Align},
};

/// One row of the table.
struct Row {
    metric: String,
    params: String,
    model: String,
    seed: Option<u64>,
    step: u64,
    places: Vec<(String, String)>,
    value: f64,
    unit: String,
    processing: String,
}

/// Prints the first `limit` values.
pub(super) async fn show(cx: &Context, mut stream: SeriesStream, limit: usize) -> Result<()> {
    let mut rows = Vec::new();
    let mut total = 0;
    while let Some(series) = stream.next().await? {
        total += series.steps.len() * block_size(&series.axes);
        collect(&series, limit, &mut rows);
    }
    if rows.is_empty() {
        cx.output.note("no values yet");
        return Ok(());
    }
    cx.output.table(to_table(&rows))?;
    if total > rows.len() {
        let more = format::count((total - rows.len()) as u64);
        cx.output.hint(&format!("{more} more rows: --limit N, --output json, or `sweep export`"));
    }
    Ok(())
}

fn collect(series: &pb::Series, limit: usize, rows: &mut Vec<Row>) {
    let params = params_text(&series.params);
    // The error is only the wish to stop.
    let _ = points(series, |point| {
        if rows.len() >= limit {
            return Err(());
        }
        let place = |(axis, index): (&pb::Axis, &usize)| (axis.name.clone(), label(axis, *index));
        rows.push(Row {
            metric: series.metric.clone(),
            params: params.clone(),
            model: series.model.clone(),
            seed: series.seed,
            step: point.step,
            places: series.axes.iter().zip(point.coordinates).map(place).collect(),
            value: point.value,
            unit: series.unit.clone(),
            processing: processing(series).to_owned(),
        });
        Ok(())
    });
}

fn to_table(rows: &[Row]) -> comfy_table::Table {
    let varies = |of: fn(&Row) -> &str| rows.iter().any(|row| of(row) != of(&rows[0]));
    let with_metric = varies(|row| &row.metric);
    let with_params = varies(|row| &row.params);
    // Nobody needs to be told that weights are as they were stored.
    let with_processing = rows.iter().any(|row| !matches!(row.processing.as_str(), "" | "raw"));
    let mut axes: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.places) {
        if !axes.contains(&name.as_str()) {
            axes.push(name);
        }
    }
    let mut columns = Vec::new();
    if with_metric {
        columns.push(("metric", Align::Left));
    }
    if with_params {
        columns.push(("params", Align::Left));
    }
    columns.extend([("model", Align::Left), ("seed", Align::Right), ("step", Align::Right)]);
    if with_processing {
        columns.push(("processing", Align::Left));
    }
    columns.extend(axes.iter().map(|name| (*name, Align::Right)));
    columns.extend([("value", Align::Right), ("unit", Align::Left)]);
    let mut table = table::new(&columns);
    for row in rows {
        let mut cells = Vec::new();
        if with_metric {
            cells.push(Cell::new(&row.metric));
        }
        if with_params {
            cells.push(Cell::new(&row.params));
        }
        cells.push(Cell::new(&row.model));
        cells.push(Cell::new(row.seed.map_or_else(String::new, |seed| seed.to_string())));
        cells.push(Cell::new(row.step));
        if with_processing {
            cells.push(Cell::new(&row.processing));
        }
        for axis in &axes {
            let place = row.places.iter().find(|(name, _)| name == axis);
            cells.push(Cell::new(place.map_or("", |(_, place)| place.as_str())));
        }
        cells.push(Cell::new(format::value(row.value, &row.unit)));
        cells.push(Cell::new(row.unit.replace('_', " ")));
        table.add_row(cells);
    }
    table
}
