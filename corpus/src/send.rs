//! A finished output, sent to a store as it lies in its folder.
//!
//! ```text
//!   claim (conditional) -> each file, read back -> report.json (conditional)
//! ```
//!
//! 1. `report.json` is below the prefix only when all other files are, and were read back as they are here.
//! 2. Nothing of anybody else is replaced: a prefix has one output, which its claim names by the digest of all its files, and nothing else.
//! 3. Sent again, by whomever, only what is not there as it should be is written.
//!
//! A file is sent at a time, and an upload holds five parts of 8 MiB at most.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use toroid_storage::{Object, PutNew, Store};

use crate::error::{At, Error, Result};
use crate::stage::Watch;

/// How names of objects begin that are no part of what was made.
const OURS: &str = ".toroid-";
/// Names the output that the prefix is for.
const CLAIM: &str = ".toroid-output";
/// What is there last.
const MARK: &str = "report.json";
const BLOCK_BYTES: usize = 8 << 20;
/// Names directly below a prefix that are looked at: an output has six.
const MAX_NAMES: usize = 1000;
const MAX_REPORT_BYTES: u64 = 1 << 30;

fn is_of_another(store: &Store) -> Error {
    Error::Config(format!(
        "{}: another output is there, or has begun to be; name another output.store, or remove what is below it",
        store.location().url_of("")
    ))
}

/// Whether an output may be sent to this prefix, for those who are about to make one: the store is there and heeds conditions of writes,
/// and what is below the prefix, if anything, is an output.
pub fn check(url: &str) -> Result<()> {
    let store = Store::open(url)?;
    if !store.heeds_conditions()? {
        return Err(Error::Config(format!(
            "{url}: the store takes a second object of one name under `If-None-Match: *`, so two outputs could be mixed; use a store that heeds \
             conditions of writes, or copy the folder of the output yourself"
        )));
    }
    check_names(&store).map(drop)
}

/// Who has claimed the prefix.
fn check_names(store: &Store) -> Result<Option<Vec<u8>>> {
    let claim = store.get(CLAIM, 1 << 10)?;
    let listing = store.list_folder("", MAX_NAMES)?;
    // A process that was killed while it tried whether conditions count left what it tried that with.
    let is_ours = |object: &Object| object.name.rsplit('/').next().is_some_and(|name| name.starts_with(OURS));
    if claim.is_none() && !(listing.folders.is_empty() && listing.objects.iter().all(is_ours)) {
        return Err(Error::Config(format!(
            "{}: something is there, and no output of this program; name another output.store",
            store.location().url_of("")
        )));
    }
    Ok(claim.map(|claim| claim.to_vec()))
}

/// Sends what is not there yet of an output. Returns how many bytes that were.
pub fn send(out: &Path, url: &str, watch: &dyn Watch) -> Result<u64> {
    let (store, mark) = (Store::open(url)?, out.join(MARK));
    let report = std::fs::read(&mark).at("read", &mark)?;
    let names = names(out)?;
    let claim = digest(out, &names)?;
    let claimed = match check_names(&store)? {
        None if store.put_new(CLAIM, claim.clone())? == PutNew::Created => Some(claim.clone().into_bytes()),
        None => store.get(CLAIM, 1 << 10)?.map(|claim| claim.to_vec()),
        claimed => claimed,
    };
    if claimed.as_deref() != Some(claim.as_bytes()) {
        return Err(is_of_another(&store));
    }
    if store.get(MARK, MAX_REPORT_BYTES)?.is_some_and(|found| found == report) {
        return Ok(0);
    }
    watch.begin(&format!("to {url}"), names.len() as u64);
    let mut num_sent = 0;
    for name in &names {
        let bytes = send_file(&store, &out.join(name), name)?;
        num_sent += bytes;
        watch.step(bytes);
    }
    if store.put_new(MARK, report.clone())? == PutNew::Exists
        && store.get(MARK, MAX_REPORT_BYTES)?.is_none_or(|found| found != report)
    {
        return Err(is_of_another(&store));
    }
    Ok(num_sent + report.len() as u64)
}

/// Files of an output but the mark, in the order of their names. Those with a dot are of the process that made it.
fn names(out: &Path) -> Result<Vec<String>> {
    let (mut found, mut folders) = (Vec::new(), vec![String::new()]);
    while let Some(folder) = folders.pop() {
        let path = out.join(&folder);
        for entry in std::fs::read_dir(&path).at("list", &path)? {
            let entry = entry.at("list", &path)?;
            let own = entry.file_name().to_string_lossy().into_owned();
            let name = if folder.is_empty() { own.clone() } else { format!("{folder}/{own}") };
            if own.starts_with('.') || name == MARK {
                continue;
            }
            let is_folder = entry.file_type().at("look at", &entry.path())?.is_dir();
            if is_folder { folders.push(name) } else { found.push(name) }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Of the files with their names, and of the mark.
fn digest(out: &Path, names: &[String]) -> Result<String> {
    let mut all = blake3::Hasher::new();
    for name in names.iter().map(String::as_str).chain([MARK]) {
        let (path, mut one) = (out.join(name), blake3::Hasher::new());
        one.update_reader(File::open(&path).at("open", &path)?).at("read", &path)?;
        all.update(&(name.len() as u64).to_le_bytes());
        all.update(name.as_bytes());
        all.update(one.finalize().as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

/// Returns how many bytes were sent: none where they are there.
fn send_file(store: &Store, path: &Path, name: &str) -> Result<u64> {
    let num_bytes = std::fs::metadata(path).at("look at", path)?.len();
    if is_there(store, path, name, num_bytes)? {
        return Ok(0);
    }
    let mut blocks = Blocks::open(path)?;
    if num_bytes <= BLOCK_BYTES as u64 {
        store.put(name, blocks.next()?.to_vec())?;
    } else {
        let mut upload = store.upload(name, Some(num_bytes))?;
        while let block @ [_, ..] = blocks.next()? {
            upload.write(block)?;
        }
        upload.finish()?;
    }
    if !is_there(store, path, name, num_bytes)? {
        let url = store.url_of(name);
        return Err(Error::Config(format!(
            "{url}: other bytes come back than were sent from {}; run again",
            path.display()
        )));
    }
    Ok(num_bytes)
}

/// Whether the object has the bytes of the file.
fn is_there(store: &Store, path: &Path, name: &str, num_bytes: u64) -> Result<bool> {
    let Some(object) = store.head(name)?.filter(|object| object.num_bytes == num_bytes) else { return Ok(false) };
    let (mut blocks, mut at) = (Blocks::open(path)?, 0);
    while let block @ [_, ..] = blocks.next()? {
        let end = at + block.len() as u64;
        if end > num_bytes || store.get_range_of(&object, at..end)? != block {
            return Ok(false);
        }
        at = end;
    }
    Ok(at == num_bytes)
}

/// A file, a block at a time; the last one is empty.
struct Blocks<'a> {
    path: &'a Path,
    file: File,
    block: Vec<u8>,
}

impl<'a> Blocks<'a> {
    fn open(path: &'a Path) -> Result<Blocks<'a>> {
        Ok(Blocks { path, file: File::open(path).at("open", path)?, block: Vec::with_capacity(BLOCK_BYTES) })
    }

    fn next(&mut self) -> Result<&[u8]> {
        self.block.clear();
        (&mut self.file).take(BLOCK_BYTES as u64).read_to_end(&mut self.block).at("read", self.path)?;
        Ok(&self.block)
    }
}
