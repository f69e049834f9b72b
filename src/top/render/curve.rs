//! The loss over the steps, in braille: two dots across and four down to a character.

use ratatui_core::text::{Line, Span};

use super::{Panel, View};
use crate::format::count;
use crate::top::model::Scale;

/// Columns for the figures at the left.
const LABEL: usize = 9;
/// Dots of a braille character by row and column, as bits above U+2800.
const DOTS: [[u32; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

pub fn panel<'a>(view: &View<'a>) -> Panel<'a> {
    let View { model, palette, .. } = *view;
    let scale = model.scale;
    let heading = format!("Loss ({})", if scale == Scale::Log { "logarithmic" } else { "linear" });
    Panel {
        heading,
        least: 3,
        most: 12,
        draw: Box::new(move |width, height| {
            let text = chart(&model.curve.points, scale, width as usize, height as usize);
            let styled = |(label, dots)| Line::from(vec![Span::raw(label), Span::styled(dots, palette.loss())]);
            text.into_iter().map(styled).collect()
        }),
    }
}

/// Label and dots of each line, the last with the steps.
fn chart(points: &[(u64, f64)], scale: Scale, width: usize, height: usize) -> Vec<(String, String)> {
    let value = |loss: f64| if scale == Scale::Log { loss.max(f64::MIN_POSITIVE).ln() } else { loss };
    let (Some((first, _)), Some((last, _))) = (points.first(), points.last()) else {
        return vec![("no step is made yet".into(), String::new())];
    };
    if width < LABEL + 4 || height < 2 {
        return Vec::new();
    }
    let (num_columns, num_rows) = (2 * (width - LABEL), 4 * (height - 1));
    let column = |step: u64| {
        let share = (step - first) as f64 / (last - first).max(1) as f64;
        (share * (num_columns - 1) as f64).round() as usize
    };
    // The mean of all points of a column of dots.
    let mut sums = vec![(0.0, 0u32); num_columns];
    for (step, loss) in points {
        let (sum, num) = &mut sums[column(*step)];
        (*sum, *num) = (*sum + value(*loss), *num + 1);
    }
    let known: Vec<(usize, f64)> = sums
        .iter()
        .enumerate()
        .filter(|(_, (_, num))| *num > 0)
        .map(|(x, (sum, num))| (x, sum / f64::from(*num)))
        .collect();
    let high = known.iter().map(|(_, mean)| *mean).fold(f64::NEG_INFINITY, f64::max);
    let low = known.iter().map(|(_, mean)| *mean).fold(f64::INFINITY, f64::min);
    let span = if high > low { high - low } else { 1.0 };
    let row = |mean: f64| ((high - mean) / span * (num_rows - 1) as f64).round() as usize;
    let mut cells = vec![0u32; (width - LABEL) * (height - 1)];
    let mut before: Option<usize> = None;
    for (x, mean) in straight(&known) {
        let y = row(mean);
        // A line without holes where the loss jumps.
        let (from, to) = match before {
            Some(b) if b < y => (b + 1, y),
            Some(b) if b > y => (y, b - 1),
            _ => (y, y),
        };
        for y in from.min(y)..=to.max(y) {
            cells[y / 4 * (width - LABEL) + x / 2] |= DOTS[y % 4][x % 2];
        }
        before = Some(y);
    }
    let as_loss = |value: f64| if scale == Scale::Log { value.exp() } else { value };
    let label = |line: usize| match line {
        0 => format!("{:<LABEL$.4}", as_loss(high)),
        line if line == height - 2 => format!("{:<LABEL$.4}", as_loss(low)),
        _ => " ".repeat(LABEL),
    };
    let braille = |bits: &u32| char::from_u32(0x2800 + bits).unwrap_or(' ');
    let rows = cells.chunks(width - LABEL).enumerate();
    let mut lines: Vec<(String, String)> =
        rows.map(|(line, cells)| (label(line), cells.iter().map(braille).collect())).collect();
    let (from, to) = (format!("step {}", count(*first)), count(*last));
    let space = (width - LABEL).saturating_sub(to.len());
    lines.push((format!("{}{from:<space$}{to}", " ".repeat(LABEL)), String::new()));
    lines
}

/// These and what lies between them, in straight lines.
fn straight(known: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let mut all: Vec<(usize, f64)> = known.first().copied().into_iter().collect();
    for pair in known.windows(2) {
        let [(from, a), (to, b)] = [pair[0], pair[1]];
        all.extend((from + 1..=to).map(|x| (x, a + (b - a) * (x - from) as f64 / (to - from) as f64)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_falls_from_the_left_above_to_the_right_below() {
        let points: Vec<(u64, f64)> = (0..8).map(|n| (n, 8.0 - n as f64)).collect();
        let found = chart(&points, Scale::Linear, LABEL + 4, 3);
        let text: Vec<String> = found.iter().map(|(label, dots)| format!("{label}{dots}")).collect();
        assert_eq!(text, ["8.0000   ⠑⢄⠀⠀", "1.0000   ⠀⠀⠑⢄", "         step 07"]);
    }

    #[test]
    fn one_point_and_none_and_no_room_are_no_fault() {
        assert_eq!(chart(&[], Scale::Linear, 40, 5)[0].0, "no step is made yet");
        assert_eq!(chart(&[(5, 1.0)], Scale::Log, 40, 5).len(), 5);
        assert_eq!(chart(&[(5, 0.0), (6, -1.0)], Scale::Log, 40, 2).len(), 2);
        assert!(chart(&[(5, 1.0)], Scale::Linear, 5, 5).is_empty());
    }
}
