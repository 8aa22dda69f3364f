//! End-to-end tests: real coordinators, workers and command lines on free ports, real kills.
//!
//! Each fault test breaks when its protection is removed; the comment at its head says which one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod bad_input;
mod coordinator_crash;
mod corrupt_checkpoint;
mod diverging_seed;
mod full_spool;
#[path = "../../worker/source/tests/it/hub_server.rs"]
#[expect(dead_code, reason = "the tests of sources use all of it")]
mod hub_server;
mod imported;
mod local;
mod object_store;
mod orphans;
mod pairs;
mod worker_crash;
mod zombie;
