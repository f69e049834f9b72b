//! What the two streams may do in another order than it was asked: nothing that changes a result. The lazy emulator does as little as events
//! allow; without the events it shows that it would see one that is missing.

use toroid_worker::device::cuda::Runtime;
use toroid_worker::device::{Buffer, CudaDevice, Device, Snapshot};

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

/// What a checkpoint's thread reads of `x` while the device has other work, and whether that was still to do afterwards.
fn snapshot_beside_work(device: &CudaDevice<Emulator>) -> (Vec<f32>, bool, Vec<f32>) {
    let (mut x, mut y) = (device.alloc(1000), device.alloc(1000));
    device.fill(x.all_mut(), 3.0);
    device.scale(2.0, x.all_mut());
    let snapshot = device.snapshot(&x);
    // An update goes to other memory, the work after it to that.
    assert!(device.is_shared(&x));
    device.fill(y.all_mut(), 1.0);
    device.add_assign(y.all(), x.all_mut());
    device.submit();
    let values = std::thread::scope(|scope| {
        let read = || (0..10).flat_map(|i| snapshot.with_host(100 * i..100 * (i + 1), <[f32]>::to_vec)).collect();
        scope.spawn(read).join().expect("read")
    });
    let is_work_left = device.runtime().num_pending() > 0;
    drop(snapshot);
    assert!(!device.is_shared(&x));
    (values, is_work_left, read(device, &x))
}

#[test]
fn a_snapshot_is_read_beside_what_is_asked_later() {
    let (values, is_work_left, x) = snapshot_beside_work(&emulator::lazy());
    assert!(values == [6.0; 1000], "found {}", values[0]);
    assert!(is_work_left, "the reader waited for what was asked after the snapshot");
    assert!(x == [7.0; 1000], "found {}", x[0]);
    assert!(snapshot_beside_work(&emulator::lazy_without_events()).0 != values, "a missing event would not be seen");
}
