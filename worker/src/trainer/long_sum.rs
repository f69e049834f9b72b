//! A sum over the torus of more numbers than go at a time.

use toroid_torus::geometry::Shape;

use super::shared::Shared;
use crate::comm::{CommError, Links, global_sum};

/// Numbers of one sum: whoever takes part holds them once for each place of its row or column.
const CHUNK: usize = 1 << 17;

/// Sums `values` over all places, piece by piece; each piece is progress.
pub(super) fn long_sum(links: &mut Links, shared: &Shared, shape: &Shape, values: &mut [f64]) -> Result<(), CommError> {
    for chunk in values.chunks_mut(CHUNK) {
        global_sum(links, shape, chunk)?;
        shared.advance();
    }
    Ok(())
}
