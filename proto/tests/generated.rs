//! The generated code is in the repository, so that nobody who builds Toroid builds a compiler of .proto files first (a fifth of the
//! time of a first build). This test makes it again and compares; with `TOROID_GENERATE=1` (`make fix`) it writes it instead.

use std::error::Error;
use std::path::Path;

use prost::Message as _;

#[test]
fn generated_code_is_that_of_the_proto_files() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = ["admin", "job", "worker"].map(|name| root.join(format!("proto/toroid/v1/{name}.proto")));
    let descriptors = protox::compile(names, [root.join("proto")])?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("toroid_descriptor.bin"), descriptors.encode_to_vec())?;
    let services = "#[cfg(feature = \"services\")]";
    tonic_prost_build::configure()
        .out_dir(folder.path())
        .client_mod_attribute(".", services)
        .server_mod_attribute(".", services)
        // What decides iterates in one order.
        .btree_map(".")
        // Many of them are in one message: an empty one is small.
        .boxed(".toroid.v1.FromWorkerOfHost.what.opened")
        .boxed(".toroid.v1.FromWorkerOfHost.what.said")
        .boxed(".toroid.v1.ToWorkerOfHost.what.said")
        .compile_fds(descriptors)?;

    let is_written = std::env::var_os("TOROID_GENERATE").is_some();
    for name in ["toroid_descriptor.bin", "toroid.v1.rs"] {
        let (made, kept) = (folder.path().join(name), root.join("src/generated").join(name));
        if is_written {
            std::fs::copy(&made, &kept)?;
        }
        let is_same = std::fs::read(&made)? == std::fs::read(&kept)?;
        assert!(is_same, "{} is not what the .proto files give: run `make fix`", kept.display());
    }
    Ok(())
}
