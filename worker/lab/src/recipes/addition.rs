//! Addition of n-digit numbers: a small model that learns digit by digit.
//!
//! # What it trains
//! A ReLU transformer without norms on `a + b = c` (D9), most significant digit first (or the answer reversed), the
//! answer's earlier digits given; loss only on the n + 1 answer digits. Every batch is fresh, or drawn in
//! random order from `n_examples` sums (0: fresh; the whole set at once if `batch` is 0).
//!
//! # Interpretation
//! The total loss looks smooth, yet each digit falls by itself: the leading digit (a carry, nearly a coin) first,
//! middle and units digits in an order that differs between seeds. Losses by sub-task show what is missing:
//! digits that need a carry, then carries through columns that sum to nine. Few examples give grokking instead.
//! With weight decay 1 and batches of 64 at least two digits stay unlearned: a negative control.
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217, appendix on 5-digit addition; sub-tasks after Quirke and Barez 2023,
//! arXiv 2310.13121.

use sweep_lens::{Config, Device, Kind, Run, Tensor, Transformer, Weights};

use crate::{
    addition_task::{FIGURES, METRICS, Probe, Reading, losses},
    card::{Card, Requires, Stage},
    data::addition::{Generator, Sums},
    error::{Error, Result},
    experiment::TokenSet,
    modular,
    optimizer::{AdamWConfig, Schedule},
    params::{ParamSet, params},
    random,
    recipe::{Objective, Plan, Recipe},
};

/// See the module documentation.
pub struct Addition;

/// Name of the recipe, which analyses of its models require.
pub(crate) const NAME: &str = "addition";

params! {
    /// Task, architecture and optimizer.
    pub struct Params {
        /// Digits of each number.
        n_digits: i64 = 5, min = 1.0, max = 18.0;
        /// Order in which the answer is asked for.
        answer: String = "msd-first".to_owned(), choices = ["msd-first", "lsd-first"];
        /// Probability that a column sums to ten or more; -1 draws digits uniformly, which gives 0.45.
        carry_rate: f64 = -1.0, min = -1.0, max = 1.0;
        /// Different sums to train on; 0 draws fresh ones for every batch.
        n_examples: u64 = 0, max = 1_000_000.0;
        /// Sums per update; 0 takes all of a finite set.
        batch: u64 = 64, max = 65536.0;
        /// Layers.
        n_layers: i64 = 1, min = 1.0, max = 16.0;
        /// Width of the residual stream.
        d_model: i64 = 128, min = 1.0, max = 4096.0;
        /// Attention heads; they share d_model.
        n_heads: i64 = 4, min = 1.0, max = 64.0, divides = d_model;
        /// Neurons per layer.
        d_mlp: i64 = 512, min = 1.0, max = 16384.0;
        /// Learning rate after the warm-up.
        lr: f64 = 1e-3, min = 0.0;
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0, min = 0.0;
        /// Decay of the first moment.
        beta1: f64 = 0.9, min = 0.0, max = 0.999_999;
        /// Decay of the second moment.
        beta2: f64 = 0.98, min = 0.0, max = 0.999_999;
        /// Updates over which the learning rate rises.
        warmup: u64 = 0, min = 0.0;
        /// Updates in all.
        steps: u64 = 3_000, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 25, min = 1.0;
        /// Sums that metrics are computed on.
        eval_size: u64 = 1024, min = 1.0, max = 65536.0;
        /// Seed of the data; -1 is the seed of the run.
        data_seed: i64 = -1, min = -1.0;
    }
}

impl Params {
    pub(crate) fn generator(&self) -> Generator {
        Generator {
            n_digits: self.n_digits as usize,
            carry_rate: (self.carry_rate >= 0.0).then_some(self.carry_rate),
            reversed: self.answer == "lsd-first",
        }
    }

    pub(crate) fn data_seed(&self, seed: u64) -> u64 {
        u64::try_from(self.data_seed).unwrap_or(seed)
    }

    /// The finite training set of a data seed; empty if every batch is fresh.
    fn examples(&self, data_seed: u64) -> Vec<Vec<(i64, i64)>> {
        let mut rng = random::stream(data_seed, "addition/examples");
        let (generator, mut examples) = (self.generator(), Vec::new());
        let mut seen = std::collections::HashSet::new();
        while (examples.len() as u64) < self.n_examples {
            let pair = generator.draw(&mut rng);
            if seen.insert(pair.clone()) {
                examples.push(pair);
            }
        }
        examples
    }

    /// Sums for metrics: of the training set (of its distribution, if batches are fresh), and held out.
    pub(crate) fn evaluation(&self, data_seed: u64) -> [Sums; 2] {
        let (generator, size) = (self.generator(), self.eval_size as usize);
        let examples = self.examples(data_seed);
        let mut train: Vec<_> = examples.iter().take(size).cloned().collect();
        let mut rng = random::stream(data_seed, "addition/evaluation");
        if examples.is_empty() {
            train = (0..size).map(|_| generator.draw(&mut rng)).collect();
        }
        let known: std::collections::HashSet<_> = examples.into_iter().collect();
        let mut test = Vec::with_capacity(size);
        while test.len() < size {
            let pair = generator.draw(&mut rng);
            if !known.contains(&pair) {
                test.push(pair);
            }
        }
        [generator.write(&train), generator.write(&test)]
    }

    /// How many different sums there are, and can be drawn with the carry rate.
    fn n_possible(&self) -> f64 {
        let columns: f64 = match self.carry_rate {
            rate if rate < 0.0 => 100.0,
            0.0 => 55.0,
            1.0 => 45.0,
            _ => 100.0,
        };
        columns.powi(self.n_digits as i32)
    }
}

impl Recipe for Addition {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: NAME,
        version: 1,
        summary: "Trains a small transformer on n-digit addition, digit by digit",
        source: "Nanda et al. 2023, arXiv 2301.05217; Quirke and Barez 2023, arXiv 2310.13121",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        let fail = |name: &str, problem: String| Err(Error::params(name, problem));
        if params.batch == 0 && params.n_examples == 0 {
            return fail("batch", "0 takes all examples, but batches are fresh".to_owned());
        }
        if (-1.0 < params.carry_rate) && params.carry_rate < 0.0 {
            return fail(
                "carry_rate",
                format!("expected 0 to 1, or -1, found {}", params.carry_rate),
            );
        }
        // Beyond half of all sums, distinct ones become hard to find and none is left to test on.
        if params.n_examples as f64 > 0.5 * params.n_possible() {
            let (n, all) = (params.n_examples, params.n_possible());
            return fail("n_examples", format!("{n} is more than half of all {all} sums"));
        }
        Ok(())
    }

    fn config(&self, params: &Params) -> Config {
        let n_ctx = params.generator().n_ctx();
        Config {
            d_mlp: params.d_mlp,
            d_vocab_out: 10,
            ..Config::toy(params.n_layers, params.d_model, params.n_heads, 12, n_ctx)
        }
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        let config = Recipe::config(self, params);
        modular::initial(&config, 1.0 / (config.d_vocab_out as f64).sqrt(), seed)
    }

    fn plan(&self, params: &Params) -> Plan {
        let &Params { lr, weight_decay, beta1, beta2, warmup, steps, eval_every, .. } = params;
        let optimizer = AdamWConfig { lr, beta1, beta2, eps: 1e-8, weight_decay };
        let schedule = Schedule { peak: lr, warmup };
        Plan::new(steps, eval_every, optimizer.into(), schedule)
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        let data_seeds: Vec<u64> = seeds.iter().map(|&seed| params.data_seed(seed)).collect();
        let examples = data_seeds.iter().map(|&seed| params.examples(seed)).collect();
        let probes: Vec<[Sums; 2]> =
            data_seeds.iter().map(|&seed| params.evaluation(seed)).collect();
        let part = |index: usize| {
            let sums: Vec<&Sums> = probes.iter().map(|probe| &probe[index]).collect();
            Probe::new(&sums, params.n_digits as usize, device)
        };
        Ok(Box::new(Batches {
            generator: params.generator(),
            batch: params.batch as usize,
            examples,
            order_seeds: data_seeds,
            train: part(0),
            test: part(1),
            device,
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let [_, test] = params.evaluation(params.data_seed(0));
        let (tokens, _) = test.tensors(params.n_digits as usize, device);
        TokenSet { tokens, rows_per_batch: 1024, last_position_only: false }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        if device.is_cuda() { 16 } else { 1 }
    }
}

/// Fresh batches, or a finite set in random order.
struct Batches {
    generator: Generator,
    batch: usize,
    /// Finite set of each model; empty if batches are fresh.
    examples: Vec<Vec<Vec<(i64, i64)>>>,
    order_seeds: Vec<u64>,
    train: Probe,
    test: Probe,
    device: Device,
}

impl Batches {
    /// The sums of one model at `step`.
    fn sums(&self, model: usize, step: u64) -> Sums {
        let (examples, seed) = (&self.examples[model], self.order_seeds[model]);
        if examples.is_empty() {
            let mut rng = random::stream(seed, &format!("addition/batch/{step}"));
            return self.generator.batch(&mut rng, self.batch);
        }
        if self.batch == 0 || self.batch >= examples.len() {
            return self.generator.write(examples);
        }
        // Batches walk through one epoch's order after the other.
        let n = examples.len() as u64;
        let start = step * self.batch as u64;
        let mut epoch = None;
        let pairs: Vec<_> = (start..start + self.batch as u64)
            .map(|place| {
                if epoch.as_ref().is_none_or(|(number, _)| *number != place / n) {
                    let purpose = format!("addition/order/{}", place / n);
                    let mut rng = random::stream(seed, &purpose);
                    epoch = Some((place / n, random::permutation(&mut rng, n as usize)));
                }
                let (_, order) = epoch.as_ref().expect("made just before");
                examples[order[(place % n) as usize] as usize].clone()
            })
            .collect();
        self.generator.write(&pairs)
    }
}

impl Objective for Batches {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let n_digits = self.generator.n_digits;
        let batches: Vec<(Tensor, Tensor)> = (0..self.order_seeds.len())
            .map(|index| self.sums(index, step).tensors(n_digits, Device::Cpu))
            .collect();
        let (tokens, labels) = if model.n_models().is_some() {
            let (tokens, labels): (Vec<Tensor>, Vec<Tensor>) = batches.into_iter().unzip();
            (Tensor::stack(&tokens, 0), Tensor::stack(&labels, 0))
        } else {
            batches.into_iter().next().expect("a group has at least one model")
        };
        let (tokens, labels) = (tokens.to_device(self.device), labels.to_device(self.device));
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        losses(&logits, &labels).mean_dim(&[-2i64, -1][..], false, Kind::Double)
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        let is_whole = |examples: &Vec<Vec<(i64, i64)>>| {
            !examples.is_empty() && (self.batch == 0 || self.batch >= examples.len())
        };
        if self.examples.iter().any(is_whole) {
            return false;
        }
        seeds.clone_into(&mut self.order_seeds);
        true
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let Reading { loss: train_loss, acc: train_acc, .. } = self.train.read(model);
        let test = self.test.read(model);
        let mut metrics = vec![
            ("train_loss", train_loss),
            ("train_acc", train_acc),
            ("test_loss", test.loss),
            ("test_acc", test.acc),
            ("loss_digit", test.loss_digit),
            ("acc_digit", test.acc_digit),
            ("loss_cascade", test.loss_cascade),
        ];
        metrics.extend(
            ["loss_base", "loss_make_carry", "loss_use_sum9", "loss_no_carry9"]
                .into_iter()
                .zip(test.loss_sub_task),
        );
        metrics
    }
}
