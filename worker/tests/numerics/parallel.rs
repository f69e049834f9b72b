//! Every split over TP and PP gives the undivided run's numbers, every number of threads its bits, and old contents of
//! the buffers leave no trace.

use std::collections::BTreeMap;

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::{JobSpec, Products};
use toroid_torus::partition::Partition;
use toroid_worker::device::{Buffer, CpuDevice, Device};
use toroid_worker::model::{Alone, Input, MicroBatchStats, RankGone, ThreadGroup, TpComm};

use crate::support::*;

/// What a run of one step leaves: loss terms, evaluation, and the gradients of whole tensors.
struct Outcome {
    stats: MicroBatchStats,
    evaluation: f64,
    counts: Vec<u32>,
    grads: BTreeMap<String, Vec<f32>>,
    /// Of each rank over its TP group.
    num_sums: Vec<usize>,
}

/// What one place leaves. `router` is what it says of its layers.
struct PlaceOutcome {
    stats: MicroBatchStats,
    evaluation: f64,
    counts: Vec<u32>,
    partition: Partition,
    grads: Vec<f32>,
}

/// A rank of a group that counts its all-reduces.
struct Counted {
    group: ThreadGroup,
    num_sums: usize,
}

impl TpComm for Counted {
    type Error = RankGone;

    fn size(&self) -> usize {
        self.group.size()
    }
    fn rank(&self) -> usize {
        self.group.rank()
    }
    fn all_reduce(&mut self, buf: &mut [f32]) -> Result<(), RankGone> {
        self.num_sums += 1;
        self.group.all_reduce(buf)
    }
    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<(), RankGone> {
        self.group.all_gather(own, all)
    }
}

/// All stages of one tp_rank, one after the other, on one thread.
fn run_rank<D: Device + Clone>(
    device: &D,
    spec: &JobSpec,
    shape: &Shape,
    tp_rank: usize,
    tp: &mut impl TpComm,
) -> Vec<PlaceOutcome> {
    let (tokens, targets) = batch(&reference().text, 0, spec.batch.micro_batch);
    let last = shape.pp() - 1;
    let mut stages: Vec<_> =
        (0..shape.pp()).map(|pp| stage_on(device, spec, shape, Place { tp: tp_rank, pp, dp: 0 })).collect();
    let mut between = vec![0.0; stages[0].0.activation_len()];
    let mut next = between.clone();
    let mut outcomes = Vec::new();
    for evaluate in [true, false] {
        for (pp, (stage, partition)) in stages.iter_mut().enumerate() {
            let input = if pp == 0 { Input::Tokens(&tokens) } else { Input::Activations(&between) };
            let (targets, output) = if pp == last { (Some(&targets[..]), None) } else { (None, Some(&mut next[..])) };
            if evaluate {
                let evaluation = unfailing(stage.evaluate(input, targets, tp, output));
                let partition = partition.clone();
                let (stats, counts, grads) = (MicroBatchStats::default(), Vec::new(), Vec::new());
                outcomes.push(PlaceOutcome { stats, evaluation, counts, partition, grads });
            } else {
                outcomes[pp].stats = unfailing(stage.forward(1, input, targets, tp, output));
                outcomes[pp].counts = stage.expert_counts(1).to_vec();
            }
            std::mem::swap(&mut between, &mut next);
        }
    }
    for (pp, (stage, _)) in stages.iter_mut().enumerate().rev() {
        let (grad_output, grad_input) = ((pp < last).then_some(&between[..]), (pp > 0).then_some(&mut next[..]));
        unfailing(stage.backward(1, grad_output, 0.5, tp, grad_input));
        std::mem::swap(&mut between, &mut next);
        outcomes[pp].grads = read(stage.device(), stage.grads());
    }
    outcomes
}

/// On the CPU.
fn run(spec: &JobSpec, tp: usize, pp: usize) -> Outcome {
    run_on(&CpuDevice::new(1), spec, tp, pp)
}

/// Runs every place of a shape and puts the whole tensors' gradients together.
fn run_on<D: Device + Clone>(device: &D, spec: &JobSpec, tp: usize, pp: usize) -> Outcome {
    let shape = Shape::new(tp, pp, 1).expect("a valid shape");
    let (ranks, num_sums): (Vec<Vec<PlaceOutcome>>, Vec<usize>) = std::thread::scope(|scope| {
        let run = |(rank, group): (usize, ThreadGroup)| {
            let mut group = Counted { group, num_sums: 0 };
            scope.spawn(move || {
                let outcomes = if tp == 1 {
                    run_rank(device, spec, &shape, rank, &mut Alone)
                } else {
                    run_rank(device, spec, &shape, rank, &mut group)
                };
                (outcomes, group.num_sums)
            })
        };
        let threads: Vec<_> = ThreadGroup::new(tp).into_iter().enumerate().map(run).collect();
        threads.into_iter().map(|t| t.join().expect("a rank panicked")).collect()
    });
    let stats = MicroBatchStats::default();
    let mut outcome = Outcome { stats, evaluation: 0.0, counts: Vec::new(), grads: BTreeMap::new(), num_sums };
    for (pp, place) in ranks[0].iter().enumerate() {
        for other in &ranks[1..] {
            assert_eq!(other[pp].stats, place.stats, "TP ranks see the same losses (M-1)");
            assert_eq!(other[pp].counts, place.counts, "TP ranks route the same way (M-1)");
        }
        outcome.stats.ce += place.stats.ce;
        outcome.stats.z += place.stats.z;
        outcome.stats.balance += place.stats.balance;
        outcome.evaluation += place.evaluation;
        outcome.counts.extend(&place.counts);
    }
    for place in ranks.iter().flatten() {
        add_slices(place, &mut outcome.grads);
    }
    outcome
}

/// Puts a place's slices into the whole tensors: adds parts of sums, and checks that copies are the same bits.
fn add_slices(place: &PlaceOutcome, whole: &mut BTreeMap<String, Vec<f32>>) {
    for slice in &place.partition.slices {
        let num = slice.global_shape.iter().product();
        let tensor = whole.entry(slice.tensor.clone()).or_insert_with(|| vec![0.0; num]);
        let is_copy = !slice.grad_is_partial && !place.partition.counts(slice);
        for (local, global, len) in slice.slice.runs(&slice.global_shape) {
            let (to, from) = (&mut tensor[global..global + len], &place.grads[slice.offset + local..][..len]);
            if is_copy {
                assert_eq!(to, from, "the gradients of {} are equal on all TP ranks (M-1)", slice.tensor);
            } else {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    }
}

/// Distance of two tensors relative to the expected one's norm.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (difference / expected.iter().map(|x| square(f64::from(*x))).sum::<f64>()).sqrt()
}

fn check_split(tp: usize, pp: usize) {
    check_split_on(&CpuDevice::new(1), tp, pp);
}

/// A split on this device against the whole on the CPU.
fn check_split_on<D: Device + Clone>(device: &D, tp: usize, pp: usize) {
    let spec = spec(2);
    let (whole, split) = (run(&spec, 1, 1), run_on(device, &spec, tp, pp));
    assert_close("loss", total(&spec, &split.stats), total(&spec, &whole.stats), 1e-6);
    assert_close("z", split.stats.z, whole.stats.z, 1e-6);
    assert_close("balance", split.stats.balance, whole.stats.balance, 1e-6);
    assert_close("evaluation", split.evaluation, whole.evaluation, 1e-6);
    assert_eq!(split.counts, whole.counts, "assignments by layer and expert");
    assert_eq!(split.grads.len(), spec.model.tensors().len(), "every tensor has a gradient");
    for (tensor, expected) in &whole.grads {
        let error = distance(&split.grads[tensor], expected);
        assert!(error < 1e-5, "the gradient of {tensor} at tp {tp}, pp {pp} is off by {error:.2e} of its norm");
    }
}

#[test]
fn tp_2() {
    check_split(2, 1);
}

#[test]
fn tp_4_with_two_kv_heads() {
    check_split(4, 1);
}

#[test]
fn pp_2_and_pp_4_give_the_same_bits() {
    let whole = run(&spec(2), 1, 1);
    for pp in [2, 3, 4] {
        let split = run(&spec(2), 1, pp);
        assert_eq!(split.stats.ce, whole.stats.ce, "pp {pp}");
        assert_eq!(split.grads, whole.grads, "pp {pp}");
        check_split(1, pp);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for products in [Products::F32, Products::Bf16] {
        check_threads(&JobSpec { products, ..spec(3) });
    }
}

fn check_threads(spec: &JobSpec) {
    let (tokens, targets) = batch(&reference().text, 0, 3);
    let run = |threads| {
        let (mut stage, _) = whole(spec, threads);
        let stats = step(&mut stage, &tokens, &targets, 1.0);
        let bits: Vec<u32> = read(stage.device(), stage.grads()).iter().map(|g| g.to_bits()).collect();
        (stats, bits)
    };
    let one = run(1);
    for threads in [2, 3, 4] {
        let many = run(threads);
        assert_eq!(many.0, one.0, "{threads} threads");
        assert!(many.1 == one.1, "the gradients of {threads} threads differ from those of one (D-1)");
    }
}

/// Two runs of a step have the same bits (D-1), and what the buffers held before is not in them (M-4).
fn check_no_trace<D: Device + Clone>(device: &D) {
    for products in [Products::F32, Products::Bf16] {
        let spec = JobSpec { products, ..spec(2) };
        let text = reference().text;
        let run = |before: &[usize]| {
            let (mut stage, _) = whole_on(device, &spec);
            for first in before {
                let (tokens, targets) = batch(&text, *first, 2);
                step(&mut stage, &tokens, &targets, 1.0);
                unfailing(stage.evaluate(Input::Tokens(&tokens), Some(&targets), &mut Alone, None));
            }
            stage.zero_grads();
            let (tokens, targets) = batch(&text, 0, 2);
            (step(&mut stage, &tokens, &targets, 1.0), read(stage.device(), stage.grads()))
        };
        assert!(run(&[]) == run(&[5, 9, 2]), "a step in {products:?} depends on the steps before it (M-4)");
    }
}

/// Losses of a step and the norm of its gradient.
fn losses_and_norm<D: Device + Clone>(device: &D, products: Products) -> (MicroBatchStats, f64) {
    let (tokens, targets) = batch(&reference().text, 0, 2);
    let (mut stage, _) = whole_on(device, &JobSpec { products, ..spec(2) });
    let stats = step(&mut stage, &tokens, &targets, 1.0);
    (stats, stage.device().sum_of_squares(stage.grads().all()).sqrt())
}

/// Products in bf16 cost accuracy, and not more than they should.
fn check_bf16<D: Device + Clone>(device: &D) {
    let (exact, found) = (losses_and_norm(&CpuDevice::new(1), Products::F32), losses_and_norm(device, Products::Bf16));
    assert_close("loss in bf16", total(&spec(2), &found.0), total(&spec(2), &exact.0), 2e-2);
    assert_close("gradient norm in bf16", found.1, exact.1, 2e-2);
    assert_ne!(found.0, exact.0, "nothing was rounded");
}

/// Activations that are computed again have the same bits, and no sum over the TP group is made again (M-2).
fn check_recompute<D: Device + Clone>(device: &D, tp: usize, pp: usize) {
    let run = |recompute| run_on(device, &JobSpec { recompute, ..spec(2) }, tp, pp);
    let (kept, found) = (run(false), run(true));
    assert_eq!((found.stats, found.evaluation), (kept.stats, kept.evaluation), "losses at tp {tp}, pp {pp}");
    assert_eq!(
        (found.counts, found.num_sums),
        (kept.counts, kept.num_sums),
        "assignments and sums at tp {tp}, pp {pp}"
    );
    assert!(found.grads == kept.grads, "gradients at tp {tp}, pp {pp}");
}

macro_rules! on_device {
    ($device:ident: $new:expr) => {
        mod $device {
            #[test]
            fn what_buffers_held_before_leaves_no_trace() {
                super::check_no_trace(&$new);
            }

            #[test]
            fn tp_2_and_pp_2() {
                super::check_split_on(&$new, 2, 2);
            }

            #[test]
            fn activations_are_recomputed_to_the_same_bits() {
                super::check_recompute(&$new, 2, 2);
            }

            #[test]
            fn bf16_is_near_f32() {
                super::check_bf16(&$new);
            }
        }
    };
}

on_device!(cpu: toroid_worker::device::CpuDevice::new(1));
on_device!(cuda_emulated: crate::emulator::device());
#[cfg(feature = "gpu")]
on_device!(gpu: crate::support::gpu());

#[test]
fn undivided_activations_are_recomputed_to_the_same_bits() {
    check_recompute(&CpuDevice::new(1), 1, 1);
}

#[test]
fn two_micro_batches_in_flight_do_not_mix() {
    [false, true].into_iter().for_each(|recompute| check_in_flight(&JobSpec { recompute, ..spec(2) }));
}

fn check_in_flight(spec: &JobSpec) {
    let text = reference().text;
    let run = |in_flight: bool| {
        let (mut stage, _) = whole(spec, 1);
        let batches = [batch(&text, 0, 2), batch(&text, 2, 2)];
        let forward = |stage: &mut toroid_worker::model::Stage<_>, i: usize| {
            let (tokens, targets) = &batches[i];
            unfailing(stage.forward(i, Input::Tokens(tokens), Some(targets), &mut Alone, None));
        };
        forward(&mut stage, 0);
        if in_flight {
            forward(&mut stage, 1);
        }
        unfailing(stage.backward(0, None, 0.5, &mut Alone, None));
        if !in_flight {
            forward(&mut stage, 1);
        }
        unfailing(stage.backward(1, None, 0.5, &mut Alone, None));
        read(stage.device(), stage.grads())
    };
    assert!(run(true) == run(false), "the order of forwards and backwards is not part of the result");
}
