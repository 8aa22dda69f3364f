//! Tests of the `sweep` binary from outside: the real program against a coordinator in this process
//! ([`fake`]) and against small shell scripts in place of the daemons.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod artifacts;
mod catalog;
mod connection;
mod fake;
mod files;
mod help;
mod local;
mod queries;
mod run;
mod watch;
