//! The undivided model gives the numbers of the independent implementation, on every device.
//!
//! Bounds are those of f32 on the CPU; `slack` multiplies them for a device that adds in other orders.

use toroid_torus::job::{JobSpec, Products};
use toroid_torus::partition::Partition;
use toroid_worker::device::{AdamW, Buffer, Device};
use toroid_worker::model::{Alone, Input, Stage};

use crate::support::*;

/// Gradient norm of each tensor and its first two elements.
fn gradients<D: Device>(stage: &Stage<D>, partition: &Partition) -> Vec<(String, f64, [f32; 2])> {
    let device = stage.device();
    let of = |s: &toroid_torus::partition::LocalSlice| {
        let mut first = [0.0; 2];
        device.read(stage.grads().view(s.offset..s.offset + 2), &mut first);
        let norm = device.sum_of_squares(stage.grads().view(s.offset..s.offset + s.len)).sqrt();
        (s.tensor.clone(), norm, first)
    };
    partition.slices.iter().map(of).collect()
}

#[test]
fn formula_weights_and_inputs_are_those_of_the_reference() {
    let reference = reference();
    let tensors: Vec<_> = spec(4).model.tensors().into_iter().map(|t| (t.name, t.shape)).collect();
    assert_eq!(tensors, reference.tensors);
    for (i, expected) in reference.first_weights_t0.iter().enumerate() {
        assert_eq!(formula_weight(0, i, 2), *expected as f32, "weight {i} of tensor 0");
    }
    assert_eq!(batch(&reference.text, 0, 1).0[..8], reference.first_inputs);
}

/// One `#[test]` for each body and device.
macro_rules! reference_tests {
    ($device:ident: $new:expr, $slack:expr => $($body:ident),* $(,)?) => {
        mod $device {
            $(
                #[test]
                fn $body() {
                    super::$body(&$new, $slack);
                }
            )*
        }
    };
}

reference_tests! { cpu: toroid_worker::device::CpuDevice::new(1), 1.0 =>
    forward_gives_the_reference_losses_and_logits, backward_gives_the_reference_gradients,
    two_micro_batches_add_up_to_the_reference, ten_steps_of_training_follow_the_reference,
}

// Ten steps would take minutes there.
reference_tests! { cuda_emulated: crate::emulator::device(), 1.0 =>
    forward_gives_the_reference_losses_and_logits, backward_gives_the_reference_gradients,
}

#[cfg(feature = "gpu")]
reference_tests! { gpu: crate::support::gpu(), 10.0 =>
    forward_gives_the_reference_losses_and_logits, backward_gives_the_reference_gradients,
    two_micro_batches_add_up_to_the_reference, ten_steps_of_training_follow_the_reference,
}

fn forward_gives_the_reference_losses_and_logits<D: Device + Clone>(device: &D, slack: f64) {
    let (reference, spec) = (reference(), spec(4));
    let (mut stage, _) = whole_on(device, &spec);
    let (tokens, targets) = batch(&reference.text, 0, 4);
    let stats = unfailing(stage.forward(0, Input::Tokens(&tokens), Some(&targets), &mut Alone, None));
    let expected = &reference.f64;
    assert_close("loss", total(&spec, &stats), expected.loss, 1e-6 * slack);
    assert_close("ce", stats.ce, expected.ce, 1e-6 * slack);
    for (l, router) in stage.router_stats(0).iter().enumerate() {
        assert_close(&format!("z of layer {l}"), router.z, expected.z_per_layer[l], 1e-6 * slack);
        assert_close(&format!("balance of layer {l}"), router.balance, expected.lb_per_layer[l], 1e-6 * slack);
    }
    assert_eq!(stage.expert_counts(0)[..8], expected.layer0_counts);

    let view = stage.logits(0).expect("the last stage has logits after a forward");
    let mut logits = vec![0.0; view.len];
    stage.device().read(view, &mut logits);
    for (token, expected) in [
        (0, &expected.logits_b0_s0_first8),
        (127, &expected.logits_b0_s127_first8),
        (3 * 128 + 127, &expected.logits_b3_s127_first8),
    ] {
        for (i, expected) in expected.iter().enumerate() {
            let found = f64::from(logits[token * 512 + i]);
            assert!(
                (found - expected).abs() < 2e-6 * slack,
                "logit {i} of token {token}: expected {expected}, found {found}"
            );
        }
    }
    assert_close(
        "sum of |logits|",
        logits.iter().map(|l| f64::from(l.abs())).sum(),
        expected.logits_abs_sum,
        1e-6 * slack,
    );
}

fn backward_gives_the_reference_gradients<D: Device + Clone>(device: &D, slack: f64) {
    let (reference, spec) = (reference(), spec(4));
    let (mut stage, partition) = whole_on(device, &spec);
    let (tokens, targets) = batch(&reference.text, 0, 4);
    step(&mut stage, &tokens, &targets, 1.0);
    let expected = &reference.f64;
    for (tensor, norm, first) in gradients(&stage, &partition) {
        assert_close(&format!("gradient norm of {tensor}"), norm, expected.grad_norms[&tensor], 1e-5 * slack);
        // Single elements are sums with cancellation: their error is measured by the size of the tensor's elements.
        let size = norm / (partition.slice(&tensor).expect("listed above").len as f64).sqrt();
        for (found, expected) in first.iter().zip(&expected.grad_first2[&tensor]) {
            let error = (f64::from(*found) - expected).abs() / size;
            assert!(error < 1e-4 * slack, "gradient of {tensor}: expected {expected}, found {found}");
        }
    }
    let norm = stage.device().sum_of_squares(stage.grads().all()).sqrt();
    assert_close("gradient norm", norm, expected.grad_norm, 1e-5 * slack);
}

fn two_micro_batches_add_up_to_the_reference<D: Device + Clone>(device: &D, slack: f64) {
    let (reference, spec) = (reference(), spec(2));
    let (mut stage, _) = whole_on(device, &spec);
    for (i, expected) in reference.f64.accum2_losses.iter().enumerate() {
        let (tokens, targets) = batch(&reference.text, 2 * i, 2);
        let stats = step(&mut stage, &tokens, &targets, 0.5);
        assert_close(&format!("loss of micro-batch {i}"), total(&spec, &stats), *expected, 1e-6 * slack);
    }
    let norm = stage.device().sum_of_squares(stage.grads().all()).sqrt();
    assert_close("gradient norm", norm, reference.f64.accum2_grad_norm, 1e-5 * slack);
}

/// One AdamW update of every slice with the job's schedule.
fn update<D: Device + Clone>(
    spec: &toroid_torus::job::JobSpec,
    stage: &mut Stage<D>,
    partition: &Partition,
    moments: &mut [D::Buf; 2],
    t: u64,
    norm: f64,
) {
    let (device, optimizer) = (stage.device().clone(), &spec.optimizer);
    let grads = read(&device, stage.grads());
    let mut copy = device.alloc(grads.len());
    device.write(copy.all_mut(), &grads);
    let [m, v] = moments;
    for slice in &partition.slices {
        let range = slice.offset..slice.offset + slice.len;
        let decay = if slice.decays { optimizer.weight_decay_at(t, spec.steps) } else { 0.0 };
        let hyper = AdamW {
            lr: optimizer.lr_at(t, spec.steps),
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            eps: optimizer.eps,
            weight_decay: decay,
            bias1: 1.0 - optimizer.beta1.powi(t as i32 + 1),
            bias2: 1.0 - optimizer.beta2.powi(t as i32 + 1),
            grad_scale: optimizer.clip_scale(norm),
        };
        let p = stage.params_mut().view_mut(range.clone());
        device.adamw(p, m.view_mut(range.clone()), v.view_mut(range.clone()), copy.view(range), &hyper);
    }
}

fn ten_steps_of_training_follow_the_reference<D: Device + Clone>(device: &D, slack: f64) {
    let (reference, spec) = (reference(), spec(4));
    let (mut stage, partition) = whole_on(device, &spec);
    let (tokens, targets) = batch(&reference.text, 0, 4);
    let mut moments = [0, 1].map(|_| stage.device().alloc(partition.padded_len));
    for (t, expected) in reference.f64.train.iter().enumerate() {
        stage.zero_grads();
        let stats = step(&mut stage, &tokens, &targets, 1.0);
        let norm = stage.device().sum_of_squares(stage.grads().all()).sqrt();
        assert_close(&format!("lr of step {t}"), spec.optimizer.lr_at(t as u64, spec.steps), expected.lr, 1e-12);
        assert_close(&format!("loss of step {t}"), total(&spec, &stats), expected.loss, 1e-5 * slack);
        assert_close(&format!("ce of step {t}"), stats.ce, expected.ce, 1e-5 * slack);
        assert_close(&format!("z of step {t}"), stats.z, expected.z, 1e-5 * slack);
        assert_close(&format!("balance of step {t}"), stats.balance, expected.lb, 1e-5 * slack);
        assert_close(&format!("gradient norm of step {t}"), norm, expected.gnorm, 1e-5 * slack);
        update(&spec, &mut stage, &partition, &mut moments, t as u64, norm);
    }
    let ce = unfailing(stage.evaluate(Input::Tokens(&tokens), Some(&targets), &mut Alone, None));
    let stats = unfailing(stage.forward(0, Input::Tokens(&tokens), Some(&targets), &mut Alone, None));
    assert_close("loss after ten steps", total(&spec, &stats), reference.f64.loss_after_10, 1e-5 * slack);
    assert_eq!(ce / tokens.len() as f64, stats.ce, "an evaluation is a forward");
    let params = read(stage.device(), stage.params());
    for slice in &partition.slices {
        let found = params[slice.offset..slice.offset + slice.len].iter().map(|p| f64::from(p.abs())).sum();
        let expected = reference.f64.param_abs_sum_after_10[&slice.tensor];
        assert_close(&format!("sum of |{}| after ten steps", slice.tensor), found, expected, 1e-5 * slack);
    }
}

/// What two steps give to the bit, by products and the fingerprints of devices on which somebody has looked. Other bits are another arithmetic: raise
/// `numerics` (`toroid_proto::Build`), so that no job mixes the two, and note the new ones.
const KNOWN_BITS: [(Products, &str, &str); 2] = [
    (Products::F32, "cpu-x86_64-numerics-1-products-c3e713f85b8c", "2c70af71000cd0f2"),
    // With VDPBF16PS, of an AMD EPYC.
    (Products::Bf16, "cpu-x86_64-numerics-1-products-69047a9ae6cc", "8dfbfbea64d9cb0f"),
];

#[test]
fn another_arithmetic_has_another_number() {
    let (reference, device) = (reference(), toroid_worker::device::CpuDevice::new(2));
    for products in [Products::F32, Products::Bf16] {
        let mut hasher = blake3::Hasher::new();
        let spec = JobSpec { products, ..spec(2) };
        let (mut stage, partition) = whole_on(&device, &spec);
        let (tokens, targets) = batch(&reference.text, 0, 2);
        let mut moments = [0, 1].map(|_| stage.device().alloc(partition.padded_len));
        for t in 0..2 {
            stage.zero_grads();
            let stats = step(&mut stage, &tokens, &targets, 1.0);
            let norm = stage.device().sum_of_squares(stage.grads().all()).sqrt();
            for figure in [total(&spec, &stats), stats.ce, stats.z, stats.balance, norm] {
                hasher.update(&figure.to_bits().to_le_bytes());
            }
            update(&spec, &mut stage, &partition, &mut moments, t, norm);
        }
        for parameter in read(stage.device(), stage.params()) {
            hasher.update(&parameter.to_bits().to_le_bytes());
        }
        let (fingerprint, found) = (device.fingerprint(products), hasher.finalize().to_hex()[..16].to_string());
        match KNOWN_BITS.iter().find(|(of, known, _)| (*of, *known) == (products, fingerprint.as_str())) {
            Some((_, _, expected)) => {
                assert_eq!(found, *expected, "the {products:?} arithmetic of {fingerprint} is another one")
            }
            None => eprintln!("nobody has noted the {products:?} bits of {fingerprint}, which are {found}"),
        }
    }
}

/// Not rounding errors of sums but of every operand, of 8 bits.
#[test]
fn bf16_follows_the_reference_at_a_distance() {
    let (reference, spec) = (reference(), JobSpec { products: Products::Bf16, ..spec(4) });
    let (mut stage, partition) = whole(&spec, 1);
    let (tokens, targets) = batch(&reference.text, 0, 4);
    let mut moments = [0, 1].map(|_| stage.device().alloc(partition.padded_len));
    for (t, expected) in reference.f64.train.iter().enumerate() {
        stage.zero_grads();
        let stats = step(&mut stage, &tokens, &targets, 1.0);
        let norm = stage.device().sum_of_squares(stage.grads().all()).sqrt();
        assert_close(&format!("loss of step {t}"), total(&spec, &stats), expected.loss, 5e-3);
        assert_close(&format!("gradient norm of step {t}"), norm, expected.gnorm, 5e-2);
        if t == 0 {
            assert_ne!(total(&spec, &stats) as f32, expected.loss as f32, "operands are rounded");
            for (tensor, norm, _) in gradients(&stage, &partition) {
                // Some tokens near a tie go to another expert, which the routers see most of.
                assert_close(&format!("gradient norm of {tensor}"), norm, reference.f64.grad_norms[&tensor], 5e-2);
            }
        }
        update(&spec, &mut stage, &partition, &mut moments, t as u64, norm);
    }
}
