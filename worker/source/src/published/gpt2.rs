//! OpenAI's GPT-2: final models only.

use super::{Model, Places, Schedule, Shape};

/// Name, TransformerLens alias, layers, width, heads.
const SIZES: [(&str, &[&str], u32, u32, u32); 4] = [
    ("gpt2", &["gpt2-small"], 12, 768, 12),
    ("gpt2-medium", &[], 24, 1024, 16),
    ("gpt2-large", &[], 36, 1280, 20),
    ("gpt2-xl", &[], 48, 1600, 25),
];

pub(super) fn models() -> Vec<Model> {
    SIZES
        .iter()
        .map(|(name, aliases, n_layers, d_model, n_heads)| Model {
            name: (*name).to_owned(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            repo: format!("openai-community/{name}"),
            family: "gpt2",
            collection: "OpenAI",
            shape: Some(Shape { n_layers: *n_layers, d_model: *d_model, n_heads: *n_heads }),
            schedule: Schedule::Final,
            places: Places::Main,
            prepend_bos: true,
            tokenizer: None,
            trained_vocab: None,
            tokens_per_step: None,
            notes: Vec::new(),
            defects: Vec::new(),
        })
        .collect()
}
