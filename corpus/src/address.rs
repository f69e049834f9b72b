//! The normal form of URLs: two that lead to the same document have the same.
//!
//! The `url` crate (WHATWG) lowers scheme and host, writes hosts in IDNA, drops default ports and resolves dot segments. Beyond that, by
//! RFC 3986 section 6.2.2: escapes of unreserved characters are written out and others in capitals (`%7E` is `~`, `%2F` is not `/`). Schemes
//! and fragments that lead to other documents are options. The order of a query is never changed unless that is asked for: signatures depend on it.

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// What counts as the same address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Form {
    /// `http` is taken for `https`.
    pub same_scheme: bool,
    /// `www.example.org` is `example.org`.
    pub drop_www: bool,
    /// `/a/` is `/a`.
    pub drop_trailing_slash: bool,
    /// Fragments go; `#!` stays, which some pages use as a path.
    pub drop_fragment: bool,
    /// Names of query parameters that go; one that ends with `*` is a beginning.
    pub drop_parameters: Vec<String>,
    /// Parameters in the order of their names.
    pub sort_query: bool,
}

impl Default for Form {
    fn default() -> Form {
        let drop_parameters = ["utm_*", "gclid", "fbclid", "msclkid", "mc_cid", "mc_eid", "igshid", "_ga"];
        Form {
            same_scheme: true,
            drop_www: false,
            drop_trailing_slash: true,
            drop_fragment: true,
            drop_parameters: drop_parameters.map(str::to_owned).to_vec(),
            sort_query: false,
        }
    }
}

/// The normal form; none for what is no address of a host.
pub fn normalize(address: &str, form: &Form) -> Option<String> {
    let url = Url::parse(address.trim()).ok()?;
    let scheme = match url.scheme() {
        "http" if form.same_scheme => "https",
        scheme => scheme,
    };
    let host = match url.host()? {
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            let short = name.strip_prefix("www.").filter(|rest| form.drop_www && rest.contains('.'));
            short.unwrap_or(name).to_ascii_lowercase()
        }
        other => other.to_string(),
    };
    if host.is_empty() {
        return None;
    }
    // The default of the scheme that it gets.
    let port = url.port().filter(|port| !(scheme == "https" && *port == 443));
    let mut path = unescape(url.path());
    if form.drop_trailing_slash {
        path.truncate(path.trim_end_matches('/').len());
    }
    let mut found = format!("{scheme}://{host}");
    found.extend(port.map(|port| format!(":{port}")));
    found.push_str(&path);
    let query = url.query().map(|query| parameters(query, form)).filter(|query| !query.is_empty());
    found.extend(query.map(|query| format!("?{query}")));
    let fragment = url.fragment().filter(|f| !f.is_empty() && (!form.drop_fragment || f.starts_with('!')));
    found.extend(fragment.map(|fragment| format!("#{}", unescape(fragment))));
    Some(found)
}

/// The host of an address, without `www.`: the domain of a document that states no other.
pub fn host(address: &str) -> Option<String> {
    let url = Url::parse(address.trim()).ok()?;
    let host = url.host_str()?.trim_end_matches('.');
    Some(host.strip_prefix("www.").unwrap_or(host).to_ascii_lowercase())
}

fn parameters(query: &str, form: &Form) -> String {
    let is_dropped = |parameter: &&str| {
        let name = parameter.split('=').next().unwrap_or("");
        form.drop_parameters.iter().any(|dropped| match dropped.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == dropped,
        })
    };
    let kept = query.split('&').filter(|parameter| !parameter.is_empty() && !is_dropped(parameter));
    let mut kept: Vec<String> = kept.map(unescape).collect();
    if form.sort_query {
        kept.sort_by(|a, b| a.split('=').next().cmp(&b.split('=').next()));
    }
    kept.join("&")
}

/// Escapes of unreserved characters are written out, the others in capitals.
fn unescape(text: &str) -> String {
    let mut found = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        found.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(hex) = code else {
            found.push('%');
            rest = &rest[at + 1..];
            continue;
        };
        match u8::from_str_radix(hex, 16) {
            Ok(b) if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => found.push(char::from(b)),
            _ => {
                found.push('%');
                found.push_str(&hex.to_ascii_uppercase());
            }
        }
        rest = &rest[at + 3..];
    }
    found + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_normal_form() {
        let check = |address: &str, expected: &str| {
            let found = normalize(address, &Form::default());
            assert_eq!(found.as_deref(), Some(expected), "{address}");
            assert_eq!(normalize(expected, &Form::default()).as_deref(), Some(expected), "a normal form is its own");
        };
        check("HTTP://Example.ORG:80/a/../b/./c/", "https://example.org/b/c");
        check("https://example.org:443", "https://example.org");
        check("https://example.org./a", "https://example.org/a");
        check("https://example.org:8443/a", "https://example.org:8443/a");
        check("https://example.org/%7euser/a%2fb", "https://example.org/~user/a%2Fb");
        check("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4");
        check("https://example.org/a?utm_source=x&b=2&a=1&gclid=3#top", "https://example.org/a?b=2&a=1");
        check("https://example.org/a?#!/page", "https://example.org/a#!/page");
        check("https://10.2.3.4/x", "https://10.2.3.4/x");
        check("https://[2001:DB8::1]/x", "https://[2001:db8::1]/x");
        // The order of a signed query stays.
        check("https://s.org/o?X-Sig=9&X-Date=1", "https://s.org/o?X-Sig=9&X-Date=1");
        check("https://example.org/100%", "https://example.org/100%");
    }

    #[test]
    fn what_is_no_address_of_a_host_has_none() {
        for text in ["", "no url", "mailto:a@b.c", "/relative", "https://", "data:text/plain,x"] {
            assert_eq!(normalize(text, &Form::default()), None, "{text}");
        }
    }

    #[test]
    fn hosts_are_whole() {
        assert_eq!(host("https://www.a.co.uk/x").as_deref(), Some("a.co.uk"));
        assert_eq!(host("http://10.2.3.4:80/").as_deref(), Some("10.2.3.4"));
        let form = Form { drop_www: true, sort_query: true, ..Form::default() };
        assert_eq!(normalize("http://www.a.org/?b=1&a=2", &form).as_deref(), Some("https://a.org?a=2&b=1"));
        assert_eq!(normalize("http://www.org/", &form).as_deref(), Some("https://www.org"));
    }
}
