//! NCCL's own library. It is loaded when it is asked for; where there is none nothing else changes.
//!
//! The types are cudarc's. Its loader is not used: it does not know the name `libnccl.so.2`, under which NVIDIA's packages install the library
//! for those who run programs, and a missing symbol is a panic there.
//!
//! Communicators are non-blocking (`blocking = 0`): no call waits for another rank, and [`Nccl::is_ready`] says when NCCL has done its part.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::LazyLock;

use cudarc::driver::result as driver;
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclResult_t, ncclUniqueId};
use libloading::Library;

use super::super::gpu::Gpu as Device;
use super::super::runtime::{Arg, DevicePtr, Stream};
use super::{Nccl, PointToPoint};
use crate::comm::nccl::{Gpu, UniqueId};

/// The first version whose non-blocking communicators can be aborted at any time.
const MIN_VERSION: c_int = 21_800;

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// What is called, as `nccl.h` declares it. Results are numbers: a later NCCL may have more of them than cudarc's enumeration.
struct Api {
    version: u32,
    // SAFETY: these are declared as in NCCL's header; each is called below with what that asks for.
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int,
    init_rank_config: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> c_int,
    async_error: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(ncclComm_t) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    // SAFETY: as above.
    send: unsafe extern "C" fn(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> c_int,
    recv: unsafe extern "C" fn(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> c_int,
    /// What the functions lie in.
    _library: Library,
}

static API: LazyLock<Option<Api>> = LazyLock::new(|| {
    // SAFETY: loads NVIDIA's library; its initializers are NVIDIA's.
    let library = NAMES.into_iter().find_map(|name| unsafe { Library::new(name) }.ok())?;
    Api::new(library).map_err(|why| tracing::warn!("the NCCL library cannot be used: {why}")).ok()
});

/// A library that can be used is on this machine.
pub fn is_present() -> bool {
    API.is_some()
}

const SUCCESS: c_int = ncclResult_t::ncclSuccess as c_int;
const IN_PROGRESS: c_int = ncclResult_t::ncclInProgress as c_int;

impl Api {
    fn new(library: Library) -> Result<Api, String> {
        fn symbol<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
            // SAFETY: every caller names the function's type as NCCL's header declares it.
            unsafe { library.get::<F>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|e| e.to_string())
        }
        // SAFETY: as above.
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = symbol(&library, "ncclGetVersion")?;
        let mut version = 0;
        // SAFETY: points to an integer.
        let result = unsafe { get_version(&mut version) };
        if result != SUCCESS || version < MIN_VERSION {
            return Err(format!("it says version {version} (result {result}), {MIN_VERSION} or later is needed"));
        }
        Ok(Api {
            version: version as u32,
            error_string: symbol(&library, "ncclGetErrorString")?,
            unique_id: symbol(&library, "ncclGetUniqueId")?,
            init_rank_config: symbol(&library, "ncclCommInitRankConfig")?,
            async_error: symbol(&library, "ncclCommGetAsyncError")?,
            abort: symbol(&library, "ncclCommAbort")?,
            group_start: symbol(&library, "ncclGroupStart")?,
            group_end: symbol(&library, "ncclGroupEnd")?,
            send: symbol(&library, "ncclSend")?,
            recv: symbol(&library, "ncclRecv")?,
            _library: library,
        })
    }

    fn get() -> &'static Api {
        API.as_ref().expect("whoever has no library said so when the epoch began")
    }

    /// What was asked for is done, or being done.
    fn check(&self, result: c_int) -> Result<(), String> {
        if result == SUCCESS || result == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: NCCL gives a static string for every result.
        let text = unsafe { CStr::from_ptr((self.error_string)(result)) };
        Err(text.to_string_lossy().into_owned())
    }

    fn new_unique_id(&self) -> Result<UniqueId, String> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: points to an id.
        self.check(unsafe { (self.unique_id)(&mut id) })?;
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }
}

/// A communicator's handle.
pub struct Communicator(ncclComm_t);

// SAFETY: NCCL allows any thread to use a communicator, one at a time; the device's lock sees to that.
unsafe impl Send for Communicator {}

impl Nccl for Device {
    type Communicator = Communicator;

    fn nccl_version(&self) -> Option<u32> {
        API.as_ref().map(|api| api.version)
    }

    fn gpu(&self) -> Gpu {
        self.enter();
        let uuid = self.check("say who it is", driver::device::get_uuid(self.device));
        Gpu(uuid.bytes.map(|byte| byte as u8))
    }

    fn unique_id(&self) -> Result<UniqueId, String> {
        self.enter();
        Api::get().new_unique_id()
    }

    fn init(&self, id: &UniqueId, index: usize, size: usize) -> Result<Communicator, String> {
        self.enter();
        let api = Api::get();
        let id = ncclUniqueId { internal: id.0.map(|byte| byte as c_char) };
        let (mut config, mut communicator) = (non_blocking(), std::ptr::null_mut());
        // SAFETY: points to a handle and to a configuration that live through the call; the GPU's context is current.
        let result =
            unsafe { (api.init_rank_config)(&mut communicator, size as c_int, id, index as c_int, &mut config) };
        api.check(result)?;
        Ok(Communicator(communicator))
    }

    fn is_ready(&self, communicator: &Communicator) -> Result<bool, String> {
        let (api, mut state) = (Api::get(), SUCCESS);
        // SAFETY: the communicator is alive.
        api.check(unsafe { (api.async_error)(communicator.0, &mut state) })?;
        api.check(state)?;
        Ok(state == SUCCESS)
    }

    // SAFETY: as the trait says.
    unsafe fn exchange(
        &self,
        communicator: &Communicator,
        stream: Stream,
        transfers: &[PointToPoint],
    ) -> Result<(), String> {
        self.enter();
        let (api, stream) = (Api::get(), self.stream(stream).cast());
        let kind = ncclDataType_t::ncclUint8;
        // SAFETY: no arguments.
        api.check(unsafe { (api.group_start)() })?;
        // SAFETY: the caller's promise; both modules of cudarc name the same opaque stream.
        let asked = transfers.iter().try_for_each(|transfer| unsafe {
            api.check(match *transfer {
                PointToPoint::Send { peer, from, bytes } => {
                    (api.send)(from as *const c_void, bytes, kind, peer as c_int, communicator.0, stream)
                }
                PointToPoint::Recv { peer, to, bytes } => {
                    (api.recv)(to as *mut c_void, bytes, kind, peer as c_int, communicator.0, stream)
                }
            })
        });
        // A group that was begun is ended, whatever went into it.
        // SAFETY: no arguments.
        let ended = api.check(unsafe { (api.group_end)() });
        asked.and(ended)
    }

    fn abort(&self, communicator: Communicator) {
        self.enter();
        let api = Api::get();
        // SAFETY: the communicator is alive, and nobody has it any more.
        if let Err(why) = api.check(unsafe { (api.abort)(communicator.0) }) {
            tracing::warn!("NCCL cannot abort a communicator: {why}");
        }
    }

    // SAFETY: as the trait says.
    unsafe fn add(&self, stream: Stream, x: DevicePtr, y: DevicePtr, n: usize) {
        let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::U64(n as u64)];
        // SAFETY: the caller's promise, and the kernel's arguments.
        unsafe { self.launch_on(stream, "add_assign", super::super::launch::flat(n), &args) };
    }
}

/// `NCCL_CONFIG_INITIALIZER` with `blocking = 0`. NCCL reads as much of it as `size` says.
fn non_blocking() -> ncclConfig_t {
    const UNDEFINED: c_int = c_int::MIN;
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
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

    /// Where the library is at hand it says its version and what its errors are called, without a GPU; where it is not, nothing panics.
    #[test]
    fn the_library_is_asked_only_where_it_is_there() {
        let Some(api) = API.as_ref() else {
            assert!(!is_present());
            return;
        };
        assert!(is_present() && api.version >= MIN_VERSION as u32);
        assert_eq!((api.check(SUCCESS), api.check(IN_PROGRESS)), (Ok(()), Ok(())));
        let error = api.check(ncclResult_t::ncclInvalidArgument as c_int).expect_err("an error");
        assert!(error.contains("invalid argument"), "{error}");
    }

    #[test]
    fn a_communicator_does_not_block() {
        let config = non_blocking();
        assert_eq!((config.size, config.blocking), (size_of_val(&config), 0));
    }
}
