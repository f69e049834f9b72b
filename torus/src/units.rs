//! Sizes, times and lists for people, the same in every log, event and table.

use std::fmt::Display;

/// A size in powers of 1000: `812 B`, `27.1 MB`.
pub fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `value` with the unit, each a thousand of the one before, that leaves up to three digits before the point.
pub fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let text = if unit == 0 { format!("{value:.0}") } else { format!("{value:.1}") };
    format!("{text} {}", units[unit]).trim_end().to_string()
}

/// A moment in UTC: `2026-11-24 09:58:54`; `-` for 0, which stands for "not yet".
pub fn time(unix_ms: i64) -> String {
    if unix_ms <= 0 {
        return "-".into();
    }
    let s = unix_ms.div_euclid(1000);
    let (days, s) = (s.div_euclid(86_400), s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60)
}

/// Year, month and day of a day counted from 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years begin in March here, so that the leap day is their last.
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The first `max` of these names, and how many more there are: `w1, w2 and 3 more`.
pub fn names<T: Display>(names: impl IntoIterator<Item = T>, max: usize) -> String {
    first(names, max, ", ", " and ")
}

/// The same of clauses: `w1 is gone; w2 is gone; and 3 more`.
pub fn clauses<T: Display>(clauses: impl IntoIterator<Item = T>, max: usize) -> String {
    first(clauses, max, "; ", "; and ")
}

fn first<T: Display>(items: impl IntoIterator<Item = T>, max: usize, between: &str, before_more: &str) -> String {
    let mut items = items.into_iter();
    let shown: Vec<String> = items.by_ref().take(max).map(|item| item.to_string()).collect();
    match items.count() {
        0 => shown.join(between),
        more => format!("{}{before_more}{more} more", shown.join(between)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_listed_and_the_rest_is_counted() {
        assert_eq!(names([0_usize; 0], 3), "");
        assert_eq!(names(1..=3, 3), "1, 2, 3");
        assert_eq!(names(1..=5, 3), "1, 2, 3 and 2 more");
        assert_eq!(clauses(["a is gone", "b is gone"], 2), "a is gone; b is gone");
        assert_eq!(clauses(["a is gone", "b is gone", "c is gone"], 2), "a is gone; b is gone; and 1 more");
    }
}
