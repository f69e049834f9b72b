//! Causal attention with grouped key/value heads, block by block (Dao et al., FlashAttention).
//!
//! ```text
//!   forward:   one task a (sample, query head, block of queries): online softmax over the blocks of keys
//!              up to the diagonal, in order
//!   backward:  one task a (sample, key/value head): its query heads, blocks of queries and blocks of keys, in order
//! ```
//!
//! Scores exist only as one tile on a thread's stack. The forward keeps their log-sum-exp, the backward recomputes them
//! from it.

use super::operand::Operand;
use super::pool::{Disjoint, Pool};
use super::product::{Kernel, product};
use super::simd::{self, Isa, multiversion};
use crate::device::{AttentionDims, TEXT_ALIGN};

/// Queries of a tile.
const QUERIES: usize = 64;
/// Keys of a tile; a multiple of `QUERIES`.
const KEYS: usize = 128;

type Tile = [f32; QUERIES * KEYS];

const _: () = assert!(TEXT_ALIGN.is_multiple_of(QUERIES), "a text begins with a tile of queries");

/// Dims, and which text of its sample each row is of; see [`crate::device::Device::attention`].
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    pub dims: &'a AttentionDims,
    pub bounds: Option<&'a [u32]>,
}

impl Texts<'_> {
    /// The first row of the sample that row `row` of the micro-batch sees.
    fn start(&self, row: usize) -> usize {
        self.bounds.map_or(0, |bounds| bounds[row] as usize)
    }
}

/// Where the parts of one (sample, query head) lie in the rows of `qkv` and of the output.
#[derive(Clone, Copy)]
struct Head {
    /// First row of the sample.
    row: usize,
    /// First element within a row of `qkv`.
    q: usize,
    k: usize,
    v: usize,
    /// First element within a row of the output.
    out: usize,
    /// First element of `lse`.
    lse: usize,
}

impl Head {
    fn new(dims: &AttentionDims, sample: usize, head: usize) -> Head {
        let kv = head / (dims.heads / dims.kv_heads);
        Head {
            row: sample * dims.seq,
            q: head * dims.head_dim,
            k: (dims.heads + kv) * dims.head_dim,
            v: (dims.heads + dims.kv_heads + kv) * dims.head_dim,
            out: head * dims.head_dim,
            lse: (sample * dims.heads + head) * dims.seq,
        }
    }

    /// Rows `first..first + num` of the sample, `head_dim` columns from `col`.
    fn block<'a>(
        &self,
        dims: &AttentionDims,
        x: &'a [f32],
        row_len: usize,
        col: usize,
        first: usize,
        num: usize,
    ) -> Operand<'a> {
        let data = &x[(self.row + first) * row_len + col..];
        Operand { data, rows: num, cols: dims.head_dim, row_stride: row_len, col_stride: 1 }
    }
}

/// Blocks of keys that the queries `first..first + num` of a text see that begins at `start`, `(first key, number of keys)`.
fn key_blocks(start: usize, first: usize, num: usize) -> impl Iterator<Item = (usize, usize)> {
    let end = first + num;
    (start..end).step_by(KEYS).map(move |key| (key, KEYS.min(end - key)))
}

pub fn forward(pool: &Pool, isa: Isa, kernel: Kernel, texts: Texts<'_>, qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let dims = texts.dims;
    let blocks = dims.seq.div_ceil(QUERIES);
    let tasks = dims.batch * dims.heads * blocks;
    let work = tasks * QUERIES * dims.seq * dims.head_dim;
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    pool.each(tasks, work, |task| {
        // The last blocks of queries see the most keys: they go first.
        let (sample_head, block) = (task / blocks, blocks - 1 - task % blocks);
        let head = Head::new(dims, sample_head / dims.heads, sample_head % dims.heads);
        let first = block * QUERIES;
        let num = QUERIES.min(dims.seq - first);
        // SAFETY: each (sample, head, block of queries) is one task's.
        let lse = unsafe { lse.range(head.lse + first..head.lse + first + num) };
        let (row_len, out_len) = (dims.row_len(), dims.out_len());
        let sees = Sees {
            start: texts.start(head.row + first),
            first,
            q: head.block(dims, qkv, row_len, head.q, first, num),
            k: head.block(dims, qkv, row_len, head.k, 0, first + num),
            v: head.block(dims, qkv, row_len, head.v, 0, first + num),
        };
        forward_block(isa, kernel, sees, (head.row + first) * out_len + head.out, out_len, &out, lse);
    });
}

/// Queries of one head, one after the other, and all keys and values that the last of them sees.
#[derive(Clone, Copy)]
struct Sees<'a> {
    /// Keys before it are of another text.
    start: usize,
    /// Position of the first query.
    first: usize,
    /// `(queries, head_dim)`
    q: Operand<'a>,
    /// `(first + queries, head_dim)`
    k: Operand<'a>,
    /// `(first + queries, head_dim)`
    v: Operand<'a>,
}

/// One block of queries; their results lie from `to` on in `out`, `out_len` apart.
fn forward_block(
    isa: Isa,
    kernel: Kernel,
    sees: Sees<'_>,
    to: usize,
    out_len: usize,
    out: &Disjoint<'_>,
    lse: &mut [f32],
) {
    let Sees { start, first, q, k, v } = sees;
    let (num, head_dim) = (lse.len(), q.cols);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut scores: Tile = [0.0; QUERIES * KEYS];
    let (mut max, mut sum) = ([f32::NEG_INFINITY; QUERIES], [0.0_f32; QUERIES]);
    let mut rescale = [0.0_f32; QUERIES];
    let out_row = |r: usize| to + r * out_len;
    for (key, keys) in key_blocks(start, first, num) {
        let (k, v) = (k.rows(key..key + keys), v.rows(key..key + keys));
        // SAFETY: the tile has `QUERIES` rows of `KEYS` and is this task's own.
        unsafe { product(kernel, scale, q, k.t(), 0.0, scores.as_mut_ptr(), KEYS) };
        online_softmax(isa, &mut scores, keys, first + 1 - key, &mut max[..num], &mut sum, &mut rescale);
        if key > start {
            for (r, rescale) in rescale.iter().enumerate().take(num) {
                // SAFETY: this task's own part of the output.
                scale_row(isa, *rescale, unsafe { out.range(out_row(r)..out_row(r) + head_dim) });
            }
        }
        let p = Operand { data: &scores, rows: num, cols: keys, row_stride: KEYS, col_stride: 1 };
        // SAFETY: these queries' columns of the output are this task's own.
        unsafe { product(kernel, 1.0, p, v, if key > start { 1.0 } else { 0.0 }, out.at(out_row(0)), out_len) };
    }
    for r in 0..num {
        // SAFETY: as above.
        scale_row(isa, 1.0 / sum[r], unsafe { out.range(out_row(r)..out_row(r) + head_dim) });
        lse[r] = max[r] + sum[r].ln();
    }
}

/// One query a row, whose keys and values are put into the cache first; arguments as in [`crate::device::CachedAttention::cached_attention`].
///
/// A query has the bits that it has in [`forward`] within its block: there the keys after it count as zeros, at the end of each sum.
pub fn cached(
    pool: &Pool,
    isa: Isa,
    kernel: Kernel,
    dims: &AttentionDims,
    places: &[u32],
    qkv: &[f32],
    cache: &mut [f32],
    out: &mut [f32],
) {
    let (head_dim, row_len, out_len) = (dims.head_dim, dims.row_len(), dims.out_len());
    let (kv_start, kv_len) = (dims.heads * head_dim, 2 * dims.kv_heads * head_dim);
    let num = places.len() / 2;
    let (sequences, positions) = places.split_at(num);
    for ((sequence, position), row) in sequences.iter().zip(positions).zip(qkv.chunks_exact(row_len)) {
        let at = (*sequence as usize * dims.seq + *position as usize) * kv_len;
        cache[at..at + kv_len].copy_from_slice(&row[kv_start..]);
    }
    let cache = &*cache;
    let longest = positions.iter().map(|position| *position as usize + 1).max().unwrap_or(0);
    let out = Disjoint::new(out);
    pool.each(num * dims.heads, num * dims.heads * longest * head_dim * 2, |task| {
        let (row, head) = (task / dims.heads, task % dims.heads);
        let (sequence, position) = (sequences[row] as usize, positions[row] as usize);
        let kv = head / (dims.heads / dims.kv_heads);
        let of_cache = |col: usize| Operand {
            data: &cache[sequence * dims.seq * kv_len + col * head_dim..],
            rows: position + 1,
            cols: head_dim,
            row_stride: kv_len,
            col_stride: 1,
        };
        let q = Operand::new(&qkv[row * row_len + head * head_dim..][..head_dim], 1, head_dim);
        let sees = Sees { start: 0, first: position, q, k: of_cache(kv), v: of_cache(dims.kv_heads + kv) };
        forward_block(isa, kernel, sees, row * out_len + head * head_dim, out_len, &out, &mut [0.0]);
    });
}

/// Elements of a row of `keys` that query `r` of a tile sees, of which the first sees `seen`, and those that fill their last vector.
#[inline(always)]
fn lanes_seen(seen: usize, r: usize, keys: usize) -> (usize, usize) {
    let seen = (seen + r).min(keys);
    (seen, seen.next_multiple_of(simd::LANES).min(keys))
}

multiversion! {
    /// Turns scores, a row of `keys` each query, into `exp(score - max)` with the largest score so far, zeros beyond what a query sees: the first sees
    /// `seen` keys, each further one a key more. `rescale`: by how much what was added up before must shrink.
    ///
    /// What fills the last vector of what is seen becomes 0, and adds nothing to the sum. Rows are gone over three times, so that none waits for its own
    /// maximum or sum.
    fn online_softmax(
        scores: &mut Tile,
        keys: usize,
        seen: usize,
        max: &mut [f32],
        sum: &mut [f32; QUERIES],
        rescale: &mut [f32; QUERIES],
    ) {
        for (r, (row, max)) in scores.chunks_exact_mut(KEYS).zip(&mut *max).enumerate() {
            let (seen, whole) = lanes_seen(seen, r, keys);
            for hidden in &mut row[seen..whole] {
                *hidden = f32::NEG_INFINITY;
            }
            let found = simd::max(&row[..whole]);
            let new = if found > *max { found } else { *max };
            rescale[r] = *max - new;
            *max = new;
        }
        for (r, (row, max)) in scores.chunks_exact_mut(KEYS).zip(&*max).enumerate() {
            let (_, whole) = lanes_seen(seen, r, keys);
            let (row, hidden) = row[..keys].split_at_mut(whole);
            simd::map(row, |x| simd::exp(x - max));
            hidden.fill(0.0);
        }
        simd::map(&mut rescale[..max.len()], simd::exp);
        for (r, row) in scores.chunks_exact(KEYS).enumerate().take(max.len()) {
            let (_, whole) = lanes_seen(seen, r, keys);
            sum[r] = sum[r] * rescale[r] + simd::sum_by(whole, |i| row[i]);
        }
    }
}

multiversion! {
    fn scale_row(by: f32, row: &mut [f32]) {
        for x in row {
            *x *= by;
        }
    }
}

/// What the backward reads. Shapes as in [`crate::device::Device::attention_backward`].
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    pub qkv: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub dout: &'a [f32],
}

pub fn backward(pool: &Pool, isa: Isa, kernel: Kernel, texts: Texts<'_>, saved: Backward<'_>, dqkv: &mut [f32]) {
    let dims = texts.dims;
    let tasks = dims.batch * dims.kv_heads;
    let group = dims.heads / dims.kv_heads;
    let (row_len, head_dim) = (dims.row_len(), dims.head_dim);
    let work = dims.batch * dims.heads * dims.seq * dims.seq * head_dim;
    let dqkv = Disjoint::new(dqkv);
    pool.each(tasks, work, |task| {
        let (sample, kv) = (task / dims.kv_heads, task % dims.kv_heads);
        let first = Head::new(dims, sample, kv * group);
        for row in first.row..first.row + dims.seq {
            for col in [first.k, first.v] {
                // SAFETY: the key and value columns of one key/value head of one sample are one task's.
                unsafe { dqkv.range(row * row_len + col..row * row_len + col + head_dim) }.fill(0.0);
            }
        }
        for head in kv * group..(kv + 1) * group {
            for query in (0..dims.seq).step_by(QUERIES) {
                backward_block(isa, kernel, texts, Head::new(dims, sample, head), saved, query, &dqkv);
            }
        }
    });
}

/// Adds what a block of queries of a head gives to the gradients of its keys and values, and writes that of the
/// queries.
fn backward_block(
    isa: Isa,
    kernel: Kernel,
    texts: Texts<'_>,
    head: Head,
    saved: Backward<'_>,
    first: usize,
    dqkv: &Disjoint<'_>,
) {
    let (dims, start) = (texts.dims, texts.start(head.row + first));
    let num = QUERIES.min(dims.seq - first);
    let (row_len, out_len) = (dims.row_len(), dims.out_len());
    let scale = 1.0 / (dims.head_dim as f32).sqrt();
    let (mut p, mut ds): (Tile, Tile) = ([0.0; QUERIES * KEYS], [0.0; QUERIES * KEYS]);
    let q = head.block(dims, saved.qkv, row_len, head.q, first, num);
    let dout = head.block(dims, saved.dout, out_len, head.out, first, num);
    let out = head.block(dims, saved.out, out_len, head.out, first, num);
    let mut delta = [0.0_f32; QUERIES];
    for (r, delta) in delta.iter_mut().enumerate().take(num) {
        let row = r * out_len..r * out_len + dims.head_dim;
        *delta = dot(isa, &out.data[row.clone()], &dout.data[row]);
    }
    let at = |row: usize, col: usize| dqkv.at((head.row + row) * row_len + col);
    for (key, keys) in key_blocks(start, first, num) {
        let k = head.block(dims, saved.qkv, row_len, head.k, key, keys);
        let v = head.block(dims, saved.qkv, row_len, head.v, key, keys);
        // SAFETY: the tiles have `QUERIES` rows of `KEYS` and are this task's own.
        unsafe {
            product(kernel, scale, q, k.t(), 0.0, p.as_mut_ptr(), KEYS);
            product(kernel, 1.0, dout, v.t(), 0.0, ds.as_mut_ptr(), KEYS);
        }
        let lse = &saved.lse[head.lse + first..][..num];
        softmax_backward(isa, keys, first + 1 - key, lse, &delta, scale, &mut p, &mut ds);
        let tile = |data| Operand { data, rows: num, cols: keys, row_stride: KEYS, col_stride: 1 };
        let add = if key > start { 1.0 } else { 0.0 };
        // SAFETY: the columns of this query head and of its key/value head are this task's own, for all rows of the
        // sample.
        unsafe {
            product(kernel, 1.0, tile(&p).t(), dout, 1.0, at(key, head.v), row_len);
            product(kernel, 1.0, tile(&ds).t(), q, 1.0, at(key, head.k), row_len);
            product(kernel, 1.0, tile(&ds), k, add, at(first, head.q), row_len);
        }
    }
}

multiversion! {
    /// `p`: scores to probabilities; `ds`: gradient of the probabilities to that of the products `q k`. Zeros beyond what a query sees, as in
    /// [`online_softmax`].
    fn softmax_backward(
        keys: usize,
        seen: usize,
        lse: &[f32],
        delta: &[f32; QUERIES],
        scale: f32,
        p: &mut Tile,
        ds: &mut Tile,
    ) {
        let rows = p.chunks_exact_mut(KEYS).zip(ds.chunks_exact_mut(KEYS));
        for (r, ((p, ds), lse)) in rows.zip(lse).enumerate() {
            let (seen, whole) = lanes_seen(seen, r, keys);
            simd::map_both(&mut p[..whole], &mut ds[..whole], |p, ds| {
                let p = simd::exp(p - lse);
                (p, p * (ds - delta[r]) * scale)
            });
            if seen < keys {
                p[seen..keys].fill(0.0);
                ds[seen..keys].fill(0.0);
            }
        }
    }
}

multiversion! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        simd::sum_by(a.len(), |i| a[i] * b[i])
    }
}
