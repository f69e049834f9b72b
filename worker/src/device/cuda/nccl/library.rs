//! NCCL's own library, through cudarc's thin layer. It is loaded when it is asked for; where there is none nothing else changes.
//!
//! Communicators are non-blocking (`blocking = 0`): no call waits for another rank, and [`Nccl::is_ready`] says when NCCL has done its part.

use std::ffi::{CStr, c_char, c_int};
use std::sync::LazyLock;

use cudarc::driver::result as driver;
use cudarc::nccl::result::{NcclError, NcclStatus};
use cudarc::nccl::{result, sys};

use super::super::gpu::Gpu as Device;
use super::super::runtime::{Arg, DevicePtr, Stream};
use super::{Nccl, PointToPoint};
use crate::comm::nccl::{Gpu, UniqueId};

/// The first version with non-blocking communicators that can be aborted at any time (NCCL 2.18).
const MIN_VERSION: c_int = 21_800;

/// The library is on this machine.
pub fn is_present() -> bool {
    // SAFETY: loads a library and lets go of it; its initializers are NVIDIA's.
    static IS_PRESENT: LazyLock<bool> = LazyLock::new(|| unsafe { sys::is_culib_present() });
    *IS_PRESENT
}

/// A communicator's handle.
pub struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL allows any thread to use a communicator, one at a time; the device's lock sees to that.
unsafe impl Send for Communicator {}

fn why(error: NcclError) -> String {
    // SAFETY: NCCL gives a static string for every result.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(error.0)) };
    text.to_string_lossy().into_owned()
}

impl Nccl for Device {
    type Communicator = Communicator;

    fn nccl_version(&self) -> Option<u32> {
        static VERSION: LazyLock<Option<u32>> = LazyLock::new(|| {
            let version = is_present().then(result::get_nccl_version)?;
            match version {
                Ok(version) if version >= MIN_VERSION => u32::try_from(version).ok(),
                Ok(version) => {
                    tracing::warn!("NCCL {version} is too old to be used, {MIN_VERSION} or later is needed");
                    None
                }
                Err(error) => {
                    tracing::warn!("NCCL does not say its version: {}", why(error));
                    None
                }
            }
        });
        *VERSION
    }

    fn gpu(&self) -> Gpu {
        self.enter();
        let uuid = self.check("say who it is", driver::device::get_uuid(self.device));
        Gpu(uuid.bytes.map(|byte| byte as u8))
    }

    fn unique_id(&self) -> Result<UniqueId, String> {
        result::get_uniqueid().map(|id| UniqueId(id.internal.map(|byte| byte as u8))).map_err(why)
    }

    fn init(&self, id: &UniqueId, index: usize, size: usize) -> Result<Communicator, String> {
        self.enter();
        let id = sys::ncclUniqueId { internal: id.0.map(|byte| byte as c_char) };
        let mut config = non_blocking();
        let mut communicator = std::ptr::null_mut();
        // SAFETY: points to a handle and to a configuration that live through the call; the GPU's context is current.
        unsafe { result::comm_init_rank_config(&mut communicator, size as c_int, id, index as c_int, &mut config) }
            .map_err(why)?;
        Ok(Communicator(communicator))
    }

    fn is_ready(&self, communicator: &Communicator) -> Result<bool, String> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is alive.
        unsafe { sys::ncclCommGetAsyncError(communicator.0, &mut state) }.result().map_err(why)?;
        state.result().map(|status| status == NcclStatus::Success).map_err(why)
    }

    // SAFETY: as the trait says.
    unsafe fn exchange(
        &self,
        communicator: &Communicator,
        stream: Stream,
        transfers: &[PointToPoint],
    ) -> Result<(), String> {
        self.enter();
        let stream = self.stream(stream).cast();
        let bytes_of = sys::ncclDataType_t::ncclUint8;
        result::group_start().map_err(why)?;
        // SAFETY: the caller's promise; both modules of cudarc name the same opaque stream.
        let asked = transfers.iter().try_for_each(|transfer| unsafe {
            match *transfer {
                PointToPoint::Send { peer, from, bytes } => {
                    result::send(from as *const _, bytes, bytes_of, peer as c_int, communicator.0, stream)
                }
                PointToPoint::Recv { peer, to, bytes } => {
                    result::recv(to as *mut _, bytes, bytes_of, peer as c_int, communicator.0, stream)
                }
            }
            .map(|_| ())
        });
        // A group that was begun is ended, whatever went into it.
        let ended = result::group_end().map(|_| ());
        asked.and(ended).map_err(why)
    }

    fn abort(&self, communicator: Communicator) {
        self.enter();
        // SAFETY: the communicator is alive, and nobody has it any more.
        if let Err(error) = unsafe { result::comm_abort(communicator.0) } {
            tracing::warn!("NCCL cannot abort a communicator: {}", why(error));
        }
    }

    // SAFETY: as the trait says.
    unsafe fn add(&self, stream: Stream, x: DevicePtr, y: DevicePtr, n: usize) {
        let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::U64(n as u64)];
        // SAFETY: the caller's promise, and the kernel's arguments.
        unsafe { self.launch_on(stream, "add_assign", super::super::ops::flat(n), &args) };
    }
}

/// `NCCL_CONFIG_INITIALIZER` with `blocking = 0`. NCCL reads as much of it as `size` says.
fn non_blocking() -> sys::ncclConfig_t {
    const UNDEFINED: c_int = c_int::MIN;
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: 22_200,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the library is at hand it gives ids and its version, without a GPU; where it is not, nothing is loaded and nothing panics.
    #[test]
    fn the_library_is_asked_only_where_it_is_there() {
        if !is_present() {
            return;
        }
        assert!(result::get_nccl_version().is_ok_and(|version| version >= 20_000));
        let config = non_blocking();
        assert_eq!((config.size, config.blocking), (size_of_val(&config), 0));
    }
}
