//! Which call and which page needs which role: read by whoever lets calls in (`gate`) and by the tests that walk all of them.
//!
//! A call that is not in it is refused, so that a new one is closed until somebody has said who may make it.

use tonic::codegen::http::Method;
use toroid_proto::Role;

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// `None`: whoever reaches the port. Such a call tells nothing of jobs and workers.
    pub least: Option<Role>,
    /// It changes something, so that there is an audit record of it.
    pub changes: bool,
    /// Its answer lasts as long as its caller stays, so how long it takes says nothing: its span is that of the opening.
    pub is_stream: bool,
}

const fn look(path: &'static str, least: Role) -> Rule {
    Rule { path, least: Some(least), changes: false, is_stream: false }
}

const fn stream(path: &'static str, least: Role) -> Rule {
    Rule { path, least: Some(least), changes: false, is_stream: true }
}

const fn change(path: &'static str, least: Role) -> Rule {
    Rule { path, least: Some(least), changes: true, is_stream: false }
}

/// Whoever reaches the port may see it.
const fn open(path: &'static str) -> Rule {
    Rule { path, least: None, changes: false, is_stream: false }
}

const HEALTH: &str = "/grpc.health.v1.Health/Check";
const HEALTHZ: &str = "/healthz";

impl Rule {
    /// Probes ask every few seconds, and nobody looks for their spans.
    pub fn is_probe(&self) -> bool {
        [HEALTH, HEALTHZ].contains(&self.path)
    }
}

pub const RULES: [Rule; 31] = [
    look("/toroid.v1.JobService/GetJob", Role::View),
    look("/toroid.v1.JobService/GetCurve", Role::View),
    look("/toroid.v1.JobService/ListJobs", Role::View),
    stream("/toroid.v1.JobService/WatchJob", Role::View),
    look("/toroid.v1.JobService/ListWorkers", Role::View),
    look("/toroid.v1.JobService/GetLeader", Role::View),
    change("/toroid.v1.JobService/SubmitJob", Role::Submit),
    change("/toroid.v1.JobService/CancelJob", Role::Submit),
    change("/toroid.v1.JobService/CheckpointJob", Role::Submit),
    change("/toroid.v1.JobService/PinCheckpoint", Role::Submit),
    change("/toroid.v1.JobService/UnpinCheckpoint", Role::Submit),
    change("/toroid.v1.JobService/ResumeJob", Role::Submit),
    change("/toroid.v1.JobService/HoldJob", Role::Submit),
    change("/toroid.v1.JobService/ReleaseJob", Role::Submit),
    change("/toroid.v1.JobService/CordonWorker", Role::Operate),
    change("/toroid.v1.JobService/UncordonWorker", Role::Operate),
    change("/toroid.v1.JobService/RemoveJob", Role::Operate),
    change("/toroid.v1.JobService/DrainWorker", Role::Operate),
    change("/toroid.v1.JobService/KillWorker", Role::Operate),
    change("/toroid.v1.JobService/ReadmitWorker", Role::Operate),
    change("/toroid.v1.AdminService/CreateToken", Role::Admin),
    look("/toroid.v1.AdminService/ListTokens", Role::Admin),
    change("/toroid.v1.AdminService/RevokeToken", Role::Admin),
    look("/toroid.v1.AdminService/GetAudit", Role::Admin),
    change("/toroid.v1.AdminService/ForgetWorker", Role::Admin),
    // A worker's stream is no change by itself: what comes of it is in the events of its job.
    stream("/toroid.v1.WorkerService/Session", Role::Worker),
    // For whom an agent speaks is looked at with each worker that it opens (`grpc/hosts`).
    stream("/toroid.v1.WorkerService/Host", Role::Worker),
    stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role::View),
    stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::View),
    // A probe has no credentials; it hears that the coordinator serves, and nothing else.
    open(HEALTH),
    stream("/grpc.health.v1.Health/Watch", Role::View),
];

/// The rule of a call; `None`: nobody may make it.
pub fn rule(path: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.path == path)
}

/// Pages over HTTP, by method; `*` is one segment of a path, whatever it is.
pub const PAGES: [(&str, Rule); 13] = [
    ("GET", open(HEALTHZ)),
    // The dashboard's own files, the same for every cluster.
    ("GET", open("/")),
    ("GET", open("/assets/*")),
    ("GET", look("/metrics", Role::View)),
    ("GET", look("/api/jobs", Role::View)),
    ("GET", look("/api/jobs/*", Role::View)),
    ("GET", look("/api/jobs/*/curve", Role::View)),
    ("GET", look("/api/workers", Role::View)),
    ("GET", stream("/api/stream", Role::View)),
    ("POST", change("/api/jobs/*/checkpoint", Role::Submit)),
    ("POST", change("/api/jobs/*/cancel", Role::Submit)),
    ("POST", change("/api/workers/*/drain", Role::Operate)),
    ("POST", change("/api/workers/*/kill", Role::Operate)),
];

/// The rule of a page; `None`: there is no such page, or not by this method.
pub(super) fn page(method: &Method, path: &str) -> Option<&'static Rule> {
    PAGES.iter().find(|(of, rule)| *of == method.as_str() && fits(rule.path, path)).map(|(_, rule)| rule)
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
        let found = |method: Method, path: &str| page(&method, path).map(|rule| rule.path);
        assert_eq!(found(Method::GET, "/"), Some("/"));
        assert_eq!(found(Method::GET, "/api/jobs/tiny-1"), Some("/api/jobs/*"));
        assert_eq!(found(Method::GET, "/api/jobs/tiny-1/curve"), Some("/api/jobs/*/curve"));
        assert_eq!(found(Method::POST, "/api/jobs/tiny-1/cancel"), Some("/api/jobs/*/cancel"));
        for (method, other) in [
            (Method::GET, "/api/jobs/tiny-1/cancel"),
            (Method::GET, "/api/jobs/"),
            (Method::GET, "/api/jobs/a/b/curve"),
            (Method::GET, "//api/jobs"),
            (Method::GET, "/api/jobs/a/.."),
            (Method::GET, "/toroid.v1.JobService/GetJob"),
            (Method::POST, "/api/stream"),
            (Method::HEAD, "/metrics"),
        ] {
            assert_eq!(found(method.clone(), other), None, "{method} {other}");
        }
    }
}
