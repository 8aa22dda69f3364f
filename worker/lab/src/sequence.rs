//! What recipes share that train small transformers on token sequences: the architecture with its initial
//! weights, which rows a step draws, losses of the next token, and what heads attend to.
//!
//! Main types: [`Architecture`], [`Sampling`], [`HeadScores`]. Functions take tensors with or without a
//! leading model axis, written `(n_models,)`; metrics get theirs by [`per_model`].

use sweep_lens::{
    ActFn, Cache, Config, Device, Hook, Kind, Normalization, Run, Site, Tensor, Transformer,
    Weights, init,
};

use crate::{
    optimizer::{AdamWConfig, Schedule},
    random::counter::Counter,
    recipe::Plan,
};

/// Accepted values of a `variant` parameter.
pub(crate) const VARIANTS: [&str; 4] = ["attn-only", "relu", "gelu", "solu"];
/// Accepted values of a `normalization` parameter.
pub(crate) const NORMALIZATIONS: [&str; 2] = ["none", "ln"];

/// A decoder-only transformer with learned positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Architecture<'a> {
    /// One of [`VARIANTS`].
    pub variant: &'a str,
    /// One of [`NORMALIZATIONS`]; `ln` has no parameters.
    pub normalization: &'a str,
    pub n_layers: i64,
    pub d_model: i64,
    pub n_heads: i64,
    /// Neurons per layer; unused if attention-only.
    pub d_mlp: i64,
    pub d_vocab: i64,
    pub n_ctx: i64,
}

impl Architecture<'_> {
    pub(crate) fn config(&self) -> Config {
        let attn_only = self.variant == "attn-only";
        let normalization = match self.normalization {
            "ln" => Normalization::LnPre,
            _ => Normalization::None,
        };
        Config {
            attn_only,
            d_mlp: if attn_only { 0 } else { self.d_mlp },
            act_fn: match self.variant {
                "gelu" => ActFn::Gelu,
                "solu" => ActFn::SoluLn,
                _ => ActFn::Relu,
            },
            normalization,
            final_normalization: normalization,
            ..Config::toy(self.n_layers, self.d_model, self.n_heads, self.d_vocab, self.n_ctx)
        }
    }

    /// Normal weights of standard deviation `1/√d_model`, `1/√d_vocab` for the unembedding; biases are those
    /// of the MLPs alone and start at 0. A tensor depends on the seed, its name and its shape: variants
    /// and depths share what they have in common.
    pub(crate) fn init(&self, seed: u64) -> Weights {
        let std = 1.0 / (self.d_model as f64).sqrt();
        let std_unembed = 1.0 / (self.d_vocab as f64).sqrt();
        let options = (Kind::Float, Device::Cpu);
        let is_trained = |name: &str| name.ends_with("mlp.b_in") || name.ends_with("mlp.b_out");
        let parameters = self.config().parameters().into_iter();
        parameters
            .filter(|parameter| !parameter.optional || is_trained(&parameter.name))
            .map(|parameter| {
                let shape = parameter.shape.as_slice();
                let tensor = if parameter.optional {
                    Tensor::zeros(shape, options)
                } else if parameter.is_norm_weight {
                    Tensor::ones(shape, options)
                } else {
                    let std = if parameter.name == "unembed.W_U" { std_unembed } else { std };
                    init::normal(seed, &parameter.name, shape, std, Device::Cpu)
                };
                (parameter.name, tensor)
            })
            .collect()
    }
}

/// Length, optimizer and evaluation interval from the parameters that these recipes have in common.
pub(crate) fn plan(optimizer: AdamWConfig, warmup: u64, steps: u64, eval_every: u64) -> Plan {
    let schedule = Schedule { peak: optimizer.lr, warmup };
    Plan::new(steps, eval_every, optimizer.into(), schedule)
}

/// Declares the parameters of a recipe that trains small transformers: those of its own, then architecture, optimizer and data
/// as all of them have, with the recipe's defaults. The recipe adds `fn size(&self) -> [i64; 2]`, vocabulary and context.
macro_rules! sequence_params {
    (
        variant = $variant:literal, normalization = $normalization:literal, batch = $batch:literal,
        eval_sequences = $eval_sequences:literal, lr = $lr:literal, warmup = $warmup:literal,
        steps = $steps:literal, eval_every = $eval_every:literal;
        $($own:tt)*
    ) => {
        $crate::params::params! {
            /// Task, architecture and optimizer.
            pub struct Params {
                $($own)*
                /// Kind of blocks.
                variant: String = $variant.to_owned(), choices = $crate::sequence::VARIANTS;
                /// Blocks; induction needs two.
                n_layers: i64 = 2, min = 1.0, max = 16.0;
                /// Width of the residual stream.
                d_model: i64 = 64, min = 1.0, max = 4096.0;
                /// Attention heads; they share d_model.
                n_heads: i64 = 4, min = 1.0, max = 64.0, divides = d_model;
                /// Neurons per block, if it has any.
                d_mlp: i64 = 256, min = 1.0, max = 16384.0;
                /// Norm in front of every component, without parameters.
                normalization: String = $normalization.to_owned(),
                    choices = $crate::sequence::NORMALIZATIONS;
                /// Sequences per update.
                batch: u64 = $batch, min = 1.0, max = 65536.0;
                /// Sequences that metrics are measured on, the same for every seed.
                eval_sequences: u64 = $eval_sequences, min = 1.0, max = 65536.0;
                /// Learning rate after the warm-up.
                lr: f64 = $lr, min = 0.0;
                /// Decoupled weight decay.
                weight_decay: f64 = 0.0, min = 0.0;
                /// Decay of the first moment.
                beta1: f64 = 0.9, min = 0.0, max = 0.999_999;
                /// Decay of the second moment.
                beta2: f64 = 0.98, min = 0.0, max = 0.999_999;
                /// Updates over which the learning rate rises.
                warmup: u64 = $warmup, min = 0.0;
                /// Updates in all.
                steps: u64 = $steps, min = 0.0, max = 10_000_000.0;
                /// Metrics are streamed at multiples of this.
                eval_every: u64 = $eval_every, min = 1.0;
                /// Seed of the training data; -1 is the seed of the run.
                data_seed: i64 = -1, min = -1.0;
            }
        }

        impl Params {
            fn architecture(&self) -> $crate::sequence::Architecture<'_> {
                let [d_vocab, n_ctx] = self.size();
                $crate::sequence::Architecture {
                    variant: &self.variant,
                    normalization: &self.normalization,
                    n_layers: self.n_layers,
                    d_model: self.d_model,
                    n_heads: self.n_heads,
                    d_mlp: self.d_mlp,
                    d_vocab,
                    n_ctx,
                }
            }

            fn plan(&self) -> $crate::recipe::Plan {
                let &Self { lr, weight_decay, beta1, beta2, warmup, steps, eval_every, .. } = self;
                let optimizer =
                    $crate::optimizer::AdamWConfig { lr, beta1, beta2, eps: 1e-8, weight_decay };
                $crate::sequence::plan(optimizer, warmup, steps, eval_every)
            }

            /// Seeds of the training data of runs with these seeds.
            fn data_seeds(&self, seeds: &[u64]) -> Vec<u64> {
                seeds.iter().map(|&seed| u64::try_from(self.data_seed).unwrap_or(seed)).collect()
            }
        }
    };
}
pub(crate) use sequence_params;

/// How many seeds are worth training as one batched model. Per-step launches of a small model leave a GPU
/// idle; one CPU thread is bound by arithmetic.
pub(crate) fn population(device: Device) -> usize {
    if device.is_cuda() { 16 } else { 1 }
}

/// Which rows of the endless list of examples a step trains on.
#[derive(Debug)]
pub(crate) struct Sampling {
    batch: u64,
    pool: u64,
    order: Counter,
    /// Of row numbers, i64 `[(n_models,) 1]`; zero until the data come in another order.
    first: Option<Tensor>,
    device: Device,
}

impl Sampling {
    /// `batch` rows per step: the next ones of the list, or random ones of the first `pool` rows if that is
    /// not 0.
    pub(crate) fn new(batch: u64, pool: u64, seeds: &[u64], device: Device) -> Self {
        let order = Counter::new(seeds, "sampling/order", device);
        Self { batch, pool, order, first: None, device }
    }

    /// Row numbers of the update from `step`, i64 `[batch]`, or `[(n_models,) batch]` if the models differ.
    pub(crate) fn rows(&self, step: u64) -> Tensor {
        let first = (step * self.batch) as i64;
        let options = (Kind::Int64, self.device);
        let rows = Tensor::arange_start(first, first + self.batch as i64, options);
        if self.pool > 0 {
            return self.order.below(&rows, 1, self.pool as i64).squeeze_dim(-1);
        }
        match &self.first {
            Some(first) => rows + first,
            None => rows,
        }
    }

    /// From here on the rows of other seeds, one per model.
    pub(crate) fn reorder(&mut self, seeds: &[u64]) {
        self.order = Counter::new(seeds, "sampling/order", self.device);
        // Far from any row that a run of the first order meets.
        let zero = Tensor::zeros([1], (Kind::Int64, self.device));
        let jump = self.order.below(&zero, 1, 1 << 30).squeeze_dim(-1) + 1; // [(n_models,) 1]
        let jump = jump * (1i64 << 32);
        self.first = Some(if seeds.len() == 1 { jump.view([1]) } else { jump });
    }
}

/// Row numbers `0..n`, i64 `[n]`.
pub(crate) fn first_rows(n: u64, device: Device) -> Tensor {
    Tensor::arange(n as i64, (Kind::Int64, device))
}

/// Negative log-probability of each next token in nats.
///
/// # Shapes
/// - `logits`: `[(n_models,) batch, pos, d_vocab]`
/// - `tokens`: i64 `[(n_models,) batch, pos]`, or without a model axis if shared
/// - returns: f32 (f64 of f64 logits) `[(n_models,) batch, pos - 1]`; entry `i` is about token `i + 1`
pub(crate) fn next_token_nll(logits: &Tensor, tokens: &Tensor) -> Tensor {
    let n = logits.size()[logits.dim() - 2] - 1;
    let kind = if logits.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let log_probs = logits.narrow(-2, 0, n).log_softmax(-1, kind);
    let targets = tokens.narrow(-1, 1, n).unsqueeze(-1);
    let mut shape = log_probs.size();
    *shape.last_mut().expect("logits have a vocabulary axis") = 1;
    -log_probs.gather(-1, &targets.expand(shape.as_slice(), false), false).squeeze_dim(-1)
}

/// Mean over batch and positions of each model.
///
/// # Shapes
/// - `values`: `[(n_models,) batch, pos]`
/// - returns: f64 `[(n_models)]`
pub(crate) fn mean(values: &Tensor) -> Tensor {
    values.mean_dim(&[-2i64, -1][..], false, Kind::Double)
}

/// Mean over the entries where `mask` is true, NaN if there are none.
///
/// # Shapes
/// - `values`: `[(n_models,) batch, pos]`
/// - `mask`: bool `[batch, pos]`
/// - returns: f64 `[(n_models)]`
pub(crate) fn masked_mean(values: &Tensor, mask: &Tensor) -> Tensor {
    let weights = mask.to_kind(Kind::Double);
    let total = (values.to_kind(Kind::Double) * &weights).sum_dim_intlist(
        &[-2i64, -1][..],
        false,
        Kind::Double,
    );
    total / weights.sum(Kind::Double)
}

/// A metric with its model axis: `[(n_models,) …]` → `[n_models, …]`.
pub(crate) fn per_model(model: &Transformer, values: Tensor) -> Tensor {
    if model.n_models().is_some() { values } else { values.unsqueeze(0) }
}

/// Logits of a full pass and the attention patterns of every layer.
///
/// # Shapes
/// - `tokens`: i64 `[(n_models,) batch, pos]`
/// - returns: `[(n_models,) batch, pos, d_vocab]`, and per layer `[(n_models,) batch, head, query, key]`
pub(crate) fn with_patterns(model: &Transformer, tokens: &Tensor) -> (Tensor, Vec<Tensor>) {
    let is_pattern = |hook| matches!(hook, Hook::Block { site: Site::Pattern, .. });
    let mut cache = Cache::only(is_pattern);
    let logits = model.forward(tokens, &Run::FULL, &mut cache);
    let patterns = cache.iter().map(|(_, pattern)| pattern.shallow_clone()).collect();
    (logits, patterns)
}

/// Mean attention paid to chosen places.
#[derive(Debug)]
pub(crate) struct HeadScores {
    /// Weight of each place, f32 `[batch, 1, query, key]`; sums to 1 over everything if every query has one
    /// place.
    weights: Tensor,
}

impl HeadScores {
    /// Of each query that `queries` names, the attention to all keys that `places` names; averaged over
    /// those queries.
    ///
    /// # Shapes
    /// - `places`: bool `[batch, query, key]`
    /// - `queries`: bool `[batch, query]`
    pub(crate) fn new(places: &Tensor, queries: &Tensor) -> Self {
        let n_queries = queries.to_kind(Kind::Float).sum(Kind::Float).clamp_min(1.0);
        let weights = places.logical_and(&queries.unsqueeze(-1)).to_kind(Kind::Float) / n_queries;
        Self { weights: weights.unsqueeze(1) }
    }

    /// Scores of every head.
    ///
    /// # Shapes
    /// - `patterns`: per layer `[(n_models,) batch, head, query, key]`
    /// - returns: f32 `[(n_models,) layer, head]`
    pub(crate) fn of(&self, patterns: &[Tensor]) -> Tensor {
        let layers = patterns.iter().map(|pattern| {
            (pattern * &self.weights).sum_dim_intlist(&[-4i64, -2, -1][..], false, Kind::Float)
        });
        Tensor::stack(&layers.collect::<Vec<_>>(), -2)
    }
}

/// Largest score of any head, `[(n_models,) layer, head]` → `[(n_models)]`.
pub(crate) fn best_head(scores: &Tensor) -> Tensor {
    scores.amax(&[-2i64, -1][..], false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::to_vec;

    #[test]
    fn variants_share_their_attention() {
        let variant = |variant, n_layers| Architecture {
            variant,
            normalization: "none",
            n_layers,
            d_model: 8,
            n_heads: 2,
            d_mlp: 12,
            d_vocab: 5,
            n_ctx: 6,
        };
        let shallow = variant("attn-only", 1);
        let deep = variant("solu", 2);
        assert_eq!((shallow.config().d_mlp, deep.config().d_mlp), (0, 12));
        let (few, many) = (shallow.init(3), deep.init(3));
        for (name, tensor) in few.iter() {
            assert!(tensor.equal(many.get(name).unwrap()), "{name}");
        }
        assert!(many.get("blocks.1.mlp.b_in").unwrap().eq(0.0).all().int64_value(&[]) == 1);
        assert!(!few.get("embed.W_E").unwrap().equal(shallow.init(4).get("embed.W_E").unwrap()));
        Transformer::new(deep.config(), many).unwrap();
    }

    #[test]
    fn losses_are_those_of_the_next_token() {
        // Two tokens, uniform prediction of 4 classes, then certainty of class 2.
        let logits = Tensor::from_slice(&[0f32, 0., 0., 0., 0., 0., 100., 0., 0., 0., 0., 0.]);
        let logits = logits.view([1, 3, 4]);
        let tokens = Tensor::from_slice(&[1i64, 3, 2]).view([1, 3]);
        let nll = next_token_nll(&logits, &tokens);
        assert_eq!(to_vec(&nll), [f64::from(4f32.ln()), 0.0]);
        let mask = Tensor::from_slice(&[false, true]).view([1, 2]);
        assert_eq!(to_vec(&masked_mean(&nll, &mask)), [0.0]);
        assert!((to_vec(&mean(&nll))[0] - 4f64.ln() / 2.0).abs() < 1e-6);
        // Tokens shared by a population.
        let both = Tensor::stack(&[&logits, &logits], 0);
        assert_eq!(next_token_nll(&both, &tokens).size(), [2, 1, 2]);
    }

    #[test]
    fn rows_follow_the_step_and_the_order() {
        let cpu = Device::Cpu;
        let fresh = Sampling::new(3, 0, &[1, 2], cpu);
        assert_eq!(to_vec(&fresh.rows(2)), [6.0, 7.0, 8.0]);
        let pool = Sampling::new(300, 5, &[1, 2], cpu);
        let rows = pool.rows(2);
        assert_eq!(rows.size(), [2, 300]);
        assert!(rows.get(1).equal(&Sampling::new(300, 5, &[2], cpu).rows(2)), "as alone");
        let counts = to_vec(&rows.get(0).bincount(None::<Tensor>, 5));
        assert!(counts.len() == 5 && counts.iter().all(|&n| n > 30.0), "{counts:?}");
        for mut sampling in [fresh, pool] {
            let before = sampling.rows(4);
            sampling.reorder(&[7, 8]);
            let after = sampling.rows(4);
            assert_eq!(after.size()[0], 2);
            assert!(!after.get(0).equal(&after.get(1)));
            assert!(!after.get(0).equal(&before.view([-1, after.size()[1]]).get(0)));
        }
        let mut alone = Sampling::new(3, 0, &[1], cpu);
        alone.reorder(&[7]);
        let mut group = Sampling::new(3, 0, &[1, 2], cpu);
        group.reorder(&[7, 8]);
        assert!(alone.rows(1).equal(&group.rows(1).get(0)));
    }

    #[test]
    fn scores_are_mean_attention() {
        let places = Tensor::from_slice(&[true, false, false, true]).view([1, 2, 2]);
        let queries = Tensor::from_slice(&[true, true]).view([1, 2]);
        let scores = HeadScores::new(&places, &queries);
        let pattern = Tensor::from_slice(&[1f32, 0., 0.25, 0.75]).view([1, 1, 2, 2]);
        assert_eq!(to_vec(&scores.of(&[pattern.shallow_clone()])), [0.875]);
        let second = HeadScores::new(&places, &Tensor::from_slice(&[false, true]).view([1, 2]));
        let found = second.of(&[pattern.shallow_clone(), pattern * 2.0]);
        assert_eq!((found.size(), to_vec(&found)), (vec![2, 1], vec![0.75, 1.5]));
        assert_eq!(to_vec(&best_head(&found)), [1.5]);
    }
}
