//! The weights that a job begins with, at a place.

use std::path::Path;

use toroid_torus::init::fill_initial;
use toroid_torus::job::JobSpec;
use toroid_torus::partition::Partition;

use crate::checkpoint::{CheckpointError, DRAWN_BESIDES, load_initial};

/// The flat weights of a partition, `(padded_len)`, as the job begins with them: from `weights`, or drawn from the seed.
pub(super) fn initial_params(
    spec: &JobSpec,
    weights: Option<&Path>,
    partition: &Partition,
) -> Result<Vec<f32>, CheckpointError> {
    let mut params = vec![0.0; partition.padded_len];
    // With weights from elsewhere, a score or values that they have not are drawn all the same.
    let is_drawn = |tensor: &str| weights.is_none() || DRAWN_BESIDES.contains(&tensor);
    for slice in partition.slices.iter().filter(|slice| is_drawn(&slice.tensor)) {
        fill_initial(slice, spec.seed, &mut params[slice.offset..slice.offset + slice.len]);
    }
    if let Some(path) = weights {
        load_initial(path, &spec.model, partition, &mut params)?;
    }
    Ok(params)
}
