//! What is logged in which form, and which collector takes spans: from flags and from the environment variables that OpenTelemetry names.

use std::str::FromStr;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no form of a log; expected text or json")]
pub struct FormatError(String);

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Format, FormatError> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(FormatError(text.into())),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Text => "text",
            Format::Json => "json",
        })
    }
}

/// Whose spans they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Coordinator,
    Worker,
    /// What a user has done by a command.
    Command,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::Coordinator => "toroid-coordinator",
            Service::Worker => "toroid-worker",
            Service::Command => "toroid",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Where RUST_LOG does not say it.
    pub default_level: &'static str,
    pub format: Format,
    /// `None`: this process has no spans.
    pub service: Option<Service>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// Who takes spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collector {
    pub protocol: Protocol,
    pub endpoint: String,
    /// Of one request.
    pub timeout: Duration,
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl Collector {
    /// By the names of the OpenTelemetry specification; those for traces alone count before the others. `None`: no endpoint is named, or it is switched off.
    /// OTEL_EXPORTER_OTLP_HEADERS is read by the exporter itself.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Option<Collector>, String> {
        let set = |name: &str| get(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let one_of = |what: &str| {
            let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
            names.into_iter().find_map(|name| set(&name).map(|value| (name, value)))
        };
        let is_off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let Some((named_by, endpoint)) = one_of("ENDPOINT").filter(|_| !is_off) else { return Ok(None) };
        let none = |name: &str, value: &str, expected: &str| {
            Err(format!("no spans are exported: {name} is `{value}`; expected {expected}"))
        };
        let protocol = match one_of("PROTOCOL") {
            None => Protocol::HttpProtobuf,
            Some((_, value)) if value == "http/protobuf" => Protocol::HttpProtobuf,
            Some((_, value)) if value == "grpc" => Protocol::Grpc,
            Some((name, value)) => return none(&name, &value, "grpc or http/protobuf"),
        };
        let timeout = match one_of("TIMEOUT") {
            None => DEFAULT_TIMEOUT,
            Some((name, value)) => match value.parse() {
                Ok(ms) if ms > 0 => Duration::from_millis(ms),
                _ => return none(&name, &value, "a time in milliseconds, as in 10000"),
            },
        };
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", &endpoint));
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {}
            "https" => {
                let expected = "http://host:port: spans leave this process in clear text. Have a collector on this host take them, as at \
                                http://localhost:4317, and pass them on over TLS";
                return none(&named_by, &endpoint, expected);
            }
            _ => return none(&named_by, &endpoint, "http://host:port, as in http://localhost:4317"),
        }
        if !rest.starts_with(|first: char| first.is_alphanumeric() || first == '[') {
            return none(&named_by, &endpoint, "http://host:port, as in http://localhost:4317");
        }
        let mut endpoint = format!("http://{rest}");
        if protocol == Protocol::HttpProtobuf && !named_by.contains("TRACES") {
            endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        }
        Ok(Some(Collector { protocol, endpoint, timeout }))
    }
}

/// Of this process, by the semantic conventions. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count before what is found here.
pub(crate) fn resource(service: Service) -> Resource {
    let named = Resource::builder().build();
    let (host, pid) = (host_name(), std::process::id());
    // Unlike that of any other process: containers of one host name all have the process id 1.
    let random = getrandom::u64().unwrap_or_default();
    let mut found = vec![
        KeyValue::new("service.name", service.name()),
        KeyValue::new("service.version", toroid_proto::BUILD_VERSION),
        KeyValue::new("service.instance.id", format!("{host}-{pid}-{random:016x}")),
        KeyValue::new("host.name", host),
        KeyValue::new("host.arch", std::env::consts::ARCH),
        KeyValue::new("os.type", std::env::consts::OS),
        KeyValue::new("process.pid", i64::from(pid)),
        KeyValue::new("process.executable.name", "toroid"),
    ];
    // Where nobody names the service, the SDK makes up a name.
    let is_named =
        |found: &KeyValue| named.get(&found.key).is_some_and(|value| !value.as_str().starts_with("unknown_service"));
    found.retain(|found| !is_named(found));
    Resource::builder().with_attributes(found).build()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Collector>, String> {
        let get = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.to_string());
        Collector::from_environment(get)
    }

    fn collector(protocol: Protocol, endpoint: &str, ms: u64) -> Result<Option<Collector>, String> {
        Ok(Some(Collector { protocol, endpoint: endpoint.into(), timeout: Duration::from_millis(ms) }))
    }

    #[test]
    fn the_variables_of_opentelemetry_say_who_takes_spans() {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[(ENDPOINT, " ")]), Ok(None));
        assert_eq!(
            of(&[(ENDPOINT, "http://c:4318")]),
            collector(Protocol::HttpProtobuf, "http://c:4318/v1/traces", 10_000)
        );
        let of_traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        assert_eq!(
            of(&[(ENDPOINT, "http://c:4318"), (of_traces, "http://t:1/p"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "250")]),
            collector(Protocol::HttpProtobuf, "http://t:1/p", 250)
        );
        for named in ["c:4317", "http://c:4317", "HTTP://c:4317"] {
            let found = of(&[(ENDPOINT, named), (PROTOCOL, "grpc")]);
            assert_eq!(found, collector(Protocol::Grpc, "http://c:4317", 10_000), "{named}");
        }
        let v6 = of(&[(ENDPOINT, "http://[::1]:4317"), (PROTOCOL, "grpc")]);
        assert_eq!(v6, collector(Protocol::Grpc, "http://[::1]:4317", 10_000));
        assert_eq!(of(&[(ENDPOINT, "http://c:4318"), ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        assert_eq!(of(&[(ENDPOINT, "http://c:4318"), ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        for (bad, words) in [
            ([(ENDPOINT, "http://c:1"), (PROTOCOL, "http/json")], "expected grpc or http/protobuf"),
            ([(ENDPOINT, "http://c:1"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "1s")], "a time in milliseconds"),
            ([(ENDPOINT, "https://c:1"), (PROTOCOL, "grpc")], "Have a collector on this host take them"),
            ([(ENDPOINT, "HTTPS://c:1"), (PROTOCOL, "grpc")], "pass them on over TLS"),
            ([(ENDPOINT, "grpc://c:1"), (PROTOCOL, "grpc")], "expected http://host:port"),
            ([(ENDPOINT, "unix:///run/c"), (PROTOCOL, "grpc")], "expected http://host:port"),
            ([(ENDPOINT, "http://"), (PROTOCOL, "grpc")], "expected http://host:port"),
        ] {
            let error = of(&bad).unwrap_err();
            assert!(
                error.contains(words) && error.starts_with("no spans are exported: OTEL_EXPORTER_OTLP_"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_resource_names_the_service_and_its_process() {
        let resource = resource(Service::Worker);
        let get = |name: &'static str| resource.get(&name.into()).map(|value| value.to_string());
        assert_eq!(get("service.name").as_deref(), Some("toroid-worker"));
        assert_eq!(get("process.pid"), Some(std::process::id().to_string()));
        for name in ["service.version", "service.instance.id", "host.name"] {
            assert!(get(name).is_some_and(|value| !value.is_empty()), "{name}");
        }
    }
}
