//! A curve in a folder: files appear by a rename, and grow.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use toroid_torus::owner::{MAX_OWNER_BYTES, OWNER_NAME};

use super::shelf::{FOLDER, NEW, SegmentsError, Shelf};

#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    folder: PathBuf,
    /// As messages have them.
    names: [String; 2],
}

impl Folder {
    /// `root` is a path or a `file://` URL.
    pub fn new(root: &str) -> Folder {
        let root = PathBuf::from(root.strip_prefix("file://").unwrap_or(root));
        let folder = root.join(FOLDER);
        let names = [root.display().to_string(), folder.display().to_string()];
        Folder { root, folder, names }
    }

    fn failed(&self, what: &'static str, name: &str) -> impl FnOnce(io::Error) -> SegmentsError + use<> {
        let path = self.display(name);
        move |error| SegmentsError::Io { what, path, error: error.into() }
    }
}

impl Shelf for Folder {
    fn root(&self) -> &str {
        &self.names[0]
    }

    fn folder(&self) -> &str {
        &self.names[1]
    }

    fn grows(&self) -> bool {
        true
    }

    fn segment_bytes(&self) -> u64 {
        4 << 20
    }

    fn names(&self) -> Result<Vec<String>, SegmentsError> {
        let failed =
            |error: io::Error| SegmentsError::Io { what: "listing", path: self.folder().into(), error: error.into() };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, SegmentsError> {
        let mut bytes = Vec::new();
        let read = File::open(self.folder.join(name)).and_then(|file| file.take(max_bytes).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("reading", name)(error)),
        }
    }

    fn read_range(&self, name: &str, start: u64, end: u64) -> Result<Vec<u8>, SegmentsError> {
        let read = || {
            let mut file = File::open(self.folder.join(name))?;
            let len = file.metadata()?.len();
            if len < end {
                return Err(io::Error::other(format!("it has {len} bytes of {end}")));
            }
            let mut rows = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut rows)?;
            Ok(rows)
        };
        read().map_err(self.failed("reading", name))
    }

    fn owner(&self) -> Result<Vec<u8>, SegmentsError> {
        let path = self.root.join(OWNER_NAME);
        let mut json = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_OWNER_BYTES).read_to_end(&mut json));
        let failed = |error: io::Error| {
            let path = path.display().to_string();
            SegmentsError::Io { what: "reading", path, error: error.into() }
        };
        read.map(|_| json).map_err(failed)
    }

    fn appear(&self, name: &str, parts: &[&[u8]]) -> Result<(), SegmentsError> {
        fs::create_dir_all(&self.folder).map_err(self.failed("making the folder of", name))?;
        // Its term and number are those of the name.
        let end = name.trim_end_matches(".csv");
        let new = self.folder.join(format!("{NEW}{}", &end[end.len().saturating_sub(25)..]));
        let write = || {
            let mut file = File::create(&new)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_all()?;
            fs::rename(&new, self.folder.join(name))?;
            File::open(&self.folder)?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(self.failed("writing", name))
    }

    fn append(&self, name: &str, end: u64, rows: &[u8]) -> Result<(), SegmentsError> {
        let write = || {
            // What is gone was taken away, or a later leader has removed it.
            let mut file = OpenOptions::new().write(true).open(self.folder.join(name))?;
            // What a failed write has left behind.
            if file.metadata()?.len() != end {
                file.set_len(end)?;
            }
            file.seek(SeekFrom::Start(end))?;
            file.write_all(rows)?;
            file.sync_data()
        };
        write().map_err(self.failed("writing", name))
    }

    fn remove(&self, name: &str) -> Result<(), SegmentsError> {
        fs::remove_file(self.folder.join(name)).map_err(self.failed("removing", name))
    }
}
