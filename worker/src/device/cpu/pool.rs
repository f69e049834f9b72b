//! Threads: work is cut into blocks whose size depends on shapes alone, and any thread takes any block.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Elements below which a loop is not worth waking a thread for.
const MIN_PARALLEL: usize = 16 * 1024;

/// Elements of a block of rows.
const BLOCK: usize = 8 * 1024;

/// The threads of a device. One thread: the caller's own, without any pool.
pub struct Pool {
    threads: usize,
    rayon: Option<rayon::ThreadPool>,
}

impl Pool {
    pub fn new(threads: usize) -> Pool {
        assert!(threads > 0, "a device needs at least one thread");
        let rayon = (threads > 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("cpu-{i}"))
                .build()
                .unwrap_or_else(|e| panic!("cannot start {threads} threads for the CPU device: {e}; ask for fewer"))
        });
        Pool { threads, rayon }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f` on one of the threads. Loops that it starts then begin at once where they are, and need no other thread to wake up
    /// before anything is done.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.rayon {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }

    /// Calls `f(i)` for every `i` in `0..n`, in any order and by any thread. `work` is the number of elements touched
    /// in all.
    pub fn each(&self, n: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
        match &self.rayon {
            Some(pool) if n > 1 && work >= MIN_PARALLEL => {
                pool.install(|| (0..n).into_par_iter().with_max_len(1).for_each(f));
            }
            _ => (0..n).for_each(f),
        }
    }

    /// Cuts `rows` rows into blocks and calls `f(rows of the block, the block's part of each output)`. An output is a
    /// slice of `rows * row_len` elements and its `row_len`. Rows must not depend on one another: the blocks' size is
    /// not part of the result.
    pub fn rows<const N: usize>(
        &self,
        rows: usize,
        outputs: [(&mut [f32], usize); N],
        f: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync + Send,
    ) {
        let row_len = outputs.iter().map(|(_, row_len)| *row_len).max().unwrap_or(1).max(1);
        let block = if self.rayon.is_some() { (BLOCK / row_len).max(1) } else { rows.max(1) };
        let outputs = outputs.map(|(slice, row_len)| {
            assert!(
                slice.len() >= rows * row_len,
                "an output of {} elements for {rows} rows of {row_len}",
                slice.len()
            );
            (Disjoint::new(slice), row_len)
        });
        self.each(rows.div_ceil(block), rows * row_len, |i| {
            let range = i * block..((i + 1) * block).min(rows);
            let parts = std::array::from_fn(|o| {
                let (output, row_len) = &outputs[o];
                // SAFETY: the ranges of different blocks are disjoint, and each block is done once.
                unsafe { output.range(range.start * row_len..range.end * row_len) }
            });
            f(range, parts);
        });
    }

    /// Cuts `x` into chunks of `len` elements, the last one shorter, and calls `f(first element, chunk)`. `work` as in
    /// [`Pool::each`].
    pub fn chunks(&self, x: &mut [f32], len: usize, work: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
        let total = x.len();
        let x = Disjoint::new(x);
        self.each(total.div_ceil(len), work, |i| {
            let first = i * len;
            // SAFETY: chunks are disjoint, and each is done once.
            f(first, unsafe { x.range(first..(first + len).min(total)) });
        });
    }
}

/// A slice that several threads write, each its own part.
pub struct Disjoint<'a> {
    ptr: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: f32 may be written from any thread; that parts do not overlap is what callers of the unsafe methods promise.
unsafe impl Sync for Disjoint<'_> {}
// SAFETY: as above.
unsafe impl Send for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    pub fn new(slice: &'a mut [f32]) -> Disjoint<'a> {
        Disjoint { ptr: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Safety
    ///
    /// No part that is in use at the same time overlaps `range`.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {} elements", self.len);
        // SAFETY: inside of the slice; the caller promises that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }

    /// Pointer to element `at`, for strided parts.
    pub fn at(&self, at: usize) -> *mut f32 {
        assert!(at <= self.len, "element {at} of {}", self.len);
        self.ptr.wrapping_add(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_reach_every_output_once() {
        for threads in [1, 3] {
            let (rows, a_len, b_len) = (1000, 40, 3);
            let (mut a, mut b) = (vec![0.0; rows * a_len], vec![0.0; rows * b_len]);
            Pool::new(threads).rows(rows, [(&mut a, a_len), (&mut b, b_len)], |range, [a, b]| {
                assert_eq!((a.len(), b.len()), (range.len() * a_len, range.len() * b_len));
                a.iter_mut().enumerate().for_each(|(i, v)| *v += (range.start * a_len + i) as f32);
                b.iter_mut().for_each(|v| *v += 1.0);
            });
            assert!(a.iter().enumerate().all(|(i, v)| *v == i as f32), "{threads} threads");
            assert!(b.iter().all(|v| *v == 1.0), "{threads} threads");
        }
    }
}
