//! What may be permuted without changing the function a model computes (D34, D34t).
//!
//! Main type: [`Symmetries`], read off a configuration. Absent biases are listed; whoever applies a permutation
//! skips tensors that the model lacks.

use sweep_lens::{Architecture, Config, Positional, Tensor, Weights};

/// One axis of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Tensor name.
    pub tensor: String,
    /// Axis that is permuted.
    pub axis: i64,
}

/// One permutation and all the places it acts on together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symmetry {
    /// `residual`, or `neurons.l`.
    pub name: String,
    /// Number of units.
    pub size: i64,
    /// Where they are.
    pub places: Vec<Place>,
}

/// Heads of one layer: they can change places, and each has a basis of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSymmetry {
    /// Block.
    pub layer: i64,
    /// Whether queries and keys may be rotated together; rotary positions mix pairs of components.
    pub rotates_queries: bool,
}

/// Everything that may be permuted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symmetries {
    /// Plain permutations.
    pub permutations: Vec<Symmetry>,
    /// Heads; none where query heads share keys and values, or a norm.
    pub heads: Vec<HeadSymmetry>,
}

impl Symmetries {
    /// The symmetries of an architecture.
    pub fn of(config: &Config) -> Self {
        match config.architecture {
            Architecture::Mlp => Self::of_perceptron(config),
            Architecture::Transformer => Self::of_transformer(config),
        }
    }

    fn of_perceptron(config: &Config) -> Self {
        let permutations = (0..config.n_layers)
            .map(|layer| Symmetry {
                name: format!("neurons.{layer}"),
                size: config.d_mlp,
                places: vec![
                    place(format!("layers.{layer}.W"), 1),
                    place(format!("layers.{layer}.b"), 0),
                    place(format!("layers.{}.W", layer + 1), 0),
                ],
            })
            .collect();
        Self { permutations, heads: Vec::new() }
    }

    fn of_transformer(config: &Config) -> Self {
        let mut residual = vec![
            place("embed.W_E".to_owned(), 1),
            place("pos_embed.W_pos".to_owned(), 1),
            place("ln_final.w".to_owned(), 0),
            place("ln_final.b".to_owned(), 0),
            place("unembed.W_U".to_owned(), 0),
        ];
        let mut permutations = Vec::new();
        for layer in 0..config.n_layers {
            let name = |part: &str| format!("blocks.{layer}.{part}");
            residual.extend(["ln1.w", "ln1.b", "ln2.w", "ln2.b"].map(|part| place(name(part), 0)));
            residual
                .extend(["W_Q", "W_K", "W_V"].map(|part| place(name(&format!("attn.{part}")), 1)));
            residual.extend([
                place(name("attn.W_O"), 2),
                place(name("attn.b_O"), 0),
                place(name("mlp.W_in"), 0),
                place(name("mlp.W_gate"), 0),
                place(name("mlp.W_out"), 1),
                place(name("mlp.b_out"), 0),
            ]);
            if !config.attn_only {
                let columns = ["mlp.W_in", "mlp.W_gate"].map(|part| place(name(part), 1));
                let vectors =
                    ["mlp.b_in", "mlp.b_gate", "mlp.b_pre_linear", "mlp.ln.w", "mlp.ln.b"]
                        .map(|part| place(name(part), 0));
                let rows = [place(name("mlp.W_out"), 0)];
                permutations.push(Symmetry {
                    name: format!("neurons.{layer}"),
                    size: config.d_mlp,
                    places: columns.into_iter().chain(vectors).chain(rows).collect(),
                });
            }
        }
        permutations.insert(
            0,
            Symmetry { name: "residual".to_owned(), size: config.d_model, places: residual },
        );
        let rotates_queries = !matches!(config.positional, Positional::Rotary { .. });
        // A norm over the queries of all heads ties them to each other.
        let heads = if config.n_key_value_heads == config.n_heads && !config.qk_norm {
            (0..config.n_layers).map(|layer| HeadSymmetry { layer, rotates_queries }).collect()
        } else {
            Vec::new()
        };
        Self { permutations, heads }
    }
}

fn place(tensor: String, axis: i64) -> Place {
    Place { tensor, axis }
}

impl Symmetry {
    /// Puts unit `order[i]` at place i, wherever the units are.
    pub fn permute(&self, weights: &mut Weights, order: &[i64]) {
        for place in &self.places {
            if let Some(tensor) = weights.get(&place.tensor) {
                let index = Tensor::from_slice(order).to_device(tensor.device());
                let permuted = tensor.index_select(place.axis, &index);
                weights.insert(place.tensor.clone(), permuted);
            }
        }
    }

    /// Inner product of every unit of `a` with every unit of `b`, over all places: f64 `[size, size]`.
    pub(crate) fn similarity(&self, a: &Weights, b: &Weights) -> Tensor {
        let options = (sweep_lens::Kind::Double, sweep_lens::Device::Cpu);
        let mut total = Tensor::zeros([self.size, self.size], options);
        for place in &self.places {
            if let (Some(a), Some(b)) = (a.get(&place.tensor), b.get(&place.tensor)) {
                let units =
                    |tensor: &Tensor| tensor.transpose(0, place.axis).reshape([self.size, -1]);
                total += units(a).matmul(&units(b).transpose(0, 1));
            }
        }
        total
    }
}
