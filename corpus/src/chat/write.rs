//! Token files of dialogues and preferences while they are written: what stands behind the tokens waits in files of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toroid_tokens::{HEADER_BYTES_MAX, Header, Kind, Trained, put_token, width_of};

use crate::chat::make::Made;
use crate::chat::tokenizer::{ChatTokens, Example};
use crate::durable::Durable;
use crate::error::{At, Error, Result};

/// A file that was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub file: String,
    /// Dialogues, or twice as many as there are pairs.
    pub documents: u64,
    pub tokens: u64,
    pub trained_tokens: u64,
    /// Tokens of the longest document.
    pub longest: u64,
    pub bytes: u64,
    pub blake3: String,
}

/// Bytes that wait for their place.
struct Part {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Part {
    fn create(path: PathBuf) -> Result<Part> {
        let file = BufWriter::new(File::create(&path).at("create", &path)?);
        Ok(Part { path, file, hasher: blake3::Hasher::new() })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).at("write", &self.path)
    }

    /// Behind what is written of a file; it is not needed any more.
    fn append_to(mut self, to: &mut Durable) -> Result<[u8; 32]> {
        self.file.flush().at("write", &self.path)?;
        let mut file = File::open(&self.path).at("open", &self.path)?;
        io::copy(&mut file, to).at("copy", &self.path)?;
        std::fs::remove_file(&self.path).at("remove", &self.path)?;
        Ok(*self.hasher.finalize().as_bytes())
    }
}

/// A token file of version 4.
pub struct Writer {
    folder: PathBuf,
    file: Durable,
    header: Header,
    hasher: blake3::Hasher,
    bits: Trained,
    num_bit_bytes: u64,
    ends: Part,
    trained: Part,
    margins: Part,
    written: Written,
    /// Documents by the power of two that their tokens are below or at.
    lengths: BTreeMap<u64, u64>,
    buffer: Vec<u8>,
}

impl Writer {
    /// A file of this name in a folder.
    pub fn create(folder: &Path, name: &str, kind: Kind, tokens: &ChatTokens) -> Result<Writer> {
        let part = |part: &str| Part::create(folder.join(format!(".{name}.{part}").replace('/', "-")));
        let mut file = Durable::create(&folder.join(name))?;
        file.put(&[0; HEADER_BYTES_MAX])?;
        let header = Header {
            kind,
            width: width_of(tokens.vocabulary),
            num_tokens: 0,
            num_documents: 0,
            vocabulary: tokens.vocabulary,
            tokenizer: tokens.digest,
            tokens_digest: [0; 32],
            ends_digest: [0; 32],
            trained_digest: [0; 32],
            margins_digest: [0; 32],
        };
        Ok(Writer {
            folder: folder.to_owned(),
            file,
            header,
            hasher: blake3::Hasher::new(),
            bits: Trained::default(),
            num_bit_bytes: 0,
            ends: part("ends")?,
            trained: part("trained")?,
            margins: part("margins")?,
            written: Written { file: name.to_owned(), ..Written::default() },
            lengths: BTreeMap::new(),
            buffer: Vec::new(),
        })
    }

    pub fn put(&mut self, made: &Made) -> Result<()> {
        made.documents.iter().try_for_each(|document| self.put_document(document))?;
        if self.header.kind == Kind::Preferences {
            self.margins.put(&made.margin.to_le_bytes())?;
        }
        Ok(())
    }

    fn put_document(&mut self, document: &Example) -> Result<()> {
        self.buffer.clear();
        document.tokens.iter().for_each(|token| put_token(*token, self.header.width, &mut self.buffer));
        self.hasher.update(&self.buffer);
        self.file.put(&self.buffer)?;
        document.trained.iter().for_each(|trained| self.bits.push(*trained));
        let bits = self.bits.take_whole();
        self.num_bit_bytes += bits.len() as u64;
        self.trained.put(&bits)?;
        let num = document.tokens.len() as u64;
        self.header.num_tokens += num;
        self.header.num_documents += 1;
        self.ends.put(&self.header.num_tokens.to_le_bytes())?;
        self.written.trained_tokens += document.num_trained() as u64;
        self.written.longest = self.written.longest.max(num);
        *self.lengths.entry(num.next_power_of_two()).or_default() += 1;
        Ok(())
    }

    /// How many documents have so many tokens at most, and more than half as many.
    pub fn lengths(&self) -> BTreeMap<u64, u64> {
        self.lengths.clone()
    }

    pub fn finish(mut self) -> Result<Written> {
        self.header.tokens_digest = *self.hasher.finalize().as_bytes();
        self.file.put(&vec![0; self.header.padding() as usize])?;
        self.trained.put(&self.bits.finish(self.num_bit_bytes))?;
        self.header.ends_digest = self.ends.append_to(&mut self.file)?;
        self.header.trained_digest = self.trained.append_to(&mut self.file)?;
        self.header.margins_digest = self.margins.append_to(&mut self.file)?;
        self.file.overwrite(&self.header.to_bytes(), 0)?;
        self.file.finish()?;
        let path = self.folder.join(&self.written.file);
        let mut hasher = blake3::Hasher::new();
        let bytes = File::open(&path).and_then(|mut file| io::copy(&mut file, &mut hasher)).at("read", &path)?;
        let blake3 = hasher.finalize().to_hex().to_string();
        let Header { num_tokens: tokens, num_documents: documents, .. } = self.header;
        Ok(Written { documents, tokens, bytes, blake3, ..self.written })
    }
}

/// Pairs that wait until it is known which of them stay.
pub struct Spool {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Spool {
    pub fn create(path: PathBuf) -> Result<Spool> {
        let file = BufWriter::new(File::create(&path).at("create", &path)?);
        Ok(Spool { path, file })
    }

    pub fn put(&mut self, made: &Made) -> Result<()> {
        let mut bytes = made.margin.to_le_bytes().to_vec();
        for document in &made.documents {
            bytes.extend((document.tokens.len() as u32).to_le_bytes());
            document.tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes()));
            bytes.extend(document.trained.iter().map(|trained| u8::from(*trained)));
        }
        self.file.write_all(&bytes).at("write", &self.path)
    }

    /// The pairs that stay, in their order, to `writer`.
    pub fn drain(mut self, kept: &[bool], writer: &mut Writer) -> Result<()> {
        self.file.flush().at("write", &self.path)?;
        let mut file = BufReader::new(File::open(&self.path).at("open", &self.path)?);
        for kept in kept {
            let mut number = [0; 4];
            let mut read = |bytes: &mut [u8]| file.read_exact(bytes).at("read", &self.path);
            read(&mut number)?;
            let mut made = Made { margin: f32::from_le_bytes(number), ..Made::default() };
            for _ in 0..2 {
                read(&mut number)?;
                let num = u32::from_le_bytes(number) as usize;
                let mut bytes = vec![0; 5 * num];
                read(&mut bytes)?;
                let (tokens, trained) = bytes.split_at(4 * num);
                let (tokens, _) = tokens.as_chunks::<4>();
                let tokens = tokens.iter().map(|token| u32::from_le_bytes(*token)).collect();
                made.documents.push(Example { tokens, trained: trained.iter().map(|bit| *bit == 1).collect() });
            }
            if *kept {
                writer.put(&made)?;
            }
        }
        std::fs::remove_file(&self.path).map_err(|error| Error::Io { what: "remove", path: self.path, error })
    }
}
