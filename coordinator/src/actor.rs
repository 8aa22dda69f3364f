//! The single writer. Main types: [`Actor`], run by one thread that owns core and store writes, and
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
