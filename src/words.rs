//! What a model's folder has for text, the tokenizer and the chat template, which come along with an export.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use toroid_torus::manifest::Manifest;

pub const TOKENIZER: &str = "tokenizer.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Files that say what the tokens of a tokenizer are for.
const BESIDE: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"];
/// The largest tokenizers that are published have some 30 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Name and content of the files of `named`, else of the folder that the job's weights began with, as far as its tokens are those of the checkpoint.
/// Of a model whose tokens are bytes the template alone.
pub fn carried(manifest: &Manifest, named: Option<&Path>) -> Result<Vec<(String, Vec<u8>)>> {
    let Some(folder) = named.or(manifest.job.init_from.as_deref()) else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    if let Some(expected) = &manifest.tokenizer {
        let tokenizer = read(&folder.join(TOKENIZER))?;
        let found = tokenizer.as_deref().map(|bytes| blake3::hash(bytes).to_hex().to_string());
        if found.as_ref() == Some(expected) {
            files.extend(tokenizer.map(|bytes| (TOKENIZER.to_string(), bytes)));
            for name in BESIDE {
                files.extend(read(&folder.join(name))?.map(|bytes| (name.to_string(), bytes)));
            }
        } else {
            let found = found.map_or_else(|| "none".into(), |digest| format!("one with the blake3 {digest}"));
            ensure!(
                named.is_none(),
                "the checkpoint's tokens are those of the tokenizer.json with the blake3 {expected}; {} has {found}",
                folder.display()
            );
            return Ok(Vec::new());
        }
    }
    files.extend(read(&folder.join(TEMPLATE))?.map(|bytes| (TEMPLATE.to_string(), bytes)));
    ensure!(
        named.is_none() || !files.is_empty(),
        "{} has neither a {TOKENIZER} nor a {TEMPLATE} that could come along",
        folder.display()
    );
    Ok(files)
}

/// `None`: there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let reading = || format!("read {}", path.display());
    let file = match File::open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        file => file.with_context(reading)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).with_context(reading)?;
    ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "{} has more than {MAX_FILE_BYTES} bytes", path.display());
    Ok(Some(bytes))
}
