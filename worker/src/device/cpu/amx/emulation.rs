//! The instructions of tiles in plain Rust, as Intel's manual defines them.

use super::{SIDE, Tiles};

/// A tile, rows of 16 times 4 bytes.
pub type Tile = [[u32; SIDE]; SIDE];

/// Eight tiles.
pub struct Emulated([Tile; 8]);

/// The bf16 at depths 2k and 2k + 1, subnormal ones as zeros (DAZ).
#[inline(always)]
fn halves(unit: u32) -> [f32; 2] {
    [unit << 16, unit & 0xffff_0000].map(|bits| without_subnormal(f32::from_bits(bits)))
}

#[inline(always)]
fn without_subnormal(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// FTZ: `rounded`, or 0 where the result is tiny before its exponent is bounded. `wide` is the result with a precision at which that can
/// be told.
#[inline(always)]
fn flushed(rounded: f32, wide: f64) -> f32 {
    // Half a unit of 24 bits below the smallest normal number: from there on it rounds to that.
    const TINY: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1u64 << 25) as f64);
    if wide.abs() < TINY { 0.0_f32.copysign(rounded) } else { rounded }
}

#[inline(always)]
fn fma(a: f32, b: f32, sum: f32) -> f32 {
    flushed(a.mul_add(b, sum), f64::from(a).mul_add(f64::from(b), f64::from(sum)))
}

#[inline(always)]
fn add(a: f32, b: f32) -> f32 {
    flushed(a + b, f64::from(a) + f64::from(b))
}

impl Emulated {
    pub const fn zeros() -> Emulated {
        Emulated([[[0; SIDE]; SIDE]; 8])
    }

    #[inline(always)]
    pub fn zero_tile(&mut self, tile: usize) {
        self.0[tile] = [[0; SIDE]; SIDE];
    }

    /// # Safety
    ///
    /// As [`Tiles::load`].
    #[inline(always)]
    pub unsafe fn load_tile(&mut self, tile: usize, from: *const u32, stride: usize) {
        for (i, row) in self.0[tile].iter_mut().enumerate() {
            // SAFETY: the caller's.
            *row = unsafe { from.byte_add(i * stride).cast::<[u32; SIDE]>().read() };
        }
    }

    #[inline(always)]
    pub fn multiply_tiles(&mut self, c: usize, a: usize, b: usize) {
        for m in 0..SIDE {
            let mut sums = [[0.0_f32; SIDE]; 2];
            for k in 0..SIDE {
                let [a0, a1] = halves(self.0[a][m][k]);
                for n in 0..SIDE {
                    let [b0, b1] = halves(self.0[b][k][n]);
                    sums[0][n] = fma(a0, b0, sums[0][n]);
                    sums[1][n] = fma(a1, b1, sums[1][n]);
                }
            }
            for n in 0..SIDE {
                let there = without_subnormal(f32::from_bits(self.0[c][m][n]));
                self.0[c][m][n] = add(there, add(sums[0][n], sums[1][n])).to_bits();
            }
        }
    }

    /// # Safety
    ///
    /// As [`Tiles::store`].
    #[inline(always)]
    pub unsafe fn store_tile(&self, tile: usize, to: *mut f32, stride: usize) {
        for (i, row) in self.0[tile].iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { to.byte_add(i * stride).cast::<[u32; SIDE]>().write(*row) };
        }
    }
}

impl Tiles for Emulated {
    // SAFETY: asks nothing of whoever calls.
    unsafe fn configured() -> Emulated {
        Emulated::zeros()
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        self.zero_tile(T);
    }

    // SAFETY: whoever calls has the memory, as the trait says.
    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize) {
        // SAFETY: the caller's.
        unsafe { self.load_tile(T, from, stride) }
    }

    #[inline(always)]
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.multiply_tiles(C, A, B);
    }

    // SAFETY: whoever calls has the memory, as the trait says.
    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
        // SAFETY: the caller's.
        unsafe { self.store_tile(T, to, stride) }
    }
}
