//! Launches of kernels that go through elements or rows, and dims as arguments.

use super::device::narrow;
use super::runtime::{Arg, Launch};

/// Threads of a block that goes through elements or rows.
pub(super) const THREADS: u32 = 256;

/// A thread for each of `n` elements.
pub(super) fn flat(n: usize) -> Launch {
    per_block(n.div_ceil(THREADS as usize), THREADS)
}

/// `n` blocks.
pub(super) fn per_block(n: usize, threads: u32) -> Launch {
    Launch { grid: [narrow(n), 1, 1], threads, shared_bytes: 0 }
}

/// A warp for each of `n` rows.
pub(super) fn warps(n: usize) -> Launch {
    flat(n * 32)
}

/// Dims as kernels take them.
pub(super) fn u32s<const N: usize>(dims: [usize; N]) -> [Arg; N] {
    dims.map(|d| Arg::U32(narrow(d)))
}
