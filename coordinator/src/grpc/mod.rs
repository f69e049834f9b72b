//! The gRPC server: `JobService` for users, `WorkerService` for workers, reflection and health.

mod bounds;
mod jobs;
mod workers;

use std::future::Future;

use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use toroid_proto as proto;
use toroid_proto::job_service_server::JobServiceServer;
use toroid_proto::limits::{
    COORDINATOR_MESSAGE_BYTES_MAX, USER_ANSWER_BYTES_MAX, USER_REQUEST_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX,
};
use toroid_proto::worker_service_server::WorkerServiceServer;

use crate::error::CoordinatorError;
use crate::lead::Gate;
use crate::machine::Limits;

/// Serves until `stop` resolves and the connections have drained.
pub(crate) async fn serve(
    listener: TcpListener,
    gate: Gate,
    limits: Limits,
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
    let jobs = JobServiceServer::new(jobs::Jobs::new(gate.clone()))
        .max_decoding_message_size(USER_REQUEST_BYTES_MAX)
        .max_encoding_message_size(USER_ANSWER_BYTES_MAX);
    let workers = WorkerServiceServer::new(workers::Workers::new(gate, limits))
        .max_decoding_message_size(WORKER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(COORDINATOR_MESSAGE_BYTES_MAX);
    health.set_serving::<JobServiceServer<jobs::Jobs>>().await;
    health.set_serving::<WorkerServiceServer<workers::Workers>>().await;
    // A cut network is noticed only by pings that are not answered.
    Server::builder()
        .http2_keepalive_interval(Some(limits.keepalive()))
        .http2_keepalive_timeout(Some(limits.keepalive()))
        .add_service(reflection)
        .add_service(reflection_v1alpha)
        .add_service(health_service)
        .add_service(jobs)
        .add_service(workers)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await
        .map_err(CoordinatorError::Serve)
}
