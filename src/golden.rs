//! Texts that tests expect, in files beside them, where a reviewer reads them as users do.
//!
//! `TOROID_BLESS=1 cargo test --lib` writes them anew; what changed is then in the diff.

use std::path::Path;

/// `file` is below the root of the repository.
pub fn check(file: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("TOROID_BLESS").is_some() {
        let folder = path.parent().expect("the file is in a folder");
        std::fs::create_dir_all(folder).expect("make the folder of expected texts");
        std::fs::write(&path, found).expect("write an expected text");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = expected.lines().zip(found.lines()).position(|(a, b)| a != b);
    assert!(
        expected == found,
        "{file} differs from line {} on; if that is right, write it anew with TOROID_BLESS=1. Found:\n{found}",
        differs.unwrap_or_else(|| expected.lines().count().min(found.lines().count())) + 1
    );
}
