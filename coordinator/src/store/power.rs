//! Power cuts: a child process commits under a recorder of all its writes (`power.c`, preloaded) and is killed; then
//! the disk is made as a power cut may leave it. Everything a file got since its last sync may be lost:
//! all of it, or any part of it. Every acknowledged commit must be there, whole.
//!
//! Protections: `fdatasync` after every commit, and the sync of folders after opening.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::{crash, sled::SledKv};

/// The recorder as a shared object. Whoever builds this project has a C compiler.
fn recorder(folder: &Path) -> PathBuf {
    let library = folder.join("power.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/power.c");
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler.args(["-O1", "-shared", "-fPIC", "-pthread", "-o"]).arg(&library).arg(source);
    assert!(compiler.status().unwrap().success());
    library
}

/// One thing that happened to the disk.
#[derive(Debug)]
struct Event {
    kind: u8,
    path: PathBuf,
    offset: u64,
    length_before: u64,
    old: Vec<u8>,
    new: Vec<u8>,
}

fn events(record: &Path) -> Vec<Event> {
    let mut file = File::open(record).unwrap();
    let mut found = Vec::new();
    let mut head = [0; 32];
    while file.read_exact(&mut head).is_ok() {
        let u32_at = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap());
        let mut part = |length: u32| {
            let mut bytes = vec![0; length as usize];
            // A record that the kill cut off was not acted on.
            file.read_exact(&mut bytes).ok().map(|()| bytes)
        };
        let (path, old, new) = (part(u32_at(4)), part(u32_at(24)), part(u32_at(28)));
        let (Some(path), Some(old), Some(new)) = (path, old, new) else { break };
        found.push(Event {
            kind: u32_at(0) as u8,
            path: PathBuf::from(String::from_utf8(path).unwrap()),
            offset: u64_at(8),
            length_before: u64_at(16),
            old,
            new,
        });
    }
    found
}

/// Takes back what was never synced; `survives` says of each such write whether the disk had it all the same.
fn cut_power(events: &[Event], mut survives: impl FnMut() -> bool) -> usize {
    let mut unsynced: BTreeMap<PathBuf, Vec<&Event>> = BTreeMap::new();
    let mut unlisted: BTreeSet<PathBuf> = BTreeSet::new();
    for event in events {
        match event.kind {
            b'w' | b't' => unsynced.entry(event.path.clone()).or_default().push(event),
            b's' => {
                unsynced.remove(&event.path);
                unlisted.retain(|file| file.parent() != Some(&event.path));
            }
            b'c' => _ = unlisted.insert(event.path.clone()),
            b'r' => {
                let to = PathBuf::from(String::from_utf8(event.new.clone()).unwrap());
                let changes = unsynced.remove(&event.path).unwrap_or_default();
                unsynced.insert(to.clone(), changes);
                unlisted.remove(&event.path);
                unlisted.insert(to);
            }
            other => panic!("unknown event {other}"),
        }
    }
    let mut n_lost = 0;
    for (path, changes) in &unsynced {
        let Ok(file) = File::options().write(true).open(path) else { continue };
        for change in changes.iter().rev() {
            file.write_all_at(&change.old, change.offset).unwrap();
            file.set_len(change.length_before).unwrap();
        }
        for change in changes {
            match change.kind {
                _ if !survives() => n_lost += 1,
                b't' => file.set_len(change.offset).unwrap(),
                _ => file.write_all_at(&change.new, change.offset).unwrap(),
            }
        }
    }
    // A name that its folder never synced need not be there.
    for path in unlisted.iter().filter(|path| path.exists()) {
        fs::remove_file(path).unwrap();
        n_lost += 1;
    }
    n_lost
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let library = recorder(folder.path());
    let path = folder.path().join("store");
    let (mut acknowledged, mut n_lost) = (0, 0);
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..6u64 {
        let record = folder.path().join(format!("record-{round}"));
        let variables: [(&str, &Path); 3] = [
            ("LD_PRELOAD", &library),
            ("SWEEP_TEST_POWER_FOLDER", &path),
            ("SWEEP_TEST_POWER_LOG", &record),
        ];
        acknowledged = crash::kill_after(&path, acknowledged + 10 + 9 * round, &variables);
        let events = events(&record);
        assert!(events.len() > 10, "the recorder saw {} events", events.len());
        // At first nothing that was not synced survives, then any part of it.
        n_lost += cut_power(&events, || {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            round > 2 && dice >> 63 == 1
        });
        let there = crash::last(&SledKv::open(&path).unwrap());
        assert!(there >= acknowledged, "{acknowledged} was acknowledged, {there} is there");
    }
    assert!(acknowledged >= 100 && n_lost > 0, "{acknowledged} commits, {n_lost} changes lost");
}
