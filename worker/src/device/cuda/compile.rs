//! The kernels, compiled by NVRTC for the GPU that was found, and kept on disk by the digest of everything that decides the result.
//!
//! A cached file is a blake3 of what follows it, so that a damaged one is seen and made anew. It is put in place by a rename:
//! workers that start together never read half of one.

use std::ffi::{CString, c_char};
use std::path::Path;

use cudarc::nvrtc::{result, sys};

use super::kernels::Source;

const DIGEST_BYTES: usize = 32;

/// A compiled source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// A cubin for a real architecture, PTX for a virtual one.
    pub image: Vec<u8>,
    /// What the compiler says, with registers and spills of each kernel.
    pub log: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("{file} does not compile for {arch} (please report it):\n{log}")]
    Rejected { file: &'static str, arch: String, log: String },
    #[error("NVRTC cannot {what}: {error}")]
    Nvrtc { what: &'static str, error: result::NvrtcError },
    #[error("NVRTC {major}.{minor} knows no architecture up to {capability}; a later one is needed, or a later GPU")]
    Architecture { major: i32, minor: i32, capability: i32 },
}

/// NVRTC can be loaded.
pub fn is_present() -> bool {
    // SAFETY: loads a library and lets go of it; its initializers are NVIDIA's.
    unsafe { sys::is_culib_present() }
}

fn nvrtc(what: &'static str, status: sys::nvrtcResult) -> Result<(), CompileError> {
    status.result().map_err(|error| CompileError::Nvrtc { what, error })
}

/// `(major, minor)` of NVRTC.
pub fn version() -> Result<(i32, i32), CompileError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both point to integers.
    nvrtc("say its version", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

/// The `--gpu-architecture` for a GPU of this compute capability (90 for 9.0): its own, or where NVRTC is older than the GPU, the
/// latest that it knows, as PTX that the driver compiles.
pub fn architecture(capability: i32) -> Result<String, CompileError> {
    let mut num = 0;
    // SAFETY: points to an integer.
    nvrtc("count its architectures", unsafe { sys::nvrtcGetNumSupportedArchs(&mut num) })?;
    let mut known = vec![0; num as usize];
    // SAFETY: room for as many as it said.
    nvrtc("list its architectures", unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) })?;
    if known.contains(&capability) {
        return Ok(format!("sm_{capability}"));
    }
    let (major, minor) = version()?;
    let latest = known.into_iter().filter(|k| *k < capability).max();
    latest.map(|k| format!("compute_{k}")).ok_or(CompileError::Architecture { major, minor, capability })
}

fn options(arch: &str) -> [String; 3] {
    [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--ptxas-options=-v".into()]
}

/// A program that is destroyed in any case.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program`, destroyed once. That it cannot be destroyed would be a leak and no more.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles a source for `arch`, `sm_90` or `compute_90`.
pub fn compile(source: &Source, arch: &str) -> Result<Compiled, CompileError> {
    let text = CString::new(source.translation_unit()).expect("sources have no NUL");
    let name = CString::new(source.file).expect("names have no NUL");
    let what = "make a program";
    let program = result::create_program(&text, Some(&name)).map_err(|error| CompileError::Nvrtc { what, error })?;
    let program = Program(program);
    // SAFETY: the program is alive.
    let compiled = unsafe { result::compile_program(program.0, &options(arch)) };
    // SAFETY: as above.
    let log = read(
        "read the log",
        |n| unsafe { sys::nvrtcGetProgramLogSize(program.0, n) },
        |to| unsafe { sys::nvrtcGetProgramLog(program.0, to) },
    )?;
    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string();
    if compiled.is_err() {
        return Err(CompileError::Rejected { file: source.file, arch: arch.into(), log });
    }
    let image = if arch.starts_with("sm_") {
        // SAFETY: as above.
        read(
            "read the cubin",
            |n| unsafe { sys::nvrtcGetCUBINSize(program.0, n) },
            |to| unsafe { sys::nvrtcGetCUBIN(program.0, to) },
        )?
    } else {
        // SAFETY: as above.
        read(
            "read the PTX",
            |n| unsafe { sys::nvrtcGetPTXSize(program.0, n) },
            |to| unsafe { sys::nvrtcGetPTX(program.0, to) },
        )?
    };
    Ok(Compiled { image, log })
}

/// Bytes of which one call says how many and another writes them.
fn read(
    what: &'static str,
    size: impl FnOnce(*mut usize) -> sys::nvrtcResult,
    fill: impl FnOnce(*mut c_char) -> sys::nvrtcResult,
) -> Result<Vec<u8>, CompileError> {
    let mut bytes = 0;
    nvrtc(what, size(&mut bytes))?;
    let mut out = vec![0_u8; bytes];
    nvrtc(what, fill(out.as_mut_ptr().cast()))?;
    Ok(out)
}

/// The image of a source, from `cache` where it is there. A cache that cannot be read or written costs time and nothing else.
pub fn cached(source: &Source, arch: &str, driver: i32, cache: &Path) -> Result<Vec<u8>, CompileError> {
    let (major, minor) = version()?;
    let mut hasher = blake3::Hasher::new();
    for part in
        [&source.translation_unit(), &options(arch).join(" "), &format!("nvrtc {major}.{minor} driver {driver}")]
    {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let path = cache.join(format!("{}-{arch}-{}", source.file, &hasher.finalize().to_hex()[..32]));
    if let Some(image) = load(&path) {
        return Ok(image);
    }
    let image = compile(source, arch)?.image;
    if let Err(error) = store(&path, &image) {
        tracing::warn!(
            "cannot keep the compiled kernels in {}: {error}; the next start compiles again",
            path.display()
        );
    }
    Ok(image)
}

/// A whole image, or nothing.
fn load(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (digest, image) = bytes.split_at_checked(DIGEST_BYTES)?;
    (blake3::hash(image).as_bytes() == digest).then(|| image.to_vec())
}

fn store(path: &Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, [&blake3::hash(image).as_bytes()[..], image].concat())?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_file_is_no_image() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kernels/k");
        assert_eq!(load(&path), None, "nothing is there");
        store(&path, b"image").expect("stored");
        assert_eq!(load(&path).as_deref(), Some(&b"image"[..]));
        let mut bytes = std::fs::read(&path).expect("read");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(load(&path), None, "one bit is wrong");
        std::fs::write(&path, &bytes[..20]).expect("written");
        assert_eq!(load(&path), None, "cut short");
    }
}
