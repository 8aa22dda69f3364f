//! The single writer. Main types: `Actor`, run by one thread that owns core and store writes, and
//! [`Handle`], through which everything else talks to it.
//!
//! The thread takes the commands that are there, steps the core with each, makes all their writes
//! durable in one commit, and only then answers: what is acknowledged is on disk. What rests on
//! durable state alone (an Acquire when nothing is to be written; heartbeats always) is answered at
//! once. A failed commit ends the thread without an answer to anybody, and with it the process.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use sweep_proto::id::Attempt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::{info, warn};

use crate::{
    clock::Clock,
    core::{
        Core,
        event::{Answer, Effect, Event, Fact, RequestId, Write},
        time::Now,
    },
    error::Error,
    store::{self, Store},
};

/// Commands that wait at most; callers beyond that wait for their turn.
const MAX_QUEUED: usize = 4096;
/// Commands and bytes of one commit.
const MAX_GROUP: usize = 1024;
const MAX_GROUP_BYTES: usize = 4 << 20;
/// Longest sleep of the thread.
const IDLE: Duration = Duration::from_secs(1);

enum Command {
    Event { event: Box<dyn FnOnce(RequestId) -> Event + Send>, reply: oneshot::Sender<Answer> },
    Read(Look),
    Stop,
}

/// Looks at the core; what it returns hands the view to the caller.
type Look = Box<dyn FnOnce(&Core, Now) -> Deferred + Send>;

/// Something to do once the group is durable.
type Deferred = Box<dyn FnOnce() + Send>;

/// A command with its place in the queue.
struct Queued {
    command: Command,
    bytes: usize,
    _place: Option<OwnedSemaphorePermit>,
}

/// Talks to the actor. Clones talk to the same one.
#[derive(Clone)]
pub struct Handle {
    sender: Sender<Queued>,
    places: Arc<Semaphore>,
    changes: watch::Receiver<u64>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Hands in an event and waits for the answer. `bytes` is about how much it makes the
    /// coordinator write.
    ///
    /// # Errors
    /// What the core refuses, or [`Error::Stopping`].
    pub async fn call(
        &self,
        bytes: usize,
        event: impl FnOnce(RequestId) -> Event + Send + 'static,
    ) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Event { event: Box::new(event), reply }, bytes).await?;
        match answer.await.map_err(|_| Error::Stopping)? {
            Answer::Refused(refusal) => Err(refusal.into()),
            answer => Ok(answer),
        }
    }

    /// Looks at the core. What is seen is durable when this returns.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Now) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let read = move |core: &Core, now: Now| -> Deferred {
            let seen = look(core, now);
            // The caller may have hung up; nobody misses the view then.
            Box::new(move || drop(sender.send(seen)))
        };
        self.send(Command::Read(Box::new(read)), 0).await?;
        receiver.await.map_err(|_| Error::Stopping)
    }

    /// Changes its value whenever something changed that a status shows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    async fn send(&self, command: Command, bytes: usize) -> Result<(), Error> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Error::Stopping)?;
        let queued = Queued { command, bytes, _place: Some(place) };
        self.sender.send(queued).map_err(|_| Error::Stopping)
    }

    /// Asks the thread to end after what is queued already.
    pub fn stop(&self) {
        // If the thread is gone already, there is nothing to stop.
        let _ = self.sender.send(Queued { command: Command::Stop, bytes: 0, _place: None });
    }
}

/// Starts the thread. It ends after [`Handle::stop`], or with an error when the store fails.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(
    core: Core,
    store: Store,
    clock: Arc<dyn Clock>,
) -> std::io::Result<(Handle, JoinHandle<Result<(), store::Error>>)> {
    let (sender, receiver) = channel();
    let (changed, changes) = watch::channel(0);
    let places = Arc::new(Semaphore::new(MAX_QUEUED));
    let handle = Handle { sender, places: Arc::clone(&places), changes };
    let replies = HashMap::new();
    let mut actor = Actor {
        core,
        store,
        clock,
        receiver,
        changed,
        replies,
        next_request: 0,
        undelivered: Vec::new(),
    };
    let thread = std::thread::Builder::new().name("core".to_owned()).spawn(move || {
        let end = actor.run();
        // Whoever waits for a place learns that there is nobody any more.
        places.close();
        end
    })?;
    Ok((handle, thread))
}

struct Actor {
    core: Core,
    store: Store,
    clock: Arc<dyn Clock>,
    receiver: Receiver<Queued>,
    changed: watch::Sender<u64>,
    /// Callers that wait for their answer. The core answers each request once.
    replies: HashMap<RequestId, oneshot::Sender<Answer>>,
    next_request: RequestId,
    /// Leases whose callers hung up.
    undelivered: Vec<Attempt>,
}

/// What a group of commands leads to.
#[derive(Default)]
struct Group {
    writes: Vec<Write>,
    deferred: Vec<Deferred>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    /// Whether something happened that a status shows.
    has_changed: bool,
    is_last: bool,
}

impl Actor {
    fn run(&mut self) -> Result<(), store::Error> {
        loop {
            let mut group = Group::default();
            self.gather(&mut group);
            if !group.writes.is_empty() {
                self.store.commit(&group.writes)?;
            }
            group.deferred.into_iter().for_each(|deferred| deferred());
            for (reply, answer) in group.answers {
                self.deliver(reply, answer);
            }
            if group.has_changed {
                self.changed.send_modify(|version| *version += 1);
            }
            if group.is_last {
                break;
            }
        }
        if self.core.is_quiet() {
            self.store.mark_quiet()?;
        }
        Ok(())
    }

    /// Steps the core with the commands that are there; waits for the first one.
    fn gather(&mut self, group: &mut Group) {
        let now = self.clock.now();
        let until = self.core.next_deadline().map(|at| at.saturating_sub(now.mono));
        // A millisecond more, so that the deadline has passed when the thread wakes.
        let wait = until.map_or(IDLE, |wait| (wait + Duration::from_millis(1)).min(IDLE));
        let wait = if self.undelivered.is_empty() { wait } else { Duration::ZERO };
        let mut next = match self.receiver.recv_timeout(wait) {
            Ok(queued) => Some(queued),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                group.is_last = true;
                return;
            }
        };
        self.step(Event::Tick, group);
        for attempt in std::mem::take(&mut self.undelivered) {
            self.step(Event::Undelivered { attempt }, group);
        }
        let (mut count, mut bytes) = (0, 0);
        while let Some(Queued { command, bytes: size, .. }) = next.take() {
            count += 1;
            bytes += size;
            match command {
                Command::Stop => {
                    group.is_last = true;
                    return;
                }
                Command::Read(read) => {
                    let deferred = read(&self.core, self.clock.now());
                    if group.writes.is_empty() { deferred() } else { group.deferred.push(deferred) }
                }
                Command::Event { event, reply } => {
                    self.next_request += 1;
                    self.replies.insert(self.next_request, reply);
                    let event = event(self.next_request);
                    self.step(event, group);
                }
            }
            if count < MAX_GROUP && bytes < MAX_GROUP_BYTES {
                next = self.receiver.try_recv().ok();
            }
        }
    }

    fn step(&mut self, event: Event, group: &mut Group) {
        group.has_changed |= matches!(event, Event::Heartbeat { .. });
        for effect in self.core.step(event, self.clock.now()) {
            group.has_changed |= !matches!(effect, Effect::Reply(..));
            match effect {
                Effect::Write(write) => group.writes.push(write),
                Effect::Fact(fact) => log(fact),
                Effect::Reply(request, answer) => {
                    let Some(reply) = self.replies.remove(&request) else { continue };
                    let is_heartbeat = matches!(answer, Answer::Revoked(_));
                    if group.writes.is_empty() || is_heartbeat {
                        self.deliver(reply, answer);
                    } else {
                        group.answers.push((reply, answer));
                    }
                }
            }
        }
    }

    /// Answers a caller. A lease that nobody waits for any more goes back with the next group.
    fn deliver(&mut self, reply: oneshot::Sender<Answer>, answer: Answer) {
        if let Err(Answer::Lease(Some(lease))) = reply.send(answer) {
            self.undelivered.push(Attempt(lease.attempt));
        }
    }
}

/// One line for what an operator expects to see.
fn log(fact: Fact) {
    match fact {
        Fact::SweepSubmitted { sweep, tasks } => info!(%sweep, tasks, "sweep submitted"),
        Fact::SweepState { sweep, state } => info!(%sweep, state, "sweep changed state"),
        Fact::WorkerJoined { worker, name } => info!(%worker, name, "worker joined"),
        Fact::WorkerGone { worker, reason } => info!(%worker, reason, "worker gone"),
        Fact::LeaseGranted { attempt, worker, sweep, task, tasks } => {
            info!(%attempt, %worker, %sweep, %task, tasks, "lease granted");
        }
        Fact::LeaseAdopted { attempt, worker } => info!(%attempt, %worker, "lease taken over"),
        Fact::LeaseLost { attempt, worker, reason } => {
            warn!(%attempt, %worker, reason, "lease lost");
        }
        Fact::TaskDone { sweep, task, attempt } => info!(%sweep, %task, %attempt, "task done"),
        Fact::TaskFailed { sweep, task, attempt, class, message, is_final } => {
            let message = message.lines().next().unwrap_or_default();
            warn!(%sweep, %task, %attempt, %class, message, is_final, "task failed");
        }
        Fact::RecordInvalid { worker, problem } => warn!(%worker, problem, "record refused"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::{
        clock::SystemClock,
        core::scenario::{config, plan, small},
        store::{
            Error as StoreError,
            kv::{Batch, Kv, Visit},
            memory::MemoryKv,
        },
    };

    /// A store that can be told to fail, and tells what it was doing.
    #[derive(Default)]
    struct Moody {
        kv: MemoryKv,
        fails: AtomicBool,
        commits: Mutex<Vec<usize>>,
    }

    impl Kv for Moody {
        fn get(&self, key: &[u8]) -> store::Result<Option<Vec<u8>>> {
            self.kv.get(key)
        }

        fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> store::Result<()> {
            self.kv.scan(prefix, from, visit)
        }

        fn commit(&self, batch: Batch) -> store::Result<()> {
            if self.fails.load(Ordering::SeqCst) {
                return Err(StoreError::Backend("the disk is gone".into()));
            }
            self.commits.lock().unwrap().push(batch.len());
            self.kv.commit(batch)
        }
    }

    type Thread = JoinHandle<Result<(), store::Error>>;

    fn start() -> (Arc<Moody>, Handle, Thread) {
        let kv = Arc::new(Moody::default());
        let store = Store::with(Arc::clone(&kv) as Arc<dyn Kv>);
        let clock = Arc::new(SystemClock::start());
        let core = Core::restore(config(), store.begin().unwrap(), clock.now()).unwrap();
        let (handle, thread) = spawn(core, store, clock).unwrap();
        (kv, handle, thread)
    }

    async fn submit(handle: &Handle) -> Result<Answer, Error> {
        let plan = plan(&small(1));
        handle.call(0, move |request| Event::Submit { request, plan }).await
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_that_is_not_durable() {
        let (kv, handle, thread) = start();
        kv.fails.store(true, Ordering::SeqCst);
        assert!(matches!(submit(&handle).await, Err(Error::Stopping)), "no answer, no lie");
        assert!(thread.join().unwrap().is_err(), "the writer ends with its store");
        let read = handle.read(|core, _| core.sweeps().count()).await;
        assert!(matches!(read, Err(Error::Stopping)), "nobody sees what is not durable");
    }

    #[tokio::test]
    async fn reads_and_empty_handed_workers_write_nothing() {
        let (kv, handle, thread) = start();
        submit(&handle).await.unwrap();
        let before = kv.commits.lock().unwrap().len();
        for _ in 0..10 {
            handle.read(|core, _| core.sweeps().count()).await.unwrap();
            submit(&handle).await.unwrap();
        }
        assert_eq!(kv.commits.lock().unwrap().len(), before, "the same sweep again is no change");
        handle.stop();
        thread.join().unwrap().unwrap();
        assert_eq!(kv.commits.lock().unwrap().len(), before + 1, "the mark of a quiet stop");
    }
}
