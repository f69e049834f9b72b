//! `s3://BUCKET/PREFIX`, taken apart.

use std::fmt;

use crate::error::{Kind, StorageError};

const SCHEME: &str = "s3://";
/// S3's own bound of a key.
const KEY_BYTES_MAX: usize = 1024;

/// Whether `text` names an object store, and not a folder of this machine.
pub fn is_store(text: &str) -> bool {
    text.starts_with(SCHEME)
}

/// A bucket, and what all keys begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    bucket: String,
    /// Without slashes at its ends; may be empty.
    prefix: String,
}

impl Location {
    /// Takes `s3://BUCKET` or `s3://BUCKET/PREFIX`.
    pub fn parse(url: &str) -> Result<Location, StorageError> {
        let bad = |why: &str| StorageError::new(Kind::Url, "use", url, format!("{why}; expected s3://BUCKET/PREFIX"));
        let rest = url.strip_prefix(SCHEME).ok_or_else(|| bad("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        // Buckets of old and of other stores have capitals and underscores.
        let is_name = |c: char| is_plain(c) || c.is_ascii_uppercase() || c == '_';
        if bucket.is_empty() || bucket.len() > 255 || !bucket.chars().all(is_name) {
            return Err(bad(&format!("\"{bucket}\" is not the name of a bucket")));
        }
        let prefix = prefix.trim_matches('/').to_string();
        let location = Location { bucket: bucket.into(), prefix };
        if !location.prefix.is_empty() {
            location.key("")?;
        }
        Ok(location)
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The same bucket, with `below` added to the prefix.
    pub fn join(&self, below: &str) -> Result<Location, StorageError> {
        let key = self.key(below)?;
        Ok(Location { bucket: self.bucket.clone(), prefix: key.as_ref().to_string() })
    }

    /// What `name` is called in messages.
    pub fn url_of(&self, name: &str) -> String {
        let parts = [self.prefix.as_str(), name].into_iter().filter(|part| !part.is_empty());
        format!("{SCHEME}{}/{}", self.bucket, parts.collect::<Vec<_>>().join("/"))
    }

    /// The key of `name`; that of the prefix where it is empty.
    pub(crate) fn key(&self, name: &str) -> Result<object_store::path::Path, StorageError> {
        let parts = [self.prefix.as_str(), name].into_iter().filter(|part| !part.is_empty());
        let text = parts.collect::<Vec<_>>().join("/");
        let bad = |why: String| StorageError::new(Kind::Url, "use", &self.url_of(name), why);
        if text.len() > KEY_BYTES_MAX {
            return Err(bad(format!("its key has {} bytes, and stores take {KEY_BYTES_MAX}", text.len())));
        }
        object_store::path::Path::parse(&text).map_err(|e| bad(format!("it is no key: {e}")))
    }

    /// The key of an object to be written; the bucket itself is none.
    pub(crate) fn object_key(&self, name: &str) -> Result<object_store::path::Path, StorageError> {
        let key = self.key(name)?;
        if key.as_ref().is_empty() {
            let what = "it names no object; expected s3://BUCKET/KEY";
            return Err(StorageError::new(Kind::Url, "write", &self.url_of(name), what));
        }
        Ok(key)
    }

    /// `key` without the prefix.
    pub(crate) fn name_of(&self, key: &str) -> Option<String> {
        if self.prefix.is_empty() {
            return Some(key.into());
        }
        key.strip_prefix(&self.prefix)?.strip_prefix('/').map(String::from)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_bucket_and_a_prefix() {
        let location = Location::parse("s3://weights/runs/7/").unwrap();
        assert_eq!((location.bucket(), location.prefix()), ("weights", "runs/7"));
        assert_eq!(location.to_string(), "s3://weights/runs/7");
        assert_eq!(location.url_of("step-1/a"), "s3://weights/runs/7/step-1/a");
        assert_eq!(location.key("step-1/a").unwrap().as_ref(), "runs/7/step-1/a");
        assert_eq!(location.name_of("runs/7/step-1/a").as_deref(), Some("step-1/a"));
        assert_eq!(location.name_of("runs/77"), None);
        assert_eq!(Location::parse("s3://weights").unwrap().key("a").unwrap().as_ref(), "a");
    }

    #[test]
    fn what_is_no_url_of_a_store_is_refused() {
        for (url, why) in [
            ("/data", "does not begin with s3://"),
            ("s3://", "\"\" is not the name"),
            ("s3://a b/c", "\"a b\" is not the name"),
            ("s3://weights/a/../b", "it is no key"),
            ("s3://weights/a//b", "it is no key"),
        ] {
            let error = Location::parse(url).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
        assert!(
            Location::parse("s3://weights/")
                .unwrap()
                .object_key("")
                .unwrap_err()
                .to_string()
                .contains("names no object")
        );
        let long = format!("s3://weights/{}", "a".repeat(1025));
        assert!(Location::parse(&long).unwrap_err().to_string().contains("has 1025 bytes"));
    }
}
