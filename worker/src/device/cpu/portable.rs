//! Products of f32 on any processor, by loops that vectorize: with AVX2 as fast as the processor multiplies and adds.
//!
//! ```text
//!                    b, a block of DEPTH by COLS columns, packed in panels of 16 columns, stays in L2
//!                       | one depth of a panel: two vectors of AVX2, four of NEON
//!   a, up to 6 rows,    v
//!   packed, stays in   acc (6, 16): 12 vectors, or 24
//!   L1, broadcast
//! ```
//!
//! As in `avx512`, whose bits these are: each element of the result is the sum over its depth in order, block after block of [`DEPTH`], each step one
//! fused multiply-add. So the bits depend neither on the tiles nor on the rows that share one (D-1), nor on the processor. One without fused
//! multiply-add (x86 before 2013) calls a function for each, which is slow.
//!
//! Blocking after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication".

use super::operand::{Operand, Target};
use super::packed::{LEFT, RIGHT, with_packed};
use super::simd::{Isa, multiversion};

/// Rows of a tile at most.
const ROWS: usize = 6;
/// Columns of a panel.
const PANEL: usize = 16;
/// Depth of a block, here and, in units, in `avx512`: it decides the order of sums.
pub const DEPTH: usize = 256;
/// Columns of a block.
const COLS: usize = 256;
/// Elements between the rows of a packed tile of `a`; not a multiple of a page's fraction, so that rows do not share cache sets.
const ROW_STRIDE: usize = DEPTH + 16;
/// Elements between the depths of a packed tile of `a` that is stored by depth.
const DEPTH_STRIDE: usize = 8;
/// Tiles of a strip: as many rows of `a` are packed at a time, so that what is stored by depth is read in long runs.
const STRIP: usize = 16;
/// Elements of a packed tile of `a`: room for either way.
const TILE: usize = 8 * ROW_STRIDE;
const _: () = assert!(TILE >= ROWS * ROW_STRIDE && TILE >= DEPTH * DEPTH_STRIDE);
const _: () = assert!(LEFT >= STRIP * TILE && RIGHT >= DEPTH * COLS);

/// Arguments as in [`super::product::product`].
///
/// # Safety
///
/// The operands lie inside of their slices, each contiguous along one dim, and `c` has `a.rows` rows of `b.cols` elements that may be written and that
/// no other thread touches meanwhile.
pub unsafe fn product(isa: Isa, alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, c: *mut f32, stride: usize) {
    let to = Target { alpha, beta, c, stride };
    with_packed(|packed_a, packed_b| blocks(isa, a, b, to, packed_a.cast(), packed_b.cast()));
}

multiversion! {
    fn blocks(a: Operand<'_>, b: Operand<'_>, to: Target, packed_a: *mut f32, packed_b: *mut f32) {
        let (m, n, depth) = (a.rows, b.cols, a.cols);
        let tiles = m.div_ceil(ROWS);
        for col in (0..n).step_by(COLS) {
            let cols = COLS.min(n - col);
            // A product of no depth is one block of zeros.
            for first in (0..depth.max(1)).step_by(DEPTH) {
                let num = DEPTH.min(depth - first);
                let beta = if first == 0 { to.beta } else { 1.0 };
                // SAFETY: the block is inside of `b`, a tile's rows inside of `a` and of `c`; `packed_a` and `packed_b` have room for a strip and
                // for a block.
                unsafe {
                    pack_b(b, first, num, col, cols, packed_b);
                    for strip in (0..tiles).step_by(STRIP) {
                        let num_tiles = STRIP.min(tiles - strip);
                        // Rows are dealt out evenly: few rows at the end would be slow.
                        let bounds: [usize; STRIP + 1] = std::array::from_fn(|i| (strip + i.min(num_tiles)) * m / tiles);
                        pack_a(a, &bounds, num_tiles, first, num, packed_a);
                        for i in 0..num_tiles {
                            let (row, rows) = (bounds[i], bounds[i + 1] - bounds[i]);
                            let to = Target { beta, c: to.c.add(row * to.stride + col), ..to };
                            let packed_a = packed_a.add(i * TILE);
                            if a.col_stride == 1 {
                                panels::<false>(rows, num, packed_a, packed_b, cols, to);
                            } else {
                                panels::<true>(rows, num, packed_a, packed_b, cols, to);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Packs depths `first..first + num` of tiles of rows `bounds[i]..bounds[i + 1]` of `a`: by row where a row is contiguous, else by depth.
// SAFETY: whoever calls keeps to the operands, as `product` does.
#[inline(always)]
unsafe fn pack_a(
    a: Operand<'_>,
    bounds: &[usize; STRIP + 1],
    num_tiles: usize,
    first: usize,
    num: usize,
    to: *mut f32,
) {
    let data = a.data.as_ptr();
    // SAFETY: the caller's; where eight elements are read at a time, so many are there.
    unsafe {
        if a.col_stride == 1 {
            for i in 0..num_tiles {
                for (r, row) in (bounds[i]..bounds[i + 1]).enumerate() {
                    let from = data.add(row * a.row_stride + first);
                    std::ptr::copy_nonoverlapping(from, to.add(i * TILE + r * ROW_STRIDE), num);
                }
            }
            return;
        }
        for depth in 0..num {
            let from = data.add((first + depth) * a.col_stride);
            for i in 0..num_tiles {
                let (from, to) = (from.add(bounds[i]), to.add(i * TILE + depth * DEPTH_STRIDE));
                if bounds[i] + DEPTH_STRIDE <= a.rows {
                    to.cast::<[f32; DEPTH_STRIDE]>().write(from.cast::<[f32; DEPTH_STRIDE]>().read_unaligned());
                } else {
                    std::ptr::copy_nonoverlapping(from, to, bounds[i + 1] - bounds[i]);
                }
            }
        }
    }
}

/// Packs depths `first..first + num` of columns `col..col + cols` of `b` into panels, `(num, PANEL)` each; columns past the end are zeros.
// SAFETY: whoever calls keeps to the operands, as `product` does.
#[inline(always)]
unsafe fn pack_b(b: Operand<'_>, first: usize, num: usize, col: usize, cols: usize, to: *mut f32) {
    for panel in (0..cols).step_by(PANEL) {
        let num_cols = PANEL.min(cols - panel);
        // SAFETY: the caller's.
        unsafe {
            let to = to.add(panel * DEPTH);
            let data = b.data.as_ptr().add((col + panel) * b.col_stride + first * b.row_stride);
            if b.col_stride == 1 {
                for depth in 0..num {
                    let (from, to) = (data.add(depth * b.row_stride), to.add(depth * PANEL));
                    if num_cols == PANEL {
                        to.cast::<[f32; PANEL]>().write(from.cast::<[f32; PANEL]>().read_unaligned());
                    } else {
                        std::ptr::copy_nonoverlapping(from, to, num_cols);
                        to.add(num_cols).write_bytes(0, PANEL - num_cols);
                    }
                }
                continue;
            }
            for c in (0..PANEL).step_by(4) {
                let columns: [_; 4] = std::array::from_fn(|i| data.wrapping_add((c + i) * b.col_stride));
                let whole = if c + 4 <= num_cols { num - num % 4 } else { 0 };
                for depth in (0..whole).step_by(4) {
                    let square =
                        transposed(columns.map(|column| column.add(depth).cast::<[f32; 4]>().read_unaligned()));
                    for (i, row) in square.into_iter().enumerate() {
                        to.add((depth + i) * PANEL + c).cast::<[f32; 4]>().write(row);
                    }
                }
                for depth in whole..num {
                    for (i, column) in columns.into_iter().enumerate() {
                        *to.add(depth * PANEL + c + i) = if c + i < num_cols { *column.add(depth) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Compilers make scalar loads of the loop below; SSE is part of x86-64.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: vectors of 16 bytes, of which any bits are values; the instructions are those of the target.
    unsafe {
        let [a, b, c, d] = rows.map(|row| std::mem::transmute::<[f32; 4], __m128>(row));
        let (ab_low, ab_high, cd_low, cd_high) =
            (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b), _mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        let columns = [
            _mm_movelh_ps(ab_low, cd_low),
            _mm_movehl_ps(cd_low, ab_low),
            _mm_movelh_ps(ab_high, cd_high),
            _mm_movehl_ps(cd_high, ab_high),
        ];
        columns.map(|column| std::mem::transmute::<__m128, [f32; 4]>(column))
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transposed(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    std::array::from_fn(|i| rows.map(|row| row[i]))
}

/// A packed tile of `a` times all panels of a packed block of `b`.
// SAFETY: whoever calls keeps to the operands, as `product` does.
#[inline(always)]
unsafe fn panels<const BY_DEPTH: bool>(rows: usize, num: usize, a: *const f32, b: *const f32, cols: usize, to: Target) {
    for col in (0..cols).step_by(PANEL) {
        // SAFETY: the caller's; panels are `PANEL * DEPTH` elements apart.
        unsafe {
            let (b, cols, to) = (b.add(col * DEPTH), cols - col, Target { c: to.c.add(col), ..to });
            match rows {
                1 => tile::<1, BY_DEPTH>(num, a, b, cols, to),
                2 => tile::<2, BY_DEPTH>(num, a, b, cols, to),
                3 => tile::<3, BY_DEPTH>(num, a, b, cols, to),
                4 => tile::<4, BY_DEPTH>(num, a, b, cols, to),
                5 => tile::<5, BY_DEPTH>(num, a, b, cols, to),
                ROWS => tile::<ROWS, BY_DEPTH>(num, a, b, cols, to),
                _ => unreachable!("a tile has 1 to {ROWS} rows"),
            }
        }
    }
}

/// A tile of the result, `(R, PANEL)`, of which `cols` columns exist.
// SAFETY: whoever calls keeps to the operands, as `product` does.
#[inline(always)]
unsafe fn tile<const R: usize, const BY_DEPTH: bool>(
    num: usize,
    a: *const f32,
    b: *const f32,
    cols: usize,
    to: Target,
) {
    let mut acc = [[0.0_f32; PANEL]; R];
    for depth in 0..num {
        // SAFETY: the caller's.
        unsafe {
            let b = &*b.add(depth * PANEL).cast::<[f32; PANEL]>();
            for r in 0..R {
                let x = *a.add(if BY_DEPTH { depth * DEPTH_STRIDE + r } else { r * ROW_STRIDE + depth });
                for l in 0..PANEL {
                    acc[r][l] = x.mul_add(b[l], acc[r][l]);
                }
            }
        }
    }
    for r in 0..R {
        // SAFETY: columns inside of `c` only, the caller's.
        unsafe {
            let c = to.c.add(r * to.stride);
            if cols >= PANEL {
                let c = c.cast::<[f32; PANEL]>();
                let mut x = acc[r].map(|sum| sum * to.alpha);
                if to.beta != 0.0 {
                    let old = c.read_unaligned();
                    for l in 0..PANEL {
                        x[l] = old[l].mul_add(to.beta, x[l]);
                    }
                }
                c.write_unaligned(x);
            } else {
                for (l, sum) in acc[r].into_iter().enumerate().take(cols) {
                    let c = c.add(l);
                    let x = sum * to.alpha;
                    *c = if to.beta == 0.0 { x } else { (*c).mul_add(to.beta, x) };
                }
            }
        }
    }
}
