//! Places, groups, rows and columns of the torus (design section 3).
//!
//! A job has `W = tp * pp * dp` places on an X by Y torus, `dp = dx * dy`, `X = tp * dx`, `Y = pp * dy`:
//!
//! ```text
//!   x = dp_x * tp + tp_rank      rank = y * X + x        tp 2, pp 2, dp 2 = 2 x 1:   y=0 | 0 1 | 2 3 |
//!   y = dp_y * pp + pp_rank      dp_rank = dp_y * dx + dp_x                          y=1 | 4 5 | 6 7 |
//! ```
//!
//! A TP group is `tp` neighbours in a row, a PP group `pp` neighbours in a column, a DP group a `dx` by `dy` torus of its own.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// How many ways the job is split along each axis of the mesh. All are at least 1 and `dp == dx * dy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Shape {
    tp: usize,
    pp: usize,
    dp: usize,
    dx: usize,
    dy: usize,
}

/// A shape as it is written, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    tp: usize,
    pp: usize,
    dp: usize,
    dx: usize,
    dy: usize,
}

impl TryFrom<Fields> for Shape {
    type Error = ShapeError;

    fn try_from(f: Fields) -> Result<Shape, ShapeError> {
        Shape::with_torus(f.tp, f.pp, f.dp, f.dx, f.dy)
    }
}

/// A place by the axes of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub tp: usize,
    pub pp: usize,
    pub dp: usize,
}

/// A place by its row and column on the torus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coord {
    pub x: usize,
    pub y: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("a shape needs tp, pp and dp of at least 1, found tp {tp}, pp {pp}, dp {dp}")]
    Zero { tp: usize, pp: usize, dp: usize },
    #[error(
        "the torus of the DP group must have dx * dy = dp places, found dx {dx} * dy {dy} and dp {dp}; leave dx and dy out to have them chosen"
    )]
    Torus { dx: usize, dy: usize, dp: usize },
    #[error("a job has at most {max} places, found tp {tp} * pp {pp} * dp {dp}")]
    TooLarge { tp: usize, pp: usize, dp: usize, max: usize },
}

/// The most places that a job may have.
pub const MAX_PLACES: usize = 1 << 17;

impl Shape {
    /// `dx` and `dy` are chosen as near to square as divides, the longer side along the row.
    pub fn new(tp: usize, pp: usize, dp: usize) -> Result<Shape, ShapeError> {
        // Looking for divisors takes long where dp is absurd: the limits come first.
        Shape::with_torus(tp, pp, dp, dp, 1)?;
        let dy = (1..=dp).take_while(|d| d * d <= dp).filter(|d| dp.is_multiple_of(*d)).last().unwrap_or(1);
        Shape::with_torus(tp, pp, dp, dp / dy, dy)
    }

    pub fn with_torus(tp: usize, pp: usize, dp: usize, dx: usize, dy: usize) -> Result<Shape, ShapeError> {
        if tp == 0 || pp == 0 || dp == 0 {
            return Err(ShapeError::Zero { tp, pp, dp });
        }
        let world = tp.checked_mul(pp).and_then(|n| n.checked_mul(dp));
        if world.is_none_or(|n| n > MAX_PLACES) {
            return Err(ShapeError::TooLarge { tp, pp, dp, max: MAX_PLACES });
        }
        if dx.checked_mul(dy) != Some(dp) {
            return Err(ShapeError::Torus { dx, dy, dp });
        }
        Ok(Shape { tp, pp, dp, dx, dy })
    }

    pub fn tp(&self) -> usize {
        self.tp
    }
    pub fn pp(&self) -> usize {
        self.pp
    }
    pub fn dp(&self) -> usize {
        self.dp
    }
    pub fn dx(&self) -> usize {
        self.dx
    }
    pub fn dy(&self) -> usize {
        self.dy
    }
    /// Number of places.
    pub fn world(&self) -> usize {
        self.tp * self.pp * self.dp
    }
    /// Length of a row of the torus.
    pub fn width(&self) -> usize {
        self.tp * self.dx
    }
    /// Length of a column of the torus.
    pub fn height(&self) -> usize {
        self.pp * self.dy
    }

    pub fn coord(&self, rank: usize) -> Coord {
        assert!(rank < self.world(), "rank {rank} is outside of {self}");
        Coord { x: rank % self.width(), y: rank / self.width() }
    }

    pub fn place(&self, rank: usize) -> Place {
        let Coord { x, y } = self.coord(rank);
        Place { tp: x % self.tp, pp: y % self.pp, dp: (y / self.pp) * self.dx + x / self.tp }
    }

    pub fn rank(&self, place: Place) -> usize {
        assert!(place.tp < self.tp && place.pp < self.pp && place.dp < self.dp, "{place:?} is outside of {self}");
        let (dp_x, dp_y) = (place.dp % self.dx, place.dp / self.dx);
        (dp_y * self.pp + place.pp) * self.width() + dp_x * self.tp + place.tp
    }

    /// Ranks of the TP group of `rank`, by tp_rank.
    pub fn tp_group(&self, rank: usize) -> Vec<usize> {
        let place = self.place(rank);
        (0..self.tp).map(|tp| self.rank(Place { tp, ..place })).collect()
    }

    /// Ranks of the PP group of `rank`, by pp_rank.
    pub fn pp_group(&self, rank: usize) -> Vec<usize> {
        let place = self.place(rank);
        (0..self.pp).map(|pp| self.rank(Place { pp, ..place })).collect()
    }

    /// Ranks of the DP group of `rank`, by dp_rank.
    pub fn dp_group(&self, rank: usize) -> Vec<usize> {
        let place = self.place(rank);
        (0..self.dp).map(|dp| self.rank(Place { dp, ..place })).collect()
    }

    /// Ranks of the row of `rank`, by x.
    pub fn row(&self, rank: usize) -> Vec<usize> {
        let y = self.coord(rank).y;
        (0..self.width()).map(|x| y * self.width() + x).collect()
    }

    /// Ranks of the column of `rank`, by y.
    pub fn column(&self, rank: usize) -> Vec<usize> {
        let x = self.coord(rank).x;
        (0..self.height()).map(|y| y * self.width() + x).collect()
    }
}

impl Shape {
    /// Ranks that `rank` is connected to: its row and its column, which hold its TP and PP groups, and its neighbours in the DP group,
    /// which hold the other copies of its shards.
    pub fn peers(&self, rank: usize) -> BTreeSet<usize> {
        let mut peers: BTreeSet<usize> = self.row(rank).into_iter().chain(self.column(rank)).collect();
        peers.extend(self.dp_neighbours(rank));
        peers.remove(&rank);
        peers
    }

    /// Whether two ranks are connected to each other.
    pub fn is_peer(&self, rank: usize, other: usize) -> bool {
        let (here, there) = (self.coord(rank), self.coord(other));
        rank != other && (here.x == there.x || here.y == there.y || self.dp_neighbours(rank).contains(&other))
    }

    /// The ranks before and after `rank` in its DP group, around the group.
    fn dp_neighbours(&self, rank: usize) -> [usize; 2] {
        let place = self.place(rank);
        [1, self.dp - 1].map(|by| self.rank(Place { dp: (place.dp + by) % self.dp, ..place }))
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tp {} x pp {} x dp {} on a {} x {} torus", self.tp, self.pp, self.dp, self.width(), self.height())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_a_peer_is_among_the_peers() {
        for (tp, pp, dp) in [(1, 1, 1), (2, 1, 3), (2, 2, 2), (1, 3, 5), (2, 2, 6), (1, 1, 12)] {
            let shape = Shape::new(tp, pp, dp).expect("a valid shape");
            for rank in 0..shape.world() {
                let peers: BTreeSet<usize> = (0..shape.world()).filter(|other| shape.is_peer(rank, *other)).collect();
                assert_eq!(peers, shape.peers(rank), "rank {rank} of {shape}");
            }
        }
    }

    /// The drawing in the module docs.
    #[test]
    fn ranks_are_by_row() {
        let shape = Shape::new(2, 2, 2).expect("a valid shape");
        assert_eq!(shape.to_string(), "tp 2 x pp 2 x dp 2 on a 4 x 2 torus");
        assert_eq!(shape.place(6), Place { tp: 0, pp: 1, dp: 1 });
        assert_eq!((shape.row(5), shape.column(5)), (vec![4, 5, 6, 7], vec![1, 5]));
        assert_eq!((shape.tp_group(5), shape.pp_group(5), shape.dp_group(5)), (vec![4, 5], vec![1, 5], vec![5, 7]));
    }
}
