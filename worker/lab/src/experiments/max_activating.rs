//! The places of a text where each neuron is most active, with their contexts.
//!
//! # What it measures
//! For every neuron the `k` largest activations over a text (D27), equal ones in the order of the text, and the `k` smallest.
//! `neurons.jsonl` has one line per neuron and site: moments, frequency, quantiles of a sample of positions, and for each place
//! the activation, row, position, token and `context` tokens on both sides. `neurons.md` shows those of highest kurtosis, one table
//! per site and layer. Metrics: `top`, the largest activation; `token_entropy`, entropy of the tokens at the k places in
//! nats; `token_share`, share of their commonest token. The text streams: memory grows with k and the number of neurons, not with the text.
//!
//! # Interpretation
//! Entropy 0 is a neuron of one token; ln k is one whose best places share no token, which contexts may still explain. What
//! the top places show need not hold for the rest of the range.
//!
//! # Source
//! Elhage et al. 2022, Softmax Linear Units; Nanda 2022, Neuroscope; D27.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use sweep_lens::Tensor;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    documents::{Documents, document_params},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Subject},
    neurons::{Extremes, Moments, Sample, Sites, places},
    params::ParamSet,
    prompts::Names,
    sink::Context,
    token_difference::shown,
};

/// See the module documentation.
pub struct MaxActivating;

document_params! {
    /// Places per neuron.
    k: u64 = 20, min = 1.0, max = 1000.0;
    /// Tokens of context on each side.
    context: u64 = 30, max = 1000.0;
    /// Neurons per site and layer in the readable table.
    shown: u64 = 10, max = 1000.0;
}

const QUANTILES: [f64; 5] = [0.01, 0.25, 0.5, 0.75, 0.99];
/// Most neurons that are written out.
const MAX_NEURONS: usize = 1 << 20;

impl Experiment for MaxActivating {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "max-activating",
        version: 1,
        summary: "Finds the places of a text where each neuron is most active",
        source: "Elhage et al. 2022 (SoLU); Nanda 2022, Neuroscope",
        stage: Stage::Analyse,
        requires: Requires { mlp: true, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let sites = Sites::of(subject.model.config())?;
        if sites.n_groups() * sites.n_neurons > MAX_NEURONS {
            return Err(Error::Unsupported(format!("more than {MAX_NEURONS} neurons")));
        }
        let documents = Documents::new(subject, &params.wanted())?;
        let names = Names::of(subject)?;
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| {
            let mut found = Found::new(&sites, &params);
            documents.for_each(&subject, |batch| {
                let places = places(batch, subject.model.config());
                sites.read(subject.model, batch, |group, activations| {
                    found.groups[group].add(&activations, &places)
                })?;
                found.contexts.keep(&found.groups, batch.first_row, &batch.rows);
                cx.progress(batch.progress.0, batch.progress.1)
            })?;
            found.emit(&sites, &names, &params, cx)
        })))
    }
}

/// What is known of the neurons of one site and layer.
struct Group {
    moments: Moments,
    top: Extremes,
    bottom: Extremes,
    sample: Sample,
}

impl Group {
    fn add(&mut self, activations: &Tensor, places: &Tensor) -> Result<()> {
        self.moments.add(activations, 0.0);
        self.sample.add(activations);
        self.top.add(activations, places)?;
        self.bottom.add(activations, places)
    }
}

/// Rows that some neuron's places lie in; the others are forgotten.
#[derive(Default)]
struct Contexts {
    rows: BTreeMap<u64, Vec<i64>>,
    /// Number of rows from which forgetting pays.
    limit: usize,
}

impl Contexts {
    fn keep(&mut self, groups: &[Group], first: u64, rows: &[Vec<i64>]) {
        self.rows.extend((first..).zip(rows.iter().cloned()));
        if self.rows.len() < self.limit.max(4096) {
            return;
        }
        let mut used = std::collections::BTreeSet::new();
        for places in groups.iter().flat_map(|group| [group.top.places(), group.bottom.places()]) {
            let Some(places) = places else { continue };
            let rows = places.bitwise_right_shift_tensor_scalar(32);
            let (rows, _, _) = rows.reshape([-1]).internal_unique2(true, false, false);
            used.extend(Vec::<i64>::try_from(rows.to_device(tch::Device::Cpu)).unwrap_or_default());
        }
        self.rows.retain(|row, _| used.contains(&(*row as i64)));
        self.limit = 2 * self.rows.len();
    }

    fn place(&self, names: &Names<'_>, of: (f64, u64, usize), width: usize) -> Json {
        let (activation, row, position) = of;
        let ids = self.rows.get(&row).map_or(&[][..], Vec::as_slice);
        let position = position.min(ids.len().saturating_sub(1));
        let before = &ids[position.saturating_sub(width)..position];
        let here = ids.get(position).copied();
        let behind = &ids[(position + 1).min(ids.len())..(position + 1 + width).min(ids.len())];
        json!({
            "activation": activation, "row": row, "position": position, "id": here,
            "before": names.text(before),
            "token": here.map(|id| names.text(&[id])),
            "behind": names.text(behind),
        })
    }
}

struct Found {
    groups: Vec<Group>,
    contexts: Contexts,
}

impl Found {
    fn new(sites: &Sites, params: &Params) -> Self {
        let group = |_| Group {
            moments: Moments::default(),
            top: Extremes::new(params.k, false),
            bottom: Extremes::new(params.k, true),
            sample: Sample::default(),
        };
        Self { groups: (0..sites.n_groups()).map(group).collect(), contexts: Contexts::default() }
    }

    fn emit(
        &self,
        sites: &Sites,
        names: &Names<'_>,
        params: &Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let (mut lines, mut table) = (String::new(), String::new());
        let mut columns: [Vec<Vec<f64>>; 3] = Default::default();
        for (index, group) in self.groups.iter().enumerate() {
            let (site, layer) = sites.label(index);
            let quantiles = group.sample.quantiles(&QUANTILES);
            let (mean, std) = (group.moments.mean(), group.moments.std());
            let (kurtosis, frequency) = (group.moments.kurtosis(), group.moments.frequency());
            let (mut entropy, mut share) = (Vec::new(), Vec::new());
            let mut pages = Vec::new();
            for neuron in 0..sites.n_neurons {
                let of = |places: Vec<(f64, u64, usize)>| -> Vec<Json> {
                    let width = params.context as usize;
                    let place = |place| self.contexts.place(names, place, width);
                    places.into_iter().map(place).collect()
                };
                let (top, bottom) = (of(group.top.of(neuron)), of(group.bottom.of(neuron)));
                let (h, s) = spread(top.iter().map(|place| place["id"].as_i64()));
                entropy.push(h);
                share.push(s);
                let page = json!({
                    "site": site, "layer": layer, "neuron": neuron,
                    "mean": mean[neuron], "std": std[neuron], "kurtosis": kurtosis[neuron],
                    "frequency": frequency[neuron],
                    "quantiles": QUANTILES.iter().zip(&quantiles[neuron]).collect::<Vec<_>>(),
                    "top": top, "bottom": bottom,
                });
                lines.push_str(&page.to_string());
                lines.push('\n');
                pages.push((kurtosis[neuron], page));
            }
            pages.sort_by(|a, b| b.0.total_cmp(&a.0));
            let pages = pages.into_iter().filter(|(k, _)| k.is_finite());
            table.push_str(&tables(site, layer, pages.take(params.shown as usize)));
            columns[0].push(group.top.best());
            columns[1].push(entropy);
            columns[2].push(share);
            cx.progress(index as u64 + 1, self.groups.len() as u64)?;
        }
        for (name, rows) in ["top", "token_entropy", "token_share"].into_iter().zip(&columns) {
            cx.metric(name, sites.value(rows))?;
        }
        cx.metric("n_positions", self.groups[0].moments.n)?;
        cx.artifact("neurons.jsonl", lines.into_bytes())?;
        cx.artifact("neurons.md", table.into_bytes())
    }
}

/// Entropy in nats of the distribution of some tokens, and the share of the commonest.
fn spread(ids: impl Iterator<Item = Option<i64>>) -> (f64, f64) {
    let mut counts: BTreeMap<Option<i64>, f64> = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_default() += 1.0;
    }
    let n: f64 = counts.values().sum();
    let entropy = counts.values().map(|count| -(count / n) * (count / n).ln()).sum();
    (entropy, counts.values().copied().fold(0.0, f64::max) / n)
}

/// Places shown of a neuron.
const EXAMPLES: usize = 5;
/// Characters of context shown on each side.
const MARGIN: usize = 40;

fn tables(site: &str, layer: usize, pages: impl Iterator<Item = (f64, Json)>) -> String {
    let mut lines = vec![format!("## layer {layer}, `{site}`\n")];
    for (kurtosis, page) in pages {
        let frequency = page["frequency"].as_f64().unwrap_or(f64::NAN);
        let neuron = &page["neuron"];
        lines.push(format!(
            "### neuron {neuron} (kurtosis {kurtosis:.1}, frequency {frequency:.4})\n"
        ));
        lines.push("| activation | before | token | behind |\n|---:|---:|:-:|:---|".to_owned());
        for place in page["top"].as_array().into_iter().flatten().take(EXAMPLES) {
            let cell = |name: &str| shown(place[name].as_str().unwrap_or_default());
            let before: Vec<char> = cell("before").chars().collect();
            let before: String = before[before.len().saturating_sub(MARGIN)..].iter().collect();
            let behind: String = cell("behind").chars().take(MARGIN).collect();
            let activation = place["activation"].as_f64().unwrap_or(f64::NAN);
            let token = cell("token");
            lines.push(format!("| {activation:.3} | {before} | **{token}** | {behind} |"));
        }
        lines.push(String::new());
    }
    lines.join("\n") + "\n"
}

const NEURONS: &[Axis] = &[Axis::Site, Axis::Layer, Axis::Neuron];

const METRICS: &[MetricDef] = &[
    MetricDef { name: "top", unit: Unit::Dimensionless, axes: NEURONS, doc: "Largest activation" },
    MetricDef {
        name: "token_entropy",
        unit: Unit::Nats,
        axes: NEURONS,
        doc: "Entropy of the tokens at a neuron's top places",
    },
    MetricDef {
        name: "token_share",
        unit: Unit::Probability,
        axes: NEURONS,
        doc: "Share of the commonest token among a neuron's top places",
    },
    MetricDef { name: "n_positions", unit: Unit::Count, axes: &[], doc: "Positions that counted" },
];

const FIGURES: &[Figure] = &[Figure {
    name: "token-entropy",
    title: "Entropy of tokens at top places",
    kind: FigureKind::HeatMap,
    metrics: &["token_entropy"],
    log_x: true,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_tokens() {
        let (entropy, share) = spread([1, 1, 2, 2].map(Some).into_iter());
        assert!((entropy - 2f64.ln()).abs() < 1e-15 && share == 0.5);
        assert_eq!(spread([7, 7].map(Some).into_iter()), (0.0, 1.0));
    }
}
