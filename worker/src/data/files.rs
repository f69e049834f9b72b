//! Token files, as `toroid data run` writes them: which a source has, and what is checked before they are believed.
//!
//! A source is one file whose name ends with `.tokens`, or a folder with such files in it, which follow each other in the order of their
//! names. Samples run over the ends of documents and files: what separates documents is the end token, where the tokenizer has one.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use toroid_tokens::{HEADER_BYTES, HEADER_BYTES_MAX, Header, Kind, TokenFile, TokensError};
use toroid_torus::job::SourceConfig;

use super::attend::Attend;
use super::compared::{self, AsMapped, Identity};
use super::source::{LeftOut, Reason, grouped, leave_out, mega_bytes};
use super::stream::{Mapped, Tokens};
use super::{DataError, map_file};

/// How the names of token files end.
const ENDING: &str = "tokens";
/// Each is mapped, and a process has 65,530 maps where nobody says otherwise.
const FILES_MAX: usize = 16_384;

/// The token files of a source.
pub(super) struct TokenFiles {
    root: PathBuf,
    /// In order.
    paths: Vec<PathBuf>,
    left_out: Vec<LeftOut>,
}

impl TokenFiles {
    /// Those of a source; `None`: it is text.
    pub fn of(source: &SourceConfig) -> Result<Option<TokenFiles>, DataError> {
        let cannot = |cause| DataError::Source { path: source.path.clone(), cause };
        let root = source.path.canonicalize().map_err(cannot)?;
        let (mut paths, mut left_out) = (Vec::new(), Vec::new());
        let are_asked_for = match &source.extensions[..] {
            [] => false,
            [only] if only.trim_start_matches('.') == ENDING => true,
            _ => return Ok(None),
        };
        if fs::metadata(&root).map_err(cannot)?.is_dir() {
            let mut others = Vec::new();
            for entry in fs::read_dir(&root).map_err(cannot)? {
                let entry = entry.map_err(cannot)?;
                let kind = entry.file_type().map_err(cannot)?;
                match (kind.is_file(), has_ending(&entry.path())) {
                    (true, true) => paths.push(entry.path()),
                    // Nobody asked for it: that it is gone by now is no error.
                    (true, false) => {
                        others.push((Reason::NoTokens, entry.file_name(), entry.metadata().map_or(0, |m| m.len())))
                    }
                    _ if kind.is_symlink() => others.push((Reason::Link, entry.file_name(), 0)),
                    _ => others.push((Reason::NoTokens, entry.file_name(), 0)),
                }
            }
            paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
            others.sort();
            others.iter().for_each(|(reason, name, bytes)| leave_out(&mut left_out, *reason, Path::new(name), *bytes));
        } else if has_ending(&root) {
            paths.push(root.clone());
        }
        if paths.is_empty() {
            return match are_asked_for {
                true => Err(DataError::NoText { path: root, what: "no file in it ends with .tokens".into() }),
                false => Ok(None),
            };
        }
        if paths.len() > FILES_MAX {
            let what = format!("{} token files, at most {FILES_MAX} are read", paths.len());
            return Err(DataError::TooMany { path: root, what });
        }
        if let Some(max_bytes) = source.max_bytes_of_text() {
            return Err(DataError::NotForTokens { path: root, max_bytes });
        }
        Ok(Some(TokenFiles { root, paths, left_out }))
    }

    /// Tokens and documents by what the files say of themselves. Nothing else of them is looked at.
    pub fn count(&self) -> Result<(u64, u64, Header), DataError> {
        let (mut first, mut num_tokens, mut num_documents) = (None, 0_u64, 0_u64);
        for path in &self.paths {
            let mut head = Vec::with_capacity(HEADER_BYTES_MAX);
            let cannot = |cause| DataError::Read { path: path.clone(), cause };
            let file = File::open(path).map_err(cannot)?;
            io::Read::read_to_end(&mut io::Read::take(file, HEADER_BYTES_MAX as u64), &mut head).map_err(cannot)?;
            let header = Header::parse(&head).map_err(|cause| damaged(path, cause))?;
            num_tokens = num_tokens.saturating_add(header.num_tokens);
            num_documents = num_documents.saturating_add(header.num_documents);
            self.check_alike(path, &header, first.get_or_insert(header))?;
        }
        Ok((num_tokens, num_documents, first.expect("a file at least")))
    }

    /// Opens all of them. Each is gone through once in the life of the process.
    pub fn open(&self, attend: &mut dyn Attend) -> Result<Tokens, DataError> {
        let (mut files, mut first): (Vec<Mapped>, Option<Header>) = (Vec::new(), None);
        let (mut hasher, mut done, mut num_tokens, mut num_documents) = (blake3::Hasher::new(), 0, 0_u64, 0_u64);
        for path in &self.paths {
            let cannot = |cause| DataError::Read { path: path.clone(), cause };
            let file = File::open(path).map_err(cannot)?;
            let metadata = file.metadata().map_err(cannot)?;
            // An empty file cannot be mapped.
            if metadata.len() < HEADER_BYTES as u64 {
                return Err(damaged(
                    path,
                    TokensError::Short { found: metadata.len() as usize, expected: HEADER_BYTES },
                ));
            }
            let map = map_file(&file).map_err(cannot)?;
            let whole = TokenFile::new(&map).map_err(|cause| damaged(path, cause))?;
            let header = whole.header;
            self.check_alike(path, &header, first.get_or_insert(header))?;
            let check = || whole.check_telling(&mut |bytes| attend.advance(done + bytes));
            compared::once(path, Identity::of(&metadata), check).map_err(|cause| damaged(path, cause))?;
            let (start, len) = (header.num_bytes(), whole.bytes().len());
            done += len as u64;
            hasher.update(&header.num_tokens.to_le_bytes());
            hasher.update(&header.tokens_digest);
            if header.kind != Kind::Text {
                // Where samples begin and what of them is trained is theirs, too.
                [header.ends_digest, header.trained_digest, header.margins_digest].iter().for_each(|d| {
                    hasher.update(d);
                });
            }
            // Files of fewer than 2^64 bytes each, of which there are a few thousand at most: an overflow takes as many disks.
            let tokens = num_tokens..num_tokens.saturating_add(header.num_tokens);
            let documents = num_documents..num_documents.saturating_add(header.num_documents);
            (num_tokens, num_documents) = (tokens.end, documents.end);
            let (bytes, path) = (start..start + len, path.clone());
            let as_mapped = AsMapped::of(&metadata);
            files.push(Mapped { bytes, width: header.width, tokens, documents, path, map, as_mapped });
        }
        let Header { kind, tokenizer, vocabulary, width, .. } = first.expect("a file at least");
        if num_tokens == 0 {
            return Err(DataError::NoText { path: self.root.clone(), what: "its token files have no tokens".into() });
        }
        // After the files, so that this is no other hash of a file.
        hasher.update(&tokenizer);
        Ok(Tokens {
            _local: None,
            summary: format!(
                "{} token {}, {} tokens of {width} {} in {} documents ({}) of a vocabulary of {}, {}",
                grouped(files.len() as u64),
                if files.len() == 1 { "file" } else { "files" },
                grouped(num_tokens),
                if width == 1 { "byte" } else { "bytes" },
                grouped(num_documents),
                mega_bytes(done),
                grouped(vocabulary.into()),
                self.root.display(),
            ),
            files,
            digest: *hasher.finalize().as_bytes(),
            kind,
            tokenizer,
            vocabulary,
            left_out: self.left_out.clone(),
            was_cached: true,
            is_of_token_files: true,
        })
    }

    fn check_alike(&self, path: &Path, found: &Header, first: &Header) -> Result<(), DataError> {
        found.expect(first.kind).map_err(|cause| damaged(path, cause))?;
        if (found.tokenizer, found.vocabulary) == (first.tokenizer, first.vocabulary) {
            return Ok(());
        }
        let in_words = |header: &Header| tokenizer_in_words(header.tokenizer, header.vocabulary);
        Err(DataError::Tokenizers {
            what: path.display().to_string(),
            found: in_words(found),
            other: self.paths[0].display().to_string(),
            expected: in_words(first),
        })
    }
}

/// `bytes`, or the beginning of the tokenizer's digest, with the vocabulary.
pub(super) fn tokenizer_in_words(tokenizer: [u8; 32], vocabulary: u32) -> String {
    match tokenizer == toroid_tokens::BYTES_TOKENIZER {
        true => format!("bytes (vocabulary {vocabulary})"),
        false => format!("{:.16} (vocabulary {vocabulary})", blake3::Hash::from_bytes(tokenizer).to_hex()),
    }
}

fn has_ending(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == ENDING)
}

fn damaged(path: &Path, cause: TokensError) -> DataError {
    DataError::TokenFile { path: path.into(), cause }
}
