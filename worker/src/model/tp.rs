//! What the model needs from its TP group.

/// The TP group of a place, in host memory. Every rank of the group makes the same calls in the same order.
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
    /// Called between the operations of a layer: whoever moves anything meanwhile may go on with it. Waits for nothing.
    fn progress(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
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
