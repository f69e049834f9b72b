//! Compiles the .proto files with protox (no `protoc` needed) and keeps the descriptor set for gRPC reflection.
use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/toroid/v1/job.proto", "proto/toroid/v1/worker.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let path = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("toroid_descriptor.bin");
    std::fs::write(path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
