//! Requests to a store, over hyper and rustls. See the crate's page for who does what.

mod connect;
mod service;
mod trust;
mod watched;

pub(crate) use service::{Answers, Dialer};
pub(crate) use trust::Trust;
