//! The text of a page: what a reader would see, by its elements alone.
//!
//! One pass, without a tree: scripts, styles and the like are left out, elements that make blocks end a line. What belongs to a page and
//! what is only around it is not told apart; the stages do that.

/// Elements whose contents nobody reads.
const HIDDEN: [&str; 8] = ["script", "style", "noscript", "template", "svg", "head", "iframe", "object"];
const BLOCKS: [&str; 32] = [
    "p",
    "div",
    "br",
    "li",
    "ul",
    "ol",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "tr",
    "table",
    "pre",
    "blockquote",
    "section",
    "article",
    "header",
    "footer",
    "nav",
    "aside",
    "main",
    "form",
    "dl",
    "dt",
    "dd",
    "figure",
    "hr",
    "title",
    "option",
    "td",
];

pub fn text(page: &str) -> String {
    let mut found = String::with_capacity(page.len() / 4);
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        push(&mut found, &rest[..at]);
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
            continue;
        }
        let name: String = rest[1..].trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        let name = name.to_ascii_lowercase();
        if name.is_empty() && !rest.starts_with("<!") && !rest.starts_with("<?") {
            // No tag: `a < b`.
            found.push('<');
            rest = &rest[1..];
            continue;
        }
        let is_end = rest.starts_with("</");
        rest = rest.find('>').map_or("", |end| &rest[end + 1..]);
        if BLOCKS.contains(&name.as_str()) {
            end_line(&mut found);
        }
        if !is_end && HIDDEN.contains(&name.as_str()) {
            rest = after_end_of(rest, &name);
        }
    }
    push(&mut found, rest);
    found.truncate(found.trim_end().len());
    found
}

/// Behind `</name`, whatever is between; nothing if it never ends.
fn after_end_of<'a>(rest: &'a str, name: &str) -> &'a str {
    for (at, _) in rest.match_indices("</") {
        let is_it =
            rest.as_bytes().get(at + 2..at + 2 + name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes()));
        if is_it {
            return rest[at..].find('>').map_or("", |end| &rest[at + end + 1..]);
        }
    }
    ""
}

fn end_line(found: &mut String) {
    while found.ends_with(' ') {
        found.pop();
    }
    if !found.is_empty() && !found.ends_with('\n') {
        found.push('\n');
    }
}

/// Text with its entities read and its spaces made one.
fn push(found: &mut String, text: &str) {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            if !found.is_empty() && !found.ends_with([' ', '\n']) {
                found.push(' ');
            }
            rest = rest.trim_start();
        } else if let Some((character, len)) = entity(rest) {
            found.push(character);
            rest = &rest[len..];
        } else {
            found.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
}

fn entity(text: &str) -> Option<(char, usize)> {
    const NAMED: [(&str, char); 26] = [
        ("amp", '&'),
        ("lt", '<'),
        ("gt", '>'),
        ("quot", '"'),
        ("apos", '\''),
        ("nbsp", ' '),
        ("copy", '©'),
        ("reg", '®'),
        ("hellip", '…'),
        ("mdash", '—'),
        ("ndash", '–'),
        ("lsquo", '‘'),
        ("rsquo", '’'),
        ("ldquo", '“'),
        ("rdquo", '”'),
        ("laquo", '«'),
        ("raquo", '»'),
        ("bull", '•'),
        ("middot", '·'),
        ("times", '×'),
        ("euro", '€'),
        ("auml", 'ä'),
        ("ouml", 'ö'),
        ("uuml", 'ü'),
        ("szlig", 'ß'),
        ("eacute", 'é'),
    ];
    const MAX_ENTITY_BYTES: usize = 12;
    let body = text.strip_prefix('&')?;
    let end = body.bytes().take(MAX_ENTITY_BYTES).position(|b| b == b';')?;
    let name = &body[..end];
    let code = match name.strip_prefix('#') {
        Some(number) => match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => number.parse().ok(),
        },
        None => NAMED.iter().find(|(n, _)| *n == name).map(|(_, c)| u32::from(*c)),
    };
    Some((char::from_u32(code?)?, end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_what_a_reader_sees() {
        let check = |page: &str, expected: &str| assert_eq!(text(page), expected, "{page}");
        check(
            "<html><head><title>T</title></head><body><h1>One</h1><p>Two  <b>three</b>\n four</p></body>",
            "One\nTwo three four",
        );
        check("a &lt; b &#38; c &#x1F600; &unknown; &", "a < b & c \u{1f600} &unknown; &");
        check("x<script>if (a < b) { }</SCRIPT >y<style>p{}</style>z", "xyz");
        check("1 < 2<br>3<!-- no <p> --><!DOCTYPE html>4", "1 < 2\n34");
        check("open <script> for ever", "open");
        check("<p", "");
        check("", "");
    }

    #[test]
    fn hostile_pages_take_linear_time() {
        for page in ["<".repeat(4 << 20), "<!--".repeat(1 << 20), "<script></".repeat(1 << 18), "&".repeat(4 << 20)] {
            text(&page);
        }
    }
}
