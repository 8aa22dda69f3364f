//! Attention of every head between the places of the circuit (D24), and on repeated random tokens.
//!
//! Main functions: [`between_places`], [`on_repeats`]. Patterns are reduced as the pass makes them, never kept.

use sweep_lens::{FnHook, Hook, Kind, Site, Tensor, Transformer};

use super::batch::{Batch, Meter, at};
use crate::{
    data::repeats::Repeats,
    sequence::{HeadScores, first_rows, with_patterns},
};

/// From where to where attention is read.
pub(crate) const PAIRS: [&str; 6] =
    ["end_to_io", "end_to_s1", "end_to_s2", "s2_to_s1", "s2_to_s1_next", "s1_next_to_s1"];

/// Classes of heads by what they attend to, each as weights of [`PAIRS`].
pub(crate) const CLASSES: [(&str, [f64; 6]); 5] = [
    ("name_mover", [1.0, -1.0, -1.0, 0.0, 0.0, 0.0]),
    ("s_inhibition", [-1.0, -1.0, 1.0, 0.0, 0.0, 0.0]),
    ("duplicate_token", [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
    ("induction", [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
    ("previous_token", [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
];

/// Attention between places, f64 `[row, pair, layer, head]`.
pub(crate) fn between_places(meter: &Meter<'_>, batch: &Batch) -> Tensor {
    let after_s1 = &batch.s1_at + 1;
    let pairs = [
        (&batch.end_at, &batch.io_at),
        (&batch.end_at, &batch.s1_at),
        (&batch.end_at, &batch.s2_at),
        (&batch.s2_at, &batch.s1_at),
        (&batch.s2_at, &after_s1),
        (&after_s1, &batch.s1_at),
    ];
    let mut layers = Vec::new();
    let is_pattern = |hook| matches!(hook, Hook::Block { site: Site::Pattern, .. });
    let reduce = |_, pattern: Tensor| {
        let by_query = pattern.transpose(1, 2); // [row, query, head, key]
        let of = pairs.map(|(query, key)| at(&at(&by_query, query).transpose(1, 2), key)); // [row, head]
        layers.push(Tensor::stack(&of, 1).to_kind(Kind::Double)); // [row, pair, head]
        pattern
    };
    meter.watch(&batch.tokens, &mut FnHook::matching(is_pattern, reduce));
    Tensor::stack(&layers, 2)
}

/// Scores of heads on repeated random tokens.
pub(crate) struct RepeatScores {
    /// Attention to tokens that follow an earlier occurrence of the query's token, `[layer, head]`.
    pub prefix_matching: Tensor,
    /// Attention to the previous token, `[layer, head]`.
    pub previous_token: Tensor,
}

/// Measures 10 sequences of up to 25 random tokens, repeated up to four times (D11o).
pub(crate) fn on_repeats(model: &Transformer, seed: u64) -> RepeatScores {
    const N_COPIES: i64 = 4;
    let config = model.config();
    let device = model.weights().iter().next().map_or(sweep_lens::Device::Cpu, |(_, w)| w.device());
    let period = (config.n_ctx / N_COPIES).clamp(1, 25);
    let length = (N_COPIES * period).min(config.n_ctx);
    let repeats =
        Repeats::new([period, period], config.d_vocab, length, &[seed], "circuit", device);
    let rows = repeats.rows(&first_rows(10, device));
    let (_, patterns) = with_patterns(model, &rows.tokens);
    RepeatScores {
        prefix_matching: HeadScores::new(&rows.prefix_matches(), &rows.is_repeated()).of(&patterns),
        previous_token: HeadScores::new(&rows.previous(), &rows.has_previous()).of(&patterns),
    }
}
