//! Samples that are texts: a text that shares a sample computes what it computes alone, to the bit, and padding counts nowhere.

use std::ops::Range;

use toroid_torus::job::{JobSpec, Products};
use toroid_worker::device::{Buffer, CpuDevice, Device, NOWHERE};
use toroid_worker::model::{Alone, Feed, Input, LossScale, Stage, Target, Unwatched};

use crate::support::{read, unfailing, whole_on};

/// The reference's model with longer samples, so that texts go over several tiles of attention.
fn job(keys: &str, products: Products, recompute: bool) -> JobSpec {
    let text = format!(
        "kind = \"sft\"\nsteps = 1\n[model]\nlayers = 2\nd_model = 32\nheads = 4\nkv_heads = 2\nhead_dim = 8\nff = 32\nseq = 320\nvocab = 256\n\
         experts = 4\n[batch]\nmicro_batch = 1\nmicro_batches = 1\n[data]\npath = \"none\"\n{keys}"
    );
    JobSpec { products, recompute, ..toroid_torus::job::parse(&text).expect("the job is valid") }
}

fn tokens(num: usize, seed: usize) -> Vec<u32> {
    (0..num).map(|i| ((i * 37 + seed * 101 + i * i) % 251) as u32).collect()
}

/// Inputs and targets of texts that begin at `starts`.
fn sample(texts: &[Vec<u32>], starts: &[usize]) -> (Vec<u32>, Vec<u32>, Vec<Range<usize>>) {
    let (mut inputs, mut targets, mut ranges) = (vec![0; 320], vec![NOWHERE; 320], Vec::new());
    for (text, start) in texts.iter().zip(starts) {
        let rows = *start..start + text.len() - 1;
        inputs[rows.clone()].copy_from_slice(&text[..text.len() - 1]);
        targets[rows.clone()].copy_from_slice(&text[1..]);
        ranges.push(rows);
    }
    (inputs, targets, ranges)
}

fn forward<D: Device + Clone>(
    stage: &mut Stage<D>,
    (inputs, targets, texts): &(Vec<u32>, Vec<u32>, Vec<Range<usize>>),
) -> (f64, Vec<f32>) {
    let feed = Feed { input: Input::Tokens(inputs), target: Some(Target::Tokens(targets)), texts: Some(texts) };
    let stats = unfailing(stage.forward_watched(0, &feed, &mut Alone, None, &mut Unwatched));
    let view = stage.logits(0).expect("logits after a forward");
    let mut logits = vec![0.0; view.len];
    stage.device().read(view, &mut logits);
    (stats.ce, logits)
}

fn backward<D: Device + Clone>(stage: &mut Stage<D>, scale: LossScale) {
    unfailing(stage.backward_watched(0, None, scale, &mut Alone, None, &mut Unwatched));
}

/// Packed samples attend to each other in what several libraries call packing: here not one bit tells that a neighbour is there.
fn a_packed_text_has_the_bits_that_it_has_alone<D: Device + Clone>(device: &D, products: Products) {
    let texts = [tokens(100, 1), tokens(41, 2), tokens(129, 3)];
    let starts = [0, 128, 192];
    let packed_job = job("packing = true\n", products, false);
    let (mut packed, _) = whole_on(device, &packed_job);
    let (ce, logits) = forward(&mut packed, &sample(&texts, &starts));
    let mut sum = 0.0;
    for (text, start) in texts.iter().zip(starts) {
        let (mut alone, _) = whole_on(device, &job("", products, false));
        let (of_text, expected) = forward(&mut alone, &sample(std::slice::from_ref(text), &[0]));
        sum += of_text;
        let len = (text.len() - 1) * 256;
        let found = &logits[start * 256..start * 256 + len];
        let differing = found.iter().zip(&expected[..len]).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differing, 0, "{products:?}: logits of the text at {start} that have other bits than alone");
    }
    assert!((ce - sum).abs() < 1e-9 * sum, "{ce} and {sum}");
}

#[test]
fn packed_on_the_cpu() {
    let device = CpuDevice::new(2);
    a_packed_text_has_the_bits_that_it_has_alone(&device, Products::F32);
    a_packed_text_has_the_bits_that_it_has_alone(&device, Products::Bf16);
}

#[test]
fn packed_on_emulated_cuda() {
    let device = crate::emulator::device();
    a_packed_text_has_the_bits_that_it_has_alone(&device, Products::F32);
    a_packed_text_has_the_bits_that_it_has_alone(&device, Products::Bf16);
}

/// What the emulated kernels give for a packed sample, forward and backward, is what the CPU gives.
#[test]
fn gradients_of_packed_texts_agree_on_both_devices() {
    let texts = [tokens(100, 1), tokens(41, 2), tokens(129, 3)];
    let job = job("packing = true\n", Products::F32, false);
    let on_cpu = {
        let (mut stage, _) = whole_on(&CpuDevice::new(2), &job);
        let (ce, _) = forward(&mut stage, &sample(&texts, &[0, 128, 192]));
        backward(&mut stage, LossScale { each: 1.0 / 267.0, routers: 1.0 });
        (ce, read(stage.device(), stage.grads()))
    };
    let (mut stage, _) = whole_on(&crate::emulator::device(), &job);
    let (ce, _) = forward(&mut stage, &sample(&texts, &[0, 128, 192]));
    backward(&mut stage, LossScale { each: 1.0 / 267.0, routers: 1.0 });
    assert!((ce - on_cpu.0).abs() < 1e-5 * ce, "{ce} and {}", on_cpu.0);
    let found = read(stage.device(), stage.grads());
    let norm = on_cpu.1.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let off = found.iter().zip(&on_cpu.1).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    assert!(off < 1e-4 * norm, "gradients are {off} apart, their norm is {norm}");
}

/// A micro-batch in which nothing is trained has no loss and no gradient of one, where others divide by zero.
#[test]
fn without_a_trained_token_there_is_no_loss_and_nothing_that_is_no_number() {
    let (mut stage, _) = whole_on(&CpuDevice::new(1), &job("", Products::F32, false));
    let (inputs, mut targets, texts) = sample(&[tokens(70, 1)], &[0]);
    targets.fill(NOWHERE);
    let (ce, _) = forward(&mut stage, &(inputs, targets, texts));
    backward(&mut stage, LossScale { each: 0.0, routers: 0.0 });
    assert_eq!((ce, stage.router_stats(0)[0].z.is_finite()), (0.0, true));
    assert!(read(stage.device(), stage.grads()).iter().all(|g| *g == 0.0), "no loss, no gradient");
    // Not even a token.
    let (ce, _) = forward(&mut stage, &(vec![0; 320], vec![NOWHERE; 320], Vec::new()));
    backward(&mut stage, LossScale { each: 0.0, routers: 1.0 });
    assert!(ce == 0.0 && read(stage.device(), stage.grads()).iter().all(|g| g.is_finite()));
    assert_eq!(stage.expert_counts(0).iter().sum::<u32>(), 0, "padding goes to no expert");
}

/// More padding, or other tokens in it, change nothing: neither losses nor gradients, nor the load of the experts.
#[test]
fn padding_counts_nowhere() {
    let results = |filler: u32| {
        let (mut stage, _) = whole_on(&CpuDevice::new(2), &job("", Products::F32, true));
        let (mut inputs, targets, texts) = sample(&[tokens(150, 4)], &[0]);
        inputs[149..].fill(filler);
        let (ce, _) = forward(&mut stage, &(inputs, targets, texts));
        let router = stage.router_stats(0).to_vec();
        let counts = stage.expert_counts(0).to_vec();
        backward(&mut stage, LossScale { each: 1.0 / 149.0, routers: 1.0 });
        let grads: Vec<u32> = read(stage.device(), stage.grads()).iter().map(|g| g.to_bits() & 0x7fff_ffff).collect();
        (ce.to_bits(), router, counts, grads)
    };
    let (first, second) = (results(0), results(77));
    assert_eq!((first.0, &first.1, &first.2), (second.0, &second.1, &second.2));
    assert_eq!(first.2.iter().sum::<u32>(), 2 * 2 * 149, "two experts of two layers for each token");
    assert!(first.3 == second.3, "the gradients tell what was in the padding");
}

/// `NaN * 0` is no number: what is not trained is put to zero, and not multiplied by it.
fn rows_are_dropped_whatever_is_in_them<D: Device + Clone>(device: &D) {
    let mut y = device.alloc(6);
    device.write(y.all_mut(), &[1.0, f32::NAN, f32::NAN, f32::INFINITY, 5.0, 6.0]);
    let mut rows = device.alloc_ids(3);
    device.write_ids(&mut rows, &[0, NOWHERE, 7]);
    device.keep_rows(&rows, 3, y.view_mut(0..6));
    let found = read(device, &y);
    assert!(found[0] == 1.0 && found[1].is_nan() && found[2..] == [0.0, 0.0, 5.0, 6.0], "{found:?}");
}

#[test]
fn rows_are_dropped_on_both_devices() {
    rows_are_dropped_whatever_is_in_them(&CpuDevice::new(1));
    rows_are_dropped_whatever_is_in_them(&crate::emulator::device());
}
