//! Seeded randomness: one independent ChaCha8 stream per (seed, purpose), so that drawing more
//! numbers for one purpose never shifts another, on any machine and at any thread count.
//!
//! Shuffling and index draws are written out here rather than taken from `rand`, because data
//! splits are part of an experiment's identity and must not change with a library version.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

pub mod counter;

/// The random stream of one (seed, purpose); purposes are constants such as `"modular/split"`.
pub use sweep_lens::init::stream;

/// Uniform index in `0..n` without modulo bias (Lemire's multiply-and-reject).
pub fn below(rng: &mut impl Rng, n: u64) -> u64 {
    assert!(n > 0, "a draw needs at least one possibility");
    let threshold = n.wrapping_neg() % n;
    loop {
        let wide = u128::from(rng.next_u64()) * u128::from(n);
        if wide as u64 >= threshold {
            return (wide >> 64) as u64;
        }
    }
}

/// A standard normal number.
pub fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// A uniformly random order of `0..n` (Fisher-Yates).
pub fn permutation(rng: &mut impl Rng, n: usize) -> Vec<i64> {
    let mut order: Vec<i64> = (0..n as i64).collect();
    for i in (1..n).rev() {
        order.swap(i, below(rng, i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_independent() {
        let draw = |seed, purpose| stream(seed, purpose).next_u64();
        assert_eq!(draw(1, "split"), draw(1, "split"));
        assert_ne!(draw(1, "split"), draw(2, "split"));
        assert_ne!(draw(1, "split"), draw(1, "bootstrap"));
    }

    #[test]
    fn permutation_is_a_permutation_and_uniform() {
        let mut rng = stream(3, "test");
        let mut counts = [[0u32; 4]; 4];
        for _ in 0..4000 {
            let order = permutation(&mut rng, 4);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            for (place, &item) in order.iter().enumerate() {
                counts[place][item as usize] += 1;
            }
        }
        // 1000 expected per cell, standard deviation 27.
        assert!(counts.iter().flatten().all(|&n| (860..1140).contains(&n)), "{counts:?}");
    }
}
