//! The description of a model's architecture: a transformer, or a plain multi-layer perceptron.
//!
//! [`Config`] has one field per choice and no hidden defaults: what is written into a checkpoint says
//! everything that is needed to run it. [`Config::validate`] is called wherever a model is built, so
//! later code relies on the stated relations (for instance `n_heads` a multiple of
//! `n_key_value_heads`) without checking again.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Architecture of a model; field names are TransformerLens'.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent choices with TransformerLens' names"
)]
pub struct Config {
    /// What kind of network the other fields describe.
    #[serde(default, skip_serializing_if = "Architecture::is_transformer")]
    pub architecture: Architecture,
    /// Number of blocks; 0 is the bigram model. Hidden layers of an MLP.
    pub n_layers: i64,
    /// Width of the residual stream.
    pub d_model: i64,
    /// Query heads per layer.
    pub n_heads: i64,
    /// Key and value heads per layer; divides `n_heads`.
    pub n_key_value_heads: i64,
    /// Width of one head.
    pub d_head: i64,
    /// Neurons per layer; 0 exactly when `attn_only`.
    pub d_mlp: i64,
    /// Input vocabulary.
    pub d_vocab: i64,
    /// Output vocabulary.
    pub d_vocab_out: i64,
    /// Longest sequence the model is meant for.
    pub n_ctx: i64,
    /// Non-linearity of the MLP.
    pub act_fn: ActFn,
    /// Whether the MLP multiplies the activated gate with a second linear map (SwiGLU and kin).
    pub gated_mlp: bool,
    /// Whether blocks have no MLP.
    pub attn_only: bool,
    /// Whether attention and MLP both read the block's input (each through its own norm).
    pub parallel_attn_mlp: bool,
    /// Norm of attention and MLP.
    pub normalization: Normalization,
    /// Whether that norm stands in front of the component or behind it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm_position: NormPosition,
    /// Norm in front of the unembedding.
    pub final_normalization: Normalization,
    /// Added to the variance (or mean square) inside the square root of every norm.
    pub eps: f64,
    /// How positions enter.
    pub positional: Positional,
    /// Attention scores are divided by this; `sqrt(d_head)` unless the family says otherwise.
    pub attn_scale: f64,
    /// Whether scores of layer `l` are divided by `l + 1` as well (Stanford CRFM's GPT-2).
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether queries and keys are divided by their root mean square, all heads together, and weighted
    /// (OLMo-2).
    #[serde(default, skip_serializing_if = "is_default")]
    pub qk_norm: bool,
    /// Queries, keys and values are clipped to plus and minus this (OLMo).
    #[serde(default, skip_serializing_if = "is_default")]
    pub clip_qkv: Option<f64>,
    /// How far each layer looks back; empty when all layers see everything.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attn_types: Vec<AttnType>,
    /// How many positions a local layer sees, its own included.
    #[serde(default, skip_serializing_if = "is_default")]
    pub window_size: Option<i64>,
    /// Whether analyses put the beginning-of-sequence token in front unless told otherwise.
    pub default_prepend_bos: bool,
}

/// Kind of network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Embedding, residual blocks, unembedding.
    #[default]
    Transformer,
    /// A chain of affine maps: `n_layers` hidden layers of `d_mlp` neurons between `d_vocab` inputs and
    /// `d_vocab_out` outputs. An example is the set of its active inputs, at most `n_ctx` tokens; token
    /// `d_vocab` stands for none. There is neither attention nor a residual stream: `d_model` is
    /// `d_mlp`, and whatever describes heads and positions is unused.
    Mlp,
}

impl Architecture {
    /// Whether it is a transformer; files of transformers look as they did before there was a choice.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    fn is_transformer(&self) -> bool {
        *self == Architecture::Transformer
    }
}

/// Non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActFn {
    /// None: a chain of linear maps.
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// Gaussian error linear unit, exact (by the error function).
    Gelu,
    /// Its tanh approximation (GPT-2); differs from the exact one by up to 5e-4.
    GeluNew,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
    /// `x · softmax(x)` over the neurons, followed by a norm of its own.
    SoluLn,
}

/// Where the norm of a component stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPosition {
    /// In front: the component reads the normalized residual stream.
    #[default]
    Pre,
    /// Behind: the component reads the residual stream as it is, and what it writes is normalized (OLMo-2).
    Post,
}

/// How far a layer looks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttnType {
    /// At every earlier position.
    Global,
    /// At the last [`Config::window_size`] positions, its own included.
    Local,
}

/// Kind of normalization of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// None at all.
    None,
    /// `LayerNorm` with weight `w` and optional bias `b`.
    Ln,
    /// `LayerNorm` without parameters (they have been folded into the next map).
    LnPre,
    /// Division by the root mean square, with weight `w`.
    Rms,
    /// Division by the root mean square, without parameters.
    RmsPre,
}

/// How positions enter the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Positional {
    /// A learned vector per position is added to the embedding.
    Learned,
    /// The first `dim` components of queries and keys are rotated by an angle that grows with the
    /// position; pairs are component `i` and `i + dim/2`.
    Rotary {
        /// Rotated components per head; even, at most `d_head`.
        dim: i64,
        /// Base of the geometric sequence of wave lengths, 10 000 in most models.
        base: f64,
        /// Change of the frequencies that stretches the context.
        scaling: RotaryScaling,
    },
    /// A learned vector per position is added to the inputs of queries and keys in every layer, never
    /// to the residual stream.
    Shortformer,
    /// Positions enter by the causal mask alone.
    None,
}

/// Change of rotary frequencies that stretches the context of a trained model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RotaryScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// By how much the context is stretched.
        factor: f64,
    },
    /// Llama 3: long waves are stretched by `factor`, short ones are kept, those between are blended.
    Llama3 {
        /// By how much the longest waves are stretched.
        factor: f64,
        /// Waves longer than `original_n_ctx / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Waves shorter than `original_n_ctx / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before stretching.
        original_n_ctx: i64,
    },
}

impl Normalization {
    /// Whether the norm has a weight of its own.
    pub fn has_weight(self) -> bool {
        matches!(self, Normalization::Ln | Normalization::Rms)
    }

    /// Whether the norm subtracts the mean.
    pub fn is_centered(self) -> bool {
        matches!(self, Normalization::Ln | Normalization::LnPre)
    }

    /// The same norm after its weight and bias have been folded into the next map.
    #[must_use]
    pub fn folded(self) -> Self {
        match self {
            Normalization::Ln | Normalization::LnPre => Normalization::LnPre,
            Normalization::Rms | Normalization::RmsPre => Normalization::RmsPre,
            Normalization::None => Normalization::None,
        }
    }
}

impl Config {
    /// A toy model as the literature trains them: learned positions, ReLU, no norms, `d_mlp = 4·d_model`,
    /// equal input and output vocabulary. Change what differs by struct update.
    pub fn toy(n_layers: i64, d_model: i64, n_heads: i64, d_vocab: i64, n_ctx: i64) -> Self {
        let d_head = d_model / n_heads.max(1);
        Config {
            architecture: Architecture::Transformer,
            n_layers,
            d_model,
            n_heads,
            n_key_value_heads: n_heads,
            d_head,
            d_mlp: 4 * d_model,
            d_vocab,
            d_vocab_out: d_vocab,
            n_ctx,
            act_fn: ActFn::Relu,
            gated_mlp: false,
            attn_only: false,
            parallel_attn_mlp: false,
            normalization: Normalization::None,
            norm_position: NormPosition::Pre,
            final_normalization: Normalization::None,
            eps: 1e-5,
            positional: Positional::Learned,
            attn_scale: (d_head as f64).sqrt(),
            scale_attn_by_inverse_layer_idx: false,
            qk_norm: false,
            clip_qkv: None,
            attn_types: Vec::new(),
            window_size: None,
            default_prepend_bos: false,
        }
    }

    /// A multi-layer perceptron with ReLU: `n_layers` hidden layers of `d_mlp` neurons that read the
    /// sum of `n_ctx` of `d_vocab` inputs. Change what differs by struct update.
    pub fn mlp(n_layers: i64, d_vocab: i64, d_mlp: i64, d_vocab_out: i64, n_ctx: i64) -> Self {
        Config {
            architecture: Architecture::Mlp,
            d_mlp,
            d_vocab_out,
            positional: Positional::None,
            ..Config::toy(n_layers, d_mlp, 1, d_vocab, n_ctx)
        }
    }

    /// Checks that the fields fit together.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, its value and what it should be.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_key_value_heads", self.n_key_value_heads),
            ("d_head", self.d_head),
            ("d_vocab", self.d_vocab),
            ("d_vocab_out", self.d_vocab_out),
            ("n_ctx", self.n_ctx),
        ];
        for (name, size) in sizes {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(Error::Config(format!("{name} is {size}, expected 1 to {MAX_SIZE}")));
            }
        }
        if !(0..=MAX_LAYERS).contains(&self.n_layers) {
            return Err(Error::Config(format!(
                "n_layers is {}, expected 0 to {MAX_LAYERS}",
                self.n_layers
            )));
        }
        if self.n_heads % self.n_key_value_heads != 0 {
            return Err(Error::Config(format!(
                "n_heads is {}, expected a multiple of n_key_value_heads {}",
                self.n_heads, self.n_key_value_heads
            )));
        }
        self.validate_mlp()?;
        self.validate_architecture()?;
        self.validate_positional()?;
        self.validate_windows()?;
        if self.norm_position == NormPosition::Post && self.parallel_attn_mlp {
            return Err(Error::Config("norm_position post has no parallel form".to_owned()));
        }
        let clip = self.clip_qkv.map(|clip| ("clip_qkv", clip));
        for (name, value) in
            [("eps", self.eps), ("attn_scale", self.attn_scale)].into_iter().chain(clip)
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::Config(format!(
                    "{name} is {value}, expected a positive number"
                )));
            }
        }
        Ok(())
    }

    /// Norm between activation and output map of a [`ActFn::SoluLn`] MLP: with parameters exactly when
    /// the norms in front of the components have them.
    pub fn mlp_normalization(&self) -> Normalization {
        match self.normalization {
            Normalization::Ln => Normalization::Ln,
            Normalization::None
            | Normalization::LnPre
            | Normalization::Rms
            | Normalization::RmsPre => Normalization::LnPre,
        }
    }

    /// How many positions a layer sees, its own included; `None` when it sees all.
    pub fn window(&self, layer: i64) -> Option<i64> {
        let attn_type = usize::try_from(layer).ok().and_then(|layer| self.attn_types.get(layer));
        if attn_type == Some(&AttnType::Local) { self.window_size } else { None }
    }

    fn validate_windows(&self) -> Result<()> {
        let n_types = self.attn_types.len();
        if n_types != 0 && n_types as i64 != self.n_layers {
            return Err(Error::Config(format!(
                "attn_types has {n_types} entries, expected n_layers {} or none",
                self.n_layers
            )));
        }
        match self.window_size {
            Some(window) if !(1..=MAX_SIZE).contains(&window) => {
                Err(Error::Config(format!("window_size is {window}, expected 1 to {MAX_SIZE}")))
            }
            None if self.attn_types.contains(&AttnType::Local) => Err(Error::Config(
                "window_size is absent, expected one with local attn_types".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn validate_mlp(&self) -> Result<()> {
        if self.attn_only {
            return match self.d_mlp {
                0 => Ok(()),
                d_mlp => Err(Error::Config(format!("d_mlp is {d_mlp}, expected 0 with attn_only"))),
            };
        }
        if !(1..=MAX_SIZE).contains(&self.d_mlp) {
            return Err(Error::Config(format!(
                "d_mlp is {}, expected 1 to {MAX_SIZE}, or attn_only",
                self.d_mlp
            )));
        }
        if self.gated_mlp && self.act_fn == ActFn::SoluLn {
            return Err(Error::Config("act_fn solu_ln has no gated form".to_owned()));
        }
        Ok(())
    }

    fn validate_architecture(&self) -> Result<()> {
        if self.architecture == Architecture::Transformer {
            return Ok(());
        }
        let wrong = |text: String| Err(Error::Config(format!("architecture mlp: {text}")));
        if self.n_layers < 1 {
            return wrong(format!("n_layers is {}, expected at least 1", self.n_layers));
        }
        if self.d_model != self.d_mlp {
            return wrong(format!("d_model is {}, expected d_mlp {}", self.d_model, self.d_mlp));
        }
        let is_plain = !self.gated_mlp
            && !self.attn_only
            && !self.parallel_attn_mlp
            && self.act_fn != ActFn::SoluLn
            && self.positional == Positional::None
            && self.final_normalization == Normalization::None
            && matches!(self.normalization, Normalization::None | Normalization::LnPre);
        if is_plain {
            Ok(())
        } else {
            wrong(
                "expected neither gates, SoLU, positions nor norms with parameters, and \
                 neither attn_only nor parallel_attn_mlp"
                    .to_owned(),
            )
        }
    }

    fn validate_positional(&self) -> Result<()> {
        let Positional::Rotary { dim, base, scaling } = self.positional else { return Ok(()) };
        if dim < 2 || dim % 2 != 0 || dim > self.d_head {
            return Err(Error::Config(format!(
                "rotary dim is {dim}, expected an even number from 2 to d_head {}",
                self.d_head
            )));
        }
        let factors = match scaling {
            RotaryScaling::None => vec![base],
            RotaryScaling::Linear { factor } => vec![base, factor],
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_n_ctx } => {
                if high_freq_factor <= low_freq_factor {
                    return Err(Error::Config(format!(
                        "rotary high_freq_factor is {high_freq_factor}, expected more than \
                         low_freq_factor {low_freq_factor}"
                    )));
                }
                vec![base, factor, low_freq_factor, high_freq_factor, original_n_ctx as f64]
            }
        };
        match factors.into_iter().find(|value| !(value.is_finite() && *value > 0.0)) {
            Some(value) => Err(Error::Config(format!(
                "a rotary factor is {value}, expected a positive number"
            ))),
            None => Ok(()),
        }
    }
}

/// Largest accepted size of an axis: far above any model, far below overflow of a product of two.
pub(crate) const MAX_SIZE: i64 = 1 << 24;
/// Largest accepted depth.
pub(crate) const MAX_LAYERS: i64 = 4096;

/// Keeps fields that later versions added out of files that do not use them, so that older readers open
/// those files and their bytes stay the same.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), message: &str) {
        let mut config = Config::toy(2, 16, 4, 10, 8);
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn contradictions_are_named() {
        Config::toy(2, 16, 4, 10, 8).validate().unwrap();
        Config::toy(0, 16, 4, 10, 8).validate().unwrap();
        check(|c| c.d_model = 0, "d_model is 0");
        check(|c| c.n_layers = -1, "n_layers is -1");
        check(|c| c.n_key_value_heads = 3, "multiple of n_key_value_heads 3");
        check(|c| c.attn_only = true, "d_mlp is 64, expected 0");
        check(|c| c.d_mlp = 0, "d_mlp is 0");
        check(|c| c.eps = f64::NAN, "eps is NaN");
        check(|c| c.attn_scale = 0.0, "attn_scale is 0");
        check(|c| c.clip_qkv = Some(0.0), "clip_qkv is 0");
        check(|c| c.attn_types = vec![AttnType::Global], "attn_types has 1 entries");
        check(|c| c.attn_types = vec![AttnType::Local; 2], "window_size is absent");
        check(|c| c.window_size = Some(0), "window_size is 0");
        check(
            |c| {
                c.norm_position = NormPosition::Post;
                c.parallel_attn_mlp = true;
            },
            "norm_position post",
        );
        let rotary = |dim, scaling| Positional::Rotary { dim, base: 1e4, scaling };
        check(|c| c.positional = rotary(3, RotaryScaling::None), "rotary dim is 3");
        check(|c| c.positional = rotary(6, RotaryScaling::None), "to d_head 4");
        check(
            |c| c.positional = rotary(4, RotaryScaling::Linear { factor: 0.0 }),
            "rotary factor is 0",
        );
    }

    #[test]
    fn a_perceptron_has_no_use_for_what_transformers_have() {
        let mlp = Config::mlp(1, 10, 16, 5, 2);
        mlp.validate().unwrap();
        let text = serde_json::to_string(&mlp).unwrap();
        assert!(text.contains(r#""architecture":"mlp""#), "{text}");
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), mlp);
        assert!(
            !serde_json::to_string(&Config::toy(1, 16, 2, 10, 8)).unwrap().contains("architecture")
        );
        let refuse = |change: fn(&mut Config)| {
            let mut config = Config::mlp(1, 10, 16, 5, 2);
            change(&mut config);
            assert!(config.validate().unwrap_err().to_string().contains("mlp"));
        };
        refuse(|c| c.n_layers = 0);
        refuse(|c| c.d_model = 8);
        refuse(|c| c.normalization = Normalization::Ln);
        refuse(|c| c.positional = Positional::Learned);
        refuse(|c| c.act_fn = ActFn::SoluLn);
    }

    #[test]
    fn json_round_trips_exactly_and_rejects_unknown_keys() {
        let config = Config {
            attn_scale: 12f64.sqrt(),
            positional: Positional::Rotary {
                dim: 4,
                base: 500_000.0,
                scaling: RotaryScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_n_ctx: 8192,
                },
            },
            ..Config::toy(2, 48, 4, 10, 8)
        };
        let text = serde_json::to_string(&config).unwrap();
        // Files that use no later field look as they always did.
        assert!(!text.contains("qk_norm") && !text.contains("attn_types"), "{text}");
        let back: Config = serde_json::from_str(&text).unwrap();
        assert_eq!(config, back);
        let later = Config {
            norm_position: NormPosition::Post,
            qk_norm: true,
            clip_qkv: Some(8.0),
            attn_types: vec![AttnType::Global, AttnType::Local],
            window_size: Some(3),
            ..config
        };
        assert_eq!((later.window(0), later.window(1), later.window(2)), (None, Some(3), None));
        let text = serde_json::to_string(&later).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), later);
        let extended = text.replacen('{', "{\"n_experts\":2,", 1);
        assert!(serde_json::from_str::<Config>(&extended).is_err());
    }
}
