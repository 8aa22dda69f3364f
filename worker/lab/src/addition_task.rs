//! Losses of n-digit addition on a fixed set of sums, by digit, sub-task and cascade length: what the
//! recipe streams and what `digit-order` reads at every checkpoint.
//!
//! Main type: [`Probe`]. Digits count in the order in which the answer is asked for. A class without an example
//! (no carry ever reaches the units) has a loss of NaN, never of zero.

use sweep_lens::{Device, Kind, Run, Tensor, Transformer};

use crate::{
    card::{Axis, Figure, FigureKind, MetricDef, Unit, scalar},
    data::addition::{N_SUB_TASKS, Sums},
    modular::nll,
};

/// Sums of each model of a group.
pub(crate) struct Probe {
    /// i64 `[n_models, n, 3d + 2]`
    tokens: Tensor,
    /// i64 `[n_models, n, d + 1]`
    labels: Tensor,
    /// f64 `[4, n_models, n, d + 1]`: 1 where a digit is of that sub-task.
    sub_tasks: Tensor,
    /// f64 `[d + 1, n_models, n, d + 1]`: 1 where the carry came through that many columns.
    cascades: Tensor,
}

/// Metrics of every model.
pub(crate) struct Reading {
    /// `[n_models]`, mean over digits.
    pub(crate) loss: Tensor,
    /// `[n_models]`, all digits right.
    pub(crate) acc: Tensor,
    /// `[n_models, d + 1]`
    pub(crate) loss_digit: Tensor,
    /// `[n_models, d + 1]`
    pub(crate) acc_digit: Tensor,
    /// `[n_models, d + 1]`, by length 0 to d.
    pub(crate) loss_cascade: Tensor,
    /// Of each sub-task, `[n_models, d + 1]`.
    pub(crate) loss_sub_task: [Tensor; N_SUB_TASKS],
}

/// Loss of every answer digit, nats. `logits`: `[.., 3d + 2, 10]`, `labels`: `[.., d + 1]` → f64
/// `[.., d + 1]`.
pub(crate) fn losses(logits: &Tensor, labels: &Tensor) -> Tensor {
    nll(&answers(logits, labels), labels)
}

/// Logits at the positions that answer.
fn answers(logits: &Tensor, labels: &Tensor) -> Tensor {
    let n_answers = labels.size()[labels.dim() - 1];
    let n_pos = logits.size()[logits.dim() - 2];
    logits.narrow(-2, n_pos - n_answers, n_answers)
}

impl Probe {
    /// `sums` has one entry per model, all of the same length.
    pub(crate) fn new(sums: &[&Sums], n_digits: usize, device: Device) -> Self {
        let width = n_digits as i64 + 1;
        let (tokens, labels): (Vec<Tensor>, Vec<Tensor>) =
            sums.iter().map(|sums| sums.tensors(n_digits, device)).unzip();
        let one_hot = |n: usize, class: &dyn Fn(&Sums) -> Vec<usize>| {
            let masks: Vec<Tensor> = (0..n)
                .map(|wanted| {
                    let of_model = sums.iter().map(|sums| {
                        let is = |class: usize| f64::from(u8::from(class == wanted));
                        let mask: Vec<f64> = class(sums).into_iter().map(is).collect();
                        Tensor::from_slice(&mask).view([-1, width])
                    });
                    Tensor::stack(&of_model.collect::<Vec<_>>(), 0)
                })
                .collect();
            Tensor::stack(&masks, 0).to_device(device)
        };
        Self {
            tokens: Tensor::stack(&tokens, 0),
            labels: Tensor::stack(&labels, 0),
            sub_tasks: one_hot(N_SUB_TASKS, &|sums| {
                sums.sub_tasks.iter().map(|&task| task as usize).collect()
            }),
            cascades: one_hot(n_digits + 1, &|sums| {
                sums.cascades.iter().map(|&length| usize::from(length)).collect()
            }),
        }
    }

    /// Loss of every answer digit, f64 `[n_models, n, d + 1]`, with its logits.
    fn losses(&self, model: &Transformer) -> (Tensor, Tensor) {
        let tokens = if model.n_models().is_some() {
            self.tokens.shallow_clone()
        } else {
            self.tokens.squeeze_dim(0)
        };
        let logits = answers(&model.forward(&tokens, &Run::FULL, &mut ()), &self.labels);
        let shape = [self.labels.size().as_slice(), &[-1]].concat();
        let logits = logits.reshape(shape);
        (nll(&logits, &self.labels), logits)
    }

    /// Mean loss of every digit, `[n_models, d + 1]`; differentiable.
    pub(crate) fn loss_digit(&self, model: &Transformer) -> Tensor {
        self.losses(model).0.mean_dim(&[1i64][..], false, Kind::Double)
    }

    /// Reads everything.
    pub(crate) fn read(&self, model: &Transformer) -> Reading {
        let (losses, logits) = self.losses(model);
        let correct = logits.argmax(-1, false).eq_tensor(&self.labels).to_kind(Kind::Double);
        let mean = |values: &Tensor, axes: &[i64]| values.mean_dim(axes, false, Kind::Double);
        let class = |mask: &Tensor, axes: &[i64]| {
            let sum = (&losses * mask).sum_dim_intlist(axes, false, Kind::Double);
            // No example: 0 / 0, which is NaN.
            sum / mask.sum_dim_intlist(axes, false, Kind::Double)
        };
        let cascades: Vec<Tensor> =
            (0..self.cascades.size()[0]).map(|n| class(&self.cascades.get(n), &[1, 2])).collect();
        Reading {
            loss: mean(&losses, &[1, 2]),
            acc: mean(&correct.amin([-1i64], false), &[1]),
            loss_digit: mean(&losses, &[1]),
            acc_digit: mean(&correct, &[1]),
            loss_cascade: Tensor::stack(&cascades, 1),
            loss_sub_task: std::array::from_fn(|task| {
                class(&self.sub_tasks.get(task as i64), &[1])
            }),
        }
    }
}

const fn digit(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Digit], doc }
}

/// Metrics of the recipe.
pub(crate) const METRICS: &[MetricDef] = &[
    scalar("train_loss", Unit::Nats, "Mean loss per digit on training sums"),
    scalar("test_loss", Unit::Nats, "Mean loss per digit on other sums"),
    scalar("train_acc", Unit::Probability, "Fraction of training sums with every digit right"),
    scalar("test_acc", Unit::Probability, "Fraction of other sums with every digit right"),
    digit("loss_digit", Unit::Nats, "Mean loss of each answer digit on other sums, as asked for"),
    digit("acc_digit", Unit::Probability, "Fraction of other sums with that digit right"),
    digit("loss_base", Unit::Nats, "Loss where no carry can come (BA); NaN without example"),
    digit("loss_make_carry", Unit::Nats, "Loss where the column below makes a carry (MC1)"),
    digit("loss_use_sum9", Unit::Nats, "Loss where a carry comes through a column of sum 9 (US9)"),
    digit("loss_no_carry9", Unit::Nats, "Loss where the column below sums to 9 without a carry"),
    MetricDef {
        name: "loss_cascade",
        unit: Unit::Nats,
        axes: &[Axis::Cascade],
        doc: "Loss by number of columns that the carry came through; 0: no carry",
    },
    scalar("weight_norm", Unit::SquaredNorm, "Sum of squares of all parameters"),
    scalar("lr", Unit::Dimensionless, "Learning rate of the next update"),
];

const fn lines(
    name: &'static str,
    title: &'static str,
    metrics: &'static [&'static str],
) -> Figure {
    Figure { name, title, kind: FigureKind::Lines, metrics, log_x: false, log_y: true }
}

/// Figures of the recipe.
pub(crate) const FIGURES: &[Figure] = &[
    lines("digits", "Loss of each digit", &["loss_digit"]),
    lines("loss", "Loss while training", &["train_loss", "test_loss"]),
    lines("cascades", "Loss by length of the carry cascade", &["loss_cascade"]),
];
