//! Parameters of the reference and of the reward model at a place, and what answers are written with.

use std::sync::Arc;

use toroid_torus::job::JobSpec;
use toroid_torus::model::{ModelConfig, Output};
use toroid_torus::partition::{Partition, partition};

use super::config::config;
use crate::checkpoint::{CheckpointError, load_initial};
use crate::data::Local;
use crate::device::CachedAttention;
use crate::model::{Frozen, StageDecoder};
use crate::trainer::initial::initial_params;

/// What the tensors are called that a reward model has for a policy's values.
const SCORE: &str = "score.weight";
const VALUE: &str = "value.weight";

/// Memory of a place for what it judges answers by.
pub(in crate::trainer) struct Models<D: CachedAttention> {
    pub decoder: StageDecoder<D>,
    pub reference: Frozen<D>,
    /// In the tensors of a policy: its score has the place of the values, and there is no head.
    pub reward: Option<Frozen<D>>,
}

/// Where their parameters are on this machine; kept, as a place may have to read them again for another part of the model.
#[derive(Clone)]
pub(in crate::trainer) struct ModelSources {
    /// `None`: the reference is drawn from the seed.
    pub reference: Option<Arc<Local>>,
    pub reward: Option<Arc<Local>>,
}

impl<D: CachedAttention> Models<D> {
    /// Memory at the place of `rank`, where the job has such models; what is in it means nothing yet.
    pub fn new(device: &D, spec: &JobSpec, rank: usize, partition: &Partition) -> Option<Models<D>> {
        let ppo = spec.ppo.as_ref()?;
        let at = (&spec.shape, spec.shape.place(rank));
        // Who else's answers are written meanwhile shows in no bit of an answer.
        let decoder = StageDecoder::new(device.clone(), &spec.model, spec.products, at, partition, ppo.side_by_side);
        let frozen = || Frozen::new(device, partition.padded_len);
        Some(Models { decoder, reference: frozen(), reward: ppo.reward_model.as_ref().map(|_| frozen()) })
    }

    /// Reads the parameters of the place of `rank`.
    pub fn load(
        &mut self,
        device: &D,
        spec: &JobSpec,
        rank: usize,
        sources: &ModelSources,
    ) -> Result<(), CheckpointError> {
        let place = spec.shape.place(rank);
        let own = partition(&spec.model, &spec.shape, place.tp, place.pp);
        let reference = sources.reference.as_ref().map(|local| local.path());
        self.reference.write(device, &initial_params(spec, reference, &own)?);
        if let (Some(reward), Some(local)) = (&mut self.reward, &sources.reward) {
            reward.write(device, &reward_params(spec, local, &own, (place.tp, place.pp))?);
        }
        Ok(())
    }
}

/// The flat parameters of a reward model, `(padded_len)` of `own`, which is a policy's partition.
fn reward_params(
    spec: &JobSpec,
    local: &Local,
    own: &Partition,
    (tp, pp): (usize, usize),
) -> Result<Vec<f32>, CheckpointError> {
    let model = ModelConfig { output: Output::Score, ..spec.model.clone() };
    let theirs = partition(&model, &spec.shape, tp, pp);
    // A score that is not in the files stays what no weight is.
    let mut found = vec![f32::NAN; theirs.padded_len];
    load_initial(local.path(), &model, &theirs, &mut found)?;
    let mut params = vec![0.0; own.padded_len];
    for slice in &own.slices {
        let name = if slice.tensor == VALUE { SCORE } else { &slice.tensor };
        let Some(from) = theirs.slice(name) else { continue };
        params[slice.offset..slice.offset + slice.len].copy_from_slice(&found[from.offset..from.offset + from.len]);
    }
    if params.iter().any(|x| x.is_nan()) {
        let path = config(spec).reward_model.clone().unwrap_or_default();
        let problem = format!("it has no {SCORE}; give an export of a job of kind \"reward\" as ppo.reward_model");
        return Err(CheckpointError::Initial { path, problems: vec![problem] });
    }
    Ok(params)
}
