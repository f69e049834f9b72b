//! `toroid`, the one binary: arguments go to the library, and the exit code comes from it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

// A fault that a test asks for must not be in what users run: the binary with failpoints is `toroid-failpoint`, of a package of its own.
const _: () = assert!(
    !toroid::HAS_FAILPOINTS,
    "the binary `toroid` was about to be built with the points at which tests have things go wrong: leave out --all-features, or \
     `--features failpoint` for anything but `-p toroid-failpoint`"
);

fn main() -> ExitCode {
    toroid::run(std::env::args_os())
}
