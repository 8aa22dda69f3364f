//! EleutherAI's Pythia suites and PolyPythias: one revision `step<N>` per checkpoint.
//!
//! Sources: the `pythia` repository's README and issues, arXiv 2503.09543 (PolyPythias).

use super::{Defect, DefectKind, Model, Places, Schedule, Shape};

/// Size, its name before January 2023, layers, width, heads.
const SIZES: [(&str, &str, u32, u32, u32); 10] = [
    ("14m", "", 6, 128, 4),
    ("31m", "", 6, 256, 8),
    ("70m", "19m", 6, 512, 8),
    ("160m", "125m", 12, 768, 12),
    ("410m", "350m", 24, 1024, 16),
    ("1b", "800m", 16, 2048, 8),
    ("1.4b", "1.3b", 24, 2048, 16),
    ("2.8b", "2.7b", 32, 2560, 32),
    ("6.9b", "6.7b", 32, 4096, 32),
    ("12b", "13b", 36, 5120, 40),
];

/// Sizes that were trained with other seeds.
const SEEDED: [&str; 5] = ["14m", "31m", "70m", "160m", "410m"];

/// The seeded repositories may hold nothing in their main revision, not even a tokenizer.
const SEED_TOKENIZER: &str = "EleutherAI/pythia-70m";

/// The tokenizer has 50 277 tokens; the rows above are padding.
const TRAINED_VOCAB: u32 = 50_277;

/// 1024 sequences of 2048 tokens.
const TOKENS_PER_STEP: u64 = 2_097_152;

const MAIN_NOTE: &str =
    "the main revision may hold no weights: a checkpoint has to be named by its step";
const V0_NOTE: &str = "the first suite, replaced in April 2023";
const V0_BATCH_NOTE: &str =
    "trained with batches of 4 194 304 tokens: label N is optimizer step N/2 (tokens as labelled)";

pub(super) fn models() -> Vec<Model> {
    let mut models = Vec::new();
    for size in &SIZES {
        for suffix in ["", "-deduped"] {
            models.push(model(size, suffix));
        }
    }
    for size in SIZES.iter().filter(|(_, old, ..)| !old.is_empty()) {
        for suffix in ["-v0", "-deduped-v0"] {
            models.push(model(size, suffix));
        }
    }
    for size in SIZES.iter().filter(|(name, ..)| SEEDED.contains(name)) {
        for seed in 1..=9 {
            models.push(model(size, &format!("-seed{seed}")));
        }
        if size.0 == "160m" {
            for seed in 1..=3 {
                models.push(model(size, &format!("-data-seed{seed}")));
                models.push(model(size, &format!("-weight-seed{seed}")));
            }
        }
    }
    models
}

fn model(size: &(&str, &str, u32, u32, u32), suffix: &str) -> Model {
    let (size, old, n_layers, d_model, n_heads) = *size;
    let (v0, seed) = (suffix.ends_with("v0"), suffix.contains("seed"));
    let name = format!("pythia-{size}{suffix}");
    let mut aliases = Vec::new();
    if !old.is_empty() {
        aliases.push(format!("pythia-{old}{suffix}"));
        aliases.push(format!("EleutherAI/pythia-{old}{suffix}"));
    }
    // TransformerLens' short names of the smallest model.
    if size == "70m" && matches!(suffix, "" | "-v0") {
        aliases.push(format!("pythia{suffix}"));
    }
    let mut notes = Vec::new();
    if v0 {
        notes.push(V0_NOTE);
        if matches!(size, "160m" | "410m" | "1.4b") {
            notes.push(V0_BATCH_NOTE);
        }
    }
    if seed {
        notes.push(MAIN_NOTE);
    }
    Model {
        repo: format!("EleutherAI/{name}"),
        defects: if v0 { Vec::new() } else { defects(&name) },
        name,
        aliases,
        family: "gpt_neox",
        collection: if seed { "PolyPythias" } else { "Pythia" },
        shape: Some(Shape { n_layers, d_model, n_heads }),
        schedule: if v0 { Schedule::pythia_v0() } else { Schedule::pythia() },
        places: Places::Revisions { prefix: "step" },
        prepend_bos: false,
        tokenizer: seed.then_some(SEED_TOKENIZER),
        trained_vocab: Some(TRAINED_VOCAB),
        tokens_per_step: Some(TOKENS_PER_STEP),
        notes,
    }
}

/// Reports about one model: kind, steps, text, source.
type Row = (DefectKind, &'static [u64], &'static str, &'static str);

fn rows(name: &str) -> &'static [Row] {
    use DefectKind::{Mended, Missing, Wrong};
    match name {
        "pythia-6.9b" => {
            &[(Mended, &[26_000], "step 26000 was missing at first", "EleutherAI/pythia#94")]
        }
        "pythia-12b" => &[
            (
                Wrong,
                &[50_000, 58_000],
                "two revisions serve the final checkpoint's first shard (embedding and early \
                 layers)",
                "EleutherAI/pythia#206",
            ),
            (
                Mended,
                &[4000, 32_000],
                "steps 4000 and 32000 were missing at first",
                "EleutherAI/pythia#107",
            ),
        ],
        "pythia-12b-deduped" => &[(
            Mended,
            &[32_000],
            "step 32000 was that of another checkpoint, and was uploaded again",
            "EleutherAI/pythia#108",
        )],
        "pythia-410m-seed2" => {
            &[(Missing, &[111_000], "step 111000 has no weights", "EleutherAI/pythia#202")]
        }
        "pythia-410m-seed6" => {
            &[(Missing, &[88_000], "step 88000 has no weights", "EleutherAI/pythia#202")]
        }
        "pythia-410m-seed9" => {
            &[(Missing, &[40_000], "step 40000 has no weights", "EleutherAI/pythia#202")]
        }
        "pythia-160m-weight-seed1" | "pythia-160m-weight-seed2" => &[(
            Wrong,
            &[0],
            "step 0 is not the initialization that the later steps descend from",
            "EleutherAI/pythia#203",
        )],
        _ => &[],
    }
}

fn defects(name: &str) -> Vec<Defect> {
    let mut defects = Vec::new();
    if name == "pythia-2.8b" {
        defects.push(Defect {
            kind: DefectKind::Wrong,
            steps: final_weights_of_2_8b(),
            text: "86 of 154 revisions serve weights of the end of training".to_owned(),
            source: "EleutherAI/pythia#205",
        });
    }
    defects.extend(rows(name).iter().map(|(kind, steps, text, source)| Defect {
        kind: *kind,
        steps: steps.to_vec(),
        text: (*text).to_owned(),
        source,
    }));
    // The two weight-seed runs have a worse problem at step 0.
    if !defects.iter().any(|defect| defect.steps.contains(&0)) {
        defects.push(Defect {
            kind: DefectKind::Equal,
            steps: vec![0, 1],
            text: "step 0 and step 1 are bit-identical (the first step had learning rate 0)"
                .to_owned(),
            source: "EleutherAI/pythia#83",
        });
    }
    defects
}

/// 76 revisions that equal the main one, and ten that share a second file with equal embeddings.
fn final_weights_of_2_8b() -> Vec<u64> {
    let early = std::iter::once(0).chain((0..10).map(|exponent| 1 << exponent));
    let grid = (1..=53).map(|thousand| thousand * 1000);
    let round = [55, 60, 65, 70, 80, 90, 100, 103, 110, 120, 130, 140];
    let second = [54, 56, 57, 58, 59, 61, 62, 63, 64, 143];
    let rest = round.into_iter().chain(second).map(|thousand: u64| thousand * 1000);
    let mut steps: Vec<u64> = early.chain(grid).chain(rest).collect();
    steps.sort_unstable();
    steps
}
