//! `toroid bench products`: the share of the machine's peak that each kind of product of a step reaches, at the shapes of a micro-batch.
//!
//! ```text
//!   round:  1024^3 | qkv y, dx, dw | o y, dx, dw | ... | attention forward, backward      each share is against this round's 1024^3
//! ```
//!
//! All is in time that threads ran, and a figure is the median of the rounds: other work on the machine, and a processor that changes its frequency,
//! meet both alike. Buffers are as cold as a round leaves them.

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use toroid_torus::job::Products;
use toroid_torus::model::{ModelConfig, TOP_K};
use toroid_worker::device::{
    AttentionDims, Bf16, Bf16Choice, Buffer as _, CpuDevice, Device as _, Groups, Mat, MatMut, Routing,
};

use super::median;
use super::step::{Instants, PEAK_SIDE, name, products};
use crate::daemon::default_cache;
use crate::format::table;
use crate::local::positive;
use crate::output::FormatArgs;

/// Samples of a micro-batch, as in `bench step`.
const SAMPLES: usize = 4;
/// A kind is repeated within a round until it has run for so long.
const LEAST: Duration = Duration::from_millis(4);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sizes of the model
    #[arg(long, value_delimiter = ',', default_value = "small", value_name = "PRESET,...")]
    preset: Vec<String>,
    /// Compute threads
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,...", value_parser = positive)]
    threads: Vec<usize>,
    /// Rounding of the operands of products
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16", value_name = "KIND,...", value_parser = products)]
    products: Vec<Products>,
    /// How products of bf16 are computed, as in `bench step`
    #[arg(long, env = "TOROID_BF16", default_value_t, value_name = "WAY")]
    bf16: Bf16Choice,
    /// Times that each is measured
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = positive)]
    rounds: usize,
    #[command(flatten)]
    format: FormatArgs,
}

/// One kind of product in one combination.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    preset: String,
    threads: usize,
    products: Products,
    /// By what they are computed: for bf16 `amx`, `avx512` or `f32`, which is after rounding.
    way: String,
    kind: &'static str,
    /// `y`, `dx` or `dw` of a linear layer, `forward` or `backward` of attention.
    pass: &'static str,
    /// Rows, outputs and inputs of a linear layer; samples, tokens, heads and their width of attention.
    shape: String,
    /// 10^9 operations a second that threads ran.
    gflops_per_cpu: f64,
    /// Of the product of 1024^3 in the same round.
    share_of_peak: f64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut all = Vec::new();
    for preset in &args.preset {
        let model = ModelConfig::preset(preset).with_context(|| format!("there is no preset `{preset}`"))?;
        for (&products, &threads) in args.products.iter().flat_map(|p| args.threads.iter().map(move |t| (p, t))) {
            let device = CpuDevice::open(threads, args.bf16, &default_cache()).context("compute on the CPU")?;
            let way = if products == Products::Bf16 { device.bf16() } else { Bf16::F32 };
            let found = device.enter(|| measure(&device, &model, products, args.rounds));
            all.extend(found.into_iter().map(|Found { kind, pass, shape, gflops_per_cpu, share_of_peak }| {
                let (preset, way) = (preset.clone(), way.to_string());
                Figures { preset, threads, products, way, kind, pass, shape, gflops_per_cpu, share_of_peak }
            }));
        }
    }
    args.format.answer(&all, text(&all))?;
    Ok(ExitCode::SUCCESS)
}

/// See [`Figures`].
struct Found {
    kind: &'static str,
    pass: &'static str,
    shape: String,
    gflops_per_cpu: f64,
    share_of_peak: f64,
}

/// A product with operands of its own.
struct Product {
    kind: &'static str,
    pass: &'static str,
    shape: String,
    /// 10^9.
    operations: f64,
    compute: Box<dyn FnMut(&CpuDevice)>,
}

impl Product {
    /// 10^9 operations a second that threads ran.
    fn rate(&mut self, device: &CpuDevice) -> f64 {
        let (start, mut times) = (Instants::now(), 0.0);
        loop {
            (self.compute)(device);
            times += 1.0;
            let ran = Instants::now().cpu.saturating_sub(start.cpu);
            if ran >= LEAST {
                return times * self.operations / ran.as_secs_f64();
            }
        }
    }
}

fn measure(device: &CpuDevice, model: &ModelConfig, products: Products, rounds: usize) -> Vec<Found> {
    let mut peak = Product {
        kind: "peak",
        pass: "y",
        shape: String::new(),
        operations: 2.0 * (PEAK_SIDE as f64).powi(3) / 1e9,
        compute: matmul(device, products, Pass::Y, [PEAK_SIDE; 3]),
    };
    let mut all = of_step(device, model, products);
    // The first round packs, maps pages and asks the processor for its frequency.
    let mut rates: Vec<Vec<[f64; 2]>> = vec![Vec::new(); all.len()];
    for round in 0..=rounds {
        let of_peak = peak.rate(device);
        for (product, rates) in all.iter_mut().zip(&mut rates) {
            let rate = product.rate(device);
            if round > 0 {
                rates.push([rate, rate / of_peak]);
            }
        }
    }
    let found = |(Product { kind, pass, shape, .. }, rates): (Product, Vec<[f64; 2]>)| {
        let [gflops_per_cpu, share_of_peak] = [0, 1].map(|which| median(rates.iter().map(|rate| rate[which])));
        Found { kind, pass, shape, gflops_per_cpu, share_of_peak }
    };
    all.into_iter().zip(rates).map(found).collect()
}

/// What is computed of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// `y = x w^T`
    Y,
    /// `dx = dy w`
    Dx,
    /// `dw += dy^T x`
    Dw,
}

impl Pass {
    const ALL: [Pass; 3] = [Pass::Y, Pass::Dx, Pass::Dw];

    fn name(self) -> &'static str {
        match self {
            Pass::Y => "y",
            Pass::Dx => "dx",
            Pass::Dw => "dw",
        }
    }
}

/// The products of a step that read or write weights, and attention.
fn of_step(device: &CpuDevice, model: &ModelConfig, products: Products) -> Vec<Product> {
    let ModelConfig { d_model: d, heads, kv_heads, head_dim, experts, ff, seq, vocab, .. } = *model;
    let tokens = SAMPLES * seq;
    let dense = [
        ("qkv", (heads + 2 * kv_heads) * head_dim, d),
        ("o", d, heads * head_dim),
        ("shared gate, up", 2 * ff, d),
        ("shared down", d, ff),
        ("head", vocab, d),
    ];
    let mut all = Vec::new();
    let linear = |kind, pass: Pass, rows: usize, [out, input]: [usize; 2], compute| {
        let operations = 2.0 * (rows * out * input) as f64 / 1e9;
        Product { kind, pass: pass.name(), shape: format!("{rows} x {out} x {input}"), operations, compute }
    };
    for (kind, out, input) in dense {
        for pass in Pass::ALL {
            let compute = matmul(device, products, pass, [tokens, out, input]);
            all.push(linear(kind, pass, tokens, [out, input], compute));
        }
    }
    let groups = Rc::new(groups(device, tokens, experts));
    for (kind, out, input) in [("experts gate, up", 2 * ff, d), ("experts down", d, ff)] {
        for pass in Pass::ALL {
            let compute = grouped(device, products, pass, &groups, [experts, out, input]);
            all.push(linear(kind, pass, tokens * TOP_K, [out, input], compute));
        }
    }
    let dims = AttentionDims { batch: SAMPLES, seq, heads, kv_heads, head_dim };
    all.extend(attention(device, products, dims));
    all
}

/// A buffer of values between -0.5 and 0.5.
fn filled(device: &CpuDevice, len: usize) -> <CpuDevice as toroid_worker::device::Device>::Buf {
    let mut buf = device.alloc(len);
    let values: Vec<f32> =
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0 - 0.5).collect();
    device.write(buf.all_mut(), &values);
    buf
}

/// Of a linear layer `(rows, inputs) -> (rows, outputs)`.
fn matmul(
    device: &CpuDevice,
    products: Products,
    pass: Pass,
    [rows, out, input]: [usize; 3],
) -> Box<dyn FnMut(&CpuDevice)> {
    let [mut x, mut w, mut y] = [rows * input, out * input, rows * out].map(|len| filled(device, len));
    Box::new(move |device| match pass {
        Pass::Y => {
            let (a, b) = (Mat::new(x.all(), rows, input), Mat::new(w.all(), out, input).t());
            device.matmul(products, 1.0, a, b, 0.0, MatMut::new(y.all_mut(), rows, out));
        }
        Pass::Dx => {
            let (a, b) = (Mat::new(y.all(), rows, out), Mat::new(w.all(), out, input));
            device.matmul(products, 1.0, a, b, 0.0, MatMut::new(x.all_mut(), rows, input));
        }
        Pass::Dw => {
            let (a, b) = (Mat::new(y.all(), rows, out).t(), Mat::new(x.all(), rows, input));
            device.matmul(products, 1.0, a, b, 1.0, MatMut::new(w.all_mut(), out, input));
        }
    })
}

/// Tokens that go to experts as chance has it.
fn groups(device: &CpuDevice, tokens: usize, experts: usize) -> Groups<CpuDevice> {
    let logits = filled(device, tokens * experts);
    let mut routing = Routing::new(device, tokens, experts);
    device.route(None, logits.all(), &mut routing);
    let mut groups = Groups::new(device, tokens, 0..experts);
    device.group(&routing, &mut groups);
    groups
}

/// As [`matmul`], of each expert with the rows that go to it.
fn grouped(
    device: &CpuDevice,
    products: Products,
    pass: Pass,
    groups: &Rc<Groups<CpuDevice>>,
    [experts, out, input]: [usize; 3],
) -> Box<dyn FnMut(&CpuDevice)> {
    let (rows, groups) = (groups.capacity, Rc::clone(groups));
    let [mut x, mut w, mut y] = [rows * input, experts * out * input, rows * out].map(|len| filled(device, len));
    Box::new(move |device| match pass {
        Pass::Y => device.grouped_matmul(products, &groups, x.all(), w.all(), y.all_mut()),
        Pass::Dx => device.grouped_matmul_dx(products, &groups, y.all(), w.all(), x.all_mut()),
        Pass::Dw => device.grouped_matmul_dw(products, &groups, y.all(), x.all(), w.all_mut()),
    })
}

/// Scores that are masked do not count; the backward makes five products of what the forward makes two, scores again included.
fn attention(device: &CpuDevice, products: Products, dims: AttentionDims) -> [Product; 2] {
    let AttentionDims { batch, seq, heads, head_dim, .. } = dims;
    let of_one = (batch * heads * seq * (seq + 1) * head_dim) as f64 / 1e9;
    let shape = format!("{batch} x {seq}, {heads} heads of {head_dim}");
    let (qkv_len, out_len) = (dims.tokens() * dims.row_len(), dims.tokens() * dims.out_len());
    let [qkv, mut out, mut lse] = [qkv_len, out_len, batch * heads * seq].map(|len| filled(device, len));
    let forward: Box<dyn FnMut(&CpuDevice)> =
        Box::new(move |device| device.attention(products, &dims, None, qkv.all(), out.all_mut(), lse.all_mut()));
    let [qkv, mut out, mut lse] = [qkv_len, out_len, batch * heads * seq].map(|len| filled(device, len));
    device.attention(products, &dims, None, qkv.all(), out.all_mut(), lse.all_mut());
    let [dout, mut dqkv] = [out_len, qkv_len].map(|len| filled(device, len));
    let backward: Box<dyn FnMut(&CpuDevice)> = Box::new(move |device| {
        let to = dqkv.all_mut();
        device.attention_backward(products, &dims, None, qkv.all(), out.all(), lse.all(), dout.all(), to);
    });
    [("forward", 2.0, forward), ("backward", 5.0, backward)].map(|(pass, times, compute)| Product {
        kind: "attention",
        pass,
        shape: shape.clone(),
        operations: times * of_one,
        compute,
    })
}

/// A row a kind and pass.
fn text(all: &[Figures]) -> String {
    let header = ["PRESET", "PRODUCTS", "BY", "THREADS", "KIND", "PASS", "SHAPE", "GFLOP/CPU-S", "OF PEAK"];
    let row = |f: &Figures| {
        vec![
            f.preset.clone(),
            name(f.products).into(),
            f.way.clone(),
            f.threads.to_string(),
            f.kind.into(),
            f.pass.into(),
            f.shape.clone(),
            format!("{:.1}", f.gflops_per_cpu),
            format!("{:.0}%", 100.0 * f.share_of_peak),
        ]
    };
    let header = header.map(str::to_string).to_vec();
    table(&std::iter::once(header).chain(all.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind that has weights is there three times, and each is a share of something.
    #[test]
    fn every_product_of_a_step_is_measured() {
        let device = CpuDevice::new(1);
        let model = ModelConfig::preset("micro").expect("a preset");
        for products in [Products::F32, Products::Bf16] {
            let found = measure(&device, &model, products, 1);
            assert_eq!(found.len(), 3 * 7 + 2);
            for Found { kind, pass, shape, gflops_per_cpu, share_of_peak } in &found {
                assert!(*gflops_per_cpu > 0.0 && *share_of_peak > 0.0, "{kind} {pass} of {shape}");
            }
            let (rows, d) = (SAMPLES * model.seq * TOP_K, model.d_model);
            let expected = format!("{rows} x {d} x {}", model.ff);
            assert!(found.iter().any(|f| f.kind == "experts down" && f.pass == "dw" && f.shape == expected));
        }
    }
}
