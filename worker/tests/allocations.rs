//! A step allocates nothing once the first ones have warmed it up (D-2, M-3): forward and backward of every micro-batch, gradient
//! norm and AdamW, with one thread and with two, of f32 and of bf16 products.
//!
//! The only test of its program: it counts the allocations of all threads.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use toroid_torus::geometry::Place;
use toroid_torus::job::{self, Products};
use toroid_torus::partition::partition;
use toroid_torus::pipeline::InFlight;
use toroid_worker::device::{Buffer, CpuDevice, Device};
use toroid_worker::model::{Alone, Input, Stage};
use toroid_worker::optim::{HostShard, Shard, UpdateAt};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; counting beside it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations before the last two of some steps, and of each of these.
fn allocations(threads: usize, products: Products) -> (usize, usize, usize) {
    let start = ALLOCATIONS.load(Ordering::Relaxed);
    let mut spec = job::parse("steps = 10\n[model]\nlayers = 2\n[data]\npath = \"none\"\n").expect("a valid job");
    spec.products = products;
    let partition = Arc::new(partition(&spec.model, &spec.shape, 0, 0));
    let device = CpuDevice::new(threads);
    let place = Place { tp: 0, pp: 0, dp: 0 };
    let mut stage =
        Stage::new(device.clone(), &spec, &spec.shape, place, &partition, InFlight { micro_batches: 1, split: 0 });
    let mut state = HostShard::zeros(partition.padded_len);
    state.param.iter_mut().enumerate().for_each(|(i, p)| *p = ((i * 7919) % 1000) as f32 / 1e4 - 0.05);
    let mut shard = Shard::alloc(&device, Arc::clone(&partition), 0..partition.padded_len);
    shard.write(&device, &state);
    let ids: Vec<u32> = (0..=spec.batch.micro_batch * spec.model.seq).map(|i| (i * i % 251) as u32).collect();
    let (tokens, targets) = (&ids[..ids.len() - 1], &ids[1..]);
    device.enter(|| {
        let mut step = |t: u64| {
            stage.borrow_params(&shard.param);
            stage.zero_grads();
            for _ in 0..2 {
                let Ok(_) = stage.forward(0, Input::Tokens(tokens), Some(targets), &mut Alone, None);
                let Ok(()) = stage.backward(0, None, 0.5, &mut Alone, None);
            }
            let norm = shard.grad_sum_of_squares(&device, stage.grads().all()).sqrt();
            let at = UpdateAt { t, total: spec.steps, update: t + 1, norm };
            stage.return_params();
            shard.update(&device, stage.grads().all(), &spec.optimizer, at);
        };
        (0..6).for_each(&mut step);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        step(6);
        let between = ALLOCATIONS.load(Ordering::Relaxed);
        step(7);
        (before - start, between - before, ALLOCATIONS.load(Ordering::Relaxed) - between)
    })
}

#[test]
fn a_step_allocates_nothing() {
    for (threads, products) in [(1, Products::F32), (1, Products::Bf16), (2, Products::F32), (2, Products::Bf16)] {
        let (before, one, next) = allocations(threads, products);
        assert!(before > 0, "allocations are counted");
        assert_eq!((one, next), (0, 0), "{threads} threads, {products:?}");
    }
}
