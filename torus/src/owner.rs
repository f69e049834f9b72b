//! Whose a folder of checkpoints is (invariant T-10).
//!
//! ```text
//!   toroid-owner.json                      one a folder, never written over: the job that keeps its checkpoints here
//!   step-100/*-epoch-7-by-9f3c2a1b4d5e6f70*   every file says in its name which epoch of which job has written it ([`Stamp`])
//! ```
//!
//! A job has an [`OwnerId`] of its own, random, for life. Its name and its number do not tell it from a job of another coordinator,
//! nor from one of the same coordinator whose store was lost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units;

/// The owner's record, in the folder itself.
pub const OWNER_NAME: &str = "toroid-owner.json";
/// Version of the record.
const FORMAT: u32 = 1;
/// A record of more bytes is none.
pub const MAX_OWNER_BYTES: u64 = 64 << 10;
/// Digits of an id that stand in names of files.
const TAG_DIGITS: usize = 16;

/// 16 random bytes; as text 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId([u8; 16]);

impl OwnerId {
    pub fn from_random(bytes: [u8; 16]) -> OwnerId {
        OwnerId(bytes)
    }

    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// How it is named in files.
    fn tag(&self) -> String {
        self.to_string()[..TAG_DIGITS].to_string()
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OwnerId {
    type Err = String;

    fn from_str(text: &str) -> Result<OwnerId, String> {
        let refuse = || format!("expected the id of an owner, 32 hexadecimal digits, found {text:?}");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(refuse());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| refuse())?;
        Ok(OwnerId(number.to_be_bytes()))
    }
}

impl TryFrom<&[u8]> for OwnerId {
    type Error = String;

    fn try_from(bytes: &[u8]) -> Result<OwnerId, String> {
        let found = bytes.len();
        bytes.try_into().map(OwnerId).map_err(|_| format!("expected the id of an owner, 16 bytes, found {found}"))
    }
}

impl Serialize for OwnerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OwnerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OwnerId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The record of a folder: the job that keeps its checkpoints in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    format: u32,
    pub id: OwnerId,
    pub job_id: String,
    /// As the job file has it.
    pub name: String,
    pub submitted_unix_ms: i64,
}

impl Owner {
    pub fn new(id: OwnerId, job_id: &str, name: &str, submitted_unix_ms: i64) -> Owner {
        Owner { format: FORMAT, id, job_id: job_id.into(), name: name.into(), submitted_unix_ms }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record has only string keys") + "\n"
    }

    /// The error says what is wrong with the record.
    pub fn parse(json: &[u8]) -> Result<Owner, String> {
        let owner: Owner = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        match owner.format {
            FORMAT => Ok(owner),
            found => Err(format!("it has format {found}, this program reads format {FORMAT}")),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {} (`{}`, submitted {} UTC)", self.job_id, self.name, units::time(self.submitted_unix_ms))
    }
}

/// Which epoch of which job has written a file; the file's name has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub epoch: u64,
    pub owner: OwnerId,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch-{}-by-{}", self.epoch, self.owner.tag())
    }
}

impl OwnerId {
    /// The epoch in which this job has written the file of this name; `None` where the name does not say that it has. What is still being
    /// written has the stamp of its writer after its name, and a number after a `#`.
    pub fn wrote(&self, name: &str) -> Option<u64> {
        let stamped = name.split_once('#').map_or(name, |(stamped, _)| stamped);
        let (_, rest) = stamped.rsplit_once("epoch-")?;
        let (epoch, rest) = rest.split_once("-by-")?;
        let tag = rest.split_once('.').map_or(rest, |(tag, _)| tag);
        let number = epoch.parse().ok()?;
        (tag == self.tag() && epoch == format!("{number}")).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_others_are_refused() {
        let owner = Owner::new(OwnerId([0xab; 16]), "tiny-1", "tiny", 1_764_322_219_000);
        assert_eq!(Owner::parse(owner.to_json().as_bytes()), Ok(owner.clone()));
        assert_eq!(owner.to_string(), "job tiny-1 (`tiny`, submitted 2025-11-28 09:30:19 UTC)");
        for (from, to) in [("\"format\": 1", "\"format\": 2"), ("ab", "AB"), ("job_id", "job"), ("}", "")] {
            let json = owner.to_json().replacen(from, to, 1);
            assert!(Owner::parse(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn a_name_says_who_wrote_the_file() {
        let (own, other) = (OwnerId([1; 16]), OwnerId([2; 16]));
        let stamp = Stamp { epoch: 12, owner: own };
        for name in [
            format!("shard-00000-of-00002-{stamp}.safetensors"),
            format!("manifest.json.{stamp}.b3"),
            format!("claimed-by-{stamp}"),
            format!("manifest.json.{stamp}#5"),
            format!("shard-00000-of-00002-epoch-3-by-{}.safetensors.{stamp}#57", other.tag()),
        ] {
            assert_eq!((own.wrote(&name), other.wrote(&name)), (Some(12), None), "{name}");
        }
        for name in
            ["manifest.json", "shard-00000-of-00002-epoch-12.safetensors", "notes", "epoch-1-by-", "epoch-x-by-01"]
        {
            assert_eq!(own.wrote(name), None, "{name}");
        }
        assert_eq!(own.wrote(&format!("x-epoch-07-by-{}", own.tag())), None, "a number is written in one way");
    }
}
