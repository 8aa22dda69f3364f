//! The five curve models of D29, fitted by multi-start least squares and scored by BIC.
//!
//! Main type: [`Fits`], all models fitted to one curve `y(x)` with `x = ln(step + 1)`:
//! M0 `c`; M1 `a + b x`; M2 `a + b t^-c` with `t = e^x` (over plain steps the exponential `a + b exp(-c (x - x'))`); M3 `c + A / (1 + exp(-(x - x0)/w))`;
//! M4 two such logistics on one constant. `BIC = n ln(RSS/n) + k ln n`, k counting curve parameters.
//!
//! The second score, [`Fits::dbic_ar1`], repeats the comparison under AR(1) errors (generalised
//! least squares, correlation profiled): plain BIC takes the wandering of correlated noise for a step.

use serde::Serialize;

use super::least_squares::{Curve, Effort, affine, levenberg_marquardt};

/// A curve model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// M0.
    Constant,
    /// M1.
    Linear,
    /// M2.
    PowerLaw,
    /// M3.
    Logistic,
    /// M4.
    TwoLogistics,
}

impl Model {
    /// All models, M0 to M4.
    pub const ALL: [Self; 5] =
        [Self::Constant, Self::Linear, Self::PowerLaw, Self::Logistic, Self::TwoLogistics];

    /// Number of curve parameters.
    pub const fn n_parameters(self) -> usize {
        match self {
            Self::Constant => 1,
            Self::Linear => 2,
            Self::PowerLaw => 3,
            Self::Logistic => 4,
            Self::TwoLogistics => 7,
        }
    }
}

/// One fitted model.
#[derive(Debug, Clone, Serialize)]
pub struct Fit {
    /// Which.
    pub model: Model,
    /// M0 `[c]`, M1 `[a, b]`, M2 `[a, b, c, x']`, M3 `[c, A, x0, ln w]`, M4 `[c, A1, x1, ln w1, A2, x2, ln w2]`.
    pub parameters: Vec<f64>,
    /// Residual sum of squares.
    pub rss: f64,
    /// Bayesian information criterion; lower is better.
    pub bic: f64,
}

impl Fit {
    fn new(model: Model, parameters: Vec<f64>, rss: f64, curve: &Points<'_>) -> Self {
        let bic = curve.bic(rss, model.n_parameters());
        Self { model, parameters, rss, bic }
    }

    /// Value of the fitted curve at `x`.
    pub fn value(&self, x: f64) -> f64 {
        let p = &self.parameters;
        match self.model {
            Model::Constant => p[0],
            Model::Linear => p[0] + p[1] * x,
            Model::PowerLaw => p[0] + p[1] * (-p[2] * (x - p[3])).exp(),
            Model::Logistic | Model::TwoLogistics => {
                p[0] + p[1..].chunks(3).map(|l| l[0] * logistic(x, l[1], l[2].exp())).sum::<f64>()
            }
        }
    }
}

/// The points of a curve, `x` strictly ascending, at least 8 of them.
#[derive(Debug, Clone, Copy)]
pub struct Points<'a> {
    /// Abscissae.
    pub x: &'a [f64],
    /// Ordinates.
    pub y: &'a [f64],
}

impl Points<'_> {
    /// `max(x) - min(x)`.
    pub fn x_range(&self) -> f64 {
        self.x[self.x.len() - 1] - self.x[0]
    }

    /// `max(y) - min(y)`.
    pub fn y_range(&self) -> f64 {
        let max = self.y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let min = self.y.iter().copied().fold(f64::INFINITY, f64::min);
        max - min
    }

    fn bic(&self, rss: f64, n_parameters: usize) -> f64 {
        let n = self.x.len() as f64;
        // A perfect fit has no likelihood; rounding of the data bounds what can be resolved.
        let floor = (1e-9 * self.y_range()).powi(2) * n;
        n * (rss.max(floor) / n).ln() + n_parameters as f64 * n.ln()
    }
}

/// All models fitted to one curve.
#[derive(Debug, Clone, Serialize)]
pub struct Fits {
    /// M0 to M4.
    pub fits: Vec<Fit>,
    /// `min(BIC(M1), BIC(M2)) - BIC(M3)`: above 10 is decisive for the logistic.
    pub dbic: f64,
    /// The same under AR(1) errors, M0 also counting as an alternative.
    pub dbic_ar1: f64,
}

impl Fits {
    /// Fits everything.
    pub fn new(points: Points<'_>) -> Self {
        Self::over(&Design::new(points.x), points)
    }

    /// The same for one of many curves over equal abscissae, those of the design.
    pub fn over(design: &Design, points: Points<'_>) -> Self {
        let mean = points.y.iter().sum::<f64>() / points.y.len() as f64;
        let rss = points.y.iter().map(|y| (y - mean).powi(2)).sum();
        let line = affine(points.x, points.y);
        let fits = vec![
            Fit::new(Model::Constant, vec![mean], rss, &points),
            Fit::new(Model::Linear, vec![line.a, line.b], line.rss, &points),
            power_law(design, points),
            design.logistic(points),
            design.two_logistics(points),
        ];
        let dbic = fits[1].bic.min(fits[2].bic) - fits[3].bic;
        let dbic_ar1 = design.dbic_ar1(points);
        Self { fits, dbic, dbic_ar1 }
    }

    /// The fit of one model.
    pub fn get(&self, model: Model) -> &Fit {
        &self.fits[model as usize]
    }

    /// The model of lowest BIC.
    pub fn best(&self) -> Model {
        let best = self.fits.iter().min_by(|a, b| a.bic.total_cmp(&b.bic));
        best.map_or(Model::Constant, |fit| fit.model)
    }
}

/// `1 / (1 + exp(-(x - x0)/w))`.
pub fn logistic(x: f64, x0: f64, w: f64) -> f64 {
    1.0 / (1.0 + (-(x - x0) / w).exp())
}

/// Sum of logistics on a constant, with `x0` inside the data and `w` in a sane range.
struct Logistics {
    x_min: f64,
    x_max: f64,
}

impl Logistics {
    fn new(points: Points<'_>) -> Self {
        Self { x_min: points.x[0], x_max: points.x[points.x.len() - 1] }
    }
}

/// The logistic `start` (parameters of M3) refined on a curve that differs little from the one it was fitted to.
pub(super) fn refined(start: &Fit, points: Points<'_>) -> [f64; 4] {
    let start = std::array::from_fn(|i| start.parameters[i]);
    let curve = Logistics::new(points);
    levenberg_marquardt(&curve, points.x, points.y, &start, Effort::RESAMPLED).0
}

impl<const K: usize> Curve<K> for Logistics {
    fn at(&self, parameters: &[f64; K]) -> impl Fn(f64, &mut [f64; K]) -> f64 {
        let p = *parameters;
        let per_width = p.map(|ln_w| (-ln_w).exp());
        move |x, gradient| {
            gradient[0] = 1.0;
            let mut value = p[0];
            for l in (1..K).step_by(3) {
                let (height, per_width) = (p[l], per_width[l + 2]);
                let z = (x - p[l + 1]) * per_width;
                let s = 1.0 / (1.0 + (-z).exp());
                let slope = height * s * (1.0 - s);
                gradient[l] = s;
                gradient[l + 1] = -slope * per_width;
                gradient[l + 2] = -slope * z;
                value += height * s;
            }
            value
        }
    }

    fn clamp(&self, parameters: &mut [f64; K]) {
        let range = self.x_max - self.x_min;
        for l in (1..K).step_by(3) {
            parameters[l + 1] = parameters[l + 1].clamp(self.x_min, self.x_max);
            // Narrower than a thousandth of the range, the curve is a step between two points.
            parameters[l + 2] = parameters[l + 2].clamp((1e-3 * range).ln(), range.ln());
        }
    }
}

/// Exponents tried for M2, both decaying and growing; near 0 it is the line M1. They are meant for
/// logarithmic axes, which never span more than 45; over plain steps the same curve is an exponential, and
/// its rates are those of an axis of length ten, and decays up to one that is over at the second point: without them
/// a fall at the start would have no smooth rival.
fn exponents(x: &[f64]) -> impl Iterator<Item = f64> {
    let unit = exponent_unit(x);
    let plain = (-30..=60).filter(|i: &i32| i.abs() >= 1).map(move |i| f64::from(i) * unit);
    let shortest = x.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    let fastest = if is_plain(x) { 20.0 / shortest } else { 0.0 };
    let faster = std::iter::successors(Some(60.0 * unit * FASTER), |rate| Some(rate * FASTER));
    plain.chain(faster.take_while(move |rate| *rate < fastest))
}

/// Ratio of neighbouring rates beyond the evenly spaced ones.
const FASTER: f64 = 1.25;

/// Whether abscissae are plain steps, no logarithms.
fn is_plain(x: &[f64]) -> bool {
    x[x.len() - 1] - x[0] > 50.0
}

/// Distance of neighbouring [`exponents`] up to sixty of them.
fn exponent_unit(x: &[f64]) -> f64 {
    if is_plain(x) { 1.0 / (x[x.len() - 1] - x[0]) } else { 0.1 }
}

/// M2: linear in a and b, so a one-dimensional search over c.
fn power_law(design: &Design, points: Points<'_>) -> Fit {
    let at = |c: f64| affine(&exponential(points.x, c), points.y);
    let unit = exponent_unit(points.x);
    let first = design.powers.iter().map(|(c, column)| (c, affine(column, points.y).rss));
    let best = first.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(unit, |(c, _)| *c);
    let (mut low, mut high) = if best > 60.5 * unit {
        (best / FASTER, best * FASTER)
    } else {
        (best - unit, best + unit)
    };
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    for _ in 0..40 {
        let (left, right) = (high - golden * (high - low), low + golden * (high - low));
        if at(left).rss < at(right).rss { high = right } else { low = left }
    }
    let refined = f64::midpoint(low, high);
    let c = if at(refined).rss <= at(best).rss { refined } else { best };
    let fit = at(c);
    // From the first step on: counted from step 0, a fast decay would begin with a factor beyond all numbers.
    let (b, origin) = if is_plain(points.x) {
        (fit.b, points.x[0])
    } else {
        (fit.b * (c * points.x[0]).exp(), 0.0)
    };
    let parameters = vec![fit.a, b, c, origin];
    Fit::new(Model::PowerLaw, parameters, fit.rss, &points)
}

/// `exp(-c (x - x_0))`.
fn exponential(x: &[f64], c: f64) -> Vec<f64> {
    x.iter().map(|value| (-c * (value - x[0])).exp()).collect()
}

/// Everything about the abscissae that fits need: candidate columns, for starts and for GLS profiles. Curves over the same
/// abscissae share one.
pub struct Design {
    columns: Vec<Column>,
    /// Every third place and every second width: about 80 columns, 3000 pairs.
    coarse: Coarse,
    /// Exponent and column.
    powers: Vec<(f64, Vec<f64>)>,
    profiles: Vec<Profile>,
}

struct Column {
    x0: f64,
    ln_w: f64,
    values: Vec<f64>,
    /// Centred and of unit length.
    direction: Vec<f64>,
}

/// Centred columns for pairs.
struct Coarse {
    /// Places among all columns.
    places: Vec<usize>,
    centred: Vec<Vec<f64>>,
    squares: Vec<f64>,
    /// Products of column i with column j < i, row by row.
    crosses: Vec<f64>,
}

/// Candidates under one AR(1) correlation: whitened, each also at a right angle to the constant and of unit length.
struct Profile {
    rho: f64,
    one: Vec<f64>,
    /// Line, powers, logistics.
    directions: Vec<Vec<f64>>,
}

/// Widths tried at every place, from 0.3 % to 30 % of the range.
const N_WIDTHS: usize = 8;

/// Correlations tried.
const RHOS: [f64; 11] = [0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.995];

impl Design {
    /// Of strictly ascending abscissae.
    pub fn new(x: &[f64]) -> Self {
        let (start, range) = (x[0], x[x.len() - 1] - x[0]);
        let mut columns = Vec::new();
        for i in 0..=60 {
            let x0 = start + range * f64::from(i) / 60.0;
            for j in 0..N_WIDTHS {
                let w = range * 0.003 * 100f64.powf(j as f64 / (N_WIDTHS - 1) as f64);
                let values: Vec<f64> = x.iter().map(|&x| logistic(x, x0, w)).collect();
                let direction = unit(centre(&values));
                columns.push(Column { x0, ln_w: w.ln(), values, direction });
            }
        }
        let powers: Vec<(f64, Vec<f64>)> = exponents(x).map(|c| (c, exponential(x, c))).collect();
        let profiles = RHOS.map(|rho| Profile::new(rho, x, &powers, &columns)).into();
        Self { coarse: Coarse::new(&columns), columns, powers, profiles }
    }

    /// The best columns for `y ≈ c + A column`, at most one per location, best first.
    fn starts(&self, y: &[f64], n_starts: usize) -> Vec<[f64; 4]> {
        let centred = centre(y);
        let share = |c: &Column| dot(&c.direction, &centred).powi(2);
        let mut scored: Vec<_> = self.columns.iter().map(|c| (share(c), c)).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut starts: Vec<[f64; 4]> = Vec::new();
        for (_, column) in scored {
            if starts.iter().all(|start| start[2] != column.x0) {
                let fit = affine(&column.values, y);
                starts.push([fit.a, fit.b, column.x0, column.ln_w]);
            }
            if starts.len() == n_starts {
                break;
            }
        }
        starts
    }

    fn logistic(&self, points: Points<'_>) -> Fit {
        best_of(Model::Logistic, self.starts(points.y, 4), points)
    }

    /// Starts: the best pairs of columns, for which constant and both heights are a linear problem.
    fn two_logistics(&self, points: Points<'_>) -> Fit {
        let Coarse { places, centred, squares, crosses } = &self.coarse;
        let columns: Vec<&Column> = places.iter().map(|&place| &self.columns[place]).collect();
        let y = centre(points.y);
        let with_y: Vec<f64> = centred.iter().map(|column| dot(column, &y)).collect();
        let mut pairs = Vec::new();
        let mut crosses = crosses.iter();
        for i in 0..columns.len() {
            for (j, cross) in (0..i).zip(&mut crosses) {
                let determinant = squares[i] * squares[j] - cross * cross;
                if determinant <= 1e-9 * squares[i] * squares[j] {
                    continue;
                }
                let a = (squares[j] * with_y[i] - cross * with_y[j]) / determinant;
                let b = (squares[i] * with_y[j] - cross * with_y[i]) / determinant;
                pairs.push((a * with_y[i] + b * with_y[j], i, j, a, b));
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut starts: Vec<[f64; 7]> = Vec::new();
        for (_, i, j, a, b) in pairs {
            let (one, two) = (columns[i], columns[j]);
            if starts.iter().all(|start| start[2] != one.x0 || start[5] != two.x0) {
                let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
                let c = mean(points.y) - a * mean(&one.values) - b * mean(&two.values);
                starts.push([c, a, one.x0, one.ln_w, b, two.x0, two.ln_w]);
            }
            if starts.len() == 8 {
                break;
            }
        }
        // A step at the first or last point leaves no pair; a second logistic of height 0 is one logistic.
        let single = self.starts(points.y, 1).into_iter();
        starts.extend(single.map(|[c, a, x0, ln_w]| [c, a, x0, ln_w, 0.0, x0, ln_w]));
        best_of(Model::TwoLogistics, starts, points)
    }

    /// BIC advantage of the logistic when errors are AR(1) from point to point.
    fn dbic_ar1(&self, points: Points<'_>) -> f64 {
        let (mut smooth, mut step) = (f64::INFINITY, f64::INFINITY);
        for profile in &self.profiles {
            let rho = profile.rho;
            let y = whiten(points.y, rho);
            // ln(1-ρ²) is the Jacobian of the stationary first point; ρ is one parameter more.
            let score = |rss: f64, k: usize| points.bic(rss, k + 1) - f64::ln(1.0 - rho * rho);
            let constant = dot(&profile.one, &y) / dot(&profile.one, &profile.one);
            let y: Vec<f64> = y.iter().zip(&profile.one).map(|(y, u)| y - constant * u).collect();
            let whole = dot(&y, &y);
            smooth = smooth.min(score(whole, Model::Constant.n_parameters()));
            // The largest share decides; what is left of it is then computed without cancellation.
            let best = |range: std::ops::Range<usize>| {
                let share = |direction: &Vec<f64>| dot(direction, &y);
                let shares = profile.directions[range].iter().map(|d| (share(d), d));
                let best = shares.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
                best.map_or(whole, |(share, direction)| {
                    y.iter().zip(direction).map(|(y, d)| (y - share * d).powi(2)).sum()
                })
            };
            let n_powers = self.powers.len();
            smooth = smooth.min(score(best(0..1), Model::Linear.n_parameters()));
            smooth = smooth.min(score(best(1..1 + n_powers), Model::PowerLaw.n_parameters()));
            let logistics = 1 + n_powers..profile.directions.len();
            step = step.min(score(best(logistics), Model::Logistic.n_parameters()));
        }
        smooth - step
    }
}

impl Coarse {
    fn new(columns: &[Column]) -> Self {
        let is_coarse =
            |index: &usize| (index / N_WIDTHS).is_multiple_of(3) && index.is_multiple_of(2);
        let places: Vec<usize> = (0..columns.len()).filter(is_coarse).collect();
        let centred: Vec<Vec<f64>> =
            places.iter().map(|&place| centre(&columns[place].values)).collect();
        let squares = centred.iter().map(|column| dot(column, column)).collect();
        let crosses = (0..centred.len())
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| dot(&centred[i], &centred[j]))
            .collect();
        Self { places, centred, squares, crosses }
    }
}

impl Profile {
    fn new(rho: f64, x: &[f64], powers: &[(f64, Vec<f64>)], columns: &[Column]) -> Self {
        let one = whiten(&vec![1.0; x.len()], rho);
        let square = dot(&one, &one);
        let direction = |column: &[f64]| {
            let white = whiten(column, rho);
            let share = dot(&white, &one) / square;
            let rest: Vec<f64> = white.iter().zip(&one).map(|(w, u)| w - share * u).collect();
            // A column that is all but constant explains nothing more.
            if dot(&rest, &rest) <= 1e-12 * dot(&white, &white) {
                vec![0.0; x.len()]
            } else {
                unit(rest)
            }
        };
        let powers = powers.iter().map(|(_, column)| column.as_slice());
        let columns = columns.iter().map(|column| column.values.as_slice());
        let directions = std::iter::once(x).chain(powers).chain(columns).map(direction).collect();
        Self { rho, one, directions }
    }
}

/// Scaled to length one; zero stays zero.
fn unit(mut values: Vec<f64>) -> Vec<f64> {
    let length = dot(&values, &values).sqrt();
    if length > 0.0 {
        for value in &mut values {
            *value /= length;
        }
    }
    values
}

/// In four lanes, which the compiler keeps in one register.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 4];
    let (a_chunks, b_chunks) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

fn centre(values: &[f64]) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|value| value - mean).collect()
}

/// Removes AR(1) correlation ρ: the first entry scaled, then successive differences `v_i - ρ v_{i-1}`.
fn whiten(values: &[f64], rho: f64) -> Vec<f64> {
    let first = values[0] * (1.0 - rho * rho).sqrt();
    std::iter::once(first).chain(values.windows(2).map(|w| w[1] - rho * w[0])).collect()
}

/// A few iterations from every start, then the two most promising to the end.
fn best_of<const K: usize>(model: Model, starts: Vec<[f64; K]>, points: Points<'_>) -> Fit {
    let curve = Logistics::new(points);
    let descend = |start: &[f64; K], n| {
        levenberg_marquardt(&curve, points.x, points.y, start, Effort::exact(n))
    };
    let mut fits: Vec<_> = starts.iter().map(|start| descend(start, 10)).collect();
    fits.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (parameters, rss) = fits[..fits.len().min(2)]
        .iter()
        .map(|fit| descend(&fit.0, 200))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .expect("a curve of eight or more points has at least one start");
    Fit::new(model, parameters.to_vec(), rss, &points)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(n: usize) -> Vec<f64> {
        (0..n).map(|i| 9.0 * i as f64 / (n - 1) as f64).collect()
    }

    fn fit(f: impl Fn(f64) -> f64, n: usize) -> Fits {
        let x = grid(n);
        let y: Vec<f64> = x.iter().map(|&x| f(x)).collect();
        Fits::new(Points { x: &x, y: &y })
    }

    #[test]
    fn each_model_recovers_its_own_curve() {
        let fits = fit(|x| 2.0 - 0.3 * x, 40);
        assert_eq!(fits.best(), Model::Linear);
        let fits = fit(|x| 1.0 + 3.0 * (-0.77 * x).exp(), 40);
        let p = &fits.get(Model::PowerLaw).parameters;
        assert!(
            (p[0] - 1.0).abs() < 1e-6 && (p[1] - 3.0).abs() < 1e-6 && (p[2] - 0.77).abs() < 1e-6
        );
        assert_eq!(fits.best(), Model::PowerLaw);
        let fits = fit(|x| 5.0 - 4.0 * logistic(x, 6.2, 0.21), 40);
        let p = &fits.get(Model::Logistic).parameters;
        assert!((p[2] - 6.2).abs() < 1e-6 && (p[3].exp() - 0.21).abs() < 1e-6, "{p:?}");
        assert_eq!(fits.best(), Model::Logistic);
        assert!(fits.dbic > 100.0 && fits.dbic_ar1 > 10.0);
        let fits = fit(|x| logistic(x, 3.0, 0.2) - 2.0 * logistic(x, 7.0, 0.1), 60);
        assert_eq!(fits.best(), Model::TwoLogistics);
        let p = &fits.get(Model::TwoLogistics).parameters;
        let mut centres = [p[2], p[5]];
        centres.sort_by(f64::total_cmp);
        assert!((centres[0] - 3.0).abs() < 1e-4 && (centres[1] - 7.0).abs() < 1e-4, "{p:?}");
    }

    #[test]
    fn fitted_value_is_the_formula_and_bic_the_definition() {
        let x = grid(20);
        let y: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + f64::from(i as u32 % 3)).collect();
        let points = Points { x: &x, y: &y };
        for fit in Fits::new(points).fits {
            let rss: f64 = x.iter().zip(&y).map(|(&x, y)| (y - fit.value(x)).powi(2)).sum();
            assert!((rss - fit.rss).abs() < 1e-9 * rss, "{:?}", fit.model);
            let bic = 20.0 * (rss / 20.0).ln() + fit.model.n_parameters() as f64 * 20f64.ln();
            assert!((fit.bic - bic).abs() < 1e-6, "{:?}", fit.model);
        }
    }

    #[test]
    fn whitening_leaves_innovations() {
        let series = [1.0, 0.9, 0.41];
        let white = whiten(&series, 0.5);
        assert!((white[0] - 0.75f64.sqrt()).abs() < 1e-15);
        assert!((white[1] - 0.4).abs() < 1e-15 && (white[2] + 0.04).abs() < 1e-15);
    }
}
