//! An agent: one process of a host that speaks to the coordinator for all workers of the host, over one connection and one stream.
//!
//! ```text
//!   worker ─┐ WorkerService.Session, over a socket of this machine
//!   worker ─┼──> local ──> gather ──> upstream ══ WorkerService.Host ══> coordinator
//!   worker ─┘      ^                     │
//!                  '────── answers <─────'
//! ```
//!
//! A worker needs no other code: the agent's socket is one more address of a coordinator. What workers say goes on as it is, together; what it is
//! about the agent does not know.
//!
//! Invariants: a worker whose stream ends is reported closed at once. When the stream to the coordinator ends, the workers' streams end, and each
//! registers again by its own client: here, or by another address that it has. The agent keeps nothing that is needed after its end. A worker that
//! does not read is cut off alone.
//!
//! Deliberately absent: decisions, and anything kept of jobs and epochs.

mod config;
mod gather;
mod local;
#[cfg(test)]
mod tests;
mod upstream;

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use toroid_proto::limits::{AGENT_MESSAGE_BYTES_MAX, COORDINATOR_MESSAGE_BYTES_MAX};
use toroid_proto::worker_service_server::WorkerServiceServer;

pub use config::Config;
pub use local::Local;
use upstream::{Standing, Upstream};

/// Connections that wait to be taken by HTTP/2.
const MAX_WAITING: usize = 64;
/// After an `accept` that failed, as it does where there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot listen on the socket {}: {error}", .path.display())]
    Listen { path: PathBuf, error: io::Error },
    #[error("cannot listen on the socket {}: {what}", .path.display())]
    Taken { path: PathBuf, what: &'static str },
    #[error("cannot serve the workers of this host: {0}")]
    Serve(tonic::transport::Error),
}

/// Listens on a socket that this user alone can reach. What an agent that has ended left there is replaced.
///
/// # Errors
/// Another agent listens there, or the path is not one for a socket.
pub async fn listen(path: &Path) -> Result<UnixListener, AgentError> {
    let failed = |error| AgentError::Listen { path: path.into(), error };
    if let Ok(found) = std::fs::symlink_metadata(path) {
        let taken = |what| AgentError::Taken { path: path.into(), what };
        if !found.file_type().is_socket() {
            return Err(taken("another file is there; name another path"));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(taken("another agent listens there already"));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// An agent without a socket: what its workers call, and what speaks to the coordinator, for as long as it is polled.
pub fn agent(config: Config) -> (WorkerServiceServer<Local>, impl Future<Output = ()> + Send) {
    let (standing, seen) = watch::channel(Standing::Away { why: "the agent starts".into() });
    let service = WorkerServiceServer::new(Local::new(seen, config.failure_timeout))
        .max_decoding_message_size(AGENT_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(COORDINATOR_MESSAGE_BYTES_MAX);
    (service, Upstream::new(config, standing).run())
}

/// Speaks for the workers that come to `listener`, as long as it is not dropped.
pub async fn run(listener: UnixListener, config: Config) -> Result<(), AgentError> {
    let (service, speaking) = agent(config);
    let (taken, incoming) = mpsc::channel(MAX_WAITING);
    let serving = Server::builder().add_service(service).serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        served = serving => served.map_err(AgentError::Serve),
        () = accept(listener, taken) => Ok(()),
        () = speaking => Ok(()),
    }
}

/// Takes connections of processes of this user, and of root.
async fn accept(listener: UnixListener, taken: mpsc::Sender<io::Result<UnixStream>>) {
    let own = rustix::process::geteuid().as_raw();
    loop {
        match listener.accept().await.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
            Ok((uid, stream)) if uid == own || uid == 0 => {
                if taken.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
            Ok((uid, _)) => tracing::warn!(uid, "a process of another user called, and was not taken"),
            Err(error) => {
                tracing::warn!("a worker could not be taken: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
