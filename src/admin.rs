//! `toroid token` and `toroid audit`: who may do what without a certificate, and who did what.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use toroid_proto::{self as proto, Role};
use toroid_security::Name;

use crate::client::Connection;
use crate::format::time;
use crate::output::{self, FormatArgs};

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
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show the tokens
    List {
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// End a token, and the streams that it opened
    Revoke {
        /// As `list` shows it
        id: String,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, clap::Args)]
#[command(mut_arg("output", |arg| arg.help("Lines of JSON as they are in the coordinator's folder, or one array of them")))]
pub struct AuditArgs {
    /// The newest N records
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

/// A token without its secret, for programs.
#[derive(Debug, Serialize)]
struct Token<'a> {
    id: &'a str,
    name: &'a str,
    role: &'a str,
    expires_unix_ms: i64,
    revoked: bool,
}

impl<'a> From<&'a proto::Token> for Token<'a> {
    fn from(token: &'a proto::Token) -> Token<'a> {
        let proto::Token { id, name, role, expires_unix_ms, revoked, .. } = token;
        Token { id, name, role, expires_unix_ms: *expires_unix_ms, revoked: *revoked }
    }
}

/// One that was just made: nobody is shown its secret again.
#[derive(Debug, Serialize)]
struct Made<'a> {
    #[serde(flatten)]
    token: Token<'a>,
    secret: &'a str,
}

pub async fn token(command: TokenCommand) -> Result<ExitCode> {
    match command {
        TokenCommand::Create { name, role, days, format, connection } => {
            let valid_s = u64::from(days) * DAY_S;
            let made = connection.open().await?.create_token(name.to_string(), role.name().into(), valid_s).await?;
            let token = made.token.unwrap_or_default();
            output::note(format_args!("{}; it is not shown again", in_words(&token)));
            format.answer(
                &Made { token: Token::from(&token), secret: &made.secret },
                format_args!("{}\n", made.secret),
            )?;
        }
        TokenCommand::List { format, connection } => {
            let tokens = connection.open().await?.tokens().await?;
            let text: String = tokens.iter().map(|token| in_words(token) + "\n").collect();
            format.answer(&tokens.iter().map(Token::from).collect::<Vec<_>>(), text)?;
        }
        TokenCommand::Revoke { id, format, connection } => {
            let token = connection.open().await?.revoke_token(id).await?;
            format.answer(&Token::from(&token), format_args!("{}\n", in_words(&token)))?;
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
    let records = args.connection.open().await?.audit(args.limit).await?;
    let parsed: Result<Vec<Value>, _> = records.iter().map(|record| serde_json::from_str(record)).collect();
    let text: String = records.iter().map(|record| format!("{record}\n")).collect();
    args.format.answer(&parsed.context("read a record, which should be JSON")?, text)?;
    Ok(ExitCode::SUCCESS)
}
