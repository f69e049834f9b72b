//! Folders that Hugging Face's `GraniteMoeSharedForCausalLM` loads and saves, and how they say what our model is.
//!
//! ```text
//!   FOLDER/
//!     config.json                         the model's dims ------------------------ config
//!     generation_config.json              token ids that begin, end and fill ------ config
//!     model-00001-of-00002.safetensors    tensors under Hugging Face's names ------ names, layout, dtype
//!     model.safetensors.index.json        which tensor is in which file ----------- layout
//!     tokenizer.json, tokenizer_config.json   a token is a byte ------------------- bytes_tokenizer
//! ```
//!
//! [`export()`] writes such a folder tensor by tensor, [`Folder`] reads one. Every tensor has one counterpart of the same shape and the same
//! order of elements, so that nothing is computed and the way there and back changes no bit ([decision
//! 97](../../docs/decisions/97-hugging-face-folders.md)).
//!
//! Invariants:
//!
//! - **H-1.** A folder that was exported is whole or not there: it is renamed into place when all of it is durable.
//! - **H-2.** What our model cannot compute exactly is refused by its name in `config.json`; nothing is approximated.
//!
//! Deliberately absent: other architectures, pickles, downloads.

#![forbid(unsafe_code)]

pub mod bytes_tokenizer;
pub mod config;
pub mod dtype;
mod export;
mod folder;
pub mod layout;
pub mod names;

#[cfg(test)]
mod tests;

pub use dtype::Dtype;
pub use export::{ExportError, Options, Written, export};
pub use folder::{Folder, open_regular, safetensors_in};
