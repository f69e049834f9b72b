//! `toroid certs`: a private CA for a test or a small cluster, and certificates from it. It only writes files; no coordinator is asked.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use toroid_proto::Role;
use toroid_security::Name;
use toroid_security::issue::{Authority, Request};

use crate::output;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a CA
    Init {
        #[command(flatten)]
        dir: Dir,
        /// Name of the cluster: a part of each certificate
        #[arg(long, default_value = "toroid", value_name = "NAME")]
        cluster: Name,
    },
    /// Make a certificate with a key, in a folder of that name
    Issue {
        #[command(flatten)]
        dir: Dir,
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
        /// Whose
        name: Name,
    },
    /// Show the certificates that were made
    List {
        #[command(flatten)]
        dir: Dir,
    },
}

#[derive(Debug, clap::Args)]
pub struct Dir {
    /// Folder of the CA; its key stays there, so keep it from others
    #[arg(long, env = "TOROID_CERTS", default_value = "certs", value_name = "FOLDER")]
    dir: PathBuf,
}

fn days(days: u32) -> Duration {
    DAY * days
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Init { dir: Dir { dir }, cluster } => {
            Authority::init(&dir, &cluster)?;
            output::line(format_args!("made a CA of the cluster {cluster} in {}", dir.display()))?;
        }
        Command::Issue { dir: Dir { dir }, name, role, days: num_days, host } => {
            let request = Request { name, role, hosts: host, valid: days(num_days) };
            let folder = Authority::open(&dir)?.issue(&request)?;
            output::line(format_args!("{}", folder.display()))?;
        }
        Command::Renew { dir: Dir { dir }, name, days: num_days } => {
            let issued = Authority::open(&dir)?.renew(&name, days(num_days))?;
            output::line(format_args!("{name} has another certificate, {}, good for {num_days} days", issued.serial))?;
        }
        Command::Revoke { dir: Dir { dir }, name } => {
            let authority = Authority::open(&dir)?;
            let num = authority.revoke(&name)?;
            output::line(format_args!("{num} certificates of {name} are in {}", authority.revoked().display()))?;
        }
        Command::List { dir: Dir { dir } } => {
            for issued in Authority::open(&dir)?.issued()? {
                let state = match issued.not_after.duration_since(SystemTime::now()) {
                    Ok(left) => format!("good for {} days", left.as_secs() / DAY.as_secs()),
                    Err(_) => "has ended".into(),
                };
                output::line(format_args!("{} {} {} {state}", issued.name, issued.role, issued.serial))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
