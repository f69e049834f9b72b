//! Groups partition the ranks, and ranks, places and coordinates agree.

use toroid_torus::geometry::{MAX_PLACES, Place, Shape, ShapeError};

use crate::{large, shapes};

/// Every rank is in exactly one of the groups that `group` gives, each of `len` ranks, and its members agree on it.
fn check_partition(shape: &Shape, what: &str, len: usize, group: impl Fn(&Shape, usize) -> Vec<usize>) {
    let mut groups_of = vec![0; shape.world()];
    for rank in 0..shape.world() {
        let members = group(shape, rank);
        assert_eq!(members.len(), len, "{what} group of rank {rank} of {shape}");
        assert!(members.contains(&rank), "{what} group {members:?} of rank {rank} of {shape} lacks it");
        if members[0] == rank {
            members.iter().for_each(|r| groups_of[*r] += 1);
        }
    }
    assert!(groups_of.iter().all(|n| *n == 1), "{what} groups of {shape}: groups by rank {groups_of:?}");
}

fn check(shape: &Shape) {
    assert_eq!(shape.width() * shape.height(), shape.world(), "{shape}");
    for rank in 0..shape.world() {
        let (place, coord) = (shape.place(rank), shape.coord(rank));
        assert_eq!(shape.rank(place), rank, "{shape}");
        assert_eq!(coord.y * shape.width() + coord.x, rank, "{shape}");
        assert_eq!((coord.x % shape.tp(), coord.y % shape.pp()), (place.tp, place.pp), "rank {rank} of {shape}");
        let dp = (coord.y / shape.pp()) * shape.dx() + coord.x / shape.tp();
        assert_eq!(dp, place.dp, "rank {rank} of {shape}");
    }
    check_partition(shape, "TP", shape.tp(), Shape::tp_group);
    check_partition(shape, "PP", shape.pp(), Shape::pp_group);
    check_partition(shape, "DP", shape.dp(), Shape::dp_group);
    check_partition(shape, "row", shape.width(), Shape::row);
    check_partition(shape, "column", shape.height(), Shape::column);
}

#[test]
fn all_small_shapes_and_the_large_one() {
    shapes(64).for_each(|shape| check(&shape));
    check(&large());
}

#[test]
fn groups_are_by_their_rank_and_neighbours_on_the_torus() {
    for shape in shapes(64) {
        for rank in 0..shape.world() {
            let place = shape.place(rank);
            assert_eq!(shape.tp_group(rank)[place.tp], rank);
            assert_eq!(shape.pp_group(rank)[place.pp], rank);
            assert_eq!(shape.dp_group(rank)[place.dp], rank);
            assert!(shape.tp_group(rank).windows(2).all(|w| w[1] == w[0] + 1), "{shape}: TP is along the row");
            assert!(
                shape.pp_group(rank).windows(2).all(|w| w[1] == w[0] + shape.width()),
                "{shape}: PP is along the column"
            );
        }
    }
}

#[test]
fn the_torus_is_as_near_to_square_as_divides() {
    for (dp, dx, dy) in [(1, 1, 1), (2, 2, 1), (6, 3, 2), (7, 7, 1), (12, 4, 3), (36, 6, 6), (2048, 64, 32)] {
        let shape = Shape::new(1, 1, dp).expect("a valid shape");
        assert_eq!((shape.dx(), shape.dy()), (dx, dy), "dp {dp}");
    }
}

#[test]
fn impossible_shapes_are_refused() {
    assert_eq!(Shape::new(1, 0, 2), Err(ShapeError::Zero { tp: 1, pp: 0, dp: 2 }));
    assert_eq!(Shape::new(1, 1, 0), Err(ShapeError::Zero { tp: 1, pp: 1, dp: 0 }));
    assert_eq!(Shape::with_torus(1, 1, 6, 4, 2), Err(ShapeError::Torus { dx: 4, dy: 2, dp: 6 }));
    let (tp, pp, dp) = (2, MAX_PLACES, 1);
    assert_eq!(Shape::new(tp, pp, dp), Err(ShapeError::TooLarge { tp, pp, dp, max: MAX_PLACES }));
    assert!(matches!(Shape::new(usize::MAX, usize::MAX, 2), Err(ShapeError::TooLarge { .. })));
    assert!(Shape::new(1, 1, MAX_PLACES).is_ok());
}

#[test]
fn a_shape_is_checked_as_it_is_read() {
    let shape = Shape::new(2, 1, 6).expect("a valid shape");
    let json = serde_json::to_string(&shape).expect("a shape is JSON");
    assert_eq!(json, r#"{"tp":2,"pp":1,"dp":6,"dx":3,"dy":2}"#);
    assert_eq!(serde_json::from_str::<Shape>(&json).expect("its own JSON"), shape);
    let error = serde_json::from_str::<Shape>(&json.replace(r#""dx":3"#, r#""dx":0"#)).expect_err("no such torus");
    assert!(error.to_string().contains("dx 0 * dy 2 and dp 6"), "{error}");
}

#[test]
#[should_panic(expected = "is outside of tp 2 x pp 1 x dp 2")]
fn a_place_outside_is_a_bug() {
    Shape::new(2, 1, 2).expect("a valid shape").rank(Place { tp: 2, pp: 0, dp: 0 });
}
