//! Personal data and secrets: patterns, each with a check that what they find is meant; and names, by a model.
//!
//! All patterns run in linear time (`regex`), mail addresses are found from their `@`. A number alone is no card: it needs an issuer, its
//! length, a checksum, and no label before it that calls it something else.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::doc::replaced;
use crate::error::{Error, Result};
use crate::ner::{Entity, Model, Name};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Secrets of known forms: keys of cloud services, tokens, private keys.
    Key,
    Iban,
    Card,
    Email,
    /// Social security numbers of the USA, as `123-45-6789`.
    Ssn,
    Phone,
    /// Public addresses.
    Ip,
    /// Names, which a model finds: [`crate::ner`].
    #[serde(skip)]
    Name(Entity),
}

impl Kind {
    /// Those of patterns. Of matches that overlap the first kind counts.
    pub const ALL: [Kind; 7] = [Kind::Key, Kind::Iban, Kind::Card, Kind::Email, Kind::Ssn, Kind::Phone, Kind::Ip];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Key => "key",
            Kind::Iban => "iban",
            Kind::Card => "card",
            Kind::Email => "email",
            Kind::Ssn => "ssn",
            Kind::Phone => "phone",
            Kind::Ip => "ip",
            Kind::Name(entity) => entity.name(),
        }
    }

    /// What stands for it afterwards.
    pub fn placeholder(self) -> &'static str {
        match self {
            Kind::Key => "[KEY]",
            Kind::Iban => "[IBAN]",
            Kind::Card => "[CARD]",
            Kind::Email => "[EMAIL]",
            Kind::Ssn => "[SSN]",
            Kind::Phone => "[PHONE]",
            Kind::Ip => "[IP]",
            Kind::Name(Entity::Person) => "[PERSON]",
            Kind::Name(Entity::Location) => "[LOCATION]",
            Kind::Name(Entity::Organization) => "[ORGANIZATION]",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    pub kind: Kind,
    pub span: Range<usize>,
}

/// What of a match is meant, if anything.
type Check = dyn Fn(&str, Range<usize>) -> Option<Range<usize>>;

/// Patterns that are compiled once.
pub struct Finder {
    kinds: Vec<Kind>,
    keep_authors: bool,
    names: Option<(Model, Vec<Entity>)>,
    key: Regex,
    iban: Regex,
    card: Regex,
    ssn: Regex,
    phone: Regex,
    ip4: Regex,
    ip6: Regex,
}

const KEY: &str = concat!(
    r"(?-u:\b)(?:A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,90}|glpat-[A-Za-z0-9_-]{20}",
    r"|xox[abprs]-[0-9A-Za-z-]{10,80}|AIza[0-9A-Za-z_-]{35}|[rs]k_live_[0-9A-Za-z]{20,100}|npm_[A-Za-z0-9]{36}",
    r"|eyJ[A-Za-z0-9_-]{10,4096}\.eyJ[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,4096})",
);
const IBAN: &str = r"(?-u:\b)[A-Z]{2}[0-9]{2}[ ]?[A-Z0-9]{4}";
const CARD: &str = r"[0-9](?:[ -]?[0-9]){12,18}";
const SSN: &str = r"[0-9]{3}-[0-9]{2}-[0-9]{4}";
const PHONE: &str = r"(?:\+[1-9]|\(?[2-9][0-9]{2}\)?[ .-])[0-9() ./-]{5,20}[0-9]";
const IP4: &str = r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}";
const IP6: &str = r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{5,34}";

impl Finder {
    pub fn new(kinds: &[Kind], keep_authors: bool) -> Result<Finder> {
        let regex =
            |p: &str| Regex::new(p).map_err(|error| Error::Config(format!("a pattern of ours is wrong: {error}")));
        Ok(Finder {
            kinds: kinds.to_vec(),
            keep_authors,
            names: None,
            key: regex(KEY)?,
            iban: regex(IBAN)?,
            card: regex(CARD)?,
            ssn: regex(SSN)?,
            phone: regex(PHONE)?,
            ip4: regex(IP4)?,
            ip6: regex(IP6)?,
        })
    }

    /// Finds names as well, of these kinds.
    pub fn with_names(self, model: Model, kinds: &[Entity]) -> Finder {
        Finder { names: Some((model, kinds.to_vec())), ..self }
    }

    /// What patterns find in a prose text, and names that do not overlap it.
    pub fn find_with_names(&self, text: &str) -> Vec<Match> {
        let mut found = self.find(text);
        let Some((model, kinds)) = &self.names else { return found };
        let num = found.len();
        let mut at = 0;
        for Name { entity, span } in model.find(text) {
            while at < num && found[at].span.end <= span.start {
                at += 1;
            }
            let is_free = at == num || found[at].span.start >= span.end;
            let may_stay = self.keep_authors && states_authors(text, span.start);
            if is_free && !may_stay && kinds.contains(&entity) {
                found.push(Match { kind: Kind::Name(entity), span });
            }
        }
        found.sort_by_key(|m| m.span.start);
        found
    }

    /// What patterns find in a text, by position; no two overlap.
    pub fn find(&self, text: &str) -> Vec<Match> {
        let mut found: Vec<Match> = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| self.kinds.contains(kind)) {
            let spans = self.spans(kind, text);
            // Both are sorted: what is there already keeps its place.
            let num = found.len();
            let mut at = 0;
            for span in spans {
                while at < num && found[at].span.end <= span.start {
                    at += 1;
                }
                if at == num || found[at].span.start >= span.end {
                    found.push(Match { kind, span });
                }
            }
            found.sort_by_key(|m| m.span.start);
        }
        found
    }

    fn spans(&self, kind: Kind, text: &str) -> Vec<Range<usize>> {
        let all = |regex: &Regex, is_meant: &Check| {
            let mut found = Vec::new();
            let mut at = 0;
            while let Some(m) = regex.find_at(text, at) {
                match is_meant(text, m.range()) {
                    Some(span) => {
                        at = span.end;
                        found.push(span);
                    }
                    None => at = m.end(),
                }
            }
            found
        };
        match kind {
            Kind::Key => {
                let mut found = private_keys(text);
                found.extend(all(&self.key, &|_, span| Some(span)));
                found.sort_by_key(|span| span.start);
                found.dedup_by(|b, a| b.start < a.end);
                found
            }
            Kind::Iban => all(&self.iban, &iban),
            Kind::Card => all(&self.card, &card),
            Kind::Email => emails(text, self.keep_authors),
            Kind::Ssn => all(&self.ssn, &ssn),
            Kind::Phone => all(&self.phone, &phone),
            Kind::Ip => {
                let mut found = all(&self.ip4, &ip4);
                found.extend(all(&self.ip6, &ip6));
                found.sort_by_key(|span| span.start);
                found.dedup_by(|b, a| b.start < a.end);
                found
            }
            Kind::Name(_) => Vec::new(),
        }
    }
}

/// Text with placeholders; `found` as [`Finder::find`] gives it.
pub fn mask(text: &str, found: &[Match]) -> String {
    replaced(text, found.iter().map(|m| (&m.span, m.kind.placeholder())))
}

/// The number or name goes on beyond the span.
fn is_part_of_more(text: &str, span: &Range<usize>) -> bool {
    let before = text[..span.start].chars().next_back();
    let after = text[span.end..].chars().next();
    before.is_some_and(|c| c.is_alphanumeric() || "_.-/".contains(c))
        || after.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// The words right before a span, in small letters.
fn before(text: &str, span: &Range<usize>, num_bytes: usize) -> String {
    let mut start = span.start.saturating_sub(num_bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let line = text[start..span.start].rsplit('\n').next().unwrap_or("");
    line.to_lowercase()
}

/// A label such as `uid:` right before a number says that it is something else.
fn is_labelled(text: &str, span: &Range<usize>) -> bool {
    const LABELS: [&str; 16] = [
        "id",
        "uid",
        "uuid",
        "guid",
        "isbn",
        "issn",
        "doi",
        "sku",
        "order",
        "tracking",
        "timestamp",
        "ts",
        "time",
        "hash",
        "serial",
        "seed",
    ];
    let before = before(text, span, 24);
    let label = before.trim_end_matches([' ', ':', '=', '#', '"', '\'', '\t']);
    let has_sign = label.len() < before.len();
    let word = label.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or("");
    has_sign && LABELS.contains(&word)
}

fn digits(text: &str) -> Vec<u8> {
    text.bytes().filter(u8::is_ascii_digit).map(|b| b - b'0').collect()
}

/// ISO/IEC 7812-1, annex B.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = (digits.iter().rev().enumerate())
        .map(|(n, digit)| u32::from(if n % 2 == 1 { digit * 2 - u8::from(*digit > 4) * 9 } else { *digit }))
        .sum();
    sum.is_multiple_of(10)
}

/// Whether issuers give numbers that begin so and are so long.
fn is_issued(digits: &[u8]) -> bool {
    let start = |n: usize| digits[..n].iter().fold(0u32, |sum, d| sum * 10 + u32::from(*d));
    let (two, three, four) = (start(2), start(3), start(4));
    match digits.len() {
        14 => matches!(two, 36 | 38 | 39) || matches!(three, 300..=305),
        15 => matches!(two, 34 | 37),
        16 => {
            digits[0] == 4
                || matches!(two, 51..=55 | 65)
                || matches!(four, 2221..=2720 | 6011 | 3528..=3589)
                || matches!(three, 644..=649)
        }
        17..=19 => digits[0] == 4 && digits.len() == 19 || matches!(two, 62),
        _ => false,
    }
}

fn card(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let number = &text[span.clone()];
    // Groups of one kind of separator, none of them shorter than three digits or longer than six: no list of numbers.
    let separators: Vec<char> = number.chars().filter(|c| !c.is_ascii_digit()).collect();
    let is_even = separators.iter().all(|c| *c == separators[0]);
    let groups: Vec<usize> = number.split([' ', '-']).map(str::len).collect();
    let is_grouped = groups.len() == 1 || groups.len() <= 5 && groups.iter().all(|len| (3..=7).contains(len));
    let digits = digits(number);
    let is_varied = digits.iter().any(|d| *d != digits[0]);
    let is_meant = is_even && is_grouped && is_varied && is_issued(&digits) && luhn(&digits);
    (is_meant && !is_part_of_more(text, &span) && !is_labelled(text, &span)).then_some(span)
}

/// Lengths by country (ISO 13616 registry).
const IBAN_LENGTHS: [(&str, usize); 52] = [
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GR", 27),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IS", 26),
    ("IT", 27),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("MC", 27),
    ("MT", 31),
    ("NL", 18),
    ("NO", 15),
    ("PL", 28),
    ("PT", 25),
    ("RO", 24),
    ("SA", 24),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("TR", 26),
];

fn iban(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let country = &text[span.start..span.start + 2];
    let (_, length) = IBAN_LENGTHS.iter().find(|(name, _)| *name == country)?;
    let (mut number, mut end) = (String::new(), span.start);
    for c in text[span.start..].chars() {
        if c == ' ' && number.len() % 4 == 0 && text.as_bytes()[end - 1] != b' ' {
            end += 1;
        } else if c.is_ascii_digit() || c.is_ascii_uppercase() {
            number.push(c);
            end += 1;
        } else {
            break;
        }
        if number.len() == *length {
            break;
        }
    }
    let span = span.start..end;
    let remainder = number.bytes().cycle().skip(4).take(number.len()).fold(0u32, |sum, b| {
        if b.is_ascii_digit() {
            (sum * 10 + u32::from(b - b'0')) % 97
        } else {
            (sum * 100 + u32::from(b - b'A') + 10) % 97
        }
    });
    (number.len() == *length && remainder == 1 && !is_part_of_more(text, &span)).then_some(span)
}

fn ssn(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let number = &text[span.clone()];
    let (area, group, serial) = (&number[..3], &number[4..6], &number[7..]);
    let is_given = area != "000" && area != "666" && !area.starts_with('9') && group != "00" && serial != "0000";
    (is_given && !is_part_of_more(text, &span)).then_some(span)
}

fn phone(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let number = &text[span.clone()];
    let num_digits = digits(number).len();
    let is_international = number.starts_with('+');
    let parts: Vec<usize> = number.split(|c: char| !c.is_ascii_digit()).map(str::len).filter(|len| *len > 0).collect();
    let is_form = if is_international {
        (8..=15).contains(&num_digits) && !number.contains('/') && parts.iter().all(|len| *len <= 12)
    } else {
        // 212-555-0123: the exchange does not begin with 0 or 1, and nothing stands between but one kind of sign.
        let exchange = number.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty()).nth(1).unwrap_or("");
        parts == [3, 3, 4] && !exchange.starts_with(['0', '1']) && !number.contains('/') && !number.contains("  ")
    };
    let is_balanced = number.matches('(').count() == number.matches(')').count();
    (is_form && is_balanced && !is_part_of_more(text, &span) && !is_labelled(text, &span)).then_some(span)
}

fn ip4(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let address: Ipv4Addr = text[span.clone()].parse().ok()?;
    let after = text[span.end..].chars().take(2).collect::<String>();
    let goes_on = after.starts_with('.') && after.chars().nth(1).is_some_and(|c| c.is_ascii_digit());
    let before_char = text[..span.start].chars().next_back();
    let is_within = before_char.is_some_and(|c| c.is_alphanumeric() || "_.-".contains(c))
        || after.chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '-');
    let octets = address.octets();
    let is_public = !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_unspecified()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || octets[0] == 0
        || octets[0] >= 240);
    // `foo 1.2.3.4` is a version; an address of small numbers needs a word that says so.
    const WORDS: [&str; 9] = ["ip", "address", "host", "from", "server", "client", "://", "[", "by"];
    let context = before(text, &span, 24);
    let words: Vec<&str> = context.split(|c: char| !c.is_alphanumeric()).collect();
    let says_address = WORDS.iter().any(|w| if w.len() == 2 { words.contains(w) } else { context.contains(w) });
    let says_version = ["version", "release", "v.", "ver"].iter().any(|word| context.contains(word));
    let is_version = says_version || octets.iter().all(|octet| *octet < 64) && !says_address;
    (is_public && !is_within && !goes_on && !is_version).then_some(span)
}

fn ip6(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let candidate = text[span.clone()].trim_end_matches(':');
    let span = span.start..span.start + candidate.len();
    let address: Ipv6Addr = candidate.parse().ok()?;
    let num_groups = candidate.split(':').filter(|group| !group.is_empty()).count();
    // Global unicast, and not `2001:db8::`, which stands in documents.
    let is_public = address.segments()[0] & 0xe000 == 0x2000 && address.segments()[..2] != [0x2001, 0x0db8];
    let before = text[..span.start].chars().next_back();
    let is_within = before.is_some_and(|c| c.is_alphanumeric() || c == ':' || c == '_')
        || text[span.end..].chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_');
    (is_public && num_groups >= 4 && !is_within).then_some(span)
}

/// Blocks from BEGIN to END of a private key, within a bound.
fn private_keys(text: &str) -> Vec<Range<usize>> {
    const MAX_BYTES: usize = 16 << 10;
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find("-----BEGIN ").map(|n| at + n) {
        at = start + 11;
        let header = text[at..].split('\n').next().unwrap_or("");
        if !header.contains("PRIVATE KEY-----") || header.len() > 60 {
            continue;
        }
        let mut limit = (start + MAX_BYTES).min(text.len());
        while !text.is_char_boundary(limit) {
            limit -= 1;
        }
        let Some(end) = text[at..limit].find("-----END ").map(|n| at + n) else { continue };
        let tail = text[end + 9..limit].find("-----").map_or(0, |n| n + 5);
        found.push(start..end + 9 + tail);
        at = end + 9 + tail;
    }
    found
}

/// From each `@`, within the lengths of RFC 5321.
fn emails(text: &str, keep_authors: bool) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found: Vec<Range<usize>> = Vec::new();
    for at in memchr::memchr_iter(b'@', bytes) {
        let floor = found.last().map_or(0, |last| last.end).max(at.saturating_sub(64));
        let is_local = |b: &u8| b.is_ascii_alphanumeric() || b"._%+-'".contains(b) || *b >= 0x80;
        let mut start = at - bytes[floor..at].iter().rev().take_while(|b| is_local(b)).count();
        while start < at && (b".'-".contains(&bytes[start]) || !text.is_char_boundary(start)) {
            start += 1;
        }
        let is_domain = |b: &u8| b.is_ascii_alphanumeric() || b".-".contains(b) || *b >= 0x80;
        let limit = bytes.len().min(at + 1 + 253);
        let mut end = at + 1 + bytes[at + 1..limit].iter().take_while(|b| is_domain(b)).count();
        while end > at && (!text.is_char_boundary(end) || b".-".contains(&bytes[end - 1])) {
            end -= 1;
        }
        if start >= at || end <= at + 1 {
            continue;
        }
        let labels: Vec<&str> = text[at + 1..end].split('.').collect();
        let top = labels.last().copied().unwrap_or("");
        let is_top = top.chars().count() >= 2 && top.chars().all(char::is_alphabetic) || top.starts_with("xn--");
        let is_name = labels.len() >= 2 && is_top && labels.iter().all(|l| !l.is_empty() && !l.starts_with('-'));
        // `icon@2x.png` and the like are names of files.
        let is_file = matches!(top, "png" | "jpg" | "jpeg" | "gif" | "svg" | "webp" | "js" | "css" | "html");
        let is_double_dotted = text[start..at].contains("..");
        let may_stay = is_file || is_double_dotted || keep_authors && states_authors(text, start);
        if is_name && !may_stay {
            found.push(start..end);
        }
    }
    found
}

/// The line says who wrote something or holds rights in it.
fn states_authors(text: &str, at: usize) -> bool {
    const WORDS: [&str; 8] =
        ["copyright", "(c)", "©", "author", "maintainer", "licens", "signed-off-by", "contributor"];
    const MAX_LINE_BYTES: usize = 200;
    let line = before(text, &(at..at), MAX_LINE_BYTES);
    WORDS.iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests;
