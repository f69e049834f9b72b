//! Matrix products on all threads, cut into tiles of the result for their number: the cut makes no difference to the result (D-1).

use std::ops::Range;

use super::operand::Operand;
use super::pool::{Disjoint, Pool};
use super::product::{Kernel, product, product_before};

/// Columns of a tile at least, where there are so many: the narrower it is, the more often rows of `a` are packed.
const MIN_COLS: usize = 128;
/// Rows of a tile at least: the fewer there are, the more often columns of `b` are packed.
const MIN_ROWS: usize = 112;
/// Columns that the kernels compute together.
const PANEL: usize = 32;
/// Tiles for each thread where a product is cut, so that a thread that is held up by others' work is helped.
const TILES_PER_THREAD: usize = 2;

/// `c = alpha * a b + beta * c`; `c (a.rows, b.cols)`, row-major.
pub fn matmul(pool: &Pool, kernel: Kernel, alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, c: &mut [f32]) {
    let (m, n) = (a.rows, b.cols);
    assert_eq!(c.len(), m * n, "the product of ({m}, {}) and ({}, {n})", a.cols, b.rows);
    let wanted = tiles_wanted(pool, 1);
    let tile_cols = wanted.min(n / MIN_COLS).max(1);
    let tile_rows = wanted.div_ceil(tile_cols).min(m / MIN_ROWS).max(1);
    let c = Disjoint::new(c);
    pool.each(tile_rows * tile_cols, m * n * a.cols, |tile| {
        let rows = part(tile / tile_cols, tile_rows, 1, m);
        let cols = part(tile % tile_cols, tile_cols, PANEL, n);
        let to = c.at(rows.start * n + cols.start);
        // SAFETY: the tiles do not overlap and lie inside of `c`, whose length was checked.
        unsafe { product(kernel, alpha, a.rows(rows), b.cols(cols), beta, to, n) };
    });
}

/// Tiles that each of `num` products is cut into at best.
fn tiles_wanted(pool: &Pool, num: usize) -> usize {
    match pool.threads() {
        1 => 1,
        threads => (TILES_PER_THREAD * threads).div_ceil(num.max(1)),
    }
}

/// Rows of the experts: expert `e` has rows `offsets[e]..offsets[e + 1]`.
pub struct Grouped<'a> {
    pub offsets: &'a [u32],
    /// Rows that the buffers have room for.
    pub capacity: usize,
}

impl Grouped<'_> {
    fn experts(&self) -> usize {
        self.offsets.len() - 1
    }

    fn rows_of(&self, expert: usize) -> Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }

    fn num_rows(&self) -> usize {
        self.offsets[self.experts()] as usize
    }

    /// `y = x w[e]^T`, or `x w[e]` where `transposed` is false; `x (R, k)`, `y (R, n)`, `w (experts, n, k)` or
    /// `(experts, k, n)`.
    pub fn product(&self, pool: &Pool, kernel: Kernel, x: &[f32], w: &[f32], transposed: bool, y: &mut [f32]) {
        let (k, n) = (x.len() / self.capacity, y.len() / self.capacity);
        assert_eq!(w.len(), self.experts() * n * k, "weights of {} experts, ({n}, {k}) each", self.experts());
        let tiles = tiles_wanted(pool, self.experts()).min(n / MIN_COLS).max(1);
        let y = Disjoint::new(y);
        pool.each(self.experts() * tiles, self.num_rows() * n * k, |i| {
            let (expert, cols) = (i / tiles, part(i % tiles, tiles, PANEL, n));
            let rows = self.rows_of(expert);
            if rows.is_empty() {
                return;
            }
            // A thread has the experts in turn, as a rule.
            let next = if expert + 1 < self.experts() { &w[(expert + 1) * n * k..(expert + 2) * n * k] } else { &[] };
            let w = &w[expert * n * k..(expert + 1) * n * k];
            let w = if transposed { Operand::new(w, n, k).t() } else { Operand::new(w, k, n) };
            let x = Operand::new(&x[rows.start * k..rows.end * k], rows.len(), k);
            let to = y.at(rows.start * n + cols.start);
            // SAFETY: the tiles do not overlap; `rows.end <= capacity`, and `y` has that many rows.
            unsafe { product_before(next, kernel, 1.0, x, w.cols(cols), 0.0, to, n) };
        });
    }

    /// `dw[e] += dy^T x`; `dy (R, m)`, `x (R, n)`, `dw (experts, m, n)`.
    pub fn weight_gradient(&self, pool: &Pool, kernel: Kernel, dy: &[f32], x: &[f32], dw: &mut [f32]) {
        let (m, n) = (dy.len() / self.capacity, x.len() / self.capacity);
        assert_eq!(dw.len(), self.experts() * m * n, "gradients of {} experts, ({m}, {n}) each", self.experts());
        let tiles = tiles_wanted(pool, self.experts()).min(m / MIN_ROWS).max(1);
        let dw = Disjoint::new(dw);
        pool.each(self.experts() * tiles, self.num_rows() * m * n, |i| {
            let (expert, out) = (i / tiles, part(i % tiles, tiles, 1, m));
            let rows = self.rows_of(expert);
            if rows.is_empty() {
                return;
            }
            let dy = Operand::new(&dy[rows.start * m..rows.end * m], rows.len(), m).cols(out.clone()).t();
            let x = Operand::new(&x[rows.start * n..rows.end * n], rows.len(), n);
            let to = dw.at((expert * m + out.start) * n);
            // SAFETY: each tile is one expert's, its rows `out` are in no other tile, and `dw`'s length was checked.
            unsafe { product(kernel, 1.0, dy, x, 1.0, to, n) };
        });
    }
}

/// Part `i` of `0..len` in `parts` parts of nearly equal length, which are whole multiples of `grain` but the last.
fn part(i: usize, parts: usize, grain: usize, len: usize) -> Range<usize> {
    let grains = len.div_ceil(grain);
    let start = |i: usize| (i * grains / parts * grain).min(len);
    start(i)..start(i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_everything_once_in_whole_grains() {
        for (parts, grain, len) in [(1, 32, 5), (3, 32, 260), (4, 32, 512), (5, 1, 13)] {
            let all: Vec<_> = (0..parts).map(|i| part(i, parts, grain, len)).collect();
            assert_eq!((all[0].start, all[parts - 1].end), (0, len));
            assert!(all.windows(2).all(|w| w[0].end == w[1].start && w[0].end.is_multiple_of(grain)), "{all:?}");
        }
    }
}
