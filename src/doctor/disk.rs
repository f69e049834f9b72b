//! A folder as checkpoints and a coordinator use it: how fast a file is on disk, how much room there is, whether files can be linked and renamed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::check::Check;
use crate::format::{bytes, percent};

/// Written in all, and at once.
const FILE_BYTES: usize = 64 << 20;
const PIECE_BYTES: usize = 4 << 20;
/// No more is written after this.
const LONGEST: Duration = Duration::from_secs(5);
const MIN_BYTES_PER_S: f64 = 50e6;
const MIN_FREE_BYTES: u64 = 5 << 30;
const MIN_FREE_SHARE: f64 = 0.05;

pub fn checks(folder: &Path) -> Vec<Check> {
    let shown = folder.display();
    let room = match rustix::fs::statvfs(folder) {
        Ok(found) => room(&shown.to_string(), found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize),
        Err(error) => {
            Check::wrong("disk room", format!("{shown}: {error}"), "a folder", "make it, or name another with --dir")
        }
    };
    let tried = Trial::new(folder).and_then(|trial| Ok((trial.speed()?, trial.links()?)));
    match tried {
        Err(error) => vec![
            room,
            Check::wrong(
                "disk",
                format!("writing a file in {shown} failed: {error}"),
                "a folder that this user may write in",
                "give this user the folder, make room, or name another with --dir",
            ),
        ],
        Ok((speed, links)) => vec![room, judged(&shown.to_string(), speed), links],
    }
}

fn room(folder: &str, size: u64, free: u64) -> Check {
    let share = free as f64 / size.max(1) as f64;
    Check::judged(
        "disk room",
        format!("{} of {} free at {folder} ({})", bytes(free), bytes(size), percent(share)),
        free >= MIN_FREE_BYTES && share >= MIN_FREE_SHARE,
        &format!("{} and {} at least", bytes(MIN_FREE_BYTES), percent(MIN_FREE_SHARE)),
        "make room: a checkpoint that cannot be written is tried again, and nothing is saved meanwhile; `checkpoint.keep` says how many are kept",
    )
}

fn judged(folder: &str, bytes_per_s: f64) -> Check {
    Check::judged(
        "disk speed",
        format!("{}/s, written and synced to {folder}", bytes(bytes_per_s as u64)),
        bytes_per_s >= MIN_BYTES_PER_S,
        &format!("{}/s at least", bytes(MIN_BYTES_PER_S as u64)),
        "checkpoints are written beside training and take that long; name a faster disk in checkpoint.path, and keep the coordinator's --dir on it too",
    )
}

/// A folder of our own in the one that is looked at; removed when it is dropped.
struct Trial(PathBuf);

impl Trial {
    fn new(folder: &Path) -> io::Result<Trial> {
        let own = folder.join(format!(".toroid-doctor-{}", std::process::id()));
        fs::create_dir(&own)?;
        Ok(Trial(own))
    }

    fn speed(&self) -> io::Result<f64> {
        // Not of zeros alone, which some file systems do not store.
        let piece: Vec<u8> = (0..PIECE_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let start = Instant::now();
        let mut file = File::create(self.0.join("speed"))?;
        let mut num_bytes = 0;
        while num_bytes < FILE_BYTES && start.elapsed() < LONGEST {
            file.write_all(&piece)?;
            num_bytes += piece.len();
        }
        file.sync_all()?;
        Ok(num_bytes as f64 / start.elapsed().as_secs_f64())
    }

    fn links(&self) -> io::Result<Check> {
        let [from, linked, renamed] = ["from", "linked", "renamed"].map(|name| self.0.join(name));
        fs::write(&from, "a file")?;
        fs::rename(&from, &renamed)?;
        // A manifest is published by a link, which cannot take the place of another file.
        Ok(match fs::hard_link(&renamed, &linked) {
            Ok(()) => Check::ok("disk links", "files can be renamed and linked"),
            Err(error) => Check::warning(
                "disk links",
                format!("files can be renamed and not linked: {error}"),
                "hard links",
                "checkpoints are published by a link where there are any; use a file system that has them (not exFAT, not some FUSE mounts)",
            ),
        })
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // What is left is small, hidden and named after us.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn a_folder_is_tried_and_nothing_stays() {
        let dir = tempfile::tempdir().expect("make a folder");
        let found = checks(dir.path());
        assert_eq!(
            found.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            ["disk room", "disk speed", "disk links"]
        );
        assert_eq!(fs::read_dir(dir.path()).expect("list it").count(), 0);
        let gone = checks(&dir.path().join("gone"));
        assert!(gone.iter().all(|c| c.state == State::Wrong), "{gone:?}");
    }

    #[test]
    fn little_room_and_a_slow_disk_are_unusual() {
        assert_eq!(room("/c", 100 << 30, 50 << 30).state, State::Ok);
        assert_eq!(room("/c", 100 << 30, 4 << 30).state, State::Warning);
        assert_eq!(room("/c", 1 << 50, 10 << 30).state, State::Warning);
        assert_eq!(judged("/c", 12e6).state, State::Warning);
        assert_eq!(judged("/c", 1e9).state, State::Ok);
    }
}
