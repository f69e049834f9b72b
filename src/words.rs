//! What a model's folder has for text, the tokenizer and the chat template, which come along with an export.

use std::path::Path;

use anyhow::{Result, ensure};
use toroid_torus::manifest::Manifest;

use crate::files::read_if_there;

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
        let tokenizer = read(folder, TOKENIZER)?;
        let found = tokenizer.as_deref().map(|bytes| blake3::hash(bytes).to_hex().to_string());
        if found.as_ref() == Some(expected) {
            files.extend(tokenizer.map(|bytes| (TOKENIZER.to_string(), bytes)));
            for name in BESIDE {
                files.extend(read(folder, name)?.map(|bytes| (name.to_string(), bytes)));
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
    files.extend(read(folder, TEMPLATE)?.map(|bytes| (TEMPLATE.to_string(), bytes)));
    ensure!(
        named.is_none() || !files.is_empty(),
        "{} has neither a {TOKENIZER} nor a {TEMPLATE} that could come along",
        folder.display()
    );
    Ok(files)
}

fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    read_if_there(&folder.join(name), "the file", MAX_FILE_BYTES)
}
