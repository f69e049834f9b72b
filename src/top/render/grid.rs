//! The places on their torus: with ranks and workers where there is room, else a symbol each, and of a torus that is larger than the room the page that has
//! the selected place.

use std::collections::BTreeMap;

use ratatui_core::text::{Line, Span};

use super::{Palette, Panel, View, clean, flow, plain};
use crate::top::model::{Grid, PlaceState};

/// Letters of a worker's id that are shown within the grid.
const MAX_NAME: usize = 10;

/// The room of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// `#12 w12 `: rank and worker.
    Named { num_digits: usize, name: usize },
    /// `#12 `: the digits of the largest rank.
    Ranked { num_digits: usize },
    /// `# `
    Spaced,
    /// `#`
    Dense,
}

impl Cell {
    fn width(self) -> usize {
        match self {
            Cell::Named { num_digits, name } => num_digits + name + 4,
            Cell::Ranked { num_digits } => num_digits + 3,
            Cell::Spaced => 2,
            Cell::Dense => 1,
        }
    }
}

/// What of the grid is shown.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    cell: Cell,
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

pub fn panel<'a>(view: &View<'a>, width: u16) -> Panel<'a> {
    let View { model, palette, .. } = *view;
    let grid = model.job.as_ref().map(Grid::of).unwrap_or_default();
    let counts = if grid.width > 0 { counts(&grid, width) } else { Vec::new() };
    // One more for the note that says which page it is.
    let most = grid.height as u16 + counts.len() as u16 + u16::from(grid.width > width as usize);
    let heading = match grid.width {
        0 => "No places yet".into(),
        width => format!("Places on a {width} x {} torus", grid.height),
    };
    let rank = model.rank;
    let places = model.job.iter().flat_map(|job| &job.places);
    let names: BTreeMap<u32, String> =
        places.map(|p| (p.rank, clean(&p.worker_id).chars().take(MAX_NAME).collect())).collect();
    Panel {
        heading,
        least: (grid.height as u16).clamp(2, 4).min(most),
        most,
        draw: Box::new(move |width, height| {
            let drawn = Drawn { grid: &grid, names: &names, rank, palette };
            drawn.lines(&counts, width as usize, height as usize)
        }),
    }
}

/// How many places are in which state: the key to the symbols.
fn counts(grid: &Grid, width: u16) -> Vec<String> {
    let num = |state| grid.cells.iter().flatten().filter(|(_, s)| *s == state).count();
    flow(&PlaceState::ALL.map(|state| format!("{} {} {}", state.symbol(), num(state), state.word())), "  ", width)
}

/// What the places are drawn from.
struct Drawn<'a> {
    grid: &'a Grid,
    /// Of the workers, by rank.
    names: &'a BTreeMap<u32, String>,
    /// The selected one.
    rank: usize,
    palette: Palette,
}

impl Drawn<'_> {
    fn lines(&self, counts: &[String], width: usize, height: usize) -> Vec<Line<'static>> {
        let Grid { width: num_columns, height: num_rows, .. } = *self.grid;
        // Places come before the key to them, and of many places two thirds of the room do.
        let rows_first = num_rows.min((2 * height).div_ceil(3).max(1));
        let num_key = counts.len().min(height.saturating_sub(rows_first));
        let name = self.names.values().map(|name| name.chars().count()).max().unwrap_or(0);
        let page = page(self.grid, self.rank, name, width, height - num_key);
        let mut lines: Vec<Line<'static>> = page.rows.clone().map(|y| self.row(&page, y)).collect();
        if page.rows.len() < num_rows || page.columns.len() < num_columns {
            let (rows, columns) = (&page.rows, &page.columns);
            lines.push(plain(format!(
                "rows {} to {} of {num_rows}, columns {} to {} of {num_columns}; the arrows go further",
                rows.start + 1,
                rows.end,
                columns.start + 1,
                columns.end
            )));
        }
        lines.extend(counts.iter().take(num_key).cloned().map(plain));
        lines
    }

    fn row(&self, page: &Page, y: usize) -> Line<'static> {
        let mut spans: Vec<Span<'static>> = Vec::new();
        for x in page.columns.clone() {
            let Some((at, state)) = self.grid.at(x, y) else {
                spans.push(Span::raw(" ".repeat(page.cell.width())));
                continue;
            };
            let is_selected = at as usize == self.rank;
            let style = self.palette.place(state);
            let style = if is_selected { self.palette.selected(style) } else { style };
            let symbol = state.symbol();
            let text = match page.cell {
                Cell::Named { num_digits, .. } => {
                    format!("{symbol}{at:>num_digits$} {}", self.names.get(&at).map_or("", String::as_str))
                }
                Cell::Ranked { num_digits } => format!("{symbol}{at:>num_digits$}"),
                Cell::Spaced | Cell::Dense => symbol.to_string(),
            };
            let space = page.cell.width().saturating_sub(text.chars().count());
            spans.push(Span::styled(text, style));
            // A terminal may have neither colours nor reversed video.
            let mark = if is_selected { "<" } else { "" };
            spans.push(Span::raw(if space > 0 { format!("{mark:<space$}") } else { String::new() }));
        }
        Line::from(spans)
    }
}

/// The page that has `rank`, as large as there is room.
fn page(grid: &Grid, rank: usize, name: usize, width: usize, height: usize) -> Page {
    let num_digits = grid.cells.len().saturating_sub(1).max(1).ilog10() as usize + 1;
    let cells = [Cell::Named { num_digits, name }, Cell::Ranked { num_digits }, Cell::Spaced, Cell::Dense];
    let cell = cells.into_iter().find(|cell| grid.width * cell.width() <= width + 1).unwrap_or(Cell::Dense);
    let (x, y) = grid.position(rank).unwrap_or((0, 0));
    let num_columns = (width / cell.width()).clamp(1, grid.width.max(1));
    let num_columns = if grid.width * cell.width() <= width + 1 { grid.width } else { num_columns };
    let is_whole = grid.height <= height && num_columns == grid.width;
    // The note takes a line.
    let num_rows = if is_whole { grid.height } else { height.saturating_sub(1).clamp(1, grid.height.max(1)) };
    let (first_column, first_row) = (x / num_columns.max(1) * num_columns, y / num_rows.max(1) * num_rows);
    Page {
        cell,
        columns: first_column..(first_column + num_columns).min(grid.width),
        rows: first_row..(first_row + num_rows).min(grid.height),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(width: usize, height: usize) -> Grid {
        let cells = (0..width * height).map(|rank| Some((rank as u32, PlaceState::Computing))).collect();
        Grid { width, height, cells }
    }

    #[test]
    fn a_page_has_the_selected_place_and_fits() {
        let check = |(w, h): (usize, usize), rank, (width, height), columns, rows| {
            let found = page(&grid(w, h), rank, 4, width, height);
            assert_eq!((found.columns.clone(), found.rows.clone()), (columns, rows), "{found:?}");
        };
        check((4, 2), 7, (40, 5), 0..4, 0..2);
        check((64, 32), 0, (80, 10), 0..64, 0..9);
        check((64, 32), 64 * 9, (80, 10), 0..64, 9..18);
        check((64, 32), 2047, (80, 10), 0..64, 27..32);
        check((64, 32), 63, (40, 10), 40..64, 0..9);
        check((64, 32), 0, (40, 1), 0..40, 0..1);
        check((1, 1), 0, (1, 0), 0..1, 0..1);
    }

    #[test]
    fn ranks_and_workers_are_shown_where_there_is_room() {
        let cell = |width, height| page(&grid(width, height), 0, 4, 40, 4).cell;
        assert_eq!(cell(4, 2), Cell::Named { num_digits: 1, name: 4 });
        assert_eq!(cell(8, 1), Cell::Ranked { num_digits: 1 });
        assert_eq!(cell(16, 4), Cell::Spaced);
        assert_eq!(cell(32, 4), Cell::Dense);
    }
}
