//! Where a thread's products pack their operands.

use std::cell::RefCell;

/// Units of 4 bytes for tiles of the left operand.
pub const LEFT: usize = 34_816;
/// Units of 4 bytes for a block of the right operand.
pub const RIGHT: usize = 131_072;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

struct Packed {
    left: Box<[Line]>,
    right: Box<[Line]>,
}

impl Packed {
    fn new() -> Packed {
        let lines = |units: usize| vec![Line([0; 16]); units.div_ceil(16)].into_boxed_slice();
        Packed { left: lines(LEFT), right: lines(RIGHT) }
    }
}

/// Calls `f` with this thread's memory for [`LEFT`] and [`RIGHT`] units, at addresses that are multiples of 64 bytes. It is allocated at the thread's
/// first product.
pub fn with_packed<R>(f: impl FnOnce(*mut u32, *mut u32) -> R) -> R {
    thread_local!(static PACKED: RefCell<Packed> = RefCell::new(Packed::new()));
    PACKED.with_borrow_mut(|packed| f(packed.left.as_mut_ptr().cast(), packed.right.as_mut_ptr().cast()))
}
