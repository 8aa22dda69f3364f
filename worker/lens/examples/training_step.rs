//! Times one training step (forward, f64 cross entropy, backward) of the modular-addition model with
//! p = 71 on one thread, alone and as a population.
//!
//! `cargo run --release -p sweep-lens --example training_step [n_models] [n_steps]`
#![expect(clippy::print_stdout, reason = "a report for the person who runs it")]

use std::{env, time::Instant};

use sweep_lens::{Config, Device, Kind, Run, Tensor, Transformer, Weights, init};

const P: i64 = 71;
const BATCH: i64 = 2016;

fn main() -> Result<(), sweep_lens::Error> {
    tch::set_num_threads(1);
    let mut arguments = env::args().skip(1).filter_map(|argument| argument.parse::<u32>().ok());
    let n_models = arguments.next().unwrap_or(1);
    let n_steps = arguments.next().unwrap_or(200);
    let config = Config { d_mlp: 256, d_vocab_out: P, ..Config::toy(1, 64, 4, P + 1, 3) };
    let draw = |seed| init::weights(&config, seed, |_| 0.125, Device::Cpu);
    let model = if n_models == 1 {
        Transformer::new(config.clone(), draw(0))?
    } else {
        let members: Vec<Weights> = (0..u64::from(n_models)).map(draw).collect();
        let members: Vec<&Weights> = members.iter().collect();
        Transformer::population(config.clone(), Weights::stack(&members)?)?
    };
    model.weights().set_requires_grad(true);
    let pairs = Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)) * 5;
    let pairs = pairs.remainder(P * P);
    let (a, b) = (pairs.floor_divide_scalar(P), pairs.remainder(P));
    let tokens = Tensor::stack(&[&a, &b, &a.full_like(P)], 1);
    let targets = (a + b).remainder(P).repeat([i64::from(n_models)]);
    let parameters: Vec<Tensor> = model.weights().iter().map(|(_, w)| w.shallow_clone()).collect();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..n_steps {
        let start = Instant::now();
        let logits = model.forward(&tokens, &Run::LAST_POSITION, &mut ());
        let logits = logits.reshape([-1, P]).to_kind(Kind::Double);
        let loss = logits.cross_entropy_for_logits(&targets) * f64::from(n_models);
        times[0].push(start.elapsed().as_secs_f64() * 1e3);
        let _gradients = Tensor::run_backward(&[loss], &parameters, false, false);
        times[1].push(start.elapsed().as_secs_f64() * 1e3);
    }
    let [forward, step] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        (times[0], times[times.len() / 2])
    });
    println!(
        "{n_models} models: forward {:.2} ms (best {:.2}), step {:.2} ms (best {:.2})",
        forward.1, forward.0, step.1, step.0
    );
    Ok(())
}
