//! Certificates that are not taken any more though they have not ended: a file of serial numbers, one a line, `#` begins a comment.

use std::collections::BTreeSet;
use std::path::Path;

use crate::SecurityError;
use crate::identity::Serial;

/// Serial numbers, at most; beyond, the CA is to be made anew.
const MAX_SERIALS: usize = 100_000;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked(BTreeSet<Serial>);

impl Revoked {
    pub fn has(&self, serial: &Serial) -> bool {
        self.0.contains(serial)
    }

    /// A line that cannot be read is an error: it may be the one that counts.
    pub fn parse(text: &str, path: &Path) -> Result<Revoked, SecurityError> {
        let mut serials = BTreeSet::new();
        for (number, line) in (1..).zip(text.lines()) {
            let serial = line.split('#').next().unwrap_or_default().trim();
            if !serial.is_empty() {
                serials.insert(serial.parse().map_err(|e| SecurityError::file(path, format!("line {number}: {e}")))?);
            }
        }
        if serials.len() > MAX_SERIALS {
            let reason =
                format!("it has {} serial numbers, at most {MAX_SERIALS} are taken; make a new CA", serials.len());
            return Err(SecurityError::file(path, reason));
        }
        Ok(Revoked(serials))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_serial_numbers_and_comments_and_nothing_else() {
        let parse = |text: &str| Revoked::parse(text, Path::new("/r"));
        let found = parse("# lost laptop\n0ab1 # alice\n\n ff:00\n").unwrap();
        assert!(found.has(&"0ab1".parse().unwrap()) && found.has(&"ff00".parse().unwrap()));
        assert!(!found.has(&"01".parse().unwrap()));
        assert!(parse("0ab1\nalice\n").is_err_and(|e| e.to_string().contains("line 2")));
    }
}
