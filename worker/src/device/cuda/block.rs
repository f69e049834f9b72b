//! A piece of device memory.

use super::runtime::{DevicePtr, Runtime};

/// Parts of scratch and allocations start at multiples of this many bytes.
pub(super) const ALIGNMENT: usize = 256;

/// Device memory.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub ptr: DevicePtr,
    pub bytes: usize,
}

/// Memory that grows to what is asked of it.
pub(super) fn at_least<R: Runtime>(runtime: &R, block: &mut Block, bytes: usize) -> DevicePtr {
    if block.bytes < bytes {
        if block.bytes > 0 {
            // SAFETY: made by `alloc`; `free` waits for what was asked of it.
            unsafe { runtime.free(block.ptr) };
        }
        *block = Block { ptr: runtime.alloc(bytes), bytes };
    }
    block.ptr
}
