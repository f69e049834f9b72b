//! State of a shard on its way to another place.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use toroid_torus::digest::{DIGEST_BYTES, Digest};

use crate::device::{Buffer, Device};
use crate::optim::Shard;

/// State and digest of a range of a shard, `12 * range.len() + DIGEST_BYTES` bytes. The digest is taken where the state lies: what the way to the
/// other holder damages, copies to and from a GPU included, is seen there.
pub(super) fn encode<D: Device>(device: &D, shard: &Shard<D>, range: Range<usize>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12 * range.len() + DIGEST_BYTES);
    for part in [&shard.param, &shard.exp_avg, &shard.exp_avg_sq] {
        device.with_host(part.view(range.clone()), |values| bytes.extend_from_slice(cast_slice(values)));
    }
    bytes.extend_from_slice(&shard.digest_of(device, range).to_bytes());
    bytes
}

pub(super) fn decode<D: Device>(
    device: &D,
    bytes: &[u8],
    shard: &mut Shard<D>,
    range: Range<usize>,
) -> Result<(), String> {
    let (state, expected) = bytes.split_at(12 * range.len());
    let parts = [&mut shard.param, &mut shard.exp_avg, &mut shard.exp_avg_sq];
    for (part, bytes) in parts.into_iter().zip(state.chunks_exact(4 * range.len().max(1))) {
        let copy = |values: &mut [f32]| cast_slice_mut::<f32, u8>(values).copy_from_slice(bytes);
        device.with_host_mut(part.view_mut(range.clone()), copy);
    }
    let expected = Digest::from_bytes(expected.try_into().expect("a digest follows the state"));
    let found = shard.digest_of(device, range);
    if found == expected { Ok(()) } else { Err(format!("its digest is {found}, expected {expected}")) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use toroid_torus::partition::partition;

    use super::*;
    use crate::device::CpuDevice;

    /// Any bit of what is sent, of the digest too.
    #[test]
    fn a_flip_on_the_way_is_seen() {
        let device = CpuDevice::new(1);
        let spec = toroid_torus::job::parse("steps = 1\ndata.path = 'text'").expect("a job");
        let partition = Arc::new(partition(&spec.model, &spec.shape, 0, 0));
        let new = || Shard::alloc(&device, Arc::clone(&partition), 0..1001);
        let (mut from, mut to) = (new(), new());
        for (i, part) in [&mut from.param, &mut from.exp_avg, &mut from.exp_avg_sq].into_iter().enumerate() {
            device.fill(part.view_mut(10..1001), 0.25 * i as f32);
        }
        let sent = encode(&device, &from, 3..998);
        assert_eq!(sent.len(), 12 * 995 + DIGEST_BYTES);
        assert_eq!(decode(&device, &sent, &mut to, 3..998), Ok(()));
        assert_eq!(to.digest_of(&device, 3..998), from.digest_of(&device, 3..998));
        for bit in (0..8 * sent.len()).step_by(997).chain([8 * sent.len() - 1]) {
            let mut flipped = sent.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = decode(&device, &flipped, &mut to, 3..998).expect_err("a flipped bit");
            assert!(error.contains("its digest is") && error.contains("expected"), "bit {bit}: {error}");
        }
    }
}
