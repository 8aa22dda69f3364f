//! The perceptron on modular addition: memorises, builds the circuit in secret, groks; two of them lie in one
//! basin (checks 11 and 12).

use serde_json::json;
use sweep_lab::{
    CheckpointPlan, Checkpoints, EXPERIMENTS, MemorySink, Result, SeriesTable, TrajectoryInput,
    data::modular::{Form, Operation, Pairs},
    lens::{Config, Device, Kind, Run, Transformer, Weights, checkpoint},
    random, rebasin, trajectory,
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

/// Mean loss of a model on its training and its other pairs.
fn losses(config: &Config, weights: Weights, pairs: &Pairs) -> Result<Vec<f64>> {
    let model = Transformer::new(config.clone(), weights)?;
    let logits = model.forward(&pairs.tokens, &Run::LAST_POSITION, &mut ()).squeeze_dim(1);
    let nll = logits.log_softmax(-1, Kind::Double).gather(1, &pairs.labels.unsqueeze(1), false);
    let mean = |rows| -nll.index_select(0, rows).mean(Kind::Double).double_value(&[]);
    Ok(vec![mean(&pairs.train), mean(&pairs.test)])
}

#[test]
fn perceptrons_grok_as_measured_elsewhere_and_connect_once_matched() {
    let last = 4000;
    let params = json!({"steps": last, "eval_every": 250, "data_seed": 0});
    let plan = CheckpointPlan::every(250, last);
    let (outcome, mut recorder) =
        run_recipe("modular-addition-mlp", &params, &[0, 1], &[], &plan, Recorder::new());
    outcome.unwrap();
    let (first, second) = (recorder.seeds.remove(&0).unwrap(), recorder.seeds.remove(&1).unwrap());
    let decode = |files: &std::collections::BTreeMap<u64, Vec<u8>>| {
        checkpoint::decode("checkpoint", &files[&last]).unwrap()
    };
    let (a, b) = (decode(&first.checkpoints), decode(&second.checkpoints));
    let mut files = Published::new(first.checkpoints);
    // All frequencies are key, as in the reference.
    let phases = follow("grokking-phases", &mut files, &json!({"threshold": 0.0}));
    let of = |name: &str| phases.scalar(name, last).unwrap();
    let uniform = 31f64.ln();
    let start = phases.series("train_loss")[0].1;
    assert!((start - uniform).abs() < 0.2, "starts near {uniform}: {start}");
    assert!(of("memorised_step") <= 1000.0, "t_mem {}", of("memorised_step"));
    let t_gen = of("generalised_step");
    assert!((2500.0..=4500.0).contains(&t_gen), "t_gen {t_gen}");
    let restricted = phases.series("restricted_loss");
    let at_1500 = restricted.iter().find(|point| point.0 == 1500).unwrap().1;
    assert!(at_1500 < 0.01, "the circuit answers long before the model does: {at_1500}");
    let turn = of("circuit_formation_step");
    assert!((1000.0..=2500.0).contains(&turn), "excluded loss turns at {turn}");
    let norm = |step: u64| first.metrics[&("weight_norm".to_owned(), step)];
    let peak = (0..=last / 250).map(|i| i * 250).max_by(|&a, &b| norm(a).total_cmp(&norm(b)));
    assert!((1500..=2500).contains(&peak.unwrap()), "weight norm peaks at {peak:?}");
    for of in ["weights", "logits"] {
        let found = follow("pca", &mut files, &json!({"of": of}));
        let evr = &found.metrics["evr"][&last].data;
        assert!(evr[0] + evr[1] > 0.85, "{of} {evr:?}");
    }
    // What is predicted at a step stays the same, bit for bit, if nothing later ever happens.
    let predict = |until: u64| {
        let known = files.files.range(..=until).map(|(step, file)| (*step, file.clone()));
        let mut known = Published::new(known.collect());
        follow("grok-predict", &mut known, &json!({})).metrics.remove("predicted_step").unwrap()
    };
    let (whole, early) = (predict(last), predict(2000));
    let numbers = |values: &sweep_lab::Value| -> Vec<u64> {
        values.data.iter().map(|number| number.to_bits()).collect()
    };
    assert_eq!(early.len(), 9);
    for (step, values) in &early {
        assert_eq!(numbers(values), numbers(&whole[step]), "at {step}");
    }
    assert!(early[&2000].data[0].is_finite(), "the circuit's loss foretells something by then");
    // Two seeds: far apart as they are, one basin once neurons are matched.
    let pairs = Pairs::new(Operation::Add, Form::OneHot, 31, 0.7, 0, Device::Cpu);
    let barriers = |b: &Weights| {
        rebasin::line(&a.weights, b, rebasin::N_POINTS, |weights| {
            losses(&a.config, weights, &pairs)
        })
        .unwrap()
    };
    let naive = barriers(&b.weights);
    let mut rng = random::stream(0, "match");
    let matched = rebasin::weight_matching(&a.config, &a.weights, &b.weights, &mut rng).unwrap();
    let after = barriers(&matched.weights);
    let heights = [&naive[0], &naive[1], &after[0], &after[1]].map(|barrier| barrier.height);
    assert!(naive[1].height > 1.5 && after[1].height < 0.15, "{heights:?}");
    assert!(after[0].height < 0.02 && naive[0].height > 0.1, "{heights:?}");
    assert!((after[1].losses[24] - naive[1].losses[24]).abs() < 1e-4, "the function is kept");
}
