//! Path patching (D26): how a sender acts on receivers along paths through no other head.
//!
//! Main type: [`Paths`]. Pass A runs the new prompts and keeps what senders write, pass B the original ones. Pass C
//! runs the original prompts with every head held to pass B, but the sender as in pass A, and records what the
//! receivers read; pass D lets the receivers read that. With logits as receiver pass C is the last one. The direct
//! form takes the sender's change through the receiver's norm and weights instead, linear, past all MLPs too.
//!
//! Holding a head's queries, keys and values holds its mixed values, which is what is done here.

use std::collections::BTreeMap;

use sweep_lens::{Cache, Hook, Hooks, Kind, Norm, NormPosition, Normalization, Site, Tensor};

use super::{
    batch::{Batch, Meter, at},
    heads::Head,
};
use crate::error::Result;

/// What acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A head.
    Head(Head),
    /// The MLP of a block.
    Mlp(u32),
}

impl Sender {
    fn layer(self) -> u32 {
        match self {
            Self::Head(head) => head.layer,
            Self::Mlp(layer) => layer,
        }
    }
}

/// What is acted upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Receivers {
    /// The final residual stream.
    Logits,
    /// Some heads, by what they read: [`Site::Q`], [`Site::K`] or [`Site::V`].
    Heads(Vec<Head>, Site),
}

impl Receivers {
    /// Whether what happens in `layer` can reach one of them directly.
    fn is_behind(&self, layer: u32) -> bool {
        match self {
            Self::Logits => true,
            Self::Heads(heads, _) => heads.iter().any(|head| head.layer > layer),
        }
    }
}

/// Passes A and B over one batch.
pub(crate) struct Paths<'a> {
    meter: &'a Meter<'a>,
    batch: &'a Batch,
    /// Whether MLPs are held in pass C, besides the heads.
    freeze_mlps: bool,
    new: Cache,
    orig: Cache,
    /// Logit difference of pass B, f64 `[row]`.
    pub base: Tensor,
}

impl<'a> Paths<'a> {
    /// Runs passes A (on `new_tokens`) and B.
    pub(crate) fn new(
        meter: &'a Meter<'a>,
        batch: &'a Batch,
        new_tokens: &Tensor,
        freeze_mlps: bool,
    ) -> Self {
        let sends = |hook| matches!(hook, Hook::Block { site: Site::Z | Site::MlpOut, .. });
        let mut new = Cache::only(sends);
        meter.watch(new_tokens, &mut new);
        let mut orig = Cache::only(move |hook| match hook {
            Hook::LnFinal(Norm::Scale) => true,
            Hook::Block { site, .. } => {
                matches!(site, Site::Q | Site::K | Site::V | Site::Ln1(Norm::Scale)) || sends(hook)
            }
            _ => false,
        });
        let base = meter.logit_diff(batch, &batch.tokens, &mut orig);
        Self { meter, batch, freeze_mlps, new, orig, base }
    }

    /// Logit difference with the sender's new output on all paths to the receivers that pass no other head,
    /// f64 `[row]`.
    pub(crate) fn full(&self, sender: Sender, receivers: &Receivers) -> Tensor {
        if !receivers.is_behind(sender.layer()) {
            return self.base.shallow_clone();
        }
        let mut held = Held { paths: self, sender, receivers, read: BTreeMap::new() };
        let logit_diff = self.meter.logit_diff(self.batch, &self.batch.tokens, &mut held);
        match receivers {
            Receivers::Logits => logit_diff,
            Receivers::Heads(heads, _) => {
                let read = held.read;
                self.received(heads, read)
            }
        }
    }

    /// The same along the direct path only, linear in what the sender writes.
    pub(crate) fn direct(&self, sender: Sender, receivers: &Receivers) -> Result<Tensor> {
        if !receivers.is_behind(sender.layer()) {
            return Ok(self.base.shallow_clone());
        }
        let change = self.change(sender)?; // f64 [row, pos, d_model]
        let config = self.meter.model.config();
        let (heads, site) = match receivers {
            Receivers::Logits => {
                let scale = self.orig.get(Hook::LnFinal(Norm::Scale));
                let read = self.through("ln_final", config.final_normalization, scale, &change);
                let (direction, _) = self.meter.direction(self.batch);
                let end = at(&read, &self.batch.end_at);
                let effect = (end * direction).sum_dim_intlist(&[-1i64][..], false, Kind::Double);
                return Ok(&self.base + effect);
            }
            Receivers::Heads(heads, site) => (heads, *site),
        };
        let mut read = BTreeMap::new();
        for head in heads.iter().filter(|head| head.layer > sender.layer()) {
            let hook = Hook::block(head.layer, site);
            if read.contains_key(&hook) {
                continue;
            }
            let letter = match site {
                Site::K => "W_K",
                Site::V => "W_V",
                _ => "W_Q",
            };
            let block = format!("blocks.{}", head.layer);
            let w = self.meter.model.weights().require(&format!("{block}.attn.{letter}"))?;
            let w = w.to_kind(Kind::Double).transpose(0, 1); // [d_model, head, d_head]
            let input = if config.norm_position == NormPosition::Post {
                change.shallow_clone()
            } else {
                let scale = self.orig.get(Hook::block(head.layer, Site::Ln1(Norm::Scale)));
                self.through(&format!("{block}.ln1"), config.normalization, scale, &change)
            };
            let before = &self.orig[hook];
            let added = input.matmul(&w.flatten(1, 2)).view(before.size().as_slice());
            read.insert(hook, (before.to_kind(Kind::Double) + added).to_kind(before.kind()));
        }
        Ok(self.received(heads, read))
    }

    /// Pass D: the logit difference if receivers read what was recorded.
    fn received(&self, heads: &[Head], read: BTreeMap<Hook, Tensor>) -> Tensor {
        let mut hooks = Received { paths: self, heads, read };
        self.meter.logit_diff(self.batch, &self.batch.tokens, &mut hooks)
    }

    /// By how much what the sender writes to the residual stream changes, f64 `[row, pos, d_model]`.
    fn change(&self, sender: Sender) -> Result<Tensor> {
        let difference = |hook: Hook| {
            self.new[hook].to_kind(Kind::Double) - self.orig[hook].to_kind(Kind::Double)
        };
        let Head { layer, head } = match sender {
            Sender::Mlp(layer) => return Ok(difference(Hook::block(layer, Site::MlpOut))),
            Sender::Head(head) => head,
        };
        let config = self.meter.model.config();
        let w_o = self.meter.model.weights().require(&format!("blocks.{layer}.attn.W_O"))?;
        let z = difference(Hook::block(layer, Site::Z)).select(2, head);
        let written = z.matmul(&w_o.get(head).to_kind(Kind::Double));
        if config.norm_position == NormPosition::Pre {
            return Ok(written);
        }
        let scale = self.orig.get(Hook::block(layer, Site::Ln1(Norm::Scale)));
        Ok(self.through(&format!("blocks.{layer}.ln1"), config.normalization, scale, &written))
    }

    /// A change of a norm's input as a change of its output, with the scale of pass B.
    fn through(
        &self,
        norm: &str,
        kind: Normalization,
        scale: Option<&Tensor>,
        x: &Tensor,
    ) -> Tensor {
        let centered = if kind.is_centered() {
            x - x.mean_dim(&[-1i64][..], true, Kind::Double)
        } else {
            x.shallow_clone()
        };
        let scaled = match scale {
            Some(scale) => centered / scale.to_kind(Kind::Double),
            None => centered,
        };
        match self.meter.model.weights().get(&format!("{norm}.w")) {
            Some(w) => scaled * w.to_kind(Kind::Double),
            None => scaled,
        }
    }
}

/// Hooks of pass C.
struct Held<'p, 'a> {
    paths: &'p Paths<'a>,
    sender: Sender,
    receivers: &'p Receivers,
    /// What receivers' layers read.
    read: BTreeMap<Hook, Tensor>,
}

impl Hooks for Held<'_, '_> {
    fn wants(&self, hook: Hook) -> bool {
        let Hook::Block { layer, site } = hook else { return false };
        match (site, self.receivers) {
            (Site::Z, _) => true,
            (Site::MlpOut, _) => self.paths.freeze_mlps || self.sender == Sender::Mlp(layer),
            (_, Receivers::Heads(heads, read)) => {
                site == *read && heads.iter().any(|head| head.layer == layer)
            }
            (_, Receivers::Logits) => false,
        }
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        let Hook::Block { layer, site } = hook else { return activation };
        match site {
            Site::Z => match self.sender {
                Sender::Head(head) if head.layer == layer => {
                    let held = self.paths.orig[hook].copy();
                    held.select(2, head.head).copy_(&self.paths.new[hook].select(2, head.head));
                    held
                }
                _ => self.paths.orig[hook].shallow_clone(),
            },
            Site::MlpOut if self.sender == Sender::Mlp(layer) => {
                self.paths.new[hook].shallow_clone()
            }
            Site::MlpOut => self.paths.orig[hook].shallow_clone(),
            _ => {
                self.read.insert(hook, activation.shallow_clone());
                activation
            }
        }
    }
}

/// Hooks of pass D.
struct Received<'p, 'a> {
    paths: &'p Paths<'a>,
    heads: &'p [Head],
    read: BTreeMap<Hook, Tensor>,
}

impl Hooks for Received<'_, '_> {
    fn wants(&self, hook: Hook) -> bool {
        self.read.contains_key(&hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        let config = self.paths.meter.model.config();
        let is_query = hook.site() == Some(Site::Q);
        let changed = activation.copy();
        for head in self.heads.iter().filter(|head| hook.layer() == Some(head.layer)) {
            let index = if is_query { head.head } else { head.key_value(config) };
            changed.select(2, index).copy_(&self.read[&hook].select(2, index));
        }
        changed
    }
}
