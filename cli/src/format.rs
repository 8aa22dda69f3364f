//! Numbers, sizes, durations and times as people read them. Exact values are the business of JSON
//! and of exports; what is made here is for terminals and figures only.

use std::time::Duration;

/// A metric value with four significant digits; counts and steps as whole numbers.
pub fn value(value: f64, unit: &str) -> String {
    match unit {
        "truth" if value == 1.0 => "yes".to_owned(),
        "truth" if value == 0.0 => "no".to_owned(),
        "steps" if value.is_nan() => "not reached".to_owned(),
        "steps" | "count" if value.fract() == 0.0 && value.abs() < 1e15 => format!("{value:.0}"),
        "steps" | "count" if value.abs() >= 100.0 && value.abs() < 1e15 => format!("{value:.1}"),
        "" | "dimensionless" if value.is_finite() => {
            let text = significant(value, 4);
            if text.contains('e') { text } else { trim_zeros(&text).to_owned() }
        }
        _ => significant(value, 4),
    }
}

/// `value` with `digits` significant digits, in scientific notation where plain digits would be long.
pub fn significant(value: f64, digits: i32) -> String {
    if !value.is_finite() {
        return non_finite(value).to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let exponent = value.abs().log10().floor() as i32;
    if !(-4..=5).contains(&exponent) {
        let text = format!("{value:.*e}", (digits - 1) as usize);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{mantissa}e{exponent}");
    }
    let decimals = (digits - 1 - exponent).max(0) as usize;
    format!("{value:.decimals$}")
}

/// `NaN`, `inf` or `-inf`: how every output format writes these values as text.
pub fn non_finite(value: f64) -> &'static str {
    match value {
        v if v.is_nan() => "NaN",
        v if v > 0.0 => "inf",
        _ => "-inf",
    }
}

/// Drops zeros after the decimal point, and the point where nothing is left.
pub fn trim_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// `12.3s`, `3m 20s`, `1h 02m`, `2d 03h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `840 B`, `1.4 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// `12 345 678`: whole numbers with thin groups of three.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        // Four digits read well without a gap.
        if digits.len() > 4 && index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds since the Unix epoch as RFC 3339 in UTC, `None` for 0 (never).
pub fn timestamp(unix_ms: u64) -> Option<String> {
    if unix_ms == 0 {
        return None;
    }
    let (year, month, day) = civil_date(unix_ms / 86_400_000);
    let in_day = unix_ms % 86_400_000;
    let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (second, ms) = (in_day / 1000 % 60, in_day % 1000);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"))
}

/// A timestamp for tables: `2026-05-01 13:04:05`, `-` for 0.
pub fn short_time(unix_ms: u64) -> String {
    timestamp(unix_ms).map_or_else(|| "-".to_owned(), |text| text[..19].replace('T', " "))
}

/// Gregorian date of a day number since 1970-01-01 (Hinnant's `civil_from_days`).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// `singular` or `plural` after a number.
pub fn plural(n: u64, singular: &str, plural: &str) -> String {
    format!("{} {}", count(n), if n == 1 { singular } else { plural })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(number: f64, unit: &str, expected: &str) {
        assert_eq!(value(number, unit), expected);
    }

    #[test]
    fn values_have_sensible_digits() {
        check(0.123_456, "nats", "0.1235");
        check(5.0, "nats", "5.000");
        check(1234.56, "squared_norm", "1235");
        check(123_456.7, "norm", "123457");
        check(1.234_56e-7, "nats", "1.235e-7");
        check(1e-9, "nats", "1.000e-9");
        check(0.0, "nats", "0");
        check(1480.0, "steps", "1480");
        check(1480.5, "steps", "1480.5");
        check(f64::NAN, "steps", "not reached");
        check(f64::NAN, "nats", "NaN");
        check(f64::NEG_INFINITY, "nats", "-inf");
        check(7.0, "count", "7");
        check(1.0, "dimensionless", "1");
        check(0.003, "dimensionless", "0.003");
        check(1.0, "truth", "yes");
        check(0.0, "truth", "no");
        check(1.0, "probability", "1.000");
        check(-0.5, "ratio", "-0.5000");
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(timestamp(0), None);
        assert_eq!(timestamp(1_000_000_000_123).as_deref(), Some("2001-09-09T01:46:40.123Z"));
        assert_eq!(timestamp(951_782_400_000).as_deref(), Some("2000-02-29T00:00:00.000Z"));
        assert_eq!(short_time(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(duration(Duration::from_millis(2340)), "2.3s");
        assert_eq!(duration(Duration::from_secs(200)), "3m 20s");
        assert_eq!(duration(Duration::from_mins(62)), "1h 02m");
        assert_eq!(duration(Duration::from_hours(25)), "1d 01h");
        assert_eq!(bytes(840), "840 B");
        assert_eq!(bytes(1_468_006), "1.4 MiB");
        assert_eq!(count(1234), "1234");
        assert_eq!(count(12_345_678), "12 345 678");
    }
}
