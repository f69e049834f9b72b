//! Rows are read back to the same bits, and nothing is lost or made up where files are damaged or disks are full.

use toroid_proto::PolicyStep;

use super::*;

fn record(step: u64) -> StepRecord {
    StepRecord {
        step,
        loss: 5.0 / 3.0,
        ce: f64::from_bits(0x3ff0_0000_0000_0001),
        z_loss: 1e-300,
        balance_loss: f64::MAX,
        grad_norm: f64::INFINITY,
        lr: f64::MIN_POSITIVE / 2.0,
        weight_decay: -0.0,
        tokens: u64::MAX,
        tokens_per_s: 0.1 + 0.2,
        step_s: 0.0,
        skipped: step.is_multiple_of(2),
        epoch: 3,
        hidden_s: 1.0 / 3.0,
        exposed_s: 1e-9,
        expert_load: (0..6).map(|e| e * step).collect(),
        num_layers: 3,
        ..StepRecord::default()
    }
}

fn filled(num: u64) -> (tempfile::TempDir, Curve) {
    let folder = tempfile::tempdir().unwrap();
    let mut curve = Curve::open(folder.path()).unwrap().0;
    (1..=num).for_each(|step| curve.append(&record(step)).unwrap());
    (folder, curve)
}

fn steps(records: &[StepRecord]) -> Vec<u64> {
    records.iter().map(|r| r.step).collect()
}

#[test]
fn every_bit_reads_back_also_after_a_restart() {
    let (folder, curve) = filled(4);
    let expected: Vec<StepRecord> = (1..=4).map(record).collect();
    assert_eq!(curve.read(0, 100, usize::MAX).unwrap(), expected);
    let (again, summaries) = Curve::open(folder.path()).unwrap();
    assert_eq!(again.read(0, 100, usize::MAX).unwrap(), expected);
    assert_eq!(again.last(), expected.last());
    assert_eq!(summaries, expected.iter().map(StepSummary::from).collect::<Vec<_>>());
    let bits = |r: &StepRecord| [r.ce, r.lr, r.weight_decay, r.tokens_per_s].map(f64::to_bits);
    assert_eq!(bits(&again.read(2, 1, usize::MAX).unwrap()[0]), bits(&record(2)));
}

#[test]
fn the_file_is_what_the_readme_says() {
    let (folder, mut curve) = filled(0);
    let plain = StepRecord { step: 1, loss: 5.5, expert_load: vec![1, 2, 3, 4], num_layers: 2, ..Default::default() };
    curve.append(&plain).unwrap();
    let none = StepRecord { step: 2, ..Default::default() };
    curve.append(&none).unwrap();
    let text = std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
    let rows = "1,5.5,0,0,0,0,0,0,0,0,0,false,0,0,0,\"1 2;3 4\"\n2,0,0,0,0,0,0,0,0,0,0,false,0,0,0,\"\"\n";
    assert_eq!(text, format!("{}\n{rows}", Columns::Plain.header()));
    assert_eq!(curve.read(1, 2, usize::MAX).unwrap(), [plain, none]);
}

/// The first row says which columns there are, and a file that is copied from segments has the same.
#[test]
fn curves_of_dialogues_and_preferences_have_columns_of_their_own() {
    for (trained_tokens, pairs) in [(Some(812), 0), (Some(0), 0), (None, 16)] {
        let record = |step| StepRecord { trained_tokens, pairs, correct: pairs / 2, ties: pairs / 4, ..record(step) };
        let (folder, mut curve) = filled(0);
        (1..=3).for_each(|step| curve.append(&record(step)).unwrap());
        let text = std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert!(
            text.starts_with("step,") && text.contains(",exposed_s,trained_tokens,pairs,correct,ties,expert_load\n")
        );
        let (again, _) = Curve::open(folder.path()).unwrap();
        assert_eq!(again.read(0, 9, usize::MAX).unwrap(), (1..=3).map(record).collect::<Vec<_>>());
        let copy = folder.path().join("copy");
        let mut file = BehindHeader { file: BufWriter::new(File::create(&copy).unwrap()), head: Some(Vec::new()) };
        let rows = text.split_once('\n').unwrap().1.as_bytes();
        rows.chunks(7).for_each(|piece| file.write_all(piece).unwrap());
        file.finish().unwrap();
        assert_eq!(std::fs::read_to_string(copy).unwrap(), text);
    }
}

/// Rows have the bits that they had, also where a step has no figures any more.
#[test]
fn the_curve_of_a_policy_has_columns_of_its_own() {
    let figures = PolicyStep {
        policy_loss: -0.0,
        value_loss: f64::MIN_POSITIVE / 2.0,
        clip_fraction: 1.0 / 3.0,
        approx_kl: -1e-300,
        mean_ratio: f64::from_bits(0x3ff0_0000_0000_0001),
        score: 0.1 + 0.2,
        kl: f64::MAX,
        kl_coef: 0.05,
        answer_tokens: 17.25,
        stopped: 1.0,
        entropy: f64::INFINITY,
    };
    let record = |step| StepRecord { trained_tokens: Some(812), policy: Some(figures), ..record(step) };
    let (folder, mut curve) = filled(0);
    curve.append(&record(1)).unwrap();
    curve.push_gap(2..=3);
    curve.append(&record(4)).unwrap();
    let text = std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
    let columns = ",ties,policy_loss,value_loss,clip_fraction,approx_kl,mean_ratio,score,kl,kl_coef,answer_tokens,stopped,entropy,expert_load\n";
    assert!(text.contains(columns), "{text}");
    assert!(text.lines().all(|line| Columns::of_row(line) == Columns::Policy || line == Columns::Policy.header()));
    let rows = Curve::open(folder.path()).unwrap().0.read(0, 9, usize::MAX).unwrap();
    assert_eq!((rows[0].clone(), rows[3].clone()), (record(1), record(4)));
    assert_eq!(rows[0].policy.map(|p| p.policy_loss.to_bits()), Some((-0.0f64).to_bits()));
    assert!(rows[1].missing && rows[1].policy.is_none() && rows[2].missing);
    // Of a file whose header is gone the rows say what it was.
    std::fs::write(folder.path().join(FILE_NAME), text.replacen(Columns::Policy.header(), "", 1)).unwrap();
    let mut salvage = Curve::salvage(folder.path()).unwrap();
    salvage.curve.rewrite().unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap(), text);
    // Nothing is made up of a row that says nothing of a policy, and one of which a part is gone is refused.
    let none = StepRecord { policy: None, ..record(5) };
    assert_eq!(parse(format(Columns::Policy, &none).trim_end()), Ok(none));
    let torn = format(Columns::Policy, &record(5)).replacen(",0.05,", ",,", 1);
    assert_eq!(parse(torn.trim_end()), Err("`` is no kl_coef".into()));
}

#[test]
fn ranges_of_rows_are_by_step() {
    let (_folder, mut curve) = filled(3);
    curve.append(&record(7)).unwrap();
    assert_eq!(steps(&curve.read(2, 2, usize::MAX).unwrap()), [2, 3]);
    assert_eq!(steps(&curve.read(4, 9, usize::MAX).unwrap()), [7], "a hole is passed over");
    assert_eq!(curve.read(8, 9, usize::MAX).unwrap(), []);
    assert_eq!(curve.read(1, 0, usize::MAX).unwrap(), []);
}

#[test]
fn t12_a_gap_has_rows_that_say_so() {
    let (folder, mut curve) = filled(2);
    curve.push_gap(3..=5);
    curve.flush().unwrap();
    assert_eq!(curve.last(), Some(&record(2)), "the newest with figures");
    curve.append(&record(6)).unwrap();
    let text = std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
    assert_eq!(text.lines().nth(3), Some("3,,,,,,,,,,,,,,,\"\""));
    let columns = text.lines().next().unwrap().split(',').count();
    assert_eq!(text.lines().nth(4).unwrap().split(',').count(), columns);
    let (again, summaries) = Curve::open(folder.path()).unwrap();
    assert_eq!(summaries.iter().map(|s| s.missing).collect::<Vec<_>>(), [false, false, true, true, true, false]);
    let rows = again.read(1, 9, usize::MAX).unwrap();
    assert_eq!(steps(&rows), [1, 2, 3, 4, 5, 6]);
    assert!(rows[2].missing && rows[2].loss.is_nan() && !rows[5].missing);
    curve.cut(4).unwrap();
    assert_eq!(curve.last(), Some(&record(2)));
    assert_eq!(Curve::open(folder.path()).unwrap().0.last(), Some(&record(2)));
}

#[test]
fn a_cut_drops_what_comes_after() {
    let (folder, mut curve) = filled(5);
    curve.cut(9).unwrap();
    assert_eq!(curve.last().map(|r| r.step), Some(5));
    curve.cut(3).unwrap();
    assert_eq!(curve.last().map(|r| r.step), Some(3));
    curve.append(&record(4)).unwrap();
    assert_eq!(steps(&Curve::open(folder.path()).unwrap().0.read(0, 9, usize::MAX).unwrap()), [1, 2, 3, 4]);
    curve.cut(0).unwrap();
    assert_eq!((curve.last(), curve.read(0, 9, usize::MAX).unwrap().len()), (None, 0));
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_was_torn() {
    let (folder, _) = filled(3);
    let path = folder.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        let (mut curve, summaries) = Curve::open(folder.path()).unwrap();
        let num_lines = whole[..len].iter().filter(|b| **b == b'\n').count();
        assert_eq!(summaries.len(), num_lines.saturating_sub(1), "cut to {len} bytes");
        curve.append(&record(4)).unwrap();
        assert_eq!(Curve::open(folder.path()).unwrap().0.last(), Some(&record(4)), "cut to {len} bytes");
    }
}

#[test]
fn a_bad_line_in_the_middle_is_named() {
    let (folder, _) = filled(3);
    let path = folder.path().join(FILE_NAME);
    let good = std::fs::read_to_string(&path).unwrap();
    let damaged = |from: &str, to: &str| {
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        Curve::open(folder.path()).unwrap_err().to_string()
    };
    assert!(damaged("\n2,1.6", "\n2,x1.6").contains("line 3 of"));
    assert!(damaged("\n2,1.6", "\n2,x1.6").contains("is no loss"));
    assert!(damaged("\n2,", "\n1,").contains("step 1 follows step 1"));
    assert!(damaged("\n2,", "\n2,2,").contains("16 columns before the last, expected 15, 19 or 30"));
    assert!(damaged("step,loss", "loss,step").contains("does not begin with the header"));
    assert!(damaged("\n2,", "\r\n2,").contains("line 2 of"));
    assert!(damaged("\n2,", "\r\n2,").contains("it ends with a carriage return"));
}

/// What is one line without an end is read in pieces, and is more than the end of a torn one.
#[test]
fn a_line_that_never_ends_is_not_held_in_memory() {
    let (folder, _) = filled(3);
    let path = folder.path().join(FILE_NAME);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len + MAX_LINE_BYTES + 1).unwrap();
    let error = Curve::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("line 5 of"), "{error}");
    file.set_len(len + MAX_LINE_BYTES).unwrap();
    let (curve, _) = Curve::open(folder.path()).unwrap();
    assert_eq!(curve.last(), Some(&record(3)), "a torn end is cut off");
    assert_eq!(file.metadata().unwrap().len(), len);
}

#[test]
fn no_file_stays_open() {
    let (folder, curve) = filled(3);
    let path = folder.path().canonicalize().unwrap().join(FILE_NAME);
    let is_it = |entry: io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|e| std::fs::read_link(e.path()).is_ok_and(|target| target == path))
    };
    assert!(!std::fs::read_dir("/proc/self/fd").unwrap().any(is_it), "{curve:?}");
}

#[test]
fn what_cannot_be_written_is_kept_and_written_later() {
    let (folder, mut curve) = filled(2);
    let (path, away) = (folder.path().join(FILE_NAME), folder.path().join("away"));
    std::fs::rename(&path, &away).unwrap();
    for step in [3, 4, 5] {
        assert!(curve.append(&record(step)).unwrap_err().to_string().contains("curve.csv failed: No such file"));
    }
    assert!(curve.cut(4).is_err());
    assert_eq!((curve.num_unwritten(), curve.is_flushed(), curve.last()), (2, false, Some(&record(4))));
    assert_eq!(steps(&curve.read(3, 9, usize::MAX).unwrap()), [3, 4], "they are in the curve");
    assert!(!path.exists(), "a new file would lack the rows before");
    std::fs::rename(&away, &path).unwrap();
    curve.flush().unwrap();
    assert!(curve.is_flushed() && curve.unwritten_bytes() == 0);
    assert_eq!(steps(&Curve::open(folder.path()).unwrap().0.read(0, 9, usize::MAX).unwrap()), [1, 2, 3, 4]);
}

#[test]
fn reading_is_bounded_by_bytes_and_gives_at_least_one_row() {
    let (_folder, curve) = filled(9);
    let bytes = format(Columns::Plain, &record(1)).len();
    assert_eq!(steps(&curve.read(1, 9, 0).unwrap()), [1]);
    assert_eq!(steps(&curve.read(2, 9, bytes * 3 + bytes / 2).unwrap()), [2, 3, 4]);
}

/// What an editor or a power cut may do to a file.
#[test]
fn what_can_be_read_of_a_damaged_file_is_taken_and_the_file_is_kept() {
    let (folder, _) = filled(5);
    let path = folder.path().join(FILE_NAME);
    let good = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let swapped = [0, 1, 3, 2, 4, 5].map(|i| format!("{}\n", lines[i])).concat();
    let nuls = good.replacen(lines[3], &"\0".repeat(lines[3].len()), 1);
    let twice = good.replacen(lines[3], lines[2], 1);
    let cases = [
        (good.replace('\n', "\r\n"), vec![1, 2, 3, 4, 5]),
        (swapped, vec![1, 2, 3, 4, 5]),
        (nuls, vec![1, 2, 4, 5]),
        (twice, vec![1, 2, 4, 5]),
        (good.replacen(Columns::Plain.header(), "", 1), vec![1, 2, 3, 4, 5]),
    ];
    for (number, (damaged, expected)) in cases.into_iter().enumerate() {
        std::fs::write(&path, &damaged).unwrap();
        let why = Curve::open(folder.path()).unwrap_err();
        let mut salvage = Curve::salvage(folder.path()).unwrap();
        let records: Vec<StepRecord> = expected.iter().map(|step| record(*step)).collect();
        assert_eq!(salvage.curve.read(0, 9, usize::MAX).unwrap(), records, "{why}");
        assert_eq!((salvage.curve.last(), salvage.num_rows), (records.last(), 5), "{why}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged, "it was only read");

        let kept = salvage.curve.rewrite().unwrap();
        assert_eq!(kept, folder.path().join(format!("curve.csv.damaged-{}", number + 1)));
        assert_eq!(std::fs::read_to_string(kept).unwrap(), damaged);
        salvage.curve.append(&record(6)).unwrap();
        let again = Curve::open(folder.path()).unwrap().0.read(0, 9, usize::MAX).unwrap();
        assert_eq!(again, [records, vec![record(6)]].concat(), "{why}");
    }
}
