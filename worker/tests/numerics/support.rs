//! The model of the reference, its weights and its batch; and runs of it on any split over TP and PP.

use std::collections::BTreeMap;

use serde::Deserialize;
use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::{self, JobSpec};
use toroid_torus::partition::{self, Partition};
use toroid_torus::pipeline::InFlight;
use toroid_worker::device::{Buffer, CpuDevice, Device};
use toroid_worker::model::{Alone, Input, MicroBatchStats, Stage};

/// What the tests read of the reference file.
#[derive(Deserialize)]
pub struct Reference {
    pub tensors: Vec<(String, Vec<usize>)>,
    pub text: String,
    pub first_weights_t0: Vec<f64>,
    pub first_inputs: Vec<u32>,
    pub f64: Numbers,
}

#[derive(Deserialize)]
pub struct Numbers {
    pub loss: f64,
    pub ce: f64,
    pub z_per_layer: Vec<f64>,
    pub lb_per_layer: Vec<f64>,
    pub logits_b0_s0_first8: Vec<f64>,
    pub logits_b0_s127_first8: Vec<f64>,
    pub logits_b3_s127_first8: Vec<f64>,
    pub logits_abs_sum: f64,
    pub grad_norm: f64,
    pub grad_norms: BTreeMap<String, f64>,
    pub grad_first2: BTreeMap<String, Vec<f64>>,
    pub layer0_counts: Vec<u32>,
    pub accum2_losses: Vec<f64>,
    pub accum2_grad_norm: f64,
    pub train: Vec<TrainStep>,
    pub loss_after_10: f64,
    pub param_abs_sum_after_10: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
pub struct TrainStep {
    pub lr: f64,
    pub loss: f64,
    pub ce: f64,
    pub z: f64,
    pub lb: f64,
    pub gnorm: f64,
}

pub fn reference() -> Reference {
    serde_json::from_str(include_str!("../reference/tiny.json")).expect("the reference file parses")
}

/// The job of the reference with this many samples in a micro-batch.
pub fn spec(micro_batch: usize) -> JobSpec {
    let text = format!(
        "preset = \"tiny\"\nsteps = 10\n[batch]\nmicro_batch = {micro_batch}\nmicro_batches = 1\n\
         [optimizer]\nlr = 1e-3\nwarmup = 4\nfloor = 0.1\nweight_decay = 0.1\nweight_decay_final = 0.1\n\
         [data]\npath = \"none\"\n"
    );
    job::parse(&text).expect("the reference's job is valid")
}

pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Element `i` of tensor `t`, of this many dims.
pub fn formula_weight(t: usize, i: usize, dims: usize) -> f32 {
    let h = splitmix64(((t as u64) << 32) + i as u64);
    let u = ((h >> 40) as f64 - (1 << 23) as f64) / (1 << 23) as f64;
    (if dims >= 2 { u * 0.0625 } else { 1.0 + u * 0.0625 }) as f32
}

/// The formula weights of a partition, in its flat layout.
pub fn formula_params(spec: &JobSpec, partition: &Partition) -> Vec<f32> {
    let tensors = spec.model.tensors();
    let mut flat = vec![0.0; partition.padded_len];
    for slice in &partition.slices {
        let t = tensors.iter().position(|x| x.name == slice.tensor).expect("a partition's tensors are the model's");
        for (local, global, len) in slice.slice.runs(&slice.global_shape) {
            for i in 0..len {
                flat[slice.offset + local + i] = formula_weight(t, global + i, slice.global_shape.len());
            }
        }
    }
    flat
}

/// Inputs and targets of samples `first..first + num`, `(num, 128)` each.
pub fn batch(text: &str, first: usize, num: usize) -> (Vec<u32>, Vec<u32>) {
    let bytes = text.as_bytes();
    let at = |b: usize, i: usize| u32::from(bytes[(7 * b + i) % bytes.len()]);
    let of = |shift: usize| (first..first + num).flat_map(move |b| (0..128).map(move |i| at(b, i + shift)));
    (of(0).collect(), of(1).collect())
}

/// A stage of the reference's model with the formula weights.
pub fn stage_on<D: Device + Clone>(device: &D, spec: &JobSpec, shape: &Shape, place: Place) -> (Stage<D>, Partition) {
    let partition = partition::partition(&spec.model, shape, place.tp, place.pp);
    let mut stage = Stage::new(device.clone(), spec, shape, place, &partition, InFlight { micro_batches: 2, split: 2 });
    let params = formula_params(spec, &partition);
    let device = stage.device().clone();
    device.write(stage.params_mut().all_mut(), &params);
    (stage, partition)
}

/// The GPU that `make gpu-check` found, opened once for all tests. With `TOROID_CUDA_GRAPHS=off` in the environment it does without graphs.
#[cfg(feature = "gpu")]
pub fn gpu() -> toroid_worker::device::CudaDevice {
    static GPU: std::sync::LazyLock<toroid_worker::device::CudaDevice> = std::sync::LazyLock::new(|| {
        let graphs = std::env::var("TOROID_CUDA_GRAPHS").unwrap_or_else(|_| "on".into());
        open_gpu(graphs.parse().unwrap_or_else(|e| panic!("TOROID_CUDA_GRAPHS: {e}")))
    });
    GPU.clone()
}

/// The same GPU for one test alone.
#[cfg(feature = "gpu")]
pub fn open_gpu(graphs: toroid_worker::device::cuda::Graphs) -> toroid_worker::device::CudaDevice {
    let cache = std::env::temp_dir().join("toroid-gpu-check");
    let device = toroid_worker::device::CudaDevice::open(0, &cache, graphs);
    device.unwrap_or_else(|e| panic!("the tests of the GPU need one: {e}"))
}

/// The undivided model.
pub fn whole_on<D: Device + Clone>(device: &D, spec: &JobSpec) -> (Stage<D>, Partition) {
    let shape = Shape::new(1, 1, 1).expect("one place is a shape");
    stage_on(device, spec, &shape, Place { tp: 0, pp: 0, dp: 0 })
}

/// On the CPU.
pub fn whole(spec: &JobSpec, threads: usize) -> (Stage<CpuDevice>, Partition) {
    whole_on(&CpuDevice::new(threads), spec)
}

pub fn read<D: Device>(device: &D, buf: &D::Buf) -> Vec<f32> {
    let mut out = vec![0.0; buf.len()];
    device.read(buf.all(), &mut out);
    out
}

/// The loss of a micro-batch from the terms of all its stages.
pub fn total(spec: &JobSpec, stats: &MicroBatchStats) -> f64 {
    stats.ce + spec.loss.z_coef * stats.z + spec.loss.balance_coef * stats.balance
}

/// Forward and backward of one micro-batch on the undivided model.
pub fn step<D: Device>(stage: &mut Stage<D>, tokens: &[u32], targets: &[u32], scale: f32) -> MicroBatchStats {
    let stats = unfailing(stage.forward(0, Input::Tokens(tokens), Some(targets), &mut Alone, None));
    unfailing(stage.backward(0, None, scale, &mut Alone, None));
    stats
}

pub fn unfailing<T, E: std::error::Error>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("the TP group failed: {e}"))
}

#[track_caller]
pub fn assert_close(what: &str, found: f64, expected: f64, tolerance: f64) {
    let error = (found - expected).abs() / expected.abs().max(1e-30);
    assert!(
        error <= tolerance,
        "{what}: expected {expected}, found {found}: off by {error:.2e}, allowed {tolerance:.0e}"
    );
}
