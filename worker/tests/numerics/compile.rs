//! Every kernel compiles for the oldest and the newest architecture that matter, without a GPU, and keeps its values in registers.
//!
//! NVRTC is NVIDIA's compiler as a library. `scripts/setup.sh` installs it as a Python package, since most machines without a GPU lack it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toroid_worker::device::cuda::compile::{self, CompileError};
use toroid_worker::device::cuda::kernels::{SOURCES, Source};

const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// A few registers of a kernel may go through memory, once a loop; more would be felt.
const MOST_SPILLED_BYTES: usize = 32;

/// Makes NVRTC known to this process: a library that is loaded is found by its name.
#[allow(unsafe_code)]
fn load_nvrtc() {
    if compile::is_present() {
        return;
    }
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect()
    };
    let packages = below(&venv).into_iter().flat_map(|python| below(&python.join("site-packages/nvidia")));
    let library = packages
        .flat_map(|p| below(&p.join("lib")))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so.")));
    let library = library.unwrap_or_else(|| panic!("no NVRTC in {}; scripts/setup.sh installs it", venv.display()));
    // SAFETY: NVIDIA's library; its initializers are its own.
    let loaded = unsafe { libloading::Library::new(&library) };
    // Loaded for good, so that it can be found.
    std::mem::forget(loaded.unwrap_or_else(|e| panic!("cannot load {}: {e}", library.display())));
    assert!(compile::is_present(), "{} is loaded and not found by its name", library.display());
}

/// What `ptxas -v` says of one kernel.
#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    registers: usize,
    spilled_bytes: usize,
}

/// The log has, for each kernel: `Compiling entry function 'name'`, `... N bytes spill stores, ...`, `Used N registers, ...`.
fn usage(log: &str) -> BTreeMap<&str, Usage> {
    let before = |line: &str, words: &str| -> Option<usize> {
        line.split_once(words)?.0.split_whitespace().next_back()?.parse().ok()
    };
    let mut found: BTreeMap<&str, Usage> = BTreeMap::new();
    let mut current = "";
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split('\'').next().unwrap_or_default();
        }
        if let Some(bytes) = before(line, " bytes spill stores") {
            found.entry(current).or_default().spilled_bytes = bytes;
        }
        if let Some(registers) = before(line, " registers") {
            found.entry(current).or_default().registers = registers;
        }
    }
    found
}

fn check(source: &Source, arch: &str) {
    let compiled = compile::compile(source, arch).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(&compiled.image[..4], b"\x7fELF", "a cubin of {}", source.file);
    let usage = usage(&compiled.log);
    let names: Vec<&str> = usage.keys().copied().collect();
    let mut expected = source.kernels.to_vec();
    expected.sort_unstable();
    assert_eq!(names, expected, "the kernels of {} are those that are listed:\n{}", source.file, compiled.log);
    for (kernel, usage) in usage {
        assert!(usage.registers > 0, "{kernel} for {arch}: {usage:?}");
        assert!(usage.spilled_bytes <= MOST_SPILLED_BYTES, "{kernel} for {arch} spills registers: {usage:?}");
    }
}

#[test]
fn every_kernel_compiles_and_does_not_spill() {
    load_nvrtc();
    std::thread::scope(|scope| {
        for arch in ARCHITECTURES {
            scope.spawn(move || SOURCES.iter().for_each(|source| check(source, arch)));
        }
    });
}

#[test]
fn an_error_shows_what_the_compiler_says() {
    load_nvrtc();
    let bad = Source {
        file: "bad.cu",
        header: None,
        text: "KERNEL broken(float* x) {\n    x[0] = nowhere;\n}\n",
        kernels: &["broken"],
    };
    let Err(error @ CompileError::Rejected { .. }) = compile::compile(&bad, "sm_90") else {
        panic!("a wrong source compiles");
    };
    let text = error.to_string();
    for words in ["bad.cu", "sm_90", "bad.cu(2)", "nowhere"] {
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
}

#[test]
fn a_gpu_later_than_nvrtc_gets_ptx() {
    load_nvrtc();
    assert_eq!(compile::architecture(90).expect("known"), "sm_90");
    let later = compile::architecture(990).expect("something earlier is known");
    assert!(later.starts_with("compute_"), "{later}");
    let ptx = compile::compile(&SOURCES[SOURCES.len() - 1], &later).unwrap_or_else(|e| panic!("{e}")).image;
    assert!(String::from_utf8_lossy(&ptx).contains(".target sm_") && ptx.ends_with(&[0]), "PTX that ends with NUL");
    assert!(matches!(compile::architecture(20), Err(CompileError::Architecture { capability: 20, .. })));
}
