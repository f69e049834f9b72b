//! Parameters of the reference and of the reward model at a place, and what answers are written with.

use std::path::Path;

use toroid_torus::job::{JobSpec, PpoConfig};
use toroid_torus::model::{ModelConfig, Output};
use toroid_torus::partition::{Partition, partition};

use super::config::config;
use crate::checkpoint::{CheckpointError, load_initial};
use crate::device::CachedAttention;
use crate::model::{Frozen, StageDecoder};
use crate::trainer::initial::initial_params;
use crate::trainer::weights::Weights;

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
pub(in crate::trainer) struct ModelSources {
    /// `None`: the reference is drawn from the seed.
    pub reference: Option<Weights>,
    pub reward: Option<Weights>,
}

impl ModelSources {
    /// Before they are read once more.
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        self.reference.iter().chain(&self.reward).try_for_each(Weights::check_unchanged)
    }
}

impl<D: CachedAttention> Models<D> {
    /// Memory at the place of `rank`, where the job has such models; what is in it means nothing yet.
    pub fn new(device: &D, spec: &JobSpec, rank: usize, partition: &Partition) -> Option<Models<D>> {
        let ppo = spec.ppo.as_ref()?;
        let decoder = decoder(device, spec, rank, partition, ppo);
        let frozen = || Frozen::new(device, partition.padded_len);
        Some(Models { decoder, reference: frozen(), reward: ppo.reward_model.as_ref().map(|_| frozen()) })
    }

    /// For another place of the same (tp, pp) coordinate: what judges answers stays as it is.
    pub fn move_to(self, device: &D, spec: &JobSpec, rank: usize, partition: &Partition) -> Models<D> {
        let Models { decoder: given_up, reference, reward } = self;
        drop(given_up);
        Models { decoder: decoder(device, spec, rank, partition, config(spec)), reference, reward }
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
            reward.write(device, &reward_params(spec, local.path(), &own, (place.tp, place.pp))?);
        }
        Ok(())
    }
}

fn decoder<D: CachedAttention>(
    device: &D,
    spec: &JobSpec,
    rank: usize,
    partition: &Partition,
    ppo: &PpoConfig,
) -> StageDecoder<D> {
    let at = (&spec.shape, spec.shape.place(rank));
    // Who else's answers are written meanwhile shows in no bit of an answer.
    StageDecoder::new(device.clone(), &spec.model, spec.products, at, partition, ppo.side_by_side)
}

/// The flat parameters of a reward model, `(padded_len)` of `own`, which is a policy's partition.
fn reward_params(
    spec: &JobSpec,
    from: &Path,
    own: &Partition,
    (tp, pp): (usize, usize),
) -> Result<Vec<f32>, CheckpointError> {
    let model = ModelConfig { output: Output::Score, ..spec.model.clone() };
    let theirs = partition(&model, &spec.shape, tp, pp);
    // A score that is not in the files stays what no weight is.
    let mut found = vec![f32::NAN; theirs.padded_len];
    load_initial(from, &model, &theirs, &mut found).map_err(not_a_reward_model)?;
    let mut params = vec![0.0; own.padded_len];
    for slice in &own.slices {
        let name = if slice.tensor == VALUE { SCORE } else { &slice.tensor };
        let Some(from) = theirs.slice(name) else { continue };
        params[slice.offset..slice.offset + slice.len].copy_from_slice(&found[from.offset..from.offset + from.len]);
    }
    if params.iter().any(|x| x.is_nan()) {
        let path = config(spec).reward_model.clone().unwrap_or_default();
        let problems = vec![format!("it has no {SCORE}")];
        return Err(not_a_reward_model(CheckpointError::Initial { path, problems }));
    }
    Ok(params)
}

/// Says which key names the file, and what belongs there.
fn not_a_reward_model(error: CheckpointError) -> CheckpointError {
    let CheckpointError::Initial { path, mut problems } = error else { return error };
    let wanted =
        "ppo.reward_model must be an export of a job of kind \"reward\" with the dims and the vocabulary of this one";
    problems.insert(0, wanted.into());
    CheckpointError::Initial { path, problems }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use toroid_torus::job;

    use super::*;

    #[test]
    fn what_is_no_reward_model_of_this_job_is_refused_by_its_key() {
        let keys = "steps = 4\ndata.path = 'text'\npreset = 'micro'\nkind = 'ppo'\nppo = { stop_token = 0, max_tokens = 8, reward_model = 'r' }";
        let spec = job::parse(keys).expect("a job");
        let own = partition(&spec.model, &spec.shape, 0, 0);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("reward.safetensors");
        let check = |model: ModelConfig, expected: &str| {
            let tensors = model.tensors();
            let zeros = vec![0; tensors.iter().map(|t| 4 * t.shape.iter().product::<usize>()).max().unwrap_or(0)];
            let views = tensors.iter().map(|tensor| {
                let len = 4 * tensor.shape.iter().product::<usize>();
                (tensor.name.clone(), TensorView::new(Dtype::F32, tensor.shape.clone(), &zeros[..len]).expect("a view"))
            });
            safetensors::serialize_to_file(views, None, &path).expect("write the weights");
            let error = reward_params(&spec, &path, &own, (0, 0)).expect_err("it is refused").to_string();
            assert!(error.contains("ppo.reward_model must be an export of a job of kind \"reward\""), "{error}");
            assert!(error.contains(expected), "{error}");
        };
        let scores = ModelConfig { output: Output::Score, ..spec.model.clone() };
        check(ModelConfig { vocab: 512, ..scores }, "tensor emb.weight has the shape [512, 32], expected [256, 32]");
        check(ModelConfig { output: Output::Tokens, ..spec.model.clone() }, "it has no score.weight");
    }
}
