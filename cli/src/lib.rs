//! The `sweep` command: submits sweeps, shows what they do, and brings their results home.
//!
//! # Layout
//! - [`app`]: the command line; [`commands`]: one file per verb.
//! - [`connect`], [`daemon`]: which coordinator, and the processes that `sweep` starts by itself.
//! - [`spec_file`]: sweep files with problems at line and column. [`sources`]: where checkpoints
//!   come from.
//! - [`problems`]: presets of the open problems.
//! - [`series`], [`export`]: metric values, tidy files. [`figures`], [`chart`]: plots.
//! - [`artifacts`]: verified downloads. [`progress`]: live displays.
//! - [`output`], [`table`], [`format`](mod@format), [`error`]: what people and scripts see.
//!
//! Nothing here knows libtorch or the store; everything comes through the wire contract.

pub mod app;
pub mod artifacts;
pub mod chart;
pub mod commands;
pub mod connect;
pub mod context;
pub mod daemon;
pub mod error;
pub mod export;
pub mod figures;
pub mod format;
pub mod imports;
pub mod output;
pub mod problems;
pub mod progress;
pub mod series;
pub mod sources;
pub mod spec_file;
pub mod table;
