//! A GPU against its limits: what it copies and multiplies at most, each kernel's time over its floor, and whole steps.
//!
//! ```text
//! cargo run --release -p toroid-worker --example bench_gpu -- [preset] [f32|tf32|bf16] [steps] [on|off]
//! cargo run --release -p toroid-worker --example bench_gpu -- --probe      only whether there is a GPU that works, and which
//! ```
//!
//! The last argument is whether whole steps use CUDA graphs; without it they are timed without, then with them.
//!
//! The *floor* of a kernel is the larger of its bytes (each input read once, each output written once) over the measured copy bandwidth,
//! and its operations over the measured rate of a large product of the same kind. Times are medians of events on the device after a
//! warm-up; inputs are random numbers, never zeros.

use std::process::ExitCode;
use std::time::Instant;

use toroid_torus::geometry::Place;
use toroid_torus::job::{self, JobSpec};
use toroid_torus::partition::{self, Partition};
use toroid_torus::pipeline::InFlight;
use toroid_worker::device::cuda::{CudaBuf, Graphs, Runtime};
use toroid_worker::device::{
    AdamW, AttentionDims, Buffer, CudaDevice, Device, Groups, Mat, MatMut, Products, RouterLoss, Routing, TOP_K, Turn,
};
use toroid_worker::model::{Alone, Input, Stage};

type Buf = CudaBuf<toroid_worker::device::cuda::Gpu>;

fn main() -> ExitCode {
    run().map_or_else(
        |error| {
            eprintln!("bench_gpu: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let open = |graphs| CudaDevice::open(0, &std::env::temp_dir().join("toroid-gpu-check"), graphs);
    if args.first().is_some_and(|arg| arg == "--probe") {
        println!("{}", open(Graphs::On)?.fingerprint(Products::F32));
        return Ok(());
    }
    let preset = args.first().map_or("1b", String::as_str);
    let products = args.get(1).map_or("bf16", String::as_str);
    let steps = args.get(2).map_or(Ok(5), |t| t.parse::<std::num::NonZeroUsize>().map(Into::into))?;
    let ways = args.get(3).map_or(Ok(vec![Graphs::Off, Graphs::On]), |t| t.parse().map(|graphs| vec![graphs]))?;
    let text = format!("preset = \"{preset}\"\nsteps = 1000\nproducts = \"{products}\"\n[data]\npath = \"none\"\n");
    let spec = job::parse(&text)?;
    partition::check(&spec.model, &spec.shape)?;
    // An operation that is timed alone is a call of its own.
    let device = open(Graphs::Off)?;
    println!("{}\n{}", device.runtime().name(), device.fingerprint(Products::F32));
    let bench = Bench::new(device.clone(), spec.products);
    println!(
        "ceilings: copy {:.0} GB/s, product {:.1} TFLOP/s ({products})\n",
        bench.bytes_per_s / 1e9,
        bench.flops_per_s / 1e12
    );
    bench.kernels(&spec);
    let flops_per_s = bench.flops_per_s;
    drop((bench, device));
    let tokens = spec.batch.num_micro_batches * spec.batch.micro_batch * spec.model.seq;
    println!(
        "{preset}, {} parameters, {} micro-batches of {} samples of {} tokens",
        partition::partition(&spec.model, &spec.shape, 0, 0).len,
        spec.batch.num_micro_batches,
        spec.batch.micro_batch,
        spec.model.seq
    );
    for graphs in ways {
        let device = open(graphs)?;
        let rate = tokens as f64 / whole_steps(&device, &spec, steps);
        let (of_ceiling, counts) = (100.0 * rate * flops_per_token(&spec) / flops_per_s, device.graph_counts());
        println!("CUDA graphs {graphs}: {rate:.0} tokens/s, {of_ceiling:.1}% of the product ceiling; {counts:?}");
    }
    Ok(())
}

/// The middle one.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Numbers between -0.5 and 0.5.
fn random(len: usize) -> Vec<f32> {
    let mut state = len as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

struct Bench {
    device: CudaDevice,
    products: Products,
    bytes_per_s: f64,
    flops_per_s: f64,
}

impl Bench {
    fn new(device: CudaDevice, products: Products) -> Bench {
        let mut bench = Bench { device, products, bytes_per_s: 0.0, flops_per_s: 0.0 };
        let len = 256 << 20;
        let (from, mut to) = (bench.filled(len), bench.device.alloc(len));
        let seconds = bench.time(|device| device.copy(from.all(), to.all_mut()));
        bench.bytes_per_s = 8.0 * len as f64 / seconds;
        drop((from, to));
        let n = 8192;
        let (a, b, mut c) = (bench.filled(n * n), bench.filled(n * n), bench.device.alloc(n * n));
        let seconds = bench.time(|device| {
            let (a, b) = (Mat::new(a.all(), n, n), Mat::new(b.all(), n, n).t());
            device.matmul(products, 1.0, a, b, 0.0, MatMut::new(c.all_mut(), n, n));
        });
        bench.flops_per_s = 2.0 * (n as f64).powi(3) / seconds;
        bench
    }

    fn filled(&self, len: usize) -> Buf {
        let mut buf = self.device.alloc(len);
        self.device.write(buf.all_mut(), &random(len));
        buf
    }

    /// Seconds of `f` on the device: the median of 15 after 3 to warm up.
    fn time(&self, mut f: impl FnMut(&CudaDevice)) -> f64 {
        let mut once = || f64::from(self.device.runtime().elapsed_ms(|| f(&self.device))) / 1e3;
        let times: Vec<f64> = (0..18).map(|_| once()).skip(3).collect();
        median(times)
    }

    /// One row of the table. `words`: f32 read and written once; `flops`: of products.
    fn row(&self, name: &str, words: usize, flops: f64, f: impl FnMut(&CudaDevice)) {
        let seconds = self.time(f);
        let (by_bytes, by_flops) = (4.0 * words as f64 / self.bytes_per_s, flops / self.flops_per_s);
        let (floor, limit) = if by_bytes > by_flops { (by_bytes, "bytes") } else { (by_flops, "products") };
        println!("| {name} | {:.1} | {:.1} | {limit} | {:.2} |", seconds * 1e6, floor * 1e6, seconds / floor);
    }

    /// Each operation at the sizes of one micro-batch of the job.
    fn kernels(&self, spec: &JobSpec) {
        println!("| operation | microseconds | floor | limited by | over the floor |\n|---|---|---|---|---|");
        self.vectors();
        self.layers(spec);
        self.attention(spec);
        self.experts(spec);
        self.loss(spec);
        println!();
    }

    fn vectors(&self) {
        let n = 64 << 20;
        let (x, mut y) = (self.filled(n), self.filled(n));
        self.row("add_assign", 3 * n, 0.0, |device| device.add_assign(x.all(), y.all_mut()));
        self.row("fill", n, 0.0, |device| device.fill(y.all_mut(), 0.5));
        self.row("sum of squares, with its read", n, 0.0, |device| {
            device.sum_of_squares(x.all());
        });
        let (mut p, mut m) = (self.filled(n), self.filled(n));
        device_adamw(self, n, &x, [&mut p, &mut m, &mut y]);
    }

    fn layers(&self, spec: &JobSpec) {
        let (model, tokens) = (&spec.model, spec.batch.micro_batch * spec.model.seq);
        let d = model.d_model;
        let (x, w, dy) = (self.filled(tokens * d), self.filled(d), self.filled(tokens * d));
        let (mut y, mut inv_rms, mut dw) = (self.filled(tokens * d), self.device.alloc(tokens), self.filled(d));
        let n = tokens * d;
        self.row("rms_norm", 2 * n, 0.0, |device| {
            device.rms_norm(1e-6, x.all(), w.all(), y.all_mut(), inv_rms.all_mut());
        });
        self.row("rms_norm_backward", 4 * n, 0.0, |device| {
            device.rms_norm_backward(x.all(), w.all(), inv_rms.all(), dy.all(), y.all_mut(), dw.all_mut());
        });
        let (wqkv, out) = (self.filled(3 * d * d), 3 * d);
        let mut qkv = self.filled(tokens * out);
        self.row("product (N, d) (d, 3d)", n + 3 * d * d + tokens * out, 2.0 * (tokens * d * out) as f64, |device| {
            let (a, b) = (Mat::new(x.all(), tokens, d), Mat::new(wqkv.all(), out, d).t());
            device.matmul(self.products, 1.0, a, b, 0.0, MatMut::new(qkv.all_mut(), tokens, out));
        });
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 2_654_435 % model.vocab) as u32).collect();
        let mut ids_buf = self.device.alloc_ids(tokens);
        self.device.write_ids(&mut ids_buf, &ids);
        let mut table = self.filled(model.vocab * d);
        self.row("embedding", 2 * n, 0.0, |device| device.embedding(d, &ids_buf, 0, table.all(), y.all_mut()));
        self.row("embedding_backward", 3 * n, 0.0, |device| {
            device.embedding_backward(d, &ids_buf, 0, dy.all(), table.all_mut());
        });
    }

    fn attention(&self, spec: &JobSpec) {
        let model = &spec.model;
        let dims = AttentionDims {
            batch: spec.batch.micro_batch,
            seq: model.seq,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
        };
        let (tokens, row, out) = (dims.tokens(), dims.row_len(), dims.out_len());
        let (mut qkv, table) = (self.filled(tokens * row), self.filled(dims.seq * dims.head_dim));
        let turned = tokens * (dims.heads + dims.kv_heads) * dims.head_dim;
        self.row("rope", 2 * turned, 0.0, |device| device.rope(&dims, Turn::Forward, table.all(), qkv.all_mut()));
        let (mut o, mut lse) = (self.device.alloc(tokens * out), self.device.alloc(tokens * dims.heads));
        // Half of the scores are masked.
        let product = 2.0 * (tokens * dims.heads * dims.seq * dims.head_dim) as f64 / 2.0;
        self.row("attention", tokens * (row + out), 2.0 * product, |device| {
            device.attention(self.products, &dims, None, qkv.all(), o.all_mut(), lse.all_mut());
        });
        let (dout, mut dqkv) = (self.filled(tokens * out), self.device.alloc(tokens * row));
        self.row("attention_backward", tokens * (2 * row + 2 * out), 5.0 * product, |device| {
            let (o, lse, dout) = (o.all(), lse.all(), dout.all());
            device.attention_backward(self.products, &dims, None, qkv.all(), o, lse, dout, dqkv.all_mut());
        });
    }

    fn experts(&self, spec: &JobSpec) {
        let (model, tokens) = (&spec.model, spec.batch.micro_batch * spec.model.seq);
        let (d, ff, experts, rows) = (model.d_model, model.ff, model.experts, tokens * TOP_K);
        let device = &self.device;
        let logits = self.filled(tokens * experts);
        let (mut routing, mut groups) =
            (Routing::new(device, tokens, experts), Groups::new(device, tokens, 0..experts));
        self.row("route", 2 * tokens * experts, 0.0, |device| device.route(None, logits.all(), &mut routing));
        self.row("group", 3 * rows, 0.0, |device| device.group(&routing, &mut groups));
        let (x, mut gathered) = (self.filled(tokens * d), self.device.alloc(rows * d));
        self.row("gather_rows", 2 * rows * d, 0.0, |device| device.gather_rows(&groups, x.all(), gathered.all_mut()));
        let (w13, mut gate_up) = (self.filled(experts * 2 * ff * d), self.device.alloc(rows * 2 * ff));
        let (flops, weights) = (2.0 * (rows * d * 2 * ff) as f64, experts * 2 * ff * d);
        let words = rows * d + weights + rows * 2 * ff;
        self.row("grouped_matmul w13", words, flops, |device| {
            device.grouped_matmul(self.products, &groups, gathered.all(), w13.all(), gate_up.all_mut());
        });
        let (dy, mut dx, mut dw) = (self.filled(rows * 2 * ff), self.device.alloc(rows * d), self.filled(weights));
        self.row("grouped_matmul_dx w13", words, flops, |device| {
            device.grouped_matmul_dx(self.products, &groups, dy.all(), w13.all(), dx.all_mut());
        });
        self.row("grouped_matmul_dw w13", words + weights, flops, |device| {
            device.grouped_matmul_dw(self.products, &groups, dy.all(), gathered.all(), dw.all_mut());
        });
        let (mut act, dact, mut dweights) =
            (self.device.alloc(rows * ff), self.filled(rows * ff), self.device.alloc(rows));
        self.row("routed_swiglu", 3 * rows * ff, 0.0, |device| {
            device.routed_swiglu(&groups, &routing, gate_up.all(), act.all_mut());
        });
        self.row("routed_swiglu_backward", 6 * rows * ff, 0.0, |device| {
            let (gate_up, act, dweights) = (gate_up.all_mut(), act.all_mut(), dweights.all_mut());
            device.routed_swiglu_backward(&groups, &routing, dact.all(), gate_up, act, dweights);
        });
        let mut y = self.filled(tokens * d);
        self.row("combine_rows", (rows + 2 * tokens) * d, 0.0, |device| {
            device.combine_rows(&groups, dx.all(), y.all_mut());
        });
        let mut dlogits = self.device.alloc(tokens * experts);
        let loss = RouterLoss { z: 1e-3, balance: 1e-2 };
        self.row("route_backward", 2 * tokens * experts, 0.0, |device| {
            device.route_backward(&routing, &groups, loss, dweights.all(), dlogits.all_mut());
        });
    }

    fn loss(&self, spec: &JobSpec) {
        let (tokens, vocab) = (spec.batch.micro_batch * spec.model.seq, spec.model.vocab);
        let mut targets = self.device.alloc_ids(tokens);
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 31 % vocab) as u32).collect();
        self.device.write_ids(&mut targets, &ids);
        let mut logits = self.filled(tokens * vocab);
        let [mut stats, mut lse, mut losses] = [3 * tokens, tokens, tokens].map(|n| self.device.alloc(n));
        self.row("cross_entropy_local", tokens * vocab, 0.0, |device| {
            device.cross_entropy_local(&targets, 0, logits.all(), stats.all_mut());
        });
        self.device.cross_entropy_combine(stats.all(), lse.all_mut(), losses.all_mut());
        self.row("cross_entropy_backward", 2 * tokens * vocab, 0.0, |device| {
            device.cross_entropy_backward(&targets, 0, 1e-4, lse.all(), logits.all_mut());
        });
    }
}

fn hyper(grad_scale: f64) -> AdamW {
    AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, bias1: 0.1, bias2: 0.05, grad_scale }
}

fn device_adamw(bench: &Bench, n: usize, g: &Buf, [p, m, v]: [&mut Buf; 3]) {
    // The second moment is never negative.
    bench.device.fill(v.all_mut(), 0.5);
    bench.row("adamw", 7 * n, 0.0, |device| {
        device.adamw(p.all_mut(), m.all_mut(), v.all_mut(), g.all(), &hyper(1.0));
    });
}

/// Operations of products for a token, forward and backward: 6 for each weight that it meets, and causal attention.
fn flops_per_token(spec: &JobSpec) -> f64 {
    let m = &spec.model;
    let attention = (m.heads + 2 * m.kv_heads) * m.head_dim * m.d_model + m.heads * m.head_dim * m.d_model;
    let experts = (TOP_K + 1) * 3 * m.ff * m.d_model + m.experts * m.d_model;
    let weights = m.layers * (attention + experts) + m.vocab * m.d_model;
    let scores = m.layers * m.heads * m.head_dim * m.seq / 2;
    6.0 * weights as f64 + 12.0 * scores as f64
}

/// Values spread like the initial ones; which, does not matter to the time.
fn initial_values(partition: &Partition) -> Vec<f32> {
    let mut values = random(partition.padded_len);
    for slice in &partition.slices {
        let is_norm = slice.global_shape.len() == 1;
        values[slice.offset..slice.offset + slice.len]
            .iter_mut()
            .for_each(|v| *v = if is_norm { 1.0 } else { 0.07 * *v });
    }
    values
}

/// Seconds of a whole step on one place: all micro-batches, the gradient's norm, AdamW.
fn whole_steps(device: &CudaDevice, spec: &JobSpec, steps: usize) -> f64 {
    let place = Place { tp: 0, pp: 0, dp: 0 };
    let partition = partition::partition(&spec.model, &spec.shape, 0, 0);
    let mut stage =
        Stage::new(device.clone(), spec, &spec.shape, place, &partition, InFlight { micro_batches: 1, split: 0 });
    device.write(stage.params_mut().all_mut(), &initial_values(&partition));
    let [mut gradients, mut m, mut v] = [0; 3].map(|_| device.alloc(partition.padded_len));
    let (num, tokens) = (spec.batch.num_micro_batches, spec.batch.micro_batch * spec.model.seq);
    let mut step = || {
        let start = Instant::now();
        for i in 0..num {
            let text: Vec<u32> = (0..=tokens).map(|n| ((n * n * 7 + n * 13 + i * 31) % 256) as u32).collect();
            let Ok(_) = stage.forward(0, Input::Tokens(&text[..tokens]), Some(&text[1..]), &mut Alone, None);
            let Ok(()) = stage.backward(0, None, 1.0 / num as f32, &mut Alone, None);
        }
        let norm = device.sum_of_squares(stage.grads().all()).sqrt();
        std::mem::swap(stage.grads_mut(), &mut gradients);
        let params = stage.params_mut().all_mut();
        device.adamw(params, m.all_mut(), v.all_mut(), gradients.all(), &hyper(spec.optimizer.clip_scale(norm)));
        stage.zero_grads();
        // A read waits for all that was launched.
        assert!(device.sum(stage.params().view(0..1)).is_finite(), "the parameters are numbers");
        start.elapsed().as_secs_f64()
    };
    // The first time calls are new, the second time graphs are made.
    for _ in 0..2 {
        step();
    }
    median((0..steps).map(|_| step()).collect())
}
