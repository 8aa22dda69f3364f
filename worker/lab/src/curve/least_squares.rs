//! Small dense least squares: two-column linear fits in closed form, and Levenberg-Marquardt with
//! an analytic Jacobian for up to a handful of parameters.
//!
//! Main items: [`affine`], [`two_columns`], [`levenberg_marquardt`], which allocates nothing.

/// Intercept, slope and residual sum of squares of `y ≈ a + b f`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Intercept.
    pub a: f64,
    /// Slope.
    pub b: f64,
    /// Residual sum of squares.
    pub rss: f64,
}

/// Best `y ≈ a + b f`. A constant `f` gives slope 0.
pub fn affine(f: &[f64], y: &[f64]) -> Affine {
    let n = y.len() as f64;
    let (mean_f, mean_y) = (f.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let (mut ff, mut fy) = (0.0, 0.0);
    for (f, y) in f.iter().zip(y) {
        ff += (f - mean_f) * (f - mean_f);
        fy += (f - mean_f) * (y - mean_y);
    }
    let b = if ff > 0.0 { fy / ff } else { 0.0 };
    let a = mean_y - b * mean_f;
    let rss = f.iter().zip(y).map(|(f, y)| (y - a - b * f).powi(2)).sum();
    Affine { a, b, rss }
}

/// Residual sum of squares of the best `y ≈ a u + b v`; collinear columns count as one.
pub fn two_columns(u: &[f64], v: &[f64], y: &[f64]) -> f64 {
    let (mut uu, mut uv, mut vv, mut uy, mut vy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for ((u, v), y) in u.iter().zip(v).zip(y) {
        uu += u * u;
        uv += u * v;
        vv += v * v;
        uy += u * y;
        vy += v * y;
    }
    let determinant = uu * vv - uv * uv;
    let (a, b) = if determinant > 1e-12 * uu * vv {
        ((vv * uy - uv * vy) / determinant, (uu * vy - uv * uy) / determinant)
    } else if uu > 0.0 {
        (uy / uu, 0.0)
    } else {
        (0.0, 0.0)
    };
    u.iter().zip(v).zip(y).map(|((u, v), y)| (y - a * u - b * v).powi(2)).sum()
}

/// A continuous line with one bend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BrokenLine {
    /// Slope after the knot minus slope before it.
    pub change_of_slope: f64,
    /// Residual sum of squares.
    pub rss: f64,
}

/// Best `y ≈ a + b x + c max(x - knot, 0)`.
pub fn broken_line(x: &[f64], y: &[f64], knot: f64) -> BrokenLine {
    let hinge: Vec<f64> = x.iter().map(|x| (x - knot).max(0.0)).collect();
    // Frisch-Waugh: regress the hinge and y on the line, then one residual on the other.
    let (on_hinge, on_y) = (affine(x, &hinge), affine(x, y));
    let rest = |fit: Affine, values: &[f64]| -> Vec<f64> {
        x.iter().zip(values).map(|(x, v)| v - fit.a - fit.b * x).collect()
    };
    let fit = affine(&rest(on_hinge, &hinge), &rest(on_y, y));
    BrokenLine { change_of_slope: fit.b, rss: fit.rss }
}

/// A model of K parameters with analytic derivatives.
pub trait Curve<const K: usize> {
    /// The curve with these parameters: gives its value at a place and writes ∂value/∂parameter.
    fn at(&self, parameters: &[f64; K]) -> impl Fn(f64, &mut [f64; K]) -> f64;
    /// Forces parameters into the admissible region.
    fn clamp(&self, parameters: &mut [f64; K]);
}

/// How far a descent goes.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Most iterations.
    pub iterations: usize,
    /// Ends when an iteration takes less than this share off the residual sum of squares.
    pub tolerance: f64,
}

impl Effort {
    /// To the end, within so many iterations.
    pub const fn exact(iterations: usize) -> Self {
        Self { iterations, tolerance: 1e-12 }
    }

    /// For one of many resampled curves, which differ by much more.
    pub const RESAMPLED: Self = Self { iterations: 30, tolerance: 1e-8 };
}

/// Minimises the squared residuals from `start`; returns parameters and their residual sum of squares,
/// never worse than the start.
pub fn levenberg_marquardt<const K: usize, C: Curve<K>>(
    curve: &C,
    x: &[f64],
    y: &[f64],
    start: &[f64; K],
    effort: Effort,
) -> ([f64; K], f64) {
    let mut best = *start;
    curve.clamp(&mut best);
    let mut system = System::new(curve, &best, x, y);
    let mut damping = 1e-3;
    for _ in 0..effort.iterations {
        for i in 0..K {
            // A parameter at its bound that wants to leave would spoil the step of all the others.
            if is_blocked(curve, &best, i, system.right[i]) {
                for j in 0..K {
                    system.normal[i.max(j)][i.min(j)] = f64::from(u8::from(i == j));
                }
                system.right[i] = 0.0;
            }
        }
        let before = system.rss;
        // Raise the damping until a step helps.
        while damping < 1e12 {
            let mut damped = system.normal;
            for (i, row) in damped.iter_mut().enumerate() {
                row[i] += damping * system.normal[i][i].max(1e-12);
            }
            let Some(step) = solve_cholesky(&mut damped, &system.right) else {
                damping *= 10.0;
                continue;
            };
            let mut candidate = best;
            for (parameter, step) in candidate.iter_mut().zip(step) {
                *parameter += step;
            }
            curve.clamp(&mut candidate);
            // Most steps help, and the next one starts from what is computed here.
            let there = System::new(curve, &candidate, x, y);
            if there.rss < system.rss {
                (best, system) = (candidate, there);
                damping = (damping * 0.2).max(1e-12);
                break;
            }
            damping *= 5.0;
        }
        if damping >= 1e12 || before - system.rss <= effort.tolerance * before {
            break;
        }
    }
    (best, system.rss)
}

/// The linear problem of one Gauss-Newton step.
#[derive(Clone, Copy)]
struct System<const K: usize> {
    rss: f64,
    /// Lower triangle of JᵀJ.
    normal: [[f64; K]; K],
    /// Jᵀ times residuals.
    right: [f64; K],
}

impl<const K: usize> System<K> {
    fn new<C: Curve<K>>(curve: &C, parameters: &[f64; K], x: &[f64], y: &[f64]) -> Self {
        let value = curve.at(parameters);
        let mut gradient = [0.0; K];
        let mut system = Self { rss: 0.0, normal: [[0.0; K]; K], right: [0.0; K] };
        for (&x, &y) in x.iter().zip(y) {
            let residual = y - value(x, &mut gradient);
            system.rss += residual * residual;
            for i in 0..K {
                system.right[i] += gradient[i] * residual;
                for j in 0..=i {
                    system.normal[i][j] += gradient[i] * gradient[j];
                }
            }
        }
        system
    }
}

/// Whether moving parameter `i` in the direction of `slope` leaves the admissible region.
fn is_blocked<const K: usize, C: Curve<K>>(
    curve: &C,
    parameters: &[f64; K],
    i: usize,
    slope: f64,
) -> bool {
    let mut moved = *parameters;
    moved[i] += 1e-6 * (1.0 + moved[i].abs()) * slope.signum();
    curve.clamp(&mut moved);
    moved[i] == parameters[i]
}

/// Solves `A x = b` for symmetric positive definite A (lower triangle, overwritten).
fn solve_cholesky<const K: usize>(a: &mut [[f64; K]; K], b: &[f64; K]) -> Option<[f64; K]> {
    for i in 0..K {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|m| a[i][m] * a[j][m]).sum();
            let rest = a[i][j] - dot;
            if i == j {
                // NaN fails this comparison too.
                if rest.is_nan() || rest <= 0.0 {
                    return None;
                }
                a[i][i] = rest.sqrt();
            } else {
                a[i][j] = rest / a[j][j];
            }
        }
    }
    let mut x = *b;
    for i in 0..K {
        let dot: f64 = (0..i).map(|m| a[i][m] * x[m]).sum();
        x[i] = (x[i] - dot) / a[i][i];
    }
    for i in (0..K).rev() {
        let dot: f64 = (i + 1..K).map(|m| a[m][i] * x[m]).sum();
        x[i] = (x[i] - dot) / a[i][i];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_fits_are_exact() {
        let f: Vec<f64> = (0..9).map(f64::from).collect();
        let y: Vec<f64> = f.iter().map(|f| 2.0 - 0.5 * f).collect();
        let fit = affine(&f, &y);
        assert!((fit.a - 2.0).abs() < 1e-12 && (fit.b + 0.5).abs() < 1e-12 && fit.rss < 1e-24);
        assert!(two_columns(&[1.0; 9], &f, &y) < 1e-24);
        // Least squares of (0,0), (1,1), (2,0): mean 1/3, slope 0, rss 2/3.
        let fit = affine(&[0., 1., 2.], &[0., 1., 0.]);
        assert!(fit.b.abs() < 1e-15 && (fit.rss - 2.0 / 3.0).abs() < 1e-15);
        assert!((two_columns(&[1.; 3], &[1.; 3], &[0., 1., 0.]) - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn broken_line_finds_the_bend() {
        let x: Vec<f64> = (0..11).map(f64::from).collect();
        let y: Vec<f64> = x.iter().map(|x| 1.0 - 0.5 * x - 2.0 * (x - 6.0).max(0.0)).collect();
        let fit = broken_line(&x, &y, 6.0);
        assert!((fit.change_of_slope + 2.0).abs() < 1e-12 && fit.rss < 1e-20);
        assert!(broken_line(&x, &y, 5.0).rss > 0.1 && broken_line(&x, &y, 7.0).rss > 0.1);
    }

    struct Decay;
    impl Curve<2> for Decay {
        fn at(&self, &[height, rate]: &[f64; 2]) -> impl Fn(f64, &mut [f64; 2]) -> f64 {
            move |x, gradient| {
                let e = (-rate * x).exp();
                *gradient = [e, -height * x * e];
                height * e
            }
        }
        fn clamp(&self, parameters: &mut [f64; 2]) {
            parameters[1] = parameters[1].clamp(0.0, 10.0);
        }
    }

    #[test]
    fn levenberg_marquardt_finds_the_minimum() {
        let x: Vec<f64> = (0..30).map(|i| f64::from(i) * 0.1).collect();
        let y: Vec<f64> = x.iter().map(|x| 3.0 * (-1.7 * x).exp()).collect();
        let (p, rss) = levenberg_marquardt(&Decay, &x, &y, &[1.0, 0.1], Effort::exact(100));
        assert!(
            (p[0] - 3.0).abs() < 1e-8 && (p[1] - 1.7).abs() < 1e-8 && rss < 1e-15,
            "{p:?} {rss}"
        );
        // With the rate held at its bound by a curve that decays faster, the height is still the best.
        let y: Vec<f64> = x.iter().map(|x| 3.0 * (-12.0 * x).exp()).collect();
        let (p, rss) = levenberg_marquardt(&Decay, &x, &y, &[1.0, 0.1], Effort::exact(100));
        let f: Vec<f64> = x.iter().map(|x| (-10.0 * x).exp()).collect();
        let best = two_columns(&f, &[0.0; 30], &y);
        assert!(p[1] == 10.0 && (rss / best - 1.0).abs() < 1e-9, "{p:?} {rss} {best}");
    }

    #[test]
    fn cholesky_solves_and_refuses() {
        let x = solve_cholesky(&mut [[4.0, 0.0], [2.0, 3.0]], &[8.0, 7.0]).unwrap();
        assert!((4.0 * x[0] + 2.0 * x[1] - 8.0).abs() < 1e-12);
        assert!((2.0 * x[0] + 3.0 * x[1] - 7.0).abs() < 1e-12);
        assert!(solve_cholesky(&mut [[1.0, 0.0], [2.0, 1.0]], &[1.0, 1.0]).is_none());
    }
}
