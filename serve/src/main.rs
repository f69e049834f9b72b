//! The binary `toroid-serve`, which `toroid serve`, `toroid redteam` and, for models with a tokenizer, `toroid generate` become.

use std::process::ExitCode;

fn main() -> ExitCode {
    toroid_serve::run(std::env::args_os())
}
