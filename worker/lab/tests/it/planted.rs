//! A circuit written by hand: a model in which every class of heads has one member that is known.
//!
//! Attention-only, without norms. The residual stream has a place for each token, for the token that must not be
//! answered, for the token in front and for each position; heads have channels for tokens and positions.

use serde_json::{Value as Json, json};
use sweep_lab::{
    MemorySink, Subject,
    lens::{Config, Tensor, Transformer, Weights, checkpoint::Checkpoint},
};

use crate::circuits::run_on;

const V: usize = 16;
const T: usize = 16;
const D_MODEL: usize = 3 * V + T;
const D_HEAD: usize = V + T;
/// A score that leaves no doubt.
const SURE: f32 = 12.0;

const fn token(t: usize) -> usize {
    t
}
const fn inhibited(t: usize) -> usize {
    V + t
}
const fn previous(t: usize) -> usize {
    2 * V + t
}
const fn position(p: usize) -> usize {
    3 * V + p
}
/// Channel of a position within a head; tokens have the first ones.
const fn channel(p: usize) -> usize {
    V + p
}

/// Entries (row, column, value) of a head's matrices.
#[derive(Default)]
struct Planted {
    q: Vec<(usize, usize, f32)>,
    k: Vec<(usize, usize, f32)>,
    v: Vec<(usize, usize, f32)>,
    o: Vec<(usize, usize, f32)>,
}

impl Planted {
    /// Positions look at positions, as strongly as given.
    fn looking(pairs: &[(usize, usize, f32)]) -> Self {
        Self {
            q: pairs
                .iter()
                .map(|&(from, to, score)| (position(from), channel(to), score))
                .collect(),
            k: (0..T).map(|p| (position(p), channel(p), 1.0)).collect(),
            ..Self::default()
        }
    }

    /// Writes the token that is attended to somewhere.
    fn writing(mut self, place: fn(usize) -> usize, factor: f32) -> Self {
        self.v = (0..V).map(|t| (token(t), t, 1.0)).collect();
        self.o = (0..V).map(|t| (t, place(t), factor)).collect();
        self
    }

    /// Matches what the query has in one place with what keys have in another.
    fn matching(mut self, query: fn(usize) -> usize, key: fn(usize) -> usize, score: f32) -> Self {
        self.q.extend((0..V).map(|t| (query(t), t, score)));
        self.k.extend((0..V).map(|t| (key(t), t, 1.0)));
        self
    }
}

fn matrix(rows: usize, columns: usize, entries: &[(usize, usize, f32)]) -> Tensor {
    let mut data = vec![0f32; rows * columns];
    for &(row, column, value) in entries {
        data[row * columns + column] = value;
    }
    Tensor::from_slice(&data).view([rows as i64, columns as i64])
}

/// Prompts are `. IO . S . S END`: positions 1, 3 and 5 are names, 6 is the end.
fn planted() -> Checkpoint {
    let previous_token: Vec<_> = (1..T).map(|p| (p, p - 1, SURE)).collect();
    let heads = [
        // Duplicate token, previous token.
        Planted::looking(&[(5, 3, SURE)]),
        Planted::looking(&previous_token).writing(previous, 1.0),
        // S-inhibition, induction.
        Planted::looking(&[(6, 5, SURE)]).writing(inhibited, 1.0),
        Planted::default().matching(token, previous, SURE),
        // Name mover: any name but the inhibited one; negative name mover.
        Planted::looking(&[(6, 1, SURE), (6, 3, SURE), (6, 5, SURE)])
            .writing(token, 1.0)
            .matching(inhibited, token, -SURE),
        Planted::looking(&[(6, 1, SURE)]).writing(token, -0.4),
        // Backup: looks at the name unless it has been written already.
        Planted::looking(&[(6, 1, 6.0), (6, 0, 3.0)])
            .writing(token, 0.5)
            .matching(token, token, -SURE),
        Planted::default(),
    ];
    let config = Config {
        d_head: D_HEAD as i64,
        d_mlp: 0,
        attn_only: true,
        attn_scale: 1.0,
        ..Config::toy(4, D_MODEL as i64, 2, V as i64, T as i64)
    };
    let identity = |n: usize, place: fn(usize) -> usize| -> Vec<(usize, usize, f32)> {
        (0..n).map(|i| (i, place(i), 1.0)).collect()
    };
    let mut weights = Weights::new();
    weights.insert("embed.W_E", matrix(V, D_MODEL, &identity(V, token)));
    weights.insert("pos_embed.W_pos", matrix(T, D_MODEL, &identity(T, position)));
    weights.insert("unembed.W_U", matrix(D_MODEL, V, &identity(V, token)));
    for (layer, pair) in heads.chunks(2).enumerate() {
        for (letter, rows, columns, of) in [
            ("Q", D_MODEL, D_HEAD, (|head| &head.q) as fn(&Planted) -> &Vec<(usize, usize, f32)>),
            ("K", D_MODEL, D_HEAD, |head| &head.k),
            ("V", D_MODEL, D_HEAD, |head| &head.v),
            ("O", D_HEAD, D_MODEL, |head| &head.o),
        ] {
            let both: Vec<Tensor> =
                pair.iter().map(|head| matrix(rows, columns, of(head))).collect();
            weights.insert(format!("blocks.{layer}.attn.W_{letter}"), Tensor::stack(&both, 0));
        }
    }
    Checkpoint { config, weights, step: 3, extra: Json::Null, weights_hash: String::new() }
}

fn run(experiment: &str, more: &Json) -> MemorySink {
    let pairs = [(4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (15, 14)];
    let rows: Vec<Vec<i64>> = pairs.iter().map(|&(io, s)| vec![0, io, 1, s, 2, s, 3]).collect();
    let mut params = json!({
        "tokens": rows, "io": pairs.map(|pair| pair.0), "s": pairs.map(|pair| pair.1),
    });
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    let checkpoint = planted();
    let model =
        Transformer::new(checkpoint.config.clone(), checkpoint.weights.shallow_clone()).unwrap();
    run_on(&Subject::of(&checkpoint, &model), experiment, &params).unwrap()
}

/// Heads whose value is not 0, as layer and head.
fn non_zero(values: &[f64]) -> Vec<(usize, usize)> {
    let heads = values.iter().enumerate().filter(|(_, value)| value.abs() > 1e-3);
    heads.map(|(index, _)| (index / 2, index % 2)).collect()
}

#[test]
fn every_planted_head_is_found_in_its_class() {
    let sink = run("ioi-attention", &json!({}));
    let member = &sink.metrics["member"][&3];
    let names = member.labels[0].clone().unwrap();
    let found: Vec<(&str, Vec<(usize, usize)>)> = names
        .iter()
        .zip(member.data.chunks(8))
        .map(|(name, flags)| (name.as_str(), non_zero(flags)))
        .collect();
    let expected = [
        ("name_mover", vec![(2, 0)]),
        ("s_inhibition", vec![(1, 0)]),
        ("duplicate_token", vec![(0, 0)]),
        ("induction", vec![(1, 1)]),
        ("previous_token", vec![(0, 1)]),
        ("negative_name_mover", vec![(2, 1)]),
        ("backup_name_mover", vec![(3, 0)]),
    ];
    assert_eq!(found, expected);
    let attention = &sink.metrics["members_attention"][&3].data;
    assert!(attention[..6].iter().all(|value| (value - 1.0).abs() < 1e-3), "{attention:?}");
    assert_eq!(sink.metrics["n_members"][&3].data, [1.0; 7]);
}

#[test]
fn planted_paths_and_copies_are_what_was_planted() {
    let sink = run("ioi", &json!({}));
    assert_eq!(sink.scalar("accuracy", 3), Some(1.0));
    let logit_diff = sink.scalar("logit_diff", 3).unwrap();
    let dla = run("ioi-dla", &json!({})).metrics["dla"][&3].data.clone();
    assert!((dla[4] - 1.0).abs() < 1e-3 && (dla[5] + 0.4).abs() < 1e-3, "{dla:?}");
    assert!((dla.iter().sum::<f64>() - logit_diff).abs() < 1e-5);
    // Copies: the name mover and its backup; negated: the negative one.
    let sink = run("copy-score", &json!({}));
    assert_eq!(sink.metrics["copy_score"][&3].data, [0., 0., 0., 0., 1., 0., 1., 0.]);
    assert_eq!(sink.metrics["negative_copy_score"][&3].data, [0., 0., 0., 0., 0., 1., 0., 0.]);
    // The name mover's queries hear from S-inhibition alone, and so do its direct inputs.
    for kind in ["full", "direct"] {
        let sink = run("path-patching", &json!({"receivers": ["L2H0"], "kind": kind}));
        let effects = &sink.metrics["effect"][&3].data;
        assert_eq!(non_zero(effects), [(1, 0)], "{kind}: {effects:?}");
        // Without inhibition all three names are attended to alike, which costs 4/3; the backup makes up for some
        // of it. The same model in twenty lines of numpy gives this sum.
        assert!((effects[2] + 0.4345).abs() < 1e-3, "{kind}: {effects:?}");
    }
    // Removing the name mover calls its backup.
    let sink = run("ioi-ablation", &json!({"method": "zero"}));
    assert_eq!(non_zero(&sink.metrics["knocked_out"][&3].data), [(2, 0)]);
    assert_eq!(non_zero(&sink.metrics["backup"][&3].data), [(3, 0)]);
    let change = &sink.metrics["dla_change"][&3].data;
    assert!((change[6] - 0.4106).abs() < 1e-3, "{change:?}");
    let effect = &sink.metrics["effect"][&3].data;
    assert!((effect[4] + 0.5894).abs() < 1e-3, "the backup hides much of it: {effect:?}");
    // With patterns kept, nobody steps in.
    let sink = run("ioi-ablation", &json!({"method": "zero", "keep_patterns": true}));
    assert!(sink.metrics["backup"][&3].data.iter().all(|&flag| flag == 0.0));
    assert!((sink.metrics["effect"][&3].data[4] + 1.0).abs() < 0.02);
}
