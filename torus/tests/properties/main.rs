//! Properties of the pure crate, over all small shapes and over 32 x 64; the tests cite the invariants of the modules that they check.
//!
//! Random choices come from seeds that are part of every message: running a `check` with the seed of a failure replays it.

mod collective;
mod cursor;
mod digest;
mod geometry;
mod init;
mod job;
mod manifest;
mod mixture;
mod partition;
mod pipeline;
mod placement;
mod plan;
mod ppo;
mod resplit;
mod rounds;

use toroid_torus::cursor::splitmix64;
use toroid_torus::geometry::Shape;

/// Every shape of at most `num_places` places, on every torus that it fits.
fn shapes(num_places: usize) -> impl Iterator<Item = Shape> {
    let up_to = move |used: usize| 1..=num_places / used;
    let axes = up_to(1).flat_map(move |tp| up_to(tp).map(move |pp| (tp, pp)));
    let axes = axes.flat_map(move |(tp, pp)| up_to(tp * pp).map(move |dx| (tp, pp, dx)));
    axes.flat_map(move |(tp, pp, dx)| up_to(tp * pp * dx).map(move |dy| torus(tp, pp, dx, dy)))
}

fn torus(tp: usize, pp: usize, dx: usize, dy: usize) -> Shape {
    Shape::with_torus(tp, pp, dx * dy, dx, dy).expect("a valid shape")
}

/// The shape of the large recipe: a torus of 32 x 64.
fn large() -> Shape {
    let shape = torus(8, 4, 4, 16);
    assert_eq!((shape.width(), shape.height()), (32, 64));
    shape
}

/// A random source that a seed replays.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (splitmix64(self.0) % n as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
