//! Sums of two n-digit numbers as sequences (D9): `a + b = c`, most significant digit first unless the answer
//! is asked for in reverse, and the sub-task that every digit of an answer needs (Quirke and Barez 2023).
//!
//! Main types: [`Generator`] draws pairs, [`Sums`] is a batch of them. Everything is a function of the
//! generator's fields and a random stream.

use rand::Rng;
use sweep_lens::{Device, Tensor};

use crate::random;

/// Token of `+`.
pub const PLUS: i64 = 10;
/// Token of `=`.
pub const EQUALS: i64 = 11;
/// Classes of a digit: see [`SubTask`].
pub const N_SUB_TASKS: usize = 4;

/// What the carry into a digit of the answer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubTask {
    /// No carry, and the column below cannot pass one on: a_i + b_i alone decides (BA).
    Base,
    /// The column below makes a carry (MC1).
    MakeCarry,
    /// The column below sums to nine and passes a carry on (US9).
    UseSum9,
    /// The column below sums to nine but there is nothing to pass on.
    NoCarry9,
}

/// Draws pairs of numbers.
#[derive(Debug, Clone, Copy)]
pub struct Generator {
    /// Digits of each number.
    pub n_digits: usize,
    /// Probability that a column sums to ten or more; `None` draws digits uniformly (then 0.45).
    pub carry_rate: Option<f64>,
    /// Whether the answer comes least significant digit first.
    pub reversed: bool,
}

/// A batch of sums.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// `3n + 2` tokens per sum: everything but the last digit of the answer.
    pub tokens: Vec<i64>,
    /// `n + 1` answer digits per sum, in the order in which they are asked for.
    pub labels: Vec<i64>,
    /// Sub-task of each answer digit.
    pub sub_tasks: Vec<SubTask>,
    /// How many columns the carry into each answer digit came through; 0 without a carry, 1 if the
    /// column below made it.
    pub cascades: Vec<u8>,
}

impl Generator {
    /// Draws one pair, digits most significant first.
    pub fn draw(&self, rng: &mut impl Rng) -> Vec<(i64, i64)> {
        (0..self.n_digits).map(|_| self.column(rng)).collect()
    }

    fn column(&self, rng: &mut impl Rng) -> (i64, i64) {
        let pair = |rng: &mut _| {
            let both = random::below(rng, 100) as i64;
            (both / 10, both % 10)
        };
        let Some(rate) = self.carry_rate else { return pair(rng) };
        // 53 bits: every rate that a user can write down is met exactly enough.
        let carries = ((rng.next_u64() >> 11) as f64) < rate * (1u64 << 53) as f64;
        loop {
            let (a, b) = pair(rng);
            if (a + b >= 10) == carries {
                return (a, b);
            }
        }
    }

    /// Writes pairs as sequences.
    pub fn write(&self, pairs: &[Vec<(i64, i64)>]) -> Sums {
        let mut sums = Sums::default();
        for pair in pairs {
            let (digits, tasks, cascades) = answer(pair);
            let order: Vec<usize> = if self.reversed {
                (0..digits.len()).rev().collect()
            } else {
                (0..digits.len()).collect()
            };
            sums.tokens.extend(pair.iter().map(|column| column.0));
            sums.tokens.push(PLUS);
            sums.tokens.extend(pair.iter().map(|column| column.1));
            sums.tokens.push(EQUALS);
            sums.tokens.extend(order[..self.n_digits].iter().map(|&place| digits[place]));
            sums.labels.extend(order.iter().map(|&place| digits[place]));
            sums.sub_tasks.extend(order.iter().map(|&place| tasks[place]));
            sums.cascades.extend(order.iter().map(|&place| cascades[place]));
        }
        sums
    }

    /// Draws and writes `n` pairs.
    pub fn batch(&self, rng: &mut impl Rng, n: usize) -> Sums {
        let pairs: Vec<_> = (0..n).map(|_| self.draw(rng)).collect();
        self.write(&pairs)
    }

    /// Tokens of a sequence: `3n + 2`.
    pub fn n_ctx(&self) -> i64 {
        3 * self.n_digits as i64 + 2
    }
}

/// Digits of the sum, most significant first, with sub-task and cascade length of each.
fn answer(pair: &[(i64, i64)]) -> (Vec<i64>, Vec<SubTask>, Vec<u8>) {
    let n = pair.len();
    let (mut digits, mut tasks, mut cascades) =
        (vec![0; n + 1], vec![SubTask::Base; n + 1], vec![0; n + 1]);
    let (mut carry, mut came_through, mut below) = (0, 0u8, 0);
    for place in (0..=n).rev() {
        // The leading digit has no column of its own: it is the last carry.
        let column = if place == 0 { 0 } else { pair[place - 1].0 + pair[place - 1].1 };
        digits[place] = (column + carry) % 10;
        cascades[place] = came_through;
        tasks[place] = match (carry, below) {
            (1, 9) => SubTask::UseSum9,
            (1, _) => SubTask::MakeCarry,
            (_, 9) => SubTask::NoCarry9,
            _ => SubTask::Base,
        };
        let next = (column + carry) / 10;
        came_through = match (next, column >= 10) {
            (0, _) => 0,
            (_, true) => 1,
            (_, false) => came_through + 1,
        };
        (carry, below) = (next, column);
    }
    (digits, tasks, cascades)
}

impl Sums {
    /// Tokens i64 `[n, 3n + 2]` and labels i64 `[n, n + 1]`.
    pub fn tensors(&self, n_digits: usize, device: Device) -> (Tensor, Tensor) {
        let width = n_digits as i64;
        (
            Tensor::from_slice(&self.tokens).view([-1, 3 * width + 2]).to_device(device),
            Tensor::from_slice(&self.labels).view([-1, width + 1]).to_device(device),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(digits: &[i64]) -> i64 {
        digits.iter().fold(0, |number, digit| 10 * number + digit)
    }

    #[test]
    fn sums_are_right_in_both_orders() {
        for reversed in [false, true] {
            let generator = Generator { n_digits: 4, carry_rate: None, reversed };
            let sums = generator.batch(&mut random::stream(1, "test"), 200);
            for (tokens, labels) in sums.tokens.chunks(14).zip(sums.labels.chunks(5)) {
                assert_eq!((tokens[4], tokens[9]), (PLUS, EQUALS));
                assert_eq!(tokens[10..], labels[..4], "earlier digits are given");
                let mut answer = labels.to_vec();
                if reversed {
                    answer.reverse();
                }
                assert_eq!(number(&tokens[..4]) + number(&tokens[5..9]), number(&answer));
            }
        }
    }

    #[test]
    fn sub_tasks_and_cascades_by_hand() {
        // 0 4 5 7 2 + 0 5 4 4 7: columns 0 9 9 11 9, so nothing into the units and the tens, a made carry
        // into the hundreds that goes through two nines.
        let pair = [(0, 0), (4, 5), (5, 4), (7, 4), (2, 7)];
        let (digits, tasks, cascades) = answer(&pair);
        assert_eq!(digits, [0, 1, 0, 0, 1, 9]);
        assert_eq!(
            tasks,
            [
                SubTask::Base,
                SubTask::UseSum9,
                SubTask::UseSum9,
                SubTask::MakeCarry,
                SubTask::NoCarry9,
                SubTask::Base
            ]
        );
        assert_eq!(cascades, [0, 3, 2, 1, 0, 0]);
    }

    #[test]
    fn carry_rate_is_met() {
        for (carry_rate, expected) in
            [(None, 0.45), (Some(0.1), 0.1), (Some(1.0), 1.0), (Some(0.0), 0.0)]
        {
            let generator = Generator { n_digits: 5, carry_rate, reversed: false };
            let mut rng = random::stream(2, "test");
            let columns: Vec<_> = (0..2000).flat_map(|_| generator.draw(&mut rng)).collect();
            let rate = columns.iter().filter(|(a, b)| a + b >= 10).count() as f64 / 10_000.0;
            // Three standard deviations of 10 000 draws are 0.015.
            assert!((rate - expected).abs() < 0.015, "{rate} {expected}");
        }
    }
}
