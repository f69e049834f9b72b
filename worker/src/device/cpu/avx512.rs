//! Products by AVX-512: [`of_f32`] by fused multiply-add, [`of_bf16`] by `VDPBF16PS`, which adds the products of two pairs to an f32.
//!
//! ```text
//!                    b, a block of DEPTH units by COLS columns, packed in panels of 32 columns, stays in L2
//!                       | one unit of a panel: two vectors
//!   a, up to 14 rows,   v
//!   packed, stays in   acc (14, 32): 28 vectors          unit: the f32 at depth k, or the bf16 at depths 2k and 2k + 1
//!   L1, a unit at a time, broadcast
//! ```
//!
//! Both operands are packed into units of 4 bytes, so both kinds share everything but the rounding and one instruction. Packing reads
//! each element of `b` once a tile of the result, of `a` once for every `COLS` columns.
//!
//! Each element of the result is the sum over its depth in order, block after block of [`DEPTH`] units: however the result is cut
//! into tiles, and whichever rows share a tile, the bits are the same (D-1). bf16 flushes subnormal numbers to 0: so do the
//! instructions.
//!
//! Where the caller knows what its next product reads ([`Ahead`](super::operand::Ahead)), that is fetched into L2 meanwhile, a line a unit: the weights of the next expert
//! are in no cache, and a few rows alone use them.
//!
//! [`amx`](super::amx) packs with what is here.
//!
//! Blocking after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication".

use std::arch::x86_64::*;
use std::mem::transmute;

use super::operand::Target;
use super::packed::{LEFT, RIGHT, with_packed};
use super::portable::DEPTH;

/// Rows of a tile at most.
const ROWS: usize = 14;
/// Columns of a panel: two vectors.
pub(super) const PANEL: usize = 32;
/// Columns of a block.
pub(super) const COLS: usize = 512;
/// Units between the rows of a packed tile of `a`; not a multiple of a page's fraction, so that rows do not share cache sets.
pub(super) const ROW_STRIDE: usize = DEPTH + 16;
/// Units between the depths of a packed tile of `a` that is stored by depth.
const DEPTH_STRIDE: usize = 16;
/// Tiles of a strip: as many rows of `a` are packed at a time, so that what is stored by depth is read in long runs.
pub(super) const STRIP: usize = 8;
/// Units of a block of `b` that are packed for all columns before the next ones, where its rows are contiguous: as many runs are read at a time.
const RUNS: usize = 8;
/// Units of a packed tile of `a`: room for either way.
pub(super) const TILE: usize = 16 * ROW_STRIDE;
const _: () = assert!(TILE >= ROWS * ROW_STRIDE && TILE >= DEPTH * DEPTH_STRIDE);
const _: () = assert!(LEFT >= STRIP * TILE && RIGHT >= DEPTH * COLS);

/// Element 2i is number i of the lower half of a vector of 16 bits, 2i + 1 of the upper.
const INTERLEAVE: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

/// The first `n` of 16 lanes.
pub(super) fn lanes(n: usize) -> __mmask16 {
    if n >= 16 { 0xffff } else { (1 << n) - 1 }
}

/// Of 4 vectors of 16 units: vector `i` of the result has units `i`, `i + 4`, `i + 8` and `i + 12` of all four, each in a quarter.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Calls the `panels_of` in scope for this number of rows.
macro_rules! by_rows {
    ($rows:ident, $by_depth:literal, $($argument:ident),*) => {
        by_rows!(@ $rows, $by_depth, ($($argument),*), 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $rows:ident, $by_depth:literal, $arguments:tt, $($number:literal)*) => {
        match $rows {
            $($number => by_rows!(@call $number, $by_depth, $arguments),)*
            _ => unreachable!("a tile has 1 to {ROWS} rows"),
        }
    };
    (@call $number:literal, $by_depth:literal, ($($argument:ident),*)) => {
        panels_of::<$number, $by_depth>($($argument),*)
    };
}

/// One kind of product: `$unit` elements in a unit, `$load_row` and `$load_pair` make units, `$multiply_add` uses them.
macro_rules! kind {
    ($(#[$doc:meta])* $kind:ident, $features:literal, $unit:literal, $load_row:item, $load_pair:item, $multiply_add:item) => {
        $(#[$doc])*
        pub mod $kind {
            use crate::device::cpu::avx512::*;
            use crate::device::cpu::operand::{Ahead, Operand};

            const UNIT: usize = $unit;

            /// Up to 16 units of `num` elements that lie side by side, zeros from there on.
            #[inline]
            #[target_feature(enable = $features)]
            $load_row
            /// A unit of each of up to 16 columns, of which `num` are; `second` is the next depth, null past the end.
            #[inline]
            #[target_feature(enable = $features)]
            $load_pair
            #[inline]
            #[target_feature(enable = $features)]
            $multiply_add

            /// Arguments as in [`crate::device::cpu::product::product_before`].
            ///
            /// # Safety
            ///
            /// The machine has the instructions, the operands lie inside of their slices, each contiguous along one dim, and `c` has
            /// `a.rows` rows of `b.cols` elements that may be written and that no other thread touches meanwhile.
            #[target_feature(enable = $features)]
            pub unsafe fn product(
                alpha: f32,
                a: Operand<'_>,
                b: Operand<'_>,
                beta: f32,
                c: *mut f32,
                stride: usize,
                mut ahead: Ahead,
            ) {
                let (m, n, depth) = (a.rows, b.cols, a.cols);
                let (tiles, by_depth) = (m.div_ceil(ROWS), a.col_stride != 1);
                with_packed(|packed_a, packed_b| {
                    for col in (0..n).step_by(COLS) {
                        let cols = COLS.min(n - col);
                        // A product of no depth is one block of zeros.
                        for first in (0..depth.max(1)).step_by(DEPTH * UNIT) {
                            let num = (DEPTH * UNIT).min(depth - first);
                            let beta = if first == 0 { beta } else { 1.0 };
                            // SAFETY: the block is inside of `b`, a tile's rows inside of `a` and of `c`; `packed_a` and `packed_b` have
                            // room for a strip and for a block.
                            unsafe {
                                pack_b(b, first, num, col, cols, packed_b);
                                for strip in (0..tiles).step_by(STRIP) {
                                    let num_tiles = STRIP.min(tiles - strip);
                                    // Rows are dealt out evenly: few rows at the end would be slow.
                                    let bounds = std::array::from_fn(|i| (strip + i.min(num_tiles)) * m / tiles);
                                    pack_a(a, &bounds, num_tiles, first, num, packed_a);
                                    for i in 0..num_tiles {
                                        let (row, rows) = (bounds[i], bounds[i + 1] - bounds[i]);
                                        let to = Target { alpha, beta, c: c.add(row * stride + col), stride };
                                        let packed_a = packed_a.add(i * TILE);
                                        let units = num.div_ceil(UNIT);
                                        panels(rows, by_depth, units, packed_a, packed_b, cols, to, &mut ahead);
                                    }
                                }
                            }
                        }
                    }
                });
            }

            /// Packs depths `first..first + num` of tiles of rows `bounds[i]..bounds[i + 1]` of `a`: by row where a row is contiguous,
            /// else by depth.
            // SAFETY: whoever calls has the instructions and keeps to the operands, as `product` does.
            #[target_feature(enable = $features)]
            pub(in crate::device::cpu) unsafe fn pack_a(
                a: Operand<'_>,
                bounds: &[usize; STRIP + 1],
                num_tiles: usize,
                first: usize,
                num: usize,
                to: *mut u32,
            ) {
                let (units, data) = (num.div_ceil(UNIT), a.data.as_ptr());
                // SAFETY: the caller's.
                unsafe {
                    if a.col_stride == 1 {
                        for i in 0..num_tiles {
                            for (r, row) in (bounds[i]..bounds[i + 1]).enumerate() {
                                let (from, to) = (data.add(row * a.row_stride + first), to.add(i * TILE + r * ROW_STRIDE));
                                for unit in (0..units).step_by(16) {
                                    let at = unit * UNIT;
                                    _mm512_store_si512(to.add(unit).cast(), load_row(from.add(at), num - at));
                                }
                            }
                        }
                    } else {
                        for unit in 0..units {
                            let from = data.add((first + unit * UNIT) * a.col_stride);
                            let has_second = unit * UNIT + 1 < num;
                            for i in 0..num_tiles {
                                let (from, num) = (from.add(bounds[i]), bounds[i + 1] - bounds[i]);
                                let second = if has_second { from.wrapping_add(a.col_stride) } else { std::ptr::null() };
                                let to = to.add(i * TILE + unit * DEPTH_STRIDE);
                                _mm512_store_si512(to.cast(), load_pair(from, second, num));
                            }
                        }
                    }
                }
            }

            /// Packs depths `first..first + num` of columns `col..col + cols` of `b` into panels, `(units, PANEL)` each; columns past the
            /// end are zeros.
            // SAFETY: whoever calls has the instructions and keeps to the operands, as `product` does.
            #[target_feature(enable = $features)]
            pub(in crate::device::cpu) unsafe fn pack_b(b: Operand<'_>, first: usize, num: usize, col: usize, cols: usize, to: *mut u32) {
                let (units, data) = (num.div_ceil(UNIT), b.data.as_ptr());
                let halves = cols.div_ceil(PANEL) * 2;
                // Where a half of a panel is packed, and the first and the number of its columns.
                let place = |half: usize| {
                    let to = to.wrapping_add(half / 2 * PANEL * DEPTH + half % 2 * 16);
                    (to, col + half * 16, cols.saturating_sub(half * 16).min(16))
                };
                // SAFETY: the caller's.
                unsafe {
                    if b.col_stride == 1 {
                        for run in (0..units).step_by(RUNS) {
                            for (to, start, num_cols) in (0..halves).map(place) {
                                for unit in run..units.min(run + RUNS) {
                                    let from = data.wrapping_add((first + unit * UNIT) * b.row_stride + start);
                                    let second = if unit * UNIT + 1 < num { from.wrapping_add(b.row_stride) } else { std::ptr::null() };
                                    _mm512_storeu_si512(to.add(unit * PANEL).cast(), load_pair(from, second, num_cols));
                                }
                            }
                        }
                        return;
                    }
                    for (to, start, num_cols) in (0..halves).map(place) {
                        if num_cols == 0 {
                            for unit in 0..units {
                                _mm512_storeu_si512(to.add(unit * PANEL).cast(), _mm512_setzero_si512());
                            }
                        } else {
                            // Four columns at a time: sixteen would be as many streams that share a few sets of the cache.
                            for quad in (0..16).step_by(4) {
                                for unit in (0..units).step_by(16) {
                                    let at = unit * UNIT;
                                    let mut columns = [_mm512_setzero_si512(); 4];
                                    for (i, x) in columns.iter_mut().enumerate().take(num_cols.saturating_sub(quad)) {
                                        *x = load_row(data.add((start + quad + i) * b.col_stride + first + at), num - at);
                                    }
                                    for (i, x) in transposed(columns).into_iter().enumerate() {
                                        let to = to.add((unit + i) * PANEL + quad);
                                        _mm_store_si128(to.cast(), _mm512_castsi512_si128(x));
                                        _mm_store_si128(to.add(4 * PANEL).cast(), _mm512_extracti32x4_epi32::<1>(x));
                                        _mm_store_si128(to.add(8 * PANEL).cast(), _mm512_extracti32x4_epi32::<2>(x));
                                        _mm_store_si128(to.add(12 * PANEL).cast(), _mm512_extracti32x4_epi32::<3>(x));
                                    }
                                }
                            }
                        }
                    }
                }
            }

            /// A packed tile of `a` times all panels of a packed block of `b`.
            // SAFETY: whoever calls has the instructions and keeps to the operands, as `product` does.
            #[target_feature(enable = $features)]
            unsafe fn panels(
                rows: usize,
                by_depth: bool,
                units: usize,
                a: *const u32,
                b: *const u32,
                cols: usize,
                to: Target,
                ahead: &mut Ahead,
            ) {
                // SAFETY: the caller's.
                unsafe {
                    if by_depth {
                        by_rows!(rows, true, units, a, b, cols, to, ahead)
                    } else {
                        by_rows!(rows, false, units, a, b, cols, to, ahead)
                    }
                }
            }

            // SAFETY: whoever calls has the instructions and keeps to the operands, as `product` does.
            #[target_feature(enable = $features)]
            unsafe fn panels_of<const R: usize, const BY_DEPTH: bool>(
                units: usize,
                a: *const u32,
                b: *const u32,
                cols: usize,
                to: Target,
                ahead: &mut Ahead,
            ) {
                for col in (0..cols).step_by(PANEL) {
                    // SAFETY: the caller's; panels are `PANEL * DEPTH` units apart.
                    unsafe {
                        let to = Target { c: to.c.add(col), ..to };
                        tile::<R, BY_DEPTH>(units, a, b.add(col * DEPTH), cols - col, to, ahead);
                    }
                }
            }

            /// A tile of the result, `(R, 32)`, of which `cols` columns exist.
            // SAFETY: whoever calls has the instructions and keeps to the operands, as `product` does.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const BY_DEPTH: bool>(
                units: usize,
                a: *const u32,
                b: *const u32,
                cols: usize,
                to: Target,
                ahead: &mut Ahead,
            ) {
                let (mut line, line_len) = ahead.take(units, b.cast());
                if to.beta != 0.0 {
                    // What is added to is in memory more often than in a cache: it comes while the sums are made.
                    for r in 0..R {
                        for col in [0, 16, PANEL - 1] {
                            _mm_prefetch::<_MM_HINT_T0>(to.c.wrapping_add(r * to.stride + col).cast());
                        }
                    }
                }
                let mut acc = [[_mm512_setzero_ps(); 2]; R];
                for unit in 0..units {
                    _mm_prefetch::<_MM_HINT_T1>(line.cast());
                    line = line.wrapping_add(line_len);
                    // SAFETY: the caller's.
                    unsafe {
                        let b0 = _mm512_load_si512(b.add(unit * PANEL).cast());
                        let b1 = _mm512_load_si512(b.add(unit * PANEL + 16).cast());
                        for r in 0..R {
                            let at = if BY_DEPTH { unit * DEPTH_STRIDE + r } else { r * ROW_STRIDE + unit };
                            let x = _mm512_set1_epi32(*a.add(at) as i32);
                            acc[r][0] = multiply_add(x, b0, acc[r][0]);
                            acc[r][1] = multiply_add(x, b1, acc[r][1]);
                        }
                    }
                }
                let (alpha, beta) = (_mm512_set1_ps(to.alpha), _mm512_set1_ps(to.beta));
                let masks = [lanes(cols), lanes(cols.saturating_sub(16))];
                for r in 0..R {
                    for half in 0..2 {
                        let c = to.c.wrapping_add(r * to.stride + half * 16);
                        // SAFETY: lanes inside of `c` only, the caller's.
                        unsafe {
                            let mut x = _mm512_mul_ps(acc[r][half], alpha);
                            if to.beta != 0.0 {
                                x = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(masks[half], c), beta, x);
                            }
                            _mm512_mask_storeu_ps(c, masks[half], x);
                        }
                    }
                }
            }
        }
    };
}

kind! {
    /// A unit is an f32.
    of_f32, "avx512f,avx512bw,avx512dq,avx512vl", 1,
    // SAFETY: whoever calls has the instructions, and the first `num` elements are there.
    unsafe fn load_row(from: *const f32, num: usize) -> __m512i {
        // SAFETY: the first `num` elements are the caller's.
        _mm512_castps_si512(unsafe { _mm512_maskz_loadu_ps(lanes(num), from) })
    },
    unsafe fn load_pair(from: *const f32, _second: *const f32, num: usize) -> __m512i {
        // SAFETY: as above.
        _mm512_castps_si512(unsafe { _mm512_maskz_loadu_ps(lanes(num), from) })
    },
    fn multiply_add(a: __m512i, b: __m512i, acc: __m512) -> __m512 {
        _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc)
    }
}

kind! {
    /// A unit is two bf16, the lower half first.
    of_bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", 2,
    // SAFETY: whoever calls has the instructions, and the first `num` elements are there.
    pub(in crate::device::cpu) unsafe fn load_row(from: *const f32, num: usize) -> __m512i {
        // SAFETY: the first `num` elements are the caller's.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lanes(num), from);
            let high = _mm512_maskz_loadu_ps(lanes(num.saturating_sub(16)), from.wrapping_add(16));
            transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    },
    pub(in crate::device::cpu) unsafe fn load_pair(from: *const f32, second: *const f32, num: usize) -> __m512i {
        let mask = if second.is_null() { 0 } else { lanes(num) };
        // SAFETY: the first `num` elements of both are the caller's.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lanes(num), from);
            let high = _mm512_maskz_loadu_ps(mask, second);
            let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            let order = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
            _mm512_permutexvar_epi16(order, halves)
        }
    },
    fn multiply_add(a: __m512i, b: __m512i, acc: __m512) -> __m512 {
        // SAFETY: vectors of 64 bytes, of which any bits are values.
        unsafe { _mm512_dpbf16_ps(acc, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
    }
}
