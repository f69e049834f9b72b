//! Matrix products by the `gemm` crate, cut into tiles of a fixed size so that the threads' number is not part of the result.

use super::pool::{Disjoint, Pool};
use std::ops::Range;

/// Rows and columns of a tile of the result. Whole row panels: the narrower the tile, the more often its operands are packed.
const TILE_ROWS: usize = 128;
const TILE_COLS: usize = 512;

/// A matrix inside of a slice.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> Operand<'a> {
    /// Row-major `(rows, cols)`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Operand<'a> {
        Operand { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    pub fn t(self) -> Operand<'a> {
        let Operand { data, rows, cols, row_stride, col_stride } = self;
        Operand { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// The same matrix from row `rows.start` to `rows.end`.
    fn rows(self, rows: Range<usize>) -> Operand<'a> {
        Operand { data: &self.data[(rows.start * self.row_stride).min(self.data.len())..], rows: rows.len(), ..self }
    }

    fn cols(self, cols: Range<usize>) -> Operand<'a> {
        Operand { data: &self.data[(cols.start * self.col_stride).min(self.data.len())..], cols: cols.len(), ..self }
    }

    /// The last element is inside of the slice.
    fn check(&self) {
        if self.rows > 0 && self.cols > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
            assert!(
                last < self.data.len(),
                "a ({}, {}) matrix leaves its {} elements",
                self.rows,
                self.cols,
                self.data.len()
            );
        }
    }
}

/// `c = alpha * a b + beta * c` on one thread; `c` is row-major with rows `c_stride` apart.
///
/// # Safety
///
/// `c` points to `a.rows` rows of `b.cols` elements that may be written and that no other thread touches meanwhile.
pub unsafe fn product(alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, c: *mut f32, c_stride: usize) {
    assert_eq!(a.cols, b.rows, "({}, {}) times ({}, {})", a.rows, a.cols, b.rows, b.cols);
    a.check();
    b.check();
    // SAFETY: `check` keeps the operands inside of their slices; the caller answers for `c`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            c,
            1,
            c_stride as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `c = alpha * a b + beta * c`; `c (a.rows, b.cols)`, row-major.
pub fn matmul(pool: &Pool, alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, c: &mut [f32]) {
    let (m, n) = (a.rows, b.cols);
    assert_eq!(c.len(), m * n, "the product of ({m}, {}) and ({}, {n})", a.cols, b.rows);
    let (tile_rows, tile_cols) = (m.div_ceil(TILE_ROWS), n.div_ceil(TILE_COLS));
    let c = Disjoint::new(c);
    pool.each(tile_rows * tile_cols, m * n * a.cols, |tile| {
        let rows = part(tile / tile_cols, TILE_ROWS, m);
        let cols = part(tile % tile_cols, TILE_COLS, n);
        let to = c.at(rows.start * n + cols.start);
        // SAFETY: the tiles do not overlap and lie inside of `c`, whose length was checked.
        unsafe { product(alpha, a.rows(rows), b.cols(cols), beta, to, n) };
    });
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

    /// Calls `f(expert, rows)` for every tile of rows of every expert.
    fn tiles(&self, pool: &Pool, work: usize, f: impl Fn(usize, Range<usize>) + Sync + Send) {
        let most = (0..self.experts()).map(|e| self.rows_of(e).len()).max().unwrap_or(0).div_ceil(TILE_ROWS);
        pool.each(self.experts() * most, work, |i| {
            let rows = self.rows_of(i / most.max(1));
            let tile = part(i % most.max(1), TILE_ROWS, rows.len());
            if !tile.is_empty() {
                f(i / most, rows.start + tile.start..rows.start + tile.end);
            }
        });
    }

    fn num_rows(&self) -> usize {
        self.offsets[self.experts()] as usize
    }

    /// `y = x w[e]^T`, or `x w[e]` where `transposed` is false; `x (R, k)`, `y (R, n)`, `w (experts, n, k)` or `(experts, k, n)`.
    pub fn product(&self, pool: &Pool, x: &[f32], w: &[f32], transposed: bool, y: &mut [f32]) {
        let (k, n) = (x.len() / self.capacity, y.len() / self.capacity);
        assert_eq!(w.len(), self.experts() * n * k, "weights of {} experts, ({n}, {k}) each", self.experts());
        let y = Disjoint::new(y);
        self.tiles(pool, self.num_rows() * n * k, |expert, rows| {
            let w = &w[expert * n * k..(expert + 1) * n * k];
            let w = if transposed { Operand::new(w, n, k).t() } else { Operand::new(w, k, n) };
            let x = Operand::new(&x[rows.start * k..rows.end * k], rows.len(), k);
            // SAFETY: the tiles of rows do not overlap; `rows.end <= capacity`, and `y` has that many rows.
            unsafe { product(1.0, x, w, 0.0, y.at(rows.start * n), n) };
        });
    }

    /// `dw[e] += dy^T x`; `dy (R, m)`, `x (R, n)`, `dw (experts, m, n)`.
    pub fn weight_gradient(&self, pool: &Pool, dy: &[f32], x: &[f32], dw: &mut [f32]) {
        let (m, n) = (dy.len() / self.capacity, x.len() / self.capacity);
        assert_eq!(dw.len(), self.experts() * m * n, "gradients of {} experts, ({m}, {n}) each", self.experts());
        let tiles = m.div_ceil(TILE_ROWS);
        let dw = Disjoint::new(dw);
        pool.each(self.experts() * tiles, self.num_rows() * m * n, |i| {
            let (expert, out) = (i / tiles, part(i % tiles, TILE_ROWS, m));
            let rows = self.rows_of(expert);
            if rows.is_empty() {
                return;
            }
            let dy = Operand::new(&dy[rows.start * m..rows.end * m], rows.len(), m).cols(out.clone()).t();
            let x = Operand::new(&x[rows.start * n..rows.end * n], rows.len(), n);
            // SAFETY: each tile is one expert's, its rows `out` are in no other tile, and `dw`'s length was checked.
            unsafe { product(1.0, dy, x, 1.0, dw.at((expert * m + out.start) * n), n) };
        });
    }
}

/// Part `i` of `0..len` in parts of `size`; empty past the end.
fn part(i: usize, size: usize, len: usize) -> Range<usize> {
    (i * size).min(len)..((i + 1) * size).min(len)
}
