//! A collective of the DP group on its way.

use std::sync::Arc;

use toroid_torus::collective::Round;

use crate::device::cuda::runtime::{DevicePtr, Runtime};

/// What a collective leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    AllReduce,
    Gather,
    Scatter,
    ScatterTwice,
}

/// A collective of the DP group that is on its way.
pub(super) struct Flight<R: Runtime> {
    pub kind: Kind,
    pub rounds: Arc<Vec<Round>>,
    /// Rounds before are in the stream.
    pub next: usize,
    pub buffer: DevicePtr,
    /// Of a gather: after each round that is in the stream.
    pub events: Vec<R::Event>,
}
