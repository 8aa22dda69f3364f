//! `integrity` and `integrity-report` end to end: known answers, and defects planted into synthetic and into
//! really trained trajectories, each of which is one finding while clean ones have none.

use std::collections::BTreeMap;

use rand_distr::{Distribution, StandardNormal};
use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, AnyExperiment, CheckpointPlan, Checkpoints, Class, EXPERIMENTS, FileIdentity,
    MemorySink, Result, SeriesTable, StoredTensors, Subject, TrajectoryInput, analyse,
    lens::{
        ActFn, Config, Device, Kind, Normalization, Tensor, Transformer, Weights,
        checkpoint::{self, Checkpoint},
        tensor_file,
    },
    random, trajectory,
};

use crate::{Published, Recorder, experiments::add_to_series, run, small_params};

fn find(name: &str) -> &'static dyn AnyExperiment {
    *EXPERIMENTS.iter().find(|experiment| experiment.card().name == name).unwrap()
}

/// Checkpoints in memory, one per step.
struct Stored {
    config: Config,
    steps: Vec<u64>,
    weights: Vec<Weights>,
}

impl Checkpoints for Stored {
    fn steps(&self) -> &[u64] {
        &self.steps
    }

    fn load(&mut self, step: u64) -> Result<Checkpoint> {
        let index = self.steps.iter().position(|other| *other == step).unwrap();
        let bytes = checkpoint::encode(&self.config, &self.weights[index], step, &Json::Null)?;
        Ok(checkpoint::decode("checkpoint", &bytes)?)
    }
}

impl Stored {
    fn read(published: &Published) -> Self {
        let all: Vec<Checkpoint> = published
            .steps
            .iter()
            .map(|step| checkpoint::decode("checkpoint", &published.files[step]).unwrap())
            .collect();
        let config = all[0].config.clone();
        let weights = all.into_iter().map(|checkpoint| checkpoint.weights).collect();
        Self { config, steps: published.steps.clone(), weights }
    }

    fn remove(&mut self, index: usize) {
        self.steps.remove(index);
        self.weights.remove(index);
    }

    fn copy(&mut self, to: usize, from: usize) {
        self.weights[to] = self.weights[from].copy();
    }

    fn cast(&mut self, index: usize, kind: Kind) {
        self.weights[index] = self.weights[index].to_kind(kind);
    }

    fn analyse(&mut self, index: usize) -> MemorySink {
        let here = self.load(self.steps[index]).unwrap();
        let model = Transformer::new(here.config.clone(), here.weights.shallow_clone()).unwrap();
        let previous =
            index.checked_sub(1).map(|before| (self.steps[before], &self.weights[before]));
        let subject =
            Subject { init: Some(&self.weights[0]), previous, ..Subject::of(&here, &model) };
        let mut sink = MemorySink::default();
        let (experiment, params) = (find("integrity"), &Json::Null);
        let mut jobs = [AnalyseJob { experiment, params, sink: &mut sink }];
        analyse(&mut jobs, &subject).remove(0).unwrap();
        sink
    }

    fn report_with(&mut self, params: &Json) -> MemorySink {
        let mut series = SeriesTable::new();
        for index in 0..self.steps.len() {
            let sink = self.analyse(index);
            add_to_series(&mut series, find("integrity").card(), sink);
        }
        let input =
            TrajectoryInput { checkpoints: Some(self), series: &series, device: Device::Cpu };
        let mut sink = MemorySink::default();
        trajectory(find("integrity-report"), params, input, &mut sink).unwrap();
        sink
    }

    /// Kinds and steps of all findings.
    fn findings(&mut self) -> Vec<(String, Vec<u64>)> {
        findings(&self.report_with(&Json::Null))
    }
}

fn findings(sink: &MemorySink) -> Vec<(String, Vec<u64>)> {
    let report: Json = serde_json::from_slice(&sink.artifacts["integrity-report.json"]).unwrap();
    let found: Vec<(String, Vec<u64>)> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let steps = finding["steps"].as_array().unwrap().iter().map(|s| s.as_u64().unwrap());
            (finding["kind"].as_str().unwrap().to_owned(), steps.collect())
        })
        .collect();
    let last = *sink.metrics["n_flags"].keys().next_back().unwrap();
    assert_eq!(sink.scalar("n_flags", last), Some(found.len() as f64));
    assert_eq!(sink.metrics["flags"][&last].data.iter().sum::<f64>(), found.len() as f64);
    found
}

fn of(kind: &str, steps: &[u64]) -> (String, Vec<u64>) {
    (kind.to_owned(), steps.to_vec())
}

fn tiny() -> Config {
    Config {
        act_fn: ActFn::Gelu,
        normalization: Normalization::Ln,
        final_normalization: Normalization::Ln,
        d_mlp: 48,
        ..Config::toy(2, 24, 2, 50, 16)
    }
}

fn noise(seed: u64, purpose: &str, shape: &[i64]) -> Tensor {
    let mut rng = random::stream(seed, purpose);
    let n = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..n).map(|_| StandardNormal.sample(&mut rng)).collect();
    Tensor::from_slice(&values).view(shape)
}

/// A training that drifts and diffuses, slowing down or not.
fn synthetic(steps: &[u64], drift: f64, diffusion: f64, slowing: bool, seed: u64) -> Stored {
    let config = tiny();
    let total = *steps.last().unwrap() as f64;
    let time = |step: u64| {
        let time = step as f64 / total;
        if slowing { (20.0 * time).ln_1p() / 21f64.ln() } else { time }
    };
    let mut weights: Vec<Weights> = steps.iter().map(|_| Weights::new()).collect();
    for parameter in config.parameters() {
        let draw =
            |what: &str| noise(seed, &format!("{}/{what}", parameter.name), &parameter.shape);
        let start = draw("start") * 0.2 + f64::from(u8::from(parameter.is_norm_weight));
        let direction = draw("direction") * drift;
        let mut walk = start.zeros_like();
        let mut before = time(steps[0]);
        for (index, (&step, into)) in steps.iter().zip(&mut weights).enumerate() {
            let now = time(step);
            walk += draw(&format!("walk/{index}")) * (diffusion * (now - before).sqrt());
            before = now;
            into.insert(parameter.name.clone(), &start + &direction * now + &walk);
        }
    }
    Stored { config, steps: steps.to_vec(), weights }
}

fn every(by: u64, last: u64) -> Vec<u64> {
    (0..=last).step_by(by as usize).collect()
}

fn pythia_like() -> Vec<u64> {
    let powers = (0..10).map(|k| 1 << k);
    std::iter::once(0).chain(powers).chain((1000..=20_000).step_by(1000)).collect()
}

/// The defects of acceptance check 22, planted together; returns what has to be found.
fn plant(
    stored: &mut Stored,
    [copied, swapped, cast, missing]: [usize; 4],
    lag: usize,
) -> Vec<(String, Vec<u64>)> {
    let steps = stored.steps.clone();
    stored.copy(copied, copied - 1);
    stored.weights.swap(swapped, swapped + lag);
    stored.cast(cast, Kind::Half);
    stored.remove(missing);
    vec![
        of("duplicate", &[steps[copied - 1], steps[copied]]),
        of("swap", &[steps[swapped], steps[swapped + lag]]),
        of("gap", &[steps[missing]]),
        of("dtype-change", &[steps[cast]]),
    ]
}

#[test]
fn four_planted_defects_are_four_findings_and_a_clean_trajectory_has_none() {
    tch::set_num_threads(1);
    for (drift, diffusion, slowing) in
        [(0.3, 0.0, false), (0.0, 0.3, false), (0.3, 0.2, false), (0.3, 0.05, true)]
    {
        for (steps, places) in [
            (every(100, 2000), [4, 9, 13, 17]),
            (every(1000, 11_000), [3, 5, 8, 9]),
            (pythia_like(), [14, 18, 23, 27]),
        ] {
            let name = format!("{drift} {diffusion} {slowing} {} steps", steps.len());
            let mut stored = synthetic(&steps, drift, diffusion, slowing, steps.len() as u64);
            assert_eq!(stored.findings(), [], "{name}");
            let expected = plant(&mut stored, places, 1);
            assert_eq!(stored.findings(), expected, "{name}");
        }
    }
}

#[test]
fn each_defect_alone_is_one_finding() {
    tch::set_num_threads(1);
    let steps = every(100, 2000);
    let fresh = || synthetic(&steps, 0.3, 0.2, false, 5);
    let mut stored = fresh();
    stored.weights.swap(6, 12);
    assert_eq!(stored.findings(), [of("swap", &[600, 1200])]);
    // The weights of a later checkpoint under an early label; the report says where they belong.
    let mut stored = fresh();
    stored.copy(4, 15);
    let sink = stored.report_with(&Json::Null);
    assert_eq!(findings(&sink), [of("duplicate", &[400, 1500])]);
    let text = String::from_utf8(sink.artifacts["integrity-report.md"].clone()).unwrap();
    assert!(
        text.contains("| duplicate | 400, 1500 | equal weights, those of step 1500 |"),
        "{text}"
    );
    assert_eq!(sink.scalar("duplicate_of", 1500), Some(400.0));
    assert!(sink.scalar("duplicate_of", 300).unwrap().is_nan());
    assert_eq!((sink.scalar("flagged", 1500), sink.scalar("flagged", 300)), (Some(1.0), Some(0.0)));
    // Not equal, only near.
    let mut stored = fresh();
    stored.copy(4, 15);
    for (_, tensor) in stored.weights[4].iter() {
        let mut tensor = tensor.shallow_clone();
        tensor += noise(1, "blur", &tensor.size()) * 0.01;
    }
    assert_eq!(stored.findings(), [of("swap", &[400])]);
    // One shard of the last checkpoint.
    let mut stored = fresh();
    for name in ["embed.W_E", "blocks.0.attn.W_Q", "blocks.0.ln1.w"] {
        let last = stored.weights[20].get(name).unwrap().copy();
        stored.weights[10].insert(name, last);
    }
    assert_eq!(stored.findings(), [of("copied-tensors", &[1000, 2000])]);
    let mut stored = fresh();
    let mut tensor = stored.weights[7].get("embed.W_E").unwrap().get(3);
    let _filled = tensor.fill_(f64::NAN);
    assert_eq!(stored.findings(), [of("non-finite", &[700])]);
    let mut stored = fresh();
    let mut tensor = stored.weights[7].get("embed.W_E").unwrap().shallow_clone();
    tensor *= 2.0;
    assert_eq!(stored.findings(), [of("embedding-norm", &[700])]);
    // Half of the steps, found by what is expected only.
    let mut stored = fresh();
    for index in [20, 19, 1] {
        stored.remove(index);
    }
    assert_eq!(stored.findings(), []);
    let sink = stored.report_with(&json!({"expected": steps}));
    assert_eq!(findings(&sink), [of("gap", &[100]), of("gap", &[1900, 2000])]);
    assert_eq!(
        (sink.scalar("missing_before", 200), sink.scalar("missing_before", 300)),
        (Some(1.0), Some(0.0))
    );
}

#[test]
fn known_defects_of_published_trajectories() {
    tch::set_num_threads(1);
    // The first two steps are equal: the learning rate begins at zero.
    let mut stored = synthetic(&pythia_like(), 0.3, 0.2, false, 1);
    stored.copy(1, 0);
    assert_eq!(stored.findings(), [of("duplicate", &[0, 1])]);
    // The first checkpoint in single, all others in half precision.
    let mut stored = synthetic(&every(100, 1500), 0.3, 0.2, false, 2);
    for index in 1..16 {
        stored.cast(index, Kind::Half);
    }
    assert_eq!(stored.findings(), [of("dtype-change", &[0])]);
    // Final weights under most labels.
    let mut stored = synthetic(&pythia_like(), 0.3, 0.2, false, 3);
    let last = stored.steps.len() - 1;
    for index in 0..20 {
        stored.copy(index, last);
    }
    let mut expected = stored.steps[..20].to_vec();
    expected.push(stored.steps[last]);
    let sink = stored.report_with(&Json::Null);
    assert_eq!(findings(&sink), [of("duplicate", &expected)]);
    let text = String::from_utf8(sink.artifacts["integrity-report.md"].clone()).unwrap();
    assert!(text.contains("those of step 20000"), "{text}");
}

#[test]
fn trained_trajectories_are_clean_until_they_are_spoilt() {
    let schedules = [
        // The learning rate begins at zero, so that steps 0 and 1 are equal.
        (1..=40).collect(),
        every(10, 400),
        (0..9).map(|k| 1 << k).chain([300, 400]).collect(),
        vec![0, 20, 40, 60, 80, 100, 200, 300, 400],
    ];
    for steps in schedules {
        let mut params = small_params(*steps.iter().max().unwrap());
        params["eval_every"] = json!(50);
        let plan = CheckpointPlan::at(steps);
        let (outcome, recorder) = run(&params, &[0, 1, 2], &[], &plan, Recorder::new());
        outcome.unwrap();
        for (seed, recorded) in recorder.seeds {
            let published = Published::new(recorded.checkpoints);
            let mut stored = Stored::read(&published);
            let name = format!("seed {seed}, {:?}", stored.steps);
            assert_eq!(stored.findings(), [], "{name}");
            let [early, late] = [stored.steps.len() / 4, stored.steps.len() * 2 / 3];
            stored.weights.swap(early, late);
            let expected = of("swap", &[stored.steps[early], stored.steps[late]]);
            let found = stored.findings();
            // Nine checkpoints do not always suffice; they never lead to another claim.
            let is_short = stored.steps.len() < 10 && found.is_empty();
            assert!(is_short || found == [expected], "{name}: {found:?}");
            let mut stored = Stored::read(&published);
            stored.copy(early, late);
            let expected = of("duplicate", &[stored.steps[early], stored.steps[late]]);
            assert_eq!(stored.findings(), [expected], "{name}");
        }
    }
}

#[test]
fn distances_are_what_they_say() {
    let mut stored = synthetic(&every(100, 800), 0.3, 0.2, false, 4);
    let exact = stored.report_with(&json!({"exact": true}));
    let estimate = stored.report_with(&Json::Null);
    let flat = |weights: &Weights| {
        let parts: Vec<Tensor> =
            weights.iter().map(|(_, t)| t.to_kind(Kind::Double).flatten(0, -1)).collect();
        Tensor::cat(&parts, 0)
    };
    let norm = |x: &Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
    let all: Vec<Tensor> = stored.weights.iter().map(flat).collect();
    for (index, step) in stored.steps.iter().enumerate() {
        let distance = norm(&(&all[index] - &all[8])) / norm(&all[8]);
        let cosine = all[index].dot(&all[8]).double_value(&[]) / norm(&all[index]) / norm(&all[8]);
        let of = |sink: &MemorySink, name: &str| sink.scalar(name, *step).unwrap();
        assert!((of(&exact, "distance_final") - distance).abs() < 1e-12);
        assert!((of(&exact, "cosine_final") - cosine).abs() < 1e-12);
        assert!((of(&estimate, "distance_final") / distance - 1.0).abs() < 0.12 || distance == 0.0);
        assert!((of(&estimate, "cosine_final") - cosine).abs() < 0.12);
        let from_first = norm(&(&all[index] - &all[0])) / norm(&all[0]);
        let found = of(&estimate, "distance_first");
        assert!((found / from_first - 1.0).abs() < 0.12 || from_first == 0.0);
    }
    // Per checkpoint, against the one before and the first.
    let sink = stored.analyse(5);
    let (here, before, first) = (&stored.weights[5], &stored.weights[4], &stored.weights[0]);
    let close =
        |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    for (other, distance, cosine, total, index) in [
        (before, "distance_previous", "cosine_previous", "distance_previous_total", 4),
        (first, "distance_init", "cosine_init", "distance_init_total", 0),
    ] {
        for (place, (name, tensor)) in here.iter().enumerate() {
            let (a, b) =
                (tensor.to_kind(Kind::Double), other.get(name).unwrap().to_kind(Kind::Double));
            close(sink.metrics[distance][&500].data[place], norm(&(&a - &b)) / norm(&a));
            let dot = (&a * &b).sum(Kind::Double).double_value(&[]);
            close(sink.metrics[cosine][&500].data[place], dot / norm(&a) / norm(&b));
            assert_eq!(sink.metrics[cosine][&500].label(0, place), name);
        }
        close(sink.scalar(total, 500).unwrap(), norm(&(&all[5] - &all[index])) / norm(&all[5]));
    }
    let hash = checkpoint::weights_hash(here).unwrap();
    let fingerprint = u64::from_str_radix(&hash[..12], 16).unwrap() as f64;
    assert_eq!(sink.scalar("fingerprint", 500), Some(fingerprint));
    assert_eq!(sink.scalar("dtype_bits", 500), Some(32.0));
    assert_eq!(sink.scalar("dtype_changed", 500), Some(0.0));
    assert_eq!(sink.scalar("n_bytes", 500), Some(4.0 * here.n_params() as f64));
    let report: Json = serde_json::from_slice(&sink.artifacts["integrity.json"]).unwrap();
    assert_eq!(report["weights_sha256"], json!(hash));
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), here.len());
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        let hash = tensor_file::tensor_hash(name, here.get(name).unwrap()).unwrap();
        assert_eq!((&tensor["sha256"], &tensor["dtype"]), (&json!(hash), &json!("F32")));
        assert_eq!(tensor["shape"], json!(here.get(name).unwrap().size()));
    }
    assert_eq!(report["step"], 500);
}

/// Half-precision weights with a mask and an index beside them, as files of published models have.
struct HalfFile(BTreeMap<String, Tensor>);

impl HalfFile {
    fn of(weights: &Weights) -> Self {
        let mut tensors: BTreeMap<String, Tensor> = weights
            .iter()
            .map(|(name, tensor)| (format!("transformer.{name}"), tensor.to_kind(Kind::Half)))
            .collect();
        tensors.insert("mask".to_owned(), Tensor::ones([100_000], (Kind::Uint8, Device::Cpu)));
        tensors.insert("masked_bias".to_owned(), Tensor::from_slice(&[-1e9f32]));
        Self(tensors)
    }
}

impl StoredTensors for HalfFile {
    fn names(&self) -> Vec<String> {
        self.0.keys().rev().cloned().collect()
    }

    fn kind(&self, name: &str) -> Result<Kind> {
        Ok(self.0[name].kind())
    }

    fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.0[name].size())
    }

    fn sha256(&self, name: &str) -> Result<String> {
        Ok(tensor_file::tensor_hash(name, &self.0[name])?)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.0[name].shallow_clone())
    }
}

#[test]
fn files_say_how_weights_were_stored() {
    let mut stored = synthetic(&every(100, 200), 0.3, 0.2, false, 6);
    let here = stored.load(100).unwrap();
    let model = Transformer::new(here.config.clone(), here.weights.shallow_clone()).unwrap();
    let file = HalfFile::of(&here.weights);
    let files =
        [FileIdentity { name: "model.bin".to_owned(), bytes: 12_345, sha256: "00".to_owned() }];
    let previous = Some((0, &stored.weights[0]));
    let base =
        Subject { previous, files: &files, stored: Some(&file), ..Subject::of(&here, &model) };
    let before: [Option<&dyn StoredTensors>; 3] = [None, Some(&file), Some(&stored.weights[0])];
    for (previous_stored, changed) in before.into_iter().zip([None, Some(0.0), Some(1.0)]) {
        let subject = Subject { previous_stored, ..base };
        let mut sink = MemorySink::default();
        let (experiment, params) = (find("integrity"), &Json::Null);
        let mut jobs = [AnalyseJob { experiment, params, sink: &mut sink }];
        analyse(&mut jobs, &subject).remove(0).unwrap();
        assert_eq!(sink.scalar("dtype_changed", 100), changed);
        assert_eq!(sink.scalar("n_bytes", 100), Some(12_345.0));
        assert_eq!(sink.scalar("dtype_bits", 100), Some(16.0));
        assert_eq!(sink.scalar("n_tensors", 100), Some(here.weights.len() as f64 + 2.0));
        let elements = &sink.metrics["elements"][&100];
        assert_eq!(elements.labels, [Some(vec!["F16".to_owned(), "F32".to_owned()])]);
        assert_eq!(elements.data, [here.weights.n_params() as f64, 1.0]);
        let report: Json = serde_json::from_slice(&sink.artifacts["integrity.json"]).unwrap();
        assert_eq!(
            report["files"],
            json!([{"name": "model.bin", "bytes": 12_345, "sha256": "00"}])
        );
        assert_eq!(report["tensors"][0]["name"], "mask");
        assert_eq!(report["tensors"][0]["dtype"], "U8");
        assert_eq!(report["weights"].as_object().unwrap().len(), here.weights.len());
        // No weights before training were given.
        assert!(!sink.metrics.contains_key("distance_init"));
    }
}

#[test]
fn checkpoints_without_analysis_are_named_and_no_gap() {
    let mut stored = synthetic(&every(100, 1000), 0.3, 0.2, false, 7);
    let mut series = SeriesTable::new();
    for index in (0..11).filter(|index| *index != 4) {
        let sink = stored.analyse(index);
        add_to_series(&mut series, find("integrity").card(), sink);
    }
    let input =
        TrajectoryInput { checkpoints: Some(&mut stored), series: &series, device: Device::Cpu };
    let mut sink = MemorySink::default();
    trajectory(find("integrity-report"), &Json::Null, input, &mut sink).unwrap();
    assert_eq!(findings(&sink), []);
    let report: Json = serde_json::from_slice(&sink.artifacts["integrity-report.json"]).unwrap();
    assert_eq!(report["not_examined"], json!([400]));
    // Nobody knows of the checkpoint: then it is missing.
    let input = TrajectoryInput { checkpoints: None, series: &series, device: Device::Cpu };
    let mut sink = MemorySink::default();
    trajectory(find("integrity-report"), &Json::Null, input, &mut sink).unwrap();
    assert_eq!(findings(&sink), [of("gap", &[400])]);
    let input = TrajectoryInput { checkpoints: None, series: &series, device: Device::Cpu };
    let params = json!({"exact": true});
    let error = trajectory(find("integrity-report"), &params, input, &mut sink).unwrap_err();
    assert_eq!(error.class(), Class::Input);
}
