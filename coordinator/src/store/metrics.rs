//! Metric chunks and the exact reading of series. Main types: [`SeriesReader`], [`SeriesPart`].
//!
//! A chunk is columnar: steps as zigzag deltas, values byte by byte (all first bytes, all second
//! bytes, …), which makes floats of one series compress well. It carries unit, axes and
//! how the checkpoint was read ([`Form`]), because they may differ between models.
//!
//! # What is void
//! Attempts of one task write side by side. A point of attempt *a* is void when a later attempt
//! began without a resume step, or went on from a step before the point: that attempt produces the
//! point again. Where two attempts still have a value of one step, the later one counts. So
//! nothing is lost and nothing doubled, however often a training was preempted.

use std::collections::{BTreeMap, HashMap, btree_map, hash_map::Entry};

use prost::Message;
use sweep_proto::{
    id::{Attempt, TaskKey, TaskKind},
    pb,
};

use crate::core::event::Chunk;

use super::{
    Result, Store,
    frame::{damaged, pack},
    key::{Key, Kind, Reader},
    record,
};

/// Steps or values of one chunk on the wire.
pub const MAX_CHUNK_VALUES: usize = 1 << 20;
/// Bytes of a metric's name.
const MAX_NAME_BYTES: usize = 256;
/// Axes of a metric.
const MAX_AXES: usize = 8;
/// Bytes of all labels of a chunk's axes.
const MAX_LABEL_BYTES: usize = 1 << 20;
/// Values of one part of a series: half a megabyte.
const PART_VALUES: usize = 1 << 16;
/// Stored bytes of one page.
const PAGE_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, Message)]
struct StoredChunk {
    #[prost(string, tag = "1")]
    unit: String,
    #[prost(message, repeated, tag = "2")]
    axes: Vec<pb::Axis>,
    #[prost(bytes = "vec", tag = "3")]
    steps: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    values: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    reading: Option<pb::Reading>,
}

/// Number of values per step.
///
/// # Errors
/// When there are more than a chunk may have.
pub fn block_len(axes: &[pb::Axis]) -> std::result::Result<usize, String> {
    let product = axes.iter().try_fold(1usize, |n, axis| n.checked_mul(axis.size as usize));
    product
        .filter(|len| *len <= MAX_CHUNK_VALUES)
        .ok_or_else(|| format!("a value of more than {MAX_CHUNK_VALUES} numbers"))
}

/// Checks a chunk from the wire and encodes it.
///
/// # Errors
/// What is wrong with it.
pub fn encode(chunk: &pb::MetricChunk) -> std::result::Result<Chunk, String> {
    check(chunk)?;
    let mut steps = Vec::with_capacity(chunk.steps.len() * 2);
    let mut last = 0u64;
    for step in &chunk.steps {
        // Wrapping deltas are exact for every pair of steps.
        let delta = step.wrapping_sub(last) as i64;
        varint(&mut steps, ((delta << 1) ^ (delta >> 63)) as u64);
        last = *step;
    }
    let stored = StoredChunk {
        unit: chunk.unit.clone(),
        axes: chunk.axes.clone(),
        steps,
        values: shuffle(&chunk.values),
        reading: chunk.reading.clone(),
    };
    Ok(Chunk {
        metric: chunk.metric.clone(),
        unit: chunk.unit.clone(),
        axes: chunk.axes.clone(),
        first_step: chunk.steps.iter().copied().min().unwrap_or_default(),
        payload: pack(&stored.encode_to_vec()),
    })
}

fn check(chunk: &pb::MetricChunk) -> std::result::Result<(), String> {
    let name = &chunk.metric;
    let is_plain = |c: char| c.is_ascii_graphic();
    if name.len() > MAX_NAME_BYTES || !name.contains('.') || !name.chars().all(is_plain) {
        return Err(format!("`{}` is not a metric name", name.escape_debug()));
    }
    if chunk.axes.len() > MAX_AXES || chunk.unit.len() > MAX_NAME_BYTES {
        return Err(format!("metric `{name}` has more than {MAX_AXES} axes or a long unit"));
    }
    let labels = chunk.axes.iter().flat_map(|axis| axis.labels.iter().chain([&axis.name]));
    if labels.map(String::len).sum::<usize>() > MAX_LABEL_BYTES {
        return Err(format!("labels of metric `{name}` are too long"));
    }
    for axis in &chunk.axes {
        if !axis.labels.is_empty() && axis.labels.len() != axis.size as usize {
            let (name, labels) = (&axis.name, axis.labels.len());
            return Err(format!("axis `{name}` has size {} and {labels} labels", axis.size));
        }
    }
    let block = block_len(&chunk.axes)?;
    let wanted = chunk.steps.len().checked_mul(block);
    let too_long = chunk.steps.len() > MAX_CHUNK_VALUES || chunk.values.len() > MAX_CHUNK_VALUES;
    if chunk.steps.is_empty() || too_long || wanted != Some(chunk.values.len()) {
        return Err(format!(
            "metric `{name}` has {} steps of {block} values and {} values",
            chunk.steps.len(),
            chunk.values.len()
        ));
    }
    Ok(())
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varints(mut bytes: &[u8]) -> Option<Vec<u64>> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let len = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
        if len > 10 {
            return None;
        }
        let value = bytes[..len].iter().rev().fold(0u64, |v, byte| v << 7 | u64::from(byte & 0x7f));
        values.push(value);
        bytes = &bytes[len..];
    }
    Some(values)
}

fn shuffle(values: &[f64]) -> Vec<u8> {
    let n = values.len();
    let mut planes = vec![0; n * 8];
    for (index, value) in values.iter().enumerate() {
        for (plane, byte) in value.to_bits().to_be_bytes().into_iter().enumerate() {
            planes[plane * n + index] = byte;
        }
    }
    planes
}

fn unshuffle(planes: &[u8]) -> Option<Vec<f64>> {
    let n = planes.len() / 8;
    if !planes.len().is_multiple_of(8) {
        return None;
    }
    let value = |index: usize| {
        let byte = |plane: usize| planes[plane * n + index];
        f64::from_bits(u64::from_be_bytes(std::array::from_fn(byte)))
    };
    Some((0..n).map(value).collect())
}

/// What the values of a chunk are; almost every series has a single form.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// Unit.
    pub unit: String,
    /// Axes of each value.
    pub axes: Vec<pb::Axis>,
    /// How the checkpoint was read.
    pub reading: Option<pb::Reading>,
}

/// A decoded chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// What its values are.
    pub form: Form,
    /// Steps, in the order of production.
    pub steps: Vec<u64>,
    /// One block per step.
    pub values: Vec<f64>,
    /// Values per step.
    pub block: usize,
}

/// Decodes a stored chunk.
///
/// # Errors
/// When the bytes are none.
pub fn decode(key: &[u8], value: &[u8]) -> Result<Columns> {
    let stored: StoredChunk = record::decode(key, value)?;
    let damaged = |problem: &str| damaged(key, problem);
    let block = block_len(&stored.axes).map_err(|problem| damaged(&problem))?;
    let deltas = read_varints(&stored.steps).ok_or_else(|| damaged("its steps make no sense"))?;
    let mut last = 0u64;
    let steps: Vec<u64> = deltas
        .into_iter()
        .map(|zigzag| {
            let delta = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            last = last.wrapping_add(delta as u64);
            last
        })
        .collect();
    let values = unshuffle(&stored.values).ok_or_else(|| damaged("its values are cut off"))?;
    if steps.len().checked_mul(block) != Some(values.len()) {
        return Err(damaged("it has another number of values than its steps need"));
    }
    let form = Form { unit: stored.unit, axes: stored.axes, reading: stored.reading };
    Ok(Columns { form, steps, values, block })
}

/// Part of one series, steps rising.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesPart {
    /// What its values are.
    pub form: Form,
    /// The task of the first value. Analyses have one task per checkpoint, so that the tasks of
    /// the following values differ from it in their step.
    pub task: TaskKey,
    /// Steps.
    pub steps: Vec<u64>,
    /// For each step the step of the checkpoint that it is about; 0 where there is none.
    pub checkpoints: Vec<u64>,
    /// One block per step.
    pub values: Vec<f64>,
}

/// Reads all series of one metric of one sweep, in the order of experiment, model, pair, step.
#[derive(Debug)]
pub struct SeriesReader<'s> {
    store: &'s Store,
    sweep: u32,
    metric: &'s str,
    /// Only the value with the highest step of each series.
    latest: bool,
}

/// One series while its chunks are read.
struct Open {
    /// A task of the series, with 0 as the step of its checkpoint.
    id: TaskKey,
    /// Values that a later chunk may still come before, or replace: by step and checkpoint.
    pending: BTreeMap<(u64, u64), Row>,
    starts: HashMap<u64, Vec<(Attempt, Option<u64>)>>,
    part: Option<SeriesPart>,
    forms: Vec<Form>,
}

struct Row {
    attempt: Attempt,
    sequence: u64,
    form: usize,
    values: Vec<f64>,
}

impl<'s> SeriesReader<'s> {
    /// A reader of one metric.
    pub fn new(store: &'s Store, sweep: u32, metric: &'s str, latest: bool) -> Self {
        Self { store, sweep, metric, latest }
    }

    /// Gives every wanted series (named by one of its tasks) to `sink`, part by part, until it returns false.
    ///
    /// # Errors
    /// When a chunk cannot be read.
    pub fn read(
        &self,
        wanted: impl Fn(TaskKey) -> bool,
        mut sink: impl FnMut(SeriesPart) -> bool,
    ) -> Result<()> {
        let prefix = Key::of(Kind::Metrics).u32(self.sweep).text(self.metric);
        let mut from = prefix.bytes().to_vec();
        let mut open: Option<Open> = None;
        'pages: loop {
            let (documents, next) = self.store.page(prefix.bytes(), &from, PAGE_BYTES)?;
            for (key, value) in &documents {
                let place = Place::read(key)?;
                if open.as_ref().is_none_or(|open| open.id != place.id) {
                    if open.take().is_some_and(|open| !self.close(open, &mut sink)) {
                        return Ok(());
                    }
                    if !wanted(place.id) {
                        // Seek behind the series instead of reading it.
                        from = prefix.clone().series(place.id).bytes().to_vec();
                        from.extend([0xff; 8]);
                        from.push(0xff);
                        continue 'pages;
                    }
                    open = Some(Open::new(place.id));
                }
                let Some(series) = &mut open else { continue };
                if !self.emit_below(series, place.first_step, &mut sink) {
                    return Ok(());
                }
                self.add(series, &place, decode(key, value)?)?;
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        if let Some(open) = open {
            self.close(open, &mut sink);
        }
        Ok(())
    }

    /// Adds the values of a chunk that are not void.
    fn add(&self, series: &mut Open, place: &Place, columns: Columns) -> Result<()> {
        if columns.block == 0 {
            return Ok(());
        }
        let starts = match series.starts.entry(place.checkpoint) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(slot) => slot.insert(self.store.starts(self.sweep, place.task)?),
        };
        let Some(limit) = limit(starts, place.attempt) else { return Ok(()) };
        let form = series.form(columns.form);
        for (step, values) in columns.steps.iter().zip(columns.values.chunks(columns.block)) {
            if *step > limit {
                continue;
            }
            let (attempt, sequence) = (place.attempt, place.sequence);
            let row = Row { attempt, sequence, form, values: values.to_vec() };
            let slot = series.pending.entry((*step, place.checkpoint));
            match slot {
                btree_map::Entry::Vacant(slot) => {
                    slot.insert(row);
                }
                btree_map::Entry::Occupied(mut slot) => {
                    let known = (slot.get().attempt, slot.get().sequence);
                    if (attempt, sequence) >= known {
                        slot.insert(row);
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands on values below `step`: no later chunk has any.
    fn emit_below(
        &self,
        series: &mut Open,
        step: u64,
        sink: &mut impl FnMut(SeriesPart) -> bool,
    ) -> bool {
        let rest = series.pending.split_off(&(step, 0));
        let ready = std::mem::replace(&mut series.pending, rest);
        ready
            .into_iter()
            .all(|((step, checkpoint), row)| self.emit(series, step, checkpoint, row, sink))
    }

    fn emit(
        &self,
        series: &mut Open,
        step: u64,
        checkpoint: u64,
        row: Row,
        sink: &mut impl FnMut(SeriesPart) -> bool,
    ) -> bool {
        let form = &series.forms[row.form];
        if self.latest {
            series.part = None;
        }
        let fits = series
            .part
            .as_ref()
            .is_some_and(|part| part.form == *form && part.values.len() < PART_VALUES);
        if !fits {
            let task = at_checkpoint(series.id, checkpoint);
            let (steps, checkpoints, values) = (Vec::new(), Vec::new(), Vec::new());
            let part = SeriesPart { form: form.clone(), task, steps, checkpoints, values };
            if series.part.replace(part).is_some_and(|full| !sink(full)) {
                return false;
            }
        }
        if let Some(part) = &mut series.part {
            part.steps.push(step);
            part.checkpoints.push(checkpoint);
            part.values.extend(row.values);
        }
        true
    }

    fn close(&self, mut series: Open, sink: &mut impl FnMut(SeriesPart) -> bool) -> bool {
        let pending = std::mem::take(&mut series.pending);
        let go_on = pending
            .into_iter()
            .all(|((step, checkpoint), row)| self.emit(&mut series, step, checkpoint, row, sink));
        go_on && series.part.take().is_none_or(sink)
    }
}

impl Open {
    fn new(id: TaskKey) -> Self {
        let (pending, starts) = (BTreeMap::new(), HashMap::new());
        Self { id, pending, starts, part: None, forms: Vec::new() }
    }

    /// Index of a form.
    fn form(&mut self, form: Form) -> usize {
        if let Some(at) = self.forms.iter().rposition(|known| *known == form) {
            return at;
        }
        self.forms.push(form);
        self.forms.len() - 1
    }
}

/// The highest step at which a value of `attempt` counts, or none if it is void altogether.
///
/// An attempt that is not in the list began after the list was read: the series is read as it was
/// at that moment, so that values of the new attempt do not stand beside those that it replaces.
fn limit(starts: &[(Attempt, Option<u64>)], attempt: Attempt) -> Option<u64> {
    if !starts.iter().any(|(started, _)| *started == attempt) {
        return None;
    }
    let later = starts.iter().filter(|(started, _)| *started > attempt);
    later
        .map(|(_, resumed_from)| *resumed_from)
        .try_fold(u64::MAX, |limit, resumed_from| resumed_from.map(|step| step.min(limit)))
}

/// The same task, on the checkpoint of another step.
fn at_checkpoint(task: TaskKey, step: u64) -> TaskKey {
    let kind = match task.kind {
        TaskKind::Analyse { experiment, .. } => TaskKind::Analyse { step, experiment },
        TaskKind::Compare { experiment, pair, .. } => TaskKind::Compare { step, experiment, pair },
        kind @ (TaskKind::Source | TaskKind::Trajectory { .. }) => kind,
    };
    TaskKey { kind, ..task }
}

/// Where a chunk lies: its key, taken apart.
struct Place {
    /// A task of the series, with 0 as the step of its checkpoint.
    id: TaskKey,
    task: TaskKey,
    first_step: u64,
    checkpoint: u64,
    attempt: Attempt,
    sequence: u64,
}

impl Place {
    fn read(key: &[u8]) -> Result<Self> {
        let mut reader = Reader::of_sweep(key)?;
        reader.skip_text()?;
        let (task, first_step) = reader.chunk()?;
        let (attempt, sequence) = (Attempt(reader.u64()?), reader.u64()?);
        let checkpoint = match task.kind {
            TaskKind::Analyse { step, .. } | TaskKind::Compare { step, .. } => step,
            TaskKind::Source | TaskKind::Trajectory { .. } => 0,
        };
        let id = at_checkpoint(task, 0);
        Ok(Self { id, task, first_step, checkpoint, attempt, sequence })
    }
}
