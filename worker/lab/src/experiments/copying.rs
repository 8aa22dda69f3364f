//! Copying heads: does attention to a token raise that token's own logit?
//!
//! # What it measures
//! `copying` (Olsson et al.): on `batch` rows of `seq_len` different random tokens, for every head and every token it can
//! attend to, the logits that the head writes directly (value, output map, final norm's weight, unembedding), for the
//! tokens of the row; their mean is subtracted and negative ones are dropped; the share of the attended token in what
//! is left, averaged over attention within the row, then over rows, and rescaled from [0, 1] to [-1, 1]. The final norm's scale
//! is one factor for all tokens and cancels. A head that raises nothing scores 0.
//!
//! `ov_copying` (Elhage et al.): sum of the eigenvalues of `W_E W_V W_O W_U` over the sum of their absolute values, from the
//! `d_head × d_head` product that has the same ones; weights as they are (`processing: folded` puts the norms' weights in).
//!
//! # Interpretation
//! Copying heads have both near 1: induction heads copy what they attend to. `ov_copying` sees the weights alone;
//! -1 is a head that suppresses what it attends to. By chance `copying` is about 2 / seq_len - 1.
//!
//! # Source
//! Olsson et al. 2022, arXiv 2209.11895, head activation evaluators; Elhage et al. 2021, "copying" by eigenvalues.

use sweep_lens::{Config, Device, Hook, Kind, NormPosition, Site, Tensor, Weights};

use crate::{
    card::{Axis, Card, Figure, MetricDef, Requires, Stage, Unit, heat_map},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    sink::Context,
    token_rows::{Drawing, TokenRows},
    value::Value,
};

/// See the module documentation.
pub struct Copying;

params! {
    /// Which random tokens.
    pub struct Params {
        /// Rows.
        batch: u64 = 10, min = 1.0, max = 65536.0;
        /// Different tokens of a row; null: 25, or as many as context and vocabulary have room for.
        seq_len: Option<u64> = None, min = 2.0, max = 4096.0;
        /// Whether there is a BOS token in front; null: the model's default.
        prepend_bos: Option<bool> = None;
        /// Seed of the tokens.
        seed: u64 = 0;
    }
}

/// Tokens of a row in the paper.
const SEQ_LEN: i64 = 25;

impl Experiment for Copying {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "copying",
        version: 1,
        summary: "Scores how much every head raises the logit of the token that it attends to",
        source: "Olsson et al. 2022, arXiv 2209.11895; Elhage et al. 2021",
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
        let [n_positions, n_tokens] = TokenRows::room(subject, params.prepend_bos)?;
        let fitting = SEQ_LEN.min(n_positions).min(n_tokens);
        if params.seq_len.is_none() && fitting < 2 {
            return Err(Error::Unsupported(format!(
                "`copying` needs two or more different tokens in a row, n_ctx is {} and the vocabulary {}",
                config.n_ctx, config.d_vocab
            )));
        }
        let drawing = Drawing {
            batch: params.batch,
            seq_len: Some(params.seq_len.unwrap_or(fitting as u64)),
            n_copies: 1,
            overwrite_bos: false,
            distinct: true,
            seed: params.seed,
        };
        let rows = TokenRows::draw(subject, params.prepend_bos, drawing)?;
        let layout = rows.layout.expect("drawn rows have a layout");
        let token_set = rows.token_set(subject, config.n_heads.unsigned_abs());
        let observer = Logits {
            subject: *subject,
            sample: token_set.tokens.narrow(1, layout.first, layout.seq_len),
            first: layout.first,
            prepend_bos: rows.prompts.prepend_bos,
            columns: None,
            values: None,
            scores: (0..config.n_layers).map(|_| Vec::new()).collect(),
        };
        Ok(Analysis::Observe(token_set, Box::new(observer)))
    }
}

/// Columns of the unembedding behind the final norm's weight and centring, `[d_model, token]`: what the logits of a
/// vector are, up to the norm's scale.
fn direct_columns(config: &Config, weights: &Weights, tokens: &Tensor) -> Result<Tensor> {
    let columns = weights.require("unembed.W_U")?.index_select(1, tokens);
    let columns = columns.to_kind(precise(columns.kind()));
    let columns = match weights.get("ln_final.w") {
        Some(w) => columns * w.unsqueeze(-1),
        None => columns,
    };
    Ok(if config.final_normalization.is_centered() {
        &columns - columns.mean_dim(&[0i64][..], true, None::<Kind>)
    } else {
        columns
    })
}

/// Half precision is widened.
fn precise(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

struct Logits<'a> {
    subject: Subject<'a>,
    sample: Tensor, // i64 [row, token]
    first: i64,
    prepend_bos: bool,
    /// First row of the batch at hand and the unembedding of its tokens, `[batch, 1, d_model, token]`.
    columns: Option<(i64, Tensor)>,
    /// Of the layer at hand, `[batch, pos, key_value_head, d_head]`.
    values: Option<Tensor>,
    /// By layer: f64 `[batch, head]` of every batch.
    scores: Vec<Vec<Tensor>>,
}

impl Logits<'_> {
    /// What each head writes when it attends to each token: `[batch, head, token, d_model]`.
    fn written(&self, layer: u32, values: &Tensor) -> Result<Tensor> {
        let (config, weights) = (self.subject.model.config(), self.subject.model.weights());
        let values = values.narrow(1, self.first, self.sample.size()[1]);
        let kind = precise(values.kind());
        let values = values.to_kind(kind);
        let values = match config.clip_qkv {
            Some(clip) => values.clamp(-clip, clip),
            None => values,
        };
        let group = config.n_heads / config.n_key_value_heads;
        let values = values.repeat_interleave_self_int(group, 2, None).transpose(1, 2);
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let w_o = weights.require(&name("attn.W_O"))?.to_kind(kind);
        let written = values.matmul(&w_o); // [batch, head, token, d_model]
        Ok(match weights.get(&name("ln1.w")) {
            Some(w) if config.norm_position == NormPosition::Post => written * w.to_kind(kind),
            _ => written,
        })
    }
}

/// Scores of each row and head.
///
/// # Shapes
/// - `logits`: `[batch, head, attended token, token]`
/// - `pattern`: `[batch, head, query, attended token]`
/// - returns: f64 `[batch, head]`
fn copying(logits: &Tensor, pattern: &Tensor) -> Tensor {
    let raised = (logits - logits.mean_dim(&[-1i64][..], true, None::<Kind>)).relu();
    let total = raised.sum_dim_intlist(&[-1i64][..], false, Kind::Double);
    let own = raised.diagonal(0, -2, -1).to_kind(Kind::Double); // [batch, head, attended token]
    let share = (own / total.clamp_min(f64::MIN_POSITIVE)) * 2.0 - 1.0;
    let share = share.where_self(&total.gt(0.0), &share.zeros_like());
    let attention = pattern.sum_dim_intlist(&[-2i64][..], false, Kind::Double);
    let sum = |x: Tensor| x.sum_dim_intlist(&[-1i64][..], false, Kind::Double);
    sum(share * &attention) / sum(attention.shallow_clone()).clamp_min(f64::MIN_POSITIVE)
}

impl Observer for Logits<'_> {
    fn wants(&self, hook: Hook) -> bool {
        matches!(hook, Hook::Block { site: Site::V | Site::Pattern, .. })
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn see(&mut self, hook: Hook, first_row: i64, activation: &Tensor) -> Result<()> {
        let Hook::Block { layer, site } = hook else { return Ok(()) };
        if site == Site::V {
            self.values = Some(activation.shallow_clone());
            return Ok(());
        }
        let Some(values) = self.values.take() else {
            return Err(Error::Input(format!("the pass gave no values of layer {layer}")));
        };
        let written = self.written(layer, &values)?;
        let (n_rows, n) = (activation.size()[0], self.sample.size()[1]);
        let sample = self.sample.narrow(0, first_row, n_rows);
        if self.columns.as_ref().is_none_or(|(row, _)| *row != first_row) {
            let (config, weights) = (self.subject.model.config(), self.subject.model.weights());
            let columns = direct_columns(config, weights, &sample.reshape([-1]))?;
            let columns = columns.view([-1, n_rows, n]).transpose(0, 1).unsqueeze(1);
            self.columns = Some((first_row, columns));
        }
        let (_, columns) = self.columns.as_ref().expect("made above");
        let logits = written.matmul(columns);
        let pattern = activation.narrow(2, self.first, n).narrow(3, self.first, n);
        self.scores[layer as usize].push(copying(&logits, &pattern));
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { subject, prepend_bos, scores, .. } = *self;
        let (config, weights) = (subject.model.config(), subject.model.weights());
        let layers: Vec<Tensor> = scores
            .iter()
            .map(|batches| Tensor::cat(batches, 0).mean_dim(&[0i64][..], false, Kind::Double))
            .collect();
        cx.metric("copying", Value::from_tensor(&Tensor::stack(&layers, 0)))?;
        cx.metric("ov_copying", Value::from_tensor(&ov_copying(config, weights)?))?;
        cx.metric("prepend_bos", f64::from(u8::from(prepend_bos)))
    }
}

/// Eigenvalue copying score of every head, f64 `[layer, head]`; 0 for a head that writes nothing.
fn ov_copying(config: &Config, weights: &Weights) -> Result<Tensor> {
    let (w_e, w_u) = (weights.require("embed.W_E")?, weights.require("unembed.W_U")?);
    let n = config.d_vocab.min(config.d_vocab_out);
    let kind = precise(w_e.kind());
    // The eigenvalues of A B are those of B A, except for zeros.
    let around = w_u.narrow(1, 0, n).to_kind(kind).matmul(&w_e.narrow(0, 0, n).to_kind(kind)); // [d_model, d_model]
    let group = config.n_heads / config.n_key_value_heads;
    let layers = (0..config.n_layers)
        .map(|layer| {
            let w = |part: &str| weights.require(&format!("blocks.{layer}.attn.W_{part}"));
            let w_v = w("V")?.to_kind(kind);
            let w_v = if w_v.size()[0] == config.n_heads {
                w_v
            } else {
                w_v.repeat_interleave_self_int(group, 0, None)
            };
            let small = w("O")?.to_kind(kind).matmul(&around.matmul(&w_v)); // [head, d_head, d_head]
            let eigenvalues = small.to_device(Device::Cpu).linalg_eigvals();
            let sum = |x: Tensor| x.sum_dim_intlist(&[-1i64][..], false, Kind::Double);
            let sizes = sum(eigenvalues.abs()).clamp_min(f64::MIN_POSITIVE);
            Ok(sum(eigenvalues.real()) / sizes)
        })
        .collect::<Result<Vec<Tensor>>>()?;
    Ok(Tensor::stack(&layers, 0))
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "copying",
        unit: Unit::Dimensionless,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Share of the attended token in the logits that the head raises, from -1 to 1",
    },
    MetricDef {
        name: "ov_copying",
        unit: Unit::Dimensionless,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Sum of the OV circuit's eigenvalues over the sum of their absolute values",
    },
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Truth,
        axes: &[],
        doc: "1 if the rows begin with a BOS token, else 0",
    },
];

const FIGURES: &[Figure] = &[
    heat_map("copying", "Copying score of every head", &["copying"]),
    heat_map("ov-copying", "Eigenvalue copying score of every head", &["ov_copying"]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::to_vec;

    #[test]
    fn known_logits_have_known_scores() {
        // Two heads: one raises what it attends to, one raises the next token; one row of three tokens.
        let own = Tensor::eye(3, (Kind::Float, Device::Cpu)) * 5.0 + 2.0;
        let next = own.roll([1i64], [1i64]);
        let logits = Tensor::stack(&[&own, &next], 0).unsqueeze(0);
        let pattern = Tensor::rand([1, 2, 3, 3], (Kind::Float, Device::Cpu));
        assert_eq!(to_vec(&copying(&logits, &pattern)), [1.0, -1.0]);
        // Attention decides which tokens count: [own, next, nothing] by attended token.
        let mixed =
            Tensor::stack(&[own.get(0), next.get(1), own.get(2) * 0.0], 0).view([1, 1, 3, 3]);
        let attend = |weights: [f32; 3]| {
            let pattern = Tensor::from_slice(&weights).view([1, 1, 1, 3]);
            to_vec(&copying(&mixed, &pattern))[0]
        };
        assert!((attend([1.0, 0.0, 0.0]) - 1.0).abs() < 1e-12);
        assert!((attend([0.5, 0.5, 0.0])).abs() < 1e-12);
        assert!((attend([0.5, 0.0, 0.5]) - 0.5).abs() < 1e-7);
        assert_eq!(attend([0.0, 0.0, 0.0]), 0.0);
    }

    #[test]
    fn eigenvalues_of_the_small_product_are_those_of_the_whole() {
        let config = Config::toy(2, 8, 2, 11, 5);
        let parameters = config.parameters().into_iter().filter(|parameter| !parameter.optional);
        let mut weights: Weights = parameters
            .map(|p| {
                let w = sweep_lens::init::normal(3, &p.name, &p.shape, 0.4, Device::Cpu);
                (p.name, w.to_kind(Kind::Double))
            })
            .collect();
        weights.insert("blocks.1.attn.W_O", Tensor::zeros([2, 4, 8], (Kind::Double, Device::Cpu)));
        let found = ov_copying(&config, &weights).unwrap();
        for head in 0..2 {
            let w =
                |part: &str| weights.require(&format!("blocks.0.attn.W_{part}")).unwrap().get(head);
            let (w_e, w_u) =
                (weights.require("embed.W_E").unwrap(), weights.require("unembed.W_U").unwrap());
            let whole = w_e.matmul(&w("V")).matmul(&w("O")).matmul(w_u); // [d_vocab, d_vocab]
            let values = whole.linalg_eigvals();
            let expected = values.real().sum(Kind::Double) / values.abs().sum(Kind::Double);
            let difference = expected.double_value(&[]) - found.double_value(&[0, head]);
            assert!(difference.abs() < 1e-9, "{difference}");
        }
        assert_eq!(to_vec(&found.get(1)), [0.0, 0.0]);
    }
}
