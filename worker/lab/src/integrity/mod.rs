//! Mathematics of checkpoint integrity, free of sinks and cards: `compare` (one set of weights against
//! others, and its sketch), `schedule` (missing steps), `order` (checkpoints in the wrong place),
//! `copies` (equal contents under several labels), `findings` (all
//! of it together), `jumps` (discontinuous norms), `report` (findings
//! as JSON and text).

pub(crate) mod compare;
pub(crate) mod copies;
pub(crate) mod findings;
pub(crate) mod jumps;
pub(crate) mod order;
pub(crate) mod report;
pub(crate) mod schedule;
