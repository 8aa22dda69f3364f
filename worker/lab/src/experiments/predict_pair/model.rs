//! One model of `predict-pair`: which pair it ends with, and where predictors rank a pair.

use rand::Rng;

use super::Params;
use crate::{
    cohort::Cohort,
    error::{Error, Result},
    random,
    trajectory::Series,
};

/// What is read.
pub(super) const SERIES: [&str; 8] = [
    "composition.k_composition",
    "composition.q_composition",
    "composition.v_composition",
    "composition.qk_trace",
    "induction-heads.previous_token",
    "induction-heads.prefix_matching",
    "composition.baseline",
    "composition-gradient.k_composition_gradient",
];

/// Places of [`SERIES`] that are read by name.
const K_COMPOSITION: usize = 0;
const QK_TRACE: usize = 3;
const PREVIOUS: usize = 4;
const PREFIX: usize = 5;
const BASELINE: usize = 6;
const GRADIENT: usize = 7;

impl Params {
    /// The series that are read.
    pub(super) fn series(&self) -> &'static [&'static str] {
        if self.gradient { &SERIES } else { &SERIES[..GRADIENT] }
    }
}

/// One model.
pub(super) struct Model {
    pub(super) label: String,
    /// Steps that all series have.
    pub(super) steps: Vec<u64>,
    n_heads: usize,
    /// Earlier and later head, as layer × heads + head.
    candidates: Vec<(usize, usize)>,
    /// The eventual pair.
    pub(super) pair: Option<(usize, usize)>,
    /// Last step before and first with half of the last prefix matching.
    pub(super) onset: [f64; 2],
    /// Step → predictor → score of each candidate.
    scores: Vec<Vec<Vec<f64>>>,
}

/// Where a pair stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ranking {
    /// 1 / rank.
    pub(super) reciprocal_rank: f64,
    /// Share of the others behind it, ties half.
    pub(super) auroc: f64,
    /// Probability of being first.
    pub(super) top1: f64,
}

impl Ranking {
    /// Of entry `at`, highest score first; ties are in random order, NaN comes last.
    pub(super) fn of(scores: &[f64], at: usize) -> Self {
        let key = |score: f64| if score.is_nan() { f64::NEG_INFINITY } else { score };
        let own = key(scores[at]);
        let greater = scores.iter().filter(|score| key(**score) > own).count();
        let equal = scores.iter().filter(|score| key(**score) == own).count();
        let less = scores.len() - greater - equal;
        let ranks = greater + 1..=greater + equal;
        let behind = less as f64 + (equal as f64 - 1.0) / 2.0;
        Self {
            reciprocal_rank: ranks.map(|rank| 1.0 / rank as f64).sum::<f64>() / equal as f64,
            auroc: behind / (scores.len() as f64 - 1.0),
            top1: if greater == 0 { 1.0 / equal as f64 } else { 0.0 },
        }
    }
}

impl Model {
    /// All models whose training is complete and that have points, of equal shape.
    pub(super) fn all(cohort: &Cohort<'_>, params: &Params) -> Result<Vec<Self>> {
        let mut models: Vec<Self> = Vec::new();
        for (member, of) in cohort.members.iter().enumerate() {
            if of.failure.is_some() {
                continue;
            }
            let mut series = Vec::new();
            for name in params.series() {
                let mut own = cohort.series(name)?.iter().filter(|found| found.member == member);
                series.extend(own.find(|found| found.partner.is_none()).map(|own| &own.series));
            }
            if series.len() < params.series().len() {
                continue;
            }
            let model = Self::of(&of.label, &series, params)?;
            if let Some(first) = models.first().filter(|first| first.candidates != model.candidates)
            {
                return Err(Error::Input(format!(
                    "`{}` and `{}` have other layers or heads: give them entries of their own",
                    first.label, model.label
                )));
            }
            models.push(model);
        }
        if models.is_empty() {
            let names = params.series().join("`, `");
            return Err(Error::Input(format!("no complete model has points of `{names}`")));
        }
        Ok(models)
    }

    fn of(label: &str, series: &[&Series], params: &Params) -> Result<Self> {
        let at = |place: usize, step: u64| {
            let points = &series[place].points;
            points.binary_search_by_key(&step, |point| point.0).ok().map(|at| &points[at].1)
        };
        let steps: Vec<u64> = series[0].points.iter().map(|point| point.0).collect();
        let has_all = |step: &u64| (0..series.len()).all(|place| at(place, *step).is_some());
        let steps: Vec<u64> = steps.into_iter().filter(has_all).collect();
        let Some(last) = steps.last().copied() else {
            return Err(Error::Input(format!(
                "`{label}` has no checkpoint with both `composition` and `induction-heads`"
            )));
        };
        let data = |place: usize, step: u64| at(place, step).map_or(&[][..], |value| &value.data);
        let shape = at(PREFIX, last).map_or(&[][..], |value| &value.shape);
        let &[n_layers, n_heads] = shape else {
            return Err(Error::Input(format!("`{}` of `{label}` is not of heads", SERIES[PREFIX])));
        };
        let n = n_layers * n_heads;
        let candidates: Vec<(usize, usize)> = (0..n)
            .flat_map(|i| (0..n).map(move |j| (i, j)))
            .filter(|(i, j)| i / n_heads < j / n_heads)
            .collect();
        let is_whole = |step: &u64| {
            let length = |place| data(place, *step).len();
            let of_pairs =
                (0..series.len()).filter(|place| *place < QK_TRACE || *place == GRADIENT);
            of_pairs.into_iter().all(|place| length(place) == n * n)
                && (QK_TRACE..=PREFIX).all(|place| length(place) == n)
        };
        if candidates.is_empty() || !steps.iter().all(is_whole) {
            return Err(Error::Input(format!(
                "the metrics of `{label}` are not those of {n_layers} layers of {n_heads} heads, two layers or more"
            )));
        }
        let best = |values: &[f64], among: &dyn Fn(usize) -> bool| {
            let heads = (0..n).filter(|head| among(*head) && values[*head].is_finite());
            heads.max_by(|a, b| values[*a].total_cmp(&values[*b]).then(b.cmp(a)))
        };
        let (prefix, previous) = (data(PREFIX, last), data(PREVIOUS, last));
        let later =
            best(prefix, &|head| head >= n_heads).filter(|head| prefix[*head] >= params.threshold);
        let pair = later.and_then(|later| {
            let earlier = best(previous, &|head| head / n_heads < later / n_heads)?;
            (previous[earlier] >= params.previous_threshold).then_some((earlier, later))
        });
        let reached = |later: usize| {
            let half = prefix[later] / 2.0;
            let at = steps.iter().position(|step| data(PREFIX, *step)[later] >= half).unwrap_or(0);
            let before = at.checked_sub(1).map_or(f64::NAN, |at| steps[at] as f64);
            [before, steps[at] as f64]
        };
        let mut rng = random::stream(params.seed, &format!("predict-pair/random/{label}"));
        let scores = steps.iter().map(|step| {
            let tables: Vec<&[f64]> = (0..series.len()).map(|place| data(place, *step)).collect();
            Self::scores_of(&tables, &candidates, n, &mut rng)
        });
        Ok(Self {
            label: label.to_owned(),
            n_heads,
            pair,
            onset: pair.map_or([f64::NAN; 2], |(_, later)| reached(later)),
            scores: scores.collect(),
            steps,
            candidates,
        })
    }

    /// One list per predictor, in the order of `Params::predictors`.
    fn scores_of(
        tables: &[&[f64]],
        candidates: &[(usize, usize)],
        n: usize,
        rng: &mut impl Rng,
    ) -> Vec<Vec<f64>> {
        let each = |score: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            candidates.iter().map(|&(i, j)| score(i, j)).collect()
        };
        let baseline = tables[BASELINE].first().copied().unwrap_or(0.0);
        let product = |i: usize, j: usize| {
            (tables[K_COMPOSITION][i * n + j] - baseline).max(0.0) * tables[PREVIOUS][i]
        };
        let mut scores: Vec<Vec<f64>> =
            (0..3).map(|place| each(&|i, j| tables[place][i * n + j])).collect();
        scores.push(each(&|_, j| tables[QK_TRACE][j]));
        scores.push(each(&|i, _| tables[PREVIOUS][i]));
        scores.push(each(&|_, j| tables[PREFIX][j]));
        scores.push(each(&product));
        scores.push(candidates.iter().map(|_| (rng.next_u64() >> 11) as f64).collect());
        if let Some(gradient) = tables.get(GRADIENT) {
            scores.push(each(&|i, j| gradient[i * n + j]));
        }
        scores
    }

    /// Number of candidate pairs.
    pub(super) fn n_pairs(&self) -> usize {
        self.candidates.len()
    }

    /// Where this model's predictor ranks the eventual pair of a model (itself, or another one) at one of its steps.
    pub(super) fn ranking(&self, predictor: usize, step: u64, of: &Self) -> Ranking {
        let nowhere = Ranking { reciprocal_rank: f64::NAN, auroc: f64::NAN, top1: f64::NAN };
        let candidate = of.pair.and_then(|pair| self.candidates.iter().position(|c| *c == pair));
        match (self.steps.binary_search(&step), candidate) {
            (Ok(at), Some(candidate)) => Ranking::of(&self.scores[at][predictor], candidate),
            _ => nowhere,
        }
    }

    /// The last step not after a time.
    pub(super) fn step_up_to(&self, time: f64) -> Option<u64> {
        self.steps.iter().copied().take_while(|step| *step as f64 <= time).last()
    }

    /// `L1H3`.
    pub(super) fn head(&self, head: usize) -> String {
        format!("L{}H{}", head / self.n_heads, head % self.n_heads)
    }
}
