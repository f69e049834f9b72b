//! No circle of files: whoever reads one file must not have to read those that it serves.
//!
//! A file has an arrow to another where a `use` of it names something of that one (by `crate::`, `super::`, `self::`, or a module that it
//! declares). A name that a module only hands on (`pub use`) is that of the file which has it, so
//! handing on is no arrow. Nor is `mod`: a parent declares its children, and may hand them on; a child that takes something of
//! its parent has an arrow to it. Tests are not looked at.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

/// Crates without circles, by the folder of their root.
const CRATES: [&str; 4] = ["coordinator/machine/src", "coordinator/src", "worker/src", "telemetry/src"];

/// A path within a crate, by segments.
type Names = Vec<String>;

/// A file of a crate as a module.
#[derive(Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// What it hands on, by name, as whole paths within the crate.
    handed_on: BTreeMap<String, Names>,
    /// What it hands on of other crates.
    of_others: BTreeSet<String>,
    /// Paths that it takes something by.
    taken: Vec<Names>,
}

/// The modules of a crate by their path.
type Crate = BTreeMap<Names, Module>;

/// The file without comments, strings, and the tests at its end.
fn bare(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut bare = String::new();
    for line in text.lines() {
        let mut parts = crate::code(line).split('"');
        // Every second part is within quotes.
        while let Some(code) = parts.next() {
            bare.push_str(code);
            parts.next();
        }
        bare.push('\n');
    }
    bare
}

/// The paths of a `use` tree: `a::{b, c::d as e}` gives `a::b` as `b` and `a::c::d` as `e`.
fn paths_of(tree: &str, before: &[String], found: &mut Vec<(Names, String)>) {
    let tree = tree.trim();
    if let Some((head, group)) = tree.split_once('{') {
        let mut path = before.to_vec();
        path.extend(head.split("::").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned));
        let group = group.trim_end().strip_suffix('}').unwrap_or(group);
        let mut depth = 0;
        let is_between = |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        };
        group.split(is_between).filter(|part| !part.trim().is_empty()).for_each(|part| paths_of(part, &path, found));
        return;
    }
    let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
    let mut path: Names = before.iter().cloned().chain(path.split("::").map(|s| s.trim().to_owned())).collect();
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = if name.is_empty() { path.last().cloned().unwrap_or_default() } else { name.trim().to_owned() };
    found.push((path, name));
}

/// A path as the module at `here` writes it, from the root of the crate; `None` where it leads out of the crate.
fn absolute(path: &[String], here: &[String], children: &BTreeSet<String>) -> Option<Names> {
    let first = path.first()?.as_str();
    let (base, rest) = match first {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (here.to_vec(), &path[1..]),
        "super" => {
            let ups = path.iter().take_while(|s| *s == "super").count();
            (here[..here.len().checked_sub(ups)?].to_vec(), &path[ups..])
        }
        child if children.contains(child) => (here.to_vec(), path),
        _ => return None,
    };
    Some(base.into_iter().chain(rest.iter().cloned()).collect())
}

fn module_of(file: &str, text: &str, here: &[String]) -> Module {
    let bare = bare(text);
    let mut module = Module { file: file.to_owned(), ..Module::default() };
    let mut code = String::new();
    let mut uses: Vec<(bool, String)> = Vec::new();
    for statement in bare.split_inclusive([';', '{', '}']) {
        let words = statement.trim_start();
        let declared =
            words.split_whitespace().skip_while(|w| w.starts_with("pub") || w.starts_with('#')).collect::<Vec<_>>();
        if let ["mod", name] = declared[..]
            && let Some(name) = name.strip_suffix(';')
        {
            module.children.insert(name.to_owned());
        }
        code.push_str(statement);
    }
    // A `use` may have braces of its own, so these are found in the whole.
    let mut rest = code.as_str();
    while let Some(at) = rest.find("use ") {
        let (before, from) = rest.split_at(at);
        let line = before.rsplit('\n').next().unwrap_or_default().trim();
        let is_statement = line.is_empty()
            || (line.starts_with("pub") && !line.contains(['=', '(', ' ']))
            || line.starts_with("pub(") && line.ends_with(')');
        let end = if is_statement { from.find(';').unwrap_or(from.len()) } else { "use ".len() };
        if is_statement {
            uses.push((line.starts_with("pub"), from["use ".len()..end].to_owned()));
        }
        rest = &from[end..];
    }
    for (hands_on, tree) in uses {
        let mut paths = Vec::new();
        paths_of(&tree, &[], &mut paths);
        for (path, name) in paths {
            let Some(path) = absolute(&path, here, &module.children) else {
                module.of_others.extend(Some(name).filter(|_| hands_on));
                continue;
            };
            if hands_on {
                module.handed_on.insert(name, path);
            } else {
                module.taken.push(path);
            }
        }
    }
    module
}

/// The crate with its root in `folder`.
fn read(files: &[(String, String)], folder: &str) -> Crate {
    let mut modules = Crate::new();
    for (file, text) in files {
        let Some(inner) = file.strip_prefix(folder).and_then(|inner| inner.strip_prefix('/')) else { continue };
        if inner.contains("tests/") || inner.ends_with("tests.rs") {
            continue;
        }
        let inner = inner.trim_end_matches(".rs");
        let mut names: Names = inner.split('/').map(str::to_owned).collect();
        names.pop_if(|last| matches!(last.as_str(), "mod" | "lib" | "main"));
        modules.insert(names.clone(), module_of(file, text, &names));
    }
    modules
}

/// The file that has what a path names.
fn owner<'a>(modules: &'a Crate, path: &[String], depth: usize) -> Option<&'a str> {
    let len = (0..=path.len()).rev().find(|len| modules.contains_key(&path[..*len]))?;
    let module = &modules[&path[..len]];
    let Some(name) = path.get(len) else { return Some(&module.file) };
    if module.of_others.contains(name) {
        return None;
    }
    if depth == 0 {
        return Some(&module.file);
    }
    if let Some(handed_on) = module.handed_on.get(name) {
        let whole: Names = handed_on.iter().chain(&path[len + 1..]).cloned().collect();
        return owner(modules, &whole, depth - 1);
    }
    Some(&module.file)
}

/// The files of which each takes something.
type Arrows<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn arrows(modules: &Crate) -> Arrows<'_> {
    const MAX_HANDS: usize = 8;
    let of_module = |module: &Module| -> BTreeSet<&str> {
        let owners = module.taken.iter().filter_map(|path| owner(modules, path, MAX_HANDS));
        owners.filter(|file| *file != module.file).collect()
    };
    modules.values().map(|module| (module.file.as_str(), of_module(module))).collect()
}

/// Files that lead to one another.
fn circles<'a>(arrows: &Arrows<'a>) -> BTreeSet<BTreeSet<&'a str>> {
    let reached = |from: &'a str| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            let next = arrows.get(file).into_iter().flatten();
            open.extend(next.filter(|file| reached.insert(**file)));
        }
        reached
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = arrows.keys().map(|file| (*file, reached(file))).collect();
    let circle = |file: &&'a str| -> BTreeSet<&'a str> {
        let leads_back = |other: &&&'a str| reached.get(**other).is_some_and(|from| from.contains(*file));
        reached[*file].iter().filter(leads_back).copied().collect()
    };
    arrows.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

/// What ties the files of a circle.
fn ties<'a>(arrows: &Arrows<'a>, circle: &BTreeSet<&'a str>) -> Vec<(&'a str, &'a str)> {
    let of_file = |from: &&'a str| arrows[from].iter().map(|to| (*from, *to)).collect::<Vec<_>>();
    circle.iter().flat_map(of_file).filter(|(_, to)| circle.contains(to)).collect()
}

#[test]
fn no_file_needs_the_files_that_need_it() -> Result<()> {
    let files = crate::files(&[".rs"])?;
    let mut complaints = Vec::new();
    for folder in CRATES {
        let modules = read(&files, folder);
        ensure!(modules.len() > 5, "{folder}: has hardly any files; correct the list in this test");
        let arrows = arrows(&modules);
        for circle in circles(&arrows) {
            let ties: String =
                ties(&arrows, &circle).iter().map(|(from, to)| format!("\n    {from} -> {to}")).collect();
            complaints.push(format!(
                "{folder}: {} files need one another; move what both sides need into a file of its own:{ties}",
                circle.len()
            ));
        }
    }
    crate::check(complaints)
}

/// The helpers above must be able to see.
#[test]
fn circles_are_found_through_names_that_are_handed_on() {
    let check = |files: &[(&str, &str)], expected: &[&[&str]]| {
        let files: Vec<(String, String)> =
            files.iter().map(|(name, text)| (format!("x/src/{name}.rs"), (*text).to_owned())).collect();
        let modules = read(&files, "x/src");
        let arrows = arrows(&modules);
        let found: Vec<Vec<&str>> = circles(&arrows).into_iter().map(|c| c.into_iter().collect()).collect();
        assert_eq!(found, expected, "{files:?}");
    };
    // A parent that hands its children on, and children that take of one another in one direction.
    check(&[("lib", "mod a;\nmod b;\npub use a::A;\npub use b::B;"), ("a", "use super::B;"), ("b", "struct B;")], &[]);
    let both = [
        ("lib", "mod a;\nmod b;\npub use a::A;\npub use b::B;"),
        ("a", "use super::B;"),
        ("b", "use crate::{\n    a::{self, A},\n};"),
    ];
    check(&both, &[&["x/src/a.rs", "x/src/b.rs"]]);
    // A comment, a text and a test are none, nor is what is handed on of another crate.
    check(&[("lib", "mod a;\npub use other as b;\nuse a::A;"), ("a", "use crate::b::B;\npub struct A;")], &[]);
    check(
        &[
            ("lib", "mod a;\nmod b;"),
            ("a", "use super::b;"),
            ("b", "// crate::a\nconst B: &str = \"crate::a\";\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}"),
        ],
        &[],
    );
    // A parent that uses its child, and a child that uses its parent.
    check(
        &[("lib", "mod p;"), ("p/mod", "mod c;\nuse c::C;\npub struct P;"), ("p/c", "use super::P;\npub struct C;")],
        &[&["x/src/p/c.rs", "x/src/p/mod.rs"]],
    );
    check(
        &[
            ("lib", "mod p;"),
            ("p/mod", "mod c;\npub(crate) use c::C;\npub struct P;"),
            ("p/c", "use super::P;\npub struct C;"),
        ],
        &[],
    );
}
