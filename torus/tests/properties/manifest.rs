//! A manifest that parses is complete (T-6), and damage to it is named.

use std::collections::BTreeMap;
use std::ops::Range;

use toroid_torus::geometry::Shape;
use toroid_torus::job::{self, JobSpec};
use toroid_torus::manifest::{Entry, FORMAT, KINDS, Manifest, ManifestError, ShardFile, Writer, entries_of};
use toroid_torus::model::ModelConfig;
use toroid_torus::owner::OwnerId;
use toroid_torus::partition::{partition, shard_position};

use crate::partition::{check_cover, global_ranges, models, splits};
use crate::torus;

/// Length of the made-up headers.
const HEADER_BYTES: u64 = 64;

/// The files that all places write, with offsets but without digests.
fn files(model: &ModelConfig, shape: &Shape) -> Vec<ShardFile> {
    let file = |rank| {
        let place = shape.place(rank);
        let part = partition(model, shape, place.tp, place.pp);
        let start = shard_position(shape, place.dp) * part.shard_len;
        // Room for a header.
        let mut bytes = HEADER_BYTES;
        let mut entries = entries_of(&part, start..start + part.shard_len);
        for entry in &mut entries {
            entry.file_offset = bytes;
            bytes += 4 * entry.range.len() as u64;
        }
        let writer = Writer { epoch: 3, rank, world: shape.world(), owner: owner() };
        ShardFile {
            file: ShardFile::name_of(&writer),
            rank,
            bytes,
            digest: String::new(),
            entries,
            kl_coef: None,
            reward_scale: None,
        }
    };
    (0..shape.world()).map(file).collect()
}

#[test]
fn the_entries_of_all_places_cover_every_tensor_once() {
    for model in models() {
        for shape in splits(&model) {
            let files = files(&model, &shape);
            for kind in KINDS {
                let mut ranges: BTreeMap<String, Vec<Range<usize>>> = BTreeMap::new();
                for entry in files.iter().flat_map(|f| &f.entries).filter(|e| e.kind == kind) {
                    let of_entry = global_ranges(&entry.slice, &entry.global_shape, &entry.range);
                    ranges.entry(entry.tensor.clone()).or_default().extend(of_entry);
                }
                check_cover(&model, ranges, &format!("{kind:?} over {shape}"));
            }
        }
    }
}

fn owner() -> OwnerId {
    OwnerId::from_random([7; 16])
}

fn job(shape: Shape) -> JobSpec {
    let mut job = job::parse("steps = 10\ndata.path = 'text'").expect("a job");
    job.shape = shape;
    job
}

fn manifest() -> Manifest {
    let job = job(torus(2, 2, 2, 1));
    let files = files(&job.model, &job.shape);
    let samples = 10 * job.batch.samples();
    Manifest {
        format: FORMAT,
        job_id: "j1".into(),
        owner: Some(owner()),
        step: 10,
        epoch: 3,
        shape: job.shape,
        job,
        samples,
        skipped_steps: 0,
        data_digest: String::new(),
        tokenizer: None,
        files,
    }
}

#[test]
fn a_manifest_of_any_split_is_read_back() {
    for shape in splits(&models()[0]) {
        let job = job(shape);
        let written = Manifest { files: files(&job.model, &shape), shape, job, ..manifest() };
        let read = Manifest::parse(&written.to_json()).unwrap_or_else(|e| panic!("{shape}: {e}"));
        assert_eq!(read, written);
        let state = 12 * read.job.model.num_params() + HEADER_BYTES * shape.world() as u64;
        assert_eq!(read.bytes(), state, "the bytes of the cluster are the bytes of the state and the headers, {shape}");
    }
}

/// What parsing says after `damage`.
fn error_after(damage: impl FnOnce(&mut Manifest)) -> ManifestError {
    let mut manifest = manifest();
    damage(&mut manifest);
    Manifest::parse(&manifest.to_json()).expect_err("the damage must be seen")
}

/// `damage` to the second file's first entry is named.
fn check_entry(damage: impl FnOnce(&mut Entry), expected: &str) {
    let error = error_after(|m| damage(&mut m.files[1].entries[0])).to_string();
    assert!(error.contains("shard-00001-of-00008-epoch-3-by-") && error.contains(expected), "{error}");
}

#[test]
fn what_is_missing_or_twice_is_named() {
    let error = error_after(|m| drop(m.files.pop()));
    assert!(matches!(error, ManifestError::Incomplete { .. }), "{error}");
    // As many elements as there should be, but the second half twice and the first not at all.
    let error = error_after(|m| {
        let ranks: Vec<usize> = m.shape.tp_group(0);
        let slice = m.files[ranks[1]].entries[0].slice.clone();
        m.files[ranks[0]].entries[0].slice = slice;
    });
    assert!(matches!(&error, ManifestError::Cover { tensor, .. } if tensor == "emb.weight"), "{error}");
}

#[test]
fn entries_are_checked_by_themselves() {
    check_entry(|e| e.tensor = "blocks.9.n1.weight".into(), "the model has no tensor blocks.9.n1.weight");
    check_entry(|e| e.global_shape[0] += 1, "shape");
    check_entry(|e| e.slice.dim = 7, "slice of dim 7");
    check_entry(|e| e.slice.ranges[0].end = usize::MAX, "the slice takes");
    check_entry(|e| e.slice.ranges = vec![0..512; 2], "the slice takes");
    check_entry(|e| e.file_offset = u64::MAX, "ends beyond any file");
    for range in [5..5, 0..usize::MAX] {
        let error = error_after(|m| m.files[1].entries[0].range = range).to_string();
        assert!(error.contains("shard-00001-of-00008-epoch-3-by-"), "{error}");
    }
}

#[test]
fn a_file_name_stays_in_the_folder_and_is_there_once() {
    let own = "shard-00001-of-00008-epoch-";
    let later_or_elsewhere = [
        "4.safetensors",
        "03.safetensors",
        "3-by-.safetensors",
        "3-by-0123456789abcdeF.safetensors",
        "4-by-0123456789abcdef.safetensors",
    ]
    .map(|rest| format!("{own}{rest}"))
    .into_iter()
    .chain([format!("../{own}3.safetensors")]);
    let others = ["", "..", "../step-1/shard-00001.safetensors", "a\\b", "/etc/passwd", "shard-00000.safetensors"];
    for name in others.map(String::from).into_iter().chain(later_or_elsewhere) {
        let error = error_after(|m| m.files[1].file = name.clone());
        assert!(matches!(error, ManifestError::File { .. }), "{error}");
    }
}

/// Of an epoch before the one that publishes, and of older checkpoints by the rank alone.
#[test]
fn a_file_may_have_the_name_of_an_earlier_epoch() {
    let of_before = ["shard-00001-of-00008-epoch-2.safetensors", "shard-00001.safetensors"].map(String::from);
    let earlier = Writer { epoch: 2, rank: 1, world: 8, owner: owner() };
    for name in of_before.into_iter().chain([ShardFile::name_of(&earlier)]) {
        let mut manifest = manifest();
        manifest.files[1].file = name;
        assert_eq!(Manifest::parse(&manifest.to_json()), Ok(manifest));
    }
}

#[test]
fn other_formats_and_no_json_are_refused() {
    let json = manifest().to_json();
    let with_format = |format: &str| json.replacen("\"format\": 1", &format!("\"format\": {format}"), 1);
    assert_eq!(Manifest::parse(&with_format("2")), Err(ManifestError::Format { found: 2 }));
    // 2^32 + 1 has the same lower 32 bits as 1.
    assert_eq!(Manifest::parse(&with_format("4294967297")), Err(ManifestError::Format { found: 4_294_967_297 }));
    assert!(matches!(Manifest::parse("{"), Err(ManifestError::Parse(_))));
    assert!(matches!(Manifest::parse(&json.replacen("\"epoch\"", "\"epok\"", 1)), Err(ManifestError::Parse(_))));
    let error = error_after(|m| m.job.steps = 0);
    assert!(error.to_string().contains("`steps` = 0 is not possible"), "{error}");
    let error = error_after(|m| m.shape = torus(1, 8, 1, 1));
    assert!(error.to_string().contains("pp 8 is more than the 4 layers"), "{error}");
}
