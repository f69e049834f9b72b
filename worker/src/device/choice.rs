//! Which device a worker computes on: what the user asked for, and what this machine has.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::cuda::{CudaError, Graphs};
use super::{CpuDevice, CudaDevice};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The first GPU where there is one that works, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// The GPU of this number, from 0.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Choice::Auto),
            None if text == "cpu" => Ok(Choice::Cpu),
            None if text == "cuda" => Ok(Choice::Cuda(0)),
            Some(("cuda", number)) if number.parse::<usize>().is_ok_and(|n| n < 1024) => {
                number.parse().map(Choice::Cuda).map_err(|_| String::from("not a number"))
            }
            _ => Err(format!(
                "the device `{text}` is not known; there are auto, cpu, and cuda:N for GPU number N, from 0"
            )),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The device that a worker computes on.
pub enum Selected {
    Cpu(CpuDevice),
    Cuda(CudaDevice),
}

/// What was asked for is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot compute on {choice}: {error}")]
pub struct DeviceError {
    choice: Choice,
    error: CudaError,
}

impl Choice {
    /// Opens the device, with so many threads if it is the CPU; compiled kernels are kept in `cache`. The second value says why
    /// [`Choice::Auto`] is not a GPU.
    pub fn open(
        self,
        threads: usize,
        cache: &Path,
        graphs: Graphs,
    ) -> Result<(Selected, Option<CudaError>), DeviceError> {
        let cpu = || Selected::Cpu(CpuDevice::new(threads.max(1)));
        let cuda = |ordinal| CudaDevice::open(ordinal, cache, graphs).map(Selected::Cuda);
        match self {
            Choice::Cpu => Ok((cpu(), None)),
            Choice::Cuda(ordinal) => {
                cuda(ordinal).map(|device| (device, None)).map_err(|error| DeviceError { choice: self, error })
            }
            Choice::Auto => Ok(cuda(0).map_or_else(|error| (cpu(), Some(error)), |device| (device, None))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda;

    #[test]
    fn choices_read_back() {
        for (text, expected) in [("auto", Choice::Auto), ("cpu", Choice::Cpu), ("cuda:3", Choice::Cuda(3))] {
            assert_eq!(text.parse(), Ok(expected));
            assert_eq!(expected.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        for bad in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA", "", "cuda:99999"] {
            let error = bad.parse::<Choice>().expect_err(bad);
            assert!(error.contains(bad) && error.contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn graphs_read_back() {
        for graphs in [Graphs::On, Graphs::Off] {
            assert_eq!(graphs.to_string().parse(), Ok(graphs));
        }
        assert_eq!("no".parse::<Graphs>(), Err("CUDA graphs are on or off, found `no`".into()));
    }

    #[test]
    fn auto_takes_the_cpu_where_there_is_no_gpu_and_says_why() {
        let folder = tempfile::tempdir().expect("a folder");
        let (selected, why) = Choice::Auto.open(1, folder.path(), Graphs::On).expect("auto always finds a device");
        assert_eq!(matches!(selected, Selected::Cpu(_)), why.is_some(), "a reason exactly where it is the CPU");
        if let Err(missing) = cuda::count() {
            assert_eq!(why.expect("no GPU").to_string(), missing.to_string());
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Choice::Cuda(1000)
            .open(1, folder.path(), Graphs::On)
            .err()
            .expect("nobody has a thousand GPUs")
            .to_string();
        let expected = match cuda::count() {
            Ok(found) => format!("there is no GPU 1000; this machine has {found}, counted from 0"),
            Err(missing) => missing.to_string(),
        };
        assert_eq!(error, format!("cannot compute on cuda:1000: {expected}"));
    }
}
