//! A record as both stores have it: the blake3 digest of its JSON (32 bytes) and the JSON.

use serde::Deserialize;

use crate::machine::RestoreError;
use crate::machine::record::{FORMAT, Record};

const DIGEST_BYTES: usize = 32;

/// The record that has the format of all records.
pub const META: &str = "meta";

pub fn encode(record: &Record) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("a record has only string keys");
    let mut value = blake3::hash(&json).as_bytes().to_vec();
    value.extend(json);
    value
}

/// Looks at the record [`META`] before any is read: of a newer format nothing may be as it is expected. Fields that this version does not know, of a
/// record of this format, are passed over: a later version adds only what may be lost.
pub fn check_format(meta: &[u8]) -> Result<(), RestoreError> {
    #[derive(Deserialize)]
    struct Head {
        meta: Format,
    }
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let json = meta.get(DIGEST_BYTES..).unwrap_or_default();
    match serde_json::from_slice(json) {
        Ok(Head { meta: Format { format: found } }) if found > FORMAT => Err(RestoreError::Format { found }),
        // What is no record is found when all are read.
        _ => Ok(()),
    }
}

pub fn decode(key: &str, value: &[u8]) -> Result<Record, String> {
    let Some((digest, json)) = value.split_at_checked(DIGEST_BYTES) else {
        return Err(format!("the record `{key}` has only {} bytes", value.len()));
    };
    if blake3::hash(json).as_bytes() != digest {
        return Err(format!("the record `{key}` does not match its digest"));
    }
    let record: Record = serde_json::from_slice(json)
        .map_err(|e| format!("the record `{key}` cannot be read: {e}; was it written by another version?"))?;
    if record.key() != key {
        return Err(format!("the record `{key}` is that of `{}`", record.key()));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::record::Meta;

    fn value(json: &str) -> Vec<u8> {
        [&blake3::hash(json.as_bytes()).as_bytes()[..], json.as_bytes()].concat()
    }

    fn meta() -> (Record, String) {
        let (num_jobs, retired, cordoned, cordoned_hosts) = Default::default();
        let record = Record::Meta(Meta {
            format: FORMAT,
            secret: [3; 32],
            num_jobs,
            retired,
            cordoned,
            cordoned_hosts,
            forgotten: Default::default(),
        });
        let json = serde_json::to_string(&record).expect("a record has only string keys");
        (record, json)
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let (record, json) = meta();
        let later = json.replacen("\"format\"", "\"of_a_later_version\":{\"a\":[1]},\"format\"", 1);
        assert_ne!(later, json);
        assert_eq!(check_format(&value(&later)), Ok(()));
        assert_eq!(decode(META, &value(&later)), Ok(record));
    }

    #[test]
    fn a_later_format_is_refused_whatever_else_its_records_are() {
        let json = format!("{{\"meta\":{{\"format\":{},\"all_else\":true}}}}", FORMAT + 1);
        let error = check_format(&value(&json)).expect_err("a later format");
        assert_eq!(error, RestoreError::Format { found: FORMAT + 1 });
        assert!(error.to_string().contains("or a newer one"), "{error}");
        assert_eq!(check_format(b"too short"), Ok(()));
    }
}
