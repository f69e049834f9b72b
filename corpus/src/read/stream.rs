//! Bytes of a file as they were before they were compressed, and lines of them.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use crate::error::{At, Error, Result};
use crate::read::files::Listed;
use crate::read::input::Input;

const BUFFER_BYTES: usize = 256 << 10;

/// A file that remembers whether it was the disk, or the store, that failed, and not what is in it.
struct Source {
    file: Input,
    has_failed: Rc<Cell<bool>>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.has_failed.set(true);
                    return Err(error);
                }
                other => return other,
            }
        }
    }
}

/// What was wrong with the contents of a file from some position on.
#[derive(Debug)]
pub struct Broken(pub String);

/// Bytes with the position of the next of them.
pub struct Stream {
    bytes: Box<dyn BufRead>,
    has_failed: Rc<Cell<bool>>,
    /// A record may take so much memory.
    room_bytes: u64,
    pub position: u64,
}

/// A line, or why there is none.
pub enum Line {
    /// Of so many bytes with its end; they are in the buffer, without it.
    Whole,
    /// It is longer than allowed, so long with its end.
    TooLong(u64),
    End,
}

fn is_gzip(start: &[u8]) -> bool {
    start.starts_with(&[0x1f, 0x8b])
}

fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

/// Whether a file is compressed, by its first bytes: names lie.
pub fn is_compressed(file: &Listed) -> Result<bool> {
    let start = Input::start(file, 4)?;
    Ok(is_gzip(&start) || is_zstd(&start))
}

impl Stream {
    /// From a position of a file that is not compressed, or all of one that is. A record, and the window of a zstd frame, may have
    /// `room_bytes`, but always 8 MiB.
    pub fn open(file: &Listed, position: u64, room_bytes: u64) -> Result<Stream> {
        let (path, room_bytes) = (&file.path, room_bytes.max(1 << 23));
        let mut file = Input::open(file)?;
        file.set_position(position).at("read", path)?;
        let has_failed = Rc::new(Cell::new(false));
        let mut source = BufReader::with_capacity(BUFFER_BYTES, Source { file, has_failed: has_failed.clone() });
        let start = if position == 0 { source.fill_buf().at("read", path)? } else { &[] };
        let bytes: Box<dyn BufRead> = if is_gzip(start) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, flate2::bufread::MultiGzDecoder::new(source)))
        } else if is_zstd(start) {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source).at("read", path)?;
            decoder.window_log_max(room_bytes.ilog2().min(31)).at("read", path)?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
        } else {
            Box::new(source)
        };
        Ok(Stream { bytes, has_failed, room_bytes, position })
    }

    /// An error of the disk ends the run; one of the contents is a bad record.
    fn sort<T>(&self, path: &Path, result: io::Result<T>) -> Result<std::result::Result<T, Broken>> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(error) if self.has_failed.get() => Err(error).at("read", path),
            Err(error) => Ok(Err(Broken(format!("cannot be decompressed ({error})")))),
        }
    }

    /// An error if a record of so many bytes, which is allowed to be there, has no room.
    pub fn check_room(&self, path: &Path, num_bytes: u64) -> Result<()> {
        if num_bytes <= self.room_bytes {
            return Ok(());
        }
        Err(Error::NoRoom { place: path.display().to_string(), num_bytes, there_mib: self.room_bytes >> 20 })
    }

    /// The next line into `buffer`, at most `max` bytes of it.
    pub fn line(&mut self, path: &Path, buffer: &mut Vec<u8>, max: u64) -> Result<std::result::Result<Line, Broken>> {
        buffer.clear();
        let mut num_bytes = 0u64;
        loop {
            let there = match self.bytes.fill_buf() {
                Ok(there) => there,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.sort(path, Err(error)),
            };
            let (taken, is_end) = match memchr::memchr(b'\n', there) {
                Some(at) => (at + 1, true),
                None => (there.len(), there.is_empty()),
            };
            num_bytes += taken as u64;
            if num_bytes <= max.min(self.room_bytes) {
                buffer.extend(&there[..taken]);
            }
            self.bytes.consume(taken);
            if is_end {
                break;
            }
        }
        self.position += num_bytes;
        if num_bytes <= max {
            self.check_room(path, num_bytes)?;
        }
        Ok(Ok(match num_bytes {
            0 => Line::End,
            n if n > max => Line::TooLong(n),
            _ => {
                let ending = if buffer.ends_with(b"\r\n") { 2 } else { usize::from(buffer.ends_with(b"\n")) };
                buffer.truncate(buffer.len() - ending);
                Line::Whole
            }
        }))
    }

    /// Behind the end of the line, or to `end` if the line is longer.
    pub fn skip_line(&mut self, path: &Path, end: u64) -> Result<std::result::Result<(), Broken>> {
        while self.position < end {
            let there = match self.bytes.fill_buf() {
                Ok(there) => there,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.sort(path, Err(error)),
            };
            let line_end = memchr::memchr(b'\n', there);
            let taken = line_end.map_or(there.len(), |at| at + 1);
            self.bytes.consume(taken);
            self.position += taken as u64;
            if line_end.is_some() || taken == 0 {
                break;
            }
        }
        Ok(Ok(()))
    }

    /// Up to `num` bytes into `buffer`, as far as there is room; how many there were, fewer at the end.
    pub fn exact(&mut self, path: &Path, buffer: &mut Vec<u8>, num: u64) -> Result<std::result::Result<u64, Broken>> {
        buffer.clear();
        let result = (&mut self.bytes).take(num.min(self.room_bytes + 1)).read_to_end(buffer);
        let there = buffer.len() as u64;
        self.position += there;
        match self.sort(path, result)? {
            Ok(_) if there > self.room_bytes => Ok(self.skip(path, num - there)?.map(|more| there + more)),
            other => Ok(other.map(|_| there)),
        }
    }

    /// Passes over `num` bytes; how many there were.
    pub fn skip(&mut self, path: &Path, num: u64) -> Result<std::result::Result<u64, Broken>> {
        let result = io::copy(&mut (&mut self.bytes).take(num), &mut io::sink());
        let result = self.sort(path, result)?;
        self.position += result.as_ref().map_or(0, |num| *num);
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).expect("in memory");
        encoder.finish().expect("in memory")
    }

    /// Lines up to the end, or to what is wrong.
    fn lines(contents: &[u8], max: u64, window: u64) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x");
        std::fs::write(&path, contents).expect("write");
        let mut stream = Stream::open(&Listed::of(path.clone()).expect("there"), 0, window).expect("open");
        let (mut found, mut buffer) = (Vec::new(), Vec::new());
        loop {
            found.push(match stream.line(&path, &mut buffer, max).expect("the disk is well") {
                Ok(Line::End) => return found,
                Ok(Line::Whole) => String::from_utf8_lossy(&buffer).into_owned(),
                Ok(Line::TooLong(n)) => format!("too long: {n}"),
                Err(Broken(what)) => {
                    found.push(format!("broken: {}", &what[..22]));
                    return found;
                }
            });
        }
    }

    #[test]
    fn lines_come_whole_from_any_compression() {
        let expected = ["a", "", "b\rc", "last"];
        let text = "a\n\nb\rc\r\nlast";
        assert_eq!(lines(text.as_bytes(), 100, 0), expected);
        let members = [gzip("a\n\nb"), gzip("\rc\r\nla"), gzip("st")].concat();
        assert_eq!(lines(&members, 100, 0), expected);
        let frames =
            [&text[..3], &text[3..]].map(|part| zstd::encode_all(part.as_bytes(), 3).expect("in memory")).concat();
        assert_eq!(lines(&frames, 100, 0), expected);
        assert!(lines(b"", 100, 0).is_empty());
        assert_eq!(
            lines(&[b"a\n".as_slice(), &[b'x'; 1 << 20], b"\nb"].concat(), 100, 0),
            ["a", "too long: 1048577", "b"]
        );
    }

    #[test]
    fn what_is_broken_says_so_after_what_was_whole() {
        let whole = gzip("a\nb\n");
        assert_eq!(lines(&[&whole[..], b"garbage"].concat(), 9, 0), ["a", "b", "broken: cannot be decompressed"]);
        let text = (0..100_000).map(|n| format!("{}\n", crate::doc::mix(n))).collect::<String>();
        let whole = gzip(&text);
        let found = lines(&whole[..whole.len() / 2], 99, 0);
        assert!(found.len() > 10_000 && found[found.len() - 1].starts_with("broken"));
        let whole = zstd::encode_all(text.as_bytes(), 1).expect("in memory");
        let found = lines(&whole[..whole.len() / 2], 99, 0);
        assert!(found.len() > 10_000 && found[found.len() - 1].starts_with("broken"));
    }

    #[test]
    fn a_frame_that_asks_for_a_larger_window_than_there_is_memory_for_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("in memory");
        encoder.long_distance_matching(true).and_then(|()| encoder.window_log(27)).expect("options");
        encoder.write_all(&vec![b'a'; 3 << 20]).and_then(|()| encoder.write_all(b"\nb\n")).expect("in memory");
        let contents = encoder.finish().expect("in memory");
        assert_eq!(lines(&contents, 1 << 23, 1 << 27).len(), 2);
        assert_eq!(lines(&contents, 1 << 23, 1 << 24), ["broken: cannot be decompressed"]);
    }
}
