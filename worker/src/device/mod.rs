//! The operations that the model needs, and the devices that do them.
//!
//! ```text
//!   model/  --(Device: buffers, views, operations)-->  cpu/    the reference: products of our own, and rayon
//!                                                      cuda/   NVIDIA GPUs, through `cudarc`
//! ```
//!
//! [`Device`] is a trait so that the model's code and the tests' body are written once. A buffer is opaque; an
//! operation takes [`View`]s (a range of a buffer) and knows the dims from their lengths where it can. Every operation
//! has its backward beside it.
//!
//! Invariants:
//!
//! - **D-1 order.** The order of every sum depends on shapes (and on which expert a token goes to), never on timing or
//!   on the number of threads: the same arguments give the same bits.
//! - **D-2 storage.** No operation allocates device storage; whoever calls brings the outputs and the scratch.
//! - **D-3 accumulation.** Gradients of parameters are *added* to their output (`+=`); every other output is
//!   overwritten unless its documentation says `+=`.
//!
//! Products round their operands as [`Products`] says and add up in f32; a device without tf32 products multiplies f32. Wrong shapes are bugs and panic. Deliberately absent:
//! errors, autograd, buffers of dtypes other than f32, and shapes at run time.

use std::ops::Range;

pub mod choice;
pub mod cpu;
pub mod cuda;

pub use choice::{Choice, Options};
pub use cpu::{Bf16, Bf16Choice, CpuDevice};
pub use cuda::CudaDevice;
pub use toroid_torus::digest::Digest;
pub use toroid_torus::job::Products;

use toroid_torus::digest::digest;

use crate::comm::nccl::DeviceComm;

/// Experts of one token, as [`toroid_torus::model::TOP_K`].
pub const TOP_K: usize = toroid_torus::model::TOP_K;

/// Row of an assignment whose expert is on another TP rank, see [`Groups::positions`]; expert of a token that is none, see [`Kept`].
pub const NOWHERE: u32 = u32::MAX;

/// Texts that share a sample begin at multiples of so many rows: at a tile of every attention's queries and of its keys.
pub const TEXT_ALIGN: usize = 64;

/// f32 storage on a device.
pub trait Buffer: Sized + Send {
    /// Elements.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn view(&self, range: Range<usize>) -> View<'_, Self> {
        assert!(range.start <= range.end && range.end <= self.len(), "view {range:?} of {} elements", self.len());
        View { buf: self, start: range.start, len: range.len() }
    }
    fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_, Self> {
        assert!(range.start <= range.end && range.end <= self.len(), "view {range:?} of {} elements", self.len());
        ViewMut { start: range.start, len: range.len(), buf: self }
    }
    fn all(&self) -> View<'_, Self> {
        self.view(0..self.len())
    }
    fn all_mut(&mut self) -> ViewMut<'_, Self> {
        self.view_mut(0..self.len())
    }
}

/// Elements `start..start + len` of a buffer, to read.
pub struct View<'a, B> {
    pub buf: &'a B,
    pub start: usize,
    pub len: usize,
}

impl<B> Clone for View<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B> Copy for View<'_, B> {}

/// Elements `start..start + len` of a buffer, to write.
pub struct ViewMut<'a, B> {
    pub buf: &'a mut B,
    pub start: usize,
    pub len: usize,
}

impl<B> ViewMut<'_, B> {
    /// The same elements for a while.
    pub fn reborrow(&mut self) -> ViewMut<'_, B> {
        ViewMut { buf: &mut *self.buf, start: self.start, len: self.len }
    }
}

/// The values that a buffer had when it was made ([`Device::snapshot`]), for any thread. It holds the device's memory while it lives.
pub trait Snapshot: Send + Sync + 'static {
    /// Elements.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Shows elements `range` to `f`; where they are host memory, as they lie there.
    fn with_host<T>(&self, range: Range<usize>, f: impl FnOnce(&[f32]) -> T) -> T;

    fn to_vec(&self) -> Vec<f32> {
        self.with_host(0..self.len(), <[f32]>::to_vec)
    }
}

/// Values that nobody changes.
impl Snapshot for Vec<f32> {
    fn len(&self) -> usize {
        self.len()
    }

    fn with_host<T>(&self, range: Range<usize>, f: impl FnOnce(&[f32]) -> T) -> T {
        f(&self[range])
    }
}

/// A matrix to read: element `(r, c)` is element `r * row_stride + c * col_stride` of the view.
pub struct Mat<'a, B> {
    pub view: View<'a, B>,
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<B> Clone for Mat<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B> Copy for Mat<'_, B> {}

impl<'a, B> Mat<'a, B> {
    /// Row-major `(rows, cols)`.
    pub fn new(view: View<'a, B>, rows: usize, cols: usize) -> Mat<'a, B> {
        assert_eq!(view.len, rows * cols, "a ({rows}, {cols}) matrix over {} elements", view.len);
        Mat { view, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Mat<'a, B> {
        let Mat { view, rows, cols, row_stride, col_stride } = self;
        Mat { view, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// A row-major matrix to write.
pub struct MatMut<'a, B> {
    pub view: ViewMut<'a, B>,
    pub rows: usize,
    pub cols: usize,
}

impl<'a, B> MatMut<'a, B> {
    pub fn new(view: ViewMut<'a, B>, rows: usize, cols: usize) -> MatMut<'a, B> {
        assert_eq!(view.len, rows * cols, "a ({rows}, {cols}) matrix over {} elements", view.len);
        MatMut { view, rows, cols }
    }
}

/// Dims of causal attention with grouped key/value heads. A row of `qkv` holds the query heads, then the key heads,
/// then the value heads of one token: `(batch * seq, row_len)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionDims {
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    /// Divides `heads`; query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl AttentionDims {
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }
    /// Elements of a row of `qkv`.
    pub fn row_len(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    /// Elements of a row of the output.
    pub fn out_len(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Where keys and values of a token are in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePlace {
    pub sequence: usize,
    pub position: usize,
}

impl CachePlace {
    /// `(2, places)`, as [`CachedAttention::cached_attention`] takes them.
    pub fn ids(places: &[CachePlace]) -> Vec<u32> {
        let id = |n: usize| u32::try_from(n).unwrap_or_else(|_| panic!("{n} of a cache; ids count to 2^32"));
        places.iter().map(|place| id(place.sequence)).chain(places.iter().map(|place| id(place.position))).collect()
    }
}

/// Which way [`Device::rope`] turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Forward,
    /// The inverse, which is also the gradient.
    Back,
}

/// Which rows of a micro-batch are tokens, where some are padding.
pub struct Kept<'a, D: Device> {
    /// `(N)`: [`NOWHERE`] at a row that is no token.
    pub rows: &'a D::Ids,
    /// Rows that are tokens.
    pub num: usize,
}

impl<D: Device> Clone for Kept<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for Kept<'_, D> {}

/// What the router decided for the tokens of a micro-batch; `N` tokens, `E` experts (all of them, whatever the TP
/// rank).
pub struct Routing<D: Device> {
    pub tokens: usize,
    /// Those that count: all but padding.
    pub num_kept: usize,
    pub experts: usize,
    /// `(N, E)`: softmax over all experts.
    pub probs: D::Buf,
    /// `(N)`: log-sum-exp of the logits.
    pub lse: D::Buf,
    /// `(N, TOP_K)`: the experts with the largest logits, largest first; ties go to the lower expert.
    pub chosen: D::Ids,
    /// `(N, TOP_K)`: softmax over the chosen logits.
    pub weights: D::Buf,
    /// `(E)`: assignments by expert.
    pub counts: D::Ids,
    /// `(E)`: sum of `probs` over the tokens.
    pub prob_sums: D::Buf,
}

impl<D: Device> Routing<D> {
    pub fn new(device: &D, tokens: usize, experts: usize) -> Routing<D> {
        assert!(experts >= TOP_K, "{experts} experts, each token goes to {TOP_K}");
        Routing {
            tokens,
            num_kept: tokens,
            experts,
            probs: device.alloc(tokens * experts),
            lse: device.alloc(tokens),
            chosen: device.alloc_ids(tokens * TOP_K),
            weights: device.alloc(tokens * TOP_K),
            counts: device.alloc_ids(experts),
            prob_sums: device.alloc(experts),
        }
    }
}

/// The assignments of a micro-batch to a range of experts, sorted by expert and in the order of the tokens within each.
///
/// Assignment `a = token * TOP_K + k`. *Rows* are the sorted order: `R <= capacity = N * TOP_K` of them, expert `e` of
/// the range has rows `offsets[e]..offsets[e + 1]`. Buffers of rows have room for `capacity` rows; those past `R` are
/// never touched.
pub struct Groups<D: Device> {
    pub local: Range<usize>,
    pub capacity: usize,
    /// `(local.len() + 1)`
    pub offsets: D::Ids,
    /// `(capacity)`: assignment of each row.
    pub assignments: D::Ids,
    /// `(capacity)`: row of each assignment, [`NOWHERE`] where its expert is not in the range.
    pub positions: D::Ids,
}

impl<D: Device> Groups<D> {
    pub fn new(device: &D, tokens: usize, local: Range<usize>) -> Groups<D> {
        let capacity = tokens * TOP_K;
        Groups {
            capacity,
            offsets: device.alloc_ids(local.len() + 1),
            assignments: device.alloc_ids(capacity),
            positions: device.alloc_ids(capacity),
            local,
        }
    }
}

/// Coefficients of the router's own loss terms in the gradient, the scale of the micro-batch included. All but one TP
/// rank pass 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterLoss {
    /// Of `mean over kept tokens of lse^2`.
    pub z: f32,
    /// Of `E * sum_e f_e P_e`.
    pub balance: f32,
}

/// How much of a device's memory a place needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// Of all buffers together.
    pub buffer_bytes: u64,
    pub products: Products,
    /// As in [`Device::reserve_scratch`].
    pub operands: usize,
    /// Of each view that is shown to the host at the same time as others.
    pub staging_bytes: [u64; 2],
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What this process holds.
    pub held: u64,
    /// What nobody holds; `None` where that is not to be known.
    pub free: Option<u64>,
}

/// A device has less free memory than a place needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{needed} bytes of the memory of {device} are needed, {free} are free")]
pub struct OutOfMemory {
    pub device: String,
    pub needed: u64,
    pub free: u64,
}

/// One AdamW update. `bias1 = 1 - beta1^(t+1)`, `bias2 = 1 - beta2^(t+1)` for update `t = 0, 1, ...`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub bias1: f64,
    pub bias2: f64,
    /// Multiplies the gradient first (clipping).
    pub grad_scale: f64,
}

/// A device: its storage and its operations. `N` is a number of tokens, `d` the model's width; shapes are row-major.
pub trait Device: Send + Sync + Sized + 'static {
    type Buf: Buffer;
    type Ids: Send;
    /// See [`Device::snapshot`].
    type Snapshot: Snapshot;

    /// What decides the bits of a result with such products: device, kernels, libraries. Equal fingerprints give equal bits.
    fn fingerprint(&self, products: Products) -> String;

    /// Runs `f`, which calls the device often, where that is fastest: on the CPU on one of the device's threads, as each call from outside
    /// would wake one up and wait for it.
    fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        f()
    }

    /// Begins with what was asked. A device may hold operations back to start them together; whoever needs what they make has not to ask for
    /// that, but who turns to something else should.
    fn submit(&self) {}

    /// What moves data between devices without the host, where there is such a thing.
    fn comm(&self) -> Option<&dyn DeviceComm<Self::Buf>> {
        None
    }

    // ------------------------------------------------------------ storage

    /// Reserves all memory that a place needs, before its first step. On a CPU this does nothing: the system gives pages when they are
    /// first touched.
    ///
    /// # Errors
    /// If less is free.
    fn reserve_memory(&self, _needs: &MemoryNeeds) -> Result<(), OutOfMemory> {
        Ok(())
    }
    /// What is held now, for whoever watches.
    fn memory(&self) -> DeviceMemory;
    /// Bytes that were allocated so far, those that are free again included: the difference says what came in between.
    fn allocated_bytes(&self) -> u64;
    /// `len` zeros.
    fn alloc(&self, len: usize) -> Self::Buf;
    /// `len` zeros.
    fn alloc_ids(&self, len: usize) -> Self::Ids;
    /// Device to host; `out` is as long as the view.
    fn read(&self, x: View<'_, Self::Buf>, out: &mut [f32]);
    /// Host to device; `values` is as long as the view.
    fn write(&self, x: ViewMut<'_, Self::Buf>, values: &[f32]);
    /// The first `out.len()` ids.
    fn read_ids(&self, ids: &Self::Ids, out: &mut [u32]);
    /// Replaces the first `values.len()` ids.
    fn write_ids(&self, ids: &mut Self::Ids, values: &[u32]);
    /// Shows the view to `f` as host memory.
    fn with_host<R>(&self, x: View<'_, Self::Buf>, f: impl FnOnce(&[f32]) -> R) -> R;
    /// Lends the view to `f` as host memory; what `f` leaves there is the view's content.
    fn with_host_mut<R>(&self, x: ViewMut<'_, Self::Buf>, f: impl FnOnce(&mut [f32]) -> R) -> R;

    /// Another buffer in the memory of `x`, both to be read, where the device has such: who changes an element of either copies all of them
    /// first, see [`Device::is_shared`].
    fn share(&self, _x: &Self::Buf) -> Option<Self::Buf> {
        None
    }
    /// The values of `x` for another thread: they stay whatever becomes of `x`. Nothing is copied, and nobody waits.
    fn snapshot(&self, x: &Self::Buf) -> Self::Snapshot;
    /// A snapshot or another buffer holds the memory of `x`: who changes an element copies all of them first. A new buffer is cheaper where nothing of
    /// them is to stay.
    fn is_shared(&self, x: &Self::Buf) -> bool;

    // ------------------------------------------------------------ elementwise, sums, optimizer

    /// `y = value`
    fn fill(&self, y: ViewMut<'_, Self::Buf>, value: f32);
    /// `y = x`
    fn copy(&self, x: View<'_, Self::Buf>, y: ViewMut<'_, Self::Buf>);
    /// `y = a + b`
    fn add(&self, a: View<'_, Self::Buf>, b: View<'_, Self::Buf>, y: ViewMut<'_, Self::Buf>);
    /// `y += x`
    fn add_assign(&self, x: View<'_, Self::Buf>, y: ViewMut<'_, Self::Buf>);
    /// `y *= alpha`
    fn scale(&self, alpha: f32, y: ViewMut<'_, Self::Buf>);
    /// Sum in f64.
    fn sum(&self, x: View<'_, Self::Buf>) -> f64;
    /// Sum of squares in f64.
    fn sum_of_squares(&self, x: View<'_, Self::Buf>) -> f64;
    /// Rows of `y (N, w)` where `rows (N)` is [`NOWHERE`] become zeros, whatever was there.
    fn keep_rows(&self, rows: &Self::Ids, num_rows: usize, y: ViewMut<'_, Self::Buf>);
    /// `y[n] *= by[n]`; `by (N)`, `y (N, w)`.
    fn scale_rows(&self, by: View<'_, Self::Buf>, y: ViewMut<'_, Self::Buf>);
    /// No infinity and no NaN.
    fn all_finite(&self, x: View<'_, Self::Buf>) -> bool;

    /// Of the bits of `x`, see [`toroid_torus::digest`]: the same on every device.
    fn digest(&self, x: View<'_, Self::Buf>, salt: u32) -> Digest {
        self.with_host(x, |values| digest(values, 0, salt))
    }

    /// Loshchilov and Hutter, "Decoupled weight decay regularization", as PyTorch does it:
    /// `p -= lr*wd*p; m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g^2; p -= lr/bias1 * m / (sqrt(v)/sqrt(bias2) + eps)`.
    fn adamw(
        &self,
        p: ViewMut<'_, Self::Buf>,
        m: ViewMut<'_, Self::Buf>,
        v: ViewMut<'_, Self::Buf>,
        g: View<'_, Self::Buf>,
        hyper: &AdamW,
    );
    /// The same from `[p, m, v]` before to those after, to the bit: what was before stays.
    fn adamw_into(
        &self,
        before: [View<'_, Self::Buf>; 3],
        after: [ViewMut<'_, Self::Buf>; 3],
        g: View<'_, Self::Buf>,
        hyper: &AdamW,
    );

    // ------------------------------------------------------------ products

    /// Reserves the scratch memory of operations. `operands` is the number of elements of both operands of the largest product. After
    /// it no step allocates (D-2).
    fn reserve_scratch(&self, _products: Products, _operands: usize) {}

    /// `c = alpha * a b + beta * c`; `a (m, k)`, `b (k, n)`, `c (m, n)`. With `beta = 0`, `c` is not read.
    fn matmul(
        &self,
        products: Products,
        alpha: f32,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        beta: f32,
        c: MatMut<'_, Self::Buf>,
    );
    /// For the rows of each expert `y = x w[e]^T`; `x (R, in)`, `w (E_local, out, in)`, `y (R, out)`.
    fn grouped_matmul(
        &self,
        products: Products,
        groups: &Groups<Self>,
        x: View<'_, Self::Buf>,
        w: View<'_, Self::Buf>,
        y: ViewMut<'_, Self::Buf>,
    );
    /// `dx = dy w[e]`; shapes as in [`Device::grouped_matmul`].
    fn grouped_matmul_dx(
        &self,
        products: Products,
        groups: &Groups<Self>,
        dy: View<'_, Self::Buf>,
        w: View<'_, Self::Buf>,
        dx: ViewMut<'_, Self::Buf>,
    );
    /// `dw[e] += dy^T x`; shapes as in [`Device::grouped_matmul`].
    fn grouped_matmul_dw(
        &self,
        products: Products,
        groups: &Groups<Self>,
        dy: View<'_, Self::Buf>,
        x: View<'_, Self::Buf>,
        dw: ViewMut<'_, Self::Buf>,
    );

    // ------------------------------------------------------------ embedding, norm, attention

    /// `x[n] = table[ids[n] - first_row]`, zeros where this rank does not hold the row; `table (rows, d)`, `x (N, d)`.
    fn embedding(
        &self,
        d: usize,
        ids: &Self::Ids,
        first_row: usize,
        table: View<'_, Self::Buf>,
        x: ViewMut<'_, Self::Buf>,
    );
    /// `dtable[ids[n] - first_row] += dx[n]`, tokens in order.
    fn embedding_backward(
        &self,
        d: usize,
        ids: &Self::Ids,
        first_row: usize,
        dx: View<'_, Self::Buf>,
        dtable: ViewMut<'_, Self::Buf>,
    );
    /// `inv_rms = 1 / sqrt(mean(x^2) + eps)`, `y = x * w * inv_rms`; `x, y (N, d)`, `w (d)`, `inv_rms (N)`.
    fn rms_norm(
        &self,
        eps: f32,
        x: View<'_, Self::Buf>,
        w: View<'_, Self::Buf>,
        y: ViewMut<'_, Self::Buf>,
        inv_rms: ViewMut<'_, Self::Buf>,
    );
    /// `dx += d(rms_norm)`, `dw += ...`; `dy, dx (N, d)`.
    fn rms_norm_backward(
        &self,
        x: View<'_, Self::Buf>,
        w: View<'_, Self::Buf>,
        inv_rms: View<'_, Self::Buf>,
        dy: View<'_, Self::Buf>,
        dx: ViewMut<'_, Self::Buf>,
        dw: ViewMut<'_, Self::Buf>,
    );
    /// Rotates the query and key heads of `qkv (N, row_len)` in place, rotate-half; `table (seq, head_dim)` holds the
    /// cosines of a position, then its sines, `head_dim / 2` each.
    fn rope(&self, dims: &AttentionDims, turn: Turn, table: View<'_, Self::Buf>, qkv: ViewMut<'_, Self::Buf>);
    /// `out = softmax(q k^T / sqrt(head_dim), causal) v`; `qkv (N, row_len)`, `out (N, heads * head_dim)`, and the
    /// log-sum-exp of the scores, `lse (batch, heads, seq)`, all that the backward needs besides.
    ///
    /// `bounds (2, N)` says of each row where in its sample the text begins that it is of, and where the next one does: multiples of
    /// [`TEXT_ALIGN`], or the sample's end. A query sees its own text alone, and has the bits that it has where that text begins a sample.
    /// `None`: each sample is one text.
    fn attention(
        &self,
        products: Products,
        dims: &AttentionDims,
        bounds: Option<&Self::Ids>,
        qkv: View<'_, Self::Buf>,
        out: ViewMut<'_, Self::Buf>,
        lse: ViewMut<'_, Self::Buf>,
    );
    /// `dqkv` from `dout`, recomputing the scores block by block (Dao et al., FlashAttention).
    fn attention_backward(
        &self,
        products: Products,
        dims: &AttentionDims,
        bounds: Option<&Self::Ids>,
        qkv: View<'_, Self::Buf>,
        out: View<'_, Self::Buf>,
        lse: View<'_, Self::Buf>,
        dout: View<'_, Self::Buf>,
        dqkv: ViewMut<'_, Self::Buf>,
    );

    // ------------------------------------------------------------ mixture of experts

    /// Chooses experts from `logits (N, E)`. Rows that are not `kept` (`None`: all are) go to no expert ([`NOWHERE`]), and count nowhere: their
    /// `probs`, `lse` and `weights` are zeros.
    fn route(&self, kept: Option<Kept<'_, Self>>, logits: View<'_, Self::Buf>, routing: &mut Routing<Self>);
    /// `dlogits (N, E)` from `dweights (R)` (gradient of each row's weight; rows of other ranks count as 0) and the
    /// router's own losses; zeros at rows that were not kept.
    fn route_backward(
        &self,
        routing: &Routing<Self>,
        groups: &Groups<Self>,
        loss: RouterLoss,
        dweights: View<'_, Self::Buf>,
        dlogits: ViewMut<'_, Self::Buf>,
    );
    /// Sorts the assignments to the experts `groups.local`.
    fn group(&self, routing: &Routing<Self>, groups: &mut Groups<Self>);
    /// `rows[r] = x[token of row r]`; `x (N, d)`, `rows (R, d)`.
    fn gather_rows(&self, groups: &Groups<Self>, x: View<'_, Self::Buf>, rows: ViewMut<'_, Self::Buf>);
    /// `y[n] += sum of the rows of token n`, its assignments in order; `rows (R, d)`, `y (N, d)`. This is the backward
    /// of [`Device::gather_rows`] as well.
    fn combine_rows(&self, groups: &Groups<Self>, rows: View<'_, Self::Buf>, y: ViewMut<'_, Self::Buf>);
    /// `act = silu(gate) * up`; `gate_up (N, 2 ff)` holds gate, then up; `act (N, ff)`.
    fn swiglu(&self, ff: usize, gate_up: View<'_, Self::Buf>, act: ViewMut<'_, Self::Buf>);
    /// Turns `gate_up` into its gradient in place and recomputes `act`; `dact, act (N, ff)`.
    fn swiglu_backward(
        &self,
        ff: usize,
        dact: View<'_, Self::Buf>,
        gate_up: ViewMut<'_, Self::Buf>,
        act: ViewMut<'_, Self::Buf>,
    );
    /// `act = weight * silu(gate) * up` for every row, weighted by the routing: the experts' second product is linear,
    /// so weighting its input weights its output. `gate_up (R, 2 ff)`, `act (R, ff)`.
    fn routed_swiglu(
        &self,
        groups: &Groups<Self>,
        routing: &Routing<Self>,
        gate_up: View<'_, Self::Buf>,
        act: ViewMut<'_, Self::Buf>,
    );
    /// As [`Device::swiglu_backward`], and `dweights (R)`.
    fn routed_swiglu_backward(
        &self,
        groups: &Groups<Self>,
        routing: &Routing<Self>,
        dact: View<'_, Self::Buf>,
        gate_up: ViewMut<'_, Self::Buf>,
        act: ViewMut<'_, Self::Buf>,
        dweights: ViewMut<'_, Self::Buf>,
    );

    // ------------------------------------------------------------ loss

    /// What a rank knows of each token's cross-entropy: `stats (N, 3)` = largest logit, sum of `exp(logit - largest)`,
    /// target's logit or 0 where another rank holds it. `logits (N, rows)` are those of rows `first_row..` of the
    /// vocabulary.
    fn cross_entropy_local(
        &self,
        targets: &Self::Ids,
        first_row: usize,
        logits: View<'_, Self::Buf>,
        stats: ViewMut<'_, Self::Buf>,
    );
    /// `lse (N)` and `losses (N)` from the stats of all ranks, `stats (ranks, N, 3)`, in the order of the ranks.
    fn cross_entropy_combine(
        &self,
        stats: View<'_, Self::Buf>,
        lse: ViewMut<'_, Self::Buf>,
        losses: ViewMut<'_, Self::Buf>,
    );
    /// Turns logits into their gradient in place: `scale * (exp(logit - lse) - [target])`.
    fn cross_entropy_backward(
        &self,
        targets: &Self::Ids,
        first_row: usize,
        scale: f32,
        lse: View<'_, Self::Buf>,
        logits: ViewMut<'_, Self::Buf>,
    );
}

/// A device that text is generated on.
pub trait CachedAttention: Device + Clone {
    /// A row of any operation's result has the same bits whatever other rows there are, and however many.
    fn rows_are_independent(&self) -> bool;

    /// Puts the keys and values of each row of `qkv (N, row_len)` into `cache (batch, seq, 2 * kv_heads * head_dim)`, then leaves in
    /// `out (N, heads * head_dim)` what the row's queries see of its sequence up to itself: as [`Device::attention`], to the bit where rows are
    /// independent. Row `i` is at position `places[1][i]` of sequence `places[0][i]`, `places (2, N)`; no two are at the same. `dims` are those
    /// of the cache.
    fn cached_attention(
        &self,
        products: Products,
        dims: &AttentionDims,
        places: &Self::Ids,
        qkv: View<'_, Self::Buf>,
        cache: ViewMut<'_, Self::Buf>,
        out: ViewMut<'_, Self::Buf>,
    );
}
