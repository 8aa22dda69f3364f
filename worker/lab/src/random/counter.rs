//! Random numbers made on the device: row `r`, column `c` of a stream is a hash of (key, r, c), so a
//! batch of any step is a few element-wise kernels, without a generator state or a copy from the host.
//!
//! Main type: [`Counter`]. Keys come from the ChaCha stream of (seed, purpose), one per model of a
//! group; the hash is SplitMix64's output function in wrapping 64-bit arithmetic. Invariant: the numbers
//! are the same on every device and for every grouping of seeds.

use rand::Rng;
use sweep_lens::{Device, Kind, Tensor};

/// Streams of a group of seeds: numbers have a leading model axis if there is more than one seed.
#[derive(Debug)]
pub struct Counter {
    /// i64 `[n_models, 1, 1]`, or `[1, 1]` for a single seed.
    keys: Tensor,
}

/// Odd multiplier of the counter: 2⁶⁴ divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Counter {
    /// One stream per seed.
    pub fn new(seeds: &[u64], purpose: &str, device: Device) -> Self {
        let keys: Vec<i64> =
            seeds.iter().map(|&seed| super::stream(seed, purpose).next_u64() as i64).collect();
        let keys = Tensor::from_slice(&keys).to_device(device);
        let shape: &[i64] = if seeds.len() == 1 { &[1, 1] } else { &[-1, 1, 1] };
        Self { keys: keys.view(shape) }
    }

    /// 64 random bits for each of `width` columns of the given rows.
    ///
    /// # Shapes
    /// - `rows`: i64 `[n_rows]`, or `[n_models, n_rows]` if each model has its own
    /// - returns: i64 `[(n_models,) n_rows, width]`
    pub fn bits(&self, rows: &Tensor, width: i64) -> Tensor {
        let columns = Tensor::arange(width, (Kind::Int64, rows.device()));
        // Counters start at 1: the hash of 0 with key 0 would be 0.
        let counter = rows.unsqueeze(-1) * width + columns + 1;
        let mut x = counter * (GAMMA as i64) + &self.keys;
        for (shift, multiplier) in [(30, 0xbf58_476d_1ce4_e5b9_u64), (27, 0x94d0_49bb_1331_11eb)] {
            let shifted = shift_right(&x, shift);
            let _ = x.bitwise_xor_tensor_(&shifted);
            let _ = x.g_mul_scalar_(multiplier as i64);
        }
        let shifted = shift_right(&x, 31);
        x.bitwise_xor_tensor_(&shifted)
    }

    /// Uniform integers in `0..n`; the bias is at most `n / 2³²`.
    ///
    /// # Shapes
    /// As [`Counter::bits`].
    ///
    /// # Panics
    /// If `n` is not in `1..2³¹`.
    pub fn below(&self, rows: &Tensor, width: i64, n: i64) -> Tensor {
        assert!((1..1 << 31).contains(&n), "expected 1 to 2^31 - 1 possibilities, found {n}");
        shift_right(&(shift_right(&self.bits(rows, width), 32) * n), 32)
    }

    /// Uniform numbers in `[0, 1)` with 53 random bits, f64.
    ///
    /// # Shapes
    /// As [`Counter::bits`].
    pub fn uniform(&self, rows: &Tensor, width: i64) -> Tensor {
        shift_right(&self.bits(rows, width), 11).to_kind(Kind::Double) * 2f64.powi(-53)
    }

    /// Distinct integers of `0..n`, every choice and order equally likely: the ranks of random numbers.
    ///
    /// # Shapes
    /// - `rows`: i64 `[n_rows]`
    /// - returns: i64 `[(n_models,) n_rows, count]`
    ///
    /// # Panics
    /// If `count` exceeds `n`.
    pub fn distinct(&self, rows: &Tensor, count: i64, n: i64) -> Tensor {
        assert!(count <= n, "expected at most {n} distinct numbers, found {count}");
        // Ties have probability n² / 2⁶⁴ and are broken by column.
        self.bits(rows, n).argsort_stable(true, -1, false).narrow(-1, 0, count)
    }
}

/// Shifts in zeros, where the built-in shift of signed integers would copy the sign.
fn shift_right(x: &Tensor, bits: i64) -> Tensor {
    let mask = i64::MAX >> (bits - 1);
    x.bitwise_right_shift_tensor_scalar(bits).bitwise_and(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::to_vec;

    fn rows(n: i64) -> Tensor {
        Tensor::arange(n, (Kind::Int64, Device::Cpu))
    }

    /// SplitMix64's output function in plain integers.
    fn reference(key: u64, counter: u64) -> u64 {
        let mut x = key.wrapping_add(counter.wrapping_mul(GAMMA));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    #[test]
    fn bits_are_splitmix_of_key_and_place() {
        // First output of the published generator with state 1234567.
        assert_eq!(reference(1_234_567, 1), 6_457_827_717_110_365_317);
        let key = super::super::stream(5, "test").next_u64();
        let counter = Counter::new(&[5], "test", Device::Cpu);
        let found = Vec::<i64>::try_from(counter.bits(&rows(7), 3).view([-1])).unwrap();
        let expected: Vec<i64> = (1..=21).map(|i| reference(key, i) as i64).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn rows_and_members_do_not_depend_on_the_rest() {
        let group = Counter::new(&[1, 2, 3], "test", Device::Cpu);
        let all = group.bits(&rows(10), 4);
        assert_eq!(all.size(), [3, 10, 4]);
        let alone = Counter::new(&[2], "test", Device::Cpu);
        let some = alone.bits(&(rows(2) + 6), 4);
        assert!(some.equal(&all.get(1).narrow(0, 6, 2)));
        let other = Counter::new(&[2], "other", Device::Cpu);
        assert!(!other.bits(&rows(2), 4).equal(&alone.bits(&rows(2), 4)));
    }

    #[test]
    fn numbers_are_uniform_in_their_range() {
        let counter = Counter::new(&[9], "test", Device::Cpu);
        let draws = counter.below(&rows(7000), 1, 7).view([-1]);
        let counts = to_vec(&draws.bincount(None::<Tensor>, 7));
        // 1000 expected, standard deviation 29.
        assert_eq!(counts.len(), 7);
        assert!(counts.iter().all(|&n| (850.0..1150.0).contains(&n)), "{counts:?}");
        let uniform = counter.uniform(&rows(5000), 2);
        let (low, high) = (uniform.min().double_value(&[]), uniform.max().double_value(&[]));
        assert!(low >= 0.0 && high < 1.0 && low < 0.01 && high > 0.99);
        assert!((uniform.mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.015);
        // Columns of one row are independent of each other.
        let columns = uniform.transpose(0, 1).corrcoef();
        assert!(columns.double_value(&[0, 1]).abs() < 0.05);
    }

    #[test]
    fn distinct_numbers_are_distinct_and_fair() {
        let counter = Counter::new(&[4, 5], "test", Device::Cpu);
        let draws = counter.distinct(&rows(2000), 3, 5);
        assert_eq!(draws.size(), [2, 2000, 3]);
        let (sorted, _) = draws.sort(-1, false);
        let gaps = sorted.diff(1, -1, None::<Tensor>, None::<Tensor>);
        assert!(gaps.min().int64_value(&[]) >= 1);
        for place in 0..3 {
            let counts = to_vec(&draws.select(-1, place).reshape([-1]).bincount(None::<Tensor>, 5));
            // 800 expected, standard deviation 25.
            assert!(counts.iter().all(|&n| (675.0..925.0).contains(&n)), "{counts:?}");
        }
    }
}
