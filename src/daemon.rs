//! `toroid coordinator` and `toroid worker`: the two kinds of process that stay.
//!
//! Both end on SIGINT, SIGTERM (a worker with a place once that is moved or the job is saved, a coordinator after such workers, both at the second signal) and, with `--die-with-parent`,
//! with the process that started them: the kernel kills them then, and the end of their standard input asks them to end in good
//! order. That is how `toroid local` leaves nothing behind, however it ends itself.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use toroid_coordinator::machine::{Policy, Quotas, Retention};
use toroid_torus::labels::{self, LabelError, Labels};
use toroid_worker::comm::LinkChoice;
use toroid_worker::comm::nccl::Collectives;
use toroid_worker::device::Choice;
use toroid_worker::device::cuda::Graphs;

use crate::client;
use crate::output;

/// How the line begins that a coordinator prints once it listens; the address follows.
pub const LISTENS_ON: &str = "listens on ";

#[derive(Debug, clap::Args)]
pub struct CoordinatorArgs {
    /// Where to listen for users and workers; port 0: any free one, which is printed
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Folder for everything durable: the store, curves and, unless a job says otherwise, checkpoints
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// How often workers say that they are there
    #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    heartbeat_interval_ms: u64,
    /// A worker that is silent for this long is lost; all other limits derive from it
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = clap::value_parser!(u64).range(2..))]
    failure_timeout_ms: u64,
    /// Jobs that have ended and stay listed: the newest N. The folders of others stay
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep_jobs: u32,
    /// Jobs stay listed for so many days after their end. The folders of others stay
    #[arg(long, default_value_t = 90, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    keep_jobs_days: u32,
    /// What workers must show to join; none: nothing
    #[arg(long, env = "TOROID_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    join_token: Option<String>,
    /// Workers that the jobs of this user may have at a time; may be given for several users
    #[arg(long, value_name = "USER=WORKERS", value_parser = parse_quota)]
    quota: Vec<(String, usize)>,
    /// Workers that the jobs of each other user may have at a time; default: as many as there are
    #[arg(long, value_name = "WORKERS", value_parser = clap::value_parser!(u32).range(1..))]
    default_quota: Option<u32>,
    /// So long a job may be overtaken by smaller ones, and so much waiting is worth one level of priority
    #[arg(long, default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    aging_s: u32,
    /// End with the process that started this one, and when standard input ends
    #[arg(long)]
    die_with_parent: bool,
}

#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    connection: client::Connection,
    /// Name of this machine, for the placement; default: its host name
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Zone of this machine, for the placement
    #[arg(long, env = "TOROID_ZONE", default_value = "", value_name = "NAME")]
    zone: String,
    /// Rack of this machine, for the placement
    #[arg(long, env = "TOROID_RACK", default_value = "", value_name = "NAME")]
    rack: String,
    /// A label, NAME=VALUE, that a job may ask for; may be given several times. device, host, rack and zone are labels of every worker
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Where to listen for other workers; default: any port of the address that faces the coordinator
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// What other workers dial, where that is not the address listened on: host or host:port
    #[arg(long, value_name = "HOST[:PORT]")]
    advertise: Option<String>,
    /// Links to other workers: auto (memory shared with those of this host, else TCP), or only shm, unix or tcp, for diagnosis
    #[arg(long, default_value = "auto", value_name = "KIND")]
    links: LinkChoice,
    /// What to compute on: auto, cpu, or cuda:N for GPU number N; auto takes the first GPU that works, else the CPU
    #[arg(long, default_value_t, value_name = "DEVICE")]
    device: Choice,
    /// CUDA graphs: on, or off to launch a GPU's operations one by one; the results are the same
    #[arg(long, env = "TOROID_CUDA_GRAPHS", default_value_t, value_name = "on|off")]
    cuda_graphs: Graphs,
    /// Sums over groups of GPUs: auto (by NCCL where each worker of a group has a GPU of its own and the library, else through the host), host,
    /// or nccl, which is an error where that cannot be
    #[arg(long, default_value_t, value_name = "HOW")]
    collectives: Collectives,
    /// Compute threads of the CPU; default: one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Folder for token files and compiled kernels; default: toroid in the user's cache folder
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Folder for what the first 32 steps' time goes to; `toroid trace` shows it
    #[arg(long, env = "TOROID_TRACE", value_name = "FOLDER")]
    trace: Option<PathBuf>,
    /// Id of this worker, which must be its own: a living worker's is refused; default: host name, process id and a random part
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The coordinator's join token
    #[arg(long, env = "TOROID_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// How long it stays after SIGTERM, for its place to be moved or its job to be saved; default: five failure timeouts of the coordinator,
    /// 25 s, within the 30 s that Kubernetes and Slurm give by default
    #[arg(long, env = "TOROID_LEAVE_GRACE_MS", value_name = "MS")]
    leave_grace_ms: Option<u64>,
    /// End with the process that started this one, and when standard input ends
    #[arg(long)]
    die_with_parent: bool,
}

pub async fn coordinator(args: CoordinatorArgs) -> Result<ExitCode> {
    raise_open_files();
    let asked = asked_to_end(args.die_with_parent)?;
    let cannot =
        |e| anyhow!("cannot listen on {}: {e}; name another address, or port 0 for any free port", args.listen);
    let listener = TcpListener::bind(args.listen).await.map_err(cannot)?;
    let address = listener.local_addr().context("find the address listened on")?;
    output::line(format_args!("toroid coordinator {} {LISTENS_ON}{address}", toroid_proto::BUILD_VERSION))?;
    let config = toroid_coordinator::Config {
        data_dir: args.dir,
        heartbeat_interval: Duration::from_millis(args.heartbeat_interval_ms),
        failure_timeout: Duration::from_millis(args.failure_timeout_ms),
        retention: Retention {
            max_jobs: args.keep_jobs as usize,
            max_age: Duration::from_secs(u64::from(args.keep_jobs_days) * 24 * 3600),
        },
        join_token: args.join_token,
        policy: Policy {
            aging: Duration::from_secs(u64::from(args.aging_s)),
            quotas: Quotas {
                default: args.default_quota.map(|num| num as usize),
                by_user: args.quota.into_iter().collect(),
            },
        },
    };
    toroid_coordinator::run(listener, config, asked).await.context("run the coordinator")?;
    Ok(ExitCode::SUCCESS)
}

pub async fn worker(args: WorkerArgs) -> Result<ExitCode> {
    raise_open_files();
    let asked = asked_to_end(args.die_with_parent)?;
    let facing = address_facing(&args.connection.coordinator);
    let host = args.host.unwrap_or_else(host_name);
    let (data_listen, advertise) = data_addresses(args.listen, args.advertise, facing, &host);
    let config = toroid_worker::Config {
        coordinator: args.connection.coordinator,
        worker_id: args.id,
        host,
        zone: args.zone,
        rack: args.rack,
        labels: args.labels.into_iter().collect(),
        data_listen,
        advertise,
        links: args.links,
        device: args.device,
        graphs: args.cuda_graphs,
        collectives: args.collectives,
        threads: args.threads.map_or_else(num_cores, usize::from),
        trace: args.trace,
        cache_dir: args.cache.unwrap_or_else(default_cache),
        token: args.token,
        leave_grace: args.leave_grace_ms.map(Duration::from_millis),
    };
    toroid_worker::run(config, asked).await.context("run the worker")?;
    Ok(ExitCode::SUCCESS)
}

/// `ada=8`.
fn parse_quota(text: &str) -> Result<(String, usize), String> {
    let expected = "expected USER=WORKERS, as in ada=8, with at least one worker";
    let (user, num) = text.split_once('=').ok_or(expected)?;
    match num.parse() {
        Ok(num) if num > 0 => Ok((user.to_string(), num)),
        _ => Err(format!("`{num}` is no number of workers; {expected}")),
    }
}

fn parse_label(text: &str) -> Result<(String, String), LabelError> {
    let (name, value) = labels::parse(text)?;
    labels::check_own(&Labels::from([(name.clone(), value.clone())]))?;
    Ok((name, value))
}

/// Each worker and user of a coordinator, and each link of a worker, is an open file: as many as the system allows this process.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => tracing::debug!("may open {:?} files, and {:?} before", limit.maximum, limit.current),
        Err(error) => tracing::warn!("may open {:?} files only, raising the limit failed: {error}", limit.current),
    }
}

/// Cores that this process may use.
pub fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().to_string() }
}

fn default_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("toroid")
}

/// The address of this machine from which the coordinator is reached. Nothing is sent; `None` where there is no way to it yet.
fn address_facing(coordinator: &str) -> Option<IpAddr> {
    let authority = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest);
    let target = authority.to_socket_addrs().ok()?.next()?;
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Where to listen for links, and what peers dial if that is another address.
fn data_addresses(
    listen: Option<SocketAddr>,
    advertise: Option<String>,
    facing: Option<IpAddr>,
    host: &str,
) -> (SocketAddr, Option<String>) {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let listen = listen.unwrap_or_else(|| facing.map_or(everywhere, |ip| SocketAddr::new(ip, 0)));
    if advertise.is_some() || !listen.ip().is_unspecified() {
        return (listen, advertise);
    }
    // Nobody can dial 0.0.0.0. An IPv6 address without a port would read as host:port, so the name stands for it.
    let dialled = facing.filter(IpAddr::is_ipv4).map_or_else(|| host.to_string(), |ip| ip.to_string());
    (listen, Some(dialled))
}

/// How often this process was asked to end: once by a signal, twice by a second one or by the end of the process that started it.
fn asked_to_end(die_with_parent: bool) -> Result<watch::Receiver<u32>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (parent, mut parent_is_gone) = oneshot::channel::<()>();
    if die_with_parent {
        let kill = rustix::process::Signal::KILL;
        rustix::process::set_parent_process_death_signal(Some(kill)).context("bind the life to the parent's")?;
        // A parent that was gone before that is noticed by the end of the pipe.
        std::thread::Builder::new()
            .name("parent".into())
            .spawn(move || {
                let _parent = parent;
                // What cannot be read has ended as well.
                let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            })
            .context("start the thread that watches the parent")?;
    }
    let (ask, asked) = watch::channel(0);
    tokio::spawn(async move {
        while *ask.borrow() < 2 {
            let times = tokio::select! {
                _ = interrupt.recv() => {
                    tracing::info!("asked to end by SIGINT");
                    1
                }
                _ = terminate.recv() => {
                    tracing::info!("asked to end by SIGTERM");
                    1
                }
                _ = &mut parent_is_gone, if die_with_parent => {
                    tracing::info!("asked to end: standard input ended");
                    2
                }
            };
            ask.send_modify(|asked| *asked += times);
        }
        ask.closed().await;
    });
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_listen_where_the_coordinator_is_reached_and_are_dialled_there() {
        let facing: Option<IpAddr> = "10.1.2.3".parse().ok();
        let facing_v6: Option<IpAddr> = "fd00::3".parse().ok();
        let check = |listen: Option<&str>, advertise: Option<&str>, facing, expected: (&str, Option<&str>)| {
            let listen = listen.map(|l| l.parse().expect("parse the address"));
            let (listen, advertise) = data_addresses(listen, advertise.map(String::from), facing, "node-7");
            assert_eq!((listen.to_string().as_str(), advertise.as_deref()), expected);
        };
        check(None, None, facing, ("10.1.2.3:0", None));
        check(None, None, facing_v6, ("[fd00::3]:0", None));
        check(None, None, None, ("0.0.0.0:0", Some("node-7")));
        check(Some("127.0.0.1:9"), None, facing, ("127.0.0.1:9", None));
        check(Some("0.0.0.0:9"), None, facing, ("0.0.0.0:9", Some("10.1.2.3")));
        check(Some("[::]:9"), None, facing_v6, ("[::]:9", Some("node-7")));
        check(Some("0.0.0.0:9"), Some("pod.svc"), facing, ("0.0.0.0:9", Some("pod.svc")));
    }

    /// The limit is that of the whole process; nobody else here minds a higher one.
    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: before.maximum }).expect("lower the limit");
        raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }

    #[test]
    fn the_way_to_a_coordinator_on_this_machine_is_the_loopback() {
        assert_eq!(address_facing("http://127.0.0.1:7070"), Some([127, 0, 0, 1].into()));
        assert_eq!(address_facing("http://no such host:7070"), None);
    }
}
