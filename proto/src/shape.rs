//! Shapes on the wire. Invariant: a [`Shape`] that came over the wire is as valid as any other.

use toroid_torus::geometry::{Shape, ShapeError};

use crate::generated;

impl From<&Shape> for generated::Shape {
    fn from(shape: &Shape) -> Self {
        generated::Shape {
            tp: shape.tp() as u32,
            pp: shape.pp() as u32,
            dp: shape.dp() as u32,
            dx: shape.dx() as u32,
            dy: shape.dy() as u32,
        }
    }
}

impl TryFrom<&generated::Shape> for Shape {
    type Error = ShapeError;

    fn try_from(s: &generated::Shape) -> Result<Shape, ShapeError> {
        Shape::with_torus(s.tp as usize, s.pp as usize, s.dp as usize, s.dx as usize, s.dy as usize)
    }
}
