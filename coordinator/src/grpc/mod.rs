//! The gRPC server: `JobService` for users, `AdminService` for those who say who may do what, `WorkerService` for workers, reflection and health.
//!
//! All calls pass the [`gate`], which knows from [`rules`] what each needs.

mod admin;
mod bounds;
mod calls;
pub(crate) mod durations;
mod gate;
mod hosts;
pub(crate) mod jobs;
mod orders;
mod rates;
pub mod rules;
mod workers;

pub use rates::CallLimits;

use std::future::Future;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use toroid_proto as proto;
use toroid_proto::admin_service_server::AdminServiceServer;
use toroid_proto::job_service_server::JobServiceServer;
use toroid_proto::limits::{
    COORDINATOR_MESSAGE_BYTES_MAX, USER_ANSWER_BYTES_MAX, USER_REQUEST_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX,
};
use toroid_proto::worker_service_server::WorkerServiceServer;
use toroid_security::Roots;
use toroid_security::server::{self, ServerTls};

use crate::audit::Audit;
use crate::error::CoordinatorError;
use crate::lead::Leader;
use crate::machine::Limits;
use crate::tokens::TokenTable;

/// Calls at a time on one connection; more wait at the client.
const MAX_STREAMS: u32 = 256;
/// Calls of a connection that were reset before they were looked at; more end it (rapid reset, CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// Calls of a connection that this end reset as they broke the protocol; more end it (RUSTSEC-2024-0003).
const MAX_LOCAL_RESETS: usize = 100;
/// Of all headers of a call, whether in one frame or continued in others (RUSTSEC-2024-0332).
const MAX_HEADERS_BYTES: u32 = 16 << 10;

/// Who is let in.
pub(crate) struct Access {
    /// `None`: clear text, and whoever reaches the port.
    pub tls: Option<ServerTls>,
    pub connections: server::Limits,
    pub calls: CallLimits,
    pub audit: Audit,
    /// Where jobs may name paths.
    pub roots: Roots,
}

/// Serves until `stop` resolves and the connections have drained.
pub(crate) async fn serve(
    listener: TcpListener,
    leader: Leader,
    tokens: watch::Receiver<TokenTable>,
    limits: Limits,
    access: Access,
    stop: impl Future<Output = ()>,
) -> Result<(), CoordinatorError> {
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let made_at_build_time = "the descriptors were made from the .proto files at build time";
    let reflection = descriptors().build_v1().expect(made_at_build_time);
    // Python's grpcio-reflection, among others, knows no newer one.
    let reflection_v1alpha = descriptors().build_v1alpha().expect(made_at_build_time);
    let (health, health_service) = tonic_health::server::health_reporter();
    let Access { tls, connections, calls, audit, roots } = access;
    let (durations, rates) = (durations::Durations::default(), rates::Rates::default());
    let gate = gate::Gate { tokens, limits: calls, rates, audit: audit.clone(), durations: durations.clone() };
    let admin = AdminServiceServer::new(admin::Admin::new(leader.clone(), audit.clone()))
        .max_decoding_message_size(USER_REQUEST_BYTES_MAX)
        .max_encoding_message_size(USER_ANSWER_BYTES_MAX);
    let of_jobs = jobs::Jobs::new(leader.clone(), audit, roots);
    let pages = crate::http::router(of_jobs.clone(), limits, durations);
    let jobs = JobServiceServer::new(of_jobs)
        .max_decoding_message_size(USER_REQUEST_BYTES_MAX)
        .max_encoding_message_size(USER_ANSWER_BYTES_MAX);
    let workers = WorkerServiceServer::new(workers::Workers::new(leader, limits))
        .max_decoding_message_size(WORKER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(COORDINATOR_MESSAGE_BYTES_MAX);
    health.set_serving::<JobServiceServer<jobs::Jobs>>().await;
    health.set_serving::<WorkerServiceServer<workers::Workers>>().await;
    let services = Routes::new(reflection)
        .add_service(reflection_v1alpha)
        .add_service(health_service)
        .add_service(jobs)
        .add_service(admin)
        .add_service(workers);
    let routes = Routes::from(services.into_axum_router().merge(pages));
    // A cut network is noticed only by pings that are not answered.
    Server::builder()
        .http2_keepalive_interval(Some(limits.keepalive()))
        .http2_keepalive_timeout(Some(limits.keepalive()))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .http2_max_header_list_size(MAX_HEADERS_BYTES)
        .layer(gate)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(server::listen(listener, tls, connections)), stop)
        .await
        .map_err(CoordinatorError::Serve)
}
