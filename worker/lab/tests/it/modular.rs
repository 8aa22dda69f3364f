//! The perceptron on modular addition: memorises, builds the circuit in secret, groks (check 11).

use serde_json::json;
use sweep_lab::{
    CheckpointPlan, Checkpoints, EXPERIMENTS, MemorySink, SeriesTable, TrajectoryInput,
    lens::Device, trajectory,
};

use crate::{Published, Recorder, run_recipe};

fn follow(name: &str, files: &mut Published, params: &serde_json::Value) -> MemorySink {
    let experiment = *EXPERIMENTS.iter().find(|e| e.card().name == name).unwrap();
    let mut sink = MemorySink::default();
    let series = SeriesTable::new();
    let checkpoints = Some(files as &mut dyn Checkpoints);
    let input = TrajectoryInput { checkpoints, series: &series, device: Device::Cpu };
    trajectory(experiment, params, input, &mut sink).unwrap();
    sink
}

#[test]
fn perceptron_groks_as_measured_elsewhere() {
    let params = json!({"steps": 4500, "eval_every": 250});
    let plan = CheckpointPlan::every(250, 4500);
    let (outcome, mut recorder) =
        run_recipe("modular-addition-mlp", &params, &[0], &[], &plan, Recorder::new());
    outcome.unwrap();
    let recorded = recorder.seeds.remove(&0).unwrap();
    let mut files = Published::new(recorded.checkpoints);
    // All frequencies are key, as in the reference.
    let phases = follow("grokking-phases", &mut files, &json!({"threshold": 0.0}));
    let last = |name: &str| phases.scalar(name, 4500).unwrap();
    let uniform = 31f64.ln();
    let start = phases.series("train_loss")[0].1;
    assert!((start - uniform).abs() < 0.2, "starts near {uniform}: {start}");
    assert!(last("memorised_step") <= 1000.0, "t_mem {}", last("memorised_step"));
    let t_gen = last("generalised_step");
    assert!((2000.0..=4500.0).contains(&t_gen), "t_gen {t_gen}");
    let restricted = phases.series("restricted_loss");
    let at_1500 = restricted.iter().find(|point| point.0 == 1500).unwrap().1;
    assert!(at_1500 < 0.05, "the circuit answers long before the model does: {at_1500}");
    let turn = last("circuit_formation_step");
    assert!((750.0..=2500.0).contains(&turn), "excluded loss turns at {turn}");
    let norm = |step: u64| recorded.metrics[&("weight_norm".to_owned(), step)];
    let peak = (0..=18).map(|i| i * 250).max_by(|&a, &b| norm(a).total_cmp(&norm(b))).unwrap();
    assert!((500..=3500).contains(&peak), "weight norm peaks at {peak}");
    for of in ["weights", "logits"] {
        let found = follow("pca", &mut files, &json!({"of": of}));
        let evr = &found.metrics["evr"][&4500].data;
        assert!(evr[0] + evr[1] > 0.85, "{of} {evr:?}");
    }
}
