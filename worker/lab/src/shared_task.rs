//! What two models were trained on, and their losses on it.
//!
//! Main type: [`SharedTask`]. Models of one recipe may have been trained on different data (another split
//! of the same pairs, another text). Losses are then the mean over the data of both, which makes every
//! measure built on them symmetric.

use serde_json::Value as Json;
use sweep_lens::{Config, Device, Transformer, Weights, checkpoint::Checkpoint};

use crate::{
    card::{MetricDef, Unit},
    error::{Error, Result},
    recipe::Objective,
    recipes::RECIPES,
    value::to_vec,
};

/// The data of two models.
pub(crate) struct SharedTask {
    objectives: Vec<Box<dyn Objective>>,
    config: Config,
    /// What the recipe declares.
    metrics: &'static [MetricDef],
}

/// Scalars of one model: name and value, in the order in which the recipe reports them.
pub(crate) type Scores = Vec<(&'static str, f64)>;

impl SharedTask {
    /// The task that both checkpoints' recipe recorded.
    ///
    /// # Errors
    /// Models without a recipe, or of two different ones.
    pub(crate) fn of(a: &Checkpoint, b: &Checkpoint, device: Device) -> Result<Self> {
        let [first, second] = [a, b].map(|checkpoint| {
            let recipe = checkpoint.extra.get("recipe").and_then(Json::as_str);
            recipe.ok_or_else(|| {
                Error::Unsupported("a model that no recipe trained has no data to go by".to_owned())
            })
        });
        let (first, second) = (first?, second?);
        if first != second {
            return Err(Error::Unsupported(format!(
                "the models were trained by two recipes, `{first}` and `{second}`"
            )));
        }
        let recipe = RECIPES.iter().find(|known| known.card().name == first);
        let recipe =
            recipe.ok_or_else(|| Error::Unsupported(format!("there is no recipe `{first}`")))?;
        let mut records: Vec<(&Json, u64)> = Vec::new();
        for checkpoint in [a, b] {
            let lacks = |name: &str| {
                Error::Input(format!("the checkpoint's record of its training lacks `{name}`"))
            };
            let params = checkpoint.extra.get("params").ok_or_else(|| lacks("params"))?;
            let seed = checkpoint.extra.get("seed").and_then(Json::as_u64);
            let record = (params, seed.ok_or_else(|| lacks("seed"))?);
            if !records.contains(&record) {
                records.push(record);
            }
        }
        let objective = |(params, seed): &(&Json, u64)| recipe.objective(params, &[*seed], device);
        let objectives = records.iter().map(objective).collect::<Result<Vec<_>>>()?;
        Ok(Self { objectives, config: a.config.clone(), metrics: recipe.card().metrics })
    }

    /// Scalars of the model with these weights, but what is in bits: losses are compared in nats.
    pub(crate) fn scores(&self, weights: Weights) -> Result<Scores> {
        let model = Transformer::new(self.config.clone(), weights)?;
        let mut total: Scores = Vec::new();
        for objective in &self.objectives {
            let in_bits = |name: &str| {
                self.metrics.iter().any(|def| def.name == name && def.unit == Unit::Bits)
            };
            let scalars = objective.evaluate(&model).into_iter();
            let scalars = scalars.filter(|(name, v)| v.numel() == 1 && !in_bits(name));
            for (place, (name, value)) in scalars.enumerate() {
                let value = to_vec(&value)[0] / self.objectives.len() as f64;
                match total.get_mut(place) {
                    Some((_, sum)) => *sum += value,
                    None => total.push((name, value)),
                }
            }
        }
        Ok(total)
    }
}

/// Those scores whose names end with `suffix`, named by what stands before it.
pub(crate) fn ending(scores: &Scores, suffix: &str) -> (Vec<&'static str>, Vec<f64>) {
    scores.iter().filter_map(|(name, value)| Some((name.strip_suffix(suffix)?, *value))).unzip()
}
