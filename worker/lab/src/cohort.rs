//! Several models looked at together: what a joint experiment is given, and the call that runs one.
//!
//! Main items: [`Cohort`], [`joint`]. A model whose training failed is a member like any other, with
//! the reason and with whatever it left behind; experiments report it ([`Cohort::report`]) and go on
//! with the rest.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value as Json};
use sweep_lens::{Device, checkpoint::Checkpoint};

use crate::{
    card::{Card, MetricDef, Stage, Unit},
    error::{Error, Result, catch},
    experiment::AnyExperiment,
    sink::{Context, Sink},
    trajectory::Series,
};

/// One model of a cohort.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Member {
    /// What results call it.
    pub label: String,
    /// Seed, if this system trained it.
    pub seed: Option<u64>,
    /// Recipe that trained it, if one did.
    pub recipe: Option<String>,
    /// Parameters of the recipe, defaults filled in.
    pub params: Map<String, Json>,
    /// Names of those that differ between the models of its entry.
    pub axes: Vec<String>,
    /// Why its training is not complete.
    pub failure: Option<String>,
}

impl Member {
    /// Label of its grid point: the parameters that differ, `name=value,…`.
    pub fn point(&self) -> String {
        let value = |name: &String| match self.params.get(name) {
            Some(Json::String(text)) => format!("{name}={text}"),
            Some(other) => format!("{name}={other}"),
            None => name.clone(),
        };
        self.axes.iter().map(value).collect::<Vec<_>>().join(",")
    }

    /// Its entry and grid point as results call them: the label but for the seed.
    pub fn setting(&self) -> &str {
        let seed = self.seed.map(|seed| format!("-seed{seed}"));
        seed.and_then(|seed| self.label.strip_suffix(seed.as_str())).unwrap_or(&self.label)
    }
}

/// Checkpoints of all members, one in memory at a time. May be walked more than once, in any order.
pub trait CohortCheckpoints {
    /// Steps of a member, ascending.
    fn steps(&self, member: usize) -> &[u64];
    /// Loads the checkpoint of one of these onto the device of the task.
    fn load(&mut self, member: usize, step: u64) -> Result<Checkpoint>;
}

/// The series of one metric of one member.
#[derive(Debug, Clone)]
pub struct MemberSeries {
    /// Index of the member.
    pub member: usize,
    /// Label of the other model, for a metric of pairs.
    pub partner: Option<String>,
    /// Its values.
    pub series: Series,
}

/// Full metric name → the series of all members that have any.
pub type CohortSeries = BTreeMap<String, Vec<MemberSeries>>;

/// What a joint experiment may read.
pub struct Cohort<'a> {
    /// All models, also those that failed.
    pub members: &'a [Member],
    /// Checkpoints, if [`crate::Inputs::Checkpoints`] was asked for.
    pub checkpoints: Option<&'a mut dyn CohortCheckpoints>,
    /// Series, as [`crate::Inputs::Series`] asked.
    pub series: &'a CohortSeries,
    /// Where to compute.
    pub device: Device,
}

/// Metrics that [`Cohort::report`] emits.
pub(crate) const REPORT: [MetricDef; 2] = [
    MetricDef {
        name: "n_models",
        unit: Unit::Count,
        axes: &[],
        doc: "Models looked at, those that failed included",
    },
    MetricDef {
        name: "n_failed",
        unit: Unit::Count,
        axes: &[],
        doc: "Models whose training failed; `members.json` names them and the reasons",
    },
];

impl<'a> Cohort<'a> {
    /// The series of one metric: at least one member has points.
    pub fn series(&self, metric: &str) -> Result<&'a [MemberSeries]> {
        let found = self.series.get(metric).map_or(&[][..], Vec::as_slice);
        if found.iter().any(|member| !member.series.points.is_empty()) {
            Ok(found)
        } else {
            Err(Error::Input(format!("expected points of metric `{metric}`, found none")))
        }
    }

    /// The checkpoints, of which some member has one.
    pub fn checkpoints(&mut self) -> Result<&mut (dyn CohortCheckpoints + 'a)> {
        let n_members = self.members.len();
        match &mut self.checkpoints {
            Some(found) if (0..n_members).any(|member| !found.steps(member).is_empty()) => {
                Ok(&mut **found)
            }
            Some(_) => Err(Error::Input("none of the models has a checkpoint".to_owned())),
            None => Err(Error::Input("expected checkpoints, found none".to_owned())),
        }
    }

    /// Says who was looked at and who failed.
    pub(crate) fn report(&self, cx: &mut Context<'_>) -> Result<()> {
        let failed = self.members.iter().filter(|member| member.failure.is_some()).count();
        cx.metric(REPORT[0].name, self.members.len() as f64)?;
        cx.metric(REPORT[1].name, failed as f64)?;
        cx.json("members.json", &self.members)
    }

    fn last_step(&self) -> u64 {
        let points = self.series.values().flatten().filter_map(|m| Some(m.series.points.last()?.0));
        let checkpoints = self.checkpoints.as_ref().map_or(0, |found| {
            let last = (0..self.members.len()).filter_map(|m| found.steps(m).last().copied());
            last.max().unwrap_or(0)
        });
        points.max().unwrap_or(0).max(checkpoints)
    }
}

/// Loads one checkpoint of a member and checks that it is what `card` asks for.
pub(crate) fn load_member(
    checkpoints: &mut dyn CohortCheckpoints,
    member: usize,
    step: u64,
    card: &Card,
) -> Result<Checkpoint> {
    let checkpoint = checkpoints.load(member, step)?;
    let recipe = checkpoint.extra.get("recipe").and_then(Json::as_str);
    card.requires.check(card.name, &checkpoint.config, recipe)?;
    Ok(checkpoint)
}

/// Runs one joint experiment. A panic in it becomes its error.
pub fn joint(
    experiment: &dyn AnyExperiment,
    params: &Json,
    mut cohort: Cohort<'_>,
    sink: &mut dyn Sink,
) -> Result<()> {
    let card = experiment.card();
    if !matches!(card.stage, Stage::Joint(_)) {
        let name = card.name;
        return Err(Error::Unsupported(format!("`{name}` does not look at several models")));
    }
    let mut cx = Context::new(card, cohort.last_step(), sink);
    catch(|| experiment.joint(&mut cohort, params, &mut cx))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn grid_points_are_named_by_what_differs() {
        let params = json!({ "p": 31, "edit": "zero", "lr": 0.5 });
        let Json::Object(params) = params else { panic!() };
        let axes = vec!["edit".to_owned(), "lr".to_owned()];
        let member = Member { params, axes, ..Member::default() };
        assert_eq!(member.point(), "edit=zero,lr=0.5");
        assert_eq!(Member::default().point(), "");
    }

    #[test]
    fn a_cohort_without_points_says_so() {
        let empty = CohortSeries::new();
        let cohort =
            Cohort { members: &[], checkpoints: None, series: &empty, device: Device::Cpu };
        assert!(cohort.series("a.b").unwrap_err().to_string().contains("metric `a.b`"));
    }
}
