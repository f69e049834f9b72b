//! Below which folders a job may name paths to read, write or delete in: those that the operator allows, and nothing else.
//!
//! A path must lie below a root both as it is written and as this machine finds it, symlinks followed as far as it exists. `..`, `#`, and URLs
//! are refused, but for URLs below a root that is one. Workers open paths on machines that this one does not see: what a symlink there leads
//! to is for their own users' permissions.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toroid_torus::job;

/// A file system that does not answer by then has no folder that is allowed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a job names, and where it may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{key} = \"{path}\" is not allowed: {why}; the operator of the coordinator allows folders with --allow-root (now: {roots})"
)]
pub(crate) struct RootError {
    key: &'static str,
    path: String,
    why: String,
    roots: String,
}

/// Folders, or URLs; `/` allows every path and URL.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// As they were named, and as they are found.
    folders: Vec<[PathBuf; 2]>,
    urls: Vec<String>,
    words: String,
}

impl Roots {
    pub fn new(named: &[PathBuf]) -> Roots {
        let (mut folders, mut urls) = (Vec::new(), Vec::new());
        for root in named {
            match root.to_str().filter(|text| text.contains("://")) {
                Some(url) => urls.push(url.trim_end_matches('/').to_string()),
                None => folders.push([root.clone(), found(root)]),
            }
        }
        let words = named.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        Roots { folders, urls, words: if words.is_empty() { "none".into() } else { words } }
    }

    fn allows_all(&self) -> bool {
        self.folders.iter().any(|[named, _]| named == Path::new("/"))
    }

    /// Why a job may not be submitted. A file that is not valid is refused by the machine.
    pub async fn refusal(&self, toml: &str) -> Option<RootError> {
        if self.allows_all() {
            return None;
        }
        let spec = job::parse(toml).ok()?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let paths = [
            Some(("data.path", text(&spec.data.path))),
            spec.checkpoint.path.map(|path| ("checkpoint.path", path)),
            spec.init_from.map(|path| ("init_from", text(&path))),
            spec.resume_from.map(|path| ("resume_from", path)),
        ];
        let (roots, words) = (self.clone(), self.words.clone());
        let first = paths.iter().flatten().next().map(|(key, path)| (*key, path.clone()))?;
        let look = tokio::task::spawn_blocking(move || {
            paths.into_iter().flatten().find_map(|(key, path)| {
                let why = roots.why_not(&path).err()?;
                Some(RootError { key, path, why, roots: roots.words.clone() })
            })
        });
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(Ok(found)) => found,
            _ => {
                let why = "the file system of this or another path of the job does not answer".into();
                Some(RootError { key: first.0, path: first.1, why, roots: words })
            }
        }
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

    #[tokio::test]
    async fn a_job_names_paths_below_the_allowed_folders_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let root = base.join("jobs");
        std::fs::create_dir_all(root.join("text")).unwrap();
        std::fs::create_dir_all(base.join("jobs-of-others")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
        std::os::unix::fs::symlink(root.join("text"), root.join("in")).unwrap();
        let roots = Roots::new(&[root.clone(), "s3://bucket/team".into()]);
        let refused = async |key: &str, path: &str| {
            let data = if key == "data.path" { path.to_string() } else { root.join("text").display().to_string() };
            let other = if key == "data.path" { String::new() } else { format!("{key} = {path:?}\n") };
            let toml = format!("steps = 3\n{other}data.path = {data:?}\n");
            job::parse(&toml).unwrap_or_else(|e| panic!("{toml}: {e}"));
            roots.refusal(&toml).await.map(|e| e.to_string())
        };
        let below = |name: &str| root.join(name).display().to_string();
        for path in [below("text"), below("text/new/deep"), below("in/x"), root.display().to_string()] {
            assert_eq!(refused("data.path", &path).await, None, "{path}");
            assert_eq!(refused("checkpoint.path", &path).await, None, "{path}");
        }
        assert_eq!(refused("checkpoint.path", "s3://bucket/team/a").await, None);
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
            let words = refused("data.path", &path).await.unwrap_or_else(|| panic!("{path} is taken"));
            assert!(words.contains("data.path") && words.contains("--allow-root"), "{words}");
        }
        for path in
            ["file:///etc", "http://10.0.0.1/x", "s3://bucket/teams/a", "s3://bucket/team/../other", "s3://other/team"]
        {
            assert!(refused("checkpoint.path", path).await.is_some_and(|w| w.contains("URL")), "{path}");
        }
        assert!(Roots::new(&["/".into()]).refusal("steps = 3\ndata.path = \"/etc\"\n").await.is_none());
        assert!(Roots::new(&[]).refusal("steps = 3\ndata.path = \"/etc\"\n").await.is_some());
    }
}
