//! A plain multi-layer perceptron over sets of active inputs ([`Architecture::Mlp`](crate::Architecture)).
//!
//! Main type: [`Perceptron`]. Hidden layer `l` fires the neuron hooks of block `l`
//! (`blocks.l.mlp.hook_pre`, `hook_post`), shaped as a transformer's with one position, so that what reads
//! neurons reads both. A norm, where there is one, stands between activation and next map, as in SoLU.

use tch::{Device, Kind, Tensor};

use crate::{
    axes::Axes,
    config::{ActFn, Config, Normalization},
    embed::look_up,
    error::Result,
    hook::{Hook, Site},
    hooks::{self, Hooks},
    linear::{affine, broadcast, readout},
    model::Run,
    norm::NormLayer,
    weights::Weights,
};

/// Inputs per active input from which on adding rows of the first map pays. (On a GPU it does not.)
const SPARSE: i64 = 8;

/// Parameters of a perceptron.
#[derive(Debug)]
pub(crate) struct Perceptron {
    /// `W` `[(n_models,) d_in, d_out]` and `b` `[(n_models,) d_out]` of every map.
    maps: Vec<(Tensor, Option<Tensor>)>,
    act_fn: ActFn,
    norm: Option<NormLayer>,
    d_vocab: i64,
    n_ctx: i64,
}

impl Perceptron {
    pub(crate) fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let map = |layer: i64| -> Result<(Tensor, Option<Tensor>)> {
            let w = weights.require(&format!("layers.{layer}.W"))?.shallow_clone();
            Ok((w, weights.get(&format!("layers.{layer}.b")).map(Tensor::shallow_clone)))
        };
        let norm = match config.normalization {
            Normalization::None => None,
            normalization => Some(NormLayer::new("ln", normalization, config.eps, weights)?),
        };
        Ok(Perceptron {
            maps: (0..=config.n_layers).map(map).collect::<Result<_>>()?,
            act_fn: config.act_fn,
            norm,
            d_vocab: config.d_vocab,
            n_ctx: config.n_ctx,
        })
    }

    /// Runs the network.
    ///
    /// # Shapes
    /// - `tokens`: i64 `[(n_models,) batch, n_active]`, entries `0..=d_vocab`
    /// - returns: outputs `[(n_models,) batch, 1, d_vocab_out]`, or the last hidden layer that `run` asks
    ///   for, `[(n_models,) batch, 1, d_mlp]`
    pub(crate) fn forward(
        &self,
        tokens: &Tensor,
        axes: Axes,
        run: &Run,
        hooks: &mut dyn Hooks,
    ) -> Tensor {
        let Axes { pos, .. } = axes;
        assert!(
            (1..=self.n_ctx).contains(&pos),
            "an example has {pos} tokens, expected 1 to n_ctx {}",
            self.n_ctx
        );
        let n_hidden = self.maps.len() - 1;
        let mut x = if self.is_sparse(tokens, axes) {
            None
        } else {
            Some(self.active_inputs(tokens, axes))
        };
        for (layer, (w, b)) in (0u32..).zip(&self.maps[..n_hidden]) {
            let site = |site| Hook::block(layer, site);
            let pre = match &x {
                Some(x) => affine(x, w, b.as_ref()),
                None => self.sum_of_rows(tokens, axes),
            };
            let pre = hooks::at(hooks, site(Site::MlpPre), pre);
            let mut post = self.act_fn.apply(&pre); // [batch, 1, d_mlp]
            if let Some(norm) = &self.norm {
                let mid = hooks::at(hooks, site(Site::MlpMid), post);
                post = norm.forward(&mid, |norm| site(Site::MlpLn(norm)), hooks);
            }
            let post = hooks::at(hooks, site(Site::MlpPost), post);
            if run.stop_after_layer == Some(layer) {
                return post;
            }
            x = Some(post);
        }
        let x = x.unwrap_or_else(|| self.active_inputs(tokens, axes));
        if run.skip_unembed {
            return x;
        }
        let (w, b) = &self.maps[n_hidden];
        readout(&x, w, b.as_ref())
    }

    /// Whether so few inputs are active that adding rows of the first map is faster than a product with it.
    fn is_sparse(&self, tokens: &Tensor, axes: Axes) -> bool {
        tokens.device() == Device::Cpu && axes.pos * SPARSE <= self.d_vocab
    }

    /// The first map of few active inputs, `[(n_models,) batch, 1, d_out]`: the product with a row of few
    /// ones is the sum of few rows of the map. An input that stands for none is a row of zeros.
    fn sum_of_rows(&self, tokens: &Tensor, axes: Axes) -> Tensor {
        let (w, b) = &self.maps[0];
        let table = if tokens.max().int64_value(&[]) < self.d_vocab {
            w.shallow_clone()
        } else {
            let mut nothing = w.size();
            let rows = nothing.len() - 2;
            nothing[rows] = 1;
            Tensor::cat(&[w, &Tensor::zeros(&nothing, (w.kind(), w.device()))], rows as i64)
        };
        let sum = match axes.n_models {
            // Adding while reading takes half the time, but has no second derivatives. Those are taken of weights that are
            // parts of one vector; weights in training are leaves.
            None if w.is_leaf() => {
                let first = Tensor::arange_start_step(
                    0,
                    tokens.numel() as i64,
                    axes.pos,
                    (Kind::Int64, tokens.device()),
                );
                let none = None::<Tensor>;
                let rows = tokens.reshape([-1]);
                let sum =
                    Tensor::embedding_bag(&table, &rows, &first, false, 0, false, none, false).0;
                sum.unsqueeze(1)
            }
            _ => {
                let column =
                    |place| look_up(&table, &tokens.narrow(-1, place, 1), Axes { pos: 1, ..axes });
                let mut sum = column(0);
                for place in 1..axes.pos {
                    sum += column(place);
                }
                sum
            }
        };
        match b {
            Some(b) => &sum + broadcast(b, &sum),
            None => sum,
        }
    }

    /// How often each input is active: `[(n_models,) batch, 1, d_vocab]`.
    fn active_inputs(&self, tokens: &Tensor, axes: Axes) -> Tensor {
        let w = &self.maps[0].0;
        let rows = tokens.reshape([-1, axes.pos]); // [row, n_active]
        // Inputs that stand for none land in a column of their own, which is cut off.
        let counts = Tensor::zeros([rows.size()[0], self.d_vocab + 1], (w.kind(), w.device()));
        let ones = Tensor::ones([1, 1], (w.kind(), w.device())).expand_as(&rows);
        let active = counts.scatter_add(1, &rows, &ones).narrow(1, 0, self.d_vocab);
        match axes.n_models {
            Some(n_models) if tokens.dim() == 2 => active
                .view([1, axes.batch, 1, self.d_vocab])
                .expand([n_models, axes.batch, 1, self.d_vocab], false),
            Some(n_models) => active.reshape([n_models, axes.batch, 1, self.d_vocab]),
            None => active.reshape([axes.batch, 1, self.d_vocab]),
        }
    }
}
