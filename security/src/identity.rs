//! What a certificate says of its owner: a URI `toroid://<cluster>/role/<role>/<name>` among its alternative names, its serial number and
//! when it ends.
//!
//! The CA's own certificate has `toroid://<cluster>` there. A certificate has one such URI; one with none or several is nobody's.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;

use crate::Role;

const SCHEME: &str = "toroid://";
/// A name of a cluster, a user or a worker.
const MAX_NAME_BYTES: usize = 128;

/// A name of a cluster or of somebody in it: 1 to 128 letters, digits, `-`, `_` and `.`, of which the first is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_ok = text.len() <= MAX_NAME_BYTES && text.chars().all(is_plain) && !text.starts_with(['.', '-', '_']);
        match is_ok && !text.is_empty() {
            true => Ok(Name(text.into())),
            false => Err(format!(
                "`{text}` is no name; expected 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` or `.`, beginning with a letter or digit"
            )),
        }
    }
}

/// Who a certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster: Name,
    pub role: Role,
    pub name: Name,
    pub serial: Serial,
    /// It is not taken any more after this moment, to the second.
    pub not_after: SystemTime,
}

/// The serial number of a certificate: bytes as they stand in it, leading zeros left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

impl Serial {
    pub fn new(bytes: &[u8]) -> Serial {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Serial(bytes[zeros..].to_vec())
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Serial, String> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let pair = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(text, 16).ok()
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
        let wrong = || format!("`{text}` is no serial number; expected pairs of hexadecimal digits");
        bytes
            .filter(|bytes| !bytes.is_empty() && digits.len().is_multiple_of(2))
            .map(|b| Serial::new(&b))
            .ok_or_else(wrong)
    }
}

/// The URI that says who somebody is.
pub fn uri(cluster: &Name, role: Role, name: &Name) -> String {
    format!("{SCHEME}{cluster}/role/{role}/{name}")
}

/// The URI of a cluster's CA.
pub fn ca_uri(cluster: &Name) -> String {
    format!("{SCHEME}{cluster}")
}

/// Cluster, role and name of a URI.
fn parse_uri(uri: &str) -> Result<(Name, Role, Name), String> {
    let expected = || format!("`{uri}` is not of the form {SCHEME}<cluster>/role/<role>/<name>");
    let rest = uri.strip_prefix(SCHEME).ok_or_else(expected)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let [cluster, "role", role, name] = parts[..] else { return Err(expected()) };
    Ok((cluster.parse()?, role.parse()?, name.parse()?))
}

/// The one URI of ours in a certificate.
fn uri_of<'a>(cert: &webpki::Cert<'a>) -> Result<&'a str, String> {
    let mut uris = cert.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri),
        (None, _) => {
            Err(format!("the certificate has no alternative name {SCHEME}...; make one with `toroid certs issue`"))
        }
        (Some(_), Some(_)) => {
            Err(format!("the certificate has more than one alternative name {SCHEME}...; expected one"))
        }
    }
}

impl Identity {
    /// Says what a certificate says; whether that is true is for the CA's signature.
    pub fn of(der: &CertificateDer<'_>) -> Result<Identity, String> {
        let cert = webpki::EndEntityCert::try_from(der).map_err(|e| format!("the certificate cannot be read: {e}"))?;
        let (cluster, role, name) = parse_uri(uri_of(&cert)?)?;
        let not_after = not_after(der).ok_or("the certificate's time of validity cannot be read")?;
        Ok(Identity { cluster, role, name, serial: Serial::new(cert.serial()), not_after })
    }
}

/// The cluster of a CA's certificate.
pub fn cluster_of_ca(der: &CertificateDer<'_>) -> Result<Name, String> {
    let cert = webpki::EndEntityCert::try_from(der).map_err(|e| format!("the certificate cannot be read: {e}"))?;
    uri_of(&cert)?.trim_start_matches(SCHEME).parse()
}

/// DNS names and addresses of a certificate's server; empty where it is no server's.
pub fn hosts_of(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok(cert) = webpki::EndEntityCert::try_from(der) else { return Vec::new() };
    cert.valid_dns_names().map(str::to_string).collect()
}

/// When a certificate ends, by its `notAfter`: RFC 5280, section 4.1. webpki checks it and does not tell it.
pub fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (certificate, _) = element(der, 0x30)?;
    let (tbs, _) = element(certificate, 0x30)?;
    // version (explicit, optional), serialNumber, signature, issuer, validity
    let rest = element(tbs, 0xa0).map_or(tbs, |(_, rest)| rest);
    let (_, rest) = element(rest, 0x02)?;
    let (_, rest) = element(rest, 0x30)?;
    let (_, rest) = element(rest, 0x30)?;
    let (validity, _) = element(rest, 0x30)?;
    let (_, _, rest) = any(validity)?;
    let (tag, text, _) = any(rest)?;
    time(tag, text)
}

/// Tag, content and what follows of a DER element of definite length.
fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    any(der).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// `YYMMDDHHMMSSZ` (tag 0x17, years 1950 to 2049) or `YYYYMMDDHHMMSSZ` (tag 0x18).
fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        0x17 if text.len() == 12 => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        0x18 if text.len() == 14 => text.to_string(),
        _ => return None,
    };
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(8, 10)?, number(10, 12)?, number(12, 14)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970-03-01 of the proleptic Gregorian calendar, years beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = (365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1).checked_sub(719_468)?;
    Some(UNIX_EPOCH + Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_says_who_somebody_is_and_nothing_else_is_taken() {
        let (cluster, name) = ("lab".parse().unwrap(), "alice".parse().unwrap());
        let text = uri(&cluster, Role::Operate, &name);
        assert_eq!(text, "toroid://lab/role/operate/alice");
        assert_eq!(parse_uri(&text), Ok((cluster, Role::Operate, name)));
        for bad in [
            "toroid://lab",
            "toroid://lab/role/operate/",
            "toroid://lab/role/root/alice",
            "toroid://lab/role/operate/alice/more",
            "toroid://lab/role/operate/../x",
            "toroid:///role/operate/alice",
            "http://lab/role/operate/alice",
            "toroid://lab/role/operate/a%2fb",
        ] {
            assert!(parse_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_read_as_rfc_5280_has_them() {
        let check = |tag: u8, text: &str, unix: Option<u64>| {
            let expected = unix.map(|s| UNIX_EPOCH + Duration::from_secs(s));
            assert_eq!(time(tag, text.as_bytes()), expected, "{text}");
        };
        check(0x17, "700101000000Z", Some(0));
        check(0x17, "491231235959Z", Some(2_524_607_999));
        check(0x18, "20240229120000Z", Some(1_709_208_000));
        check(0x18, "20501128213135Z", Some(2_553_283_895));
        check(0x17, "20240229120000Z", None);
        check(0x18, "20241329120000Z", None);
        check(0x18, "2024022912000Z", None);
        check(0x18, "00000101000000Z", None);
        check(0x18, "+0240229120000Z", None);
    }

    #[test]
    fn serial_numbers_are_compared_without_leading_zeros() {
        assert_eq!("00:AB:01".parse::<Serial>(), Ok(Serial::new(&[0xab, 1])));
        assert_eq!(Serial::new(&[0, 0xab, 1]).to_string(), "ab01");
        assert!(["", "a", "xy", "+1", ":"].iter().all(|bad| bad.parse::<Serial>().is_err()));
    }
}
