//! Every experiment on a small trained model: emits exactly what it declares, the same each time, and stops
//! when cancelled. The executor: shared passes, contained failures.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnalyseJob, Analysis, AnyExperiment, Card, CheckpointPlan, Class, Context, EXPERIMENTS, Error,
    Experiment, Inputs, MemorySink, MetricDef, NoParams, Observer, ParamKind, Requires, Result,
    Series, SeriesTable, Stage, Subject, TokenSet, TrajectoryInput, Unit, Value, analyse,
    lens::{
        Device, Hook, Site, Tensor, Transformer,
        checkpoint::{self, Checkpoint},
    },
    trajectory,
};

use crate::{Published, Recorder, run_recipe, small_params};

pub(super) fn trained(steps: u64, every: u64) -> Published {
    trained_by("modular-addition", steps, every)
}

/// A small model of a recipe that some experiment asks for.
fn trained_by(recipe: &str, steps: u64, every: u64) -> Published {
    let params = match recipe {
        "addition" => json!({
            "n_digits": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24, "lr": 1e-2, "eval_size": 200,
            "steps": steps,
        }),
        "finetune" => json!({
            "both": ["p=11", "d_mlp=20", "lr=0.01"], "switch_step": steps / 2, "steps": steps,
        }),
        "modular-addition-mlp" => json!({ "p": 11, "d_mlp": 20, "lr": 1e-2, "steps": steps }),
        "induction" => json!({
            "d_model": 16, "n_heads": 2, "d_vocab": 12, "n_ctx": 14, "period_min": 3, "period_max": 6,
            "batch": 4, "eval_sequences": 8, "normalization": "ln", "steps": steps,
        }),
        _ => small_params(steps),
    };
    let plan = CheckpointPlan::every(every, steps);
    let (outcome, mut recorder) = run_recipe(recipe, &params, &[4], &[], &plan, Recorder::new());
    outcome.unwrap();
    Published::new(recorder.seeds.remove(&0).unwrap().checkpoints)
}

/// Recipes whose models an experiment is tried on.
pub(super) fn recipes_of(card: &Card) -> Vec<&'static str> {
    let all = ["modular-addition", "modular-addition-mlp", "addition", "finetune", "induction"];
    let fits = |name: &&str| match card.requires.recipes {
        // The model of `induction` has no MLP.
        [] if card.requires.mlp => *name == "addition" || *name == "modular-addition",
        // Three positions are too few for most that needs attention.
        [] if card.requires.min_layers > 0 => *name == "induction",
        // A perceptron reads sets of two tokens, the example prompts have three.
        [] if card.params.iter().any(|def| def.name == "tokens") => {
            !["modular-addition-mlp", "finetune"].contains(name)
        }
        [] => true,
        recipes => recipes.contains(name),
    };
    all.into_iter().filter(fits).collect()
}

pub(super) fn decode(files: &Published, step: u64) -> Checkpoint {
    checkpoint::decode("checkpoint", &files.files[&step]).unwrap()
}

/// Runs analyse jobs on one checkpoint of a trajectory.
fn analyse_step(files: &Published, step: u64, jobs: &mut [AnalyseJob<'_>]) -> Vec<Result<()>> {
    let here = decode(files, step);
    let init = decode(files, files.steps[0]).weights;
    let place = files.steps.iter().position(|&other| other == step).unwrap();
    let previous = (place > 0)
        .then(|| (files.steps[place - 1], decode(files, files.steps[place - 1]).weights));
    let model = Transformer::new(here.config.clone(), here.weights.shallow_clone()).unwrap();
    let subject = Subject {
        init: Some(&init),
        previous: previous.as_ref().map(|(step, weights)| (*step, weights)),
        ..Subject::of(&here, &model)
    };
    analyse(jobs, &subject)
}

fn analyse_one(
    experiment: &dyn AnyExperiment,
    files: &Published,
    step: u64,
    sink: &mut MemorySink,
) -> Result<()> {
    let params = example_params(experiment);
    let mut jobs = [AnalyseJob { experiment, params: &params, sink }];
    analyse_step(files, step, &mut jobs).remove(0)
}

/// Defaults, with something for what has to be given.
pub(super) fn example_params(experiment: &dyn AnyExperiment) -> Json {
    let mut params = experiment.default_params();
    for def in experiment.card().params {
        if def.is_required() {
            let metric = json!("grokking-progress.excluded_loss_frequency");
            let is_list = def.kind == ParamKind::MetricList;
            params[def.name] = if is_list { json!([metric]) } else { metric };
        }
        if def.name == "token_pairs" {
            params[def.name] = json!([[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]);
        }
        if def.name == "tokens" && def.group.is_some() {
            params[def.name] = json!([[1, 2, 3], [4, 5, 6]]);
        }
        // Few steps are enough to see that something comes out.
        let quick = [("burn_in", 2), ("draws", 6), ("chains", 2), ("iterations", 6), ("probes", 4)];
        let is_number = def.kind == ParamKind::Int;
        if let Some((_, few)) = quick.iter().find(|(name, _)| is_number && *name == def.name) {
            params[def.name] = json!(few);
        }
        if def.name == "questions" {
            params[def.name] = json!([
                r#"{"context": [1, 2], "target": [3], "choices": [[3], [4, 5]], "answer": 1}"#,
            ]);
        }
        if def.name == "n_clusters" {
            params["tokens"] = json!([[1, 2, 3], [4, 5, 6], [2, 3, 4]]);
            (params["n_clusters"], params["max_loss"]) = (2.into(), 100.0.into());
        }
        if def.name == "wrong" {
            params["tokens"] = json!([[1, 2, 3], [4, 5]]);
            (params["right"], params["wrong"]) = (json!([[1], [2, 3]]), json!([[2, 4], [1]]));
        }
        // Experiments on indirect objects: a subject that comes twice, with names to spare.
        if def.name == "io" {
            params["tokens"] = json!([[1, 2, 2], [3, 4, 4], [5, 6, 6]]);
            (params["io"], params["s"]) = (json!([1, 3, 5]), json!([2, 4, 6]));
        }
    }
    params
}

pub(super) fn check_emitted(card: &Card, sink: &MemorySink) {
    let declared: BTreeSet<&str> = card.metrics.iter().map(|metric| metric.name).collect();
    let emitted: BTreeSet<&str> = sink.metrics.keys().map(String::as_str).collect();
    assert_eq!(emitted, declared, "{}", card.name);
}

/// Equal metrics, with NaN equal to itself.
pub(super) fn bits(sink: &MemorySink) -> BTreeMap<(String, u64), Vec<u64>> {
    let points = sink.metrics.iter().flat_map(|(name, series)| {
        series.iter().map(move |(step, value)| {
            ((name.clone(), *step), value.data.iter().map(|number| number.to_bits()).collect())
        })
    });
    points.collect()
}

#[test]
fn analyses_emit_what_they_declare_the_same_each_time() {
    let models: BTreeMap<&str, Published> =
        ["modular-addition", "modular-addition-mlp", "addition", "finetune", "induction"]
            .map(|recipe| (recipe, trained_by(recipe, 30, 15)))
            .into();
    for experiment in EXPERIMENTS.iter().filter(|e| e.card().stage == Stage::Analyse) {
        let card = experiment.card();
        let recipes = recipes_of(card);
        assert!(!recipes.is_empty(), "no small model for {}", card.name);
        for files in recipes.iter().map(|recipe| &models[recipe]) {
            let mut first = MemorySink::default();
            analyse_one(*experiment, files, 30, &mut first).unwrap();
            check_emitted(card, &first);
            assert!(first.metrics.values().all(|series| series.keys().eq([&30])), "{}", card.name);
            let mut second = MemorySink::default();
            analyse_one(*experiment, files, 30, &mut second).unwrap();
            assert_eq!(bits(&first), bits(&second), "{} is not deterministic", card.name);
            // The first checkpoint has no previous one; everything else is there.
            analyse_one(*experiment, files, 0, &mut MemorySink::default()).unwrap();
            let mut cancelled = MemorySink { cancel_at: Some(1), ..MemorySink::default() };
            let error = analyse_one(*experiment, files, 30, &mut cancelled).unwrap_err();
            assert_eq!(error.class(), Class::Cancelled, "{}", card.name);
        }
    }
}

/// Every metric of every analysis of every checkpoint, as trajectory experiments read them.
pub(super) fn all_series(files: &Published) -> SeriesTable {
    let mut table = SeriesTable::new();
    let of_this_model = |e: &&&dyn AnyExperiment| {
        e.card().stage == Stage::Analyse && recipes_of(e.card()).contains(&"modular-addition")
    };
    for experiment in EXPERIMENTS.iter().filter(of_this_model) {
        for &step in &files.steps {
            let mut sink = MemorySink::default();
            analyse_one(*experiment, files, step, &mut sink).unwrap();
            add_to_series(&mut table, experiment.card(), sink);
        }
    }
    table
}

/// Adds what one analysis emitted.
pub(super) fn add_to_series(table: &mut SeriesTable, card: &Card, sink: MemorySink) {
    for (name, points) in sink.metrics {
        let def = card.metric(&name).unwrap();
        let series = table.entry(format!("{}.{name}", card.name)).or_insert_with(|| Series {
            unit: def.unit.name().to_owned(),
            axes: def.axes.iter().map(|axis| axis.name().to_owned()).collect(),
            points: Vec::new(),
        });
        series.points.extend(points);
    }
}

fn run_trajectory(
    experiment: &dyn AnyExperiment,
    params: &Json,
    files: &mut Published,
    series: &SeriesTable,
    sink: &mut MemorySink,
) -> Result<()> {
    let checkpoints = match experiment.inputs(params)? {
        Inputs::Checkpoints => Some(files as &mut dyn sweep_lab::Checkpoints),
        Inputs::Series(names) => {
            assert!(names.iter().all(|name| series.contains_key(name)));
            None
        }
        Inputs::Checkpoint { .. } | Inputs::Couple => {
            panic!("a trajectory experiment asked for one checkpoint")
        }
    };
    let input = TrajectoryInput { checkpoints, series, device: Device::Cpu };
    trajectory(experiment, params, input, sink)
}

#[test]
fn trajectories_emit_what_they_declare_the_same_each_time() {
    let mut models: BTreeMap<&str, Published> =
        ["modular-addition", "modular-addition-mlp", "addition", "finetune", "induction"]
            .map(|recipe| (recipe, trained_by(recipe, 40, 4)))
            .into();
    let series = all_series(&models["modular-addition"]);
    for experiment in EXPERIMENTS.iter().filter(|e| e.card().stage == Stage::Trajectory) {
        let recipes = recipes_of(experiment.card());
        assert!(!recipes.is_empty(), "no small model for {}", experiment.card().name);
        for recipe in recipes {
            check_trajectory(*experiment, models.get_mut(recipe).unwrap(), &series);
        }
    }
}

fn check_trajectory(experiment: &dyn AnyExperiment, files: &mut Published, series: &SeriesTable) {
    let card = experiment.card();
    let params = example_params(experiment);
    let mut first = MemorySink::default();
    run_trajectory(experiment, &params, files, series, &mut first).unwrap();
    check_emitted(card, &first);
    let mut second = MemorySink::default();
    run_trajectory(experiment, &params, files, series, &mut second).unwrap();
    assert_eq!(bits(&first), bits(&second), "{} is not deterministic", card.name);
    assert_eq!(first.artifacts, second.artifacts, "{}", card.name);
    let mut cancelled = MemorySink { cancel_at: Some(1), ..MemorySink::default() };
    let error = run_trajectory(experiment, &params, files, series, &mut cancelled).unwrap_err();
    assert_eq!(error.class(), Class::Cancelled, "{}", card.name);
    // Without its input it says so.
    let empty = SeriesTable::new();
    let input = TrajectoryInput { checkpoints: None, series: &empty, device: Device::Cpu };
    let error = trajectory(experiment, &params, input, &mut MemorySink::default()).unwrap_err();
    assert_eq!(error.class(), Class::Input, "{}", card.name);
}

#[test]
fn trajectory_results_have_the_shape_of_their_input() {
    let mut files = trained(40, 4);
    let series = all_series(&files);
    let find = |name: &str| *EXPERIMENTS.iter().find(|e| e.card().name == name).unwrap();
    let mut sink = MemorySink::default();
    let params = json!({"metric": "grokking-progress.excluded_loss_frequency", "n_bootstrap": 20});
    run_trajectory(find("phase-transition"), &params, &mut files, &series, &mut sink).unwrap();
    let verdict = &sink.metrics["verdict"][&40];
    let labels: Vec<String> = (1..=5).map(|k| format!("frequency={k}")).collect();
    assert_eq!(verdict.labels, [Some(labels)]);
    let fits: Json = serde_json::from_slice(&sink.artifacts["fits.json"]).unwrap();
    assert_eq!(fits.as_array().unwrap().len(), 5);
    assert_eq!(fits[0]["fits"]["fits"][3]["model"], "logistic");
    // Few rows in memory give the same components as all of them.
    let mut sinks = Vec::new();
    for (of, memory_mib) in [("weights", 2048), ("logits", 2048)] {
        files.loads.clear();
        let params =
            json!({"of": of, "memory_mib": memory_mib, "save_basis": true, "components": 2});
        let mut sink = MemorySink::default();
        run_trajectory(find("pca"), &params, &mut files, &series, &mut sink).unwrap();
        assert_eq!(files.loads, files.steps, "each checkpoint is loaded once");
        assert_eq!(sink.metrics["pc"].len(), 11);
        assert_eq!(
            sink.metrics["turn_angle"].keys().copied().collect::<Vec<_>>(),
            (1..10).map(|i| 4 * i).collect::<Vec<_>>()
        );
        let evr = &sink.metrics["evr"][&40].data;
        assert!(evr[0] >= evr[1] && evr.iter().sum::<f64>() <= 1.0 + 1e-9, "{evr:?}");
        let basis =
            checkpoint::decode_tensors("basis", &sink.artifacts["basis.safetensors"]).unwrap();
        let name = if of == "weights" { "components/embed.W_E" } else { "components/logits" };
        assert_eq!(basis.tensors[name].size()[0], 2);
        sinks.push(sink);
    }
    // The first component's coordinates project the centred weights on the saved basis.
    let basis =
        checkpoint::decode_tensors("basis", &sinks[0].artifacts["basis.safetensors"]).unwrap();
    let weights = decode(&files, 40).weights;
    let projected: f64 = weights
        .iter()
        .map(|(name, tensor)| {
            let centred = tensor - &basis.tensors[&format!("mean/{name}")];
            (centred * basis.tensors[&format!("components/{name}")].get(0))
                .sum(sweep_lab::lens::Kind::Double)
                .double_value(&[])
        })
        .sum();
    assert!((projected - sinks[0].metrics["pc"][&40].data[0]).abs() < 1e-3);
    // Phases: series at every checkpoint, boundaries at the last.
    let mut sink = MemorySink::default();
    run_trajectory(
        find("grokking-phases"),
        &json!({"threshold": 0.3}),
        &mut files,
        &series,
        &mut sink,
    )
    .unwrap();
    assert_eq!(sink.series("restricted_loss").len(), 11);
    assert_eq!(sink.metrics["grokked_step"].keys().copied().collect::<Vec<_>>(), [40]);
    assert!(sink.scalar("grokked_step", 40).unwrap().is_nan());
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let mut files = trained(5, 5);
    for bytes in files.files.values_mut() {
        let mut foreign = checkpoint::decode("checkpoint", bytes).unwrap();
        foreign.extra = json!({"recipe": "other"});
        *bytes =
            checkpoint::encode(&foreign.config, &foreign.weights, foreign.step, &foreign.extra)
                .unwrap();
    }
    let single = EXPERIMENTS
        .iter()
        .filter(|experiment| matches!(experiment.card().stage, Stage::Analyse | Stage::Trajectory));
    for experiment in single.filter(|e| !e.card().requires.recipes.is_empty()) {
        let mut sink = MemorySink::default();
        let error = if experiment.card().stage == Stage::Analyse {
            analyse_one(*experiment, &files, 5, &mut sink).unwrap_err()
        } else {
            let series = SeriesTable::new();
            let params = example_params(*experiment);
            run_trajectory(*experiment, &params, &mut files, &series, &mut sink).unwrap_err()
        };
        assert_eq!(error.class(), Class::Unsupported);
        assert!(error.to_string().contains(experiment.card().requires.recipes[0]), "{error}");
    }
}

/// What the spies saw, in order.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Observes `hook_resid_post` in batches; misbehaves as told.
struct Spy {
    name: &'static str,
    mishap: &'static str,
}

struct SpyObserver {
    name: &'static str,
    mishap: &'static str,
}

static SPY_CARD: Card = Card {
    name: "spy",
    version: 1,
    summary: "",
    source: "",
    stage: Stage::Analyse,
    requires: Requires::ANY,
    params: &[],
    metrics: &[MetricDef { name: "rows", unit: Unit::Count, axes: &[], doc: "" }],
    figures: &[],
};

impl Experiment for Spy {
    type Params = NoParams;
    const CARD: &'static Card = &SPY_CARD;

    fn inputs(&self, _params: &NoParams) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, _subject: &Subject<'a>, _params: NoParams) -> Result<Analysis<'a>> {
        let tokens = Tensor::from_slice(&[1i64, 2, 11, 3, 4, 11, 5, 6, 11]).view([3, 3]);
        let tokens = TokenSet { tokens, rows_per_batch: 2, last_position_only: false };
        Ok(Analysis::Observe(
            tokens,
            Box::new(SpyObserver { name: self.name, mishap: self.mishap }),
        ))
    }
}

impl Observer for SpyObserver {
    fn wants(&self, hook: Hook) -> bool {
        hook == Hook::block(0, Site::ResidPost)
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn see(&mut self, _hook: Hook, first_row: i64, activation: &Tensor) -> Result<()> {
        SEEN.lock().unwrap().push(format!("{} {first_row} {:?}", self.name, activation.size()));
        match self.mishap {
            "panic" => panic!("the spy panics"),
            "error" => Err(Error::Unsupported("the spy fails".to_owned())),
            _ => Ok(()),
        }
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let name = if self.mishap == "undeclared" { "other" } else { "rows" };
        cx.metric(name, Value::scalar(3.0))
    }
}

#[test]
fn observers_share_passes_and_fail_alone() {
    let files = trained(5, 5);
    let spies = [
        Spy { name: "a", mishap: "" },
        Spy { name: "b", mishap: "panic" },
        Spy { name: "c", mishap: "error" },
        Spy { name: "d", mishap: "undeclared" },
        Spy { name: "e", mishap: "" },
    ];
    let mut sinks: Vec<MemorySink> = spies.iter().map(|_| MemorySink::default()).collect();
    let params = Json::Null;
    let mut jobs: Vec<AnalyseJob<'_>> = spies
        .iter()
        .zip(&mut sinks)
        .map(|(spy, sink)| AnalyseJob { experiment: spy, params: &params, sink })
        .collect();
    let results = analyse_step(&files, 5, &mut jobs);
    assert!(results[0].is_ok() && results[4].is_ok());
    assert!(matches!(&results[1], Err(Error::Panic(message)) if message == "the spy panics"));
    assert_eq!(results[2].as_ref().unwrap_err().class(), Class::Unsupported);
    assert_eq!(results[3].as_ref().unwrap_err().class(), Class::Internal);
    assert_eq!(sinks[0].scalar("rows", 5), Some(3.0));
    assert!(sinks[1].metrics.is_empty());
    // One pass of two batches: all see the first, only the healthy ones the second.
    let seen = SEEN.lock().unwrap().clone();
    let first = ["a", "b", "c", "d", "e"].map(|name| format!("{name} 0 [2, 3, 16]"));
    let second = ["a", "d", "e"].map(|name| format!("{name} 2 [1, 3, 16]"));
    assert_eq!(seen, [first.as_slice(), second.as_slice()].concat());
    // Nobody wants logits: the residual stream comes back, and results do not depend on company.
    let mut alone = MemorySink::default();
    let mut jobs = [AnalyseJob { experiment: &spies[0], params: &params, sink: &mut alone }];
    assert!(analyse_step(&files, 5, &mut jobs)[0].is_ok());
    assert_eq!(bits(&alone), bits(&sinks[0]));
}
