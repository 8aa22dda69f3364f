//! The worker binary against a scripted coordinator: what it says, in which order, and when it is
//! silent. The end-to-end tests see only what a real coordinator lets through; here every record
//! that the worker sends is looked at.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails where it stands"
)]

mod coordinator;
mod delivery;
mod inputs;
mod leases;
mod process;
