//! The whole way from a source to verified files, against real sockets, folders and processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod bucket;
mod folder;
mod hub;
mod hub_faults;
mod hub_server;

use std::{path::Path, sync::Arc, time::Duration};

use sweep_source::{Access, Cache, Error, Fetched, Listing, Settings};

/// Access with a small patience and a cache in `folder`.
fn access(folder: &Path, settings: &[(&str, &str)], patience: Duration) -> Access {
    let settings: Settings =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let cache = Arc::new(Cache::open(folder, 10 << 20).unwrap());
    Access::new(settings, Some(cache), patience).unwrap()
}

/// Bytes that differ from place to place.
fn noise(seed: u32, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

fn steps(listing: &Listing) -> Vec<u64> {
    listing.checkpoints.iter().map(|found| found.step).collect()
}

fn names(fetched: &Fetched) -> Vec<&str> {
    fetched.files.keys().map(String::as_str).collect()
}

#[track_caller]
fn says(error: &Error, words: &[&str]) {
    let text = format!("{error} | {}", error.hint().unwrap_or_default());
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}
