//! What the two streams may do in another order than it was asked: nothing that changes a result. The lazy emulator does as little as events
//! allow; without the events it shows that it would see one that is missing.

use toroid_worker::device::cuda::Runtime;
use toroid_worker::device::{Buffer, CudaDevice, Device};

use crate::emulator::{self, Emulator};
use crate::support::*;

/// Losses and gradients of two micro-batches, with uploads between them and reads of what kernels made.
fn two_micro_batches(device: &CudaDevice<Emulator>) -> (Vec<f64>, Vec<f32>) {
    let spec = spec(2);
    let (mut stage, _) = whole_on(device, &spec);
    let losses = [0, 5].map(|first| {
        let (tokens, targets) = batch(&reference().text, first, 2);
        total(&spec, &step(&mut stage, &tokens, &targets, 0.5))
    });
    (losses.to_vec(), read(device, stage.grads()))
}

#[test]
fn a_device_that_is_as_late_as_events_allow_gives_the_same_bits() {
    assert!(two_micro_batches(&emulator::lazy()) == two_micro_batches(&emulator::device()));
}

/// `x` is made by a kernel, read, made again and read again, while uploads go through the same pinned memory.
fn reads(device: &CudaDevice<Emulator>) -> Vec<Vec<f32>> {
    let (mut x, mut y) = (device.alloc(1000), device.alloc(1000));
    let mut found = Vec::new();
    for round in 0..3 {
        device.fill(x.all_mut(), round as f32);
        let uploaded: Vec<f32> = (0..1000).map(|i| (i * (round + 1)) as f32).collect();
        device.write(y.all_mut(), &uploaded);
        device.add_assign(y.all(), x.all_mut());
        found.push(read(device, &x));
        device.with_host_mut(y.all_mut(), |y| y.iter_mut().for_each(|v| *v += 1.0));
        found.push(read(device, &y));
    }
    found
}

#[test]
fn reads_wait_for_what_they_read() {
    let expected = reads(&emulator::device());
    assert_eq!(expected[2][7], 15.0, "1 and twice 7");
    assert!(reads(&emulator::lazy()) == expected);
    assert!(reads(&emulator::lazy_without_events()) != expected, "a missing event would not be seen");
}

#[test]
fn uploads_wait_for_nobody_and_do_not_mix() {
    let device = emulator::lazy();
    let mut rows: Vec<_> = (0..100).map(|_| device.alloc(300)).collect();
    let before = device.runtime().num_allocations();
    for (i, row) in rows.iter_mut().enumerate() {
        device.write(row.all_mut(), &[i as f32; 300]);
        device.scale(2.0, row.all_mut());
        if i == 50 {
            assert!(
                device.runtime().num_pending() > 100,
                "the host waited, {} are left",
                device.runtime().num_pending()
            );
        }
    }
    assert!(device.runtime().num_allocations() - before <= 64, "pinned memory is used again");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(read(&device, row), [2.0 * i as f32; 300]);
    }
}

/// Nothing but what the event stands for is waited for.
#[test]
fn an_event_is_a_point_in_its_stream() {
    let device = emulator::lazy();
    let mut x = device.alloc(10);
    device.fill(x.all_mut(), 1.0);
    device.submit();
    let first = device.runtime().record(toroid_worker::device::cuda::Stream::Compute);
    device.fill(x.all_mut(), 2.0);
    device.submit();
    device.runtime().synchronize(&first);
    assert!(device.runtime().has_come(&first));
    assert_eq!(device.runtime().num_pending(), 1, "the second fill");
    assert_eq!(read(&device, &x), [2.0; 10]);
}
