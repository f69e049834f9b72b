//! `toroid token` and `toroid audit`: who may do what without a certificate, and who did what.

use std::process::ExitCode;

use anyhow::Result;
use toroid_proto::{self as proto, Role};
use toroid_security::Name;

use crate::client::Connection;
use crate::format::time;
use crate::output;

const DAY_S: u64 = 86_400;

#[derive(Debug, clap::Subcommand)]
pub enum TokenCommand {
    /// Make a token; it is shown once
    Create {
        /// Who it is for
        name: Name,
        /// view, submit, operate, admin or worker
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// For how many days it is good
        #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=366))]
        days: u32,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show the tokens
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// End a token, and the streams that it opened
    Revoke {
        /// As `list` shows it
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// The newest N records
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    connection: Connection,
}

pub async fn token(command: TokenCommand) -> Result<ExitCode> {
    match command {
        TokenCommand::Create { name, role, days, connection } => {
            let valid_s = u64::from(days) * DAY_S;
            let made = connection.open().await?.create_token(name.to_string(), role.name().into(), valid_s).await?;
            if let Some(token) = &made.token {
                output::note(format_args!("{}; it is not shown again", in_words(token)));
            }
            output::line(format_args!("{}", made.secret))?;
        }
        TokenCommand::List { connection } => {
            for token in connection.open().await?.tokens().await? {
                output::line(format_args!("{}", in_words(&token)))?;
            }
        }
        TokenCommand::Revoke { id, connection } => {
            let token = connection.open().await?.revoke_token(id).await?;
            output::line(format_args!("{}", in_words(&token)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(token: &proto::Token) -> String {
    let proto::Token { id, name, role, expires_unix_ms, revoked, .. } = token;
    let end = if *revoked { "revoked".to_string() } else { format!("until {}", time(*expires_unix_ms)) };
    format!("{id} {name} {role} {end}")
}

/// Lines of JSON, as they are in the coordinator's folder.
pub async fn audit(args: AuditArgs) -> Result<ExitCode> {
    for record in args.connection.open().await?.audit(args.limit).await? {
        output::line(format_args!("{record}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
