//! Steps that are missing from an otherwise regular schedule.
//!
//! Published schedules are pieces of arithmetic progressions (every 50, then every 100, …) and of
//! geometric ones (powers of two), joined anyhow. [`gaps`] therefore judges a distance between two
//! neighbouring steps by its own surroundings: on both sides of it the same regular distance, and
//! itself a whole multiple of that. A distance where two pieces meet is never judged.

use serde::Serialize;

/// Steps that should lie between two neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Gap {
    /// Last step before the gap, if there is one.
    pub after: Option<u64>,
    /// First step behind it, if there is one.
    pub before: Option<u64>,
    /// What is missing.
    pub missing: Vec<u64>,
}

/// Most steps that one gap is taken to lack: where more are missing, two pieces meet.
const MAX_MISSING: usize = 16;

/// Finds what is missing from `steps` (rising): with `expected`, what is there and not in `steps`; else
/// what regularity suggests.
pub(crate) fn gaps(steps: &[u64], expected: &[u64]) -> Vec<Gap> {
    if expected.is_empty() {
        let mut found = arithmetic(steps);
        for gap in geometric(steps) {
            if !found.iter().any(|other| other.after == gap.after) {
                found.push(gap);
            }
        }
        found.sort_by_key(|gap| gap.after);
        return found;
    }
    let mut absent: Vec<u64> =
        expected.iter().copied().filter(|step| !steps.contains(step)).collect();
    absent.sort_unstable();
    absent.dedup();
    let mut found: Vec<Gap> = Vec::new();
    for step in absent {
        let after = steps.iter().copied().rfind(|&other| other < step);
        match found.last_mut() {
            Some(gap) if gap.after == after => gap.missing.push(step),
            Some(_) | None => {
                let before = steps.iter().copied().find(|&other| other > step);
                found.push(Gap { after, before, missing: vec![step] });
            }
        }
    }
    found
}

/// Distances that are whole multiples of the distances around them.
fn arithmetic(steps: &[u64]) -> Vec<Gap> {
    let distances: Vec<f64> = steps.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
    let found = irregular(&distances, |distance, regular| distance / regular);
    found
        .into_iter()
        .map(|(index, times)| {
            let (after, before) = (steps[index], steps[index + 1]);
            let share = (before - after) as f64 / times as f64;
            let missing = (1..times).map(|k| after + (k as f64 * share).round() as u64).collect();
            Gap { after: Some(after), before: Some(before), missing }
        })
        .collect()
}

/// Ratios that are whole powers of the ratios around them.
fn geometric(steps: &[u64]) -> Vec<Gap> {
    let offset = usize::from(steps.first() == Some(&0));
    let steps = &steps[offset..];
    let ratios: Vec<f64> =
        steps.windows(2).map(|pair| (pair[1] as f64 / pair[0] as f64).ln()).collect();
    // Ratios of neighbours in an arithmetic piece fall slowly towards 1, where anything is a power of anything.
    let is_steep = |ratio: f64| ratio > 1.3f64.ln();
    let found = irregular(
        &ratios,
        |ratio, regular| {
            if is_steep(regular) { ratio / regular } else { f64::NAN }
        },
    );
    found
        .into_iter()
        .map(|(index, times)| {
            let (after, before) = (steps[index], steps[index + 1]);
            let share = (before as f64 / after as f64).ln() / times as f64;
            let missing =
                (1..times).map(|k| (after as f64 * (k as f64 * share).exp()).round() as u64);
            Gap { after: Some(after), before: Some(before), missing: missing.collect() }
        })
        .collect()
}

/// Index and multiple of every spacing that is a whole multiple (2 or more, by `multiple`) of the regular
/// spacing on both of its sides. The surroundings have to be convincing: eight regular spacings in a
/// row around it, or three where nearly the whole schedule has this spacing.
fn irregular(spacings: &[f64], multiple: impl Fn(f64, f64) -> f64) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for index in 1..spacings.len().saturating_sub(1) {
        let (left, right) = (spacings[index - 1], spacings[index + 1]);
        let is_regular = |spacing: f64| (spacing / left - 1.0).abs() < 0.02;
        let times = multiple(spacings[index], left);
        let whole = times.round();
        let is_multiple = whole >= 2.0 && (times - whole).abs() < 0.02 * whole;
        if !is_regular(right) || !is_multiple || whole > (MAX_MISSING + 1) as f64 {
            continue;
        }
        // Runs go on over single irregular spacings: two gaps may be close.
        let run = |places: &mut dyn Iterator<Item = usize>| {
            let (mut length, mut irregular_before) = (0, false);
            for place in places {
                if is_regular(spacings[place]) {
                    length += 1;
                    irregular_before = false;
                } else if std::mem::replace(&mut irregular_before, true) {
                    break;
                }
            }
            length
        };
        let around = run(&mut (0..index).rev()) + run(&mut (index + 1..spacings.len()));
        let overall = spacings.iter().filter(|spacing| is_regular(**spacing)).count();
        if around >= 8 || (around >= 3 && 10 * overall >= 6 * spacings.len()) {
            found.push((index, whole as usize));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64, by: u64) -> Vec<u64> {
        (first..=last).step_by(by as usize).collect()
    }

    fn joined(parts: &[Vec<u64>]) -> Vec<u64> {
        let mut steps = parts.concat();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    fn pythia() -> Vec<u64> {
        let powers = (0..10).map(|k| 1 << k).collect();
        joined(&[vec![0], powers, range(1000, 143_000, 1000)])
    }

    fn stanford() -> Vec<u64> {
        joined(&[
            range(0, 90, 10),
            range(100, 1950, 50),
            range(2000, 19_900, 100),
            range(20_000, 400_000, 1000),
        ])
    }

    /// Fractions of a token budget, rounded to whole batches.
    fn tokens(total: f64, batch: f64) -> Vec<u64> {
        let fractions = (0..10)
            .map(|i| f64::from(i) / 10.0 * 1e-3)
            .chain((2..20).map(|i| f64::from(i) / 20.0 * 1e-2))
            .chain((5..50).map(|i| f64::from(i) / 50.0 * 1e-1))
            .chain((10..=100).map(|i| f64::from(i) / 100.0));
        let mut steps: Vec<u64> =
            fractions.map(|f| ((f * total / batch).ceil() * batch) as u64).collect();
        steps.dedup();
        steps
    }

    fn clean() -> Vec<Vec<u64>> {
        vec![
            pythia(),
            range(1000, 143_000, 1000),
            stanford(),
            tokens(22e9, 262_144.0),
            tokens(30e9, 524_288.0),
            range(0, 4000, 100),
            joined(&[range(0, 1000, 7), vec![1000]]),
            joined(&[range(0, 1000, 400), vec![1000]]),
            vec![0, 1, 2, 4, 8, 16, 32, 64, 100],
            vec![0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256],
            vec![0, 10, 20, 30, 100, 200, 300, 400, 1000, 2000, 3000],
            joined(&[range(0, 10_000, 1000), range(3000, 4000, 100)]),
            joined(&[range(0, 64, 8), vec![4, 12, 28]]),
            joined(&[range(0, 64, 8), range(16, 32, 2)]),
            vec![0, 1, 10, 100, 1000, 10_000],
            vec![],
            vec![0],
            vec![0, 5],
            vec![3, 4, 900],
            range(0, 30, 10),
        ]
    }

    #[test]
    fn regular_schedules_have_no_gaps() {
        for steps in clean() {
            assert_eq!(gaps(&steps, &[]), [], "{steps:?}");
            assert_eq!(gaps(&steps, &steps), []);
        }
        assert_eq!((pythia().len(), stanford().len()), (154, 609));
    }

    #[test]
    fn a_missing_step_inside_a_piece_is_found() {
        for (steps, missing) in [
            (pythia(), vec![40_000]),
            (pythia(), vec![88_000, 89_000]),
            (pythia(), vec![16]),
            (stanford(), vec![50]),
            (stanford(), vec![700]),
            (stanford(), vec![12_300, 12_400, 250_000]),
            (range(0, 4000, 100), vec![300, 3700]),
            (range(0, 70, 10), vec![30]),
            (range(0, 50, 10), vec![30]),
            (vec![0, 1, 2, 4, 8, 16, 32, 64], vec![8]),
        ] {
            let mut left = steps.clone();
            left.retain(|step| !missing.contains(step));
            let found: Vec<u64> =
                gaps(&left, &[]).into_iter().flat_map(|gap| gap.missing).collect();
            assert_eq!(found, missing, "{steps:?}");
            let exact: Vec<u64> =
                gaps(&left, &steps).into_iter().flat_map(|gap| gap.missing).collect();
            assert_eq!(exact, missing);
        }
    }

    #[test]
    fn expected_steps_are_missed_at_the_ends_too() {
        let found = gaps(&[10, 20, 40], &[0, 10, 20, 30, 40, 50]);
        assert_eq!(
            found,
            [
                Gap { after: None, before: Some(10), missing: vec![0] },
                Gap { after: Some(20), before: Some(40), missing: vec![30] },
                Gap { after: Some(40), before: None, missing: vec![50] },
            ]
        );
    }
}
