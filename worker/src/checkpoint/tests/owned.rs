//! T-10: a folder has one owner, and nothing is removed that its job did not write.

use std::sync::Barrier;

use toroid_torus::owner::OWNER_NAME;

use super::*;

fn steps(storage: &Storage) -> Vec<u64> {
    storage.steps().unwrap()
}

/// Job B took the steps of job A for its own leftovers, since both count from 0.
#[test]
fn t10_another_jobs_folder_is_refused_and_nothing_in_it_is_removed() {
    in_each(|kept, first| {
        write(&first, 200, shape(1, 1, 2));
        write(&first, 400, shape(1, 1, 2));
        let before = kept.files();
        let error = kept.storage().own(&owner(2), Claim::New).unwrap_err();
        assert!(matches!(&error, CheckpointError::Owned { owner: found, .. } if **found == owner(1)), "{error}");
        for words in
            ["job job (`a test`, submitted 2025-11-28 09:30:19 UTC)", "checkpoint.path", "resume_from", first.root()]
        {
            assert!(error.to_string().contains(words), "{error}");
        }
        // What a job was once told to be its own may have become another's.
        kept.write(OWNER_NAME, owner(2).to_json());
        let manifest = first.manifest(400).unwrap();
        let before_publishing = write_shards(&first, 600, shape(1, 1, 2));
        for error in [
            first.remove(200, EPOCH).unwrap_err(),
            first.set_aside(200, "a test").unwrap_err(),
            first.publish(&manifest).unwrap_err(),
            first.publish(&before_publishing).unwrap_err(),
        ] {
            assert!(matches!(&error, CheckpointError::Owned { owner: found, .. } if **found == owner(2)), "{error}");
        }
        assert_eq!(steps(&first), [200, 400]);
        assert!(before.iter().all(|file| kept.files().contains(file)));
    });
}

#[test]
fn t10_of_two_jobs_that_begin_at_once_one_has_the_folder() {
    for round in 0..40 {
        let kept = if round % 2 == 0 { Kept::folder() } else { Kept::bucket() };
        let begin = Arc::new(Barrier::new(6));
        let places: Vec<_> = (0..6)
            .map(|place| {
                let (storage, begin) = (kept.storage(), Arc::clone(&begin));
                std::thread::spawn(move || {
                    begin.wait();
                    (place % 2, storage.own(&owner(place % 2), Claim::New).map(|_| ()).map_err(|e| e.to_string()))
                })
            })
            .collect();
        let found: Vec<_> = places.into_iter().map(|place| place.join().unwrap()).collect();
        let has = kept.storage().owner().unwrap().unwrap();
        for (number, outcome) in found {
            assert_eq!(outcome.is_ok(), has == owner(number), "{outcome:?}");
        }
    }
}

#[test]
fn t10_checkpoints_of_nobody_are_not_written_beside() {
    in_each(|kept, storage| {
        write(&storage, 10, shape(1, 1, 1));
        kept.remove(OWNER_NAME);
        for name in ["step-10", "damaged-step-10"] {
            let error = kept.storage().own(&owner(2), Claim::New).unwrap_err();
            assert!(matches!(&error, CheckpointError::Unowned { found, .. } if found == &[name]), "{error}");
            assert!(!kept.files().contains(&OWNER_NAME.to_string()));
            if name == "step-10" {
                kept.rename("step-10", "damaged-step-10");
            }
        }
        // Whoever has written them makes the record again.
        storage.remove(20, EPOCH).unwrap();
        assert_eq!(storage.owner().unwrap(), Some(owner(1)));
        // A folder with other things in it is nobody's.
        let other = Kept::bucket();
        other.write("notes/one", "");
        other.own(2);
        let other = Kept::folder();
        other.write("notes/one", "");
        std::fs::create_dir(other.beside("checkpoints/step-5")).unwrap();
        other.own(2);
    });
}

#[test]
fn a_record_that_cannot_be_read_is_nobodys_leave() {
    in_each(|kept, storage| {
        for garbled in ["", "{}", &"x".repeat(1 << 17)] {
            kept.write(OWNER_NAME, garbled);
            let error = storage.remove(10, EPOCH).unwrap_err();
            assert!(matches!(error, CheckpointError::OwnerDamaged { .. }), "{error}");
            assert!(kept.storage().own(&owner(1), Claim::Begun).is_err());
        }
    });
}

/// A job that was begun by a version without owners goes on in its folder; what it had written then stays.
#[test]
fn t10_a_job_from_before_takes_its_folder_over_and_removes_only_what_it_wrote_since() {
    in_each(|kept, storage| {
        let write_before = |step| {
            let mut manifest = write(&storage, step, shape(1, 1, 1));
            let name = format!("shard-00000-of-00001-epoch-{EPOCH}.safetensors");
            kept.rename(&name_in(step, &manifest.files[0].file), &name_in(step, &name));
            manifest.files[0].file = name;
            manifest.owner = None;
            let digest = name_in(step, &format!("manifest.json.epoch-{EPOCH}.b3"));
            kept.write(&digest, digest_line(manifest.to_json().as_bytes()));
            kept.remove(&name_in(step, &digest_of(&storage)));
            kept.write(&name_in(step, MANIFEST_NAME), manifest.to_json());
            manifest
        };
        let before = write_before(10);
        kept.remove(OWNER_NAME);
        assert!(kept.storage().own(&owner(1), Claim::New).is_err());
        let another = Owner::new(owner(2).id, "another", "a test", 1);
        assert!(kept.storage().own(&another, Claim::Begun).is_err(), "the manifest names the job");
        let now = kept.storage().own(&owner(1), Claim::Begun).unwrap();
        write(&now, 20, shape(1, 1, 1));
        let error = now.remove(10, EPOCH).unwrap_err();
        assert!(matches!(error, CheckpointError::NotWritten { step: 10, .. }), "{error}");
        now.remove(20, EPOCH).unwrap();
        assert_eq!((steps(&now), now.verify(10).unwrap()), (vec![10], vec![]));
        // It was published, and the coordinator did not hear of it: the step is done (T-6).
        let again = Manifest { epoch: EPOCH + 1, owner: Some(now.id()), ..before.clone() };
        assert_eq!(now.publish(&again).unwrap(), before.bytes());
    });
}

/// What users or other jobs have put into a step stays, and so does what a later epoch writes.
#[test]
fn t10_only_own_files_of_the_epochs_so_far_are_removed() {
    in_each(|kept, storage| {
        write(&storage, 10, shape(1, 1, 1));
        let later = ShardFile::name_of(&writer(&storage, EPOCH + 1, 0, 1));
        let foreign = ShardFile::name_of(&Writer { owner: owner(2).id, ..writer(&storage, EPOCH, 0, 1) });
        let stays = ["notes.txt", &later, &foreign, "manifest.json.b3"];
        for name in stays {
            kept.write(&name_in(10, name), "kept");
        }
        kept.write("step-10/folder/of-a-user", "kept");
        storage.remove(10, EPOCH).unwrap();
        let mut left = stays.map(|name| format!("step-10/{name}")).to_vec();
        left.extend(["step-10/folder/of-a-user".to_string(), OWNER_NAME.to_string()]);
        left.sort();
        assert_eq!(kept.files(), left);
        // A whole checkpoint of another job, copied here.
        let elsewhere = Kept::folder();
        write(&elsewhere.own(2), 20, shape(1, 1, 1));
        for name in elsewhere.files().iter().filter(|name| name.starts_with("step-20/")) {
            kept.write(name, elsewhere.read(name));
        }
        let error = storage.remove(20, EPOCH).unwrap_err();
        assert!(matches!(error, CheckpointError::NotWritten { step: 20, .. }), "{error}");
        assert_eq!(storage.verify(20).unwrap(), []);
    });
}

/// A failed checkpoint is in nobody's way: every place takes away what it has written, and nothing else.
#[test]
fn t10_what_failed_is_taken_away_by_who_has_written_it() {
    in_each(|kept, storage| {
        write_shards(&storage, 10, shape(1, 1, 2));
        let later = ShardFile::name_of(&writer(&storage, EPOCH + 1, 1, 2));
        let foreign = ShardFile::name_of(&Writer { owner: owner(2).id, ..writer(&storage, EPOCH, 0, 2) });
        for name in [&later, &foreign] {
            kept.write(&name_in(10, name), "kept");
        }
        storage.drop_shard(10, writer(&storage, EPOCH, 0, 2)).unwrap();
        storage.drop_shard(10, writer(&storage, EPOCH, 0, 2)).unwrap();
        let mut left = vec![
            format!("step-10/{}", ShardFile::name_of(&writer(&storage, EPOCH, 1, 2))),
            format!("step-10/{later}"),
            format!("step-10/{foreign}"),
            OWNER_NAME.to_string(),
        ];
        left.sort();
        assert_eq!(kept.files(), left);
        for name in [&later, &foreign] {
            kept.remove(&name_in(10, name));
        }
        storage.drop_shard(10, writer(&storage, EPOCH, 1, 2)).unwrap();
        assert_eq!(kept.files(), [OWNER_NAME]);
        assert!(!Path::new(&kept.path("step-10")).exists(), "an empty folder stays");
        write(&storage, 20, shape(1, 1, 2));
        storage.drop_shard(20, writer(&storage, EPOCH, 0, 2)).unwrap();
        assert_eq!(storage.verify(20).unwrap(), [], "T-6: what can be seen is whole");
    });
}

/// T-6: one that is published at the very moment at which its shards are dropped is whole, or cannot be seen.
#[test]
fn t6_a_checkpoint_is_dropped_or_published_and_never_half_of_both() {
    in_each(|_, storage| {
        let storage = Arc::new(storage);
        let (mut num_seen, mut num_dropped) = (0, 0);
        for step in 1..=100 {
            let manifest = write_shards(&storage, step, shape(1, 1, 2));
            let begin = Arc::new(Barrier::new(3));
            let drops: Vec<_> = (0..2)
                .map(|rank| {
                    let (storage, begin) = (Arc::clone(&storage), Arc::clone(&begin));
                    std::thread::spawn(move || {
                        begin.wait();
                        storage.drop_shard(step, writer(&storage, EPOCH, rank, 2)).unwrap();
                    })
                })
                .collect();
            begin.wait();
            let is_published = storage.publish(&manifest).is_ok();
            drops.into_iter().for_each(|drop| drop.join().unwrap());
            let is_seen = storage.steps().unwrap().contains(&step);
            assert_eq!(is_seen, is_published, "step {step}");
            if is_seen {
                assert_eq!(storage.verify(step).unwrap(), [], "step {step}");
            }
            num_seen += u32::from(is_seen);
            num_dropped += u32::from(!is_seen);
        }
        assert_eq!(num_seen + num_dropped, 100);
    });
}
