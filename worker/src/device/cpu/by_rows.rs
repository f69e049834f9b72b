//! Products of a few rows, for generation on processors without AVX-512: nothing is packed, and an element's bits depend on its row and column alone.
//!
//! The products of the `gemm` crate choose their cut by the shape, so that a row has other bits beside other rows, and pack operands of a single row,
//! which costs more than it computes. Here an element is summed in [`LANES`] lanes over the depth where both operands lie that way (`x w^T`), else depth by
//! depth (`p v`), whatever tile it is in. The bits are the same on all processors, and others than those of training.
//!
//! Rows of `a` are contiguous: it is what a forward has.

use super::operand::Operand;
use super::simd::{Isa, LANES, multiversion};

/// Columns of a tile where operands do not lie along the depth.
const COLS: usize = 32;

/// Where the result goes; whoever makes one answers for its elements.
#[derive(Clone, Copy)]
struct Target {
    alpha: f32,
    beta: f32,
    c: *mut f32,
    stride: usize,
}

impl Target {
    /// # Safety
    ///
    /// The element is the caller's.
    #[inline(always)]
    unsafe fn put(&self, row: usize, col: usize, sum: f32) {
        // SAFETY: the caller's.
        unsafe {
            let at = self.c.add(row * self.stride + col);
            *at = if self.beta == 0.0 { self.alpha * sum } else { self.alpha * sum + self.beta * *at };
        }
    }
}

/// Arguments as in [`super::product::product`].
///
/// # Safety
///
/// The operands lie inside of their slices, and `c` has `a.rows` rows of `b.cols` elements that are the caller's.
pub unsafe fn product(isa: Isa, alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, c: *mut f32, stride: usize) {
    assert!(a.col_stride == 1 || a.cols <= 1, "rows of the left operand are contiguous in every forward");
    let to = Target { alpha, beta, c, stride };
    if b.row_stride == 1 && b.col_stride != 1 || b.rows <= 1 {
        by_depth(isa, a, b, to);
    } else {
        by_column(isa, a, b, to);
    }
}

multiversion! {
    /// `b` is contiguous along the depth.
    fn by_depth(a: Operand<'_>, b: Operand<'_>, to: Target) {
        let (m, n) = (a.rows, b.cols);
        if m == 1 {
            let whole = n - n % 4;
            (0..whole).step_by(4).for_each(|col| dots::<1, 4>(a, b, 0, col, to));
            (whole..n).for_each(|col| dots::<1, 1>(a, b, 0, col, to));
            return;
        }
        // A few columns of `b` stay in the cache while all rows of `a` meet them.
        for col in (0..n - n % 2).step_by(2) {
            (0..m - m % 2).step_by(2).for_each(|row| dots::<2, 2>(a, b, row, col, to));
            (m - m % 2..m).for_each(|row| dots::<1, 2>(a, b, row, col, to));
        }
        for col in n - n % 2..n {
            (0..m).for_each(|row| dots::<1, 1>(a, b, row, col, to));
        }
    }
}

/// `R` by `C` elements from `row` and `col` on, each in lanes of its own.
#[inline(always)]
fn dots<const R: usize, const C: usize>(a: Operand<'_>, b: Operand<'_>, row: usize, col: usize, to: Target) {
    let depth = a.cols;
    let a: [&[f32]; R] = std::array::from_fn(|r| &a.data[(row + r) * a.row_stride..][..depth]);
    let b: [&[f32]; C] = std::array::from_fn(|c| &b.data[(col + c) * b.col_stride..][..depth]);
    let mut sums = [[[0.0_f32; LANES]; C]; R];
    let whole = depth - depth % LANES;
    for at in (0..whole).step_by(LANES) {
        for r in 0..R {
            for c in 0..C {
                for lane in 0..LANES {
                    sums[r][c][lane] = a[r][at + lane].mul_add(b[c][at + lane], sums[r][c][lane]);
                }
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            for lane in 0..depth - whole {
                sums[r][c][lane] = a[r][whole + lane].mul_add(b[c][whole + lane], sums[r][c][lane]);
            }
            // SAFETY: the element is of the result, which is the caller's.
            unsafe { to.put(row + r, col + c, sum_of_lanes(sums[r][c])) };
        }
    }
}

#[inline(always)]
fn sum_of_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut num = LANES;
    while num > 1 {
        num /= 2;
        for lane in 0..num {
            lanes[lane] += lanes[lane + num];
        }
    }
    lanes[0]
}

multiversion! {
    /// `b` is contiguous along its rows.
    fn by_column(a: Operand<'_>, b: Operand<'_>, to: Target) {
        for row in 0..a.rows {
            let whole = b.cols - b.cols % COLS;
            (0..whole).step_by(COLS).for_each(|col| columns::<COLS>(a, b, row, col, to));
            (whole..b.cols).for_each(|col| columns::<1>(a, b, row, col, to));
        }
    }
}

/// `C` elements of `row` from `col` on, depth by depth.
#[inline(always)]
fn columns<const C: usize>(a: Operand<'_>, b: Operand<'_>, row: usize, col: usize, to: Target) {
    let mut sums = [0.0_f32; C];
    for depth in 0..a.cols {
        let x = a.data[row * a.row_stride + depth * a.col_stride];
        let from = &b.data[depth * b.row_stride + col..][..C];
        for c in 0..C {
            sums[c] = x.mul_add(from[c], sums[c]);
        }
    }
    for (c, sum) in sums.into_iter().enumerate() {
        // SAFETY: the element is of the result, which is the caller's.
        unsafe { to.put(row, col + c, sum) };
    }
}
