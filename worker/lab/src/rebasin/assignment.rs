//! The linear assignment problem, solved exactly in float64 (Jonker and Volgenant 1987).
//!
//! Main function: [`assign_max`]. Columns start at their smallest cost and are handed to a row that is still free;
//! every other row gets a shortest augmenting path. Duals keep all reduced costs non-negative up to rounding, so
//! that the result is optimal whatever ties there are; among equal assignments the choice is deterministic.

use crate::error::{Error, Result};

/// Column of each row such that the sum of `scores[row][column]` is largest. `scores`: `n * n` values,
/// row-major.
///
/// # Errors
/// A score that is not finite, or a length that is not `n * n`.
pub fn assign_max(scores: &[f64], n: usize) -> Result<Vec<usize>> {
    if scores.len() != n * n {
        return Err(Error::Input(format!("expected {n} x {n} scores, found {}", scores.len())));
    }
    if let Some(bad) = scores.iter().find(|score| !score.is_finite()) {
        return Err(Error::Input(format!("an assignment needs finite scores, found {bad}")));
    }
    let costs: Vec<f64> = scores.iter().map(|score| -score).collect();
    Ok(Solver::new(&costs, n).solve())
}

/// Sum of the scores of an assignment.
pub fn objective(scores: &[f64], assignment: &[usize]) -> f64 {
    let n = assignment.len();
    assignment.iter().enumerate().map(|(row, column)| scores[row * n + column]).sum()
}

const NONE: usize = usize::MAX;

struct Solver<'a> {
    costs: &'a [f64],
    n: usize,
    /// Dual of each column.
    v: Vec<f64>,
    column_of: Vec<usize>,
    row_of: Vec<usize>,
}

impl<'a> Solver<'a> {
    fn new(costs: &'a [f64], n: usize) -> Self {
        let (mut v, mut owner) = (vec![f64::INFINITY; n], vec![NONE; n]);
        for (row, costs) in costs.chunks(n.max(1)).enumerate() {
            for (column, &cost) in costs.iter().enumerate() {
                if cost < v[column] {
                    (v[column], owner[column]) = (cost, row);
                }
            }
        }
        let (mut column_of, mut row_of) = (vec![NONE; n], vec![NONE; n]);
        for (column, &row) in owner.iter().enumerate() {
            if column_of[row] == NONE {
                (column_of[row], row_of[column]) = (column, row);
            }
        }
        Self { costs, n, v, column_of, row_of }
    }

    fn solve(mut self) -> Vec<usize> {
        let mut search = Search::new(self.n);
        for row in 0..self.n {
            if self.column_of[row] == NONE {
                self.augment(row, &mut search);
            }
        }
        self.column_of
    }

    /// Assigns `start` by the shortest alternating path to a free column (Dijkstra on reduced costs).
    fn augment(&mut self, start: usize, search: &mut Search) {
        let n = self.n;
        let Search { distance, previous, open, done } = search;
        distance.fill(f64::INFINITY);
        open.clear();
        open.extend(0..n);
        done.clear();
        let (mut row, mut reached) = (start, 0.0);
        let end = loop {
            let costs = &self.costs[row * n..][..n];
            // A row's dual is its cost at its own column less that column's dual.
            let u = match self.column_of[row] {
                NONE => 0.0,
                column => costs[column] - self.v[column],
            };
            let (mut best, mut place) = (f64::INFINITY, 0);
            for (index, &column) in open.iter().enumerate() {
                let through = reached + costs[column] - u - self.v[column];
                if through < distance[column] {
                    (distance[column], previous[column]) = (through, row);
                }
                let is_free = self.row_of[column] == NONE;
                // Of equal columns a free one ends the search.
                if distance[column] < best || (distance[column] == best && is_free) {
                    (best, place) = (distance[column], index);
                }
            }
            let column = open.swap_remove(place);
            reached = best;
            if self.row_of[column] == NONE {
                break column;
            }
            done.push(column);
            row = self.row_of[column];
        };
        for &column in done.iter() {
            self.v[column] += distance[column] - reached;
        }
        let mut column = end;
        loop {
            let row = previous[column];
            self.row_of[column] = row;
            std::mem::swap(&mut self.column_of[row], &mut column);
            if row == start {
                break;
            }
        }
    }
}

/// Scratch space of a search.
struct Search {
    distance: Vec<f64>,
    previous: Vec<usize>,
    open: Vec<usize>,
    done: Vec<usize>,
}

impl Search {
    fn new(n: usize) -> Self {
        Self {
            distance: vec![0.0; n],
            previous: vec![NONE; n],
            open: Vec::with_capacity(n),
            done: Vec::with_capacity(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    /// The generator of `tests/fixtures/assignment.py`.
    fn matrix(n: usize, seed: u64, levels: u64) -> Vec<f64> {
        let mut state = seed;
        let draw = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match levels {
                0 => (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5,
                levels => ((state >> 33) % levels) as f64,
            }
        };
        (0..n * n).map(draw).collect()
    }

    #[test]
    fn objectives_equal_scipy_with_and_without_ties() {
        let golden: Json =
            serde_json::from_str(include_str!("../../tests/fixtures/assignment.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 200);
        for case in cases {
            let number = |name: &str| case[name].as_u64().unwrap();
            let n = number("n") as usize;
            let scores = matrix(n, number("seed"), number("levels"));
            let found = assign_max(&scores, n).unwrap();
            let mut columns = found.clone();
            columns.sort_unstable();
            assert_eq!(columns, (0..n).collect::<Vec<_>>(), "{case}");
            let expected = case["objective"].as_f64().unwrap();
            assert!((objective(&scores, &found) - expected).abs() < 1e-9, "{case}");
        }
    }

    #[test]
    fn every_small_problem_is_optimal() {
        fn best(scores: &[f64], n: usize, row: usize, used: &mut Vec<bool>) -> f64 {
            if row == n {
                return 0.0;
            }
            let mut most = f64::NEG_INFINITY;
            for column in 0..n {
                if !used[column] {
                    used[column] = true;
                    most = most.max(scores[row * n + column] + best(scores, n, row + 1, used));
                    used[column] = false;
                }
            }
            most
        }
        for seed in 0..60 {
            let n = 1 + (seed as usize % 6);
            let scores = matrix(n, seed, if seed % 2 == 0 { 3 } else { 0 });
            let found = objective(&scores, &assign_max(&scores, n).unwrap());
            assert!((found - best(&scores, n, 0, &mut vec![false; n])).abs() < 1e-12);
        }
    }

    #[test]
    fn scales_signs_and_bad_scores() {
        assert!(assign_max(&[], 0).unwrap().is_empty());
        assert_eq!(assign_max(&[1e300, -1e300, 1.0, 0.0], 2).unwrap(), [0, 1]);
        assert!(assign_max(&[f64::NAN], 1).is_err());
        assert!(assign_max(&[1.0, 2.0], 2).is_err());
        // All equal: any permutation is optimal, and the choice repeats.
        let equal = vec![2.0; 100];
        assert_eq!(assign_max(&equal, 10).unwrap(), assign_max(&equal, 10).unwrap());
        // A hidden permutation is found.
        let hidden: Vec<usize> = (0..50).map(|i| (7 * i + 3) % 50).collect();
        let mut scores = matrix(50, 5, 0);
        for (row, &column) in hidden.iter().enumerate() {
            scores[row * 50 + column] += 10.0;
        }
        assert_eq!(assign_max(&scores, 50).unwrap(), hidden);
    }
}
