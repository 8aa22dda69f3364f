//! Composition of heads: how much of what one head writes another one reads.
//!
//! # What it measures
//! For every ordered pair of heads of different layers `‖L R‖ / (‖L‖ ‖R‖)`, Frobenius norms, row vectors: `L = W_V W_O` of the
//! writer; `R` is `W_Q W_Kᵀ` of the reader for `q_composition`, its transpose for `k_composition`, `W_V W_O` for `v_composition`.
//! Axes: writer's layer and head, reader's layer and head; 0 where the reader is not later. Unrelated heads have
//! `baseline` = 1/√d_model (the root mean square over random rotations); `baseline_monte_carlo` is the mean over
//! `baseline_draws` random heads of the same shape, `baseline_monte_carlo_sd` their standard deviation. `…_max` is the best pair's
//! excess over `baseline`. `qk_trace` of a head is the trace of `Σ_e p_e W_E W_QK (W_E W_OV^e)ᵀ` over heads of earlier layers, with
//! `p_e` = `previous_token`, their mean attention to the position in front on `tokens`, or repeated random ones as in `induction-heads`.
//!
//! Weights are as the sweep asked for them: `folded` is 1 if norms are folded into them (`processing: folded`), 0 if they are
//! raw and the norms' weights are left out. Rotary models: `rotary` is 1 where the rotation of queries and keys is ignored, 2
//! where QK circuits are taken for a key one position in front (`W_Q R(-1) W_Kᵀ`), 0 in models without. Norms of queries and keys
//! (OLMo-2) are ignored.
//!
//! # Interpretation
//! The pair that makes up an induction circuit has K-composition above the baseline. Measured on toy models it
//! rises together with the previous-token score and goes on rising after the behaviour has changed: not a precursor by
//! itself. Raw and folded scores differ by some percent: never compare them with each other.
//!
//! # Source
//! Elhage et al. 2021; TransformerLens `all_composition_scores`; Olsson et al. 2022 (trace of the QK eigenvalues); ARENA
//! (random baseline).

use sweep_lens::{Hook, Kind, Normalization, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    pattern_sums::{PatternSums, places},
    qk_ov::{Circuits, random_compositions},
    sink::Context,
    token_rows::{Drawing, TokenRows, Wanted},
    value::Value,
};

/// See the module documentation.
pub struct Composition;

params! {
    /// How circuits are read, and on what previous-token scores are measured.
    pub struct Params {
        /// What QK circuits of rotary models are: without rotation, or for a key one position in front.
        rotary: String = "ignore".to_owned(), choices = ["ignore", "previous"];
        /// Random heads that the Monte-Carlo baseline averages over.
        baseline_draws: u64 = 20, min = 2.0, max = 10000.0;
        /// Rows of token ids that previous-token scores are measured on; none: random ones.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Rows of random tokens.
        batch: u64 = 16, min = 1.0, max = 65536.0;
        /// Random tokens that repeat; null: 50, or as many as the context has room for.
        seq_len: Option<u64> = None, min = 2.0, max = 65536.0;
        /// How often they stand there; once where the context has no room for three tokens so often.
        n_copies: u64 = 2, min = 1.0, max = 64.0;
        /// Whether there is a BOS token; null: the model's default.
        prepend_bos: Option<bool> = None;
        /// Seed of random tokens and random heads.
        seed: u64 = 0;
    }
}

/// Most numbers that one value may have.
const MAX_CELLS: i64 = 1 << 21;

impl Experiment for Composition {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "composition",
        version: 1,
        summary: "Scores Q-, K- and V-composition of every pair of heads, and the QK trace of every head",
        source: "Elhage et al. 2021; TransformerLens all_composition_scores; Olsson et al. 2022",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 2, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let config = subject.model.config();
        let n_cells = (config.n_layers * config.n_heads).pow(2);
        if n_cells > MAX_CELLS {
            return Err(Error::Unsupported(format!(
                "{} heads make {n_cells} pairs, at most {MAX_CELLS} can be kept",
                config.n_layers * config.n_heads
            )));
        }
        let (seq_len, n_copies) = match TokenRows::room(subject, params.prepend_bos) {
            // Too short for copies: the position in front needs none.
            Ok([room, _]) if params.seq_len.is_none() && room < 3 * params.n_copies as i64 => {
                (Some(room.max(2) as u64), 1)
            }
            _ => (params.seq_len, params.n_copies),
        };
        let drawing = Drawing {
            batch: params.batch,
            seq_len,
            n_copies,
            overwrite_bos: false,
            distinct: false,
            seed: params.seed,
        };
        let wanted =
            Wanted { tokens: &params.tokens, text: &[], prepend_bos: params.prepend_bos, drawing };
        let rows = TokenRows::new(subject, &wanted)?;
        let observer = Pairs {
            subject: *subject,
            params,
            prepend_bos: rows.prompts.prepend_bos,
            sums: PatternSums::new(config.n_layers),
            n_queries: rows.prompts.rows.iter().map(|row| row.len() as f64 - 1.0).sum(),
            lengths: rows.lengths(subject.device),
        };
        Ok(Analysis::Observe(rows.token_set(subject, 1), Box::new(observer)))
    }
}

struct Pairs<'a> {
    subject: Subject<'a>,
    params: Params,
    prepend_bos: bool,
    sums: PatternSums,
    n_queries: f64,
    /// i64 `[row]`
    lengths: Tensor,
}

impl Observer for Pairs<'_> {
    fn wants(&self, hook: Hook) -> bool {
        PatternSums::wants(hook)
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn see(&mut self, hook: Hook, first_row: i64, pattern: &Tensor) -> Result<()> {
        self.sums.see(hook, first_row, pattern, || {
            let (n_rows, pos) = (pattern.size()[0], pattern.size()[3]);
            let within = places::within(&self.lengths.narrow(0, first_row, n_rows), pos);
            let previous = places::distance(pos, pattern).eq(1).unsqueeze(0);
            previous.logical_and(&within.unsqueeze(-1)).unsqueeze(-1).to_kind(Kind::Float)
        });
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { subject, params, prepend_bos, sums, n_queries, .. } = *self;
        let (config, weights) = (subject.model.config(), subject.model.weights());
        let sums = sums.finish()?.sum_dim_intlist(&[1i64][..], false, Kind::Double);
        let previous = sums.squeeze_dim(-1) / n_queries; // [layer, head]
        let (rotation, rotary) = match (config.rotation(1), params.rotary.as_str()) {
            (None, _) => (None, 0.0),
            (Some(_), "ignore") => (None, 1.0),
            (rotation, _) => (rotation, 2.0),
        };
        let circuits = Circuits::new(config, weights, rotation.as_ref())?;
        let found = circuits.compositions();
        let baseline = 1.0 / (config.d_model as f64).sqrt();
        for (name, scores) in [("q", found.q), ("k", found.k), ("v", found.v)] {
            let best = scores.max().double_value(&[]) - baseline;
            cx.metric(&format!("{name}_composition_max"), best)?;
            cx.metric(&format!("{name}_composition"), Value::from_tensor(&scores))?;
        }
        let random =
            random_compositions(params.baseline_draws, config.d_model, config.d_head, params.seed);
        cx.metric("baseline", baseline)?;
        cx.metric("baseline_monte_carlo", random.mean(Kind::Double).double_value(&[]))?;
        cx.metric("baseline_monte_carlo_sd", random.std(true).double_value(&[]))?;
        let trace = circuits.qk_trace(weights.require("embed.W_E")?, &previous);
        cx.metric("qk_trace", Value::from_tensor(&trace))?;
        cx.metric("previous_token", Value::from_tensor(&previous))?;
        let is_raw = config.normalization.has_weight() || config.final_normalization.has_weight();
        let is_folded = !is_raw && config.normalization != Normalization::None;
        cx.metric("folded", f64::from(u8::from(is_folded)))?;
        cx.metric("rotary", rotary)?;
        cx.metric("prepend_bos", f64::from(u8::from(prepend_bos)))
    }
}

const fn of_pairs(name: &'static str, doc: &'static str) -> MetricDef {
    const AXES: &[Axis] = &[Axis::Layer, Axis::Head, Axis::ToLayer, Axis::ToHead];
    MetricDef { name, unit: Unit::Ratio, axes: AXES, doc }
}

const METRICS: &[MetricDef] = &[
    of_pairs("q_composition", "How much of what a head writes makes up another one's queries"),
    of_pairs("k_composition", "How much of what a head writes makes up another one's keys"),
    of_pairs("v_composition", "How much of what a head writes makes up another one's values"),
    scalar("q_composition_max", Unit::Ratio, "Best pair's Q-composition minus `baseline`"),
    scalar("k_composition_max", Unit::Ratio, "Best pair's K-composition minus `baseline`"),
    scalar("v_composition_max", Unit::Ratio, "Best pair's V-composition minus `baseline`"),
    scalar("baseline", Unit::Ratio, "Composition of unrelated heads, 1/√d_model"),
    scalar("baseline_monte_carlo", Unit::Ratio, "Mean composition of random heads"),
    scalar("baseline_monte_carlo_sd", Unit::Ratio, "Standard deviation over random heads"),
    MetricDef {
        name: "qk_trace",
        unit: Unit::Dimensionless,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Trace of the QK circuit behind previous-token heads, over the vocabulary",
    },
    MetricDef {
        name: "previous_token",
        unit: Unit::Probability,
        axes: &[Axis::Layer, Axis::Head],
        doc: "Attention to the position in front, the weights of `qk_trace`",
    },
    scalar("folded", Unit::Truth, "1 if norms are folded into the weights, else 0"),
    scalar("rotary", Unit::Dimensionless, "0 no rotation, 1 ignored, 2 at one position in front"),
    scalar("prepend_bos", Unit::Truth, "1 if the rows begin with a BOS token, else 0"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "composition",
        title: "Best pair's composition above the baseline",
        kind: FigureKind::Lines,
        metrics: &["q_composition_max", "k_composition_max", "v_composition_max"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "qk-trace",
        title: "QK trace of every head",
        kind: FigureKind::HeatMap,
        metrics: &["qk_trace"],
        log_x: true,
        log_y: false,
    },
];
