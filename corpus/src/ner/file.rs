//! A model as a file: little-endian numbers, entries and features in order, and a digest of all at the end.
//!
//! ```text
//!   "TOROIDNE" version u32, num_tags u32
//!   text that says what it was trained on; gazetteers: num u32, of each: name, num u64, keys u64
//!   features: num u64, of each: key u64, weights i16 x num_tags
//!   blake3 of all before, 32 bytes
//! ```

use std::path::Path;

use super::{Gazetteer, MAX_GAZETTEERS, Model, NUM_TAGS, Weights};
use crate::doc::KeyMap;
use crate::durable;
use crate::error::{At, Error, Result};

const MAGIC: &[u8; 8] = b"TOROIDNE";
const VERSION: u32 = 1;
const DIGEST_BYTES: usize = 32;
/// A larger file is no model.
const MAX_BYTES: u64 = 1 << 30;

impl Model {
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((NUM_TAGS as u32).to_le_bytes());
        put_text(&mut bytes, &self.trained_on);
        bytes.extend((self.gazetteers.len() as u32).to_le_bytes());
        for gazetteer in &self.gazetteers {
            put_text(&mut bytes, &gazetteer.name);
            let mut keys: Vec<u64> = gazetteer.entries.iter().copied().collect();
            keys.sort_unstable();
            bytes.extend((keys.len() as u64).to_le_bytes());
            keys.iter().for_each(|key| bytes.extend(key.to_le_bytes()));
        }
        let mut features: Vec<(&u64, &Weights)> = self.weights.iter().collect();
        features.sort_unstable();
        bytes.extend((features.len() as u64).to_le_bytes());
        for (key, weights) in features {
            bytes.extend(key.to_le_bytes());
            weights.iter().for_each(|weight| bytes.extend(weight.to_le_bytes()));
        }
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        durable::write(path, &bytes)
    }

    pub fn load(path: &Path) -> Result<Model> {
        let wrong = |what: &str| {
            let path = path.display();
            Error::Config(format!("{path} is no model of `toroid data ner train` ({what}); train it again"))
        };
        let num_bytes = std::fs::metadata(path).at("look at", path)?.len();
        if num_bytes > MAX_BYTES {
            return Err(wrong(&format!("{num_bytes} bytes, a model has {MAX_BYTES} at most")));
        }
        let bytes = std::fs::read(path).at("read", path)?;
        let (body, digest) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or_else(|| wrong("it is too short"))?;
        let mut left = Left(body);
        if left.take::<8>() != Some(*MAGIC) {
            return Err(wrong("it does not begin with TOROIDNE"));
        }
        if blake3::hash(body).as_bytes() != digest {
            return Err(wrong("its digest is another one: it is cut or was changed"));
        }
        let head = (left.u32(), left.u32());
        if head != (Some(VERSION), Some(NUM_TAGS as u32)) {
            return Err(wrong(&format!("version and tags are {head:?}, this program reads {:?}", (VERSION, NUM_TAGS))));
        }
        left.model().ok_or_else(|| wrong("it ends too early"))
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// What of a file is not read yet.
struct Left<'a>(&'a [u8]);

impl Left<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (found, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*found)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// A number of things of so many bytes, as far as there are so many left.
    fn num(&mut self, num_bytes: usize) -> Option<usize> {
        let num = usize::try_from(u64::from_le_bytes(self.take()?)).ok()?;
        (num <= self.0.len() / num_bytes).then_some(num)
    }

    fn text(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        let (found, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(found.to_vec()).ok()
    }

    fn model(&mut self) -> Option<Model> {
        let trained_on = self.text()?;
        let num_gazetteers = self.u32().map(|num| num as usize).filter(|num| *num <= MAX_GAZETTEERS)?;
        let mut gazetteers = Vec::new();
        for _ in 0..num_gazetteers {
            let name = self.text()?;
            let num = self.num(8)?;
            let entries = (0..num).map(|_| self.take().map(u64::from_le_bytes)).collect::<Option<_>>()?;
            gazetteers.push(Gazetteer { name, entries });
        }
        let num = self.num(8 + 2 * NUM_TAGS)?;
        let mut weights: KeyMap<Weights> = KeyMap::default();
        for _ in 0..num {
            let key = u64::from_le_bytes(self.take()?);
            let mut of_key = [0; NUM_TAGS];
            for weight in &mut of_key {
                *weight = i16::from_le_bytes(self.take()?);
            }
            weights.insert(key, of_key);
        }
        self.0.is_empty().then_some(Model { gazetteers, weights, trained_on })
    }
}
