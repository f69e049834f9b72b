//! What is written is read back, under any shape, and nothing is seen of what is not complete.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use toroid_torus::manifest::Entry;

use super::*;

#[test]
fn a_checkpoint_loads_under_any_shape() {
    let shapes = [shape(2, 2, 2), shape(1, 1, 1), shape(4, 1, 2), shape(1, 2, 4), shape(4, 4, 1), shape(2, 3, 5)];
    for written in shapes {
        in_each(|_, storage| {
            let manifest = write(&storage, 10, written);
            assert_eq!(storage.manifest(10).unwrap(), manifest);
            assert_eq!(storage.verify(10).unwrap(), []);
            for read in shapes {
                for rank in 0..read.world() {
                    let (partition, shard) = shard_of(&model(), &read, rank);
                    check_load(&storage, &manifest, &partition, shard);
                }
            }
        });
    }
}

/// A rank loads its whole partition, or any part of it: ranges that start and end within tensors, in padding, and empty
/// ones.
#[test]
fn any_flat_range_loads() {
    in_each(|_, storage| {
        let manifest = write(&storage, 10, shape(2, 2, 2));
        let (partition, _) = shard_of(&model(), &shape(4, 2, 5), 5);
        assert!(partition.len < partition.padded_len, "the case has no padding");
        let cuts = [0, 1, 777, 778, 1500, partition.len - 1, partition.len, partition.len + 1, partition.padded_len];
        for (i, &start) in cuts.iter().enumerate() {
            for &end in &cuts[i..] {
                check_load(&storage, &manifest, &partition, start..end);
            }
        }
    });
}

/// The same state gives the same bytes wherever it is written, so a repeated write is harmless.
#[test]
fn writing_twice_gives_the_same_bytes() {
    let (_folder, first) = temporary();
    let manifest = write(&first, 10, shape(2, 1, 2));
    in_each(|_, storage| {
        write_shards(&storage, 10, shape(2, 1, 2));
        assert_eq!(write(&storage, 10, shape(2, 1, 2)), manifest);
    });
}

/// The cluster writes the bytes of the state once, replicated slices too.
#[test]
fn every_element_is_written_once() {
    in_each(|_, storage| {
        let manifest = write(&storage, 10, shape(4, 2, 2));
        let entries: u64 = manifest.files.iter().flat_map(|f| &f.entries).map(Entry::bytes).sum();
        assert_eq!(entries, 3 * 4 * model().num_params());
    });
}

#[test]
fn shards_are_safetensors_with_the_names_of_the_manifest() {
    in_each(|kept, storage| {
        let manifest = write(&storage, 10, shape(2, 2, 2));
        for file in &manifest.files {
            let bytes = kept.read(&name_in(10, &file.file));
            assert_eq!((bytes.len() as u64, file.digest.as_str()), (file.bytes, ""));
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(tensors.len(), file.entries.len());
            for entry in &file.entries {
                let start = entry.file_offset as usize;
                let view = tensors.tensor(&entry.name).unwrap();
                assert_eq!(view.shape(), [entry.range.len()]);
                assert_eq!(view.data(), &bytes[start..start + entry.bytes() as usize]);
            }
        }
    });
}

/// More places than elements to share: some files have no entry, and are files all the same.
#[test]
fn a_place_with_nothing_but_padding_writes_an_empty_file() {
    in_each(|_, storage| {
        let mut manifest = write_shards(&storage, 10, shape(1, 1, 1));
        let (partition, _) = shard_of(&model(), &shape(1, 1, 1), 0);
        let padded = Partition { padded_len: partition.padded_len + 64, ..partition };
        let state = vec![7.0; 16];
        let state = ShardState { param: &state, exp_avg: &state, exp_avg_sq: &state };
        let range = padded.padded_len - 16..padded.padded_len;
        manifest.files.push(storage.write_shard(10, writer(&storage, EPOCH, 1, 1), &padded, range, state).unwrap());
        assert_eq!(manifest.files[1].entries, []);
        storage.publish(&manifest).unwrap();
        assert_eq!(storage.verify(10).unwrap(), []);
    });
}

/// T-6: a crash between the shards and the manifest leaves nothing that anyone takes for a checkpoint, and the step can
/// be written again.
#[test]
fn what_is_not_published_is_not_a_checkpoint() {
    in_each(|kept, storage| {
        write(&storage, 10, shape(1, 1, 2));
        let manifest = write_shards(&storage, 20, shape(1, 1, 2));
        assert_eq!(storage.steps().unwrap(), [10]);
        let error = storage.manifest(20).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::NotFound { step: 20, available, .. } if available == &[10]),
            "{error}"
        );

        kept.write(&name_in(20, &digest_of(&storage)), "a crash before the manifest");
        assert_eq!(storage.steps().unwrap(), [10]);
        assert_eq!(write(&storage, 20, shape(1, 1, 2)), manifest);
        assert_eq!(storage.steps().unwrap(), [10, 20]);
        assert_eq!(storage.verify(20).unwrap(), []);
    });
}

/// T-6: a manifest is not written unless all that it names is there.
#[test]
fn publishing_looks_at_every_file() {
    in_each(|kept, storage| {
        let manifest = write_shards(&storage, 10, shape(2, 1, 2));
        let name = name_in(10, &manifest.files[2].file);
        let bytes = kept.read(&name);
        kept.write(&name, &bytes[..bytes.len() - 1]);
        let error = storage.publish(&manifest).unwrap_err();
        assert!(matches!(&error, CheckpointError::Unpublishable { file, .. } if *file == kept.path(&name)), "{error}");
        kept.remove(&name);
        let error = storage.publish(&manifest).unwrap_err();
        assert!(error.to_string().contains("no file"), "{error}");

        let mut files = manifest.files.clone();
        files.remove(1);
        let error = storage.publish(&Manifest { files, ..manifest.clone() }).unwrap_err();
        assert!(matches!(error, CheckpointError::Manifest { .. }), "{error}");
        assert!(storage.steps().unwrap().is_empty());
    });
}

/// T-6: a complete checkpoint is not written to again; the same bytes and the same manifest, in a later epoch, are no
/// error.
#[test]
fn a_complete_step_only_takes_what_it_has() {
    in_each(|_, storage| {
        let manifest = write(&storage, 10, shape(2, 1, 2));
        assert_eq!(write_rank(&storage, 10, &shape(2, 1, 2), 3).unwrap(), manifest.files[3]);
        let again = Manifest { epoch: EPOCH + 1, ..manifest.clone() };
        assert_eq!(storage.publish(&again).unwrap(), manifest.bytes());
        assert_eq!(storage.manifest(10).unwrap().epoch, EPOCH);

        let (partition, shard) = shard_of(&model(), &shape(2, 1, 2), 3);
        let state = vec![1.0; shard.len()];
        let state = ShardState { param: &state, exp_avg: &state, exp_avg_sq: &state };
        let error = storage.write_shard(10, writer(&storage, EPOCH, 3, 4), &partition, shard, state).unwrap_err();
        assert!(matches!(error, CheckpointError::Exists { step: 10, .. }), "{error}");
        let error = storage.publish(&Manifest { samples: 1, ..manifest }).unwrap_err();
        assert!(matches!(error, CheckpointError::Exists { step: 10, .. }), "{error}");
        assert_eq!(storage.verify(10).unwrap(), []);
    });
}

#[test]
fn remove_leaves_nothing_and_can_be_repeated() {
    in_each(|kept, storage| {
        write(&storage, 10, shape(1, 1, 2));
        write(&storage, 20, shape(1, 1, 2));
        let died = format!("{}#1", ShardFile::name_of(&writer(&storage, EPOCH, 9, 10)));
        kept.write(&name_in(10, &died), "of a writer that died");
        storage.remove(10, EPOCH).unwrap();
        storage.remove(10, EPOCH).unwrap();
        assert_eq!(storage.steps().unwrap(), [20]);
        let is_left = |name: &String| name.starts_with("step-20/") || name == "toroid-owner.json";
        assert!(kept.files().iter().all(is_left));
    });
}

#[test]
fn steps_are_ascending_and_only_of_folders_that_write_them_so() {
    in_each(|kept, storage| {
        assert!(storage.steps().unwrap().is_empty());
        for step in [100, 20, 3] {
            write(&storage, step, shape(1, 1, 1));
        }
        for name in ["step-007", "step-", "step-x", "damaged-step-5"] {
            kept.write(&format!("{name}/{MANIFEST_NAME}"), "{}");
        }
        assert_eq!(storage.steps().unwrap(), [3, 20, 100]);
    });
}

#[test]
fn a_root_is_a_folder_path_or_a_file_url() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("a b").join("100% ü #1");
    Storage::open(odd.to_str().unwrap()).unwrap();
    assert!(!odd.exists(), "opening made the folder");
    let storage = open(odd.to_str().unwrap());
    let manifest = write(&storage, 10, shape(1, 1, 1));
    let url = format!("file://{}", odd.display());
    assert_eq!(Storage::open(&url).unwrap().steps().unwrap(), [10]);
    let (found, step) = Storage::open_step(&format!("{}/step-10/", odd.display())).unwrap();
    assert_eq!((found.manifest(step).unwrap(), step), (manifest, 10));

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let cases = BTreeMap::from([
        ("gs://bucket/run", "the scheme `gs` is not supported; give a folder's path, a file:// URL or an s3:// URL"),
        ("file://host/run", "needs an absolute path"),
        ("", "the path is empty"),
        (file.to_str().unwrap(), "it is a file; give the path of a folder"),
        ("s3://no bucket/run", "\"no bucket\" is not the name of a bucket; expected s3://BUCKET/PREFIX"),
    ]);
    for (root, expected) in cases {
        let error = Storage::open(root).unwrap_err().to_string();
        assert!(error.contains(expected), "`{root}` gave `{error}`");
        assert!(error.matches("; ").count() <= 1, "advice stands twice: {error}");
        assert!(root.is_empty() || error.matches(root).count() == 1, "it is named twice: {error}");
    }
    assert!(matches!(Storage::open_step("run/checkpoints"), Err(CheckpointError::StepPath { .. })));
}

#[test]
fn a_manifest_without_bound_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path().to_str().unwrap());
    write(&storage, 10, shape(1, 1, 1));
    let manifest = folder.path().join(name_in(10, MANIFEST_NAME));
    std::fs::File::options().write(true).open(manifest).unwrap().set_len(1 << 40).unwrap();
    let error = storage.manifest(10).unwrap_err().to_string();
    assert!(error.ends_with("it has more than 536870912 bytes"), "{error}");
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    in_each(|_, storage| {
        let manifest = write(&storage, 10, shape(1, 1, 1));
        for (other, tensor) in [
            (ModelConfig { vocab: 512, ..model() }, "emb.weight"),
            (ModelConfig { layers: 5, ..model() }, "blocks.4.n1.weight"),
        ] {
            let (partition, shard) = shard_of(&other, &shape(1, 1, 1), 0);
            let error = load(&storage, &manifest, &partition, shard).unwrap_err();
            assert!(matches!(&error, CheckpointError::Model { tensor: t, .. } if t == tensor), "{error}");
        }
    });
}

/// T-6: who has published a step may have died before it said so, and the job goes on under another shape, or made the step again: the
/// step is done, and what is there stays as it is.
#[test]
fn a_step_that_an_earlier_epoch_has_published_is_done() {
    for (before, after) in
        [(shape(1, 1, 3), shape(1, 1, 2)), (shape(1, 1, 2), shape(1, 1, 3)), (shape(2, 1, 2), shape(2, 1, 2))]
    {
        in_each(|_, storage| {
            let published = write(&storage, 10, before);
            // Fewer replicas are the same job with another shape.
            let job = JobSpec { shape: after, ..published.job.clone() };
            let again = Manifest { job, samples: published.samples, ..write_shards_in(&storage, EPOCH + 1, 10, after) };
            assert_eq!(storage.publish(&again).unwrap(), published.bytes(), "{before} then {after}");
            assert_eq!(storage.manifest(10).unwrap(), published);
            assert_eq!(storage.verify(10).unwrap(), []);
            // Not the step of another job, nor of other samples.
            for other in
                [Manifest { job_id: "other".into(), ..again.clone() }, Manifest { samples: 1, ..again.clone() }]
            {
                let error = storage.publish(&other).unwrap_err();
                assert!(matches!(error, CheckpointError::Exists { step: 10, .. }), "{error}");
            }
        });
    }
}

/// T-1: a place that was cut off still writes the same step under an older shape; whatever the order, nobody reads it.
#[test]
fn t1_a_writer_of_an_older_epoch_and_shape_spoils_nothing() {
    in_each(|_, storage| {
        let newer = write_shards_in(&storage, EPOCH + 1, 10, shape(1, 1, 2));
        write_shards(&storage, 10, shape(1, 1, 3));
        storage.publish(&newer).unwrap();
        assert_eq!(storage.verify(10).unwrap(), []);
        let error = write_rank(&storage, 10, &shape(1, 1, 3), 1).unwrap_err();
        assert!(matches!(error, CheckpointError::Exists { step: 10, .. }), "{error}");
        assert_eq!((storage.manifest(10).unwrap(), storage.verify(10).unwrap()), (newer, vec![]));
    });
}

/// T-1: a rank 0 is stopped after it has looked and before it writes, and goes on when a newer one has published: not a file is left of that.
#[test]
fn t1_a_late_manifest_is_not_written_over_a_newer_one() {
    in_each(|kept, storage| {
        let stale = write_shards(&storage, 10, shape(1, 1, 2));
        let newer = write_shards_in(&storage, EPOCH + 1, 10, shape(1, 1, 2));
        storage.publish(&newer).unwrap();
        let files = kept.files();
        for late in [Owned::make_visible, Owned::publish] {
            let error = late(&storage, &stale).unwrap_err();
            assert!(matches!(error, CheckpointError::Exists { step: 10, .. }), "{error}");
            assert_eq!(kept.files(), files);
            assert_eq!((storage.manifest(10).unwrap(), storage.verify(10).unwrap()), (newer.clone(), vec![]));
        }
        // Whoever has published it may say so twice.
        assert_eq!(storage.make_visible(&newer).unwrap(), newer.bytes());
        assert_eq!((kept.files(), storage.verify(10).unwrap()), (files, vec![]));
    });
}

/// Files named by rank alone, each with a digest of its own, and the digest of the manifest under one name.
#[test]
fn checkpoints_of_before_are_read() {
    in_each(|kept, storage| {
        let mut manifest = write_shards(&storage, 10, shape(2, 1, 2));
        manifest.owner = None;
        for file in &mut manifest.files {
            let name = format!("shard-{:05}.safetensors", file.rank);
            kept.rename(&name_in(10, &file.file), &name_in(10, &name));
            file.digest = blake3::hash(&kept.read(&name_in(10, &name))).to_hex().to_string();
            file.file = name;
        }
        let json = manifest.to_json();
        assert!(json.contains("\"digest\": \"") && manifest.check().is_ok());
        kept.write("step-10/manifest.json.b3", digest_line(json.as_bytes()));
        kept.write("step-10/manifest.json", &json);
        assert_eq!((storage.manifest(10).unwrap(), storage.verify(10).unwrap()), (manifest.clone(), vec![]));
        let (partition, shard) = shard_of(&model(), &shape(1, 1, 3), 2);
        check_load(&storage, &manifest, &partition, shard);
        // The digest of the whole is looked at, too.
        manifest.files[1].digest = manifest.files[0].digest.clone();
        let json = manifest.to_json();
        kept.write("step-10/manifest.json.b3", digest_line(json.as_bytes()));
        kept.write("step-10/manifest.json", &json);
        let faults = storage.verify(10).unwrap();
        assert!(
            matches!(&faults[..], [Fault { kind: FaultKind::Manifest, file, .. }] if file.contains("shard-00001")),
            "{faults:?}"
        );
    });
}

/// A rank 0 that was stopped with its orders, and continued after others had gone on, harms nothing.
#[test]
fn t1_an_older_epoch_removes_nothing_that_a_newer_one_has_published_or_goes_on_from() {
    in_each(|_, storage| {
        let refused = |step, epoch| {
            let error = storage.remove(step, epoch).unwrap_err();
            assert!(matches!(error, CheckpointError::Claimed { later: 7, .. }), "{error}");
            assert_eq!(storage.verify(step).unwrap(), []);
        };
        let manifest = write_shards(&storage, 10, shape(1, 1, 2));
        storage.publish(&Manifest { epoch: 7, ..manifest }).unwrap();
        refused(10, EPOCH);
        write(&storage, 20, shape(1, 1, 2));
        storage.claim(20, 7).unwrap();
        refused(20, EPOCH);
        refused(20, 6);
        for step in [10, 20] {
            storage.remove(step, 7).unwrap();
        }
        assert_eq!(storage.steps().unwrap(), [] as [u64; 0]);
    });
}

#[test]
fn a_checkpoint_with_a_weight_that_is_no_finite_number_is_refused_with_its_tensor() {
    let check = |kind: Kind, bad: f32, expected: Option<&str>| {
        let (folder, storage) = temporary();
        let whole = shape(1, 1, 1);
        let (partition, shard) = shard_of(&model(), &whole, 0);
        let states = KINDS.map(|k| {
            let mut values = flat(&partition, k, 0.0)[shard.clone()].to_vec();
            values[7] = if k == kind { bad } else { values[7] };
            values
        });
        let [param, exp_avg, exp_avg_sq] = &states;
        let writer = writer(&storage, EPOCH, 0, 1);
        let state = ShardState { param, exp_avg, exp_avg_sq };
        let good = write_shards(&storage, 10, whole);
        let file = storage.write_shard(10, writer, &partition, shard.clone(), state).unwrap();
        let manifest = Manifest { files: vec![file], ..good };
        storage.publish(&manifest).unwrap();
        let found = load(&storage, &manifest, &partition, shard).err().map(|e| e.to_string());
        let tensor = &partition.slices[0].tensor;
        let is_as_expected = match (&found, expected) {
            (Some(found), Some(value)) => found.contains(&format!("has {value} in tensor {tensor} ({})", kind.name())),
            (None, None) => true,
            _ => false,
        };
        assert!(is_as_expected, "{bad} in {} gave {found:?}", kind.name());
        let exported = storage.export(10, &folder.path().join("model.safetensors"));
        assert_eq!(exported.is_err(), kind == Kind::Param, "{exported:?}");
    };
    check(Kind::Param, f32::NAN, Some("NaN"));
    check(Kind::Param, f32::NEG_INFINITY, Some("-inf"));
    check(Kind::Exp, f32::NAN, Some("NaN"));
    check(Kind::ExpSq, f32::INFINITY, None);
}
