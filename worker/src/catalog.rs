//! What this build can run, read off the lab's registries.

use sweep_lab::{
    AnyExperiment, AnyRecipe, Card, EXPERIMENTS, FigureKind, Inputs, ParamDef, ParamKind, RECIPES,
    Stage, lens::Device,
};
use sweep_proto::pb;

/// The experiment of that name.
pub fn experiment(name: &str) -> Option<&'static dyn AnyExperiment> {
    EXPERIMENTS.iter().copied().find(|experiment| experiment.card().name == name)
}

/// The recipe of that name.
pub fn recipe(name: &str) -> Option<&'static dyn AnyRecipe> {
    RECIPES.iter().copied().find(|recipe| recipe.card().name == name)
}

/// The catalogue as JSON with one experiment or recipe a line, so that a difference shows which one has changed.
pub fn in_lines(catalog: &pb::Catalog) -> String {
    fn lines<T: serde::Serialize>(items: &[T]) -> String {
        let line = |item| serde_json::to_string(item).expect("a catalogue is texts and numbers");
        items.iter().map(line).collect::<Vec<_>>().join(",\n")
    }
    let (experiments, recipes) = (lines(&catalog.experiments), lines(&catalog.recipes));
    format!("{{\"experiments\": [\n{experiments}\n], \"recipes\": [\n{recipes}\n]}}\n")
}

/// Every experiment and recipe of this build; how many seeds train well together depends on the
/// device.
pub fn catalog(device: Device) -> pb::Catalog {
    let experiments = EXPERIMENTS.iter().map(|experiment| {
        let card = experiment.card();
        pb::Experiment {
            name: card.name.to_owned(),
            version: card.version,
            summary: card.summary.to_owned(),
            source: card.source.to_owned(),
            stage: card.stage.name().to_owned(),
            params: params(card.params),
            metrics: metrics(card),
            figures: figures(card),
            reads: reads(*experiment),
            scope: match card.stage {
                Stage::Joint(scope) => scope.name().to_owned(),
                Stage::Train | Stage::Analyse | Stage::Compare | Stage::Trajectory => String::new(),
            },
            reads_checkpoints: matches!(
                experiment.inputs(&experiment.default_params()),
                Ok(Inputs::Checkpoints)
            ),
        }
    });
    let recipes = RECIPES.iter().map(|recipe| {
        let card = recipe.card();
        pb::Recipe {
            name: card.name.to_owned(),
            version: card.version,
            summary: card.summary.to_owned(),
            source: card.source.to_owned(),
            params: params(&recipe.param_defs()),
            metrics: metrics(card),
            figures: figures(card),
            population: recipe.population(&recipe.default_params(), device).unwrap_or(1) as u32,
        }
    });
    pb::Catalog { experiments: experiments.collect(), recipes: recipes.collect() }
}

fn params(defs: &[ParamDef]) -> Vec<pb::Param> {
    defs.iter()
        .map(|param| pb::Param {
            name: param.name.to_owned(),
            kind: param.kind.name().to_owned(),
            default: (param.default)().to_string(),
            min: param.min,
            max: param.max,
            choices: param.choices.iter().map(|&choice| choice.to_owned()).collect(),
            doc: param.doc.to_owned(),
            group: param.group.unwrap_or_default().to_owned(),
            at_most: param.at_most.unwrap_or_default().to_owned(),
            divides: param.divides.unwrap_or_default().to_owned(),
        })
        .collect()
}

/// Series that the experiment reads whatever its parameters.
fn reads(experiment: &dyn AnyExperiment) -> Vec<String> {
    let defaults = experiment.default_params();
    // Parameters that have to be given have no defaults to ask with; such experiments name their series.
    let Ok(Inputs::Series(names)) = experiment.inputs(&defaults) else { return Vec::new() };
    let is_param = |name: &String| {
        let mut params = experiment.card().params.iter();
        params.any(|param| param.kind == ParamKind::Metric && defaults[param.name] == **name)
    };
    names.into_iter().filter(|name| !is_param(name)).collect()
}

fn metrics(card: &Card) -> Vec<pb::Metric> {
    card.metrics
        .iter()
        .map(|metric| pb::Metric {
            name: metric.name.to_owned(),
            unit: metric.unit.name().to_owned(),
            axes: metric.axes.iter().map(|axis| axis.name().to_owned()).collect(),
            doc: metric.doc.to_owned(),
        })
        .collect()
}

fn figures(card: &Card) -> Vec<pb::Figure> {
    card.figures
        .iter()
        .map(|figure| pb::Figure {
            name: figure.name.to_owned(),
            title: figure.title.to_owned(),
            kind: match figure.kind {
                FigureKind::Lines => "lines",
                FigureKind::Intervals => "intervals",
                FigureKind::Scatter => "scatter",
                FigureKind::HeatMap => "heat-map",
                FigureKind::Pairs => "pairs",
            }
            .to_owned(),
            metrics: figure.metrics.iter().map(|&metric| metric.to_owned()).collect(),
            log_x: figure.log_x,
            log_y: figure.log_y,
        })
        .collect()
}
