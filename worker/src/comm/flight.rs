//! A collective that goes on while the rank computes: the gradients' reduce-scatter under the last backward, the parameters' all-gather
//! under the next forward.
//!
//! ```text
//!   start_reduce_scatter -> supply, supply, ... -> land           start_all_gather -> await_range, await_range, ... -> land
//!                           ^ values that are final now                               ^ values that are needed now
//! ```
//!
//! There is at most one. It owns its buffer, so every call can move it on, whatever else the caller has borrowed: a rank that waits for
//! its TP group serves its DP group meanwhile, without which the two groups' waits could close a circle. The copy in and out costs one
//! pass over memory, which moving to and from a GPU costs anyhow.
//!
//! Deliberately absent: a thread of its own. It moves on in every call and in [`Links::progress`]; with as many workers as cores
//! such a thread would take its core from one that computes.

use std::ops::Range;

use super::program::Flight;
use super::work::Nothing;
use super::{CommError, Links};

const NONE: &str = "no collective is in flight";

impl Links {
    pub(super) fn set_off(&mut self, flight: Flight) -> Result<(), CommError> {
        assert!(self.flight.is_none(), "a collective is in flight already");
        self.call(flight.name, &mut Nothing, |links, work| {
            links.hold_receives(&flight.program.run, &flight.ranks, flight.channel);
            links.flight = Some(flight);
            links.start(work)
        })
    }

    /// This member's values from element `from` on, which `write` puts into the buffer, go into the collective, as far as they did not before.
    pub fn supply(&mut self, from: usize, write: impl FnOnce(&mut [f32])) -> Result<(), CommError> {
        let program = &mut self.flight.as_mut().expect(NONE).program;
        write(&mut program.buf[from..program.run.final_from()]);
        program.run.lower(from);
        self.progress()
    }

    /// The elements of `range` as the collective leaves them, when it does.
    pub fn await_range(&mut self, range: Range<usize>) -> Result<&[f32], CommError> {
        self.wait_for_flight(|flight| flight.program.run.has_written(&range))?;
        Ok(&self.flight.as_ref().expect(NONE).program.buf[range])
    }

    /// Waits for its end, and gives the buffer back.
    pub fn land(&mut self) -> Result<Vec<f32>, CommError> {
        self.wait_for_flight(|flight| flight.program.run.is_over())?;
        Ok(self.flight.take().expect(NONE).program.buf)
    }

    pub fn is_in_flight(&self) -> bool {
        self.flight.is_some()
    }

    fn wait_for_flight(&mut self, is_enough: impl Fn(&Flight) -> bool) -> Result<(), CommError> {
        let name = self.flight.as_ref().expect(NONE).name;
        self.call(name, &mut Nothing, |links, work| {
            links.start(work)?;
            loop {
                let flight = links.flight.as_mut().expect(NONE);
                flight.is_waited_for = !is_enough(flight);
                if !flight.is_waited_for {
                    return Ok(());
                }
                links.turn(work, true)?;
            }
        })
    }
}
