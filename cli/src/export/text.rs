//! CSV and JSON Lines. Finite values have the shortest digits that read back exactly; others are
//! `NaN`, `inf`, `-inf` (as strings in JSON, which has no such numbers).

use std::io::Write;

use serde_json::Value;
use sweep_proto::pb;

use super::{Columns, RowWriter, column_name};
use crate::{
    error::{CommandError, Result},
    format::non_finite,
    series::{checkpoint, is_numeric, label, origin, points, prepend_bos, processing},
};

/// Comma-separated values (RFC 4180).
pub struct CsvRows<W> {
    writer: W,
    columns: Columns,
}

impl<W: Write> CsvRows<W> {
    /// Writes the header line.
    pub fn new(mut writer: W, columns: Columns) -> Result<Self> {
        let header: Vec<String> = columns.names().iter().map(|name| csv_field(name)).collect();
        writeln!(writer, "{}", header.join(","))?;
        Ok(Self { writer, columns })
    }
}

impl<W: Write> RowWriter for CsvRows<W> {
    fn series(&mut self, sweep: &str, series: &pb::Series) -> Result<()> {
        let origin = origin(series);
        let seed = series.seed.map_or_else(String::new, |seed| seed.to_string());
        let bos = prepend_bos(series).map_or_else(String::new, |bos| bos.to_string());
        let before = format!("{},{},{seed}", csv_field(sweep), csv_field(&series.model));
        let version = series.version.to_string();
        let texts: [&str; 7] = [
            &series.experiment,
            &version,
            &series.params,
            &series.metric,
            &series.unit,
            processing(series),
            &bos,
        ];
        let after = texts.map(csv_field).join(",");
        let places = self.columns.places(series);
        let writer = &mut self.writer;
        points(series, |point| {
            let step = point.step;
            write!(writer, "{before},{},{step},{after}", checkpoint(origin, step))?;
            for place in &places {
                let text = place.map(|axis| label(&series.axes[axis], point.coordinates[axis]));
                write!(writer, ",{}", csv_field(text.as_deref().unwrap_or_default()))?;
            }
            if point.value.is_finite() {
                writeln!(writer, ",{:?}", point.value)
            } else {
                writeln!(writer, ",{}", non_finite(point.value))
            }
        })?;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.writer.flush()?;
        Ok(())
    }
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// JSON objects: one per line, or the elements of an array.
pub struct JsonRows<W> {
    writer: W,
    /// Every row has all of these; without them, a row has the axes of its own metric only.
    columns: Option<Columns>,
    /// Whether rows are elements of an array, and so need commas.
    array: bool,
    rows: u64,
}

impl<W: Write> JsonRows<W> {
    /// One object per line, all with the same keys.
    pub fn lines(writer: W, columns: Columns) -> Self {
        Self { writer, columns: Some(columns), array: false, rows: 0 }
    }

    /// Elements of an array whose brackets the caller writes.
    pub fn elements(writer: W) -> Self {
        Self { writer, columns: None, array: true, rows: 0 }
    }

    /// The writer below.
    pub fn into_writer(self) -> W {
        self.writer
    }

    fn axis_columns(&self, series: &pb::Series) -> Vec<(String, Option<usize>)> {
        if let Some(columns) = &self.columns {
            let column = |((name, _), place)| (quoted(&column_name(name)), place);
            return columns.axes().zip(columns.places(series)).map(column).collect();
        }
        let axis =
            |(index, axis): (usize, &pb::Axis)| (quoted(&column_name(&axis.name)), Some(index));
        series.axes.iter().enumerate().map(axis).collect()
    }
}

impl<W: Write> RowWriter for JsonRows<W> {
    fn series(&mut self, sweep: &str, series: &pb::Series) -> Result<()> {
        let origin = origin(series);
        let seed = series.seed.map_or_else(|| "null".to_owned(), |seed| seed.to_string());
        let before = format!(
            "{{\"sweep\":{},\"model\":{},\"seed\":{seed},\"checkpoint\":",
            quoted(sweep),
            quoted(&series.model)
        );
        let params: Value = serde_json::from_str(&series.params).unwrap_or(Value::Null);
        let after = format!(
            ",\"experiment\":{},\"version\":{},\"params\":{params},\"metric\":{},\"unit\":{},\"processing\":{},\"prepend_bos\":{}",
            quoted(&series.experiment),
            series.version,
            quoted(&series.metric),
            quoted(&series.unit),
            series.reading.as_ref().map_or_else(null, |reading| quoted(&reading.processing)),
            prepend_bos(series).map_or_else(null, |bos| bos.to_string())
        );
        let columns = self.axis_columns(series);
        let numeric: Vec<bool> = series.axes.iter().map(is_numeric).collect();
        let (writer, rows, array) = (&mut self.writer, &mut self.rows, self.array);
        points(series, |point| {
            if array {
                writer.write_all(if *rows == 0 { b"\n" } else { b",\n" })?;
            }
            *rows += 1;
            let step = point.step;
            write!(writer, "{before}\"{}\",\"step\":{step}{after}", checkpoint(origin, step))?;
            for (name, place) in &columns {
                write!(writer, ",{name}:")?;
                match place {
                    None => write!(writer, "null")?,
                    Some(axis) => {
                        let text = label(&series.axes[*axis], point.coordinates[*axis]);
                        let text = if numeric[*axis] { text } else { quoted(&text) };
                        write!(writer, "{text}")?;
                    }
                }
            }
            write!(writer, ",\"value\":{}}}", json_number(point.value))?;
            if array { Ok(()) } else { writeln!(writer) }
        })
        .map_err(CommandError::from)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.writer.flush()?;
        Ok(())
    }
}

fn null() -> String {
    "null".to_owned()
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// A value in JSON: a number, or a string where JSON has no number for it.
pub fn json_number(value: f64) -> Value {
    serde_json::Number::from_f64(value)
        .map_or_else(|| Value::String(non_finite(value).to_owned()), Value::Number)
}
