//! Files with numbers in them, mapped into memory.

mod map;

pub(crate) use map::map_file;
