//! Parameters of a stage: its own, those that it is lent, and those of other models in their place.

use crate::device::{Buffer, Device};

/// Working parameters.
pub(super) struct Params<D: Device> {
    /// Not touched, and so without memory on a CPU, as long as others are lent.
    pub own: D::Buf,
    /// The master weights, where a place has all of them.
    pub lent: Option<D::Buf>,
}

/// Parameters of another model of the same shape, which nobody changes.
pub struct Frozen<D: Device> {
    params: Params<D>,
}

impl<D: Device> Frozen<D> {
    /// `padded_len` zeros.
    pub fn new(device: &D, padded_len: usize) -> Frozen<D> {
        Frozen { params: Params { own: device.alloc(padded_len), lent: None } }
    }

    /// `values (padded_len)`, laid out as the stage's partition says.
    pub fn write(&mut self, device: &D, values: &[f32]) {
        device.write(self.params.own.all_mut(), values);
    }

    pub(super) fn exchange(&mut self, other: &mut Params<D>) {
        std::mem::swap(&mut self.params, other);
    }
}

impl<D: Device> Params<D> {
    pub fn current(&mut self) -> &mut D::Buf {
        self.lent.as_mut().unwrap_or(&mut self.own)
    }
}
