//! Which folders are this program's, so that it removes nothing of anybody else's.
//!
//! - A folder that it empties or removes has a file of no bytes in it, the *mark*. It was marked while it was new or empty.
//! - An output is known by its report. It is marked before it goes under another name, and there until what replaces it is in its place.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{At, Error, Result};

const MARK: &str = ".toroid-data";
/// Behind the name of an output, while another one takes its place.
const REPLACED: &str = ".toroid-replaced";
/// File systems of their own have it from their making.
const LOST_AND_FOUND: &str = "lost+found";

/// What an option or a key names as the folder of an output, and how its report is known.
pub struct Output<'a> {
    pub path: &'a Path,
    /// As in `--to`.
    pub option: &'a str,
    pub is_ours: fn(&Value) -> bool,
}

impl Output<'_> {
    /// Refuses what would replace anything that its command did not make.
    pub fn check(&self) -> Result<()> {
        let Output { path, option, is_ours } = self;
        let refuse = |what: &str| {
            let path = path.display();
            Err(Error::Config(format!("{path}: is {what}; the output is a folder, name another with {option}")))
        };
        match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.is_symlink() {
                    return refuse("a link to nothing");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return refuse("a file"),
            Err(error) => return Err(error).at("list", path),
            Ok(mut entries) => {
                let report = fs::read(path.join("report.json")).ok();
                let report = report.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
                if entries.next().is_some() && !report.is_some_and(|report| is_ours(&report)) {
                    return refuse("there already, and no output of this command (its report.json does not say so)");
                }
            }
        }
        check(&replaced(path))
    }

    /// It appears whole, in the place of a former one. Killed on the way, it is made again.
    pub fn publish(&self, unfinished: &Path) -> Result<()> {
        self.check()?;
        let (out, old) = (self.path, replaced(self.path));
        remove(&old)?;
        if out.exists() {
            mark(out)?;
            fs::rename(out, &old).at("rename", out)?;
        }
        fs::rename(unfinished, out).at("rename into place", unfinished)?;
        remove(&old)?;
        unmark(out)
    }
}

fn replaced(out: &Path) -> PathBuf {
    beside(out, REPLACED)
}

/// A neighbour of the path, with the same beginning of its name.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().map_or_else(|| "out".into(), |name| name.to_string_lossy().into_owned());
    path.with_file_name(name + ending)
}

fn mark(folder: &Path) -> Result<()> {
    let path = folder.join(MARK);
    File::create(&path).map(drop).at("create", &path)
}

fn unmark(folder: &Path) -> Result<()> {
    let path = folder.join(MARK);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", &path),
    }
}

/// Refuses a folder that is neither ours nor new nor empty.
pub fn check(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.at("list", folder)?,
    };
    let mut is_empty = true;
    for entry in entries {
        let name = entry.at("list", folder)?.file_name();
        if name == MARK {
            return Ok(());
        }
        is_empty &= name == LOST_AND_FOUND;
    }
    if is_empty { Ok(()) } else { Err(Error::NotOurs { path: folder.to_owned(), mark: MARK }) }
}

/// The folder is there, and ours.
pub fn claim(folder: &Path) -> Result<()> {
    check(folder)?;
    fs::create_dir_all(folder).at("create folder", folder)?;
    mark(folder)
}

/// Removes a folder of ours if it is there.
pub fn remove(folder: &Path) -> Result<()> {
    check(folder)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", folder),
    }
}

/// Removes what is in a folder of ours, but for the mark and the files that are named.
pub fn clear(folder: &Path, kept: &[&str]) -> Result<()> {
    check(folder)?;
    for entry in fs::read_dir(folder).at("list", folder)? {
        let entry = entry.at("list", folder)?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == MARK || name == LOST_AND_FOUND || kept.iter().any(|kept| name == **kept) {
            continue;
        }
        let is_folder = entry.file_type().at("look at", &path)?.is_dir();
        if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.at("remove", &path)?;
    }
    Ok(())
}
