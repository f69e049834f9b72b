//! `toroid certs`: a private CA for a test or a small cluster, and certificates from it. It only writes files; no coordinator is asked.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use toroid_proto::Role;
use toroid_security::Name;
use toroid_security::issue::{Authority, Issued, Request};

use crate::format::unix_ms;
use crate::output::FormatArgs;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a CA
    Init {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        format: FormatArgs,
        /// Name of the cluster: a part of each certificate
        #[arg(long, default_value = "toroid", value_name = "NAME")]
        cluster: Name,
    },
    /// Make a certificate with a key, in a folder of that name
    Issue {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        format: FormatArgs,
        /// Who it is for: a user, a pool of workers, one worker (its id is then bound to the certificate), a coordinator
        name: Name,
        /// view, submit, operate, admin, worker or coordinator
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// For how many days it is good
        #[arg(long, default_value_t = 90, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Names and addresses of a coordinator, for clients other than Toroid's, which check them; more than once
        #[arg(long, value_name = "NAME|IP")]
        host: Vec<String>,
    },
    /// Make another certificate with another key in the place of one; processes that use the files take it without a restart
    Renew {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        format: FormatArgs,
        /// Whose
        name: Name,
        /// For how many days it is good
        #[arg(long, default_value_t = 90, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Add all certificates of a name to the file `revoked`, which a coordinator reads again and again (--revoked)
    Revoke {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        format: FormatArgs,
        /// Whose
        name: Name,
    },
    /// Show the certificates that were made
    List {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        format: FormatArgs,
    },
}

#[derive(Debug, clap::Args)]
pub struct Dir {
    /// Folder of the CA; its key stays there, so keep it from others
    #[arg(long, env = "TOROID_CERTS", default_value = "certs", value_name = "FOLDER")]
    dir: PathBuf,
}

/// A certificate, for programs.
#[derive(Debug, Serialize)]
struct Certificate<'a> {
    name: &'a str,
    role: &'static str,
    serial: String,
    not_after_unix_ms: i64,
    hosts: &'a [String],
}

impl<'a> From<&'a Issued> for Certificate<'a> {
    fn from(issued: &'a Issued) -> Certificate<'a> {
        Certificate {
            name: issued.name.as_str(),
            role: issued.role.name(),
            serial: issued.serial.to_string(),
            not_after_unix_ms: unix_ms(issued.not_after),
            hosts: &issued.hosts,
        }
    }
}

fn in_words(issued: &Issued) -> String {
    let state = match issued.not_after.duration_since(SystemTime::now()) {
        Ok(left) => format!("good for {} days", left.as_secs() / DAY.as_secs()),
        Err(_) => "has ended".into(),
    };
    format!("{} {} {} {state}\n", issued.name, issued.role, issued.serial)
}

fn days(days: u32) -> Duration {
    DAY * days
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Init { dir: Dir { dir }, format, cluster } => {
            Authority::init(&dir, &cluster)?;
            let value = json!({ "cluster": cluster.as_str(), "folder": &dir });
            format.answer(&value, format_args!("made a CA of the cluster {cluster} in {}\n", dir.display()))?;
        }
        Command::Issue { dir: Dir { dir }, format, name, role, days: num_days, host } => {
            let request = Request { name, role, hosts: host, valid: days(num_days) };
            let folder = Authority::open(&dir)?.issue(&request)?;
            let value = json!({ "name": request.name.as_str(), "role": role.name(), "folder": &folder });
            format.answer(&value, format_args!("{}\n", folder.display()))?;
        }
        Command::Renew { dir: Dir { dir }, format, name, days: num_days } => {
            let issued = Authority::open(&dir)?.renew(&name, days(num_days))?;
            let text = format_args!("{name} has another certificate, {}, good for {num_days} days\n", issued.serial);
            format.answer(&Certificate::from(&issued), text)?;
        }
        Command::Revoke { dir: Dir { dir }, format, name } => {
            let authority = Authority::open(&dir)?;
            let (num, file) = (authority.revoke(&name)?, authority.revoked());
            let value = json!({ "name": name.as_str(), "num_revoked": num, "file": &file });
            format.answer(&value, format_args!("{num} certificates of {name} are in {}\n", file.display()))?;
        }
        Command::List { dir: Dir { dir }, format } => {
            let all = Authority::open(&dir)?.issued()?;
            let text: String = all.iter().map(in_words).collect();
            format.answer(&all.iter().map(Certificate::from).collect::<Vec<_>>(), text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
