//! Checkpoints that stand in the wrong place of a trajectory, from the distances between all of them.
//!
//! A training moves on. [`Distances::turn`] is the cosine between the move into a checkpoint and the move out
//! of it: 1 on a straight line, 0 in a random walk, -1/2 between samples of stationary noise, whatever the
//! spacing of the checkpoints, and far below its surroundings where a checkpoint does not belong.
//! [`misplaced`] looks for
//! - *exchanges*: two checkpoints that stand out, and whose exchange makes every turn that it touches
//!   like those around and the path shorter, and
//! - *strangers*: a checkpoint that stands out and is nearer to a distant place of the trajectory than
//!   to its neighbours, without which its surroundings are even.
//!
//! What stands out is judged by the spread of the turns around it. In few dimensions turns vary so much
//! that nothing does, and in a training that rests or swings to and fro, order leaves no trace: then nothing
//! is claimed.

/// Distances between checkpoints, in the order of their steps.
pub(crate) struct Distances {
    n: usize,
    /// Row-major `[n, n]`.
    between: Vec<f64>,
}

/// A checkpoint in the wrong place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Misplaced {
    /// Two checkpoints stand in each other's place.
    Exchanged(usize, usize),
    /// A checkpoint is nearer to another place than to its neighbours.
    Stranger {
        /// Which.
        index: usize,
        /// Where it is near to.
        near: usize,
    },
}

/// Turns above this are never suspicious: the shallowest that an exchange causes in a random walk.
const SUSPICIOUS: f64 = -0.25;
/// Below this, turns look like rest or swinging, where order leaves no trace.
const AT_REST: f64 = -0.3;
/// By how much an exchange has to shorten the steps around it, as a quotient of geometric means.
const SHORTER: f64 = 1.05;
/// How much nearer than its neighbours a stranger's true place is, as a quotient of distances.
const NEARER: f64 = 0.4;
/// Most possible exchanges that are left out of each other's surroundings.
const MAX_POSSIBLE: usize = 6;
/// Checkpoints on each side of an exchange that have to agree to it.
const SIDE: usize = 3;
/// Most turns that make up the surroundings of a place.
const AROUND: usize = 8;
/// By how much at least a turn has to lie below those around it: four times what sketches blur it.
const MIN_MARGIN: f64 = 0.2;
/// Fewer checkpoints have no surroundings.
const MIN_CHECKPOINTS: usize = 6;

impl Distances {
    /// All distances between sketches (or whole weights) of equal length; NaN, to itself too, where one of
    /// them is not finite.
    pub(crate) fn new(points: &[&[f64]]) -> Self {
        let n = points.len();
        let mut between = vec![0.0; n * n];
        for (i, a) in points.iter().enumerate() {
            for (j, b) in points.iter().enumerate().take(i + 1) {
                let square: f64 = a.iter().zip(*b).map(|(a, b)| (a - b) * (a - b)).sum();
                between[i * n + j] = square.sqrt();
                between[j * n + i] = between[i * n + j];
            }
        }
        Self { n, between }
    }

    /// The distances between some of the checkpoints only.
    pub(crate) fn of(&self, indices: &[usize]) -> Self {
        let row = |&i: &usize| indices.iter().map(move |&j| self.get(i, j));
        Self { n: indices.len(), between: indices.iter().flat_map(row).collect() }
    }

    /// Distance of two checkpoints.
    pub(crate) fn get(&self, i: usize, j: usize) -> f64 {
        self.between[i * self.n + j]
    }

    /// Cosine between the moves into and out of place `at` of `order`; NaN at the ends and where nothing moves.
    pub(crate) fn turn(&self, order: &[usize], at: usize) -> f64 {
        let (Some(before), Some(&after)) = (at.checked_sub(1), order.get(at + 1)) else {
            return f64::NAN;
        };
        let (before, here) = (order[before], order[at]);
        let (into, out) = (self.get(before, here), self.get(here, after));
        (self.get(before, after).powi(2) - into * into - out * out) / (2.0 * into * out)
    }
}

/// Finds exchanged checkpoints and strangers. Indices are those of the points.
pub(crate) fn misplaced(distances: &Distances) -> Vec<Misplaced> {
    let mut order: Vec<usize> = (0..distances.n).collect();
    let mut found = Vec::new();
    if distances.n < MIN_CHECKPOINTS {
        return found;
    }
    let mut exchanged = vec![false; distances.n];
    while let Some((a, b)) = best_exchange(distances, &order, &exchanged) {
        order.swap(a, b);
        (exchanged[a], exchanged[b]) = (true, true);
        found.push(Misplaced::Exchanged(a, b));
    }
    strangers(distances, order, &exchanged, &mut found);
    // More than this is no trajectory with defects but one without an order.
    if found.len() > (distances.n / 5).max(2) { Vec::new() } else { found }
}

/// The exchange of two places that shortens the path most, among those that make it even.
fn best_exchange(
    distances: &Distances,
    order: &[usize],
    exchanged: &[bool],
) -> Option<(usize, usize)> {
    let last = order.len() - 1;
    let is_suspect = |&at: &usize| !exchanged[at] && distances.turn(order, at) < SUSPICIOUS;
    let suspects: Vec<usize> = (1..last).filter(is_suspect).collect();
    let mut possible: Vec<(f64, [usize; 2])> = Vec::new();
    for &a in &suspects {
        let ends = [0, last].into_iter().filter(|&end| !exchanged[end]);
        for b in suspects.iter().copied().filter(|&b| b > a).chain(ends) {
            let pair = [a.min(b), a.max(b)];
            let gain = gain_of_exchange(distances, order, pair);
            if gain > SHORTER && on_wrong_sides(distances, order, pair) {
                possible.push((gain, pair));
            }
        }
    }
    possible.sort_by(|a, b| b.0.total_cmp(&a.0));
    // Other exchanges would spoil the surroundings; where many are possible, there is no order to spoil.
    let all: Vec<usize> = possible.iter().flat_map(|(_, pair)| *pair).collect();
    let is_even = |pair: [usize; 2]| {
        becomes_even(distances, order, pair, &pair)
            || possible.len() <= MAX_POSSIBLE && becomes_even(distances, order, pair, &all)
    };
    possible.iter().map(|(_, pair)| *pair).find(|pair| is_even(*pair)).map(|[a, b]| (a, b))
}

/// Quotient of the geometric means of the steps that touch places `a` and `b`, before and after an
/// exchange.
fn gain_of_exchange(distances: &Distances, order: &[usize], [a, b]: [usize; 2]) -> f64 {
    let mut edges: Vec<usize> = [a, b]
        .into_iter()
        .flat_map(|at| [at.checked_sub(1), Some(at)])
        .flatten()
        .filter(|&edge| edge + 1 < order.len())
        .collect();
    edges.sort_unstable();
    edges.dedup();
    let swapped = |at: usize| match at {
        at if at == a => order[b],
        at if at == b => order[a],
        at => order[at],
    };
    let n_edges = edges.len() as f64;
    let log = |x: f64| x.max(f64::MIN_POSITIVE).ln();
    let gain: f64 = edges
        .into_iter()
        .map(|edge| {
            let before = distances.get(order[edge], order[edge + 1]);
            log(before) - log(distances.get(swapped(edge), swapped(edge + 1)))
        })
        .sum();
    (gain / n_edges).exp()
}

/// Whether every checkpoint shortly before place `a` is nearer to what stands at `b` than to what stands at
/// `a`, and every one shortly behind `b` the other way round. At rest that is a coin thrown for each.
fn on_wrong_sides(distances: &Distances, order: &[usize], [a, b]: [usize; 2]) -> bool {
    let before = a.saturating_sub(SIDE)..a;
    let behind = b + 1..order.len().min(b + 1 + SIDE);
    let [of_a, of_b] = [a, b].map(|place| order[place]);
    let nearer = |at: usize, this: usize, that: usize| {
        distances.get(order[at], this) < distances.get(order[at], that)
    };
    before.into_iter().all(|at| nearer(at, of_b, of_a))
        && behind.into_iter().all(|at| nearer(at, of_a, of_b))
}

/// Whether both places stand out, and neither they nor their neighbours do after the exchange. What the
/// places `apart` touch is not taken for their surroundings.
fn becomes_even(
    distances: &Distances,
    order: &[usize],
    [a, b]: [usize; 2],
    apart: &[usize],
) -> bool {
    let mut after = order.to_vec();
    after.swap(a, b);
    let last = order.len() - 1;
    [a, b].into_iter().all(|place| {
        let is_end = place == 0 || place == last;
        let touched = place.saturating_sub(1).max(1)..=(place + 1).min(last - 1);
        let contrasts = |usual: Usual| {
            (is_end || usual.excludes(distances.turn(order, place)))
                && touched.clone().all(|at| !usual.excludes(distances.turn(&after, at)))
        };
        Usual::around(distances, order, place, apart).is_some_and(contrasts)
            || Usual::throughout(distances, &after).is_some_and(contrasts)
    })
}

/// The turns in the surroundings of a place.
struct Usual {
    /// What lies below this is not one of them.
    limit: f64,
}

impl Usual {
    /// The turns nearest to `place`, without those that the places `apart` touch. `None` if there are
    /// fewer than two, or they look like rest.
    fn around(
        distances: &Distances,
        order: &[usize],
        place: usize,
        apart: &[usize],
    ) -> Option<Self> {
        let is_apart = |at: &usize| apart.iter().all(|&other| at.abs_diff(other) > 1);
        let mut places: Vec<usize> = (1..order.len() - 1)
            .filter(|at| at.abs_diff(place) <= AROUND && is_apart(at))
            .collect();
        places.sort_by_key(|at| at.abs_diff(place));
        places.truncate(AROUND);
        let mut turns: Vec<f64> = places.into_iter().map(|at| distances.turn(order, at)).collect();
        if turns.len() < 2 || turns.iter().any(|turn| turn.is_nan()) {
            return None;
        }
        turns.sort_by(f64::total_cmp);
        // An end shows no turn of its own, so that its surroundings have to be beyond doubt.
        let is_end = place == 0 || place + 1 == order.len();
        let judged = if is_end { turns[0] } else { turns[turns.len() / 2] };
        if judged < AT_REST {
            return None;
        }
        // The lower half alone: where a walk turns into a line, turns differ without being noisy.
        let spread = turns[turns.len() / 2] - turns[0];
        // Few turns say little about their spread.
        let margin = match turns.len() {
            2 => (4.0 * spread).max(0.6),
            3 | 4 => (5.0 * spread).max(0.4),
            5 | 6 => (3.0 * spread).max(MIN_MARGIN),
            _ => (2.0 * spread).max(MIN_MARGIN),
        };
        Some(Self { limit: SUSPICIOUS.min(turns[0] - margin) })
    }

    /// The turns of a whole order that is even throughout: of a short trajectory, few are surroundings.
    fn throughout(distances: &Distances, order: &[usize]) -> Option<Self> {
        let turns = (1..order.len() - 1).map(|at| distances.turn(order, at));
        let (least, most) = turns
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), turn| {
                (least.min(turn), most.max(turn))
            });
        let is_even = least > -0.15 && most - least < 0.3;
        is_even.then_some(Self { limit: SUSPICIOUS.min(least - 0.35) })
    }

    /// Whether a turn lies below everything that is usual.
    fn excludes(&self, turn: f64) -> bool {
        turn < self.limit
    }
}

/// Takes out checkpoints that are nearer to another place than to their neighbours, worst first.
fn strangers(
    distances: &Distances,
    mut order: Vec<usize>,
    exchanged: &[bool],
    found: &mut Vec<Misplaced>,
) {
    while order.len() >= MIN_CHECKPOINTS {
        let mut worst: Option<(f64, usize, usize)> = None;
        for at in (0..order.len()).filter(|&at| !exchanged[order[at]]) {
            let Some((quotient, near)) = nearer_place(distances, &order, at) else { continue };
            let is_worse = worst.is_none_or(|(worst, ..)| quotient < worst);
            if is_worse && is_stranger(distances, &order, at) {
                worst = Some((quotient, at, near));
            }
        }
        let Some((_, at, near)) = worst else { return };
        found.push(Misplaced::Stranger { index: order.remove(at), near });
    }
}

/// Whether place `at` stands out, and its surroundings are even without it.
fn is_stranger(distances: &Distances, order: &[usize], at: usize) -> bool {
    let Some(usual) = Usual::around(distances, order, at, &[at]) else { return false };
    let mut without = order.to_vec();
    without.remove(at);
    let turn = distances.turn(order, at);
    let closed = [at.checked_sub(1), Some(at)].into_iter().flatten();
    (turn.is_nan() || usual.excludes(turn))
        && closed.into_iter().all(|at| !usual.excludes(distances.turn(&without, at)))
}

/// The nearest checkpoint that is not a neighbour of place `at`, if it is much nearer than the neighbours;
/// with the quotient of the two distances.
fn nearer_place(distances: &Distances, order: &[usize], at: usize) -> Option<(f64, usize)> {
    let here = order[at];
    let neighbours = [at.checked_sub(1), Some(at + 1)].into_iter().flatten();
    let neighbours = neighbours.filter_map(|place| order.get(place));
    let nearest = neighbours.map(|&index| distances.get(here, index)).fold(f64::INFINITY, f64::min);
    let elsewhere = (0..order.len()).filter(|place| place.abs_diff(at) > 1);
    let elsewhere = elsewhere.map(|place| (distances.get(here, order[place]), order[place]));
    let (distance, near) = elsewhere.min_by(|a, b| a.0.total_cmp(&b.0))?;
    // Not one place alone, but its neighbours as well, against all that is around.
    let near_place = order.iter().position(|&index| index == near)?;
    let within = |center: usize, reach: usize| {
        let places = center.saturating_sub(reach)..(center + reach + 1).min(order.len());
        places.filter(|&place| place != at).map(|place| distances.get(here, order[place]))
    };
    let least_around = within(at, 2).fold(f64::INFINITY, f64::min);
    if within(near_place, 1).any(|distance| distance >= least_around) {
        return None;
    }
    // An end has one neighbour only, and no turn that could speak against it.
    let limit = if at == 0 || at + 1 == order.len() { NEARER / 2.0 } else { NEARER };
    (distance < limit * nearest).then_some((distance / nearest, near))
}

#[cfg(test)]
mod tests;
