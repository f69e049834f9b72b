//! Which lines of a job have communicators, from what all its places said when the epoch began.
//!
//! Deliberately absent: everything that has to be asked for: links, devices, NCCL.

use std::fmt;

use toroid_torus::geometry::Shape;

use super::Collectives;

/// A group that has a communicator of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    Tp,
    /// Of the DP group.
    Row,
    /// Of the DP group.
    Column,
}

impl Line {
    pub const ALL: [Line; 3] = [Line::Tp, Line::Row, Line::Column];

    /// Ranks of the line that `rank` is in, in their order there.
    pub fn members(self, shape: &Shape, rank: usize) -> Vec<usize> {
        let (group, dp, dx) = (shape.dp_group(rank), shape.place(rank).dp, shape.dx());
        match self {
            Line::Tp => shape.tp_group(rank),
            Line::Row => group[dp / dx * dx..][..dx].to_vec(),
            Line::Column => group.into_iter().skip(dp % dx).step_by(dx).collect(),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Line::Tp => "TP group",
            Line::Row => "row of the DP group",
            Line::Column => "column of the DP group",
        })
    }
}

/// Of a communicator; no two have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 16]);

/// One GPU in the world, as its driver names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gpu(pub [u8; 16]);

/// Why a place cannot be in a communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// It computes on something else.
    Gpu,
    /// There is no library on its machine.
    Library,
    /// Its user does not want it.
    Forbidden,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lack::Gpu => "has no GPU",
            Lack::Library => "has no NCCL library (libnccl.so)",
            Lack::Forbidden => "was started with `--collectives host`",
        })
    }
}

/// What a place says when an epoch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    pub wish: Collectives,
    /// Its GPU, and the version of its library.
    pub has: Result<(Gpu, u32), Lack>,
    /// By line: what it still has for this very place and size, idle.
    pub kept: [Option<Key>; 3],
}

impl Statement {
    /// Of a place without a GPU.
    pub fn without_gpu(wish: Collectives) -> Statement {
        Statement { wish, has: Err(Lack::Gpu), kept: [None; 3] }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineDecision {
    /// No communicator: it has one member, or its group goes through the host.
    Without,
    /// All members have it.
    Keep(Key),
    Make,
}

/// What a place does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// By line.
    pub lines: [LineDecision; 3],
    /// Why the sums of the TP group go through the host; `None`: they do not.
    pub tp_through_host: Option<String>,
    /// The same of the DP group.
    pub dp_through_host: Option<String>,
}

impl Decision {
    pub fn carries_tp(&self) -> bool {
        self.tp_through_host.is_none()
    }

    pub fn carries_dp(&self) -> bool {
        self.dp_through_host.is_none()
    }
}

/// `statements` are those of all places, by rank (N-1).
///
/// # Errors
///
/// Somebody in a group of `rank` demands NCCL, and the group cannot have it.
pub fn decide(shape: &Shape, statements: &[Statement], rank: usize) -> Result<Decision, String> {
    assert_eq!(statements.len(), shape.world(), "a statement of each place");
    let through_host = |what: &str, group: Vec<usize>| -> Result<Option<String>, String> {
        if group.len() == 1 {
            return Ok(Some("it has one member".into()));
        }
        let why = obstacle(statements, &group);
        let demands = group.iter().find(|r| statements[**r].wish == Collectives::Nccl);
        match (why, demands) {
            (Some(why), Some(r)) => Err(format!(
                "rank {r} was started with `--collectives nccl`, but its {what} group cannot use NCCL: {why}; \
                 mend that, or start the workers with `--collectives auto`"
            )),
            (why, _) => Ok(why),
        }
    };
    let tp_through_host = through_host("TP", shape.tp_group(rank))?;
    let dp_through_host = through_host("DP", shape.dp_group(rank))?;
    let lines = Line::ALL.map(|line| {
        let is_through_host = if line == Line::Tp { &tp_through_host } else { &dp_through_host }.is_some();
        let members = line.members(shape, rank);
        if is_through_host || members.len() == 1 {
            return LineDecision::Without;
        }
        let kept = |r: usize| statements[r].kept[line as usize];
        // N-2: all or nobody.
        match kept(members[0]) {
            Some(key) if members.iter().all(|r| kept(*r) == Some(key)) => LineDecision::Keep(key),
            _ => LineDecision::Make,
        }
    });
    Ok(Decision { lines, tp_through_host, dp_through_host })
}

/// Why `group` cannot have communicators.
fn obstacle(statements: &[Statement], group: &[usize]) -> Option<String> {
    for &r in group {
        let lack =
            if statements[r].wish == Collectives::Host { Some(Lack::Forbidden) } else { statements[r].has.err() };
        if let Some(lack) = lack {
            return Some(format!("rank {r} {lack}"));
        }
    }
    let has: Vec<(usize, Gpu, u32)> =
        group.iter().filter_map(|r| statements[*r].has.ok().map(|(gpu, version)| (*r, gpu, version))).collect();
    let (first, _, version) = has[0];
    if let Some((r, _, other)) = has.iter().find(|(_, _, other)| *other != version) {
        return Some(format!("rank {first} has NCCL {} and rank {r} {}", shown(version), shown(*other)));
    }
    let mut by_gpu: Vec<(Gpu, usize)> = has.iter().map(|(r, gpu, _)| (*gpu, *r)).collect();
    by_gpu.sort();
    let shared = by_gpu.windows(2).find(|pair| pair[0].0 == pair[1].0);
    shared.map(|pair| format!("ranks {} and {} share a GPU", pair[0].1, pair[1].1))
}

/// As NCCL counts since 2.9.
pub(crate) fn shown(version: u32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Option<Key> {
        Some(Key([n; 16]))
    }

    fn all(shape: &Shape) -> Vec<Statement> {
        let of =
            |r: usize| Statement { wish: Collectives::Auto, has: Ok((Gpu([r as u8; 16]), 22_703)), kept: [None; 3] };
        (0..shape.world()).map(of).collect()
    }

    fn shape(tp: usize, pp: usize, dx: usize, dy: usize) -> Shape {
        Shape::with_torus(tp, pp, dx * dy, dx, dy).expect("a shape")
    }

    #[test]
    fn lines_are_rows_and_columns_of_the_torus() {
        let shape = shape(2, 2, 2, 3);
        for rank in 0..shape.world() {
            let at = |line: Line| line.members(&shape, rank);
            assert!(at(Line::Tp).contains(&rank) && at(Line::Row).contains(&rank) && at(Line::Column).contains(&rank));
            assert_eq!((at(Line::Tp).len(), at(Line::Row).len(), at(Line::Column).len()), (2, 2, 3));
            let same = |ranks: Vec<usize>, of: fn(&Shape, usize) -> usize| {
                ranks.iter().all(|r| of(&shape, *r) == of(&shape, rank))
            };
            let row = |shape: &Shape, r| shape.coord(r).y;
            assert!(same(at(Line::Tp), row) && same(at(Line::Row), row), "{rank}: along a row");
            assert!(same(at(Line::Column), |shape, r| shape.coord(r).x), "{rank}: along a column");
            for line in Line::ALL {
                assert!(
                    at(line).iter().all(|r| line.members(&shape, *r) == at(line)),
                    "{rank}: all agree on the {line}"
                );
            }
        }
    }

    #[test]
    fn all_members_come_to_the_same_decision() {
        let shape = shape(2, 2, 2, 2);
        for (changed, change) in [(5, Lack::Gpu), (0, Lack::Library), (15, Lack::Forbidden)] {
            let mut statements = all(&shape);
            statements[changed].has = Err(change);
            for rank in 0..shape.world() {
                let decision = decide(&shape, &statements, rank).expect("nobody demands it");
                let tp = shape.tp_group(rank).contains(&changed);
                let dp = shape.dp_group(rank).contains(&changed);
                assert_eq!(
                    (decision.carries_tp(), decision.carries_dp()),
                    (!tp, !dp),
                    "{rank} where {changed} lacks it"
                );
                let expected = |lacks: bool| if lacks { LineDecision::Without } else { LineDecision::Make };
                assert_eq!(
                    decision.lines,
                    [tp, dp, dp].map(expected),
                    "the whole DP group: a member of another row, too"
                );
            }
        }
    }

    #[test]
    fn whoever_shares_a_gpu_goes_through_the_host_and_is_told_why() {
        let shape = shape(2, 1, 2, 1);
        let check = |statements: &[Statement], rank, expected: [Option<&str>; 2]| {
            let decision = decide(&shape, statements, rank).expect("nobody demands it");
            assert_eq!([decision.tp_through_host.as_deref(), decision.dp_through_host.as_deref()], expected);
        };
        let mut statements = all(&shape);
        statements[1].has = statements[0].has;
        check(&statements, 0, [Some("ranks 0 and 1 share a GPU"), None]);
        check(&statements, 2, [None, None]);
        statements[1].has = Ok((Gpu([9; 16]), 22_602));
        check(
            &statements,
            1,
            [Some("rank 0 has NCCL 2.27.3 and rank 1 2.26.2"), Some("rank 1 has NCCL 2.26.2 and rank 3 2.27.3")],
        );
        statements[1].wish = Collectives::Host;
        check(&statements, 0, [Some("rank 1 was started with `--collectives host`"), None]);
        statements[0].wish = Collectives::Nccl;
        let error = decide(&shape, &statements, 1).expect_err("rank 0 demands it");
        for words in [
            "rank 0 was started with `--collectives nccl`",
            "TP group",
            "rank 1 was started with",
            "`--collectives auto`",
        ] {
            assert!(error.contains(words), "`{words}` is not in: {error}");
        }
        assert!(decide(&shape, &statements, 3).is_ok(), "its own groups have what they need");
    }

    #[test]
    fn a_communicator_is_kept_by_all_or_by_nobody() {
        let shape = shape(1, 1, 3, 2);
        let mut statements = all(&shape);
        for rank in 0..6 {
            statements[rank].kept = [None, key(10 + (rank / 3) as u8), key(20 + (rank % 3) as u8)];
        }
        let lines = |statements: &[Statement], rank| decide(&shape, statements, rank).expect("possible").lines;
        let (keep, make) = (|n| LineDecision::Keep(Key([n; 16])), LineDecision::Make);
        assert_eq!(lines(&statements, 4), [LineDecision::Without, keep(11), keep(21)]);
        // A newcomer at 4: its row and its column are made, no other.
        statements[4].kept = [None; 3];
        for (rank, expected) in
            [(4, [make, make]), (3, [make, keep(20)]), (1, [keep(10), make]), (0, [keep(10), keep(20)])]
        {
            assert_eq!(lines(&statements, rank)[1..], expected, "rank {rank}");
        }
        // Two halves of a line that have another each.
        statements[4].kept = [None, key(12), key(21)];
        assert_eq!(lines(&statements, 3)[1..], [make, keep(20)]);
        assert_eq!(lines(&statements, 4)[1..], [make, keep(21)]);
    }
}
