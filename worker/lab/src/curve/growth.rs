//! Curves that a product of components predicts (D36): plateau, drop, saturation.
//!
//! Main type: [`Evidence`]. With two components in balance the product s grows logistically, so that a squared error falls
//! as `c + A (1 - logistic((t - x0) / w))²`; one component alone gives an exponential. Rivals are fitted by exhaustive
//! search and refinement over the parameters that are not linear, and compared by AIC over plain time.

use super::least_squares::affine;

/// Fewest points for a comparison: the S-curve has four parameters.
pub const MIN_POINTS: usize = 8;

/// One fitted curve `c + A f(t)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Parameters of f: `[k]`, `[c]` or `[x0, w]`.
    pub parameters: Vec<f64>,
    /// Residual sum of squares.
    pub rss: f64,
    /// `n ln(RSS / n) + 2k`, the two linear parameters counted.
    pub aic: f64,
}

/// What speaks for growth by components in one falling curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// `exp(-k t)`: one component.
    pub exponential: Shape,
    /// `(t - t_0 + 1)^-c`, from the first step on.
    pub power_law: Shape,
    /// `(1 - logistic((t - x0) / w))²`: two components.
    pub s_curve: Shape,
    /// Slope of `ln s` while s is small, s being the share of the product that has grown.
    pub rate: f64,
    /// R² of that line: 1 is exponential growth.
    pub rate_r2: f64,
    /// Times at which 90, 50, 10 and 1 % of the fall from first to last value are left.
    pub t_left: [f64; 4],
}

/// Shares of the fall that [`Evidence::t_left`] waits for.
pub const SHARES: [f64; 4] = [0.9, 0.5, 0.1, 0.01];

impl Evidence {
    /// Looks at the curve `y(t)`, times ascending, values finite; `None` for fewer than
    /// [`MIN_POINTS`] points or a curve that does not fall.
    pub fn of(t: &[f64], y: &[f64]) -> Option<Self> {
        let (n, start, end) = (t.len(), *y.first()?, *y.last()?);
        if n < MIN_POINTS || start <= end {
            return None;
        }
        let (rate, rate_r2) = early_growth(t, y);
        let fit = Fit { t, y };
        Some(Self {
            exponential: fit.exponential(),
            power_law: fit.power_law(),
            s_curve: fit.s_curve(),
            rate,
            rate_r2,
            t_left: SHARES.map(|share| {
                let level = end + share * (start - end);
                let place = y.iter().position(|&value| value < level);
                place.map_or(f64::NAN, |place| t[place])
            }),
        })
    }

    /// AIC of the best rival minus that of the S-curve: above 10 speaks clearly for components.
    pub fn daic(&self) -> f64 {
        self.exponential.aic.min(self.power_law.aic) - self.s_curve.aic
    }
}

/// Slope and R² of `ln s` against time while s is between 1 and 30 %, `s = 1 - sqrt((y - end) / (start - end))`.
fn early_growth(t: &[f64], y: &[f64]) -> (f64, f64) {
    let (start, end) = (y[0], y[y.len() - 1]);
    let share = |value: f64| 1.0 - ((value - end) / (start - end)).max(0.0).sqrt();
    let late = y.iter().position(|&value| share(value) > 0.3).unwrap_or(y.len());
    let early = t[..late].iter().zip(&y[..late]);
    let (x, ln_s): (Vec<f64>, Vec<f64>) = early
        .map(|(&t, &value)| (t, share(value)))
        .filter(|(_, share)| *share > 0.01)
        .map(|(t, share)| (t, share.ln()))
        .unzip();
    if x.len() < 3 {
        return (f64::NAN, f64::NAN);
    }
    let line = affine(&x, &ln_s);
    let mean = ln_s.iter().sum::<f64>() / ln_s.len() as f64;
    let total: f64 = ln_s.iter().map(|value| (value - mean).powi(2)).sum();
    (line.b, 1.0 - line.rss / total)
}

struct Fit<'a> {
    t: &'a [f64],
    y: &'a [f64],
}

impl Fit<'_> {
    fn range(&self) -> f64 {
        self.t[self.t.len() - 1] - self.t[0]
    }

    fn rss(&self, f: impl Fn(f64) -> f64) -> f64 {
        let column: Vec<f64> = self.t.iter().map(|&t| f(t)).collect();
        affine(&column, self.y).rss
    }

    fn shape(&self, parameters: Vec<f64>, rss: f64) -> Shape {
        let n = self.y.len() as f64;
        let spread = self.y.iter().copied().fold(f64::NEG_INFINITY, f64::max)
            - self.y.iter().copied().fold(f64::INFINITY, f64::min);
        // A perfect fit has no likelihood; rounding of the data bounds what can be resolved.
        let bounded = rss.max((1e-9 * spread).powi(2) * n);
        let aic = n * (bounded / n).ln() + 2.0 * (parameters.len() as f64 + 2.0);
        Shape { parameters, rss, aic }
    }

    fn exponential(&self) -> Shape {
        let (origin, range) = (self.t[0], self.range());
        let error = |ln_k: f64| self.rss(|t| (-ln_k.exp() * (t - origin)).exp());
        let (ln_k, rss) = search(error, (0.03 / range).ln(), (300.0 / range).ln());
        self.shape(vec![ln_k.exp()], rss)
    }

    fn power_law(&self) -> Shape {
        let origin = self.t[0];
        let error = |ln_c: f64| self.rss(|t| (t - origin + 1.0).powf(-ln_c.exp()));
        let (ln_c, rss) = search(error, 0.01f64.ln(), 10f64.ln());
        self.shape(vec![ln_c.exp()], rss)
    }

    fn s_curve(&self) -> Shape {
        let (origin, range) = (self.t[0], self.range());
        let error = |x0: f64, ln_w: f64| {
            let w = ln_w.exp();
            self.rss(|t| {
                let left = 1.0 / (1.0 + ((t - x0) / w).exp());
                left * left
            })
        };
        let (low, high) = ((0.002 * range).ln(), (0.5 * range).ln());
        let mut best = (f64::INFINITY, origin, low);
        for i in 0..=60 {
            for j in 0..=15 {
                // The drop may begin before the first point: a curve without plateau.
                let x0 = origin + range * (f64::from(i) / 50.0 - 0.2);
                let ln_w = low + (high - low) * f64::from(j) / 15.0;
                let rss = error(x0, ln_w);
                if rss < best.0 {
                    best = (rss, x0, ln_w);
                }
            }
        }
        let (mut step_x, mut step_w) = (range / 50.0, (high - low) / 15.0);
        for _ in 0..60 {
            let (_, x0, ln_w) = best;
            let moves = [(step_x, 0.0), (-step_x, 0.0), (0.0, step_w), (0.0, -step_w)];
            let tried = moves.map(|(dx, dw)| (error(x0 + dx, ln_w + dw), x0 + dx, ln_w + dw));
            let improved = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
            match improved {
                Some(better) if better.0 < best.0 => best = better,
                Some(_) | None => (step_x, step_w) = (step_x / 2.0, step_w / 2.0),
            }
        }
        self.shape(vec![best.1, best.2.exp()], best.0)
    }
}

/// Minimum of a function of one parameter: a grid of 120 points, then golden-section refinement.
fn search(error: impl Fn(f64) -> f64, low: f64, high: f64) -> (f64, f64) {
    let step = (high - low) / 119.0;
    let best = (0..120)
        .map(|i| low + step * f64::from(i))
        .min_by(|&a, &b| error(a).total_cmp(&error(b)))
        .unwrap_or(low);
    let (mut left, mut right) = (best - step, best + step);
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    for _ in 0..40 {
        let (a, b) = (right - golden * (right - left), left + golden * (right - left));
        if error(a) < error(b) { right = b } else { left = a }
    }
    let refined = f64::midpoint(left, right);
    if error(refined) <= error(best) { (refined, error(refined)) } else { (best, error(best)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(n: u32) -> Vec<f64> {
        (0..n).map(f64::from).collect()
    }

    fn curve(t: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
        t.iter().map(|&t| f(t)).collect()
    }

    /// Small deterministic disturbance.
    fn noise(t: f64) -> f64 {
        1e-3 * (t * 12.9898).sin()
    }

    #[test]
    fn shapes_are_recognised_and_their_parameters_found() {
        let t = times(100);
        let two =
            curve(&t, |t| 5.0 * (1.0 - 1.0 / (1.0 + (-(t - 40.0) / 4.0).exp())).powi(2) + 1.0);
        let found = Evidence::of(&t, &two).unwrap();
        assert!(found.daic() > 100.0);
        assert!((found.s_curve.parameters[0] - 40.0).abs() < 0.05, "{found:?}");
        assert!((found.s_curve.parameters[1] - 4.0).abs() < 0.05, "{found:?}");
        // While small, the product grows at rate 1/w; at 30 % saturation has begun to slow it.
        assert!((found.rate * 4.0 - 1.0).abs() < 0.2 && found.rate_r2 > 0.99, "{found:?}");
        let one = curve(&t, |t| 5.0 * (-t / 15.0).exp() + 1.0 + noise(t));
        let found = Evidence::of(&t, &one).unwrap();
        assert!(found.daic() < 0.0 && (found.exponential.parameters[0] * 15.0 - 1.0).abs() < 0.01);
        let power = curve(&t, |t| 5.0 * (t + 1.0).powf(-0.7) + noise(t));
        let found = Evidence::of(&t, &power).unwrap();
        assert!(found.daic() < 0.0 && found.power_law.aic < found.exponential.aic);
        assert!((found.power_law.parameters[0] - 0.7).abs() < 0.01);
    }

    #[test]
    fn times_of_the_fall() {
        let t = times(101);
        let line = curve(&t, |t| 100.0 - t);
        let found = Evidence::of(&t, &line).unwrap();
        assert_eq!(found.t_left, [11.0, 51.0, 91.0, 100.0]);
        assert!(Evidence::of(&t[..5], &line[..5]).is_none());
        let rising: Vec<f64> = line.iter().rev().copied().collect();
        assert!(Evidence::of(&t, &rising).is_none());
    }
}
