//! The wire contract of the sweep system and the domain types that both ends share.
//!
//! # Layout
//! - [`pb`]: generated messages, clients and servers of `sweep.v1`.
//! - [`id`]: attempts, task keys, failure classes: wire values validated at the receiver.
//! - [`spec`]: the sweep file: decoding with exact problem paths, checking against a catalogue,
//!   expansion of checkpoints and parameter grids.
//! - [`catalog`]: the catalogue that this build of the workers offers, and lookups in catalogues.
//! - [`timing`]: lease timing and its inequalities.
//! - [`client`]: connections with keep-alive, limits and TLS.
//!
//! Nothing here knows libtorch, sled or the scheduler.

pub mod catalog;
pub mod client;
pub mod id;
pub mod spec;
pub mod timing;

/// Generated from `proto/sweep/v1/*.proto`; the comments there are the documentation.
#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::large_enum_variant,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("sweep.v1");

    /// Encoded `FileDescriptorSet`, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
