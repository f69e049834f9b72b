//! The layout of a cluster's keys in etcd, and what one decision becomes: edits that fit etcd's bounds.
//!
//! ```text
//!   PREFIX/leader             who leads: under the leader's lease
//!   PREFIX/head               the last term and write: each write replaces it, and is refused where it is not the next one
//!   PREFIX/record/KEY         a record, or the pointer to its pages
//!   PREFIX/page/GENERATION/N  pages of one large value: never changed, dropped when nothing points to them
//!   PREFIX/journal            a decision of more edits than one transaction takes, while it is carried out
//! ```
//!
//! etcd takes 128 operations and 1.5 MiB a transaction. A large value is first written as pages of a generation of its own, and counts when the
//! pointer is; whoever reads follows pointers only, so that it never sees half of one.

use serde::{Deserialize, Serialize};

/// A longer value is split into pages. As JSON grows slowly with a job, most jobs of a thousand places are below it.
const INLINE_BYTES: usize = 64 << 10;
pub(super) const PAGE_BYTES: usize = 256 << 10;
/// Of edits in one transaction, besides the operations that every one has.
pub(super) const MAX_EDITS: usize = 100;
/// Bytes of keys and values in one transaction.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    Put {
        key: String,
        value: Vec<u8>,
    },
    Remove {
        key: String,
    },
    /// All pages of a value that nothing points to any more.
    RemovePages {
        generation: String,
    },
}

impl Edit {
    fn bytes(&self) -> usize {
        match self {
            Edit::Put { key, value } => key.len() + value.len(),
            Edit::Remove { key } => key.len(),
            Edit::RemovePages { generation } => generation.len(),
        }
    }
}

/// A value as it lies under its key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Inline(Vec<u8>),
    Paged(Pointer),
}

/// To the pages of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pointer {
    pub generation: String,
    pub num_pages: u32,
    pub num_bytes: u64,
}

const INLINE: u8 = b'i';
const PAGED: u8 = b'p';

impl Value {
    pub fn to_bytes(&self) -> Vec<u8> {
        let (tag, rest) = match self {
            Value::Inline(bytes) => (INLINE, bytes.clone()),
            Value::Paged(pointer) => (PAGED, serde_json::to_vec(pointer).expect("a pointer has only string keys")),
        };
        [vec![tag], rest].concat()
    }

    /// An error says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Value, String> {
        match bytes.split_first() {
            Some((&INLINE, rest)) => Ok(Value::Inline(rest.to_vec())),
            Some((&PAGED, rest)) => {
                serde_json::from_slice(rest).map(Value::Paged).map_err(|e| format!("its pointer cannot be read: {e}"))
            }
            Some((tag, _)) => Err(format!("it begins with {tag}, which no value does")),
            None => Err("it is empty".into()),
        }
    }
}

/// A value, and the edits that must be done before it is put.
pub(super) fn split(value: Vec<u8>, generation: impl FnOnce() -> String) -> (Value, Vec<Edit>) {
    if value.len() <= INLINE_BYTES {
        return (Value::Inline(value), Vec::new());
    }
    let generation = generation();
    let pages: Vec<Edit> = value
        .chunks(PAGE_BYTES)
        .enumerate()
        .map(|(n, page)| Edit::Put { key: page_key(&generation, n), value: page.to_vec() })
        .collect();
    let num_pages = u32::try_from(pages.len()).expect("no value has 1 PiB");
    (Value::Paged(Pointer { generation, num_pages, num_bytes: value.len() as u64 }), pages)
}

pub(super) fn record_key(key: &str) -> String {
    format!("record/{key}")
}

pub(super) fn page_key(generation: &str, n: usize) -> String {
    format!("page/{generation}/{n:08}")
}

/// The generation in the key of a page.
pub(super) fn generation_of(page_key: &str) -> Option<&str> {
    Some(page_key.strip_prefix("page/")?.split_once('/')?.0)
}

/// Edits in their order, in groups that one transaction takes.
pub(super) fn grouped(edits: Vec<Edit>) -> Vec<Vec<Edit>> {
    let (mut groups, mut bytes): (Vec<Vec<Edit>>, usize) = (Vec::new(), 0);
    for edit in edits {
        bytes += edit.bytes();
        match groups.last_mut() {
            Some(group) if group.len() < MAX_EDITS && bytes <= MAX_BYTES => group.push(edit),
            _ => {
                bytes = edit.bytes();
                groups.push(vec![edit]);
            }
        }
    }
    groups
}

/// Edits as the bytes of a journal.
pub(super) fn to_journal(edits: &[Edit]) -> Vec<u8> {
    let mut out = Vec::new();
    for edit in edits {
        let (tag, key, value): (u8, &str, &[u8]) = match edit {
            Edit::Put { key, value } => (0, key, value),
            Edit::Remove { key } => (1, key, &[]),
            Edit::RemovePages { generation } => (2, generation, &[]),
        };
        out.push(tag);
        for part in [key.as_bytes(), value] {
            out.extend((part.len() as u64).to_le_bytes());
            out.extend(part);
        }
    }
    out
}

/// The edits of a journal; an error says what is wrong with it.
pub(super) fn from_journal(mut bytes: &[u8]) -> Result<Vec<Edit>, String> {
    fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (len, rest) = bytes.split_first_chunk::<8>()?;
        let (part, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        *bytes = rest;
        Some(part)
    }
    let mut edits = Vec::new();
    while let Some((tag, rest)) = bytes.split_first() {
        bytes = rest;
        let cut = || format!("the journal is cut after {} edits", edits.len());
        let key = part(&mut bytes).ok_or_else(cut)?;
        let value = part(&mut bytes).ok_or_else(cut)?;
        let key = String::from_utf8(key.to_vec()).map_err(|e| format!("a key in the journal is no text: {e}"))?;
        edits.push(match tag {
            0 => Edit::Put { key, value: value.to_vec() },
            1 => Edit::Remove { key },
            2 => Edit::RemovePages { generation: key },
            tag => return Err(format!("the journal has an edit of the kind {tag}, which there is none of")),
        });
    }
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(n: usize, num_bytes: usize) -> Edit {
        Edit::Put { key: format!("record/{n}"), value: vec![n as u8; num_bytes] }
    }

    #[test]
    fn a_large_value_is_pages_and_a_pointer() {
        let never = || panic!("a small value has no pages");
        assert_eq!(split(vec![7; INLINE_BYTES], never), (Value::Inline(vec![7; INLINE_BYTES]), Vec::new()));
        // A map of 131,072 places as JSON.
        let large: Vec<u8> = (0..5 << 20).map(|n| n as u8).collect();
        let (value, pages) = split(large.clone(), || "g1".into());
        let Value::Paged(pointer) = &value else { panic!("it is too large for one") };
        assert_eq!((pointer.num_pages as usize, pages.len(), pointer.num_bytes), (20, 20, 5 << 20));
        let joined: Vec<u8> = pages
            .iter()
            .flat_map(|page| match page {
                Edit::Put { value, key } => {
                    assert_eq!(generation_of(key), Some("g1"));
                    value.clone()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(joined == large);
        assert_eq!(Value::from_bytes(&value.to_bytes()), Ok(value));
    }

    #[test]
    fn what_is_no_value_is_said() {
        assert!(Value::from_bytes(&[]).unwrap_err().contains("empty"));
        assert!(Value::from_bytes(b"x").unwrap_err().contains("begins with 120"));
        assert!(Value::from_bytes(b"p{}").unwrap_err().contains("pointer"));
    }

    #[test]
    fn groups_are_within_the_bounds_of_a_transaction_and_keep_the_order() {
        let edits: Vec<Edit> = (0..250).map(|n| put(n, if n % 50 == 0 { PAGE_BYTES } else { 10 })).collect();
        let groups = grouped(edits.clone());
        for group in &groups {
            let bytes: usize = group.iter().map(Edit::bytes).sum();
            assert!(group.len() <= MAX_EDITS && bytes <= MAX_BYTES, "{} edits, {bytes} bytes", group.len());
        }
        assert_eq!(groups.concat(), edits);
        assert_eq!(grouped(Vec::new()), Vec::<Vec<Edit>>::new());
    }

    #[test]
    fn a_journal_is_read_back_and_a_cut_one_is_not() {
        let edits =
            vec![put(1, 3), Edit::Remove { key: "record/2".into() }, Edit::RemovePages { generation: "g".into() }];
        let bytes = to_journal(&edits);
        assert_eq!(from_journal(&bytes), Ok(edits.clone()));
        for len in 1..bytes.len() {
            let found = from_journal(&bytes[..len]);
            assert!(found.is_err() || found.is_ok_and(|found| edits.starts_with(&found)), "cut to {len} bytes");
        }
    }
}
