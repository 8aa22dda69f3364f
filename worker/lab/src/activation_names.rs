//! Names of activations beyond those that a pass has itself, and how each follows from them.
//!
//! A [`Hook`] prints as a name of TransformerLens' `HookedTransformer`. Users write others as well: the hooks that
//! it fires on demand (`hook_q_input`, `hook_mlp_in`, `unembed.hook_out`, …), and those of `TransformerBridge`
//! (TransformerLens 4), of which most are second names of the same tensors (`attn.q.hook_out`) and some lie one
//! step further (`ln1.hook_out` is the norm's quotient times its weight, plus its bias). [`others`] lists all
//! that a model has. Left out are inputs that only one of several layouts has: what a norm behind its
//! component reads, and queries and keys with positions of their own (shortformer).

use sweep_lens::{Architecture, Config, Hook, Norm, NormPosition, Normalization, Positional, Site};

/// Where an activation comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The pass has it under this name.
    Hook(Hook),
    /// The logits.
    Logits,
    /// The quotient of a norm with the norm's weight and bias, which are called `{1}.w` and `{1}.b`.
    Normed(Hook, String),
    /// The residual stream, once for each of so many heads.
    PerHead(Hook, i64),
    /// Token ids, `[batch, pos]`.
    Tokens,
    /// Numbers of positions, `[1, pos]`.
    Positions,
    /// Cosines of the rotation, `[1, pos, dim]`.
    Cos,
    /// Sines of the rotation, `[1, pos, dim]`.
    Sin,
}

impl Source {
    /// The activation of the pass that it is made of.
    pub(crate) fn hook(&self) -> Option<Hook> {
        match self {
            Self::Hook(hook) | Self::Normed(hook, _) | Self::PerHead(hook, _) => Some(*hook),
            Self::Logits | Self::Tokens | Self::Positions | Self::Cos | Self::Sin => None,
        }
    }

    /// Its shape for `batch` rows of `pos` tokens.
    pub(crate) fn shape(&self, config: &Config, batch: i64, pos: i64) -> Vec<i64> {
        match self {
            Self::Hook(hook) | Self::Normed(hook, _) => shape_of(*hook, config, batch, pos),
            Self::Logits => vec![batch, pos, config.d_vocab_out],
            Self::PerHead(_, heads) => vec![batch, pos, *heads, config.d_model],
            Self::Tokens => vec![batch, pos],
            Self::Positions => vec![1, pos],
            Self::Cos | Self::Sin => {
                let dim = match config.positional {
                    Positional::Rotary { dim, .. } => dim,
                    Positional::Learned | Positional::Shortformer | Positional::None => 0,
                };
                vec![1, pos, dim]
            }
        }
    }
}

/// Shape of an activation of the pass.
fn shape_of(hook: Hook, config: &Config, batch: i64, pos: i64) -> Vec<i64> {
    let Config { d_model, d_mlp, d_head, n_heads, n_key_value_heads, .. } = *config;
    let site = match hook {
        Hook::Embed | Hook::PosEmbed | Hook::LnFinal(Norm::Normalized) => {
            return vec![batch, pos, d_model];
        }
        Hook::LnFinal(Norm::Scale) => return vec![batch, pos, 1],
        Hook::Block { site, .. } => site,
    };
    match site {
        Site::ResidPre
        | Site::ResidMid
        | Site::ResidPost
        | Site::AttnOut
        | Site::MlpOut
        | Site::Ln1(Norm::Normalized)
        | Site::Ln2(Norm::Normalized) => vec![batch, pos, d_model],
        Site::Ln1(Norm::Scale)
        | Site::Ln2(Norm::Scale)
        | Site::MlpLn(Norm::Scale)
        | Site::QNorm(Norm::Scale)
        | Site::KNorm(Norm::Scale) => vec![batch, pos, 1],
        Site::QNorm(Norm::Normalized) => vec![batch, pos, n_heads * d_head],
        Site::KNorm(Norm::Normalized) => vec![batch, pos, n_key_value_heads * d_head],
        Site::Q | Site::RotQ | Site::Z => vec![batch, pos, n_heads, d_head],
        Site::K | Site::V | Site::RotK => vec![batch, pos, n_key_value_heads, d_head],
        Site::AttnScores | Site::Pattern => vec![batch, n_heads, pos, pos],
        Site::Result => vec![batch, pos, n_heads, d_model],
        Site::MlpPre
        | Site::MlpPreLinear
        | Site::MlpMid
        | Site::MlpPost
        | Site::MlpLn(Norm::Normalized) => vec![batch, pos, d_mlp],
    }
}

/// The names that the pass has itself, and `logits`.
pub(crate) fn own(config: &Config) -> Vec<(String, Source)> {
    let hooks = config.hooks().into_iter().map(|hook| (hook.to_string(), Source::Hook(hook)));
    hooks.chain([("logits".to_owned(), Source::Logits)]).collect()
}

/// All further names.
pub(crate) fn others(config: &Config) -> Vec<(String, Source)> {
    if config.architecture == Architecture::Mlp {
        return Vec::new();
    }
    let mut names = vec![
        ("embed.hook_in", Source::Tokens),
        ("embed.hook_out", Source::Hook(Hook::Embed)),
        ("unembed.hook_out", Source::Logits),
        ("hook_unembed", Source::Logits),
    ];
    match config.positional {
        Positional::Learned => names.extend([
            ("pos_embed.hook_in", Source::Positions),
            ("pos_embed.hook_out", Source::Hook(Hook::PosEmbed)),
        ]),
        Positional::Rotary { .. } => names.extend([
            ("rotary_emb.hook_in", Source::Hook(Hook::Embed)),
            ("rotary_emb.hook_cos", Source::Cos),
            ("rotary_emb.hook_sin", Source::Sin),
        ]),
        Positional::Shortformer | Positional::None => {}
    }
    let layers = 0..u32::try_from(config.n_layers).unwrap_or(0);
    let last = layers.end.checked_sub(1).map(|layer| Hook::block(layer, Site::ResidPost));
    if config.final_normalization == Normalization::None {
        names.extend(last.map(|last| ("unembed.hook_in", Source::Hook(last))));
    } else {
        let normed = Source::Normed(Hook::LnFinal(Norm::Normalized), "ln_final".to_owned());
        names.extend([("ln_final.hook_out", normed.clone()), ("unembed.hook_in", normed)]);
        names.extend(last.map(|last| ("ln_final.hook_in", Source::Hook(last))));
    }
    let owned = names.into_iter().map(|(name, source)| (name.to_owned(), source));
    let blocks = layers.flat_map(|layer| {
        let named = block(config, layer).into_iter();
        named.map(move |(name, source)| (format!("blocks.{layer}.{name}"), source))
    });
    owned.chain(blocks).collect()
}

/// The names within a block.
fn block(config: &Config, layer: u32) -> Vec<(&'static str, Source)> {
    let at = |site| Source::Hook(Hook::block(layer, site));
    let normed =
        |site, name| Source::Normed(Hook::block(layer, site), format!("blocks.{layer}.{name}"));
    let is_in_front = config.norm_position == NormPosition::Pre;
    let has_norm = config.normalization != Normalization::None && is_in_front;
    let per_head = |heads| Source::PerHead(Hook::block(layer, Site::ResidPre), heads);
    let (heads, grouped) = (config.n_heads, config.n_key_value_heads);
    let attn_in =
        if has_norm { normed(Site::Ln1(Norm::Normalized), "ln1") } else { at(Site::ResidPre) };
    let mut names = vec![
        ("hook_in", at(Site::ResidPre)),
        ("hook_q_input", per_head(heads)),
        ("hook_k_input", per_head(grouped)),
        ("hook_v_input", per_head(grouped)),
        ("attn.q.hook_out", at(Site::Q)),
        ("attn.k.hook_out", at(Site::K)),
        ("attn.v.hook_out", at(Site::V)),
        ("attn.o.hook_in", at(Site::Z)),
        ("hook_out", at(Site::ResidPost)),
    ];
    if heads == grouped {
        names.push(("hook_attn_in", per_head(heads)));
    }
    if config.positional != Positional::Shortformer {
        let readers = ["attn.hook_in", "attn.q.hook_in", "attn.k.hook_in", "attn.v.hook_in"];
        names.extend(readers.map(|name| (name, attn_in.clone())));
    }
    if let Positional::Rotary { .. } = config.positional {
        names.extend([("attn.hook_cos", Source::Cos), ("attn.hook_sin", Source::Sin)]);
    }
    if has_norm {
        names.extend([("ln1.hook_in", at(Site::ResidPre)), ("ln1.hook_out", attn_in)]);
    }
    if is_in_front {
        let out = ["attn.o.hook_out", "attn.hook_out", "attn.hook_hidden_states"];
        names.extend(out.map(|name| (name, at(Site::AttnOut))));
    }
    if config.attn_only {
        return names;
    }
    let resid = at(if config.parallel_attn_mlp { Site::ResidPre } else { Site::ResidMid });
    let mlp_in = if has_norm { normed(Site::Ln2(Norm::Normalized), "ln2") } else { resid.clone() };
    if has_norm {
        names.extend([("ln2.hook_in", resid.clone()), ("ln2.hook_out", mlp_in.clone())]);
    }
    names.extend([("hook_mlp_in", resid), ("mlp.hook_in", mlp_in.clone())]);
    if config.gated_mlp {
        names.extend([
            ("mlp.gate.hook_in", mlp_in.clone()),
            ("mlp.gate.hook_out", at(Site::MlpPre)),
            ("mlp.in.hook_out", at(Site::MlpPreLinear)),
        ]);
    } else {
        names.push(("mlp.in.hook_out", at(Site::MlpPre)));
    }
    names.extend([("mlp.in.hook_in", mlp_in), ("mlp.out.hook_in", at(Site::MlpPost))]);
    if is_in_front {
        names.extend(["mlp.out.hook_out", "mlp.hook_out"].map(|name| (name, at(Site::MlpOut))));
    }
    names
}
