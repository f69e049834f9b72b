//! What a process has used, as the kernel counts it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    at: Instant,
    /// Since it was started, in the kernel, too.
    pub cpu_s: f64,
    /// In memory, without what is swapped.
    pub rss_bytes: u64,
    /// To storage, or into the page cache for it.
    written_bytes: u64,
}

impl Usage {
    pub fn of(pid: u32) -> Result<Usage> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}"))
        };
        let ticks = cpu_ticks(&read("stat")?).context("find processor times in /proc/PID/stat")?;
        let rss_kib = number_after(&read("status")?, "VmRSS:").context("find VmRSS in /proc/PID/status")?;
        let written = number_after(&read("io")?, "write_bytes:").context("find write_bytes in /proc/PID/io")?;
        let cpu_s = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Ok(Usage { at: Instant::now(), cpu_s, rss_bytes: rss_kib << 10, written_bytes: written })
    }

    /// Share of one core since then, 1 for all of it.
    pub fn cores_since(&self, before: &Usage) -> f64 {
        (self.cpu_s - before.cpu_s) / self.at.duration_since(before.at).as_secs_f64()
    }

    pub fn cpu_s_since(&self, before: &Usage) -> f64 {
        self.cpu_s - before.cpu_s
    }

    pub fn written_since(&self, before: &Usage) -> u64 {
        self.written_bytes.saturating_sub(before.written_bytes)
    }
}

/// User and system time. The name before them may have blanks and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let stat = "71 (a ) b) S 1 71 71 0 -1 4194560 900 0 0 0 250 50 0 0 20 0 4 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2048));
        assert_eq!((cpu_ticks("nothing"), number_after("", "VmRSS:")), (None, None));
    }

    #[test]
    fn this_process_has_used_something() -> Result<()> {
        let before = Usage::of(std::process::id())?;
        let now = Usage::of(std::process::id())?;
        assert!(before.rss_bytes > 0 && now.cpu_s_since(&before) >= 0.0);
        Ok(())
    }
}
