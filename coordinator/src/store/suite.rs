//! What every back end must do, run against all of them; and what the layers above rest on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use proptest::prelude::*;
use sweep_proto::{
    id::{Attempt, TaskKey, TaskKind},
    pb,
};

use super::{
    Error, Store,
    frame::{PART_BYTES, pack, unpack},
    key::{KINDS, Key, Kind, Reader},
    kv::{Batch, Kv},
    memory::MemoryKv,
    metrics, record,
    sled::SledKv,
};
use crate::core::event::{Outcome, TaskRecord, Write};

fn for_each_back_end(check: impl Fn(Arc<dyn Kv>)) {
    check(Arc::new(MemoryKv::default()));
    let folder = tempfile::tempdir().unwrap();
    check(Arc::new(SledKv::open(&folder.path().join("store")).unwrap()));
}

fn keys(kv: &dyn Kv, prefix: &[u8], from: &[u8]) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    kv.scan(prefix, from, &mut |key, _| {
        keys.push(key.to_vec());
        true
    })
    .unwrap();
    keys
}

fn set(key: &[u8], value: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.to_vec(), Some(value.to_vec()))
}

#[test]
fn back_ends_store_scan_and_remove() {
    for_each_back_end(|kv| {
        kv.commit(vec![set(b"b2", b"x"), set(b"a", b"1"), set(b"b1", b""), set(b"c", b"3")])
            .unwrap();
        assert_eq!(kv.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(kv.get(b"b1").unwrap().as_deref(), Some(&b""[..]), "empty values exist");
        assert_eq!(kv.get(b"b").unwrap(), None);
        assert_eq!(keys(&*kv, b"b", b""), [b"b1", b"b2"]);
        assert_eq!(keys(&*kv, b"b", b"b2"), [b"b2"]);
        assert_eq!(keys(&*kv, b"", b"b1").len(), 3);
        assert!(keys(&*kv, b"d", b"").is_empty());
        kv.commit(vec![(b"b1".to_vec(), None), (b"nothing".to_vec(), None)]).unwrap();
        assert_eq!(keys(&*kv, b"b", b""), [b"b2"]);
        // Of several changes of one key the last one counts.
        kv.commit(vec![set(b"a", b"2"), (b"a".to_vec(), None), set(b"a", b"4")]).unwrap();
        assert_eq!(kv.get(b"a").unwrap().as_deref(), Some(&b"4"[..]));
        let mut seen = 0;
        kv.scan(b"", b"", &mut |_, _| {
            seen += 1;
            false
        })
        .unwrap();
        assert_eq!(seen, 1, "a visitor ends the scan");
        kv.commit(Batch::new()).unwrap();
    });
}

#[test]
fn back_ends_take_large_batches() {
    for_each_back_end(|kv| {
        let batch =
            (0..1000u32).map(|i| (i.to_be_bytes().to_vec(), Some(vec![i as u8; PART_BYTES])));
        kv.commit(batch.collect()).unwrap();
        assert_eq!(keys(&*kv, b"", b"").len(), 1000);
        assert_eq!(kv.get(&999u32.to_be_bytes()).unwrap(), Some(vec![999u32 as u8; PART_BYTES]));
    });
}

#[test]
fn readers_see_whole_batches() {
    for_each_back_end(|kv| {
        let stop = Arc::new(AtomicBool::new(false));
        let reader = {
            let (kv, stop) = (Arc::clone(&kv), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut scans = 0;
                while !stop.load(Ordering::Relaxed) || scans == 0 {
                    let mut values = Vec::new();
                    kv.scan(b"k", b"", &mut |_, value| {
                        values.push(value.to_vec());
                        true
                    })
                    .unwrap();
                    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "a torn batch");
                    scans += 1;
                }
            })
        };
        for round in 0..30u8 {
            let batch = (0..40u8).map(|i| set(&[b'k', i], &[round; 100])).collect();
            kv.commit(batch).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let incarnation = |path| Store::open(path).unwrap().begin().unwrap().incarnation;
    assert_eq!(incarnation(&path), 1);
    assert_eq!(incarnation(&path), 2);
    let write = Write::Worker { name: "w".into(), instance: Some("i".into()) };
    Store::open(&path).unwrap().commit(&[write]).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.begin().unwrap().workers, [("w".to_owned(), "i".to_owned())]);
    store.mark_quiet().unwrap();
    assert!(store.begin().unwrap().quiet);
    assert!(!store.begin().unwrap().quiet, "a quiet stop counts once");
    let blobs = std::fs::read_dir(path.join("blobs")).unwrap().count();
    assert_eq!(blobs, 0, "nothing is large enough for a file of its own");
}

#[test]
fn documents_of_any_size_survive_and_shrink() {
    for_each_back_end(|kv| {
        let store = Store::with(kv);
        let noise = |n: usize| -> String {
            let mut state = 1u64;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(33 + (state >> 57) as u8 % 90)
            };
            (0..n).map(|_| next()).collect()
        };
        for size in [10, 200_000, 3, 40_000, PART_BYTES, 0] {
            let catalog = pb::Catalog {
                experiments: vec![pb::Experiment { summary: noise(size), ..Default::default() }],
                recipes: vec![],
            };
            store.commit(&[Write::Catalog(catalog.clone())]).unwrap();
            assert_eq!(store.begin().unwrap().catalog, catalog, "{size}");
        }
        // Leftovers of a removed document are no document.
        let name = noise(50_000);
        let worker = |instance: Option<String>| Write::Worker { name: name.clone(), instance };
        store.commit(&[worker(Some("i".into()))]).unwrap();
        store.commit(&[worker(None)]).unwrap();
        assert!(store.begin().unwrap().workers.is_empty());
    });
}

#[test]
fn damage_is_noticed_and_newer_formats_are_left_alone() {
    let kv = Arc::new(MemoryKv::default());
    let store = Store::with(Arc::clone(&kv) as Arc<dyn Kv>);
    store.commit(&[Write::Catalog(pb::Catalog::default())]).unwrap();
    let key = Key::catalog().part(0);
    let whole = kv.get(&key).unwrap().unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        kv.commit(vec![(key.clone(), Some(bytes))]).unwrap();
        let error = store.begin().unwrap_err();
        let expected = if at == 0 {
            matches!(error, Error::Newer { .. })
        } else {
            matches!(error, Error::Damaged { .. })
        };
        assert!(expected, "byte {at}: {error}");
    }
    kv.commit(vec![(key, Some(whole[..whole.len() - 1].to_vec()))]).unwrap();
    assert!(matches!(store.begin(), Err(Error::Damaged { .. })));
}

#[test]
fn key_codes_are_unique_and_keys_sort_as_numbers() {
    let mut codes: Vec<u8> = KINDS.iter().map(|kind| *kind as u8).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), KINDS.len());
    assert!(Key::of(Kind::Sweep).u32(255).bytes() < Key::of(Kind::Sweep).u32(256).bytes());
    // A name that is the beginning of another one is not a prefix of its keys.
    let (a, ab) = (Key::of(Kind::MetricName).text("a"), Key::of(Kind::MetricName).text("ab"));
    assert!(!ab.bytes().starts_with(a.bytes()) && a.bytes() < ab.bytes());
}

fn any_task() -> impl Strategy<Value = TaskKey> {
    let kind = prop_oneof![
        Just(TaskKind::Source),
        (any::<u64>(), any::<u32>())
            .prop_map(|(step, experiment)| TaskKind::Analyse { step, experiment }),
        any::<u32>().prop_map(|index| TaskKind::Trajectory { index }),
        (0..5u64, 0..3u32, 0..3u32).prop_map(|(step, experiment, pair)| TaskKind::Compare {
            step,
            experiment,
            pair
        }),
    ];
    (any::<u32>(), kind).prop_map(|(model, kind)| TaskKey { model, kind })
}

fn any_chunk() -> impl Strategy<Value = pb::MetricChunk> {
    let size = (1..20usize, 0..4u32, 0..3u32);
    size.prop_flat_map(|(n, a, b)| {
        let axes = [("layer", a), ("head", b)].map(|(name, size)| pb::Axis {
            name: name.into(),
            size,
            labels: (0..size).map(|i| format!("{name}{i}")).collect(),
        });
        let values = n * (a * b) as usize;
        (
            proptest::collection::vec(any::<u64>(), n..=n),
            proptest::collection::vec(any::<u64>().prop_map(f64::from_bits), values..=values),
        )
            .prop_map(move |(steps, values)| pb::MetricChunk {
                reading: steps.first().map(|step| pb::Reading {
                    processing: "raw".into(),
                    prepend_bos: Some(step % 2 == 0),
                }),
                metric: "e.m".into(),
                unit: "nats".into(),
                axes: axes.to_vec(),
                steps,
                values,
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn task_keys_sort_and_read_back(a in any_task(), b in any_task()) {
        let key = |task: TaskKey| Key::of(Kind::Task).u32(7).task(task).bytes().to_vec();
        prop_assert_eq!(Reader::of_sweep(&key(a)).unwrap().task().unwrap(), a);
        prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
    }

    #[test]
    fn documents_read_back(raw in proptest::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert_eq!(unpack(b"k", &pack(&raw)).unwrap(), raw);
    }

    #[test]
    fn chunks_read_back_bit_by_bit(chunk in any_chunk()) {
        let encoded = metrics::encode(&chunk).unwrap();
        let columns = metrics::decode(b"k", &unpack(b"k", &encoded.payload).unwrap()).unwrap();
        prop_assert_eq!(columns.steps, chunk.steps);
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&columns.values), bits(&chunk.values));
        prop_assert_eq!((columns.form.axes, columns.form.reading), (chunk.axes, chunk.reading));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        key in proptest::collection::vec(any::<u8>(), 0..80),
        value in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = unpack(&key, &value);
        let _ = metrics::decode(&key, &value);
        let _ = record::sweep(&key, &value);
        let _ = record::task(&key, &value);
        let _ = record::started(&key, &value);
        let _ = record::manifest(&key, &value);
        let _ = record::checkpoint(&key, &value);
        let _ = record::resume(&key, &value);
        let _ = record::log(&key, &value);
        // The same bytes behind a correct frame reach the decoders of a store.
        let kv = Arc::new(MemoryKv::default());
        let mut key = key;
        key.insert(0, 1 + value.first().copied().unwrap_or(0) % 12);
        key.extend([0, 0]);
        kv.commit(vec![(key, Some(pack(&value)))]).unwrap();
        let store = Store::with(kv);
        let _ = store.begin();
        let _ = store.metric_names(1);
        let _ = metrics::SeriesReader::new(&store, 1, "e.m", false).read(|_| true, |_| true);
    }

    #[test]
    fn truncated_and_flipped_chunks_are_errors_not_panics(chunk in any_chunk(), at in any::<usize>()) {
        let payload = metrics::encode(&chunk).unwrap().payload;
        let raw = unpack(b"k", &payload).unwrap();
        let _ = metrics::decode(b"k", &raw[..at % raw.len()]);
        let mut flipped = raw.clone();
        flipped[at % raw.len()] ^= 0xff;
        let _ = metrics::decode(b"k", &flipped);
    }
}

#[test]
fn chunks_that_make_no_sense_are_refused() {
    let good = pb::MetricChunk {
        reading: None,
        metric: "e.m".into(),
        unit: "nats".into(),
        axes: vec![pb::Axis { name: "head".into(), size: 2, labels: vec![] }],
        steps: vec![1, 2],
        values: vec![1.0, 2.0, 3.0, f64::NAN],
    };
    assert!(metrics::encode(&good).is_ok());
    let refused = |change: &dyn Fn(&mut pb::MetricChunk)| {
        let mut chunk = good.clone();
        change(&mut chunk);
        metrics::encode(&chunk).unwrap_err()
    };
    for (change, problem) in [
        (
            &(|c: &mut pb::MetricChunk| c.metric = "m".into()) as &dyn Fn(&mut pb::MetricChunk),
            "not a metric name",
        ),
        (&|c| c.metric = "e.\0m".into(), "not a metric name"),
        (&|c| c.values.truncate(3), "2 steps of 2 values and 3 values"),
        (&|c| c.steps.clear(), "0 steps"),
        (&|c| c.axes[0].labels = vec!["a".into()], "1 labels"),
        (&|c| c.axes[0].size = u32::MAX, "a value of more than"),
        (&|c| c.axes = vec![pb::Axis { size: u32::MAX, ..Default::default() }; 8], "more than"),
        (&|c| c.axes = vec![pb::Axis::default(); 9], "more than 8 axes"),
    ] {
        let found = refused(change);
        assert!(found.contains(problem), "{found} lacks {problem}");
    }
}

/// Rows of a series with two axes, from several tasks and attempts.
#[test]
fn series_come_in_order_with_their_axes_and_only_wanted_models() {
    let store = Store::in_memory();
    let mut writes = Vec::new();
    let mut add = |model: u32, step: u64, value: f64, labels: &[&str]| {
        let kind = TaskKind::Analyse { step, experiment: 0 };
        let task = TaskKey { model, kind };
        let attempt = Attempt(9);
        let chunk = pb::MetricChunk {
            reading: None,
            metric: "e.m".into(),
            unit: "nats".into(),
            axes: vec![pb::Axis {
                name: "tensor".into(),
                size: labels.len() as u32,
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            }],
            steps: vec![step],
            values: vec![value; labels.len()],
        };
        let chunk = metrics::encode(&chunk).unwrap();
        writes.push(Write::Started { sweep: 1, task, attempt, resumed_from: None });
        writes.push(Write::Metrics { sweep: 1, task, attempt, sequence: 1, chunk });
    };
    for model in [2, 0, 1] {
        for step in [300, 100, 200] {
            add(model, step, f64::from(model) + step as f64, &["W_E", "W_U"]);
        }
    }
    add(1, 400, 7.0, &["W_E"]);
    store.commit(&writes).unwrap();
    let read = |latest: bool, wanted: &dyn Fn(u32) -> bool| {
        let mut parts = Vec::new();
        let reader = metrics::SeriesReader::new(&store, 1, "e.m", latest);
        reader
            .read(
                |task| wanted(task.model),
                |part| {
                    parts.push((part.task.model, part.steps, part.values));
                    true
                },
            )
            .unwrap();
        parts
    };
    let all = read(false, &|_| true);
    let steps: Vec<_> = all.iter().map(|part| (part.0, part.1.clone())).collect();
    assert_eq!(
        steps,
        [
            (0, vec![100, 200, 300]),
            (1, vec![100, 200, 300]),
            (1, vec![400]),
            (2, vec![100, 200, 300])
        ]
    );
    assert_eq!(all[0].2, [100.0, 100.0, 200.0, 200.0, 300.0, 300.0]);
    let last = read(true, &|model| model != 0);
    assert_eq!(last, [(1, vec![400], vec![7.0]), (2, vec![300], vec![302.0, 302.0])]);
}

#[test]
fn chunks_that_begin_at_the_same_step_do_not_replace_each_other() {
    let store = Store::in_memory();
    let task = TaskKey { model: 0, kind: TaskKind::Source };
    let attempt = Attempt(1);
    let mut writes = vec![Write::Started { sweep: 1, task, attempt, resumed_from: None }];
    for (sequence, steps) in [(1, [0, 10]), (2, [0, 20])] {
        let chunk = pb::MetricChunk {
            reading: None,
            metric: "r.m".into(),
            unit: String::new(),
            axes: vec![],
            steps: steps.to_vec(),
            values: vec![sequence as f64; 2],
        };
        let chunk = metrics::encode(&chunk).unwrap();
        writes.push(Write::Metrics { sweep: 1, task, attempt, sequence, chunk });
    }
    store.commit(&writes).unwrap();
    store.commit(&writes).unwrap();
    let mut found = Vec::new();
    metrics::SeriesReader::new(&store, 1, "r.m", false)
        .read(
            |_| true,
            |part| {
                found.extend(part.steps.into_iter().zip(part.values));
                true
            },
        )
        .unwrap();
    assert_eq!(found, [(0, 2.0), (10, 1.0), (20, 2.0)]);
}

#[test]
fn long_series_come_in_parts() {
    let store = Store::in_memory();
    let task = TaskKey { model: 0, kind: TaskKind::Source };
    let attempt = Attempt(1);
    let mut writes = vec![Write::Started { sweep: 1, task, attempt, resumed_from: None }];
    for sequence in 0..200u64 {
        let steps: Vec<u64> = (sequence * 1000..(sequence + 1) * 1000).collect();
        let chunk = pb::MetricChunk {
            reading: None,
            metric: "r.m".into(),
            unit: String::new(),
            axes: vec![],
            values: steps.iter().map(|step| (*step as f64).sin()).collect(),
            steps,
        };
        let chunk = metrics::encode(&chunk).unwrap();
        writes.push(Write::Metrics { sweep: 1, task, attempt, sequence, chunk });
    }
    store.commit(&writes).unwrap();
    let (mut steps, mut parts) = (Vec::new(), 0);
    metrics::SeriesReader::new(&store, 1, "r.m", false)
        .read(
            |_| true,
            |part| {
                assert!(part.values.len() <= 1 << 16);
                parts += 1;
                steps.extend(part.steps);
                true
            },
        )
        .unwrap();
    assert!(parts >= 4);
    assert_eq!(steps, (0..200_000).collect::<Vec<_>>());
}

#[test]
fn task_records_survive() {
    let store = Store::in_memory();
    let task = TaskKey { model: 3, kind: TaskKind::Trajectory { index: 1 } };
    let record = TaskRecord {
        outcome: Outcome::Failed,
        epoch: 3,
        attempt: Attempt::new(2, 3),
        reported: true,
        attempts: 2,
        crashes: 1,
        failures: vec![(Attempt(5), pb::Failure { class: 6, message: "NaN".into() })],
        worker: "w".into(),
        finished_at: 17,
        elapsed_ms: 4,
    };
    store.commit(&[Write::Task { sweep: 1, task, record: record.clone() }]).unwrap();
    assert_eq!(store.task(1, task).unwrap(), Some(record));
}
