//! What the model needs from its TP group.

use crate::device::{Buffer, Device};

/// The TP group of a place. Every rank of the group makes the same calls in the same order.
pub trait TpComm {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Ranks in the group.
    fn size(&self) -> usize;
    /// This place's tp_rank.
    fn rank(&self) -> usize;
    /// Replaces `buf` by the sum over all ranks, the same bits on every one.
    fn all_reduce(&mut self, buf: &mut [f32]) -> Result<(), Self::Error>;
    /// Puts every rank's `own` into `all`, by tp_rank; `all.len() == size * own.len()`.
    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<(), Self::Error>;
    /// [`TpComm::all_reduce`] of a buffer on a device, through the host unless the device does it.
    fn all_reduce_on<D: Device>(&mut self, device: &D, buf: &mut D::Buf) -> Result<(), Self::Error> {
        all_reduce_through_host(self, device, buf)
    }
    /// [`TpComm::all_gather`] of buffers on a device.
    fn all_gather_on<D: Device>(&mut self, device: &D, own: &D::Buf, all: &mut D::Buf) -> Result<(), Self::Error> {
        all_gather_through_host(self, device, own, all)
    }
    /// Called between the operations of a layer: whoever moves anything meanwhile may go on with it. Waits for nothing.
    fn progress(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// [`TpComm::all_reduce`] of a buffer on a device.
pub fn all_reduce_through_host<D: Device, T: TpComm + ?Sized>(
    tp: &mut T,
    device: &D,
    buf: &mut D::Buf,
) -> Result<(), T::Error> {
    device.with_host_mut(buf.all_mut(), |buf| tp.all_reduce(buf))
}

/// [`TpComm::all_gather`] of buffers on a device.
pub fn all_gather_through_host<D: Device, T: TpComm + ?Sized>(
    tp: &mut T,
    device: &D,
    own: &D::Buf,
    all: &mut D::Buf,
) -> Result<(), T::Error> {
    device.with_host(own.all(), |own| device.with_host_mut(all.all_mut(), |all| tp.all_gather(own, all)))
}

/// The group of one rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl TpComm for Alone {
    type Error = std::convert::Infallible;

    fn size(&self) -> usize {
        1
    }
    fn rank(&self) -> usize {
        0
    }
    fn all_reduce(&mut self, _buf: &mut [f32]) -> Result<(), Self::Error> {
        Ok(())
    }
    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<(), Self::Error> {
        all.copy_from_slice(own);
        Ok(())
    }
}
