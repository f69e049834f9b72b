//! Which device a worker computes on: what the user asked for, and what this machine has.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::cpu::Bf16Error;
use super::cuda::{CudaError, Graphs};
use super::{Bf16Choice, CpuDevice, CudaDevice};

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

/// How it computes.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Of the CPU; at least one is taken.
    pub threads: usize,
    /// Products of bf16 on the CPU.
    pub bf16: Bf16Choice,
    pub graphs: Graphs,
    /// Folder for compiled kernels and what was measured.
    pub cache: &'a Path,
}

/// What was asked for is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot compute on {choice}: {why}")]
pub struct DeviceError {
    choice: Choice,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error(transparent)]
    Bf16(#[from] Bf16Error),
}

impl Choice {
    /// Opens the device. The second value says why [`Choice::Auto`] is not a GPU.
    pub fn open(self, options: Options<'_>) -> Result<(Selected, Option<CudaError>), DeviceError> {
        let Options { threads, bf16, graphs, cache } = options;
        let cpu = || CpuDevice::open(threads.max(1), bf16, cache).map(Selected::Cpu);
        let cuda = |ordinal| CudaDevice::open(ordinal, cache, graphs).map(Selected::Cuda);
        let opened = || match self {
            Choice::Cpu => Ok((cpu()?, None)),
            Choice::Cuda(ordinal) => Ok((cuda(ordinal)?, None)),
            Choice::Auto => match cuda(0) {
                Ok(device) => Ok((device, None)),
                Err(why_no_gpu) => Ok((cpu()?, Some(why_no_gpu))),
            },
        };
        opened().map_err(|why| DeviceError { choice: self, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda;

    fn options(cache: &Path) -> Options<'_> {
        Options { threads: 1, bf16: Bf16Choice::Auto, graphs: Graphs::On, cache }
    }

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
        let (selected, why) = Choice::Auto.open(options(folder.path())).expect("auto always finds a device");
        assert_eq!(matches!(selected, Selected::Cpu(_)), why.is_some(), "a reason exactly where it is the CPU");
        if let Err(missing) = cuda::count() {
            assert_eq!(why.expect("no GPU").to_string(), missing.to_string());
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let error =
            Choice::Cuda(1000).open(options(folder.path())).err().expect("nobody has a thousand GPUs").to_string();
        let expected = match cuda::count() {
            Ok(found) => format!("there is no GPU 1000; this machine has {found}, counted from 0"),
            Err(missing) => missing.to_string(),
        };
        assert_eq!(error, format!("cannot compute on cuda:1000: {expected}"));
    }
}
