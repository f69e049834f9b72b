//! The files of a source, in the order of their relative paths, and what they are.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toroid_storage::Store;

use crate::config::Format;
use crate::error::{At, Error, Result};
use crate::read::input;

/// Objects below one URL.
const MAX_OBJECTS: usize = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub path: PathBuf,
    /// From the source's folder; the file's name where the source is a file.
    pub relative: String,
    pub bytes: u64,
    /// Time of the last change since 1970; of objects, nothing.
    pub modified_ns: u64,
    /// Of an object, which version of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl Listed {
    /// A file by itself.
    pub fn of(path: PathBuf) -> Result<Listed> {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        listed(path, name)
    }
}

#[derive(Debug, Default)]
pub struct Listing {
    pub files: Vec<Listed>,
    /// Links and devices, which are not followed, and folders of git.
    pub num_left_out: u64,
}

/// Symbolic links inside a folder would lead out of it, or give the same text twice.
pub fn list(path: &Path, extensions: &[String]) -> Result<Listing> {
    let mut listing = Listing::default();
    if let Some(url) = input::url(path) {
        let (store, key) = input::store(url)?;
        list_objects(&store, &key, !url.ends_with('/'), extensions, &mut listing)?;
    } else if fs::metadata(path).at("look at", path)?.is_dir() {
        walk(path, "", extensions, &mut listing)?;
    } else {
        listing.files.push(Listed::of(path.to_owned())?);
    }
    listing.files.sort_by(|a, b| a.relative.cmp(&b.relative));
    if listing.files.is_empty() {
        let endings =
            if extensions.is_empty() { String::new() } else { format!(" that ends with {}", extensions.join(" or ")) };
        return Err(Error::Config(format!("{}: there is no file{endings} in it", path.display())));
    }
    Ok(listing)
}

/// The object of this key, or those below it.
fn list_objects(store: &Store, key: &str, may_be_one: bool, endings: &[String], listing: &mut Listing) -> Result<()> {
    let one = if may_be_one && !key.is_empty() { store.head(key)? } else { None };
    let is_one = one.is_some();
    for object in one.map_or_else(|| store.list(key, MAX_OBJECTS), |one| Ok(vec![one]))? {
        let below = object.name.strip_prefix(key).unwrap_or(&object.name).trim_start_matches('/');
        let relative = if is_one { key.rsplit('/').next().unwrap_or(key) } else { below }.to_owned();
        if relative.split('/').rev().skip(1).any(|folder| folder == ".git") {
            listing.num_left_out += 1;
        } else if is_one || has_ending(&relative, endings) {
            let path = store.url_of(&object.name).into();
            let (bytes, etag) = (object.num_bytes, object.etag);
            listing.files.push(Listed { path, relative, bytes, modified_ns: 0, etag });
        }
    }
    Ok(())
}

/// Whether a file is wanted by the ending of its name.
fn has_ending(name: &str, endings: &[String]) -> bool {
    let is_it = |e: &String| name.strip_suffix(e.as_str()).is_some_and(|r| r.ends_with('.') || e.starts_with('.'));
    endings.is_empty() || endings.iter().any(is_it)
}

fn walk(folder: &Path, relative: &str, extensions: &[String], listing: &mut Listing) -> Result<()> {
    for entry in fs::read_dir(folder).at("list", folder)? {
        let entry = entry.at("list", folder)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let below = if relative.is_empty() { name.clone() } else { format!("{relative}/{name}") };
        let kind = entry.file_type().at("look at", &entry.path())?;
        if kind.is_dir() && name == ".git" {
            listing.num_left_out += 1;
        } else if kind.is_dir() {
            walk(&entry.path(), &below, extensions, listing)?;
        } else if !kind.is_file() {
            listing.num_left_out += 1;
        } else if has_ending(&name, extensions) {
            listing.files.push(listed(entry.path(), below)?);
        }
    }
    Ok(())
}

fn listed(path: PathBuf, relative: String) -> Result<Listed> {
    let metadata = fs::metadata(&path).at("look at", &path)?;
    let since = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let modified_ns = since.map_or(0, |since| since.as_nanos() as u64);
    Ok(Listed { path, relative, bytes: metadata.len(), modified_ns, etag: None })
}

/// Another content under the same name would be read as what was planned.
pub fn check_unchanged(file: &Listed) -> Result<()> {
    // Each request for a part of an object says which version of it is meant.
    if input::url(&file.path).is_some() {
        return Ok(());
    }
    let now = listed(file.path.clone(), file.relative.clone())?;
    if now == *file {
        return Ok(());
    }
    let (then, bytes) = (file.bytes, now.bytes);
    Err(Error::Config(format!(
        "{}: has changed since the sources were listed ({then} bytes then, {bytes} now); plan or run again",
        file.path.display()
    )))
}

/// The name without the ending of a compressed file.
fn bare(name: &str) -> &str {
    [".gz", ".zst", ".zstd"].into_iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

pub fn format(name: &str, wanted: Format) -> Format {
    let ends = |endings: &[&str]| endings.iter().any(|ending| bare(name).ends_with(ending));
    match wanted {
        Format::Auto if ends(&[".jsonl", ".ndjson"]) => Format::Jsonl,
        Format::Auto if ends(&[".warc", ".wet"]) => Format::Warc,
        Format::Auto | Format::Repository if ends(&[".tar"]) || name.ends_with(".tgz") => Format::Tar,
        Format::Auto if ends(&[".parquet"]) => Format::Parquet,
        Format::Auto => Format::Text,
        wanted => wanted,
    }
}

/// The programming language of a file by its ending; empty for prose.
pub fn language(name: &str) -> &'static str {
    const LANGUAGES: [(&str, &[&str]); 26] = [
        ("rust", &["rs"]),
        ("python", &["py", "pyi"]),
        ("c", &["c", "h"]),
        ("c++", &["cc", "cpp", "cxx", "hpp", "hh"]),
        ("cuda", &["cu", "cuh"]),
        ("javascript", &["js", "mjs", "cjs", "jsx"]),
        ("typescript", &["ts", "tsx"]),
        ("java", &["java"]),
        ("go", &["go"]),
        ("ruby", &["rb"]),
        ("php", &["php"]),
        ("c#", &["cs"]),
        ("swift", &["swift"]),
        ("kotlin", &["kt", "kts"]),
        ("scala", &["scala"]),
        ("haskell", &["hs"]),
        ("ocaml", &["ml", "mli"]),
        ("lua", &["lua"]),
        ("perl", &["pl", "pm"]),
        ("r", &["r", "R"]),
        ("julia", &["jl"]),
        ("shell", &["sh", "bash", "zsh"]),
        ("sql", &["sql"]),
        ("css", &["css", "scss"]),
        ("assembly", &["s", "S", "asm"]),
        ("lean", &["lean", "v"]),
    ];
    match bare(name).rsplit('/').next().unwrap_or("") {
        "Makefile" | "makefile" | "GNUmakefile" => return "make",
        "Dockerfile" | "Containerfile" => return "dockerfile",
        "CMakeLists.txt" => return "cmake",
        _ => {}
    }
    let ending = bare(name).rsplit_once('.').map_or("", |(_, ending)| ending);
    LANGUAGES.iter().find(|(_, endings)| endings.contains(&ending)).map_or("", |(language, _)| language)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_order_and_say_what_they_are() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("b")).expect("a folder");
        for name in ["z.txt", "b/a.rs", "b.jsonl.gz", "no"] {
            fs::write(dir.path().join(name), "x").expect("write");
        }
        std::os::unix::fs::symlink("z.txt", dir.path().join("link")).expect("link");
        let names = |extensions: &[&str]| -> Result<Vec<String>> {
            let extensions: Vec<String> = extensions.iter().map(|e| (*e).to_owned()).collect();
            Ok(list(dir.path(), &extensions)?.files.into_iter().map(|file| file.relative).collect())
        };
        assert_eq!(names(&[])?, ["b.jsonl.gz", "b/a.rs", "no", "z.txt"]);
        assert_eq!(names(&["rs", ".txt"])?, ["b/a.rs", "z.txt"]);
        assert!(names(&["md"]).expect_err("none").to_string().contains("no file that ends with md"));
        assert_eq!(list(dir.path(), &[])?.num_left_out, 1);
        assert_eq!(format("a.jsonl.zst", Format::Auto), Format::Jsonl);
        assert_eq!(format("a.warc.wet.gz", Format::Auto), Format::Warc);
        assert_eq!(format("a.jsonl", Format::Lines), Format::Lines);
        assert_eq!(format("a.tar.zst", Format::Auto), Format::Tar);
        assert_eq!(
            (format("a.tgz", Format::Repository), format("a.c", Format::Repository)),
            (Format::Tar, Format::Repository)
        );
        assert_eq!((language("a/b.rs"), language("x.py.gz"), language("README.md")), ("rust", "python", ""));
        Ok(())
    }
}
