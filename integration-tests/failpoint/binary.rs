//! `toroid-failpoint`: the program `toroid`, in which things go wrong where a test wants them to.

#![forbid(unsafe_code)]

use std::process::ExitCode;

const _: () = assert!(toroid::HAS_FAILPOINTS, "build it with `-p toroid-failpoint --features failpoint`");

fn main() -> ExitCode {
    toroid::run(std::env::args_os())
}
