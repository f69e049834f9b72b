//! What users run has no point at which a test, or anybody else, could have things go wrong.

use anyhow::{Result, ensure};

use crate::TOROID;

/// Words that are in a binary only where a test can have things go wrong in it.
const HOOKS: [&str; 4] = ["TOROID_FAILPOINTS", "TOROID_PRETEND", "TOROID_TEST_", "failpoint: "];

/// As cargo leaves it where the released binary belongs, whatever else was built beside it.
#[test]
fn the_shipped_binary_has_no_failpoint() -> Result<()> {
    let binary = String::from_utf8_lossy(&std::fs::read(TOROID.executable())?).into_owned();
    let found: Vec<_> = HOOKS.into_iter().filter(|hook| binary.contains(hook)).collect();
    ensure!(found.is_empty(), "{} has {found:?}", TOROID.executable());
    let help = TOROID.run_ok(&["chaos", "--help"])?;
    ensure!(!help.contains("--phase"), "{help}");
    let refused = TOROID.run(&["chaos", "--phase", "commit"])?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains("toroid-failpoint"), "{words}");
    Ok(())
}
