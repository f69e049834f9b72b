//! A toy device: every operation hashes its inputs, and fills its outputs with small integers that the hash gives.
//!
//! ```text
//!   y = op(a, b)      hash(op, bits of a, bits of b)  ->  y[i] in 0..16
//!   gradient += ...   the same, 0..8 are added to each element
//!   update            p, m, v = hash(p, m, v, gradient, how many updates came before)
//! ```
//!
//! One wrong bit anywhere changes all that is computed from it, in every later step. Sums of small integers are exact in any order, so
//! a job has the same bits under any number of replicas, and equality with the undisturbed run is T-4 and T-5.
//!
//! Deliberately absent: mathematics. What the operations mean is tested elsewhere, on the devices that do them.

use toroid_torus::cursor::splitmix64;
use toroid_worker::device::cpu::{HostBuf, HostSnapshot};
use toroid_worker::device::*;

/// Storage is the CPU's.
#[derive(Clone)]
pub struct ToyDevice {
    cpu: CpuDevice,
}

impl ToyDevice {
    pub fn new() -> ToyDevice {
        ToyDevice { cpu: CpuDevice::new(1) }
    }
}

type In<'a> = View<'a, HostBuf>;
type Out<'a> = ViewMut<'a, HostBuf>;

fn values<'a>(x: In<'a>) -> &'a [f32] {
    &x.buf.as_slice()[x.start..x.start + x.len]
}

fn values_mut<'a>(y: Out<'a>) -> &'a mut [f32] {
    &mut y.buf.as_mut_slice()[y.start..y.start + y.len]
}

/// Of all that an operation reads.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    fn of(operation: &str) -> Hash {
        Hash(operation.bytes().fold(0, |hash, byte| hash.rotate_left(9) ^ u64::from(byte)))
    }

    fn number(self, n: u64) -> Hash {
        Hash(splitmix64(self.0.rotate_left(17) ^ n))
    }

    /// Four lanes, as one would wait for each product.
    fn floats(self, values: &[f32]) -> Hash {
        const K: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut lanes = [1u64, 2, 3, 4];
        let (chunks, rest) = values.as_chunks::<4>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = (*lane ^ u64::from(value.to_bits())).wrapping_mul(K).rotate_left(29);
            }
        }
        let hash = rest.iter().fold(self, |hash, value| hash.number(value.to_bits().into()));
        lanes.into_iter().fold(hash.number(values.len() as u64), Hash::number)
    }

    fn view(self, x: In<'_>) -> Hash {
        self.floats(values(x))
    }

    fn ids(self, ids: &[u32]) -> Hash {
        ids.iter().fold(self, |hash, id| hash.number((*id).into()))
    }

    fn at(self, i: usize) -> u64 {
        let mixed = (self.0 ^ (i as u64 + 1)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40
    }

    fn fill(self, y: Out<'_>) {
        self.fill_values(values_mut(y));
    }

    fn fill_values(self, y: &mut [f32]) {
        y.iter_mut().enumerate().for_each(|(i, y)| *y = (self.at(i) & 15) as f32);
    }

    fn accumulate(self, y: Out<'_>) {
        values_mut(y).iter_mut().enumerate().for_each(|(i, y)| *y += (self.at(i) & 7) as f32);
    }
}

/// Exact in an f32.
fn updated([p, m, v]: [f32; 3], g: f32, bias1: f64) -> [f32; 3] {
    let hash = Hash(bias1.to_bits()).number(u64::from(p.to_bits()) << 32 | u64::from(m.to_bits()));
    let hash = hash.number(u64::from(v.to_bits()) << 32 | u64::from(g.to_bits()));
    [0, 16, 32].map(|shift| f32::from((hash.0 >> shift) as u16))
}

impl Device for ToyDevice {
    type Buf = HostBuf;
    type Ids = Box<[u32]>;
    type Snapshot = HostSnapshot;

    fn fingerprint(&self, _products: Products) -> String {
        "toy".into()
    }
    fn memory(&self) -> DeviceMemory {
        DeviceMemory::default()
    }
    fn allocated_bytes(&self) -> u64 {
        self.cpu.allocated_bytes()
    }
    fn alloc(&self, len: usize) -> HostBuf {
        self.cpu.alloc(len)
    }
    fn alloc_ids(&self, len: usize) -> Box<[u32]> {
        self.cpu.alloc_ids(len)
    }
    fn read(&self, x: In<'_>, out: &mut [f32]) {
        self.cpu.read(x, out);
    }
    fn write(&self, x: Out<'_>, values: &[f32]) {
        self.cpu.write(x, values);
    }
    fn read_ids(&self, ids: &Box<[u32]>, out: &mut [u32]) {
        self.cpu.read_ids(ids, out);
    }
    fn write_ids(&self, ids: &mut Box<[u32]>, values: &[u32]) {
        self.cpu.write_ids(ids, values);
    }
    fn with_host<R>(&self, x: In<'_>, f: impl FnOnce(&[f32]) -> R) -> R {
        self.cpu.with_host(x, f)
    }
    fn with_host_mut<R>(&self, x: Out<'_>, f: impl FnOnce(&mut [f32]) -> R) -> R {
        self.cpu.with_host_mut(x, f)
    }
    fn share(&self, x: &HostBuf) -> Option<HostBuf> {
        self.cpu.share(x)
    }
    fn snapshot(&self, x: &HostBuf) -> HostSnapshot {
        self.cpu.snapshot(x)
    }
    fn is_shared(&self, x: &HostBuf) -> bool {
        self.cpu.is_shared(x)
    }

    fn fill(&self, y: Out<'_>, value: f32) {
        self.cpu.fill(y, value);
    }
    fn copy(&self, x: In<'_>, y: Out<'_>) {
        self.cpu.copy(x, y);
    }
    fn add(&self, a: In<'_>, b: In<'_>, y: Out<'_>) {
        self.cpu.add(a, b, y);
    }
    fn add_assign(&self, x: In<'_>, y: Out<'_>) {
        self.cpu.add_assign(x, y);
    }
    /// Integers stay what they are.
    fn scale(&self, _: f32, _: Out<'_>) {}
    fn sum(&self, x: In<'_>) -> f64 {
        self.cpu.sum(x)
    }
    fn sum_of_squares(&self, x: In<'_>) -> f64 {
        self.cpu.sum_of_squares(x)
    }
    fn keep_rows(&self, rows: &Box<[u32]>, num_rows: usize, y: Out<'_>) {
        self.cpu.keep_rows(rows, num_rows, y);
    }
    fn scale_rows(&self, by: In<'_>, mut y: Out<'_>) {
        let hash = Hash::of("scale rows").view(by);
        hash.floats(values_mut(y.reborrow())).fill(y);
    }
    fn all_finite(&self, x: In<'_>) -> bool {
        self.cpu.all_finite(x)
    }
    fn digest(&self, x: In<'_>, salt: u32) -> Digest {
        self.cpu.digest(x, salt)
    }

    fn adamw(&self, p: Out<'_>, m: Out<'_>, v: Out<'_>, g: In<'_>, hyper: &AdamW) {
        let (p, m, v) = (values_mut(p), values_mut(m), values_mut(v));
        for (i, g) in values(g).iter().enumerate() {
            [p[i], m[i], v[i]] = updated([p[i], m[i], v[i]], *g, hyper.bias1);
        }
    }
    fn adamw_into(&self, before: [In<'_>; 3], after: [Out<'_>; 3], g: In<'_>, hyper: &AdamW) {
        let (before, [p, m, v]) = (before.map(values), after.map(values_mut));
        for (i, g) in values(g).iter().enumerate() {
            [p[i], m[i], v[i]] = updated(before.map(|x| x[i]), *g, hyper.bias1);
        }
    }

    fn matmul(&self, _: Products, _: f32, a: Mat<'_, HostBuf>, b: Mat<'_, HostBuf>, beta: f32, c: MatMut<'_, HostBuf>) {
        let hash = Hash::of("matmul").view(a.view).view(b.view);
        if beta == 0.0 { hash.fill(c.view) } else { hash.accumulate(c.view) }
    }
    fn grouped_matmul(&self, _: Products, _: &Groups<Self>, x: In<'_>, w: In<'_>, y: Out<'_>) {
        Hash::of("grouped").view(x).view(w).fill(y);
    }
    fn grouped_matmul_dx(&self, _: Products, _: &Groups<Self>, dy: In<'_>, w: In<'_>, dx: Out<'_>) {
        Hash::of("grouped dx").view(dy).view(w).fill(dx);
    }
    fn grouped_matmul_dw(&self, _: Products, _: &Groups<Self>, dy: In<'_>, x: In<'_>, dw: Out<'_>) {
        Hash::of("grouped dw").view(dy).view(x).accumulate(dw);
    }

    fn embedding(&self, _: usize, ids: &Box<[u32]>, first_row: usize, table: In<'_>, x: Out<'_>) {
        Hash::of("embedding").ids(ids).number(first_row as u64).view(table).fill(x);
    }
    fn embedding_backward(&self, _: usize, ids: &Box<[u32]>, first_row: usize, dx: In<'_>, dtable: Out<'_>) {
        Hash::of("embedding back").ids(ids).number(first_row as u64).view(dx).accumulate(dtable);
    }
    fn rms_norm(&self, _: f32, x: In<'_>, w: In<'_>, y: Out<'_>, inv_rms: Out<'_>) {
        let hash = Hash::of("norm").view(x).view(w);
        hash.fill(y);
        hash.number(1).fill(inv_rms);
    }
    fn rms_norm_backward(&self, x: In<'_>, w: In<'_>, inv_rms: In<'_>, dy: In<'_>, dx: Out<'_>, dw: Out<'_>) {
        let hash = Hash::of("norm back").view(x).view(w).view(inv_rms).view(dy);
        hash.accumulate(dx);
        hash.number(1).accumulate(dw);
    }
    fn rope(&self, _: &AttentionDims, turn: Turn, table: In<'_>, mut qkv: Out<'_>) {
        let hash = Hash::of("rope").number(u64::from(turn == Turn::Back)).view(table);
        hash.floats(values_mut(qkv.reborrow())).fill(qkv);
    }
    fn attention(
        &self,
        _: Products,
        _: &AttentionDims,
        _: Option<&Box<[u32]>>,
        qkv: In<'_>,
        out: Out<'_>,
        lse: Out<'_>,
    ) {
        let hash = Hash::of("attention").view(qkv);
        hash.fill(out);
        hash.number(1).fill(lse);
    }
    fn attention_backward(
        &self,
        _: Products,
        _: &AttentionDims,
        _: Option<&Box<[u32]>>,
        qkv: In<'_>,
        out: In<'_>,
        lse: In<'_>,
        dout: In<'_>,
        dqkv: Out<'_>,
    ) {
        Hash::of("attention back").view(qkv).view(out).view(lse).view(dout).fill(dqkv);
    }

    fn route(&self, _: Option<Kept<'_, Self>>, logits: In<'_>, routing: &mut Routing<Self>) {
        let hash = Hash::of("route").view(logits);
        let experts = routing.experts as u64;
        routing.counts.fill(0);
        for (token, chosen) in routing.chosen.chunks_exact_mut(TOP_K).enumerate() {
            let first = hash.at(token) % experts;
            let second = (first + 1 + hash.at(token + routing.tokens) % (experts - 1)) % experts;
            for (slot, expert) in chosen.iter_mut().zip([first, second]) {
                *slot = expert as u32;
                routing.counts[expert as usize] += 1;
            }
        }
        let outputs = [&mut routing.probs, &mut routing.lse, &mut routing.weights, &mut routing.prob_sums];
        (1..).zip(outputs).for_each(|(n, out)| hash.number(n).fill(out.all_mut()));
    }
    fn route_backward(
        &self,
        routing: &Routing<Self>,
        _: &Groups<Self>,
        loss: RouterLoss,
        dweights: In<'_>,
        dlogits: Out<'_>,
    ) {
        // One TP rank speaks of the losses.
        let speaks = u64::from(loss.z != 0.0 || loss.balance != 0.0);
        Hash::of("route back").number(speaks).ids(&routing.chosen).view(dweights).fill(dlogits);
    }
    fn group(&self, _: &Routing<Self>, groups: &mut Groups<Self>) {
        groups.offsets.fill(0);
        groups.assignments.fill(0);
        groups.positions.fill(NOWHERE);
    }
    fn gather_rows(&self, groups: &Groups<Self>, x: In<'_>, rows: Out<'_>) {
        Hash::of("gather").number(groups.local.start as u64).view(x).fill(rows);
    }
    fn combine_rows(&self, groups: &Groups<Self>, rows: In<'_>, y: Out<'_>) {
        Hash::of("combine").number(groups.local.start as u64).view(rows).accumulate(y);
    }
    fn swiglu(&self, _: usize, gate_up: In<'_>, act: Out<'_>) {
        Hash::of("swiglu").view(gate_up).fill(act);
    }
    fn swiglu_backward(&self, _: usize, dact: In<'_>, mut gate_up: Out<'_>, act: Out<'_>) {
        let hash = Hash::of("swiglu back").view(dact).floats(values_mut(gate_up.reborrow()));
        hash.fill(gate_up);
        hash.number(1).fill(act);
    }
    fn routed_swiglu(&self, _: &Groups<Self>, routing: &Routing<Self>, gate_up: In<'_>, act: Out<'_>) {
        Hash::of("routed").ids(&routing.chosen).view(gate_up).fill(act);
    }
    fn routed_swiglu_backward(
        &self,
        _: &Groups<Self>,
        routing: &Routing<Self>,
        dact: In<'_>,
        mut gate_up: Out<'_>,
        act: Out<'_>,
        dweights: Out<'_>,
    ) {
        let hash = Hash::of("routed back").ids(&routing.chosen).view(dact).floats(values_mut(gate_up.reborrow()));
        hash.fill(gate_up);
        hash.number(1).fill(act);
        hash.number(2).fill(dweights);
    }

    fn cross_entropy_local(&self, targets: &Box<[u32]>, first_row: usize, logits: In<'_>, stats: Out<'_>) {
        Hash::of("loss").ids(targets).number(first_row as u64).view(logits).fill(stats);
    }
    fn cross_entropy_combine(&self, stats: In<'_>, lse: Out<'_>, losses: Out<'_>) {
        let hash = Hash::of("combine loss").view(stats);
        hash.fill(lse);
        hash.number(1).fill(losses);
    }
    fn cross_entropy_backward(&self, targets: &Box<[u32]>, first_row: usize, _: f32, lse: In<'_>, mut logits: Out<'_>) {
        let hash = Hash::of("loss back").ids(targets).number(first_row as u64).view(lse);
        hash.floats(values_mut(logits.reborrow())).fill(logits);
    }
}

impl CachedAttention for ToyDevice {
    /// Most operations hash all rows at once.
    fn rows_are_independent(&self) -> bool {
        false
    }

    /// Of each row its queries, and what is in the cache of its sequence up to itself: what lies after it, of whom soever, is not seen.
    fn cached_attention(
        &self,
        _: Products,
        dims: &AttentionDims,
        places: &Box<[u32]>,
        qkv: In<'_>,
        cache: Out<'_>,
        out: Out<'_>,
    ) {
        let (queries, kv_len) = (dims.out_len(), 2 * dims.kv_heads * dims.head_dim);
        let rows = values(qkv).chunks_exact(dims.row_len());
        let (sequences, positions) = places.split_at(rows.len());
        let first = |row: usize| sequences[row] as usize * dims.seq * kv_len;
        let end = |row: usize| first(row) + (positions[row] as usize + 1) * kv_len;
        let cache = values_mut(cache);
        for (i, row) in rows.clone().enumerate() {
            cache[end(i) - kv_len..end(i)].copy_from_slice(&row[queries..]);
        }
        for (i, (row, out)) in rows.zip(values_mut(out).chunks_exact_mut(queries)).enumerate() {
            let hash = Hash::of("cached attention").floats(&row[..queries]).floats(&cache[first(i)..end(i)]);
            hash.fill_values(out);
        }
    }
}
