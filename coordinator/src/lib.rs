//! The coordinator of Toroid: gives workers their places, has jobs checkpoint, puts a spare in a lost worker's place.
//!
//! ```text
//!   grpc/     JobService, AdminService, WorkerService, reflection, health: who may call   ── commands ──┐
//!   driver    one task: executes what the machine says, in that order  <──────┘
//!   machine   a crate of its own, pure: input + now -> outputs; all decisions, each with its reason
//!   store/    records of jobs, durable      files, curve, segments   the folder of each job, curve.csv: durable
//!   tensorboard   reads curves as users do, and writes event files beside them
//!   evidence  what was seen of lost workers, for people     traces, spans   which trace an incident or a checkpoint belongs to, and what is told of it
//!   lead      standby -> campaigns -> leads (a driver with a machine from the store) -> standby; with a store of its own it leads at once
//! ```
//!
//! On disk: `<data_dir>/coordinator.redb` (records, where they are not in etcd), `<data_dir>/audit/` (who changed what), `<data_dir>/jobs/<id>/` with `job.toml`, `curve.csv`, `tensorboard/` and, where a job names no
//! other place, `checkpoints/`. With records in etcd the curve is in the folder of the checkpoints first (`segments`), and
//! nothing in `<data_dir>` is needed by another coordinator. All of it may be killed at any instant; a coordinator that starts on the same folder goes on, and
//! workers go on meanwhile (T-9).

#![forbid(unsafe_code)]

mod audit;
mod caller;
mod calls;
mod carrier;
mod clock;
mod config;
pub mod curve;
mod driver;
mod error;
mod evidence;
mod files;
mod folder;
mod grpc;
mod handle;
mod http;
mod lead;
mod outbox;
mod roots;
pub mod segments;
mod spans;
pub mod store;
mod tensorboard;
#[cfg(test)]
mod tests;
mod tokens;
mod traces;

pub use config::Config;
pub use error::CoordinatorError;
pub use grpc::{CallLimits, rules};
pub use toroid_machine as machine;

use tokio::net::TcpListener;
use tokio::sync::watch;

use audit::Audit;
use config::{limits, make_data_dir};
use lead::Coordinator;
use toroid_security::server::ServerTls;

/// Whether tests can have things go wrong in here; the binary `toroid` does not build with that.
pub const HAS_FAILPOINTS: bool = cfg!(feature = "failpoint");

/// Asked so often to end, it stays for nobody.
const AT_ONCE: u32 = 2;

/// Runs a coordinator on `listener` until it is `asked` to end. Workers go on with what they do when it returns, but for those that were
/// asked to end themselves: asked once, one that leads stays until their places are moved or their jobs saved, for as long as they do
/// ([`machine::Limits::leave`]); asked twice, it ends at once. With its records in etcd it does not end by itself: it waits for its turn to lead, and again when
/// that is over.
pub async fn run(
    listener: TcpListener,
    config: Config,
    mut asked: watch::Receiver<u32>,
) -> Result<(), CoordinatorError> {
    let limits = limits(&config)?;
    let data_dir = make_data_dir(&config.data_dir)?;
    let tls = config.tls.clone().map(ServerTls::open).transpose()?;
    let audit_dir = data_dir.join("audit");
    let audit = Audit::open(&audit_dir);
    let audit =
        audit.map_err(|error| CoordinatorError::Io { what: "opening the audit record in", path: audit_dir, error })?;
    let listens =
        |error| CoordinatorError::Io { what: "finding the address listened on beside", path: data_dir.clone(), error };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let roots =
        toroid_security::Roots::new("coordinator", &[config.allow_roots.clone(), vec![data_dir.clone()]].concat());
    let access = grpc::Access { tls, connections: config.connections, calls: config.calls, audit, roots };
    let address = match &config.advertise {
        Some(address) => address.clone(),
        None => format!("{scheme}://{}", listener.local_addr().map_err(listens)?),
    };
    let is_alone = config.etcd.is_none();
    let (end, ends) = watch::channel(0);
    let jobs_dir = data_dir.join("jobs");
    let coordinator = Coordinator::new(config, limits, data_dir, address, ends);
    let mut leader = coordinator.leader();
    let (stop_serving, mut stopped_serving) = watch::channel(());
    let leading = coordinator.lead();
    tokio::pin!(leading);
    // One that is alone has nothing to say before it leads; others say who does.
    if is_alone {
        tokio::select! {
            ended = &mut leading => return ended,
            () = leader.leads() => {}
        }
    }
    let known_tokens = coordinator.tokens();
    let exporting = tensorboard::Exporter::new(coordinator.leader(), jobs_dir).run();
    tokio::pin!(exporting);
    let serving =
        grpc::serve(
            listener,
            leader,
            known_tokens,
            limits,
            access,
            async move { drop(stopped_serving.changed().await) },
        );
    tokio::pin!(serving);
    let (mut led, mut served) = (None, None);
    while led.is_none() && served.is_none() {
        tokio::select! {
            Ok(()) = asked.changed() => drop(end.send_replace(*asked.borrow())),
            result = &mut serving => served = Some(result),
            result = &mut leading => led = Some(result),
            () = &mut exporting => {}
        }
    }
    end.send_replace(AT_ONCE);
    stop_serving.send_replace(());
    let led = match led {
        Some(result) => result,
        None => leading.await,
    };
    let served = match served {
        Some(result) => result,
        // Connections that do not drain in time are left to their clients.
        None => tokio::time::timeout(limits.drain(), serving).await.unwrap_or(Ok(())),
    };
    led.and(served)
}
