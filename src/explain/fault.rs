//! What kind of failure, or of planned change, a cause is: what it means, and what whoever runs the machines does about it.
//!
//! Two things tell: how it was seen, and the coordinator's words in the cause. Of an incident with several causes each is told. A coordinator of
//! a later version may say what this one does not know; then only how it was seen counts ([`Fault::Other`] where not even that is known).

use toroid_proto as proto;
use toroid_torus::units::names;

/// Workers that a sentence names.
const MAX_NAMED: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process is gone, or its connection is.
    Ended,
    Silent,
    /// Another process of the same id came before anybody missed the first.
    Restarted,
    /// It did not come back to a coordinator that was started anew.
    NotBack,
    /// Of all places this one alone is not reached.
    Unreached,
    /// Two that are alive lost the link between them.
    LinkCut,
    DamagedFrames,
    DiskFull,
    OutOfMemory,
    CannotFill,
    OtherData,
    Unreadable,
    HoldersLost,
    WrongCopy,
    /// Copies differ, and nobody can tell which of them is right.
    Corrupt,
    Hang,
    Cycle,
    NotWritten,
    Failed,
    Drained,
    AskedToEnd,
    Grown,
    GaveWay,
    Other,
}

/// The coordinator's words, and what they are of. Of two that begin at the same place the first counts.
const WORDS: [(&str, Fault); 24] = [
    ("closed its stream", Fault::Ended),
    ("lost its connection", Fault::Ended),
    ("was silent for", Fault::Silent),
    ("came back without its work", Fault::Restarted),
    ("has not come back within", Fault::NotBack),
    ("has no link with others", Fault::Unreached),
    ("lost its link to", Fault::LinkCut),
    ("does not reach", Fault::LinkCut),
    ("is not called by", Fault::LinkCut),
    ("had damaged frames from", Fault::DamagedFrames),
    ("No space left on device", Fault::DiskFull),
    ("out of memory", Fault::OutOfMemory),
    ("Cannot allocate memory", Fault::OutOfMemory),
    ("does not see the same data or model", Fault::OtherData),
    ("cannot read the checkpoint of step", Fault::Unreadable),
    ("both its holders", Fault::HoldersLost),
    ("it was its only holder", Fault::HoldersLost),
    ("holds a wrong copy of a shard", Fault::WrongCopy),
    ("silent corruption", Fault::Corrupt),
    ("hangs: it was asked twice for its shard", Fault::NotWritten),
    ("wait for one another", Fault::Cycle),
    ("hangs", Fault::Hang),
    ("is drained", Fault::Drained),
    ("asked to end", Fault::AskedToEnd),
];

/// What happened in this incident: at least one, the first of its causes first.
pub fn faults(incident: &proto::Incident) -> Vec<Fault> {
    let mut found: Vec<(usize, Fault)> = Vec::new();
    for (words, fault) in WORDS {
        for (at, _) in incident.cause.match_indices(words) {
            if !found.iter().any(|(other, _)| *other == at) {
                found.push((at, fault));
            }
        }
    }
    found.sort_by_key(|(at, _)| *at);
    let mut faults: Vec<Fault> = Vec::new();
    for (_, fault) in found {
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    if faults.contains(&Fault::Unreached) {
        // It has the report of a link in its words, which is how it is known.
        faults.retain(|fault| *fault != Fault::LinkCut);
    }
    if faults.is_empty() { vec![by_sight(incident)] } else { faults }
}

/// By how it was seen alone.
fn by_sight(incident: &proto::Incident) -> Fault {
    match incident.seen_by.as_str() {
        "stream closed" => Fault::Ended,
        "silence" => Fault::Silent,
        "registration" => Fault::Restarted,
        "coordinator's restart" => Fault::NotBack,
        "peer's report" => Fault::LinkCut,
        "worker's report" => Fault::Failed,
        "digests" => Fault::Corrupt,
        "waits-for edges" => Fault::Hang,
        "preparation" => Fault::CannotFill,
        "drain" => Fault::Drained,
        "worker's end" => Fault::AskedToEnd,
        "capacity" => Fault::Grown,
        "priority" => Fault::GaveWay,
        _ => Fault::Other,
    }
}

/// How the coordinator came to know, in a sentence that begins with a capital. `None`: of another version.
pub fn sight(seen_by: &str) -> Option<&'static str> {
    Some(match seen_by {
        "stream closed" => {
            "The coordinator saw the worker's connection end, which the system tells at once when a process dies"
        }
        "silence" => {
            "The worker said nothing for the whole failure timeout. From outside, a stopped process, a frozen host and a cut network \
             look the same"
        }
        "registration" => {
            "A process registered under the worker's id and knew nothing of its place: it was started anew before anybody had missed \
             the one before"
        }
        "coordinator's restart" => {
            "The coordinator was started anew, gave every worker time to come back, and this one did not"
        }
        "peer's report" => "Other workers told the coordinator about their links",
        "worker's report" => "The worker itself said so",
        "digests" => "Every step the two copies of each shard are compared by their digests, and these differed",
        "waits-for edges" => {
            "Each heartbeat says what a worker does and for whom it waits. No step was committed in time, so the coordinator followed \
             these waits to their root"
        }
        "preparation" => {
            "It was seen while the workers prepared for an epoch: what they read and hold is compared before anybody goes on"
        }
        "drain" => "It was planned: somebody asked for it",
        "worker's end" => "The worker was told to end, and said so before it did",
        "capacity" => "The coordinator saw enough workers without a place for one more replica",
        "priority" => "The scheduler gave workers of this job to one of a higher priority",
        _ => return None,
    })
}

/// Who it is about, for the advice.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub job: &'a str,
    pub workers: &'a [String],
    /// Where the worker was, if there is one and that is known.
    pub host: Option<&'a str>,
}

impl Subject<'_> {
    /// `w3`, or `the worker` where none is named.
    pub fn who(&self) -> String {
        if self.workers.is_empty() { "the worker".into() } else { names(self.workers, MAX_NAMED) }
    }

    /// `on h2`, or `on its host`.
    fn there(&self) -> String {
        match self.host {
            Some(host) => format!("on {host}"),
            None if self.workers.len() > 1 => "on their hosts".into(),
            None => "on its host".into(),
        }
    }
}

impl Fault {
    /// What to do about it, a step a sentence or two. Never empty.
    pub fn to_do(self, of: &Subject<'_>) -> String {
        let (who, there, job) = (of.who(), of.there(), of.job);
        match self {
            Fault::Ended => format!(
                "The job needs nothing. To learn why {who} ended, look {there} at the end of its log, and whether the kernel killed it for \
                 memory: `dmesg -T | grep -i -E 'killed process|out of memory'`, in a container at its last exit code (137 is a kill). A \
                 worker that was started by a supervisor comes back as a spare by itself; another is started with `toroid worker`."
            ),
            Fault::Silent => format!(
                "Look {there} whether the process of {who} is still there and what it does (`ps -o pid,stat,wchan -p PID`: T is stopped, D waits \
                 for a disk or a network folder), whether the host swaps (`vmstat 1`) and whether it answers at all. A process that is \
                 woken again finds out by itself that its place was given away, and becomes a spare. If hosts are often late without being \
                 ill, raise `toroid coordinator --failure-timeout-ms`."
            ),
            Fault::Restarted => format!(
                "The job needs nothing. Something started {who} anew: a supervisor, or a user. Look {there} at the log of the process before it, \
                 and at `dmesg -T` for one that was killed."
            ),
            Fault::NotBack => format!(
                "Start {who} again if it is to work on. If its process still runs {there}, it does not find the coordinator: its log says \
                 which address it dials; name all coordinators in `toroid worker --coordinator`."
            ),
            Fault::Unreached => format!(
                "Others cannot open a link to {who}, though its own calls go through. Look at the address that it is dialled at: `toroid worker \
                 --advertise HOST` names one that other hosts reach, and a firewall must let its `--listen` port in. `toroid doctor` {there} \
                 shows what its host name resolves to."
            ),
            Fault::LinkCut => "Both workers are alive and keep their state; only the network between them failed. If it happens again between the \
                 same two hosts, look at their cable, switch port and driver counters (`ethtool -S`, `ip -s link`), and at firewalls that drop \
                 idle connections. `toroid drain WORKER` moves a place away from a bad path."
                .into(),
            Fault::DamagedFrames => "Bytes arrived that were not those sent: TCP let them through, the frame's own check did not. Nothing wrong \
                 was used. Suspect the network card, its offloading or the memory of either host; `toroid drain WORKER` moves a place away, \
                 and links over TLS (the default between hosts) find it too."
                .into(),
            Fault::DiskFull => format!(
                "Make room on the disk that the error names, {there} or where the checkpoints are (`df -h`, `df -i`), or let the job keep fewer \
                 checkpoints (`checkpoint.keep`). It is tried again by itself."
            ),
            Fault::OutOfMemory => format!(
                "The place does not fit into the memory {there}. `toroid plan JOBFILE` says what a place needs; more ways of parallelism, a \
                 smaller micro-batch or `recompute` need less. See whether something else uses the memory (`nvidia-smi`, `free -h`)."
            ),
            Fault::CannotFill => format!(
                "{who} cannot do what this job needs of it, and the reason says what that is. Mend that {there} and start the worker anew: then it \
                 is asked again at once."
            ),
            Fault::OtherData => format!(
                "{who} reads other files than the others under the same path. Give all hosts the same data: a shared folder, or copies \
                 (`sha256sum` finds the difference). Then start the worker anew."
            ),
            Fault::Unreadable => format!(
                "`toroid checkpoint verify {job}` reads every byte and names what is damaged. If the files are whole, the worker's host does not \
                 see the folder: mount it there. Damaged files are of no use: restore them from a copy, or leave it to the checkpoint \
                 before."
            ),
            Fault::HoldersLost => "Each shard is held by two workers, and both were lost before either could be replaced: that is what goes \
                 back to a checkpoint. Spread the places over more hosts or racks (`toroid worker --label rack=...`), keep spares, and save \
                 more often (`checkpoint.interval_s`)."
                .into(),
            Fault::WrongCopy => format!(
                "The memory or a core {there} computed or kept something wrong, and the last update, made again from its inputs, showed which copy it \
                 was. This process is given no place any more. Take the host out: `toroid cordon {who}`, test its memory (`memtester`, \
                 `edac-util`, for GPUs `nvidia-smi -q -d ECC` and `dcgmi diag`), and replace what fails."
            ),
            Fault::Corrupt => "Two copies of the state differ and nothing tells which of them is right, so both are given up and all go on from \
                 the newest checkpoint. Test the memory of the hosts that hold the shard that is named (`edac-util`, `memtester`, \
                 `nvidia-smi -q -d ECC`), and cordon the one that fails (`toroid cordon WORKER`)."
                .into(),
            Fault::Hang => format!(
                "{who} was connected and did nothing: the others waited for it, and it waited for nobody. If the process still runs {there}, its \
                 stacks say where it stands (`gdb -p PID -batch -ex 'thread apply all bt'`). Usual reasons: a network folder that does not \
                 answer (D in `ps`), a device that is lost (`nvidia-smi`, `dmesg -T | grep -i xid`). The process is given no place any more: \
                 end it and start it anew."
            ),
            Fault::Cycle => "The workers waited for one another, which no single one is to blame for; all began again with the state that they \
                 have. Once is chance (a lost message on a link that broke). If it comes again, please report it with the workers' logs."
                .into(),
            Fault::NotWritten => format!(
                "{who} was asked twice for its shard of the last step and neither wrote it nor said why: its disk or network folder does not \
                 answer. Look {there} with `df` and `dmesg -T`, and at the server of the folder."
            ),
            Fault::Failed => format!(
                "The cause has the worker's own error: mend what it names {there}. The place was given to somebody else, and a place that fails \
                 three times without a new step ends the job."
            ),
            Fault::Drained => format!(
                "Nothing: it was asked for. {who} has no place any more and may be stopped; the same process is given none again, a new one is."
            ),
            Fault::AskedToEnd => format!(
                "Nothing, if {who} was stopped on purpose (SIGTERM, a preempted or drained node). The state was kept by the others or saved \
                 first. Start a worker elsewhere if the job is to have its place filled."
            ),
            Fault::Grown => "Nothing: the job has more replicas again. The samples of each step are the same with any number of them.".into(),
            Fault::GaveWay => format!(
                "Nothing: the job goes on with fewer replicas and the same samples, and grows again when workers are free. `toroid status {job}` \
                 shows its priority; `toroid jobs` shows who has the workers."
            ),
            Fault::Other => "The coordinator is of another version than this program, which does not know this kind; its own words are above.".into(),
        }
    }
}
