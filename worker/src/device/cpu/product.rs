//! One matrix product on one thread, by the best kernel that the machine has.
//!
//! ```text
//!   F32    AVX-512: `avx512`                       else `portable`; the same bits
//!          a few rows: `few`                       by AVX-512 or AVX2; the same bits
//!   Tf32   as F32: no CPU has it
//!   Bf16   AMX: `amx`, or AVX-512 with BF16: `avx512`, or the operands are rounded and go the way of F32: see `bf16`
//! ```
//!
//! All add the terms of an element of the result in an order that depends on the product's depth alone, so a caller may cut the result into
//! tiles as it likes, and a row has the same bits whatever other rows there are.
//!
//! Deliberately absent: threads, see `matmul`.

use std::cell::RefCell;

#[cfg(target_arch = "x86_64")]
use super::operand::Ahead;
use super::operand::Operand;
use super::portable;
use super::simd::{Bf16, Isa};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx512, few};
use crate::device::Products;

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    isa: Isa,
    products: Products,
    bf16: Bf16,
}

impl Kernel {
    /// Where products are of bf16, by the way that `isa` is likely to be fastest at.
    pub fn new(isa: Isa, products: Products) -> Kernel {
        Kernel { isa, products, bf16: isa.preferred_for_bf16() }
    }

    /// The same with this way for bf16, which the machine has.
    pub fn with_bf16(self, bf16: Bf16) -> Kernel {
        Kernel { bf16, ..self }
    }
}

/// `c = alpha * a b + beta * c`; `c` is row-major with rows `c_stride` apart, and not read where `beta` is 0.
///
/// # Safety
///
/// `c` points to `a.rows` rows of `b.cols` elements that may be written and that no other thread touches meanwhile.
pub unsafe fn product(
    kernel: Kernel,
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    beta: f32,
    c: *mut f32,
    c_stride: usize,
) {
    // SAFETY: the caller's.
    unsafe { product_before(&[], kernel, alpha, a, b, beta, c, c_stride) }
}

/// The same before another product that reads `next`, which is in no cache: kernels that have time for it fetch it.
///
/// # Safety
///
/// As [`product`].
pub unsafe fn product_before(
    next: &[f32],
    kernel: Kernel,
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    beta: f32,
    c: *mut f32,
    c_stride: usize,
) {
    assert_eq!(a.cols, b.rows, "({}, {}) times ({}, {})", a.rows, a.cols, b.rows, b.cols);
    a.check();
    b.check();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as below.
    if kernel.products != Products::Bf16 && unsafe { few::product(kernel.isa, alpha, a, b, beta, c, c_stride) } {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    let ahead = Ahead::of(next);
    #[cfg(target_arch = "x86_64")]
    match (kernel.products, kernel.isa.has_avx512(), kernel.bf16) {
        // SAFETY: `check` keeps the operands inside of their slices, the machine has the instructions, the caller answers for `c`.
        (Products::F32 | Products::Tf32, true, _) => {
            return unsafe { avx512::of_f32::product(alpha, a, b, beta, c, c_stride, ahead) };
        }
        // SAFETY: as above.
        (Products::Bf16, true, Bf16::Avx512) => {
            return unsafe { avx512::of_bf16::product(alpha, a, b, beta, c, c_stride, ahead) };
        }
        // SAFETY: as above; the system lets this process use the tiles, and a product begins no other.
        (Products::Bf16, true, Bf16::Amx) => {
            return unsafe { amx::product::<amx::Registers>(alpha, a, b, beta, c, c_stride, ahead) };
        }
        // SAFETY: as above; nothing of it needs tiles.
        #[cfg(test)]
        (Products::Bf16, true, Bf16::Emulated) => {
            return unsafe { amx::product::<amx::Emulated>(alpha, a, b, beta, c, c_stride, ahead) };
        }
        _ => {}
    }
    // SAFETY: as above.
    match kernel.products {
        Products::F32 | Products::Tf32 => unsafe { portable::product(kernel.isa, alpha, a, b, beta, c, c_stride) },
        Products::Bf16 => {
            let f32 = Kernel { products: Products::F32, ..kernel };
            // SAFETY: the rounded operands are as long as they say; the caller answers for `c`.
            with_rounded(a, b, |a, b| unsafe { product_before(next, f32, alpha, a, b, beta, c, c_stride) });
        }
    }
}

/// Calls `f` with copies of the operands, rounded to bf16. The copies are this thread's and kept for the next product.
fn with_rounded(a: Operand<'_>, b: Operand<'_>, f: impl FnOnce(Operand<'_>, Operand<'_>)) {
    thread_local!(static ROUNDED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) });
    ROUNDED.with_borrow_mut(|[a_rounded, b_rounded]| f(round(a, a_rounded), round(b, b_rounded)));
}

/// The matrix in rounded values, row-major if `x` is contiguous in its rows, else column-major.
fn round<'a>(x: Operand<'_>, to: &'a mut Vec<f32>) -> Operand<'a> {
    let by_row = x.col_stride == 1;
    let source = if by_row { x } else { x.t() };
    to.clear();
    for row in 0..source.rows {
        let start = row * source.row_stride;
        to.extend(source.data[start..start + source.cols].iter().map(|v| round_to_bf16(*v)));
    }
    let rounded = Operand::new(to, source.rows, source.cols);
    if by_row { rounded } else { rounded.t() }
}

/// The nearest bf16, ties to even; subnormal numbers become 0, as `VCVTNE2PS2BF16` has it.
fn round_to_bf16(x: f32) -> f32 {
    if x.is_subnormal() {
        return 0.0_f32.copysign(x);
    }
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels of this machine and the emulated one, those together that give the same bits.
    fn alike() -> Vec<Vec<Kernel>> {
        let best = Kernel::new(Isa::detect(), Products::Bf16);
        let of = |products| Isa::all().map(move |isa| Kernel::new(isa, products));
        let rounded = of(Products::Bf16).map(|kernel| kernel.with_bf16(Bf16::F32)).collect();
        let mut all = vec![of(Products::F32).collect(), rounded];
        if best.isa.has_bf16() {
            let tiles = best.isa.ways_for_bf16().filter(|way| *way == Bf16::Amx).chain([Bf16::Emulated]);
            all.push(vec![best.with_bf16(Bf16::Avx512)]);
            all.push(tiles.map(|way| best.with_bf16(way)).collect());
        } else {
            eprintln!("no AVX-512 with BF16 here: nothing of it and nothing of AMX is tried");
        }
        all
    }

    fn values(len: usize, seed: u32) -> Vec<f32> {
        let step = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8;
        (0..len).map(|i| step(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// `a b` in tiles of this many rows and columns.
    fn in_tiles(kernel: Kernel, a: Operand<'_>, b: Operand<'_>, rows: usize, cols: usize) -> Vec<f32> {
        let (m, n) = (a.rows, b.cols);
        let mut c = vec![f32::NAN; m * n];
        for row in (0..m).step_by(rows) {
            for col in (0..n).step_by(cols) {
                let (a, b) = (a.rows(row..m.min(row + rows)), b.cols(col..n.min(col + cols)));
                // SAFETY: the tile is inside of `c`, which is this thread's.
                unsafe { product(kernel, 1.0, a, b, 0.0, c.as_mut_ptr().add(row * n + col), n) };
            }
        }
        c
    }

    #[test]
    fn any_cut_and_any_instruction_set_give_the_same_bits() {
        // Depths of one block, of several, and of none; columns and rows that fill no panel and no tile.
        for (m, n, depth) in [(61, 75, 700), (7, 16, 256), (1, 3, 5), (13, 530, 33), (2, 2, 0)] {
            let (a, b) = (values(m * depth, 1), values(depth * n, 2));
            let by_row = (Operand::new(&a, m, depth), Operand::new(&b, n, depth).t());
            let by_depth = (Operand::new(&a, depth, m).t(), Operand::new(&b, depth, n));
            for kernels in alike() {
                for (a, b) in [by_row, by_depth] {
                    let whole = in_tiles(kernels[0], a, b, m, n);
                    for &kernel in &kernels {
                        for (rows, cols) in [(m, n), (1, n), (m, 1), (13, 32), (30, 40)] {
                            assert!(
                                in_tiles(kernel, a, b, rows, cols) == whole,
                                "{kernel:?} in tiles of ({rows}, {cols})"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_fetched_for_the_next_product_changes_nothing_of_this_one() {
        let (m, n, depth) = (33, 70, 520);
        let (a, b) = (values(m * depth, 1), values(depth * n, 2));
        let (a, b) = (Operand::new(&a, m, depth), Operand::new(&b, n, depth).t());
        for kernel in alike().into_iter().flatten() {
            let alone = in_tiles(kernel, a, b, m, n);
            // Of less than is fetched at a time, of what ends meanwhile, and of more.
            for len in [1, 100, 9000, 300_000] {
                let (next, mut c) = (values(len, 3), vec![f32::NAN; m * n]);
                // SAFETY: `c` has the elements of the product.
                unsafe { product_before(&next, kernel, 1.0, a, b, 0.0, c.as_mut_ptr(), n) };
                assert!(c == alone, "{kernel:?} before {len} elements");
            }
        }
    }

    #[test]
    fn a_product_is_scaled_and_added_to_what_is_there_alike() {
        // As many rows as are few for some, for none, and for all.
        for (m, n, depth) in [(9, 37, 300), (20, 37, 300), (1, 37, 300), (5, 7, 261)] {
            let (a, b, there) = (values(m * depth, 1), values(depth * n, 2), values(m * n, 3));
            for b in [Operand::new(&b, depth, n), Operand::new(&b, n, depth).t()] {
                let results = Isa::all().map(|isa| {
                    let mut c = there.clone();
                    let a = Operand::new(&a, m, depth);
                    // SAFETY: `c` has the elements of the product.
                    unsafe { product(Kernel::new(isa, Products::F32), 0.3, a, b, 0.7, c.as_mut_ptr(), n) };
                    c
                });
                let results: Vec<_> = results.collect();
                assert!(results.iter().all(|c| *c == results[0]), "({m}, {n}, {depth})");
                for (i, (found, old)) in results[0].iter().zip(&there).enumerate() {
                    let (row, col) = (i / n, i % n);
                    let of_b = |k: usize| f64::from(b.data[k * b.row_stride + col * b.col_stride]);
                    let sum: f64 = (0..depth).map(|k| f64::from(a[row * depth + k]) * of_b(k)).sum();
                    let expected = 0.3 * sum + 0.7 * f64::from(*old);
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "({row}, {col}): {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn bf16_is_the_same_everywhere_but_for_the_order_of_sums() {
        let (m, n, depth) = (20, 40, 301);
        let (a, b) = (values(m * depth, 1), values(depth * n, 2));
        let (a, b) = (Operand::new(&a, m, depth), Operand::new(&b, depth, n));
        let rounded = in_tiles(Kernel::new(Isa::detect().less_bf16(), Products::Bf16), a, b, m, n);
        let exact = in_tiles(Kernel::new(Isa::detect(), Products::F32), a, b, m, n);
        let distance = |x: &[f32]| x.iter().zip(&rounded).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        for kernel in alike().into_iter().flatten().filter(|kernel| kernel.products == Products::Bf16) {
            let found = in_tiles(kernel, a, b, m, n);
            assert!(distance(&found) < 1e-4, "{kernel:?} is off by {}", distance(&found));
        }
        assert!(distance(&exact) > 1e-3, "operands are rounded");
    }

    #[test]
    fn operands_are_rounded_to_nearest_even() {
        let tie = 1.0 + 1.0 / 256.0;
        for (x, expected) in [
            (1.0, 1.0),
            (tie, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (-tie - 1e-6, -1.0 - 2.0 / 256.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (1e-40, 0.0),
        ] {
            assert_eq!(round_to_bf16(x), expected, "{x}");
        }
        assert!(round_to_bf16(f32::NAN).is_nan());
    }
}
