//! The CPU: the reference that every other device is tested against.
//!
//! ```text
//!   mod      storage and the trait                 pool    threads, blocks of rows
//!   matmul   products on all threads  ->  product  one of them on one thread  ->  avx512, amx, or portable
//!   bf16     which of them multiplies bf16
//!   attention, layers, moe, loss, vector           the operations
//!   simd     loops per instruction set, exp
//! ```
//!
//! Nothing here depends on the number of threads but the speed (D-1): a sum is done by one thread in a fixed order, or by parts of
//! fixed size that are then added in order; where work is cut for the number of threads, no sum is cut. Each thread keeps the
//! packed operands of its products, allocated at the first one (D-2). `unsafe` is for three things: disjoint parts of one output on
//! several threads, products, and calls of functions compiled for an instruction set that was found.

#![allow(unsafe_code)]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
#[cfg(target_arch = "x86_64")]
mod few;
mod layers;
mod loss;
mod matmul;
mod moe;
mod operand;
mod packed;
mod pool;
mod portable;
mod product;
mod simd;
mod vector;

use matmul::Grouped;
use operand::Operand;
use pool::Pool;
use product::Kernel;
use simd::Isa;

pub use bf16::{Bf16Choice, Bf16Error};
pub use simd::Bf16;

/// Elements of a cache line, where buffers start.
const LINE: usize = 16;

/// f32 in host memory, aligned to a cache line. The system gives zeros page by page when they are first touched: what is never used
/// takes no memory. Snapshots and other buffers may share the memory; it is copied when an element is to change meanwhile.
pub struct HostBuf {
    memory: Arc<Box<[f32]>>,
    start: usize,
    len: usize,
}

impl HostBuf {
    fn zeros(len: usize) -> HostBuf {
        let memory = vec![0.0; len + LINE - 1].into_boxed_slice();
        let start = memory.as_ptr().align_offset(LINE * size_of::<f32>());
        assert!(start < LINE, "f32 lie at multiples of their size");
        HostBuf { memory: Arc::new(memory), start, len }
    }

    pub fn as_slice(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        if self.is_shared() {
            let mut own = HostBuf::zeros(self.len);
            own.as_mut_slice().copy_from_slice(self.as_slice());
            *self = own;
        }
        let memory = Arc::get_mut(&mut self.memory).expect("only `share` makes others, and needs this buffer for it");
        &mut memory[self.start..self.start + self.len]
    }

    fn share(&self) -> HostBuf {
        HostBuf { memory: Arc::clone(&self.memory), start: self.start, len: self.len }
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }
}

/// What was in a [`HostBuf`]; its memory lives as long as this.
pub struct HostSnapshot(HostBuf);

impl Snapshot for HostSnapshot {
    fn len(&self) -> usize {
        self.0.len
    }

    fn with_host<T>(&self, range: Range<usize>, f: impl FnOnce(&[f32]) -> T) -> T {
        f(&self.0.as_slice()[range])
    }
}

impl Buffer for HostBuf {
    fn len(&self) -> usize {
        self.len
    }
}

impl<'a> View<'a, HostBuf> {
    fn host(self) -> &'a [f32] {
        &self.buf.as_slice()[self.start..self.start + self.len]
    }
}

impl<'a> ViewMut<'a, HostBuf> {
    fn host(self) -> &'a mut [f32] {
        &mut self.buf.as_mut_slice()[self.start..self.start + self.len]
    }
}

fn operand(m: Mat<'_, HostBuf>) -> Operand<'_> {
    Operand { data: m.view.host(), rows: m.rows, cols: m.cols, row_stride: m.row_stride, col_stride: m.col_stride }
}

fn grouped(groups: &Groups<CpuDevice>) -> Grouped<'_> {
    Grouped { offsets: &groups.offsets, capacity: groups.capacity }
}

/// Rows in use.
fn num_rows(groups: &Groups<CpuDevice>) -> usize {
    groups.offsets[groups.local.len()] as usize
}

/// Weight of row `r`.
fn row_weight<'a>(groups: &'a Groups<CpuDevice>, routing: &'a Routing<CpuDevice>) -> impl Fn(usize) -> f32 + Sync + 'a {
    let weights = routing.weights.as_slice();
    move |r| weights[groups.assignments[r] as usize]
}

/// The CPU with its own threads. Clones share them.
#[derive(Clone)]
pub struct CpuDevice {
    pool: Arc<Pool>,
    isa: Isa,
    bf16: Bf16,
    allocated: Arc<AtomicU64>,
}

impl CpuDevice {
    /// A device with this many threads, at least 1. With one, everything runs on the caller's. Products of bf16 go by the way that is
    /// fastest as a rule: nothing is measured.
    pub fn new(threads: usize) -> CpuDevice {
        let isa = Isa::detect();
        CpuDevice::with_bf16(threads, isa, isa.preferred_for_bf16())
    }

    /// The same with products of bf16 as the user asked for; what was measured is kept in the folder `cache`.
    pub fn open(threads: usize, bf16: Bf16Choice, cache: &Path) -> Result<CpuDevice, Bf16Error> {
        let isa = Isa::detect();
        Ok(CpuDevice::with_bf16(threads, isa, bf16.way(isa, cache)?))
    }

    /// One that computes the same way with threads of its own.
    pub fn with_threads(&self, threads: usize) -> CpuDevice {
        CpuDevice::with_bf16(threads, self.isa, self.bf16)
    }

    fn with_bf16(threads: usize, isa: Isa, bf16: Bf16) -> CpuDevice {
        CpuDevice { pool: Arc::new(Pool::new(threads)), isa, bf16, allocated: Arc::default() }
    }

    /// By what products of bf16 are computed.
    pub fn bf16(&self) -> Bf16 {
        self.bf16
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn kernel(&self, products: Products) -> Kernel {
        Kernel::new(self.isa, products).with_bf16(self.bf16)
    }

    /// Digest of products of several blocks of depth: those of bf16 differ by the way that they go.
    fn probe(&self, products: Products) -> String {
        const DEPTH: usize = 3000;
        let values = |n: usize, seed: u32| -> Vec<f32> {
            let step = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8;
            (0..n).map(|i| step(i) as f32 / (1 << 23) as f32 - 1.0).collect()
        };
        let mut hasher = blake3::Hasher::new();
        for (m, n) in [(1, 40), (7, 1), (70, 40)] {
            let (a, b) = (values(m * DEPTH, 1), values(n * DEPTH, 2));
            let by_row = (Operand::new(&a, m, DEPTH), Operand::new(&b, n, DEPTH).t());
            let by_depth = (Operand::new(&a, DEPTH, m).t(), Operand::new(&b, DEPTH, n));
            for (a, b) in [by_row, by_depth] {
                let mut c = vec![0.0; m * n];
                matmul::matmul(&self.pool, self.kernel(products), 1.0, a, b, 0.0, &mut c);
                hasher.update(bytemuck::cast_slice(&c));
            }
        }
        hasher.finalize().to_hex()[..12].to_string()
    }
}

impl Device for CpuDevice {
    type Buf = HostBuf;
    type Ids = Box<[u32]>;
    type Snapshot = HostSnapshot;

    fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.enter(f)
    }

    fn fingerprint(&self, products: Products) -> String {
        let numerics = toroid_proto::build().numerics;
        format!("cpu-{}-numerics-{numerics}-products-{}", std::env::consts::ARCH, self.probe(products))
    }

    /// The pages of the whole process that are in memory, as Linux says; 0 elsewhere.
    fn memory(&self) -> DeviceMemory {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        DeviceMemory { held: pages * rustix::param::page_size() as u64, free: None }
    }

    fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    fn alloc(&self, len: usize) -> HostBuf {
        self.allocated.fetch_add(4 * len as u64, Ordering::Relaxed);
        HostBuf::zeros(len)
    }

    fn alloc_ids(&self, len: usize) -> Box<[u32]> {
        self.allocated.fetch_add(4 * len as u64, Ordering::Relaxed);
        vec![0; len].into_boxed_slice()
    }

    fn read(&self, x: View<'_, HostBuf>, out: &mut [f32]) {
        out.copy_from_slice(x.host());
    }

    fn write(&self, x: ViewMut<'_, HostBuf>, values: &[f32]) {
        x.host().copy_from_slice(values);
    }

    fn read_ids(&self, ids: &Box<[u32]>, out: &mut [u32]) {
        out.copy_from_slice(&ids[..out.len()]);
    }

    fn write_ids(&self, ids: &mut Box<[u32]>, values: &[u32]) {
        ids[..values.len()].copy_from_slice(values);
    }

    fn with_host<R>(&self, x: View<'_, HostBuf>, f: impl FnOnce(&[f32]) -> R) -> R {
        f(x.host())
    }

    fn with_host_mut<R>(&self, x: ViewMut<'_, HostBuf>, f: impl FnOnce(&mut [f32]) -> R) -> R {
        f(x.host())
    }

    fn share(&self, x: &HostBuf) -> Option<HostBuf> {
        Some(x.share())
    }

    fn snapshot(&self, x: &HostBuf) -> HostSnapshot {
        HostSnapshot(x.share())
    }

    fn is_shared(&self, x: &HostBuf) -> bool {
        x.is_shared()
    }

    fn fill(&self, y: ViewMut<'_, HostBuf>, value: f32) {
        y.host().fill(value);
    }

    fn copy(&self, x: View<'_, HostBuf>, y: ViewMut<'_, HostBuf>) {
        y.host().copy_from_slice(x.host());
    }

    fn add(&self, a: View<'_, HostBuf>, b: View<'_, HostBuf>, y: ViewMut<'_, HostBuf>) {
        assert_eq!((a.len, b.len), (y.len, y.len), "lengths of a and b");
        vector::add(&self.pool, self.isa, a.host(), b.host(), y.host());
    }

    fn add_assign(&self, x: View<'_, HostBuf>, y: ViewMut<'_, HostBuf>) {
        assert_eq!(x.len, y.len, "lengths of x and y");
        vector::add_assign(&self.pool, self.isa, x.host(), y.host());
    }

    fn scale(&self, alpha: f32, y: ViewMut<'_, HostBuf>) {
        vector::scale(&self.pool, self.isa, alpha, y.host());
    }

    fn sum(&self, x: View<'_, HostBuf>) -> f64 {
        vector::sum(&self.pool, self.isa, x.host())
    }

    fn sum_of_squares(&self, x: View<'_, HostBuf>) -> f64 {
        vector::sum_of_squares(&self.pool, self.isa, x.host())
    }

    fn keep_rows(&self, rows: &Box<[u32]>, num_rows: usize, y: ViewMut<'_, HostBuf>) {
        vector::keep_rows(&rows[..num_rows], y.host());
    }

    fn scale_rows(&self, by: View<'_, HostBuf>, y: ViewMut<'_, HostBuf>) {
        assert!(y.len.is_multiple_of(by.len.max(1)), "{} elements are no {} rows", y.len, by.len);
        vector::scale_rows(&self.pool, self.isa, by.host(), y.host());
    }

    fn all_finite(&self, x: View<'_, HostBuf>) -> bool {
        vector::all_finite(&self.pool, self.isa, x.host())
    }

    fn digest(&self, x: View<'_, HostBuf>, salt: u32) -> Digest {
        vector::digest(&self.pool, self.isa, x.host(), salt)
    }

    fn adamw(
        &self,
        p: ViewMut<'_, HostBuf>,
        m: ViewMut<'_, HostBuf>,
        v: ViewMut<'_, HostBuf>,
        g: View<'_, HostBuf>,
        hyper: &AdamW,
    ) {
        assert_eq!((m.len, v.len, g.len), (p.len, p.len, p.len), "lengths of m, v and g");
        vector::adamw(&self.pool, self.isa, hyper, [p.host(), m.host(), v.host()], g.host());
    }

    fn adamw_into(
        &self,
        before: [View<'_, HostBuf>; 3],
        after: [ViewMut<'_, HostBuf>; 3],
        g: View<'_, HostBuf>,
        hyper: &AdamW,
    ) {
        let (before, after) = (before.map(View::host), after.map(ViewMut::host));
        assert!(
            before.iter().all(|x| x.len() == g.len) && after.iter().all(|x| x.len() == g.len),
            "lengths of p, m, v"
        );
        vector::adamw_into(&self.pool, self.isa, hyper, before, after, g.host());
    }

    fn matmul(
        &self,
        products: Products,
        alpha: f32,
        a: Mat<'_, HostBuf>,
        b: Mat<'_, HostBuf>,
        beta: f32,
        c: MatMut<'_, HostBuf>,
    ) {
        assert_eq!((c.rows, c.cols), (a.rows, b.cols), "shape of the product");
        matmul::matmul(&self.pool, self.kernel(products), alpha, operand(a), operand(b), beta, c.view.host());
    }

    fn grouped_matmul(
        &self,
        products: Products,
        groups: &Groups<Self>,
        x: View<'_, HostBuf>,
        w: View<'_, HostBuf>,
        y: ViewMut<'_, HostBuf>,
    ) {
        grouped(groups).product(&self.pool, self.kernel(products), x.host(), w.host(), true, y.host());
    }

    fn grouped_matmul_dx(
        &self,
        products: Products,
        groups: &Groups<Self>,
        dy: View<'_, HostBuf>,
        w: View<'_, HostBuf>,
        dx: ViewMut<'_, HostBuf>,
    ) {
        grouped(groups).product(&self.pool, self.kernel(products), dy.host(), w.host(), false, dx.host());
    }

    fn grouped_matmul_dw(
        &self,
        products: Products,
        groups: &Groups<Self>,
        dy: View<'_, HostBuf>,
        x: View<'_, HostBuf>,
        dw: ViewMut<'_, HostBuf>,
    ) {
        grouped(groups).weight_gradient(&self.pool, self.kernel(products), dy.host(), x.host(), dw.host());
    }

    fn embedding(
        &self,
        d: usize,
        ids: &Box<[u32]>,
        first_row: usize,
        table: View<'_, HostBuf>,
        x: ViewMut<'_, HostBuf>,
    ) {
        layers::embedding(&self.pool, d, ids, first_row, table.host(), x.host());
    }

    fn embedding_backward(
        &self,
        d: usize,
        ids: &Box<[u32]>,
        first_row: usize,
        dx: View<'_, HostBuf>,
        dtable: ViewMut<'_, HostBuf>,
    ) {
        layers::embedding_backward(&self.pool, self.isa, d, ids, first_row, dx.host(), dtable.host());
    }

    fn rms_norm(
        &self,
        eps: f32,
        x: View<'_, HostBuf>,
        w: View<'_, HostBuf>,
        y: ViewMut<'_, HostBuf>,
        inv_rms: ViewMut<'_, HostBuf>,
    ) {
        assert_eq!((x.len, y.len), (inv_rms.len * w.len, x.len), "lengths of x and y");
        layers::rms_norm(&self.pool, self.isa, eps, x.host(), w.host(), y.host(), inv_rms.host());
    }

    fn rms_norm_backward(
        &self,
        x: View<'_, HostBuf>,
        w: View<'_, HostBuf>,
        inv_rms: View<'_, HostBuf>,
        dy: View<'_, HostBuf>,
        dx: ViewMut<'_, HostBuf>,
        dw: ViewMut<'_, HostBuf>,
    ) {
        assert_eq!((x.len, dy.len, dx.len), (inv_rms.len * w.len, x.len, x.len), "lengths of x, dy and dx");
        let saved = layers::NormBackward { x: x.host(), w: w.host(), inv_rms: inv_rms.host(), dy: dy.host() };
        layers::rms_norm_backward(&self.pool, self.isa, saved, dx.host(), dw.host());
    }

    fn rope(&self, dims: &AttentionDims, turn: Turn, table: View<'_, HostBuf>, qkv: ViewMut<'_, HostBuf>) {
        assert_eq!(qkv.len, dims.tokens() * dims.row_len(), "length of qkv");
        layers::rope(&self.pool, self.isa, dims, turn, table.host(), qkv.host());
    }

    fn attention(
        &self,
        products: Products,
        dims: &AttentionDims,
        bounds: Option<&Box<[u32]>>,
        qkv: View<'_, HostBuf>,
        out: ViewMut<'_, HostBuf>,
        lse: ViewMut<'_, HostBuf>,
    ) {
        assert_eq!(qkv.len, dims.tokens() * dims.row_len(), "length of qkv");
        assert_eq!(
            (out.len, lse.len),
            (dims.tokens() * dims.out_len(), dims.tokens() * dims.heads),
            "lengths of outputs"
        );
        let of = attention::Texts { dims, bounds: bounds.map(|bounds| &**bounds) };
        attention::forward(&self.pool, self.isa, self.kernel(products), of, qkv.host(), out.host(), lse.host());
    }

    fn attention_backward(
        &self,
        products: Products,
        dims: &AttentionDims,
        bounds: Option<&Box<[u32]>>,
        qkv: View<'_, HostBuf>,
        out: View<'_, HostBuf>,
        lse: View<'_, HostBuf>,
        dout: View<'_, HostBuf>,
        dqkv: ViewMut<'_, HostBuf>,
    ) {
        assert_eq!((qkv.len, dqkv.len), (dims.tokens() * dims.row_len(), qkv.len), "lengths of qkv and dqkv");
        let saved = attention::Backward { qkv: qkv.host(), out: out.host(), lse: lse.host(), dout: dout.host() };
        let of = attention::Texts { dims, bounds: bounds.map(|bounds| &**bounds) };
        attention::backward(&self.pool, self.isa, self.kernel(products), of, saved, dqkv.host());
    }

    fn route(&self, kept: Option<Kept<'_, Self>>, logits: View<'_, HostBuf>, routing: &mut Routing<Self>) {
        routing.num_kept = kept.map_or(routing.tokens, |kept| kept.num);
        let kept = kept.map(|kept| &kept.rows[..routing.tokens]);
        let to = moe::Choice {
            probs: routing.probs.as_mut_slice(),
            lse: routing.lse.as_mut_slice(),
            chosen: &mut routing.chosen,
            weights: routing.weights.as_mut_slice(),
            counts: &mut routing.counts,
            prob_sums: routing.prob_sums.as_mut_slice(),
        };
        moe::route(&self.pool, self.isa, routing.experts, kept, logits.host(), to);
    }

    fn route_backward(
        &self,
        routing: &Routing<Self>,
        groups: &Groups<Self>,
        loss: RouterLoss,
        dweights: View<'_, HostBuf>,
        dlogits: ViewMut<'_, HostBuf>,
    ) {
        let saved = moe::RouteBackward {
            experts: routing.experts,
            num_kept: routing.num_kept,
            probs: routing.probs.as_slice(),
            lse: routing.lse.as_slice(),
            chosen: &routing.chosen,
            weights: routing.weights.as_slice(),
            counts: &routing.counts,
            positions: &groups.positions,
            dweights: dweights.host(),
        };
        moe::route_backward(&self.pool, self.isa, loss, saved, dlogits.host());
    }

    fn group(&self, routing: &Routing<Self>, groups: &mut Groups<Self>) {
        let local: Range<usize> = groups.local.clone();
        moe::group(
            local,
            &routing.chosen,
            &routing.counts,
            &mut groups.offsets,
            &mut groups.assignments,
            &mut groups.positions,
        );
    }

    fn gather_rows(&self, groups: &Groups<Self>, x: View<'_, HostBuf>, rows: ViewMut<'_, HostBuf>) {
        let d = rows.len / groups.capacity;
        moe::gather(&self.pool, d, &groups.assignments[..num_rows(groups)], x.host(), rows.host());
    }

    fn combine_rows(&self, groups: &Groups<Self>, rows: View<'_, HostBuf>, y: ViewMut<'_, HostBuf>) {
        let d = rows.len / groups.capacity;
        moe::combine(&self.pool, self.isa, d, &groups.positions, rows.host(), y.host());
    }

    fn swiglu(&self, ff: usize, gate_up: View<'_, HostBuf>, act: ViewMut<'_, HostBuf>) {
        assert_eq!(gate_up.len, 2 * act.len, "length of gate_up");
        layers::swiglu(&self.pool, self.isa, ff, act.len / ff, |_| 1.0, gate_up.host(), act.host());
    }

    fn swiglu_backward(
        &self,
        ff: usize,
        dact: View<'_, HostBuf>,
        gate_up: ViewMut<'_, HostBuf>,
        act: ViewMut<'_, HostBuf>,
    ) {
        assert_eq!((gate_up.len, dact.len), (2 * act.len, act.len), "lengths of gate_up and dact");
        let rows = act.len / ff;
        let to = layers::SwigluBackward { gate_up: gate_up.host(), act: act.host(), dweights: &mut [] };
        layers::swiglu_backward(&self.pool, self.isa, ff, rows, |_| 1.0, dact.host(), to);
    }

    fn routed_swiglu(
        &self,
        groups: &Groups<Self>,
        routing: &Routing<Self>,
        gate_up: View<'_, HostBuf>,
        act: ViewMut<'_, HostBuf>,
    ) {
        let ff = act.len / groups.capacity;
        let weight = row_weight(groups, routing);
        layers::swiglu(&self.pool, self.isa, ff, num_rows(groups), weight, gate_up.host(), act.host());
    }

    fn routed_swiglu_backward(
        &self,
        groups: &Groups<Self>,
        routing: &Routing<Self>,
        dact: View<'_, HostBuf>,
        gate_up: ViewMut<'_, HostBuf>,
        act: ViewMut<'_, HostBuf>,
        dweights: ViewMut<'_, HostBuf>,
    ) {
        let ff = act.len / groups.capacity;
        let to = layers::SwigluBackward { gate_up: gate_up.host(), act: act.host(), dweights: dweights.host() };
        let weight = row_weight(groups, routing);
        layers::swiglu_backward(&self.pool, self.isa, ff, num_rows(groups), weight, dact.host(), to);
    }

    fn cross_entropy_local(
        &self,
        targets: &Box<[u32]>,
        first_row: usize,
        logits: View<'_, HostBuf>,
        stats: ViewMut<'_, HostBuf>,
    ) {
        let targets = &targets[..stats.len / 3];
        loss::cross_entropy_local(&self.pool, self.isa, targets, first_row, logits.host(), stats.host());
    }

    fn cross_entropy_combine(&self, stats: View<'_, HostBuf>, lse: ViewMut<'_, HostBuf>, losses: ViewMut<'_, HostBuf>) {
        assert_eq!(losses.len, lse.len, "length of losses");
        loss::cross_entropy_combine(stats.host(), lse.host(), losses.host());
    }

    fn cross_entropy_backward(
        &self,
        targets: &Box<[u32]>,
        first_row: usize,
        scale: f32,
        lse: View<'_, HostBuf>,
        logits: ViewMut<'_, HostBuf>,
    ) {
        let targets = &targets[..lse.len];
        loss::cross_entropy_backward(&self.pool, self.isa, targets, first_row, scale, lse.host(), logits.host());
    }
}

impl CachedAttention for CpuDevice {
    fn rows_are_independent(&self) -> bool {
        true
    }

    fn cached_attention(
        &self,
        products: Products,
        dims: &AttentionDims,
        places: &Box<[u32]>,
        qkv: View<'_, HostBuf>,
        cache: ViewMut<'_, HostBuf>,
        out: ViewMut<'_, HostBuf>,
    ) {
        let n = qkv.len / dims.row_len();
        assert_eq!((qkv.len, out.len), (n * dims.row_len(), n * dims.out_len()), "lengths of qkv and out");
        assert_eq!(cache.len, dims.tokens() * 2 * dims.kv_heads * dims.head_dim, "length of the cache");
        attention::cached(
            &self.pool,
            self.isa,
            self.kernel(products),
            dims,
            &places[..2 * n],
            qkv.host(),
            cache.host(),
            out.host(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers of different bits must not heal each other.
    #[test]
    fn each_way_for_bf16_has_a_fingerprint_of_its_own_and_f32_one_for_all() {
        let isa = Isa::detect();
        let emulated = [Bf16::Emulated].into_iter().filter(|_| isa.has_bf16());
        let devices: Vec<_> =
            isa.ways_for_bf16().chain(emulated).map(|way| CpuDevice::with_bf16(1, isa, way)).collect();
        for (i, a) in devices.iter().enumerate() {
            for b in &devices[..i] {
                let is_alike = [a.bf16(), b.bf16()].iter().all(|way| matches!(way, Bf16::Amx | Bf16::Emulated));
                let [of_a, of_b] = [a, b].map(|device| device.fingerprint(Products::Bf16));
                assert_eq!(of_a == of_b, is_alike, "{} and {}", a.bf16(), b.bf16());
                assert_eq!(a.fingerprint(Products::F32), b.fingerprint(Products::F32));
            }
        }
    }
}
