//! The dashboard's files: embedded, so that it works offline and needs no build.

use axum::extract::Path;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Nothing from elsewhere, no script in the page, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

const INDEX: &str = include_str!("pages/index.html");

const ASSETS: [(&str, &str, &str); 7] = [
    ("style.css", "text/css; charset=utf-8", include_str!("pages/style.css")),
    ("main.js", JS, include_str!("pages/main.js")),
    ("connection.js", JS, include_str!("pages/connection.js")),
    ("chart.js", JS, include_str!("pages/chart.js")),
    ("torus.js", JS, include_str!("pages/torus.js")),
    ("panels.js", JS, include_str!("pages/panels.js")),
    ("format.js", JS, include_str!("pages/format.js")),
];
const JS: &str = "text/javascript; charset=utf-8";

fn page(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Small, and of this coordinator's version.
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    (headers, text).into_response()
}

pub(super) async fn index() -> Response {
    page("text/html; charset=utf-8", INDEX)
}

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => page(kind, text),
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}
