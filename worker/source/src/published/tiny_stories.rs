//! TinyStories models (GPT-Neo): final models only.

use super::{Model, Places, Schedule};

/// Repository after `roneneldan/`, TransformerLens alias. One name is misspelt on the hub.
const MODELS: [(&str, &str); 14] = [
    ("TinyStories-1M", "tiny-stories-1M"),
    ("TinyStories-3M", "tiny-stories-3M"),
    ("TinyStories-8M", "tiny-stories-8M"),
    ("TinyStories-28M", "tiny-stories-28M"),
    ("TinyStories-33M", "tiny-stories-33M"),
    ("TinyStories-1Layer-21M", "tiny-stories-1L-21M"),
    ("TinyStories-2Layers-33M", "tiny-stories-2L-33M"),
    ("TinyStories-Instruct-1M", "tiny-stories-instruct-1M"),
    ("TinyStories-Instruct-3M", "tiny-stories-instruct-3M"),
    ("TinyStories-Instruct-8M", "tiny-stories-instruct-8M"),
    ("TinyStories-Instruct-28M", "tiny-stories-instruct-28M"),
    ("TinyStories-Instruct-33M", "tiny-stories-instruct-33M"),
    ("TinyStories-Instuct-1Layer-21M", "tiny-stories-instruct-1L-21M"),
    ("TinyStories-Instruct-2Layers-33M", "tiny-stories-instruct-2L-33M"),
];

pub(super) fn models() -> Vec<Model> {
    MODELS
        .iter()
        .map(|(name, alias)| Model {
            name: (*alias).to_ascii_lowercase(),
            aliases: vec![(*name).to_owned()],
            repo: format!("roneneldan/{name}"),
            family: "gpt_neo",
            collection: "TinyStories",
            shape: None,
            schedule: Schedule::Final,
            places: Places::Main,
            prepend_bos: true,
            tokenizer: Some("EleutherAI/gpt-neo-125m"),
            trained_vocab: None,
            tokens_per_step: None,
            notes: vec!["attention is not scaled by the head size; local layers see 256 tokens"],
            defects: Vec::new(),
        })
        .collect()
}
