//! The model: parameters checked against a configuration, and the forward pass of a transformer. A
//! perceptron (`Architecture::Mlp`) is the same type, so that training and analyses treat both alike.
//!
//! [`Transformer::new`] checks every name, shape, element type and device once; afterwards the forward
//! pass indexes without checks. The tensors are those of the given [`Weights`], not copies: training
//! changes them in place, and gradients flow to them.

use tch::Tensor;

use crate::{
    axes::{Axes, last_position},
    block::{Block, Reading},
    config::{Architecture, Config, Positional},
    embed::{Embed, Embedded, Unembed},
    error::{Error, Result},
    hook::Hook,
    hooks::Hooks,
    norm::NormLayer,
    perceptron::Perceptron,
    rotary::Rotary,
    token_table,
    weights::Weights,
};

/// A transformer, or a population of equally shaped ones that compute together.
#[derive(Debug)]
pub struct Transformer {
    config: Config,
    weights: Weights,
    population: Option<i64>,
    network: Network,
}

#[derive(Debug)]
enum Network {
    Transformer(Box<Parts>),
    Mlp(Perceptron),
}

/// Components of a transformer.
#[derive(Debug)]
struct Parts {
    embed: Embed,
    blocks: Vec<Block>,
    ln_final: NormLayer,
    unembed: Unembed,
}

/// Which part of a forward pass is wanted. The default is all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    /// Computes the last layer's queries, MLP and residual stream, and the unembedding, at the final
    /// position only. The result is that of a full pass, with `pos` 1; so are the activations of that
    /// layer, except `resid_pre`, `ln1`, `k` and `v`.
    pub last_position_only: bool,
    /// Returns the input of the unembedding (after the final norm) instead of logits.
    pub skip_unembed: bool,
    /// Returns the residual stream behind this layer; what follows is not computed.
    pub stop_after_layer: Option<u32>,
}

impl Run {
    /// The whole pass.
    pub const FULL: Run =
        Run { last_position_only: false, skip_unembed: false, stop_after_layer: None };

    /// Logits of the final position.
    pub const LAST_POSITION: Run = Run { last_position_only: true, ..Run::FULL };
}

impl Transformer {
    /// Makes a model of one set of weights.
    ///
    /// # Errors
    /// A configuration that contradicts itself; a tensor that is missing, unexpected, of another shape,
    /// not of floating point, or of another element type or device than the rest.
    pub fn new(config: Config, weights: Weights) -> Result<Self> {
        Self::build(config, weights, None)
    }

    /// Makes a population of weights that all carry a leading model axis.
    ///
    /// # Errors
    /// As [`Transformer::new`]; the size of the model axis must be the same everywhere.
    pub fn population(config: Config, weights: Weights) -> Result<Self> {
        let (name, first) = weights
            .iter()
            .next()
            .ok_or_else(|| Error::MissingTensor { name: "embed.W_E".to_owned() })?;
        let Some(&n_models) = first.size().first() else {
            return Err(Error::Shape { name: name.to_owned(), expected: vec![1], actual: vec![] });
        };
        if n_models == 0 {
            return Err(Error::Unsupported("a population of no models".to_owned()));
        }
        Self::build(config, weights, Some(n_models))
    }

    /// The architecture.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The parameters.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Gives the parameters back.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// Number of models of a population, `None` for a single model.
    pub fn n_models(&self) -> Option<i64> {
        self.population
    }

    /// Returns one model of a population; it shares the population's tensors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when this is not a population or has no such member.
    pub fn member(&self, index: i64) -> Result<Transformer> {
        match self.population {
            Some(n_models) if (0..n_models).contains(&index) => {
                Transformer::new(self.config.clone(), self.weights.member(index))
            }
            n_models => Err(Error::Unsupported(format!(
                "member {index} of a population of {}",
                n_models.unwrap_or(0)
            ))),
        }
    }

    /// Runs the model.
    ///
    /// # Shapes
    /// - `tokens`: i64 `[batch, pos]`, shared by the models of a population, or `[n_models, batch, pos]`
    /// - returns: logits `[(n_models,) batch, pos, d_vocab_out]`, or what `run` asks for instead
    ///
    /// # Panics
    /// When the tokens have another shape, more positions than the model has embeddings for, or lie
    /// outside the vocabulary; when a hook changes a shape; and when libtorch fails (the message is
    /// libtorch's, see [`Error::from_torch_message`]).
    pub fn forward(&self, tokens: &Tensor, run: &Run, hooks: &mut dyn Hooks) -> Tensor {
        let axes = Axes::of(tokens, self.population);
        let parts = match &self.network {
            Network::Transformer(parts) => parts,
            Network::Mlp(mlp) => return mlp.forward(tokens, axes, run, hooks),
        };
        self.check_length(axes.pos);
        let n_layers = match run.stop_after_layer {
            Some(layer) => parts.blocks.len().min(layer as usize + 1),
            None => parts.blocks.len(),
        };
        let Some((first, rest)) = parts.blocks[..n_layers].split_first() else {
            let resid = parts.embed.forward(tokens, axes, hooks).resid;
            let resid = if run.last_position_only { last_position(&resid) } else { resid };
            return parts.finish(resid, run, hooks);
        };
        let is_last = |layer: usize| run.last_position_only && layer + 1 == n_layers;
        let query_axes = |layer| if is_last(layer) { axes.last_position() } else { axes };
        let (reading, shortformer) =
            parts.read_first(first, self.config.d_vocab, tokens, axes, is_last(0), hooks);
        let mut resid = first.write(reading, query_axes(0), hooks);
        for (layer, block) in (1..).zip(rest) {
            let reading = block.read(resid, shortformer.as_ref(), axes, is_last(layer), hooks);
            resid = block.write(reading, query_axes(layer), hooks);
        }
        parts.finish(resid, run, hooks)
    }

    /// Maps what a pass with [`Run::skip_unembed`] returned, or some positions of it, to logits.
    ///
    /// # Shapes
    /// `[(n_models,) …, d_model]` to `[(n_models,) …, d_vocab_out]`; a perceptron has no separate
    /// unembedding and gives nothing.
    pub fn unembed(&self, normalized: &Tensor) -> Option<Tensor> {
        match &self.network {
            Network::Transformer(parts) => Some(parts.unembed.forward(normalized)),
            Network::Mlp(_) => None,
        }
    }

    /// The entries `first` to `first + length` of what [`Transformer::unembed`] gives.
    ///
    /// # Shapes
    /// `[(n_models,) …, d_model]` to `[(n_models,) …, length]`; nothing for a perceptron.
    ///
    /// # Panics
    /// When the vocabulary has no such entries.
    pub fn unembed_columns(&self, normalized: &Tensor, first: i64, length: i64) -> Option<Tensor> {
        match &self.network {
            Network::Transformer(parts) => Some(parts.unembed.columns(normalized, first, length)),
            Network::Mlp(_) => None,
        }
    }

    /// Applies the final norm to a residual stream: what the model would unembed if it ended there.
    ///
    /// # Shapes
    /// `[(n_models,) batch, pos, d_model]` to the same; nothing for a perceptron.
    pub fn ln_final(&self, resid: &Tensor) -> Option<Tensor> {
        match &self.network {
            Network::Transformer(parts) => {
                Some(parts.ln_final.forward(resid, Hook::LnFinal, &mut ()))
            }
            Network::Mlp(_) => None,
        }
    }

    fn check_length(&self, pos: i64) {
        let n_ctx = self.config.n_ctx;
        let is_bounded = self.config.positional != Positional::None;
        assert!(pos >= 1, "tokens have no position");
        assert!(!is_bounded || pos <= n_ctx, "tokens have {pos} positions, n_ctx is {n_ctx}");
    }

    fn build(config: Config, weights: Weights, population: Option<i64>) -> Result<Self> {
        config.validate()?;
        check_weights(&config, &weights, population)?;
        let network = match config.architecture {
            Architecture::Transformer => {
                Network::Transformer(Box::new(Parts::new(&config, &weights)?))
            }
            Architecture::Mlp => Network::Mlp(Perceptron::new(&config, &weights)?),
        };
        Ok(Transformer { config, weights, population, network })
    }
}

impl Parts {
    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let rotary = match config.positional {
            Positional::Rotary { dim, base, scaling } => {
                let w_e = weights.require("embed.W_E")?;
                Some(Rotary::new(dim, base, scaling, (w_e.kind(), w_e.device())))
            }
            Positional::Learned | Positional::Shortformer | Positional::None => None,
        };
        let blocks = (0..config.n_layers)
            .map(|layer| Block::new(layer, config, weights, rotary.as_ref()))
            .collect::<Result<_>>()?;
        Ok(Parts {
            embed: Embed::new(config, weights)?,
            blocks,
            ln_final: NormLayer::new("ln_final", config.final_normalization, config.eps, weights)?,
            unembed: Unembed::new(weights)?,
        })
    }

    /// Embeds the tokens and lets the first block read them; returns the shortformer positions too.
    fn read_first(
        &self,
        block: &Block,
        d_vocab: i64,
        tokens: &Tensor,
        axes: Axes,
        last_only: bool,
        hooks: &mut dyn Hooks,
    ) -> (Reading, Option<Tensor>) {
        let pays = token_table::pays(tokens, axes, d_vocab, hooks);
        let mut read = |tokens: &Tensor, axes: Axes| {
            let Embedded { resid, shortformer } = self.embed.forward(tokens, axes, hooks);
            let reading = block.read(resid, shortformer.as_ref(), axes, last_only, hooks);
            (reading, shortformer)
        };
        if !pays {
            return read(tokens, axes);
        }
        let (vocabulary, table_axes) = token_table::vocabulary(axes, d_vocab, tokens.device());
        let (table, shortformer) = read(&vocabulary, table_axes);
        (token_table::read(&table, tokens, axes), shortformer)
    }

    fn finish(&self, resid: Tensor, run: &Run, hooks: &mut dyn Hooks) -> Tensor {
        if run.stop_after_layer.is_some() {
            return resid;
        }
        let normalized = self.ln_final.forward(&resid, Hook::LnFinal, hooks);
        if run.skip_unembed { normalized } else { self.unembed.forward(&normalized) }
    }
}

/// Checks names, shapes, element types and devices; everything else relies on it.
fn check_weights(config: &Config, weights: &Weights, population: Option<i64>) -> Result<()> {
    let parameters = config.parameters();
    let required = parameters.iter().find(|parameter| !parameter.optional);
    let required = required.expect("every architecture has a required parameter");
    if let Some(name) = weights.names().find(|name| !parameters.iter().any(|p| p.name == *name)) {
        return Err(Error::UnexpectedTensor { name: name.to_owned() });
    }
    let first = weights.require(&required.name)?;
    let options = (first.kind(), first.device());
    for parameter in parameters {
        let Some(tensor) = weights.get(&parameter.name) else {
            if parameter.optional {
                continue;
            }
            return Err(Error::MissingTensor { name: parameter.name });
        };
        let expected: Vec<i64> = population.into_iter().chain(parameter.shape).collect();
        let actual = tensor.size();
        if actual != expected {
            return Err(Error::Shape { name: parameter.name, expected, actual });
        }
        if !tensor.is_floating_point() {
            return Err(Error::element_type(&parameter.name, tensor.kind()));
        }
        if (tensor.kind(), tensor.device()) != options {
            let text = |(kind, device)| format!("{kind:?} on {device:?}");
            return Err(Error::Mixed {
                name: parameter.name,
                expected: text(options),
                actual: text((tensor.kind(), tensor.device())),
            });
        }
    }
    Ok(())
}
