//! Sizes for people, the same in every log, event and table.

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
