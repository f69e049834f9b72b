//! NVIDIA GPUs, compute capability 8.0 and later.
//!
//! ```text
//!   ops       the operations: shapes to launches          runtime   what they need of a driver, as a trait
//!   attention its kernels; against a cache                launch    launches over elements and rows
//!   device    the device and its buffers                   shared    what keeps them alive
//!   gpu       the driver, through cudarc                   products  cuBLASLt
//!   compile   kernels/*.cu by NVRTC, cached on disk         kernels   their sources and names
//!   arena     which parts of a block of memory are taken    queue     what is on its way to the driver, and CUDA graphs
//!   nccl      sums and gathers between GPUs
//! ```
//!
//! All libraries are loaded when the program runs: it builds and starts where there is none, and [`Gpu::open`] says what is missing.
//!
//! - Buffers are f32. Where products are in bf16 or tf32, operands are rounded on their way into the tensor cores: bf16 in scratch for
//!   cuBLASLt, in shared memory in own kernels. Attention has no tf32 of its own: it is in f32 there. Sums, softmax, norms, the router and the optimizer stay f32.
//! - **D-1** holds: no float atomics; sums over blocks are parts that a second kernel adds in order; cuBLASLt may not split sums in
//!   ways that depend on timing, and chooses by shape and alignment alone.
//! - **D-2** holds: scratch, staging and one block for all buffers of a place are there before its first step (`Device::reserve_memory`). What is
//!   allocated beyond, while shards are split anew, comes from the driver.
//! - The host waits only for a read, never for the number of tokens that an expert got: `offsets` stay on the device.
//! - Everything runs in the order of the calls on one stream, but reads and what moves between GPUs (`nccl`): reads run on a second one and wait for what was asked before, so
//!   that a thread that reads (a checkpoint, say) does not wait for what another asks meanwhile. All copies to and from the host go through
//!   pinned memory. Operations lock the scratch, so threads may share a device.
//! - A snapshot holds the memory of its buffer and is read by the copy stream; whoever changes the buffer meanwhile gets other memory, from the place's block.
//! - Calls are held back until there are some, or somebody waits, and those that are made again and again are one CUDA graph (`queue`). Whoever
//!   uses the compute stream beside the operations goes through `Shared::in_order`.
//!
//! Deliberately absent: returned errors after the start (a panic ends the worker, and its place is healed like any death).

#![allow(unsafe_code)]

mod arena;
mod attention;
mod block;
mod call;
pub mod compile;
mod device;
mod gpu;
pub mod kernels;
mod launch;
pub mod nccl;
mod ops;
mod products;
mod queue;
pub mod runtime;
mod shared;

pub use device::{CudaBuf, CudaDevice, CudaIds, CudaSnapshot, DeviceBuf};
pub use gpu::{CudaError, Gpu, count};
pub use nccl::Nccl;
pub use queue::{GraphCounts, Graphs};
pub use runtime::{Arg, Launch, Runtime, Stream};
