//! Matrix factorisation: the smallest model whose loss falls in an S.
//!
//! # What it trains
//! A chain of `depth` matrices of width `rank` whose product should be a fixed random n × n matrix of rank `target_rank`
//! (a b^T of Jermyn and Shlegeris, and longer chains: three factors are like queries, keys and values). The loss is half
//! the squared distance, over all rows or `batch` random ones (then scaled up). `output: softmax` compares rows as
//! distributions instead, `layer_norm` normalises what stands between the factors; `optimizer`, `momentum` and `weight_decay`
//! are the other deviations from gradient flow.
//!
//! # Interpretation
//! One matrix alone (no such recipe: that is a linear regression) falls exponentially at once. A product starts on a
//! plateau, because each factor's gradient is small while the others are, and then drops: with t the step at which the drop is half
//! done, t grows like ln(1/init_scale) for two factors and like init_scale^-(depth-2) for more. A higher rank has
//! more random starts and drops earlier. Adam takes the dependence on the scale away.
//!
//! # Source
//! Jermyn and Shlegeris 2022, "Multi-component learning and S-curves"; Saxe et al. 2014 (linear chains).

use sweep_lens::{
    ActFn, Config, Device, Kind, Normalization, Run, Tensor, Transformer, Weights, init,
};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::TokenSet,
    optimizer::{AdamWConfig, Rule, Schedule, SgdConfig},
    params::{ParamSet, params},
    random,
    recipe::{Objective, Plan, Recipe},
};

/// See the module documentation.
pub struct SCurve;

params! {
    /// Problem, model and optimizer; the defaults are rank one on rank one.
    pub struct Params {
        /// Rows and columns of the target.
        n: i64 = 100, min = 2.0, max = 4096.0;
        /// Width of the factors.
        rank: i64 = 1, min = 1.0, max = 4096.0;
        /// Rank of the target.
        target_rank: i64 = 1, min = 1.0, max = 4096.0, at_most = n;
        /// Factors.
        depth: i64 = 2, min = 2.0, max = 16.0;
        /// Standard deviation of the initial entries.
        init_scale: f64 = 1e-2, min = 0.0;
        /// Factor of the target.
        target_scale: f64 = 1.0;
        /// What is compared: the product itself, or its rows as distributions.
        output: String = "linear".to_owned(), choices = ["linear", "softmax"];
        /// Whether what stands between factors is normalised; needs a rank of at least 2.
        layer_norm: bool = false;
        /// Rows per update; 0 is all.
        batch: u64 = 0, max = 65536.0, at_most = n;
        /// How parameters are updated.
        optimizer: String = "sgd".to_owned(), choices = ["sgd", "adam"];
        /// Learning rate.
        lr: f64 = 0.02, min = 0.0;
        /// Momentum of gradient descent.
        momentum: f64 = 0.0, min = 0.0, max = 0.999_999;
        /// Weight decay: added to the gradient (sgd) or decoupled (adam).
        weight_decay: f64 = 0.0, min = 0.0;
        /// Updates in all.
        steps: u64 = 200, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 1, min = 1.0;
        /// Seed of the target and of batches; -1 is the seed of the run.
        data_seed: i64 = -1, min = -1.0;
    }
}

impl Params {
    fn data_seed(&self, seed: u64) -> u64 {
        u64::try_from(self.data_seed).unwrap_or(seed)
    }

    /// U V / sqrt(n), entries of U and V standard normal: f64 `[n, n]`, with the bases of its columns
    /// `[n, target_rank]` and rows.
    fn target(&self, seed: u64) -> [Tensor; 3] {
        let factor = |name: &str, shape: [i64; 2]| {
            init::normal(seed, name, &shape, 1.0, Device::Cpu).to_kind(Kind::Double)
        };
        let (u, v) = (
            factor("s-curve/target/left", [self.n, self.target_rank]),
            factor("s-curve/target/right", [self.target_rank, self.n]),
        );
        let target = u.matmul(&v) * (self.target_scale / (self.n as f64).sqrt());
        let basis = |columns: &Tensor| Tensor::linalg_qr(columns, "reduced").0;
        [target, basis(&u), basis(&v.transpose(0, 1))]
    }
}

impl Recipe for SCurve {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "s-curve",
        version: 1,
        summary: "Factorises a random matrix, the toy model of plateaus and sudden drops",
        source: "Jermyn and Shlegeris 2022, Multi-component learning and S-curves",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        if params.layer_norm && params.rank < 2 {
            return Err(Error::params(
                "layer_norm",
                "a single component is always normalised to 0",
            ));
        }
        Ok(())
    }

    fn config(&self, params: &Params) -> Config {
        let normalization =
            if params.layer_norm { Normalization::LnPre } else { Normalization::None };
        Config {
            act_fn: ActFn::Identity,
            normalization,
            ..Config::mlp(params.depth - 1, params.n, params.rank, params.n, 1)
        }
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        init::weights(&Recipe::config(self, params), seed, |_| params.init_scale, Device::Cpu)
    }

    fn plan(&self, params: &Params) -> Plan {
        let Params { lr, momentum, weight_decay, steps, eval_every, .. } = *params;
        let optimizer = if params.optimizer == "adam" {
            let (beta1, beta2) = (0.9, 0.999);
            Rule::AdamW(AdamWConfig { lr, beta1, beta2, eps: 1e-8, weight_decay })
        } else {
            Rule::Sgd(SgdConfig { momentum, weight_decay })
        };
        Plan::new(steps, eval_every, optimizer, Schedule { peak: lr, warmup: 0 })
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        let order_seeds: Vec<u64> = seeds.iter().map(|&seed| params.data_seed(seed)).collect();
        let targets: Vec<[Tensor; 3]> =
            order_seeds.iter().map(|&seed| params.target(seed)).collect();
        let stack = |part: usize| {
            let parts: Vec<&Tensor> = targets.iter().map(|target| &target[part]).collect();
            Tensor::stack(&parts, 0).to_device(device)
        };
        Ok(Box::new(Factorisation {
            n: params.n,
            batch: params.batch as usize,
            is_softmax: params.output == "softmax",
            last: params.depth - 1,
            target: stack(0),
            bases: [stack(1), stack(2)],
            order_seeds,
            device,
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        TokenSet {
            tokens: rows(params.n, device),
            rows_per_batch: params.n,
            last_position_only: true,
        }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        // A step is some microseconds of arithmetic; all else is overhead that a group pays once.
        if device.is_cuda() { 256 } else { 16 }
    }
}

/// Every row of the product, one input each: i64 `[n, 1]`.
fn rows(n: i64, device: Device) -> Tensor {
    Tensor::arange(n, (Kind::Int64, device)).unsqueeze(1)
}

/// Distance of a product of factors from a matrix.
struct Factorisation {
    n: i64,
    batch: usize,
    is_softmax: bool,
    /// Index of the last factor.
    last: i64,
    /// f64 `[n_models, n, n]`
    target: Tensor,
    /// Orthonormal bases of the target's columns and rows, f64 `[n_models, n, target_rank]`.
    bases: [Tensor; 2],
    order_seeds: Vec<u64>,
    device: Device,
}

impl Factorisation {
    /// Loss of each model, `[n_models]`. `product`, `target`: f64 `[n_models, rows, n]`.
    fn distance(&self, product: &Tensor, target: &Tensor) -> Tensor {
        let sum = |x: &Tensor| x.sum_dim_intlist(&[1i64, 2][..], false, Kind::Double);
        if self.is_softmax {
            let (p, q) =
                (target.log_softmax(-1, Kind::Double), product.log_softmax(-1, Kind::Double));
            return sum(&(p.exp() * (p - q)));
        }
        sum(&(product - target).square()) * 0.5
    }

    fn product(&self, model: &Transformer, tokens: &Tensor) -> Tensor {
        let product = model.forward(tokens, &Run::FULL, &mut ()).to_kind(Kind::Double);
        product.reshape([self.order_seeds.len() as i64, -1, self.n])
    }

    /// Rows of one update, i64 `[n_models, batch]`.
    fn batch(&self, step: u64) -> Tensor {
        let of_model = |&seed: &u64| {
            let mut rng = random::stream(seed, &format!("s-curve/batch/{step}"));
            Tensor::from_slice(&random::permutation(&mut rng, self.n as usize)[..self.batch])
        };
        let rows: Vec<Tensor> = self.order_seeds.iter().map(of_model).collect();
        Tensor::stack(&rows, 0).to_device(self.device)
    }
}

impl Objective for Factorisation {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let is_whole = self.batch == 0 || self.batch as i64 == self.n;
        let loss = if is_whole {
            self.distance(&self.product(model, &rows(self.n, self.device)), &self.target)
        } else {
            let rows = self.batch(step);
            let tokens = if model.n_models().is_some() {
                rows.unsqueeze(-1)
            } else {
                rows.get(0).unsqueeze(-1)
            };
            let index = rows.unsqueeze(-1).expand([-1, -1, self.n], false);
            let scale = self.n as f64 / self.batch as f64;
            self.distance(&self.product(model, &tokens), &self.target.gather(1, &index, false))
                * scale
        };
        if model.n_models().is_some() { loss } else { loss.squeeze_dim(0) }
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        seeds.clone_into(&mut self.order_seeds);
        self.batch != 0 && (self.batch as i64) < self.n
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let n_models = self.order_seeds.len() as i64;
        let product = self.product(model, &rows(self.n, self.device));
        let factor = |layer: i64| {
            let factor = model.weights().require(&format!("layers.{layer}.W"));
            let factor = factor.expect("a chain has all its factors").to_kind(Kind::Double);
            let [rows, columns] =
                [-2, -1].map(|axis: i64| factor.size()[(factor.dim() as i64 + axis) as usize]);
            factor.reshape([n_models, rows, columns])
        };
        let norm =
            |x: &Tensor| x.square().sum_dim_intlist(&[1i64, 2][..], false, Kind::Double).sqrt();
        let (first, last) = (factor(0), factor(self.last).transpose(1, 2));
        // How much of a factor lies in the directions that the target needs.
        let share = |factor: &Tensor, basis: &Tensor| {
            norm(&basis.transpose(1, 2).matmul(factor)) / norm(factor)
        };
        vec![
            ("train_loss", self.distance(&product, &self.target)),
            ("product_norm", norm(&product)),
            ("component_norm", Tensor::stack(&[norm(&first), norm(&last)], 1)),
            (
                "component_cos",
                Tensor::stack(&[share(&first, &self.bases[0]), share(&last, &self.bases[1])], 1),
            ),
        ]
    }
}

const METRICS: &[MetricDef] = &[
    scalar("train_loss", Unit::SquaredNorm, "Half the squared distance (softmax: nats, all rows)"),
    scalar("product_norm", Unit::Norm, "Frobenius norm of the product"),
    MetricDef {
        name: "component_norm",
        unit: Unit::Norm,
        axes: &[Axis::Component],
        doc: "Frobenius norm of the first and the last factor",
    },
    MetricDef {
        name: "component_cos",
        unit: Unit::Ratio,
        axes: &[Axis::Component],
        doc: "Share of the first and the last factor in the target's directions",
    },
    scalar("weight_norm", Unit::SquaredNorm, "Sum of squares of all parameters"),
    scalar("lr", Unit::Dimensionless, "Learning rate of the next update"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "loss",
        title: "Loss",
        kind: FigureKind::Lines,
        metrics: &["train_loss"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "components",
        title: "Factors turn towards the target",
        kind: FigureKind::Lines,
        metrics: &["component_cos"],
        log_x: false,
        log_y: false,
    },
];
