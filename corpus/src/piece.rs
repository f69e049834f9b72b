//! Files of documents: what a stage reads, and what it writes.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use zstd::stream::{read::Decoder, write::Encoder};

use crate::doc::Doc;
use crate::durable::Durable;
use crate::error::{At, Error, Result};

/// Fast, and a third of the bytes.
const LEVEL: i32 = 1;
/// No field of a piece is longer: `read.max_document_bytes` is at most this.
pub const MAX_FIELD_BYTES: u32 = 1 << 30;

pub struct PieceWriter {
    file: Encoder<'static, Durable>,
    path: PathBuf,
}

impl PieceWriter {
    pub fn create(path: &Path) -> Result<PieceWriter> {
        let file = Encoder::new(Durable::create(path)?, LEVEL).at("create", path)?;
        Ok(PieceWriter { file, path: path.to_owned() })
    }

    pub fn put(&mut self, doc: &Doc) -> Result<()> {
        let mut put = |bytes: &[u8]| self.file.write_all(bytes).at("write", &self.path);
        put(&doc.index.to_le_bytes())?;
        put(&doc.source.to_le_bytes())?;
        for text in [&doc.id, &doc.key, &doc.url, &doc.domain, &doc.language, &doc.license, &doc.text] {
            put(&(text.len() as u32).to_le_bytes())?;
            put(text.as_bytes())?;
        }
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        self.file.finish().at("write", &self.path)?.finish()
    }
}

/// The documents of a piece in their order.
pub struct PieceReader {
    file: Decoder<'static, BufReader<File>>,
    path: PathBuf,
}

impl PieceReader {
    pub fn open(path: &Path) -> Result<PieceReader> {
        let file = File::open(path).and_then(Decoder::new).at("open", path)?;
        Ok(PieceReader { file, path: path.to_owned() })
    }

    fn exact<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).at("read", &self.path)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String> {
        let len = u32::from_le_bytes(self.exact()?);
        if len > MAX_FIELD_BYTES {
            return Err(Error::damaged(&self.path, format!("a field of {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        self.file.read_exact(&mut bytes).at("read", &self.path)?;
        String::from_utf8(bytes).map_err(|_| Error::damaged(&self.path, "a text that is not UTF-8"))
    }

    fn read(&mut self) -> Result<Option<Doc>> {
        let mut index = [0; 4];
        // The end of the file is between documents: the file appeared whole.
        match self.file.read_exact(&mut index) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other.at("read", &self.path)?,
        }
        Ok(Some(Doc {
            index: u32::from_le_bytes(index),
            source: u16::from_le_bytes(self.exact()?),
            id: self.text()?,
            key: self.text()?,
            url: self.text()?,
            domain: self.text()?,
            language: self.text()?,
            license: self.text()?,
            text: self.text()?,
        }))
    }
}

impl Iterator for PieceReader {
    type Item = Result<Doc>;

    fn next(&mut self) -> Option<Result<Doc>> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_back_as_they_were() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("piece");
        let doc = |index, text: &str| Doc { index, source: 3, id: "s:f#1".into(), text: text.into(), ..Doc::default() };
        let docs = [doc(0, ""), doc(4, "NUL \0, CRLF \r\n, \u{202e}right to left, \u{1f600}")];
        let mut writer = PieceWriter::create(&path)?;
        docs.iter().try_for_each(|doc| writer.put(doc))?;
        writer.finish()?;
        assert_eq!(PieceReader::open(&path)?.collect::<Result<Vec<_>>>()?, docs);
        Ok(())
    }
}
