//! Runs the program of a collective over links, while the caller waits.
//!
//! Deliberately absent: what runs when; [`toroid_torus::collective::Run`] says that.

use super::program::Program;
use super::work::Id;
use super::{Channel, CommError, Links};

impl Links {
    /// Runs `program`; `ranks` are those of the members.
    pub(super) fn execute(
        &mut self,
        program: &mut Program<&mut [f32]>,
        ranks: &[usize],
        channel: Channel,
    ) -> Result<(), CommError> {
        self.call(channel.name(), program, |links, program| {
            links.hold_receives(&program.run, ranks, channel);
            loop {
                let before = program.run.num_done();
                while let Some(started) = program.start_next() {
                    links.admit(program, Id::Call(started.task), ranks[started.member], channel, &started)?;
                }
                if program.run.is_over() {
                    return Ok(());
                }
                if program.run.num_done() > before {
                    // What was done may let another task go on.
                    continue;
                }
                links.start(program)?;
                if program.run.num_done() == before {
                    links.turn(program, true)?;
                }
            }
        })
    }
}
