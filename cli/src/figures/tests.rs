//! Which panels, colours and axes figures get. With `SWEEP_SHOW_FIGURES=DIR` the pictures are
//! written to DIR, for people to look at.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::chart::{Content, raster, scale::Scale, to_svg};

/// Steps of a sweep with about forty checkpoints.
fn steps() -> Vec<u64> {
    (0..=40).map(|index| index * 100).collect()
}

fn curve(metric: &str, unit: &str, model: u32, axes: Vec<pb::Axis>, values: Vec<f64>) -> Curve {
    let block: usize = axes.iter().map(|axis| axis.size as usize).product();
    let series = pb::Series {
        metric: metric.into(),
        unit: unit.into(),
        axes,
        model_index: model,
        model: format!("modular-addition-seed{model}"),
        seed: Some(u64::from(model)),
        experiment: metric.split('.').next().unwrap_or_default().into(),
        version: 1,
        params: "{}".into(),
        steps: steps()[..values.len() / block].to_vec(),
        values,
        task: None,
        partner: String::new(),
        reading: None,
    };
    Curve { series, block, second_steps: Vec::new() }
}

fn axis(name: &str, size: u32, labels: &[String]) -> pb::Axis {
    pb::Axis { name: name.into(), size, labels: labels.to_vec() }
}

/// Curves with the shape of a grokking run.
fn grokking(models: u32) -> Vec<Curve> {
    let falls = |step: f64, at: f64, from: f64, to: f64| {
        let share = 1.0 / (1.0 + ((step - at) / 120.0).exp());
        to * (from / to).powf(share)
    };
    let mut curves = Vec::new();
    for metric in ["train_loss", "test_loss", "restricted_loss", "excluded_loss"] {
        for model in 0..models {
            let late = f64::from(model) * 250.0;
            let value = |step: &u64| {
                let step = *step as f64;
                match metric {
                    "train_loss" => falls(step, 250.0, 4.2, 3e-7),
                    "test_loss" if step < 600.0 => 4.2 + step / 150.0,
                    "test_loss" => falls(step, 1700.0 + late, 8.2, 2e-5),
                    "restricted_loss" => falls(step, 1250.0 + late, 4.3, 1e-5),
                    _ => falls(step, 400.0, 4.2, 0.4) + step / 2500.0,
                }
            };
            let values = steps().iter().map(value).collect();
            curves.push(curve(
                &format!("grokking-progress.{metric}"),
                "nats",
                model,
                vec![],
                values,
            ));
        }
    }
    curves
}

fn spec(kind: FigureKind, metrics: &[&str], log_x: bool, log_y: bool) -> FigureSpec {
    FigureSpec {
        stem: "test".into(),
        title: "Progress measures".into(),
        kind,
        metrics: metrics.iter().map(|name| (*name).to_owned()).collect(),
        log_x,
        log_y,
    }
}

const LOSSES: [&str; 4] = [
    "grokking-progress.train_loss",
    "grokking-progress.test_loss",
    "grokking-progress.restricted_loss",
    "grokking-progress.excluded_loss",
];

/// Writes the picture where a person can look at it, when asked to.
fn show(name: &str, figure: &Figure) -> String {
    let svg = to_svg(figure);
    let png = raster::png(&svg).unwrap();
    if let Ok(folder) = std::env::var("SWEEP_SHOW_FIGURES") {
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), png).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.svg")), &svg).unwrap();
    }
    svg
}

fn lines_of(panel: &crate::chart::Panel) -> usize {
    match &panel.content {
        Content::Lines(lines) => lines.len(),
        Content::Paths(_) | Content::Cells(_) => 0,
    }
}

#[test]
fn several_losses_of_two_seeds_get_a_panel_per_seed_with_equal_axes() {
    let figure =
        draw(&spec(FigureKind::Lines, &LOSSES, false, true), &grokking(2), "sweep x").unwrap();
    assert_eq!(figure.panels.len(), 2);
    assert_eq!(figure.panels[0].y.scale, figure.panels[1].y.scale);
    assert_eq!(figure.panels[0].title, "seed 0");
    assert_eq!(figure.panels[0].y.label, "Loss (nats)");
    assert!(figure.panels[1].y.label.is_empty(), "said once");
    let legend: Vec<&str> = figure.legend.iter().map(|entry| entry.label.as_str()).collect();
    assert_eq!(legend, ["train loss", "test loss", "restricted loss", "excluded loss"]);
    show("losses-two-seeds", &figure);
}

#[test]
fn one_metric_of_many_seeds_has_a_colour_per_seed() {
    let figure =
        draw(&spec(FigureKind::Lines, &LOSSES[1..2], true, true), &grokking(5), "").unwrap();
    assert_eq!((figure.panels.len(), lines_of(&figure.panels[0])), (1, 5));
    assert!(matches!(figure.panels[0].x.scale, Scale::Log { zero: true, .. }));
    assert_eq!(figure.legend.len(), 5);
    show("one-metric-five-seeds", &figure);
    let figure = draw(&spec(FigureKind::Lines, &LOSSES, false, true), &grokking(8), "").unwrap();
    assert_eq!((figure.panels.len(), lines_of(&figure.panels[0])), (4, 8));
    show("four-metrics-eight-seeds", &figure);
}

#[test]
fn units_never_share_an_axis() {
    let mut curves = grokking(2);
    for model in 0..2 {
        let values = steps().iter().map(|step| (*step as f64 / 4000.0).min(1.0)).collect();
        curves.push(curve("grokking-progress.test_acc", "probability", model, vec![], values));
    }
    let metrics = [LOSSES[1], "grokking-progress.test_acc"];
    let figure = draw(&spec(FigureKind::Lines, &metrics, false, true), &curves, "").unwrap();
    assert_eq!(figure.panels.len(), 2);
    assert!(matches!(figure.panels[1].y.scale, Scale::Linear { .. }));
    assert_eq!(figure.panels[1].y.label, "Test accuracy");
    show("two-units", &figure);
    let metrics = [LOSSES[0], LOSSES[1], "grokking-progress.test_acc"];
    let figure = draw(&spec(FigureKind::Lines, &metrics, false, true), &curves, "").unwrap();
    assert_eq!((figure.panels.len(), figure.columns), (4, 2));
    show("two-units-two-seeds", &figure);
}

#[test]
fn frequencies_over_steps_are_a_map() {
    let labels: Vec<String> = (1..=35).map(|k| k.to_string()).collect();
    let curves: Vec<Curve> = (0..2)
        .map(|model| {
            let value = |step: &u64, k: u32| {
                let grows = 1.0 / (1.0 + ((1200.0 - *step as f64) / 200.0).exp());
                let key = [4, 14, 27].contains(&(k + model));
                if key { 0.1 + 1.9 * grows } else { 0.12 * (1.0 - 0.8 * grows) }
            };
            let values = steps().iter().flat_map(|s| (1..=35).map(move |k| value(s, k))).collect();
            let axes = vec![axis("frequency", 35, &labels)];
            curve("grokking-progress.fourier_norm_embed", "norm", model, axes, values)
        })
        .collect();
    let metrics = ["grokking-progress.fourier_norm_embed"];
    let figure = draw(&spec(FigureKind::HeatMap, &metrics, false, false), &curves, "").unwrap();
    assert_eq!(figure.panels.len(), 2);
    assert!(
        matches!(figure.panels[0].y.scale, Scale::Linear { min, max } if min == 0.5 && max == 35.5)
    );
    show("frequency-map", &figure);
    let figure = draw(&spec(FigureKind::HeatMap, &metrics, true, true), &curves, "").unwrap();
    assert!(matches!(figure.panels[0].x.scale, Scale::Log { zero: true, .. }));
    show("frequency-map-log", &figure);
    let by_name = of_metrics(&curves, false, false);
    assert_eq!(by_name[0].kind, FigureKind::HeatMap);
}

#[test]
fn tensors_are_named_and_missing_cells_are_marked() {
    let names = [
        "embed.W_E",
        "pos_embed.W_pos",
        "blocks.0.attn.W_Q",
        "blocks.0.attn.W_K",
        "blocks.0.attn.W_V",
        "blocks.0.attn.W_O",
        "blocks.0.mlp.W_in",
        "blocks.0.mlp.W_out",
        "unembed.W_U",
    ];
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let values = steps()
        .iter()
        .flat_map(|step| {
            (0..9).map(move |row| {
                if *step == 0 && row > 6 {
                    f64::NAN
                } else {
                    f64::from(row) * 3.0 - 9.0 + *step as f64 / 900.0
                }
            })
        })
        .collect();
    let curves =
        [curve("weight-norms.cosine", "ratio", 0, vec![axis("tensor", 9, &names)], values)];
    let figure =
        draw(&spec(FigureKind::HeatMap, &["weight-norms.cosine"], false, false), &curves, "")
            .unwrap();
    assert_eq!(figure.legend[0].label, "no value");
    assert!(figure.panels[0].title.is_empty());
    show("tensor-map", &figure);
}

/// A model's checkpoints 0, 10, … against each other.
fn between_steps(metric: &str, model: u32, axes: Vec<pb::Axis>) -> Curve {
    let steps: Vec<u64> = (0..9).map(|i| if i == 0 { 0 } else { 5 << i }).collect();
    let (mut first, mut second, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let block = crate::series::block_size(&axes);
    for (i, a) in steps.iter().enumerate() {
        for (j, b) in steps.iter().enumerate().take(i) {
            first.push(*a);
            second.push(*b);
            let alike = if (i < 5) == (j < 5) { 0.95 } else { 0.4 };
            values.extend((0..block).map(|cell| alike - 0.03 * (i - j) as f64 - 0.1 * cell as f64));
        }
    }
    let mut curve = curve(metric, "ratio", model, axes, Vec::new());
    curve.series.partner = curve.series.model.clone();
    (curve.series.steps, curve.second_steps, curve.series.values) = (first, second, values);
    curve
}

#[test]
fn checkpoints_against_each_other_are_a_map_of_steps() {
    let layers = || vec![axis("layer", 2, &[])];
    let curves = [between_steps("cka.cka", 0, layers()), between_steps("cka.cka", 1, layers())];
    let by_name = of_metrics(&curves, true, false);
    assert!(draw(&by_name[0], &curves, "").is_none(), "they are no lines over steps");
    let figure = draw(&by_name[1], &curves, "").unwrap();
    assert_eq!(figure.panels.len(), 4, "two models, two layers");
    assert!(figure.panels[1].title.ends_with("layer 1"), "{}", figure.panels[1].title);
    let Content::Cells(cells) = &figure.panels[0].content else { panic!("no map") };
    // Row of step 10 and column of step 0; nothing above the diagonal.
    assert!((cells.values[9] - 0.92).abs() < 1e-12);
    assert!(cells.values[1].is_nan() && cells.values[0].is_nan());
    show("step-step-map", &figure);
}

/// The loss barrier between two models at their last step, on two splits.
fn barrier(name: &str, value: f64, models: [&str; 2]) -> Curve {
    let axes = vec![axis("split", 2, &["train", "test"].map(str::to_owned))];
    let mut curve = curve(name, "nats", 0, axes, vec![value, 2.0 * value]);
    curve.series.steps = vec![6000];
    [curve.series.model, curve.series.partner] = models.map(str::to_owned);
    curve
}

#[test]
fn pairs_are_a_map_only_if_most_models_are_compared() {
    let name = |layers: usize, seed: usize| format!("mlp-n_layers={layers}-seed{seed}");
    let mut curves = Vec::new();
    for layers in 1..=2 {
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            for (metric, value) in
                [("rebasin.barrier_naive", 1.1), ("rebasin.barrier_matched", 0.01)]
            {
                let models = [name(layers, a), name(layers, b)];
                curves.push(barrier(metric, value, models.each_ref().map(String::as_str)));
            }
        }
    }
    let metrics = ["rebasin.barrier_naive", "rebasin.barrier_matched"];
    let figure = draw(&spec(FigureKind::Pairs, &metrics, false, false), &curves, "").unwrap();
    let Content::Lines(dots) = &figure.panels[0].content else { panic!("6 of 15 pairs as a map") };
    assert_eq!(dots.len(), 24);
    let Scale::Names { names, .. } = &figure.panels[0].y.scale else { panic!("no names") };
    assert_eq!(names[0], "train, n layers=1, seeds 0 and 1");
    show("pairs-rows", &figure);
    curves.retain(|curve| curve.series.model.contains("layers=1"));
    let figure = draw(&spec(FigureKind::Pairs, &metrics, false, false), &curves, "").unwrap();
    assert!(matches!(figure.panels[0].content, Content::Cells(_)));
}

#[test]
fn what_has_more_axes_than_a_map_is_not_drawn() {
    let axes = || vec![axis("layer", 2, &[]), axis("neuron", 30, &[]), axis("rank", 10, &[])];
    for n_steps in [1, 3] {
        let curves = [curve("max.top", "ratio", 0, axes(), vec![0.5; n_steps * 600])];
        for kind in [FigureKind::HeatMap, FigureKind::Lines, FigureKind::Intervals] {
            assert!(draw(&spec(kind, &["max.top"], false, false), &curves, "").is_none());
        }
    }
}

#[test]
fn layers_and_heads_are_a_map_of_the_last_step() {
    let values: Vec<f64> = (0..2 * 72).map(|i| f64::from((i * 37) % 101) / 101.0).collect();
    let axes = vec![axis("layer", 6, &[]), axis("head", 12, &[])];
    let curves = [curve("induction.score", "ratio", 0, axes, values)];
    let figure = draw(&of_metrics(&curves, false, false)[0], &curves, "").unwrap();
    assert_eq!(figure.panels[0].title, "step 100");
    assert_eq!(figure.panels[0].y.label, "Layer");
    show("layer-head-map", &figure);
}

#[test]
fn principal_components_are_a_path() {
    let curves: Vec<Curve> = (0..2)
        .map(|model| {
            let values = steps()
                .iter()
                .flat_map(|step| {
                    let t = *step as f64 / 4000.0;
                    [8.0 * t - 3.0, (1.0 + f64::from(model)) * (6.0 * t).sin(), 0.1]
                })
                .collect();
            curve("pca.pc", "norm", model, vec![axis("component", 3, &[])], values)
        })
        .collect();
    let figure = draw(&spec(FigureKind::Scatter, &["pca.pc"], false, false), &curves, "").unwrap();
    assert_eq!(figure.panels[0].x.label, "PC 1 (norm)");
    assert_eq!(figure.legend.len(), 2);
    show("pca", &figure);
    assert_eq!(of_metrics(&curves, false, false)[0].kind, FigureKind::Scatter);
}

#[test]
fn members_of_a_joint_analysis_walk_through_one_plane() {
    let values = steps()
        .iter()
        .flat_map(|step| {
            let t = *step as f64 / 4000.0;
            // The second one has no checkpoint at step 0.
            let other = if *step == 0 { f64::NAN } else { 3.0 * t };
            [8.0 * t, t, 0.1, other, other, 0.1]
        })
        .collect();
    let names = ["lm-n_layers=1-seed0", "lm-n_layers=1-seed1"].map(str::to_owned);
    let axes = vec![axis("member", 2, &names), axis("component", 3, &[])];
    let curves = [curve("loss-pca.pc", "nats", 0, axes, values)];
    let spec = spec(FigureKind::Scatter, &["loss-pca.pc"], true, false);
    let figure = draw(&spec, &curves, "").unwrap();
    let titles: Vec<&str> = figure.panels.iter().map(|panel| panel.title.as_str()).collect();
    assert_eq!(titles, ["seed 0", "seed 1"]);
    assert_eq!(figure.panels[0].x, figure.panels[1].x, "one plane, equal axes");
    let n_points = |panel: &crate::chart::Panel| {
        let crate::chart::Content::Paths(paths) = &panel.content else { panic!() };
        paths[0].points.len()
    };
    assert_eq!(n_points(&figure.panels[0]), steps().len());
    assert_eq!(n_points(&figure.panels[1]), steps().len() - 1);
}

#[test]
fn figures_without_values_are_not_drawn() {
    assert_eq!(draw(&spec(FigureKind::Lines, &["a.b"], false, false), &grokking(1), ""), None);
    let empty = curve("a.b", "nats", 0, vec![], vec![]);
    assert_eq!(draw(&spec(FigureKind::Lines, &["a.b"], false, false), &[empty], ""), None);
    // All values are missing: axes without a line are still a figure.
    let nan = curve("a.b", "nats", 0, vec![], vec![f64::NAN; 3]);
    let figure = draw(&spec(FigureKind::Lines, &["a.b"], true, true), &[nan], "").unwrap();
    show("all-missing", &figure);
}

#[test]
fn parameters_are_named_only_where_they_vary() {
    let mut curves = grokking(1);
    curves.truncate(1);
    let mut other = curves[0].clone();
    curves[0].series.params = json!({ "of": "weights" }).to_string();
    other.series.params = json!({ "of": "logits" }).to_string();
    curves.push(other);
    let figure = draw(&spec(FigureKind::Lines, &LOSSES, false, false), &curves, "").unwrap();
    let legend: Vec<&str> = figure.legend.iter().map(|entry| entry.label.as_str()).collect();
    assert_eq!(legend, ["weights", "logits"]);
    assert_eq!(figure.panels[0].y.label, "Train loss (nats)");
    curves.pop();
    let figure = draw(&spec(FigureKind::Lines, &LOSSES, false, false), &curves, "").unwrap();
    assert!(figure.legend.is_empty());
    assert_eq!(figure.panels[0].y.label, "Train loss (nats)");
}

#[test]
fn model_names_lose_what_they_share() {
    assert_eq!(common_prefix(&["a-p=5-seed0", "a-p=5-seed1"]), "a-p=5-".len());
    assert_eq!(common_prefix(&["a-seed1", "a-seed10"]), "a-".len());
    assert_eq!(common_prefix(&["a-seed1"]), 0);
    assert_eq!(common_prefix(&["abc", "abd"]), 0);
    assert_eq!(common_prefix(&["modular-addition-seed0", "sorting", "modular-addition-seed1"]), 0);
    assert_eq!(common_prefix(&["a-mlp-p=5-seed0", "a-mlp-p=7-seed0", "a-seed0"]), 0);
    assert_eq!(common_prefix(&["pythia-160m", "pythia-70m"]), "pythia-".len());
}

#[test]
fn boundaries_of_models_stand_side_by_side() {
    let names = ["memorised_step", "circuit_formation_step", "cleanup_step", "grokked_step"];
    let metrics: Vec<String> = names.iter().map(|name| format!("grokking-phases.{name}")).collect();
    let mut curves = Vec::new();
    for (index, metric) in metrics.iter().enumerate() {
        for model in 0..3u32 {
            let missing = index == 3 && model == 2;
            let step = 150.0 + 400.0 * index as f64 + f64::from(model) * 90.0;
            let value = if missing { f64::NAN } else { step };
            curves.push(curve(metric, "steps", model, vec![], vec![value]));
        }
    }
    let metrics: Vec<&str> = metrics.iter().map(String::as_str).collect();
    let figure = draw(&spec(FigureKind::Lines, &metrics, true, false), &curves, "").unwrap();
    assert_eq!(figure.panels[0].x.label, "Step");
    let legend: Vec<&str> = figure.legend.iter().map(|entry| entry.label.as_str()).collect();
    assert_eq!(legend[0], "memorised step");
    let svg = show("boundaries", &figure);
    assert_eq!(svg.matches("<circle").count(), 11, "the missing one is not drawn");
}

#[test]
fn one_step_with_intervals_is_a_row_of_dots_and_bars() {
    let cells = axis("cell", 2, &["layer 0", "layer 1"].map(str::to_owned));
    let mut curves = Vec::new();
    for (arm, at) in [("weights", 1200.0), ("logits", 900.0)] {
        for (metric, shift) in [("midpoint", 0.0), ("onset", -150.0), ("end", 200.0)] {
            let values = vec![at + shift, if arm == "logits" { f64::NAN } else { at }];
            let name = format!("phase-transition.{metric}");
            let mut curve = curve(&name, "steps", 0, vec![cells.clone()], values);
            curve.series.params = json!({ "of": arm, "folded": true }).to_string();
            curves.push(curve);
        }
    }
    let metrics = ["midpoint", "onset", "end"].map(|name| format!("phase-transition.{name}"));
    let metrics: Vec<&str> = metrics.iter().map(String::as_str).collect();
    let figure = draw(&spec(FigureKind::Intervals, &metrics, true, false), &curves, "").unwrap();
    let Scale::Names { names, .. } = &figure.panels[0].y.scale else { panic!() };
    assert_eq!(
        names,
        &["weights, layer 0", "weights, layer 1", "logits, layer 0", "logits, layer 1"]
    );
    assert_eq!(figure.panels[0].x.label, "Midpoint (steps)");
    let svg = show("rows", &figure);
    assert_eq!(svg.matches("<circle").count(), 3, "a value that is missing has no dot");
    assert_eq!(svg.matches("<polyline").count(), 3, "and no bar");
    // What is never reached is no missing value.
    curves[0].series.values[1] = f64::INFINITY;
    let figure = draw(&spec(FigureKind::Intervals, &metrics, true, false), &curves, "").unwrap();
    let Scale::Names { names, .. } = &figure.panels[0].y.scale else { panic!() };
    assert_eq!(names[..3], ["weights, layer 0", "weights, layer 1 (∞)", "logits, layer 0"]);

    let mut curves = grokking(2);
    for suffix in ["low", "high"] {
        for model in 0..2 {
            let mut end = curves[model].clone();
            end.series.metric = format!("{}_{suffix}", end.series.metric);
            end.series
                .values
                .iter_mut()
                .for_each(|v| *v *= if suffix == "low" { 0.7 } else { 1.4 });
            curves.push(end);
        }
    }
    curves.retain(|curve| curve.series.metric.contains("train_loss"));
    let specs = of_metrics(&curves, false, true);
    assert_eq!((specs.len(), specs[0].kind), (1, FigureKind::Intervals));
    let figure = draw(&specs[0], &curves, "").unwrap();
    assert_eq!(lines_of(&figure.panels[0]), 4, "a curve and its bars for each seed");
    show("lines-with-intervals", &figure);
}

#[test]
fn many_seeds_share_the_row_of_their_setting() {
    let mut curves = Vec::new();
    for (model, (arm, seed)) in
        ["base", "cut"].into_iter().flat_map(|arm| (0..20).map(move |seed| (arm, seed))).enumerate()
    {
        let mut curve =
            curve("delay.onset", "steps", model as u32, vec![], vec![100.0 + seed as f64]);
        curve.series.model = format!("{arm}-seed{seed}");
        curve.series.seed = Some(seed);
        curves.push(curve);
    }
    let figure =
        draw(&spec(FigureKind::Lines, &["delay.onset"], false, false), &curves, "").unwrap();
    let Scale::Names { names, .. } = &figure.panels[0].y.scale else { panic!() };
    assert_eq!(names, &["base", "cut"]);
    assert_eq!(show("strips", &figure).matches("<circle").count(), 40);
    for curve in &mut curves {
        curve.series.steps = vec![1, 2];
        curve.series.values = vec![1.0, 2.0];
    }
    let figure =
        draw(&spec(FigureKind::Lines, &["delay.onset"], false, false), &curves, "").unwrap();
    assert_eq!((lines_of(&figure.panels[0]), figure.legend.len()), (40, 2), "and their colour");
    curves.retain(|curve| curve.series.seed < Some(3));
    let figure =
        draw(&spec(FigureKind::Lines, &["delay.onset"], false, false), &curves, "").unwrap();
    assert_eq!(figure.legend.len(), 6, "few are told apart");
}
