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
    std::fs::write(folder.path().join("prompts.tokens"), prompts()).expect("there is room for a small file");
    folder
});

/// Forty prompts of one to three tokens, each with an answer.
fn prompts() -> Vec<u8> {
    let one = |n: u32| {
        let prompt = (0..1 + n % 3).map(move |j| 10 + (n * 3 + j * 7) % 50);
        let tokens: Vec<u32> = prompt.chain([n % 5, 7]).collect();
        let num = tokens.len();
        (tokens, (0..num).map(|at| at + 2 >= num).collect::<Vec<bool>>())
    };
    let all: Vec<(Vec<u32>, Vec<bool>)> = (0..40).map(one).collect();
    let documents: Vec<toroid_tokens::Document<'_>> =
        all.iter().map(|(tokens, trained)| (&tokens[..], &trained[..])).collect();
    toroid_tokens::dialogues_file_of(&documents, 256, toroid_tokens::BYTES_TOKENIZER)
}

pub fn folder() -> PathBuf {
    FOLDER.path().to_path_buf()
}
