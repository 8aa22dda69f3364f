//! The scheduling core: a pure function of (state, event, now) with effects as its result.
//!
//! # Layout
//! - [`machine`]: [`Core`] and the dispatch of events; [`event`]: events and effects.
//! - [`plan`]: the axes of a sweep.
//! - [`sweep`], [`model`], [`couples`], [`groups`], [`queue`]: one sweep: transitions of tasks, counters, what is ready.
//! - [`grant`]: who gets what; [`report`]: heartbeats, records, fencing; [`lease`], [`workers`].
//! - [`retry`]: what failures cost; [`restore`]: from what was kept to a core; [`status`]: views.
//!
//! No I/O, clock, randomness or async in here; the store and the network do not exist.

pub mod couples;
pub mod event;
pub mod grant;
pub mod groups;
pub mod lease;
pub mod machine;
pub mod model;
pub mod plan;
pub mod queue;
pub mod rate;
pub mod report;
pub mod restore;
pub mod retry;
pub mod status;
pub mod sweep;
pub mod time;
pub mod workers;

pub use grant::MAX_WAIT;
pub use machine::{Core, CoreConfig};

#[cfg(test)]
mod proptests;
#[cfg(test)]
pub(crate) mod scenario;
#[cfg(test)]
mod tests;
