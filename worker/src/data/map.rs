//! Files mapped into memory for reading: the one `unsafe` of this crate's data path.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps the whole of `file`, read-only.
///
/// The files are token files, which are replaced by rename and never written to once they have their name, and weights
/// that the user gives. Whoever truncates such a file under a running worker ends it with SIGBUS; nothing worse.
pub(crate) fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only, and bytes are valid whatever they are. That nobody changes the file while it is
    // mapped cannot be checked; for token files it holds because they are only ever replaced, for weights it is asked
    // of the user, as by every program that maps them.
    unsafe { Mmap::map(file) }
}
