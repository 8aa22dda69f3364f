//! Weight matching by coordinate descent and activation matching, with exact assignments (D34).
//!
//! Main function: [`weight_matching`]. Every step replaces one permutation by the best one given all others and is
//! kept only if the inner product of the two models grows, so that the objective never falls. Heads are
//! compared by their QK and OV maps, which know no basis, and then rotated onto their partners (D34t).

use rand::Rng;
use sweep_lens::{Config, Device, Kind, Tensor, Weights};

use super::{
    assignment::{assign_max, objective},
    symmetry::{HeadSymmetry, Symmetries, Symmetry},
};
use crate::{
    error::{Error, Result},
    random,
    value::to_vec,
};

/// Least gain for which a permutation is replaced: rounding must not keep the descent alive.
const LEAST_GAIN: f64 = 1e-12;
/// Sweeps over all permutations, at most.
const MAX_SWEEPS: usize = 100;

/// Model b, brought close to model a.
#[derive(Debug)]
pub struct Matching {
    /// The weights of b in their new order (and, for heads, basis), element type and device as before.
    pub weights: Weights,
    /// For each permutation by name: `order[i]` is the unit of b that took place i.
    pub orders: Vec<(String, Vec<i64>)>,
    /// Inner product of a with b before and after.
    pub inner_product: [f64; 2],
    /// Sweeps over all permutations until none improved.
    pub sweeps: usize,
}

/// Permutes the hidden units of `b` so that its inner product with `a` is as large as coordinate descent gets it.
///
/// # Errors
/// Tensors that one model lacks or that differ in shape; values that are not finite.
pub fn weight_matching(
    config: &Config,
    a: &Weights,
    b: &Weights,
    rng: &mut impl Rng,
) -> Result<Matching> {
    check_alike(a, b)?;
    let symmetries = Symmetries::of(config);
    let exact = |weights: &Weights| weights.copy().to_device(Device::Cpu).to_kind(Kind::Double);
    let a = exact(a);
    let mut descent = Descent { orders: identity(&symmetries, config), b: exact(b), a };
    let before = descent.inner_product()?;
    let n_plain = symmetries.permutations.len();
    let mut sweeps = 0;
    while sweeps < MAX_SWEEPS {
        sweeps += 1;
        let mut improved = false;
        for place in random::permutation(rng, n_plain + symmetries.heads.len()) {
            let place = place as usize;
            improved |= match symmetries.permutations.get(place) {
                Some(symmetry) => descent.permute(symmetry, place)?,
                None => descent.match_heads(symmetries.heads[place - n_plain], place, config)?,
            };
        }
        if !improved {
            break;
        }
    }
    let after = descent.inner_product()?;
    let weights = b.iter().map(|(name, tensor)| {
        let matched = descent.b.require(name)?;
        Ok((name.to_owned(), matched.to_kind(tensor.kind()).to_device(tensor.device())))
    });
    Ok(Matching {
        weights: weights.collect::<Result<_>>()?,
        orders: descent.orders,
        inner_product: [before, after],
        sweeps,
    })
}

/// The order of units of b whose activations fit those of a best: unit `order[i]` of b for unit i of a.
/// `a`, `b`: `[n_examples, n_units]`.
///
/// # Errors
/// Shapes that differ; activations that are not finite.
pub fn activation_matching(a: &Tensor, b: &Tensor) -> Result<Vec<i64>> {
    if a.dim() != 2 || a.size() != b.size() {
        return Err(Error::Input(format!(
            "expected activations of one shape, found {:?} and {:?}",
            a.size(),
            b.size()
        )));
    }
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let scores = to_vec(&a.transpose(0, 1).matmul(&b));
    let order = assign_max(&scores, a.size()[1] as usize)?;
    Ok(order.into_iter().map(|unit| unit as i64).collect())
}

fn check_alike(a: &Weights, b: &Weights) -> Result<()> {
    if let Some(name) = b.names().find(|name| a.get(name).is_none()) {
        return Err(Error::Input(format!("only one of the models has `{name}`")));
    }
    for (name, tensor) in a.iter() {
        let other = b.require(name)?;
        if tensor.size() != other.size() {
            return Err(Error::Input(format!(
                "`{name}` is {:?} in one model and {:?} in the other",
                tensor.size(),
                other.size()
            )));
        }
    }
    a.check_finite()?;
    Ok(b.check_finite()?)
}

fn identity(symmetries: &Symmetries, config: &Config) -> Vec<(String, Vec<i64>)> {
    let plain = symmetries.permutations.iter().map(|s| (s.name.clone(), (0..s.size).collect()));
    let heads = symmetries.heads.iter();
    let heads = heads.map(|h| (format!("heads.{}", h.layer), (0..config.n_heads).collect()));
    plain.chain(heads).collect()
}

/// Model a, and model b on its way.
struct Descent {
    a: Weights,
    b: Weights,
    orders: Vec<(String, Vec<i64>)>,
}

impl Descent {
    fn inner_product(&self) -> Result<f64> {
        let mut total = 0.0;
        for (name, a) in self.a.iter() {
            total += (a * self.b.require(name)?).sum(Kind::Double).double_value(&[]);
        }
        Ok(total)
    }

    fn permute(&mut self, symmetry: &Symmetry, place: usize) -> Result<bool> {
        let n = symmetry.size as usize;
        let scores = to_vec(&symmetry.similarity(&self.a, &self.b));
        let order = assign_max(&scores, n)?;
        let now: f64 = (0..n).map(|unit| scores[unit * n + unit]).sum();
        if objective(&scores, &order) <= now + LEAST_GAIN {
            return Ok(false);
        }
        let order: Vec<i64> = order.into_iter().map(|unit| unit as i64).collect();
        symmetry.permute(&mut self.b, &order);
        self.compose(place, &order);
        Ok(true)
    }

    fn compose(&mut self, place: usize, order: &[i64]) {
        let total = &mut self.orders[place].1;
        *total = order.iter().map(|&unit| total[unit as usize]).collect();
    }

    fn match_heads(&mut self, heads: HeadSymmetry, place: usize, config: &Config) -> Result<bool> {
        let before = self.inner_product()?;
        let n = config.n_heads;
        let (a, b) = (Heads::of(&self.a, heads.layer)?, Heads::of(&self.b, heads.layer)?);
        let scores: Vec<f64> =
            (0..n * n).map(|cell| similarity(&a.head(cell / n), &b.head(cell % n))).collect();
        let order: Vec<i64> =
            assign_max(&scores, n as usize)?.into_iter().map(|head| head as i64).collect();
        let mut moved = b.permuted(&order);
        for head in 0..n {
            moved.rotate_onto(&a, head, heads.rotates_queries);
        }
        let kept = self.b.shallow_clone();
        moved.write(&mut self.b, heads.layer);
        // Maps can be alike while their factors, which are what is interpolated, get no closer.
        if self.inner_product()? <= before + LEAST_GAIN {
            self.b = kept;
            return Ok(false);
        }
        self.compose(place, &order);
        Ok(true)
    }
}

/// Heads of one layer; biases are one more row of their matrices.
struct Heads {
    /// `[head, d_model (+ 1), d_head]` for W_Q, W_K, W_V.
    reading: [Tensor; 3],
    has_bias: [bool; 3],
    /// `[head, d_head, d_model]`
    w_o: Tensor,
}

const READING: [(&str, &str); 3] = [("W_Q", "b_Q"), ("W_K", "b_K"), ("W_V", "b_V")];

impl Heads {
    fn of(weights: &Weights, layer: i64) -> Result<Self> {
        let name = |part: &str| format!("blocks.{layer}.attn.{part}");
        let mut has_bias = [false; 3];
        let mut reading = Vec::with_capacity(3);
        for (index, (w, b)) in READING.iter().enumerate() {
            let w = weights.require(&name(w))?;
            reading.push(match weights.get(&name(b)) {
                Some(b) => {
                    has_bias[index] = true;
                    Tensor::cat(&[w, &b.unsqueeze(1)], 1)
                }
                None => w.copy(),
            });
        }
        let reading = reading.try_into().expect("three matrices were read");
        Ok(Self { reading, has_bias, w_o: weights.require(&name("W_O"))?.copy() })
    }

    fn head(&self, head: i64) -> [Tensor; 4] {
        let [q, k, v] = &self.reading;
        [q.get(head), k.get(head), v.get(head), self.w_o.get(head).transpose(0, 1)]
    }

    fn permuted(&self, order: &[i64]) -> Self {
        let index = Tensor::from_slice(order);
        let pick = |tensor: &Tensor| tensor.index_select(0, &index);
        Self {
            reading: std::array::from_fn(|part| pick(&self.reading[part])),
            has_bias: self.has_bias,
            w_o: pick(&self.w_o),
        }
    }

    /// Gives a head the basis in which it is closest to the same head of `a`.
    fn rotate_onto(&mut self, a: &Self, head: i64, queries: bool) {
        let [q, k, v, o] = self.head(head);
        let [a_q, a_k, a_v, a_o] = a.head(head);
        if queries {
            let rotation = procrustes(&[(&q, &a_q), (&k, &a_k)]);
            self.reading[0].get(head).copy_(&q.matmul(&rotation));
            self.reading[1].get(head).copy_(&k.matmul(&rotation));
        }
        let rotation = procrustes(&[(&v, &a_v), (&o, &a_o)]);
        self.reading[2].get(head).copy_(&v.matmul(&rotation));
        self.w_o.get(head).copy_(&o.matmul(&rotation).transpose(0, 1));
    }

    fn write(self, weights: &mut Weights, layer: i64) {
        let name = |part: &str| format!("blocks.{layer}.attn.{part}");
        for (index, (w, b)) in READING.iter().enumerate() {
            let rows = self.reading[index].size()[1] - i64::from(self.has_bias[index]);
            weights.insert(name(w), self.reading[index].narrow(1, 0, rows).contiguous());
            if self.has_bias[index] {
                weights.insert(name(b), self.reading[index].select(1, rows).contiguous());
            }
        }
        weights.insert(name("W_O"), self.w_o);
    }
}

/// `<QK_a, QK_b> + <OV_a, OV_b>`, through `[d_head, d_head]` products.
fn similarity(a: &[Tensor; 4], b: &[Tensor; 4]) -> f64 {
    let product = |left: usize, right: usize| {
        let left = a[left].transpose(0, 1).matmul(&b[left]);
        let right = a[right].transpose(0, 1).matmul(&b[right]);
        (left * right).sum(Kind::Double).double_value(&[])
    };
    product(0, 1) + product(2, 3)
}

/// The orthogonal R for which all `x R` are closest to their `target`: U V^T of Σ x^T target.
fn procrustes(pairs: &[(&Tensor, &Tensor)]) -> Tensor {
    let products: Vec<Tensor> =
        pairs.iter().map(|(x, target)| x.transpose(0, 1).matmul(target)).collect();
    let total = Tensor::stack(&products, 0).sum_dim_intlist(&[0i64][..], false, Kind::Double);
    let (u, _, v) = total.svd(true, true);
    u.matmul(&v.transpose(0, 1))
}

#[cfg(test)]
mod tests {
    use sweep_lens::{ActFn, Normalization, Run, Transformer, init};

    use super::*;

    fn drawn(config: &Config, seed: u64) -> Weights {
        config
            .parameters()
            .into_iter()
            .map(|p| (p.name.clone(), init::normal(seed, &p.name, &p.shape, 0.4, Device::Cpu)))
            .collect()
    }

    fn shuffled(config: &Config, weights: &Weights, seed: u64) -> Weights {
        let mut shuffled = weights.copy();
        for symmetry in &Symmetries::of(config).permutations {
            let mut rng = random::stream(seed, &symmetry.name);
            let order = random::permutation(&mut rng, symmetry.size as usize);
            symmetry.permute(&mut shuffled, &order);
        }
        shuffled
    }

    fn difference(a: &Weights, b: &Weights) -> f64 {
        let largest = a
            .iter()
            .map(|(name, tensor)| (tensor - b.get(name).unwrap()).abs().max().double_value(&[]));
        largest.fold(0.0, f64::max)
    }

    fn outputs(config: &Config, weights: &Weights, tokens: &Tensor) -> Tensor {
        let model = Transformer::new(config.clone(), weights.to_kind(Kind::Double)).unwrap();
        model.forward(tokens, &Run::FULL, &mut ())
    }

    #[test]
    fn permutations_are_symmetries_and_a_shuffled_copy_is_recovered_exactly() {
        let solu = Config {
            act_fn: ActFn::SoluLn,
            normalization: Normalization::Ln,
            final_normalization: Normalization::Ln,
            ..Config::toy(2, 12, 3, 7, 4)
        };
        let gated = Config { gated_mlp: true, ..Config::toy(1, 8, 2, 7, 4) };
        for config in [
            Config::mlp(1, 7, 40, 5, 4),
            Config::mlp(3, 7, 16, 5, 4),
            Config::toy(2, 12, 3, 7, 4),
            solu,
            gated,
        ] {
            let a = drawn(&config, 3);
            let b = shuffled(&config, &a, 4);
            let tokens = Tensor::from_slice(&[0i64, 3, 6, 1, 5, 5, 2, 0]).view([2, 4]);
            let change = outputs(&config, &a, &tokens) - outputs(&config, &b, &tokens);
            assert!(change.abs().max().double_value(&[]) < 1e-10, "a symmetry of {config:?}");
            assert!(difference(&a, &b) > 0.1);
            let found = weight_matching(&config, &a, &b, &mut random::stream(1, "match")).unwrap();
            if found.orders.len() == 1 {
                assert_eq!(difference(&a, &found.weights), 0.0, "recovered bit for bit");
                assert_eq!(found.sweeps, 2, "one step, and one that finds nothing more");
            }
            let [before, after] = found.inner_product;
            assert!(after > before);
            let change = outputs(&config, &a, &tokens) - outputs(&config, &found.weights, &tokens);
            assert!(change.abs().max().double_value(&[]) < 1e-5, "matching keeps the function");
        }
    }

    #[test]
    fn deep_copies_are_recovered_from_a_good_start() {
        // Coordinate descent can end in a local optimum; units that differ clearly must still be found.
        let config = Config::mlp(2, 40, 24, 9, 2);
        let a = drawn(&config, 3);
        let b = shuffled(&config, &a, 5);
        let found = weight_matching(&config, &a, &b, &mut random::stream(1, "match")).unwrap();
        assert_eq!(difference(&a, &found.weights), 0.0);
    }

    #[test]
    fn heads_are_found_in_any_order_and_basis() {
        let config = Config::toy(1, 16, 4, 7, 4);
        let a = drawn(&config, 8);
        let mut b = a.to_kind(Kind::Double);
        let heads = Heads::of(&b, 0).unwrap().permuted(&[2, 0, 3, 1]);
        for head in 0..4 {
            let (u, _, _) = init::normal(9, &head.to_string(), &[4, 4], 1.0, Device::Cpu)
                .to_kind(Kind::Double)
                .svd(true, true);
            for part in 0..3 {
                let rotated = heads.reading[part].get(head).matmul(&u);
                heads.reading[part].get(head).copy_(&rotated);
            }
            let rotated = u.transpose(0, 1).matmul(&heads.w_o.get(head));
            heads.w_o.get(head).copy_(&rotated);
        }
        heads.write(&mut b, 0);
        let b = b.to_kind(Kind::Float);
        let tokens = Tensor::from_slice(&[0i64, 3, 6, 1]).view([1, 4]);
        let change = outputs(&config, &a, &tokens) - outputs(&config, &b, &tokens);
        assert!(change.abs().max().double_value(&[]) < 1e-5, "order and basis change nothing");
        let found = weight_matching(&config, &a, &b, &mut random::stream(1, "match")).unwrap();
        assert!(difference(&a, &found.weights) < 1e-5, "{}", difference(&a, &found.weights));
        assert_eq!(found.orders.last().unwrap(), &("heads.0".to_owned(), vec![1, 3, 0, 2]));
    }

    #[test]
    fn activations_find_shuffled_units() {
        let a = init::normal(1, "acts", &[30, 12], 1.0, Device::Cpu);
        let order = random::permutation(&mut random::stream(2, "order"), 12);
        let b = a.index_select(1, &Tensor::from_slice(&order));
        let found = activation_matching(&a, &b).unwrap();
        let back = b.index_select(1, &Tensor::from_slice(&found));
        assert!(back.equal(&a));
        assert!(activation_matching(&a, &a.narrow(1, 0, 3)).is_err());
    }

    #[test]
    fn models_that_differ_in_shape_are_refused() {
        let config = Config::mlp(1, 7, 8, 5, 2);
        let other = Config::mlp(1, 7, 9, 5, 2);
        let mut rng = random::stream(1, "match");
        let error = weight_matching(&config, &drawn(&config, 1), &drawn(&other, 1), &mut rng);
        assert!(error.unwrap_err().to_string().contains("layers.0.W"));
    }
}
