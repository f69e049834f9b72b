//! Which call needs which role: one table, read by whoever lets calls in ([`super::gate`]) and by the tests that walk all services and pages.
//!
//! A call that is not in it is refused, so that a new one is closed until somebody has said who may make it.

use toroid_proto::Role;

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// `POST` for gRPC.
    pub method: &'static str,
    /// `/package.Service/Method`, or the path of a page; `*` is one segment, whatever it is.
    pub path: &'static str,
    /// `None`: whoever reaches the port. Such a call tells nothing of jobs and workers.
    pub least: Option<Role>,
    /// It changes something, so that there is an audit record of it.
    pub changes: bool,
}

const fn look(path: &'static str, least: Role) -> Rule {
    Rule { method: "POST", path, least: Some(least), changes: false }
}

const fn change(path: &'static str, least: Role) -> Rule {
    Rule { method: "POST", path, least: Some(least), changes: true }
}

/// Over HTTP.
const fn get(path: &'static str, least: Option<Role>) -> Rule {
    Rule { method: "GET", path, least, changes: false }
}

pub const RULES: [Rule; 39] = [
    look("/toroid.v1.JobService/GetJob", Role::View),
    look("/toroid.v1.JobService/GetCurve", Role::View),
    look("/toroid.v1.JobService/ListJobs", Role::View),
    look("/toroid.v1.JobService/WatchJob", Role::View),
    look("/toroid.v1.JobService/ListWorkers", Role::View),
    look("/toroid.v1.JobService/GetLeader", Role::View),
    change("/toroid.v1.JobService/SubmitJob", Role::Submit),
    change("/toroid.v1.JobService/CancelJob", Role::Submit),
    change("/toroid.v1.JobService/CheckpointJob", Role::Submit),
    change("/toroid.v1.JobService/ResumeJob", Role::Submit),
    change("/toroid.v1.JobService/HoldJob", Role::Submit),
    change("/toroid.v1.JobService/ReleaseJob", Role::Submit),
    change("/toroid.v1.JobService/CordonWorker", Role::Operate),
    change("/toroid.v1.JobService/UncordonWorker", Role::Operate),
    change("/toroid.v1.JobService/RemoveJob", Role::Operate),
    change("/toroid.v1.JobService/DrainWorker", Role::Operate),
    change("/toroid.v1.JobService/ReadmitWorker", Role::Operate),
    change("/toroid.v1.AdminService/CreateToken", Role::Admin),
    look("/toroid.v1.AdminService/ListTokens", Role::Admin),
    change("/toroid.v1.AdminService/RevokeToken", Role::Admin),
    look("/toroid.v1.AdminService/GetAudit", Role::Admin),
    change("/toroid.v1.AdminService/ForgetWorker", Role::Admin),
    // A worker's stream is no change by itself: what comes of it is in the events of its job.
    look("/toroid.v1.WorkerService/Session", Role::Worker),
    look("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role::View),
    look("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::View),
    // A probe has no credentials; it hears that the coordinator serves, and nothing else.
    Rule { method: "POST", path: "/grpc.health.v1.Health/Check", least: None, changes: false },
    look("/grpc.health.v1.Health/Watch", Role::View),
    get("/healthz", None),
    // The dashboard's own files, the same for every cluster.
    get("/", None),
    get("/assets/*", None),
    get("/metrics", Some(Role::View)),
    get("/api/jobs", Some(Role::View)),
    get("/api/jobs/*", Some(Role::View)),
    get("/api/jobs/*/curve", Some(Role::View)),
    get("/api/workers", Some(Role::View)),
    get("/api/stream", Some(Role::View)),
    change("/api/jobs/*/checkpoint", Role::Submit),
    change("/api/jobs/*/cancel", Role::Submit),
    change("/api/workers/*/drain", Role::Operate),
];

/// The rule of a call; `None`: nobody may make it.
pub fn rule(method: &str, path: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.method == method && fits(rule.path, path))
}

fn fits(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some("*"), Some(segment)) if !segment.is_empty() => {}
            (Some(expected), Some(segment)) if expected == segment => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_segment_and_a_method_is_part_of_a_rule() {
        let path = |method: &str, path: &str| rule(method, path).map(|rule| rule.path);
        assert_eq!(path("GET", "/"), Some("/"));
        assert_eq!(path("GET", "/api/jobs/tiny-1"), Some("/api/jobs/*"));
        assert_eq!(path("GET", "/api/jobs/tiny-1/curve"), Some("/api/jobs/*/curve"));
        assert_eq!(path("POST", "/api/jobs/tiny-1/cancel"), Some("/api/jobs/*/cancel"));
        for (method, other) in [
            ("GET", "/api/jobs/tiny-1/cancel"),
            ("GET", "/api/jobs/"),
            ("GET", "/api/jobs/a/b/curve"),
            ("GET", "//api/jobs"),
            ("GET", "/api/jobs/*/.."),
            ("GET", "/toroid.v1.JobService/GetJob"),
            ("POST", "/api/stream"),
            ("HEAD", "/metrics"),
        ] {
            assert_eq!(path(method, other), None, "{method} {other}");
        }
    }
}
