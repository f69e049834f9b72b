//! Figures and tables for people. What programs read is in [`toroid_proto::json`].

use std::time::{SystemTime, UNIX_EPOCH};

use toroid_torus::units::scaled;
pub use toroid_torus::units::{bytes, time};

/// The present moment, as messages have it.
pub fn now_unix_ms() -> i64 {
    unix_ms(SystemTime::now())
}

/// A moment as messages have it; 0 before 1970.
pub fn unix_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A time span: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`; `-` where it is not known.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".into();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    let two = |large: u64, large_unit, small: u64, small_unit| match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => two(s / 60, "min", s % 60, "s"),
        3_600..86_400 => two(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

/// A short time with three digits: `12.4 ms`.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{:.0} us", 1e6 * s),
        s if s < 1.0 => format!("{:.1} ms", 1e3 * s),
        s if s < 100.0 => format!("{s:.2} s"),
        s => duration(s),
    }
}

/// A large number in short: `128`, `1.9 M`, `67.0 B`.
pub fn short_count(count: u64) -> String {
    scaled(count as f64, &["", "k", "M", "B", "T"])
}

/// As short as it is for people: `3e15`, `0.25`, `1200`.
pub fn short_number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs().log10();
    if !(-3.0..5.0).contains(&size) {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    let digits = (2.0 - size.floor()).max(0.0) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// So many of something: `1 worker`, `2 workers`.
pub fn num(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A whole number with its thousands apart: `1,234,567`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Tokens per second without their fraction; `-` before there is any.
pub fn rate(per_s: f64) -> String {
    if per_s.is_finite() && per_s > 0.0 { count(per_s.round() as u64) } else { "-".into() }
}

/// A share from 0 to 1 as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// Words in lines of at most `width` columns, each behind `indent`; a word that is longer stands alone.
pub fn wrap(text: &str, width: usize, indent: &str) -> String {
    let (mut out, mut line) = (String::new(), String::from(indent));
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > width {
            out.push_str(&line);
            out.push('\n');
            line.replace_range(indent.len().., "");
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    if !is_empty {
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// Columns side by side, as wide as their widest cell, two spaces apart, a line feed after each row.
pub fn table(rows: &[Vec<String>]) -> String {
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..num_columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_at_most_two_units() {
        for (seconds, expected) in [
            (0.0, "0.0 s"),
            (0.44, "0.4 s"),
            (9.96, "10 s"),
            (59.7, "1 min"),
            (185.0, "3 min 5 s"),
            (7_800.0, "2 h 10 min"),
            (273_600.0, "3 d 4 h"),
            (f64::NAN, "-"),
            (-1.0, "-"),
        ] {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn sizes_and_counts_change_units_where_they_would_show_a_thousand() {
        for (value, size, short, whole) in [
            (0, "0 B", "0", "0"),
            (812, "812 B", "812", "812"),
            (999_949, "999.9 kB", "999.9 k", "999,949"),
            (999_950, "1.0 MB", "1.0 M", "999,950"),
            (27_100_000, "27.1 MB", "27.1 M", "27,100,000"),
            (67_000_000_000, "67.0 GB", "67.0 B", "67,000,000,000"),
        ] {
            assert_eq!(
                (bytes(value).as_str(), short_count(value).as_str(), count(value).as_str()),
                (size, short, whole)
            );
        }
        assert_eq!(bytes(u64::MAX), "18446.7 PB");
    }

    #[test]
    fn rates_and_shares() {
        assert_eq!(rate(13_411.6), "13,412");
        assert_eq!(rate(0.0), "-");
        assert_eq!(rate(f64::INFINITY), "-");
        assert_eq!(percent(0.9812), "98.1%");
    }

    #[test]
    fn moments_are_in_utc_across_leap_days() {
        for (unix_s, expected) in [
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (1_795_514_334, "2026-11-24 09:58:54"),
            (4_102_444_799, "2099-12-31 23:59:59"),
        ] {
            assert_eq!(time(unix_s * 1000 + 999), expected);
        }
        assert_eq!(time(0), "-");
    }

    #[test]
    fn numbers_are_short() {
        let check = |value: f64, expected: &str| assert_eq!(short_number(value), expected);
        check(0.0, "0");
        check(3e15, "3e15");
        check(0.25, "0.25");
        check(1200.0, "1200");
        check(1.5e-7, "1.5e-7");
        check(2.0, "2");
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7, ""), "one two\nthree\n");
        assert_eq!(wrap("one two three", 8, "  "), "  one\n  two\n  three\n");
        assert_eq!(wrap("unbreakable", 4, "  "), "  unbreakable\n");
        assert_eq!(wrap("  ", 4, "  "), "");
    }

    #[test]
    fn tables_align_and_leave_no_space_at_the_end() {
        let row = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        let text = table(&[row(&["JOB", "STATE"]), row(&["tiny-12", "done", "x"]), row(&["é", ""])]);
        assert_eq!(text, "JOB      STATE\ntiny-12  done   x\né\n");
        assert_eq!(table(&[]), "");
    }
}
