//! `toroid serve`: a model over HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use toroid::files::read_text;
use toroid::generate::ComputeArgs;
use toroid::output;
use toroid_torus::units;

use crate::engine::{Engine, Room};
use crate::http::{Limits, Served, router, serve};
use crate::model::{self, Model};

const MAX_TOKEN_BYTES: u64 = 4096;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::ServedArgs,
    /// Where it listens; port 0: any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// What clients call the model; default: the last part of --from
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// File with the token that clients show as `Authorization: Bearer TOKEN`; else the environment's TOROID_SERVE_TOKEN is it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The token itself
    #[arg(long, env = "TOROID_SERVE_TOKEN", hide = true, hide_env_values = true)]
    serve_token: Option<String>,
    /// Listen beyond this machine without a token: whoever reaches it uses the model
    #[arg(long)]
    open: bool,
    /// Texts that are written side by side; each takes memory for its keys and values
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    places: u16,
    /// Texts that wait for a place; beyond, requests are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    waiting: u32,
    /// Tokens of a text with its prompt; default: as many as the model reads at a time
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    body_bytes: usize,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    connections: u32,
    /// Seconds after which a connection ends on which nothing moves
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86400))]
    idle_s: u64,
    /// Seconds for what is on its way after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86400))]
    drain_s: u64,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(runtime: &Runtime, args: &Args) -> Result<ExitCode> {
    let token = token(args)?;
    ensure!(
        token.is_some() || args.listen.ip().is_loopback() || args.open,
        "whoever reaches {} could use the model: name --token-file, or --open if that is meant",
        args.listen
    );
    let listening = || format!("listen at {}", args.listen);
    let listener = runtime.block_on(TcpListener::bind(args.listen)).with_context(listening)?;
    let model = Model::open(runtime, &args.model)?;
    let seq = model.config().seq;
    let context = args.context.unwrap_or(seq);
    ensure!(
        (2..=seq).contains(&context),
        "--context {context} is not possible: {} reads up to {seq} tokens at a time; name 2 to {seq}",
        model.source.what
    );
    let name = args.name.clone().unwrap_or_else(|| name_of(&args.model.model.from));
    let room = Room { places: args.places.into(), waiting: args.waiting as usize, context };
    let split = args.compute.split(&model.source.what, model.config())?;
    let engine = Engine::start(model, split, room)?;
    let address = listener.local_addr().context("find the port")?;
    output::line(format_args!("{name} ({}) at http://{address}/v1", engine.model.source.what))?;
    output::note(format_args!(
        "{} for weights, up to {} for keys and values of {} texts of {context} tokens; up to {} texts wait; digest {}",
        units::bytes(engine.memory.weight_bytes as u64),
        units::bytes(engine.memory.cache_bytes as u64),
        room.places,
        room.waiting,
        &engine.digest[..16]
    ));
    if engine.model.chat.is_none() {
        output::note("there is no chat template: /v1/chat/completions needs --chat-template FILE");
    }
    let served = Arc::new(Served::new(engine, name, token.as_deref()));
    let limits = Limits {
        connections: args.connections as usize,
        idle: Duration::from_secs(args.idle_s),
        drain: Duration::from_secs(args.drain_s),
    };
    let router = router(Arc::clone(&served), args.body_bytes);
    runtime.block_on(serve(listener, router, served, limits))?;
    Ok(ExitCode::SUCCESS)
}

fn token(args: &Args) -> Result<Option<String>> {
    let token = match (&args.token_file, &args.serve_token) {
        (Some(file), _) => read_text(file, "the token in", MAX_TOKEN_BYTES)?.trim().to_string(),
        (None, Some(token)) => token.clone(),
        (None, None) => return Ok(None),
    };
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        bail!("the token must be visible characters of ASCII, at least one: clients send it in a header");
    }
    Ok(Some(token))
}

/// The last part of a path or a URL that is a name.
fn name_of(from: &str) -> String {
    let parts = from.split('/').rev().map(|part| part.trim_start_matches('.'));
    parts.into_iter().find(|part| !part.is_empty()).unwrap_or("model").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_as_its_folder() {
        for (from, expected) in [
            (".toroid", "toroid"),
            ("a/my-model/", "my-model"),
            ("s3://b/run", "run"),
            ("..", "model"),
            ("tiny-1", "tiny-1"),
        ] {
            assert_eq!(name_of(from), expected, "{from}");
        }
    }
}
