//! Fine-tuning: a model learns one task, then another with all its weights, then perhaps the first again.
//!
//! # What it trains
//! Both tasks are settings of one recipe (`recipe`) that give equal architectures: `both` holds parameters of
//! both, `first` and `second` what each has of its own, every entry `name=value`. From `switch_step` on the
//! second task is trained, from `return_step` on the first one again; each part starts its optimizer
//! anew. Both tasks are measured all the time. `switch_step` 0 is the control from scratch, on the same data of
//! the second task; with `init_from` it fine-tunes a checkpoint that is there already.
//!
//! # Interpretation
//! `loss_first` after the switch is forgetting; `loss_second` against the control is transfer. Weights that
//! still hold the first task learn it again faster than at first (`forgetting` counts the steps).
//!
//! # Source
//! Problem 5.15 of the experiment list. Forgetting: McCloskey and Cohen 1989; transfer between
//! modular tasks: the shared embedding frequencies of Nanda et al. 2023, arXiv 2301.05217.

use serde_json::{Map, Value as Json};
use sweep_lens::{Config, Device, Kind, Tensor, Transformer, Weights};

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    data::bpe::Bpe,
    error::{Error, Result},
    experiment::TokenSet,
    interventions::{self, Auxiliary, Penalty, UnitKind},
    params::{ParamSet, params},
    recipe::{AnyRecipe, Objective, Phase, Plan, Recipe},
    recipes::{RECIPES, modular_addition, modular_addition_mlp},
    vocabulary::Vocabulary,
};

/// See the module documentation.
pub struct Finetune;

/// Name of the recipe, which analyses of its models require.
pub(crate) const NAME: &str = "finetune";

/// Recipes that tasks can be of: those with a held-out loss and an accuracy.
const TASKS: [&str; 5] =
    ["addition", modular_addition::NAME, modular_addition_mlp::NAME, "sorting", "text-lm"];

params! {
    /// Tasks and when they are trained.
    pub struct Params {
        /// Recipe that both tasks are of.
        recipe: String = modular_addition_mlp::NAME.to_owned(), choices = TASKS;
        /// Parameters of both tasks, each `name=value`.
        both: Vec<String> = Vec::new();
        /// Further parameters of the first task.
        first: Vec<String> = vec!["operation=add".to_owned()];
        /// Further parameters of the second task.
        second: Vec<String> = vec!["operation=subtract".to_owned()];
        /// Updates before the second task; 0 trains it from scratch.
        switch_step: u64 = 4_000, max = 10_000_000.0, at_most = steps;
        /// Update from which on the first task is trained again; -1 is never.
        return_step: i64 = -1, min = -1.0;
        /// Updates in all.
        steps: u64 = 6_000, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 50, min = 1.0;
    }
}

/// Parameters that this recipe decides for its tasks.
const OWN: [&str; 2] = ["steps", "eval_every"];

/// A recipe with parameters.
pub(crate) struct Task {
    pub(crate) recipe: &'static dyn AnyRecipe,
    /// Canonical.
    pub(crate) params: Json,
}

impl Task {
    /// Its data and loss.
    pub(crate) fn objective(&self, seeds: &[u64], device: Device) -> Result<Box<dyn Objective>> {
        self.recipe.objective(&self.params, seeds, device)
    }
}

/// Parameters from `name=value` texts; a value is JSON, or else the text itself.
fn settings(list: &str, entries: &[String], found: &mut Map<String, Json>) -> Result<()> {
    for entry in entries {
        let fail = |problem: &str| Err(Error::params(list, format!("{problem}, found `{entry}`")));
        let Some((name, value)) = entry.split_once('=') else {
            return fail("expected `name=value`");
        };
        if OWN.contains(&name) {
            return fail("expected a parameter of the task, not of the training");
        }
        // A text that happens to be a number is still a text where the parameter is one.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Json::from(value));
        if found.insert(name.to_owned(), value).is_some() {
            return fail("expected every parameter once");
        }
    }
    Ok(())
}

impl Params {
    /// The first and the second task.
    pub(crate) fn tasks(&self) -> Result<[Task; 2]> {
        let recipe = RECIPES.iter().copied().find(|recipe| recipe.card().name == self.recipe);
        let recipe = recipe.ok_or_else(|| {
            Error::params("recipe", format!("expected a recipe, found `{}`", self.recipe))
        })?;
        let task = |list: &str, own: &[String]| {
            let mut params = Map::new();
            settings("both", &self.both, &mut params)?;
            settings(list, own, &mut params)?;
            let params = Json::Object(params);
            if interventions::without(&params) != params {
                let problem = "expected parameters of the task; interventions are the training's";
                return Err(Error::params(list, problem));
            }
            recipe.check_params(&params)?;
            Ok(Task { recipe, params: recipe.canonical_params(&params)? })
        };
        Ok([task("first", &self.first)?, task("second", &self.second)?])
    }

    /// The tasks of parameters that `check` has accepted.
    fn checked_tasks(&self) -> [Task; 2] {
        self.tasks().expect("`check` has accepted the tasks")
    }

    fn return_step(&self) -> Option<u64> {
        u64::try_from(self.return_step).ok()
    }

    /// The task that the update from `step` trains.
    fn task_at(&self, step: u64) -> usize {
        let is_back = self.return_step().is_some_and(|back| step >= back);
        usize::from(step >= self.switch_step && !is_back)
    }
}

impl Recipe for Finetune {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: NAME,
        version: 1,
        summary: "Trains one task, then another with all weights, and watches both",
        source: "McCloskey and Cohen 1989; Nanda et al. 2023, arXiv 2301.05217",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        let [first, second] = params.tasks()?;
        if first.recipe.config(&first.params)? != second.recipe.config(&second.params)? {
            let problem = "expected an architecture like that of the first task";
            return Err(Error::params("second", problem));
        }
        if first.recipe.byte_pairs(&first.params)? != second.recipe.byte_pairs(&second.params)? {
            let problem = "its text makes other byte pairs than the first one's, so that tokens would change their meaning: \
                           expected n_merges=0 (or `text-lm` with `init_from`, which keeps the pairs of its base)";
            return Err(Error::params("second", problem));
        }
        if params.switch_step >= params.steps && params.steps > 0 {
            let (switch, steps) = (params.switch_step, params.steps);
            let problem = format!("the second task would never begin: {switch} of {steps} steps");
            return Err(Error::params("switch_step", problem));
        }
        if params.return_step().is_some_and(|back| back <= params.switch_step) {
            let (back, switch) = (params.return_step, params.switch_step);
            let problem = format!("expected a step behind switch_step {switch}, found {back}");
            return Err(Error::params("return_step", problem));
        }
        Ok(())
    }

    fn config(&self, params: &Params) -> Config {
        let [first, _] = params.checked_tasks();
        first.recipe.config(&first.params).expect("`check` has made the same architecture")
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        let [first, _] = params.checked_tasks();
        first.recipe.init(&first.params, seed).expect("`check` has accepted the task")
    }

    fn plan(&self, params: &Params) -> Plan {
        let tasks = params.checked_tasks();
        let phase = |start: u64| {
            let Task { recipe, params } = &tasks[params.task_at(start)];
            let plan = recipe.plan(params).expect("`check` has accepted the task");
            Phase { start, ..plan.phase(0) }
        };
        let mut starts = vec![0, params.switch_step];
        starts.extend(params.return_step());
        starts.dedup();
        let phases = starts.into_iter().map(phase).collect();
        Plan { steps: params.steps, eval_every: params.eval_every, phases }
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        let [first, second] = params.tasks()?;
        Ok(Box::new(TwoTasks {
            tasks: [first.objective(seeds, device)?, second.objective(seeds, device)?],
            params: params.clone(),
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let [_, second] = params.checked_tasks();
        second.recipe.probe(&second.params, device).expect("`check` has accepted the task")
    }

    fn population(&self, params: &Params, device: Device) -> usize {
        let [first, _] = params.checked_tasks();
        first.recipe.population(&first.params, device).unwrap_or(1)
    }

    fn vocabulary(&self, params: &Params) -> Option<Vocabulary> {
        let [first, _] = params.checked_tasks();
        first.recipe.vocabulary(&first.params).unwrap_or(None)
    }

    fn byte_pairs(&self, params: &Params) -> Option<Bpe> {
        let [first, _] = params.checked_tasks();
        first.recipe.byte_pairs(&first.params).unwrap_or(None)
    }
}

/// Whichever task it is time for.
struct TwoTasks {
    tasks: [Box<dyn Objective>; 2],
    params: Params,
}

/// A metric of an objective by the first of some names, or NaN for every model.
pub(crate) fn named(found: &[(&'static str, Tensor)], names: &[&str]) -> Tensor {
    let of = |name: &str| found.iter().find(|(other, _)| *other == name);
    match names.iter().find_map(|name| of(name)) {
        Some((_, values)) => values.to_kind(Kind::Double),
        None => found[0].1.to_kind(Kind::Double).full_like(f64::NAN),
    }
}

/// What recipes call their accuracy on held-out examples.
pub(crate) const ACCURACY: [&str; 2] = ["test_acc", "accuracy"];

impl Objective for TwoTasks {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let task = self.params.task_at(step);
        // The second task's data start where they start from scratch; the first one's go on.
        let step = if task == 0 { step } else { step - self.params.switch_step };
        self.tasks[task].loss(model, step)
    }

    fn penalty(&self, term: &Auxiliary) -> Result<Penalty> {
        let problem = format!(
            "two tasks have a circuit each: expected `norm`, which needs none, found `{}`",
            term.measure
        );
        Err(Error::params("aux", problem))
    }

    fn circuit(&self, model: &Transformer, kind: UnitKind) -> Result<Tensor> {
        self.tasks[0].circuit(model, kind)
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        let [first, second] = &mut self.tasks;
        let (first, second) = (first.reorder(seeds), second.reorder(seeds));
        first || second
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let [first, second] = [0, 1].map(|task: usize| self.tasks[task].evaluate(model));
        let (train_first, train_second) =
            (named(&first, &["train_loss"]), named(&second, &["train_loss"]));
        vec![
            // A model that learns the second task may forget the first one without end.
            ("train_loss", train_first.minimum(&train_second)),
            ("train_loss_first", train_first),
            ("train_loss_second", train_second),
            ("loss_first", named(&first, &["test_loss"])),
            ("loss_second", named(&second, &["test_loss"])),
            ("accuracy_first", named(&first, &ACCURACY)),
            ("accuracy_second", named(&second, &ACCURACY)),
        ]
    }
}

const METRICS: &[MetricDef] = &[
    scalar("train_loss", Unit::Nats, "The smaller training loss of the two tasks"),
    scalar("train_loss_first", Unit::Nats, "Mean loss on training examples of the first task"),
    scalar("train_loss_second", Unit::Nats, "Mean loss on training examples of the second task"),
    scalar("loss_first", Unit::Nats, "Mean loss on held-out examples of the first task"),
    scalar("loss_second", Unit::Nats, "Mean loss on held-out examples of the second task"),
    scalar("accuracy_first", Unit::Probability, "Accuracy on held-out examples of the first task"),
    scalar(
        "accuracy_second",
        Unit::Probability,
        "Accuracy on held-out examples of the second task",
    ),
    scalar("weight_norm", Unit::SquaredNorm, "Sum of squares of all parameters"),
    scalar("lr", Unit::Dimensionless, "Learning rate of the next update"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "loss",
        title: "Held-out loss of both tasks",
        kind: FigureKind::Lines,
        metrics: &["loss_first", "loss_second"],
        log_x: false,
        log_y: true,
    },
    Figure {
        name: "accuracy",
        title: "Accuracy on both tasks",
        kind: FigureKind::Lines,
        metrics: &["accuracy_first", "accuracy_second"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(both: &[&str], first: &[&str], second: &[&str]) -> Params {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Params {
            both: texts(both),
            first: texts(first),
            second: texts(second),
            ..Params::default()
        }
    }

    #[test]
    fn tasks_are_settings_of_one_recipe() {
        let params =
            lists(&["p=7", "d_mlp=5"], &["operation=add"], &["operation=quadratic", "lr=0.5"]);
        Recipe::check(&Finetune, &params).unwrap();
        let [first, second] = params.tasks().unwrap();
        assert_eq!((&first.params["p"], &second.params["p"]), (&Json::from(7), &Json::from(7)));
        assert_eq!(second.params["operation"], "quadratic");
        let plan = Recipe::plan(&Finetune, &params);
        let starts: Vec<u64> = plan.phases.iter().map(|phase| phase.start).collect();
        assert_eq!(starts, [0, 4000]);
        assert_eq!((plan.phase(3999).lr(3999), plan.phase(4000).lr(4000)), (1e-3, 0.5));
        let back = Params { return_step: 5000, ..params.clone() };
        assert_eq!([0, 3999, 4000, 4999, 5000].map(|step| back.task_at(step)), [0, 0, 1, 1, 0]);
        let scratch = Params { switch_step: 0, ..params };
        assert_eq!(Recipe::plan(&Finetune, &scratch).phases.len(), 1);
        assert_eq!(Recipe::plan(&Finetune, &scratch).phase(0).lr(0), 0.5);
    }

    #[test]
    fn settings_that_are_none_are_refused() {
        for (params, name, words) in [
            (lists(&["p"], &[], &[]), "both", "name=value"),
            (lists(&["p=7"], &["p=9"], &[]), "first", "once"),
            (lists(&[], &["p=7"], &["p=9"]), "second", "architecture"),
            (lists(&["steps=3"], &[], &[]), "both", "not of the training"),
            (lists(&["edit=zero"], &[], &[]), "first", "interventions"),
            (lists(&["wings=2"], &[], &[]), "wings", "unknown"),
            (Params { return_step: 4000, ..Params::default() }, "return_step", "behind"),
        ] {
            let error = Recipe::check(&Finetune, &params).unwrap_err();
            let Error::Params { name: named, problem } = &error else { panic!("{error}") };
            assert_eq!(named, name, "{problem}");
            assert!(problem.contains(words), "{problem}");
        }
    }
}
