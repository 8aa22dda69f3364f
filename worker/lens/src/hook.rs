//! Typed names of activations; they print and parse as TransformerLens' strings.
//!
//! A [`Hook`] that can be written down exists in some model; which ones a given model fires, and in
//! which order, [`Config::hooks`] says. Shapes are TransformerLens' (with a leading model axis in a
//! population); [`Hook::head_axis`] and [`Hook::position_axis`] count axes from the end, so that they
//! hold with and without it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    config::{ActFn, Architecture, Config, NormPosition, Normalization, Positional},
    error::Error,
};

/// A named activation, for instance `blocks.5.attn.hook_z`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Hook {
    /// Token embedding, `[batch, pos, d_model]`.
    Embed,
    /// Positional embedding, `[batch, pos, d_model]`.
    PosEmbed,
    /// An activation inside a block.
    Block {
        /// Index of the block.
        layer: u32,
        /// Which of its activations.
        site: Site,
    },
    /// The norm in front of the unembedding.
    LnFinal(Norm),
}

/// An activation inside a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Site {
    /// Residual stream at the block's input, `[batch, pos, d_model]`.
    ResidPre,
    /// Norm in front of attention, or behind it.
    Ln1(Norm),
    /// Queries, `[batch, pos, head, d_head]`.
    Q,
    /// Keys, `[batch, pos, key_value_head, d_head]`.
    K,
    /// Values, `[batch, pos, key_value_head, d_head]`.
    V,
    /// Norm of the queries, over all heads together; the quotient is `[batch, pos, head * d_head]`.
    QNorm(Norm),
    /// Norm of the keys, over all heads together; the quotient is `[batch, pos, key_value_head * d_head]`.
    KNorm(Norm),
    /// Queries after rotation, `[batch, pos, head, d_head]`.
    RotQ,
    /// Keys after rotation, `[batch, pos, key_value_head, d_head]`.
    RotK,
    /// Scaled and masked scores before the softmax, `[batch, head, query, key]`; masked ones are `-inf`.
    AttnScores,
    /// Attention probabilities, `[batch, head, query, key]`.
    Pattern,
    /// Mixed values, `[batch, pos, head, d_head]`.
    Z,
    /// What each head writes, without `b_O`, `[batch, pos, head, d_model]`.
    Result,
    /// What attention adds to the residual stream, `[batch, pos, d_model]`.
    AttnOut,
    /// Residual stream between attention and MLP, `[batch, pos, d_model]`.
    ResidMid,
    /// Norm in front of the MLP, or behind it.
    Ln2(Norm),
    /// Neurons before the non-linearity (the gate, when there is one), `[batch, pos, d_mlp]`.
    MlpPre,
    /// The factor that the gate multiplies, `[batch, pos, d_mlp]`.
    MlpPreLinear,
    /// Neurons of a SoLU MLP between activation and norm, `[batch, pos, d_mlp]`.
    MlpMid,
    /// The norm inside a SoLU MLP.
    MlpLn(Norm),
    /// Neurons after the non-linearity, `[batch, pos, d_mlp]`.
    MlpPost,
    /// What the MLP adds to the residual stream, `[batch, pos, d_model]`.
    MlpOut,
    /// Residual stream at the block's output, `[batch, pos, d_model]`.
    ResidPost,
}

/// The two activations of a norm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Norm {
    /// What the input is divided by, `[batch, pos, 1]`.
    Scale,
    /// The quotient, before the norm's weight and bias, `[batch, pos, d_model]`.
    Normalized,
}

impl Hook {
    /// Names an activation of a block.
    pub const fn block(layer: u32, site: Site) -> Self {
        Hook::Block { layer, site }
    }

    /// Returns the block that the activation belongs to, if it belongs to one.
    pub const fn layer(self) -> Option<u32> {
        match self {
            Hook::Block { layer, .. } => Some(layer),
            Hook::Embed | Hook::PosEmbed | Hook::LnFinal(_) => None,
        }
    }

    /// Returns which activation of a block it is, if it belongs to one.
    pub const fn site(self) -> Option<Site> {
        match self {
            Hook::Block { site, .. } => Some(site),
            Hook::Embed | Hook::PosEmbed | Hook::LnFinal(_) => None,
        }
    }

    /// Returns the axis that counts heads, from the end, if there is one.
    pub const fn head_axis(self) -> Option<i64> {
        match self.site() {
            Some(
                Site::Q | Site::K | Site::V | Site::RotQ | Site::RotK | Site::Z | Site::Result,
            ) => Some(-2),
            Some(Site::AttnScores | Site::Pattern) => Some(-3),
            _ => None,
        }
    }

    /// Returns the axis that counts positions (of the query, for scores and patterns), from the end.
    pub const fn position_axis(self) -> i64 {
        match self.site() {
            Some(
                Site::Q | Site::K | Site::V | Site::RotQ | Site::RotK | Site::Z | Site::Result,
            ) => -3,
            _ => -2,
        }
    }
}

impl Config {
    /// Returns every activation that a model of this configuration passes to its hooks, in order.
    pub fn hooks(&self) -> Vec<Hook> {
        if self.architecture == Architecture::Mlp {
            return self.mlp_hooks();
        }
        let mut hooks = vec![Hook::Embed];
        match self.positional {
            Positional::Learned | Positional::Shortformer => hooks.push(Hook::PosEmbed),
            Positional::Rotary { .. } | Positional::None => {}
        }
        let sites = self.sites();
        for layer in 0..u32::try_from(self.n_layers).unwrap_or(0) {
            hooks.extend(sites.iter().map(|&site| Hook::block(layer, site)));
        }
        if self.final_normalization != Normalization::None {
            hooks.extend([Hook::LnFinal(Norm::Scale), Hook::LnFinal(Norm::Normalized)]);
        }
        hooks
    }

    /// Hidden layers of a perceptron count as blocks.
    fn mlp_hooks(&self) -> Vec<Hook> {
        let mut sites = vec![Site::MlpPre];
        if self.normalization != Normalization::None {
            sites.extend([Site::MlpMid, Site::MlpLn(Norm::Scale), Site::MlpLn(Norm::Normalized)]);
        }
        sites.push(Site::MlpPost);
        let layers = 0..u32::try_from(self.n_layers).unwrap_or(0);
        let of_layer = |layer| sites.iter().map(move |&site| Hook::block(layer, site));
        layers.flat_map(of_layer).collect()
    }

    fn sites(&self) -> Vec<Site> {
        let has_norm = self.normalization != Normalization::None;
        let (before, behind) = match self.norm_position {
            NormPosition::Pre => (has_norm, false),
            NormPosition::Post => (false, has_norm),
        };
        let ln1 = [Site::Ln1(Norm::Scale), Site::Ln1(Norm::Normalized)];
        let ln2 = [Site::Ln2(Norm::Scale), Site::Ln2(Norm::Normalized)];
        let if_any = |sites: [Site; 2], present: bool| sites.into_iter().filter(move |_| present);
        let mut sites = vec![Site::ResidPre];
        sites.extend(if_any(ln1, before));
        sites.extend([Site::Q, Site::K, Site::V]);
        if self.qk_norm {
            sites.extend([Site::QNorm(Norm::Scale), Site::QNorm(Norm::Normalized)]);
            sites.extend([Site::KNorm(Norm::Scale), Site::KNorm(Norm::Normalized)]);
        }
        if let Positional::Rotary { .. } = self.positional {
            sites.extend([Site::RotQ, Site::RotK]);
        }
        sites.extend([Site::AttnScores, Site::Pattern, Site::Z, Site::Result]);
        sites.extend(if_any(ln1, behind));
        sites.push(Site::AttnOut);
        if self.attn_only {
            sites.push(Site::ResidPost);
            return sites;
        }
        if !self.parallel_attn_mlp {
            sites.push(Site::ResidMid);
        }
        sites.extend(if_any(ln2, before));
        sites.push(Site::MlpPre);
        if self.gated_mlp {
            sites.push(Site::MlpPreLinear);
        }
        if self.act_fn == ActFn::SoluLn {
            sites.extend([Site::MlpMid, Site::MlpLn(Norm::Scale), Site::MlpLn(Norm::Normalized)]);
        }
        sites.push(Site::MlpPost);
        sites.extend(if_any(ln2, behind));
        sites.extend([Site::MlpOut, Site::ResidPost]);
        sites
    }
}

impl Site {
    /// Every site, in the order of the forward pass (with norms in front).
    pub const ALL: [Site; 28] = [
        Site::ResidPre,
        Site::Ln1(Norm::Scale),
        Site::Ln1(Norm::Normalized),
        Site::Q,
        Site::K,
        Site::V,
        Site::QNorm(Norm::Scale),
        Site::QNorm(Norm::Normalized),
        Site::KNorm(Norm::Scale),
        Site::KNorm(Norm::Normalized),
        Site::RotQ,
        Site::RotK,
        Site::AttnScores,
        Site::Pattern,
        Site::Z,
        Site::Result,
        Site::AttnOut,
        Site::ResidMid,
        Site::Ln2(Norm::Scale),
        Site::Ln2(Norm::Normalized),
        Site::MlpPre,
        Site::MlpPreLinear,
        Site::MlpMid,
        Site::MlpLn(Norm::Scale),
        Site::MlpLn(Norm::Normalized),
        Site::MlpPost,
        Site::MlpOut,
        Site::ResidPost,
    ];

    /// Returns the part of the name behind `blocks.{layer}.`.
    const fn name(self) -> &'static str {
        match self {
            Site::ResidPre => "hook_resid_pre",
            Site::Ln1(Norm::Scale) => "ln1.hook_scale",
            Site::Ln1(Norm::Normalized) => "ln1.hook_normalized",
            Site::Q => "attn.hook_q",
            Site::K => "attn.hook_k",
            Site::V => "attn.hook_v",
            Site::QNorm(Norm::Scale) => "attn.q_norm.hook_scale",
            Site::QNorm(Norm::Normalized) => "attn.q_norm.hook_normalized",
            Site::KNorm(Norm::Scale) => "attn.k_norm.hook_scale",
            Site::KNorm(Norm::Normalized) => "attn.k_norm.hook_normalized",
            Site::RotQ => "attn.hook_rot_q",
            Site::RotK => "attn.hook_rot_k",
            Site::AttnScores => "attn.hook_attn_scores",
            Site::Pattern => "attn.hook_pattern",
            Site::Z => "attn.hook_z",
            Site::Result => "attn.hook_result",
            Site::AttnOut => "hook_attn_out",
            Site::ResidMid => "hook_resid_mid",
            Site::Ln2(Norm::Scale) => "ln2.hook_scale",
            Site::Ln2(Norm::Normalized) => "ln2.hook_normalized",
            Site::MlpPre => "mlp.hook_pre",
            Site::MlpPreLinear => "mlp.hook_pre_linear",
            Site::MlpMid => "mlp.hook_mid",
            Site::MlpLn(Norm::Scale) => "mlp.ln.hook_scale",
            Site::MlpLn(Norm::Normalized) => "mlp.ln.hook_normalized",
            Site::MlpPost => "mlp.hook_post",
            Site::MlpOut => "hook_mlp_out",
            Site::ResidPost => "hook_resid_post",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hook::Embed => f.write_str("hook_embed"),
            Hook::PosEmbed => f.write_str("hook_pos_embed"),
            Hook::Block { layer, site } => write!(f, "blocks.{layer}.{}", site.name()),
            Hook::LnFinal(Norm::Scale) => f.write_str("ln_final.hook_scale"),
            Hook::LnFinal(Norm::Normalized) => f.write_str("ln_final.hook_normalized"),
        }
    }
}

impl FromStr for Hook {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::UnknownHook(text.to_owned());
        let Some(rest) = text.strip_prefix("blocks.") else {
            return [
                Hook::Embed,
                Hook::PosEmbed,
                Hook::LnFinal(Norm::Scale),
                Hook::LnFinal(Norm::Normalized),
            ]
            .into_iter()
            .find(|hook| hook.to_string() == text)
            .ok_or_else(unknown);
        };
        let (layer, name) = rest.split_once('.').ok_or_else(unknown)?;
        // `u32::from_str` takes "+1" and "01" as well; a name has one spelling only.
        let layer =
            layer.parse().ok().filter(|n: &u32| n.to_string() == layer).ok_or_else(unknown)?;
        let site = Site::ALL.into_iter().find(|site| site.name() == name).ok_or_else(unknown)?;
        Ok(Hook::Block { layer, site })
    }
}

impl Serialize for Hook {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hook {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let mut hooks = vec![Hook::Embed, Hook::PosEmbed];
        hooks.extend([Norm::Scale, Norm::Normalized].map(Hook::LnFinal));
        for layer in [0, 7, 31, u32::MAX] {
            hooks.extend(Site::ALL.map(|site| Hook::block(layer, site)));
        }
        for hook in hooks {
            assert_eq!(hook.to_string().parse::<Hook>().unwrap(), hook);
            let json = serde_json::to_string(&hook).unwrap();
            assert_eq!(serde_json::from_str::<Hook>(&json).unwrap(), hook);
        }
        assert_eq!(Hook::block(5, Site::Z).to_string(), "blocks.5.attn.hook_z");
        assert_eq!(
            "blocks.11.ln2.hook_scale".parse::<Hook>().unwrap(),
            Hook::block(11, Site::Ln2(Norm::Scale))
        );
    }

    #[test]
    fn other_texts_are_refused_by_name() {
        for text in [
            "",
            "hook_z",
            "blocks.",
            "blocks.1",
            "blocks.x.attn.hook_z",
            "blocks.+1.attn.hook_z",
            "blocks.01.attn.hook_z",
            "blocks.-1.attn.hook_z",
            "blocks.4294967296.attn.hook_z",
            "blocks.1.attn.hook_z ",
            "blocks.1.attn.hook_zz",
        ] {
            let error = text.parse::<Hook>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}
