//! Addition learns its digits one by one, each with a drop of its own (check 13, on three digits).

use std::collections::BTreeMap;

use serde_json::json;
use sweep_lab::{
    CheckpointPlan, EXPERIMENTS, MemorySink, Series, SeriesTable, TrajectoryInput, Value,
    lens::Device, trajectory,
};

use crate::{Recorded, Recorder, run_recipe};

/// The loss of every digit as the coordinator would hand it out.
fn series(recorded: &Recorded, n_digits: usize) -> SeriesTable {
    let mut points: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for digit in 0..=n_digits {
        let name = format!("loss_digit[{digit}]");
        for ((_, step), &loss) in recorded.metrics.iter().filter(|((other, _), _)| *other == name) {
            points.entry(*step).or_default().push(loss);
        }
    }
    let points = points.into_iter().map(|(step, losses)| (step, Value::vector(losses))).collect();
    let axes = vec!["digit".to_owned()];
    SeriesTable::from([(
        "addition.loss_digit".to_owned(),
        Series { unit: "nats".to_owned(), axes, points },
    )])
}

fn phases(params: &serde_json::Value, seed: u64) -> (MemorySink, u64) {
    let plan = CheckpointPlan::default();
    let (outcome, mut recorder) =
        run_recipe("addition", params, &[seed], &[], &plan, Recorder::new());
    outcome.unwrap();
    let recorded = recorder.seeds.remove(&0).unwrap();
    let series = series(&recorded, params["n_digits"].as_u64().unwrap() as usize);
    let experiment = *EXPERIMENTS.iter().find(|e| e.card().name == "digit-phases").unwrap();
    let input = TrajectoryInput { checkpoints: None, series: &series, device: Device::Cpu };
    let mut sink = MemorySink::default();
    let params_of_phases = json!({"metric": "addition.loss_digit"});
    trajectory(experiment, &params_of_phases, input, &mut sink).unwrap();
    (sink, params["steps"].as_u64().unwrap())
}

#[test]
fn digits_are_learned_from_the_front_and_by_drops_of_their_own() {
    let params = json!({
        "n_digits": 3, "d_model": 64, "d_mlp": 256, "lr": 3e-3, "steps": 1000, "eval_every": 25,
        "eval_size": 512,
    });
    let (found, last) = phases(&params, 0);
    let of = |name: &str| found.metrics[name][&last].data.clone();
    let (half, rank) = (of("half_step"), of("rank"));
    assert!(rank[0] == 1.0 && rank[1] == 2.0, "leading digits first: {half:?}");
    assert!(half[2] > 1.5 * half[1] && half[3] > 1.5 * half[1], "then the others: {half:?}");
    assert!(of("verdict")[2..].iter().all(|&verdict| verdict == 1.0), "{:?}", of("daic"));
    assert!(found.scalar("n_separate", last).unwrap() >= 3.0);
}

#[test]
fn strong_weight_decay_leaves_digits_unlearned() {
    // The negative control at full size takes minutes; with three digits one stays behind as long.
    let params = json!({
        "n_digits": 3, "d_model": 64, "d_mlp": 256, "weight_decay": 1.0, "steps": 900,
        "eval_every": 50, "eval_size": 512,
    });
    let (found, last) = phases(&params, 0);
    let learned = found.scalar("n_learned", last).unwrap();
    assert!(learned <= 2.0, "{learned} digits were learned: {:?}", found.metrics["learned_step"]);
}
