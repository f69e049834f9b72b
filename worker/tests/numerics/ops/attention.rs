//! Causal attention with grouped key/value heads.

use toroid_worker::device::{AttentionDims, Buffer, CachePlace, CachedAttention, Device};

use super::*;

/// Rows of one (sample, query head): where its query, key and value of a position start in `qkv`, and its output in the
/// output.
struct Head<'a>(&'a AttentionDims, usize, usize);

impl Head<'_> {
    fn at(&self, position: usize, head: usize) -> usize {
        (self.1 * self.0.seq + position) * self.0.row_len() + head * self.0.head_dim
    }
    fn kv(&self) -> usize {
        self.2 / (self.0.heads / self.0.kv_heads)
    }
    fn q(&self, position: usize) -> usize {
        self.at(position, self.2)
    }
    fn k(&self, position: usize) -> usize {
        self.at(position, self.0.heads + self.kv())
    }
    fn v(&self, position: usize) -> usize {
        self.at(position, self.0.heads + self.0.kv_heads + self.kv())
    }
    fn out(&self, position: usize) -> usize {
        (self.1 * self.0.seq + position) * self.0.out_len() + self.2 * self.0.head_dim
    }
    fn lse(&self, position: usize) -> usize {
        (self.1 * self.0.heads + self.2) * self.0.seq + position
    }

    /// Probabilities of the keys that `query` sees, and the log-sum-exp of their scores.
    fn probabilities(&self, qkv: &[f64], query: usize) -> (Vec<f64>, f64) {
        let n = self.0.head_dim;
        let part = |at: usize| &qkv[at..at + n];
        let scores: Vec<f64> =
            (0..=query).map(|key| dot(part(self.q(query)), part(self.k(key))) / (n as f64).sqrt()).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
    }
}

fn heads(dims: &AttentionDims) -> impl Iterator<Item = Head<'_>> {
    (0..dims.batch).flat_map(move |sample| (0..dims.heads).map(move |head| Head(dims, sample, head)))
}

/// `(out, lse)`
fn forward(dims: &AttentionDims, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut lse) = (vec![0.0; dims.tokens() * dims.out_len()], vec![0.0; dims.tokens() * dims.heads]);
    for head in heads(dims) {
        for query in 0..dims.seq {
            let (p, sum) = head.probabilities(qkv, query);
            lse[head.lse(query)] = sum;
            for (key, p) in p.iter().enumerate() {
                for i in 0..dims.head_dim {
                    out[head.out(query) + i] += p * qkv[head.v(key) + i];
                }
            }
        }
    }
    (out, lse)
}

/// `dqkv`
fn backward(dims: &AttentionDims, qkv: &[f64], dout: &[f64]) -> Vec<f64> {
    let n = dims.head_dim;
    let scale = 1.0 / (n as f64).sqrt();
    let mut dqkv = vec![0.0; qkv.len()];
    for head in heads(dims) {
        for query in 0..dims.seq {
            let (p, _) = head.probabilities(qkv, query);
            let dout = &dout[head.out(query)..head.out(query) + n];
            let dp: Vec<f64> = (0..=query).map(|key| dot(dout, &qkv[head.v(key)..head.v(key) + n])).collect();
            let mean = dot(&p, &dp);
            for key in 0..=query {
                let ds = p[key] * (dp[key] - mean) * scale;
                for i in 0..n {
                    dqkv[head.v(key) + i] += p[key] * dout[i];
                    dqkv[head.q(query) + i] += ds * qkv[head.k(key) + i];
                    dqkv[head.k(key) + i] += ds * qkv[head.q(query) + i];
                }
            }
        }
    }
    dqkv
}

fn example(dims: &AttentionDims) -> (Vec<f64>, Vec<f64>) {
    let qkv = values(1, dims.tokens() * dims.row_len()).iter().map(|x| 2.0 * x).collect();
    (qkv, values(2, dims.tokens() * dims.out_len()))
}

pub fn naive_backward_is_the_derivative<D: Device>(_: &D) {
    let dims = AttentionDims { batch: 2, seq: 5, heads: 4, kv_heads: 2, head_dim: 4 };
    let (qkv, dout) = example(&dims);
    let differences = derivative(&qkv, |qkv| dot(&dout, &forward(&dims, qkv).0));
    check("the naive backward", &narrow(&backward(&dims, &qkv, &dout)), &differences, 1e-7);
}

/// `tolerance` of the outputs; gradients may be off by two and a half times as much.
fn check_attention<D: Device>(device: &D, products: Products, dims: AttentionDims, tolerance: f64) {
    let (qkv, dout) = example(&dims);
    let [qkv_buf, dout_buf] = [&qkv, &dout].map(|v| upload(device, v));
    // Old contents must not matter.
    let lens = [dims.tokens() * dims.out_len(), dims.tokens() * dims.heads, qkv.len()];
    let [mut out, mut lse, mut dqkv] = lens.map(|len| upload(device, &vec![f64::NAN; len]));
    device.attention(products, &dims, None, qkv_buf.all(), out.all_mut(), lse.all_mut());
    let (expected_out, expected_lse) = forward(&dims, &qkv);
    check("out", &download(device, &out), &expected_out, tolerance);
    check("lse", &download(device, &lse), &expected_lse, tolerance);
    let (saved_out, saved_lse) = (out.all(), lse.all());
    device.attention_backward(
        products,
        &dims,
        None,
        qkv_buf.all(),
        saved_out,
        saved_lse,
        dout_buf.all(),
        dqkv.all_mut(),
    );
    check("dqkv", &download(device, &dqkv), &backward(&dims, &qkv, &dout), 2.5 * tolerance);
}

pub fn short<D: Device>(device: &D) {
    check_attention(
        device,
        Products::F32,
        AttentionDims { batch: 3, seq: 7, heads: 4, kv_heads: 2, head_dim: 10 },
        2e-6,
    );
}

pub fn longer_than_a_tile<D: Device>(device: &D) {
    check_attention(
        device,
        Products::F32,
        AttentionDims { batch: 2, seq: 300, heads: 4, kv_heads: 2, head_dim: 16 },
        2e-6,
    );
}

pub fn one_head<D: Device>(device: &D) {
    check_attention(
        device,
        Products::F32,
        AttentionDims { batch: 1, seq: 129, heads: 1, kv_heads: 1, head_dim: 32 },
        2e-6,
    );
}

/// Scores, probabilities and their gradients are rounded too, so the result is not that of rounded inputs.
pub fn of_bf16<D: Device>(device: &D) {
    let dims = AttentionDims { batch: 2, seq: 200, heads: 4, kv_heads: 2, head_dim: 32 };
    check_attention(device, Products::Bf16, dims, 1e-2);
}

/// Sizes for which a device may have other code: dims of a head up to a round number, or beyond it.
pub fn wide_heads<D: Device>(device: &D) {
    for head_dim in [64, 80, 128, 200] {
        let dims = AttentionDims { batch: 2, seq: 70, heads: 3, kv_heads: 1, head_dim };
        check_attention(device, Products::F32, dims, 2e-6);
        check_attention(device, Products::Bf16, dims, 1e-2);
    }
}

/// All rows of `qkv` against a cache, in calls of so many rows, and what [`Device::attention`] gives for them: `(out, attention's out)`. Sample
/// `i` is sequence `batch - 1 - i`, and the samples' rows come in turns.
fn cached<D: CachedAttention>(
    device: &D,
    products: Products,
    dims: &AttentionDims,
    qkv: &[f64],
    calls: &[usize],
) -> [Vec<f32>; 2] {
    let (row_len, out_len, kv_len) = (dims.row_len(), dims.out_len(), 2 * dims.kv_heads * dims.head_dim);
    let mut rows: Vec<(usize, usize)> =
        (0..dims.seq).flat_map(|position| (0..dims.batch).map(move |sample| (sample, position))).collect();
    // Of the first half of the positions all those of one sample, then all those of the next.
    rows[..dims.batch * (dims.seq / 2)].sort();
    // Old contents must not matter.
    let mut cache = upload(device, &vec![f64::NAN; dims.tokens() * kv_len]);
    let mut found = vec![f32::NAN; dims.tokens() * out_len];
    let (mut calls, mut rest) = (calls.iter().cycle(), &rows[..]);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(calls.next().expect("calls without end").to_owned().min(rest.len()));
        let places: Vec<CachePlace> = now
            .iter()
            .map(|(sample, position)| CachePlace { sequence: dims.batch - 1 - sample, position: *position })
            .collect();
        let of_row = |(sample, position): &(usize, usize)| (sample * dims.seq + position) * row_len;
        let of_call: Vec<f64> = now.iter().flat_map(|row| &qkv[of_row(row)..][..row_len]).copied().collect();
        let (of_call, places) = (upload(device, &of_call), upload_ids(device, &CachePlace::ids(&places)));
        let mut out = upload(device, &vec![f64::NAN; now.len() * out_len]);
        let allocated = device.allocated_bytes();
        device.cached_attention(products, dims, &places, of_call.all(), cache.all_mut(), out.all_mut());
        assert_eq!(device.allocated_bytes(), allocated, "an operation allocates nothing (D-2)");
        for ((sample, position), out) in now.iter().zip(download(device, &out).chunks_exact(out_len)) {
            found[(sample * dims.seq + position) * out_len..][..out_len].copy_from_slice(out);
        }
        rest = later;
    }
    let in_cache = download(device, &cache);
    for (sample, in_cache) in (0..dims.batch).rev().zip(in_cache.chunks_exact(dims.seq * kv_len)) {
        let rows = &qkv[sample * dims.seq * row_len..][..dims.seq * row_len];
        let expected: Vec<f64> = rows.chunks_exact(row_len).flat_map(|row| &row[row_len - kv_len..]).copied().collect();
        check("the cache", in_cache, &expected, 0.0);
    }
    let (qkv, lens) = (upload(device, qkv), [dims.tokens() * out_len, dims.tokens() * dims.heads]);
    let [mut out, mut lse] = lens.map(|len| device.alloc(len));
    device.attention(products, dims, None, qkv.all(), out.all_mut(), lse.all_mut());
    [found, download(device, &out)]
}

/// Calls of one row of a sequence, of many rows of it, and of rows of several, in any order.
const CALLS: [usize; 4] = [1, 7, 64, 3];

/// One query head a key/value head, several, and more than a tile has rows; heads of any width.
const CACHED: [AttentionDims; 4] = [
    AttentionDims { batch: 3, seq: 70, heads: 4, kv_heads: 2, head_dim: 10 },
    AttentionDims { batch: 2, seq: 140, heads: 2, kv_heads: 2, head_dim: 32 },
    AttentionDims { batch: 2, seq: 66, heads: 6, kv_heads: 2, head_dim: 80 },
    AttentionDims { batch: 1, seq: 34, heads: 66, kv_heads: 1, head_dim: 8 },
];

pub fn rows_against_a_cache<D: CachedAttention>(device: &D) {
    let wide = [128, 200].map(|head_dim| AttentionDims { batch: 1, seq: 40, heads: 3, kv_heads: 1, head_dim });
    for dims in CACHED.into_iter().chain(wide) {
        let (qkv, _) = example(&dims);
        for (products, tolerance) in [(Products::F32, 2e-6), (Products::Bf16, 1e-2)] {
            let [found, attention] = cached(device, products, &dims, &qkv, &CALLS);
            check("out", &found, &forward(&dims, &qkv).0, tolerance);
            assert!(!device.rows_are_independent() || same_bits(&found, &attention), "{products:?} {dims:?}");
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// The kernels of both are the same code, which goes over a row's keys in the same order.
#[test]
fn the_kernels_against_a_cache_add_up_as_those_of_attention_do() {
    for device in [crate::emulator::device(), crate::emulator::backwards()] {
        for dims in CACHED {
            for products in [Products::F32, Products::Bf16] {
                let [found, attention] = cached(&device, products, &dims, &example(&dims).0, &CALLS);
                assert!(same_bits(&found, &attention), "{products:?} {dims:?}");
            }
        }
    }
}
