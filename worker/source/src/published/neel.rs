//! Neel Nanda's interpretability models, and two by others in the same formats: TransformerLens'
//! own names and files.
//!
//! Sources: TransformerLens' loader and model table, the `solu_project` training script.

use super::{Model, Places, Schedule, Shape};

const TOY_TOKENIZER: &str = "NeelNanda/gpt-neox-tokenizer-digits";
const PILE_TOKENIZER: &str = "EleutherAI/gpt-neox-20b";

const TOY_TOKENS: u64 = 22_000_000_000;
const LARGE_TOKENS: u64 = 30_000_000_000;

const OLD_SCHEDULE: &str = "about 100 points at equal distances up to 15 thousand million tokens, labelled by steps, as \
     listed by the hub";
const OLD_12L_SCHEDULE: &str = "points at equal distances up to about 11 thousand million tokens, labelled by steps, as \
     listed by the hub";
const FINETUNE_SCHEDULE: &str = "a fine-tuning on Wikipedia; points as listed by the hub";
const SHORTFORMER_SCHEDULE: &str = "6 thousand million tokens; points as listed by the hub";

const TOY_NOTE: &str = "toys of equal depth share initialization seed and data order";
const FINAL_RMS_NOTE: &str = "the final norm is RMS: neither folding nor centring applies";
const LNPRE_NOTE: &str = "the norms have no weights (LNPre)";
const SHORTFORMER_NOTE: &str =
    "positions are added to the inputs of queries and keys only; no norms; cannot be folded";

/// TransformerLens' word, repository after `NeelNanda/`, layers, width.
const C4_CODE: [(&str, &str, u32, u32); 16] = [
    ("attn-only", "Attn_Only_1L512W_C4_Code", 1, 512),
    ("attn-only", "Attn_Only_2L512W_C4_Code", 2, 512),
    ("attn-only", "Attn_Only_3L512W_C4_Code", 3, 512),
    ("attn-only", "Attn_Only_4L512W_C4_Code", 4, 512),
    ("gelu", "GELU_1L512W_C4_Code", 1, 512),
    ("gelu", "GELU_2L512W_C4_Code", 2, 512),
    ("gelu", "GELU_3L512W_C4_Code", 3, 512),
    ("gelu", "GELU_4L512W_C4_Code", 4, 512),
    ("solu", "SoLU_1L512W_C4_Code", 1, 512),
    ("solu", "SoLU_2L512W_C4_Code", 2, 512),
    ("solu", "SoLU_3L512W_C4_Code", 3, 512),
    ("solu", "SoLU_4L512W_C4_Code", 4, 512),
    ("solu", "SoLU_6L768W_C4_Code", 6, 768),
    ("solu", "SoLU_8L1024W_C4_Code", 8, 1024),
    ("solu", "SoLU_10L1280W_C4_Code", 10, 1280),
    ("solu", "SoLU_12L1536W_C4_Code", 12, 1536),
];

/// Repository, layers, whether the norms are without weights, whether the final norm is RMS.
const PILE: [(&str, u32, bool, bool); 7] = [
    ("SoLU_1L_v9_old", 1, false, true),
    ("SoLU_2L_v10_old", 2, true, true),
    ("SoLU_4L_v11_old", 4, true, true),
    ("SoLU_6L_v13_old", 6, true, true),
    ("SoLU_8L_v21_old", 8, true, false),
    ("SoLU_10L_v22_old", 10, true, false),
    ("SoLU_12L_v23_old", 12, false, false),
];

pub(super) fn models() -> Vec<Model> {
    let toys = C4_CODE
        .iter()
        .map(|(kind, repo, n_layers, d_model)| c4_code(kind, repo, *n_layers, *d_model));
    let finetunes = [1, 4].map(finetune);
    let pile = PILE.iter().map(|(repo, n_layers, pre, rms)| pile(repo, *n_layers, *pre, *rms));
    toys.chain(finetunes).chain(pile).chain([shortformer(), redwood(), othello()]).collect()
}

/// What all have in common.
fn base(name: String, repo: String, aliases: Vec<String>) -> Model {
    Model {
        name,
        aliases,
        repo,
        family: "neel",
        collection: "Neel Nanda",
        shape: None,
        schedule: Schedule::Final,
        places: Places::Files,
        prepend_bos: true,
        tokenizer: Some(TOY_TOKENIZER),
        trained_vocab: None,
        tokens_per_step: None,
        notes: Vec::new(),
        defects: Vec::new(),
    }
}

/// `Attn_Only_2L512W_C4_Code` is `attn-only-2l`, also `attn-only-2l-new`, `attn-only-2l-c4-code`.
fn c4_code(kind: &str, repo: &str, n_layers: u32, d_model: u32) -> Model {
    let name = format!("{kind}-{n_layers}l");
    let aliases = vec![format!("{name}-new"), format!("{name}-c4-code"), repo.to_owned()];
    let total = if d_model > 512 { LARGE_TOKENS } else { TOY_TOKENS };
    Model {
        shape: Some(Shape { n_layers, d_model, n_heads: d_model / 64 }),
        schedule: Schedule::Tokens { total },
        notes: if d_model > 512 { Vec::new() } else { vec![TOY_NOTE] },
        ..base(name, format!("NeelNanda/{repo}"), aliases)
    }
}

fn finetune(n_layers: u32) -> Model {
    let name = format!("solu-{n_layers}l-wiki");
    let repo = format!("SoLU_{n_layers}L512W_Wiki_Finetune");
    let aliases =
        vec![format!("{name}-finetune"), format!("solu-{n_layers}l-finetune"), repo.clone()];
    Model {
        shape: Some(Shape { n_layers, d_model: 512, n_heads: 8 }),
        schedule: Schedule::Hub(FINETUNE_SCHEDULE),
        ..base(name, format!("NeelNanda/{repo}"), aliases)
    }
}

fn pile(repo: &str, n_layers: u32, pre: bool, rms: bool) -> Model {
    let name = format!("solu-{n_layers}l-pile");
    let aliases = vec![format!("solu-{n_layers}l-old"), repo.to_owned()];
    let schedule = if n_layers == 12 { OLD_12L_SCHEDULE } else { OLD_SCHEDULE };
    let notes = [(pre, LNPRE_NOTE), (rms, FINAL_RMS_NOTE)];
    Model {
        family: "neel-solu-old",
        schedule: Schedule::Hub(schedule),
        tokenizer: Some(PILE_TOKENIZER),
        notes: notes.into_iter().filter(|(is, _)| *is).map(|(_, note)| note).collect(),
        ..base(name, format!("NeelNanda/{repo}"), aliases)
    }
}

fn shortformer() -> Model {
    let repo = "Attn-Only-2L512W-Shortformer-6B-big-lr";
    let aliases =
        ["attn-only-2l-shortformer-6b-big-lr", "attn-only-2l-induction-demo", "attn-only-demo"];
    let mut aliases: Vec<String> = aliases.map(str::to_owned).to_vec();
    aliases.push(repo.to_owned());
    Model {
        shape: Some(Shape { n_layers: 2, d_model: 512, n_heads: 8 }),
        schedule: Schedule::Hub(SHORTFORMER_SCHEDULE),
        tokenizer: Some(PILE_TOKENIZER),
        notes: vec![SHORTFORMER_NOTE],
        ..base("attn-only-2l-demo".to_owned(), format!("NeelNanda/{repo}"), aliases)
    }
}

fn redwood() -> Model {
    Model {
        collection: "Redwood Research",
        shape: Some(Shape { n_layers: 2, d_model: 256, n_heads: 8 }),
        places: Places::Main,
        tokenizer: None,
        notes: vec![SHORTFORMER_NOTE],
        ..base(
            "redwood_attn_2l".to_owned(),
            "ArthurConmy/redwood_attn_2l".to_owned(),
            vec!["redwood-attn-2l".to_owned()],
        )
    }
}

fn othello() -> Model {
    Model {
        collection: "Baidicoot",
        family: "mingpt",
        shape: Some(Shape { n_layers: 8, d_model: 512, n_heads: 8 }),
        places: Places::Main,
        prepend_bos: false,
        tokenizer: None,
        notes: vec!["plays Othello: tokens are moves, there is no tokenizer"],
        ..base(
            "othello-gpt".to_owned(),
            "Baidicoot/Othello-GPT-Transformer-Lens".to_owned(),
            Vec::new(),
        )
    }
}
