//! Members of tar archives (POSIX.1-2001 `ustar` and `pax`, and the long names of GNU tar).

use std::path::Path;

use crate::error::Result;
use crate::read::stream::{Broken, Stream};

const BLOCK_BYTES: u64 = 512;
/// Of a long name, or of the records of a pax header.
const MAX_EXTRA_BYTES: u64 = 1 << 20;

/// What comes next in an archive; its contents are still to be read, or passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    File {
        name: String,
        size: u64,
    },
    /// A folder, a link, a device: of so many bytes.
    Other {
        size: u64,
    },
    End,
}

type Found<T> = Result<std::result::Result<T, Broken>>;

/// Bytes behind contents of this size, up to the next block.
pub fn padding(size: u64) -> u64 {
    (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Octal digits, or a binary number whose first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let is_small = high[0] == 0x80 && high[1..].iter().all(|b| *b == 0);
        return low.try_into().ok().map(u64::from_be_bytes).filter(|_| is_small);
    }
    let digits = text(field);
    let digits = digits.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// The sum of a header's bytes, with spaces in the place of the sum itself.
fn sum(header: &[u8]) -> u64 {
    (0..).zip(header).map(|(n, b)| if (148..156).contains(&n) { u64::from(b' ') } else { u64::from(*b) }).sum()
}

/// The value of a record `length key=value\n` of a pax header.
fn pax_value(records: &[u8], wanted: &str) -> Option<String> {
    let (mut found, mut rest) = (None, records);
    while let Some(space) = rest.iter().position(|b| *b == b' ') {
        let len: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let record = rest.get(space + 1..len)?;
        let record = String::from_utf8_lossy(record.strip_suffix(b"\n").unwrap_or(record)).into_owned();
        if let Some((key, value)) = record.split_once('=').filter(|(key, _)| *key == wanted) {
            found = Some(value.to_owned()).filter(|_| !key.is_empty());
        }
        rest = &rest[len..];
    }
    found
}

/// The next member. Behind it the stream is where its contents begin.
pub fn next(stream: &mut Stream, path: &Path) -> Found<Member> {
    let (mut header, mut name, mut size) = (Vec::new(), None, None);
    loop {
        let position = stream.position;
        let wrong = |what: &str| Ok(Err(Broken(format!("the archive {what} at byte {position}"))));
        let num = match stream.exact(path, &mut header, BLOCK_BYTES)? {
            Ok(num) => num,
            Err(broken) => return Ok(Err(broken)),
        };
        // Some writers leave the zeros at the end out.
        if num == 0 || header.iter().all(|b| *b == 0) {
            return Ok(Ok(Member::End));
        }
        if num < BLOCK_BYTES {
            return wrong("is cut");
        }
        if number(&header[148..156]) != Some(sum(&header)) {
            return wrong("has no header of a member");
        }
        let Some(own_size) = number(&header[124..136]) else { return wrong("has a member without a size") };
        match header[156] {
            kind @ (b'L' | b'x') => {
                if own_size > MAX_EXTRA_BYTES {
                    return wrong("has a name or header that is too long");
                }
                let mut extra = Vec::new();
                match stream.exact(path, &mut extra, own_size + padding(own_size))? {
                    Ok(num) if num == own_size + padding(own_size) => extra.truncate(own_size as usize),
                    Ok(_) => return wrong("is cut"),
                    Err(broken) => return Ok(Err(broken)),
                }
                if kind == b'L' {
                    name = Some(text(&extra));
                } else {
                    name = pax_value(&extra, "path").or(name);
                    size = pax_value(&extra, "size").and_then(|size| size.parse().ok());
                }
            }
            b'K' | b'g' => match stream.skip(path, own_size + padding(own_size))? {
                Ok(num) if num == own_size + padding(own_size) => {}
                Ok(_) => return wrong("is cut"),
                Err(broken) => return Ok(Err(broken)),
            },
            kind => {
                let size = size.unwrap_or(own_size);
                if !matches!(kind, b'0' | b'7' | 0) {
                    // Links state the size of what they point to, and have no contents.
                    return Ok(Ok(Member::Other { size: if matches!(kind, b'1'..=b'6') { 0 } else { size } }));
                }
                let prefix = if &header[257..262] == b"ustar" { text(&header[345..500]) } else { String::new() };
                let own = text(&header[..100]);
                let own = if prefix.is_empty() { own } else { format!("{prefix}/{own}") };
                return Ok(Ok(Member::File { name: name.unwrap_or(own), size }));
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A member as tar writes it.
    pub fn member(name: &str, kind: u8, contents: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
        header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
        header[156] = kind;
        header[257..263].copy_from_slice(b"ustar\0");
        let digits = format!("{:06o}\0 ", sum(&header));
        header[148..156].copy_from_slice(digits.as_bytes());
        header.extend(contents);
        header.resize(header.len() + padding(contents.len() as u64) as usize, 0);
        header
    }

    fn names(archive: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.tar");
        std::fs::write(&path, archive).expect("write");
        let mut stream =
            Stream::open(&crate::read::files::Listed::of(path.clone()).expect("there"), 0, 0).expect("open");
        let mut found = Vec::new();
        loop {
            let size = match next(&mut stream, &path).expect("the disk is well") {
                Ok(Member::End) => return found,
                Ok(Member::File { name, size }) => {
                    found.push(format!("{name} {size}"));
                    size
                }
                Ok(Member::Other { size }) => {
                    found.push("other".into());
                    size
                }
                Err(Broken(what)) => {
                    found.push(what);
                    return found;
                }
            };
            stream.skip(&path, size + padding(size)).expect("the disk is well").expect("whole");
        }
    }

    #[test]
    fn members_come_with_their_names_however_long() {
        let long = "d/".repeat(80) + "x.rs";
        let pax = format!("{} path={long}\n", long.len() + 10);
        assert_eq!(pax.len(), long.len() + 10, "the record counts itself");
        let archive = [
            member("a/b.c", b'0', b"int x;"),
            member("a/", b'5', b""),
            member("././@LongLink", b'L', (long.clone() + "\0").as_bytes()),
            member("cut", b'0', b"1"),
            member("pax", b'x', pax.as_bytes()),
            member("cut", 0, b"22"),
            member("global", b'g', b"20 comment=00000000\n"),
            member("e", b'0', &[7; 1024]),
            vec![0; 1024],
        ]
        .concat();
        let expected =
            ["a/b.c 6".to_owned(), "other".into(), format!("{long} 1"), format!("{long} 2"), "e 1024".into()];
        assert_eq!(names(&archive), expected);
        assert_eq!(names(&archive[..archive.len() - 1024]), expected, "the end may be missing");
        assert_eq!(names(&archive[..700]), ["a/b.c 6"]);
        assert_eq!(names(&[&archive[..1024], &[1; 300]].concat()), ["a/b.c 6", "the archive is cut at byte 1024"]);
        let mut changed = archive;
        changed[3] ^= 1;
        assert_eq!(names(&changed), ["the archive has no header of a member at byte 0"]);
        assert!(names(b"").is_empty());
    }
}
