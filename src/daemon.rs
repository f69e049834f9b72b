//! `toroid coordinator` and `toroid worker`: the two kinds of process that stay.
//!
//! Both end on SIGINT, SIGTERM (a worker with a place once that is moved or the job is saved, a coordinator after such workers, both at the second signal) and, with `--die-with-parent`,
//! with the process that started them: the kernel kills them then, and the end of their standard input asks them to end in good
//! order. That is how `toroid local` leaves nothing behind, however it ends itself.

use std::io::Read as _;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use toroid_coordinator::CallLimits;
use toroid_coordinator::machine::{Policy, Quotas, Retention};
use toroid_coordinator::store::etcd::{self, EtcdConfig, EtcdTls};
use toroid_security::Files;
use toroid_session::Standing;
use toroid_telemetry::settings::Format;
use toroid_telemetry::{Context, Place};
use toroid_torus::labels::{self, LabelError, Labels};
use toroid_worker::comm::LinkChoice;
use toroid_worker::comm::nccl::Collectives;
use toroid_worker::control::carrier::UNIX;
use toroid_worker::device::cuda::Graphs;
use toroid_worker::device::{Bf16Choice, Choice};
use toroid_worker::log::Log;

use crate::access::{CredentialArgs, LocalRole};
use crate::addresses::{self, Said, Wanted};
use crate::client;
use crate::exit::wrong_use;
use crate::files::read_text;
use crate::output;
use crate::supervise;

/// How the line begins that a coordinator prints once it listens; the address follows.
pub const LISTENS_ON: &str = "listens on ";
/// Of a worker that names an agent alone.
const NO_FACING: &str = "an agent's socket does not say which address of this machine other workers dial: say it with --listen, --interface or \
                         --advertise, or name the coordinator's own address as well (--coordinator unix:PATH,HOST:PORT)";
/// Of the map of all hosts to their racks.
const MAX_RACKS_BYTES: u64 = 16 << 20;
/// In a job of Slurm, SIGTERMs that come within so long are one request.
const SLURM_REPEATS: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct CoordinatorArgs {
    /// Where to listen for users and workers; port 0: any free one, which is printed
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Folder for everything durable: the store, curves and, unless a job says otherwise, checkpoints. With --etcd it is this coordinator's own
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Where users and workers reach this coordinator; default: where it listens
    #[arg(long, value_name = "URL", value_parser = client::parse_url)]
    advertise: Option<String>,
    /// Instead of --advertise: the address of this interface, or in this network; of several the first that is there
    #[arg(long, value_name = "NAME|CIDR[,...]", value_delimiter = ',', conflicts_with = "advertise")]
    interface: Vec<Wanted>,
    #[command(flatten)]
    etcd: EtcdArgs,
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
    #[command(flatten)]
    credentials: CredentialArgs,
    /// File of the serial numbers of certificates that are not taken any more, as `toroid certs revoke` writes it; read again when it changes
    #[arg(long, env = "TOROID_REVOKED", value_name = "FILE")]
    revoked: Option<PathBuf>,
    /// Run without certificates beyond the loopback: whoever reaches the port may do everything
    #[arg(long)]
    insecure: bool,
    /// Folder, or URL, below which jobs may name paths to read, write and delete in, beside the coordinator's own; `/`: everywhere; more than once
    #[arg(long, value_name = "FOLDER")]
    allow_root: Vec<PathBuf>,
    #[command(flatten)]
    limits: LimitArgs,
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
    /// Form of the log: text for people, or json, an object a line
    #[arg(long, env = "TOROID_LOG_FORMAT", default_value_t, value_name = "FORM")]
    log_format: Format,
}

/// Several coordinators, of which one leads, keep their records in etcd.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Several coordinators")]
struct EtcdArgs {
    /// Keep records in etcd, for several coordinators of which one leads: addresses of its members, with commas between. Default: a file in --dir
    #[arg(long, env = "TOROID_ETCD", value_name = "URL[,URL...]", value_delimiter = ',', value_parser = parse_etcd_url)]
    etcd: Vec<String>,
    /// What the keys of this cluster begin with; several clusters may share one etcd
    #[arg(long, env = "TOROID_ETCD_PREFIX", default_value = etcd::DEFAULT_PREFIX, value_name = "PREFIX", value_parser = parse_prefix)]
    etcd_prefix: String,
    /// User of etcd; its password is in TOROID_ETCD_PASSWORD
    #[arg(long, env = "TOROID_ETCD_USER", value_name = "NAME", requires = "etcd_password")]
    etcd_user: Option<String>,
    /// Password of --etcd-user; better in the environment, where other users of this machine do not see it
    #[arg(long, env = "TOROID_ETCD_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    etcd_password: Option<String>,
    /// Certificates (PEM) of those who sign the ones of etcd; for https addresses
    #[arg(long, value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// Certificate (PEM) that this coordinator shows to etcd
    #[arg(long, value_name = "FILE", requires_all = ["etcd_key", "etcd_ca"])]
    etcd_cert: Option<PathBuf>,
    /// Key (PEM) of --etcd-cert
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// Leave etcd's history alone: whoever runs it compacts it (etcd's --auto-compaction-retention). Default: what is older than 5 minutes is dropped
    #[arg(long)]
    etcd_keep_history: bool,
}

impl EtcdArgs {
    fn config(self) -> Result<Option<EtcdConfig>> {
        if self.etcd.is_empty() {
            return Ok(None);
        }
        let is_secure = self.etcd.iter().all(|url| url.starts_with("https://"));
        if is_secure != self.etcd_ca.is_some() {
            let what = if is_secure { "https needs --etcd-ca" } else { "--etcd-ca needs https for all members" };
            bail!("{what}; --etcd is {}", self.etcd.join(","));
        }
        for file in [&self.etcd_ca, &self.etcd_cert, &self.etcd_key].into_iter().flatten() {
            std::fs::File::open(file).with_context(|| format!("read {}", file.display()))?;
        }
        let identity = self.etcd_cert.zip(self.etcd_key);
        Ok(Some(EtcdConfig {
            endpoints: self.etcd,
            prefix: self.etcd_prefix,
            user: self.etcd_user.zip(self.etcd_password),
            tls: self.etcd_ca.map(|ca| EtcdTls { ca, identity }),
            history: (!self.etcd_keep_history).then(etcd::History::default),
        }))
    }
}

/// `host:port`, `http://host:port` and `https://host:port` name a member of etcd; the first speaks clear text.
fn parse_etcd_url(text: &str) -> Result<String, String> {
    client::parse_url(text).map(|url| if url.contains("://") { url } else { format!("http://{url}") })
}

fn parse_prefix(text: &str) -> Result<String, String> {
    match text.trim_end_matches('/') {
        prefix if prefix.len() > 1 && prefix.starts_with('/') => Ok(prefix.into()),
        _ => Err(format!("expected something like {}", etcd::DEFAULT_PREFIX)),
    }
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
    /// Rack by host: a file with a host and its rack in each line, of which that of --host counts; without one --rack does
    #[arg(long, env = "TOROID_RACK_MAP", value_name = "FILE")]
    rack_map: Option<PathBuf>,
    /// Where to listen for other workers, any port where none is named; default: the address that faces the coordinator
    #[arg(long, env = "TOROID_LISTEN", value_name = "IP[:PORT]", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
    /// What other workers dial, where that is not the address listened on: host or host:port
    #[arg(long, value_name = "HOST[:PORT]")]
    advertise: Option<String>,
    /// Listen for other workers on the address of this interface, or in this network; of several the first that is there
    #[arg(long, env = "TOROID_INTERFACE", value_name = "NAME|CIDR[,...]", value_delimiter = ',')]
    interface: Vec<Wanted>,
    /// Links to other workers: auto (memory shared with those of this host, else TLS 1.3), plain (the same with TCP as it is), or only shm, unix,
    /// tcp or tls, for diagnosis
    #[arg(long, default_value = "auto", value_name = "KIND")]
    links: LinkChoice,
    /// Links to other hosts are not encrypted: for a fabric that nobody else can reach. The same as --links plain, on all workers
    #[arg(long, conflicts_with = "links")]
    links_plain: bool,
    /// What to compute on: auto, cpu, or cuda:N for GPU number N; auto takes the first GPU that works, else the CPU
    #[arg(long, default_value_t, value_name = "DEVICE")]
    device: Choice,
    /// Stay, and start the worker again whenever it ends, unless this process was asked to end: for process 1 of a container, or a step of Slurm
    #[arg(long, conflicts_with = "die_with_parent")]
    restart: bool,
    /// With --restart: a worker for each of these devices, with ports from that of --listen on
    #[arg(long, value_name = "DEVICE[,...]", value_delimiter = ',', requires = "restart", conflicts_with_all = ["device", "id", "advertise"])]
    devices: Vec<Choice>,
    /// Products of bf16 on the CPU: auto (what is fastest on this kind of processor, measured once), amx, avx512, or f32 after the operands are
    /// rounded. Each has bits of its own
    #[arg(long, env = "TOROID_BF16", default_value_t, value_name = "WAY")]
    bf16: Bf16Choice,
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
    /// Folder for token files, compiled kernels and what was measured; default: toroid in the user's cache folder
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Folder for what the first 32 steps' time goes to; `toroid trace` shows it
    #[arg(long, env = "TOROID_TRACE", value_name = "FOLDER")]
    trace: Option<PathBuf>,
    /// Every so many steps rank 0 sends a trace of its step to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names; default: of none
    #[arg(long, env = "TOROID_TRACE_STEPS", value_name = "EVERY")]
    trace_steps: Option<NonZeroU64>,
    /// Id of this worker, which must be its own: a living worker's is refused; default: host name, process id and a random part
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The coordinator's join token
    #[arg(long, env = "TOROID_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    join_token: Option<String>,
    /// Folder, or URL, below which jobs may name paths to read, write and delete in on this machine, as the coordinator allows them too; `/`:
    /// everywhere; more than once
    #[arg(long, value_name = "FOLDER")]
    allow_root: Vec<PathBuf>,
    /// How long it stays after SIGTERM, for its place to be moved or its job to be saved; default: five failure timeouts of the coordinator,
    /// 25 s, within the 30 s that Kubernetes and Slurm give by default
    #[arg(long, env = "TOROID_LEAVE_GRACE_MS", value_name = "MS")]
    leave_grace_ms: Option<u64>,
    /// End with the process that started this one, and when standard input ends
    #[arg(long)]
    die_with_parent: bool,
    /// Form of the log: text for people, or json, an object a line
    #[arg(long, env = "TOROID_LOG_FORMAT", default_value_t, value_name = "FORM")]
    log_format: Format,
}

/// How much of a coordinator one user or address may have.
#[derive(Debug, clap::Args)]
struct LimitArgs {
    /// Connections, at most
    #[arg(long, default_value_t = 16_384, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Connections of one address, at most
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections_per_address: u32,
    /// Calls a second of one user, in the long run; four times as many at once
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_calls_per_s: u32,
    /// Calls of one user that are not done, streams above all
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_open_calls: u32,
    /// Jobs of one user that have not ended, those that wait included
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_jobs_per_user: u32,
}

impl LimitArgs {
    fn connections(&self) -> toroid_security::server::Limits {
        toroid_security::server::Limits {
            connections: self.max_connections as usize,
            connections_of_address: self.max_connections_per_address as usize,
            ..Default::default()
        }
    }

    fn calls(&self) -> CallLimits {
        let per_s = f64::from(self.max_calls_per_s);
        CallLimits { per_s, at_once: 4.0 * per_s, open: self.max_open_calls as usize, ..CallLimits::default() }
    }
}

/// What a coordinator that listens there shows to others; `None`: it speaks clear text. Closed unless somebody says otherwise by name.
fn server_files(
    listen: SocketAddr,
    credentials: &CredentialArgs,
    revoked: Option<PathBuf>,
    insecure: bool,
) -> Result<Option<Files>> {
    match credentials.files() {
        Some(_) if insecure => bail!("--insecure and credentials are named; leave one of them away"),
        Some(Files { pair: None, .. }) => {
            bail!("a coordinator needs a certificate and its key beside --ca; name them with --cert and --key")
        }
        Some(files) => Ok(Some(Files { revoked, ..files })),
        None if revoked.is_some() => {
            bail!("--revoked is read only where there are certificates; name them with --credentials")
        }
        None if insecure || listen.ip().is_loopback() => Ok(None),
        None => bail!(
            "{listen} is reached from other machines, and without certificates whoever reaches it may do everything: make some (`toroid certs init`, \
             `toroid certs issue coordinator --role coordinator`) and name them with --credentials, listen on the loopback, or say --insecure"
        ),
    }
}

impl CoordinatorArgs {
    pub fn log_format(&self) -> Format {
        self.log_format
    }
}

impl WorkerArgs {
    pub fn log_format(&self) -> Format {
        self.log_format
    }
}

/// What a worker's log has to do with its place.
pub fn context(log: Arc<Log>) -> Arc<dyn Context> {
    Arc::new(OfWorker(log))
}

struct OfWorker(Arc<Log>);

impl Context for OfWorker {
    fn place(&self) -> Option<Place> {
        let (standing, trace_id) = self.0.place()?;
        let Standing { job_id, epoch, rank, committed_step, .. } = standing;
        let (job, rank) = (job_id.into(), rank.to_wire());
        Some(Place { job, epoch: epoch.get(), rank, step: committed_step.get(), trace_id })
    }

    fn line(&self, line: &str) {
        self.0.line(line);
    }
}

pub async fn coordinator(args: CoordinatorArgs) -> Result<ExitCode> {
    raise_open_files();
    let asked = asked_to_end(args.die_with_parent)?;
    let tls = server_files(args.listen, &args.credentials, args.revoked, args.insecure)?;
    if tls.is_none() {
        tracing::warn!("runs without certificates: whoever reaches {} may do everything", args.listen);
    }
    let cannot =
        |e| anyhow!("cannot listen on {}: {e}; name another address, or port 0 for any free port", args.listen);
    let listener = TcpListener::bind(args.listen).await.map_err(cannot)?;
    let address = listener.local_addr().context("find the address listened on")?;
    let advertise = match args.advertise {
        Some(url) => Some(url),
        None => {
            let scheme = if tls.is_some() { "https" } else { "http" };
            addresses::of_coordinator((scheme, address), &addresses::of_this_machine()?, &args.interface, &host_name())?
        }
    };
    output::line(format_args!("toroid coordinator {} {LISTENS_ON}{address}", toroid_proto::build().version))?;
    let config = toroid_coordinator::Config {
        data_dir: args.dir,
        etcd: args.etcd.config()?,
        advertise,
        heartbeat_interval: Duration::from_millis(args.heartbeat_interval_ms),
        failure_timeout: Duration::from_millis(args.failure_timeout_ms),
        retention: Retention {
            max_jobs: args.keep_jobs as usize,
            max_age: Duration::from_secs(u64::from(args.keep_jobs_days) * 24 * 3600),
        },
        join_token: args.join_token,
        tls,
        connections: args.limits.connections(),
        calls: args.limits.calls(),
        policy: Policy {
            aging: Duration::from_secs(u64::from(args.aging_s)),
            max_jobs: args.limits.max_jobs_per_user as usize,
            quotas: Quotas {
                default: args.default_quota.map(|num| num as usize),
                by_user: args.quota.into_iter().collect(),
            },
        },
        allow_roots: args.allow_root,
    };
    toroid_coordinator::run(listener, config, asked).await.context("run the coordinator")?;
    Ok(ExitCode::SUCCESS)
}

pub async fn worker(args: WorkerArgs, log: Arc<Log>) -> Result<ExitCode> {
    raise_open_files();
    let mut asked = asked_to_end(args.die_with_parent)?;
    if args.restart {
        return supervise::run(&args.devices, args.listen, asked).await;
    }
    let said = Said { listen: args.listen, advertise: args.advertise, interface: args.interface };
    let is_agent = |url: &String| url.starts_with(UNIX);
    let coordinators: Vec<String> = args.connection.coordinator.iter().filter(|url| !is_agent(url)).cloned().collect();
    let facing = match said.needs_facing() {
        false => addresses::facing(&coordinators).await.ok(),
        true if coordinators.is_empty() => return Err(wrong_use(NO_FACING)),
        true => match addresses::wait_for_way(&coordinators, &mut asked).await {
            Some(ip) => Some(ip),
            None => return Ok(ExitCode::SUCCESS),
        },
    };
    let access = args.connection.access_as(LocalRole::Worker)?;
    let host = args.host.unwrap_or_else(host_name);
    let rack = match args.rack_map {
        None => args.rack,
        Some(file) => {
            let map = read_text(&file, "the racks in", MAX_RACKS_BYTES)?;
            rack_of(&map, &host).with_context(|| format!("read the racks in {}", file.display()))?.unwrap_or(args.rack)
        }
    };
    let (data_listen, advertise) = said.for_links(&addresses::of_this_machine()?, facing, &host)?;
    let config = toroid_worker::Config {
        coordinators: access.urls,
        credentials: access.credentials,
        worker_id: args.id,
        host,
        zone: args.zone,
        rack,
        labels: args.labels.into_iter().collect(),
        data_listen,
        advertise,
        links: if args.links_plain { LinkChoice::Plain } else { args.links },
        device: args.device,
        bf16: args.bf16,
        graphs: args.cuda_graphs,
        collectives: args.collectives,
        threads: args.threads.map_or_else(num_cores, usize::from),
        log,
        trace: args.trace,
        trace_steps: args.trace_steps,
        cache_dir: args.cache.unwrap_or_else(default_cache),
        join_token: args.join_token,
        allow_roots: args.allow_root,
        leave_grace: args.leave_grace_ms.map(Duration::from_millis),
    };
    toroid_worker::run(config, asked).await.context("run the worker")?;
    Ok(ExitCode::SUCCESS)
}

/// An address, with a port or without. Brackets may stand around either family: what Kubernetes knows of a pod is its address alone.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (ip, port) = match bracketed {
        Some((ip, "")) => (ip, "0"),
        Some((ip, rest)) => (ip, rest.strip_prefix(':').unwrap_or_default()),
        None => (text, "0"),
    };
    let alone = || Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?));
    text.parse().ok().or_else(alone).ok_or_else(|| "expected IP, IP:PORT or [IP]:PORT, as in 10.0.0.1:7071".into())
}

/// The rack of this host, by lines of a host and its rack. Empty lines and those that begin with # say nothing.
fn rack_of(map: &str, host: &str) -> Result<Option<String>> {
    let mut found = None;
    for (number, line) in (1..).zip(map.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            [name, rack] if *name == host => found = Some((*rack).to_string()),
            [_, _] => {}
            _ => bail!("line {number} is `{line}`; expected a host and its rack, as in `node-7 r1`"),
        }
    }
    Ok(found)
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
pub fn raise_open_files() {
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

pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().to_string() }
}

pub fn default_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("toroid")
}

/// How often this process was asked to end: once by a signal or a byte of the process that started it, twice by a second one or by the end of
/// that process.
pub fn asked_to_end(die_with_parent: bool) -> Result<watch::Receiver<u32>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (parent, mut parents_word) = mpsc::channel(1);
    if die_with_parent {
        let kill = rustix::process::Signal::KILL;
        rustix::process::set_parent_process_death_signal(Some(kill)).context("bind the life to the parent's")?;
        // A parent that was gone before that is noticed by the end of the pipe.
        std::thread::Builder::new()
            .name("parent".into())
            .spawn(move || {
                for byte in std::io::stdin().lock().bytes() {
                    // What cannot be read has ended as well; the receiver is gone only when this process ends.
                    if byte.is_err() || parent.blocking_send(()).is_err() {
                        break;
                    }
                }
            })
            .context("start the thread that watches the parent")?;
    }
    let (ask, asked) = watch::channel(0);
    tokio::spawn(async move {
        let (mut num_signals, mut num_words) = (0, 0);
        // Slurm sends one request to each process of a step, and what started a process may pass it on.
        let repeats = if std::env::var_os("SLURM_JOB_ID").is_some() { SLURM_REPEATS } else { Duration::ZERO };
        let mut counted: Option<Instant> = None;
        while *ask.borrow() < 2 {
            tokio::select! {
                _ = interrupt.recv() => {
                    tracing::info!("asked to end by SIGINT");
                    num_signals += 1;
                }
                _ = terminate.recv() => {
                    if counted.is_some_and(|at| at.elapsed() < repeats) {
                        continue;
                    }
                    tracing::info!("asked to end by SIGTERM");
                    counted = Some(Instant::now());
                    num_signals += 1;
                }
                word = parents_word.recv(), if die_with_parent => match word {
                    Some(()) => {
                        tracing::info!("asked to end by the process that started this one");
                        num_words += 1;
                    }
                    None => {
                        tracing::info!("asked to end: standard input ended");
                        num_words = 2;
                    }
                }
            }
            // A signal to both processes, and what the other one makes of it, are one request.
            ask.send_replace(u32::max(num_signals, num_words));
        }
        ask.closed().await;
    });
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_etcd_keep_the_scheme_that_was_named() {
        for (text, expected) in [
            ("https://e1:2379", "https://e1:2379"),
            ("http://e1:2379/", "http://e1:2379"),
            ("e1:2379", "http://e1:2379"),
        ] {
            assert_eq!(parse_etcd_url(text).as_deref(), Ok(expected), "{text}");
        }
        assert!(parse_etcd_url("https://e1").is_err_and(|error| error.contains("the port is missing")));
    }

    #[test]
    fn an_address_to_listen_on_may_have_no_port() {
        for (text, expected) in [
            ("10.0.0.1:7071", "10.0.0.1:7071"),
            ("10.0.0.1", "10.0.0.1:0"),
            ("fd00::1", "[fd00::1]:0"),
            ("[fd00::1]", "[fd00::1]:0"),
            ("[fd00::1]:7071", "[fd00::1]:7071"),
            ("[10.0.0.1]:7071", "10.0.0.1:7071"),
        ] {
            assert_eq!(parse_listen(text).map(|address| address.to_string()).as_deref(), Ok(expected), "{text}");
        }
        for text in ["eth0", "[10.0.0.1]:", "[10.0.0.1]x", "[10.0.0.1]7071", "[10.0.0.1]:70000", ""] {
            assert!(parse_listen(text).is_err_and(|error| error.contains("10.0.0.1:7071")), "{text}");
        }
    }

    #[test]
    fn a_rack_is_found_by_the_host() {
        let map = "# made by an admin\n\nnode-1 r1\nnode-2\tr2\n";
        assert_eq!(rack_of(map, "node-2").expect("read the map").as_deref(), Some("r2"));
        assert_eq!(rack_of(map, "node-3").expect("read the map"), None);
        let error = rack_of("node-1\n", "node-2").expect_err("a line without a rack");
        assert!(error.to_string().contains("line 1 is `node-1`"), "{error}");
    }

    #[test]
    fn who_listens_beyond_the_loopback_has_certificates_or_says_that_it_has_none() {
        let check = |listen: &str, line: &[&str], insecure: bool, expected: Result<bool, &str>| {
            let credentials: CredentialArgs = toroid_testkit::parse(line);
            let found = server_files(listen.parse().expect("parse the address"), &credentials, None, insecure);
            match (found, expected) {
                (Ok(files), Ok(has_tls)) => assert_eq!(files.is_some(), has_tls, "{listen} {line:?}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (found, expected) => panic!("{listen} {line:?}: expected {expected:?}, found {found:?}"),
            }
        };
        check("127.0.0.1:7070", &[], false, Ok(false));
        check("[::1]:7070", &[], false, Ok(false));
        check("0.0.0.0:7070", &[], false, Err("say --insecure"));
        check("[::]:7070", &[], false, Err("toroid certs init"));
        check("10.0.0.1:7070", &[], false, Err("10.0.0.1:7070"));
        check("0.0.0.0:7070", &[], true, Ok(false));
        check("0.0.0.0:7070", &["--credentials", "certs/c"], false, Ok(true));
        check("0.0.0.0:7070", &["--credentials", "certs/c"], true, Err("leave one of them away"));
        check("0.0.0.0:7070", &["--ca", "ca.pem"], false, Err("--cert and --key"));
    }

    /// The limit is that of the whole process; nobody else here minds a higher one.
    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: before.maximum }).expect("lower the limit");
        raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }
}
