//! Exports, and initial weights from safetensors files.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use toroid_hf::names::of_hugging_face;

use super::*;

#[test]
fn an_export_has_every_tensor_whole() {
    let (folder, storage) = temporary();
    write(&storage, 10, shape(4, 2, 2));
    let path = folder.path().join("model.safetensors");
    storage.export(10, &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), model().tensors().len());
    for spec in model().tensors() {
        let view = tensors.tensor(&spec.name).unwrap();
        assert_eq!((view.dtype(), view.shape()), (Dtype::F32, &spec.shape[..]));
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let expected = (0..spec.num_elements()).map(|i| value(&spec.name, Kind::Param, i));
        assert!(values.eq(expected), "{}", spec.name);
    }
    let left: Vec<String> = files_below(folder.path()).into_iter().filter(|f| !f.starts_with("checkpoints/")).collect();
    assert_eq!(left, ["model.safetensors"]);
}

#[test]
fn an_export_that_fails_leaves_nothing() {
    let (folder, storage) = temporary();
    let manifest = write(&storage, 10, shape(1, 1, 1));
    let error = storage.export(10, &folder.path().join("none/model.safetensors")).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Write { file, .. } if file.ends_with("none/model.safetensors")),
        "{error}"
    );
    std::fs::remove_file(format!("{}/{}", storage.step_path(10), manifest.files[0].file)).unwrap();
    let before = files_below(folder.path());
    assert!(storage.export(10, &folder.path().join("model.safetensors")).is_err());
    assert_eq!(files_below(folder.path()), before);
}

/// A tensor of a file: type, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(dtype: Dtype, encode: fn(f32) -> Vec<u8>) -> Tensors {
    let specs = model().tensors().into_iter();
    let bytes = |name: &str, len| (0..len).flat_map(|i| encode(value(name, Kind::Param, i))).collect();
    specs.map(|s| (s.name.clone(), (dtype, s.shape.clone(), bytes(&s.name, s.num_elements())))).collect()
}

fn f32_tensors() -> Tensors {
    tensors(Dtype::F32, |v| v.to_le_bytes().to_vec())
}

fn save<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a String, &'a (Dtype, Vec<usize>, Vec<u8>))>) {
    let views = tensors
        .into_iter()
        .map(|(n, (dtype, shape, bytes))| (n, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Loads every partition of `shape` and compares with `expected` of the element's value.
fn check_initial(path: &Path, shape: Shape, expected: fn(f32) -> f32) {
    for rank in 0..shape.world() {
        let (partition, _) = shard_of(&model(), &shape, rank);
        let mut params = vec![f32::NAN; partition.padded_len];
        load_initial(path, &model(), &partition, &mut params).unwrap();
        let whole = flat(&partition, Kind::Param, 0.0);
        let differs = (0..params.len()).find(|&i| params[i] != expected(whole[i]));
        assert_eq!(differs, None, "rank {rank} of {shape}");
    }
}

#[test]
fn initial_weights_load_under_any_shape_from_a_file_or_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let all = f32_tensors();
    let half = all.len() / 2;
    save(&folder.path().join("a.safetensors"), all.iter().take(half));
    save(&folder.path().join("b.safetensors"), all.iter().skip(half));
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let (exports, storage) = temporary();
    write(&storage, 10, shape(2, 2, 1));
    let export = exports.path().join("model.safetensors");
    storage.export(10, &export).unwrap();
    for shape in [shape(1, 1, 1), shape(2, 2, 3), shape(4, 4, 1)] {
        check_initial(folder.path(), shape, |v| v);
        check_initial(&export, shape, |v| v);
    }
}

#[test]
fn bf16_is_converted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save(&path, &tensors(Dtype::BF16, |v| v.to_le_bytes()[2..].to_vec()));
    check_initial(&path, shape(2, 2, 1), |v| f32::from_bits(v.to_bits() & 0xffff_0000));
}

/// `change` is made to the right tensors; the error must have all of `expected` in it.
fn check_refused(change: impl FnOnce(&mut Tensors), expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = f32_tensors();
    change(&mut tensors);
    save(&path, &tensors);
    let error = refusal(&path);
    for part in expected.iter().copied().chain([path.to_str().unwrap()]) {
        assert!(error.contains(part), "`{part}` is not in `{error}`");
    }
}

/// The last stage finds what is wrong with a tensor of the first, too.
fn refusal(path: &Path) -> String {
    let (partition, _) = shard_of(&model(), &shape(1, 4, 1), 3);
    let mut params = vec![0.0; partition.padded_len];
    load_initial(path, &model(), &partition, &mut params).unwrap_err().to_string()
}

#[test]
fn initial_weights_that_do_not_fit_are_refused_with_all_that_is_wrong() {
    let f32s = |shape: &[usize]| (Dtype::F32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()]);
    check_refused(|t| drop(t.remove("blocks.0.n1.weight")), &["blocks.0.n1.weight is missing", "[12]"]);
    check_refused(|t| drop(t.insert("lm_head".into(), f32s(&[2]))), &["lm_head is not one of this model"]);
    check_refused(
        |t| drop(t.insert("norm.weight".into(), f32s(&[3, 4]))),
        &["norm.weight has the shape [3, 4], expected [12]"],
    );
    check_refused(
        |t| drop(t.insert("norm.weight".into(), (Dtype::I8, vec![12], vec![0; 12]))),
        &["norm.weight is of type I8, expected F32, BF16 or F16"],
    );
    check_refused(
        |t| {
            t.remove("head.weight");
            t.insert("lm_head".into(), f32s(&[256, 12]));
        },
        &["head.weight is missing", "lm_head is not one"],
    );
    check_refused(|t| *t = t.iter().map(|(n, v)| (format!("model.{n}"), v.clone())).collect(), &["and ", " more"]);
}

#[test]
fn initial_weights_that_are_not_there_or_no_safetensors_are_refused() {
    let (folder, storage) = temporary();
    let path = folder.path().join("weights");
    assert!(refusal(&path).contains("No such file"));
    std::fs::create_dir(&path).unwrap();
    assert!(refusal(&path).contains("no *.safetensors file"));
    let file = path.join("model.safetensors");
    for bytes in [&b""[..], b"PK\x03\x04 a pickle, say", &[0xff; 100]] {
        std::fs::write(&file, bytes).unwrap();
        assert!(refusal(&path).contains("model.safetensors is not a safetensors file"), "{}", refusal(&path));
    }
    save(&file, &f32_tensors());
    save(&path.join("copy.safetensors"), f32_tensors().iter().take(1));
    assert!(refusal(&path).contains("is in two files"));
    write(&storage, 10, shape(1, 1, 1));
    assert!(refusal(Path::new(&storage.step_path(10))).contains("give it as resume_from"));
}

#[test]
fn a_weight_that_is_no_finite_number_is_refused_with_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let halves = |bits: u16| (Dtype::BF16, 2, bits.to_le_bytes().to_vec());
    let singles = |value: f32| (Dtype::F32, 4, value.to_le_bytes().to_vec());
    let bad = [
        ("NaN", singles(f32::NAN)),
        ("inf", singles(f32::INFINITY)),
        ("-inf", halves(0xff80)),
        ("NaN", halves(0x7fc0)),
    ];
    for (word, (dtype, size, bytes)) in bad {
        let mut all = match dtype {
            Dtype::F32 => f32_tensors(),
            _ => tensors(Dtype::BF16, |v| ((v.to_bits() >> 16) as u16).to_le_bytes().to_vec()),
        };
        let name = model().tensors()[3].name.clone();
        all.get_mut(&name).unwrap().2[5 * size..6 * size].copy_from_slice(&bytes);
        save(&path, &all);
        let (partition, _) = shard_of(&model(), &shape(1, 1, 1), 0);
        let mut params = vec![0.0; partition.padded_len];
        let error = load_initial(&path, &model(), &partition, &mut params).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor {name} has {word} at element 5")), "{error}");
    }
}

/// Exports step 10, a checkpoint of four places, as a folder of Hugging Face's.
fn export_hf(storage: &Storage, folder: &Path, dtype: toroid_hf::Dtype) -> std::path::PathBuf {
    let path = folder.join("hf");
    storage.export_hf(10, &path, dtype, 4_000, Vec::new()).unwrap();
    path
}

/// The way to Hugging Face's folder and back changes no bit, whatever the shapes on both sides.
#[test]
fn an_export_for_hugging_face_is_initial_weights_again() {
    for dtype in [toroid_hf::Dtype::F32, toroid_hf::Dtype::Bf16] {
        let (folder, storage) = temporary();
        write(&storage, 10, shape(2, 2, 1));
        let path = export_hf(&storage, folder.path(), dtype);
        assert!(toroid_hf::safetensors_in(&path).unwrap().len() > 3);
        let to_bf16 = |v| f32::from_bits(u32::from(toroid_hf::dtype::bf16_of_f32(v).unwrap()) << 16);
        for shape in [shape(1, 1, 1), shape(2, 2, 3), shape(4, 4, 1)] {
            check_initial(&path, shape, if dtype == toroid_hf::Dtype::F32 { |v| v } else { to_bf16 });
        }
    }
}

/// Exports of both kinds say whose tokens the rows of the embedding are; what others save says nothing, and is taken.
#[test]
fn weights_of_another_tokenizer_are_refused() {
    let (folder, storage) = temporary();
    write(&storage, 10, shape(2, 1, 1));
    let other = Manifest { step: 20, tokenizer: Some("ab12".into()), ..write_shards(&storage, 20, shape(2, 1, 1)) };
    storage.publish(&other).unwrap();
    for (step, own, another) in [(10, None, Some("ab12")), (20, Some("ab12"), None), (20, Some("ab12"), Some("cd"))] {
        let path = folder.path().join(format!("{step}.safetensors"));
        storage.export(step, &path).unwrap();
        let hf = folder.path().join(format!("hf-{step}-{another:?}"));
        storage.export_hf(step, &hf, toroid_hf::Dtype::F32, 4_000, Vec::new()).unwrap();
        for path in [&path, &hf] {
            check_tokenizer(path, own).unwrap();
            let error = check_tokenizer(path, another).unwrap_err().to_string();
            let (found, expected) = (own.unwrap_or("bytes"), another.unwrap_or("bytes"));
            assert!(error.contains(&format!("is {found} there and {expected} in the data")), "{error}");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
    let path = folder.path().join("theirs.safetensors");
    save(&path, &f32_tensors());
    check_tokenizer(&path, Some("ab12")).unwrap();
}

/// Weights that are replaced by others while a job goes on have another name; the same ones, made again, have not.
#[test]
fn a_digest_names_the_weights() {
    let (folder, storage) = temporary();
    write(&storage, 10, shape(2, 1, 1));
    let (first, again) = (folder.path().join("first.safetensors"), folder.path().join("again.safetensors"));
    storage.export(10, &first).unwrap();
    storage.export(10, &again).unwrap();
    let digest = digest_of_weights(&first).unwrap();
    assert_eq!(digest_of_weights(&again).unwrap(), digest);
    let mut tensors = f32_tensors();
    save(&again, &tensors);
    assert_eq!(digest_of_weights(&again).unwrap(), digest, "without what an export says of itself");
    tensors.get_mut("blocks.0.n1.weight").unwrap().2[0] ^= 1;
    save(&again, &tensors);
    assert_ne!(digest_of_weights(&again).unwrap(), digest);
}

/// Heads of another width, and a rotary embedding of another base, are in no shape.
#[test]
fn an_export_of_another_model_with_the_same_shapes_is_refused() {
    let (folder, storage) = temporary();
    write(&storage, 10, shape(2, 1, 1));
    let path = folder.path().join("model.safetensors");
    storage.export(10, &path).unwrap();
    let other = ModelConfig { rope_theta: 77.0, seq: 2 * model().seq, ..model() };
    let (partition, _) = shard_of(&other, &shape(1, 1, 1), 0);
    let mut params = vec![0.0; partition.padded_len];
    let error = load_initial(&path, &other, &partition, &mut params).unwrap_err().to_string();
    assert!(error.contains("it is of another model") && error.contains("rope_theta: 77.0"), "{error}");
    let longer = ModelConfig { seq: 2 * model().seq, ..model() };
    load_initial(&path, &longer, &partition, &mut params).unwrap();
}

/// As others save it: halves of another width, one file, no index, a buffer of old versions, a head that is the embedding.
#[test]
fn folders_of_hugging_face_are_taken_as_others_save_them() {
    let folder = tempfile::tempdir().unwrap();
    let config = toroid_hf::config::config_json(&model(), toroid_hf::Dtype::F16, None);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    // 1 and 2 alone are f16 of every value here.
    let f16 = |v: f32| if v < 0.0 { 0x3c00_u16 } else { 0x4000 }.to_le_bytes().to_vec();
    let named = tensors(Dtype::F16, f16).into_iter().map(|(name, t)| (of_hugging_face(&name).unwrap(), t));
    let mut all: Tensors = named.collect();
    all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (Dtype::F32, vec![2], vec![0; 8]));
    save(&folder.path().join("model.safetensors"), &all);
    // Padding is 0.
    let expected = |v: f32| if v == 0.0 { v } else { 1.5 + v.signum() / 2.0 };
    check_initial(folder.path(), shape(2, 2, 1), expected);

    let tied = config.to_string().replace("\"tie_word_embeddings\":false", "\"tie_word_embeddings\":true");
    std::fs::write(folder.path().join("config.json"), tied).unwrap();
    all.remove("lm_head.weight").unwrap();
    save(&folder.path().join("model.safetensors"), &all);
    let (partition, _) = shard_of(&model(), &shape(1, 1, 1), 0);
    let mut params = vec![0.0; partition.padded_len];
    load_initial(folder.path(), &model(), &partition, &mut params).unwrap();
    let of = |name: &str| {
        let slice = partition.slice(name).unwrap();
        &params[slice.offset..slice.offset + slice.len]
    };
    assert!(of("head.weight") == of("emb.weight") && of("emb.weight").contains(&2.0));
}

#[test]
fn folders_of_hugging_face_that_do_not_fit_are_refused() {
    let (folder, storage) = temporary();
    write(&storage, 10, shape(1, 1, 1));
    let path = export_hf(&storage, folder.path(), toroid_hf::Dtype::F32);
    let config_file = path.join("config.json");
    let config = std::fs::read_to_string(&config_file).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        assert!(config.contains(from), "{config}");
        std::fs::write(&config_file, config.replace(from, to)).unwrap();
        let error = refusal(&path);
        assert!(error.contains(expected) && error.contains(path.to_str().unwrap()), "`{expected}` is not in `{error}`");
    };
    check(
        "\"num_local_experts\": 4",
        "\"num_local_experts\": 8",
        "num_local_experts of its config.json is 8, the job's model.experts is 4",
    );
    check("\"residual_multiplier\": 1.0", "\"residual_multiplier\": 0.22", "residual_multiplier is 0.22, expected 1");
    std::fs::write(&config_file, &config).unwrap();
    let files = toroid_hf::safetensors_in(&path).unwrap();
    let error = refusal(&files[0]);
    assert!(error.contains("it has Hugging Face's names; give the folder"), "{error}");
    std::fs::remove_file(&files[1]).unwrap();
    assert!(refusal(&path).contains("No such file"), "{}", refusal(&path));
    std::fs::copy(&files[0], &files[1]).unwrap();
    assert!(refusal(&path).contains("says in model-"), "{}", refusal(&path));
}
