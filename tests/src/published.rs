//! Somebody else's checkpoints, for tests: folders as the Hugging Face libraries write them, with
//! made-up weights that drift with the step. Written without any tensor library.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

/// Width, vocabulary, positions, layers and heads of the models.
const D_MODEL: usize = 16;
const VOCABULARY: usize = 23;
const POSITIONS: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 2;

/// Writes `config.json` and `model.safetensors` of a tiny GPT-2 at `step` of its training.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_gpt2(folder: &Path, step: u64) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let config = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "n_embd": D_MODEL, "vocab_size": VOCABULARY, "n_positions": POSITIONS,
        "n_layer": LAYERS, "n_head": HEADS,
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = gpt2_shapes()
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let values = values(index, shape.iter().product(), step, name.contains("ln_"));
            (name, shape, values)
        })
        .collect();
    let mut views = BTreeMap::new();
    for (name, shape, bytes) in &tensors {
        views.insert(name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes)?);
    }
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    fs::write(folder.join("model.safetensors"), safetensors::serialize(&views, metadata)?)?;
    Ok(())
}

fn gpt2_shapes() -> Vec<(String, Vec<usize>)> {
    let d = D_MODEL;
    let mut shapes = vec![
        ("wte.weight".to_owned(), vec![VOCABULARY, d]),
        ("wpe.weight".to_owned(), vec![POSITIONS, d]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("ln_1.weight", vec![d]),
            ("ln_1.bias", vec![d]),
            ("attn.c_attn.weight", vec![d, 3 * d]),
            ("attn.c_attn.bias", vec![3 * d]),
            ("attn.c_proj.weight", vec![d, d]),
            ("attn.c_proj.bias", vec![d]),
            ("ln_2.weight", vec![d]),
            ("ln_2.bias", vec![d]),
            ("mlp.c_fc.weight", vec![d, 4 * d]),
            ("mlp.c_fc.bias", vec![4 * d]),
            ("mlp.c_proj.weight", vec![4 * d, d]),
            ("mlp.c_proj.bias", vec![d]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    shapes.extend([("ln_f.weight".to_owned(), vec![d]), ("ln_f.bias".to_owned(), vec![d])]);
    shapes
}

/// Pseudo-random values that move along a straight line with the step.
fn values(tensor: usize, count: usize, step: u64, is_norm: bool) -> Vec<u8> {
    let wave = |index: usize, salt: f64| ((index as f64 + 1.0) * salt + tensor as f64).sin();
    let value = |index| {
        let start = wave(index, 12.9898) * 0.2;
        let drift = wave(index, 78.233) * 0.002 * step as f64;
        let base = if is_norm { 1.0 } else { 0.0 };
        (base + start + drift) as f32
    };
    (0..count).flat_map(|index| value(index).to_le_bytes()).collect()
}
