//! Every operation against naive arithmetic in f64: the forward against its formula, the backward against finite
//! differences of the formula, or against a naive backward that finite differences have checked on small dims.
//!
//! A test body is generic over the device; [`device_tests!`] runs all of them on one.

use toroid_worker::device::{Buffer, CpuDevice, Device, Products};

mod attention;
mod layers;
mod loss;
mod moe;
mod products;
mod vector;

/// One `#[test]` for each body and device.
macro_rules! device_tests {
    ($device:ident: $new:expr => $($module:ident::$body:ident),* $(,)?) => {
        mod $device {
            $(
                #[test]
                fn $body() {
                    super::$module::$body(&$new);
                }
            )*
        }
    };
}

macro_rules! all_operations {
    ($device:ident: $new:expr) => {
        device_tests! { $device: $new =>
            vector::elementwise_and_sums, vector::rows_are_scaled, vector::finite_values, vector::digest_of_bits, vector::host_access, vector::snapshots_stay, vector::shared_buffers_part_when_one_changes, vector::adamw_follows_its_formula,
            products::matmul_of_any_shape, products::matmul_of_parts_of_buffers, products::grouped_products, products::tf32_is_near,
            layers::embedding_of_a_part_of_the_vocabulary, layers::rms_norm_and_its_gradient,
            layers::rope_turns_and_turns_back, layers::swiglu_and_its_gradient,
            attention::naive_backward_is_the_derivative, attention::short, attention::longer_than_a_tile,
            attention::one_head, attention::of_bf16, attention::wide_heads, attention::rows_against_a_cache,
            moe::router_chooses_and_weighs, moe::ties_go_to_the_lower_expert, moe::nan_logits_stay_in_range,
            moe::router_gradient, moe::groups_are_sorted_and_stable, moe::rows_go_out_and_come_back,
            moe::routed_swiglu_and_its_gradient,
            loss::cross_entropy_and_its_gradient, loss::cross_entropy_over_ranks,
        }
    };
}

all_operations!(cpu_1_thread: toroid_worker::device::CpuDevice::new(1));
all_operations!(cpu_3_threads: toroid_worker::device::CpuDevice::new(3));
all_operations!(cuda_emulated: crate::emulator::device());
all_operations!(cuda_emulated_backwards: crate::emulator::backwards());
#[cfg(feature = "gpu")]
all_operations!(gpu: crate::support::gpu());

#[test]
fn the_fingerprint_does_not_depend_on_threads() {
    for products in [Products::F32, Products::Bf16] {
        assert_eq!(CpuDevice::new(1).fingerprint(products), CpuDevice::new(3).fingerprint(products));
    }
}

/// Values between -1 and 1 from a seed: the same in every run.
fn values(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Representable in f32, so that f64 and the device start from the same numbers.
        f64::from((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..len).map(|_| next()).collect()
}

/// As the products round their operands: bf16 has 8 bits, and to nearest with ties to even is what f64 does when 2^k is added and
/// taken off again; tf32 has 11, with ties away from 0.
fn rounded(products: Products, x: &[f64]) -> Vec<f64> {
    let to_bf16 = |v: f64| {
        let bits = 2.0_f64.powi(v.abs().log2().floor() as i32 - 7 + 52);
        if v == 0.0 { 0.0 } else { v + bits.copysign(v) - bits.copysign(v) }
    };
    match products {
        Products::F32 => x.to_vec(),
        Products::Tf32 => x.iter().map(|v| f64::from(to_tf32(*v as f32))).collect(),
        Products::Bf16 => x.iter().map(|v| to_bf16(*v)).collect(),
    }
}

fn to_tf32(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1))
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|v| *v as f32).collect()
}

fn upload<D: Device>(device: &D, x: &[f64]) -> D::Buf {
    let mut buf = device.alloc(x.len());
    device.write(buf.all_mut(), &narrow(x));
    buf
}

fn upload_ids<D: Device>(device: &D, ids: &[u32]) -> D::Ids {
    let mut buf = device.alloc_ids(ids.len());
    device.write_ids(&mut buf, ids);
    buf
}

fn download<D: Device>(device: &D, buf: &D::Buf) -> Vec<f32> {
    let mut out = vec![0.0; buf.len()];
    device.read(buf.all(), &mut out);
    out
}

fn download_ids<D: Device>(device: &D, ids: &D::Ids, len: usize) -> Vec<u32> {
    let mut out = vec![0; len];
    device.read_ids(ids, &mut out);
    out
}

/// Every element within `tolerance` of the largest expected one.
#[track_caller]
fn check(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "length of {what}");
    let size = expected.iter().fold(1e-30, |a: f64, b| a.max(b.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs() / size;
        assert!(error <= tolerance, "{what}[{i}]: expected {expected}, found {found}: {error:.1e} of {size:.2e}");
    }
}

/// Central differences of `f` at `x`.
fn derivative(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut at = x.to_vec();
    let mut of = |i: usize| {
        let mut shifted = |by: f64| {
            at[i] = x[i] + by;
            f(&at)
        };
        let slope = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
        at[i] = x[i];
        slope
    };
    (0..x.len()).map(&mut of).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
