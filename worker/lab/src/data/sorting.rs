//! Numbers, a separator, the same numbers in ascending order: `BOS x₁ … xₙ SEP y₁ … yₙ`.
//!
//! Main type: [`Lists`]. Tokens are the numbers `0..n_values`, then [`Lists::bos`] and [`Lists::sep`].

use sweep_lens::{Device, Tensor};

use crate::random::counter::Counter;

/// Endless list of sequences to sort.
#[derive(Debug)]
pub struct Lists {
    /// Numbers per list.
    pub length: i64,
    /// Numbers are below this.
    pub n_values: i64,
    /// Whether no number comes twice in a list.
    pub distinct: bool,
    values: Counter,
}

impl Lists {
    /// Lists of each of `seeds`; `purpose` keeps sets apart (training, evaluation).
    pub fn new(
        length: i64,
        n_values: i64,
        distinct: bool,
        seeds: &[u64],
        purpose: &str,
        device: Device,
    ) -> Self {
        let values = Counter::new(seeds, &format!("sorting/{purpose}"), device);
        Self { length, n_values, distinct, values }
    }

    /// The token in front of everything.
    pub fn bos(&self) -> i64 {
        self.n_values
    }

    /// The token between question and answer.
    pub fn sep(&self) -> i64 {
        self.n_values + 1
    }

    /// The sequences with these numbers, i64 `[(n_models,) n_rows, 2·length + 2]`.
    pub fn rows(&self, rows: &Tensor) -> Tensor {
        let values = if self.distinct {
            self.values.distinct(rows, self.length, self.n_values)
        } else {
            self.values.below(rows, self.length, self.n_values)
        };
        let (sorted, _) = values.sort(-1, false);
        let column = values.narrow(-1, 0, 1);
        let (bos, sep) = (column.full_like(self.bos()), column.full_like(self.sep()));
        Tensor::cat(&[bos, values, sep, sorted], -1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::first_rows;

    #[test]
    fn answers_are_sorted_questions() {
        for distinct in [false, true] {
            let lists = Lists::new(4, 6, distinct, &[1, 2], "test", Device::Cpu);
            let rows = lists.rows(&first_rows(200, Device::Cpu));
            assert_eq!(rows.size(), [2, 200, 10]);
            let mut n_repeats = 0;
            for row in 0..200 {
                let row = Vec::<i64>::try_from(rows.get(1).get(row)).unwrap();
                assert_eq!((row[0], row[5]), (6, 7));
                let mut question = row[1..5].to_vec();
                question.sort_unstable();
                assert_eq!(question, row[6..]);
                question.dedup();
                n_repeats += i32::from(question.len() < 4);
            }
            assert_eq!(n_repeats == 0, distinct, "{n_repeats}");
        }
    }
}
