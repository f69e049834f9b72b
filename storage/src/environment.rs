//! What the environment says of stores, by the names that AWS's tools have for it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use hyper_util::client::proxy::matcher::Matcher;

/// Files of profiles are some kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Beside those that are AWS's own.
const NAMES: [&str; 8] =
    ["HOME", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"];

/// Variables, of this process or of a test; names and values that are not UTF-8 are left out, empty values too.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Environment {
    /// Values are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Environment {
        let mut variables: BTreeMap<String, String> =
            variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        variables.retain(|_, value| !value.is_empty());
        Environment { variables }
    }
}

impl Environment {
    /// Of this process, as it is now.
    pub fn of_process() -> Environment {
        let all =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        all.filter(|(name, _)| name.starts_with("AWS_") || NAMES.contains(&name.as_str())).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Whether a variable says `true`.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The variables that are AWS's.
    pub(crate) fn of_aws(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| name.starts_with("AWS_"))
    }

    pub(crate) fn profile(&self) -> &str {
        self.get("AWS_PROFILE").unwrap_or("default")
    }

    /// Where keys are, and where regions and endpoints are (keys too, if one likes).
    pub(crate) fn files(&self) -> [Option<PathBuf>; 2] {
        let file = |name, below: &str| match self.get(name) {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(Path::new(self.get("HOME")?).join(below)),
        };
        [file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), file("AWS_CONFIG_FILE", ".aws/config")]
    }

    /// A setting of the profile, by its name in the files.
    pub(crate) fn setting(&self, name: &str) -> Option<String> {
        let files = self.files().into_iter().flatten();
        files
            .filter_map(|path| read_profile(&path, self.profile()).ok().flatten())
            .find_map(|mut profile| profile.remove(name))
    }

    pub(crate) fn region(&self) -> String {
        let named = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(|name| self.get(name));
        named.map(String::from).or_else(|| self.setting("region")).unwrap_or_else(|| "us-east-1".into())
    }

    /// What is between us and stores, by the names that other tools have for it.
    pub(crate) fn proxies(&self) -> Matcher {
        let first =
            |names: [&str; 2]| names.into_iter().find_map(|name| self.get(name)).unwrap_or_default().to_string();
        let https = [first(["HTTPS_PROXY", "https_proxy"]), first(["ALL_PROXY", "all_proxy"])];
        let https = https.into_iter().find(|proxy| !proxy.is_empty()).unwrap_or_default();
        Matcher::builder().https(https).no(first(["NO_PROXY", "no_proxy"])).build()
    }

    /// Where the store is, unless it is AWS's own.
    pub(crate) fn endpoint(&self) -> Option<String> {
        let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
        let named = names.into_iter().find_map(|name| self.get(name));
        let endpoint = named.map(String::from).or_else(|| self.setting("endpoint_url"))?;
        Some(endpoint.trim_end_matches('/').to_string())
    }
}

/// The settings of `profile` in a file of AWS's form; `None` where the file or the profile is not there.
pub(crate) fn read_profile(path: &Path, profile: &str) -> Result<Option<BTreeMap<String, String>>, String> {
    let cannot = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(cannot)?,
    };
    let mut bytes = Vec::new();
    // A device or a pipe has no size.
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8 text", path.display()))?;
    Ok(profile_in(&text, profile))
}

/// Sections `[name]` or `[profile name]`, lines `key = value`; lines that begin with a space belong to a setting that we do not read.
fn profile_in(text: &str, profile: &str) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut is_ours = false;
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t', '#', ';'])) {
        if let Some(section) = line.trim_end().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let section = section.trim();
            is_ours = section.strip_prefix("profile ").map_or(section, str::trim) == profile;
            if is_ours {
                found.get_or_insert_default();
            }
        } else if let (true, Some(found), Some((key, value))) = (is_ours, &mut found, line.split_once('=')) {
            found.insert(key.trim().to_lowercase(), value.trim().to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_as_the_tools_of_aws_do() {
        let text = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=b=c\n\n[profile ours]\nregion = eu-west-1\ns3 =\n  addressing_style = path\n";
        let default = profile_in(text, "default").unwrap();
        assert_eq!((default["aws_access_key_id"].as_str(), default["aws_secret_access_key"].as_str()), ("A", "b=c"));
        assert_eq!(profile_in(text, "ours").unwrap()["region"], "eu-west-1");
        assert_eq!(profile_in(text, "theirs"), None);
        let endless = read_profile(Path::new("/dev/zero"), "default");
        assert_eq!(endless, Err(format!("/dev/zero has more than {FILE_BYTES_MAX} bytes")));
        assert_eq!(read_profile(Path::new("/none"), "default"), Ok(None));
    }

    #[test]
    fn the_first_name_of_a_setting_counts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        std::fs::write(
            folder.path().join(".aws/config"),
            "[default]\nregion = eu-west-1\nendpoint_url = http://a:1/\n",
        )
        .unwrap();
        let home = folder.path().to_str().unwrap();
        let environment = Environment::from_iter([("HOME", home)]);
        assert_eq!(environment.region(), "eu-west-1");
        assert_eq!(environment.endpoint().as_deref(), Some("http://a:1"));
        let variables =
            [("HOME", home), ("AWS_REGION", "x"), ("AWS_ENDPOINT_URL", "http://b"), ("AWS_ENDPOINT_URL_S3", "")];
        let environment = Environment::from_iter(variables);
        assert_eq!((environment.region().as_str(), environment.endpoint().as_deref()), ("x", Some("http://b")));
        assert_eq!(Environment::default().region(), "us-east-1");
    }
}
