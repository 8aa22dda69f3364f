//! Stanford CRFM's GPT-2 runs ("Mistral"): five seeds of two sizes, 609 revisions each.
//!
//! Source: the `mistral` repository's README and model list; the revisions on the hub.

use super::{Model, Places, Schedule, Shape};

const SMALL: Shape = Shape { n_layers: 12, d_model: 768, n_heads: 12 };
const MEDIUM: Shape = Shape { n_layers: 24, d_model: 1024, n_heads: 16 };

/// Name, letter in TransformerLens, and its further aliases there.
const SMALL_RUNS: [(&str, &[&str]); 5] = [
    (
        "alias-gpt2-small-x21",
        &["stanford-gpt2-small-a", "gpt2-mistral-small-a", "gpt2-stanford-small-a"],
    ),
    (
        "battlestar-gpt2-small-x49",
        &["stanford-gpt2-small-b", "gpt2-mistral-small-b", "gpt2-stanford-small-b"],
    ),
    (
        "caprica-gpt2-small-x81",
        &["stanford-gpt2-small-c", "gpt2-mistral-small-c", "gpt2-stanford-small-c"],
    ),
    (
        "darkmatter-gpt2-small-x343",
        &["stanford-gpt2-small-d", "gpt2-mistral-small-d", "gpt2-stanford-small-d"],
    ),
    (
        "expanse-gpt2-small-x777",
        &["stanford-gpt2-small-e", "gpt2-mistral-small-e", "gpt2-stanford-small-e"],
    ),
];

const MEDIUM_RUNS: [(&str, &[&str]); 5] = [
    (
        "arwen-gpt2-medium-x21",
        &["stanford-gpt2-medium-a", "gpt2-medium-small-a", "gpt2-stanford-medium-a"],
    ),
    (
        "beren-gpt2-medium-x49",
        &["stanford-gpt2-medium-b", "gpt2-medium-small-b", "gpt2-stanford-medium-b"],
    ),
    (
        "celebrimbor-gpt2-medium-x81",
        &["stanford-gpt2-medium-c", "gpt2-medium-small-c", "gpt2-stanford-medium-c"],
    ),
    (
        "durin-gpt2-medium-x343",
        &["stanford-gpt2-medium-d", "gpt2-medium-small-d", "gpt2-stanford-medium-d"],
    ),
    (
        "eowyn-gpt2-medium-x777",
        &["stanford-gpt2-medium-e", "gpt2-medium-small-e", "gpt2-stanford-medium-e"],
    ),
];

pub(super) fn models() -> Vec<Model> {
    let small = SMALL_RUNS.iter().map(|run| (run, SMALL));
    let medium = MEDIUM_RUNS.iter().map(|run| (run, MEDIUM));
    let model = |((name, aliases), shape): (&(&str, &[&str]), Shape)| Model {
        name: (*name).to_owned(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        repo: format!("stanford-crfm/{name}"),
        family: "gpt2",
        collection: "Stanford CRFM",
        shape: Some(shape),
        schedule: Schedule::crfm(),
        places: Places::Revisions { prefix: "checkpoint-" },
        prepend_bos: true,
        tokenizer: None,
        trained_vocab: None,
        // 512 sequences of 1024 tokens
        tokens_per_step: Some(524_288),
        notes: vec![
            "attention scores are divided by the layer's number (scale_attn_by_inverse_layer_idx)",
            "step 0 is stored in float32, all others in float16",
        ],
        defects: Vec::new(),
    };
    small.chain(medium).map(model).collect()
}
