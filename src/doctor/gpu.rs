//! GPUs and the libraries that a worker uses of NVIDIA's: whether they are there, and whether a worker could open the first GPU.

use toroid_worker::device::cuda::{CudaError, Graphs, compile, count, nccl};
use toroid_worker::device::{Bf16Choice, Choice, Options};

use super::check::Check;
use crate::daemon::default_cache;

pub fn checks() -> Vec<Check> {
    let num = match count() {
        Ok(num) if num > 0 => num,
        Ok(_) => return vec![Check::ok("GPU", "none; workers compute on the processor")],
        Err(CudaError::NoDriver) => {
            return vec![Check::ok(
                "GPU",
                "none that NVIDIA's driver (libcuda.so) serves; workers compute on the processor",
            )];
        }
        Err(error) => {
            return vec![Check::warning(
                "GPU",
                format!("NVIDIA's driver is there, and: {error}"),
                "a GPU, or no driver",
                "see what `nvidia-smi` says; in a container start it with --gpus all. Workers compute on the processor meanwhile",
            )];
        }
    };
    let mut checks = vec![nvrtc(), of_nccl(num)];
    checks.insert(0, opened(num));
    checks
}

fn nvrtc() -> Check {
    let present = compile::is_present().then(compile::version);
    match present {
        Some(Ok((major, minor))) => Check::ok("NVRTC", format!("{major}.{minor}")),
        Some(Err(error)) => {
            Check::wrong("NVRTC", error.to_string(), "libnvrtc.so that says its version", "install CUDA's NVRTC anew")
        }
        None => Check::wrong(
            "NVRTC",
            "libnvrtc.so is not found",
            "CUDA's NVRTC, which compiles the kernels",
            "install it (package cuda-nvrtc), and have LD_LIBRARY_PATH name its folder",
        ),
    }
}

fn of_nccl(num_gpus: usize) -> Check {
    Check::judged(
        "NCCL",
        if nccl::is_present() { "libnccl.so is there".into() } else { "libnccl.so is not found".into() },
        nccl::is_present() || num_gpus == 1,
        "NCCL, where several GPUs work together",
        "collectives go over Toroid's own links, through the hosts' memory, which is slower: install libnccl2",
    )
}

/// A worker opens it in the same way: driver, NVRTC, cuBLASLt, a context, the kernels.
fn opened(num: usize) -> Check {
    let cache = default_cache();
    let options = Options { threads: 1, bf16: Bf16Choice::Auto, graphs: Graphs::On, cache: &cache };
    match Choice::Cuda(0).open(options) {
        Ok(_) => {
            Check::ok("GPU", format!("{num}; the first can be opened, its kernels are compiled, cuBLASLt is there"))
        }
        Err(error) => Check::wrong(
            "GPU",
            format!("{num}, and {error}"),
            "a GPU that a worker can open",
            "mend what the error names; `toroid worker --device cpu` works without it",
        ),
    }
}
