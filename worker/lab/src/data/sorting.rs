//! Numbers, a separator, the same numbers in ascending order, as they were, or backwards:
//! `BOS x₁ … xₙ SEP y₁ … yₙ`.
//!
//! Main type: [`Lists`]. Tokens are the numbers `0..n_values`, then [`Lists::bos`] and [`Lists::sep`].

use sweep_lens::{Device, Tensor};

use crate::random::counter::Counter;

/// Names of [`Answer`]s, as parameters give them.
pub(crate) const ANSWERS: [&str; 3] = ["sorted", "copy", "reverse"];

/// Order of the numbers behind the separator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Ascending.
    Sorted,
    /// That of the question.
    Copy,
    /// The question's, backwards.
    Reverse,
}

impl Answer {
    /// The order of this name, one of [`ANSWERS`] (which the parameter check guarantees).
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            "copy" => Self::Copy,
            "reverse" => Self::Reverse,
            _ => Self::Sorted,
        }
    }
}

/// Endless list of sequences to sort.
#[derive(Debug)]
pub struct Lists {
    /// Numbers per list.
    pub length: i64,
    /// Numbers are below this.
    pub n_values: i64,
    /// Whether no number comes twice in a list.
    pub distinct: bool,
    /// Order of the answer.
    pub answer: Answer,
    values: Counter,
}

impl Lists {
    /// Lists of each of `seeds`; `purpose` keeps sets apart (training, evaluation).
    pub fn new(
        [length, n_values]: [i64; 2],
        distinct: bool,
        answer: Answer,
        seeds: &[u64],
        purpose: &str,
        device: Device,
    ) -> Self {
        let values = Counter::new(seeds, &format!("sorting/{purpose}"), device);
        Self { length, n_values, distinct, answer, values }
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
        let answer = match self.answer {
            Answer::Sorted => values.sort(-1, false).0,
            Answer::Copy => values.shallow_clone(),
            Answer::Reverse => values.flip([-1]),
        };
        let column = values.narrow(-1, 0, 1);
        let (bos, sep) = (column.full_like(self.bos()), column.full_like(self.sep()));
        Tensor::cat(&[bos, values, sep, answer], -1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::first_rows;

    #[test]
    fn answers_are_sorted_questions() {
        for distinct in [false, true] {
            let lists = Lists::new([4, 6], distinct, Answer::Sorted, &[1, 2], "test", Device::Cpu);
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

    #[test]
    fn questions_are_copied_and_reversed() {
        let rows = |name: &str| {
            let lists = Lists::new([3, 9], true, Answer::parse(name), &[4], "test", Device::Cpu);
            Vec::<i64>::try_from(lists.rows(&first_rows(1, Device::Cpu)).get(0)).unwrap()
        };
        let (copy, reverse) = (rows("copy"), rows("reverse"));
        assert_eq!(copy[1..4], copy[5..]);
        assert_eq!(copy[..5], reverse[..5], "the same question");
        assert_eq!([copy[3], copy[2], copy[1]], reverse[5..]);
    }
}
