//! What curves without groups would look like if all had one shape, each at a time of its own: the null that onsets are
//! spread evenly over training.
//!
//! Main type: [`Spread`]. Curves are turned so that they rise and scaled to rise from 0 to 1; the place of a curve is where a step of the same
//! area would stand. Their mean around that place is the shape. A drawn curve has the shape at a place drawn evenly from the range of
//! places, what the shape leaves of one of the curves, and the direction of another.

use rand::Rng;

use super::cluster::standardised;
use crate::random;

/// A distribution of curves.
pub struct Spread {
    /// The shape at offsets from -n to n.
    shape: Vec<f64>,
    /// First and last place.
    range: [f64; 2],
    curves: Vec<Own>,
}

/// What a curve has of its own.
struct Own {
    is_rising: bool,
    /// What the shape at its place leaves.
    rest: Vec<f64>,
}

impl Spread {
    /// Of standardised curves of equal length.
    pub fn of(curves: &[&[f64]]) -> Self {
        let n = curves[0].len();
        let rising: Vec<(bool, Vec<f64>, f64)> = curves.iter().map(|curve| turned(curve)).collect();
        let mut shape: Vec<f64> = Vec::with_capacity(2 * n + 1);
        let offsets = || (0..=2 * n).map(|at| at as f64 - n as f64);
        for offset in offsets() {
            let there = rising.iter().filter_map(|(_, curve, place)| inside(curve, place + offset));
            let (sum, count) = there.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
            // Farther from its place than any curve reaches, it stays as it was; before, it is 0.
            let known = shape.last().copied().unwrap_or(0.0);
            shape.push(if count > 0.0 { sum / count } else { known });
        }
        if let Some(first) =
            offsets().position(|o| rising.iter().any(|r| inside(&r.1, r.2 + o).is_some()))
        {
            let value = shape[first];
            shape[..first].fill(value);
        }
        let places = || rising.iter().map(|(_, _, place)| *place);
        let range = [places().fold(f64::INFINITY, f64::min), places().fold(0.0, f64::max)];
        let own = |(is_rising, curve, place): &(bool, Vec<f64>, f64)| Own {
            is_rising: *is_rising,
            rest: curve.iter().zip(around(&shape, n, *place)).map(|(c, s)| c - s).collect(),
        };
        let curves = rising.iter().map(own).collect();
        Self { shape, range, curves }
    }

    /// As many curves as were fitted.
    pub fn draw(&self, rng: &mut impl Rng) -> Vec<Vec<f64>> {
        let n = self.curves.len();
        let (signs, rests) = (random::permutation(rng, n), random::permutation(rng, n));
        let [first, last] = self.range;
        let pairs = signs.iter().zip(&rests);
        pairs
            .map(|(sign, rest)| {
                let place = first
                    + (last - first) * random::below(rng, 1 << 30) as f64 / f64::from(1 << 30);
                let rest = &self.curves[*rest as usize].rest;
                let scale = if self.curves[*sign as usize].is_rising { 1.0 } else { -1.0 };
                let shape = around(&self.shape, rest.len(), place);
                let curve: Vec<f64> =
                    rest.iter().zip(shape).map(|(r, s)| scale * (r + s)).collect();
                standardised(&curve).unwrap_or(curve)
            })
            .collect()
    }
}

/// Whether a curve rises; the curve turned and scaled to rise from 0 to 1; its place. The levels are those of the best step, which
/// noise hardly moves.
fn turned(curve: &[f64]) -> (bool, Vec<f64>, f64) {
    let n = curve.len();
    let total: f64 = curve.iter().sum();
    let mut before = 0.0;
    // Split, and the sum of squares between its two means.
    let mut best = (1, 0.0, f64::NEG_INFINITY);
    for (at, value) in curve[..n - 1].iter().enumerate() {
        before += value;
        let (left, right) = ((at + 1) as f64, (n - at - 1) as f64);
        let between = (before / left - (total - before) / right).powi(2) * left * right;
        if between > best.2 {
            best = (at + 1, before, between);
        }
    }
    let (split, before, _) = best;
    let (low, high) = (before / split as f64, (total - before) / (n - split) as f64);
    let scale = if high == low { 0.0 } else { 1.0 / (high - low) };
    let risen: Vec<f64> = curve.iter().map(|v| (v - low) * scale).collect();
    let place = n as f64 - 0.5 - risen.iter().sum::<f64>();
    (high >= low, risen, place.clamp(0.0, (n - 1) as f64))
}

/// Between the points of a curve; `None` outside of it.
fn inside(curve: &[f64], at: f64) -> Option<f64> {
    if at < 0.0 || at > (curve.len() - 1) as f64 {
        return None;
    }
    let low = (at as usize).min(curve.len() - 2);
    Some(curve[low] + (curve[low + 1] - curve[low]) * (at - low as f64))
}

/// The shape at `n` points with its place at `place`.
fn around(shape: &[f64], n: usize, place: f64) -> impl Iterator<Item = f64> {
    let zero = (shape.len() - 1) as f64 / 2.0;
    (0..n).map(move |at| inside(shape, zero + at as f64 - place).unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::fit::logistic;

    #[test]
    fn curves_of_one_shape_leave_nothing_and_are_drawn_over_their_range() {
        let n = 60;
        let step = |place: f64, sign: f64| -> Vec<f64> {
            let curve: Vec<f64> =
                (0..n).map(|at| sign * logistic(f64::from(at), place, 1.5)).collect();
            standardised(&curve).unwrap()
        };
        let curves: Vec<Vec<f64>> = (0..30)
            .map(|i| step(12.0 + f64::from(i), if i % 3 == 0 { -1.0 } else { 1.0 }))
            .collect();
        let rows: Vec<&[f64]> = curves.iter().map(Vec::as_slice).collect();
        let spread = Spread::of(&rows);
        assert!(
            (spread.range[0] - 12.0).abs() < 0.6 && (spread.range[1] - 41.0).abs() < 0.6,
            "{:?}",
            spread.range
        );
        let rests = spread.curves.iter().flat_map(|own| &own.rest);
        assert!(rests.fold(0.0, |worst: f64, rest| worst.max(rest.abs())) < 0.1);
        let mut rng = random::stream(0, "spread/test");
        let drawn = spread.draw(&mut rng);
        assert_eq!(drawn.iter().filter(|curve| curve[0] > 0.0).count(), 10, "as many fall");
        let mut places: Vec<f64> = drawn.iter().map(|curve| turned(curve).2).collect();
        places.sort_by(f64::total_cmp);
        assert!(
            places[0] > 11.0 && places[29] < 42.0 && places[29] - places[0] > 20.0,
            "{places:?}"
        );
    }
}
