//! Random tokens repeated with a period: data that only attention to earlier copies can predict (D11r).
//!
//! Main types: [`Repeats`], which draws sequences, and [`RepeatedRows`], some of them with the places that
//! the heads of an induction circuit attend to. Invariant: row `r` of a seed is the same in every batch.

use sweep_lens::{Device, Kind, Tensor};

use crate::{
    error::{Error, Result},
    random::counter::Counter,
};

/// Endless list of sequences `x_t = R[t mod P]` with `P` uniform in a range and `R` uniform tokens.
#[derive(Debug)]
pub struct Repeats {
    /// Smallest and largest period, inclusive.
    pub period: [i64; 2],
    /// Number of tokens.
    pub d_vocab: i64,
    /// Length of a sequence.
    pub n_ctx: i64,
    periods: Counter,
    tokens: Counter,
}

/// Sequences and the period of each.
#[derive(Debug)]
pub struct RepeatedRows {
    /// i64 `[(n_models,) n_rows, n_ctx]`
    pub tokens: Tensor,
    /// i64 `[(n_models,) n_rows, 1]`
    pub period: Tensor,
}

/// Checks a recipe's longest period, in whose sequences something must repeat.
pub(crate) fn check(longest: i64, n_ctx: i64) -> Result<()> {
    if longest + 1 < n_ctx {
        return Ok(());
    }
    let problem = format!("{longest} leaves no repeat to predict in n_ctx {n_ctx}");
    Err(Error::params("period_max", problem))
}

impl Repeats {
    /// Sequences of each of `seeds`; `purpose` keeps sets apart (training, evaluation).
    pub fn new(
        period: [i64; 2],
        d_vocab: i64,
        n_ctx: i64,
        seeds: &[u64],
        purpose: &str,
        device: Device,
    ) -> Self {
        let counter = |part| Counter::new(seeds, &format!("repeats/{purpose}/{part}"), device);
        Self { period, d_vocab, n_ctx, periods: counter("period"), tokens: counter("tokens") }
    }

    /// The sequences with these numbers. `rows`: i64 `[n_rows]`.
    pub fn rows(&self, rows: &Tensor) -> RepeatedRows {
        let [shortest, longest] = self.period;
        let period = self.periods.below(rows, 1, longest - shortest + 1) + shortest;
        let pattern = self.tokens.below(rows, longest, self.d_vocab);
        let position = Tensor::arange(self.n_ctx, (Kind::Int64, rows.device()));
        let index = position.remainder_tensor(&period); // [(n_models,) n_rows, n_ctx]
        RepeatedRows { tokens: pattern.gather(-1, &index, false), period }
    }
}

/// Methods for rows without a model axis.
impl RepeatedRows {
    /// Whether token `i + 1` is predictable: its predecessor was seen before it, one period ago.
    /// bool `[n_rows, n_ctx - 1]`.
    pub fn is_repeated_target(&self) -> Tensor {
        let position = self.positions();
        position.narrow(0, 1, self.n_ctx() - 1).gt_tensor(&self.period)
    }

    /// Queries behind the first copy, bool `[n_rows, n_ctx]`.
    pub fn is_repeated(&self) -> Tensor {
        self.positions().ge_tensor(&self.period)
    }

    /// Keys that follow an earlier occurrence of the query's token, or the query itself if its token
    /// stands twice in a row. bool `[n_rows, query, key]`.
    pub fn prefix_matches(&self) -> Tensor {
        let n = self.n_ctx();
        let is_equal = self.tokens.unsqueeze(-1).eq_tensor(&self.tokens.unsqueeze(-2)); // [row, query, key]
        // Column `j` asks about the token in front of key `j`; nothing stands in front of key 0.
        let front = is_equal.narrow(-1, 0, 1).zeros_like();
        Tensor::cat(&[front, is_equal.narrow(-1, 0, n - 1)], -1).tril(0)
    }

    /// The key one period minus one before the query: where an induction head looks, and a head that
    /// knows nothing but positions as well. bool `[n_rows, query, key]`.
    pub fn stripe(&self) -> Tensor {
        let position = self.positions();
        let distance = position.unsqueeze(-1) - position.unsqueeze(0); // [query, key]
        distance.unsqueeze(0).eq_tensor(&(&self.period - 1).unsqueeze(-1))
    }

    /// Queries for which [`RepeatedRows::stripe`] has a key. bool `[n_rows, n_ctx]`.
    pub fn has_stripe(&self) -> Tensor {
        self.positions().ge_tensor(&(&self.period - 1))
    }

    /// The key in front of the query. bool `[n_rows, query, key]`.
    pub fn previous(&self) -> Tensor {
        let (n, position) = (self.n_ctx(), self.positions());
        let is_previous = (position.unsqueeze(-1) - position.unsqueeze(0)).eq(1);
        is_previous.expand([self.tokens.size()[0], n, n], false)
    }

    /// Queries for which [`RepeatedRows::previous`] has a key: all but the first. bool `[n_rows, n_ctx]`.
    pub fn has_previous(&self) -> Tensor {
        self.positions().ge(1).expand_as(&self.tokens)
    }

    fn n_ctx(&self) -> i64 {
        self.tokens.size()[self.tokens.dim() - 1]
    }

    fn positions(&self) -> Tensor {
        Tensor::arange(self.n_ctx(), (Kind::Int64, self.tokens.device()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::first_rows;

    fn flags(mask: &Tensor) -> Vec<i64> {
        Vec::try_from(mask.to_kind(Kind::Int64).reshape([-1])).unwrap()
    }

    #[test]
    fn rows_repeat_with_their_period() {
        let repeats = Repeats::new([3, 6], 50, 20, &[1, 2], "test", Device::Cpu);
        let rows = repeats.rows(&first_rows(300, Device::Cpu));
        assert_eq!((rows.tokens.size(), rows.period.size()), (vec![2, 300, 20], vec![2, 300, 1]));
        let (low, high) = (rows.period.min().int64_value(&[]), rows.period.max().int64_value(&[]));
        assert_eq!((low, high), (3, 6));
        for model in 0..2 {
            for row in 0..300 {
                let tokens = Vec::<i64>::try_from(rows.tokens.get(model).get(row)).unwrap();
                let period = rows.period.int64_value(&[model, row, 0]) as usize;
                assert!(tokens.iter().all(|token| (0..50).contains(token)));
                assert!((period..20).all(|t| tokens[t] == tokens[t - period]));
            }
        }
        let other = Repeats::new([3, 6], 50, 20, &[1], "other", Device::Cpu);
        assert!(!other.rows(&first_rows(300, Device::Cpu)).tokens.equal(&rows.tokens.get(0)));
    }

    #[test]
    fn places_of_a_known_sequence() {
        let rows = RepeatedRows {
            tokens: Tensor::from_slice(&[7i64, 8, 7, 8, 7]).view([1, 5]),
            period: Tensor::from_slice(&[2i64]).view([1, 1]),
        };
        // Targets 1..=4: token 3 is the first one whose predecessor stood one period before.
        assert_eq!(flags(&rows.is_repeated_target()), [0, 0, 1, 1]);
        assert_eq!(flags(&rows.is_repeated()), [0, 0, 1, 1, 1]);
        #[rustfmt::skip]
        let matches = [
            0, 0, 0, 0, 0,
            0, 0, 0, 0, 0,
            0, 1, 0, 0, 0,
            0, 0, 1, 0, 0,
            0, 1, 0, 1, 0,
        ];
        assert_eq!(flags(&rows.prefix_matches()), matches);
        let below = |offset: i64| {
            let at = |i: i64| i64::from(i / 5 - i % 5 == offset);
            (0..25).map(at).collect::<Vec<_>>()
        };
        assert_eq!(flags(&rows.stripe()), below(1));
        assert_eq!(flags(&rows.previous()), below(1));
        assert_eq!(flags(&rows.has_stripe()), [0, 1, 1, 1, 1]);
    }
}
