//! Which parameters a configuration has, by TransformerLens' names, and their shapes.
//!
//! [`Config::parameters`] is the one list: construction checks weights against it, and recipes draw
//! initial values from it. Biases are optional everywhere: an absent bias is zero and costs nothing.

use crate::config::{ActFn, Architecture, Config, Normalization, Positional};

/// One parameter tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// TransformerLens' name, for instance `blocks.0.attn.W_Q`.
    pub name: String,
    /// Shape without the model axis of a population.
    pub shape: Vec<i64>,
    /// Whether it may be absent, in which case it counts as zero.
    pub optional: bool,
    /// Whether it is the weight of a norm, which starts at 1 instead of being drawn at random.
    pub is_norm_weight: bool,
}

impl Config {
    /// Returns every parameter that a model of this configuration has or may have, in the order of the
    /// forward pass.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut list = List::default();
        if self.architecture == Architecture::Mlp {
            self.mlp_parameters(&mut list);
            return list.0;
        }
        list.required("embed.W_E", &[self.d_vocab, self.d_model]);
        match self.positional {
            Positional::Learned | Positional::Shortformer => {
                list.required("pos_embed.W_pos", &[self.n_ctx, self.d_model]);
            }
            Positional::Rotary { .. } | Positional::None => {}
        }
        for layer in 0..self.n_layers {
            self.block_parameters(layer, &mut list);
        }
        list.norm("ln_final", self.final_normalization, self.d_model);
        list.required("unembed.W_U", &[self.d_model, self.d_vocab_out]);
        list.optional("unembed.b_U", &[self.d_vocab_out]);
        list.0
    }

    /// The maps of a perceptron, from the inputs to the outputs.
    fn mlp_parameters(&self, list: &mut List) {
        for layer in 0..=self.n_layers {
            let d_in = if layer == 0 { self.d_vocab } else { self.d_mlp };
            let d_out = if layer == self.n_layers { self.d_vocab_out } else { self.d_mlp };
            list.required(&format!("layers.{layer}.W"), &[d_in, d_out]);
            list.optional(&format!("layers.{layer}.b"), &[d_out]);
        }
    }

    fn block_parameters(&self, layer: i64, list: &mut List) {
        let Config { d_model, n_heads, n_key_value_heads, d_head, d_mlp, .. } = *self;
        let block = format!("blocks.{layer}");
        list.norm(&format!("{block}.ln1"), self.normalization, d_model);
        list.required(&format!("{block}.attn.W_Q"), &[n_heads, d_model, d_head]);
        list.required(&format!("{block}.attn.W_K"), &[n_key_value_heads, d_model, d_head]);
        list.required(&format!("{block}.attn.W_V"), &[n_key_value_heads, d_model, d_head]);
        list.required(&format!("{block}.attn.W_O"), &[n_heads, d_head, d_model]);
        list.optional(&format!("{block}.attn.b_Q"), &[n_heads, d_head]);
        list.optional(&format!("{block}.attn.b_K"), &[n_key_value_heads, d_head]);
        list.optional(&format!("{block}.attn.b_V"), &[n_key_value_heads, d_head]);
        list.optional(&format!("{block}.attn.b_O"), &[d_model]);
        if self.qk_norm {
            list.norm(&format!("{block}.attn.q_norm"), Normalization::Rms, n_heads * d_head);
            list.norm(
                &format!("{block}.attn.k_norm"),
                Normalization::Rms,
                n_key_value_heads * d_head,
            );
        }
        if self.attn_only {
            return;
        }
        list.norm(&format!("{block}.ln2"), self.normalization, d_model);
        if self.gated_mlp {
            list.required(&format!("{block}.mlp.W_gate"), &[d_model, d_mlp]);
            list.optional(&format!("{block}.mlp.b_gate"), &[d_mlp]);
            list.optional(&format!("{block}.mlp.b_pre_linear"), &[d_mlp]);
        }
        list.required(&format!("{block}.mlp.W_in"), &[d_model, d_mlp]);
        list.optional(&format!("{block}.mlp.b_in"), &[d_mlp]);
        if self.act_fn == ActFn::SoluLn {
            list.norm(&format!("{block}.mlp.ln"), self.mlp_normalization(), d_mlp);
        }
        list.required(&format!("{block}.mlp.W_out"), &[d_mlp, d_model]);
        list.optional(&format!("{block}.mlp.b_out"), &[d_model]);
    }
}

#[derive(Default)]
struct List(Vec<Parameter>);

impl List {
    fn required(&mut self, name: &str, shape: &[i64]) {
        self.push(name, shape, false);
    }

    fn optional(&mut self, name: &str, shape: &[i64]) {
        self.push(name, shape, true);
    }

    fn norm(&mut self, name: &str, normalization: Normalization, width: i64) {
        match normalization {
            Normalization::Ln => {
                self.norm_weight(name, width);
                self.optional(&format!("{name}.b"), &[width]);
            }
            Normalization::Rms => self.norm_weight(name, width),
            Normalization::None | Normalization::LnPre | Normalization::RmsPre => {}
        }
    }

    fn norm_weight(&mut self, name: &str, width: i64) {
        self.0.push(Parameter {
            name: format!("{name}.w"),
            shape: vec![width],
            optional: false,
            is_norm_weight: true,
        });
    }

    fn push(&mut self, name: &str, shape: &[i64], optional: bool) {
        self.0.push(Parameter {
            name: name.to_owned(),
            shape: shape.to_vec(),
            optional,
            is_norm_weight: false,
        });
    }
}
