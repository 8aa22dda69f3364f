//! Logit lens: what the model would predict if it ended behind each block.
//!
//! # What it measures
//! The residual stream in front of every block and behind the last one goes through the final norm and the unembedding.
//! By layer (labels `0_pre`, `1_pre`, …, `final_post`), means over all predicted tokens: `loss`, the next-token loss in
//! nats; `kl_to_final`, the divergence KL(final ‖ lens) from the model's own prediction; `top1_agreement`, how often
//! both have the same most probable token; `accuracy`, how often that is the next token; `entropy` of the lens'
//! prediction. Rows are `tokens` or `text`; without either, repeated random tokens as in `induction-heads`.
//!
//! # Interpretation
//! The layer at which the loss falls is where the prediction is made. Early layers of some families (GPT-Neo, OPT)
//! do not write in the basis of the unembedding; their lens says little. At `final_post` KL is 0 and agreement 1.
//!
//! # Source
//! nostalgebraist 2020, "interpreting GPT: the logit lens"; TransformerLens `accumulated_resid(apply_ln=True)`.

use std::collections::BTreeMap;

use sweep_lens::{Hook, Kind, Site, Tensor, Transformer};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject, TokenSet},
    params::{ParamSet, params},
    sink::Context,
    token_rows::{Drawing, TokenRows, Wanted},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct LogitLens;

params! {
    /// What is read.
    pub struct Params {
        /// Rows of token ids.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Texts for the model's tokenizer, or words of the vocabulary that a recipe recorded.
        text: Vec<String> = Vec::new();
        /// Whether the BOS token goes in front; null: the model's default, for tokens no.
        prepend_bos: Option<bool> = None;
        /// Rows of random tokens, if there are neither tokens nor text.
        batch: u64 = 4, min = 1.0, max = 65536.0;
        /// Random tokens that repeat; null: 50, or as many as the context has room for.
        seq_len: Option<u64> = None, min = 2.0, max = 65536.0;
        /// How often they stand there.
        n_copies: u64 = 2, min = 1.0, max = 64.0;
        /// Seed of the random tokens.
        seed: u64 = 0;
    }
}

/// Logits that one pass may hold: 256 MiB in f32.
const LOGITS_PER_PASS: i64 = 64 << 20;

impl Experiment for LogitLens {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "logit-lens",
        version: 1,
        summary: "Reads the model's prediction off the residual stream in front of every block",
        source: "nostalgebraist 2020; TransformerLens accumulated_resid",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let config = subject.model.config();
        let drawing = Drawing {
            batch: params.batch,
            seq_len: params.seq_len,
            n_copies: params.n_copies,
            overwrite_bos: false,
            distinct: false,
            seed: params.seed,
        };
        let wanted = Wanted {
            tokens: &params.tokens,
            text: &params.text,
            prepend_bos: params.prepend_bos,
            drawing,
        };
        let rows = TokenRows::new(subject, &wanted)?;
        rows.check_targets(config)?;
        let token_set = rows.token_set(subject, 0);
        let per_row = (rows.prompts.max_length() as i64 * config.d_vocab_out).max(1);
        let rows_per_batch = token_set.rows_per_batch.min((LOGITS_PER_PASS / per_row).max(1));
        let observer = Lens {
            model: subject.model,
            tokens: token_set.tokens.shallow_clone(),
            lengths: rows.prompts.rows.iter().map(Vec::len).collect(),
            prepend_bos: rows.prompts.prepend_bos,
            streams: BTreeMap::new(),
            sums: vec![[0.0; N_STATISTICS]; config.n_layers as usize + 1],
        };
        Ok(Analysis::Observe(TokenSet { rows_per_batch, ..token_set }, Box::new(observer)))
    }
}

/// Loss, KL, agreement, accuracy, entropy.
const N_STATISTICS: usize = 5;

struct Lens<'a> {
    model: &'a Transformer,
    tokens: Tensor, // i64 [row, pos]
    lengths: Vec<usize>,
    prepend_bos: bool,
    /// Residual streams of the batch at hand by depth, `[batch, pos, d_model]`.
    streams: BTreeMap<usize, Tensor>,
    /// By depth: sums over all predicted tokens.
    sums: Vec<[f64; N_STATISTICS]>,
}

/// What a lens says beside what the model says.
///
/// # Shapes
/// - `lens`, `last`: log-probabilities `[position, d_vocab_out]`; `next`: i64 `[position]`
/// - returns: f64 `[position, statistic]`
fn statistics(lens: &Tensor, last: &Tensor, next: &Tensor) -> Tensor {
    let sum = |x: Tensor| x.sum_dim_intlist(&[-1i64][..], false, Kind::Double);
    let loss = -lens.gather(-1, &next.unsqueeze(-1), false).squeeze_dim(-1).to_kind(Kind::Double);
    let divergence = sum(last.exp() * (last - lens));
    let (best, best_of_last) = (lens.argmax(-1, false), last.argmax(-1, false));
    let agreement = best.eq_tensor(&best_of_last).to_kind(Kind::Double);
    let accuracy = best.eq_tensor(next).to_kind(Kind::Double);
    let entropy = -sum(lens.exp() * lens);
    Tensor::stack(&[loss, divergence, agreement, accuracy, entropy], -1)
}

impl Lens<'_> {
    /// Adds the statistics of one row at every depth.
    fn add_row(&mut self, first_row: i64, row: i64, logits: &Tensor) -> Result<()> {
        let n = self.lengths[(first_row + row) as usize] as i64 - 1;
        let next = self.tokens.get(first_row + row).narrow(0, 1, n);
        let precise = |logits: &Tensor| {
            let kind = if logits.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            logits.log_softmax(-1, kind)
        };
        let last = precise(&logits.get(row).narrow(0, 0, n));
        for (&depth, stream) in &self.streams {
            let stream = stream.narrow(0, row, 1).narrow(1, 0, n);
            let read = self.model.ln_final(&stream).and_then(|x| self.model.unembed(&x));
            let Some(read) = read else {
                return Err(Error::Unsupported("a perceptron has no residual stream".to_owned()));
            };
            let found = statistics(&precise(&read.squeeze_dim(0)), &last, &next);
            let found = to_vec(&found.sum_dim_intlist(&[0i64][..], false, Kind::Double));
            for (sum, found) in self.sums[depth].iter_mut().zip(found) {
                *sum += found;
            }
        }
        Ok(())
    }
}

impl Observer for Lens<'_> {
    fn wants(&self, hook: Hook) -> bool {
        let last = self.sums.len() as u32 - 2;
        matches!(hook, Hook::Block { site: Site::ResidPre, .. })
            || hook == Hook::block(last, Site::ResidPost)
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn see(&mut self, hook: Hook, _first_row: i64, activation: &Tensor) -> Result<()> {
        if let Hook::Block { layer, site } = hook {
            let depth = layer as usize + usize::from(site == Site::ResidPost);
            self.streams.insert(depth, activation.shallow_clone());
        }
        Ok(())
    }

    fn logits(&mut self, first_row: i64, logits: &Tensor) -> Result<()> {
        if self.streams.len() != self.sums.len() {
            let (found, expected) = (self.streams.len(), self.sums.len());
            let problem = format!("the pass gave {found} of {expected} residual streams");
            return Err(Error::Input(problem));
        }
        for row in 0..logits.size()[0] {
            self.add_row(first_row, row, logits)?;
        }
        self.streams.clear();
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let n: usize = self.lengths.iter().map(|length| length - 1).sum();
        let last = self.sums.len() - 1;
        let label = |depth: usize| {
            if depth == last { "final_post".to_owned() } else { format!("{depth}_pre") }
        };
        let names = ["loss", "kl_to_final", "top1_agreement", "accuracy", "entropy"];
        for (index, name) in names.into_iter().enumerate() {
            let means = self.sums.iter().map(|sums| sums[index] / n as f64).collect();
            cx.metric(name, Value::labelled((0..=last).map(label), means))?;
        }
        cx.metric("prepend_bos", f64::from(u8::from(self.prepend_bos)))
    }
}

const fn by_layer(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Layer], doc }
}

const METRICS: &[MetricDef] = &[
    by_layer("loss", Unit::Nats, "Next-token loss of the lens"),
    by_layer("kl_to_final", Unit::Nats, "Divergence of the lens from the model's prediction"),
    by_layer(
        "top1_agreement",
        Unit::Probability,
        "How often lens and model agree on the best token",
    ),
    by_layer("accuracy", Unit::Probability, "How often the lens' best token is the next one"),
    by_layer("entropy", Unit::Nats, "Entropy of the lens' prediction"),
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Truth,
        axes: &[],
        doc: "1 if the rows begin with a BOS token, else 0",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "loss",
    title: "Next-token loss read off each layer",
    kind: FigureKind::HeatMap,
    metrics: &["loss"],
    log_x: true,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_known_predictions() {
        let log = |p: [f64; 4]| Tensor::from_slice(&p).view([2, 2]).log();
        let (lens, last) = (log([0.6, 0.4, 0.1, 0.9]), log([0.25, 0.75, 0.1, 0.9]));
        let found = to_vec(&statistics(&lens, &last, &Tensor::from_slice(&[1i64, 0])));
        let divergence = 0.25 * (0.25f64 / 0.6).ln() + 0.75 * (0.75f64 / 0.4).ln();
        let entropy = |p: f64| -p * p.ln() - (1.0 - p) * (1.0 - p).ln();
        let first = [-(0.4f64.ln()), divergence, 0.0, 0.0, entropy(0.4)];
        let second = [10f64.ln(), 0.0, 1.0, 0.0, entropy(0.1)];
        let expected = [first, second].concat();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
}
