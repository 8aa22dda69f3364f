//! Two checkpoints side by side: what an experiment on a pair is given, and the call that runs one.
//!
//! Main items: [`Couple`], [`compare`]. The first checkpoint is the one that results are filed under; the
//! second is what it is compared with. Either may be of another model; that they can be compared at
//! all is checked here, so that experiments need not.

use sweep_lens::Tensor;

use crate::{
    card::Stage,
    documents::probe,
    error::{Error, Result, catch},
    experiment::{AnyExperiment, Subject, TokenSet},
    prompts::Prompts,
    sink::{Context, Sink},
};

/// Two loaded checkpoints.
#[derive(Clone, Copy)]
pub struct Couple<'a> {
    /// What results are filed under.
    pub first: Subject<'a>,
    /// What it is compared with.
    pub second: Subject<'a>,
}

impl Couple<'_> {
    /// Fails unless both have the same tensors: names and shapes.
    pub(crate) fn check_same_shapes(&self) -> Result<()> {
        let (a, b) = (&self.first.checkpoint.weights, &self.second.checkpoint.weights);
        if let Some(name) = b.names().find(|name| a.get(name).is_none()) {
            return Err(different(&format!("only the second model has `{name}`")));
        }
        for (name, tensor) in a.iter() {
            let Some(other) = b.get(name) else {
                return Err(different(&format!("only the first model has `{name}`")));
            };
            if tensor.size() != other.size() {
                let (a, b) = (tensor.size(), other.size());
                return Err(different(&format!("`{name}` is {a:?} in one and {b:?} in the other")));
            }
        }
        Ok(())
    }

    /// Fails unless both read and write the same vocabulary.
    pub(crate) fn check_same_vocabulary(&self) -> Result<()> {
        let [a, b] = [self.first, self.second].map(|subject| subject.model.config());
        for (what, a, b) in
            [("d_vocab", a.d_vocab, b.d_vocab), ("d_vocab_out", a.d_vocab_out, b.d_vocab_out)]
        {
            if a != b {
                return Err(different(&format!("`{what}` is {a} in one and {b} in the other")));
            }
        }
        Ok(())
    }

    /// The rows that both models are shown: those given, or else the probe of the first one's recipe.
    pub(crate) fn token_set(
        &self,
        tokens: &[Vec<i64>],
        text: &[String],
        prepend_bos: Option<bool>,
    ) -> Result<Shown> {
        if !tokens.is_empty() && !text.is_empty() {
            return Err(Error::params("tokens or text", "expected one of them, found both"));
        }
        if tokens.is_empty() && text.is_empty() {
            let TokenSet { tokens, rows_per_batch, last_position_only } = probe(&self.first)?;
            return Ok(Shown { tokens, lengths: None, rows_per_batch, last_position_only });
        }
        let prompts = Prompts::new(&self.first, tokens, text, prepend_bos)?;
        Ok(Shown {
            tokens: prompts.padded().to_device(self.first.device),
            rows_per_batch: 1,
            lengths: Some(prompts.rows.iter().map(Vec::len).collect()),
            last_position_only: false,
        })
    }
}

/// Rows that two models are shown.
pub(crate) struct Shown {
    /// i64 `[n, pos]`
    pub(crate) tokens: Tensor,
    /// Length of each row where they differ; what stands behind a row's end is filling.
    pub(crate) lengths: Option<Vec<usize>>,
    /// Rows in one forward pass.
    pub(crate) rows_per_batch: i64,
    /// Only the last position means anything.
    pub(crate) last_position_only: bool,
}

impl Shown {
    /// Batches of rows: tokens `[batch, pos]` and the lengths of the rows.
    pub(crate) fn batches(&self) -> impl Iterator<Item = (Tensor, Vec<usize>)> + '_ {
        let (n, pos) = (self.tokens.size()[0], self.tokens.size()[1]);
        let step = self.rows_per_batch.max(1);
        (0..n).step_by(step as usize).map(move |first| {
            let count = step.min(n - first);
            let lengths = match &self.lengths {
                Some(lengths) => lengths[first as usize..(first + count) as usize].to_vec(),
                None => vec![pos as usize; count as usize],
            };
            (self.tokens.narrow(0, first, count), lengths)
        })
    }
}

pub(crate) fn different(what: &str) -> Error {
    Error::Unsupported(format!("the two models do not fit each other: {what}"))
}

/// Runs one experiment on a pair. A panic in it becomes its error.
pub fn compare(
    experiment: &dyn AnyExperiment,
    params: &serde_json::Value,
    couple: &Couple<'_>,
    sink: &mut dyn Sink,
) -> Result<()> {
    let card = experiment.card();
    if card.stage != Stage::Compare {
        return Err(Error::Unsupported(format!("`{}` is not an experiment on pairs", card.name)));
    }
    if let (Some(a), Some(b)) = (couple.first.text, couple.second.text)
        && a.hash() != b.hash()
    {
        return Err(different("their tokenizers differ, so that a token means two things"));
    }
    // Comparisons never train; those that need gradients say so themselves.
    let _no_grad = tch::no_grad_guard();
    let mut cx = Context::new(card, couple.first.checkpoint.step, sink);
    catch(|| experiment.compare(couple, params, &mut cx))
}
