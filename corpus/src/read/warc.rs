//! Records of web archives (ISO 28500): extracted text (WET, `conversion`), and pages as servers sent them (`response`).

use std::path::Path;

use crate::error::Result;
use crate::read::html;
use crate::read::stream::{Broken, Line, Stream};

/// Headers of a record, or of the page in it.
const MAX_HEADER_BYTES: u64 = 64 << 10;
const MAX_HEADERS: usize = 256;

/// What came out of one record.
pub enum Page {
    Text {
        url: String,
        id: String,
        text: String,
    },
    /// Of another type: requests, metadata, pictures.
    Other,
    Bad(String),
    End,
}

type Found<T> = Result<std::result::Result<T, Broken>>;

macro_rules! or_broken {
    ($found:expr) => {
        match $found? {
            Ok(value) => value,
            Err(broken) => return Ok(Err(broken)),
        }
    };
}

/// Names in small letters, with their values, up to an empty line.
fn headers(stream: &mut Stream, path: &Path) -> Found<Vec<(String, String)>> {
    let (mut found, mut line) = (Vec::new(), Vec::new());
    loop {
        match or_broken!(stream.line(path, &mut line, MAX_HEADER_BYTES)) {
            Line::Whole if line.is_empty() => return Ok(Ok(found)),
            Line::Whole if found.len() < MAX_HEADERS => {
                let text = String::from_utf8_lossy(&line);
                let header = text
                    .split_once(':')
                    .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()));
                found.extend(header);
            }
            Line::End => return Ok(Err(Broken("the archive ends within headers".into()))),
            _ => return Ok(Err(Broken("headers are too long".into()))),
        }
    }
}

fn value<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
}

/// The next record; a block longer than `max_bytes` is passed over.
pub fn next(stream: &mut Stream, path: &Path, max_bytes: u64) -> Found<Page> {
    let mut line = Vec::new();
    loop {
        match or_broken!(stream.line(path, &mut line, MAX_HEADER_BYTES)) {
            Line::End => return Ok(Ok(Page::End)),
            Line::Whole if line.is_empty() => {}
            Line::Whole if line.starts_with(b"WARC/") => break,
            _ => return Ok(Err(Broken("expected a record that begins with `WARC/`".into()))),
        }
    }
    let record = or_broken!(headers(stream, path));
    let Ok(length) = value(&record, "content-length").parse::<u64>() else {
        return Ok(Err(Broken("a record has no Content-Length".into())));
    };
    let kind = value(&record, "warc-type").to_ascii_lowercase();
    let is_wanted = kind == "conversion" || kind == "response";
    if !is_wanted || length > max_bytes {
        let num = or_broken!(stream.skip(path, length));
        let page = if is_wanted {
            Page::Bad(format!("the record has {length} bytes, {max_bytes} are allowed"))
        } else {
            Page::Other
        };
        return Ok(if num < length { Err(cut(num, length)) } else { Ok(page) });
    }
    let mut block = Vec::new();
    stream.check_room(path, length)?;
    let num = or_broken!(stream.exact(path, &mut block, length));
    if num < length {
        return Ok(Err(cut(num, length)));
    }
    let url = value(&record, "warc-target-uri").trim_matches(['<', '>']).to_owned();
    let id = value(&record, "warc-record-id").trim_matches(['<', '>']).to_owned();
    let text = if kind == "conversion" { utf8(block).map(Some) } else { response(&block) };
    Ok(Ok(match text {
        Ok(Some(text)) => Page::Text { url, id, text },
        Ok(None) => Page::Other,
        Err(what) => Page::Bad(what),
    }))
}

fn cut(found: u64, expected: u64) -> Broken {
    Broken(format!("the archive is cut: a record of {expected} bytes has {found}"))
}

fn utf8(bytes: Vec<u8>) -> std::result::Result<String, String> {
    String::from_utf8(bytes)
        .map_err(|error| format!("invalid UTF-8 at byte {} of the text", error.utf8_error().valid_up_to()))
}

/// The text of a page with its HTTP headers; none if it is neither HTML nor plain text.
fn response(block: &[u8]) -> std::result::Result<Option<String>, String> {
    let end = memchr::memmem::find(block, b"\r\n\r\n").map(|at| (at, at + 4));
    let (head, body) =
        end.or_else(|| memchr::memmem::find(block, b"\n\n").map(|at| (at, at + 2))).ok_or("no end of HTTP headers")?;
    let head = String::from_utf8_lossy(&block[..head]).to_ascii_lowercase();
    let header =
        |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("", str::trim);
    if !header("http").is_empty() || !head.starts_with("http/") {
        return Err("a response that is not HTTP".into());
    }
    let (kind, encoding) = (header("content-type"), header("content-encoding"));
    let is_html = kind.starts_with("text/html") || kind.starts_with("application/xhtml");
    if !is_html && !kind.starts_with("text/plain") {
        return Ok(None);
    }
    if !matches!(encoding, "" | "identity") {
        return Err(format!("content encoding `{encoding}` within an archive is not read"));
    }
    let body = block[body..].to_vec();
    let body = if header("transfer-encoding") == "chunked" { unchunk(&body) } else { body };
    let text = utf8(body)?;
    Ok(Some(if is_html { html::text(&text) } else { text }))
}

/// Archives should have no chunks, and some write them; what does not read as chunks is taken as it is.
fn unchunk(body: &[u8]) -> Vec<u8> {
    let (mut found, mut rest) = (Vec::new(), body);
    loop {
        let line = memchr::memchr(b'\n', rest).and_then(|end| Some((std::str::from_utf8(&rest[..end]).ok()?, end + 1)));
        let size = line.and_then(|(line, at)| {
            let digits = line.trim().split(';').next()?;
            Some((usize::from_str_radix(digits, 16).ok()?, at))
        });
        match size {
            Some((0, _)) => return found,
            Some((size, at)) if size <= rest.len() - at => {
                found.extend(&rest[at..at + size]);
                rest = rest[at + size..].strip_prefix(b"\r\n").unwrap_or(&rest[at + size..]);
            }
            _ => return body.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: &str, block: &str) -> String {
        let length = block.len();
        let id = "<urn:uuid:1>";
        format!(
            "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.org/\r\nWARC-Record-ID: {id}\r\nContent-Length: {length}\r\n\r\n{block}\r\n\r\n"
        )
    }

    fn pages(contents: &str) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.warc");
        std::fs::write(&path, contents).expect("write");
        let mut stream =
            Stream::open(&crate::read::files::Listed::of(path.clone()).expect("there"), 0, 0).expect("open");
        let mut found = Vec::new();
        loop {
            found.push(match next(&mut stream, &path, 500).expect("the disk is well") {
                Ok(Page::End) => return found,
                Ok(Page::Text { url, text, .. }) => format!("{url} {text}"),
                Ok(Page::Other) => "other".into(),
                Ok(Page::Bad(what)) => format!("bad: {what}"),
                Err(Broken(what)) => {
                    found.push(format!("broken: {what}"));
                    return found;
                }
            });
        }
    }

    #[test]
    fn archives_give_their_texts() {
        let html =
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>A &amp; b</p><script>x</script>";
        let chunked = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let picture = "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\nxyz";
        let long = "x".repeat(501);
        let all = [
            ("warcinfo", "x"),
            ("conversion", "Text\n\n"),
            ("response", html),
            ("response", chunked),
            ("response", picture),
            ("conversion", &long),
        ];
        let contents: String = all.iter().map(|(kind, block)| record(kind, block)).collect();
        assert_eq!(
            pages(&contents),
            [
                "other",
                "http://a.org/ Text\n\n",
                "http://a.org/ A & b",
                "http://a.org/ abcde",
                "other",
                "bad: the record has 501 bytes, 500 are allowed",
            ]
        );
    }

    #[test]
    fn a_cut_archive_says_so() {
        let whole = record("conversion", "one") + &record("conversion", "another text");
        assert_eq!(
            pages(&whole[..whole.len() - 10]),
            ["http://a.org/ one", "broken: the archive is cut: a record of 12 bytes has 6"]
        );
        assert_eq!(pages("no archive"), ["broken: expected a record that begins with `WARC/`"]);
    }
}
