//! Keys: bytes whose order is the order in which queries read. Main types: [`Key`], [`Kind`].
//!
//! Numbers are big-endian; texts end with a zero byte, which they must not contain. The first byte
//! is the kind; its codes are never reused. Documents append a part number of two bytes.

use sweep_proto::id::{Attempt, TaskKey, TaskKind};

use crate::core::event::Chunk;

use super::{Result, frame::damaged};

/// What a key is of. Codes are part of the format on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Incarnation and whether the last stop was a quiet one.
    Meta = 1,
    /// The union of what workers can run.
    Catalog = 2,
    /// Worker processes that may hold leases: name.
    Worker = 3,
    /// Sweeps: number.
    Sweep = 4,
    /// Ended attempts: sweep ‖ task.
    Task = 5,
    /// Begun attempts: sweep ‖ task ‖ attempt.
    Started = 6,
    /// Files of done tasks: sweep ‖ task.
    Manifest = 7,
    /// Published checkpoints: sweep ‖ model ‖ step.
    Checkpoint = 8,
    /// Trainer states: sweep ‖ model.
    Resume = 9,
    /// Metrics with values: sweep ‖ name.
    MetricName = 10,
    /// Metric chunks: sweep ‖ name ‖ kind ‖ index ‖ model ‖ pair (comparisons only) ‖ first step ‖
    /// checkpoint step ‖ attempt ‖ sequence.
    Metrics = 11,
    /// Log lines: sweep ‖ task ‖ attempt ‖ sequence.
    Log = 12,
}

/// Every kind, for the test that holds codes unique.
pub const KINDS: [Kind; 12] = [
    Kind::Meta,
    Kind::Catalog,
    Kind::Worker,
    Kind::Sweep,
    Kind::Task,
    Kind::Started,
    Kind::Manifest,
    Kind::Checkpoint,
    Kind::Resume,
    Kind::MetricName,
    Kind::Metrics,
    Kind::Log,
];

/// A key, or the prefix of keys, without a part number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// The prefix of everything of one kind.
    pub fn of(kind: Kind) -> Self {
        Self(vec![kind as u8])
    }

    /// Where the incarnation is.
    pub fn meta() -> Self {
        Self::of(Kind::Meta)
    }

    /// Where the catalogue is.
    pub fn catalog() -> Self {
        Self::of(Kind::Catalog)
    }

    /// Where a metric chunk goes.
    pub fn chunk(
        sweep: u32,
        task: TaskKey,
        attempt: Attempt,
        sequence: u64,
        chunk: &Chunk,
    ) -> Self {
        let (_, step, _) = parts(task.kind);
        Self::of(Kind::Metrics)
            .u32(sweep)
            .text(&chunk.metric)
            .series(task)
            .u64(chunk.first_step)
            .u64(step)
            .u64(attempt.0)
            .u64(sequence)
    }

    /// Appends a byte.
    #[must_use]
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    /// Appends a number.
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends a number.
    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends a text; zero bytes in it, which nothing valid has, are replaced.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.0.extend(text.bytes().map(|byte| byte.max(1)));
        self.0.push(0);
        self
    }

    /// Appends a task: model, kind, step, index, and the pair of a comparison.
    #[must_use]
    pub fn task(self, task: TaskKey) -> Self {
        let (kind, step, index) = parts(task.kind);
        let key = self.u32(task.model).u8(kind).u64(step).u32(index);
        match task.kind {
            TaskKind::Compare { pair, .. } => key.u32(pair),
            TaskKind::Source | TaskKind::Analyse { .. } | TaskKind::Trajectory { .. } => key,
        }
    }

    /// Appends what the values of a task are a series with: kind, index, model, and the pair of a
    /// comparison.
    #[must_use]
    pub fn series(self, task: TaskKey) -> Self {
        let (kind, _, index) = parts(task.kind);
        let key = self.u8(kind).u32(index).u32(task.model);
        match task.kind {
            TaskKind::Compare { pair, .. } => key.u32(pair),
            TaskKind::Source | TaskKind::Analyse { .. } | TaskKind::Trajectory { .. } => key,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of one part of the document.
    pub fn part(&self, part: u16) -> Vec<u8> {
        let mut key = self.0.clone();
        key.extend(part.to_be_bytes());
        key
    }
}

/// Code of comparisons, the one kind whose keys name a pair too.
const COMPARE: u8 = 3;

fn parts(kind: TaskKind) -> (u8, u64, u32) {
    match kind {
        TaskKind::Source => (0, 0, 0),
        TaskKind::Analyse { step, experiment } => (1, step, experiment),
        TaskKind::Trajectory { index } => (2, 0, index),
        TaskKind::Compare { step, experiment, .. } => (COMPARE, step, experiment),
    }
}

/// Takes a key apart again, field by field.
#[derive(Debug)]
pub struct Reader<'k> {
    key: &'k [u8],
    rest: &'k [u8],
}

impl<'k> Reader<'k> {
    /// A reader behind the kind and the sweep's number.
    pub fn of_sweep(key: &'k [u8]) -> Result<Self> {
        let mut reader = Self { key, rest: key };
        reader.u8()?;
        reader.u32()?;
        Ok(reader)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| damaged(self.key, "its key is too short"))?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.take()?))
    }

    /// The next number.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    /// The next number.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    /// Skips a text.
    pub fn skip_text(&mut self) -> Result<()> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| damaged(self.key, "a text in its key does not end"))?;
        self.rest = &self.rest[end + 1..];
        Ok(())
    }

    /// The next task.
    pub fn task(&mut self) -> Result<TaskKey> {
        let (model, kind) = (self.u32()?, self.u8()?);
        let (step, index) = (self.u64()?, self.u32()?);
        let pair = self.pair(kind)?;
        Ok(TaskKey { model, kind: self.kind(kind, step, index, pair)? })
    }

    /// The place of a metric chunk: its series (as a task at checkpoint `u64` behind the first step)
    /// and its first step.
    pub fn chunk(&mut self) -> Result<(TaskKey, u64)> {
        let (kind, index, model) = (self.u8()?, self.u32()?, self.u32()?);
        let pair = self.pair(kind)?;
        let (first_step, step) = (self.u64()?, self.u64()?);
        Ok((TaskKey { model, kind: self.kind(kind, step, index, pair)? }, first_step))
    }

    fn pair(&mut self, kind: u8) -> Result<u32> {
        if kind == COMPARE { self.u32() } else { Ok(0) }
    }

    fn kind(&self, kind: u8, step: u64, index: u32, pair: u32) -> Result<TaskKind> {
        match kind {
            0 => Ok(TaskKind::Source),
            1 => Ok(TaskKind::Analyse { step, experiment: index }),
            2 => Ok(TaskKind::Trajectory { index }),
            COMPARE => Ok(TaskKind::Compare { step, experiment: index, pair }),
            _ => Err(damaged(self.key, "its key has an unknown task kind")),
        }
    }
}
