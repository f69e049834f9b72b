//! From what a job names to tokens: the one place that looks at paths of data.

use std::io;
use std::path::Path;

use toroid_torus::job::SourceConfig;

use super::attend::Attend;
use super::fetch::fetch;
use super::files::TokenFiles;
use super::source::Listing;
use super::stream::Tokens;
use super::{DataError, text};
use crate::system;

/// Opens the tokens of a source, which is fetched first where it lies in an object store: of its token files, or of its text, for which a file
/// is made in `cache_dir` if it is not there.
pub fn prepare(source: &SourceConfig, cache_dir: &Path, attend: &mut dyn Attend) -> Result<Tokens, DataError> {
    if system::simulated().is_some_and(|system| !system.can_see(&source.path)) {
        let cause = io::Error::from(io::ErrorKind::NotFound);
        return Err(DataError::Read { path: source.path.clone(), cause });
    }
    let local = fetch(&source.path, cache_dir, attend)?;
    let source = &SourceConfig { path: local.path().into(), ..source.clone() };
    let tokens = match TokenFiles::of(source)? {
        Some(files) => files.open(attend),
        None => text::prepare(source, cache_dir, attend),
    }?;
    Ok(Tokens { _local: Some(local), ..tokens })
}

/// How much a source has, as far as it shows without reading all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub num_tokens: u64,
    /// 0 of text, where nobody has counted them.
    pub num_documents: u64,
    pub vocabulary: u32,
    /// Its files say so. A text may have less: what is in its files decides.
    pub is_exact: bool,
}

/// Of what is at its path on this machine.
pub fn size(source: &SourceConfig) -> Result<Size, DataError> {
    if let Some(size) = size_of_token_files(source)? {
        return Ok(size);
    }
    let num_tokens = Listing::of(source)?.bytes_at_most();
    Ok(Size { num_tokens, num_documents: 0, vocabulary: toroid_tokens::BYTES_VOCABULARY, is_exact: false })
}

/// The same, of token files alone, of which it takes the headers; `None`: it is text.
pub fn size_of_token_files(source: &SourceConfig) -> Result<Option<Size>, DataError> {
    let Some(files) = TokenFiles::of(source)? else { return Ok(None) };
    let (num_tokens, num_documents, header) = files.count()?;
    Ok(Some(Size { num_tokens, num_documents, vocabulary: header.vocabulary, is_exact: true }))
}
