//! The loss of a model as a function of its parameters: what samplers and curvature walk on.
//!
//! Main type: [`Surface`], a flat vector of parameters in f64 and a loss of minibatches, with gradients and
//! Hessian-vector products by double backward (for transformers on their recipe's own data by central differences of gradients). The data are those of the recipe that trained the model (minibatch `i` is that
//! of update `i`), or rows that the user gives. Invariant: minibatch `i` is the same whenever it is asked for.

use sweep_lens::{
    Architecture, Config, Hook, Hooks, Kind, Run, Site, Tensor, Transformer, Weights,
};

use crate::{
    documents::{Documents, Wanted},
    error::{Error, Result},
    random,
    recipe::Objective,
    recipes::RECIPES,
    subject::Subject,
};

/// Where the loss comes from.
enum Data {
    Recipe(Box<dyn Objective>),
    Rows(Rows),
}

/// Next-token loss of some rows.
struct Rows {
    all: Vec<Vec<i64>>,
    batch: usize,
    seed: u64,
}

/// What is to be walked on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub wanted: Wanted<'a>,
    /// Beginnings of the names of tensors that move; all if empty.
    pub tensors: &'a [String],
    /// Rows of a minibatch, where rows are given.
    pub batch: u64,
    /// Rows that are read at most.
    pub max_rows: u64,
    /// Seed of the choice of rows.
    pub seed: u64,
}

/// A loss over parameters.
pub(crate) struct Surface {
    config: Config,
    /// Tensors that stay, f64.
    fixed: Weights,
    /// Name and shape of tensors that move, in the order of the flat vector.
    moving: Vec<(String, Vec<i64>)>,
    /// Parameters of the checkpoint, f64 `[n]`.
    pub start: Tensor,
    data: Data,
    /// Examples in a minibatch; 1 where the recipe does not say (all of its examples at once).
    pub batch: f64,
}

impl Surface {
    pub(crate) fn new(subject: &Subject<'_>, choice: &Choice<'_>) -> Result<Self> {
        let weights = subject.model.weights().copy().to_kind(Kind::Double);
        let is_moving = |name: &str| {
            choice.tensors.is_empty() || choice.tensors.iter().any(|part| name.starts_with(part))
        };
        for part in choice.tensors {
            if !weights.names().any(|name| name.starts_with(part)) {
                let names: Vec<&str> = weights.names().collect();
                let problem =
                    format!("no tensor begins with `{part}`, there are {}", names.join(", "));
                return Err(Error::params("tensors", problem));
            }
        }
        let (mut fixed, mut moving, mut flat) = (Weights::new(), Vec::new(), Vec::new());
        for (name, tensor) in weights.iter() {
            if is_moving(name) {
                moving.push((name.to_owned(), tensor.size()));
                flat.push(tensor.reshape([-1]));
            } else {
                fixed.insert(name, tensor.shallow_clone());
            }
        }
        let (data, batch) = data(subject, choice)?;
        let config = subject.model.config().clone();
        Ok(Self { config, fixed, moving, start: Tensor::cat(&flat, 0), data, batch })
    }

    /// Number of parameters that move.
    pub(crate) fn dimension(&self) -> i64 {
        self.start.size()[0]
    }

    fn model(&self, theta: &Tensor) -> Result<Transformer> {
        let mut weights = self.fixed.shallow_clone();
        let mut first = 0;
        for (name, shape) in &self.moving {
            let length: i64 = shape.iter().product();
            weights.insert(name.as_str(), theta.narrow(0, first, length).view(shape.as_slice()));
            first += length;
        }
        Ok(Transformer::new(self.config.clone(), weights)?)
    }

    fn tensor(&self, theta: &Tensor, index: u64) -> Result<Tensor> {
        let model = self.model(theta)?;
        Ok(match &self.data {
            Data::Recipe(objective) => objective.loss(&model, index).sum(Kind::Double),
            Data::Rows(rows) => rows.loss(&model, index),
        })
    }

    /// Loss of minibatch `index` in nats.
    pub(crate) fn loss(&self, theta: &Tensor, index: u64) -> Result<f64> {
        Ok(tch::no_grad(|| self.tensor(&theta.detach(), index))?.double_value(&[]))
    }

    /// Loss of minibatch `index` and its gradient.
    pub(crate) fn gradient(&self, theta: &Tensor, index: u64) -> Result<(f64, Tensor)> {
        tch::with_grad(|| {
            let theta = theta.detach().copy().set_requires_grad(true);
            let loss = self.tensor(&theta, index)?;
            let gradient = Tensor::run_backward(&[&loss], &[&theta], false, false).remove(0);
            Ok((loss.double_value(&[]), gradient.detach()))
        })
    }

    /// Second derivatives of the mean loss of minibatches `0..n_batches` at the start, times a vector.
    pub(crate) fn hessian_times(&self, vector: &Tensor, n_batches: u64) -> Result<Tensor> {
        let mut sum = self.start.zeros_like();
        for index in 0..n_batches {
            sum += match &self.data {
                // Attention in one kernel has no second derivatives, and recipes run their own passes.
                Data::Recipe(_) if self.config.architecture == Architecture::Transformer => {
                    self.by_differences(vector, index)?
                }
                Data::Recipe(_) | Data::Rows(_) => self.by_double_backward(vector, index)?,
            };
        }
        Ok(sum / n_batches as f64)
    }

    fn by_double_backward(&self, vector: &Tensor, index: u64) -> Result<Tensor> {
        tch::with_grad(|| {
            let theta = self.start.detach().copy().set_requires_grad(true);
            let loss = self.tensor(&theta, index)?;
            let gradient = Tensor::run_backward(&[loss], &[&theta], true, true).remove(0);
            let along = (gradient * vector).sum(Kind::Double);
            if !along.requires_grad() {
                // A loss that is linear in everything has no curvature.
                return Ok(theta.detach().zeros_like());
            }
            let product = Tensor::run_backward(&[along], &[&theta], false, false).remove(0);
            Ok(if product.defined() { product.detach() } else { theta.detach().zeros_like() })
        })
    }

    /// Central difference of gradients over a distance of 1e-6 of the parameters' norm: in f64 right to about seven digits.
    fn by_differences(&self, vector: &Tensor, index: u64) -> Result<Tensor> {
        let norm = |x: &Tensor| x.square().sum(Kind::Double).double_value(&[]).sqrt();
        let length = norm(vector);
        if length == 0.0 {
            return Ok(vector.zeros_like());
        }
        let step = 1e-6 * norm(&self.start).max(1.0) / length;
        let at = |sign: f64| self.gradient(&(&self.start + vector * (sign * step)), index);
        Ok((at(1.0)?.1 - at(-1.0)?.1) / (2.0 * step))
    }
}

/// Lets attention be computed step by step, which has second derivatives.
struct InSteps;

impl Hooks for InSteps {
    fn wants(&self, hook: Hook) -> bool {
        hook.site() == Some(Site::Pattern)
    }

    fn visit(&mut self, _hook: Hook, activation: Tensor) -> Tensor {
        activation
    }
}

fn data(subject: &Subject<'_>, choice: &Choice<'_>) -> Result<(Data, f64)> {
    let Wanted { tokens, text, file, .. } = choice.wanted;
    let extra = &subject.checkpoint.extra;
    if tokens.is_empty() && text.is_empty() && file.is_empty() {
        let name = extra["recipe"].as_str();
        let recipe = RECIPES.iter().find(|known| Some(known.card().name) == name);
        let (Some(recipe), Some(seed)) = (recipe, extra["seed"].as_u64()) else {
            let problem = "a model that no recipe trained needs `tokens`, `text` or `file`";
            return Err(Error::Unsupported(problem.to_owned()));
        };
        let objective = recipe.objective(&extra["params"], &[seed], subject.device)?;
        let batch = extra["params"]["batch"].as_f64().unwrap_or(1.0);
        return Ok((Data::Recipe(objective), batch));
    }
    let config = subject.model.config();
    if config.d_vocab != config.d_vocab_out {
        let problem = "rows have a next-token loss only where a model predicts what it reads";
        return Err(Error::Unsupported(problem.to_owned()));
    }
    let documents = Documents::new(subject, &choice.wanted)?;
    let mut rows: Vec<Vec<i64>> = Vec::new();
    documents.for_each(subject, |batch| {
        let room = (choice.max_rows as usize).saturating_sub(rows.len());
        rows.extend(batch.rows.iter().take(room).filter(|row| row.len() > 1).cloned());
        Ok(())
    })?;
    let batch = (choice.batch as usize).min(rows.len());
    Ok((Data::Rows(Rows { all: rows, batch, seed: choice.seed }), batch as f64))
}

impl Rows {
    /// Mean loss over the predicted tokens of a minibatch: all rows if it holds them, else rows drawn with replacement.
    fn loss(&self, model: &Transformer, index: u64) -> Tensor {
        let mut rng = random::stream(self.seed, &format!("surface/{index}"));
        let n = self.all.len();
        let chosen: Vec<&Vec<i64>> = if self.batch == n {
            self.all.iter().collect()
        } else {
            (0..self.batch).map(|_| &self.all[random::below(&mut rng, n as u64) as usize]).collect()
        };
        let length = chosen.iter().map(|row| row.len()).max().unwrap_or(0);
        let mut flat = Vec::with_capacity(chosen.len() * length);
        let mut inside = Vec::with_capacity(chosen.len() * length);
        for row in &chosen {
            let filler = row.last().copied().unwrap_or(0);
            flat.extend(row.iter().copied().chain(std::iter::repeat(filler)).take(length));
            inside.extend((1..length).map(|place| f64::from(u8::from(place < row.len()))));
        }
        let device = model.weights().iter().next().map(|(_, first)| first.device());
        let device = device.unwrap_or(sweep_lens::Device::Cpu);
        let n_rows = chosen.len() as i64;
        let tokens = Tensor::from_slice(&flat).view([n_rows, length as i64]).to_device(device);
        let inside =
            Tensor::from_slice(&inside).view([n_rows, length as i64 - 1]).to_device(device);
        let logits = model.forward(&tokens, &Run::FULL, &mut InSteps);
        let losses = crate::sequence::next_token_nll(&logits, &tokens);
        (losses * &inside).sum(Kind::Double) / inside.sum(Kind::Double)
    }
}

/// Adds the parameters of a [`Choice`] to those of an experiment.
macro_rules! surface_params {
    ($(#[doc = $doc:literal] $name:ident : $ty:ty = $default:expr $(, min = $min:expr)? $(, max = $max:expr)? ;)*) => {
        $crate::documents::document_params! {
            /// Beginnings of the names of tensors that count as parameters, such as `blocks.0.attn`; all if empty.
            tensors: Vec<String> = Vec::new();
            /// Rows of a minibatch, where rows are given; a recipe has its own.
            batch: u64 = 16, min = 1.0, max = 65536.0;
            /// Rows that are read of a file at most.
            max_rows: u64 = 4096, min = 1.0, max = 1_048_576.0;
            /// Seed of everything random.
            seed: u64 = 0;
            $(#[doc = $doc] $name : $ty = $default $(, min = $min)? $(, max = $max)? ;)*
        }
        impl Params {
            fn choice(&self) -> $crate::surface::Choice<'_> {
                $crate::surface::Choice {
                    wanted: self.wanted(),
                    tensors: &self.tensors,
                    batch: self.batch,
                    max_rows: self.max_rows,
                    seed: self.seed,
                }
            }
        }
    };
}
pub(crate) use surface_params;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sweep_lens::{Device, checkpoint::Checkpoint, init};

    use super::*;

    #[test]
    fn both_ways_to_second_derivatives_agree() {
        let mut config = Config::toy(2, 8, 2, 11, 6);
        config.act_fn = sweep_lens::ActFn::Gelu;
        let parameters = config.parameters().into_iter().filter(|parameter| !parameter.optional);
        let weights: Weights = parameters
            .map(|p| (p.name.clone(), init::normal(1, &p.name, &p.shape, 0.5, Device::Cpu)))
            .collect();
        let weights_hash = String::new();
        let checkpoint = Checkpoint { config, weights, step: 0, extra: json!(null), weights_hash };
        let model = Transformer::new(checkpoint.config.clone(), checkpoint.weights.shallow_clone())
            .unwrap();
        let tokens = [vec![1, 2, 3, 4, 5], vec![6, 7, 8]];
        let wanted =
            Wanted { tokens: &tokens, text: &[], file: "", row_len: None, prepend_bos: None };
        let choice = Choice { wanted, tensors: &[], batch: 4, max_rows: 9, seed: 0 };
        let surface = Surface::new(&Subject::of(&checkpoint, &model), &choice).unwrap();
        let vector = init::normal(2, "v", &surface.start.size(), 1.0, Device::Cpu);
        let vector = vector.to_kind(Kind::Double);
        let exact = surface.by_double_backward(&vector, 0).unwrap();
        let near = surface.by_differences(&vector, 0).unwrap();
        let largest = |x: &Tensor| x.abs().max().double_value(&[]);
        assert!(largest(&exact) > 1e-3);
        let error = largest(&(&exact - near)) / largest(&exact);
        assert!(error < 1e-6, "{error}");
        // A gradient is what the loss changes by.
        let (loss, slope) = surface.gradient(&surface.start, 0).unwrap();
        assert_eq!(loss, surface.loss(&surface.start, 0).unwrap());
        let moved = surface.loss(&(&surface.start + &vector * 1e-6), 0).unwrap();
        let expected = (slope * &vector).sum(Kind::Double).double_value(&[]);
        assert!(((moved - loss) / 1e-6 - expected).abs() < 1e-3 * expected.abs().max(1.0));
    }
}
