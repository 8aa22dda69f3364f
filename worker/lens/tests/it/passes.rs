//! Relations between passes: partial and full, population and alone, short and long.

use sweep_lens::{
    Cache, Class, Config, Device, Error, FnHook, Hook, Hooks, Kind, Positional, Run, Site, Tensor,
    Transformer, Weights,
};

use crate::models::{architectures, assert_close, random_model, random_weights, tokens};

/// f64 throughout, so that differences are rounding (1e-15) or bugs.
const EXACT: f64 = 1e-10;

#[test]
fn last_position_equals_the_full_pass_at_its_last_position() {
    for (name, config) in architectures() {
        let model = random_model(&config, 1);
        for pos in [1, 2, config.n_ctx] {
            let tokens = tokens(&config, 3, pos);
            let full = model.forward(&tokens, &Run::FULL, &mut ());
            assert_eq!(full.size(), [3, pos, config.d_vocab_out]);
            let full = full.narrow(1, pos - 1, 1);
            let last = model.forward(&tokens, &Run::LAST_POSITION, &mut ());
            assert_close(&format!("{name} at {pos}"), &last, &full, EXACT);
            let mut cache = Cache::all();
            let observed = model.forward(&tokens, &Run::LAST_POSITION, &mut cache);
            assert_close(&format!("{name} at {pos}, observed"), &observed, &full, EXACT);
        }
    }
}

#[test]
fn parts_of_a_pass_are_those_of_the_whole() {
    for (name, config) in architectures() {
        let model = random_model(&config, 2);
        let tokens = tokens(&config, 2, 5);
        let mut cache = Cache::all();
        let logits = model.forward(&tokens, &Run::FULL, &mut cache);
        let fired: Vec<Hook> = cache.iter().map(|(hook, _)| hook).collect();
        let mut declared = config.hooks();
        declared.sort();
        assert_eq!(fired, declared, "{name}");
        let run = Run { skip_unembed: true, ..Run::FULL };
        let normalized = model.forward(&tokens, &run, &mut ());
        let unembedded = normalized.matmul(model.weights().get("unembed.W_U").unwrap())
            + model.weights().get("unembed.b_U").unwrap();
        assert_close(name, &unembedded, &logits, EXACT);
        for layer in 0..u32::try_from(config.n_layers).unwrap() {
            let run = Run { stop_after_layer: Some(layer), ..Run::FULL };
            let mut partial = Cache::all();
            let resid = model.forward(&tokens, &run, &mut partial);
            assert_close(name, &resid, &cache[Hook::block(layer, Site::ResidPost)], EXACT);
            assert!(partial.iter().all(|(hook, _)| hook.layer() <= Some(layer)), "{name}");
            let run = Run { last_position_only: true, ..run };
            let last = model.forward(&tokens, &run, &mut ());
            assert_close(name, &last, &resid.narrow(1, 4, 1), EXACT);
        }
    }
}

#[test]
fn causality_holds_and_sequences_of_a_batch_are_independent() {
    for (name, config) in architectures() {
        let model = random_model(&config, 3);
        let tokens = tokens(&config, 2, config.n_ctx);
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        for pos in [1, 4] {
            let short = model.forward(&tokens.narrow(1, 0, pos), &Run::FULL, &mut ());
            assert_close(name, &short, &logits.narrow(1, 0, pos), EXACT);
        }
        let alone = model.forward(&tokens.narrow(0, 1, 1), &Run::FULL, &mut ());
        assert_close(name, &alone, &logits.narrow(0, 1, 1), EXACT);
    }
}

#[test]
fn each_model_of_a_population_equals_itself_alone() {
    for (name, config) in architectures() {
        let members: Vec<Weights> = (0..3).map(|seed| random_weights(&config, seed)).collect();
        let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
        let population = Transformer::population(config.clone(), stacked).unwrap();
        assert_eq!(population.n_models(), Some(3));
        let shared = tokens(&config, 2, 5);
        let own = Tensor::stack(&[&shared, &shared.flip([1]), &(10 - &shared)], 0);
        for run in [Run::FULL, Run::LAST_POSITION] {
            for tokens in [&shared, &own] {
                let mut cache = Cache::all();
                let observed = population.forward(tokens, &run, &mut cache);
                let logits = population.forward(tokens, &run, &mut ());
                for (index, weights) in (0..).zip(&members) {
                    let alone = Transformer::new(config.clone(), weights.shallow_clone()).unwrap();
                    let tokens = if tokens.dim() == 3 { tokens.get(index) } else { shared.copy() };
                    let mut expected = Cache::all();
                    let expected_logits = alone.forward(&tokens, &run, &mut expected);
                    assert_close(name, &logits.get(index), &expected_logits, EXACT);
                    assert_close(name, &observed.get(index), &expected_logits, EXACT);
                    assert_eq!(cache.len(), expected.len());
                    for (hook, activation) in expected.iter() {
                        let what = format!("{name}: {hook}");
                        assert_close(&what, &cache[hook].get(index), activation, EXACT);
                    }
                    let member = population.member(index).unwrap();
                    let logits = member.forward(&tokens, &run, &mut ());
                    assert_close(name, &logits, &expected_logits, EXACT);
                }
            }
        }
        assert!(population.member(3).is_err());
        assert!(population.member(0).unwrap().member(0).is_err());
    }
}

/// With every token several times in the batch, the first block works on the vocabulary instead.
#[test]
fn repeated_tokens_change_nothing() {
    let stepped = || FnHook::matching(|hook| hook.layer().is_none_or(|l| l == 0), |_, x| x);
    for (name, config) in architectures() {
        let members = [random_weights(&config, 1), random_weights(&config, 2)];
        let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
        let population = Transformer::population(config.clone(), stacked).unwrap();
        let single = random_model(&config, 3);
        let shared = tokens(&config, 2 * config.d_vocab + 3, 5);
        let own = Tensor::stack(&[&shared, &(10 - &shared)], 0);
        let mut all = Cache::all();
        let _logits = single.forward(&shared, &Run::FULL, &mut all);
        for hook in config.hooks() {
            // A hook sees the batch, never the vocabulary.
            let mut cache = Cache::of(&[hook]);
            let _logits = single.forward(&shared, &Run::FULL, &mut cache);
            assert_close(&format!("{name}: {hook}"), &cache[hook], &all[hook], EXACT);
        }
        for run in [Run::FULL, Run::LAST_POSITION] {
            for (model, tokens) in [(&single, &shared), (&population, &shared), (&population, &own)]
            {
                model.weights().set_requires_grad(true);
                let parameters: Vec<&Tensor> = model.weights().iter().map(|(_, w)| w).collect();
                let pass = |hooks: &mut dyn Hooks| {
                    let logits = model.forward(tokens, &run, hooks);
                    let objective =
                        logits.log_softmax(-1, Kind::Double).square().mean(Kind::Double);
                    let gradients = Tensor::run_backward(&[objective], &parameters, false, false);
                    (logits.detach(), gradients)
                };
                // Seeing the first block keeps it from taking the short way.
                let (expected, expected_gradients) = pass(&mut stepped());
                let (logits, gradients) = pass(&mut ());
                assert_close(name, &logits, &expected, EXACT);
                for (gradient, expected) in gradients.iter().zip(&expected_gradients) {
                    let scale = 1.0 + expected.abs().max().double_value(&[]);
                    assert_close(name, &(gradient / scale), &(expected / scale), 1e-11);
                }
            }
        }
    }
}

/// The fused kernel has no second derivative; seeing the pattern takes the way that has.
#[test]
fn second_derivatives_exist_where_the_pattern_is_seen() {
    let config = Config::toy(1, 12, 3, 11, 7);
    let model = random_model(&config, 9);
    model.weights().set_requires_grad(true);
    let tokens = tokens(&config, 2, 5);
    let w_q = model.weights().get("blocks.0.attn.W_Q").unwrap();
    let direction = Tensor::ones_like(w_q);
    let slope = || {
        let mut seen = FnHook::new(Hook::block(0, Site::Pattern), |_, x| x);
        let loss = model.forward(&tokens, &Run::FULL, &mut seen).square().mean(Kind::Double);
        let gradient = Tensor::run_backward(&[loss], &[w_q], true, true);
        (&gradient[0] * &direction).sum(Kind::Double)
    };
    let curvature = Tensor::run_backward(&[slope()], &[w_q], false, false);
    let curvature = (&curvature[0] * &direction).sum(Kind::Double).double_value(&[]);
    let at = |offset: f64| {
        let mut w_q = w_q.shallow_clone();
        tch::no_grad(|| drop(w_q.g_add_(&(&direction * offset))));
        slope().double_value(&[])
    };
    let (above, below) = (at(1e-5), at(-2e-5));
    let numeric = (above - below) / 2e-5;
    assert!((curvature - numeric).abs() < 1e-6 * (1.0 + numeric.abs()), "{curvature} {numeric}");
}

#[test]
fn token_shapes_and_lengths_are_checked() {
    let config = Config::toy(1, 8, 2, 5, 4);
    let members = [random_weights(&config, 0), random_weights(&config, 1)];
    let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
    let population = Transformer::population(config.clone(), stacked).unwrap();
    let single = random_model(&config, 0);
    let message = |model: &Transformer, shape: &[i64]| {
        let tokens = Tensor::zeros(shape, (Kind::Int64, Device::Cpu));
        let pass = || model.forward(&tokens, &Run::FULL, &mut ());
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(pass)).unwrap_err();
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    };
    assert_eq!(message(&single, &[2, 5]), "tokens have 5 positions, n_ctx is 4");
    assert_eq!(message(&single, &[3]), "tokens have shape [3], expected [batch, pos]");
    assert_eq!(message(&single, &[2, 2, 3]), "tokens have shape [2, 2, 3], expected [batch, pos]");
    assert_eq!(
        message(&population, &[3, 2, 3]),
        "tokens have shape [3, 2, 3], expected [batch, pos] or [2, batch, pos]"
    );
    // Without position embeddings there is no longest sequence.
    let unbounded = Config { positional: Positional::None, ..config };
    let model = random_model(&unbounded, 0);
    let logits = model.forward(&tokens(&unbounded, 2, 9), &Run::FULL, &mut ());
    assert_eq!(logits.size(), [2, 9, 5]);
}

#[test]
fn populations_are_checked() {
    let config = Config::toy(1, 8, 2, 5, 4);
    let [first, second] = [0, 1].map(|seed| random_weights(&config, seed));
    assert!(Weights::stack(&[]).is_err());
    let mut other = second.shallow_clone();
    other.remove("blocks.0.mlp.b_in");
    let error = Weights::stack(&[&first, &other]).unwrap_err().to_string();
    assert_eq!(error, "tensor `blocks.0.mlp.b_in` is missing");
    let error = Weights::stack(&[&other, &first]).unwrap_err().to_string();
    assert_eq!(error, "tensor `blocks.0.mlp.b_in` is not a parameter of this model");
    other.insert("blocks.0.mlp.b_in", Tensor::zeros([3], (Kind::Double, Device::Cpu)));
    let error = Weights::stack(&[&first, &other]).unwrap_err().to_string();
    assert_eq!(error, "tensor `blocks.0.mlp.b_in` has shape [3], expected [32]");
    let mut stacked = Weights::stack(&[&first, &second]).unwrap();
    let w_u = stacked.get("unembed.W_U").unwrap().narrow(0, 0, 1);
    stacked.insert("unembed.W_U", w_u);
    let error = Transformer::population(config.clone(), stacked).unwrap_err().to_string();
    assert_eq!(error, "tensor `unembed.W_U` has shape [1, 8, 5], expected [2, 8, 5]");
    // A single model's weights are not a population's.
    assert!(Transformer::population(config.clone(), first).is_err());
    assert!(Transformer::population(config, Weights::new()).is_err());
}

/// A token beyond one model's vocabulary would be a valid row of the stacked tables.
#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let config = Config::toy(1, 8, 2, 5, 4);
    let members = [random_weights(&config, 0), random_weights(&config, 1)];
    let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
    let population = Transformer::population(config.clone(), stacked).unwrap();
    let single = random_model(&config, 0);
    for token in [-1, 5] {
        let shared = Tensor::from_slice(&[0, token]).view([1, 2]);
        let valid = Tensor::from_slice(&[0_i64, 1]).view([1, 2]);
        let of_the_first = Tensor::stack(&[&shared, &valid], 0);
        let of_the_second = Tensor::stack(&[&valid, &shared], 0);
        for (model, tokens) in [
            (&single, &shared),
            (&population, &shared),
            (&population, &of_the_first),
            (&population, &of_the_second),
            // Often enough for the look-up in the vocabulary.
            (&single, &shared.repeat([12, 1])),
            (&population, &shared.repeat([12, 1])),
            (&population, &of_the_first.repeat([1, 12, 1])),
            (&population, &of_the_second.repeat([1, 12, 1])),
        ] {
            let pass = || model.forward(tokens, &Run::FULL, &mut ());
            assert!(
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(pass)).is_err(),
                "{token}"
            );
        }
    }
}

#[test]
fn half_precision_follows_full_precision() {
    for (name, config) in architectures() {
        let weights = random_weights(&config, 5).to_kind(Kind::Float);
        let tokens = tokens(&config, 2, 6);
        let run = |kind| {
            let model = Transformer::new(config.clone(), weights.to_kind(kind)).unwrap();
            let mut cache = Cache::all();
            let logits = model.forward(&tokens, &Run::FULL, &mut cache);
            assert_eq!(logits.kind(), kind, "{name}");
            if config.n_layers > 0 {
                assert_eq!(cache[Hook::block(0, Site::AttnScores)].kind(), Kind::Float, "{name}");
                assert_eq!(cache[Hook::block(0, Site::Z)].kind(), kind, "{name}");
            }
            logits.to_kind(Kind::Float)
        };
        let exact = run(Kind::Float);
        // Relative: bf16 keeps 8 bits and errors add up over two layers.
        let scale = exact.abs().max().double_value(&[]);
        assert_close(name, &run(Kind::BFloat16), &exact, 0.1 * scale);
        assert_close(name, &run(Kind::Half), &exact, 0.02 * scale);
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Weights), message: &str) {
        let config = Config::toy(2, 8, 2, 5, 4);
        let mut weights = random_weights(&config, 0);
        change(&mut weights);
        let error = Transformer::new(config, weights).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.class(), Class::Input);
    }
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
    check(|w| drop(w.remove("blocks.1.attn.W_O")), "tensor `blocks.1.attn.W_O` is missing");
    check(
        |w| drop(w.insert("blocks.2.attn.W_O", zeros(&[2, 4, 8], Kind::Double))),
        "tensor `blocks.2.attn.W_O` is not a parameter of this model",
    );
    check(
        |w| drop(w.insert("unembed.b_U", zeros(&[4], Kind::Double))),
        "tensor `unembed.b_U` has shape [4], expected [5]",
    );
    check(
        |w| drop(w.insert("unembed.b_U", zeros(&[5], Kind::Float))),
        "tensor `unembed.b_U` is Float on Cpu, expected Double on Cpu like the others",
    );
    check(
        |w| drop(w.insert("unembed.b_U", zeros(&[5], Kind::Int64))),
        "unsupported: tensor `unembed.b_U` has element type Int64",
    );
    let config = Config::toy(1, 8, 2, 5, 4);
    let mut weights = random_weights(&config, 0);
    let infinite = weights.get("embed.W_E").unwrap() / 0.0;
    weights.check_finite().unwrap();
    weights.insert("embed.W_E", infinite);
    let error = weights.check_finite().unwrap_err();
    assert!(
        matches!(&error, Error::NonFinite { name, count: 40 } if name == "embed.W_E"),
        "{error}"
    );
    assert_eq!(error.class(), Class::NonFinite);
}
