//! A job file on its way to the coordinator: relative paths become absolute, nothing else changes.
//!
//! Whoever writes `path = "text"` means a folder beside the job file; the coordinator and the workers have other working
//! folders. The paths are replaced within the text, so that comments, order and the line numbers of complaints stay. What is
//! not valid goes to the coordinator as it is: the job file is checked in one place.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::files::read_text;

/// Of a job file; the coordinator takes less.
pub const MAX_BYTES: u64 = 4 << 20;

/// A path that was replaced.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Resolved {
    pub key: &'static str,
    pub from: String,
    pub to: String,
}

/// Reads the file and resolves its paths against its folder.
pub fn read(file: &Path) -> Result<(String, Vec<Resolved>)> {
    let text = read_text(file, "the job file", MAX_BYTES)?;
    let file = std::path::absolute(file).with_context(|| format!("find the folder of {}", file.display()))?;
    Ok(resolve(&text, file.parent().unwrap_or(Path::new("/"))))
}

/// The keys of a job file that hold paths; everything else is passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Paths {
    init_from: Option<Spanned<String>>,
    resume_from: Option<Spanned<String>>,
    data: Data,
    checkpoint: Table,
    ppo: Ppo,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ppo {
    reference: Option<Spanned<String>>,
    reward_model: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    path: Option<Spanned<String>>,
    source: Vec<Table>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Table {
    path: Option<Spanned<String>>,
}

/// Replaces relative paths in the text of a job file.
pub fn resolve(text: &str, folder: &Path) -> (String, Vec<Resolved>) {
    let Ok(paths) = toml::from_str::<Paths>(text) else { return (text.to_string(), Vec::new()) };
    let sources = paths.data.source.into_iter().map(|source| ("data.source.path", source.path));
    let found = [
        ("init_from", paths.init_from),
        ("resume_from", paths.resume_from),
        ("data.path", paths.data.path),
        ("checkpoint.path", paths.checkpoint.path),
        ("ppo.reference", paths.ppo.reference),
        ("ppo.reward_model", paths.ppo.reward_model),
    ];
    let mut places: Vec<(Range<usize>, Resolved)> = Vec::new();
    for (key, value) in found.into_iter().chain(sources) {
        let Some(value) = value else { continue };
        if let Some(to) = absolute(value.get_ref(), folder) {
            places.push((value.span(), Resolved { key, from: value.into_inner(), to }));
        }
    }
    places.sort_by_key(|(span, _)| span.start);
    let mut out = text.to_string();
    // From the end: what was replaced does not move the spans before it.
    for (span, resolved) in places.iter().rev() {
        out.replace_range(span.clone(), &toml::Value::from(resolved.to.as_str()).to_string());
    }
    (out, places.into_iter().map(|(_, resolved)| resolved).collect())
}

/// `None` where the path stays as it is: it is absolute, a URL, or empty (which the coordinator refuses).
fn absolute(path: &str, folder: &Path) -> Option<String> {
    if path.is_empty() || path.contains("://") || Path::new(path).is_absolute() {
        return None;
    }
    // Components one by one: `./` and doubled slashes go, `..` stays for the file system, which knows of links.
    let joined: PathBuf = folder.join(path).components().collect();
    joined.to_str().map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str, keys: &[&str]) {
        let (found, resolved) = resolve(text, Path::new("/jobs/a b"));
        assert_eq!(found, expected);
        assert_eq!(resolved.iter().map(|r| r.key).collect::<Vec<_>>(), keys);
    }

    #[test]
    fn relative_paths_are_resolved_and_nothing_else_is_touched() {
        check(
            "# my job\nsteps = 5  # few\ninit_from = 'w/'\n\n[data]\npath=\"text\" # here\nextensions = [\"rs\"]\n[checkpoint]\npath = \"./out\"\n",
            "# my job\nsteps = 5  # few\ninit_from = \"/jobs/a b/w\"\n\n[data]\npath=\"/jobs/a b/text\" # here\nextensions = [\"rs\"]\n[checkpoint]\npath = \"/jobs/a b/out\"\n",
            &["init_from", "data.path", "checkpoint.path"],
        );
        check("data = { path = \"../t\" }\n", "data = { path = \"/jobs/a b/../t\" }\n", &["data.path"]);
        check(
            "[[data.source]]\nname = 'a'\npath = 'a'\n[[data.source]]\npath = '/b'\n[[data.source]]\npath = 'c'\n",
            "[[data.source]]\nname = 'a'\npath = \"/jobs/a b/a\"\n[[data.source]]\npath = '/b'\n[[data.source]]\npath = \"/jobs/a b/c\"\n",
            &["data.source.path", "data.source.path"],
        );
        check("data.path = '''a\"b'''", "data.path = '/jobs/a b/a\"b'", &["data.path"]);
        check("data.path = '.'", "data.path = \"/jobs/a b\"", &["data.path"]);
    }

    #[test]
    fn absolute_paths_and_urls_stay() {
        let text = "resume_from = \"/ckpt/step-10\"\n[data]\npath = \"/text\"\n[checkpoint]\npath = \"file:///out\"\n";
        check(text, text, &[]);
    }

    #[test]
    fn what_is_not_valid_is_left_for_the_coordinator_to_refuse() {
        for text in ["steps = \n", "data.path = 5\n", "data = \"x\"\n", "", "data.path = \"\"\n"] {
            check(text, text, &[]);
        }
    }

    #[test]
    fn keys_that_no_job_has_are_passed_over() {
        check("path = \"a\"\n[dta]\npath = \"b\"\n", "path = \"a\"\n[dta]\npath = \"b\"\n", &[]);
    }

    #[test]
    fn what_comes_out_parses_to_the_paths_that_were_named() {
        let (text, resolved) = resolve("steps = 3\n[data]\npath = \"tab\\there \\\"x\\\"\"\n", Path::new("/f"));
        let spec = toroid_torus::job::parse(&text).expect("parse what was rewritten");
        assert_eq!(spec.data.path, Path::new("/f/tab\there \"x\""));
        assert_eq!(resolved[0].from, "tab\there \"x\"");
    }

    #[test]
    fn a_file_is_read_relative_to_its_own_folder() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("job.toml");
        std::fs::write(&file, "data.path = \"text\"\n")?;
        let (_, resolved) = read(&file)?;
        assert_eq!(Path::new(&resolved[0].to), dir.path().join("text"));
        let missing = read(&dir.path().join("none.toml")).err().map(|e| format!("{e:#}"));
        assert!(missing.is_some_and(|text| text.contains("none.toml") && text.contains("No such file")));
        Ok(())
    }
}
