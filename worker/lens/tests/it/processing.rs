//! Weight processing: equal predictions, TransformerLens' numbers, and refusals.

use sweep_lens::{
    Config, Kind, Normalization, Run, Tensor, Transformer, Weights,
    processing::{Processing, process},
};

use crate::{
    fixtures::Files,
    models::{architectures, assert_close, distance, random_weights, tokens},
};

/// Models all of whose norms subtract the mean.
const LAYER_NORM: [&str; 11] = [
    "gpt-neo-tiny",
    "gpt2-other",
    "gpt2-tiny",
    "gpt2-tiny-crfm",
    "neel-attn",
    "neel-gelu",
    "neel-solu",
    "neox-parallel",
    "neox-serial",
    "neox-tiny",
    "olmo-tiny",
];

fn logits(config: &Config, weights: &Weights) -> Tensor {
    let model = Transformer::new(config.clone(), weights.shallow_clone()).unwrap();
    model.forward(&tokens(config, 2, config.n_ctx), &Run::FULL, &mut ())
}

fn log_probs(config: &Config, weights: &Weights) -> Tensor {
    logits(config, weights).log_softmax(-1, Kind::Double)
}

#[test]
fn folded_models_predict_the_same() {
    tch::set_num_threads(1);
    for name in LAYER_NORM {
        let (config, weights) = Files::of(name).load().unwrap();
        let raw = log_probs(&config, &weights);
        let before = weights.copy();
        let (folded, rewritten) = process(&config, &weights, &Processing::folded()).unwrap();
        assert_eq!(folded.normalization, Normalization::LnPre, "{name}");
        assert_eq!(folded.final_normalization, Normalization::LnPre, "{name}");
        assert!(
            rewritten.names().all(|name| !name.contains("ln") && !name.ends_with("b_V")),
            "{name}"
        );
        assert_close(name, &log_probs(&folded, &rewritten), &raw, 1e-5);
        let mean = logits(&folded, &rewritten).mean_dim(&[-1i64][..], false, Kind::Double);
        assert_close(&format!("{name}: mean logit"), &mean, &mean.zeros_like(), 1e-5);
        // What writes to the residual stream is centred.
        for writer in ["embed.W_E", "blocks.0.attn.W_O", "blocks.1.mlp.W_out", "blocks.0.attn.b_O"]
        {
            let Some(tensor) = rewritten.get(writer) else { continue };
            let mean = tensor.mean_dim(&[-1i64][..], false, Kind::Double);
            assert_close(&format!("{name}: {writer}"), &mean, &mean.zeros_like(), 1e-6);
        }
        // The given weights are as they were, and doing it again changes nothing.
        assert!(
            before.iter().all(|(part, tensor)| weights.get(part).unwrap().equal(tensor)),
            "{name}"
        );
        let (again, twice) = process(&folded, &rewritten, &Processing::folded()).unwrap();
        assert_eq!(again, folded);
        assert_close(name, &logits(&again, &twice), &logits(&folded, &rewritten), 1e-5);
    }
}

/// Every step by itself, on every architecture that allows it, alone and in a population.
#[test]
fn every_step_leaves_predictions_as_they_are() {
    tch::set_num_threads(1);
    for (name, config) in architectures() {
        let members = [random_weights(&config, 1), random_weights(&config, 2)];
        let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
        let all = Processing::all_for(&config);
        let raw = Processing::raw();
        let steps = [
            all,
            Processing { fold_ln: all.fold_ln, ..raw },
            Processing { center_writing_weights: all.center_writing_weights, ..raw },
            Processing { center_unembed: true, ..raw },
            Processing { fold_value_biases: true, ..raw },
        ];
        for step in steps {
            let step = Processing {
                // Random weights have biases of values, which are clipped here.
                fold_value_biases: step.fold_value_biases && config.clip_qkv.is_none(),
                ..step
            };
            let what = format!("{name}: {}", step.label());
            let (processed, population) = process(&config, &stacked, &step).unwrap();
            let population = Transformer::population(processed.clone(), population).unwrap();
            let batch = tokens(&config, 2, config.n_ctx);
            let together = population.forward(&batch, &Run::FULL, &mut ());
            for (index, weights) in (0..).zip(&members) {
                let expected = log_probs(&config, weights);
                let (processed, weights) = process(&config, weights, &step).unwrap();
                assert_close(&what, &log_probs(&processed, &weights), &expected, 1e-9);
                let member = together.get(index).log_softmax(-1, Kind::Double);
                assert_close(&format!("{what}, population"), &member, &expected, 1e-9);
            }
        }
    }
}

#[test]
fn half_precision_is_rounded_once() {
    let (config, weights) = Files::of("gpt2-tiny").load().unwrap();
    let (_, exact) =
        process(&config, &weights.to_kind(Kind::Half).to_kind(Kind::Float), &Processing::folded())
            .unwrap();
    let (_, half) = process(&config, &weights.to_kind(Kind::Half), &Processing::folded()).unwrap();
    for (name, tensor) in exact.iter() {
        assert!(half.get(name).unwrap().equal(&tensor.to_kind(Kind::Half)), "{name}");
    }
}

#[test]
fn models_that_a_step_would_change_are_refused() {
    let refused = |name: &str, processing: Processing, reason: &str| {
        let (config, weights) = Files::of(name).load().unwrap();
        let error = process(&config, &weights, &processing).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    };
    let fold_ln = Processing { fold_ln: true, ..Processing::raw() };
    let center = Processing { center_writing_weights: true, ..Processing::raw() };
    for processing in [Processing::folded(), fold_ln, center] {
        refused("neel-solu-rmsfinal", processing, "final_rms");
        refused("neel-shortformer", processing, "shortformer");
    }
    for name in ["llama3-tiny", "llama-tied", "mistral-tiny", "olmo2-tiny"] {
        refused(name, Processing::folded(), "root mean square");
        let (config, weights) = Files::of(name).load().unwrap();
        let (folded, rewritten) =
            process(&config, &weights, &Processing::all_for(&config)).unwrap();
        assert_eq!(folded.final_normalization, Normalization::RmsPre, "{name}");
        assert_close(name, &log_probs(&folded, &rewritten), &log_probs(&config, &weights), 1e-5);
    }
    let clipped = architectures().into_iter().find(|(name, _)| *name == "olmo").unwrap().1;
    let error = process(&clipped, &random_weights(&clipped, 1), &Processing::folded()).unwrap_err();
    assert!(error.to_string().contains("values are clipped"), "{error}");
    let (config, mut weights) = Files::of("gpt2-tiny").load().unwrap();
    drop(weights.remove("blocks.1.attn.W_O").unwrap());
    let error = process(&config, &weights, &Processing::folded()).unwrap_err().to_string();
    assert_eq!(error, "tensor `blocks.1.attn.W_O` is missing");
}

/// Steps in a wrong order, or left out half-way, are far outside the tolerance of the tests above.
#[test]
fn mistakes_of_folding_are_caught() {
    let is_caught = |name: &str, change: &dyn Fn(&mut Config, &mut Weights, &Weights)| {
        let (config, weights) = Files::of(name).load().unwrap();
        let (mut folded, mut rewritten) =
            process(&config, &weights, &Processing::folded()).unwrap();
        change(&mut folded, &mut rewritten, &weights);
        let distance = distance(&log_probs(&folded, &rewritten), &log_probs(&config, &weights));
        assert!(distance > 1e-4, "{name}: differs by {distance:.1e} only");
    };
    let get = |weights: &Weights, name: &str| weights.get(name).unwrap().shallow_clone();
    // The norm's bias goes through the map before it is scaled, not after.
    is_caught("gpt2-tiny", &|_, folded, raw| {
        let (w, b) = (get(raw, "blocks.0.ln2.w"), get(raw, "blocks.0.ln2.b"));
        let w_in = get(raw, "blocks.0.mlp.W_in");
        let wrong = get(raw, "blocks.0.mlp.b_in") + (&b * w).unsqueeze(0).mm(&w_in).squeeze_dim(0);
        folded.insert("blocks.0.mlp.b_in", wrong);
    });
    // The norm inside a SoLU MLP belongs to W_out.
    is_caught("neel-solu", &|_, folded, raw| {
        let w_out = get(raw, "blocks.0.mlp.W_out");
        let centered = &w_out - w_out.mean_dim(&[-1i64][..], true, None::<Kind>);
        folded.insert("blocks.0.mlp.W_out", centered);
    });
    // Biases of values must arrive in b_O.
    is_caught("gpt2-tiny", &|_, folded, raw| {
        let b_o = get(raw, "blocks.0.attn.b_O");
        folded.insert("blocks.0.attn.b_O", &b_o - b_o.mean(None::<Kind>));
    });
    // What TransformerLens 3.9 does to a model whose final norm is RMS: it folds as for a layer norm.
    let name = "neel-solu-rmsfinal";
    let (config, weights) = Files::of(name).load().unwrap();
    let as_layer_norm = Config { final_normalization: Normalization::Ln, ..config.clone() };
    let (folded, rewritten) = process(&as_layer_norm, &weights, &Processing::folded()).unwrap();
    let folded = Config { final_normalization: Normalization::RmsPre, ..folded };
    let distance = distance(&log_probs(&folded, &rewritten), &log_probs(&config, &weights));
    assert!(distance > 0.1, "{distance}");
}

/// Sum of the composition scores of all pairs of heads in different layers, as TransformerLens'
/// `all_composition_scores`: `|A B| / (|A| |B|)` with `A` the earlier head's output matrix.
fn composition_total(config: &Config, weights: &Weights, mode: &str) -> f64 {
    let get = |layer: i64, part: &str| {
        weights.get(&format!("blocks.{layer}.attn.{part}")).unwrap().to_kind(Kind::Double)
    };
    let output = |layer| get(layer, "W_V").matmul(&get(layer, "W_O")); // [head, d_model, d_model]
    let scores = |layer| get(layer, "W_Q").matmul(&get(layer, "W_K").transpose(-2, -1));
    let norm =
        |x: &Tensor| x.square().sum_dim_intlist(&[-2i64, -1][..], false, Kind::Double).sqrt();
    let mut total = 0.0;
    for later in 0..config.n_layers {
        let right = match mode {
            "Q" => scores(later),
            "K" => scores(later).transpose(-2, -1),
            _ => output(later),
        };
        for left in (0..later).map(output) {
            let product = left.unsqueeze(1).matmul(&right.unsqueeze(0)); // [left, right, d_model, d_model]
            let score = norm(&product) / norm(&left).unsqueeze(1) / norm(&right).unsqueeze(0);
            total += score.sum(Kind::Double).double_value(&[]);
        }
    }
    total
}

/// Numbers of TransformerLens 3.9 (its own models) and 4.3 (Hugging Face's).
#[test]
fn composition_scores_are_transformer_lens() {
    let check = |what: &str, actual: f64, expected: f64| {
        assert!((actual - expected).abs() < 1e-5 * expected, "{what}: {actual} is not {expected}");
    };
    for (name, raw, folded) in [
        ("neel-solu", 2.305_614, Some(2.308_892)),
        ("neel-gelu", 2.286_597, Some(2.326_997)),
        ("neel-attn", 2.315_846, None),
        ("neel-solu-rmsfinal", 2.305_614, None),
        ("neel-shortformer", 2.248_709, None),
    ] {
        let (config, weights) = Files::of(name).load().unwrap();
        check(name, composition_total(&config, &weights, "K"), raw);
        if let Some(expected) = folded {
            let (config, weights) = process(&config, &weights, &Processing::folded()).unwrap();
            check(&format!("{name}, folded"), composition_total(&config, &weights, "K"), expected);
        }
    }
    for (name, q, v) in [
        ("gpt2-tiny", 7.066_961_288, 7.083_866_596),
        ("gpt2-tiny-crfm", 7.028_934_479, 7.204_961_777),
        ("neox-tiny", 6.918_587_208, 7.025_621_414),
    ] {
        let (config, weights) = Files::of(name).load().unwrap();
        let (config, weights) = process(&config, &weights, &Processing::folded()).unwrap();
        for (mode, expected) in [("Q", q), ("V", v)] {
            check(&format!("{name}, {mode}"), composition_total(&config, &weights, mode), expected);
        }
    }
}
