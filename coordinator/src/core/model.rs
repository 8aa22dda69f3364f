//! What is known of one model of a sweep once something happened to it. Main type: [`Model`].
//!
//! A task takes one [`Cell`] here, and only after its checkpoint was published (or its training
//! was done, for trajectories); everything else about it follows from the plan.

use std::collections::BTreeMap;

use sweep_proto::{id::Attempt, pb};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Not leased, not at an end.
    Open,
    /// Waits for its next try.
    Delayed,
    /// Under a lease.
    Leased(Attempt),
    /// Done by that attempt; final.
    Done(Attempt),
    /// Given up after that attempt; left only by an explicit retry.
    Failed(Attempt),
}

impl Cell {
    /// Whether nothing will happen to the task by itself.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed(_))
    }
}

/// What a task looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Needs something that is not there yet, or waits for its next try.
    Waiting,
    /// Can be leased now.
    Ready,
    /// Under a lease.
    Running(Attempt),
    /// Done.
    Done(Attempt),
    /// Given up.
    Failed(Attempt),
    /// Cannot run, because what it needs will never be there.
    Skipped,
    /// Its sweep was stopped.
    Cancelled,
}

impl State {
    /// The word that listings use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Running(_) => "running",
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A model that something happened to.
#[derive(Debug)]
pub struct Model {
    /// Its training.
    pub train: Cell,
    /// Where its training can go on, and which attempt saved that.
    pub resume: Option<(Attempt, pb::TrainerState)>,
    /// Published checkpoints by step.
    pub published: BTreeMap<u64, Published>,
    /// One cell per trajectory experiment (those over several models use none); empty until the training
    /// is done.
    pub trajectory: Vec<Cell>,
    /// Analyses that are not at an end, those of unpublished checkpoints included.
    pub open_analyses: u64,
}

/// A published checkpoint.
#[derive(Debug)]
pub struct Published {
    /// Where it is.
    pub checkpoint: pb::Checkpoint,
    /// Who published it.
    pub attempt: Attempt,
    /// One cell per experiment.
    pub cells: Box<[Cell]>,
    /// Its place in the queue, while it has open cells.
    pub queued: Option<u64>,
}

impl Published {
    /// The files that a worker loads.
    pub fn files(&self) -> impl Iterator<Item = &pb::Blob> {
        let imported = self.checkpoint.imported.iter().flat_map(|imported| &imported.files);
        self.checkpoint.file.iter().chain(imported)
    }
}

impl Model {
    /// A model whose training is open. `analyses` is how many analyses it will have.
    pub fn new(analyses: u64) -> Self {
        Self {
            train: Cell::Open,
            resume: None,
            published: BTreeMap::new(),
            trajectory: Vec::new(),
            open_analyses: analyses,
        }
    }

    /// The step that the training would go on from.
    pub fn resume_step(&self) -> Option<u64> {
        self.resume.as_ref().map(|(_, state)| state.step)
    }

    /// Whether nothing of it is to come: neither checkpoints nor analyses.
    pub fn has_ended(&self) -> bool {
        self.train.is_terminal() && self.open_analyses == 0
    }

    /// Whether trajectory tasks have everything that they will ever get.
    pub fn is_settled(&self) -> bool {
        matches!(self.train, Cell::Done(_)) && self.open_analyses == 0
    }
}
