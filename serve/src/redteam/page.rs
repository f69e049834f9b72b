//! A report as one page of HTML that needs nothing else: no script, no request. Everything that a model or a file said is escaped.

use std::fmt::Write as _;

use super::detect::Share;
use super::report::{Attempt, Report};

const STYLE: &str = include_str!("page.css");
/// Attempts of a category whose texts are shown; the JSON has all.
const MAX_SHOWN: usize = 200;

/// The page of one report, or of two side by side: before, after. They are of the same probes.
pub fn page(reports: &[&Report]) -> String {
    let mut html = String::new();
    let title = if reports.len() > 1 { "Red-teaming: before and after" } else { "Red-teaming" };
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    html.push_str(&facts(reports));
    html.push_str(&shares(reports));
    html.push_str("<h2>Attempts with hits</h2>\n");
    for (i, report) in reports.iter().enumerate() {
        if reports.len() > 1 {
            let _ = writeln!(html, "<h3>{}</h3>", side(i));
        }
        html.push_str(&attempts(report));
    }
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

fn side(i: usize) -> &'static str {
    if i == 0 { "Before" } else { "After" }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What no document may have.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

/// What was asked, and how.
fn facts(reports: &[&Report]) -> String {
    let mut html = String::from("<table class=\"facts\">\n<tbody>\n");
    let mut row = |name: &str, value: &dyn Fn(&Report) -> String| {
        let cells: String = reports.iter().map(|report| format!("<td>{}</td>", escaped(&value(report)))).collect();
        let _ = writeln!(html, "<tr><th scope=\"row\">{name}</th>{cells}</tr>");
    };
    row("Model", &|report| report.model.name.clone());
    row("Weights (blake3)", &|report| report.model.digest.clone());
    row("Chat template (blake3)", &|report| {
        report.model.template.clone().unwrap_or_else(|| "none: prompts as they are".into())
    });
    row("Probes (blake3)", &|report| report.probes.clone());
    row("Sampling", &|report| {
        let sampling = &report.sampling;
        format!(
            "{} texts of each prompt, up to {} tokens, temperature {}, top-p {}, seed {}",
            sampling.samples, sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed
        )
    });
    row("Attempts", &|report| report.attempts.len().to_string());
    html.push_str("</tbody>\n</table>\n");
    html
}

/// Shares of hits by category and detector.
fn shares(reports: &[&Report]) -> String {
    let Some(first) = reports.first() else { return String::new() };
    let mut html = String::from(
        "<h2>Hits</h2>\n<p>A hit is what should not have happened. The bar is the share of attempts, the line its 95% interval (Wilson).</p>\n",
    );
    html.push_str(
        "<table class=\"shares\">\n<thead>\n<tr><th scope=\"col\">Category</th><th scope=\"col\">Detector</th>",
    );
    for i in 0..reports.len() {
        let _ =
            write!(html, "<th scope=\"col\" colspan=\"2\">{}</th>", if reports.len() > 1 { side(i) } else { "Hits" });
    }
    if reports.len() > 1 {
        html.push_str("<th scope=\"col\">Change</th>");
    }
    html.push_str("</tr>\n</thead>\n<tbody>\n");
    for (i, category) in first.categories.iter().enumerate() {
        for (n, name) in category.detectors.keys().enumerate() {
            html.push_str("<tr>");
            if n == 0 {
                let _ = write!(
                    html,
                    "<th scope=\"rowgroup\" rowspan=\"{}\">{}<span class=\"about\">{}</span></th>",
                    category.detectors.len(),
                    escaped(&category.name),
                    escaped(&category.about)
                );
            }
            let of = |report: &&Report| report.categories.get(i).and_then(|c| c.detectors.get(name)).copied();
            html.push_str(&row(name, &reports.iter().filter_map(of).collect::<Vec<_>>()));
            html.push_str("</tr>\n");
        }
    }
    html.push_str("</tbody>\n<tfoot>\n");
    for name in first.detectors.keys() {
        let all: Vec<Share> = reports.iter().filter_map(|report| report.detectors.get(name)).copied().collect();
        let _ = writeln!(html, "<tr><th scope=\"row\">All categories</th>{}</tr>", row(name, &all));
    }
    html.push_str("</tfoot>\n</table>\n");
    html
}

/// The cells of a detector.
fn row(name: &str, shares: &[Share]) -> String {
    let mut html = format!("<td>{}</td>", escaped(name));
    for (i, share) in shares.iter().enumerate() {
        let percent = |value: f64| 100.0 * value;
        // What stands in the column's head, where a narrow page has none.
        let side = if shares.len() > 1 { format!(" data-side=\"{}\"", side(i)) } else { String::new() };
        let _ = write!(
            html,
            "<td class=\"number\"{side}>{} of {}<span class=\"about\">{:.1}% ({:.1}% to {:.1}%)</span></td>\
             <td class=\"plot\"><div class=\"track\"><div class=\"bar\" style=\"width:{:.2}%\"></div>\
             <div class=\"interval\" style=\"left:{:.2}%;width:{:.2}%\"></div></div></td>",
            share.hits,
            share.attempts,
            percent(share.share),
            percent(share.low),
            percent(share.high),
            percent(share.share),
            percent(share.low),
            percent(share.high - share.low)
        );
    }
    if let [before, after] = shares {
        let word = match (before.is_apart(after), after.share < before.share) {
            (false, _) => "within the intervals",
            (true, true) => "fewer",
            (true, false) => "more",
        };
        let change = 100.0 * (after.share - before.share);
        let _ = write!(
            html,
            "<td class=\"number\" data-side=\"Change\">{change:+.1} points<span class=\"about\">{word}</span></td>"
        );
    }
    html
}

/// The attempts of a report that have hits, by category, folded.
fn attempts(report: &Report) -> String {
    let mut html = String::new();
    for category in &report.categories {
        let of_category = |attempt: &&Attempt| attempt.category == category.name && !attempt.hits.is_empty();
        let found: Vec<&Attempt> = report.attempts.iter().filter(of_category).collect();
        let _ = writeln!(html, "<details>\n<summary>{}: {}</summary>", escaped(&category.name), found.len());
        for attempt in found.iter().take(MAX_SHOWN) {
            let _ = writeln!(
                html,
                "<article><p class=\"hits\">{}</p><pre class=\"prompt\">{}</pre><pre class=\"answer\">{}</pre></article>",
                escaped(&attempt.hits.join(", ")),
                escaped(&attempt.prompt),
                escaped(&attempt.answer)
            );
        }
        if found.len() > MAX_SHOWN {
            let _ = writeln!(html, "<p>{} more are in the JSON.</p>", found.len() - MAX_SHOWN);
        }
        html.push_str("</details>\n");
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_said_is_markup() {
        assert_eq!(escaped("<b a='x'>&\"\u{7}\n"), "&lt;b a=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\n");
    }
}
