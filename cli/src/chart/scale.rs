//! Scales: values to fractions of an axis, and the ticks that a reader expects there (1-2-5 steps,
//! decades, names). A logarithmic scale may keep a narrow place for zero, so that the checkpoint of
//! step 0 is not lost.

use crate::format;

/// The part of a logarithmic axis that is kept for zero.
const ZERO_ROOM: f64 = 0.07;

/// A mapping from values to `[0, 1]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// Even.
    Linear {
        /// Value at 0.
        min: f64,
        /// Value at 1.
        max: f64,
    },
    /// Even in the logarithm.
    Log {
        /// Smallest positive value.
        min: f64,
        /// Value at 1.
        max: f64,
        /// Whether there is a place for zero.
        zero: bool,
    },
    /// Named places; number `i` is at `i + 0.5` of the length.
    Names {
        /// The names.
        names: Vec<String>,
        /// Whether the first one is at 1 instead of 0.
        reversed: bool,
    },
}

/// A mark on an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    /// Fraction of the axis.
    pub at: f64,
    /// Text; empty for a minor tick.
    pub label: String,
}

impl Scale {
    /// A linear scale over `values` with a little room at both ends.
    pub fn linear(values: impl Iterator<Item = f64>, room: f64) -> Self {
        let (mut min, mut max) = range(values);
        if min > max {
            (min, max) = (0.0, 1.0);
        }
        if min == max {
            let half = if min == 0.0 { 1.0 } else { min.abs() * 0.1 };
            (min, max) = (min - half, max + half);
        }
        let pad = (max - min) * room;
        Self::Linear { min: min - pad, max: max + pad }
    }

    /// A logarithmic scale over the positive `values`; `zero` keeps a place for zero when there is
    /// one among them.
    pub fn log(values: impl Iterator<Item = f64> + Clone, room: f64, zero: bool) -> Self {
        let has_zero = zero && values.clone().any(|value| value == 0.0);
        let (mut min, mut max) = range(values.filter(|value| *value > 0.0));
        if min > max {
            (min, max) = (0.1, 1.0);
        }
        if max / min < 1.000_001 {
            (min, max) = (min / 2.0, max * 2.0);
        }
        let pad = (max / min).powf(room);
        Self::Log { min: min / pad, max: max * pad, zero: has_zero }
    }

    /// Where a value lies; `None` for values that have no place.
    pub fn at(&self, value: f64) -> Option<f64> {
        let at = match self {
            Self::Linear { min, max } => (value - min) / (max - min),
            Self::Log { zero, .. } if value == 0.0 => {
                if *zero {
                    ZERO_ROOM / 2.0
                } else {
                    f64::NAN
                }
            }
            Self::Log { min, max, zero } => {
                let at = (value / min).ln() / (max / min).ln();
                if *zero { ZERO_ROOM + at * (1.0 - ZERO_ROOM) } else { at }
            }
            Self::Names { names, reversed } => {
                let at = (value + 0.5) / names.len().max(1) as f64;
                if *reversed { 1.0 - at } else { at }
            }
        };
        at.is_finite().then_some(at)
    }

    /// The fraction of the axis that is kept for zero.
    pub fn zero_room(&self) -> f64 {
        match self {
            Self::Log { zero: true, .. } => ZERO_ROOM,
            Self::Linear { .. } | Self::Log { .. } | Self::Names { .. } => 0.0,
        }
    }

    /// About `count` labelled ticks.
    pub fn ticks(&self, count: usize) -> Vec<Tick> {
        match self {
            Self::Linear { min, max } => linear_ticks(*min, *max, count),
            Self::Log { min, max, zero } => self.log_ticks(*min, *max, *zero, count),
            Self::Names { names, .. } => {
                let stride = names.len().div_ceil(count.max(1)).max(1);
                let tick = |(index, name): (usize, &String)| {
                    let at = self.at(index as f64)?;
                    let label =
                        if index.is_multiple_of(stride) { name.clone() } else { String::new() };
                    Some(Tick { at, label })
                };
                names.iter().enumerate().filter_map(tick).filter(|t| !t.label.is_empty()).collect()
            }
        }
    }

    fn log_ticks(&self, min: f64, max: f64, zero: bool, count: usize) -> Vec<Tick> {
        let decades = (max / min).log10();
        let (first, last) = (min.log10().floor() as i32, max.log10().ceil() as i32);
        let stride = ((f64::from(last - first)) / count.max(1) as f64).ceil().max(1.0) as i32;
        let labelled: &[u32] = match decades {
            d if d < 1.0 => &[1, 2, 3, 4, 5, 6, 7, 8, 9],
            d if d < 2.0 => &[1, 2, 5],
            _ => &[1],
        };
        let mut ticks = Vec::new();
        if zero && let Some(at) = self.at(0.0) {
            ticks.push(Tick { at, label: "0".to_owned() });
        }
        let inside = |value: f64| value >= min * 0.999_999 && value <= max * 1.000_001;
        for exponent in first..=last {
            for digit in 1..=9u32 {
                let value = f64::from(digit) * 10f64.powi(exponent);
                let Some(at) = self.at(value).filter(|_| inside(value)) else { continue };
                let label = if !labelled.contains(&digit) || exponent.rem_euclid(stride) != 0 {
                    String::new()
                } else if decades < 2.0 {
                    plain(value)
                } else {
                    power(exponent)
                };
                // Minor ticks only where decades are few.
                if !label.is_empty() || (stride == 1 && decades <= 8.0) {
                    ticks.push(Tick { at, label });
                }
            }
        }
        ticks
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    values
        .filter(|value| value.is_finite())
        .fold(start, |(min, max), value| (min.min(value), max.max(value)))
}

fn linear_ticks(min: f64, max: f64, count: usize) -> Vec<Tick> {
    let span = max - min;
    // The round step whose number of intervals is nearest to what was asked for.
    let wanted = count.max(2) as f64 - 0.5;
    let magnitude = 10f64.powf((span / wanted).log10().floor());
    let distance = |step: &f64| (span / step / wanted).ln().abs();
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * magnitude)
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .unwrap_or(magnitude);
    let first = (min / step - 1e-9).ceil() as i64;
    let last = (max / step + 1e-9).floor() as i64;
    let largest = min.abs().max(max.abs());
    (first..=last)
        .map(|index| {
            let value = index as f64 * step;
            Tick { at: (value - min) / span, label: tick_label(value, step, largest) }
        })
        .collect()
}

/// The value of a tick with the digits that its neighbours need.
fn tick_label(value: f64, step: f64, largest: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let sign = if value < 0.0 { "−" } else { "" };
    if !(1e-3..1e6).contains(&largest) {
        let exponent = largest.log10().floor() as i32;
        let unit = 10f64.powi(exponent);
        let decimals = (-(step / unit).log10().floor()).max(0.0) as usize;
        let mantissa = format!("{:.decimals$}", value.abs() / unit);
        return format!("{sign}{mantissa}×{}", power(exponent));
    }
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let text = format!("{:.decimals$}", value.abs());
    let grouped = match text.split_once('.') {
        None => format::count(text.parse().unwrap_or_default()),
        Some(_) => text,
    };
    format!("{sign}{}", grouped.replace(' ', "\u{2009}"))
}

fn plain(value: f64) -> String {
    if (1e-3..1e5).contains(&value) {
        let text = format!("{value:.6}");
        let text = format::trim_zeros(&text);
        if text.contains('.') {
            text.to_owned()
        } else {
            format::count(value.round() as u64).replace(' ', "\u{2009}")
        }
    } else {
        let exponent = value.log10().floor() as i32;
        format!("{:.0}×{}", value / 10f64.powi(exponent), power(exponent))
    }
}

/// `10⁻³`
fn power(exponent: i32) -> String {
    let superscript = |c: char| match c {
        '-' => '⁻',
        '0' => '⁰',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '4' => '⁴',
        '5' => '⁵',
        '6' => '⁶',
        '7' => '⁷',
        '8' => '⁸',
        _ => '⁹',
    };
    format!("10{}", exponent.to_string().chars().map(superscript).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale, count: usize) -> Vec<String> {
        scale.ticks(count).into_iter().map(|t| t.label).filter(|l| !l.is_empty()).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(
            labels(&Scale::Linear { min: 0.0, max: 1.0 }, 5),
            ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(labels(&Scale::Linear { min: -3.0, max: 7.0 }, 5), ["−2", "0", "2", "4", "6"]);
        let steps = labels(&Scale::Linear { min: 0.0, max: 40_000.0 }, 4);
        assert_eq!(
            steps,
            ["0", "10\u{2009}000", "20\u{2009}000", "30\u{2009}000", "40\u{2009}000"]
        );
        assert_eq!(labels(&Scale::Linear { min: 0.0, max: 2e-5 }, 2), ["0", "1×10⁻⁵", "2×10⁻⁵"]);
    }

    #[test]
    fn log_ticks_are_decades() {
        let scale = Scale::Log { min: 1e-4, max: 10.0, zero: false };
        assert_eq!(labels(&scale, 8), ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰", "10¹"]);
        assert_eq!(labels(&Scale::Log { min: 100.0, max: 900.0, zero: false }, 8).len(), 9);
        assert_eq!(labels(&Scale::Log { min: 1e-12, max: 1.0, zero: false }, 4).len(), 5);
    }

    #[test]
    fn zero_has_a_place_on_a_log_axis_of_steps() {
        let scale = Scale::log([0.0, 1.0, 1000.0].into_iter(), 0.0, true);
        let (zero, one) = (scale.at(0.0).unwrap(), scale.at(1.0).unwrap());
        assert!(0.0 < zero && zero < one && one < 0.1);
        assert_eq!(labels(&scale, 8)[0], "0");
        assert_eq!(Scale::log([1.0, 10.0].into_iter(), 0.0, true).at(0.0), None);
        assert_eq!(Scale::log([1.0, 10.0].into_iter(), 0.0, false).at(-1.0), None);
    }

    #[test]
    fn degenerate_data_still_have_a_scale() {
        for values in [vec![], vec![f64::NAN], vec![3.0], vec![0.0, 0.0]] {
            let scale = Scale::linear(values.iter().copied(), 0.05);
            assert!(scale.ticks(5).iter().all(|t| t.at.is_finite()), "{values:?}");
            let scale = Scale::log(values.iter().copied(), 0.05, true);
            assert!(scale.ticks(5).iter().all(|t| t.at.is_finite()), "{values:?}");
        }
    }
}
