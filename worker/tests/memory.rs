//! What a stage really allocates, against what `toroid plan` says that it needs (`toroid_torus::plan`).
//!
//! The allocator counts the bytes that are in use; one test, so that nobody else allocates meanwhile.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use toroid_torus::geometry::Place;
use toroid_torus::job;
use toroid_torus::partition::partition;
use toroid_torus::plan::{Failures, Machine, Memory, plan};
use toroid_worker::device::CpuDevice;
use toroid_worker::model::Stage;

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to `System` as it is, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Without what the trainer holds beside the stage: ids in and out, and what goes between stages or into sums.
fn planned(memory: &Memory, host_bytes: u64) -> u64 {
    memory.parameters + memory.gradients + memory.activations + memory.scratch - host_bytes
}

#[test]
fn a_stage_allocates_what_the_plan_says() {
    let machine =
        Machine { flops: 1e9, memory_bytes_per_s: 1e9, tp_bytes_per_s: 1e9, link_bytes_per_s: 1e9, latency_s: 0.0 };
    let failures = Failures { mtbf_s: 1e8, detect_s: 5.0, restore_s: 120.0 };
    let shapes = [(1, 1, "1f1b"), (1, 2, "1f1b"), (1, 2, "zero-bubble"), (2, 4, "1f1b"), (2, 4, "zero-bubble")];
    for ((tp, pp, schedule), recompute) in shapes.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let keys =
            format!("recompute = {recompute}\nshape = {{ tp = {tp}, pp = {pp} }}\npipeline.schedule = '{schedule}'");
        let spec = job::parse(&format!("steps = 1\ndata.path = 'text'\n{keys}")).expect("a job");
        let plan = plan(&spec, &machine, &failures);
        let tokens = (spec.batch.micro_batch * spec.model.seq) as u64;
        let activation_bytes = 4 * tokens * spec.model.d_model as u64;
        let host_bytes = 8 * tokens + 2 * activation_bytes + if tp == 2 { 2 * activation_bytes } else { 0 };
        for memory in &plan.memory {
            let device = CpuDevice::new(1);
            let place = Place { tp: 0, pp: memory.stage, dp: 0 };
            let partition = partition(&spec.model, &spec.shape, 0, memory.stage);
            let pipeline = spec.pipeline.schedule.stage(memory.stage, pp, spec.batch.num_micro_batches);
            let before = IN_USE.load(Ordering::Relaxed);
            let stage = Stage::new(device, &spec, &spec.shape, place, &partition, pipeline.in_flight());
            let found = (IN_USE.load(Ordering::Relaxed) - before) as f64;
            let expected = planned(memory, host_bytes) as f64;
            let off = (found - expected).abs() / expected;
            // Buffers are whole cache lines, and the stage has some books of its own.
            assert!(off < 0.005, "{keys}, stage {}: planned {expected}, allocated {found}", memory.stage);
            drop(stage);
        }
    }
}
