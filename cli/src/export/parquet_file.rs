//! Parquet through the column writers of the `parquet` crate: zstd, dictionary-encoded texts,
//! nullable seed, reading and axis columns, one row group per [`GROUP_ROWS`] values.

use std::{io::Write, sync::Arc};

use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as PhysicalType, ZstdLevel},
    column::writer::ColumnWriterImpl,
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::{Type, TypePtr},
};
use sweep_proto::pb;

use super::{AxisKind, Columns, RowWriter, column_name};
use crate::{
    error::{CommandError, Result},
    series::{checkpoint, label, origin, points, prepend_bos, processing},
};

/// Rows per row group: large enough to compress well, small enough (about 10 MB) to hold.
const GROUP_ROWS: usize = 1 << 17;

/// Writes a Parquet file.
pub struct ParquetRows<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: Columns,
    group: Group,
}

/// The rows of the row group that is being filled, by column.
struct Group {
    sweep: Vec<ByteArray>,
    model: Vec<ByteArray>,
    seed: Nullable<i64>,
    checkpoint: Vec<ByteArray>,
    step: Vec<i64>,
    experiment: Vec<ByteArray>,
    version: Vec<i32>,
    params: Vec<ByteArray>,
    metric: Vec<ByteArray>,
    unit: Vec<ByteArray>,
    processing: Nullable<ByteArray>,
    prepend_bos: Nullable<bool>,
    axes: Vec<AxisColumn>,
    value: Vec<f64>,
}

enum AxisColumn {
    Number(Nullable<i64>),
    Text(Nullable<ByteArray>),
}

/// Present values, and for each row whether it has one.
struct Nullable<T> {
    values: Vec<T>,
    levels: Vec<i16>,
}

impl<T> Nullable<T> {
    fn new() -> Self {
        Self { values: Vec::new(), levels: Vec::new() }
    }

    fn push(&mut self, value: Option<T>) {
        self.levels.push(i16::from(value.is_some()));
        self.values.extend(value);
    }
}

impl Group {
    fn new(columns: &Columns) -> Self {
        let axis = |(_, kind)| match kind {
            AxisKind::Number => AxisColumn::Number(Nullable::new()),
            AxisKind::Text => AxisColumn::Text(Nullable::new()),
        };
        Self {
            sweep: Vec::new(),
            model: Vec::new(),
            seed: Nullable::new(),
            checkpoint: Vec::new(),
            step: Vec::new(),
            experiment: Vec::new(),
            version: Vec::new(),
            params: Vec::new(),
            metric: Vec::new(),
            unit: Vec::new(),
            processing: Nullable::new(),
            prepend_bos: Nullable::new(),
            axes: columns.axes().map(axis).collect(),
            value: Vec::new(),
        }
    }
}

impl<W: Write + Send> ParquetRows<W> {
    /// Begins a file with these columns.
    pub fn new(writer: W, columns: Columns) -> Result<Self> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("sweep ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let schema = schema(&columns).map_err(failed)?;
        let file =
            SerializedFileWriter::new(writer, schema, Arc::new(properties)).map_err(failed)?;
        let group = Group::new(&columns);
        Ok(Self { file, columns, group })
    }

    fn flush(&mut self) -> Result<()> {
        let group = std::mem::replace(&mut self.group, Group::new(&self.columns));
        if group.value.is_empty() {
            return Ok(());
        }
        let mut writer = self.file.next_row_group().map_err(failed)?;
        write_group(&mut writer, &group).map_err(failed)?;
        writer.close().map_err(failed)?;
        Ok(())
    }
}

impl<W: Write + Send> RowWriter for ParquetRows<W> {
    fn series(&mut self, sweep: &str, series: &pb::Series) -> Result<()> {
        let origin = origin(series);
        let text = |text: &str| ByteArray::from(text);
        let (sweep, model) = (text(sweep), text(&series.model));
        let (experiment, params) = (text(&series.experiment), text(&series.params));
        let (metric, unit) = (text(&series.metric), text(&series.unit));
        let processing = Some(processing(series)).filter(|name| !name.is_empty()).map(text);
        let bos = prepend_bos(series);
        let seed = series.seed.map(|seed| signed("seed", seed)).transpose()?;
        let version = i32::try_from(series.version)
            .map_err(|_| CommandError::unexpected("an experiment's version exceeds 2^31"))?;
        let places = self.columns.places(series);
        let mut at: Option<(u64, i64, ByteArray)> = None;
        points(series, |point| {
            let (step, here) = match &at {
                Some((step, signed, here)) if *step == point.step => (*signed, here.clone()),
                Some(_) | None => {
                    let step = signed("step", point.step)?;
                    let here = ByteArray::from(checkpoint(origin, point.step).as_str());
                    at = Some((point.step, step, here.clone()));
                    (step, here)
                }
            };
            let group = &mut self.group;
            group.sweep.push(sweep.clone());
            group.model.push(model.clone());
            group.seed.push(seed);
            group.checkpoint.push(here);
            group.step.push(step);
            group.experiment.push(experiment.clone());
            group.version.push(version);
            group.params.push(params.clone());
            group.metric.push(metric.clone());
            group.unit.push(unit.clone());
            group.processing.push(processing.clone());
            group.prepend_bos.push(bos);
            for (column, place) in group.axes.iter_mut().zip(&places) {
                let name = place.map(|axis| label(&series.axes[axis], point.coordinates[axis]));
                match column {
                    AxisColumn::Number(column) => {
                        column.push(name.and_then(|name| name.parse().ok()));
                    }
                    AxisColumn::Text(column) => {
                        column.push(name.map(|name| ByteArray::from(name.as_str())));
                    }
                }
            }
            group.value.push(point.value);
            if group.value.len() >= GROUP_ROWS { self.flush() } else { Ok(()) }
        })
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.flush()?;
        self.file.close().map_err(failed)?;
        Ok(())
    }
}

fn signed(what: &str, number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| {
        CommandError::unexpected(format!("{what} {number} does not fit a Parquet column (2^63)"))
    })
}

fn failed(error: ParquetError) -> CommandError {
    CommandError::unexpected("cannot write Parquet").caused_by(error)
}

fn schema(columns: &Columns) -> Result<TypePtr, ParquetError> {
    let text = |name: &str, repetition| {
        Type::primitive_type_builder(name, PhysicalType::BYTE_ARRAY)
            .with_logical_type(Some(LogicalType::String))
            .with_repetition(repetition)
            .build()
    };
    let number = |name: &str, physical, repetition| {
        Type::primitive_type_builder(name, physical).with_repetition(repetition).build()
    };
    let (required, optional) = (Repetition::REQUIRED, Repetition::OPTIONAL);
    let mut fields = vec![
        text("sweep", required)?,
        text("model", required)?,
        number("seed", PhysicalType::INT64, optional)?,
        text("checkpoint", required)?,
        number("step", PhysicalType::INT64, required)?,
        text("experiment", required)?,
        number("version", PhysicalType::INT32, required)?,
        text("params", required)?,
        text("metric", required)?,
        text("unit", required)?,
        text("processing", optional)?,
        number("prepend_bos", PhysicalType::BOOLEAN, optional)?,
    ];
    for (name, kind) in columns.axes() {
        let name = column_name(name);
        fields.push(match kind {
            AxisKind::Number => number(&name, PhysicalType::INT64, optional)?,
            AxisKind::Text => text(&name, optional)?,
        });
    }
    fields.push(number("value", PhysicalType::DOUBLE, required)?);
    let fields = fields.into_iter().map(Arc::new).collect();
    Ok(Arc::new(Type::group_type_builder("rows").with_fields(fields).build()?))
}

/// Writes the columns in the order of [`schema`].
fn write_group<W: Write + Send>(
    writer: &mut SerializedRowGroupWriter<'_, W>,
    group: &Group,
) -> Result<(), ParquetError> {
    column::<ByteArrayType, _>(writer, &group.sweep, None)?;
    column::<ByteArrayType, _>(writer, &group.model, None)?;
    column::<Int64Type, _>(writer, &group.seed.values, Some(&group.seed.levels))?;
    column::<ByteArrayType, _>(writer, &group.checkpoint, None)?;
    column::<Int64Type, _>(writer, &group.step, None)?;
    column::<ByteArrayType, _>(writer, &group.experiment, None)?;
    column::<Int32Type, _>(writer, &group.version, None)?;
    column::<ByteArrayType, _>(writer, &group.params, None)?;
    column::<ByteArrayType, _>(writer, &group.metric, None)?;
    column::<ByteArrayType, _>(writer, &group.unit, None)?;
    let (processing, bos) = (&group.processing, &group.prepend_bos);
    column::<ByteArrayType, _>(writer, &processing.values, Some(&processing.levels))?;
    column::<BoolType, _>(writer, &bos.values, Some(&bos.levels))?;
    for axis in &group.axes {
        match axis {
            AxisColumn::Number(axis) => {
                column::<Int64Type, _>(writer, &axis.values, Some(&axis.levels))?;
            }
            AxisColumn::Text(axis) => {
                column::<ByteArrayType, _>(writer, &axis.values, Some(&axis.levels))?;
            }
        }
    }
    column::<DoubleType, _>(writer, &group.value, None)
}

fn column<T: DataType, W: Write + Send>(
    writer: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let Some(mut column) = writer.next_column()? else {
        return Err(ParquetError::General("more columns than the schema has".to_owned()));
    };
    let typed: &mut ColumnWriterImpl<'_, T> = column.typed::<T>();
    typed.write_batch(values, levels, None)?;
    column.close()
}
