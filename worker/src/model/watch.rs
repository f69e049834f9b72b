//! What a stage says of its flat buffers while it computes, so that they can be moved meanwhile.

use std::ops::Range;

use super::tp::TpComm;
use crate::device::Device;

/// Called between the operations of a pass, at every place of a TP group at the same points.
pub trait Watch<D: Device, T: TpComm> {
    /// The elements `range` of the working parameters are read from here on. Ranges come in ascending order.
    fn before_params(&mut self, tp: &mut T, params: &mut D::Buf, range: Range<usize>) -> Result<(), T::Error>;

    /// This pass adds nothing more to the gradients from element `from` on. Elements come in descending order.
    fn after_grads(&mut self, tp: &mut T, grads: &mut D::Buf, from: usize) -> Result<(), T::Error>;
}

/// Parameters are all there, and gradients stay where they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl<D: Device, T: TpComm> Watch<D, T> for Unwatched {
    fn before_params(&mut self, _: &mut T, _: &mut D::Buf, _: Range<usize>) -> Result<(), T::Error> {
        Ok(())
    }

    fn after_grads(&mut self, _: &mut T, _: &mut D::Buf, _: usize) -> Result<(), T::Error> {
        Ok(())
    }
}

/// Where it is watched at all.
impl<D: Device, T: TpComm, W: Watch<D, T>> Watch<D, T> for Option<W> {
    fn before_params(&mut self, tp: &mut T, params: &mut D::Buf, range: Range<usize>) -> Result<(), T::Error> {
        self.as_mut().map_or(Ok(()), |watch| watch.before_params(tp, params, range))
    }

    fn after_grads(&mut self, tp: &mut T, grads: &mut D::Buf, from: usize) -> Result<(), T::Error> {
        self.as_mut().map_or(Ok(()), |watch| watch.after_grads(tp, grads, from))
    }
}
