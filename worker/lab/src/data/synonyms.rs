//! Sequences that repeat in another language: concept `i` has the words `i` and `n_pairs + i`, and copies of a
//! random pattern alternate between the two (D41).
//!
//! Main types: [`Synonyms`], which draws sequences of a [`Repetition`]. Rows without a model axis have the
//! places that heads attend to through [`RepeatedRows`].

use sweep_lens::{Device, Kind, Tensor};

use crate::{data::repeats::RepeatedRows, random::counter::Counter};

/// How the copies of a sequence relate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Repetition {
    /// This share of the sequences repeats word by word, the others are translated.
    Mixed {
        /// From 0 to 1.
        literal: f64,
    },
    /// Every copy is in the other language than the one before.
    Translated,
    /// Every copy is the first one again.
    Literal,
    /// The second copy is in the other language and has nothing to do with the first: the control.
    Unrelated,
}

/// Endless list of sequences.
#[derive(Debug)]
pub struct Synonyms {
    /// Smallest and largest period, inclusive.
    pub period: [i64; 2],
    /// Number of concepts; there are twice as many tokens.
    pub n_pairs: i64,
    /// Length of a sequence.
    pub n_ctx: i64,
    periods: Counter,
    concepts: Counter,
    control: Counter,
    languages: Counter,
    kinds: Counter,
}

impl Synonyms {
    /// Sequences of each of `seeds`; `purpose` keeps sets apart (training, evaluation).
    pub fn new(
        period: [i64; 2],
        n_pairs: i64,
        n_ctx: i64,
        seeds: &[u64],
        purpose: &str,
        device: Device,
    ) -> Self {
        let counter = |part| Counter::new(seeds, &format!("synonyms/{purpose}/{part}"), device);
        Self {
            period,
            n_pairs,
            n_ctx,
            periods: counter("period"),
            concepts: counter("concept"),
            control: counter("control"),
            languages: counter("language"),
            kinds: counter("kind"),
        }
    }

    /// The sequences with these numbers. `rows`: i64 `[n_rows]`.
    pub fn rows(&self, rows: &Tensor, repetition: Repetition) -> RepeatedRows {
        let [shortest, longest] = self.period;
        let period = self.periods.below(rows, 1, longest - shortest + 1) + shortest;
        let position = Tensor::arange(self.n_ctx, (Kind::Int64, rows.device()));
        let index = position.remainder_tensor(&period); // [(n_models,) n_rows, n_ctx]
        let mut concepts =
            self.concepts.below(rows, longest, self.n_pairs).gather(-1, &index, false);
        if repetition == Repetition::Unrelated {
            let other = self.control.below(rows, self.n_ctx, self.n_pairs);
            concepts = other.where_self(&position.ge_tensor(&period), &concepts);
        }
        let first = self.languages.below(rows, 1, 2);
        let copy = (position - &index).floor_divide(&period);
        let changes = match repetition {
            Repetition::Mixed { literal } => {
                copy * self.kinds.uniform(rows, 1).ge(literal).to_kind(Kind::Int64)
            }
            Repetition::Translated | Repetition::Unrelated => copy,
            Repetition::Literal => copy.zeros_like(),
        };
        let language = (changes + first).remainder(2);
        RepeatedRows { tokens: concepts + language * self.n_pairs, period }
    }
}

/// Methods for rows without a model axis.
impl RepeatedRows {
    /// Positions of the second copy, bool `[n_rows, n_ctx]`.
    pub fn is_second_copy(&self) -> Tensor {
        let n_ctx = self.tokens.size()[self.tokens.dim() - 1];
        let position = Tensor::arange(n_ctx, (Kind::Int64, self.tokens.device()));
        position.ge_tensor(&self.period).logical_and(&position.lt_tensor(&(&self.period * 2)))
    }

    /// Whether token `i + 1` and the token in front of it are of the second copy, so that what came before
    /// says what it is. bool `[n_rows, n_ctx - 1]`.
    pub fn is_second_target(&self) -> Tensor {
        let second = self.is_second_copy();
        let n = second.size()[1] - 1;
        second.narrow(1, 0, n).logical_and(&second.narrow(1, 1, n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::first_rows;

    fn row(rows: &RepeatedRows, index: i64) -> (Vec<i64>, usize) {
        let tokens = Vec::try_from(rows.tokens.get(index)).unwrap();
        (tokens, rows.period.int64_value(&[index, 0]) as usize)
    }

    #[test]
    fn copies_relate_as_asked() {
        const N: i64 = 10;
        let synonyms = Synonyms::new([3, 5], N, 12, &[1], "test", Device::Cpu);
        let draw = |repetition| synonyms.rows(&first_rows(400, Device::Cpu), repetition);
        let (translated, literal) = (draw(Repetition::Translated), draw(Repetition::Literal));
        let (unrelated, mixed) =
            (draw(Repetition::Unrelated), draw(Repetition::Mixed { literal: 0.25 }));
        let mut n_literal = 0;
        let mut n_agree = 0;
        for index in 0..400 {
            let (tokens, period) = row(&translated, index);
            assert!((period..12).all(|t| tokens[t] == (tokens[t - period] + N) % (2 * N)));
            let (same, _) = row(&literal, index);
            assert!((period..12).all(|t| same[t] == same[t - period]));
            assert_eq!(same[..period], tokens[..period], "the first copies are equal");
            let (control, _) = row(&unrelated, index);
            assert_eq!(control[..period], tokens[..period]);
            assert_eq!(control[period] / N, 1 - control[0] / N, "the other language");
            n_agree += i32::from(control[period] == tokens[period]);
            let (either, _) = row(&mixed, index);
            assert!(either == tokens || either == same);
            n_literal += i32::from(either == same);
        }
        assert!((60..140).contains(&n_literal), "{n_literal} of 100 expected");
        assert!(n_agree < 80, "{n_agree} of 40 expected");
    }

    #[test]
    fn second_copies_are_found() {
        let rows = RepeatedRows {
            tokens: Tensor::zeros([1, 7], (Kind::Int64, Device::Cpu)),
            period: Tensor::from_slice(&[3i64]).view([1, 1]),
        };
        let flags =
            |mask: Tensor| Vec::<i64>::try_from(mask.to_kind(Kind::Int64).view([-1])).unwrap();
        assert_eq!(flags(rows.is_second_copy()), [0, 0, 0, 1, 1, 1, 0]);
        assert_eq!(flags(rows.is_second_target()), [0, 0, 0, 1, 1, 0]);
    }
}
