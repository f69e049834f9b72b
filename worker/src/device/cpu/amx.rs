//! Products of bf16 by the tiles of AMX: 16 rows of 64 bytes, of which `TDPBF16PS` multiplies two and adds the product to a third.
//!
//! ```text
//!                       b, packed as for AVX-512: panels of 32 columns, a row a unit     tmm6   tmm7    16 units by 16 columns each
//!   a, packed by rows,
//!   strips of 8 tiles:  tmm4   16 rows by 16 units                                       tmm0   tmm1    16 rows by 16 columns of sums
//!                       tmm5                                                             tmm2   tmm3
//! ```
//!
//! A unit is two bf16, at depths 2k and 2k + 1, so that a tile of `a` and one of `b` are 32 depths. Packing and blocking are those of
//! [`avx512`](super::avx512), with tiles of 16 rows; depths past the end are zeros in both operands. Rows and columns past the end are
//! whatever is there: they reach no other row or column, and are not stored.
//!
//! Each element of the result is the sum over its depth in order, tile after tile and block after block of [`DEPTH`] units. Where it
//! stands in a tile makes no difference, so the bits depend on the depth alone (D-1). They differ from those of the other ways for
//! bf16: within a tile `TDPBF16PS` adds the products of even depths and those of odd ones, each by fused multiply-add from 0, then both
//! sums to each other, then that to what was there; subnormal numbers are 0 everywhere ("Intel 64 and IA-32 Architectures Software
//! Developer's Manual", volume 2, `TDPBF16PS`).
//!
//! The code is generic over [`Tiles`]: registers of the machine, or an emulation of the instructions, by which tests run all the rest on
//! machines that have none. A product takes the tile registers when it begins and gives them back when it ends, since a thread with
//! live tiles has 8 KiB more to save whenever it is switched; nothing else in this program uses them.

#[cfg(test)]
mod emulation;
#[cfg(test)]
mod tests;
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod trap;

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::{COLS, PANEL, ROW_STRIDE, STRIP, TILE, lanes, of_bf16, transposed};
use super::operand::{Ahead, Operand, Target};
use super::packed::with_packed;
use super::portable::DEPTH;

#[cfg(test)]
pub use emulation::Emulated;

/// Rows of a tile, units of a row of a tile of operands, and columns of a tile of sums.
const SIDE: usize = 16;
/// Bytes between rows of packed operands, and of the sums of a block.
const A_STRIDE: usize = 4 * ROW_STRIDE;
const B_STRIDE: usize = 4 * PANEL;
const SUMS_STRIDE: usize = 4 * PANEL;
/// Depths of a block of `b` up to which four columns are packed at a time, as for AVX-512; sixteen are faster where each gives several lines.
const SHORT: usize = 64;
/// Lines of what the next product reads that are fetched beside four products of tiles.
const LINES_AT_ONCE: usize = 32;
const _: () = assert!(DEPTH.is_multiple_of(SIDE) && PANEL == 2 * SIDE && TILE >= SIDE * ROW_STRIDE);

/// Eight tiles of 16 rows of 64 bytes, `tmm0` to `tmm7`, and the instructions for them. A row of an operand is 16 units, of sums 16 f32.
/// They are configured as long as the value lives.
pub trait Tiles {
    /// # Safety
    ///
    /// The machine has AMX for bf16, the system lets this process use it, and this thread has no other tiles.
    unsafe fn configured() -> Self;

    /// `TILEZERO`
    fn zero<const T: usize>(&mut self);

    /// `TILELOADD`: rows from `from` on, `stride` bytes apart.
    ///
    /// # Safety
    ///
    /// There are 16 rows of 64 bytes that may be read.
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize);

    /// `TDPBF16PS`: adds the product of tiles `A` and `B` to tile `C`.
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self);

    /// `TILESTORED`: rows to `to` and on, `stride` bytes apart.
    ///
    /// # Safety
    ///
    /// There are 16 rows of 64 bytes that may be written.
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize);
}

/// The registers of this thread.
pub struct Registers(());

/// What `LDTILECFG` loads: palette 1 has eight tiles of up to 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = 4 * SIDE as u16;
        rows[tile] = SIDE as u8;
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// An instruction that writes tile `$tile`, which the compiler is told.
macro_rules! writing {
    ($tile:ident, $instruction:literal, $operands:tt) => {
        writing!(@ $tile, $instruction, $operands, 0 "tmm0" 1 "tmm1" 2 "tmm2" 3 "tmm3" 4 "tmm4" 5 "tmm5" 6 "tmm6" 7 "tmm7")
    };
    (@ $tile:ident, $instruction:literal, $operands:tt, $($number:literal $register:tt)*) => {
        match $tile {
            $($number => writing!(@one $register, $tile, $instruction, $operands),)*
            _ => unreachable!("there are eight tiles"),
        }
    };
    (@one $register:tt, $tile:ident, $instruction:literal, ($($operand:tt)*)) => {
        asm!($instruction, tile = const $tile, $($operand)* out($register) _, options(nostack, preserves_flags))
    };
}

// The compiler puts nothing into tile registers: no function is compiled for AMX. So what an instruction leaves there is there for the
// next one, and `asm!` that is not `pure` stays in its order.
impl Tiles for Registers {
    // SAFETY: whoever calls has the tiles, as the trait says.
    #[inline]
    unsafe fn configured() -> Registers {
        // SAFETY: the caller's; the configuration is as the instruction wants it.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, preserves_flags, readonly)) };
        Registers(())
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: the tile is configured.
        unsafe { writing!(T, "tilezero tmm{tile}", ()) }
    }

    // SAFETY: whoever calls has the memory, as the trait says.
    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize) {
        // SAFETY: the tile is configured; the memory is the caller's.
        unsafe {
            writing!(T, "tileloadd tmm{tile}, [{from} + {stride}*1]", (from = in(reg) from, stride = in(reg) stride,))
        }
    }

    #[inline(always)]
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: the tiles are configured, with shapes that multiply.
        unsafe { writing!(C, "tdpbf16ps tmm{tile}, tmm{a}, tmm{b}", (a = const A, b = const B,)) }
    }

    // SAFETY: whoever calls has the memory, as the trait says.
    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
        // SAFETY: the tile is configured; the memory is the caller's.
        unsafe {
            asm!("tilestored [{to} + {stride}*1], tmm{tile}", tile = const T, to = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags))
        }
    }
}

impl Drop for Registers {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: nothing of the tiles is used afterwards.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Sums of two tiles by two, `(32, 32)`; of a block that was multiplied all are there.
#[repr(C, align(64))]
struct Sums(MaybeUninit<[f32; 2 * SIDE * PANEL]>);

/// A block of the result, of which so many rows and columns exist; at most 32 of either.
#[derive(Clone, Copy)]
struct Extent {
    rows: usize,
    cols: usize,
}

/// Where sums go that are not in the result yet.
#[derive(Clone, Copy)]
struct Pending {
    extent: Extent,
    to: Target,
}

/// What is done while tiles multiply, which takes no other part of the processor: the last block's sums go into the result, and what the next product
/// reads comes.
struct Aside<'a> {
    sums: &'a Sums,
    pending: Pending,
    ahead: &'a mut Ahead,
}

/// Arguments as in [`product_before`](super::product::product_before).
///
/// # Safety
///
/// The machine has AVX-512 with BF16 and what `T` needs, the operands lie inside of their slices, each contiguous along one dim, and `c`
/// has `a.rows` rows of `b.cols` elements that may be written and that no other thread touches meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub unsafe fn product<T: Tiles>(
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    beta: f32,
    c: *mut f32,
    stride: usize,
    mut ahead: Ahead,
) {
    let (m, n, depth) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let num_tiles = m.div_ceil(SIDE);
    let (mut first_sums, mut second_sums) = (Sums(MaybeUninit::uninit()), Sums(MaybeUninit::uninit()));
    let (mut sums, mut last) = (&mut first_sums, &mut second_sums);
    let mut pending = Pending { extent: Extent { rows: 0, cols: 0 }, to: Target { alpha, beta, c, stride } };
    with_packed(|packed_a, packed_b| {
        // SAFETY: the caller's; a product calls no other.
        let mut tiles = unsafe { T::configured() };
        for col in (0..n).step_by(COLS) {
            let cols = COLS.min(n - col);
            // A product of no depth is one block of zeros.
            for first in (0..depth.max(1)).step_by(2 * DEPTH) {
                let num = (2 * DEPTH).min(depth - first);
                let beta = if first == 0 { beta } else { 1.0 };
                // SAFETY: the block is inside of `b`, a tile's rows inside of `a` and of `c`; `packed_a` and `packed_b` have room for a
                // strip and for a block, in whole tiles.
                unsafe {
                    if b.col_stride == 1 || num <= SHORT {
                        of_bf16::pack_b(b, first, num, col, cols, packed_b);
                        zero_past_the_end(num, cols, packed_b);
                    } else {
                        pack_b_by_depth(b, first, num, col, cols, packed_b);
                    }
                    for strip in (0..num_tiles).step_by(STRIP) {
                        let num_tiles = STRIP.min(num_tiles - strip);
                        let bounds = std::array::from_fn(|i| ((strip + i) * SIDE).min(m));
                        if a.col_stride == 1 {
                            of_bf16::pack_a(a, &bounds, num_tiles, first, num, packed_a);
                        } else {
                            pack_by_depth(a, &bounds[..=num_tiles], first, num, packed_a);
                        }
                        for i in (0..num_tiles).step_by(2) {
                            let (row, rows) = (bounds[i], bounds[(i + 2).min(num_tiles)] - bounds[i]);
                            for panel in (0..cols).step_by(PANEL) {
                                let extent = Extent { rows, cols: PANEL.min(cols - panel) };
                                let (a, b) = (packed_a.add(i * TILE), packed_b.add(panel * DEPTH));
                                let aside = Aside { sums: last, pending, ahead: &mut ahead };
                                multiply(&mut tiles, num.div_ceil(2), a, b, extent, sums, aside);
                                let c = c.add(row * stride + col + panel);
                                pending = Pending { extent, to: Target { alpha, beta, c, stride } };
                                std::mem::swap(&mut sums, &mut last);
                            }
                        }
                    }
                }
            }
        }
        // SAFETY: the block is inside of `c`.
        unsafe { write_back(last, pending, 0..pending.extent.rows) };
    });
}

/// Fills the rows of packed `b` that follow those of `num` depths with zeros, up to a whole tile.
// SAFETY: whoever calls has room for a block.
unsafe fn zero_past_the_end(num: usize, cols: usize, packed_b: *mut u32) {
    let units = num.div_ceil(2);
    let past = units.next_multiple_of(SIDE) - units;
    for panel in 0..cols.div_ceil(PANEL) {
        // SAFETY: panels are `PANEL * DEPTH` units apart, and `DEPTH` is whole tiles.
        unsafe { packed_b.add((panel * DEPTH + units) * PANEL).write_bytes(0, past * PANEL) };
    }
}

/// Packs depths `first..first + num` of tiles of rows `bounds[i]..bounds[i + 1]` of an `a` that is contiguous along its rows' dim.
// SAFETY: whoever calls has the instructions and keeps to the operand, as `product` does.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pack_by_depth(a: Operand<'_>, bounds: &[usize], first: usize, num: usize, to: *mut u32) {
    let data = a.data.as_ptr();
    let num_tiles = bounds.len() - 1;
    // A depth's rows are read in one run over all tiles: sixteen of a tile alone would be as many streams as depths.
    let mut units = [[_mm512_setzero_si512(); SIDE]; STRIP];
    for unit in (0..num.div_ceil(2)).step_by(SIDE) {
        for u in 0..SIDE {
            let at = 2 * (unit + u);
            for (i, rows) in bounds.windows(2).enumerate() {
                units[i][u] = if at < num {
                    // SAFETY: the caller's.
                    unsafe {
                        let from = data.add((first + at) * a.col_stride + rows[0]);
                        let second = if at + 1 < num { from.wrapping_add(a.col_stride) } else { std::ptr::null() };
                        of_bf16::load_pair(from, second, rows[1] - rows[0])
                    }
                } else {
                    _mm512_setzero_si512()
                };
            }
        }
        for (i, units) in units.iter().enumerate().take(num_tiles) {
            for (row, x) in transposed_square(*units).into_iter().enumerate() {
                // SAFETY: a packed tile has 16 rows.
                unsafe { _mm512_store_si512(to.add(i * TILE + row * ROW_STRIDE + unit).cast(), x) };
            }
        }
    }
}

/// Packs depths `first..first + num` of columns `col..col + cols` of a `b` that is contiguous along its depth, as [`of_bf16::pack_b`] does, and
/// zeros up to a whole tile.
// SAFETY: whoever calls has the instructions and keeps to the operand, as `product` does.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pack_b_by_depth(b: Operand<'_>, first: usize, num: usize, col: usize, cols: usize, to: *mut u32) {
    let data = b.data.as_ptr();
    for half in 0..cols.div_ceil(PANEL) * 2 {
        let (start, num_cols) = (col + half * SIDE, cols.saturating_sub(half * SIDE).min(SIDE));
        for at in (0..num).step_by(2 * SIDE) {
            let mut columns = [_mm512_setzero_si512(); SIDE];
            // A loop of as many turns everywhere is unrolled, with vectors in registers.
            for (i, x) in columns.iter_mut().enumerate() {
                if i < num_cols {
                    // SAFETY: the caller's.
                    *x = unsafe { of_bf16::load_row(data.add((start + i) * b.col_stride + first + at), num - at) };
                }
            }
            for (i, x) in transposed_square(columns).into_iter().enumerate() {
                // SAFETY: panels are `PANEL * DEPTH` units apart, and `DEPTH` is whole tiles.
                unsafe {
                    let to = to.add(half / 2 * PANEL * DEPTH + half % 2 * SIDE + (at / 2 + i) * PANEL);
                    _mm512_store_si512(to.cast(), x);
                }
            }
        }
    }
}

/// Row `i` of the result is element `i` of each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed_square(x: [__m512i; SIDE]) -> [__m512i; SIDE] {
    // Loops, and no closures: those would be called, with vectors in memory.
    // Quarter `q` of vector `i` of `quads[g]` has element `4 q + i` of rows `4 g` to `4 g + 3`.
    let mut quads = [[_mm512_setzero_si512(); 4]; 4];
    for g in 0..4 {
        quads[g] = transposed([x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]]);
    }
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut out = [_mm512_setzero_si512(); SIDE];
    for i in 0..4 {
        let [a, b, c, d] = [quads[0][i], quads[1][i], quads[2][i], quads[3][i]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<EVEN>(c, d), _mm512_shuffle_i32x4::<ODD>(c, d));
        out[i] = _mm512_shuffle_i32x4::<EVEN>(ab_even, cd_even);
        out[4 + i] = _mm512_shuffle_i32x4::<EVEN>(ab_odd, cd_odd);
        out[8 + i] = _mm512_shuffle_i32x4::<ODD>(ab_even, cd_even);
        out[12 + i] = _mm512_shuffle_i32x4::<ODD>(ab_odd, cd_odd);
    }
    out
}

/// Two packed tiles of `a` times a packed panel of `b`, where there are so many rows and columns, else one of either.
// SAFETY: whoever calls has packed `units` units of both, and zeros up to a whole tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply<T: Tiles>(
    tiles: &mut T,
    units: usize,
    a: *const u32,
    b: *const u32,
    extent: Extent,
    sums: &mut Sums,
    aside: Aside<'_>,
) {
    let Aside { sums: last, pending, ahead } = aside;
    let (two_rows, two_cols) = (extent.rows > SIDE, extent.cols > SIDE);
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
    let steps = units.div_ceil(SIDE);
    let rows_at_once = pending.extent.rows.div_ceil(steps.max(1));
    let (mut line, line_len) = ahead.take(LINES_AT_ONCE * steps, b.cast());
    let mut row = 0;
    for unit in (0..units).step_by(SIDE) {
        // SAFETY: the caller's.
        unsafe {
            let b = b.add(unit * PANEL);
            tiles.load::<4>(a.add(unit), A_STRIDE);
            tiles.load::<6>(b, B_STRIDE);
            tiles.multiply::<0, 4, 6>();
            if two_cols {
                tiles.load::<7>(b.add(SIDE), B_STRIDE);
                tiles.multiply::<1, 4, 7>();
            }
            if two_rows {
                tiles.load::<5>(a.add(TILE + unit), A_STRIDE);
                tiles.multiply::<2, 5, 6>();
                if two_cols {
                    tiles.multiply::<3, 5, 7>();
                }
            }
            let end = (row + rows_at_once).min(pending.extent.rows);
            write_back(last, pending, row..end);
            row = end;
        }
        for _ in 0..LINES_AT_ONCE {
            _mm_prefetch::<_MM_HINT_T1>(line.cast());
            line = line.wrapping_add(line_len);
        }
    }
    // SAFETY: the caller's.
    unsafe { write_back(last, pending, row..pending.extent.rows) };
    let to = sums.0.as_mut_ptr().cast::<f32>();
    // SAFETY: `sums` has 32 rows of 32.
    unsafe {
        tiles.store::<0>(to, SUMS_STRIDE);
        tiles.store::<1>(to.add(SIDE), SUMS_STRIDE);
        tiles.store::<2>(to.add(SIDE * PANEL), SUMS_STRIDE);
        tiles.store::<3>(to.add(SIDE * PANEL + SIDE), SUMS_STRIDE);
    }
}

// SAFETY: whoever calls has the instructions, and `extent` lies inside of `c`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn write_back(sums: &Sums, Pending { extent, to }: Pending, rows: std::ops::Range<usize>) {
    let (alpha, beta) = (_mm512_set1_ps(to.alpha), _mm512_set1_ps(to.beta));
    let masks = [lanes(extent.cols), lanes(extent.cols.saturating_sub(SIDE))];
    for row in rows {
        for (half, mask) in masks.into_iter().enumerate() {
            let c = to.c.wrapping_add(row * to.stride + half * SIDE);
            // SAFETY: the sums have 32 rows of 32; lanes inside of `c` only, the caller's.
            unsafe {
                let mut x =
                    _mm512_mul_ps(_mm512_load_ps(sums.0.as_ptr().cast::<f32>().add(row * PANEL + half * SIDE)), alpha);
                if to.beta != 0.0 {
                    x = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, c), beta, x);
                }
                _mm512_mask_storeu_ps(c, mask, x);
            }
        }
    }
}
