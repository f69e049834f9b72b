//! A folder that holds a model as Hugging Face saves it: what it says of itself, and its files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use toroid_torus::model::ModelConfig;

use crate::bytes_tokenizer;
use crate::config::{self, Described};
use crate::layout::INDEX_NAME;
use crate::names;

/// A configuration has a few KB, and an index some hundred bytes a tensor.
const MAX_JSON_BYTES: u64 = 64 << 20;
const CONFIG_NAME: &str = "config.json";

/// A folder with the configuration of a `GraniteMoeSharedForCausalLM`.
#[derive(Debug, Clone, PartialEq)]
pub struct Folder {
    path: PathBuf,
    described: Described,
    /// By Hugging Face's name of a tensor the name of its file; `None`: the folder has no index.
    index: Option<BTreeMap<String, String>>,
}

impl Folder {
    /// Looks at `path`; `None`: it is no folder with a `config.json` that names a `model_type`. An error is everything that is wrong with it.
    pub fn open(path: &Path) -> Result<Option<Folder>, Vec<String>> {
        let file = path.join(CONFIG_NAME);
        let config = match read_object(&file) {
            Ok(config) => config,
            Err(Unreadable::Io(e)) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(vec![e.of(&file)]),
        };
        if !config.contains_key("model_type") {
            return Ok(None);
        }
        let in_file =
            |problems: Vec<String>| problems.iter().map(|p| format!("{CONFIG_NAME}: {p}")).collect::<Vec<_>>();
        let described = config::describe(&config).map_err(in_file)?;
        let index = read_index(&path.join(INDEX_NAME)).map_err(|problem| vec![problem])?;
        Ok(Some(Folder { path: path.into(), described, index }))
    }

    /// The model that its configuration describes.
    pub fn model(&self) -> &ModelConfig {
        &self.described.model
    }

    /// Whether a token is a byte, by its `tokenizer.json`; `None`: it has none.
    pub fn has_byte_tokens(&self) -> Result<Option<bool>, String> {
        let file = self.path.join("tokenizer.json");
        let found = match read_object(&file) {
            Ok(found) => found,
            Err(Unreadable::Io(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.of(&file)),
        };
        let vocab = |tokenizer: &Value| tokenizer["model"]["vocab"].clone();
        Ok(Some(vocab(&Value::Object(found)) == vocab(&bytes_tokenizer::tokenizer_json(self.model()))))
    }

    /// Where that model and a job's differ.
    pub fn differences(&self, job: &ModelConfig) -> Vec<String> {
        config::differences(self.model(), job)
    }

    /// The safetensors files of the model, by name: those of the index where there is one.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        if let Some(index) = &self.index {
            let names: std::collections::BTreeSet<&String> = index.values().collect();
            return Ok(names.into_iter().map(|name| self.path.join(name)).collect());
        }
        safetensors_in(&self.path)
    }

    /// The name in its files of the model's tensor `name`; the tensor's own where the table has none. A head that is tied is the embedding.
    pub fn name_of(&self, name: &str) -> String {
        match names::of_hugging_face(name) {
            Some(theirs) if theirs == names::HEAD && self.described.ties_embeddings => names::EMBEDDING.into(),
            Some(theirs) => theirs,
            None => name.into(),
        }
    }

    /// Whether its files may have a tensor of this name that is not one of the model.
    pub fn is_ignored(&self, name: &str) -> bool {
        names::is_ignored(name, self.described.ties_embeddings)
    }

    /// What is wrong with a tensor's being in `file`, by the index.
    pub fn misplaced(&self, name: &str, file: &Path) -> Option<String> {
        let index = self.index.as_ref()?;
        let found = file.file_name().and_then(|f| f.to_str()).unwrap_or_default();
        match index.get(name) {
            Some(expected) if expected == found => None,
            Some(expected) => Some(format!("tensor {name} is in {found}, {INDEX_NAME} says in {expected}")),
            None => Some(format!("tensor {name} of {found} is not in {INDEX_NAME}")),
        }
    }
}

/// Opens a file that has an end: a pipe would be waited for, a device may have none.
pub fn open_regular(path: &Path) -> io::Result<File> {
    match fs::metadata(path)? {
        found if found.is_file() => File::open(path),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// The files of a folder that end in `.safetensors`, by name.
pub fn safetensors_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>)?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    Ok(files)
}

enum Unreadable {
    Io(io::Error),
    TooLarge,
    Json(serde_json::Error),
}

impl Unreadable {
    fn of(self, file: &Path) -> String {
        let file = file.display();
        match self {
            Unreadable::Io(error) => format!("cannot read {file}: {error}"),
            Unreadable::TooLarge => format!("{file} has more than {MAX_JSON_BYTES} bytes: it is not what it is called"),
            Unreadable::Json(error) => format!("{file} is not an object of JSON: {error}"),
        }
    }
}

fn read_object(file: &Path) -> Result<Map<String, Value>, Unreadable> {
    let mut bytes = Vec::new();
    let limited = open_regular(file).map(|file| file.take(MAX_JSON_BYTES + 1));
    limited.and_then(|mut file| file.read_to_end(&mut bytes)).map_err(Unreadable::Io)?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(Unreadable::TooLarge);
    }
    serde_json::from_slice(&bytes).map_err(Unreadable::Json)
}

/// The index, `None` where there is none. Files lie in the folder itself: a name that leads elsewhere is refused.
fn read_index(file: &Path) -> Result<Option<BTreeMap<String, String>>, String> {
    let object = match read_object(file) {
        Ok(object) => object,
        Err(Unreadable::Io(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.of(file)),
    };
    let Some(Value::Object(map)) = object.get("weight_map") else {
        return Err(format!("{INDEX_NAME} has no `weight_map`, which says which tensor is in which file"));
    };
    let entry = |(tensor, name): (&String, &Value)| match name.as_str() {
        Some(name) if !name.is_empty() && !name.contains(['/', '\\']) && name != ".." && name != "." => {
            Ok((tensor.clone(), name.to_string()))
        }
        _ => Err(format!("{INDEX_NAME} says that tensor {tensor} is in {name}, expected the name of a file beside it")),
    };
    map.iter().map(entry).collect::<Result<BTreeMap<_, _>, _>>().map(Some)
}
