//! Forward and backward of the micro-batches at one place, with what comes from and goes to the neighbouring stages.

use std::sync::Arc;

use toroid_session::Assignment;
use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;
use toroid_torus::partition::{Partition, stage_layers};
use toroid_torus::pipeline::{Action, InFlight, Pass, Pipeline};

use super::overlap::Overlap;
use super::ppo::rollouts::Rollouts;
use super::samples::Samples;
use super::shards::Shards;
use super::shared::Shared;
use super::totals::Sums;
use super::validations::SourceSums;
use crate::comm::{Channel, CommError, Fence, Group, Links, TpGroup, Transfer};
use crate::data::Batch;
use crate::device::{Buffer, CachedAttention, Device, View};
use crate::model::{
    Allocated, DecodeInput, DecodeOutput, EndStats, EvaluatedRows, Frozen, LossScale, PairStats, Row, Stage,
    StageDecoder,
};
use crate::optim::Shard;

pub(super) struct Passes<D: Device> {
    stage: Stage<D>,
    pipeline: Pipeline,
    tp: Group,
    overlap: Overlap,
    buffers: Buffers,
}

/// Host buffers of a step, allocated once.
struct Buffers {
    batch: Batch,
    /// Of the step that is made.
    scale: LossScale,
    /// `(B * S, d)` each: what comes from and goes to the neighbouring stages.
    received: Vec<f32>,
    sent: Vec<f32>,
    scratch: Vec<f32>,
    /// Assignments to experts in this step, `(layers, experts)` of the whole model.
    expert_load: Vec<u64>,
}

/// The step that is made, and where.
pub(super) struct StepAt<'a> {
    pub place: &'a Assignment,
    pub fence: &'a Fence,
    pub samples: &'a Samples,
    /// What a policy learns from.
    pub rollouts: Option<&'a Rollouts>,
    /// Updates before it.
    pub committed: Step,
}

impl StepAt<'_> {
    /// Micro-batch `i` of this place's replica.
    fn load(&self, i: usize, batch: &mut Batch) {
        let spec = &self.place.spec;
        match self.rollouts {
            None => self.samples.load_train(self.place, self.committed, i, batch),
            Some(rollouts) => {
                let first = spec.batch.of_replica(spec.shape.dp(), self.place.place().dp).start;
                rollouts.load(self.samples, spec, self.committed, first + i, batch);
            }
        }
    }

    /// What the losses are divided by, over all replicas.
    fn scale(&self) -> LossScale {
        let num_trained = self.rollouts.map(|rollouts| rollouts.num_trained(&self.place.spec, self.committed));
        self.samples.scale_of(&self.place.spec, self.committed, num_trained)
    }
}

/// Ranks of the neighbouring stages.
struct Neighbours {
    previous: Option<usize>,
    next: Option<usize>,
}

impl Neighbours {
    fn of(place: &Assignment) -> Neighbours {
        let group = place.spec.shape.pp_group(place.rank.index());
        let pp = place.place().pp;
        Neighbours { previous: pp.checked_sub(1).map(|p| group[p]), next: group.get(pp + 1).copied() }
    }
}

/// Sends activations or their gradients, `(B * S, d)`, to another stage. The kernel takes what fits; the rest goes out while this
/// rank waits for something else.
fn send(links: &mut Links, to: usize, channel: Channel, values: &[f32]) -> Result<(), CommError> {
    links.queue(to, channel, bytemuck::cast_slice(values).to_vec())
}

fn receive(links: &mut Links, from: usize, channel: Channel, values: &mut [f32]) -> Result<(), CommError> {
    links.run(&mut [Transfer::Recv { peer: from, channel, buf: bytemuck::cast_slice_mut(values) }])
}

/// What a stage does in which order, at the place of `rank`.
pub(super) fn pipeline_of(spec: &JobSpec, rank: usize) -> Pipeline {
    let place = spec.shape.place(rank);
    spec.pipeline.schedule.stage(place.pp, spec.shape.pp(), spec.batch.of_replica(spec.shape.dp(), place.dp).len())
}

impl<D: Device + Clone> Passes<D> {
    /// For the place of `rank`.
    pub fn new(device: &D, spec: &JobSpec, rank: usize, partition: &Arc<Partition>) -> Passes<D> {
        let pipeline = pipeline_of(spec, rank);
        let stage =
            Stage::new(device.clone(), spec, &spec.shape, spec.shape.place(rank), partition, pipeline.in_flight());
        let activation = stage.activation_len();
        let buffers = Buffers {
            batch: Batch::new(spec),
            scale: LossScale { each: 0.0, routers: 0.0 },
            received: vec![0.0; activation],
            sent: vec![0.0; activation],
            scratch: Vec::new(),
            expert_load: vec![0; spec.model.layers * spec.model.experts],
        };
        let overlap = Overlap::new(Arc::clone(partition), Group::dp(&spec.shape, rank));
        Passes { stage, pipeline, tp: Group::tp(&spec.shape, rank), overlap, buffers }
    }

    /// The same memory for another place of the same (tp, pp) coordinate, with as many micro-batches in flight.
    pub fn move_to(self, spec: &JobSpec, rank: usize) -> Passes<D> {
        Passes {
            pipeline: pipeline_of(spec, rank),
            tp: Group::tp(&spec.shape, rank),
            overlap: self.overlap.move_to(Group::dp(&spec.shape, rank)),
            ..self
        }
    }

    pub fn device(&self) -> &D {
        self.stage.device()
    }

    pub fn allocated(&self) -> Allocated {
        self.stage.allocated()
    }

    pub fn in_flight(&self) -> InFlight {
        self.stage.in_flight()
    }

    /// A forward whose backward never came leaves its slot full.
    pub fn clear_slots(&mut self) {
        self.stage.clear_slots();
    }

    /// Gives the memory of the device back; there are no passes any more.
    pub fn give_up(&mut self) {
        self.stage.give_up();
    }

    /// The working parameters are about to change.
    pub fn return_params(&mut self) {
        self.stage.return_params();
    }

    /// `(padded_len)`: the gradients of the stage.
    #[cfg(test)]
    pub fn grads(&self) -> &D::Buf {
        self.stage.grads()
    }

    #[cfg(any(test, feature = "failpoint"))]
    pub fn grads_mut(&mut self) -> &mut D::Buf {
        self.stage.grads_mut()
    }

    /// `(shard_len)`: the gradients of this shard.
    pub fn grads_of(&self, shard: &Shard<D>) -> View<'_, D::Buf> {
        self.stage.grads().view(shard.range.clone())
    }

    /// Assignments to experts in this step, `(layers, experts)` of the whole model.
    pub fn expert_load(&self) -> &[u64] {
        &self.buffers.expert_load
    }

    /// The gradients of the shards pass through a DP group.
    pub fn has_dp_group(&self) -> bool {
        self.overlap.has_group()
    }

    // ------------------------------------------------------------------------------------------------------------ parameters

    /// The working parameters of the committed step are on their way, from the master weights of all shards of the DP group.
    pub fn start_gather(&mut self, links: &mut Links, shared: &Shared, own: &Shard<D>) -> Result<(), CommError> {
        self.overlap.start_gather(links, &mut self.stage, own)?;
        shared.enter("all-gather");
        Ok(())
    }

    /// The working parameters are all there on return.
    pub fn finish_gather(&mut self, links: &mut Links) -> Result<(), CommError> {
        self.overlap.finish_gather(links, &mut self.stage)
    }

    // ---------------------------------------------------------------------------------------------------------------- passes

    /// Forward and backward of all micro-batches; on return this place holds the summed gradient of its shard.
    pub fn accumulate(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        at: &StepAt<'_>,
        shards: &mut Shards<D>,
    ) -> Result<Sums, CommError> {
        self.stage.zero_grads();
        self.buffers.expert_load.fill(0);
        self.buffers.scale = at.scale();
        let mut sums = Sums::default();
        let pipeline = self.pipeline.clone();
        let last = pipeline.actions().len().checked_sub(1);
        for (index, action) in pipeline.actions().iter().enumerate() {
            // Without neighbours nothing else here would see that the epoch is over, for a whole step.
            at.fence.check(at.place.epoch)?;
            let Action { pass, micro_batch: i, chunk } = *action;
            assert_eq!(chunk, 0, "a stage has one chunk of layers");
            match pass {
                Pass::Forward => self.forward(links, shared, at, i, &mut sums)?,
                _ => {
                    shared.enter("backward");
                    let is_last = Some(index) == last;
                    if is_last {
                        self.overlap.start_scatter(links, &mut self.stage, shards.has_copy())?;
                    }
                    self.backward(links, at.place, (pass, i), is_last)?;
                }
            }
        }
        if last.is_none() {
            // A replica may have no micro-batch: its part of the sums is 0.
            self.overlap.start_scatter(links, &mut self.stage, shards.has_copy())?;
            let mut tp = TpGroup::new(links, &self.tp, &mut self.buffers.scratch);
            self.overlap.scatter_all(&mut tp, &mut self.stage)?;
        }
        shared.enter("reduce-scatter");
        self.overlap.finish_scatter(links, &mut self.stage, shards)?;
        Ok(sums)
    }

    fn forward(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        at: &StepAt<'_>,
        i: usize,
        sums: &mut Sums,
    ) -> Result<(), CommError> {
        shared.enter("forward");
        let (slot, b) = (self.slot(i), &mut self.buffers);
        at.load(i, &mut b.batch);
        let neighbours = Neighbours::of(at.place);
        if let Some(previous) = neighbours.previous {
            receive(links, previous, Channel::Forward, &mut b.received)?;
        }
        let spec = &at.place.spec;
        let layers = stage_layers(spec.model.layers, spec.shape.pp(), at.place.place().pp);
        let mut tp = TpGroup::new(links, &self.tp, &mut b.scratch);
        let received = neighbours.previous.map(|_| b.received.as_slice());
        let feed = b.batch.feed(received, neighbours.next.is_none());
        let output = neighbours.next.is_some().then_some(b.sent.as_mut_slice());
        let device = self.stage.device().clone();
        let mut watch = self.overlap.gathering(&device);
        let stats = self.stage.forward_watched(slot, &feed, &mut tp, output, &mut watch)?;
        let load = &mut b.expert_load[layers.start * spec.model.experts..layers.end * spec.model.experts];
        load.iter_mut().zip(self.stage.expert_counts(slot)).for_each(|(sum, count)| *sum += u64::from(*count));
        sums.add(&stats);
        if neighbours.next.is_none() {
            sums.count(&b.batch);
        }
        if let Some(next) = neighbours.next {
            send(links, next, Channel::Forward, &self.buffers.sent)?;
            shared.enter("stage-transfer");
        }
        Ok(())
    }

    /// A whole backward of micro-batch `i` or a part of it; `is_last`: gradients get nothing more afterwards.
    fn backward(
        &mut self,
        links: &mut Links,
        place: &Assignment,
        (pass, i): (Pass, usize),
        is_last: bool,
    ) -> Result<(), CommError> {
        let Neighbours { previous, next } = Neighbours::of(place);
        // Gradients of weights are nobody else's business.
        let (previous, next) = if pass == Pass::BackwardWeight { (None, None) } else { (previous, next) };
        let (slot, b) = (self.slot(i), &mut self.buffers);
        if let Some(next) = next {
            receive(links, next, Channel::Backward, &mut b.received)?;
        }
        let scale = b.scale;
        let device = self.stage.device().clone();
        let mut tp = TpGroup::new(links, &self.tp, &mut b.scratch);
        let grad_output = next.is_some().then_some(b.received.as_slice());
        let grad_input = previous.is_some().then_some(b.sent.as_mut_slice());
        let mut watch = is_last.then(|| self.overlap.scattering(&device));
        match pass {
            Pass::BackwardInput => self.stage.backward_input(slot, grad_output, scale, &mut tp, grad_input)?,
            Pass::BackwardWeight => self.stage.backward_weight_watched(slot, &mut tp, &mut watch)?,
            _ => self.stage.backward_watched(slot, grad_output, scale, &mut tp, grad_input, &mut watch)?,
        }
        if let Some(previous) = previous {
            send(links, previous, Channel::Backward, &self.buffers.sent)?;
        }
        Ok(())
    }

    /// Activations of micro-batch `i` lie in this slot of the stage until the end of its backward.
    fn slot(&self, i: usize) -> usize {
        i % self.stage.in_flight().micro_batches
    }

    /// Forward only of micro-batch `index` of a validation: sums over its tokens, or its pairs, at one place of the last stage, zeros elsewhere.
    pub fn evaluate(
        &mut self,
        links: &mut Links,
        place: &Assignment,
        samples: &Samples,
        index: usize,
    ) -> Result<SourceSums, CommError> {
        samples.load_validation(&place.spec, index, &mut self.buffers.batch);
        let EndStats { ce, pairs, .. } = self.evaluate_batch(links, place)?;
        let speaks = Neighbours::of(place).next.is_none() && place.place().tp == 0;
        let PairStats { loss, correct, ties, num, .. } = pairs;
        Ok(match speaks {
            true if num > 0 => SourceSums::from_array([loss, num as f64, correct as f64, ties as f64]),
            true => SourceSums { ce, tokens: self.buffers.batch.num_trained() as f64, ..SourceSums::default() },
            false => SourceSums::default(),
        })
    }

    /// Forward only of the micro-batch in the host buffers.
    fn evaluate_batch(&mut self, links: &mut Links, place: &Assignment) -> Result<EndStats, CommError> {
        let (b, neighbours) = (&mut self.buffers, Neighbours::of(place));
        if let Some(previous) = neighbours.previous {
            receive(links, previous, Channel::Eval, &mut b.received)?;
        }
        let mut tp = TpGroup::new(links, &self.tp, &mut b.scratch);
        let received = neighbours.previous.map(|_| b.received.as_slice());
        let feed = b.batch.feed(received, neighbours.next.is_none());
        let output = neighbours.next.is_some().then_some(b.sent.as_mut_slice());
        let stats = self.stage.evaluate_feed(&feed, &mut tp, output)?;
        if let Some(next) = neighbours.next {
            send(links, next, Channel::Eval, &self.buffers.sent)?;
        }
        Ok(stats)
    }

    /// Forward only of what `fill` puts into a micro-batch of a policy: what it says of the rows, on the last stage.
    pub fn evaluate_rows(
        &mut self,
        links: &mut Links,
        place: &Assignment,
        fill: impl FnOnce(&mut Batch),
    ) -> Result<Option<EvaluatedRows<'_>>, CommError> {
        fill(&mut self.buffers.batch);
        self.evaluate_batch(links, place)?;
        Ok(self.stage.evaluated_rows())
    }

    /// See [`Stage::exchange_params`].
    pub fn exchange_params(&mut self, other: &mut Frozen<D>) {
        self.stage.exchange_params(other);
    }
}

impl<D: CachedAttention> Passes<D> {
    /// Forward of `rows` by what is in the decoder's cache, over the stages: `logits (wanted, vocab_local)` on the last one.
    pub fn decode(
        &mut self,
        links: &mut Links,
        place: &Assignment,
        decoder: &mut StageDecoder<D>,
        rows: &[Row],
        wanted: &[usize],
        logits: &mut Vec<f32>,
    ) -> Result<(), CommError> {
        let (neighbours, len) = (Neighbours::of(place), rows.len() * decoder.width());
        let mut received = vec![0.0; if neighbours.previous.is_some() { len } else { 0 }];
        if let Some(previous) = neighbours.previous {
            receive(links, previous, Channel::Eval, &mut received)?;
        }
        let input = neighbours.previous.map_or(DecodeInput::Tokens, |_| DecodeInput::Activations(&received));
        let mut sent = vec![0.0; if neighbours.next.is_some() { len } else { 0 }];
        let output = match neighbours.next {
            Some(_) => DecodeOutput::Activations(&mut sent),
            None => {
                logits.resize(wanted.len() * decoder.vocab().1.len(), 0.0);
                DecodeOutput::Logits { wanted, logits }
            }
        };
        let mut tp = TpGroup::new(links, &self.tp, &mut self.buffers.scratch);
        let stage = &mut self.stage;
        decoder.forward(stage.working_params(), rows, input, &mut tp, output)?;
        match neighbours.next {
            Some(next) => send(links, next, Channel::Eval, &sent),
            None => Ok(()),
        }
    }
}
