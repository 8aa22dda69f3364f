//! Bound, pins, damage, crashes and neighbours of the cache.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use super::*;

fn blob(byte: u8) -> (String, Vec<u8>) {
    let bytes = vec![byte; 100];
    (sha256(&bytes), bytes)
}

fn cache(limit: u64) -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), limit).unwrap();
    (folder, cache)
}

#[track_caller]
fn begin(cache: &Cache, hash: &str, size: u64) -> Box<Part> {
    let expected = Expected { sha256: Some(hash.to_owned()), git: None };
    match cache.begin(hash, size, &expected).unwrap() {
        Begun::Part(part) => part,
        other => panic!("expected a part, found {other:?}"),
    }
}

fn used_at(cache: &Cache, hash: &str, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let file = File::open(cache.path(hash).unwrap()).unwrap();
    file.set_times(FileTimes::new().set_accessed(time)).unwrap();
}

#[test]
fn the_least_recently_used_file_goes_first() {
    let (_folder, cache) = cache(250);
    let blobs: Vec<_> = (0..3u8).map(blob).collect();
    cache.put(&blobs[0].0, &blobs[0].1);
    cache.put(&blobs[1].0, &blobs[1].1);
    used_at(&cache, &blobs[0].0, 1000);
    used_at(&cache, &blobs[1].0, 2000);
    // To be given out counts as use; some disks note no reads.
    assert!(cache.get(&blobs[0].0).is_some());
    cache.put(&blobs[2].0, &blobs[2].1);
    assert!(cache.get(&blobs[1].0).is_none(), "the one that was not used since");
    assert!(cache.get(&blobs[0].0).is_some() && cache.get(&blobs[2].0).is_some());
    assert_eq!(cache.resident(1), [blobs[2].0.clone()]);
    assert_eq!(cache.resident(9).len(), 2);
}

#[test]
fn what_is_in_use_is_not_evicted() {
    let (_folder, cache) = cache(250);
    let (a, b, c) = (blob(1), blob(2), blob(3));
    cache.put(&a.0, &a.1);
    cache.put(&b.0, &b.1);
    used_at(&cache, &a.0, 1000);
    let held = cache.get(&a.0).unwrap();
    used_at(&cache, &a.0, 1000);
    cache.put(&c.0, &c.1);
    assert!(held.path().exists() && cache.get(&b.0).is_none());
    let second = cache.get(&c.0).unwrap();
    let error = cache.begin(&b.0, 100, &Expected::default()).unwrap_err();
    assert!(matches!(error, CacheError::Full { in_use: 200, needed: 100, .. }), "{error}");
    drop(second);
    assert!(matches!(cache.begin(&b.0, 100, &Expected::default()), Ok(Begun::Part(_))));
    assert!(cache.get(&a.0).is_some() && cache.get(&c.0).is_none());
    let error = cache.begin(&b.0, 251, &Expected::default()).unwrap_err();
    assert!(matches!(error, CacheError::TooLarge { .. }), "{error}");
}

#[test]
fn damaged_files_are_not_served() {
    let (folder, cache) = cache(1000);
    let (hash, bytes) = blob(7);
    let path = folder.path().join(&hash);
    let damage = |content: &[u8]| {
        cache.put(&hash, &bytes);
        fs::write(&path, content).unwrap();
        assert!(cache.get(&hash).is_none());
        assert!(!path.exists(), "a damaged file is removed");
    };
    damage(&[8; 100]);
    damage(&[7; 99]);
    damage(b"");
    assert!(cache.get("../../etc/passwd").is_none());

    // Damage that leaves no trace in the times is seen by who looks thoroughly.
    cache.put(&hash, &bytes);
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, [8; 100]).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(times)).unwrap();
    assert!(cache.get(&hash).is_some());
    assert!(cache.get_checked(&hash).is_none());
    assert!(!path.exists());
}

#[test]
fn touched_but_intact_files_are_hashed_once_and_kept() {
    let (folder, cache) = cache(1000);
    let (hash, bytes) = blob(7);
    cache.put(&hash, &bytes);
    let path = folder.path().join(&hash);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(now())).unwrap();
    assert_eq!(cache.read(&hash).as_ref(), Some(&bytes));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), stamp(&hash, 100));
}

#[test]
fn a_part_becomes_a_file_only_with_the_right_bytes() {
    let (folder, cache) = cache(1000);
    let (hash, bytes) = blob(7);
    let mut part = begin(&cache, &hash, 100);
    part.write(&[8; 100]).unwrap();
    let received = sha256(&[8; 100]);
    let error = part.finish().unwrap_err();
    assert!(matches!(&error, CacheError::Mismatch { received: Some(r), .. } if *r == received));
    assert!(cache.get(&hash).is_none() && !folder.path().join(&received).exists());

    let mut part = begin(&cache, &hash, 100);
    assert_eq!(part.written(), 0, "wrong bytes are not gone on with");
    part.write(&bytes[..40]).unwrap();
    assert!(
        matches!(part.write(&[7; 61]), Err(CacheError::Mismatch { .. })),
        "more than announced"
    );
    assert!(matches!(part.finish(), Err(CacheError::Mismatch { .. })), "less than announced");

    let git =
        Expected { sha256: None, git: Some("ce013625030ba8dba906f756967f9e9ca394464a".into()) };
    let Ok(Begun::Part(mut part)) = cache.begin("hello.txt", 6, &git) else { panic!() };
    part.write(b"hellp\n").unwrap();
    assert!(matches!(part.finish(), Err(CacheError::Mismatch { received: Some(_), .. })));
    let Ok(Begun::Part(mut part)) = cache.begin("hello.txt", 6, &git) else { panic!() };
    part.write(b"hello\n").unwrap();
    assert_eq!(part.finish().unwrap().hash(), sha256(b"hello\n"));
}

#[test]
fn an_unfinished_file_is_taken_up_by_the_next() {
    let (folder, cache) = cache(1000);
    let (hash, bytes) = blob(7);
    let mut part = begin(&cache, &hash, 100);
    part.write(&bytes[..60]).unwrap();
    let expected = Expected { sha256: Some(hash.clone()), git: None };
    let other = Cache::open(folder.path(), 1000).unwrap();
    assert!(matches!(other.begin(&hash, 100, &expected), Ok(Begun::Busy)), "one at a time");
    drop(part);
    let mut part = begin(&other, &hash, 100);
    assert_eq!(part.written(), 60);
    part.write(&bytes[60..]).unwrap();
    let held = part.finish().unwrap();
    assert_eq!((held.size(), held.hash()), (100, hash.as_str()));
    // Whoever wrote it uses it.
    let tight = Cache { folder: folder.path().to_owned(), limit: 100 };
    let error = tight.begin("another", 100, &Expected::default()).unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }) && held.path().exists());
    assert!(matches!(cache.begin(&hash, 100, &expected), Ok(Begun::Here(_))));
    assert!(!folder.path().join(format!("{hash}.100.part")).exists());
}

#[test]
fn unfinished_files_count_as_what_they_will_become() {
    let (_folder, cache) = cache(250);
    let (a, b) = (blob(1), blob(2));
    let part = begin(&cache, &a.0, 200);
    let error = cache.begin(&b.0, 100, &Expected::default()).unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }), "{error}");
    // Once its process is gone it is only what it is, and the first to go.
    drop(part);
    assert!(matches!(cache.begin(&b.0, 100, &Expected::default()), Ok(Begun::Part(_))));
}

#[test]
fn a_full_disk_is_answered_by_eviction_or_an_error() {
    let (folder, cache) = cache(1000);
    let (a, b) = (blob(1), blob(2));
    cache.put(&a.0, &a.1);
    // A file of the kernel that has room for nothing.
    let full = |cache: &Cache| {
        let part = begin(cache, &b.0, 100);
        part.on(File::options().write(true).open("/dev/full").unwrap())
    };
    let mut part = full(&cache);
    let held = cache.get(&a.0).unwrap();
    let error = part.write(&b.1).unwrap_err();
    assert!(matches!(error, CacheError::DiskFull { .. }), "{error}");
    assert!(folder.path().join(&a.0).exists(), "what is in use stays");
    drop((held, part));
    let mut part = full(&cache);
    assert!(part.write(&b.1).is_err(), "the disk stays full");
    assert!(!folder.path().join(&a.0).exists(), "room was made first");
}

#[test]
fn old_leftovers_are_removed_at_start() {
    let (folder, cache) = cache(1000);
    let (a, b) = (blob(1), blob(2));
    for hash in [&a.0, &b.0] {
        begin(&cache, hash, 100).write(&[1; 10]).unwrap();
    }
    let path = |hash: &str| folder.path().join(format!("{hash}.100.part"));
    let old = now() - Duration::from_hours(24 * 7);
    let file = File::options().write(true).open(path(&a.0)).unwrap();
    file.set_times(FileTimes::new().set_modified(old)).unwrap();
    // The unfinished files of an older version had another kind of name.
    let foreign = folder.path().join(format!("{}.123-4.part", b.0));
    fs::write(&foreign, "x").unwrap();
    File::open(&foreign).unwrap().set_times(FileTimes::new().set_modified(old)).unwrap();
    Cache::open(folder.path(), 1000).unwrap();
    assert!(!path(&a.0).exists() && !foreign.exists() && path(&b.0).exists());
}

#[test]
fn hashes_of_versions_are_remembered() {
    let (folder, cache) = cache(1000);
    let (hash, _) = blob(1);
    assert_eq!(cache.known("git:1"), None);
    cache.learn("git:1", &hash);
    assert_eq!(Cache::open(folder.path(), 1).unwrap().known("git:1"), Some(hash));
    assert_eq!(cache.known("git:2"), None);
    fs::write(cache.known_path("git:3"), "../../etc/passwd").unwrap();
    assert_eq!(cache.known("git:3"), None);
}

/// Runs the test `name` of this binary in another process, with `role` and the cache's folder.
fn process(name: &str, role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("cache::tests::{name}"), "--nocapture"]);
    command.env("CACHE_TEST_ROLE", role).env("CACHE_TEST_FOLDER", folder);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn role() -> Option<(String, Cache)> {
    let role = std::env::var("CACHE_TEST_ROLE").ok()?;
    let folder = PathBuf::from(std::env::var("CACHE_TEST_FOLDER").unwrap());
    Some((role, Cache::open(&folder, 1000).unwrap()))
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_a_killed_process_wrote_is_gone_on_with() {
    let (hash, bytes) = blob(9);
    if let Some((_, cache)) = role() {
        let mut part = begin(&cache, &hash, 100);
        part.write(&bytes[..70]).unwrap();
        fs::write(cache.folder.join("written"), "").unwrap();
        std::thread::sleep(Duration::from_mins(1));
        return;
    }
    let (folder, cache) = cache(1000);
    let name = "what_a_killed_process_wrote_is_gone_on_with";
    let mut child = process(name, "writer", folder.path()).spawn().unwrap();
    wait_for("the other process writes", || folder.path().join("written").exists());
    let expected = Expected { sha256: Some(hash.clone()), git: None };
    assert!(matches!(cache.begin(&hash, 100, &expected), Ok(Begun::Busy)));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut part = begin(&cache, &hash, 100);
    assert_eq!(part.written(), 70);
    part.write(&bytes[70..]).unwrap();
    part.finish().unwrap();
    assert_eq!(cache.read(&hash), Some(bytes));
}

#[test]
fn another_process_does_not_evict_what_this_one_uses() {
    if let Some((_, cache)) = role() {
        // Leaves room for nothing else.
        let tight = Cache { folder: cache.folder.clone(), limit: 100 };
        let full = matches!(
            tight.begin(&blob(5).0, 100, &Expected::default()),
            Err(CacheError::Full { .. })
        );
        fs::write(cache.folder.join(if full { "refused" } else { "evicted" }), "").unwrap();
        return;
    }
    let (folder, cache) = cache(1000);
    let (hash, bytes) = blob(4);
    cache.put(&hash, &bytes);
    let held = cache.get(&hash).unwrap();
    let name = "another_process_does_not_evict_what_this_one_uses";
    let run = || assert!(process(name, "evictor", folder.path()).status().unwrap().success());
    run();
    assert!(folder.path().join("refused").exists() && held.path().exists());
    drop(held);
    run();
    assert!(folder.path().join("evicted").exists() && cache.get(&hash).is_none());
}

#[test]
fn processes_that_fill_one_folder_keep_its_bound() {
    if let Some((role, cache)) = role() {
        let first: u8 = role.parse().unwrap();
        for byte in 0..40u8 {
            let (hash, bytes) = blob(byte.wrapping_mul(3).wrapping_add(first));
            cache.put(&hash, &bytes);
            // Whatever is here is right, whoever put or evicted it.
            if let Some(found) = cache.read(&hash) {
                assert_eq!(found, bytes);
            }
        }
        return;
    }
    let (folder, cache) = cache(1000);
    let name = "processes_that_fill_one_folder_keep_its_bound";
    let children: Vec<_> = (0..3)
        .map(|first| process(name, &first.to_string(), folder.path()).spawn().unwrap())
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let files = cache.files();
    assert!(files.iter().map(CachedFile::bytes).sum::<u64>() <= 1000);
    assert!(files.iter().all(|file| file.reserved.is_none()), "{files:?}");
    assert!(files.len() >= 9, "{files:?}");
}
