//! How a command shows a coordinator who it is: credentials of the command line, or those that a cluster of this user on this machine
//! (`toroid local`) has left.
//!
//! ```text
//!   --coordinator http://h:p      clear text
//!   h:p, https://h:p              TLS by --credentials, or --ca with --cert and --key or --token; else by what a local cluster has left:
//!                                 <cache>/toroid/local/<host-port> has the path of the folder of its credentials, of which users
//!                                 are shown those of an admin and workers those of a worker
//!   h:p without any of that       clear text
//!   unix:/path                    clear text, to the agent of a worker's host
//! ```

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use toroid_security::{Credentials, Files};
use toroid_worker::control::carrier::UNIX;

use crate::daemon::default_cache;
use crate::exit::wrong_use;

/// What shows who this is.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CredentialArgs {
    /// Folder with ca.pem, cert.pem and key.pem, as `toroid certs issue` makes it; read again when its files change
    #[arg(long, env = "TOROID_CREDENTIALS", value_name = "FOLDER", conflicts_with_all = ["ca", "cert", "key"])]
    credentials: Option<PathBuf>,
    /// Certificate of the cluster's CA
    #[arg(long, env = "TOROID_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Own certificate
    #[arg(long, env = "TOROID_CERT", value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,
    /// Its key, of mode 0600
    #[arg(long, env = "TOROID_KEY", value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<PathBuf>,
}

impl CredentialArgs {
    /// `None`: nothing was named.
    pub fn files(&self) -> Option<Files> {
        if let Some(folder) = &self.credentials {
            return Some(Files::of_folder(folder));
        }
        let pair = self.cert.clone().zip(self.key.clone());
        self.ca.clone().map(|ca| Files { ca, pair, revoked: None })
    }
}

/// As whom a command reaches a cluster of this user on this machine where it names no credentials; also the name of their folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalRole {
    Admin,
    Worker,
}

impl LocalRole {
    pub fn name(self) -> &'static str {
        match self {
            LocalRole::Admin => "admin",
            LocalRole::Worker => "worker",
        }
    }
}

/// Coordinators, of which one leads, and what is shown to them.
#[derive(Debug, Clone)]
pub struct Access {
    /// `http://host:port` of each, or `https://` where they are reached over TLS.
    pub urls: Vec<String>,
    pub credentials: Credentials,
}

impl Access {
    /// In clear text.
    pub fn plain(url: &str) -> Access {
        Access { urls: vec![url.into()], credentials: Credentials::none() }
    }

    /// By the credentials in this folder.
    pub fn by_folder(authority: &str, folder: &Path) -> Result<Access> {
        let credentials = Credentials::tls(Files::of_folder(folder), None).context("read the credentials")?;
        Ok(Access { urls: vec![format!("https://{authority}")], credentials })
    }

    /// `coordinators` as a user names it.
    pub fn find(
        coordinators: &[String],
        args: &CredentialArgs,
        token: Option<&str>,
        role: LocalRole,
    ) -> Result<Access> {
        let (mut urls, mut found): (Vec<String>, Option<Files>) = (Vec::new(), None);
        let mut agents = Vec::new();
        for coordinator in coordinators {
            let (url, files) = way(coordinator, args, token, role)?;
            if url.starts_with(UNIX) {
                agents.push(url);
                continue;
            }
            if !urls.is_empty() && found.is_some() != files.is_some() {
                return Err(wrong_use(format!(
                    "{} is to be reached over TLS and {} in clear text; name one kind of coordinators, or the credentials for all",
                    if files.is_some() { &url } else { &urls[0] },
                    if files.is_some() { &urls[0] } else { &url }
                )));
            }
            found = found.or(files);
            urls.push(url);
        }
        // The agent of a host is asked before coordinators, whatever the order in which they are named.
        agents.append(&mut urls);
        let urls = agents;
        let Some(mut files) = found else { return Ok(Access { urls, credentials: Credentials::none() }) };
        if token.is_some() {
            // Whoever names a token means to be known by it.
            files.pair = None;
        }
        let credentials = Credentials::tls(files, token.map(str::to_string)).context("read the credentials")?;
        Ok(Access { urls, credentials })
    }
}

/// The URL of a coordinator as a user names it, and where the credentials for TLS are; `None`: in clear text.
pub fn way(
    coordinator: &str,
    args: &CredentialArgs,
    token: Option<&str>,
    role: LocalRole,
) -> Result<(String, Option<Files>)> {
    if coordinator.starts_with(UNIX) {
        return match role {
            LocalRole::Worker => Ok((coordinator.into(), None)),
            LocalRole::Admin => Err(wrong_use(format!(
                "{coordinator} is the socket of an agent, which takes workers alone; name the coordinator's own address"
            ))),
        };
    }
    let (scheme, authority) = coordinator.split_once("://").map_or(("", coordinator), |(s, rest)| (s, rest));
    let mut files = args.files();
    if files.is_none() && scheme != "http" {
        files = local_folder(authority, role).map(|folder| Files::of_folder(&folder));
    }
    match files {
        None if scheme == "https" => Err(wrong_use(format!(
            "{coordinator} is to be reached over TLS, and no CA is named; name a folder of credentials with --credentials, or --ca with --cert \
             and --key, or --ca with --token"
        ))),
        None if token.is_some() => Err(wrong_use("a token is sent over TLS only; name the cluster's CA with --ca")),
        Some(_) if scheme == "http" => Err(wrong_use(format!(
            "{coordinator} is to be reached in clear text, and credentials are named; write https://{authority}, or leave the credentials away"
        ))),
        None => Ok((format!("http://{authority}"), None)),
        Some(files) => Ok((format!("https://{authority}"), Some(files))),
    }
}

/// Where clusters of this user on this machine leave the way to their credentials.
fn entry(authority: &str) -> PathBuf {
    let name: String = authority.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    default_cache().join("local").join(name)
}

fn local_folder(authority: &str, role: LocalRole) -> Option<PathBuf> {
    let folder = PathBuf::from(std::fs::read_to_string(entry(authority)).ok()?).join(role.name());
    // Of a cluster that has ended and was removed.
    folder.is_dir().then_some(folder)
}

/// The way to the credentials of a cluster on this machine, as long as it is not dropped.
pub struct LocalEntry(PathBuf);

impl LocalEntry {
    /// `folder` has one of credentials for each [`LocalRole`].
    pub fn leave(authority: &str, folder: &Path) -> Result<LocalEntry> {
        let path = entry(authority);
        let parent = path.parent().context("find the folder for the ways to local clusters")?;
        let text = folder.to_str().ok_or_else(|| anyhow!("the path {} is no UTF-8", folder.display()))?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        let written = made.and_then(|()| std::fs::write(&path, text));
        written
            .with_context(|| format!("write {}, by which commands find this cluster's credentials", path.display()))?;
        Ok(LocalEntry(path))
    }
}

impl Drop for LocalEntry {
    fn drop(&mut self) {
        // Where it is gone already nothing is to be done.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_security::issue::{Authority, Request};

    fn args(line: &[&str]) -> CredentialArgs {
        toroid_testkit::parse(line)
    }

    #[test]
    fn credentials_decide_whether_bytes_are_clear() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let parse = |text: &str| text.parse().map_err(anyhow::Error::msg);
        let ca = Authority::init(&dir.path().join("certs"), &parse("lab")?)?;
        let valid = std::time::Duration::from_secs(3600);
        let role = toroid_proto::Role::View;
        let folder = ca.issue(&Request { name: parse("alice")?, role, hosts: Vec::new(), valid })?;
        ca.issue(&Request { name: parse("admin")?, role: toroid_proto::Role::Admin, hosts: Vec::new(), valid })?;
        let folder = folder.to_str().context("test folders have UTF-8 names")?;
        let by_folder = args(&["--credentials", folder]);
        let ca = format!("{folder}/ca.pem");
        let by_ca = args(&["--ca", &ca]);
        let check = |coordinator: &str, args: &CredentialArgs, token: Option<&str>, expected: Result<&str, &str>| match (
            Access::find(&coordinator.split(',').map(String::from).collect::<Vec<_>>(), args, token, LocalRole::Admin),
            expected,
        ) {
            (Ok(found), Ok(url)) => {
                assert_eq!(found.urls.join(","), url);
                assert_eq!(found.credentials.is_tls(), url.starts_with("https"));
            }
            (Err(found), Err(words)) => assert!(format!("{found:#}").contains(words), "{found:#}"),
            (found, expected) => panic!("{coordinator}: expected {expected:?}, found {found:?}"),
        };
        let nothing = CredentialArgs::default();
        check("h:1", &nothing, None, Ok("http://h:1"));
        check("http://h:1", &nothing, None, Ok("http://h:1"));
        check("https://h:1", &nothing, None, Err("no CA is named"));
        check("h:1", &nothing, Some("t"), Err("over TLS only"));
        check("h:1", &by_folder, None, Ok("https://h:1"));
        check("https://h:1", &by_folder, None, Ok("https://h:1"));
        check("http://h:1", &by_folder, None, Err("clear text"));
        check("h:1", &by_ca, Some("t"), Ok("https://h:1"));
        let left = LocalEntry::leave("192.0.2.1:7", &dir.path().join("certs"))?;
        check("192.0.2.1:7", &nothing, None, Ok("https://192.0.2.1:7"));
        check("http://192.0.2.1:7", &nothing, None, Ok("http://192.0.2.1:7"));
        check("192.0.2.1:7,h:1", &nothing, None, Err("one kind of coordinators"));
        drop(left);
        check("h:1,i:2", &by_folder, None, Ok("https://h:1,https://i:2"));
        check("192.0.2.1:7", &nothing, None, Ok("http://192.0.2.1:7"));
        Ok(())
    }

    /// The fault that this is of: a worker that was started by hand showed the credentials of an admin.
    #[test]
    fn a_worker_finds_the_credentials_of_a_worker_and_a_user_those_of_an_admin() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let _left = LocalEntry::leave("192.0.2.2:7", dir.path())?;
        for role in [LocalRole::Admin, LocalRole::Worker] {
            assert_eq!(local_folder("192.0.2.2:7", role), None, "there are none");
            let folder = dir.path().join(role.name());
            std::fs::create_dir(&folder)?;
            let (_, files) = way("192.0.2.2:7", &CredentialArgs::default(), None, role)?;
            assert_eq!(files, Some(Files::of_folder(&folder)));
        }
        Ok(())
    }
}
