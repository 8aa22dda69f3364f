//! Neurons over a stream of text: moments and frequency of their activations, and the places where each is most
//! and least active (D27), in memory that does not grow with the text.
//!
//! Main types: [`Sites`], which activations count as neurons; [`Moments`]; [`Extremes`]. Invariants: results do not depend
//! on how the stream is cut into batches (moments up to rounding); equal activations are ordered by (row, position).
//!
//! A SoLU MLP has two kinds of neurons (D28): `mid` is `x · softmax(x)`, `post` is what its norm makes of that and what
//! `W_out` reads. Every other MLP has `post` only.

use sweep_lens::{Architecture, Config, Hook, Hooks, Kind, Run, Site, Tensor, Transformer};

use crate::{
    curve::transition::quantile,
    documents::Batch,
    error::{Error, Result},
    value::{Value, to_vec},
};

/// Which activations of a model are neurons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sites {
    /// Labels: `post`, and `mid` where there is one.
    pub names: Vec<&'static str>,
    pub n_layers: usize,
    pub n_neurons: usize,
}

impl Sites {
    /// # Errors
    /// A model whose layers have different numbers of neurons, or none.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let known = config.hooks();
        let has = |site| known.contains(&Hook::block(0, site));
        if !has(Site::MlpPost) {
            return Err(Error::Unsupported("the model has no neurons".to_owned()));
        }
        let mut names = vec!["post"];
        names.extend(has(Site::MlpMid).then_some("mid"));
        Ok(Self { names, n_layers: config.n_layers as usize, n_neurons: config.d_mlp as usize })
    }

    /// Number of (site, layer) pairs.
    pub(crate) fn n_groups(&self) -> usize {
        self.names.len() * self.n_layers
    }

    /// Place of an activation among the pairs, if it is one of them.
    fn group(&self, hook: Hook) -> Option<usize> {
        let site = match hook.site()? {
            Site::MlpPost => 0,
            Site::MlpMid => 1,
            _ => return None,
        };
        Some(site * self.n_layers + hook.layer()? as usize).filter(|_| site < self.names.len())
    }

    /// Name and layer of a pair.
    pub(crate) fn label(&self, group: usize) -> (&'static str, usize) {
        (self.names[group / self.n_layers], group % self.n_layers)
    }

    /// Runs the model and gives the neurons of every counted position, `[place, neuron]`, pair by pair.
    pub(crate) fn read(
        &self,
        model: &Transformer,
        batch: &Batch,
        see: impl FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<()> {
        let last = u32::try_from(self.n_layers - 1).expect("layers are few");
        let run = match model.config().architecture {
            Architecture::Transformer => Run { stop_after_layer: Some(last), ..Run::FULL },
            Architecture::Mlp => Run::FULL,
        };
        let mut reader = Reader { sites: self, batch, see, failure: None };
        let _ = model.forward(&batch.tokens, &run, &mut reader);
        reader.failure.map_or(Ok(()), Err)
    }

    /// Values with axes site, layer, neuron from one row per pair.
    pub(crate) fn value(&self, rows: &[Vec<f64>]) -> Value {
        let shape = vec![self.names.len(), self.n_layers, self.n_neurons];
        let labels = self.names.iter().map(|&name| name.to_owned()).collect();
        Value::array(shape, rows.concat(), vec![Some(labels), None, None])
    }

    /// Values with axes site, layer from one number per pair.
    pub(crate) fn layers(&self, numbers: Vec<f64>) -> Value {
        let labels = self.names.iter().map(|&name| name.to_owned()).collect();
        Value::array(vec![self.names.len(), self.n_layers], numbers, vec![Some(labels), None])
    }
}

struct Reader<'a, F> {
    sites: &'a Sites,
    batch: &'a Batch,
    see: F,
    failure: Option<Error>,
}

impl<F: FnMut(usize, Tensor) -> Result<()>> Hooks for Reader<'_, F> {
    fn wants(&self, hook: Hook) -> bool {
        self.sites.group(hook).is_some()
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        if let (Some(group), None) = (self.sites.group(hook), &self.failure) {
            self.failure = (self.see)(group, counted(&activation, &self.batch.counted)).err();
        }
        activation
    }
}

/// Activations `[batch, pos, d]` of the positions that count, `[place, d]`. A perceptron gives one per row.
pub(crate) fn counted(activation: &Tensor, counted: &Tensor) -> Tensor {
    let size = activation.size();
    let width = size[size.len() - 1];
    let flat = activation.detach().reshape([-1, width]);
    if flat.size()[0] == counted.numel() as i64 {
        let places = counted.reshape([-1]).nonzero().squeeze_dim(-1);
        flat.index_select(0, &places)
    } else {
        flat
    }
}

/// Running moments of each of some neurons, and how often they are above a threshold.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    pub n: f64,
    /// f64 `[4, neuron]`: mean, and sums of the second to fourth power about it; none before the first batch.
    sums: Option<Tensor>,
    /// f64 `[neuron]`
    above: Option<Tensor>,
}

impl Moments {
    /// Adds `[place, neuron]`.
    pub(crate) fn add(&mut self, activations: &Tensor, threshold: f64) {
        let x = activations.to_kind(Kind::Double);
        let n = x.size()[0] as f64;
        if n == 0.0 {
            return;
        }
        let total = |x: Tensor| x.sum_dim_intlist(&[0i64][..], false, Kind::Double);
        let mean = total(x.shallow_clone()) / n;
        let d = &x - &mean;
        let squares = d.square();
        let sums =
            [mean, total(squares.shallow_clone()), total(&squares * &d), total(squares.square())];
        let above = total(x.gt(threshold));
        self.above = Some(match self.above.take() {
            Some(before) => before + above,
            None => above,
        });
        self.sums = Some(match self.sums.take() {
            Some(before) => merge(self.n, &before, n, &sums),
            None => Tensor::stack(&sums, 0),
        });
        self.n += n;
    }

    fn row(&self, index: i64) -> Vec<f64> {
        self.sums.as_ref().map_or_else(Vec::new, |sums| to_vec(&sums.get(index)))
    }

    pub(crate) fn mean(&self) -> Vec<f64> {
        self.row(0)
    }

    pub(crate) fn std(&self) -> Vec<f64> {
        self.row(1).iter().map(|sum| (sum / self.n).sqrt()).collect()
    }

    /// Fourth moment over the squared second one: 3 for a normal distribution, NaN for a constant.
    pub(crate) fn kurtosis(&self) -> Vec<f64> {
        let pairs = self.row(1).into_iter().zip(self.row(3));
        pairs.map(|(second, fourth)| self.n * fourth / (second * second)).collect()
    }

    /// Third moment over the second one to the power of 3/2.
    pub(crate) fn skewness(&self) -> Vec<f64> {
        let pairs = self.row(1).into_iter().zip(self.row(2));
        pairs.map(|(second, third)| self.n.sqrt() * third / second.powf(1.5)).collect()
    }

    /// Fraction of places above the threshold.
    pub(crate) fn frequency(&self) -> Vec<f64> {
        let above = self.above.as_ref().map_or_else(Vec::new, to_vec);
        above.iter().map(|count| count / self.n).collect()
    }
}

/// Pébay's update of moments of two parts, about their own means, to those of both together.
fn merge(n_a: f64, a: &Tensor, n_b: f64, b: &[Tensor; 4]) -> Tensor {
    let n = n_a + n_b;
    let part = |index| a.get(index);
    let [mean_b, m2_b, m3_b, m4_b] = b;
    let d = mean_b - part(0);
    let (m2_a, m3_a) = (part(1), part(2));
    let mean = part(0) + &d * (n_b / n);
    let m2 = &m2_a + m2_b + d.square() * (n_a * n_b / n);
    let m3 = &m3_a
        + m3_b
        + d.pow_tensor_scalar(3) * (n_a * n_b * (n_a - n_b) / (n * n))
        + &d * 3.0 * ((m2_b * n_a) - (&m2_a * n_b)) / n;
    let m4 = part(3)
        + m4_b
        + d.pow_tensor_scalar(4) * (n_a * n_b * (n_a * n_a - n_a * n_b + n_b * n_b) / n.powi(3))
        + d.square() * 6.0 * (m2_b * (n_a * n_a) + &m2_a * (n_b * n_b)) / (n * n)
        + &d * 4.0 * (m3_b * n_a - &m3_a * n_b) / n;
    Tensor::stack(&[mean, m2, m3, m4], 0)
}

/// The `k` largest activations of each of some neurons, largest first, and where they were.
#[derive(Debug)]
pub(crate) struct Extremes {
    k: i64,
    /// `[k', neuron]` with k' up to k, largest first.
    values: Option<Tensor>,
    /// i64 `[k', neuron]`, `row << 32 | position`.
    places: Option<Tensor>,
    /// Looks for the smallest instead.
    is_least: bool,
}

impl Extremes {
    pub(crate) fn new(k: u64, is_least: bool) -> Self {
        Self { k: k as i64, values: None, places: None, is_least }
    }

    /// Adds `[place, neuron]`, which stand at `places` (i64 `[place]`, ascending, behind all before).
    ///
    /// # Errors
    /// An activation that is not a number has no order.
    pub(crate) fn add(&mut self, activations: &Tensor, places: &Tensor) -> Result<()> {
        let n_new = activations.size()[0];
        if n_new == 0 {
            return Ok(());
        }
        let x = if self.is_least { -activations } else { activations.shallow_clone() };
        let best = x.amax(&[0i64][..], false);
        if best.isnan().any().int64_value(&[]) != 0 {
            return Err(Error::Input("an activation is not a number".to_owned()));
        }
        let (Some(values), Some(old)) = (&mut self.values, &mut self.places) else {
            let order = x.argsort_stable(true, 0, true).narrow(0, 0, self.k.min(n_new));
            self.values = Some(x.gather(0, &order, false));
            self.places = Some(places.index_select(0, &order.reshape([-1])).view_as(&order));
            return Ok(());
        };
        // Equal values that come later lose, so only neurons with a larger one change.
        let full = values.size()[0] == self.k;
        let last = values.get(values.size()[0] - 1);
        let changed = if full { best.gt_tensor(&last) } else { best.ones_like().gt(0.5) };
        let changed = changed.nonzero().squeeze_dim(-1);
        if changed.numel() == 0 {
            return Ok(());
        }
        let pick = |x: &Tensor| x.index_select(1, &changed);
        let all = Tensor::cat(&[pick(values), pick(&x)], 0);
        let new = places.unsqueeze(-1).expand([n_new, changed.numel() as i64], false);
        let all_places = Tensor::cat(&[pick(old), new], 0);
        let kept = self.k.min(all.size()[0]);
        let order = all.argsort_stable(true, 0, true).narrow(0, 0, kept);
        let (all, all_places) = (all.gather(0, &order, false), all_places.gather(0, &order, false));
        if full {
            let _ = values.index_copy_(1, &changed, &all);
            let _ = old.index_copy_(1, &changed, &all_places);
        } else {
            (*values, *old) = (all, all_places);
        }
        Ok(())
    }

    /// Of one neuron: (activation, row, position), most extreme first.
    pub(crate) fn of(&self, neuron: usize) -> Vec<(f64, u64, usize)> {
        let (Some(values), Some(places)) = (&self.values, &self.places) else { return Vec::new() };
        let sign = if self.is_least { -1.0 } else { 1.0 };
        let column = |x: &Tensor| x.select(1, neuron as i64);
        let places = Vec::<i64>::try_from(column(places).contiguous().to_device(tch::Device::Cpu));
        let places = places.unwrap_or_default();
        let values = to_vec(&column(values));
        let found = values.into_iter().zip(places);
        found.map(|(v, p)| (sign * v, (p >> 32) as u64, (p & 0xffff_ffff) as usize)).collect()
    }

    /// The most extreme activation of every neuron.
    pub(crate) fn best(&self) -> Vec<f64> {
        let sign = if self.is_least { -1.0 } else { 1.0 };
        let values = self.values.as_ref().map_or_else(Vec::new, |values| to_vec(&values.get(0)));
        values.into_iter().map(|value| sign * value).collect()
    }

    /// All places, i64 `[k', neuron]`.
    pub(crate) fn places(&self) -> Option<&Tensor> {
        self.places.as_ref()
    }
}

/// Positions of a sample: every second one is dropped whenever there are twice as many.
const SAMPLE: usize = 1024;

/// Activations at evenly spread positions, the same for every model that reads the same text.
pub(crate) struct Sample {
    stride: usize,
    seen: usize,
    /// `[neuron]` each
    rows: Vec<Tensor>,
}

impl Default for Sample {
    fn default() -> Self {
        Self { stride: 1, seen: 0, rows: Vec::new() }
    }
}

impl Sample {
    pub(crate) fn add(&mut self, activations: &Tensor) {
        let n = activations.size()[0] as usize;
        let first = self.seen.next_multiple_of(self.stride) - self.seen;
        for place in (first..n).step_by(self.stride) {
            self.rows.push(activations.get(place as i64).copy());
        }
        self.seen += n;
        while self.rows.len() >= 2 * SAMPLE {
            let rows = std::mem::take(&mut self.rows);
            self.rows = rows.into_iter().step_by(2).collect();
            self.stride *= 2;
        }
    }

    /// f64 `[neuron, position]`; nothing before the first position.
    fn table(&self) -> Option<Tensor> {
        (!self.rows.is_empty()).then(|| Tensor::stack(&self.rows, 1).to_kind(Kind::Double))
    }

    /// Of every neuron.
    pub(crate) fn quantiles(&self, levels: &[f64]) -> Vec<Vec<f64>> {
        let Some(table) = self.table() else { return Vec::new() };
        let (sorted, _) = table.sort(-1, false);
        let of = |row: &[f64]| levels.iter().map(|&level| quantile(row, level)).collect();
        to_vec(&sorted).chunks(self.rows.len()).map(of).collect()
    }

    /// Pearson's and Spearman's correlation of every neuron with its like in another model; NaN for a constant one.
    pub(crate) fn correlations(&self, other: &Self) -> [Vec<f64>; 2] {
        let (Some(a), Some(b)) = (self.table(), other.table()) else { return Default::default() };
        [pearson(&a, &b), pearson(&mean_ranks(&a), &mean_ranks(&b))]
    }
}

/// Ranks from 1 along the last axis, equal values sharing the mean of theirs.
fn mean_ranks(x: &Tensor) -> Tensor {
    let (sorted, _) = x.sort(-1, false);
    let place = |right| {
        x.searchsorted(&sorted, false, right, if right { "right" } else { "left" }, None::<Tensor>)
    };
    (place(false) + place(true) + 1).to_kind(Kind::Double) * 0.5
}

/// Correlation of matching rows, f64.
fn pearson(a: &Tensor, b: &Tensor) -> Vec<f64> {
    let centred = |x: &Tensor| x - x.mean_dim(&[-1i64][..], true, Kind::Double);
    cosines(&centred(a), &centred(b))
}

/// Places of the counted positions of a batch, in the order of [`counted`], i64 `[place]`: `row << 32 | position`.
/// A perceptron has one place per row.
pub(crate) fn places(batch: &Batch, config: &Config) -> Tensor {
    let (n, pos) = (batch.tokens.size()[0], batch.tokens.size()[1]);
    let device = batch.tokens.device();
    let rows = (Tensor::arange(n, (Kind::Int64, device)) + batch.first_row as i64) * (1i64 << 32);
    if config.architecture == Architecture::Mlp {
        return rows;
    }
    let all = rows.unsqueeze(-1) + Tensor::arange(pos, (Kind::Int64, device));
    let inside = batch.counted.reshape([-1]).nonzero().squeeze_dim(-1);
    all.reshape([-1]).index_select(0, &inside)
}

/// Shared fraction of two neurons' top places: size of the intersection over size of the union, per neuron.
pub(crate) fn jaccard(a: &Extremes, b: &Extremes) -> Vec<f64> {
    let (Some(a), Some(b)) = (a.places(), b.places()) else { return Vec::new() };
    // [k, k', neuron]
    let equal = a.unsqueeze(1).eq_tensor(&b.unsqueeze(0));
    let shared = equal.sum_dim_intlist(&[0i64, 1][..], false, Kind::Double);
    let union = (a.size()[0] + b.size()[0]) as f64 - &shared;
    to_vec(&(shared / union))
}

/// Cosines between the matching rows of two tables, f64.
pub(crate) fn cosines(a: &Tensor, b: &Tensor) -> Vec<f64> {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let dot = |x: &Tensor, y: &Tensor| (x * y).sum_dim_intlist(&[-1i64][..], false, Kind::Double);
    to_vec(&(dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()))
}

/// Input weights of every neuron of a layer, `[neuron, d]`, and output weights, `[neuron, d]`.
pub(crate) fn neuron_weights(
    weights: &sweep_lens::Weights,
    config: &Config,
    layer: usize,
) -> Result<(Tensor, Tensor)> {
    let (read, written) = match config.architecture {
        Architecture::Transformer => {
            (format!("blocks.{layer}.mlp.W_in"), format!("blocks.{layer}.mlp.W_out"))
        }
        Architecture::Mlp => (format!("layers.{layer}.W"), format!("layers.{}.W", layer + 1)),
    };
    let w_in = weights.require(&read)?.transpose(-1, -2);
    Ok((w_in, weights.require(&written)?.shallow_clone()))
}

/// Median of the finite values; NaN of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    if values.is_empty() { f64::NAN } else { quantile(&values, 0.5) }
}

#[cfg(test)]
mod tests {
    use sweep_lens::{Device, init};

    use super::*;

    fn drawn(seed: u64, n: i64) -> Tensor {
        init::normal(seed, "x", &[n, 5], 1.0, Device::Cpu)
    }

    fn numbered(n: i64) -> Tensor {
        let index = Tensor::arange(n, (Kind::Int64, Device::Cpu));
        index.divide_scalar_mode(7, "floor") * (1i64 << 32) + index.remainder(7)
    }

    #[test]
    fn moments_by_the_definition_however_batched() {
        let x = drawn(1, 1000).square();
        let mut whole = Moments::default();
        whole.add(&x, 1.0);
        let mut parts = Moments::default();
        for (first, length) in [(0, 1), (1, 3), (4, 500), (504, 0), (504, 496)] {
            parts.add(&x.narrow(0, first, length), 1.0);
        }
        let column: Vec<f64> = to_vec(&x.select(1, 2));
        let mean = column.iter().sum::<f64>() / 1000.0;
        let central = |power| column.iter().map(|v| (v - mean).powi(power)).sum::<f64>() / 1000.0;
        let expected = [
            mean,
            central(2).sqrt(),
            central(4) / central(2).powi(2),
            central(3) / central(2).powf(1.5),
            column.iter().filter(|v| **v > 1.0).count() as f64 / 1000.0,
        ];
        for found in [&whole, &parts] {
            let read =
                [found.mean(), found.std(), found.kurtosis(), found.skewness(), found.frequency()];
            for (read, expected) in read.iter().zip(expected) {
                assert!((read[2] - expected).abs() < 1e-11 * expected.abs(), "{read:?} {expected}");
            }
        }
        let mut constant = Moments::default();
        constant.add(&Tensor::ones([9, 2], (Kind::Float, Device::Cpu)), 0.0);
        assert!(constant.kurtosis()[0].is_nan());
    }

    #[test]
    fn extremes_equal_a_full_sort_with_ties_by_place() {
        // Few different values: most are tied.
        let x = (drawn(2, 300) * 2.0).round();
        let places = numbered(300);
        for is_least in [false, true] {
            let mut found = Extremes::new(6, is_least);
            for (first, length) in [(0, 4), (4, 100), (104, 1), (105, 195)] {
                let part = |x: &Tensor| x.narrow(0, first, length);
                found.add(&part(&x), &part(&places)).unwrap();
            }
            for neuron in 0..5usize {
                let values = to_vec(&x.select(1, neuron as i64));
                let mut order: Vec<usize> = (0..300).collect();
                let key = |&i: &usize| if is_least { values[i] } else { -values[i] };
                order.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.cmp(b)));
                let expected: Vec<(f64, u64, usize)> =
                    order[..6].iter().map(|&i| (values[i], i as u64 / 7, i % 7)).collect();
                let found = found.of(neuron);
                assert!(
                    found
                        .iter()
                        .zip(&expected)
                        .all(|(a, b)| a.0 == b.0 && (a.1, a.2) == (b.1, b.2)),
                    "{found:?} {expected:?}"
                );
            }
        }
        let mut broken = Extremes::new(2, false);
        let nan = Tensor::from_slice(&[f32::NAN, 1.0]).view([2, 1]);
        assert!(broken.add(&nan, &numbered(2)).unwrap_err().to_string().contains("not a number"));
    }

    #[test]
    fn overlap_of_places() {
        let table = |values: &[f32]| {
            let mut found = Extremes::new(3, false);
            let x = Tensor::from_slice(values).view([-1, 1]);
            found.add(&x, &numbered(values.len() as i64)).unwrap();
            found
        };
        let (a, b) = (table(&[5., 4., 3., 2., 1.]), table(&[5., 0., 3., 4., 1.]));
        assert_eq!(jaccard(&a, &a), [1.0]);
        assert_eq!(jaccard(&a, &b), [0.5]); // {0, 1, 2} and {0, 3, 2}
    }

    #[test]
    fn samples_stay_small_and_even() {
        let mut sample = Sample::default();
        for first in (0..10_000).step_by(100) {
            let x = Tensor::arange_start(first, first + 100, (Kind::Float, Device::Cpu));
            sample.add(&x.unsqueeze(-1));
        }
        assert!(sample.rows.len() < 2 * SAMPLE && sample.rows.len() >= SAMPLE);
        let kept: Vec<f64> = sample.rows.iter().flat_map(to_vec).collect();
        let stride = sample.stride as f64;
        assert!(kept.iter().enumerate().all(|(i, value)| *value == i as f64 * stride));
        assert!((sample.quantiles(&[0.5])[0][0] - 5000.0).abs() < 2.0 * stride);
    }

    #[test]
    fn correlations_equal_those_of_lists() {
        let (x, y) = ((drawn(3, 200) * 2.0).round(), (drawn(4, 200) * 2.0).round() + drawn(3, 200));
        let (mut a, mut b) = (Sample::default(), Sample::default());
        a.add(&x);
        b.add(&y);
        let [pearson, spearman] = a.correlations(&b);
        for neuron in 0..5 {
            let column = |x: &Tensor| to_vec(&x.select(1, neuron));
            let expected = crate::curve::order::spearman(&column(&x), &column(&y));
            assert!((spearman[neuron as usize] - expected).abs() < 1e-12);
            assert!(pearson[neuron as usize] > 0.3);
        }
        assert_eq!(a.correlations(&a)[0], [1.0; 5]);
    }
}
