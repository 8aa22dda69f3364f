//! Colours that stay apart for colour-blind readers and in grey print: Okabe and Ito's palette for
//! kinds, viridis for amounts, a blue-white-red map for amounts around zero.

/// Okabe and Ito (2008) without yellow, which vanishes on white.
const PALETTE: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333"];

/// Cells without a value.
pub const MISSING: &str = "#dddddd";

/// Colour number `index` of `count`.
pub fn category(index: usize, count: usize) -> String {
    if count <= PALETTE.len() {
        return PALETTE[index % PALETTE.len()].to_owned();
    }
    // The yellow end is too light for a line on white.
    ColorMap::Viridis.at(0.9 * index as f64 / (count - 1) as f64)
}

/// A mapping from `[0, 1]` to colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorMap {
    /// Dark blue to yellow, even to the eye.
    Viridis,
    /// Blue through white to red; 0.5 is the middle.
    Diverging,
}

/// Viridis at 0, 1/10, …, 1.
const VIRIDIS: [[u8; 3]; 11] = [
    [68, 1, 84],
    [72, 36, 117],
    [65, 68, 135],
    [53, 95, 141],
    [42, 120, 142],
    [33, 145, 140],
    [34, 168, 132],
    [68, 191, 112],
    [122, 209, 81],
    [189, 223, 38],
    [253, 231, 37],
];

/// ColorBrewer's RdBu, reversed.
const DIVERGING: [[u8; 3]; 11] = [
    [5, 48, 97],
    [33, 102, 172],
    [67, 147, 195],
    [146, 197, 222],
    [209, 229, 240],
    [247, 247, 247],
    [253, 219, 199],
    [244, 165, 130],
    [214, 96, 77],
    [178, 24, 43],
    [103, 0, 31],
];

impl ColorMap {
    /// The colour of a fraction, as `#rrggbb`.
    pub fn at(self, fraction: f64) -> String {
        if !fraction.is_finite() {
            return MISSING.to_owned();
        }
        let stops = match self {
            Self::Viridis => &VIRIDIS,
            Self::Diverging => &DIVERGING,
        };
        let position = fraction.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
        let low = (position as usize).min(stops.len() - 2);
        let share = position - low as f64;
        let mix = |channel: usize| -> u8 {
            let (a, b) = (f64::from(stops[low][channel]), f64::from(stops[low + 1][channel]));
            (a + (b - a) * share).round() as u8
        };
        format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
    }
}

/// The ink that can be read on a ground of `#rrggbb`: by the ground's relative luminance (WCAG 2,
/// where both inks have the same contrast at 0.18).
pub fn ink_on(ground: &str) -> &'static str {
    let channel = |at: usize| {
        let byte = ground.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let share = f64::from(byte.unwrap_or(255)) / 255.0;
        if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
    };
    let luminance = 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
    if luminance > 0.18 { "#222222" } else { "#ffffff" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ink_can_be_read_on_both_ends_of_a_map() {
        assert_eq!(ink_on(&ColorMap::Viridis.at(0.0)), "#ffffff");
        assert_eq!(ink_on(&ColorMap::Viridis.at(1.0)), "#222222");
        assert_eq!(ink_on(&ColorMap::Diverging.at(0.0)), "#ffffff");
        assert_eq!(ink_on(&ColorMap::Diverging.at(0.5)), "#222222");
    }

    #[test]
    fn maps_reach_both_ends_and_do_not_leave_them() {
        assert_eq!(ColorMap::Viridis.at(0.0), "#440154");
        assert_eq!(ColorMap::Viridis.at(1.0), "#fde725");
        assert_eq!(ColorMap::Viridis.at(7.0), ColorMap::Viridis.at(1.0));
        assert_eq!(ColorMap::Diverging.at(0.5), "#f7f7f7");
        assert_eq!(ColorMap::Viridis.at(f64::NAN), MISSING);
    }

    #[test]
    fn categories_differ() {
        for count in [1, 2, 7, 8, 30] {
            let mut colors: Vec<String> = (0..count).map(|i| category(i, count)).collect();
            colors.sort();
            colors.dedup();
            assert_eq!(colors.len(), count);
        }
    }
}
