//! Multitask sparse parity (D37): which of many tasks, `n` random bits, and the parity of the task's own `k` bits.
//!
//! Main type: [`Parities`]. Tasks come with Zipf frequencies `p_i ∝ i^-(α+1)`. An example is the set of its
//! active inputs, for a perceptron: the task's unit, then a unit for every bit that is 1.

use sweep_lens::{Device, Kind, Tensor};

use crate::random::counter::Counter;

/// The tasks of each seed and an endless list of examples.
#[derive(Debug)]
pub struct Parities {
    n_tasks: i64,
    n_bits: i64,
    /// i64 `[(n_models,) n_tasks, k]`: the bits of each task.
    subsets: Tensor,
    /// f64 `[n_tasks]`: share of each task and all before it.
    cumulative: Tensor,
    tasks: Counter,
    bits: Counter,
}

/// Examples with their answers.
#[derive(Debug)]
pub struct ParityRows {
    /// i64 `[(n_models,) n_rows, 1 + n_bits]`: active inputs; `n_tasks + n_bits` stands for none.
    pub tokens: Tensor,
    /// i64 `[(n_models,) n_rows]`: the parity.
    pub labels: Tensor,
}

impl Parities {
    /// Tasks and examples of each of `seeds`: `n_tasks` random subsets of `k` of `n_bits` bits.
    pub fn new(
        n_tasks: i64,
        n_bits: i64,
        k: i64,
        alpha: f64,
        seeds: &[u64],
        device: Device,
    ) -> Self {
        let counter = |part| Counter::new(seeds, &format!("parity/{part}"), device);
        let task = Tensor::arange(n_tasks, (Kind::Int64, device));
        Self {
            n_tasks,
            n_bits,
            subsets: counter("subsets").distinct(&task, k, n_bits),
            cumulative: frequencies(n_tasks, alpha, device).cumsum(0, Kind::Double),
            tasks: counter("task"),
            bits: counter("bits"),
        }
    }

    /// Examples with these numbers, tasks by frequency. `rows`: i64 `[n_rows]`.
    pub fn rows(&self, rows: &Tensor) -> ParityRows {
        let draw = self.tasks.uniform(rows, 1);
        let task = draw.bucketize(&self.cumulative, false, true).clamp_max(self.n_tasks - 1);
        self.examples(&task, &self.bits(&self.bits, rows))
    }

    /// `per_task` held-out examples of each task in turn; tokens are the same for all models, which differ
    /// in their tasks' bits, and so in the labels.
    pub fn held_out(&self, per_task: i64) -> ParityRows {
        let device = self.cumulative.device();
        let rows = Tensor::arange(self.n_tasks * per_task, (Kind::Int64, device));
        let bits = self.bits(&Counter::new(&[0], "parity/evaluation", device), &rows);
        let task = rows.divide_scalar_mode(per_task, "floor").unsqueeze(-1);
        let tokens = self.tokens(&task, &bits);
        ParityRows { tokens, labels: self.labels(&task, &bits) }
    }

    /// Random bits, i64 `[(n_models,) n_rows, n_bits]`, 32 to a number.
    fn bits(&self, counter: &Counter, rows: &Tensor) -> Tensor {
        let words = counter.bits(rows, (self.n_bits + 31) / 32).unsqueeze(-1);
        let place = Tensor::arange(32, (Kind::Int64, rows.device()));
        let bits = words.bitwise_right_shift(&place).bitwise_and(1).flatten(-2, -1);
        bits.narrow(-1, 0, self.n_bits)
    }

    fn examples(&self, task: &Tensor, bits: &Tensor) -> ParityRows {
        ParityRows { tokens: self.tokens(task, bits), labels: self.labels(task, bits) }
    }

    /// `task`: i64 `[(n_models,) n_rows, 1]`, `bits`: i64 `[(n_models,) n_rows, n_bits]`.
    fn tokens(&self, task: &Tensor, bits: &Tensor) -> Tensor {
        let unit = Tensor::arange(self.n_bits, (Kind::Int64, bits.device())) + self.n_tasks;
        let none = self.n_tasks + self.n_bits;
        Tensor::cat(&[task, &(bits * (unit - none) + none)], -1)
    }

    fn labels(&self, task: &Tensor, bits: &Tensor) -> Tensor {
        let k = self.subsets.size()[self.subsets.dim() - 1];
        // Held-out examples have no model axis, the subsets of a population do.
        let mut shape = task.size();
        if shape.len() < self.subsets.dim() {
            shape.insert(0, self.subsets.size()[0]);
        }
        let n_rows = shape[shape.len() - 2];
        *shape.last_mut().expect("tasks have a column") = k;
        let places = self.subsets.gather(-2, &task.expand(shape.as_slice(), false), false);
        *shape.last_mut().expect("tasks have a column") = self.n_bits;
        let chosen = bits.expand(shape.as_slice(), false).gather(-1, &places, false);
        let parity = chosen.sum_dim_intlist(&[-1i64][..], false, Kind::Int64).remainder(2);
        debug_assert_eq!(parity.size().last(), Some(&n_rows));
        parity
    }
}

/// Share of each task, f64 `[n_tasks]`, descending.
pub fn frequencies(n_tasks: i64, alpha: f64, device: Device) -> Tensor {
    let rank = Tensor::arange_start(1, n_tasks + 1, (Kind::Double, device));
    let weight = rank.pow_tensor_scalar(-(1.0 + alpha));
    &weight / weight.sum(Kind::Double)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sequence::first_rows, value::to_vec};

    /// Task and parity of an example, recomputed from its active inputs.
    fn parity(parities: &Parities, model: i64, tokens: &[i64]) -> (i64, i64) {
        let (task, units) = tokens.split_first().unwrap();
        let subset = Vec::<i64>::try_from(parities.subsets.get(model).get(*task)).unwrap();
        assert!(units.iter().zip(0..).all(|(&unit, bit)| unit == 5 + bit || unit == 5 + 40));
        let n = subset.iter().filter(|&&bit| units[bit as usize] == 5 + bit).count();
        (*task, n as i64 % 2)
    }

    #[test]
    fn labels_are_parities_and_tasks_follow_zipf() {
        let parities = Parities::new(5, 40, 3, 0.6, &[1, 2], Device::Cpu);
        let rows = parities.rows(&first_rows(4000, Device::Cpu));
        assert_eq!((rows.tokens.size(), rows.labels.size()), (vec![2, 4000, 41], vec![2, 4000]));
        let mut counts = [0.0; 5];
        for row in 0..4000 {
            let tokens = Vec::<i64>::try_from(rows.tokens.get(1).get(row)).unwrap();
            let (task, label) = parity(&parities, 1, &tokens);
            assert_eq!(rows.labels.int64_value(&[1, row]), label);
            counts[task as usize] += 1.0;
        }
        let expected = to_vec(&frequencies(5, 0.6, Device::Cpu));
        assert!((expected[0] / expected[3] - 4f64.powf(1.6)).abs() < 1e-9);
        for (count, share) in counts.iter().zip(expected) {
            let deviation = (4000.0 * share * (1.0 - share)).sqrt();
            assert!((count - 4000.0 * share).abs() < 4.0 * deviation, "{count} {share}");
        }
        let ones = rows.tokens.narrow(-1, 1, 40).lt(45).to_kind(Kind::Double);
        assert!((ones.mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.01);
        assert!(!parities.subsets.get(0).equal(&parities.subsets.get(1)));
    }

    #[test]
    fn held_out_examples_ask_every_task_equally() {
        let group = Parities::new(5, 40, 3, 0.6, &[1, 2], Device::Cpu);
        let held = group.held_out(20);
        assert_eq!((held.tokens.size(), held.labels.size()), (vec![100, 41], vec![2, 100]));
        for row in 0..100 {
            let tokens = Vec::<i64>::try_from(held.tokens.get(row)).unwrap();
            for model in 0..2 {
                let (task, label) = parity(&group, model, &tokens);
                assert_eq!((task, held.labels.int64_value(&[model, row])), (row / 20, label));
            }
        }
        let alone = Parities::new(5, 40, 3, 0.6, &[2], Device::Cpu).held_out(20);
        assert!(alone.tokens.equal(&held.tokens) && alone.labels.equal(&held.labels.get(1)));
    }
}
