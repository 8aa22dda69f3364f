//! Sums of attention over chosen places, which is what nearly every statistic of a head is: weights of places
//! and patterns become one matrix product per layer, so a pattern is read once however many statistics there
//! are, and is never kept.
//!
//! Main type: [`PatternSums`]. Invariant: sums are per row, so results do not depend on how rows are batched
//! (up to the order of summation).

use sweep_lens::{Hook, Kind, Site, Tensor};

use crate::error::{Error, Result};

/// Per layer, row, head and statistic: the sum over queries and keys of attention times weight.
#[derive(Debug)]
pub(crate) struct PatternSums {
    /// First row of the batch at hand and the weights of its places, `[batch, statistic, query * key]`: each statistic's
    /// lie together, which makes the product two to three times as fast.
    weights: Option<(i64, Tensor)>,
    /// By layer: f64 `[batch, head, statistic]` of every batch so far.
    sums: Vec<Vec<Tensor>>,
}

impl PatternSums {
    pub(crate) fn new(n_layers: i64) -> Self {
        let n_layers = usize::try_from(n_layers).unwrap_or(0);
        Self { weights: None, sums: (0..n_layers).map(|_| Vec::new()).collect() }
    }

    /// Whether `hook` is what [`PatternSums::see`] wants.
    pub(crate) fn wants(hook: Hook) -> bool {
        matches!(hook, Hook::Block { site: Site::Pattern, .. })
    }

    /// Adds one layer's pattern of one batch.
    ///
    /// # Shapes
    /// - `pattern`: `[batch, head, query, key]`
    /// - `weights`: makes `[batch, query, key, statistic]` for the batch, asked once for all layers
    pub(crate) fn see(
        &mut self,
        hook: Hook,
        first_row: i64,
        pattern: &Tensor,
        weights: impl FnOnce() -> Tensor,
    ) {
        let Some(layer) = hook.layer() else { return };
        let kind = if pattern.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        if self.weights.as_ref().is_none_or(|(row, _)| *row != first_row) {
            let weights = weights().flatten(1, 2).to_kind(kind).transpose(1, 2).contiguous();
            self.weights = Some((first_row, weights));
        }
        let (_, weights) = self.weights.as_ref().expect("made above");
        let sums = pattern.to_kind(kind).flatten(2, 3).matmul(&weights.transpose(1, 2));
        self.sums[layer as usize].push(sums.to_kind(Kind::Double));
    }

    /// All sums.
    ///
    /// # Shapes
    /// f64 `[layer, row, head, statistic]`, on the CPU.
    ///
    /// # Errors
    /// [`Error::Input`] if a layer was not seen.
    pub(crate) fn finish(self) -> Result<Tensor> {
        let mut layers = Vec::with_capacity(self.sums.len());
        for (layer, batches) in self.sums.iter().enumerate() {
            if batches.is_empty() {
                return Err(Error::Input(format!("the pass gave no pattern of layer {layer}")));
            }
            layers.push(Tensor::cat(batches, 0));
        }
        Ok(Tensor::stack(&layers, 0).to_device(sweep_lens::Device::Cpu))
    }
}

/// Places of attention: masks for the rows of a batch, `[batch, query, key]` each.
pub(crate) mod places {
    use super::{Kind, Tensor};

    /// Queries within their row, bool `[batch, query]`.
    ///
    /// `lengths`: i64 `[batch]`.
    pub(crate) fn within(lengths: &Tensor, pos: i64) -> Tensor {
        let position = Tensor::arange(pos, (Kind::Int64, lengths.device()));
        position.unsqueeze(0).lt_tensor(&lengths.unsqueeze(-1))
    }

    /// `query - key`, i64 `[query, key]`.
    pub(crate) fn distance(pos: i64, tokens: &Tensor) -> Tensor {
        let position = Tensor::arange(pos, (Kind::Int64, tokens.device()));
        position.unsqueeze(-1) - position.unsqueeze(0)
    }

    /// Earlier places of the query's token.
    pub(crate) fn duplicates(tokens: &Tensor) -> Tensor {
        tokens.unsqueeze(-1).eq_tensor(&tokens.unsqueeze(-2)).tril(-1)
    }

    /// Places that follow an earlier place of the query's token, up to the query itself.
    pub(crate) fn after_duplicates(tokens: &Tensor) -> Tensor {
        let duplicates = duplicates(tokens);
        let pos = duplicates.size()[2];
        let front = duplicates.narrow(2, 0, 1).zeros_like();
        Tensor::cat(&[front, duplicates.narrow(2, 0, pos - 1)], 2).tril(0)
    }
}

#[cfg(test)]
mod tests {
    use sweep_lens::Device;

    use super::*;

    fn flags(mask: &Tensor) -> Vec<i64> {
        Vec::try_from(mask.to_kind(Kind::Int64).reshape([-1])).unwrap()
    }

    #[test]
    fn places_of_a_known_sequence() {
        // By hand, for every mask.
        let tokens = Tensor::from_slice(&[1i64, 2, 1, 2]).view([1, 4]);
        #[rustfmt::skip]
        assert_eq!(flags(&places::duplicates(&tokens)), [
            0, 0, 0, 0,
            0, 0, 0, 0,
            1, 0, 0, 0,
            0, 1, 0, 0,
        ]);
        #[rustfmt::skip]
        assert_eq!(flags(&places::after_duplicates(&tokens)), [
            0, 0, 0, 0,
            0, 0, 0, 0,
            0, 1, 0, 0,
            0, 0, 1, 0,
        ]);
        let lengths = Tensor::from_slice(&[2i64, 4]);
        assert_eq!(flags(&places::within(&lengths, 4)), [1, 1, 0, 0, 1, 1, 1, 1]);
        assert_eq!(flags(&places::distance(2, &tokens)), [0, -1, 1, 0]);
    }

    #[test]
    fn sums_are_the_same_in_batches() {
        let pattern = Tensor::rand([5, 3, 4, 4], (Kind::Float, Device::Cpu));
        let weights = Tensor::rand([5, 4, 4, 2], (Kind::Float, Device::Cpu));
        let run = |batch: i64| {
            let mut sums = PatternSums::new(2);
            for layer in 0..2 {
                let hook = Hook::block(layer, Site::Pattern);
                assert!(PatternSums::wants(hook));
                let mut first = 0;
                while first < 5 {
                    let n = batch.min(5 - first);
                    let part = pattern.narrow(0, first, n) * f64::from(layer + 1);
                    sums.see(hook, first, &part, || weights.narrow(0, first, n));
                    first += n;
                }
            }
            sums.finish().unwrap()
        };
        let whole = run(5);
        assert_eq!(whole.size(), [2, 5, 3, 2]);
        assert!(whole.allclose(&run(2), 1e-6, 1e-6, false));
        let expected = Tensor::einsum("bhqk,bqkn->bhn", &[&pattern, &weights], None::<&[i64]>);
        assert!(whole.get(1).allclose(&(expected * 2.0).to_kind(Kind::Double), 1e-5, 1e-5, false));
        assert!(PatternSums::new(1).finish().is_err());
    }
}
