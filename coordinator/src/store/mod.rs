//! What the coordinator keeps on disk. Main type: [`Store`].
//!
//! # What do we store, and what not
//! Stored: sweeps (the file, the pinned catalogue), tasks once an attempt at them has *ended*,
//! began attempts, manifests, published checkpoints, trainer states, metric chunks, log lines, the
//! catalogue, registered workers, the incarnation. Not stored: pending tasks (indices into the
//! plan), leases, deadlines, queues, counters: they are derived, or die with the process on purpose.
//!
//! # Layout
//! - [`kv`]: the narrow interface to a key-value store; [`sled`] and [`memory`] implement it and
//!   pass one [`suite`](self) of tests. A new back end is one file and one line in [`Store::open`].
//! - [`key`]: keys, ordered as queries read. [`frame`]: versioned, checksummed, compressed values,
//!   cut into parts of at most 16 KiB. [`record`]: the values' contents.
//! - [`metrics`]: columnar metric chunks and exact reading of series across attempts.
//!
//! # Durability
//! One writer. A commit is one atomic batch, `flush`, `fdatasync` on a descriptor of our own, and
//! only then the acknowledgement; see [`sled`]. A failed sync is never retried: the process ends.

pub mod directory;
pub mod frame;
pub mod key;
pub mod kv;
pub mod memory;
pub mod metrics;
pub mod record;
pub mod sled;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod power;
#[cfg(test)]
mod suite;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use sweep_proto::{
    id::{Attempt, TaskKey},
    pb,
};

use crate::core::{
    event::{TaskRecord, Write},
    restore::{Image, SweepImage},
};

use self::{
    frame::{Collector, pack, split, unpack},
    key::{Key, Kind},
    kv::{Batch, Kv},
};

/// Bytes of stored documents that one page of a scan holds at least before it ends.
const PAGE_BYTES: usize = 1 << 20;

/// Why the store cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The back end failed.
    #[error("the key-value store failed: {0}")]
    Backend(String),
    /// The file system failed.
    #[error("{action} failed")]
    Io {
        /// What was tried.
        action: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A record cannot be read.
    #[error("record {key} is damaged: {problem}")]
    Damaged {
        /// Its key in hex.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A record was written by a newer version.
    #[error("record {key} has format {found}; this version reads up to {known}")]
    Newer {
        /// Its key in hex.
        key: String,
        /// Its format.
        found: u8,
        /// The newest known one.
        known: u8,
    },
}

/// Result of store operations.
pub type Result<T> = std::result::Result<T, Error>;

/// A stored document: its key without the part number, and its contents.
pub type Document = (Vec<u8>, Vec<u8>);

/// Typed access to everything kept. Clones share the store.
#[derive(Clone)]
pub struct Store {
    kv: Arc<dyn Kv>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or creates the store in a folder.
    ///
    /// # Errors
    /// When the folder holds something that cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::with(Arc::new(sled::SledKv::open(path)?)))
    }

    /// A store in memory, for tests and benchmarks.
    pub fn in_memory() -> Self {
        Self::with(Arc::new(memory::MemoryKv::default()))
    }

    /// A store over any back end.
    pub fn with(kv: Arc<dyn Kv>) -> Self {
        Self { kv }
    }

    /// Begins a new incarnation, durably, and reads everything that the core needs.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn begin(&self) -> Result<Image> {
        let meta = self.get(&Key::meta())?;
        let meta: record::Meta = record::decode_or_default(&Key::meta(), meta)?;
        let next = record::Meta { incarnation: meta.incarnation + 1, quiet: false };
        self.kv.commit(Self::batch_of(&Key::meta(), &next))?;
        let mut image = self.image()?;
        image.incarnation = next.incarnation;
        image.quiet = meta.quiet;
        Ok(image)
    }

    /// Notes that no lease is live, so that the next start need not wait for any worker.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark_quiet(&self) -> Result<()> {
        let meta = self.get(&Key::meta())?;
        let meta: record::Meta = record::decode_or_default(&Key::meta(), meta)?;
        self.kv.commit(Self::batch_of(&Key::meta(), &record::Meta { quiet: true, ..meta }))
    }

    /// Makes a group of writes durable, all or none.
    ///
    /// # Errors
    /// When that failed; the state on disk is then unknown, and the process must end.
    pub fn commit(&self, writes: &[Write]) -> Result<()> {
        let mut batch = Batch::new();
        for write in writes {
            add(&mut batch, write);
        }
        self.kv.commit(batch)
    }

    fn batch_of(key: &Key, message: &impl prost::Message) -> Batch {
        let mut batch = Batch::new();
        put(&mut batch, key, &pack(&message.encode_to_vec()));
        batch
    }

    /// Contents of one document.
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        let (documents, _) = self.page(key.bytes(), key.bytes(), 1)?;
        Ok(documents.into_iter().find(|(found, _)| found == key.bytes()).map(|(_, value)| value))
    }

    /// Documents under `prefix` from key `from` on, in order, read in one consistent view: at
    /// least one, and about `bytes` in all. The second value is where to go on, if there is more.
    ///
    /// # Errors
    /// When a document is damaged or the back end fails.
    pub fn page(
        &self,
        prefix: &[u8],
        from: &[u8],
        bytes: usize,
    ) -> Result<(Vec<Document>, Option<Vec<u8>>)> {
        let mut collector = Collector::new(bytes);
        self.kv.scan(prefix, from, &mut |key, value| collector.feed(key, value))?;
        let (packed, next) = collector.finish()?;
        let unpacked = packed.into_iter().map(|(key, packed)| Ok((unpack(&key, &packed)?, key)));
        let documents = unpacked.map(|pair: Result<_>| pair.map(|(value, key)| (key, value)));
        Ok((documents.collect::<Result<_>>()?, next))
    }

    /// Calls `visit` with every document under `prefix`.
    ///
    /// # Errors
    /// When reading or `visit` fails.
    pub fn each(
        &self,
        prefix: &Key,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut from = prefix.bytes().to_vec();
        loop {
            let (documents, next) = self.page(prefix.bytes(), &from, PAGE_BYTES)?;
            for (key, value) in &documents {
                visit(key, value)?;
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    /// Everything that the core needs.
    fn image(&self) -> Result<Image> {
        let mut image = Image::default();
        if let Some(value) = self.get(&Key::catalog())? {
            image.catalog = record::decode(Key::catalog().bytes(), &value)?;
        }
        self.each(&Key::of(Kind::Worker), |key, value| {
            let worker: record::StoredWorker = record::decode(key, value)?;
            image.workers.push((worker.name, worker.instance));
            Ok(())
        })?;
        self.each(&Key::of(Kind::Sweep), |key, value| {
            let record = record::sweep(key, value)?;
            image.sweeps.push(self.sweep_image(record)?);
            Ok(())
        })?;
        Ok(image)
    }

    fn sweep_image(&self, record: crate::core::event::SweepRecord) -> Result<SweepImage> {
        let number = record.number;
        let mut image = SweepImage {
            record,
            checkpoints: Vec::new(),
            resumes: Vec::new(),
            tasks: Vec::new(),
            started: std::collections::BTreeMap::new(),
            metrics: BTreeSet::new(),
        };
        self.each(&Key::of(Kind::Checkpoint).u32(number), |key, value| {
            let (model, stored) = record::checkpoint(key, value)?;
            image.checkpoints.push((model, stored.0, stored.1));
            Ok(())
        })?;
        self.each(&Key::of(Kind::Resume).u32(number), |key, value| {
            let (model, stored) = record::resume(key, value)?;
            image.resumes.push((model, stored.0, stored.1));
            Ok(())
        })?;
        self.each(&Key::of(Kind::Task).u32(number), |key, value| {
            image.tasks.push(record::task(key, value)?);
            Ok(())
        })?;
        self.each(&Key::of(Kind::Started).u32(number), |key, value| {
            let (task, attempt, _) = record::started(key, value)?;
            let highest = image.started.entry(task).or_insert(attempt);
            *highest = (*highest).max(attempt);
            Ok(())
        })?;
        let names = self.metric_names(number)?;
        image.metrics = names.into_iter().map(|summary| summary.metric).collect();
        Ok(image)
    }

    /// Metrics that a sweep has values of, by name.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn metric_names(&self, sweep: u32) -> Result<Vec<pb::MetricSummary>> {
        let mut names = Vec::new();
        self.each(&Key::of(Kind::MetricName).u32(sweep), |key, value| {
            names.push(record::decode(key, value)?);
            Ok(())
        })?;
        Ok(names)
    }

    /// What is kept of a task.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn task(&self, sweep: u32, task: TaskKey) -> Result<Option<TaskRecord>> {
        let key = Key::of(Kind::Task).u32(sweep).task(task);
        let value = self.get(&key)?;
        value.map(|value| Ok(record::task(key.bytes(), &value)?.1)).transpose()
    }

    /// Attempts that began at a task, rising, with where they went on from.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn starts(&self, sweep: u32, task: TaskKey) -> Result<Vec<(Attempt, Option<u64>)>> {
        let mut starts = Vec::new();
        self.each(&Key::of(Kind::Started).u32(sweep).task(task), |key, value| {
            let (_, attempt, resumed_from) = record::started(key, value)?;
            starts.push((attempt, resumed_from));
            Ok(())
        })?;
        Ok(starts)
    }
}

/// Adds a document to a batch, cut into parts.
fn put(batch: &mut Batch, key: &Key, packed: &[u8]) {
    for (part, bytes) in split(packed).enumerate() {
        batch.push((key.part(part as u16), Some(bytes.to_vec())));
    }
}

/// Adds what a write of the core means.
fn add(batch: &mut Batch, write: &Write) {
    let message = |batch: &mut Batch, key: &Key, message: Vec<u8>| put(batch, key, &pack(&message));
    match write {
        Write::Sweep(sweep) => {
            let key = Key::of(Kind::Sweep).u32(sweep.number);
            message(batch, &key, record::encode_sweep(sweep));
        }
        Write::Task { sweep, task, record } => {
            let key = Key::of(Kind::Task).u32(*sweep).task(*task);
            message(batch, &key, record::encode_task(record));
        }
        Write::Started { sweep, task, attempt, resumed_from } => {
            let key = Key::of(Kind::Started).u32(*sweep).task(*task).u64(attempt.0);
            message(batch, &key, record::encode_started(*resumed_from));
        }
        Write::Manifest { sweep, task, attempt, manifest } => {
            let key = Key::of(Kind::Manifest).u32(*sweep).task(*task);
            message(batch, &key, record::encode_manifest(*attempt, manifest));
        }
        Write::Checkpoint { sweep, model, attempt, checkpoint } => {
            let key = Key::of(Kind::Checkpoint).u32(*sweep).u32(*model).u64(checkpoint.step);
            message(batch, &key, record::encode_checkpoint(*attempt, checkpoint));
        }
        Write::Resume { sweep, model, state } => {
            let key = Key::of(Kind::Resume).u32(*sweep).u32(*model);
            match state {
                Some((attempt, state)) => {
                    message(batch, &key, record::encode_resume(*attempt, state));
                }
                // The first part carries the length: without it there is no document.
                None => batch.push((key.part(0), None)),
            }
        }
        Write::Metrics { sweep, task, attempt, sequence, chunk } => {
            put(batch, &Key::chunk(*sweep, *task, *attempt, *sequence, chunk), &chunk.payload);
        }
        Write::MetricName { sweep, summary } => {
            let key = Key::of(Kind::MetricName).u32(*sweep).text(&summary.metric);
            message(batch, &key, prost::Message::encode_to_vec(summary));
        }
        Write::Log { sweep, task, attempt, sequence, worker, entry } => {
            let key = Key::of(Kind::Log).u32(*sweep).task(*task).u64(attempt.0).u64(*sequence);
            message(batch, &key, record::encode_log(worker, entry));
        }
        Write::Catalog(catalog) => {
            message(batch, &Key::catalog(), prost::Message::encode_to_vec(catalog));
        }
        Write::Worker { name, instance } => {
            let key = Key::of(Kind::Worker).text(name);
            match instance {
                Some(instance) => message(batch, &key, record::encode_worker(name, instance)),
                None => batch.push((key.part(0), None)),
            }
        }
    }
}
