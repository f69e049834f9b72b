//! This machine as the kernel describes it: versions, processor, memory, limits of this process.

use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, getrlimit};

use super::check::Check;
use crate::daemon::num_cores;
use crate::format::bytes;

/// Instruction sets that matter, as the kernel names them, and for people.
const SETS: [(&str, &str); 6] = [
    ("avx2", "AVX2"),
    ("fma", "FMA"),
    ("avx512f", "AVX-512"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("amx_tile", "AMX"),
    ("amx_bf16", "AMX BF16"),
];
/// A link over shared memory takes some MB at either end.
const MIN_SHM_BYTES: u64 = 256 << 20;
/// Each worker, user and link is an open file.
const MIN_FILES: u64 = 4096;
const MIN_PROCESSES: u64 = 4096;
const MIN_MEMORY_BYTES: u64 = 1 << 30;

pub fn checks() -> Vec<Check> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let group = cgroup(&read("/proc/self/cgroup"));
    let of_group = |file: &str| read(&format!("/sys/fs/cgroup{group}/{file}"));
    vec![
        versions(),
        kernel(read("/proc/sys/kernel/osrelease").trim()),
        processor(&read("/proc/cpuinfo")),
        cores(num_cores(), &of_group("cpu.max")),
        memory(&read("/proc/meminfo"), of_group("memory.max").trim(), of_group("memory.current").trim()),
        shared_memory(),
        limit(
            "open files",
            Resource::Nofile,
            MIN_FILES,
            "raise it: `ulimit -n`, LimitNOFILE= of systemd, --ulimit nofile= of containers",
        ),
        limit(
            "processes",
            Resource::Nproc,
            MIN_PROCESSES,
            "raise it: `ulimit -u`, LimitNPROC= of systemd, --pids-limit of containers",
        ),
        locked(getrlimit(Resource::Memlock).current),
    ]
}

fn versions() -> Check {
    let toroid_proto::Build { version, protocol, .. } = toroid_proto::build();
    Check::ok("program", format!("toroid {version}, protocol {protocol}, {}", std::env::consts::ARCH))
}

fn kernel(release: &str) -> Check {
    let libc = match cfg!(target_env = "musl") {
        true => "musl".into(),
        false => {
            let found = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok().filter(|o| o.status.success());
            found.map_or_else(
                || "a C library of unknown version".into(),
                |o| String::from_utf8_lossy(&o.stdout).trim().to_string(),
            )
        }
    };
    match release {
        "" => Check::unknown("kernel", format!("/proc says nothing of it; {libc}")),
        release => Check::ok("kernel", format!("Linux {release}, {libc}")),
    }
}

fn processor(cpuinfo: &str) -> Check {
    let field = |name: &str| {
        cpuinfo
            .lines()
            .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, v)| v.trim()))
    };
    let Some(flags) = field("flags").or(field("Features")) else {
        return Check::unknown(
            "processor",
            format!("{}: /proc/cpuinfo names no instruction sets", std::env::consts::ARCH),
        );
    };
    let model = field("model name").unwrap_or(std::env::consts::ARCH);
    let has = |set: &str| flags.split_whitespace().any(|flag| flag == set);
    let sets: Vec<&str> = SETS.iter().filter(|(flag, _)| has(flag)).map(|(_, name)| *name).collect();
    let found = if sets.is_empty() { format!("{model}, no AVX2") } else { format!("{model}: {}", sets.join(", ")) };
    Check::judged(
        "processor",
        found,
        has("avx2") || std::env::consts::ARCH != "x86_64",
        "AVX2 at least; AVX-512 is twice as fast",
        "it works, slowly: use machines of the last ten years, or let the virtual machine see the host's processor",
    )
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn cores(num: usize, cpu_max: &str) -> Check {
    let mut words = cpu_max.split_whitespace();
    let quota: Option<f64> = words.next().and_then(|quota| quota.parse().ok());
    let period: f64 = words.next().and_then(|period| period.parse().ok()).unwrap_or(100_000.0);
    let allowed = quota.map(|quota| quota / period).filter(|allowed| *allowed < num as f64);
    match allowed {
        None => Check::ok("cores", format!("{num}, no limit by a cgroup")),
        Some(allowed) => Check::judged(
            "cores",
            format!("{num}, of which the cgroup allows the time of {allowed:.1}"),
            allowed >= 1.0,
            "one whole core for each worker at least",
            "a quota below what the threads use stops all of them for the rest of each period: raise --cpus of the container, or give the worker \
             fewer --threads",
        ),
    }
}

/// The folder of this process below /sys/fs/cgroup (version 2); empty where there is none.
fn cgroup(proc_cgroup: &str) -> String {
    let line = proc_cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("");
    let path = line.trim().trim_end_matches('/');
    // In a container of its own namespace the path is that of the host, and the folder is at the root.
    if Path::new(&format!("/sys/fs/cgroup{path}/memory.max")).exists() { path.into() } else { String::new() }
}

fn memory(meminfo: &str, max: &str, current: &str) -> Check {
    let kib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let (Some(total), Some(available)) = (kib("MemTotal"), kib("MemAvailable")) else {
        return Check::unknown("memory", "/proc/meminfo says nothing");
    };
    let (total, available) = (total << 10, available << 10);
    let limit: Option<u64> = max.parse().ok().filter(|limit| *limit < total);
    let held: u64 = current.parse().unwrap_or(0);
    let (found, free) = match limit {
        None => (format!("{}, {} available, no limit by a cgroup", bytes(total), bytes(available)), available),
        Some(limit) => {
            let free = limit.saturating_sub(held).min(available);
            (
                format!("{} of the machine's {} by a cgroup, {} of them free", bytes(limit), bytes(total), bytes(free)),
                free,
            )
        }
    };
    let swap = kib("SwapTotal").zip(kib("SwapFree")).map_or(0, |(total, free)| total.saturating_sub(free) << 10);
    let found = if swap > 0 { format!("{found}; {} are swapped out", bytes(swap)) } else { found };
    Check::judged(
        "memory",
        found,
        free >= MIN_MEMORY_BYTES,
        &format!("{} free at least; `toroid plan` says what a place of a job needs", bytes(MIN_MEMORY_BYTES)),
        "end what else runs here, raise the container's limit, or split the model over more workers",
    )
}

fn shared_memory() -> Check {
    match rustix::fs::statvfs("/dev/shm") {
        Err(error) => Check::warning(
            "shared memory",
            format!("/dev/shm: {error}"),
            "a folder in memory",
            "links between workers of this machine go over sockets, which are slower; mount a tmpfs at /dev/shm",
        ),
        Ok(found) => shm(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize),
    }
}

fn shm(size: u64, free: u64) -> Check {
    Check::judged(
        "shared memory",
        format!("{} in /dev/shm, {} free", bytes(size), bytes(free)),
        free >= MIN_SHM_BYTES,
        &format!("{} free", bytes(MIN_SHM_BYTES)),
        "NCCL and links between workers of this machine use it: start the container with --shm-size=1g, or empty /dev/shm of what ended processes left",
    )
}

fn limit(name: &str, resource: Resource, least: u64, to_do: &str) -> Check {
    let found = getrlimit(resource);
    // A process may raise its own limit up to the maximum, and ours do for files.
    let maximum = if matches!(resource, Resource::Nofile) { found.maximum } else { found.current };
    let word = |limit: Option<u64>| limit.map_or_else(|| "unlimited".into(), |n| n.to_string());
    let text = format!("{}, at most {}", word(found.current), word(found.maximum));
    Check::judged(name, text, maximum.is_none_or(|n| n >= least), &format!("{least} at least"), to_do)
}

fn locked(limit: Option<u64>) -> Check {
    let found = limit.map_or_else(|| "unlimited".into(), bytes);
    // Nothing of Toroid's own locks memory; RDMA below NCCL does.
    Check::ok(
        "locked memory",
        format!("{found}; NCCL over InfiniBand needs it unlimited (`ulimit -l`), nothing else does"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn the_processor_is_named_with_what_it_can() {
        let check = |flags: &str, state, words: &str| {
            let found = processor(&format!("processor\t: 0\nmodel name\t: Big CPU\nflags\t\t: fpu {flags}\n"));
            assert!(found.found.contains(words), "{found:?}");
            if std::env::consts::ARCH == "x86_64" {
                assert_eq!(found.state, state, "{found:?}");
            }
        };
        check("avx2 fma avx512f avx512_bf16 amx_tile", State::Ok, "Big CPU: AVX2, FMA, AVX-512, AVX-512 BF16, AMX");
        check("sse2", State::Warning, "no AVX2");
        assert_eq!(processor("").state, State::NotKnown);
    }

    #[test]
    fn limits_of_a_cgroup_count_where_they_are_below_the_machine() {
        assert_eq!(cores(8, "max 100000\n").found, "8, no limit by a cgroup");
        assert_eq!(cores(8, "").state, State::Ok);
        assert_eq!(cores(8, "250000 100000").found, "8, of which the cgroup allows the time of 2.5");
        assert_eq!(cores(8, "50000 100000").state, State::Warning);
        let meminfo = "MemTotal:       16000000 kB\nMemAvailable:   8000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n";
        assert_eq!(memory(meminfo, "max", "").state, State::Ok);
        let limited = memory(meminfo, "2147483648", "2000000000");
        assert_eq!(limited.state, State::Warning, "{limited:?}");
        assert!(limited.found.contains("2.1 GB of the machine's 16.4 GB"), "{limited:?}");
        assert_eq!(memory("", "max", "").state, State::NotKnown);
    }

    #[test]
    fn little_shared_memory_is_told_with_the_flag_that_gives_more() {
        let docker = shm(64 << 20, 64 << 20);
        assert!(docker.state == State::Warning && docker.to_do.contains("--shm-size"), "{docker:?}");
        assert_eq!(shm(8 << 30, 7 << 30).state, State::Ok);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        assert!(checks().len() >= 9);
    }
}
