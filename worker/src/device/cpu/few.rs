//! Products of f32 for a few rows, whose time is that of reading `b`: where a column of `b` is contiguous (`x w^T`), it goes from memory through
//! registers, and is packed nowhere.
//!
//! ```text
//!   b: LANES columns at 4 depths --transposed in registers--> a vector of each depth --times a's element of that depth--> acc (rows, LANES)
//!      the LANES columns that come next are on their way to the cache
//! ```
//!
//! The bits are those of `portable` and `avx512`, since sums run in the same order: block after block of [`DEPTH`], each in the order of the depth. So a
//! text has the logits of the training forward (M-5). A decoded token reads each weight once: packing it first, as for many rows, takes most of the
//! time, see [`is_worth_it`].
//!
//! Deliberately absent: bf16; machines without AVX2, where `portable` computes.

use std::arch::x86_64::*;

use super::operand::{Operand, Target};
use super::packed::{LEFT, with_packed};
use super::portable::DEPTH;
use super::simd::{Isa, Level};

/// Elements of a cache line.
const LINE: usize = 16;
/// Elements between packed rows of `a` beyond their depth, so that they do not share cache sets.
const APART: usize = LINE;
/// Rows that all stay in the cache, however far they are apart.
const NEVER_PACKED: usize = 4;

/// Rows up to which eight columns at a time are faster than sixteen: memory is read in half as many streams.
const NARROW: usize = 4;

/// Whether this is faster than packing, by what was measured at depths of 256 to 1024 (docs/measurements.md). Beyond so many rows a panel of columns is
/// transposed for each tile of rows more often than packing it takes.
fn is_worth_it(isa: Isa, rows: usize) -> bool {
    match isa.level() {
        Level::Avx512 => rows <= 32,
        Level::Avx2 => rows <= 24,
        Level::Baseline => false,
    }
}

/// The product, if it is of the kind that is computed here: says whether it was. Arguments as in [`super::product::product`].
///
/// # Safety
///
/// The operands lie inside of their slices, and `c` points to `a.rows` rows of `b.cols` elements that may be written and that no other thread touches
/// meanwhile.
pub unsafe fn product(
    isa: Isa,
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    beta: f32,
    c: *mut f32,
    stride: usize,
) -> bool {
    if a.col_stride != 1 || b.row_stride != 1 || !is_worth_it(isa, a.rows) {
        return false;
    }
    let to = Target { alpha, beta, c, stride };
    // SAFETY: the instruction set was found; the rest is the caller's.
    unsafe {
        match isa.level() {
            Level::Avx512 if a.rows > NARROW => of_16::product(a, b, to),
            _ => of_8::product(a, b, to),
        }
    }
    true
}

/// One instruction set: `$lanes` columns at a time in a vector, for tiles of up to `$rows` rows, which the numbers at the end count.
macro_rules! kind {
    (
        $(#[$doc:meta])* $kind:ident, $features:literal, $lanes:literal, $rows:literal,
        $zero:ident, $load:ident, $store:ident, $set:ident, $mul:ident, $fmadd:ident,
        $unpack_low:ident, $unpack_high:ident, $unpack_low_pairs:ident, $unpack_high_pairs:ident, $to_pairs:ident, $from_pairs:ident,
        $quads:item, $($number:literal)*
    ) => {
        $(#[$doc])*
        pub mod $kind {
            use crate::device::cpu::few::*;

            const LANES: usize = $lanes;
            /// Rows of a tile at most: as many as there are registers for sums.
            const TILE: usize = $rows;

            /// Of `LANES` columns, `stride` apart, four elements each: vector `i` has those of columns `i`, `i + 4`, and so on, side by side.
            #[inline]
            #[target_feature(enable = $features)]
            $quads

            /// # Safety
            ///
            /// The machine has the instructions, rows of `a` and columns of `b` are contiguous, both lie inside of their slices, and `to` is `a.rows` rows
            /// of `b.cols` elements that may be written and that no other thread touches meanwhile.
            #[target_feature(enable = $features)]
            pub unsafe fn product(a: Operand<'_>, b: Operand<'_>, to: Target) {
                let packed = a.cols + APART;
                if a.rows <= NEVER_PACKED || a.rows * packed > LEFT {
                    // SAFETY: the caller's.
                    return unsafe { by_columns(a, b, to) };
                }
                with_packed(|room, _| {
                    let room = room.cast::<f32>();
                    for row in 0..a.rows {
                        let from = &a.data[row * a.row_stride..][..a.cols];
                        // SAFETY: there is room for `LEFT` elements, this thread's.
                        unsafe { room.add(row * packed).copy_from_nonoverlapping(from.as_ptr(), a.cols) };
                    }
                    // SAFETY: the rows were just written, and what is between them was when the room was made.
                    let data = unsafe { std::slice::from_raw_parts(room, a.rows * packed) };
                    // SAFETY: the caller's.
                    unsafe { by_columns(Operand { data, row_stride: packed, ..a }, b, to) };
                });
            }

            // SAFETY: as of `product`.
            #[target_feature(enable = $features)]
            unsafe fn by_columns(a: Operand<'_>, b: Operand<'_>, to: Target) {
                let whole = b.cols - b.cols % LANES;
                for col in (0..whole).step_by(LANES) {
                    // SAFETY: columns inside of `b` and of `c`, the caller's.
                    unsafe { panel(a, b, col, to) };
                }
                if whole < b.cols && whole > 0 && to.beta == 0.0 {
                    // Some columns once more, with the same result.
                    // SAFETY: as above.
                    return unsafe { panel(a, b, b.cols - LANES, to) };
                }
                for col in whole..b.cols {
                    let column = b.data[col * b.col_stride..][..b.rows].as_ptr();
                    for row in 0..a.rows {
                        // SAFETY: a column of `b`, a row of `a` and an element of `c`, the caller's.
                        unsafe {
                            let c = to.c.add(row * to.stride + col);
                            element(a.data.as_ptr().add(row * a.row_stride), column, a.cols, to.alpha, to.beta, c);
                        }
                    }
                }
            }

            /// All rows times `LANES` columns, as many rows at a time as there are registers for: the columns stay in the cache.
            // SAFETY: as of `product`; the columns are inside of `b`.
            #[target_feature(enable = $features)]
            unsafe fn panel(a: Operand<'_>, b: Operand<'_>, col: usize, to: Target) {
                let tiles = a.rows.div_ceil(TILE);
                for tile in 0..tiles {
                    // Rows are dealt out evenly: few rows at the end would be slow.
                    let rows = tile * a.rows / tiles..(tile + 1) * a.rows / tiles;
                    let to = Target { c: to.c.wrapping_add(rows.start * to.stride + col), ..to };
                    let a = a.rows(rows);
                    // SAFETY: the caller's.
                    unsafe {
                        match a.rows {
                            $($number => tile_of::<$number>(a, b, col, to),)*
                            rows => unreachable!("a tile has 1 to {TILE} rows, not {rows}"),
                        }
                    }
                }
            }

            /// `R` rows times `LANES` columns.
            // SAFETY: as of `product`; the columns are inside of `b`, and `to` is where they go.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile_of<const R: usize>(a: Operand<'_>, b: Operand<'_>, col: usize, to: Target) {
                let alpha = $set(to.alpha);
                let columns = b.data.as_ptr().wrapping_add(col * b.col_stride);
                let next = columns.wrapping_add(LANES * b.col_stride);
                let num_next = LANES.min(b.cols - col - LANES);
                // A product of no depth is one block of zeros.
                for first in (0..a.cols.max(1)).step_by(DEPTH) {
                    let end = a.cols.min(first + DEPTH);
                    let whole = end - (end - first) % 4;
                    let mut acc = [$zero(); R];
                    for depth in (first..whole).step_by(4) {
                        if depth % LINE == 0 {
                            for i in 0..num_next {
                                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(i * b.col_stride + depth).cast());
                            }
                        }
                        // SAFETY: the caller's.
                        unsafe {
                            let [x, y, z, w] = quads(columns.add(depth), b.col_stride);
                            let (xy_low, xy_high) = ($to_pairs($unpack_low(x, y)), $to_pairs($unpack_high(x, y)));
                            let (zw_low, zw_high) = ($to_pairs($unpack_low(z, w)), $to_pairs($unpack_high(z, w)));
                            let by_depth = [
                                $from_pairs($unpack_low_pairs(xy_low, zw_low)),
                                $from_pairs($unpack_high_pairs(xy_low, zw_low)),
                                $from_pairs($unpack_low_pairs(xy_high, zw_high)),
                                $from_pairs($unpack_high_pairs(xy_high, zw_high)),
                            ];
                            for (i, b) in by_depth.into_iter().enumerate() {
                                for (r, acc) in acc.iter_mut().enumerate() {
                                    let x = $set(*a.data.as_ptr().add(r * a.row_stride + depth + i));
                                    *acc = $fmadd(x, b, *acc);
                                }
                            }
                        }
                    }
                    for depth in whole..end {
                        // SAFETY: the caller's.
                        unsafe {
                            let b: [f32; LANES] = std::array::from_fn(|i| *columns.add(i * b.col_stride + depth));
                            let b = $load(b.as_ptr());
                            for (r, acc) in acc.iter_mut().enumerate() {
                                *acc = $fmadd($set(*a.data.as_ptr().add(r * a.row_stride + depth)), b, *acc);
                            }
                        }
                    }
                    let beta = if first == 0 { to.beta } else { 1.0 };
                    for (r, acc) in acc.into_iter().enumerate() {
                        // SAFETY: the caller's.
                        unsafe {
                            let c = to.c.add(r * to.stride);
                            let mut x = $mul(acc, alpha);
                            if beta != 0.0 {
                                x = $fmadd($load(c), $set(beta), x);
                            }
                            $store(c, x);
                        }
                    }
                }
            }

            /// One element of the product, of one row and one column of `depth` elements.
            // SAFETY: there are so many elements, and `c` may be written.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn element(row: *const f32, column: *const f32, depth: usize, alpha: f32, beta: f32, c: *mut f32) {
                for first in (0..depth.max(1)).step_by(DEPTH) {
                    let mut sum = 0.0_f32;
                    for i in first..depth.min(first + DEPTH) {
                        // SAFETY: the caller's.
                        sum = unsafe { (*row.add(i)).mul_add(*column.add(i), sum) };
                    }
                    let beta = if first == 0 { beta } else { 1.0 };
                    let x = sum * alpha;
                    // SAFETY: the caller's.
                    unsafe { *c = if beta == 0.0 { x } else { (*c).mul_add(beta, x) } };
                }
            }
        }
    };
}

kind! {
    /// By AVX-512.
    of_16, "avx512f,avx512bw,avx512dq,avx512vl", 16, 16,
    _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_mul_ps, _mm512_fmadd_ps,
    _mm512_unpacklo_ps, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpackhi_pd, _mm512_castps_pd, _mm512_castpd_ps,
    // SAFETY: whoever calls has the instructions, and all elements are there.
    unsafe fn quads(from: *const f32, stride: usize) -> [__m512; 4] {
        std::array::from_fn(|i| {
            // SAFETY: the caller's.
            unsafe {
                let x = _mm512_castps128_ps512(_mm_loadu_ps(from.add(i * stride)));
                let x = _mm512_insertf32x4::<1>(x, _mm_loadu_ps(from.add((4 + i) * stride)));
                let x = _mm512_insertf32x4::<2>(x, _mm_loadu_ps(from.add((8 + i) * stride)));
                _mm512_insertf32x4::<3>(x, _mm_loadu_ps(from.add((12 + i) * stride)))
            }
        })
    },
    1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
}

kind! {
    /// By AVX2.
    of_8, "avx2,fma", 8, 6,
    _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_mul_ps, _mm256_fmadd_ps,
    _mm256_unpacklo_ps, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpackhi_pd, _mm256_castps_pd, _mm256_castpd_ps,
    // SAFETY: whoever calls has the instructions, and all elements are there.
    unsafe fn quads(from: *const f32, stride: usize) -> [__m256; 4] {
        std::array::from_fn(|i| {
            // SAFETY: the caller's.
            unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(from.add(i * stride))), _mm_loadu_ps(from.add((4 + i) * stride))) }
        })
    },
    1 2 3 4 5 6
}
