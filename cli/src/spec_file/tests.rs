//! Tests of sweep files.
