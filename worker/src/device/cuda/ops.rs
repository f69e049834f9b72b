//! The operations: from shapes to launches. Every launch is followed by what its kernel declares in `kernels/*.cu`, in its order.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attention::{Family, attention_launch, dims_of};
use super::device::{CudaBuf, CudaDevice, CudaIds, CudaSnapshot, blocks, narrow};
use super::kernels;
use super::launch::{THREADS, flat, per_block, u32s, warps};
use super::products::WORKSPACE_BYTES;
use super::queue::Op;
use super::runtime::{Arg, DevicePtr, Factor, Launch, Product, Runtime, Stream};
use crate::device::*;
use crate::sync::lock;

/// Elements that a block of `sum_parts` adds.
const SUM_CHUNK: usize = 16 * 1024;
/// Most blocks of `digest`: enough for every multiprocessor several times over.
const MOST_DIGEST_BLOCKS: usize = 1024;
/// Rows that a block of `rms_norm_dw` adds.
const NORM_ROWS: usize = 64;
/// Tokens of a block of `route`, and its warps.
const ROUTE_TOKENS: usize = 64;
const ROUTE_WARPS: usize = 8;
/// Tiles of own products: f32, and those on tensor cores.
const TILE_F32: usize = 64;
const TILE_MMA: usize = 128;

/// A pointer that may be none.
fn optional<R: Runtime>(ids: Option<&CudaIds<R>>) -> Arg {
    ids.map_or(Arg::Ptr(0), CudaIds::arg)
}

impl<R: Runtime> CudaDevice<R> {
    /// Sum of `x`, of squares if `squares`, in f64.
    fn sum_in_f64(&self, x: View<'_, CudaBuf<R>>, squares: bool) -> f64 {
        if x.len == 0 {
            return 0.0;
        }
        let parts = x.len.div_ceil(SUM_CHUNK);
        let mut scratch = self.scratch(&[8 * parts, 8]);
        let (parts_at, sum_at) = (Arg::Ptr(scratch.take(8 * parts)), scratch.take(8));
        let [squares, chunk] = [Arg::U32(u32::from(squares)), Arg::U32(SUM_CHUNK as u32)];
        let args = [x.arg(), parts_at, squares, chunk, Arg::U64(x.len as u64)];
        self.launch("sum_parts", per_block(parts, THREADS), &args);
        self.launch("sum_final", per_block(1, THREADS), &[parts_at, Arg::Ptr(sum_at), Arg::U64(parts as u64)]);
        let mut sum = [0; 8];
        self.download(sum_at, &mut sum);
        f64::from_le_bytes(sum)
    }

    /// `[p, m, v]` before and after, each with its length.
    fn adamw_update(
        &self,
        before: [(Arg, usize); 3],
        after: [(Arg, usize); 3],
        g: View<'_, CudaBuf<R>>,
        hyper: &AdamW,
    ) {
        assert!(before.iter().chain(&after).all(|(_, len)| *len == g.len), "lengths of p, m, v");
        let constants = [
            1.0 - hyper.lr * hyper.weight_decay,
            hyper.beta1,
            1.0 - hyper.beta1,
            hyper.beta2,
            1.0 - hyper.beta2,
            hyper.lr / hyper.bias1,
            1.0 / hyper.bias2.sqrt(),
            hyper.eps,
            hyper.grad_scale,
        ]
        .map(|c| Arg::F32(c as f32));
        let [before, after] = [before, after].map(|state| state.map(|(arg, _)| arg));
        let args = [&before[..], &after, &[g.arg()], &constants, &[Arg::U64(g.len as u64)]].concat();
        self.launch("adamw", flat(g.len), &args);
    }

    /// `sums (cols) = [sums +] the rows of parts`.
    fn sum_rows(&self, parts: Arg, rows: usize, sums: Arg, cols: usize, add: bool) {
        let [rows, width, add] = u32s([rows, cols, usize::from(add)]);
        self.launch("sum_rows", flat(cols), &[parts, sums, rows, width, add]);
    }

    /// The matrix of a product as [`Factor`], in bf16 in scratch where products are.
    fn factor(&self, m: &Mat<'_, CudaBuf<R>>) -> Factor {
        let transposed = m.col_stride != 1;
        assert!(m.col_stride == 1 || m.row_stride == 1, "a matrix of rows or columns that are contiguous");
        Factor { ptr: m.view.ptr(), ld: if transposed { m.col_stride } else { m.row_stride }, transposed }
    }

    fn rounded(&self, m: &Mat<'_, CudaBuf<R>>, to: DevicePtr) -> Factor {
        let args = [m.view.arg(), Arg::Ptr(to), Arg::U64(m.view.len as u64)];
        self.launch("to_bf16", flat(m.view.len.div_ceil(2)), &args);
        Factor { ptr: to, ..self.factor(m) }
    }

    /// The product by an own kernel, which rounds f32 operands itself.
    fn own_product(&self, p: &Product) {
        let (kernels, tile) = match p.products {
            Products::F32 => (["matmul_f32_nn", "matmul_f32_nt", "matmul_f32_tn", "matmul_f32_tt"], TILE_F32),
            Products::Tf32 => (["matmul_tf32_nn", "matmul_tf32_nt", "matmul_tf32_tn", "matmul_tf32_tt"], TILE_MMA),
            Products::Bf16 => (["matmul_bf16_nn", "matmul_bf16_nt", "matmul_bf16_tn", "matmul_bf16_tt"], TILE_MMA),
        };
        let kernel = kernels[2 * usize::from(p.a.transposed) + usize::from(p.b.transposed)];
        let launch = Launch { grid: [blocks(p.n, tile), blocks(p.m, tile), 1], threads: THREADS, shared_bytes: 0 };
        let [m, n, k, lda, ldb] = u32s([p.m, p.n, p.k, p.a.ld, p.b.ld]);
        let [a, b, c] = [p.a.ptr, p.b.ptr, p.c].map(Arg::Ptr);
        self.launch(kernel, launch, &[a, b, c, m, n, k, lda, ldb, Arg::F32(p.alpha), Arg::F32(p.beta)]);
    }

    /// `[f32, tf32, bf16]` kernels of grouped products.
    fn grouped(products: Products, kernels: [&'static str; 3]) -> (&'static str, usize) {
        match products {
            Products::F32 => (kernels[0], TILE_F32),
            Products::Tf32 => (kernels[1], TILE_MMA),
            Products::Bf16 => (kernels[2], TILE_MMA),
        }
    }

    /// `y` or `dx` of the rows of each expert; `x (R, k)`, `y (R, n)`.
    fn grouped_rows(
        &self,
        products: Products,
        kernels: [&'static str; 3],
        groups: &Groups<Self>,
        x: View<'_, CudaBuf<R>>,
        w: View<'_, CudaBuf<R>>,
        y: ViewMut<'_, CudaBuf<R>>,
    ) {
        let experts = groups.local.len();
        let (k, n) = (x.len / groups.capacity, y.len / groups.capacity);
        assert_eq!(w.len, experts * n * k, "weights of {experts} experts, ({n}, {k}) each");
        let (kernel, tile) = Self::grouped(products, kernels);
        // Every expert may have one tile that is not full.
        let tiles = groups.capacity.div_ceil(tile) + experts;
        let launch = Launch { grid: [blocks(n, tile), narrow(tiles), 1], threads: THREADS, shared_bytes: 0 };
        let [experts, k, n] = u32s([experts, k, n]);
        self.launch(kernel, launch, &[groups.offsets.arg(), x.arg(), w.arg(), y.arg(), experts, k, n]);
    }

    fn check_norm(x: &View<'_, CudaBuf<R>>, w: &View<'_, CudaBuf<R>>, tokens: usize, others: [usize; 2]) {
        assert_eq!((x.len, others), (tokens * w.len, [x.len; 2]), "lengths of the rows of a norm");
    }
}

impl<R: Runtime> Device for CudaDevice<R> {
    type Buf = CudaBuf<R>;
    type Ids = CudaIds<R>;
    type Snapshot = CudaSnapshot<R>;

    fn fingerprint(&self, _products: Products) -> String {
        let numerics = toroid_proto::build().numerics;
        format!("{}-numerics-{numerics}-kernels-{}", self.shared.runtime.fingerprint(), kernels::digest())
    }

    fn submit(&self) {
        self.shared.in_order(|_| ());
    }

    fn comm(&self) -> Option<&dyn DeviceComm<Self::Buf>> {
        Some(self)
    }

    fn reserve_memory(&self, needs: &MemoryNeeds) -> Result<(), OutOfMemory> {
        self.reserve_block(needs)
    }

    fn memory(&self) -> DeviceMemory {
        let held = lock(&self.shared.held).values().sum::<usize>() as u64;
        DeviceMemory { held, free: Some(self.shared.runtime.free_bytes() as u64) }
    }

    fn allocated_bytes(&self) -> u64 {
        self.shared.allocated.load(Ordering::Relaxed)
    }

    fn alloc(&self, len: usize) -> CudaBuf<R> {
        self.buffer(len)
    }

    fn alloc_ids(&self, len: usize) -> CudaIds<R> {
        self.buffer(len)
    }

    fn read(&self, x: View<'_, CudaBuf<R>>, out: &mut [f32]) {
        assert_eq!(x.len, out.len(), "length of what is read");
        self.download(x.ptr(), bytemuck::cast_slice_mut(out));
    }

    fn write(&self, x: ViewMut<'_, CudaBuf<R>>, values: &[f32]) {
        assert_eq!(x.len, values.len(), "length of what is written");
        self.upload(bytemuck::cast_slice(values), x.ptr());
    }

    fn read_ids(&self, ids: &CudaIds<R>, out: &mut [u32]) {
        assert!(out.len() <= ids.len, "{} of {} ids", out.len(), ids.len);
        self.download(ids.ptr(), bytemuck::cast_slice_mut(out));
    }

    fn write_ids(&self, ids: &mut CudaIds<R>, values: &[u32]) {
        assert!(values.len() <= ids.len, "{} of {} ids", values.len(), ids.len);
        self.upload(bytemuck::cast_slice(values), ids.ptr());
    }

    fn with_host<T>(&self, x: View<'_, CudaBuf<R>>, f: impl FnOnce(&[f32]) -> T) -> T {
        let mut staging = self.take_staging(x.len * size_of::<f32>());
        self.fetch(x.ptr(), &mut staging, x.len * size_of::<f32>());
        let result = f(staging.as_mut_slice(x.len));
        self.put_staging(staging);
        result
    }

    fn with_host_mut<T>(&self, x: ViewMut<'_, CudaBuf<R>>, f: impl FnOnce(&mut [f32]) -> T) -> T {
        let mut staging = self.take_staging(x.len * size_of::<f32>());
        self.fetch(x.ptr(), &mut staging, x.len * size_of::<f32>());
        let result = f(staging.as_mut_slice(x.len));
        self.send(staging, x.ptr(), x.len * size_of::<f32>());
        result
    }

    fn snapshot(&self, x: &CudaBuf<R>) -> CudaSnapshot<R> {
        let made = self.shared.in_order(|runtime| runtime.record(Stream::Compute));
        CudaSnapshot { memory: Arc::clone(&x.memory), len: x.len, made }
    }

    fn is_shared(&self, x: &CudaBuf<R>) -> bool {
        x.is_shared()
    }

    fn fill(&self, y: ViewMut<'_, CudaBuf<R>>, value: f32) {
        self.launch("fill", flat(y.len), &[y.arg(), Arg::F32(value), Arg::U64(y.len as u64)]);
    }

    fn copy(&self, x: View<'_, CudaBuf<R>>, y: ViewMut<'_, CudaBuf<R>>) {
        assert_eq!(x.len, y.len, "lengths of x and y");
        // SAFETY: both have as many elements, and a view to write overlaps no other.
        unsafe {
            self.shared.ask(Op::Copy { from: x.ptr(), to: y.ptr(), bytes: x.len * size_of::<f32>() }, &[]);
        }
    }

    fn add(&self, a: View<'_, CudaBuf<R>>, b: View<'_, CudaBuf<R>>, y: ViewMut<'_, CudaBuf<R>>) {
        assert_eq!((a.len, b.len), (y.len, y.len), "lengths of a and b");
        self.launch("add", flat(y.len), &[a.arg(), b.arg(), y.arg(), Arg::U64(y.len as u64)]);
    }

    fn add_assign(&self, x: View<'_, CudaBuf<R>>, y: ViewMut<'_, CudaBuf<R>>) {
        assert_eq!(x.len, y.len, "lengths of x and y");
        self.launch("add_assign", flat(y.len), &[x.arg(), y.arg(), Arg::U64(y.len as u64)]);
    }

    fn scale(&self, alpha: f32, y: ViewMut<'_, CudaBuf<R>>) {
        self.launch("scale", flat(y.len), &[Arg::F32(alpha), y.arg(), Arg::U64(y.len as u64)]);
    }

    fn sum(&self, x: View<'_, CudaBuf<R>>) -> f64 {
        self.sum_in_f64(x, false)
    }

    fn sum_of_squares(&self, x: View<'_, CudaBuf<R>>) -> f64 {
        self.sum_in_f64(x, true)
    }

    fn keep_rows(&self, rows: &CudaIds<R>, num_rows: usize, y: ViewMut<'_, CudaBuf<R>>) {
        let [width] = u32s([y.len / num_rows.max(1)]);
        self.launch("keep_rows", per_block(num_rows, 128), &[rows.arg(), y.arg(), width]);
    }

    fn scale_rows(&self, by: View<'_, CudaBuf<R>>, y: ViewMut<'_, CudaBuf<R>>) {
        let num_rows = by.len;
        assert!(y.len.is_multiple_of(num_rows.max(1)), "{} elements are no {num_rows} rows", y.len);
        let [width] = u32s([y.len / num_rows.max(1)]);
        self.launch("scale_rows", per_block(num_rows, 128), &[by.arg(), y.arg(), width]);
    }

    fn all_finite(&self, x: View<'_, CudaBuf<R>>) -> bool {
        let mut scratch = self.scratch(&[4]);
        let flag = scratch.take(4);
        let mut found = [0; 4];
        // SAFETY: `flag` has 4 bytes.
        unsafe { self.zero(flag, 4) };
        self.launch("not_finite", flat(x.len), &[x.arg(), Arg::Ptr(flag), Arg::U64(x.len as u64)]);
        self.download(flag, &mut found);
        found == [0; 4]
    }

    fn digest(&self, x: View<'_, CudaBuf<R>>, salt: u32) -> Digest {
        let mut scratch = self.scratch(&[16]);
        let sums = scratch.take(16);
        let mut found = [0; 16];
        // SAFETY: `sums` has 16 bytes.
        unsafe { self.zero(sums, 16) };
        let blocks = x.len.div_ceil(2 * THREADS as usize).min(MOST_DIGEST_BLOCKS);
        let args = [x.arg(), Arg::Ptr(sums), Arg::U32(salt), Arg::U64(x.len as u64)];
        self.launch("digest", per_block(blocks, THREADS), &args);
        self.download(sums, &mut found);
        Digest::from_bytes(found)
    }

    fn adamw(
        &self,
        p: ViewMut<'_, CudaBuf<R>>,
        m: ViewMut<'_, CudaBuf<R>>,
        v: ViewMut<'_, CudaBuf<R>>,
        g: View<'_, CudaBuf<R>>,
        hyper: &AdamW,
    ) {
        let state = [p, m, v];
        let in_place = state.each_ref().map(|x| (x.arg(), x.len));
        self.adamw_update(in_place, in_place, g, hyper);
    }

    fn adamw_into(
        &self,
        before: [View<'_, CudaBuf<R>>; 3],
        after: [ViewMut<'_, CudaBuf<R>>; 3],
        g: View<'_, CudaBuf<R>>,
        hyper: &AdamW,
    ) {
        self.adamw_update(before.map(|x| (x.arg(), x.len)), after.map(|x| (x.arg(), x.len)), g, hyper);
    }

    fn reserve_scratch(&self, products: Products, operands: usize) {
        drop(self.scratch(&Self::scratch_pieces(products, operands)));
    }

    fn matmul(
        &self,
        products: Products,
        alpha: f32,
        a: Mat<'_, CudaBuf<R>>,
        b: Mat<'_, CudaBuf<R>>,
        beta: f32,
        c: MatMut<'_, CudaBuf<R>>,
    ) {
        assert_eq!((c.rows, c.cols, a.cols), (a.rows, b.cols, b.rows), "shape of the product");
        let mut product = Product {
            products,
            m: a.rows,
            n: b.cols,
            k: a.cols,
            alpha,
            beta,
            a: self.factor(&a),
            b: self.factor(&b),
            c: c.view.ptr(),
        };
        // In bf16 the library multiplies copies in scratch, which start at a multiple of `ALIGNMENT`.
        let bf16 = products == Products::Bf16;
        let planned = Product {
            a: Factor { ptr: if bf16 { 0 } else { product.a.ptr }, ..product.a },
            b: Factor { ptr: if bf16 { 0 } else { product.b.ptr }, ..product.b },
            ..product
        };
        if !self.shared.runtime.multiplies(&planned) {
            return self.own_product(&product);
        }
        let copies = if bf16 { [2 * a.view.len, 2 * b.view.len] } else { [0, 0] };
        let mut scratch = self.scratch(&[WORKSPACE_BYTES, copies[0], copies[1]]);
        let workspace = (scratch.take(WORKSPACE_BYTES), WORKSPACE_BYTES);
        if bf16 {
            product.a = self.rounded(&a, scratch.take(copies[0]));
            product.b = self.rounded(&b, scratch.take(copies[1]));
        }
        // SAFETY: the library takes such matrices; views and scratch are as long as their shapes.
        unsafe { self.multiply(product, workspace) };
    }

    fn grouped_matmul(
        &self,
        products: Products,
        groups: &Groups<Self>,
        x: View<'_, CudaBuf<R>>,
        w: View<'_, CudaBuf<R>>,
        y: ViewMut<'_, CudaBuf<R>>,
    ) {
        self.grouped_rows(products, ["grouped_f32_y", "grouped_tf32_y", "grouped_bf16_y"], groups, x, w, y);
    }

    fn grouped_matmul_dx(
        &self,
        products: Products,
        groups: &Groups<Self>,
        dy: View<'_, CudaBuf<R>>,
        w: View<'_, CudaBuf<R>>,
        dx: ViewMut<'_, CudaBuf<R>>,
    ) {
        self.grouped_rows(products, ["grouped_f32_dx", "grouped_tf32_dx", "grouped_bf16_dx"], groups, dy, w, dx);
    }

    fn grouped_matmul_dw(
        &self,
        products: Products,
        groups: &Groups<Self>,
        dy: View<'_, CudaBuf<R>>,
        x: View<'_, CudaBuf<R>>,
        dw: ViewMut<'_, CudaBuf<R>>,
    ) {
        let experts = groups.local.len();
        let (m, n) = (dy.len / groups.capacity, x.len / groups.capacity);
        assert_eq!(dw.len, experts * m * n, "weights of {experts} experts, ({m}, {n}) each");
        let (kernel, tile) = Self::grouped(products, ["grouped_f32_dw", "grouped_tf32_dw", "grouped_bf16_dw"]);
        let grid = [blocks(n, tile), blocks(m, tile), narrow(experts)];
        let [m, n] = u32s([m, n]);
        let args = [groups.offsets.arg(), dy.arg(), x.arg(), dw.arg(), m, n];
        self.launch(kernel, Launch { grid, threads: THREADS, shared_bytes: 0 }, &args);
    }

    fn embedding(
        &self,
        d: usize,
        ids: &CudaIds<R>,
        first_row: usize,
        table: View<'_, CudaBuf<R>>,
        x: ViewMut<'_, CudaBuf<R>>,
    ) {
        let [first_row, rows, width] = u32s([first_row, table.len / d, d]);
        let args = [ids.arg(), table.arg(), x.arg(), first_row, rows, width];
        self.launch("embedding", per_block(x.len / d, 128), &args);
    }

    fn embedding_backward(
        &self,
        d: usize,
        ids: &CudaIds<R>,
        first_row: usize,
        dx: View<'_, CudaBuf<R>>,
        dtable: ViewMut<'_, CudaBuf<R>>,
    ) {
        let [first_row, tokens, width] = u32s([first_row, dx.len / d, d]);
        let args = [ids.arg(), dx.arg(), dtable.arg(), first_row, tokens, width];
        self.launch("embedding_backward", per_block(dtable.len / d, 256), &args);
    }

    fn rms_norm(
        &self,
        eps: f32,
        x: View<'_, CudaBuf<R>>,
        w: View<'_, CudaBuf<R>>,
        y: ViewMut<'_, CudaBuf<R>>,
        inv_rms: ViewMut<'_, CudaBuf<R>>,
    ) {
        Self::check_norm(&x, &w, inv_rms.len, [y.len, x.len]);
        let [tokens, d] = u32s([inv_rms.len, w.len]);
        let args = [x.arg(), w.arg(), y.arg(), inv_rms.arg(), Arg::F32(eps), tokens, d];
        self.launch("rms_norm", warps(inv_rms.len), &args);
    }

    fn rms_norm_backward(
        &self,
        x: View<'_, CudaBuf<R>>,
        w: View<'_, CudaBuf<R>>,
        inv_rms: View<'_, CudaBuf<R>>,
        dy: View<'_, CudaBuf<R>>,
        dx: ViewMut<'_, CudaBuf<R>>,
        dw: ViewMut<'_, CudaBuf<R>>,
    ) {
        Self::check_norm(&x, &w, inv_rms.len, [dy.len, dx.len]);
        let (num_tokens, width) = (inv_rms.len, w.len);
        let [tokens, d, rows_each] = u32s([num_tokens, width, NORM_ROWS]);
        let args = [x.arg(), w.arg(), inv_rms.arg(), dy.arg(), dx.arg(), tokens, d];
        self.launch("rms_norm_backward", warps(num_tokens), &args);
        let rows = num_tokens.div_ceil(NORM_ROWS);
        let mut scratch = self.scratch(&[4 * rows * width]);
        let parts = Arg::Ptr(scratch.take(4 * rows * width));
        let launch = Launch { grid: [blocks(width, 128), narrow(rows), 1], threads: 128, shared_bytes: 0 };
        self.launch("rms_norm_dw", launch, &[x.arg(), inv_rms.arg(), dy.arg(), parts, rows_each, tokens, d]);
        self.sum_rows(parts, rows, dw.arg(), width, true);
    }

    fn rope(&self, dims: &AttentionDims, turn: Turn, table: View<'_, CudaBuf<R>>, qkv: ViewMut<'_, CudaBuf<R>>) {
        assert_eq!(qkv.len, dims.tokens() * dims.row_len(), "length of qkv");
        let sign = Arg::F32(if turn == Turn::Forward { 1.0 } else { -1.0 });
        let [seq, row_len, turned, head_dim] =
            u32s([dims.seq, dims.row_len(), dims.heads + dims.kv_heads, dims.head_dim]);
        let args = [table.arg(), qkv.arg(), sign, seq, row_len, turned, head_dim];
        self.launch("rope", per_block(dims.tokens(), THREADS), &args);
    }

    fn attention(
        &self,
        products: Products,
        dims: &AttentionDims,
        bounds: Option<&CudaIds<R>>,
        qkv: View<'_, CudaBuf<R>>,
        out: ViewMut<'_, CudaBuf<R>>,
        lse: ViewMut<'_, CudaBuf<R>>,
    ) {
        let tokens = dims.tokens();
        let expected = (tokens * dims.row_len(), tokens * dims.out_len(), tokens * dims.heads);
        assert_eq!((qkv.len, out.len, lse.len), expected, "lengths of qkv, out and lse");
        let (kernel, launch) = attention_launch(Family::Forward, products, dims);
        let args = [qkv.arg(), out.arg(), lse.arg(), optional(bounds)];
        self.launch(kernel, launch, &[&args[..], &dims_of(dims)].concat());
    }

    fn attention_backward(
        &self,
        products: Products,
        dims: &AttentionDims,
        bounds: Option<&CudaIds<R>>,
        qkv: View<'_, CudaBuf<R>>,
        out: View<'_, CudaBuf<R>>,
        lse: View<'_, CudaBuf<R>>,
        dout: View<'_, CudaBuf<R>>,
        dqkv: ViewMut<'_, CudaBuf<R>>,
    ) {
        assert_eq!((qkv.len, dqkv.len), (dims.tokens() * dims.row_len(), qkv.len), "lengths of qkv and dqkv");
        let num = dims.tokens() * dims.heads;
        let mut scratch = self.scratch(&[4 * num]);
        let delta = Arg::Ptr(scratch.take(4 * num));
        let [batch, seq, heads, head_dim] = u32s([dims.batch, dims.seq, dims.heads, dims.head_dim]);
        let args = [out.arg(), dout.arg(), delta, batch, seq, heads, head_dim];
        self.launch("attention_delta", warps(num), &args);
        for family in [Family::Dkv, Family::Dq] {
            let (kernel, launch) = attention_launch(family, products, dims);
            let saved = [qkv.arg(), lse.arg(), delta, dout.arg(), dqkv.arg(), optional(bounds)];
            self.launch(kernel, launch, &[&saved[..], &dims_of(dims)].concat());
        }
    }

    fn route(&self, kept: Option<Kept<'_, Self>>, logits: View<'_, CudaBuf<R>>, routing: &mut Routing<Self>) {
        routing.num_kept = kept.map_or(routing.tokens, |kept| kept.num);
        let (num_tokens, num_experts) = (routing.tokens, routing.experts);
        assert_eq!(logits.len, num_tokens * num_experts, "length of the logits");
        let parts = num_tokens.div_ceil(ROUTE_TOKENS);
        let mut scratch = self.scratch(&[4 * parts * num_experts]);
        let prob_parts = Arg::Ptr(scratch.take(4 * parts * num_experts));
        // SAFETY: `counts` has as many elements.
        unsafe { self.zero(routing.counts.ptr(), 4 * num_experts) };
        let [tokens_each, tokens, experts] = u32s([ROUTE_TOKENS, num_tokens, num_experts]);
        let shared_bytes = 4 * ROUTE_WARPS * num_experts;
        let launch = Launch { grid: [narrow(parts), 1, 1], threads: 32 * ROUTE_WARPS as u32, shared_bytes };
        let choice = [routing.probs.arg(), routing.lse.arg(), routing.chosen.arg(), routing.weights.arg()];
        let kept = optional(kept.map(|kept| kept.rows));
        let args =
            [&[logits.arg(), kept][..], &choice, &[routing.counts.arg(), prob_parts, tokens_each, tokens, experts]];
        self.launch("route", launch, &args.concat());
        self.sum_rows(prob_parts, parts, routing.prob_sums.arg(), num_experts, false);
    }

    fn route_backward(
        &self,
        routing: &Routing<Self>,
        groups: &Groups<Self>,
        loss: RouterLoss,
        dweights: View<'_, CudaBuf<R>>,
        dlogits: ViewMut<'_, CudaBuf<R>>,
    ) {
        let num_kept = routing.num_kept.max(1);
        let z = Arg::F32(2.0 * loss.z / num_kept as f32);
        let balance = Arg::F32(loss.balance * routing.experts as f32 / num_kept as f32);
        let share = Arg::F32(1.0 / (num_kept * TOP_K) as f32);
        let saved = [routing.probs.arg(), routing.lse.arg(), routing.chosen.arg(), routing.weights.arg()];
        let rows = [routing.counts.arg(), groups.positions.arg(), dweights.arg(), dlogits.arg()];
        let args = [&saved[..], &rows, &[z, balance, share], &u32s([routing.tokens, routing.experts])].concat();
        self.launch("route_backward", warps(routing.tokens), &args);
    }

    fn group(&self, routing: &Routing<Self>, groups: &mut Groups<Self>) {
        let local: Range<usize> = groups.local.clone();
        let parts = groups.capacity.div_ceil(THREADS as usize);
        let mut scratch = self.scratch(&[4 * parts * local.len()]);
        let hist = Arg::Ptr(scratch.take(4 * parts * local.len()));
        let [first, experts, capacity, num_parts] = u32s([local.start, local.len(), groups.capacity, parts]);
        let chosen = routing.chosen.arg();
        let with_shared = |words: usize| Launch { shared_bytes: 4 * words, ..per_block(parts, THREADS) };
        self.launch("group_count", with_shared(local.len()), &[chosen, hist, first, experts, capacity]);
        self.launch("group_scan", per_block(1, THREADS), &[hist, groups.offsets.arg(), experts, num_parts]);
        let sorted = [groups.assignments.arg(), groups.positions.arg()];
        let args = [&[chosen, hist][..], &sorted, &[first, experts, capacity]].concat();
        self.launch("group_place", with_shared(THREADS as usize), &args);
    }

    fn gather_rows(&self, groups: &Groups<Self>, x: View<'_, CudaBuf<R>>, rows: ViewMut<'_, CudaBuf<R>>) {
        let [experts, d] = u32s([groups.local.len(), rows.len / groups.capacity]);
        let args = [groups.offsets.arg(), groups.assignments.arg(), x.arg(), rows.arg(), experts, d];
        self.launch("gather_rows", per_block(groups.capacity, 128), &args);
    }

    fn combine_rows(&self, groups: &Groups<Self>, rows: View<'_, CudaBuf<R>>, y: ViewMut<'_, CudaBuf<R>>) {
        let [d] = u32s([rows.len / groups.capacity]);
        let args = [groups.positions.arg(), rows.arg(), y.arg(), d];
        self.launch("combine_rows", per_block(groups.capacity / TOP_K, 128), &args);
    }

    fn swiglu(&self, ff: usize, gate_up: View<'_, CudaBuf<R>>, act: ViewMut<'_, CudaBuf<R>>) {
        assert_eq!(gate_up.len, 2 * act.len, "length of gate_up");
        let [width] = u32s([ff]);
        self.launch("swiglu", per_block(act.len / ff, 128), &[gate_up.arg(), act.arg(), width]);
    }

    fn swiglu_backward(
        &self,
        ff: usize,
        dact: View<'_, CudaBuf<R>>,
        gate_up: ViewMut<'_, CudaBuf<R>>,
        act: ViewMut<'_, CudaBuf<R>>,
    ) {
        assert_eq!((gate_up.len, dact.len), (2 * act.len, act.len), "lengths of gate_up and dact");
        let [width] = u32s([ff]);
        self.launch("swiglu_backward", per_block(act.len / ff, 128), &[dact.arg(), gate_up.arg(), act.arg(), width]);
    }

    fn routed_swiglu(
        &self,
        groups: &Groups<Self>,
        routing: &Routing<Self>,
        gate_up: View<'_, CudaBuf<R>>,
        act: ViewMut<'_, CudaBuf<R>>,
    ) {
        assert_eq!(gate_up.len, 2 * act.len, "length of gate_up");
        let [experts, ff] = u32s([groups.local.len(), act.len / groups.capacity]);
        let rows = [groups.offsets.arg(), groups.assignments.arg(), routing.weights.arg()];
        let args = [&rows[..], &[gate_up.arg(), act.arg(), experts, ff]].concat();
        self.launch("routed_swiglu", per_block(groups.capacity, 128), &args);
    }

    fn routed_swiglu_backward(
        &self,
        groups: &Groups<Self>,
        routing: &Routing<Self>,
        dact: View<'_, CudaBuf<R>>,
        gate_up: ViewMut<'_, CudaBuf<R>>,
        act: ViewMut<'_, CudaBuf<R>>,
        dweights: ViewMut<'_, CudaBuf<R>>,
    ) {
        assert_eq!((gate_up.len, dact.len), (2 * act.len, act.len), "lengths of gate_up and dact");
        let [experts, ff] = u32s([groups.local.len(), act.len / groups.capacity]);
        let rows = [groups.offsets.arg(), groups.assignments.arg(), routing.weights.arg()];
        let args = [&rows[..], &[dact.arg(), gate_up.arg(), act.arg(), dweights.arg(), experts, ff]].concat();
        self.launch("routed_swiglu_backward", per_block(groups.capacity, 128), &args);
    }

    fn cross_entropy_local(
        &self,
        targets: &CudaIds<R>,
        first_row: usize,
        logits: View<'_, CudaBuf<R>>,
        stats: ViewMut<'_, CudaBuf<R>>,
    ) {
        let tokens = stats.len / 3;
        let args = [&[targets.arg(), logits.arg(), stats.arg()][..], &u32s([first_row, logits.len / tokens])].concat();
        self.launch("cross_entropy_local", per_block(tokens, THREADS), &args);
    }

    fn cross_entropy_combine(
        &self,
        stats: View<'_, CudaBuf<R>>,
        lse: ViewMut<'_, CudaBuf<R>>,
        losses: ViewMut<'_, CudaBuf<R>>,
    ) {
        let tokens = lse.len;
        let [ranks, num] = u32s([stats.len / (3 * tokens), tokens]);
        self.launch("cross_entropy_combine", flat(tokens), &[stats.arg(), lse.arg(), losses.arg(), ranks, num]);
    }

    fn cross_entropy_backward(
        &self,
        targets: &CudaIds<R>,
        first_row: usize,
        scale: f32,
        lse: View<'_, CudaBuf<R>>,
        logits: ViewMut<'_, CudaBuf<R>>,
    ) {
        let tokens = lse.len;
        let [first_row, rows] = u32s([first_row, logits.len / tokens]);
        let args = [targets.arg(), lse.arg(), logits.arg(), Arg::F32(scale), first_row, rows];
        self.launch("cross_entropy_backward", per_block(tokens, THREADS), &args);
    }
}
