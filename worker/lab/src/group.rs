//! A group of equally shaped models that train as one batch.
//!
//! Main type: [`Group`]. Parameters of all models lie in one flat buffer, tensor by tensor and, within a
//! tensor, model by model; the model sees views of it, so that an optimizer step on the buffer changes it
//! in place. Held parameters are put back after every step. A group of one is a plain model without a model axis.

use sweep_lens::{Config, Device, Tensor, Transformer, Weights};

use crate::{
    error::{Error, Result},
    interventions::{Auxiliary, Penalty, Reference, UnitKind},
    optimizer::{AdamW, Rule},
    recipe::Objective,
    trainer_state::Progress,
};

/// One model that joins a group.
pub(crate) struct Member {
    /// Index of the seed in the call.
    pub(crate) index: usize,
    /// Its seed.
    pub(crate) seed: u64,
    /// Its parameters.
    pub(crate) weights: Weights,
    /// First and second moments; `None` is zero.
    pub(crate) moments: Option<(Weights, Weights)>,
    /// 1 where a parameter is held at its value, for every parameter; `None` holds nothing.
    pub(crate) held: Option<Weights>,
}

impl Member {
    pub(crate) fn fresh(index: usize, seed: u64, weights: Weights) -> Self {
        Self { index, seed, weights, moments: None, held: None }
    }
}

/// Models, optimizer and data of a group.
pub(crate) struct Group {
    /// Seed index of every model.
    pub(crate) members: Vec<usize>,
    layout: Vec<Slot>,
    flat: Tensor,
    leaves: Vec<Tensor>,
    rule: Rule,
    /// First moment; the velocity of gradient descent.
    exp_avg: Tensor,
    /// Second moment; stays zero in gradient descent.
    exp_avg_sq: Tensor,
    objective: Box<dyn Objective>,
    /// Factor and auxiliary term.
    penalty: Option<(f64, Penalty)>,
    hold: Option<Hold>,
    has_branched: bool,
    model: Transformer,
}

/// Parameters that do not move.
struct Hold {
    /// 0 at held places, 1 elsewhere; like the parameters.
    free: Tensor,
    /// The value at held places, 0 elsewhere.
    value: Tensor,
}

/// Place of one named tensor in the flat buffer.
struct Slot {
    name: String,
    /// Shape of one model's tensor.
    shape: Vec<i64>,
    offset: i64,
    /// Elements of one model's tensor.
    length: i64,
}

impl Group {
    pub(crate) fn new(
        config: Config,
        members: Vec<Member>,
        objective: Box<dyn Objective>,
        rule: Rule,
        device: Device,
    ) -> Result<Self> {
        let n_models = members.len() as i64;
        let layout = layout(&members[0].weights, n_models);
        let pack =
            |part: &dyn Fn(&Member) -> Option<&Weights>| pack(&layout, &members, part, device);
        let flat = pack(&|member| Some(&member.weights))?;
        let exp_avg = pack(&|member| member.moments.as_ref().map(|moments| &moments.0))?;
        let exp_avg_sq = pack(&|member| member.moments.as_ref().map(|moments| &moments.1))?;
        let leaves: Vec<Tensor> = layout
            .iter()
            .map(|slot| {
                let axis = (n_models > 1).then_some(n_models);
                let shape: Vec<i64> = axis.into_iter().chain(slot.shape.iter().copied()).collect();
                let view =
                    flat.narrow(0, slot.offset, n_models * slot.length).view(shape.as_slice());
                view.detach().set_requires_grad(true)
            })
            .collect();
        let weights: Weights = layout
            .iter()
            .zip(&leaves)
            .map(|(slot, leaf)| (slot.name.clone(), leaf.shallow_clone()))
            .collect();
        let model = if n_models > 1 {
            Transformer::population(config, weights)?
        } else {
            Transformer::new(config, weights)?
        };
        let hold = if members.iter().any(|member| member.held.is_some()) {
            let held = pack(&|member| member.held.as_ref())?;
            Some(Hold { value: &flat * &held, free: 1.0 - held })
        } else {
            None
        };
        let members = members.iter().map(|member| member.index).collect();
        Ok(Self {
            members,
            layout,
            flat,
            leaves,
            rule,
            exp_avg,
            exp_avg_sq,
            objective,
            penalty: None,
            hold,
            has_branched: false,
            model,
        })
    }

    /// Adds `factor` times an auxiliary term to the loss.
    pub(crate) fn penalise(&mut self, factor: f64, penalty: Penalty) {
        self.penalty = Some((factor, penalty));
    }

    /// The recipe's auxiliary term.
    pub(crate) fn penalty(&self, term: &Auxiliary) -> Result<Penalty> {
        self.objective.penalty(term)
    }

    /// Takes the data in the order of `seed` from here on; only the first call does anything.
    pub(crate) fn branch(&mut self, seed: u64) -> Result<()> {
        if !self.has_branched {
            reorder(self.objective.as_mut(), &vec![seed; self.members.len()])?;
            self.has_branched = true;
        }
        Ok(())
    }

    pub(crate) fn config(&self) -> &Config {
        self.model.config()
    }

    /// Goes on with another optimizer, without moments.
    pub(crate) fn begin(&mut self, rule: Rule) {
        self.rule = rule;
        tch::no_grad(|| {
            let _ = self.exp_avg.zero_();
            let _ = self.exp_avg_sq.zero_();
        });
    }

    /// The update that leads from `step` to `step + 1`; `n_updates` counts this one, from 1 where the
    /// optimizer began.
    pub(crate) fn update(&mut self, step: u64, lr: f64, n_updates: u64) {
        let mut loss = self.objective.loss(&self.model, step);
        if let Some((factor, penalty)) = &self.penalty {
            loss += penalty(&self.model) * *factor;
        }
        let gradient = self.gradient(&loss);
        self.descend(&gradient, lr, n_updates);
        if let Some(Hold { free, value }) = &self.hold {
            tch::no_grad(|| {
                let _ = self.flat.g_mul_(free);
                let _ = self.flat.g_add_(value);
            });
        }
    }

    fn descend(&mut self, gradient: &Tensor, lr: f64, n_updates: u64) {
        match self.rule {
            Rule::AdamW(config) => {
                let (exp_avg, exp_avg_sq) =
                    (self.exp_avg.shallow_clone(), self.exp_avg_sq.shallow_clone());
                let mut optimizer = AdamW { config, exp_avg, exp_avg_sq };
                optimizer.step(&mut self.flat, gradient, lr, n_updates);
            }
            Rule::Sgd(config) => config.step(&mut self.flat, &mut self.exp_avg, gradient, lr),
        }
    }

    /// Gradient of the losses of all models, laid out like the parameters.
    fn gradient(&self, loss: &Tensor) -> Tensor {
        // Models are independent, so the gradient of all losses at once is each model's own.
        let gradients = Tensor::run_backward(&[loss], &self.leaves, false, false);
        let pieces: Vec<Tensor> = gradients
            .iter()
            .zip(&self.leaves)
            .map(|(gradient, leaf)| {
                // A tensor that the loss does not depend on has no gradient.
                if gradient.defined() {
                    gradient.reshape([-1])
                } else {
                    leaf.zeros_like().view([-1])
                }
            })
            .collect();
        Tensor::cat(&pieces, 0)
    }

    /// Weights of each model, the gradient of its training loss at `step`, and how much its units of kind
    /// `circuit` belong to its circuit, on the CPU.
    pub(crate) fn references(
        &self,
        step: u64,
        circuit: Option<UnitKind>,
    ) -> Result<Vec<Reference>> {
        let gradient = self.gradient(&self.objective.loss(&self.model, step));
        let circuit = circuit.map(|kind| self.circuit(kind)).transpose()?;
        Ok((0..self.members.len())
            .map(|model| Reference {
                weights: self.weights(model).to_device(Device::Cpu),
                gradient: self.unpack(&gradient, model).to_device(Device::Cpu),
                circuit: circuit.as_ref().map(|scores| scores.get(model as i64)),
            })
            .collect())
    }

    /// How much the units belong to each model's circuit, `[n_models, layer, unit]` on the CPU.
    pub(crate) fn circuit(&self, kind: UnitKind) -> Result<Tensor> {
        let scores = tch::no_grad(|| self.objective.circuit(&self.model, kind))?;
        Ok(scores.to_device(Device::Cpu))
    }

    pub(crate) fn evaluate(&self) -> Vec<(&'static str, Tensor)> {
        self.objective.evaluate(&self.model)
    }

    /// Sum of squares of all parameters of each model, f64 `[n_models]`.
    pub(crate) fn sum_squared_weights(&self) -> Tensor {
        let n_models = self.members.len() as i64;
        let sums = self.layout.iter().map(|slot| {
            let part = self.flat.narrow(0, slot.offset, n_models * slot.length);
            part.view([n_models, slot.length])
                .to_kind(sweep_lens::Kind::Double)
                .square()
                .sum_dim_intlist(&[1i64][..], false, sweep_lens::Kind::Double)
        });
        Tensor::stack(&sums.collect::<Vec<_>>(), 0).sum_dim_intlist(
            &[0i64][..],
            false,
            sweep_lens::Kind::Double,
        )
    }

    /// A copy of the parameters of one model, without a model axis.
    pub(crate) fn weights(&self, model: usize) -> Weights {
        self.unpack(&self.flat, model)
    }

    pub(crate) fn progress(&self, model: usize) -> Progress {
        Progress::Running {
            weights: self.weights(model),
            exp_avg: self.unpack(&self.exp_avg, model),
            exp_avg_sq: self.unpack(&self.exp_avg_sq, model),
            held: self.held(model).unwrap_or_default(),
        }
    }

    /// 1 where a parameter of a model is held.
    fn held(&self, model: usize) -> Option<Weights> {
        self.hold.as_ref().map(|hold| self.unpack(&(1.0 - &hold.free), model))
    }

    /// One model with its optimizer state, to form another group.
    pub(crate) fn member(&self, model: usize, seed: u64) -> Member {
        Member {
            index: self.members[model],
            seed,
            weights: self.weights(model),
            moments: Some((
                self.unpack(&self.exp_avg, model),
                self.unpack(&self.exp_avg_sq, model),
            )),
            held: self.held(model),
        }
    }

    fn unpack(&self, buffer: &Tensor, model: usize) -> Weights {
        self.layout
            .iter()
            .map(|slot| {
                let start = slot.offset + model as i64 * slot.length;
                let part = buffer.narrow(0, start, slot.length).view(slot.shape.as_slice());
                (slot.name.clone(), part.copy())
            })
            .collect()
    }
}

/// Lets an objective take its data in another order.
pub(crate) fn reorder(objective: &mut dyn Objective, seeds: &[u64]) -> Result<()> {
    if objective.reorder(seeds) {
        return Ok(());
    }
    Err(Error::params("branch_step", "the recipe takes all its data in every step, in no order"))
}

fn layout(weights: &Weights, n_models: i64) -> Vec<Slot> {
    let mut offset = 0;
    let slots = weights.iter().map(|(name, tensor)| {
        let length = tensor.numel() as i64;
        let slot = Slot { name: name.to_owned(), shape: tensor.size(), offset, length };
        offset += n_models * length;
        slot
    });
    slots.collect()
}

/// Lays tensors of all members out in one buffer; absent ones are zero.
fn pack(
    layout: &[Slot],
    members: &[Member],
    part: &dyn Fn(&Member) -> Option<&Weights>,
    device: Device,
) -> Result<Tensor> {
    let mut pieces = Vec::with_capacity(layout.len() * members.len());
    for slot in layout {
        for member in members {
            let Some(weights) = part(member) else {
                pieces.push(member.weights.require(&slot.name)?.zeros_like().reshape([-1]));
                continue;
            };
            let tensor = weights.require(&slot.name)?;
            if tensor.size() != slot.shape {
                return Err(Error::Lens(sweep_lens::Error::Shape {
                    name: slot.name.clone(),
                    expected: slot.shape.clone(),
                    actual: tensor.size(),
                }));
            }
            pieces.push(tensor.detach().reshape([-1]));
        }
    }
    Ok(Tensor::cat(&pieces, 0).to_device(device))
}
