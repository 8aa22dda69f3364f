//! From metric curves to charts: which panels, colours and scales show them best.
//!
//! # Layout
//! - this file: what is to be drawn ([`FigureSpec`]), names of models and units.
//! - `lines`: values over steps.
//! - `rows`: values of one step (verdicts, boundaries, statistics over seeds), with their intervals.
//! - `maps`: heat maps and paths.
//! - `pairs`: comparisons, first × second models or steps.
//!
//! Rules: a colour means a metric or a model, never both; where both vary, models get panels of
//! their own with equal axes; units never share an axis.

mod lines;
mod maps;
mod pairs;
mod rows;

use sweep_proto::{
    catalog, pb,
    spec::{PairSelection, SweepSpec},
};

use crate::{
    chart::{Figure, Panel},
    series::Curve,
};

/// Curves with more cells than this are better seen as a map.
pub const LINES_MAX: usize = 8;

/// How a figure is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FigureKind {
    /// Values over steps.
    Lines,
    /// The same with intervals: metrics come as estimate, lower and upper end.
    Intervals,
    /// First against second component, coloured by step.
    Scatter,
    /// Colours over one or two axes.
    HeatMap,
    /// Colours over first and second models.
    Pairs,
    /// Colours over first and second steps of each model.
    Steps,
}

/// What to draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FigureSpec {
    /// File stem: `grokking-progress.losses`.
    pub stem: String,
    /// Heading.
    pub title: String,
    /// How.
    pub kind: FigureKind,
    /// Full metric names.
    pub metrics: Vec<String>,
    /// Logarithmic steps.
    pub log_x: bool,
    /// Logarithmic values (colours of a heat map).
    pub log_y: bool,
}

impl FigureSpec {
    /// The same metrics over the steps of each model.
    fn over_steps(&self) -> Self {
        let (stem, title) =
            (format!("{}-steps", self.stem), format!("{}, step by step", self.title));
        Self { stem, title, kind: FigureKind::Steps, ..self.clone() }
    }
}

/// The figures that the recipes and experiments of a sweep come with.
pub fn of_sweep(spec: &SweepSpec, known: &pb::Catalog) -> Vec<FigureSpec> {
    let mut figures: Vec<FigureSpec> = Vec::new();
    let mut add = |owner: &str, list: &[pb::Figure]| {
        for figure in list {
            let stem = format!("{owner}.{}", figure.name);
            if figures.iter().any(|known| known.stem == stem) {
                continue;
            }
            figures.push(FigureSpec {
                stem,
                title: figure.title.clone(),
                kind: match figure.kind.as_str() {
                    "intervals" => FigureKind::Intervals,
                    "scatter" => FigureKind::Scatter,
                    "heat-map" => FigureKind::HeatMap,
                    "pairs" => FigureKind::Pairs,
                    _ => FigureKind::Lines,
                },
                metrics: figure.metrics.iter().map(|name| format!("{owner}.{name}")).collect(),
                log_x: figure.log_x,
                log_y: figure.log_y,
            });
        }
    };
    for model in &spec.models {
        if let sweep_proto::spec::ModelSource::Train { recipe, .. } = &model.source
            && let Some(recipe) = catalog::recipe(known, recipe)
        {
            add(&recipe.name, &recipe.figures);
        }
    }
    for experiment in spec.all_experiments() {
        if let Some(experiment) = catalog::experiment(known, &experiment.name) {
            add(&experiment.name, &experiment.figures);
        }
    }
    // Where checkpoints are compared with each other, maps over steps come with it.
    let over_steps = |figure: &&FigureSpec| {
        let owner = figure.metrics.first().and_then(|name| name.split('.').next());
        spec.compare.iter().any(|entry| {
            entry.pairs == PairSelection::Steps && Some(entry.experiment.name.as_str()) == owner
        })
    };
    let more: Vec<FigureSpec> =
        figures.iter().filter(over_steps).map(FigureSpec::over_steps).collect();
    figures.extend(more);
    figures
}

/// Figures for metrics that were asked for by name: one of lines for those that are lines, one map
/// for each of the others.
pub fn of_metrics(curves: &[Curve], log_x: bool, log_y: bool) -> Vec<FigureSpec> {
    let mut names: Vec<&str> = curves.iter().map(|curve| curve.series.metric.as_str()).collect();
    names.dedup();
    let kind = |name: &str| {
        let curve = curves.iter().find(|curve| curve.series.metric == name);
        match curve {
            Some(curve) if between_models(curves.iter(), &curve.series.metric) => FigureKind::Pairs,
            Some(curve) if curve.block > 1 && is_components(curve) => FigureKind::Scatter,
            Some(curve)
                if curve.block > LINES_MAX || curve.series.axes.len() > 1 && curve.block > 1 =>
            {
                FigureKind::HeatMap
            }
            Some(_) | None => FigureKind::Lines,
        }
    };
    let figure = |kind, metrics: Vec<&str>| FigureSpec {
        stem: stem_of(&metrics),
        title: title_of(&metrics),
        kind,
        metrics: metrics.into_iter().map(str::to_owned).collect(),
        log_x,
        log_y,
    };
    let (lines, others): (Vec<&str>, Vec<&str>) =
        names.into_iter().partition(|name| kind(name) == FigureKind::Lines);
    let mut figures = Vec::new();
    let (intervals, lines) = with_ends(lines);
    if !intervals.is_empty() {
        figures.push(figure(FigureKind::Intervals, intervals));
    }
    if !lines.is_empty() {
        figures.push(figure(FigureKind::Lines, lines));
    }
    figures.extend(others.into_iter().map(|name| figure(kind(name), vec![name])));
    let between = curves.iter().filter(|curve| curve.is_between_steps());
    let mut names: Vec<&str> = between.map(|curve| curve.series.metric.as_str()).collect();
    names.dedup();
    let over_steps = names.into_iter().map(|name| figure(FigureKind::Steps, vec![name]));
    figures.extend(over_steps.map(|figure| figure.over_steps()));
    figures
}

/// Metrics that came with `…_low` and `…_high`, in threes, and the others.
fn with_ends(names: Vec<&str>) -> (Vec<&str>, Vec<&str>) {
    let end = |name: &str, suffix: &str| {
        names.iter().copied().find(|end| end.strip_suffix(suffix) == Some(name))
    };
    let mut threes: Vec<&str> = Vec::new();
    for name in &names {
        if let (Some(low), Some(high)) = (end(name, "_low"), end(name, "_high")) {
            threes.extend([*name, low, high]);
        }
    }
    let others = names.iter().copied().filter(|name| !threes.contains(name)).collect();
    (threes, others)
}

/// Whether a metric compares models with each other, and more than two of them.
fn between_models<'a>(curves: impl Iterator<Item = &'a Curve>, metric: &str) -> bool {
    let of_metric = curves.filter(|curve| curve.series.metric == metric);
    let between = of_metric.filter(|curve| {
        !curve.series.partner.is_empty() && curve.series.partner != curve.series.model
    });
    between.count() > 1
}

fn is_components(curve: &Curve) -> bool {
    let [axis] = curve.series.axes.as_slice() else { return false };
    // Shares of variance are a spectrum; coordinates are a way through the plane.
    axis.name == "component" && curve.series.unit != "ratio" && curve.series.unit != "probability"
}

fn stem_of(metrics: &[&str]) -> String {
    match metrics {
        [] => "figure".to_owned(),
        [one] => (*one).to_owned(),
        [first, second] => format!("{first}+{}", crate::series::short_name(second)),
        [first, rest @ ..] => format!("{first}+{}-more", rest.len()),
    }
}

fn title_of(metrics: &[&str]) -> String {
    let names: Vec<String> =
        metrics.iter().map(|name| words(crate::series::short_name(name))).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => capitalised(one),
        [first, second] => capitalised(&format!("{first} and {second}")),
        [first, rest @ ..] => capitalised(&format!("{first} and {} more", rest.len())),
    }
}

/// A curve with the curves of its interval's ends.
#[derive(Clone, Copy)]
struct Measured<'a> {
    curve: &'a Curve,
    ends: Option<(&'a Curve, &'a Curve)>,
}

impl<'a> Measured<'a> {
    /// Estimates with their ends; `metrics` are threes of names.
    fn intervals(metrics: &[String], curves: &[&'a Curve]) -> Vec<Self> {
        let mut measured = Vec::new();
        for names in metrics.chunks(3) {
            let estimates = curves.iter().filter(|curve| curve.series.metric == names[0]);
            for curve in estimates {
                let end = |name: Option<&String>| {
                    let name = name?;
                    let same = |end: &&&Curve| {
                        end.series.metric == *name
                            && end.block == curve.block
                            && end.series.steps == curve.series.steps
                            && end.series.model_index == curve.series.model_index
                            && end.series.partner == curve.series.partner
                            && end.series.params == curve.series.params
                    };
                    curves.iter().find(same).copied()
                };
                measured.push(Self { curve, ends: end(names.get(1)).zip(end(names.get(2))) });
            }
        }
        measured
    }

    fn plain(curves: &[&'a Curve]) -> Vec<Self> {
        curves.iter().map(|curve| Self { curve, ends: None }).collect()
    }

    /// Whether there is nothing along the steps to look at. Two axes are a map, unless lines were asked for.
    fn at_one_step(&self, kind: FigureKind) -> bool {
        let lines = matches!(kind, FigureKind::Lines | FigureKind::Intervals);
        self.curve.series.steps.len() == 1
            && self.curve.series.axes.len() < if lines { 3 } else { 2 }
    }
}

/// Draws a figure; `None` when none of its metrics has values.
pub fn draw(spec: &FigureSpec, curves: &[Curve], description: &str) -> Option<Figure> {
    // In the order of the figure's own list, which is the order of importance.
    let of_metric = |name: &'_ String| {
        let name = name.clone();
        curves.iter().filter(move |curve| curve.series.metric == name)
    };
    let chosen: Vec<&Curve> = spec
        .metrics
        .iter()
        .flat_map(of_metric)
        .filter(|curve| curve.block > 0 && !curve.series.steps.is_empty())
        .filter(|curve| curve.is_between_steps() == (spec.kind == FigureKind::Steps))
        .collect();
    if chosen.is_empty() {
        return None;
    }
    // What does not exist for these models would be an empty panel; all of it, a figure that says so.
    let has_values = |curve: &&Curve| curve.series.values.iter().any(|value| value.is_finite());
    let chosen: Vec<&Curve> = if chosen.iter().any(has_values) {
        chosen.into_iter().filter(has_values).collect()
    } else {
        chosen
    };
    let names = Names::of(&chosen);
    let measured = match spec.kind {
        FigureKind::Intervals => Measured::intervals(&spec.metrics, &chosen),
        _ => Measured::plain(&chosen),
    };
    let mut figure = match spec.kind {
        FigureKind::Steps => pairs::steps(spec, &chosen, &names),
        FigureKind::Pairs
            if chosen
                .iter()
                .any(|curve| between_models(chosen.iter().copied(), &curve.series.metric))
                && !(pairs::is_sparse(&chosen)
                    && measured.iter().all(|one| one.at_one_step(spec.kind))) =>
        {
            pairs::models(spec, &chosen, &names)
        }
        FigureKind::Scatter => maps::paths(spec, &chosen, &names),
        _ if measured.iter().all(|one| one.at_one_step(spec.kind)) => {
            rows::rows(spec, &measured, &names)
        }
        FigureKind::Lines | FigureKind::Intervals | FigureKind::Pairs
            if chosen.iter().all(|curve| curve.block > LINES_MAX) =>
        {
            maps::heat_maps(spec, &chosen, &names)
        }
        FigureKind::Lines | FigureKind::Intervals | FigureKind::Pairs => {
            lines::lines(spec, &measured, &names)
        }
        FigureKind::HeatMap if chosen.iter().all(|curve| curve.block == 1) => {
            lines::lines(spec, &measured, &names)
        }
        FigureKind::HeatMap => maps::heat_maps(spec, &chosen, &names),
    }?;
    description.clone_into(&mut figure.description);
    Some(figure)
}

/// Panels with equal axes below or beside each other need their labels once.
fn say_once(panels: &mut [Panel], columns: usize) {
    for index in (0..panels.len()).rev() {
        let below = panels.get(index + columns);
        if below.is_some_and(|below| below.x == panels[index].x) {
            panels[index].x.label.clear();
        }
        if !index.is_multiple_of(columns) && panels[index - 1].y == panels[index].y {
            panels[index].y.label.clear();
        }
    }
}

/// Short names: what all models have in common is left out, and so are parameters that do not vary.
struct Names {
    prefix: usize,
    /// Parameters that differ between curves of the same metric and model.
    varying: Vec<String>,
}

impl Names {
    fn of(curves: &[&Curve]) -> Self {
        let mut models: Vec<&str> = Vec::new();
        for curve in curves {
            models.extend([curve.series.model.as_str(), curve.series.partner.as_str()]);
        }
        models.retain(|name| !name.is_empty());
        models.sort_unstable();
        models.dedup();
        let mut varying: Vec<String> = Vec::new();
        for (index, a) in curves.iter().enumerate() {
            let same = |b: &&&Curve| {
                a.series.metric == b.series.metric && a.series.model_index == b.series.model_index
            };
            for b in curves[..index].iter().filter(same) {
                let (a, b) = (params_of(a), params_of(b));
                let differ = |name: &&String| a.get(*name) != b.get(*name);
                varying.extend(a.keys().chain(b.keys()).filter(differ).cloned());
            }
        }
        varying.sort();
        varying.dedup();
        Self { prefix: common_prefix(&models), varying }
    }

    /// The model, or both models of a pair.
    fn model(&self, curve: &Curve) -> String {
        let pb::Series { model, partner, .. } = &curve.series;
        if partner.is_empty() || partner == model {
            return self.short(model);
        }
        let (first, second) = (self.short(model), self.short(partner));
        // Two seeds of one setting need it once.
        match (seed_of(&first), seed_of(&second)) {
            (Some((a, first)), Some((b, second))) if a == b => {
                format!("{a}, seeds {first} and {second}")
            }
            _ => format!("{first} to {second}"),
        }
    }

    /// The model without its seed.
    fn setting(&self, curve: &Curve) -> String {
        let model = self.model(curve);
        if curve.series.seed.is_none() || !curve.series.partner.is_empty() {
            return model;
        }
        match seed_of(&model) {
            Some((setting, _)) => setting.to_owned(),
            // Nothing but the seed is left of a name that shares the rest with all others.
            None if model.starts_with("seed ") => String::new(),
            None => model,
        }
    }

    fn short(&self, name: &str) -> String {
        Self::short_of(name.get(self.prefix..).unwrap_or(name))
    }

    /// A name without what it shares with others, as words.
    fn short_of(short: &str) -> String {
        match short.strip_prefix("seed") {
            Some(seed) if !seed.is_empty() && seed.bytes().all(|b| b.is_ascii_digit()) => {
                format!("seed {seed}")
            }
            Some(_) | None => short.replace('_', " "),
        }
    }

    /// Only parameters that vary; a single one with a text as its value needs no name.
    fn params(&self, curve: &Curve) -> String {
        let params = params_of(curve);
        let text = |name: &String| match params.get(name) {
            None => format!("default {name}"),
            Some(serde_json::Value::String(text)) if self.varying.len() == 1 => text.clone(),
            Some(value) => format!("{name}={}", cut(value)),
        };
        self.varying.iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// Model and, where they vary, parameters.
    fn panel(&self, curve: &Curve) -> String {
        match self.params(curve) {
            params if params.is_empty() => self.model(curve),
            params => format!("{}, {params}", self.model(curve)),
        }
    }
}

/// Setting and seed of `setting-seed3`.
fn seed_of(name: &str) -> Option<(&str, &str)> {
    let (setting, seed) = name.rsplit_once("-seed")?;
    let is_seed = !seed.is_empty() && seed.bytes().all(|byte| byte.is_ascii_digit());
    is_seed.then_some((setting, seed))
}

/// A parameter's value as far as a heading has room for it.
fn cut(value: &serde_json::Value) -> String {
    let text = match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(list) if list.len() == 1 => return cut(&list[0]),
        other => other.to_string(),
    };
    let text = text.replace(['"', '[', ']', '\n'], " ");
    let text = text.trim();
    match text.char_indices().nth(PARAM_SHOWN) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// Characters of a parameter's value that are shown in a figure.
const PARAM_SHOWN: usize = 32;

fn params_of(curve: &Curve) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(&curve.series.params).unwrap_or_default()
}

/// Bytes that all names share, up to and with the last `-`; 0 for a single name, and where they would cut a name in two: next to
/// `modular-addition-seed0`, `modular-addition-mlp-seed0` is not `mlp-seed0`.
pub(crate) fn common_prefix(names: &[&str]) -> usize {
    let Some(first) = names.first() else { return 0 };
    if names.iter().all(|name| name == first) {
        return 0;
    }
    let with_first =
        |name: &&str| first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let shared = names.iter().map(with_first).min().unwrap_or(0);
    let end =
        first.as_bytes()[..shared].iter().rposition(|byte| *byte == b'-').map_or(0, |at| at + 1);
    // What a name says about its setting: parameters, then the seed.
    let is_setting = |name: &&&str| {
        let word = name[end..].split('-').next().unwrap_or_default();
        word.contains('=') || word.starts_with("seed")
    };
    let n_settings = names.iter().filter(is_setting).count();
    if n_settings == 0 || n_settings == names.len() { end } else { 0 }
}

/// `excluded_loss` as words.
fn words(name: &str) -> String {
    let spelled: Vec<&str> = name
        .split('_')
        .map(|word| match word {
            "acc" => "accuracy",
            "lr" => "learning rate",
            "fve" => "fraction of variance explained",
            "evr" => "explained variance ratio",
            "pc" => "principal component",
            "diff" => "difference",
            "attn" => "attention",
            "resid" => "residual",
            "cos" => "cosine",
            "ov" => "OV",
            "qk" => "QK",
            "cka" => "CKA",
            "js" => "Jensen–Shannon divergence",
            "llc" => "LLC",
            "mlp" => "MLP",
            "ioi" => "IOI",
            "bos" => "BOS",
            "auroc" => "AUROC",
            other => other,
        })
        .collect();
    spelled.join(" ")
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// `name (unit)`, without units that say nothing.
fn with_unit(name: &str, unit: &str) -> String {
    match unit {
        "" | "dimensionless" | "truth" => name.to_owned(),
        "ratio" | "probability" if !name.is_empty() => name.to_owned(),
        "steps" if name.ends_with("step") => name.to_owned(),
        unit => {
            let unit = unit.replace('_', " ");
            if name.is_empty() || name == unit { unit } else { format!("{name} ({unit})") }
        }
    }
}

#[cfg(test)]
mod tests;
