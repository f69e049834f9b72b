//! `toroid-failpoint`: the program `toroid`, in which things go wrong where a test wants them to, and which can be taken for another build.

#![forbid(unsafe_code)]

use std::process::ExitCode;

const _: () = assert!(toroid::HAS_FAILPOINTS, "build it with `-p toroid-failpoint --features failpoint`");

/// Of the environment: which build this process pretends to be, see `toroid_proto::pretend`.
const VARIABLE: &str = "TOROID_PRETEND";

fn main() -> ExitCode {
    let pretended = std::env::var(VARIABLE).ok().map(|text| toroid_proto::pretend(&text));
    if let Some(Err(error)) = pretended {
        eprintln!("{VARIABLE} has {error}");
        return ExitCode::FAILURE;
    }
    toroid::run(std::env::args_os())
}
