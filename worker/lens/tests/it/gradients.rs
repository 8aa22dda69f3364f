//! Gradients against finite differences, in f64, for every parameter of every architecture.

use sweep_lens::{Config, Device, Kind, Run, Tensor, Transformer, Weights, init};

use crate::models::{architectures, assert_close, random_weights, tokens};

/// A scalar that depends on all logits, and not linearly.
fn objective(model: &Transformer, tokens: &Tensor, run: &Run) -> Tensor {
    let logits = model.forward(tokens, run, &mut ());
    let log_probs = logits.log_softmax(-1, Kind::Double);
    let weights = Tensor::linspace(0.1, 2.0, log_probs.numel() as i64, (Kind::Double, Device::Cpu));
    (log_probs * weights.view_as(&logits)).sum(Kind::Double)
}

/// Compares the derivative along a random direction of one parameter at a time: a wrong gradient
/// agrees with it by accident only.
fn check(name: &str, model: &Transformer, tokens: &Tensor, run: &Run) {
    const STEP: f64 = 1e-5;
    model.weights().set_requires_grad(true);
    objective(model, tokens, run).backward();
    let gradients: Vec<Tensor> = model.weights().iter().map(|(_, w)| w.grad()).collect();
    model.weights().set_requires_grad(false);
    for ((parameter, tensor), gradient) in model.weights().iter().zip(gradients) {
        assert!(gradient.defined(), "{name}: {parameter} has no gradient");
        let direction = init::normal(99, parameter, &tensor.size(), 1.0, Device::Cpu);
        let direction = direction.to_kind(Kind::Double);
        let mut tensor = tensor.shallow_clone();
        let mut at = |offset: f64| {
            let _moved = tensor.g_add_(&(&direction * offset));
            objective(model, tokens, run).double_value(&[])
        };
        let (above, below) = (at(STEP), at(-2.0 * STEP));
        at(STEP);
        let numeric = (above - below) / (2.0 * STEP);
        let analytic = (gradient * direction).sum(Kind::Double).double_value(&[]);
        let error = (numeric - analytic).abs() / (1.0 + analytic.abs());
        assert!(error < 1e-5, "{name}: {parameter} {analytic} is not {numeric}");
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (name, config) in architectures() {
        let tokens = tokens(&config, 2, 4);
        for run in [Run::FULL, Run::LAST_POSITION] {
            let model = Transformer::new(config.clone(), random_weights(&config, 1)).unwrap();
            check(name, &model, &tokens, &run);
        }
        let members = [random_weights(&config, 2), random_weights(&config, 3)];
        let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
        let population = Transformer::population(config.clone(), stacked).unwrap();
        check(&format!("{name}, population"), &population, &tokens, &Run::LAST_POSITION);
    }
}

/// The tensors of the model are those that were given: a step on them is a step of the model.
#[test]
fn training_in_place_learns() {
    tch::set_num_threads(1);
    let config = Config::toy(1, 16, 2, 7, 3);
    let weights = init::weights(&config, 0, |_| 0.25, Device::Cpu);
    let mut parameters: Vec<Tensor> = weights.iter().map(|(_, w)| w.shallow_clone()).collect();
    let model = Transformer::new(config.clone(), weights).unwrap();
    model.weights().set_requires_grad(true);
    let tokens = tokens(&config, 10, 3);
    let targets = tokens.select(1, 0);
    let loss = || {
        let logits = model.forward(&tokens, &Run::LAST_POSITION, &mut ()).squeeze_dim(1);
        logits.cross_entropy_for_logits(&targets)
    };
    let before = loss().double_value(&[]);
    for _ in 0..200 {
        let gradients = Tensor::run_backward(&[loss()], &parameters, false, false);
        tch::no_grad(|| {
            for (parameter, gradient) in parameters.iter_mut().zip(gradients) {
                let _moved = parameter.g_sub_(&(gradient * 0.3));
            }
        });
    }
    let after = loss().double_value(&[]);
    assert!(before > 1.5 && after < 0.1, "{before} to {after}");
    // Copies are independent of it.
    let copy = model.weights().copy();
    let logits = model.forward(&tokens, &Run::FULL, &mut ()).detach();
    tch::no_grad(|| parameters.iter_mut().for_each(|parameter| drop(parameter.zero_())));
    let copied = Transformer::new(config, copy).unwrap().forward(&tokens, &Run::FULL, &mut ());
    assert_close("copy", &copied, &logits, 0.0);
}
