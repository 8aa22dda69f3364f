//! Experiments on pairs of checkpoints and on several models: they emit what they declare, the same each
//! time; a model against itself; symmetry; what cannot be compared; who failed.

use std::{collections::BTreeMap, f64::consts::LN_2};

use serde_json::{Value as Json, json};
use sweep_lab::{
    AnyExperiment, CheckpointPlan, Class, Cohort, CohortCheckpoints, CohortSeries, Couple,
    EXPERIMENTS, Inputs, Member, MemberSeries, MemorySink, Result, Scope, Series, Stage, Subject,
    TextCodec, Value, compare, joint,
    lens::{Device, Transformer, Weights, checkpoint::Checkpoint},
};

use crate::{
    Published, Recorder,
    experiments::{all_series, bits, check_emitted, decode, example_params, recipes_of},
    run_recipe, small_params,
};

fn params_of(recipe: &str, steps: u64) -> Json {
    match recipe {
        "addition" => json!({
            "n_digits": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24, "lr": 1e-2, "eval_size": 200,
            "steps": steps,
        }),
        "modular-addition-mlp" => json!({ "p": 11, "d_mlp": 20, "lr": 1e-2, "steps": steps }),
        "induction" => json!({
            "d_model": 16, "n_heads": 2, "d_vocab": 12, "n_ctx": 14, "period_min": 3, "period_max": 6,
            "batch": 4, "eval_sequences": 8, "normalization": "ln", "steps": steps,
        }),
        _ => small_params(steps),
    }
}

fn trained(recipe: &str, params: &Json, seed: u64, every: u64) -> Published {
    let plan = CheckpointPlan::every(every, params["steps"].as_u64().unwrap());
    let (outcome, mut recorder) = run_recipe(recipe, params, &[seed], &[], &plan, Recorder::new());
    outcome.unwrap();
    Published::new(recorder.seeds.remove(&0).unwrap().checkpoints)
}

fn find(name: &str) -> &'static dyn AnyExperiment {
    *EXPERIMENTS.iter().find(|e| e.card().name == name).unwrap()
}

fn on_pair(
    experiment: &dyn AnyExperiment,
    params: &Json,
    first: &Checkpoint,
    second: &Checkpoint,
    sink: &mut MemorySink,
) -> Result<()> {
    let model = |c: &Checkpoint| Transformer::new(c.config.clone(), c.weights.shallow_clone());
    let (a, b) = (model(first).unwrap(), model(second).unwrap());
    let couple = Couple { first: Subject::of(first, &a), second: Subject::of(second, &b) };
    compare(experiment, params, &couple, sink)
}

fn measured(name: &str, params: &Json, first: &Checkpoint, second: &Checkpoint) -> MemorySink {
    let mut sink = MemorySink::default();
    on_pair(find(name), params, first, second, &mut sink).unwrap();
    sink
}

#[test]
fn comparisons_emit_what_they_declare_the_same_each_time() {
    for recipe in ["modular-addition", "modular-addition-mlp", "addition", "induction"] {
        let params = params_of(recipe, 20);
        let [a, b] = [4, 5].map(|seed| decode(&trained(recipe, &params, seed, 20), 20));
        for experiment in EXPERIMENTS.iter().filter(|e| e.card().stage == Stage::Compare) {
            let card = experiment.card();
            if !recipes_of(card).contains(&recipe) {
                continue;
            }
            let params = experiment.default_params();
            let mut first = MemorySink::default();
            on_pair(*experiment, &params, &a, &b, &mut first).unwrap();
            check_emitted(card, &first);
            assert!(first.metrics.values().all(|series| series.keys().eq([&20])), "{}", card.name);
            let mut second = MemorySink::default();
            on_pair(*experiment, &params, &a, &b, &mut second).unwrap();
            assert_eq!(bits(&first), bits(&second), "{} is not deterministic", card.name);
            let mut cancelled = MemorySink { cancel_at: Some(1), ..MemorySink::default() };
            let error = on_pair(*experiment, &params, &a, &b, &mut cancelled).unwrap_err();
            assert_eq!(error.class(), Class::Cancelled, "{}", card.name);
        }
    }
}

#[test]
fn heads_of_other_shapes_are_refused() {
    let of = |n_layers: i64| {
        let mut params = params_of("induction", 20);
        params["n_layers"] = json!(n_layers);
        decode(&trained("induction", &params, 0, 20), 20)
    };
    // Either way round: the layers that both have are not compared in silence.
    for (first, second) in [(2, 3), (3, 2)] {
        let (first, second) = (of(first), of(second));
        let mut sink = MemorySink::default();
        let error = on_pair(find("head-similarity"), &json!({}), &first, &second, &mut sink);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("layers of 2 heads and"), "{message}");
        assert!(sink.metrics.is_empty());
    }
}

fn single(sink: &MemorySink, name: &str) -> Vec<f64> {
    sink.metrics[name].values().next().unwrap().data.clone()
}

#[test]
fn a_model_against_itself_is_exactly_itself() {
    for recipe in ["modular-addition", "modular-addition-mlp"] {
        let base = decode(&trained(recipe, &params_of(recipe, 20), 4, 20), 20);
        let own = |name: &str| measured(name, &json!({}), &base, &base);
        let sink = own("mode-connectivity");
        for name in ["barrier", "acc_drop"] {
            assert_eq!(single(&sink, name), [0.0; 2], "{recipe} {name}");
        }
        let curve = single(&sink, "curve");
        assert!(curve[..25].iter().all(|loss| *loss == curve[0]), "every point is the model");
        let sink = own("rebasin");
        for name in ["barrier_naive", "barrier_matched", "barrier_activation"] {
            assert_eq!(single(&sink, name), [0.0; 2], "{recipe} {name}");
        }
        for name in ["cosine_naive", "cosine_matched", "same_frequency_matched"] {
            assert_eq!(single(&sink, name), [1.0], "{recipe} {name}");
        }
        assert_eq!(single(&sink, "n_moved"), [0.0]);
        let sink = own("weight-delta");
        assert!(single(&sink, "relative_norm").iter().all(|norm| *norm == 0.0));
        assert!(single(&sink, "effective_rank").iter().all(|rank| *rank == 0.0));
        assert_eq!(
            (single(&sink, "cosine_total"), single(&sink, "relative_norm_total")),
            (vec![1.0], vec![0.0])
        );
        let overlaps = single(&sink, "subspace_overlap");
        assert!(overlaps.iter().all(|overlap| (overlap - 1.0).abs() < 1e-12), "{overlaps:?}");
        let sink = own("output-similarity");
        for name in
            ["kl", "kl_reverse", "js", "js_low", "js_high", "total_variation", "logprob_rms"]
        {
            assert_eq!(single(&sink, name), [0.0], "{recipe} {name}");
        }
        for name in ["top1_agreement", "logprob_correlation"] {
            assert_eq!(single(&sink, name), [1.0], "{recipe} {name}");
        }
        assert!(single(&own("cka"), "cka").iter().all(|cka| *cka == 1.0));
    }
    let base = decode(&trained("addition", &params_of("addition", 20), 4, 20), 20);
    let sink = measured("max-act-overlap", &json!({}), &base, &base);
    for name in ["jaccard", "mean_jaccard", "kept", "w_in_cosine", "w_out_cosine"] {
        assert!(single(&sink, name).iter().all(|value| *value == 1.0), "{name}");
    }
    for name in ["correlation", "rank_correlation"] {
        assert!(single(&sink, name).iter().all(|value| value.is_nan() || *value == 1.0), "{name}");
    }
    assert!(single(&sink, "frequency_change").iter().all(|change| *change == 0.0));
    let base = decode(&trained("induction", &params_of("induction", 20), 4, 20), 20);
    let sink = measured("diff-examples", &json!({}), &base, &base);
    assert_eq!(single(&sink, "loss_first"), single(&sink, "loss_second"));
    for name in ["mean_difference", "mean_difference_low", "mean_difference_high", "rms"] {
        assert_eq!(single(&sink, name), [0.0], "{name}");
    }
    assert!(single(&sink, "gain_survival").iter().all(|share| *share == 0.0));
    let sink = measured("scale-inversion", &json!({}), &base, &base);
    assert!(single(&sink, "win_fraction").iter().all(|share| *share == 0.0));
    // Nothing to recover: no number rather than a wrong one.
    let sink = measured("patch-recovery", &json!({}), &base, &base);
    assert_eq!(single(&sink, "gap"), [0.0]);
    assert!(single(&sink, "weights").iter().all(|recovery| recovery.is_nan()));
    assert!(single(&sink, "n_parts")[0].is_nan());
}

#[test]
fn patching_everything_recovers_everything() {
    let params = params_of("induction", 60);
    let [a, b] = [(4, 60), (5, 20)]
        .map(|(seed, step)| decode(&trained("induction", &params, seed, 20), step));
    for into in ["second", "first"] {
        let sink = measured("patch-recovery", &json!({ "into": into }), &a, &b);
        let at = |name: &str| single(&sink, name);
        assert_eq!((at("nothing"), at("everything")), (vec![0.0], vec![1.0]), "{into}");
        assert!((at("resid_final")[0] - 1.0).abs() < 1e-4, "{into} {:?}", at("resid_final"));
        let parts: Json = serde_json::from_slice(&sink.artifacts["parts.json"]).unwrap();
        let order = parts["order"].as_array().unwrap();
        assert_eq!(order.len(), at("greedy").len());
        // The first part of the search is the best one alone.
        let best = at("weights").into_iter().fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(at("greedy")[0], best);
        assert!(
            at("gap")[0] * if into == "second" { 1.0 } else { -1.0 } > 0.0,
            "more training helps"
        );
    }
    let sink = measured("diff-examples", &json!({ "k": 3 }), &a, &b);
    let difference = single(&sink, "mean_difference")[0];
    let losses = single(&sink, "loss_second")[0] - single(&sink, "loss_first")[0];
    assert!((difference - losses).abs() < 1e-12);
    let back = measured("diff-examples", &json!({ "k": 3 }), &b, &a);
    assert!((single(&back, "mean_difference")[0] + difference).abs() < 1e-12);
    assert_eq!(single(&back, "gain_survival"), single(&sink, "drop_survival"));
    let gains = String::from_utf8(sink.artifacts["gains.jsonl"].clone()).unwrap();
    let gains: Vec<Json> = gains.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(gains.len(), 3);
    assert!(gains[0]["difference"].as_f64() >= gains[2]["difference"].as_f64());
}

#[test]
fn symmetric_measures_are_symmetric() {
    let params = params_of("modular-addition", 30);
    let [a, b] = [4, 5].map(|seed| decode(&trained("modular-addition", &params, seed, 30), 30));
    let both = |name: &str, settings: &Json| {
        (measured(name, settings, &a, &b), measured(name, settings, &b, &a))
    };
    let tokens = json!({ "tokens": [[1, 2, 11], [3, 4, 11], [7, 8]] });
    for settings in [json!({}), tokens.clone()] {
        let (there, back) = both("output-similarity", &settings);
        let close = |name: &str, other: &str| {
            let (x, y) = (single(&there, name)[0], single(&back, other)[0]);
            assert!((x - y).abs() < 1e-12 || (x.is_nan() && y.is_nan()), "{name}: {x} {y}");
        };
        for name in ["js", "total_variation", "top1_agreement", "logprob_correlation"] {
            close(name, name);
        }
        close("kl", "kl_reverse");
        close("token_rms", "token_rms");
        let js = single(&there, "js")[0];
        assert!(js > 0.0 && js <= LN_2, "{js}");
    }
    let (there, _) = both("output-similarity", &tokens);
    assert_eq!(single(&there, "n_positions"), [8.0], "rows end where they end");
    let (first, second) = (memorised(4), memorised(5));
    let there = measured("mode-connectivity", &json!({}), &first, &second);
    let back = measured("mode-connectivity", &json!({}), &second, &first);
    assert!(single(&there, "barrier")[0] > 0.1, "on the training data");
    for (x, y) in single(&there, "barrier").into_iter().zip(single(&back, "barrier")) {
        assert!((x - y).abs() < 1e-5, "{x} {y}");
    }
    let (there, back) = both("cka", &tokens);
    let (x, y) = (single(&there, "cka")[0], single(&back, "cka")[0]);
    assert!((x - y).abs() < 1e-12 && x > 0.0 && x < 1.0, "{x} {y}");
}

/// A perceptron that knows its training pairs by heart: what lies between two of them does not.
fn memorised(seed: u64) -> Checkpoint {
    let params = json!({
        "p": 11, "d_mlp": 20, "lr": 1e-2, "weight_decay": 0.01, "steps": 300,
    });
    decode(&trained("modular-addition-mlp", &params, seed, 300), 300)
}

/// The library recovers a shuffled copy; the experiment has to say so in its metrics.
#[test]
fn a_shuffled_copy_is_found_out() {
    let a = memorised(4);
    let order: Vec<i64> = (0..20).map(|unit| (7 * unit + 3) % 20).collect();
    let mut weights: Weights = a.weights.copy();
    for (name, axis) in [("layers.0.W", 1), ("layers.1.W", 0)] {
        let index = sweep_lab::lens::Tensor::from_slice(&order);
        let moved = weights.get(name).unwrap().index_select(axis, &index);
        weights.insert(name.to_owned(), moved);
    }
    let b = Checkpoint {
        config: a.config.clone(),
        weights,
        step: a.step,
        extra: a.extra.clone(),
        weights_hash: String::new(),
    };
    let sink = measured("rebasin", &json!({}), &a, &b);
    assert!(single(&sink, "barrier_naive")[0] > 0.1, "on the training data");
    for name in ["barrier_matched", "barrier_activation"] {
        assert!(single(&sink, name).iter().all(|height| *height < 1e-9), "{name}");
    }
    assert!(single(&sink, "barrier_ratio")[0] < 1e-6);
    assert_eq!(single(&sink, "cosine_matched"), [1.0]);
    assert_eq!(single(&sink, "n_moved"), [20.0]);
    assert_eq!(single(&sink, "same_frequency_matched"), [1.0]);
    let cosines = single(&sink, "frequency_cosine");
    assert!(cosines.iter().all(|cosine| (cosine - 1.0).abs() < 1e-12), "{cosines:?}");
    let orders: Json = serde_json::from_slice(&sink.artifacts["permutations.json"]).unwrap();
    let found: Vec<i64> = serde_json::from_value(orders["neurons.0"].clone()).unwrap();
    let back: Vec<i64> = found.iter().map(|&place| order[place as usize]).collect();
    assert_eq!(back, (0..20).collect::<Vec<i64>>(), "the inverse permutation");
}

struct Codec(&'static str);

impl TextCodec for Codec {
    fn encode(&self, _text: &str, _prepend_bos: bool) -> Result<Vec<i64>> {
        Ok(vec![0])
    }

    fn decode_token(&self, id: i64) -> String {
        id.to_string()
    }

    fn bos(&self) -> Option<i64> {
        None
    }

    fn hash(&self) -> &str {
        self.0
    }
}

#[test]
fn what_cannot_be_compared_is_refused_with_the_reason() {
    let of = |recipe: &str, params: &Json| decode(&trained(recipe, params, 4, 2), 2);
    let base = of("modular-addition-mlp", &json!({ "p": 11, "d_mlp": 20, "steps": 2 }));
    let wide = of("modular-addition-mlp", &json!({ "p": 11, "d_mlp": 24, "steps": 2 }));
    let other = of("modular-addition-mlp", &json!({ "p": 13, "d_mlp": 20, "steps": 2 }));
    let error = |name: &str, first: &Checkpoint, second: &Checkpoint, params: Json| {
        let mut sink = MemorySink::default();
        on_pair(find(name), &params, first, second, &mut sink).unwrap_err()
    };
    for name in ["rebasin", "mode-connectivity", "weight-delta"] {
        let error = error(name, &base, &wide, json!({}));
        assert_eq!(error.class(), Class::Unsupported);
        assert!(
            error.to_string().contains("`layers.0.W` is [22, 20] in one and [22, 24]"),
            "{error}"
        );
    }
    for name in ["output-similarity", "cka"] {
        let error = error(name, &base, &other, json!({}));
        assert!(
            error.to_string().contains("`d_vocab` is 22 in one and 26 in the other"),
            "{error}"
        );
        // Other shapes are no obstacle to comparing what models say.
        on_pair(find(name), &json!({}), &base, &wide, &mut MemorySink::default()).unwrap();
    }
    let foreign = Checkpoint {
        extra: json!({}),
        ..of("modular-addition-mlp", &json!({ "p": 11, "d_mlp": 20, "steps": 2 }))
    };
    let problem = error("rebasin", &foreign, &foreign, json!({}));
    assert!(problem.to_string().contains("no recipe trained"), "{problem}");
    let problem = error("cka", &base, &base, json!({ "tokens": [[1]], "text": ["a"] }));
    assert_eq!(problem.class(), Class::Params);
    let problem = error("cka", &base, &base, json!({ "tokens": [[99, 1]] }));
    assert!(problem.to_string().contains("token 99"), "{problem}");
    // The same ids mean other words.
    let model = Transformer::new(base.config.clone(), base.weights.shallow_clone()).unwrap();
    let (one, two) = (Codec("one"), Codec("two"));
    let couple = Couple {
        first: Subject { text: Some(&one), ..Subject::of(&base, &model) },
        second: Subject { text: Some(&two), ..Subject::of(&base, &model) },
    };
    let problem =
        compare(find("cka"), &json!({}), &couple, &mut MemorySink::default()).unwrap_err();
    assert!(problem.to_string().contains("their tokenizers differ"), "{problem}");
}

/// Several trained models.
struct Models(Vec<Published>);

impl CohortCheckpoints for Models {
    fn steps(&self, member: usize) -> &[u64] {
        &self.0[member].steps
    }

    fn load(&mut self, member: usize, step: u64) -> Result<Checkpoint> {
        Ok(decode(&self.0[member], step))
    }
}

fn members(recipe: &str, params: &Json, n: u64) -> Vec<Member> {
    let Json::Object(params) = params.clone() else { panic!() };
    (0..n)
        .map(|seed| Member {
            label: format!("{recipe}-seed{seed}"),
            seed: Some(seed),
            recipe: Some(recipe.to_owned()),
            params: params.clone(),
            axes: Vec::new(),
            failure: None,
        })
        .collect()
}

/// Series of each model, and of pairs of models.
fn cohort_series(models: &Models) -> CohortSeries {
    let mut table = CohortSeries::new();
    for (member, files) in models.0.iter().enumerate() {
        for (name, series) in all_series(files) {
            table.entry(name).or_default().push(MemberSeries { member, partner: None, series });
        }
    }
    let last = *models.0[0].steps.last().unwrap();
    let languages = [0, 1].map(|seed| trained("induction", &params_of("induction", 20), seed, 20));
    for experiment in EXPERIMENTS.iter().filter(|e| e.card().stage == Stage::Compare) {
        let mut sink = MemorySink::default();
        let is_language = !recipes_of(experiment.card()).contains(&"modular-addition");
        let files =
            |member: usize| if is_language { &languages[member] } else { &models.0[member] };
        let [a, b] = [0, 1].map(|member| decode(files(member), last));
        on_pair(*experiment, &experiment.default_params(), &a, &b, &mut sink).unwrap();
        for (name, points) in sink.metrics {
            let points = points.into_iter().collect();
            let series = Series { points, ..Series::default() };
            let partner = Some("modular-addition-seed1".to_owned());
            let entry = table.entry(format!("{}.{name}", experiment.card().name)).or_default();
            entry.push(MemberSeries { member: 0, partner, series });
        }
    }
    for member in 0..models.0.len() {
        add_heads(&mut table, member);
    }
    table
}

/// Scores of two layers of two heads, of which one pair becomes an induction circuit.
fn add_heads(table: &mut CohortSeries, member: usize) {
    let heads = ["layer", "head"].as_slice();
    let pairs = ["layer", "head", "to_layer", "to_head"].as_slice();
    let mut add = |name: &str, axes: &[&str], data: Vec<f64>| {
        let shape = vec![2; axes.len()];
        let value = Value::array(shape, data, vec![None; axes.len()]);
        let points = [0, 10, 20].map(|step| (step, value.clone())).to_vec();
        let axes = axes.iter().map(|&axis| axis.to_owned()).collect();
        let series = Series { unit: "ratio".to_owned(), axes, points };
        table.entry(name.to_owned()).or_default().push(MemberSeries {
            member,
            partner: None,
            series,
        });
    };
    for kind in ["k", "q", "v"] {
        let data = (0..16).map(|cell| 0.1 + 0.01 * f64::from(cell)).collect();
        add(&format!("composition.{kind}_composition"), pairs, data);
    }
    add("composition.baseline", &[], vec![0.1]);
    add("composition.qk_trace", heads, vec![0.0, 0.0, 1.0, 2.0]);
    add("induction-heads.previous_token", heads, vec![0.6, 0.1, 0.1, 0.2]);
    add("induction-heads.prefix_matching", heads, vec![0.0, 0.1, 0.1, 0.9]);
}

#[test]
fn joint_experiments_emit_what_they_declare_and_name_who_failed() {
    let mut of_recipe: BTreeMap<&str, (Models, Vec<Member>)> = BTreeMap::new();
    for recipe in ["modular-addition", "addition"] {
        let params = params_of(recipe, 20);
        let mut models: Vec<Published> =
            (0..3).map(|seed| trained(recipe, &params, seed, 10)).collect();
        let mut members = members(recipe, &params, 4);
        members[3].failure = Some("train_loss is NaN at step 10".to_owned());
        models.push(Published::new(BTreeMap::new()));
        of_recipe.insert(recipe, (Models(models), members));
    }
    let series = cohort_series(&Models(
        (0..2)
            .map(|i| Published::new(of_recipe["modular-addition"].0.0[i].files.clone()))
            .collect(),
    ));
    for experiment in EXPERIMENTS.iter().filter(|e| matches!(e.card().stage, Stage::Joint(_))) {
        let card = experiment.card();
        let recipe = *recipes_of(card).iter().find(|r| of_recipe.contains_key(*r)).unwrap();
        let (models, members) = of_recipe.get_mut(recipe).unwrap();
        let mut params = example_params(*experiment);
        match card.name {
            "knockout-delay" => params["metric"] = json!("grokking-progress.test_acc"),
            "early-signs" => params["outcome"] = json!("grokking-progress.test_acc"),
            "shared-index" => params["metric"] = json!("induction-heads.prefix_matching"),
            _ => (),
        }
        let mut run = |sink: &mut MemorySink, members: &[Member]| {
            let reads = experiment.inputs(&params).unwrap();
            let checkpoints = (reads == Inputs::Checkpoints)
                .then_some(&mut *models as &mut dyn CohortCheckpoints);
            let cohort = Cohort { members, checkpoints, series: &series, device: Device::Cpu };
            joint(*experiment, &params, cohort, sink)
        };
        let mut first = MemorySink::default();
        run(&mut first, members).unwrap();
        check_emitted(card, &first);
        assert_eq!(first.scalar("n_models", 20), Some(4.0), "{}", card.name);
        assert_eq!(first.scalar("n_failed", 20), Some(1.0), "{}", card.name);
        let named: Json = serde_json::from_slice(&first.artifacts["members.json"]).unwrap();
        assert_eq!(named[3]["failure"], "train_loss is NaN at step 10");
        let mut second = MemorySink::default();
        run(&mut second, members).unwrap();
        assert_eq!(bits(&first), bits(&second), "{} is not deterministic", card.name);
        assert_eq!(first.artifacts, second.artifacts, "{}", card.name);
        let mut cancelled = MemorySink { cancel_at: Some(1), ..MemorySink::default() };
        let error = run(&mut cancelled, members).unwrap_err();
        assert_eq!(error.class(), Class::Cancelled, "{}", card.name);
        let empty = CohortSeries::new();
        let cohort = Cohort { members, checkpoints: None, series: &empty, device: Device::Cpu };
        let error = joint(*experiment, &params, cohort, &mut MemorySink::default()).unwrap_err();
        assert_eq!(error.class(), Class::Input, "{}", card.name);
    }
    assert!(EXPERIMENTS.iter().any(|e| e.card().stage == Stage::Joint(Scope::Sweep)));
}

#[test]
fn orders_of_digits_are_compared_over_seeds() {
    let params = params_of("addition", 60);
    let models: Vec<Published> = (0..3).map(|seed| trained("addition", &params, seed, 5)).collect();
    let mut models = Models(models);
    let members = members("addition", &params, 3);
    let empty = CohortSeries::new();
    let cohort = Cohort {
        members: &members,
        checkpoints: Some(&mut models),
        series: &empty,
        device: Device::Cpu,
    };
    let mut sink = MemorySink::default();
    joint(find("digit-order"), &json!({ "n_bootstrap": 50 }), cohort, &mut sink).unwrap();
    let at = |name: &str| sink.metrics[name][&60].clone();
    let (rank, mean) = (at("rank"), at("mean_rank"));
    assert_eq!((rank.shape.as_slice(), mean.shape.as_slice()), (&[3, 3][..], &[3][..]));
    assert_eq!(rank.labels[0].as_ref().unwrap()[2], "addition-seed2");
    for digit in 0..3 {
        let expected = (0..3).map(|model| rank.data[3 * model + digit]).sum::<f64>() / 3.0;
        assert!((mean.data[digit] - expected).abs() < 1e-12);
        let (low, high) = (at("mean_rank_low").data[digit], at("mean_rank_high").data[digit]);
        assert!(low <= expected && expected <= high, "{low} {expected} {high}");
    }
    assert_eq!(sink.metrics["loss_digit"].len(), 13, "a value at every checkpoint");
    let precedence = at("precedence");
    for i in 0..3 {
        for j in 0..3 {
            let sum = precedence.data[3 * i + j] + precedence.data[3 * j + i];
            assert!((sum - 1.0).abs() < 1e-12);
        }
    }
}
