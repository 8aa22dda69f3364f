//! The worker: everything that touches the outside world on behalf of the lab.
//!
//! # Layout
//! - [`config`]: the command line. `main.rs` only parses it and calls [`agent::run`].
//! - [`agent`]: the life of the process: register, one acquire loop per slot, drain, leave.
//! - [`session`]: what all parts share. [`leases`]: which leases are held, alive, revoked.
//! - [`heartbeat`]: renewals from a thread of their own. [`reporter`]: spool → coordinator.
//! - [`spool`]: results on disk until they are acknowledged.
//! - [`lane`]: a slot: one OS thread that owns its models and runs one lease at a time.
//! - [`train`], [`import`], [`analyse`], [`trajectory`]: the kinds of work, each a lease in, records
//!   out. [`loading`]: a checkpoint onto the device. [`memory`]: what may be allocated.
//! - [`deliver`]: sinks that turn what the lab emits into records and uploads.
//! - [`artifacts`]: the object store.
//! - [`catalog`]: what this build can run. [`failure`]: errors → what the scheduler acts on.
//!
//! # Invariants
//! - Every result goes through the spool; nothing is sent for a lease that is not alive.
//! - Every object is written under a key that contains the attempt: a worker that lost its lease
//!   cannot touch what its successor writes.
//! - A training's state reaches the coordinator after the metrics before it.

pub mod agent;
pub mod analyse;
pub mod artifacts;
pub mod catalog;
pub mod compare;
pub mod config;
pub mod deliver;
pub mod failure;
pub mod heartbeat;
pub mod import;
pub mod lane;
pub mod leases;
pub mod loading;
pub mod memory;
pub mod readings;
pub mod reporter;
pub mod session;
pub mod spool;
pub mod train;
pub mod trajectory;
