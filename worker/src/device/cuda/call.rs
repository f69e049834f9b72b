//! What the calls of a driver are made of: addresses, arguments, launches, products, streams.

use crate::device::Products;

/// Address in the device's memory.
pub type DevicePtr = u64;

/// An argument of a kernel, as its declaration has it: pointers and `u64` are 8 bytes, the others 4. Equal ones have equal bits.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Ptr(DevicePtr),
    U64(u64),
    U32(u32),
    F32(f32),
}

impl Arg {
    /// Little-endian bits, as the kernel reads them.
    pub fn bits(self) -> u64 {
        match self {
            Arg::Ptr(v) | Arg::U64(v) => v,
            Arg::U32(v) => u64::from(v),
            Arg::F32(v) => u64::from(v.to_bits()),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Arg::Ptr(_) | Arg::U64(_) => 8,
            Arg::U32(_) | Arg::F32(_) => 4,
        }
    }
}

impl PartialEq for Arg {
    fn eq(&self, other: &Arg) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.bits() == other.bits()
    }
}

/// Blocks along x, y and z, threads of a block, bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: usize,
}

/// A matrix of a product: element `(r, c)` is element `r * ld + c`, or `c * ld + r` where it is transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor {
    pub ptr: DevicePtr,
    pub ld: usize,
    pub transposed: bool,
}

/// `c = alpha * a b + beta * c`; `a (m, k)`, `b (k, n)`, `c (m, n)` row-major f32. The elements of `a` and `b` are bf16 where
/// `products` says so, else f32, which `tf32` rounds on the way. Equal ones have equal bits.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub products: Products,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f32,
    pub beta: f32,
    pub a: Factor,
    pub b: Factor,
    pub c: DevicePtr,
}

impl PartialEq for Product {
    fn eq(&self, other: &Product) -> bool {
        let all = |p: &Product| (p.products, [p.m, p.n, p.k], [p.alpha, p.beta].map(f32::to_bits), [p.a, p.b], p.c);
        all(self) == all(other)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Compute,
    Copy,
    /// Collectives that run under computation, see [`super::nccl`].
    Comm,
}
