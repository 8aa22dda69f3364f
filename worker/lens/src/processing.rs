//! Rewriting of weights into equivalent ones that are easier to read.
//!
//! [`process`] applies what a [`Processing`] names, in TransformerLens' order: fold norms into the maps
//! that read them, centre what writes to the residual stream, centre the unembedding, fold value biases.
//! The result computes the same log-probabilities; logits differ by a constant per position. Where a
//! step would change the model it is refused, not skipped: TransformerLens centres models whose final
//! norm is RMS, and changes their predictions.
//!
//! Source: `weight_processing.py` of TransformerLens 3.9 and its `further_comments.md`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    config::{ActFn, Config, NormPosition, Normalization, Positional},
    error::{Error, Result},
    weights::Weights,
};

/// Which steps to apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent steps with TransformerLens' names")]
pub struct Processing {
    /// Folds weights and biases of norms into the maps behind them; of centred norms, the rows of these
    /// maps are centred too, because nothing along the constant direction reaches them.
    pub fold_ln: bool,
    /// Removes the mean over `d_model` from everything that writes to the residual stream.
    pub center_writing_weights: bool,
    /// Removes the mean over the vocabulary from the unembedding.
    pub center_unembed: bool,
    /// Moves the biases of values into `b_O`: attention sums to one, so they are constant.
    pub fold_value_biases: bool,
}

impl Processing {
    /// Nothing: the weights as they were trained.
    pub const fn raw() -> Self {
        Processing {
            fold_ln: false,
            center_writing_weights: false,
            center_unembed: false,
            fold_value_biases: false,
        }
    }

    /// Everything, as TransformerLens does by default.
    pub const fn folded() -> Self {
        Processing {
            fold_ln: true,
            center_writing_weights: true,
            center_unembed: true,
            fold_value_biases: true,
        }
    }

    /// Every step that leaves a model of this configuration as it is.
    pub fn all_for(config: &Config) -> Self {
        Processing {
            fold_ln: refuse_fold_ln(config).is_none(),
            center_writing_weights: refuse_centering(config).is_none(),
            center_unembed: true,
            fold_value_biases: true,
        }
    }

    /// Reads what a sweep file asks for: `raw` (or nothing), `folded` (every step that leaves a model
    /// of this configuration as it is), or names joined by `+`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming an unknown step.
    pub fn parse(text: &str, config: &Config) -> Result<Self> {
        let mut wanted = Self::raw();
        match text {
            "" | "raw" => return Ok(wanted),
            "folded" => return Ok(Self::all_for(config)),
            _ => {}
        }
        for name in text.split('+') {
            match name {
                "fold_ln" => wanted.fold_ln = true,
                "center_writing_weights" => wanted.center_writing_weights = true,
                "center_unembed" => wanted.center_unembed = true,
                "fold_value_biases" => wanted.fold_value_biases = true,
                _ => return Err(Error::Unsupported(format!("weight processing `{name}`"))),
            }
        }
        Ok(wanted)
    }

    /// Names the steps, as results record them: `raw`, or `fold_ln+center_unembed`.
    pub fn label(self) -> String {
        let steps = [
            ("fold_ln", self.fold_ln),
            ("center_writing_weights", self.center_writing_weights),
            ("center_unembed", self.center_unembed),
            ("fold_value_biases", self.fold_value_biases),
        ];
        let names: Vec<&str> = steps.into_iter().filter(|step| step.1).map(|step| step.0).collect();
        if names.is_empty() { "raw".to_owned() } else { names.join("+") }
    }

    /// Checks that no step would change a model of this configuration.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the step and the reason.
    pub fn check(self, config: &Config) -> Result<()> {
        let refusals = [
            ("fold_ln", self.fold_ln, refuse_fold_ln(config)),
            ("center_writing_weights", self.center_writing_weights, refuse_centering(config)),
        ];
        for (step, is_wanted, refusal) in refusals {
            if let Some(reason) = refusal.filter(|_| is_wanted) {
                return Err(Error::Unsupported(format!("{step}: {reason}")));
            }
        }
        Ok(())
    }
}

/// Rewrites the weights of one model, or of a population.
///
/// The given weights stay as they are; tensors that no step concerns are shared with them. Half
/// precision is processed in f32 and rounded once.
///
/// # Errors
/// What [`Processing::check`] refuses; biases of values that are clipped; [`Error::MissingTensor`].
pub fn process(
    config: &Config,
    weights: &Weights,
    processing: &Processing,
) -> Result<(Config, Weights)> {
    processing.check(config)?;
    if *processing == Processing::raw() {
        return Ok((config.clone(), weights.shallow_clone()));
    }
    tch::no_grad(|| {
        let kind = weights.require("embed.W_E")?.kind();
        let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let mut editor = Editor { config, weights: weights.to_kind(wide) };
        if processing.fold_ln {
            editor.fold_ln()?;
        }
        if processing.center_writing_weights {
            editor.center_writing_weights()?;
        }
        if processing.center_unembed {
            editor.center("unembed.W_U", true)?;
            editor.center("unembed.b_U", false)?;
        }
        if processing.fold_value_biases {
            editor.fold_value_biases()?;
        }
        let config = if processing.fold_ln { folded_config(config) } else { config.clone() };
        Ok((config, editor.weights.to_kind(kind)))
    })
}

/// The configuration after norms have been folded.
fn folded_config(config: &Config) -> Config {
    let normalization = match config.norm_position {
        NormPosition::Pre => config.normalization.folded(),
        NormPosition::Post => config.normalization,
    };
    Config {
        normalization,
        final_normalization: config.final_normalization.folded(),
        ..config.clone()
    }
}

/// Whether blocks centre what they read and the final norm does not, or the other way round.
fn has_mixed_norms(config: &Config) -> bool {
    let (blocks, last) = (config.normalization, config.final_normalization);
    blocks != Normalization::None
        && last != Normalization::None
        && blocks.is_centered() != last.is_centered()
}

fn refuse_fold_ln(config: &Config) -> Option<&'static str> {
    if config.positional == Positional::Shortformer {
        return Some(
            "shortformer positions are added behind the norm, so its weight would scale them too",
        );
    }
    has_mixed_norms(config).then_some(
        "the blocks' norms and the final norm are of different kinds (final_rms), and folding as for \
         one kind changes the model",
    )
}

fn refuse_centering(config: &Config) -> Option<&'static str> {
    if config.positional == Positional::Shortformer {
        return Some("shortformer positions do not enter the residual stream");
    }
    if has_mixed_norms(config) {
        return Some(
            "one of the norms does not subtract the mean (final_rms), so it would see the change",
        );
    }
    let blocks_center = config.n_layers == 0
        || (config.normalization.is_centered() && config.norm_position == NormPosition::Pre);
    let all_center = blocks_center && config.final_normalization.is_centered();
    (!all_center).then_some(
        "only norms that subtract the mean, in front of every component, do not see the mean of the \
         residual stream; this model divides by the root mean square, or has no such norms",
    )
}

/// Weights while they are rewritten, in at least f32.
struct Editor<'a> {
    config: &'a Config,
    weights: Weights,
}

/// A map that reads what a norm returns.
struct Reader {
    /// Name in front of the parameters' letters.
    place: String,
    w: &'static str,
    b: &'static str,
    /// Whether the map has a head axis in front, `[head, d_in, d_out]`.
    has_heads: bool,
}

impl Editor<'_> {
    fn fold_ln(&mut self) -> Result<()> {
        let Config { n_layers, normalization, .. } = *self.config;
        let is_in_front = self.config.norm_position == NormPosition::Pre;
        for layer in (0..n_layers).filter(|_| is_in_front) {
            let block = format!("blocks.{layer}");
            let attn = |w, b| Reader { place: format!("{block}.attn."), w, b, has_heads: true };
            let readers = [attn("W_Q", "b_Q"), attn("W_K", "b_K"), attn("W_V", "b_V")];
            self.fold_norm(&format!("{block}.ln1"), normalization, &readers)?;
            if self.config.attn_only {
                continue;
            }
            let mlp = |w, b| Reader { place: format!("{block}.mlp."), w, b, has_heads: false };
            if self.config.gated_mlp {
                // b_in stands behind the gate, so what the norm's bias adds goes in front of it.
                let readers = [mlp("W_gate", "b_gate"), mlp("W_in", "b_pre_linear")];
                self.fold_norm(&format!("{block}.ln2"), normalization, &readers)?;
            } else {
                self.fold_norm(&format!("{block}.ln2"), normalization, &[mlp("W_in", "b_in")])?;
            }
            if self.config.act_fn == ActFn::SoluLn {
                let norm = self.config.mlp_normalization();
                self.fold_norm(&format!("{block}.mlp.ln"), norm, &[mlp("W_out", "b_out")])?;
            }
        }
        let unembed = Reader { place: "unembed.".to_owned(), w: "W_U", b: "b_U", has_heads: false };
        self.fold_norm("ln_final", self.config.final_normalization, &[unembed])
    }

    /// Moves the parameters of one norm into the maps that read it: with `n` the normalized input,
    /// `(w·n + b) W + b' = n (w·W) + (b W + b')`. The bias is multiplied by the unscaled map.
    fn fold_norm(
        &mut self,
        name: &str,
        normalization: Normalization,
        readers: &[Reader],
    ) -> Result<()> {
        if normalization == Normalization::None {
            return Ok(());
        }
        let norm_w = self.weights.remove(&format!("{name}.w"));
        let norm_b = self.weights.remove(&format!("{name}.b"));
        for reader in readers {
            let column = |x: &Tensor| {
                let x = if reader.has_heads { x.unsqueeze(-2) } else { x.shallow_clone() };
                x.unsqueeze(-1) // [(n_models,) (1,) d_in, 1]
            };
            let w_name = format!("{}{}", reader.place, reader.w);
            let w = self.weights.require(&w_name)?; // [(n_models,) (head,) d_in, d_out]
            let added = norm_b.as_ref().map(|norm_b| {
                (w * column(norm_b)).sum_dim_intlist(&[-2i64][..], false, None::<Kind>)
            });
            let w = match &norm_w {
                Some(norm_w) => w * column(norm_w),
                None => w.shallow_clone(),
            };
            let w = if normalization.is_centered() {
                // The normalized input sums to zero, so the mean of each output's weights is never used.
                &w - w.mean_dim(&[-2i64][..], true, None::<Kind>)
            } else {
                w
            };
            if let Some(added) = added {
                self.add(&format!("{}{}", reader.place, reader.b), added);
            }
            self.weights.insert(w_name, w);
        }
        Ok(())
    }

    fn center_writing_weights(&mut self) -> Result<()> {
        self.center("embed.W_E", true)?;
        if self.config.positional == Positional::Learned {
            self.center("pos_embed.W_pos", true)?;
        }
        for layer in 0..self.config.n_layers {
            self.center(&format!("blocks.{layer}.attn.W_O"), true)?;
            self.center(&format!("blocks.{layer}.attn.b_O"), false)?;
            if !self.config.attn_only {
                self.center(&format!("blocks.{layer}.mlp.W_out"), true)?;
                self.center(&format!("blocks.{layer}.mlp.b_out"), false)?;
            }
        }
        Ok(())
    }

    /// Removes the mean over the last axis; an optional tensor that is absent is zero, and centred.
    fn center(&mut self, name: &str, is_required: bool) -> Result<()> {
        let Some(tensor) = self.weights.get(name) else {
            return if is_required {
                Err(Error::MissingTensor { name: name.to_owned() })
            } else {
                Ok(())
            };
        };
        let centered = tensor - tensor.mean_dim(&[-1i64][..], true, None::<Kind>);
        self.weights.insert(name, centered);
        Ok(())
    }

    /// `b_O += Σ_head b_V W_O`, a value head serving `group` heads.
    fn fold_value_biases(&mut self) -> Result<()> {
        let group = self.config.n_heads / self.config.n_key_value_heads;
        for layer in 0..self.config.n_layers {
            let name = |part: &str| format!("blocks.{layer}.attn.{part}");
            let Some(b_v) = self.weights.remove(&name("b_V")) else { continue };
            if self.config.clip_qkv.is_some() {
                return Err(Error::Unsupported(format!(
                    "fold_value_biases: values are clipped after `{}` has been added",
                    name("b_V")
                )));
            }
            let b_v = b_v.repeat_interleave_self_int(group, -2, None); // [(n_models,) head, d_head]
            let w_o = self.weights.require(&name("W_O"))?; // [(n_models,) head, d_head, d_model]
            let constant =
                (b_v.unsqueeze(-1) * w_o).sum_dim_intlist(&[-3i64, -2][..], false, None::<Kind>);
            self.add(&name("b_O"), constant); // [(n_models,) d_model]
        }
        Ok(())
    }

    /// Adds to a bias, which is zero where it is absent.
    fn add(&mut self, name: &str, value: Tensor) {
        let sum = match self.weights.get(name) {
            Some(bias) => bias + value,
            None => value,
        };
        self.weights.insert(name, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_name_the_steps() {
        assert_eq!(Processing::raw().label(), "raw");
        assert_eq!(
            Processing::folded().label(),
            "fold_ln+center_writing_weights+center_unembed+fold_value_biases"
        );
        let some = Processing { fold_ln: true, fold_value_biases: true, ..Processing::raw() };
        assert_eq!(some.label(), "fold_ln+fold_value_biases");
        assert_eq!(Processing::default(), Processing::raw());
    }

    #[test]
    fn steps_that_would_change_a_model_are_refused_with_the_reason() {
        let toy = || Config::toy(1, 8, 2, 5, 4);
        let norms =
            |blocks, last| Config { normalization: blocks, final_normalization: last, ..toy() };
        let (ln, rms) = (Normalization::Ln, Normalization::Rms);
        let refused = |config: &Config, step: Processing, reason: &str| {
            let error = step.check(config).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        let fold_ln = Processing { fold_ln: true, ..Processing::raw() };
        let center = Processing { center_writing_weights: true, ..Processing::raw() };
        Processing::folded().check(&norms(ln, ln)).unwrap();
        for step in [fold_ln, center, Processing::folded()] {
            refused(&norms(ln, rms), step, "final_rms");
            let shortformer = Config { positional: Positional::Shortformer, ..norms(ln, ln) };
            refused(&shortformer, step, "shortformer");
        }
        fold_ln.check(&norms(rms, rms)).unwrap();
        refused(&norms(rms, rms), center, "root mean square");
        refused(&toy(), center, "no such norms");
        let post = Config { norm_position: NormPosition::Post, ..norms(ln, ln) };
        refused(&post, center, "in front of every component");
        for config in [norms(ln, ln), norms(rms, rms), norms(ln, rms), toy(), post] {
            Processing::all_for(&config).check(&config).unwrap();
        }
        assert_eq!(Processing::all_for(&norms(ln, ln)), Processing::folded());
        let llama = Processing { center_writing_weights: false, ..Processing::folded() };
        assert_eq!(Processing::all_for(&norms(rms, rms)), llama);
    }
}
