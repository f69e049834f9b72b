//! Toroid as its users meet it, except that workers fail where a test wants them to. Everything that needs no failpoint is tested with
//! the binary that is shipped, in the folder above.

// It has more than these tests use.
#[allow(dead_code, unused_imports)]
#[path = "../cluster/mod.rs"]
mod cluster;
mod corruption;
#[allow(dead_code)]
#[path = "../../src/chaos/network.rs"]
mod network;
mod phases;
mod publishing;

/// The binary under test.
const TOROID: &str = env!("CARGO_BIN_EXE_toroid-failpoint");
/// The folder of this repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What `shipped` looks for is where it is to be found.
#[test]
fn this_binary_has_what_the_shipped_one_must_not_have() -> anyhow::Result<()> {
    let binary = String::from_utf8_lossy(&std::fs::read(TOROID)?).into_owned();
    for hook in ["TOROID_FAILPOINTS", "failpoint: "] {
        anyhow::ensure!(binary.contains(hook), "{TOROID} has no `{hook}`: then its absence elsewhere says nothing");
    }
    let help = cluster::run_ok(&["chaos", "--help"])?;
    anyhow::ensure!(help.contains("--phase"), "{help}");
    Ok(())
}
