//! Losses on the straight line between two models, and the barrier on it (D33).
//!
//! Main type: [`Barrier`]. The barrier is the largest excess of the loss over the line between its ends, so
//! that it is 0, never negative, where the ends are the worst points.

use sweep_lens::{Tensor, Weights};

use crate::error::Result;

/// Points on the line, ends included.
pub const N_POINTS: usize = 25;

/// One loss along the line.
#[derive(Debug, Clone, PartialEq)]
pub struct Barrier {
    /// Losses at equally spaced points from a to b.
    pub losses: Vec<f64>,
    /// Largest excess over the line between the ends; NaN if a loss is not a number.
    pub height: f64,
    /// Where it is, 0 at a and 1 at b.
    pub at: f64,
}

impl Barrier {
    /// Reads a barrier off losses at equally spaced points, at least two.
    pub fn of(losses: Vec<f64>) -> Self {
        let last = losses.len() - 1;
        let share = |place: usize| place as f64 / last as f64;
        let chord = |place: usize| losses[0] + share(place) * (losses[last] - losses[0]);
        let mut highest = (0.0, 0.0);
        for (place, loss) in losses.iter().enumerate() {
            let excess = loss - chord(place);
            if excess.is_nan() {
                highest = (f64::NAN, share(place));
                break;
            }
            if excess > highest.0 {
                highest = (excess, share(place));
            }
        }
        Self { height: highest.0, at: highest.1, losses }
    }
}

/// `(1 - alpha) a + alpha b`, tensor by tensor; both ends are exact, and so is every point between equal models.
pub fn interpolate(a: &Weights, b: &Weights, alpha: f64) -> Result<Weights> {
    a.iter()
        .map(|(name, from)| {
            let mix = |from: &Tensor, to: &Tensor| {
                // From the nearer end: from a to b is then from b to a.
                if alpha <= 0.5 {
                    from + (to - from) * alpha
                } else {
                    to + (from - to) * (1.0 - alpha)
                }
            };
            Ok((name.to_owned(), mix(from, &b.require(name)?.to_kind(from.kind()))))
        })
        .collect()
}

/// Evaluates `n_points` models on the line from `a` to `b`; `losses` gives as many values for each of them as there
/// are barriers wanted (train, test, …).
pub fn line(
    a: &Weights,
    b: &Weights,
    n_points: usize,
    mut losses: impl FnMut(Weights) -> Result<Vec<f64>>,
) -> Result<Vec<Barrier>> {
    let n_points = n_points.max(2);
    let mut curves: Vec<Vec<f64>> = Vec::new();
    for place in 0..n_points {
        let alpha = place as f64 / (n_points - 1) as f64;
        let values = losses(interpolate(a, b, alpha)?)?;
        curves.resize_with(values.len(), Vec::new);
        for (curve, value) in curves.iter_mut().zip(values) {
            curve.push(value);
        }
    }
    Ok(curves.into_iter().map(Barrier::of).collect())
}

#[cfg(test)]
mod tests {
    use sweep_lens::Kind;

    use super::*;

    #[test]
    fn barriers_by_hand() {
        let found = Barrier::of(vec![1.0, 4.0, 3.0]);
        assert_eq!((found.height, found.at), (2.0, 0.5));
        let valley = Barrier::of(vec![1.0, 0.0, 3.0]);
        assert_eq!((valley.height, valley.at), (0.0, 0.0));
        assert!(Barrier::of(vec![1.0, f64::NAN, 3.0]).height.is_nan());
    }

    #[test]
    fn the_line_goes_from_one_model_to_the_other() {
        let model = |value: f64| -> Weights {
            [("w".to_owned(), Tensor::from_slice(&[value, 3.0 * value]))].into_iter().collect()
        };
        let sum = |weights: &Weights| weights.get("w").unwrap().sum(Kind::Double).double_value(&[]);
        let found = line(&model(0.1), &model(0.7), 5, |weights| {
            let sum = sum(&weights);
            Ok(vec![sum, (sum - 1.6).powi(2)])
        })
        .unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].height.abs() < 1e-12, "linear in the weights");
        assert_eq!((found[0].losses[0], found[0].losses[4]), (sum(&model(0.1)), sum(&model(0.7))));
        assert_eq!(found[1].height, 0.0, "a valley has no barrier");
    }
}
