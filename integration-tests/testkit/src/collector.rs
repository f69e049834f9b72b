//! An OpenTelemetry collector that keeps what it is sent, by gRPC and by HTTP on one port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use tonic::{Request, Response, Status};

/// A span, and the resource that it came from.
#[derive(Debug, Clone)]
pub struct Found {
    pub resource: BTreeMap<String, String>,
    pub span: Span,
}

impl Found {
    /// An attribute as text.
    pub fn attribute(&self, name: &str) -> Option<String> {
        texts(&self.span.attributes).remove(name)
    }

    /// Of its trace, in hex.
    pub fn trace_id(&self) -> String {
        self.span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Found>,
    num_requests: usize,
}

#[derive(Debug, Clone)]
struct Service {
    kept: Arc<Mutex<Kept>>,
    refuses: bool,
}

/// Ends with this value.
pub struct Collector {
    address: SocketAddr,
    service: Service,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    pub fn start() -> Result<Collector> {
        Collector::open(false)
    }

    /// It answers each request with a refusal.
    pub fn that_refuses() -> Result<Collector> {
        Collector::open(true)
    }

    fn open(refuses: bool) -> Result<Collector> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let service = Service { kept: Arc::default(), refuses };
        let (by_grpc, by_http) = (service.clone(), service.clone());
        let routes = tonic::service::Routes::new(TraceServiceServer::new(by_grpc)).into_axum_router();
        let app = routes.route("/v1/traces", post(move |body: Bytes| async move { by_http.posted(&body) }));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).context("listen")?;
        let address = listener.local_addr()?;
        runtime.spawn(async move { axum::serve(listener, app).await });
        Ok(Collector { address, service, _runtime: runtime })
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that came.
    pub fn spans(&self) -> Vec<Found> {
        self.service.kept().spans.clone()
    }

    pub fn num_requests(&self) -> usize {
        self.service.kept().num_requests
    }
}

impl Service {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it takes the request.
    fn take(&self, request: ExportTraceServiceRequest) -> bool {
        let mut kept = self.kept();
        kept.num_requests += 1;
        if self.refuses {
            return false;
        }
        for of_resource in request.resource_spans {
            let resource = texts(&of_resource.resource.unwrap_or_default().attributes);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.spans.extend(spans.map(|span| Found { resource: resource.clone(), span }));
        }
        true
    }

    fn posted(&self, body: &[u8]) -> (StatusCode, Vec<u8>) {
        match ExportTraceServiceRequest::decode(body).map(|request| self.take(request)) {
            Ok(true) => (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec()),
            Ok(false) => (StatusCode::FORBIDDEN, Vec::new()),
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string().into_bytes()),
        }
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        match self.take(request.into_inner()) {
            true => Ok(Response::new(ExportTraceServiceResponse::default())),
            false => Err(Status::permission_denied("it refuses")),
        }
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        any_value::Value::DoubleValue(number) => Some(number.to_string()),
        any_value::Value::BoolValue(flag) => Some(flag.to_string()),
        _ => None,
    };
    attributes.iter().filter_map(|attribute| Some((attribute.key.clone(), text(attribute)?))).collect()
}
