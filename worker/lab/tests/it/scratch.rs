use crate::{Published, Recorder, run_recipe};
use serde_json::json;
use sweep_lab::{
    CheckpointPlan, Checkpoints, EXPERIMENTS, MemorySink, SeriesTable, TrajectoryInput,
    lens::Device, trajectory,
};
#[test]
fn numbers() {
    let last = 4500;
    let params = json!({"steps": last, "eval_every": 500, "data_seed": 0});
    let plan = CheckpointPlan::every(100, last);
    let seeds = [0, 1];
    let (outcome, mut recorder) =
        run_recipe("modular-addition-mlp", &params, &seeds, &[], &plan, Recorder::new());
    outcome.unwrap();
    for i in 0..seeds.len() {
        let recorded = recorder.seeds.remove(&i).unwrap();
        let mut files = Published::new(recorded.checkpoints);
        for explained in [0.0, 0.2, 0.3, 0.5] {
            let experiment = *EXPERIMENTS.iter().find(|e| e.card().name == "grok-predict").unwrap();
            let mut sink = MemorySink::default();
            let series = SeriesTable::new();
            let checkpoints = Some(&mut files as &mut dyn Checkpoints);
            let input = TrajectoryInput { checkpoints, series: &series, device: Device::Cpu };
            trajectory(experiment, &json!({"explained": explained}), input, &mut sink).unwrap();
            println!(
                "seed {} explained {explained}: grok {:?} lead errors {:?} n {:?}",
                seeds[i],
                sink.scalar("grok_step", last),
                sink.metrics["error_at_lead"][&last].data,
                sink.metrics["n_predictions"][&last].data
            );
            for step in (0..=3500).step_by(250).map(|s| s / 100 * 100) {
                println!(
                    "  {step} restricted {:.4} test {:.4} pred {:.0?}",
                    sink.scalar("restricted_loss", step).unwrap(),
                    sink.scalar("test_loss", step).unwrap(),
                    sink.metrics["predicted_step"][&step].data
                );
            }
        }
        let experiment = *EXPERIMENTS.iter().find(|e| e.card().name == "frequency-choice").unwrap();
        let mut sink = MemorySink::default();
        let series = SeriesTable::new();
        let checkpoints = Some(&mut files as &mut dyn Checkpoints);
        let input = TrajectoryInput { checkpoints, series: &series, device: Device::Cpu };
        trajectory(experiment, &json!({}), input, &mut sink).unwrap();
        for name in ["n_final", "n_births", "n_deaths", "n_switches"] {
            println!("{name} {:?}", sink.scalar(name, last));
        }
        println!(
            "{:?} {:?} {:?}",
            sink.metrics["correlation"][&last].data,
            sink.metrics["birth_step"][&last].data,
            sink.metrics["n_neurons_frequency"][&last].data
        );
    }
}
