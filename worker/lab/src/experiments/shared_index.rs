//! Do models with one initialisation have their heads of a kind at the same indices?
//!
//! # What it measures
//! Models whose score per head `[layer, head]` has the same shape are compared; those that also began with the same
//! initialisation (recipe, width and `init_seed`, or else the seed) form a *group*. Published models form one per shape with
//! `share_published` (Nanda's toy models began with the same weights), without it each its own. A head counts
//! where its last score is at least `threshold`. `share_count` `[cell]`: in how many models of the group the head at that
//! index counts. `n_shared` `[cell]`: at how many indices all models agree. `overlap` `[cell]`: mean Jaccard index of the sets of
//! heads over pairs of models of the group. Null: heads are relabelled at random within each layer of each model, which keeps how
//! many a layer has; `overlap_null` is the mean and `overlap_null_high` the 95 % quantile of the overlap then, `p_perm` the
//! share of relabellings (the real one included) with at least the overlap found. `overlap_other_init`: the same mean over pairs of
//! models of the same shape that began differently, a second control. `onset_correlation` `[cell]`: rank correlation
//! between two models of the steps at which heads reach the threshold, over heads that count in both, mean over pairs with at
//! least three.
//!
//! # Interpretation
//! Overlap above both controls: the initialisation (or what the models share of the data order) decides which head takes the role. A
//! group of one model, or of models without such heads, has nothing to share (NaN; `n_shared` 0). Whether initial weights are
//! really equal is told by `weight-delta` between the models at their first checkpoint.
//!
//! # Source
//! Nanda 2022, 200 Concrete Open Problems, 5.10; permutation p-values as in Phipson and Smyth 2010.

use std::collections::BTreeMap;

use rand::Rng;
use serde_json::Value as Json;

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit, of_cell},
    cohort::{Cohort, Member, MemberSeries, REPORT},
    curve::order::spearman,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct SharedIndex;

params! {
    /// Of which score, and how sure.
    pub struct Params {
        /// Full name of a metric with the axes layer and head.
        metric: MetricName = MetricName::default();
        /// Score from which a head counts.
        threshold: f64 = 0.3;
        /// Published models of one shape began with the same weights: true of Nanda's toy models, not of Stanford's GPT-2.
        share_published: bool = false;
        /// Relabellings of heads.
        n_permutations: u64 = 2000, min = 1.0, max = 1_000_000.0;
        /// Seed of the relabellings.
        seed: u64 = 0;
    }
}

impl Experiment for SharedIndex {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "shared-index",
        version: 2,
        summary: "Tests whether models of one initialisation have heads of a kind at the same indices",
        source: "Nanda 2022, 200 Concrete Open Problems, 5.10",
        stage: Stage::Joint(Scope::Sweep),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        Inputs::Series(vec![params.metric.0.clone()])
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let found = cohort.series(&params.metric.0)?;
        cohort.report(cx)?;
        let mut models = Vec::new();
        for member in found {
            if cohort.members[member.member].failure.is_none() {
                models.extend(Heads::of(&cohort.members[member.member], member, &params)?);
            }
        }
        let mut groups: BTreeMap<(Vec<usize>, String), Vec<&Heads>> = BTreeMap::new();
        for model in &models {
            groups.entry((model.shape.clone(), model.init.clone())).or_default().push(model);
        }
        let mut table = Table::default();
        for (index, ((shape, init), group)) in groups.iter().enumerate() {
            // A stream per group: results do not depend on which other models there are.
            let name = format!("{} layers, {init}", shape[0]);
            let mut rng = random::stream(params.seed, &format!("shared-index/{name}"));
            table.add(&name, group, params.n_permutations, &mut rng);
            cx.progress(index as u64 + 1, groups.len() as u64)?;
        }
        table.emit(cx)?;
        let others = pairs(&models).filter(|(a, b)| a.shape == b.shape && a.init != b.init);
        cx.metric("overlap_other_init", mean(others.map(|(a, b)| jaccard(&a.counts, &b.counts))))
    }
}

/// The heads of one model.
struct Heads {
    /// Layers, heads.
    shape: Vec<usize>,
    init: String,
    /// Whether a head's last score reaches the threshold, by index.
    counts: Vec<bool>,
    /// First step at which a head reaches the threshold; NaN for one that never does.
    onsets: Vec<f64>,
}

impl Heads {
    /// None for a model without points.
    fn of(member: &Member, found: &MemberSeries, params: &Params) -> Result<Option<Self>> {
        let series = &found.series;
        let Some((_, last)) = series.points.last() else { return Ok(None) };
        if series.axes != ["layer", "head"] || found.partner.is_some() {
            let axes = series.axes.join(", ");
            let problem = format!("has the axes [{axes}], expected [layer, head]");
            return Err(Error::params("metric", problem));
        }
        let reaches = |value: f64| value >= params.threshold;
        let onset = |index: usize| {
            let mut points = series.points.iter();
            let first =
                points.find(|(_, value)| value.data.get(index).is_some_and(|v| reaches(*v)));
            first.map_or(f64::NAN, |(step, _)| *step as f64)
        };
        Ok(Some(Self {
            shape: last.shape.clone(),
            init: initialisation(member, params.share_published),
            counts: last.data.iter().map(|value| reaches(*value)).collect(),
            onsets: (0..last.data.len()).map(onset).collect(),
        }))
    }

    /// The same numbers of heads per layer, at random places.
    fn relabelled(&self, rng: &mut impl Rng) -> Vec<bool> {
        let n_heads = self.shape[1];
        let layers = self.counts.chunks(n_heads.max(1));
        let shuffled = layers.flat_map(|layer| {
            let order = random::permutation(rng, layer.len());
            order.into_iter().map(|head| layer[head as usize]).collect::<Vec<_>>()
        });
        shuffled.collect()
    }
}

/// What a model's initial weights were drawn from: models of equal recipe, width and seed of the initial weights have those
/// tensors in common that have one shape.
fn initialisation(member: &Member, share_published: bool) -> String {
    let drawn = member.params.get("init_seed").and_then(Json::as_u64);
    match (drawn.or(member.seed), &member.recipe) {
        (Some(seed), Some(recipe)) => {
            let width = member.params.get("d_model").map(|width| format!(", d_model {width}"));
            format!("{recipe}{}, initialisation {seed}", width.unwrap_or_default())
        }
        _ if share_published => "published".to_owned(),
        _ => member.label.clone(),
    }
}

fn pairs<T>(items: &[T]) -> impl Iterator<Item = (&T, &T)> {
    items.iter().enumerate().flat_map(|(at, a)| items[at + 1..].iter().map(move |b| (a, b)))
}

/// NaN for two empty sets.
fn jaccard(a: &[bool], b: &[bool]) -> f64 {
    let count = |of: fn(bool, bool) -> bool| a.iter().zip(b).filter(|(a, b)| of(**a, **b)).count();
    count(|a, b| a && b) as f64 / count(|a, b| a || b) as f64
}

fn overlap(models: &[Vec<bool>]) -> f64 {
    mean(pairs(models).map(|(a, b)| jaccard(a, b)))
}

/// Of the finite ones; NaN for none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.filter(|v| v.is_finite()).fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
    sum / n
}

fn onset_correlation(group: &[&Heads]) -> f64 {
    mean(pairs(group).map(|(a, b)| {
        let both = (0..a.counts.len()).filter(|&head| a.counts[head] && b.counts[head]);
        let (a, b): (Vec<f64>, Vec<f64>) =
            both.map(|head| (a.onsets[head], b.onsets[head])).unzip();
        if a.len() < 3 { f64::NAN } else { spearman(&a, &b) }
    }))
}

/// One column per metric.
#[derive(Default)]
struct Table {
    groups: Vec<String>,
    values: [Vec<f64>; 7],
    heads: Vec<String>,
    share_count: Vec<f64>,
}

const COLUMNS: [&str; 7] = [
    "n_models_of_group",
    "n_shared",
    "overlap",
    "overlap_null",
    "overlap_null_high",
    "p_perm",
    "onset_correlation",
];

impl Table {
    fn add(&mut self, name: &str, group: &[&Heads], n_permutations: u64, rng: &mut impl Rng) {
        let sets: Vec<Vec<bool>> = group.iter().map(|model| model.counts.clone()).collect();
        let found = overlap(&sets);
        let draw = |_| {
            let sets: Vec<Vec<bool>> = group.iter().map(|model| model.relabelled(rng)).collect();
            overlap(&sets)
        };
        let mut null: Vec<f64> = if found.is_nan() {
            Vec::new()
        } else {
            (0..n_permutations).map(draw).filter(|value| value.is_finite()).collect()
        };
        null.sort_by(f64::total_cmp);
        let high = null.get((null.len() * 95).div_ceil(100).saturating_sub(1)).copied();
        // The labels as they are belong to the null.
        let as_high = null.iter().filter(|value| **value >= found - 1e-12).count();
        let p = (1 + as_high) as f64 / (1 + null.len()) as f64;
        let width = sets.first().map_or(0, Vec::len);
        let counts = (0..width).map(|head| sets.iter().filter(|set| set[head]).count());
        let counts: Vec<usize> = counts.collect();
        let shared = counts.iter().filter(|count| **count == group.len()).count() as f64;
        let alone = group.len() < 2;
        let row = [
            group.len() as f64,
            if alone { f64::NAN } else { shared },
            found,
            mean(null.iter().copied()),
            high.unwrap_or(f64::NAN),
            if found.is_nan() { f64::NAN } else { p },
            onset_correlation(group),
        ];
        self.groups.push(name.to_owned());
        for (column, value) in self.values.iter_mut().zip(row) {
            column.push(value);
        }
        let n_heads = group.first().map_or(1, |model| model.shape[1]).max(1);
        let label = |index: usize| format!("{name}, L{}H{}", index / n_heads, index % n_heads);
        self.heads.extend((0..width).map(label));
        self.share_count.extend(counts.iter().map(|count| *count as f64));
    }

    fn emit(self, cx: &mut Context<'_>) -> Result<()> {
        for (name, values) in COLUMNS.into_iter().zip(self.values) {
            cx.metric(name, Value::labelled(&self.groups, values))?;
        }
        cx.metric("share_count", Value::labelled(&self.heads, self.share_count))
    }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    of_cell("n_models_of_group", Unit::Count, "Models of one shape and initialisation"),
    of_cell("n_shared", Unit::Count, "Indices at which the head counts in all models of the group"),
    of_cell(
        "overlap",
        Unit::Ratio,
        "Mean Jaccard index of the heads that count, over pairs of models",
    ),
    of_cell("overlap_null", Unit::Ratio, "Its mean with heads relabelled within their layers"),
    of_cell("overlap_null_high", Unit::Ratio, "95 % quantile of the same"),
    of_cell("p_perm", Unit::Probability, "Share of relabellings with at least the overlap found"),
    of_cell(
        "onset_correlation",
        Unit::Ratio,
        "Rank correlation of the steps at which heads come to count",
    ),
    of_cell(
        "share_count",
        Unit::Count,
        "Models of the group in which the head at that index counts",
    ),
    MetricDef {
        name: "overlap_other_init",
        unit: Unit::Ratio,
        axes: &[],
        doc: "Mean Jaccard index over pairs of one shape that began differently",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "share-count",
    title: "Models in which the head counts",
    kind: FigureKind::Lines,
    metrics: &["share_count"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;

    fn model(heads: &[usize], onsets: &[(usize, f64)]) -> Heads {
        let mut model = Heads {
            shape: vec![2, 8],
            init: "seed 0".to_owned(),
            counts: vec![false; 16],
            onsets: vec![f64::NAN; 16],
        };
        for head in heads {
            model.counts[*head] = true;
        }
        for (head, step) in onsets {
            model.onsets[*head] = *step;
        }
        model
    }

    fn row(models: &[Heads]) -> [f64; 7] {
        let mut table = Table::default();
        let mut rng = random::stream(0, "test");
        table.add("g", &models.iter().collect::<Vec<_>>(), 2000, &mut rng);
        table.values.map(|column| column[0])
    }

    #[test]
    fn equal_indices_are_noticed_and_their_chance_is_exact() {
        // One head of eight in each of three models, in one layer: all three agree with chance 1/64.
        let [n, shared, overlap, null, high, p, _] = row(&[0; 3].map(|_| model(&[9], &[])));
        assert_eq!([n, shared, overlap], [3.0, 1.0, 1.0]);
        assert!((p - 1.0 / 64.0).abs() < 0.01, "{p}");
        // Two of three agree with chance 3·7/64, which is a third; three: one.
        assert!((null - (21.0 / 64.0 / 3.0 + 1.0 / 64.0)).abs() < 0.02, "{null}");
        assert!((high - 1.0 / 3.0).abs() < 1e-12, "{high}");
    }

    #[test]
    fn other_indices_are_no_more_than_chance() {
        let [_, shared, overlap, .., p, _] =
            row(&[model(&[9], &[]), model(&[10], &[]), model(&[11], &[])]);
        assert_eq!((shared, overlap, p), (0.0, 0.0, 1.0));
    }

    #[test]
    fn relabelling_stays_within_layers() {
        let model = model(&[0, 9, 10], &[]);
        let mut rng = random::stream(1, "test");
        for _ in 0..50 {
            let found = model.relabelled(&mut rng);
            let of = |layer: &[bool]| layer.iter().filter(|counts| **counts).count();
            assert_eq!((of(&found[..8]), of(&found[8..])), (1, 2));
        }
    }

    #[test]
    fn onsets_are_compared_where_both_models_have_them() {
        // The head at 3 was there for a while only, that at 4 counts in one of them.
        let a = model(&[4, 8, 9, 10], &[(3, 50.0), (4, 1.0), (8, 100.0), (9, 200.0), (10, 300.0)]);
        let b = model(&[8, 9, 10], &[(3, 500.0), (4, 900.0), (8, 110.0), (9, 150.0), (10, 400.0)]);
        assert_eq!(row(&[a, b])[6], 1.0);
        assert!(row(&[model(&[], &[(8, 1.0)]), model(&[], &[(8, 2.0)])])[6].is_nan());
    }

    #[test]
    fn one_model_shares_with_nobody() {
        let [n, shared, overlap, _, _, p, _] = row(&[model(&[9], &[])]);
        assert_eq!(n, 1.0);
        assert!(shared.is_nan() && overlap.is_nan() && p.is_nan());
    }

    #[test]
    fn the_initialisation_is_that_which_was_asked_for() {
        let trained = |seed: u64, params: Json| {
            let Json::Object(params) = params else { panic!() };
            let recipe = Some("induction".to_owned());
            let member = Member { seed: Some(seed), params, recipe, ..Member::default() };
            initialisation(&member, true)
        };
        let json = |init_seed: i64, d_model: i64| serde_json::json!({ "init_seed": init_seed, "d_model": d_model });
        assert_eq!(trained(1, json(4, 64)), "induction, d_model 64, initialisation 4");
        assert_eq!(trained(4, json(-1, 64)), trained(1, json(4, 64)), "the seed of the run");
        assert_ne!(trained(4, json(-1, 32)), trained(4, json(-1, 64)), "other shapes");
        let published = Member { label: "gelu-2l".to_owned(), ..Member::default() };
        assert_eq!(initialisation(&published, true), "published");
        assert_eq!(initialisation(&published, false), "gelu-2l");
    }
}
