//! Classes of the heads that identify indirect objects, found by what heads do (D22).
//!
//! Main items: [`Evidence`], [`classify`]. Rules: a name mover is among the heads of largest positive attribution (none
//! that is negligible against the logit difference),
//! attends from the end to the indirect object and copies names; a negative one has negative attribution and copies
//! with its output negated; an S-inhibition head attends from the end to the second subject and acts on the queries of
//! name movers; duplicate-token, induction and previous-token heads attend to their places and, the latter
//! two, on random tokens too; a backup name mover gains attribution when name movers are removed.

use sweep_lens::{Config, Tensor};

use super::{
    ablation::Knockout,
    attribution::attribute,
    batch::{Batch, Meter, in_batches, mean_over_rows},
    heads::{Head, flat},
    paths::{Paths, Receivers, Sender},
    prompts::IoiSet,
};
use crate::{error::Result, subject::Subject};

/// Names of the classes, in the order of results.
pub(crate) const CLASSES: [&str; 7] = [
    "name_mover",
    "s_inhibition",
    "duplicate_token",
    "induction",
    "previous_token",
    "negative_name_mover",
    "backup_name_mover",
];

/// Smallest attention to a place that counts as attending to it.
const ATTENTION: f64 = 0.3;
/// Smallest fraction of names that a copying head copies.
const COPIES: f64 = 0.5;

/// What is known of every head, row-major `[layer, head]`.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Mean logit difference.
    pub logit_diff: f64,
    /// Mean attribution to the logit difference.
    pub attribution: Vec<f64>,
    /// Mean attention between places, one list per pair of [`super::attention::PAIRS`].
    pub attention: Vec<Vec<f64>>,
    /// Fraction of names copied.
    pub copies: Vec<f64>,
    /// Fraction of names copied by the negated output.
    pub negative_copies: Vec<f64>,
    /// Prefix matching on repeated random tokens.
    pub prefix_matching: Vec<f64>,
    /// Attention to the previous one of random tokens.
    pub previous_token: Vec<f64>,
}

/// How many heads of largest attribution may be name movers, and how large effects have to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Name movers are among this many.
    pub top: usize,
    /// Smallest attribution of a name mover, effect on name movers' queries, and gain of a backup head, relative to
    /// the logit difference.
    pub effect: f64,
}

impl Evidence {
    /// Name movers, strongest first.
    pub(crate) fn name_movers(&self, config: &Config, rules: Rules) -> Vec<Head> {
        self.movers(config, rules, &self.attribution, &self.copies)
    }

    /// Negative name movers, strongest first.
    fn negative_name_movers(&self, config: &Config, rules: Rules) -> Vec<Head> {
        let negated: Vec<f64> = self.attribution.iter().map(|value| -value).collect();
        self.movers(config, rules, &negated, &self.negative_copies)
    }

    fn movers(&self, config: &Config, rules: Rules, values: &[f64], copies: &[f64]) -> Vec<Head> {
        let moves = |head: &Head| {
            let index = head.index(config);
            self.attention[0][index] > ATTENTION && copies[index] > COPIES
        };
        let least = rules.effect * self.logit_diff.abs();
        strongest(config, values, rules.top, least).into_iter().filter(moves).collect()
    }
}

/// Heads for which all of some lists are above the threshold of attention.
fn attending(config: &Config, lists: &[&[f64]]) -> Vec<Head> {
    let attends = |head: &Head| lists.iter().all(|list| list[head.index(config)] > ATTENTION);
    Head::all(config).into_iter().filter(attends).collect()
}

/// The `n` heads of largest value, largest first, among those above `least`, which is 0 or more.
pub(crate) fn strongest(config: &Config, values: &[f64], n: usize, least: f64) -> Vec<Head> {
    let mut heads = Head::all(config);
    heads.retain(|head| values[head.index(config)] > least);
    heads
        .sort_by(|a, b| values[b.index(config)].total_cmp(&values[a.index(config)]).then(a.cmp(b)));
    heads.truncate(n);
    heads
}

/// Members of each of [`CLASSES`]; `tick` is called between passes.
pub(crate) fn classify(
    subject: &Subject<'_>,
    set: &IoiSet,
    evidence: &Evidence,
    rules: Rules,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<[Vec<Head>; 7]> {
    let config = subject.model.config();
    let attention = |pair: usize| evidence.attention[pair].as_slice();
    let name_movers = evidence.name_movers(config, rules);
    let candidates = attending(config, &[attention(2)]);
    let (s_inhibition, backup) = if name_movers.is_empty() {
        (Vec::new(), Vec::new())
    } else {
        causal(subject, set, evidence, &name_movers, &candidates, rules, tick)?
    };
    Ok([
        name_movers,
        s_inhibition,
        attending(config, &[attention(3)]),
        attending(config, &[attention(4), &evidence.prefix_matching]),
        attending(config, &[&evidence.previous_token]),
        evidence.negative_name_movers(config, rules),
        backup,
    ])
}

/// S-inhibition heads and backup name movers, which only interventions find.
fn causal(
    subject: &Subject<'_>,
    set: &IoiSet,
    evidence: &Evidence,
    name_movers: &[Head],
    candidates: &[Head],
    rules: Rules,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<Head>, Vec<Head>)> {
    let config = subject.model.config();
    let meter = Meter::new(subject.model)?;
    let receivers = Receivers::Heads(name_movers.to_vec(), sweep_lens::Site::Q);
    let found = in_batches(set, subject, cached_numbers(config, set), |batch: &Batch| {
        let paths = Paths::new(&meter, batch, &batch.abc, false);
        let mut effects = Vec::new();
        for &head in candidates {
            tick()?;
            effects.push(paths.full(Sender::Head(head), &receivers) - &paths.base);
        }
        let effects = if effects.is_empty() {
            paths.base.unsqueeze(-1).narrow(-1, 0, 0)
        } else {
            Tensor::stack(&effects, -1)
        };
        tick()?;
        let mut knockout = Knockout { heads: name_movers.to_vec(), means: None, patterns: None };
        let after = attribute(&meter, batch, &batch.tokens, &mut knockout)?.heads;
        Ok((effects, after))
    })?;
    let mean = |of: &dyn Fn(&(Tensor, Tensor)) -> Tensor| {
        flat(&mean_over_rows(&found.iter().map(of).collect::<Vec<_>>()))
    };
    let least = rules.effect * evidence.logit_diff.abs();
    let effects = mean(&|row| row.0.shallow_clone());
    let after = mean(&|row| row.1.shallow_clone());
    let s_inhibition = candidates
        .iter()
        .zip(&effects)
        .filter(|(_, effect)| **effect < -least)
        .map(|(head, _)| *head);
    let gain = |head: &Head| after[head.index(config)] - evidence.attribution[head.index(config)];
    let backup = Head::all(config).into_iter().filter(|head| {
        !name_movers.contains(head) && gain(head) > least && after[head.index(config)] > 0.0
    });
    Ok((s_inhibition.collect(), backup.collect()))
}

/// Numbers per prompt that two cached passes hold.
pub(crate) fn cached_numbers(config: &Config, set: &IoiSet) -> i64 {
    let longest = set.prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(1) as i64;
    let Config { d_model, n_heads, d_head, n_layers, .. } = *config;
    n_layers * longest * (2 * d_model + 6 * n_heads * d_head + n_heads * longest)
}
