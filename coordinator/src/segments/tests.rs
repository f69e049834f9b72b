//! Leaders that come, write, drop rows and are replaced, over a folder and over a bucket.

use std::fs::{self, OpenOptions};

use toroid_torus::owner::OWNER_NAME;

use super::played::Objects;
use super::shelf::FOLDER;
use super::*;

fn owner() -> OwnerId {
    OwnerId::from_random([7; 16])
}

/// Where the checkpoints of a job are, as its first worker claims it.
enum Root {
    Folder(tempfile::TempDir),
    Bucket(Objects),
}

impl Root {
    fn folder() -> Root {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(OWNER_NAME), Owner::new(owner(), "j-1", "j", 1).to_json()).unwrap();
        Root::Folder(root)
    }

    fn bucket() -> Root {
        Root::Bucket(Objects::of(owner()))
    }

    fn both() -> [Root; 2] {
        [Root::folder(), Root::bucket()]
    }

    fn path(&self) -> &Path {
        match self {
            Root::Folder(root) => root.path(),
            Root::Bucket(_) => panic!("it is no folder"),
        }
    }

    fn names(&self, prefix: &str) -> usize {
        let names = match self {
            Root::Folder(root) => folder::Folder::new(root.path().to_str().unwrap()).names().unwrap(),
            Root::Bucket(objects) => objects.names().unwrap(),
        };
        names.iter().filter(|name| name.starts_with(prefix)).count()
    }
}

fn of_term(root: &Root, term: u64) -> Segments {
    let term = Term::new(term);
    match root {
        Root::Folder(root) => {
            let segments = Segments::new(root.path().to_str().unwrap(), owner(), term).unwrap();
            Segments { segment_bytes: 200, ..segments }
        }
        Root::Bucket(objects) => Segments::played(objects, owner(), term),
    }
}

fn row(step: u64, by: u64) -> (u64, String) {
    (step, format!("{step},{by},\"\"\n"))
}

fn rows(steps: std::ops::RangeInclusive<u64>, by: u64) -> Vec<(u64, String)> {
    steps.map(|step| row(step, by)).collect()
}

/// What whoever leads next finds.
fn seen(root: &Root) -> String {
    let reader = of_term(root, u64::MAX);
    let mut text = Vec::new();
    if let Some(found) = reader.find().unwrap() {
        reader.copy(&found, &mut text).unwrap();
    }
    String::from_utf8(text).unwrap()
}

fn text(rows: &[(u64, String)]) -> String {
    rows.iter().map(|(_, row)| row.as_str()).collect()
}

fn lead(root: &Root, term: u64) -> Segments {
    let mut segments = of_term(root, term);
    if let Some(found) = segments.find().unwrap() {
        segments.take_over(found).unwrap();
    }
    segments
}

/// Of the rows behind the head.
fn place(root: &Root, leader: &Segments) -> (std::path::PathBuf, u64, u64) {
    let head = leader.head();
    (root.path().join(FOLDER).join(&head.name), head.start, head.end)
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Leaders come, write, drop rows and are replaced, some of them before their first head is there; those that were replaced go on at any time, with
/// all that a leader may do, what they had found long ago included.
#[test]
fn t8_t13_the_newest_leaders_rows_are_all_that_counts_whatever_earlier_ones_do() {
    for seed in 0..120 {
        let root = if seed % 2 == 0 { Root::folder() } else { Root::bucket() };
        let mut random = Random(seed);
        let mut model: Vec<(u64, String)> = Vec::new();
        let mut term = 1;
        let mut leader = lead(&root, term);
        let (mut deposed, mut late) = (Vec::<Segments>::new(), Vec::<(Segments, Found)>::new());
        for _ in 0..60 {
            match random.below(10) {
                0..=3 => {
                    let newest = model.last().map_or(0, |(step, _)| *step);
                    let new = rows(newest + 1..=newest + 1 + random.below(12), term);
                    leader.write(&new).unwrap();
                    model.extend(new);
                }
                4 => {
                    let keep = random.below(model.len() as u64 + 2);
                    leader.cut(keep);
                    leader.write(&[]).unwrap();
                    model.truncate(usize::try_from(keep).unwrap().min(model.len()));
                }
                5 => {
                    term += 1;
                    // One that finds what there is, and stands still before it writes.
                    if random.below(2) == 0 {
                        let candidate = of_term(&root, term);
                        late.extend(candidate.find().unwrap().map(|found| (candidate, found)));
                        term += 1;
                    }
                    deposed.push(std::mem::replace(&mut leader, lead(&root, term)));
                    // A new leader that has found nothing has no head yet.
                    if model.is_empty() {
                        deposed.clear();
                        late.clear();
                    }
                }
                6 if !late.is_empty() => {
                    let (mut candidate, found) = late.swap_remove(random.below(late.len() as u64) as usize);
                    // Whether that fails is nothing to anybody.
                    let _ = candidate.take_over(found);
                    deposed.push(candidate);
                }
                _ if !deposed.is_empty() => {
                    let which = random.below(deposed.len() as u64) as usize;
                    let old = &mut deposed[which];
                    if random.below(3) == 0 {
                        old.cut(random.below(old.newest + 1));
                    }
                    let from = old.keep.unwrap_or(old.newest) + 1;
                    let _ = old.write(&rows(from..=from + random.below(12), 999));
                }
                _ => {}
            }
            assert_eq!(seen(&root), text(&model), "seed {seed}");
        }
    }
}

#[test]
fn segments_are_as_many_as_there_are_rows_for_and_heads_are_one() {
    for root in Root::both() {
        for term in 1..=40 {
            let mut leader = lead(&root, term);
            (0..10).for_each(|n| leader.write(&[row((term - 1) * 10 + n + 1, 1)]).unwrap());
        }
        let expected = text(&rows(1..=400, 1));
        assert_eq!(seen(&root), expected);
        assert_eq!(root.names("head-"), 1);
        let num_segments = root.names("rows-");
        assert!((2..=expected.len() / 200).contains(&num_segments), "{num_segments} segments");
        assert_eq!(root.names(""), 1 + num_segments, "nothing else is left");
    }
}

#[test]
fn a_head_that_was_torn_anywhere_has_its_whole_rows() {
    let root = Root::folder();
    let mut leader = lead(&root, 1);
    leader.write(&rows(1..=30, 1)).unwrap();
    leader.write(&rows(31..=35, 1)).unwrap();
    let (path, start, end) = place(&root, &leader);
    let whole = fs::read(&path).unwrap();
    assert!(start < end && whole.len() as u64 == end);
    for len in start..=end {
        fs::write(&path, &whole[..len as usize]).unwrap();
        let lines = whole[start as usize..len as usize].iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!(seen(&root), text(&rows(1..=30 + lines, 1)), "cut to {len} bytes");
    }
}

#[test]
fn what_a_failed_write_left_behind_is_no_row() {
    let root = Root::folder();
    let mut leader = lead(&root, 1);
    leader.write(&rows(1..=3, 1)).unwrap();
    let (path, ..) = place(&root, &leader);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"4,half").unwrap();
    leader.write(&rows(1..=5, 1)).unwrap();
    assert_eq!(seen(&root), text(&rows(1..=5, 1)), "those that were kept are not written twice");
    let away = root.path().join("away");
    fs::rename(root.path().join(FOLDER), &away).unwrap();
    assert!(matches!(leader.write(&[row(6, 1)]), Err(SegmentsError::Io { .. })));
    fs::rename(&away, root.path().join(FOLDER)).unwrap();
    leader.write(&[row(6, 1)]).unwrap();
    assert_eq!(seen(&root), text(&rows(1..=6, 1)));
}

#[test]
fn t10_nothing_is_written_beside_the_checkpoints_of_another_job() {
    let root = Root::folder();
    let mut stranger =
        Segments::new(root.path().to_str().unwrap(), OwnerId::from_random([8; 16]), Term::new(1)).unwrap();
    assert!(matches!(stranger.write(&[row(1, 1)]), Err(SegmentsError::Owned { .. })));
    fs::remove_file(root.path().join(OWNER_NAME)).unwrap();
    assert!(matches!(stranger.write(&[row(1, 1)]), Err(SegmentsError::Io { .. })), "nobody has claimed it");
    assert!(!root.path().join(FOLDER).exists());
}

#[test]
fn a_leader_that_others_have_followed_says_so() {
    let root = Root::folder();
    let mut first = lead(&root, 1);
    first.write(&rows(1..=3, 1)).unwrap();
    lead(&root, 2);
    assert!(matches!(of_term(&root, 1).find(), Err(SegmentsError::Deposed { .. })));
    assert!(first.write(&[row(4, 1)]).is_err(), "its head is gone");
    assert_eq!(seen(&root), text(&rows(1..=3, 1)));
    // One that has read nothing writes nothing over what is there.
    let mut blind = of_term(&root, 3);
    blind.leave_unread();
    assert!(matches!(blind.write(&[]), Err(SegmentsError::Another { found: 3, known: 0, .. })));
}

#[test]
fn all_rows_are_replaced_at_once() {
    for root in Root::both() {
        let mut leader = lead(&root, 1);
        leader.write(&rows(1..=60, 1)).unwrap();
        let new = text(&rows(1..=70, 2));
        let mut next = of_term(&root, 2);
        next.replace(&mut new.as_bytes(), Path::new("curve.csv")).unwrap();
        assert_eq!(seen(&root), new);
        next.write(&[row(71, 2)]).unwrap();
        assert_eq!(seen(&root), text(&rows(1..=71, 2)));
    }
}
