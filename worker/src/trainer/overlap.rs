//! Communication of a DP group under computation: parameters come in while the first forward of a step runs, gradients go out while its
//! last backward runs.
//!
//! ```text
//!   commit S  all-gather in flight ...............               reduce-scatter in flight ..........  land, seal, commit S + 1
//!             F0 (each layer waits for its range) F1 ... B0 ...  last B (each layer hands its range over)
//! ```
//!
//! Both go through one flat host buffer that is the collective's while it is in flight ([`crate::comm`]); on a GPU it is where the values
//! are staged anyhow. Where GPUs have communicators ([`crate::comm::nccl`]), both are in place, in the buffers of the stage. The last pass of the
//! pipeline that adds to gradients is the last action, in every schedule: a whole backward, or the
//! gradients of weights.
//!
//! What reads the working parameters outside of a training step waits for all of them first ([`Overlap::finish_gather`]). An epoch that ends
//! with a collective in flight gives it up: heal starts the all-gather again, and the step is made again.

use std::ops::Range;
use std::sync::Arc;

use toroid_torus::partition::Partition;

use super::shards::Shards;
use crate::comm::nccl::DeviceComm;
use crate::comm::{Channel, CommError, Group, Links, TpGroup, start_all_gather, start_reduce_scatter};
use crate::device::{Buffer, Device};
use crate::model::{Stage, TpComm as _, Watch};
use crate::optim::Shard;

/// What moves the data of the DP group between devices, where something does.
fn carrier<D: Device>(device: &D) -> Option<&dyn DeviceComm<D::Buf>> {
    device.comm().filter(|comm| comm.carries_dp())
}

/// Takes parameters over as they come.
pub(super) struct Gathering<'a, D> {
    device: &'a D,
    /// The working parameters before this element are those of the committed step.
    gathered: &'a mut usize,
}

impl<D: Device> Watch<D, TpGroup<'_>> for Gathering<'_, D> {
    fn before_params(
        &mut self,
        tp: &mut TpGroup<'_>,
        params: &mut D::Buf,
        range: Range<usize>,
    ) -> Result<(), CommError> {
        let missing = *self.gathered..range.end;
        if missing.is_empty() {
            // The other places may not have what this one gives.
            return tp.progress();
        }
        match carrier(self.device) {
            Some(comm) => comm.await_gathered(range.end)?,
            None => {
                let came = tp.links().await_range(missing.clone())?;
                self.device.write(params.view_mut(missing), came);
            }
        }
        *self.gathered = range.end;
        Ok(())
    }

    fn after_grads(&mut self, _: &mut TpGroup<'_>, _: &mut D::Buf, _: usize) -> Result<(), CommError> {
        Ok(())
    }
}

/// Hands gradients over as they become final.
pub(super) struct Scattering<'a, D> {
    device: &'a D,
    partition: &'a Partition,
    /// Gradients from this element on are handed over.
    scattered: usize,
    /// Scratch: parts of replicated gradients.
    partial: &'a mut Vec<f32>,
}

impl<D: Device> Watch<D, TpGroup<'_>> for Scattering<'_, D> {
    fn before_params(&mut self, _: &mut TpGroup<'_>, _: &mut D::Buf, _: Range<usize>) -> Result<(), CommError> {
        Ok(())
    }

    fn after_grads(&mut self, tp: &mut TpGroup<'_>, grads: &mut D::Buf, from: usize) -> Result<(), CommError> {
        self.sum_parts(tp, grads, from..self.scattered)?;
        if let Some(comm) = carrier(self.device) {
            comm.supply(grads, from)?;
        } else if tp.links().is_in_flight() {
            let own = grads.view(from..self.scattered);
            tp.links().supply(from, |buf| self.device.read(own, buf))?;
        }
        self.scattered = from;
        Ok(())
    }
}

impl<D: Device> Scattering<'_, D> {
    /// Sums the gradients of the slices in `range` whose replicas hold parts of them, so that afterwards all replicas have the whole.
    fn sum_parts(&mut self, tp: &mut TpGroup<'_>, grads: &mut D::Buf, range: Range<usize>) -> Result<(), CommError> {
        let is_within = |offset: usize| range.contains(&offset);
        let partial = || self.partition.slices.iter().filter(|s| s.grad_is_partial && is_within(s.offset));
        let mut groups: Vec<Range<usize>> = partial().map(|s| s.replicas.clone()).collect();
        groups.sort_by_key(|g| (g.start, g.end));
        groups.dedup();
        for replicas in groups {
            let slices = || partial().filter(|s| s.replicas == replicas);
            let len = slices().map(|s| s.len).sum();
            self.partial.resize(len, 0.0);
            let mut at = 0;
            for s in slices() {
                self.device.read(grads.view(s.offset..s.offset + s.len), &mut self.partial[at..at + s.len]);
                at += s.len;
            }
            tp.sum_over(replicas.clone(), self.partial)?;
            let mut at = 0;
            for s in slices() {
                self.device.write(grads.view_mut(s.offset..s.offset + s.len), &self.partial[at..at + s.len]);
                at += s.len;
            }
        }
        Ok(())
    }
}

/// What of a place's DP group is on its way. The stage and the shards are those that it was made for.
pub(super) struct Overlap {
    partition: Arc<Partition>,
    dp: Group,
    /// `(padded_len)` where there is a DP group, and away while a collective of it is in flight.
    flat: Vec<f32>,
    /// Gradients whose parts are summed over TP ranks.
    partial: Vec<f32>,
    /// The working parameters before this element are those of the committed step; the others may be on their way.
    gathered: usize,
}

impl Overlap {
    pub fn new(partition: Arc<Partition>, dp: Group) -> Overlap {
        let flat = vec![0.0; if dp.ranks.len() > 1 { partition.padded_len } else { 0 }];
        Overlap { partition, dp, flat, partial: Vec::new(), gathered: 0 }
    }

    /// The same memory for another place of the same (tp, pp) coordinate.
    pub fn move_to(self, dp: Group) -> Overlap {
        Overlap { dp, ..self }
    }

    /// Whether there is anybody to exchange anything with.
    pub fn has_group(&self) -> bool {
        self.dp.ranks.len() > 1
    }

    pub fn gathering<'a, D: Device>(&'a mut self, device: &'a D) -> Gathering<'a, D> {
        Gathering { device, gathered: &mut self.gathered }
    }

    pub fn scattering<'a, D: Device>(&'a mut self, device: &'a D) -> Scattering<'a, D> {
        let scattered = self.partition.padded_len;
        Scattering { device, partition: &self.partition, scattered, partial: &mut self.partial }
    }

    /// The working parameters of the committed step are on their way, from the master weights of all shards of the DP group.
    pub fn start_gather<D: Device + Clone>(
        &mut self,
        links: &mut Links,
        stage: &mut Stage<D>,
        own: &Shard<D>,
    ) -> Result<(), CommError> {
        let device = stage.device().clone();
        if !self.has_group() {
            stage.borrow_params(&own.param);
            self.gathered = self.partition.padded_len;
        } else if let Some(comm) = carrier(&device) {
            device.copy(own.param.all(), stage.params_mut().view_mut(own.range.clone()));
            self.gathered = 0;
            comm.start_gather(stage.params_mut())?;
        } else {
            let mut flat = self.take_flat();
            device.read(own.param.all(), &mut flat[own.range.clone()]);
            self.gathered = 0;
            start_all_gather(links, &self.dp, Channel::Dp, flat)?;
        }
        Ok(())
    }

    /// The working parameters are all there on return.
    pub fn finish_gather<D: Device + Clone>(
        &mut self,
        links: &mut Links,
        stage: &mut Stage<D>,
    ) -> Result<(), CommError> {
        let device = stage.device().clone();
        if let Some(comm) = carrier(&device).filter(|_| self.gathered < self.partition.padded_len) {
            self.gathered = self.partition.padded_len;
            return comm.await_gathered(self.gathered);
        }
        if links.is_in_flight() {
            let flat = links.land()?;
            let missing = self.gathered..flat.len();
            device.write(stage.params_mut().view_mut(missing.clone()), &flat[missing]);
            (self.gathered, self.flat) = (flat.len(), flat);
        }
        Ok(())
    }

    /// The last pass over the gradients begins: from here on what is final is summed over the DP group; with `passes_on` the backup holders
    /// get it, too.
    pub fn start_scatter<D: Device + Clone>(
        &mut self,
        links: &mut Links,
        stage: &mut Stage<D>,
        passes_on: bool,
    ) -> Result<(), CommError> {
        self.finish_gather(links, stage)?;
        if !self.has_group() {
            return Ok(());
        }
        let device = stage.device().clone();
        if let Some(comm) = carrier(&device) {
            return comm.start_scatter(stage.grads_mut(), passes_on);
        }
        let (flat, len) = (self.take_flat(), self.partition.padded_len);
        start_reduce_scatter(links, &self.dp, Channel::Dp, flat, len, passes_on)
    }

    /// All gradients are final as they are.
    pub fn scatter_all<D: Device + Clone>(
        &mut self,
        tp: &mut TpGroup<'_>,
        stage: &mut Stage<D>,
    ) -> Result<(), CommError> {
        let device = stage.device().clone();
        self.scattering(&device).after_grads(tp, stage.grads_mut(), 0)
    }

    /// On return this place has the summed gradients of its shard, and of the one that it guards where that is of its DP group.
    pub fn finish_scatter<D: Device + Clone>(
        &mut self,
        links: &mut Links,
        stage: &mut Stage<D>,
        shards: &mut Shards<D>,
    ) -> Result<(), CommError> {
        let device = stage.device().clone();
        if let Some(comm) = device.comm() {
            // What was summed between devices, TP groups' sums too, is there, or this step is not sealed (T-2).
            comm.settle()?;
        }
        if let (Some(_), Some((range, grads))) = (carrier(&device), shards.guarded_grads())
            && self.has_group()
        {
            device.copy(stage.grads().view(range), grads.all_mut());
        }
        if !links.is_in_flight() {
            return Ok(());
        }
        let own = shards.own().range.clone();
        let flat = links.land()?;
        device.write(stage.grads_mut().view_mut(own.clone()), &flat[own]);
        if let Some((range, grads)) = shards.guarded_grads() {
            device.write(grads.all_mut(), &flat[range]);
        }
        self.flat = flat;
        Ok(())
    }

    /// `(padded_len)`. What was in flight when an epoch ended is made anew.
    fn take_flat(&mut self) -> Vec<f32> {
        let mut flat = std::mem::take(&mut self.flat);
        flat.resize(self.partition.padded_len, 0.0);
        flat
    }
}
