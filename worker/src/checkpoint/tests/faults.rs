//! Every kind of damage is found, and named by file and tensor.

use std::process::Command;

use toroid_torus::manifest::{Entry, ManifestError};

use super::*;

/// Damages the file `name` of step 10 by `damage`, checks what `verify` says, and puts the file back.
fn check_damage(
    (kept, storage): (&Kept, &Owned),
    name: &str,
    damage: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    expected: (FaultKind, Option<&str>),
) {
    let path = name_in(10, name);
    let bytes = kept.read(&path);
    match damage(&bytes) {
        Some(damaged) => kept.write(&path, damaged),
        None => kept.remove(&path),
    }
    let faults = storage.verify(10).unwrap();
    let found: Vec<_> = faults.iter().map(|f| (f.file.as_str(), f.kind, f.tensor.as_deref())).collect();
    let file = if name == digest_of(storage) { MANIFEST_NAME } else { name };
    assert_eq!(found, [(file, expected.0, expected.1)], "{faults:?}");
    let words = faults[0].to_string();
    assert!(words.contains(file) && words.contains(expected.1.unwrap_or("")), "{words}");
    assert!(expected.0 != FaultKind::Header || words.contains("header"), "{words}");
    kept.write(&path, bytes);
}

fn remove(_: &[u8]) -> Option<Vec<u8>> {
    None
}

fn flip(bit: usize) -> impl FnOnce(&[u8]) -> Option<Vec<u8>> {
    move |bytes| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        Some(bytes)
    }
}

#[test]
fn a_flipped_bit_in_the_data_names_file_and_tensor() {
    in_each(|kept, storage| {
        let manifest = write(&storage, 10, shape(2, 1, 2));
        for file in &manifest.files {
            for (i, entry) in file.entries.iter().enumerate() {
                let first = 8 * entry.file_offset as usize;
                let last = first + 8 * entry.bytes() as usize - 1;
                let bit = if i % 2 == 0 { first } else { last };
                check_damage((&kept, &storage), &file.file, flip(bit), (FaultKind::Data, Some(&entry.tensor)));
            }
        }
        assert_eq!(storage.verify(10).unwrap(), []);
    });
}

#[test]
fn a_flipped_bit_in_a_header_names_the_file() {
    in_each(|kept, storage| {
        let manifest = write(&storage, 10, shape(1, 1, 2));
        for file in &manifest.files {
            for byte in (0..file.header_bytes() as usize).step_by(29).chain(0..8) {
                check_damage((&kept, &storage), &file.file, flip(8 * byte + byte % 8), (FaultKind::Header, None));
            }
        }
    });
}

#[test]
fn a_flipped_bit_in_the_manifest_or_its_digest_is_found() {
    in_each(|kept, storage| {
        write(&storage, 10, shape(1, 1, 2));
        let digest = digest_of(&storage);
        for name in [MANIFEST_NAME, &digest] {
            let bytes = kept.read(&name_in(10, name));
            for byte in (0..bytes.len()).step_by(61) {
                check_damage((&kept, &storage), name, flip(8 * byte + byte % 8), (FaultKind::Manifest, None));
            }
        }
        check_damage((&kept, &storage), &digest, remove, (FaultKind::Manifest, None));
        check_damage((&kept, &storage), MANIFEST_NAME, remove, (FaultKind::Missing, None));
    });
}

#[test]
fn a_file_of_another_size_or_none_is_named() {
    in_each(|kept, storage| {
        let manifest = write(&storage, 10, shape(2, 1, 2));
        for file in &manifest.files {
            check_damage((&kept, &storage), &file.file, remove, (FaultKind::Missing, None));
            for len in [0, 4, file.header_bytes() as usize, file.bytes as usize - 1] {
                let truncate = |bytes: &[u8]| Some(bytes[..len].to_vec());
                check_damage((&kept, &storage), &file.file, truncate, (FaultKind::Size, None));
            }
            let append = |bytes: &[u8]| Some([bytes, b"\0"].concat());
            check_damage((&kept, &storage), &file.file, append, (FaultKind::Size, None));
        }
        assert!(matches!(storage.verify(11), Err(CheckpointError::NotFound { step: 11, .. })));
    });
}

/// A file that cannot be read at all is one fault, and the others are still looked at.
#[test]
fn several_faults_are_all_named() {
    in_each(|kept, storage| {
        let manifest = write(&storage, 10, shape(1, 1, 2));
        let name = |i: usize| name_in(10, &manifest.files[i].file);
        let mut bytes = kept.read(&name(0));
        let (a, b) = (&manifest.files[0].entries[0], &manifest.files[0].entries[2]);
        for at in [20, a.file_offset as usize, b.file_offset as usize] {
            bytes[at] ^= 0x10;
        }
        kept.write(&name(0), bytes);
        kept.remove(&name(1));
        kept.write(&format!("{}/of-a-user", name(1)), "a folder of this name");
        let found: Vec<_> = storage.verify(10).unwrap().into_iter().map(|f| (f.file, f.kind, f.tensor)).collect();
        let (first, second) = (&manifest.files[0].file, &manifest.files[1].file);
        let expected = [
            (first.clone(), FaultKind::Header, None),
            (first.clone(), FaultKind::Data, Some(a.tensor.clone())),
            (first.clone(), FaultKind::Data, Some(b.tensor.clone())),
        ];
        assert_eq!(found[..3], expected);
        assert_eq!((found.len(), &found[3].0), (4, second));
    });
}

/// No value that does not match its digest is handed out.
#[test]
fn loading_damaged_values_fails_and_names_them() {
    in_each(|kept, storage| {
        let manifest = write(&storage, 10, shape(1, 1, 2));
        let (partition, _) = shard_of(&model(), &shape(1, 1, 1), 0);
        let whole = 0..partition.padded_len;
        let file = &manifest.files[1];
        let name = name_in(10, &file.file);
        let bytes = kept.read(&name);
        let entry = &file.entries[5];

        kept.write(&name, flip(8 * entry.file_offset as usize + 3)(&bytes).unwrap());
        let error = load(&storage, &manifest, &partition, whole.clone()).unwrap_err();
        assert!(matches!(&error, CheckpointError::Damaged { tensor, .. } if tensor == &entry.tensor), "{error}");

        kept.write(&name, &bytes[..entry.file_offset as usize + 4]);
        let error = load(&storage, &manifest, &partition, whole.clone()).unwrap_err();
        assert!(matches!(&error, CheckpointError::Damaged { what, .. } if what.contains("ends at byte")), "{error}");

        kept.remove(&name);
        let error = load(&storage, &manifest, &partition, whole).unwrap_err();
        assert!(matches!(&error, CheckpointError::Missing { file } if *file == kept.path(&name)), "{error}");
    });
}

#[test]
fn a_damaged_manifest_is_refused() {
    in_each(|kept, storage| {
        write(&storage, 10, shape(1, 1, 1));
        let name = name_in(10, MANIFEST_NAME);
        let json = String::from_utf8(kept.read(&name)).unwrap().replace("\"epoch\": 3", "\"epoch\": 4");
        kept.write(&name, json);
        let error = storage.manifest(10).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::ManifestDamaged { file, .. } if *file == kept.path(&name)),
            "{error}"
        );
    });
}

/// One way to change the entries of a manifest.
type Lie = fn(&mut Vec<Entry>);

/// What a manifest says is checked before anything is read by it: nothing leads out of a tensor or a file.
#[test]
fn a_manifest_that_lies_is_refused() {
    in_each(|_, storage| {
        let good = write(&storage, 10, shape(2, 1, 1));
        let lies: [(&str, Lie); 9] = [
            ("shape", |e| e[0].global_shape[0] += 1),
            ("dim", |e| e[0].slice.dim = 9),
            ("beyond the extent", |e| e[0].slice.ranges[0].end += 1000),
            ("descending slice", |e| e[0].slice.ranges.push(0..1)),
            ("beyond the slice", |e| e[0].range.end += 1),
            ("huge", |e| e[0].range.end = usize::MAX),
            ("offset", |e| e[1].file_offset = u64::MAX - 3),
            ("unknown tensor", |e| e[0].tensor = "nobody".into()),
            ("gap", |e| drop(e.remove(3))),
        ];
        for (name, lie) in lies {
            let mut manifest = good.clone();
            lie(&mut manifest.files[0].entries);
            assert!(manifest.check().is_err(), "{name}");
            assert!(Manifest::parse(&manifest.to_json()).is_err(), "{name}");
        }
        let mut path = good.clone();
        path.files[0].file = "../shard-00000.safetensors".into();
        assert!(matches!(path.check(), Err(ManifestError::File { .. })));
        let mut twice = good.clone();
        twice.files.push(good.files[0].clone());
        assert!(matches!(twice.check(), Err(ManifestError::File { .. })));
        // As many elements as there should be, but the first half of the rows twice.
        let mut overlap = good.clone();
        let first = overlap.files[0].entries[0].slice.clone();
        overlap.files[1].entries[0].slice = first;
        assert!(matches!(overlap.check(), Err(ManifestError::Cover { .. })), "{:?}", overlap.check());
        assert_eq!(good.check(), Ok(()));
    });
}

#[test]
fn a_checkpoint_set_aside_is_not_offered_but_kept() {
    in_each(|kept, storage| {
        write(&storage, 10, shape(1, 1, 1));
        let damaged = write(&storage, 20, shape(1, 1, 1));
        storage.set_aside(20, "a test").unwrap();
        assert_eq!(storage.steps().unwrap(), [10]);
        let shards = || kept.files().iter().filter(|name| name.ends_with(&damaged.files[0].file)).count();
        assert_eq!(shards(), 2, "of step 10, and the damaged one");
        // An order that comes late does not bring it back.
        let error = storage.publish(&damaged).unwrap_err();
        assert!(matches!(error, CheckpointError::Unpublishable { step: 20, .. }), "{error}");
        let again = write_shards_in(&storage, EPOCH + 1, 20, shape(1, 1, 1));
        storage.publish(&again).unwrap();
        assert_eq!((storage.steps().unwrap(), storage.verify(20).unwrap()), (vec![10, 20], vec![]));
        storage.set_aside(20, "a test").unwrap();
        assert_eq!((storage.steps().unwrap(), shards()), (vec![10], 2));
        let error = storage.set_aside(20, "a test").unwrap_err();
        assert!(matches!(error, CheckpointError::Change { action: "rename", .. }), "{error}");
    });
}

#[test]
fn a_folder_that_is_set_aside_gets_a_free_name() {
    let (_folder, storage) = temporary();
    for expected in ["/damaged-step-20", "/damaged-step-20.2", "/damaged-step-20.3"] {
        write(&storage, 20, shape(1, 1, 1));
        let path = storage.set_aside(20, "a test").unwrap();
        assert!(path.ends_with(expected) && Path::new(&path).join(MANIFEST_NAME).exists(), "{path}");
    }
}

/// T-11: who does not find a checkpoint knows nothing of it; wrong bytes are wrong for everybody.
#[test]
fn t11_what_cannot_be_read_is_not_damaged() {
    in_each(|kept, storage| {
        let manifest = write(&storage, 10, shape(1, 1, 2));
        let (partition, range) = shard_of(&model(), &shape(1, 1, 2), 0);
        let load = |storage: &Storage| {
            let manifest = storage.manifest(10).map_err(|e| (e, false))?;
            load(storage, &manifest, &partition, range.clone()).map_err(|e| (e, true))
        };
        let check = |storage: &Storage, expected: Option<ReadFault>| {
            let found = load(storage).err().map(|(error, manifest_read)| storage.read_fault(10, &error, manifest_read));
            assert_eq!(found, expected);
        };
        check(&storage, None);
        let elsewhere = Storage::open(kept.beside("not-mounted").to_str().unwrap()).unwrap();
        check(&elsewhere, Some(ReadFault::Unreadable { manifest_read: false }));
        let name = name_in(10, &manifest.files[0].file);
        let bytes = kept.read(&name);
        kept.remove(&name);
        check(&storage, Some(ReadFault::Unreadable { manifest_read: true }));
        let last = 8 * bytes.len() - 1;
        kept.write(&name, flip(last)(&bytes).unwrap());
        check(&storage, Some(ReadFault::Damaged));
        // Another has found that and set it aside.
        storage.set_aside(10, "a test").unwrap();
        check(&storage, Some(ReadFault::Damaged));
    });
}

const FULL_DISK_ROOT: &str = "TOROID_TEST_FULL_DISK_ROOT";
const REFUSED: &str = "the full disk was named";

/// A process that may not write files of more than 8 KiB stands for a disk that is full: the write fails in the middle
/// of a file, with an error of the same class, and it needs no rights. The limit is one of the process, so it is a
/// child that has it.
#[test]
fn a_full_disk_is_named_and_leaves_nothing_behind() {
    if let Some(root) = std::env::var_os(FULL_DISK_ROOT) {
        return write_to_a_full_disk(root.to_str().unwrap());
    }
    let (folder, storage) = temporary();
    write(&storage, 10, shape(1, 1, 1));
    let before = files_below(folder.path());
    let name = std::thread::current().name().unwrap().to_string();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact --nocapture \"$1\""])
        .args([std::env::current_exe().unwrap().as_os_str(), name.as_ref()])
        .env(FULL_DISK_ROOT, storage.root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(REFUSED), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files_below(folder.path()), before);
    assert_eq!(storage.steps().unwrap(), [10]);
    assert_eq!(storage.verify(10).unwrap(), []);
    write(&storage, 20, shape(1, 1, 1));
}

fn write_to_a_full_disk(root: &str) {
    let storage = open(root);
    let error = write_rank(&storage, 20, &shape(1, 1, 1), 0).unwrap_err();
    let path = format!("{root}/step-20/{}", ShardFile::name_of(&writer(&storage, EPOCH, 0, 1)));
    assert!(
        matches!(&error, CheckpointError::NoSpace { file, bytes, .. } if file == &path && *bytes > 8192),
        "{error}"
    );
    let export = Path::new(root).join("export.safetensors");
    let error = storage.export(10, &export).unwrap_err();
    assert!(matches!(&error, CheckpointError::NoSpaceForExport { file, .. } if Path::new(file) == export), "{error}");
    assert!(!error.to_string().contains("checkpoint.path"), "{error}");
    println!("{REFUSED}");
}
