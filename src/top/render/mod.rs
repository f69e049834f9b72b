//! The model as a screen: a pure function from the model, the time and the room there is to cells.
//!
//! ```text
//!   wide (100 columns and more)                 narrow
//!   header: state, speed, notices               header
//!   places     | loss                           places, loss, selected place, incidents, jobs and pool,
//!   selected   | incidents                      checkpoints, events: as many as there is room for, in
//!   jobs, pool | checkpoints, events            this order (incidents before the loss where it is low)
//!   keys                                        keys
//! ```
//!
//! Each panel is a heading and lines of text; the room is dealt out by [`deal`]: first what each panel needs at least, in their order, then
//! what they want. Nothing depends on colour: states have symbols and words.

mod curve;
mod grid;
mod panels;
mod style;

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::text::{Line, Span};

pub use self::style::Palette;
use super::model::Model;

/// From this many columns on there are two columns of panels.
const WIDE: u16 = 100;
/// From this many lines on a narrow screen has room for the loss before the incidents.
const TALL: u16 = 16;
/// Columns between the two.
const GAP: u16 = 2;

/// What panels are drawn from.
#[derive(Debug, Clone, Copy)]
struct View<'a> {
    model: &'a Model,
    palette: Palette,
    now_unix_ms: i64,
}

/// A part of the screen.
struct Panel<'a> {
    heading: String,
    /// Lines without the heading: below the first nothing of it can be shown, beyond the second nothing is left to show.
    least: u16,
    most: u16,
    draw: Box<dyn Fn(u16, u16) -> Vec<Line<'static>> + 'a>,
}

pub fn draw(model: &Model, palette: Palette, now_unix_ms: i64, area: Rect, buffer: &mut Buffer) {
    let view = View { model, palette, now_unix_ms };
    let Rect { width, height, .. } = area;
    if width < 10 || height < 3 {
        buffer.set_stringn(area.x, area.y, "too small", width as usize, palette.plain());
        return;
    }
    let header = panels::header(&view, width, height);
    let num_header = header.len() as u16;
    lines(buffer, area, header);
    let keys = Rect { y: area.y + height - 1, height: 1, ..area };
    lines(buffer, keys, vec![panels::keys(&view, width)]);
    let body = Rect { y: area.y + num_header, height: height.saturating_sub(num_header + 1), ..area };
    if model.shows_help {
        lines(buffer, body, panels::help(&view));
    } else if model.job.is_none() {
        column(&view, buffer, body, vec![panels::no_job(&view), panels::pool(&view)]);
    } else if width >= WIDE {
        let left = Rect { width: (width - GAP) / 2, ..body };
        let right = Rect { x: left.right() + GAP, width: width - GAP - left.width, ..body };
        column(&view, buffer, left, vec![grid::panel(&view, left.width), panels::selected(&view), panels::pool(&view)]);
        let of_job =
            vec![curve::panel(&view), panels::incidents(&view), panels::checkpoints(&view), panels::events(&view)];
        column(&view, buffer, right, of_job);
    } else {
        let mut all = vec![
            grid::panel(&view, width),
            panels::incidents(&view),
            curve::panel(&view),
            panels::selected(&view),
            panels::pool(&view),
            panels::checkpoints(&view),
            panels::events(&view),
        ];
        if height >= TALL {
            // What happened comes after what is selected where both have room.
            all[1..4].rotate_left(1);
        }
        column(&view, buffer, body, all);
    }
}

/// Panels one below the other, as far as there is room.
fn column(view: &View<'_>, buffer: &mut Buffer, area: Rect, panels: Vec<Panel<'_>>) {
    let wants: Vec<(u16, u16)> = panels.iter().map(|p| (p.least, p.most)).collect();
    let mut y = area.y;
    for (panel, num_lines) in panels.iter().zip(deal(area.height, &wants)) {
        let Some(num_lines) = num_lines else { continue };
        let heading = view.palette.heading(&panel.heading, area.width);
        lines(buffer, Rect { y, height: 1, ..area }, vec![heading]);
        let body = Rect { y: y + 1, height: num_lines, ..area };
        lines(buffer, body, (panel.draw)(area.width, num_lines));
        y += 1 + num_lines;
    }
}

/// How many lines below its heading each panel has; `None`: there is no room for it. `wants`: at least and at most.
fn deal(height: u16, wants: &[(u16, u16)]) -> Vec<Option<u16>> {
    let mut left = height;
    let mut dealt: Vec<Option<u16>> = Vec::new();
    for (least, _) in wants {
        let needs = 1 + least;
        dealt.push((needs <= left).then_some(*least));
        left -= if needs <= left { needs } else { 0 };
    }
    // A line to each in turn, so that a long list does not take all from those behind it.
    loop {
        let before = left;
        for (lines, (_, most)) in dealt.iter_mut().zip(wants) {
            if let Some(lines) = lines
                && *lines < *most
                && left > 0
            {
                *lines += 1;
                left -= 1;
            }
        }
        if left == before {
            return dealt;
        }
    }
}

/// Text from the top of `area`; what does not fit is cut.
fn lines(buffer: &mut Buffer, area: Rect, lines: Vec<Line<'_>>) {
    let area = area.intersection(buffer.area);
    for (y, line) in (area.top()..area.bottom()).zip(lines) {
        buffer.set_line(area.x, y, &line, area.width);
    }
}

/// Words from outside as a part of a line: no control character of theirs reaches the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text in at most `width` columns, with `..` where it was cut.
fn cut(text: &str, width: u16) -> String {
    let (text, width) = (clean(text), width as usize);
    if text.chars().count() <= width {
        return text;
    }
    let kept: String = text.chars().take(width.saturating_sub(2)).collect();
    format!("{kept}..").chars().take(width).collect()
}

/// Parts in lines of at most `width` columns, none of them broken where it need not be.
fn flow(parts: &[String], gap: &str, width: u16) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + gap.len() + part.chars().count() <= width as usize => {
                *line += &format!("{gap}{part}");
            }
            _ => lines.push(cut(part, width)),
        }
    }
    lines
}

fn plain(text: impl Into<String>) -> Line<'static> {
    Line::from(Span::raw(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_has_its_lines_and_what_has_no_room_is_left_out() {
        let check = |height, wants: &[(u16, u16)], expected: &[Option<u16>]| assert_eq!(deal(height, wants), expected);
        check(10, &[(2, 4), (1, 9)], &[Some(4), Some(4)]);
        check(6, &[(2, 4), (3, 9)], &[Some(4), None]);
        check(3, &[(2, 9), (1, 1)], &[Some(2), None]);
        check(0, &[(0, 1)], &[None]);
        check(20, &[(1, 1), (1, 1)], &[Some(1), Some(1)]);
    }

    #[test]
    fn what_others_say_cannot_steer_the_terminal() {
        assert_eq!(cut("a\x1b[2Jb\n", 20), "a [2Jb ");
        assert_eq!(cut("abcdef", 4), "ab..");
        assert_eq!(cut("abcdef", 1), ".");
    }
}
