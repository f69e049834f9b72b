//! A record as both stores have it: the blake3 digest of its JSON (32 bytes) and the JSON.

use crate::machine::record::Record;

const DIGEST_BYTES: usize = 32;

pub fn encode(record: &Record) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("a record has only string keys");
    let mut value = blake3::hash(&json).as_bytes().to_vec();
    value.extend(json);
    value
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
