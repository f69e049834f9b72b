//! Calls that repeat are one CUDA graph: the same bits as the calls one by one, far fewer of them, and never in place of calls that differ
//! (C-1). What the emulator captured it runs with the arguments that it had then, so a graph that stood for other calls would show.

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::{JobSpec, Products, parse};
use toroid_torus::pipeline::Schedule;
use toroid_worker::device::cuda::{GraphCounts, Runtime};
use toroid_worker::device::{Buffer, CudaDevice, Device};
use toroid_worker::model::{Alone, Input, LossScale, Stage, ThreadGroup, TpComm};

use crate::emulator::{self, Emulator};
use crate::support::*;

type Cuda = CudaDevice<Emulator>;

/// Losses and gradients of five micro-batches on the undivided model, each of which is evaluated before; with `split`, backwards are in two parts and
/// two micro-batches are in flight.
fn micro_batches<R: Runtime>(device: &CudaDevice<R>, spec: &JobSpec, split: bool) -> (Vec<f64>, Vec<f32>) {
    let (mut stage, _) = whole_on(device, spec);
    let mut losses = Vec::new();
    for i in 0..5 {
        let (tokens, targets) = batch(&reference().text, i, spec.batch.micro_batch);
        losses.push(unfailing(stage.evaluate(Input::Tokens(&tokens), Some(&targets), &mut Alone, None)));
        let slot = if split { i % 2 } else { 0 };
        let stats = unfailing(stage.forward(slot, Input::Tokens(&tokens), Some(&targets), &mut Alone, None));
        losses.push(total(spec, &stats));
        if !split {
            unfailing(stage.backward(slot, None, 0.5, &mut Alone, None));
            continue;
        }
        unfailing(stage.backward_input(slot, None, LossScale::mean(0.5, tokens.len()), &mut Alone, None));
        if i > 0 {
            stage.backward_weight((i - 1) % 2);
        }
    }
    if split {
        stage.backward_weight(0);
    }
    (losses, read(device, stage.grads()))
}

/// Two layers of the reference's model: enough for a layer that is not the first.
fn small(products: Products, recompute: bool) -> JobSpec {
    let mut spec = JobSpec { products, recompute, ..spec(1) };
    spec.model.layers = 2;
    spec
}

fn check_bits(spec: &JobSpec, split: bool) {
    let plain = emulator::without_graphs();
    let expected = micro_batches(&plain, spec, split);
    assert_eq!((plain.graph_counts().launches, plain.graph_counts().graph_ops), (0, 0));
    for (device, what) in [(emulator::device(), "graphs"), (emulator::lazy(), "graphs on a device that is late")] {
        assert!(micro_batches(&device, spec, split) == expected, "{what}: {spec:?}");
        let GraphCounts { graph_ops, plain_ops, .. } = device.graph_counts();
        assert_eq!(graph_ops + plain_ops, plain.graph_counts().plain_ops, "every operation came to the driver once");
        assert!(graph_ops > plain_ops, "{what} are used: {:?}", device.graph_counts());
    }
}

#[cfg(feature = "gpu")]
mod gpu {
    use toroid_worker::device::cuda::Graphs;

    use super::*;

    #[test]
    fn a_step_has_the_same_bits() {
        let [plain, graphs] = [Graphs::Off, Graphs::On].map(open_gpu);
        for (products, recompute) in [(Products::F32, false), (Products::Bf16, true)] {
            let spec = small(products, recompute);
            assert!(micro_batches(&graphs, &spec, false) == micro_batches(&plain, &spec, false), "{products:?}");
        }
        let GraphCounts { graph_ops, plain_ops, .. } = graphs.graph_counts();
        assert!(graph_ops > plain_ops, "graphs are used: {:?}", graphs.graph_counts());
    }
}

#[test]
fn a_step_in_f32_has_the_same_bits() {
    check_bits(&small(Products::F32, false), false);
}

#[test]
fn a_step_in_bf16_with_recomputation_has_the_same_bits() {
    check_bits(&small(Products::Bf16, true), false);
}

#[test]
fn split_backwards_have_the_same_bits() {
    for recompute in [false, true] {
        let mut spec = small(Products::F32, recompute);
        spec.pipeline.schedule = Schedule::ZeroBubble;
        check_bits(&spec, true);
    }
}

/// What the places of one tp_rank at tp 2, pp 2 leave: losses, and the gradients of both stages. Each place has a device of its own.
fn rank_of_four(devices: &[Cuda; 2], spec: &JobSpec, tp: &mut impl TpComm) -> (Vec<f64>, Vec<Vec<f32>>) {
    let shape = Shape::new(2, 2, 1).expect("a shape");
    let stage = |pp: usize| stage_on(&devices[pp], spec, &shape, Place { tp: tp.rank(), pp, dp: 0 }).0;
    let [mut first, mut last] = [stage(0), stage(1)];
    let mut between = vec![0.0; first.activation_len()];
    let mut losses = Vec::new();
    for i in 0..4 {
        let (tokens, targets) = batch(&reference().text, i, spec.batch.micro_batch);
        unfailing(first.forward(0, Input::Tokens(&tokens), None, tp, Some(&mut between)));
        let stats = unfailing(last.forward(0, Input::Activations(&between), Some(&targets), tp, None));
        losses.push(stats.ce);
        unfailing(last.backward(0, None, 0.5, tp, Some(&mut between)));
        unfailing(first.backward(0, Some(&between), 0.5, tp, None));
    }
    let grads = |stage: &Stage<Cuda>| read(stage.device(), stage.grads());
    (losses, vec![grads(&first), grads(&last)])
}

#[test]
fn tp_2_and_pp_2_have_the_same_bits() {
    let spec = small(Products::Bf16, true);
    let run = |device: fn() -> Cuda| {
        std::thread::scope(|scope| {
            let rank = |mut tp: ThreadGroup| {
                let spec = &spec;
                scope.spawn(move || {
                    let devices = [device(), device()];
                    let left = rank_of_four(&devices, spec, &mut tp);
                    (left, devices.map(|d| d.graph_counts()))
                })
            };
            let threads: Vec<_> = ThreadGroup::new(2).into_iter().map(rank).collect();
            threads.into_iter().map(|t| t.join().expect("a rank panicked")).collect::<Vec<_>>()
        })
    };
    let (plain, graphs) = (run(emulator::without_graphs), run(emulator::device));
    for ((expected, _), (found, counts)) in plain.iter().zip(&graphs) {
        assert!(found == expected, "the same bits");
        for counts in counts {
            assert!(counts.graph_ops > counts.plain_ops, "most operations are in graphs: {counts:?}");
        }
    }
}

/// `y = value`, then some operations whose result depends on it.
fn some_operations(device: &Cuda, value: f32) -> Vec<f32> {
    let mut y = device.alloc(100);
    device.submit();
    device.fill(y.all_mut(), value);
    for _ in 0..10 {
        device.scale(2.0, y.all_mut());
    }
    read(device, &y)
}

#[test]
fn another_argument_is_seen_and_launched_plainly() {
    let device = emulator::device();
    let _reserved = device.reserve_memory(&toroid_worker::device::MemoryNeeds {
        buffer_bytes: 1 << 20,
        products: Products::F32,
        operands: 0,
        staging_bytes: [0; 2],
    });
    let mut expected = GraphCounts::default();
    // A piece that is seen for the first time, again, with another scalar (0 and -0 are equal numbers), and as before.
    for (value, as_graph) in
        [(0.0, false), (0.0, true), (-0.0, false), (1.5, false), (0.0, true), (1.5, true), (0.0, true)]
    {
        let y = some_operations(&device, value);
        assert!(y.iter().all(|y| y.to_bits() == (1024.0 * value).to_bits()), "{value}: found {}", y[0]);
        // The memory of `y` is zeroed when it is taken, in a piece of its own.
        expected.plain_ops += 1;
        if as_graph {
            (expected.graph_ops, expected.launches) = (expected.graph_ops + 11, expected.launches + 1);
        } else {
            expected.plain_ops += 11;
        }
        expected.made = u64::from(expected.launches > 0) + u64::from(expected.launches > 2);
        assert_eq!(device.graph_counts(), expected, "after {value}");
    }
}

#[test]
fn a_driver_that_makes_no_graphs_is_used_without_them() {
    let device = emulator::that_refuses_graphs();
    let (spec, plain) = (small(Products::F32, false), emulator::without_graphs());
    assert!(micro_batches(&device, &spec, false) == micro_batches(&plain, &spec, false));
    assert_eq!(device.graph_counts(), plain.graph_counts(), "one by one");
}

/// Calls of the driver for a micro-batch of the preset `1b`'s layers, once it has been seen: 16 layers of small dims.
#[test]
fn a_micro_batch_takes_few_calls() {
    let text = "preset = 'tiny'\nsteps = 1\nbatch.micro_batch = 1\nbatch.micro_batches = 1\ndata.path = 'none'\n\
                model = { layers = 16, d_model = 32, head_dim = 8, ff = 16, seq = 16 }";
    let spec = parse(text).expect("a job");
    let tokens: Vec<u32> = (0..16).collect();
    let calls = [emulator::without_graphs(), emulator::device()].map(|device| {
        let (mut stage, _) = whole_on(&device, &spec);
        for _ in 0..2 {
            step(&mut stage, &tokens, &tokens, 1.0);
        }
        device.runtime().take_calls();
        step(&mut stage, &tokens, &tokens, 1.0);
        let calls = device.runtime().take_calls();
        println!("{calls:?}");
        ["launch", "copy", "zero", "graph", "capture"].map(|call| calls.get(call).copied().unwrap_or(0))
    });
    let [[plain, .., 0, 0], [alone, .., graphs, 0]] = calls else { panic!("{calls:?}") };
    assert!(plain > 600, "{calls:?}");
    assert!(10 * (alone + graphs) < plain, "{calls:?}");
}
