//! The first block's reading of a token, computed once per (token, position) instead of once per row.
//!
//! Before attention, the first block sees nothing but a token and its position. Where a batch holds
//! every token several times over, as full-batch training on a small vocabulary does, embedding, norm
//! and the projections to queries, keys and values are computed for the vocabulary and looked up. The
//! result is the same, gradients too (up to the order of summation); a training step of the
//! modular-addition model takes a quarter less time.

use tch::{Device, Kind, Tensor};

use crate::{
    attention::Qkv,
    axes::Axes,
    block::Reading,
    embed::look_up,
    hook::{Hook, Norm, Site},
    hooks::Hooks,
};

/// How often a token must occur on average for the look-up to pay.
const REPEATS_MIN: i64 = 2;

/// Whether to compute the first block's reading for the vocabulary instead of the batch.
pub(crate) fn pays(tokens: &Tensor, axes: Axes, d_vocab: i64, hooks: &dyn Hooks) -> bool {
    // A hook would see the table instead of the batch.
    const SEES: [Hook; 14] = [
        Hook::Embed,
        Hook::PosEmbed,
        Hook::block(0, Site::ResidPre),
        Hook::block(0, Site::Ln1(Norm::Scale)),
        Hook::block(0, Site::Ln1(Norm::Normalized)),
        Hook::block(0, Site::Q),
        Hook::block(0, Site::K),
        Hook::block(0, Site::V),
        Hook::block(0, Site::QNorm(Norm::Scale)),
        Hook::block(0, Site::QNorm(Norm::Normalized)),
        Hook::block(0, Site::KNorm(Norm::Scale)),
        Hook::block(0, Site::KNorm(Norm::Normalized)),
        Hook::block(0, Site::RotQ),
        Hook::block(0, Site::RotK),
    ];
    // On a GPU these products are too quick for it: the extra kernels would cost more.
    tokens.device() == Device::Cpu
        && axes.batch >= REPEATS_MIN * d_vocab
        && !SEES.iter().any(|&hook| hooks.wants(hook))
}

/// Returns one sequence per token, which holds that token at every position, and its axes.
pub(crate) fn vocabulary(axes: Axes, d_vocab: i64, device: Device) -> (Tensor, Axes) {
    let tokens = Tensor::arange(d_vocab, (Kind::Int64, device)).unsqueeze(-1);
    (tokens.expand([d_vocab, axes.pos], false), Axes { batch: d_vocab, ..axes })
}

/// Looks a batch up in the reading of the vocabulary.
pub(crate) fn read(table: &Reading, tokens: &Tensor, axes: Axes) -> Reading {
    let gather = |table: &Tensor, rank: usize| gather(table, rank, tokens, axes);
    Reading {
        resid: gather(&table.resid, 1),
        qkv: Qkv {
            q: gather(&table.qkv.q, 2),
            k: gather(&table.qkv.k, 2),
            v: gather(&table.qkv.v, 2),
        },
    }
}

/// Looks up `[(n_models,) d_vocab, pos, …]`, `rank` axes behind the positions, for the last positions of
/// the tokens if the table has fewer.
fn gather(table: &Tensor, rank: usize, tokens: &Tensor, axes: Axes) -> Tensor {
    let size = table.size();
    let (n_pos, trailing) = (size[size.len() - rank - 1], &size[size.len() - rank..]);
    let width: i64 = trailing.iter().product();
    let axes = Axes { pos: n_pos, ..axes };
    let tokens = tokens.narrow(-1, tokens.size()[tokens.dim() - 1] - n_pos, n_pos);
    let positions = Tensor::arange(n_pos, (Kind::Int64, tokens.device()));
    let rows = tokens * n_pos + positions; // row of (token, position)
    let flat = match axes.n_models {
        Some(n_models) => table.reshape([n_models, -1, width]),
        None => table.reshape([-1, width]),
    };
    look_up(&flat, &rows, axes).view(axes.shape(trailing).as_slice())
}
