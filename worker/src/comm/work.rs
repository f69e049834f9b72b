//! What a call wants moved, as the links see it: bytes to send, and places for what comes.
//!
//! Deliberately absent: order and peers. Who admits a transfer to a link says those.

use super::Transfer;

/// Where a message goes.
pub(super) enum Landing<'a> {
    Copy(&'a mut [u8]),
    /// Each element becomes itself + the one that came.
    Add(&'a mut [f32]),
}

impl Landing<'_> {
    pub fn len_bytes(&self) -> usize {
        match self {
            Landing::Copy(buffer) => buffer.len(),
            Landing::Add(sum) => size_of_val(&**sum),
        }
    }
}

/// Whose transfer it is, and its index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Id {
    /// The running call's.
    Call(usize),
    /// The collective's that is in flight beside the calls.
    Flight(usize),
}

/// Everything that the links may move at a time.
pub(super) struct Works<'a> {
    pub call: &'a mut dyn Work,
    pub flight: Option<&'a mut dyn Work>,
}

const LANDED: &str = "a collective has no transfers on the links once it is over";

impl Works<'_> {
    pub fn sent(&self, transfer: Id) -> &[u8] {
        match transfer {
            Id::Call(index) => self.call.sent(index),
            Id::Flight(index) => self.flight.as_ref().expect(LANDED).sent(index),
        }
    }

    pub fn landing(&mut self, transfer: Id) -> Landing<'_> {
        match transfer {
            Id::Call(index) => self.call.landing(index),
            Id::Flight(index) => self.flight.as_mut().expect(LANDED).landing(index),
        }
    }

    pub fn complete(&mut self, transfer: Id) {
        match transfer {
            Id::Call(index) => self.call.complete(index),
            Id::Flight(index) => self.flight.as_mut().expect(LANDED).complete(index),
        }
    }
}

/// The transfers of a call, by index.
pub(super) trait Work {
    /// Of a send. The same bytes until it is complete.
    fn sent(&self, transfer: usize) -> &[u8];
    /// Of a receive.
    fn landing(&mut self, transfer: usize) -> Landing<'_>;
    fn complete(&mut self, transfer: usize);
}

/// Transfers that all run at once.
pub(super) struct Transfers<'a, 't>(pub &'a mut [Transfer<'t>]);

impl Work for Transfers<'_, '_> {
    fn sent(&self, transfer: usize) -> &[u8] {
        match &self.0[transfer] {
            Transfer::Send { data, .. } => data,
            Transfer::Recv { .. } | Transfer::Add { .. } => unreachable!("a receive is not sent"),
        }
    }

    fn landing(&mut self, transfer: usize) -> Landing<'_> {
        match &mut self.0[transfer] {
            Transfer::Recv { buf, .. } => Landing::Copy(buf),
            Transfer::Add { sum, .. } => Landing::Add(sum),
            Transfer::Send { .. } => unreachable!("a send does not receive"),
        }
    }

    fn complete(&mut self, _: usize) {}
}

/// A call that moves nothing of its own.
pub(super) struct Nothing;

impl Work for Nothing {
    fn sent(&self, _: usize) -> &[u8] {
        unreachable!("nothing is sent")
    }

    fn landing(&mut self, _: usize) -> Landing<'_> {
        unreachable!("nothing is received")
    }

    fn complete(&mut self, _: usize) {}
}

const F32: usize = size_of::<f32>();

/// Adds a message to a buffer in whatever pieces it comes.
#[derive(Debug, Default)]
pub(super) struct Adder {
    /// The first bytes of an element whose others have not come.
    carry: [u8; F32],
}

impl Adder {
    /// `bytes` are those of the message from `at` on.
    pub fn add(&mut self, sum: &mut [f32], at: usize, bytes: &[u8]) {
        let (mut element, carried) = (at / F32, at % F32);
        let mut rest = bytes;
        if carried > 0 {
            let (head, tail) = rest.split_at(rest.len().min(F32 - carried));
            self.carry[carried..carried + head.len()].copy_from_slice(head);
            rest = tail;
            if carried + head.len() < F32 {
                return;
            }
            sum[element] += f32::from_le_bytes(self.carry);
            element += 1;
        }
        let (whole, part) = rest.as_chunks::<F32>();
        for (own, other) in sum[element..].iter_mut().zip(whole) {
            *own += f32::from_le_bytes(*other);
        }
        self.carry[..part.len()].copy_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_added_once_however_it_is_cut() {
        let came: Vec<f32> = (0..50).map(|i| i as f32 + 0.5).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&came);
        let expected: Vec<f32> = came.iter().map(|v| 1000.0 + v).collect();
        for first in 0..bytes.len() {
            for second in [0, 1, 2, 3, 4, 5, 7, 64] {
                let cuts = [0, first, (first + second).min(bytes.len()), bytes.len()];
                let (mut sum, mut adder) = (vec![1000.0; came.len()], Adder::default());
                for cut in cuts.windows(2) {
                    adder.add(&mut sum, cut[0], &bytes[cut[0]..cut[1]]);
                }
                assert_eq!(sum, expected, "cut at {cuts:?}");
            }
        }
    }
}
