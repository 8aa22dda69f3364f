//! Full-batch training on all pairs of a modular operation: what `modular-addition` and
//! `modular-addition-mlp` have in common.
//!
//! Main type: [`FullBatch`]. Losses are float64; rows of a population are each model's own split of the
//! same pairs. Invariant: every model of a group answers the same pairs in the same order.

use sweep_lens::{
    Cache, Config, Device, Hook, Kind, Parameter, Reduction, Run, Site, Tensor, Transformer,
    Weights, init,
};

use crate::{
    card::{Figure, FigureKind, MetricDef, Unit},
    data::modular::{Operation, Pairs},
    error::{Error, Result},
    experiment::TokenSet,
    fourier::Basis,
    interventions::{self, Auxiliary, Measure, Penalty, UnitKind},
    params, random,
    recipe::{Examples, Objective},
    recipes::{modular_addition, modular_addition_mlp},
};

/// Recipes whose models answer modular pairs; analyses of the Fourier circuit read these.
pub(crate) const RECIPES: &[&str] = &[modular_addition::NAME, modular_addition_mlp::NAME];

/// Full-batch loss in float64 on each model's own training pairs.
pub(crate) struct FullBatch {
    /// i64 `[(n_models,) n_train, pos]`
    train_tokens: Tensor,
    /// i64 `[(n_models,) n_train]`
    train_labels: Tensor,
    /// i64 `[p², pos]`, shared by all models
    tokens: Tensor,
    /// i64 `[p²]`
    labels: Tensor,
    /// i64 `[n_models, n_train]`
    train: Tensor,
    /// i64 `[n_models, n_test]`
    test: Tensor,
    operation: Operation,
    /// Modulus.
    n_classes: i64,
}

impl FullBatch {
    /// The task of a group of models, each with its own split of the same pairs.
    pub(crate) fn new(members: Vec<Pairs>) -> Result<Self> {
        let rows = |part: fn(&Pairs) -> &Tensor| {
            Tensor::stack(&members.iter().map(part).collect::<Vec<_>>(), 0)
        };
        let train = rows(|pairs| &pairs.train);
        let test = rows(|pairs| &pairs.test);
        let is_plain = members.len() == 1;
        let first = members
            .into_iter()
            .next()
            .ok_or_else(|| Error::Input("expected at least one seed, found none".to_owned()))?;
        // A plain model takes tokens without a model axis.
        let train_rows = if is_plain { train.get(0) } else { train.shallow_clone() };
        let pick = |table: &Tensor, tail: &[i64]| {
            let shape = [&train_rows.size(), tail].concat();
            table.index_select(0, &train_rows.flatten(0, -1)).view(shape.as_slice())
        };
        Ok(Self {
            train_tokens: pick(&first.tokens, &[first.tokens.size()[1]]),
            train_labels: pick(&first.labels, &[]),
            operation: first.operation,
            n_classes: first.p,
            tokens: first.tokens,
            labels: first.labels,
            train,
            test,
        })
    }
}

/// The pairs that the model of a checkpoint was trained and tested on, from what its recipe recorded.
pub(crate) fn pairs(record: &serde_json::Value, device: Device) -> Result<Pairs> {
    let entry = |name: &str| {
        record.get(name).ok_or_else(|| {
            Error::Input(format!("the checkpoint's record of its training lacks `{name}`"))
        })
    };
    let seed = entry("seed")?;
    let seed = seed.as_u64().ok_or_else(|| {
        Error::Input(format!("the checkpoint's seed is {seed}, expected an integer"))
    })?;
    let params = interventions::without(entry("params")?);
    if entry("recipe")? == modular_addition_mlp::NAME {
        let params: modular_addition_mlp::Params = params::decode(&params)?;
        return Ok(params.pairs(seed, device));
    }
    let params: modular_addition::Params = params::decode(&params)?;
    Ok(params.pairs(seed, device))
}

/// Initial weights of a transformer as the paper's code draws them: normal with a deviation of one over the root of `d_model`,
/// `std_unembed` in the unembedding, no biases but those of the MLPs, which start at zero.
pub(crate) fn initial(config: &Config, std_unembed: f64, seed: u64) -> Weights {
    let std = 1.0 / (config.d_model as f64).sqrt();
    let is_bias = |name: &str| name.ends_with(".mlp.b_in") || name.ends_with(".mlp.b_out");
    let tensor = |Parameter { name, shape, optional, .. }| {
        let tensor = if optional {
            is_bias(&name).then(|| Tensor::zeros(&shape, (Kind::Float, Device::Cpu)))
        } else {
            let std = if name == "unembed.W_U" { std_unembed } else { std };
            Some(init::normal(seed, &name, &shape, std, Device::Cpu))
        };
        tensor.map(|tensor| (name, tensor))
    };
    config.parameters().into_iter().filter_map(tensor).collect()
}

/// What a model reads of the first operand: `[(n_models,) >= p, width]`, row a for operand a.
pub(crate) fn embedding(weights: &Weights) -> Result<&Tensor> {
    Ok(weights.get("embed.W_E").map_or_else(|| weights.require("layers.0.W"), Ok)?)
}

/// The pairs as a token set: one batch, read at the final position.
pub(crate) fn probe(tokens: Tensor) -> TokenSet {
    let rows_per_batch = tokens.size()[0];
    TokenSet { tokens, rows_per_batch, last_position_only: true }
}

/// Negative log-probability of the labels in nats. `logits`: `[.., p]`, `labels`: `[..]` → f64 `[..]`.
pub(crate) fn nll(logits: &Tensor, labels: &Tensor) -> Tensor {
    // Few classes come out of the model class by class (see `sweep_lens`): read as they lie, they take half the time.
    let by_class = logits.transpose(-1, -2);
    if logits.dim() > 1 && by_class.is_contiguous() {
        let log_probs = by_class.log_softmax(-2, Kind::Double);
        return -log_probs.gather(-2, &labels.unsqueeze(-2), false).squeeze_dim(-2);
    }
    let log_probs = logits.log_softmax(-1, Kind::Double);
    -log_probs.gather(-1, &labels.unsqueeze(-1), false).squeeze_dim(-1)
}

/// Mean of [`nll`] over the examples of each model: `[(n_models,) n, p]`, `[(n_models,) n]` → f64 `[(n_models)]`.
fn mean_nll(logits: &Tensor, labels: &Tensor) -> Tensor {
    let by_class = logits.transpose(-1, -2);
    if logits.dim() == 2 && logits.device() == Device::Cpu && by_class.is_contiguous() {
        // One kernel instead of five, for one model.
        let log_probs = by_class.log_softmax(-2, Kind::Double).unsqueeze(0);
        let none = None::<Tensor>;
        return log_probs.nll_loss_nd(&labels.unsqueeze(0), none, Reduction::Mean, -100);
    }
    nll(logits, labels).mean_dim(&[-1i64][..], false, Kind::Double)
}

impl FullBatch {
    /// Loss on all pairs of the chosen waves alone, class means put back (D2), or training loss without
    /// them (D3): `[n_models]`.
    fn wave_loss(
        &self,
        waves: &Tensor,
        measure: Measure,
    ) -> impl Fn(&Transformer) -> Tensor + use<> {
        let (tokens, labels) = (self.tokens.shallow_clone(), self.labels.shallow_clone());
        let (train, waves) = (self.train.shallow_clone(), waves.shallow_clone());
        let n_models = train.size()[0];
        let ceiling = (self.n_classes as f64).ln() + 2.0;
        move |model| {
            let logits = model.forward(&tokens, &Run::LAST_POSITION, &mut ()).squeeze_dim(-2);
            let logits = logits.view([n_models, labels.size()[0], -1]).to_kind(Kind::Double);
            let labels = labels.unsqueeze(0).expand([n_models, -1], false);
            // waves [wave, pair]: the component is waves^T (waves logits).
            let component = waves.transpose(0, 1).matmul(&waves.matmul(&logits));
            let rest = &logits - &component;
            let rows = |losses: &Tensor| losses.mean_dim(&[-1i64][..], false, Kind::Double);
            let loss = if measure == Measure::Excluded {
                // Without a ceiling the model would blow up its logits for ever.
                rows(&nll(&rest, &labels).gather(1, &train, false)).clamp_max(ceiling)
            } else {
                let means = rest.mean_dim(&[1i64][..], true, Kind::Double);
                rows(&nll(&(component + means), &labels))
            };
            if model.n_models().is_some() { loss } else { loss.squeeze_dim(0) }
        }
    }

    /// 1 for a + b and -1 for a - b; an error naming the parameter that needs waves over one of them.
    fn sign(&self, parameter: &str) -> Result<i64> {
        match self.operation {
            Operation::Add => Ok(1),
            Operation::Subtract => Ok(-1),
            Operation::Multiply | Operation::Quadratic => {
                let problem =
                    format!("{:?} has no Fourier circuit over a + b or a - b", self.operation);
                Err(Error::params(parameter, problem))
            }
        }
    }

    /// Activations of a layer's neurons at the last position, `[n_models, p², d_mlp]` per layer.
    fn neurons(&self, model: &Transformer) -> Vec<Tensor> {
        let is_neuron = |hook| matches!(hook, Hook::Block { site: Site::MlpPost, .. });
        let mut cache = Cache::only(is_neuron);
        let _logits = model.forward(&self.tokens, &Run::LAST_POSITION, &mut cache);
        let last = cache.iter().map(|(_, activation)| {
            let pos = activation.size()[activation.dim() - 2];
            let last = activation.select(-2, pos - 1);
            let [n_pairs, width] = [self.labels.size()[0], last.size()[last.dim() - 1]];
            last.reshape([-1, n_pairs, width])
        });
        last.collect()
    }

    /// The waves `[wave, pair]` that a term keeps or removes.
    fn waves(&self, term: &Auxiliary) -> Result<Tensor> {
        let sign = self.sign("aux")?;
        let sign = if term.control { -sign } else { sign };
        let basis = Basis::of_task(self.n_classes, sign, self.tokens.device())?;
        let all = basis.n_frequencies();
        let frequencies: Vec<i64> = match (term.n_random, term.frequencies.is_empty()) {
            (0, true) => (1..=all).collect(),
            (0, false) => term.frequencies.clone(),
            (n, _) if n > all.unsigned_abs() => {
                return Err(Error::params("aux_random", format!("{n} of only {all} frequencies")));
            }
            (n, _) => {
                let mut rng = random::stream(term.seed, "aux/frequencies");
                let order = random::permutation(&mut rng, all as usize);
                order.iter().take(n as usize).map(|k| k + 1).collect()
            }
        };
        if let Some(k) = frequencies.iter().find(|k| !(1..=all).contains(*k)) {
            return Err(Error::params("aux_frequencies", format!("{k} is not in 1 to {all}")));
        }
        let index: Vec<i64> = frequencies.iter().flat_map(|k| [2 * (k - 1), 2 * k - 1]).collect();
        Ok(basis.sums.index_select(0, &Tensor::from_slice(&index).to_device(basis.sums.device())))
    }

    /// Norm of each frequency's component of the first operand's embedding, `[n_models, p/2]`.
    fn embedding_norms(&self) -> Result<impl Fn(&Transformer) -> Tensor + use<>> {
        let p = self.n_classes;
        let basis = Basis::new(p, self.tokens.device())?;
        let rows = basis.rows.narrow(0, 1, p - 1);
        Ok(move |model: &Transformer| {
            let embedding = embedding(model.weights()).expect("every model has an embedding");
            let width = embedding.size()[embedding.dim() - 1];
            let embedding = embedding.narrow(-2, 0, p).to_kind(Kind::Double).view([-1, p, width]);
            let energy = rows.matmul(&embedding).square();
            let energy = energy.sum_dim_intlist(&[-1i64][..], false, Kind::Double);
            let of_pairs = energy.view([-1, p / 2, 2]);
            // The gradient of a root at zero is infinite.
            (of_pairs.sum_dim_intlist(&[-1i64][..], false, Kind::Double) + 1e-30).sqrt()
        })
    }
}

/// Gini coefficient of each row (D4). `norms`: `[n_models, n]` → `[n_models]`.
fn gini_of_rows(norms: &Tensor) -> Tensor {
    let n = norms.size()[1];
    let (sorted, _) = norms.sort(1, false);
    let rank = Tensor::arange(n, (Kind::Double, norms.device())) * 2.0 - (n - 1) as f64;
    let weighted = (sorted * rank).sum_dim_intlist(&[1i64][..], false, Kind::Double);
    weighted / (norms.sum_dim_intlist(&[1i64][..], false, Kind::Double) * n as f64)
}

impl Objective for FullBatch {
    fn loss(&self, model: &Transformer, _step: u64) -> Tensor {
        let logits =
            model.forward(&self.train_tokens, &Run::LAST_POSITION, &mut ()).squeeze_dim(-2);
        mean_nll(&logits, &self.train_labels)
    }

    fn penalty(&self, term: &Auxiliary) -> Result<Penalty> {
        let of_norms = |reduce: fn(&Tensor) -> Tensor| -> Result<Penalty> {
            let norms = self.embedding_norms()?;
            Ok(Box::new(move |model| {
                let value = reduce(&norms(model));
                if model.n_models().is_some() { value } else { value.squeeze_dim(0) }
            }))
        };
        match term.measure {
            Measure::Excluded | Measure::Restricted => {
                Ok(Box::new(self.wave_loss(&self.waves(term)?, term.measure)))
            }
            Measure::Gini => of_norms(gini_of_rows),
            Measure::FourierL1 => {
                of_norms(|norms| norms.sum_dim_intlist(&[1i64][..], false, Kind::Double))
            }
        }
    }

    /// Variance of a neuron that its own frequency explains, times the squared norm of what it writes.
    fn circuit(&self, model: &Transformer, kind: UnitKind) -> Result<Tensor> {
        if kind == UnitKind::Head {
            let problem = "expected neurons, which follow frequencies, found heads";
            return Err(Error::params("edit_of", problem));
        }
        self.sign("edit_select")?;
        let basis = Basis::new(self.n_classes, self.tokens.device())?;
        let layers = self.neurons(model).into_iter().enumerate().map(|(layer, activations)| {
            let written = match model.weights().get(&format!("blocks.{layer}.mlp.W_out")) {
                Some(w_out) => w_out,
                None => model.weights().require(&format!("layers.{}.W", layer + 1))?,
            };
            let written = written.square().sum_dim_intlist(&[-1i64][..], false, Kind::Double);
            let explained = (0..activations.size()[0]).map(|index| {
                let activations = activations.get(index);
                let best = basis.variance_explained(&activations).nan_to_num(0.0, None, None);
                let variance = activations.to_kind(Kind::Double).var_dim(&[0i64][..], false, false);
                best.amax(&[0i64][..], false) * variance
            });
            Ok(Tensor::stack(&explained.collect::<Vec<_>>(), 0) * written)
        });
        Ok(Tensor::stack(&layers.collect::<Result<Vec<_>>>()?, 1))
    }

    /// The pairs that the first model was not trained on.
    fn examples(&self) -> Option<Examples> {
        let rows = self.test.get(0);
        Some(Examples {
            tokens: self.tokens.index_select(0, &rows),
            labels: self.labels.index_select(0, &rows),
            tasks: Vec::new(),
        })
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let n_models = self.train.size()[0];
        let logits = model.forward(&self.tokens, &Run::LAST_POSITION, &mut ()).squeeze_dim(-2);
        let logits = logits.view([n_models, self.labels.size()[0], -1]);
        let labels = self.labels.unsqueeze(0).expand([n_models, -1], false);
        let nll = nll(&logits, &labels);
        let correct = logits.argmax(-1, false).eq_tensor(&labels).to_kind(Kind::Double);
        let mean = |values: &Tensor, rows: &Tensor| {
            values.gather(1, rows, false).mean_dim(&[1i64][..], false, Kind::Double)
        };
        vec![
            ("train_loss", mean(&nll, &self.train)),
            ("test_loss", mean(&nll, &self.test)),
            ("train_acc", mean(&correct, &self.train)),
            ("test_acc", mean(&correct, &self.test)),
        ]
    }
}

pub(crate) const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "train_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on the training pairs",
    },
    MetricDef {
        name: "test_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on the other pairs",
    },
    MetricDef {
        name: "train_acc",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of training pairs answered correctly",
    },
    MetricDef {
        name: "test_acc",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of the other pairs answered correctly",
    },
    MetricDef {
        name: "weight_norm",
        unit: Unit::SquaredNorm,
        axes: &[],
        doc: "Sum of squares of all parameters",
    },
    MetricDef {
        name: "lr",
        unit: Unit::Dimensionless,
        axes: &[],
        doc: "Learning rate of the next update",
    },
];

pub(crate) const FIGURES: &[Figure] = &[
    Figure {
        name: "loss",
        title: "Loss while training",
        kind: FigureKind::Lines,
        metrics: &["train_loss", "test_loss"],
        log_x: false,
        log_y: true,
    },
    Figure {
        name: "accuracy",
        title: "Accuracy while training",
        kind: FigureKind::Lines,
        metrics: &["train_acc", "test_acc"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        data::modular::Form, interventions::Interventions, progress_measures::Measurer,
        value::to_vec,
    };

    /// A drawn perceptron for p = 7 with its task.
    fn model(seed: u64, n_models: i64) -> (Transformer, FullBatch, Measurer) {
        let config = Config::mlp(1, 14, 12, 7, 2);
        let drawn: Vec<Weights> = (0..n_models as u64)
            .map(|i| init::weights(&config, seed + i, |_| 0.7, Device::Cpu).to_kind(Kind::Double))
            .collect();
        let pairs = |seed| Pairs::new(Operation::Add, Form::OneHot, 7, 0.5, seed, Device::Cpu);
        let task = FullBatch::new((0..n_models as u64).map(|i| pairs(seed + i)).collect()).unwrap();
        let basis = Basis::new(7, Device::Cpu).unwrap();
        let measurer = Measurer { pairs: pairs(seed), basis, device: Device::Cpu };
        let model = if n_models == 1 {
            Transformer::new(config, drawn.into_iter().next().unwrap()).unwrap()
        } else {
            let all: Vec<&Weights> = drawn.iter().collect();
            Transformer::population(config, Weights::stack(&all).unwrap()).unwrap()
        };
        (model, task, measurer)
    }

    fn term(json: &serde_json::Value) -> Auxiliary {
        Interventions::decode(json).unwrap().auxiliary().unwrap()
    }

    #[test]
    fn auxiliary_terms_are_the_progress_measures() {
        let (model, task, measurer) = model(3, 1);
        let outputs = measurer.outputs(&model);
        let measures = |keys: Vec<i64>| {
            let neurons = measurer.neurons(&outputs.neurons, 0.5);
            measurer.measure(&outputs, model.weights(), neurons, keys).unwrap()
        };
        let value =
            |json: &serde_json::Value| task.penalty(&term(json)).unwrap()(&model).double_value(&[]);
        let (all, some) = (measures(vec![1, 2, 3]), measures(vec![1, 3]));
        for (json, expected) in [
            (json!({"aux": "excluded"}), all.excluded_loss.min(7f64.ln() + 2.0)),
            (json!({"aux": "excluded", "aux_frequencies": [3, 1]}), some.excluded_loss),
            (json!({"aux": "restricted", "aux_frequencies": [1, 3]}), some.restricted_loss),
            (json!({"aux": "restricted", "aux_random": 3}), all.restricted_loss),
            (json!({"aux": "gini"}), all.gini_embed),
            (json!({"aux": "fourier-l1"}), all.embed_norms.iter().sum::<f64>()),
        ] {
            let found = value(&json);
            assert!((found - expected).abs() < 1e-10, "{json} {found} {expected}");
        }
        let control = value(&json!({"aux": "restricted", "aux_control": true}));
        assert!((control - all.restricted_loss).abs() > 1e-3, "other waves");
        assert!(task.penalty(&term(&json!({"aux": "excluded", "aux_frequencies": [4]}))).is_err());
        let norm = interventions::norm_penalty()(&model).double_value(&[]);
        let squares =
            model.weights().iter().map(|(_, w)| w.square().sum(Kind::Double).double_value(&[]));
        assert!((norm - squares.sum::<f64>()).abs() < 1e-10);
    }

    #[test]
    fn neurons_that_follow_a_frequency_make_the_circuit() {
        let (p, width) = (7, 6);
        let config = Config::mlp(1, 2 * p, width, p, 2);
        // Neurons 1 and 4 add waves of a and b; 0 is dead, 2 sees one residue, 3 and 5 write nothing.
        let wave = |neuron: i64, x: i64| {
            let angle = std::f64::consts::TAU * (neuron * x) as f64 / p as f64;
            1.0 + (angle + neuron as f64).cos()
        };
        let mut first = vec![0.0; (2 * p * width) as usize];
        for x in 0..p {
            for neuron in [1, 4, 3, 5] {
                first[(x * width + neuron) as usize] = wave(neuron, x);
                first[((p + x) * width + neuron) as usize] = wave(neuron, x);
            }
        }
        first[2] = 1.0;
        let first = Tensor::from_slice(&first).view([2 * p, width]);
        let last = Tensor::ones([width, p], (Kind::Double, Device::Cpu));
        let _ = last.get(3).zero_();
        let _ = last.get(5).zero_();
        let weights: Weights = [("layers.0.W".to_owned(), first), ("layers.1.W".to_owned(), last)]
            .into_iter()
            .collect();
        let pairs = |seed| Pairs::new(Operation::Add, Form::OneHot, p, 0.5, seed, Device::Cpu);
        let task = FullBatch::new(vec![pairs(0)]).unwrap();
        let alone = Transformer::new(config.clone(), weights.copy()).unwrap();
        let scores = task.circuit(&alone, UnitKind::Neuron).unwrap();
        assert_eq!(scores.size(), [1, 1, width]);
        let order = to_vec(&scores.flatten(0, -1).argsort(0, true));
        assert!(order[..2].contains(&1.0) && order[..2].contains(&4.0), "{order:?}");
        assert_eq!(order[2], 2.0);
        assert!(task.circuit(&alone, UnitKind::Head).is_err());
        let both = Weights::stack(&[&weights, &weights]).unwrap();
        let population = Transformer::population(config, both).unwrap();
        let task = FullBatch::new(vec![pairs(0), pairs(1)]).unwrap();
        let together = task.circuit(&population, UnitKind::Neuron).unwrap();
        assert!((together.get(1) - scores.get(0)).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn auxiliary_terms_of_a_population_are_those_of_its_members() {
        let (population, task, _) = model(5, 3);
        for name in ["excluded", "restricted", "gini", "fourier-l1"] {
            let aux = term(&json!({"aux": name}));
            let together = task.penalty(&aux).unwrap()(&population);
            assert_eq!(together.size(), [3]);
            for member in 0..3 {
                let (alone, task, _) = model(5 + member, 1);
                let value = task.penalty(&aux).unwrap()(&alone);
                assert!(value.size().is_empty());
                let other = together.double_value(&[member as i64]);
                assert!((value.double_value(&[]) - other).abs() < 1e-10, "{name}");
            }
        }
    }
}
