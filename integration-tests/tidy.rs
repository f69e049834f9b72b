//! What no compiler checks: purity of the pure parts, reasons for `unsafe`, module docs, file lengths, documentation that is complete.
//!
//! Every complaint names `file:line` and what to do. The words that are looked for are put together here, so that this file does
//! not complain of itself.

mod circles;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Parts whose results depend on their arguments alone (design sections 2 and 6).
const PURE: [&str; 4] = ["torus/src", "tokens/src", "coordinator/machine/src", "worker/session/src"];
/// What brings in time, chance, the system, or an order that differs from run to run.
const IMPURE: [&str; 12] = [
    "tokio",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "rand",
    "getrandom",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
];
/// What the tests of a pure part may use: many seeds on many threads, one seed replayed by name.
const ALLOWED_IN_TESTS: [&str; 2] = ["std::thread", "std::env"];
/// Crates that decide, and must not be able to do I/O: neither they nor anything below them.
const PURE_CRATES: [&str; 4] = ["toroid-torus", "toroid-tokens", "toroid-machine", "toroid-session"];
/// Crates that bring sockets, files, clocks or chance.
const IO_CRATES: [&str; 12] = [
    "tokio",
    "mio",
    "socket2",
    "tonic",
    "hyper",
    "rustix",
    "libc",
    "getrandom",
    "rand",
    "chrono",
    "tempfile",
    "memmap2",
];
const MAX_LINES: usize = 800;
/// An `unsafe` is justified within so many lines before it.
const SAFETY_LINES: usize = 8;
/// What is made by tools.
const SKIPPED_FOLDERS: [&str; 4] = ["target", ".git", ".toroid", "generated"];
/// How folders begin that have Python packages: there are several, as of `make demo-chat` and `make bench-data`.
const ENVIRONMENTS: &str = ".venv";

/// Files of this repository with these endings, by their path from its root, sorted.
fn files(endings: &[&str]) -> Result<Vec<(String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.to_path_buf()];
    let mut found: BTreeSet<PathBuf> = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if entry.file_type()?.is_dir() {
                if !SKIPPED_FOLDERS.contains(&name.as_str()) && !name.starts_with(ENVIRONMENTS) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.insert(path);
            }
        }
    }
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok((path.strip_prefix(root)?.to_string_lossy().into_owned(), text))
    };
    found.into_iter().map(read).collect()
}

/// Fails with all complaints at once.
fn check(complaints: Vec<String>) -> Result<()> {
    let mut text = String::new();
    for complaint in &complaints {
        writeln!(text, "  {complaint}")?;
    }
    ensure!(complaints.is_empty(), "{} complaints:\n{text}", complaints.len());
    Ok(())
}

/// Complaints about single lines: `found` looks at each and says what is wrong with it.
fn of_lines(files: &[(String, String)], found: impl Fn(&[&str], usize) -> Option<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in files {
        let lines: Vec<&str> = text.lines().collect();
        let of_file = (0..lines.len()).filter_map(|i| Some(format!("{path}:{}: {}", i + 1, found(&lines, i)?)));
        complaints.extend(of_file);
    }
    complaints
}

/// The line without its comment. A `//` within a string is taken for one too, unless it follows a colon as in a URL.
fn code(line: &str) -> &str {
    let starts = line.match_indices("//").map(|(at, _)| at);
    let comment = starts.into_iter().find(|at| !line[..*at].ends_with(':'));
    &line[..comment.unwrap_or(line.len())]
}

/// `word` as a whole: not within a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word)
        .any(|(at, _)| !is_part(line[..at].chars().next_back()) && !is_part(line[at + word.len()..].chars().next()))
}

/// The first of these that the line of code names, also as `use std::{fs, io}`.
fn impurity(line: &str) -> Option<&'static str> {
    let code = code(line);
    let grouped = |word: &str| match (word.strip_prefix("std::"), code.split_once("std::{")) {
        (Some(module), Some((_, group))) => has_word(group, module),
        _ => false,
    };
    IMPURE.into_iter().find(|word| has_word(code, word) || grouped(word))
}

#[test]
fn the_pure_parts_know_no_time_no_chance_and_no_system() -> Result<()> {
    let mut pure = files(&[".rs"])?;
    pure.retain(|(path, _)| PURE.iter().any(|part| path.starts_with(part)));
    ensure!(!pure.is_empty(), "no pure part was found: correct the list in this test");
    let (tests, code): (Vec<_>, Vec<_>) = pure.into_iter().partition(|(path, _)| path.contains("/tests/"));
    let complaint = |word: &str| {
        format!("`{word}` in a pure part; take time, seeds and data as arguments, and use ordered maps (BTreeMap)")
    };
    let mut complaints = of_lines(&code, |lines, i| impurity(lines[i]).map(complaint));
    complaints.extend(of_lines(&tests, |lines, i| {
        impurity(lines[i]).filter(|word| !ALLOWED_IN_TESTS.contains(word)).map(complaint)
    }));
    check(complaints)
}

#[test]
fn nothing_is_ignored_or_left_to_be_done() -> Result<()> {
    let words = [
        (concat!("#[", "ignore"), "a test that does not run is none; make it run or remove it"),
        (concat!("to", "do!("), "write it, or leave it out and say so in the closing note"),
        (concat!("unimple", "mented!("), "write it, or leave it out and say so in the closing note"),
        (concat!("TO", "DO"), "what is left undone goes into the closing note"),
        (concat!("FIX", "ME"), "what is left undone goes into the closing note"),
    ];
    check(of_lines(&files(&[".rs"])?, |lines, i| {
        let (word, what) = words.iter().find(|(word, _)| lines[i].contains(word))?;
        Some(format!("`{word}`: {what}"))
    }))
}

#[test]
fn every_unsafe_has_its_reason() -> Result<()> {
    let word = concat!("un", "safe");
    check(of_lines(&files(&[".rs"])?, |lines, i| {
        let before = &lines[i.saturating_sub(SAFETY_LINES)..=i];
        let is_justified = before.iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
        let complaint =
            format!("`{word}` without a `SAFETY:` comment in the {SAFETY_LINES} lines before it; say why it is sound");
        (has_word(code(lines[i]), word) && !is_justified).then_some(complaint)
    }))
}

#[test]
fn every_module_says_what_it_is_for() -> Result<()> {
    let complaint = |(path, text): &(String, String)| {
        let complaint = format!("{path}:1: does not begin with `//!`; say what the module is for");
        (!text.starts_with("//!")).then_some(complaint)
    };
    check(files(&[".rs"])?.iter().filter_map(complaint).collect())
}

#[test]
fn no_file_is_too_long_to_read() -> Result<()> {
    let complaint = |(path, text): &(String, String)| {
        let num_lines = text.lines().count();
        let complaint =
            format!("{path}:{MAX_LINES}: has {num_lines} lines, at most {MAX_LINES}; a file has one subject, split it");
        (num_lines > MAX_LINES).then_some(complaint)
    };
    check(files(&[".rs"])?.iter().filter_map(complaint).collect())
}

#[test]
fn no_line_ends_in_white_space() -> Result<()> {
    let endings =
        [".rs", ".toml", ".md", ".proto", ".sh", ".py", ".cu", ".yaml", ".yml", "Makefile", "Dockerfile", ".gitignore"];
    check(of_lines(&files(&endings)?, |lines, i| {
        lines[i].ends_with([' ', '\t']).then(|| "ends in white space; remove it".to_string())
    }))
}

#[test]
fn the_lock_file_is_part_of_the_repository() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ensure!(
        root.join("Cargo.lock").is_file(),
        "Cargo.lock:1: is missing; commit it, so that everybody builds the same"
    );
    let ignored = std::fs::read_to_string(root.join(".gitignore"))?;
    let is_ignored = ignored.lines().any(|line| line.trim().trim_start_matches('/') == "Cargo.lock");
    ensure!(!is_ignored, ".gitignore:1: names Cargo.lock; it belongs into the repository");
    Ok(())
}

/// Keys of a job file as `section.key`, from a job with all of them set.
fn job_keys() -> Result<BTreeSet<String>> {
    let text = "steps = 1\nresume_from = \"/r/step-1\"\ndata.path = \"/t\"\ncheckpoint.path = \"/c\"\n";
    let table: toml::Table = toroid_torus::job::parse(text)?.to_toml().parse()?;
    // It excludes `resume_from`; sources exclude `data.path`.
    let mut keys = BTreeSet::from(["init_from".to_owned(), "data.temperature".to_owned()]);
    let of_source = "name = \"a\"\npath = \"/a\"\nweight = 1.0\nmax_epochs = 1.0\ntokens = 1\n";
    let mixed: toml::Table =
        toroid_torus::job::parse(&format!("steps = 1\n[[data.source]]\n{of_source}"))?.to_toml().parse()?;
    let source = mixed["data"]["source"][0].as_table().context("a source is a table")?;
    keys.extend(source.keys().map(|key| format!("data.source.{key}")));
    // Of its kind alone; an answer is worth something by either of these.
    let of_policy = format!(
        "{POLICY}ppo.reward_model = \"/r\"\nppo.reward_mean = 0.0\nppo.reward_std = 1.0\nppo.reference = \"/m\"\nppo.kl_target = 6.0\n"
    );
    let policy: toml::Table = toroid_torus::job::parse(&of_policy)?.to_toml().parse()?;
    for (section, value) in table.iter().chain(policy.iter().filter(|(section, _)| *section == "ppo")) {
        insert_keys(section, value, &mut keys);
    }
    Ok(keys)
}

/// The least job of kind ppo.
const POLICY: &str = "steps = 4\nkind = \"ppo\"\ndata.path = \"/t\"\nppo.stop_token = 0\nppo.form.tokens = [1]\n";

/// `key`, and the keys of the table that it is: `ppo.form`, `ppo.form.min`. Sections themselves are no keys.
fn insert_keys(key: &str, value: &toml::Value, keys: &mut BTreeSet<String>) {
    let inner = value.as_table();
    if inner.is_none() || key.contains('.') {
        keys.insert(key.to_owned());
    }
    inner.into_iter().flatten().for_each(|(name, value)| insert_keys(&format!("{key}.{name}"), value, keys));
}

#[test]
fn the_job_file_reference_has_every_key() -> Result<()> {
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/job-file.md"))?;
    let is_missing = |key: &String| !reference.lines().any(|line| line.starts_with(&format!("| `{key}` |")));
    let missing = job_keys()?.into_iter().filter(is_missing);
    check(missing.map(|key| format!("docs/job-file.md:1: the reference has no row for `{key}`")).collect())
}

/// A default that is a value of TOML, in text; others are words (`must be given`).
fn as_value(default: &str) -> Option<toml::Value> {
    let table: toml::Table = format!("value = {}", default.trim_matches('`')).parse().ok()?;
    table.get("value").cloned()
}

fn is_same(a: &toml::Value, b: &toml::Value) -> bool {
    let number = |v: &toml::Value| v.as_float().or(v.as_integer().map(|n| n as f64));
    a == b || number(a).is_some_and(|a| Some(a) == number(b))
}

/// Against what the parser makes of a job without that key. Keys that are not printed, since others follow from them, are taken all the same.
#[test]
fn the_job_file_reference_has_no_other_key_and_no_other_default() -> Result<()> {
    const LEAST: &str = "steps = 1\ndata.path = \"/t\"\n";
    let (keys, mut complaints, mut num_compared) = (job_keys()?, Vec::new(), 0);
    let mut defaults: toml::Table = toroid_torus::job::parse(LEAST)?.to_toml().parse()?;
    let policy: toml::Table = toroid_torus::job::parse(POLICY)?.to_toml().parse()?;
    defaults.extend(policy.into_iter().filter(|(section, _)| section == "ppo"));
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/job-file.md"))?;
    for (number, line) in (1..).zip(reference.lines()) {
        let Some((key, rest)) = line.strip_prefix("| `").and_then(|rest| rest.split_once("` | ")) else { continue };
        let stated = rest.split(" | ").next().and_then(as_value);
        let is_taken = |value: &toml::Value| toroid_torus::job::parse(&format!("{LEAST}{key} = {value}\n")).is_ok();
        if !keys.contains(key) && !stated.as_ref().is_some_and(is_taken) {
            complaints.push(format!("docs/job-file.md:{number}: there is no key `{key}`"));
        }
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut sections = section.split('.').filter(|section| !section.is_empty());
        let table = sections.try_fold(defaults.clone(), |table, section| table.get(section)?.as_table().cloned());
        if let (Some(stated), Some(found)) = (stated, table.as_ref().and_then(|table| table.get(name))) {
            num_compared += 1;
            if !is_same(&stated, found) {
                complaints.push(format!("docs/job-file.md:{number}: the default of `{key}` is {found}, not {stated}"));
            }
        }
    }
    ensure!(num_compared > 20, "only {num_compared} defaults were compared: the table has another form");
    check(complaints)
}

/// Names of the crates below `package`, itself too, as a build of it alone has them; build scripts and macros run elsewhere.
fn crates_below(package: &str) -> Result<BTreeSet<String>> {
    let output = std::process::Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--locked", "--offline", "-e", "normal,no-proc-macro", "--prefix", "none", "-p", package])
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree -p {package}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

#[test]
fn what_decides_cannot_do_io() -> Result<()> {
    let mut complaints = Vec::new();
    for package in PURE_CRATES {
        let below = crates_below(package)?;
        ensure!(below.contains(package), "cargo tree does not list {package} itself");
        complaints.extend(
            IO_CRATES.iter().filter(|name| below.contains(**name)).map(|name| format!("{package} depends on {name}")),
        );
    }
    // The test can see: the coordinator does depend on what is looked for.
    ensure!(crates_below("toroid-coordinator")?.contains("tokio"), "cargo tree no longer shows tokio");
    check(complaints)
}

/// The anchor that renderers of Markdown make from a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Targets of the links in a line of Markdown, those into the web left out.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://"))
}

#[test]
fn links_between_documents_lead_somewhere() -> Result<()> {
    let documents = files(&[".md"])?;
    let anchors = |text: &str| -> BTreeSet<String> {
        text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#'))).collect()
    };
    let complaint = |path: &str, text: &str, target: &str| {
        let (file, section) = target.split_once('#').unwrap_or((target, ""));
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(file);
        if !there.exists() {
            return Some("there is no such file");
        }
        // Pictures and folders have none.
        let other = if file.is_empty() { Some(text.to_owned()) } else { std::fs::read_to_string(there).ok() };
        let has_section = section.is_empty() || other.is_some_and(|text| anchors(&text).contains(section));
        (!has_section).then_some("it has no such heading")
    };
    let mut complaints = Vec::new();
    for (path, text) in &documents {
        for (number, line) in (1..).zip(text.lines()) {
            complaints.extend(links(line).filter_map(|target| {
                complaint(path, text, target).map(|why| format!("{path}:{number}: the link to `{target}`: {why}"))
            }));
        }
    }
    check(complaints)
}

/// The code map goes down to each file of the parts that decide, and to no file that is gone.
#[test]
fn the_architecture_names_every_file_of_the_machines() -> Result<()> {
    let map = std::fs::read_to_string("ARCHITECTURE.md").context("read ARCHITECTURE.md")?;
    let mut complaints = Vec::new();
    for root in ["coordinator/machine/src/", "worker/session/src/", "worker/src/trainer/"] {
        let start = map.find(&format!(", `{root}`**")).with_context(|| format!("find the table of {root}"))?;
        let table = map[start..].lines().skip(4).take_while(|line| line.starts_with("| `"));
        let named: BTreeSet<&str> = table.filter_map(|line| line.split('`').nth(1)).collect();
        let sources = files(&[".rs"])?;
        let below = sources.iter().filter_map(|(path, _)| path.trim_start_matches("./").strip_prefix(root));
        let there: BTreeSet<&str> =
            below.filter(|path| !path.starts_with("tests/") && !["lib.rs", "tests.rs"].contains(path)).collect();
        complaints.extend(there.difference(&named).map(|path| format!("ARCHITECTURE.md does not name {root}{path}")));
        complaints
            .extend(named.difference(&there).map(|path| format!("ARCHITECTURE.md names {root}{path}: it is gone")));
    }
    check(complaints)
}

#[test]
fn the_readme_is_short() -> Result<()> {
    let (_, readme) = files(&["README.md"])?.into_iter().find(|(path, _)| path == "README.md").context("README.md")?;
    let lines = readme.lines().count();
    ensure!(lines < 150, "README.md has {lines} lines: move what a newcomer does not need into docs/");
    Ok(())
}

#[test]
fn the_example_job_files_are_valid() -> Result<()> {
    let examples: Vec<_> = files(&[".toml"])?.into_iter().filter(|(path, _)| path.starts_with("examples/")).collect();
    ensure!(!examples.is_empty(), "examples/: there are no job files; correct this test");
    let complaint =
        |(path, text): &(String, String)| Some(format!("{path}:1: {}", toroid_torus::job::parse(text).err()?));
    check(examples.iter().filter_map(complaint).collect())
}

/// The helpers above must be able to fail.
#[test]
fn impurities_are_found_in_code_and_not_in_comments() {
    for (line, expected) in [
        ("use std::time::Instant;", Some("Instant")),
        ("use std::{fs, io};", Some("std::fs")),
        ("    let now = SystemTime::now();", Some("SystemTime")),
        ("use rand::Rng;", Some("rand")),
        ("let operand = 1; // no HashMap here", None),
        ("//! Deliberately absent: tokio.", None),
        ("use std::{fmt, io};", None),
        ("let url = \"http://host\"; tokio::spawn(f);", Some("tokio")),
    ] {
        assert_eq!(impurity(line), expected, "{line}");
    }
}

/// The text between `#[error(` and the next one, or the end of the type.
fn variants(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let marker = concat!("#[err", "or(");
    text.match_indices(marker).map(move |(at, _)| {
        let rest = &text[at + marker.len()..];
        let end = [rest.find(marker), rest.find("\n}\n")].into_iter().flatten().min();
        (text[..at].matches('\n').count() + 1, &rest[..end.unwrap_or(rest.len())])
    })
}

/// Whoever shows an error shows its sources behind it. One that has its source's words in its own would say them twice.
#[test]
fn an_error_says_its_source_in_its_own_words_or_has_it_as_a_source() -> Result<()> {
    let mut complaints = Vec::new();
    for (path, text) in files(&[".rs"])?.iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
        for (line, variant) in variants(text) {
            let is_a_source = [concat!("#[fr", "om]"), concat!("#[sou", "rce]"), concat!(" sou", "rce:")];
            if !variant.starts_with("transparent") && is_a_source.iter().any(|mark| variant.contains(mark)) {
                complaints.push(format!(
                    "{path}:{line}: the error has a source, and so must not name it in its own words; make it transparent, or a field that is \
                     no source (`error`) with a `From` of its own"
                ));
            }
        }
    }
    check(complaints)
}
