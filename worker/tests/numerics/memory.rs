//! The memory of a place: taken at once before the first step, as the plan counts it, and refused in words where there is too little.

use std::sync::Arc;

use toroid_torus::digest::Digest;
use toroid_torus::geometry::Place;
use toroid_torus::job::JobSpec;
use toroid_torus::partition::partition;
use toroid_torus::plan::memory_of_stage;
use toroid_worker::device::cuda::CudaSnapshot;
use toroid_worker::device::{Buffer, CpuDevice, Device, Snapshot};
use toroid_worker::model::Stage;
use toroid_worker::optim::{Shard, UpdateAt};
use toroid_worker::trainer::memory::reserve_memory;

use crate::emulator;
use crate::support::*;

/// The undivided stage with what its schedule needs; the reference's weights are in it.
fn stage<D: Device + Clone>(device: &D, spec: &JobSpec) -> Stage<D> {
    let place = Place { tp: 0, pp: 0, dp: 0 };
    let partition = partition(&spec.model, &spec.shape, 0, 0);
    let in_flight = spec.pipeline.schedule.stage(0, 1, spec.batch.num_micro_batches).in_flight();
    let mut stage = Stage::new(device.clone(), spec, &spec.shape, place, &partition, in_flight);
    device.write(stage.params_mut().all_mut(), &formula_params(spec, &partition));
    stage
}

fn check_kinds<D: Device + Clone>(device: &D) {
    for recompute in [false, true] {
        let spec = JobSpec { recompute, ..spec(2) };
        let (allocated, planned) = (stage(device, &spec).allocated(), memory_of_stage(&spec, 0));
        assert_eq!(allocated.parameter_bytes, planned.parameters);
        assert_eq!(allocated.gradient_bytes, planned.gradients);
        assert_eq!(allocated.activation_bytes, planned.activations);
    }
}

#[test]
fn each_kind_takes_what_the_plan_says() {
    check_kinds(&CpuDevice::new(1));
    check_kinds(&emulator::device());
}

#[test]
fn a_place_takes_its_memory_before_the_first_step() {
    let spec = spec(2);
    let (tokens, targets) = batch(&reference().text, 0, 2);
    let run = |device: &toroid_worker::device::CudaDevice<emulator::Emulator>| {
        let mut stage = stage(device, &spec);
        let allocations = device.runtime().num_allocations();
        let stats = step(&mut stage, &tokens, &targets, 1.0);
        // As the gathered parameters are shown to the links.
        let sum: f32 = device.with_host(stage.params().all(), |p| p.iter().sum());
        (stats, sum.to_bits(), read(device, stage.grads()), allocations)
    };
    let (without, with) = (emulator::device(), emulator::device());
    let expected = run(&without);
    reserve_memory(&with, &spec, 0).expect("the emulator has room");
    let prepared = with.runtime().num_allocations();
    assert_eq!(prepared, 4, "a block for all buffers, scratch, and two pieces of pinned memory");
    let found = run(&with);
    assert_eq!((found.3, with.runtime().num_allocations()), (prepared, prepared), "nothing is allocated later (D-2)");
    assert!(
        (found.0, found.1, found.2) == (expected.0, expected.1, expected.2),
        "where buffers lie is not in the result"
    );
    reserve_memory(&with, &spec, 0).expect("the room is free again");
    assert_eq!(with.runtime().num_allocations(), prepared, "and is used again");
    let larger =
        JobSpec { batch: toroid_torus::job::BatchConfig { micro_batch: 8, ..spec.batch.clone() }, ..spec.clone() };
    reserve_memory(&with, &larger, 0).expect("the emulator has room");
    assert_eq!(with.runtime().num_allocations(), prepared, "a block that is too small is given back for a larger one");
}

/// Updates while a checkpoint is read leave the memory that it reads, within the place's block.
#[test]
fn an_unwritten_checkpoint_has_its_room() {
    let spec = spec(2);
    let device = emulator::device();
    reserve_memory(&device, &spec, 0).expect("the emulator has room");
    let mut stage = stage(&device, &spec);
    let partition = Arc::new(partition(&spec.model, &spec.shape, 0, 0));
    let mut shard = Shard::alloc(&device, Arc::clone(&partition), 0..partition.shard_len);
    let weights = formula_params(&spec, &partition);
    device.write(shard.param.all_mut(), &weights);
    device.fill(stage.grads_mut().all_mut(), 0.5);
    let allocations = device.runtime().num_allocations();
    for t in 0..3 {
        let (before, digest) = (shard.snapshot(&device), shard.digest(&device));
        let at = UpdateAt { t, total: 10, update: t + 1, norm: 1.0 };
        shard.update(&device, stage.grads().all(), &spec.optimizer, at);
        assert_ne!(shard.digest(&device), digest, "update {t} changes the state");
        let part = |(i, part): (u32, &CudaSnapshot<_>)| {
            part.with_host(0..part.len(), |values| {
                toroid_torus::digest::digest(values, 0, toroid_torus::digest::salt(i))
            })
        };
        let kept: Digest = (0..).zip([&before.param, &before.exp_avg, &before.exp_avg_sq]).map(part).sum();
        assert_eq!(kept, digest, "what the checkpoint reads at update {t}");
        assert_eq!(device.runtime().num_allocations(), allocations, "memory comes from the block (D-2)");
    }
}

#[test]
fn a_device_that_is_too_small_is_one_error() {
    let spec = spec(2);
    let device = emulator::with_memory(50_000_000);
    let error = reserve_memory(&device, &spec, 0).expect_err("it needs more").to_string();
    let activations = toroid_torus::units::bytes(memory_of_stage(&spec, 0).activations);
    for words in [
        "a worker of stage 0 does not fit into the memory of the emulator",
        "and 50.0 MB are free",
        "parameters 8.4 MB, gradients 8.4 MB",
        &format!("activations {activations}"),
        "`recompute = true`",
        "`batch.micro_batch`",
    ] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
    assert_eq!(device.runtime().num_allocations(), 0, "nothing was taken");
}
