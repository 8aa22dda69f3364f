//! AI2's OLMo and OLMo 2. Their revisions (`stage1-step101000-tokens424B`) are listed by the hub.

use super::{Defect, DefectKind, Model, Places, Schedule, Shape};

/// Name, repository, family, shape.
const MODELS: [(&str, &str, &str, Shape); 4] = [
    ("olmo-1b", "allenai/OLMo-1B-hf", "olmo", Shape { n_layers: 16, d_model: 2048, n_heads: 16 }),
    ("olmo-7b", "allenai/OLMo-7B-hf", "olmo", Shape { n_layers: 32, d_model: 4096, n_heads: 32 }),
    (
        "olmo-2-1b",
        "allenai/OLMo-2-0425-1B",
        "olmo2",
        Shape { n_layers: 16, d_model: 2048, n_heads: 16 },
    ),
    (
        "olmo-2-7b",
        "allenai/OLMo-2-1124-7B",
        "olmo2",
        Shape { n_layers: 32, d_model: 4096, n_heads: 32 },
    ),
];

const SCHEDULE: &str = "one revision per kept step of pre-training, as listed by the hub";

pub(super) fn models() -> Vec<Model> {
    MODELS
        .iter()
        .map(|(name, repo, family, shape)| Model {
            name: (*name).to_owned(),
            aliases: Vec::new(),
            repo: (*repo).to_owned(),
            family,
            collection: "AI2",
            shape: Some(*shape),
            schedule: Schedule::Hub(SCHEDULE),
            places: Places::Listed,
            prepend_bos: false,
            tokenizer: None,
            trained_vocab: None,
            tokens_per_step: None,
            notes: vec![
                "revisions of later stages (stage2-…) are trainings of their own: name one \
                         with hub:REPO@REVISION",
            ],
            defects: defects(name),
        })
        .collect()
}

fn defects(name: &str) -> Vec<Defect> {
    if name != "olmo-2-7b" {
        return Vec::new();
    }
    vec![Defect {
        kind: DefectKind::Wrong,
        steps: vec![101_000, 175_000, 300_000],
        text: "three revisions of stage 1 serve byte-identical weights; which step they are is \
               unknown"
            .to_owned(),
        source: "allenai/OLMo#915",
    }]
}
