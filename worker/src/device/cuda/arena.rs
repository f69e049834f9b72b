//! Which parts of large blocks of device memory are taken: a job's buffers lie in one block that is there before its first step.
//!
//! Invariants, which the tests check over random orders: parts start at multiples of [`ALIGNMENT`], lie inside of their block and do not
//! overlap; what is given back is joined with what is free beside it, so that a block whose parts are all back is whole again.
//!
//! Deliberately absent: the memory itself, see [`super::shared`]; and moving what is taken.

use std::collections::BTreeMap;

use super::block::ALIGNMENT;
use super::runtime::DevicePtr;

#[derive(Debug, Default)]
pub struct Arena {
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    start: DevicePtr,
    bytes: usize,
    /// Length by offset; no two touch.
    free: BTreeMap<usize, usize>,
}

impl Arena {
    /// A block that is free.
    pub fn add(&mut self, start: DevicePtr, bytes: usize) {
        self.blocks.push(Block { start, bytes, free: BTreeMap::from([(0, bytes)]) });
    }

    /// The first part that is large enough.
    pub fn take(&mut self, bytes: usize) -> Option<DevicePtr> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        self.blocks.iter_mut().find_map(|block| {
            let (at, len) = block.free.iter().map(|(at, len)| (*at, *len)).find(|(_, len)| *len >= bytes)?;
            block.free.remove(&at);
            if len > bytes {
                block.free.insert(at + bytes, len - bytes);
            }
            Some(block.start + at as u64)
        })
    }

    /// Takes a part back that [`Arena::take`] gave for as many bytes; false where it is of no block here.
    pub fn give(&mut self, ptr: DevicePtr, bytes: usize) -> bool {
        let block = self.blocks.iter_mut().find(|b| b.start <= ptr && ptr < b.start + b.bytes as u64);
        let Some(Block { start, free, .. }) = block else { return false };
        let (mut at, mut len) = ((ptr - *start) as usize, bytes.next_multiple_of(ALIGNMENT));
        if let Some((before, before_len)) = free.range(..at).next_back().map(|(a, l)| (*a, *l))
            && before + before_len == at
        {
            free.remove(&before);
            (at, len) = (before, before_len + len);
        }
        if let Some(after_len) = free.remove(&(at + len)) {
            len += after_len;
        }
        free.insert(at, len);
        true
    }

    /// A part of so many bytes is free.
    pub fn has(&self, bytes: usize) -> bool {
        self.blocks.iter().flat_map(|b| b.free.values()).any(|len| *len >= bytes.next_multiple_of(ALIGNMENT))
    }

    /// Forgets the blocks of which nothing is taken, and says where they are.
    pub fn remove_unused(&mut self) -> Vec<DevicePtr> {
        self.blocks.extract_if(.., |b| b.free.get(&0) == Some(&b.bytes)).map(|b| b.start).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 64 * ALIGNMENT;

    #[test]
    fn parts_do_not_overlap_and_come_back_whole() {
        for seed in 1..=200_u64 {
            let mut state = seed;
            let mut next = |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % n) as usize
            };
            let mut arena = Arena::default();
            arena.add(1 << 20, BLOCK);
            arena.add(1 << 30, BLOCK);
            let mut taken: Vec<(DevicePtr, usize)> = Vec::new();
            for _ in 0..300 {
                if next(3) > 0 {
                    let bytes = 1 + next(5 * ALIGNMENT as u64);
                    if let Some(ptr) = arena.take(bytes) {
                        assert!(ptr.is_multiple_of(ALIGNMENT as u64), "seed {seed}");
                        let end = ptr + bytes as u64;
                        let inside = |start: u64| start <= ptr && end <= start + BLOCK as u64;
                        assert!(inside(1 << 20) || inside(1 << 30), "seed {seed}");
                        let apart = |(other, len): &(DevicePtr, usize)| end <= *other || other + *len as u64 <= ptr;
                        assert!(taken.iter().all(apart), "seed {seed}: parts overlap");
                        taken.push((ptr, bytes));
                    } else {
                        assert!(!arena.has(bytes), "seed {seed}: there was room");
                    }
                } else if !taken.is_empty() {
                    let (ptr, bytes) = taken.swap_remove(next(taken.len() as u64));
                    assert!(arena.give(ptr, bytes), "seed {seed}");
                }
            }
            for (ptr, bytes) in taken.drain(..) {
                assert!(arena.give(ptr, bytes), "seed {seed}");
            }
            assert!(arena.has(BLOCK) && !arena.has(BLOCK + 1), "seed {seed}: blocks are whole again");
            assert_eq!(arena.remove_unused(), [1 << 20, 1 << 30], "seed {seed}");
            assert_eq!(arena.take(1), None);
            assert!(!arena.give(1 << 20, 1), "no block of this arena");
        }
    }
}
