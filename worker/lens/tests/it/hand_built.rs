//! Models whose behaviour is known without running them.

use sweep_lens::{
    Ablate, Cache, Config, Device, Hook, Kind, Positional, Run, Site, Tensor, Transformer, Weights,
};

use crate::models::{architectures, assert_close, random_weights, tokens};

/// Zero weights for every required parameter, in f64.
fn zero_weights(config: &Config) -> Weights {
    config
        .parameters()
        .into_iter()
        .filter(|parameter| !parameter.optional)
        .map(|p| (p.name, Tensor::zeros(p.shape.as_slice(), (Kind::Double, Device::Cpu))))
        .collect()
}

/// An attention-only model whose second layer is a perfect induction head.
///
/// The residual stream has four parts: this token, this position, the previous token (written by the
/// first layer, whose pattern is one step back), and the prediction. Scores are multiplied by 100, so
/// that the softmax is a maximum.
fn induction_model(n_tokens: i64, n_ctx: i64) -> Transformer {
    let d_model = 3 * n_tokens + n_ctx;
    let d_head = n_tokens.max(n_ctx);
    let config = Config {
        n_heads: 1,
        n_key_value_heads: 1,
        d_head,
        d_mlp: 0,
        attn_only: true,
        attn_scale: 1.0,
        ..Config::toy(2, d_model, 1, n_tokens, n_ctx)
    };
    let (token, position) = (0, n_tokens);
    let (previous, prediction) = (position + n_ctx, position + n_ctx + n_tokens);
    let weights = zero_weights(&config);
    let set = |name: &str, index: &[i64], value: f64| {
        let tensor = weights.get(name).unwrap();
        let cell = index.iter().fold(tensor.shallow_clone(), |part, &i| part.get(i));
        let mut cell = cell;
        let _filled = cell.fill_(value);
    };
    for t in 0..n_tokens {
        set("embed.W_E", &[t, token + t], 1.0);
        set("blocks.0.attn.W_V", &[0, token + t, t], 1.0);
        set("blocks.0.attn.W_O", &[0, t, previous + t], 1.0);
        set("blocks.1.attn.W_Q", &[0, token + t, t], 100.0);
        set("blocks.1.attn.W_K", &[0, previous + t, t], 1.0);
        set("blocks.1.attn.W_V", &[0, token + t, t], 1.0);
        set("blocks.1.attn.W_O", &[0, t, prediction + t], 1.0);
        set("unembed.W_U", &[prediction + t, t], 1.0);
    }
    for p in 0..n_ctx {
        set("pos_embed.W_pos", &[p, position + p], 1.0);
        set("blocks.0.attn.W_K", &[0, position + p, p], 1.0);
        if p > 0 {
            set("blocks.0.attn.W_Q", &[0, position + p, p - 1], 100.0);
        }
    }
    Transformer::new(config, weights).unwrap()
}

#[test]
fn hand_built_induction_head_attends_and_copies() {
    let (n_tokens, period, n_ctx) = (9, 5, 11);
    let model = induction_model(n_tokens, n_ctx);
    // Token 2 begins the sequence: the first position has no previous token and attends to itself.
    let tokens = Tensor::from_slice(&[2_i64, 3, 8, 0, 5, 1, 3, 8, 0, 5, 1]).view([1, n_ctx]);
    let mut cache = Cache::only(|hook| hook.site() == Some(Site::Pattern));
    let logits = model.forward(&tokens, &Run::FULL, &mut cache);
    let previous = cache[Hook::block(0, Site::Pattern)].get(0).get(0); // [query, key]
    let induction = cache[Hook::block(1, Site::Pattern)].get(0).get(0); // [query, key]
    for query in 1..n_ctx {
        assert!((previous.double_value(&[query, query - 1]) - 1.0).abs() < 1e-12);
    }
    for query in 1 + period..n_ctx {
        let score = induction.double_value(&[query, query - period + 1]);
        assert!((score - 1.0).abs() < 1e-12, "query {query}: {score}");
    }
    let predicted = logits.argmax(-1, false).get(0); // [pos]
    let next = tokens.get(0).narrow(0, period + 2, period - 1);
    assert_eq!(predicted.narrow(0, period + 1, period - 1), next);
    // Without its previous-token head the model knows nothing.
    let ablated = model.forward(&tokens, &Run::FULL, &mut Ablate::heads([(0, 0)]));
    let uniform = ablated.get(0).get(n_ctx - 2).softmax(-1, Kind::Double);
    assert!(uniform.max().double_value(&[]) < 0.5);
}

#[test]
fn zero_queries_give_uniform_causal_attention() {
    let config = Config { positional: Positional::None, ..Config::toy(1, 8, 2, 5, 6) };
    let mut weights = random_weights(&config, 4);
    let w_q = weights.get("blocks.0.attn.W_Q").unwrap().zeros_like();
    weights.insert("blocks.0.attn.W_Q", w_q);
    weights.remove("blocks.0.attn.b_Q");
    let model = Transformer::new(config.clone(), weights).unwrap();
    let mut cache = Cache::all();
    let _logits = model.forward(&tokens(&config, 2, 6), &Run::FULL, &mut cache);
    let ones = Tensor::ones([6, 6], (Kind::Double, Device::Cpu)).tril(0);
    let uniform = &ones / ones.sum_dim_intlist(&[-1i64][..], true, Kind::Double); // 1 / (i + 1)
    let pattern = &cache[Hook::block(0, Site::Pattern)];
    assert_close("pattern", pattern, &uniform.expand_as(pattern), 1e-12);
    let scores = &cache[Hook::block(0, Site::AttnScores)];
    let masked = scores.isinf().sum(Kind::Int64).int64_value(&[]);
    assert_eq!(masked, 2 * 2 * 15);
    // Each head's z is the running mean of its values.
    let v = &cache[Hook::block(0, Site::V)]; // [batch, pos, head, d_head]
    let mean = Tensor::einsum("qk,bkhd->bqhd", &[&uniform, v], None::<i64>);
    assert_close("z", &cache[Hook::block(0, Site::Z)], &mean, 1e-12);
}

/// Rotation leaves lengths alone and makes scores depend on the distance only.
#[test]
fn rotary_scores_depend_on_the_distance_only() {
    let (_, config) = architectures().into_iter().find(|(name, _)| *name == "llama").unwrap();
    let config = Config { normalization: sweep_lens::Normalization::None, ..config };
    let model = Transformer::new(config.clone(), random_weights(&config, 6)).unwrap();
    let repeated = Tensor::full([1, 7], 3, (Kind::Int64, Device::Cpu));
    let mut cache = Cache::all();
    let _logits = model.forward(&repeated, &Run::FULL, &mut cache);
    let scores = &cache[Hook::block(0, Site::AttnScores)]; // [batch, head, query, key]
    for distance in 0..7 {
        let diagonal = scores.diagonal(-distance, -2, -1); // [batch, head, along]
        let spread = diagonal.max_dim(-1, false).0 - diagonal.min_dim(-1, false).0;
        // The angles' table is exact to f64 only for f64 models, which this is.
        assert!(spread.abs().max().double_value(&[]) < 1e-12);
    }
    let (plain, rotated) = (&cache[Hook::block(0, Site::Q)], &cache[Hook::block(0, Site::RotQ)]);
    let norm = |x: &Tensor| x.square().sum_dim_intlist(&[-1i64][..], false, Kind::Double);
    assert_close("lengths", &norm(rotated), &norm(plain), 1e-12);
    assert!(crate::models::distance(plain, rotated) > 0.1);
}

#[test]
fn removing_all_heads_leaves_the_mlp_only_model() {
    for (name, config) in architectures() {
        if config.n_layers == 0 {
            continue;
        }
        let weights = random_weights(&config, 8);
        let mut headless = weights.shallow_clone();
        for layer in 0..config.n_layers {
            let w_o = format!("blocks.{layer}.attn.W_O");
            let zero = weights.get(&w_o).unwrap().zeros_like();
            headless.insert(w_o, zero);
        }
        let tokens = tokens(&config, 2, 5);
        let model = Transformer::new(config.clone(), weights).unwrap();
        let headless = Transformer::new(config.clone(), headless).unwrap();
        let n_heads = config.n_heads;
        let heads = (0..config.n_layers as u32).flat_map(|l| (0..n_heads).map(move |h| (l, h)));
        let ablated = model.forward(&tokens, &Run::FULL, &mut Ablate::heads(heads));
        let expected = headless.forward(&tokens, &Run::FULL, &mut ());
        assert_close(name, &ablated, &expected, 1e-10);
        let intact = model.forward(&tokens, &Run::FULL, &mut ());
        assert!(crate::models::distance(&ablated, &intact) > 1e-3, "{name}: heads do nothing");
    }
}
