//! Toroid as its users meet it, except that workers fail where a test wants them to. Everything that needs no failpoint is tested with
//! the binary that is shipped, in the folder above.

mod corruption;
mod hanging;
mod leadership;
mod phases;
mod publishing;
mod upgrading;

use toroid_testkit::Toroid;

/// The binary under test.
const TOROID: Toroid = Toroid::at(env!("CARGO_BIN_EXE_toroid-failpoint"));

/// What `shipped` looks for is where it is to be found.
#[test]
fn this_binary_has_what_the_shipped_one_must_not_have() -> anyhow::Result<()> {
    let path = TOROID.executable();
    let binary = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
    for hook in ["TOROID_FAILPOINTS", "TOROID_PRETEND", "failpoint: "] {
        anyhow::ensure!(binary.contains(hook), "{path} has no `{hook}`: then its absence elsewhere says nothing");
    }
    let help = TOROID.run_ok(&["chaos", "--help"])?;
    anyhow::ensure!(help.contains("--phase"), "{help}");
    Ok(())
}
