//! The build script of etcd-client calls `protoc`, for which `scripts/protoc` stands in with descriptors that are kept beside it. This test makes
//! them again from the .proto files of etcd-client and compares; with `TOROID_GENERATE=1` (`make fix`) it writes them instead.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;

/// As the build script of etcd-client names them.
const FILES: [&str; 5] = [
    "etcd/api/authpb/auth.proto",
    "etcd/api/etcdserverpb/rpc.proto",
    "etcd/api/mvccpb/kv.proto",
    "etcd/server/etcdserver/api/v3election/v3electionpb/v3election.proto",
    "etcd/server/etcdserver/api/v3lock/v3lockpb/v3lock.proto",
];

#[test]
fn the_descriptors_for_etcd_client_are_those_of_its_proto_files() -> Result<(), Box<dyn Error>> {
    let protos = folder_of_etcd_client()?.join("proto");
    let paths = FILES.map(|file| protos.join(file));
    // Names and comments of the source are for messages of a compiler, and nobody reads the code that is made.
    let descriptors = protox::Compiler::new([&protos])?
        .include_imports(true)
        .include_source_info(false)
        .open_files(paths)?
        .file_descriptor_set();
    let sums = Command::new("sh")
        .args(["-c", "find . -name '*.proto' | LC_ALL=C sort | xargs cksum"])
        .current_dir(&protos)
        .output()?;
    check("etcd-client.bin", &descriptors.encode_to_vec())?;
    check("etcd-client.cksum", &sums.stdout)
}

#[test]
fn other_files_are_left_to_a_real_protoc_or_refused_in_one_sentence() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("etcd"))?;
    std::fs::write(folder.path().join("etcd/a.proto"), "syntax = \"proto3\";")?;
    let tools = folder.path().join("tools");
    std::fs::create_dir(&tools)?;
    let run = || {
        let mut command = Command::new("/bin/sh");
        command.arg(kept().join("../protoc")).args(["--include_imports", "-o", "out", "-I", ".", "etcd/a.proto"]);
        // Nothing but what the script itself needs, and whatever is in `tools`.
        command.current_dir(folder.path()).env("PATH", &tools).output()
    };
    for tool in ["dirname", "cksum", "find", "sort", "xargs", "cat", "cp"] {
        let found = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool)).into_iter().find(|path| path.exists());
        std::os::unix::fs::symlink(found.ok_or("no such tool")?, tools.join(tool))?;
    }
    let refused = run()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("install protoc") && words.lines().count() == 1, "{words}");

    let real = tools.join("protoc");
    std::fs::write(&real, "#!/bin/sh\necho \"real: $*\"\n")?;
    std::fs::set_permissions(&real, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let handed = run()?;
    let words = String::from_utf8_lossy(&handed.stdout).into_owned();
    assert_eq!(words, "real: --include_imports -o out -I . etcd/a.proto\n");
    Ok(())
}

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/protoc.d")
}

fn check(name: &str, made: &[u8]) -> Result<(), Box<dyn Error>> {
    let path = kept().join(name);
    if std::env::var_os("TOROID_GENERATE").is_some() {
        std::fs::write(&path, made)?;
    }
    let is_same = std::fs::read(&path).is_ok_and(|kept| kept == made);
    assert!(is_same, "{} is not what the .proto files of etcd-client give: run `make fix`", path.display());
    Ok(())
}

/// Its sources, as cargo has unpacked them.
fn folder_of_etcd_client() -> Result<PathBuf, Box<dyn Error>> {
    // Nobody has fetched what other systems alone need.
    let about = Command::new("rustc").arg("-vV").output()?;
    let about = String::from_utf8(about.stdout)?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    let arguments = ["metadata", "--format-version", "1", "--locked", "--filter-platform", host];
    let metadata = || {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo
    };
    // Cargo names the packages of all of the workspace: where nobody has built the data pipeline, it has to fetch what that needs.
    let output = match metadata().arg("--offline").output()? {
        output if output.status.success() => output,
        _ => metadata().output()?,
    };
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("cargo metadata: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let packages = metadata["packages"].as_array().ok_or("cargo names no packages")?;
    let manifest = packages.iter().find(|package| package["name"] == "etcd-client");
    let manifest = manifest.and_then(|package| package["manifest_path"].as_str()).ok_or("cargo has no etcd-client")?;
    Ok(Path::new(manifest).parent().ok_or("a manifest lies in a folder")?.into())
}
