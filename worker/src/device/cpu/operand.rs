//! What a matrix product has: operands, each a matrix within a slice, and where the result goes.

use std::ops::Range;

/// A matrix inside of a slice; contiguous along one of its dims.
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
    pub fn rows(self, rows: Range<usize>) -> Operand<'a> {
        Operand { data: &self.data[(rows.start * self.row_stride).min(self.data.len())..], rows: rows.len(), ..self }
    }

    pub fn cols(self, cols: Range<usize>) -> Operand<'a> {
        Operand { data: &self.data[(cols.start * self.col_stride).min(self.data.len())..], cols: cols.len(), ..self }
    }

    /// The last element is inside of the slice, and one dim is contiguous.
    pub fn check(&self) {
        if self.rows > 0 && self.cols > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
            let (rows, cols, len) = (self.rows, self.cols, self.data.len());
            assert!(last < len, "a ({rows}, {cols}) matrix leaves its {len} elements");
            assert!(
                self.row_stride == 1 || self.col_stride == 1,
                "strides {} and {}",
                self.row_stride,
                self.col_stride
            );
        }
    }
}

/// Where a tile of the result goes: `c = alpha * a b + beta * c`.
#[derive(Clone, Copy)]
pub struct Target {
    pub alpha: f32,
    pub beta: f32,
    pub c: *mut f32,
    /// Elements between rows.
    pub stride: usize,
}

/// What the next product reads and is in no cache, which is fetched while this one computes. Lines of 64 bytes, a few at a time.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Ahead {
    at: *const f32,
    num_lines: usize,
}

/// Elements of a line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 16;

#[cfg(target_arch = "x86_64")]
impl Ahead {
    pub fn of(next: &[f32]) -> Ahead {
        Ahead { at: next.as_ptr(), num_lines: next.len().div_ceil(LINE) }
    }

    /// `num` more lines: the first, and elements from each to the one that follows. Where fewer are left that is `else_at` and 0, so that a loop may
    /// fetch without a look.
    #[inline(always)]
    pub fn take(&mut self, num: usize, else_at: *const f32) -> (*const f32, usize) {
        if self.num_lines < num {
            return (else_at, 0);
        }
        let first = self.at;
        self.at = first.wrapping_add(num * LINE);
        self.num_lines -= num;
        (first, LINE)
    }
}
