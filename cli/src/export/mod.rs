//! Tidy exports: one row per value, the same columns in every format. [`Columns`] decides the
//! columns, [`RowWriter`] is a format, [`write_file`] streams a sweep into a file that appears under
//! its name only when it is complete.
//!
//! Columns: `sweep, model, seed, checkpoint, step, experiment, version, params, metric, unit,
//! processing, prepend_bos`, one per axis name, `value`. The last two fixed ones say how the checkpoint was read; they are empty
//! for what a training reports. Values are exact: text formats use the shortest digits that read back as
//! the same 64-bit number. Memory is bounded by one message and one Parquet row group.

mod parquet_file;
mod text;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use sweep_proto::pb;

pub use self::{
    parquet_file::ParquetRows,
    text::{CsvRows, JsonRows, json_number},
};
use crate::{
    connect::Connection,
    error::{CommandError, Result, file_error},
    series::{Selection, SeriesStream, block_size, is_numeric},
};

/// File formats of `sweep export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Apache Parquet, zstd.
    Parquet,
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON object per line.
    Jsonl,
}

/// Columns before the axes.
pub const FIXED_COLUMNS: [&str; 12] = [
    "sweep",
    "model",
    "seed",
    "checkpoint",
    "step",
    "experiment",
    "version",
    "params",
    "metric",
    "unit",
    "processing",
    "prepend_bos",
];

/// Whether the places of an axis are numbers or names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AxisKind {
    /// Whole numbers.
    Number,
    /// Names.
    Text,
}

/// The axis columns of an export, in alphabetical order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    axes: BTreeMap<String, AxisKind>,
}

impl Columns {
    /// The columns that these metrics need.
    pub fn of(metrics: &[pb::MetricSummary]) -> Self {
        let mut columns = Self::default();
        for axis in metrics.iter().flat_map(|metric| &metric.axes) {
            columns.learn(axis);
        }
        columns
    }

    /// Makes room for an axis. Returns whether anything changed.
    pub fn learn(&mut self, axis: &pb::Axis) -> bool {
        let kind = if is_numeric(axis) { AxisKind::Number } else { AxisKind::Text };
        match self.axes.insert(axis.name.clone(), kind) {
            None => true,
            Some(AxisKind::Text) => {
                self.axes.insert(axis.name.clone(), AxisKind::Text);
                false
            }
            Some(known) => known != kind,
        }
    }

    /// Axis names with the kind of their column.
    pub fn axes(&self) -> impl Iterator<Item = (&str, AxisKind)> {
        self.axes.iter().map(|(name, kind)| (name.as_str(), *kind))
    }

    /// All column names in order.
    pub fn names(&self) -> Vec<String> {
        let fixed = FIXED_COLUMNS.iter().map(|name| (*name).to_owned());
        let axes = self.axes.keys().map(|name| column_name(name));
        fixed.chain(axes).chain(["value".to_owned()]).collect()
    }

    /// For each axis column, the number of that axis in a series, if it has it.
    fn places(&self, series: &pb::Series) -> Vec<Option<usize>> {
        let place = |name: &String| series.axes.iter().position(|axis| axis.name == *name);
        self.axes.keys().map(place).collect()
    }
}

/// An axis that is called like a fixed column gets a column of its own.
pub fn column_name(axis: &str) -> String {
    if FIXED_COLUMNS.contains(&axis) || axis == "value" {
        format!("axis_{axis}")
    } else {
        axis.to_owned()
    }
}

/// A file format.
pub trait RowWriter {
    /// Writes every value of a message. Its axes are among the columns.
    fn series(&mut self, sweep: &str, series: &pb::Series) -> Result<()>;

    /// Writes what is still in memory.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What an export wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Rows in the file.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

/// Streams a sweep's metrics into `path`. `progress` is told the number of rows now and then.
///
/// # Errors
/// When reading or writing fails; `path` is untouched then.
pub async fn write_file(
    connection: &Connection,
    sweep: &str,
    selection: &Selection,
    format: ExportFormat,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Exported> {
    let request = pb::ListMetricsRequest { sweep: sweep.to_owned() };
    let metrics = connection.metrics().list(request).await?.into_inner().metrics;
    let mut columns = Columns::of(&metrics);
    loop {
        let attempt =
            write_once(connection, sweep, selection, format, path, &mut columns, progress).await?;
        // An axis that the list did not know (a metric of a sweep that still runs): the columns of
        // a file are fixed when it is begun, so it is begun again. Each round learns a column.
        if let Some(exported) = attempt {
            return Ok(exported);
        }
    }
}

async fn write_once(
    connection: &Connection,
    sweep: &str,
    selection: &Selection,
    format: ExportFormat,
    path: &Path,
    columns: &mut Columns,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<Exported>> {
    let file = AtomicFile::create(path)?;
    let mut writer = new_writer(format, file.writer()?, columns)?;
    let mut stream = SeriesStream::open(connection, sweep, selection).await?;
    let mut rows = 0;
    while let Some(series) = stream.next().await? {
        let mut changed = false;
        for axis in &series.axes {
            changed |= columns.learn(axis);
        }
        if changed {
            return Ok(None);
        }
        writer.series(sweep, &series)?;
        rows += (series.steps.len() * block_size(&series.axes)) as u64;
        progress(rows);
    }
    writer.finish()?;
    let bytes = file.commit()?;
    Ok(Some(Exported { rows, bytes }))
}

fn new_writer(format: ExportFormat, file: File, columns: &Columns) -> Result<Box<dyn RowWriter>> {
    let buffered = BufWriter::with_capacity(1 << 18, file);
    Ok(match format {
        ExportFormat::Csv => Box::new(CsvRows::new(buffered, columns.clone())?),
        ExportFormat::Jsonl => Box::new(JsonRows::lines(buffered, columns.clone())),
        ExportFormat::Parquet => Box::new(ParquetRows::new(buffered, columns.clone())?),
    })
}

/// A file that takes its name only when it is complete and on disk.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    committed: bool,
}

impl AtomicFile {
    /// Opens a file beside `path`, creating its folder.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| CommandError::usage(format!("{} is not a file name", path.display())))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            Some(_) | None => Path::new("."),
        };
        fs::create_dir_all(folder).map_err(|error| file_error("create", folder, error))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".partial-{}", std::process::id()));
        let partial = folder.join(partial);
        let file = File::create(&partial).map_err(|error| file_error("create", path, error))?;
        Ok(Self { path: path.to_owned(), partial, file, committed: false })
    }

    /// A handle to write with.
    pub fn writer(&self) -> Result<File> {
        self.file.try_clone().map_err(|error| file_error("open", &self.partial, error))
    }

    /// Makes the file durable and gives it its name. Returns its size.
    pub fn commit(mut self) -> Result<u64> {
        let failed = |error| file_error("write", &self.path, error);
        self.file.sync_all().map_err(failed)?;
        let bytes = self.file.metadata().map_err(failed)?.len();
        fs::rename(&self.partial, &self.path).map_err(failed)?;
        self.committed = true;
        Ok(bytes)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // What is left behind at worst is a hidden file that says what it is.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Writes a small file at once, under the same guarantee.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = AtomicFile::create(path)?;
    file.writer()?.write_all(bytes).map_err(|error| file_error("write", path, error))?;
    file.commit().map(drop)
}

#[cfg(test)]
mod tests;
