//! Below which folders a job may name paths to read, write or delete in: those that the operator allows, and nothing else.
//!
//! A path must lie below a root both as it is written and as this machine finds it, symlinks followed as far as it exists. `..`, `#`, and URLs
//! are refused, but for URLs below a root that is one. The coordinator asks when a job is submitted, and each worker asks before it opens anything:
//! the same path leads elsewhere on another machine, and at another time.

use std::path::{Component, Path, PathBuf};

use toroid_torus::job::JobSpec;

/// What a job names, and where it may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{key} = \"{path}\" is not allowed: {why}; the operator of the {} allows folders with --allow-root (now: {})", .whose, .allowed
)]
pub struct RootError {
    key: &'static str,
    path: String,
    why: String,
    whose: &'static str,
    allowed: String,
}

/// Folders, or URLs; `/` allows every path and URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Who asks: a coordinator or a worker.
    whose: &'static str,
    /// As they were named, and as they are found.
    folders: Vec<[PathBuf; 2]>,
    urls: Vec<String>,
    words: String,
}

impl Roots {
    pub fn new(whose: &'static str, named: &[PathBuf]) -> Roots {
        let (mut folders, mut urls) = (Vec::new(), Vec::new());
        for root in named {
            match root.to_str().filter(|text| text.contains("://")) {
                Some(url) => urls.push(url.trim_end_matches('/').to_string()),
                None => folders.push([root.clone(), found(root)]),
            }
        }
        let words = named.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        Roots { whose, folders, urls, words: if words.is_empty() { "none".into() } else { words } }
    }

    /// For who may name whatever this process may read and write.
    pub fn everywhere() -> Roots {
        Roots::new("machine", &["/".into()])
    }

    fn allows_all(&self) -> bool {
        self.folders.iter().any(|[named, _]| named == Path::new("/"))
    }

    /// Why the paths that a job names, and those in `more`, may not be opened. Asks the file system, which may take its time.
    pub fn check<'a>(
        &self,
        spec: &JobSpec,
        more: impl IntoIterator<Item = (&'static str, &'a str)>,
    ) -> Result<(), RootError> {
        if self.allows_all() {
            return Ok(());
        }
        let more = more.into_iter().map(|(key, path)| (key, path.to_string()));
        for (key, path) in paths_of(spec).into_iter().chain(more) {
            if let Err(why) = self.why_not(&path) {
                return Err(self.refusal(key, path, why));
            }
        }
        Ok(())
    }

    /// The error of a job whose paths cannot be looked at.
    pub fn unanswered(&self, spec: &JobSpec) -> RootError {
        let why = "the file system of this or another path of the job does not answer".into();
        let (key, path) = spec.data.paths().into_iter().next().unwrap_or(("data.path", Path::new("")));
        self.refusal(key, path.to_string_lossy().into_owned(), why)
    }

    fn refusal(&self, key: &'static str, path: String, why: String) -> RootError {
        RootError { key, path, why, whose: self.whose, allowed: self.words.clone() }
    }

    fn why_not(&self, path: &str) -> Result<(), String> {
        if path.contains(['#', '?', '%', '\0']) || path.chars().any(char::is_control) {
            return Err("it has a `#`, `?`, `%` or a control character".into());
        }
        if path.contains("://") {
            let is_below = |root: &String| {
                path.strip_prefix(root.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let is_plain = !path.split('/').any(|part| part == ".." || part == ".");
            return match is_plain && self.urls.iter().any(is_below) {
                true => Ok(()),
                false => Err("it is a URL below none of the allowed ones".into()),
            };
        }
        let path = Path::new(path);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err("it is not absolute, or has a `..`".into());
        }
        if !self.folders.iter().any(|[named, found]| path.starts_with(named) || path.starts_with(found)) {
            return Err("it is below no allowed folder".into());
        }
        let real = found(path);
        match self.folders.iter().any(|[_, root]| real.starts_with(root)) {
            true => Ok(()),
            false => Err(format!("a symbolic link leads out, to {}", real.display())),
        }
    }
}

/// What a job names, with the files of a folder of initial weights: each may be a symlink.
fn paths_of(spec: &JobSpec) -> Vec<(&'static str, String)> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let files = |(key, path): (&'static str, &Path)| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| (key, text(&entry.path()))).collect::<Vec<_>>()
    };
    let of_weights = |(key, path): (&'static str, &Path)| [vec![(key, text(path))], files((key, path))].concat();
    let data = spec.data.paths().into_iter().map(|(key, path)| (key, text(path)));
    let others = [
        spec.checkpoint.path.clone().map(|path| ("checkpoint.path", path)),
        spec.resume_from.clone().map(|path| ("resume_from", path)),
    ];
    data.chain(others.into_iter().flatten()).chain(spec.weights().into_iter().flat_map(of_weights)).collect()
}

/// The path with all symlinks followed, as far as it exists.
fn found(path: &Path) -> PathBuf {
    for there in path.ancestors() {
        if let Ok(real) = there.canonicalize() {
            let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
        // One that leads nowhere may lead somewhere by the time that it is opened.
        if there.is_symlink() {
            return PathBuf::from("a symbolic link that leads nowhere");
        }
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_torus::job;

    #[test]
    fn a_job_names_paths_below_the_allowed_folders_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let root = base.join("jobs");
        std::fs::create_dir_all(root.join("text")).unwrap();
        std::fs::create_dir_all(base.join("jobs-of-others")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
        std::os::unix::fs::symlink(root.join("text"), root.join("in")).unwrap();
        let roots = Roots::new("worker", &[root.clone(), "s3://bucket/team".into()]);
        let refused = |key: &str, path: &str| {
            let data = if key == "data.path" { path.to_string() } else { root.join("text").display().to_string() };
            let other = if key == "data.path" { String::new() } else { format!("{key} = {path:?}\n") };
            let toml = format!("steps = 3\n{other}data.path = {data:?}\n");
            let spec = job::parse(&toml).unwrap_or_else(|e| panic!("{toml}: {e}"));
            roots.check(&spec, []).err().map(|e| e.to_string())
        };
        let below = |name: &str| root.join(name).display().to_string();
        for path in [below("text"), below("text/new/deep"), below("in/x"), root.display().to_string()] {
            assert_eq!(refused("data.path", &path), None, "{path}");
            assert_eq!(refused("checkpoint.path", &path), None, "{path}");
        }
        assert_eq!(refused("checkpoint.path", "s3://bucket/team/a"), None);
        for path in [
            "/etc/passwd".to_string(),
            base.join("jobs-of-others").display().to_string(),
            below("../jobs-of-others"),
            below("text/../../x"),
            below("out/passwd"),
            below("dangling/x"),
            below("text#../../etc"),
            below("text%2f..%2f.."),
        ] {
            let words = refused("data.path", &path).unwrap_or_else(|| panic!("{path} is taken"));
            assert!(words.contains("data.path") && words.contains("--allow-root"), "{words}");
        }
        for path in
            ["file:///etc", "http://10.0.0.1/x", "s3://bucket/teams/a", "s3://bucket/team/../other", "s3://other/team"]
        {
            assert!(refused("checkpoint.path", path).is_some_and(|w| w.contains("URL")), "{path}");
        }
        let spec = job::parse("steps = 3\ndata.path = \"/etc\"\n").unwrap();
        assert_eq!(Roots::everywhere().check(&spec, [("checkpoint root", "/proc")]), Ok(()));
        assert!(Roots::new("worker", &[]).check(&spec, []).is_err());
        assert!(Roots::new("worker", &["/etc".into()]).check(&spec, [("checkpoint root", "/proc")]).is_err());
        // A folder of weights has files that lead out.
        let weights = root.join("weights");
        std::fs::create_dir(&weights).unwrap();
        assert_eq!(refused("init_from", &below("weights")), None);
        std::os::unix::fs::symlink("/etc/passwd", weights.join("a.safetensors")).unwrap();
        let words = refused("init_from", &below("weights")).unwrap();
        assert!(words.contains("a symbolic link leads out, to /etc/passwd"), "{words}");
        assert!(words.contains("the operator of the worker"), "{words}");
    }
}
