//! Which kernel attends to heads of so many dims, with which launch; and attention against a cache.

use super::device::{CudaBuf, CudaDevice, CudaIds, blocks, narrow};
use super::launch::{per_block, u32s};
use super::runtime::{Arg, Launch, Runtime};
use crate::device::{AttentionDims, CachedAttention, Products, View, ViewMut};

/// Most dims of a head.
const MOST_HEAD_DIM: usize = 256;

/// The kernel for heads of this many dims: the family's name, `f32` or `bf16`, and the dims that it was compiled for.
fn attention_kernel(family: Family, products: Products, head_dim: usize) -> (&'static str, usize) {
    assert!(
        head_dim <= MOST_HEAD_DIM,
        "the CUDA device has attention for up to {MOST_HEAD_DIM} dims of a head, found {head_dim}"
    );
    let bf16 = products == Products::Bf16;
    match (family, bf16, head_dim) {
        (Family::Forward, true, 0..=32) => ("attention_bf16_32", 32),
        (Family::Forward, true, 33..=64) => ("attention_bf16_64", 64),
        (Family::Forward, true, 65..=128) => ("attention_bf16_128", 128),
        (Family::Cached { .. }, true, 0..=32) => ("attention_cached_bf16_32", 32),
        (Family::Cached { .. }, true, 33..=64) => ("attention_cached_bf16_64", 64),
        (Family::Cached { .. }, true, 65..=128) => ("attention_cached_bf16_128", 128),
        (Family::Dq, true, 0..=32) => ("attention_dq_bf16_32", 32),
        (Family::Dq, true, 33..=64) => ("attention_dq_bf16_64", 64),
        (Family::Dq, true, 65..=128) => ("attention_dq_bf16_128", 128),
        (Family::Dkv, true, 0..=32) => ("attention_dkv_bf16_32", 32),
        (Family::Dkv, true, 33..=64) => ("attention_dkv_bf16_64", 64),
        (Family::Dkv, true, 65..=128) => ("attention_dkv_bf16_128", 128),
        (Family::Forward, _, 0..=64) => ("attention_f32_64", 0),
        (Family::Forward, _, 65..=128) => ("attention_f32_128", 0),
        (Family::Forward, ..) => ("attention_f32_256", 0),
        (Family::Cached { .. }, _, 0..=64) => ("attention_cached_f32_64", 0),
        (Family::Cached { .. }, _, 65..=128) => ("attention_cached_f32_128", 0),
        (Family::Cached { .. }, ..) => ("attention_cached_f32_256", 0),
        (Family::Dq, _, 0..=64) => ("attention_dq_f32_64", 0),
        (Family::Dq, _, 65..=128) => ("attention_dq_f32_128", 0),
        (Family::Dq, ..) => ("attention_dq_f32_256", 0),
        (Family::Dkv, _, 0..=64) => ("attention_dkv_f32_64", 0),
        (Family::Dkv, _, 65..=128) => ("attention_dkv_f32_128", 0),
        (Family::Dkv, ..) => ("attention_dkv_f32_256", 0),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Forward,
    /// Of so many rows against a cache.
    Cached {
        rows: usize,
    },
    Dq,
    Dkv,
}

/// The launch of an attention kernel: its grid is `(tiles, heads or kv_heads, batch)`; of rows against a cache, where a tile is of query heads
/// that share a key/value head, `(rows, kv_heads, tiles)`.
pub(super) fn attention_launch(family: Family, products: Products, dims: &AttentionDims) -> (&'static str, Launch) {
    let (kernel, rounded) = attention_kernel(family, products, dims.head_dim);
    let (tile, threads, words) = if rounded > 0 {
        let stride = |n: usize| n / 2 + 4;
        let (rows, columns) = (64 * stride(rounded), rounded * stride(64));
        let words = match family {
            Family::Forward | Family::Cached { .. } => rows + columns,
            Family::Dq => 4 * rows + columns,
            Family::Dkv => 2 * rows + 2 * 32 * stride(rounded) + 2 * rounded * stride(32),
        };
        (64, 128, words)
    } else {
        let (rows, square) = (32 * (dims.head_dim + 1), 32 * 33);
        let words = match family {
            Family::Forward | Family::Cached { .. } => 3 * rows + square,
            Family::Dq => 4 * rows + square,
            Family::Dkv => 4 * rows + 2 * square,
        };
        (32, 256, words)
    };
    let (tiles, [heads, kv_heads, batch]) =
        (blocks(dims.seq, tile), [dims.heads, dims.kv_heads, dims.batch].map(narrow));
    let grid = match family {
        Family::Forward | Family::Dq => [tiles, heads, batch],
        Family::Dkv => [tiles, kv_heads, batch],
        Family::Cached { rows } => [narrow(rows), kv_heads, blocks(dims.heads / dims.kv_heads, tile)],
    };
    (kernel, Launch { grid, threads, shared_bytes: 4 * words })
}

/// What every kernel of a sample or of a cache ends with.
pub(super) fn dims_of(dims: &AttentionDims) -> [Arg; 5] {
    let [seq, heads, kv_heads, head_dim] = u32s([dims.seq, dims.heads, dims.kv_heads, dims.head_dim]);
    [seq, heads, kv_heads, head_dim, Arg::F32(1.0 / (dims.head_dim as f32).sqrt())]
}

impl<R: Runtime> CachedAttention for CudaDevice<R> {
    /// The library chooses how to multiply by the number of rows.
    fn rows_are_independent(&self) -> bool {
        false
    }

    fn cached_attention(
        &self,
        products: Products,
        dims: &AttentionDims,
        places: &CudaIds<R>,
        qkv: View<'_, CudaBuf<R>>,
        cache: ViewMut<'_, CudaBuf<R>>,
        out: ViewMut<'_, CudaBuf<R>>,
    ) {
        let rows = qkv.len / dims.row_len();
        assert_eq!((qkv.len, out.len), (rows * dims.row_len(), rows * dims.out_len()), "lengths of qkv and out");
        assert_eq!(cache.len, dims.tokens() * 2 * dims.kv_heads * dims.head_dim, "length of the cache");
        assert!(2 * rows <= places.len, "places of {rows} rows in {} ids", places.len);
        let [seq, heads, kv_heads, head_dim, scale] = dims_of(dims);
        let args = [qkv.arg(), places.arg(), cache.arg(), seq, heads, kv_heads, head_dim];
        self.launch("cache_rows", per_block(rows, 128), &args);
        // A kernel begins when the one before is done, so what all rows bring is there.
        let (kernel, launch) = attention_launch(Family::Cached { rows }, products, dims);
        let args = [qkv.arg(), cache.arg(), places.arg(), out.arg(), seq, heads, kv_heads, head_dim, scale];
        self.launch(kernel, launch, &args);
    }
}
