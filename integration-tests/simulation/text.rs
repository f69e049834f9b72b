//! The text that the jobs of all simulations train on: a small file of this process, whose tokens are cached beside it.

use std::path::PathBuf;
use std::sync::LazyLock;

use tempfile::TempDir;

/// Characters of it: 500 samples of the simulated jobs.
const NUM_CHARS: usize = 2000;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("there is room for a small file");
    let letters = (0..NUM_CHARS).map(|i| char::from(b'a' + (i * i / 7 % 26) as u8));
    std::fs::write(folder.path().join("text"), letters.collect::<String>()).expect("there is room for a small file");
    folder
});

pub fn folder() -> PathBuf {
    FOLDER.path().to_path_buf()
}
