//! Where a curve changes: optimal segmentation under a penalty per segment (PELT), for four costs (D30).
//!
//! Main items: [`Cost`], [`Segmenter`], [`penalty`]. Segments are half-open index ranges; a change point is the
//! index at which a new segment begins. Every index is admissible. Invariant: the segmentation is optimal;
//! candidates are pruned only where that is proven harmless, which for segments of a least length means as soon as their
//! better rival can be used too.
//!
//! Source: Killick, Fearnhead and Eckley 2012; costs as in ruptures 1.1.10 (`costl2`, `costnormal`,
//! `costclinear`, `costrbf`), on curves that are standardised first.

/// What a segment is expected to look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Constant: squared distance from the mean. Finds changes of level.
    Level,
    /// Gaussian: `n ln variance`. Finds changes of level or of noise.
    Normal,
    /// Continuous line from the end of the segment before. Finds changes of slope.
    Slope,
    /// Constant in the feature space of a Gaussian kernel. Finds changes of distribution.
    Kernel,
}

/// Added to a variance, so that constant segments have a finite cost.
const SMALL_VARIANCE: f64 = 1e-6;

/// Largest curve for [`Cost::Kernel`], which needs the square of it in memory.
pub const KERNEL_MAX: usize = 4096;

impl Cost {
    /// Shortest segment.
    pub fn min_size(self) -> usize {
        match self {
            Self::Level | Self::Normal | Self::Kernel => 2,
            Self::Slope => 3,
        }
    }

    /// Whether splitting a segment can never make it dearer, which is what allows pruning.
    fn is_subadditive(self) -> bool {
        self != Self::Slope
    }
}

/// Standardises: mean 0, variance 1 (a constant curve becomes zeros).
pub fn standardised(y: &[f64]) -> Vec<f64> {
    let n = y.len() as f64;
    let mean = y.iter().sum::<f64>() / n;
    let variance = y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n;
    let scale = if variance > 0.0 { variance.sqrt() } else { 1.0 };
    y.iter().map(|y| (y - mean) / scale).collect()
}

/// Price of a segment in units of the cost, in the manner of BIC: `2 σ² ln n` with the noise σ from the
/// median absolute first difference, twice that for slopes (from second differences), whose lines go through noisy points,
/// `3 ln n` for Gaussian segments (mean, variance, place), and `ln n` for kernels, whose cost per point is at most 1.
///
/// Differences count about zero, not about their median: a steady trend is noise to levels, which cannot follow it, and an
/// alternation is noise as well.
pub fn penalty(cost: Cost, y: &[f64]) -> f64 {
    let ln_n = (y.len().max(2) as f64).ln();
    let differences = |y: &[f64]| y.windows(2).map(|w| w[1] - w[0]).collect::<Vec<f64>>();
    // Differences of noise are √2 (second ones √6) times as large as the noise.
    let variance = |mut sizes: Vec<f64>, factor: f64| {
        for size in &mut sizes {
            *size = size.abs();
        }
        sizes.sort_by(f64::total_cmp);
        let median = sizes.get(sizes.len() / 2).copied().unwrap_or(0.0);
        (1.4826 * median).powi(2) / factor
    };
    // A curve without any noise would be cut at every point.
    let floor = 1e-8;
    match cost {
        Cost::Level => 2.0 * variance(differences(y), 2.0).max(floor) * ln_n,
        Cost::Slope => 4.0 * variance(differences(&differences(y)), 6.0).max(floor) * ln_n,
        Cost::Normal => 3.0 * ln_n,
        Cost::Kernel => ln_n,
    }
}

/// Costs of all segments of one curve, each in constant time.
#[derive(Debug)]
pub struct Segmenter {
    cost: Cost,
    y: Vec<f64>,
    /// Sums of y, y² and i·y over the first i points.
    sums: Vec<[f64; 3]>,
    /// Sums of the Gram matrix over the first rows and columns, `[n + 1, n + 1]`; for kernels only.
    gram: Vec<f64>,
}

impl Segmenter {
    /// Prepares a curve; for [`Cost::Kernel`] it has at most [`KERNEL_MAX`] points.
    pub fn new(cost: Cost, y: &[f64]) -> Self {
        let mut sums = Vec::with_capacity(y.len() + 1);
        let mut sum = [0.0; 3];
        sums.push(sum);
        for (index, &y) in y.iter().enumerate() {
            sum = [sum[0] + y, sum[1] + y * y, sum[2] + index as f64 * y];
            sums.push(sum);
        }
        let gram = if cost == Cost::Kernel { integral_gram(y) } else { Vec::new() };
        Self { cost, y: y.to_vec(), sums, gram }
    }

    /// Cost of the segment `start..end`.
    pub fn cost(&self, start: usize, end: usize) -> f64 {
        let n = (end - start) as f64;
        let [sum, squares, _] = self.between(start, end);
        let variance = (squares / n - (sum / n).powi(2)).max(0.0);
        match self.cost {
            Cost::Level => n * variance,
            Cost::Normal => n * (variance + SMALL_VARIANCE).ln(),
            Cost::Slope => self.line(start.max(1), end),
            Cost::Kernel => {
                let side = self.y.len() + 1;
                let at = |row: usize, column: usize| self.gram[row * side + column];
                let block = at(end, end) - at(start, end) - at(end, start) + at(start, start);
                // The kernel of a point with itself is 1.
                n - block / n
            }
        }
    }

    /// Squared distance from the line between the last points of this segment and the one before.
    fn line(&self, start: usize, end: usize) -> f64 {
        let n = (end - start) as f64;
        let first = self.y[start - 1];
        let slope = (self.y[end - 1] - first) / n;
        let [sum, squares, moments] = self.between(start, end);
        // k = 1..=n counts from the point before the segment.
        let moments = moments - (start as f64 - 1.0) * sum;
        let k = n * (n + 1.0) / 2.0;
        let k_squared = k * (2.0 * n + 1.0) / 3.0;
        let cross = first * sum + slope * moments;
        let fitted = n * first * first + 2.0 * first * slope * k + slope * slope * k_squared;
        (squares - 2.0 * cross + fitted).max(0.0)
    }

    fn between(&self, start: usize, end: usize) -> [f64; 3] {
        let (low, high) = (self.sums[start], self.sums[end]);
        [high[0] - low[0], high[1] - low[1], high[2] - low[2]]
    }

    /// Change points of the cheapest segmentation, at `penalty` per segment.
    pub fn change_points(&self, penalty: f64) -> Vec<usize> {
        let (n, min_size) = (self.y.len(), self.cost.min_size());
        if n < 2 * min_size {
            return Vec::new();
        }
        // Cheapest price of the first i points, and where its last segment begins.
        let mut price = vec![f64::INFINITY; n + 1];
        let mut begin = vec![0; n + 1];
        price[0] = 0.0;
        // Candidates for the last segment's start, with the end from which on each is useless.
        let mut candidates: Vec<(usize, usize)> = Vec::new();
        for end in min_size..=n {
            let newest = end - min_size;
            if price[newest].is_finite() {
                candidates.push((newest, usize::MAX));
            }
            candidates.retain(|&(_, useless_from)| end < useless_from);
            for &(start, _) in &candidates {
                let total = price[start] + self.cost(start, end) + penalty;
                if total < price[end] {
                    (price[end], begin[end]) = (total, start);
                }
            }
            if self.cost.is_subadditive() {
                for (start, useless_from) in &mut candidates {
                    if price[*start] + self.cost(*start, end) > price[end] {
                        *useless_from = (*useless_from).min(end + min_size);
                    }
                }
            }
        }
        let mut points = Vec::new();
        let mut end = n;
        while begin[end] > 0 {
            end = begin[end];
            points.push(end);
        }
        points.reverse();
        points
    }

    /// The best single change within `start..end` and what it saves; `None` when there is no room.
    pub fn best_split(&self, start: usize, end: usize) -> Option<(usize, f64)> {
        let min_size = self.cost.min_size();
        let whole = self.cost(start, end);
        let saved = |at: usize| whole - self.cost(start, at) - self.cost(at, end);
        (start + min_size..(end + 1).saturating_sub(min_size))
            .map(|at| (at, saved(at)))
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

/// Sums over the leading rows and columns of `exp(-γ (y_i - y_j)²)`, γ one over the median squared distance.
fn integral_gram(y: &[f64]) -> Vec<f64> {
    let side = y.len() + 1;
    let mut distances: Vec<f64> = Vec::with_capacity(y.len() * y.len().saturating_sub(1) / 2);
    for (index, a) in y.iter().enumerate() {
        distances.extend(y[index + 1..].iter().map(|b| (a - b).powi(2)));
    }
    let gamma = match median(&mut distances) {
        median if median > 0.0 => 1.0 / median,
        _ => 1.0,
    };
    let mut sums = vec![0.0; side * side];
    for (row, a) in y.iter().enumerate() {
        let mut so_far = 0.0;
        for (column, b) in y.iter().enumerate() {
            // Clipped as in ruptures, but a point is always like itself.
            let exponent = (gamma * (a - b).powi(2)).clamp(1e-2, 1e2);
            so_far += if row == column { 1.0 } else { (-exponent).exp() };
            sums[(row + 1) * side + column + 1] = sums[row * side + column + 1] + so_far;
        }
    }
    sums
}

fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

#[cfg(test)]
mod tests;
