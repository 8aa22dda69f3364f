//! The on-disk spool: every result waits here, in order, until the coordinator says that it is
//! durable. A coordinator outage of hours loses nothing; sending again is harmless.
//!
//! Main type: [`Spool`]. Records are framed (length, CRC-32, protobuf) in segment files; a segment
//! is deleted when all its records are acknowledged. A torn frame at the end of a segment (the
//! process died while writing) ends that segment.
//!
//! The spool is bounded: when it holds `limit` bytes, or the disk is full, [`Spool::append`] waits
//! (back-pressure: the computation stands still) and fails after `patience` with an error that
//! names the folder. Records that end a task ([`Spool::append_last`]) are never refused: when the
//! disk takes nothing they wait in memory, so that a failure is always reported.
//!
//! One process at a time: the folder is locked, for as long as the process lives.
//!
//! No fsync: after a power cut of the worker's machine its lease expires and the work is repeated
//! from the last trainer state, which the coordinator knows only together with the metrics before it.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message;
use sweep_proto::pb;

/// A new segment is begun when the current one has this size.
const SEGMENT_BYTES: u64 = 4 << 20;
/// How often a full disk is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Length and checksum before each record.
const FRAME_BYTES: u64 = 8;

/// Why a record could not be spooled.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The bound was reached and nobody took anything for the whole patience.
    #[error(
        "metric spool {folder} is full ({bytes} bytes wait for the coordinator); \
         raise --spool-bytes or bring the coordinator back"
    )]
    Full {
        /// The spool's folder.
        folder: PathBuf,
        /// Bytes that wait.
        bytes: u64,
    },
    /// The disk did not take the record for the whole patience.
    #[error("metric spool {folder} cannot be written; free some space there")]
    Disk {
        /// The spool's folder.
        folder: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
}

/// Bounded, ordered, persistent queue of records.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    limit: u64,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the reporter.
    filled: tokio::sync::Notify,
    /// Holds the lock on the folder.
    _lock: File,
}

#[derive(Debug)]
struct State {
    /// Number of the segment that is written, and its open file.
    writing: (u64, File),
    written: u64,
    /// Every record that is not acknowledged, oldest first.
    waiting: VecDeque<Waiting>,
    bytes: u64,
    /// Records that were here and are acknowledged.
    settled: u64,
}

impl State {
    /// Whether a record in that segment waits.
    fn needs(&self, number: u64) -> bool {
        let there =
            |w: &Waiting| matches!(w.record, Stored::Disk { segment, .. } if segment == number);
        self.waiting.iter().any(there)
    }
}

#[derive(Debug)]
struct Waiting {
    record: Stored,
    /// Size on disk, 0 for a record in memory.
    bytes: u64,
}

#[derive(Debug)]
enum Stored {
    /// Segment and offset of the payload, and its length.
    Disk {
        segment: u64,
        offset: u64,
        length: u32,
    },
    Memory(Box<pb::Record>),
}

impl Spool {
    /// Opens the spool in `folder`, with the records that an earlier process left there.
    ///
    /// # Errors
    /// `WouldBlock` while another process has the folder; otherwise when it cannot be created or read.
    pub fn open(folder: &Path, limit: u64, patience: Duration) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = lock(folder)?;
        let mut segments: Vec<u64> =
            fs::read_dir(folder)?.filter_map(|entry| segment_number(&entry.ok()?.path())).collect();
        segments.sort_unstable();
        let mut waiting = VecDeque::new();
        for segment in &segments {
            recover(folder, *segment, &mut waiting)?;
        }
        let next = segments.last().map_or(1, |last| last + 1);
        let writing = (next, create(folder, next)?);
        let bytes = waiting.iter().map(|w: &Waiting| w.bytes).sum();
        let state = Mutex::new(State { writing, written: 0, waiting, bytes, settled: 0 });
        let filled = tokio::sync::Notify::new();
        let folder = folder.to_owned();
        Ok(Self { folder, limit, patience, state, changed: Condvar::new(), filled, _lock: lock })
    }

    /// Adds a record; waits while the spool is full. Returns its place, for
    /// [`is_settled`](Self::is_settled).
    ///
    /// # Errors
    /// [`SpoolError`] when it stays full for the whole patience. The record is not in the spool then.
    pub fn append(&self, record: &pb::Record) -> Result<u64, SpoolError> {
        let payload = record.encode_to_vec();
        let mut state = self.lock();
        let begun = Instant::now();
        loop {
            let full = state.bytes + payload.len() as u64 > self.limit && state.bytes > 0;
            let problem = if full {
                SpoolError::Full { folder: self.folder.clone(), bytes: state.bytes }
            } else {
                match self.write(&mut state, &payload) {
                    Ok(()) => return Ok(state.settled + state.waiting.len() as u64 - 1),
                    Err(source) => SpoolError::Disk { folder: self.folder.clone(), source },
                }
            };
            if begun.elapsed() >= self.patience {
                return Err(problem);
            }
            let waited = self.changed.wait_timeout(state, RETRY_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Adds a record that ends a task. Never refused and never waits.
    pub fn append_last(&self, record: &pb::Record) {
        let mut state = self.lock();
        if self.write(&mut state, &record.encode_to_vec()).is_err() {
            let record = Stored::Memory(Box::new(record.clone()));
            state.waiting.push_back(Waiting { record, bytes: 0 });
            self.filled.notify_one();
        }
    }

    /// The oldest records, up to `count` and about `bytes`; they stay until [`Spool::ack`].
    ///
    /// # Errors
    /// When a segment cannot be read back.
    pub fn peek(&self, count: usize, bytes: usize) -> io::Result<Vec<pb::Record>> {
        let state = self.lock();
        let mut records = Vec::new();
        let mut size = 0;
        let mut open: Option<(u64, File)> = None;
        for waiting in state.waiting.iter().take(count) {
            if size > 0 && size + waiting.bytes as usize > bytes {
                break;
            }
            size += waiting.bytes as usize;
            records.push(match &waiting.record {
                Stored::Memory(record) => (**record).clone(),
                Stored::Disk { segment, offset, length } => {
                    if open.as_ref().is_none_or(|(number, _)| number != segment) {
                        open = Some((*segment, File::open(path(&self.folder, *segment))?));
                    }
                    let mut payload = vec![0; *length as usize];
                    if let Some((_, file)) = &open {
                        std::os::unix::fs::FileExt::read_exact_at(file, &mut payload, *offset)?;
                    }
                    pb::Record::decode(payload.as_slice()).map_err(io::Error::other)?
                }
            });
        }
        Ok(records)
    }

    /// Forgets the oldest `count` records.
    pub fn ack(&self, count: usize) {
        let mut state = self.lock();
        for _ in 0..count {
            let Some(done) = state.waiting.pop_front() else { break };
            state.settled += 1;
            state.bytes -= done.bytes;
            let Stored::Disk { segment, .. } = done.record else { continue };
            let oldest = state.waiting.iter().find_map(|waiting| match waiting.record {
                Stored::Disk { segment, .. } => Some(segment),
                Stored::Memory(_) => None,
            });
            if segment < state.writing.0 && oldest != Some(segment) {
                // A segment that stays behind is only sent again after a restart.
                let _ = fs::remove_file(path(&self.folder, segment));
            }
        }
        self.changed.notify_all();
    }

    /// Whether the record that was appended at `place` needs no more sending.
    pub fn is_settled(&self, place: u64) -> bool {
        self.lock().settled > place
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Bytes that wait on disk.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Returns when a record was added since the last call.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &mut State, payload: &[u8]) -> io::Result<()> {
        if state.written >= SEGMENT_BYTES {
            let next = state.writing.0 + 1;
            let finished = state.writing.0;
            state.writing = (next, create(&self.folder, next)?);
            state.written = 0;
            if !state.needs(finished) {
                let _ = fs::remove_file(path(&self.folder, finished));
            }
        }
        let mut frame = Vec::with_capacity(payload.len() + FRAME_BYTES as usize);
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.extend(crc32fast::hash(payload).to_le_bytes());
        frame.extend(payload);
        if let Err(error) = state.writing.1.write_all(&frame) {
            // On a full disk, what is acknowledged makes room.
            if !state.needs(state.writing.0) {
                state.written = 0;
            }
            // Half a frame must not stay in front of the next one.
            state.writing.1.set_len(state.written)?;
            return Err(error);
        }
        let start = state.written;
        state.written += frame.len() as u64;
        state.bytes += frame.len() as u64;
        let (segment, offset) = (state.writing.0, start + FRAME_BYTES);
        let record = Stored::Disk { segment, offset, length: payload.len() as u32 };
        state.waiting.push_back(Waiting { record, bytes: frame.len() as u64 });
        self.filled.notify_one();
        Ok(())
    }
}

/// Two processes would take each other's records for left-overs, and delete them.
fn lock(folder: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(folder.join("lock"))?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(
            io::ErrorKind::WouldBlock,
            "another worker uses it; give every worker a --cache of its own",
        ),
        TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

fn path(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("{segment:010}.spool"))
}

fn segment_number(path: &Path) -> Option<u64> {
    (path.extension()? == "spool").then(|| path.file_stem()?.to_str()?.parse().ok())?
}

fn create(folder: &Path, segment: u64) -> io::Result<File> {
    // Append mode: after a cut-back frame the next write lands at the new end.
    OpenOptions::new().create_new(true).append(true).open(path(folder, segment))
}

fn recover(folder: &Path, segment: u64, waiting: &mut VecDeque<Waiting>) -> io::Result<()> {
    let mut data = Vec::new();
    File::open(path(folder, segment))?.read_to_end(&mut data)?;
    let mut found = false;
    let mut at = 0;
    while let Some(header) = data.get(at..at + FRAME_BYTES as usize) {
        let (length, crc) = header.split_at(4);
        let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
        let crc = u32::from_le_bytes(crc.try_into().expect("four bytes"));
        let offset = at + FRAME_BYTES as usize;
        let Some(payload) = data.get(offset..offset + length as usize) else { break };
        if crc32fast::hash(payload) != crc || pb::Record::decode(payload).is_err() {
            break;
        }
        let record = Stored::Disk { segment, offset: offset as u64, length };
        waiting.push_back(Waiting { record, bytes: u64::from(length) + FRAME_BYTES });
        at = offset + length as usize;
        found = true;
    }
    if !found {
        fs::remove_file(path(folder, segment))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn record(sequence: u64) -> pb::Record {
        let text = "x".repeat(100);
        let log = pb::LogEntry { time: 0, level: "info".into(), text };
        let body = Some(pb::record::Body::Log(log));
        pb::Record { attempt: 1, sequence, task: None, body }
    }

    fn open(folder: &Path, limit: u64, patience: u64) -> Spool {
        Spool::open(folder, limit, Duration::from_millis(patience)).unwrap()
    }

    fn sequences(spool: &Spool) -> Vec<u64> {
        spool.peek(usize::MAX, usize::MAX).unwrap().iter().map(|r| r.sequence).collect()
    }

    #[test]
    fn records_survive_a_restart_in_order_and_acknowledged_ones_do_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), 1 << 30, 0);
        let many = 2 * SEGMENT_BYTES / 100;
        for sequence in 0..many {
            spool.append(&record(sequence)).unwrap();
        }
        let half = many / 2;
        spool.ack(half as usize);
        drop(spool);
        let spool = open(folder.path(), 1 << 30, 0);
        let found = sequences(&spool);
        // Whole segments are forgotten; of a segment in use, acknowledged records may come again.
        assert!(found[0] > 0 && found[0] <= half, "{}", found[0]);
        assert_eq!(found, (found[0]..many).collect::<Vec<_>>());
        spool.ack(found.len());
        assert!(spool.is_empty());
        assert_eq!(spool.bytes(), 0);
    }

    #[test]
    fn a_torn_end_loses_only_the_torn_record() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), 1 << 30, 0);
        for sequence in 1..=3 {
            spool.append(&record(sequence)).unwrap();
        }
        drop(spool);
        let file = path(folder.path(), 1);
        let whole = fs::read(&file).unwrap();
        for cut in 0..whole.len() {
            fs::write(&file, &whole[..cut]).unwrap();
            let spool = open(folder.path(), 1 << 30, 0);
            assert_eq!(sequences(&spool).len(), cut * 3 / whole.len());
            drop(spool);
            for file in fs::read_dir(folder.path()).unwrap() {
                fs::remove_file(file.unwrap().path()).unwrap();
            }
        }
    }

    #[test]
    fn a_record_is_settled_when_it_and_those_before_it_are_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), 1 << 30, 0);
        let places: Vec<u64> = (0..3).map(|n| spool.append(&record(n)).unwrap()).collect();
        let settled = || places.iter().map(|&place| spool.is_settled(place)).collect::<Vec<_>>();
        assert_eq!(settled(), [false, false, false]);
        spool.ack(2);
        assert_eq!(settled(), [true, true, false]);
        let later = spool.append(&record(3)).unwrap();
        spool.ack(1);
        assert_eq!(settled(), [true, true, true]);
        assert!(!spool.is_settled(later));
    }

    #[test]
    fn a_folder_belongs_to_one_spool_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), 300, 0);
        let error = Spool::open(folder.path(), 300, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains("--cache"), "{error}");
        drop(spool);
        open(folder.path(), 300, 0);
    }

    #[test]
    fn a_full_spool_waits_for_acknowledgement_and_then_fails_with_the_folder_s_name() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), 300, 50);
        spool.append(&record(0)).unwrap();
        spool.append(&record(1)).unwrap();
        let error = spool.append(&record(2)).unwrap_err();
        assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
        spool.append_last(&record(3));
        assert_eq!(sequences(&spool), [0, 1, 3], "ends of tasks are never refused");
        drop(spool);

        let spool = open(folder.path(), 300, 60_000);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| spool.append(&record(4)));
            while sequences(&spool).last() != Some(&4) {
                spool.ack(1);
                thread::yield_now();
            }
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_the_spool_intact() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), 1 << 30, 50);
        spool.append(&record(0)).unwrap();
        // /dev/full answers every write with ENOSPC, as a full disk does.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut spool.lock().writing.1, full);
        let error = spool.append(&record(1)).unwrap_err();
        assert!(matches!(error, SpoolError::Disk { .. }), "{error}");
        spool.append_last(&record(2));
        spool.lock().writing.1 = good;
        spool.append(&record(3)).unwrap();
        assert_eq!(sequences(&spool), [0, 2, 3]);
    }
}
