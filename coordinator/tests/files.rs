//! A coordinator and the files of its jobs: more jobs than it may open files, damaged files, folders that it does not know.
//!
//! The limit of open files is that of the whole process, so these tests have one of their own.

use std::path::Path;

use proto::job_service_client::JobServiceClient;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Channel;
use toroid_coordinator::Config;
use toroid_coordinator::machine::Retention;
use toroid_proto as proto;
use toroid_testkit::{Coordinator, within};

const NUM_JOBS: usize = 300;
/// Sockets, the store and the runtime need some 30 for each test that runs.
const MAX_FILES: u64 = 160;
const JOB: &str = "name = \"j\"\nsteps = 4\n[data]\npath = \"/data\"\n";

/// A coordinator that may open few files, and a user of it.
struct Served {
    user: JobServiceClient<Channel>,
    coordinator: Coordinator,
}

impl Served {
    async fn start(folder: &Path) -> Served {
        Served::start_with(Config::new(folder)).await
    }

    async fn start_with(config: Config) -> Served {
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(MAX_FILES), maximum }).unwrap();
        let coordinator = Coordinator::start(config).await;
        Served { user: JobServiceClient::connect(coordinator.url.clone()).await.unwrap(), coordinator }
    }

    async fn stop(self) {
        drop(self.user);
        self.coordinator.stop().await;
    }

    async fn submit(&mut self) -> String {
        let submit = self.user.submit_job(proto::SubmitJobRequest { job_toml: JOB.into(), ..Default::default() });
        within("the answer", submit).await.unwrap().into_inner().job_id
    }

    async fn cancel(&mut self, id: &str) {
        self.user.cancel_job(proto::CancelJobRequest { job_id: id.into() }).await.unwrap();
    }

    async fn job(&mut self, id: &str) -> proto::Job {
        let request = proto::GetJobRequest { job_id: id.into(), include_curve: true, ..Default::default() };
        self.user.get_job(request).await.unwrap().into_inner()
    }

    /// Ids and next token of a page.
    async fn page(&mut self, page_size: u32, page_token: &str) -> (Vec<String>, String) {
        let request = proto::ListJobsRequest { page_size, page_token: page_token.into() };
        let answer = self.user.list_jobs(request).await.unwrap().into_inner();
        (answer.jobs.into_iter().map(|j| j.id).collect(), answer.next_page_token)
    }
}

async fn num_jobs(user: &mut JobServiceClient<Channel>) -> usize {
    let list = user.list_jobs(proto::ListJobsRequest::default());
    within("the answer", list).await.unwrap().into_inner().jobs.len()
}

#[tokio::test]
async fn jobs_need_no_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    for number in 1..=NUM_JOBS {
        assert_eq!(coordinator.submit().await, format!("j-{number}"));
    }
    assert_eq!(num_jobs(&mut coordinator.user).await, 100, "a page");
    assert_eq!(coordinator.page(1000, "").await.0.len(), 100, "whatever is asked for");
    coordinator.stop().await;

    let mut coordinator = Served::start(folder.path()).await;
    assert!(num_jobs(&mut coordinator.user).await > 0);
    assert_eq!(coordinator.job(&format!("j-{NUM_JOBS}")).await.state(), proto::JobState::Queued);
    coordinator.stop().await;
}

#[tokio::test]
async fn jobs_are_listed_by_page_and_removed_by_command_and_their_ids_are_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    for _ in 0..5 {
        coordinator.submit().await;
    }
    let (first, token) = coordinator.page(2, "").await;
    assert_eq!(first, ["j-5", "j-4"]);
    let (second, token) = coordinator.page(2, &token).await;
    assert_eq!(second, ["j-3", "j-2"]);
    assert_eq!(coordinator.page(2, &token).await, (vec!["j-1".to_string()], String::new()));
    let bad = proto::ListJobsRequest { page_token: "x".into(), page_size: 1 };
    assert_eq!(coordinator.user.list_jobs(bad).await.unwrap_err().code(), Code::InvalidArgument);

    let remove = proto::RemoveJobRequest { job_id: "j-5".into() };
    let refused = coordinator.user.remove_job(remove.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("j-5 cannot be removed: it is queued"), "{refused}");
    coordinator.cancel("j-5").await;
    let removed = coordinator.user.remove_job(remove.clone()).await.unwrap().into_inner();
    assert!(Path::new(&removed.folder).join("curve.csv").exists(), "its folder stays");
    assert_eq!(coordinator.user.remove_job(remove).await.unwrap_err().code(), Code::NotFound);
    coordinator.stop().await;

    let mut coordinator = Served::start(folder.path()).await;
    assert_eq!(coordinator.page(0, "").await.0, ["j-4", "j-3", "j-2", "j-1"]);
    assert_eq!(coordinator.submit().await, "j-6");
    coordinator.stop().await;
}

/// A page has no more jobs than fit into a message of 2 MiB, and the next one those that are left.
#[tokio::test]
async fn requests_and_pages_are_bounded_by_their_bytes() {
    const NUM_JOBS: usize = 30;
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    let job_of = |bytes: usize| JOB.replace("/data", &format!("/{}", "d".repeat(bytes)));
    for _ in 0..NUM_JOBS {
        let submit = proto::SubmitJobRequest { job_toml: job_of(100 << 10), ..Default::default() };
        coordinator.user.submit_job(submit).await.unwrap();
    }
    let (mut ids, mut token) = coordinator.page(0, "").await;
    assert!((5..25).contains(&ids.len()), "{} jobs of 100 KiB are on a page", ids.len());
    while !token.is_empty() {
        let (more, next) = coordinator.page(0, &token).await;
        assert!(!more.is_empty());
        ids.extend(more);
        token = next;
    }
    assert!(ids.into_iter().eq((1..=NUM_JOBS).rev().map(|n| format!("j-{n}"))), "each job once, the newest first");

    let too_long = proto::SubmitJobRequest { job_toml: job_of(2 << 20), ..Default::default() };
    let refused = coordinator.user.submit_job(too_long).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert_eq!(coordinator.submit().await, format!("j-{}", NUM_JOBS + 1), "and serves others");
    coordinator.stop().await;
}

#[tokio::test]
async fn of_the_jobs_that_have_ended_the_newest_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path());
    config.retention = Retention { max_jobs: 2, ..Retention::default() };
    let mut coordinator = Served::start_with(config.clone()).await;
    for id in ["j-1", "j-2", "j-3", "j-4"] {
        assert_eq!(coordinator.submit().await, id);
    }
    for id in ["j-4", "j-2", "j-1"] {
        coordinator.cancel(id).await;
    }
    let mut kept = coordinator.page(0, "").await.0;
    kept.sort();
    assert_eq!(kept.len(), 3, "j-3 has not ended, two others are kept: {kept:?}");
    assert!(kept.contains(&"j-3".to_string()));
    coordinator.stop().await;
    let mut coordinator = Served::start_with(config).await;
    assert_eq!(coordinator.page(0, "").await.0.len(), 3);
    for id in ["j-1", "j-2", "j-3", "j-4"] {
        assert!(folder.path().join("jobs").join(id).is_dir(), "{id} has its folder");
    }
    coordinator.stop().await;
}

const HEADER: &str = "step,loss,ce,z_loss,balance_loss,grad_norm,lr,weight_decay,tokens,tokens_per_s,step_s,skipped,epoch,hidden_s,exposed_s,expert_load";

fn row(step: u64) -> String {
    format!("{step},5.5,0,0,0,0,0,0,0,0,0,false,0,0,0,\"\"")
}

fn steps(job: &proto::Job) -> Vec<u64> {
    job.curve.iter().map(|r| r.step).collect()
}

#[tokio::test]
async fn a_damaged_curve_is_a_fault_of_its_job_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    for id in ["j-1", "j-2", "j-3", "j-4"] {
        assert_eq!(coordinator.submit().await, id);
    }
    coordinator.cancel("j-1").await;
    coordinator.stop().await;
    let curve = |id: &str| folder.path().join("jobs").join(id).join("curve.csv");
    // By an editor that ends lines as others do.
    let by_an_editor = [HEADER.to_string(), row(1), row(2), row(3), String::new()].join("\r\n");
    std::fs::write(curve("j-1"), &by_an_editor).unwrap();
    std::fs::write(curve("j-2"), [HEADER.to_string(), row(1), String::new()].join("\n")).unwrap();
    // A folder in the place of the file: it cannot be read.
    std::fs::remove_file(curve("j-3")).unwrap();
    std::fs::create_dir(curve("j-3")).unwrap();

    let mut coordinator = Served::start(folder.path()).await;
    let ended = coordinator.job("j-1").await;
    assert_eq!((ended.state(), steps(&ended)), (proto::JobState::Cancelled, vec![1, 2, 3]));
    assert!(ended.damaged.contains("does not begin with the header"), "{}", ended.damaged);
    assert!(ended.damaged.contains("3 of 3 rows can be read"), "{}", ended.damaged);
    assert_eq!(std::fs::read_to_string(curve("j-1")).unwrap(), by_an_editor, "the file stays");
    let others = coordinator.job("j-2").await;
    assert_eq!(others.state(), proto::JobState::Failed);
    assert!(others.reason.contains("has 1 rows, and this job has made no step"), "{}", others.reason);
    let unreadable = coordinator.job("j-3").await;
    assert_eq!(unreadable.state(), proto::JobState::Failed);
    assert!(unreadable.reason.contains("its files are damaged: "), "{}", unreadable.reason);
    let sound = coordinator.job("j-4").await;
    assert_eq!((sound.state(), sound.damaged.as_str()), (proto::JobState::Queued, ""));
    assert_eq!(coordinator.submit().await, "j-5");
    coordinator.stop().await;
}

/// A curve that is longer than a message may be is read in pieces.
#[tokio::test]
async fn a_long_curve_comes_in_pieces_and_does_not_fit_into_its_job() {
    const NUM_SHORT: u64 = 2500;
    const NUM_LONG: u64 = 24;
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    let id = coordinator.submit().await;
    coordinator.cancel(&id).await;
    coordinator.stop().await;
    // 800 kB in a message, twice as much in the file.
    let load = vec![u64::MAX.to_string(); 80_000].join(" ");
    let long = |step: u64| row(step).replace("\"\"", &format!("\"{load}\""));
    let last = NUM_SHORT + NUM_LONG;
    let rows = (1..=NUM_SHORT).map(row).chain((NUM_SHORT + 1..=last).map(long));
    let text: Vec<String> = std::iter::once(HEADER.to_string()).chain(rows).chain([String::new()]).collect();
    std::fs::write(folder.path().join("jobs").join(&id).join("curve.csv"), text.join("\n")).unwrap();

    let mut coordinator = Served::start(folder.path()).await;
    let job = |curve_from_step| proto::GetJobRequest { job_id: id.clone(), include_curve: true, curve_from_step };
    let refused = coordinator.user.get_job(job(0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("longer than the 16 MiB that GetJob gives"), "{refused}");
    let end = coordinator.user.get_job(job(last - 1)).await.unwrap().into_inner();
    assert_eq!(steps(&end), [last - 1, last], "its end fits");
    let request = proto::GetCurveRequest { job_id: id.clone(), from_step: 1, to_step: 0 };
    let pieces: Vec<proto::CurvePiece> = {
        let stream = coordinator.user.get_curve(request).await.unwrap().into_inner();
        within("the end of the curve", stream.collect::<Result<_, _>>()).await.unwrap()
    };
    let found: Vec<usize> = pieces.iter().map(|piece| piece.steps.len()).collect();
    assert!(found.starts_with(&[1000, 1000, 500]), "{found:?}");
    assert!(found[3..].iter().all(|num| *num == 1) && found.len() == 3 + NUM_LONG as usize, "{found:?}");
    assert!(pieces.iter().flat_map(|piece| &piece.steps).map(|r| r.step).eq(1..=last), "each row once");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_store_that_was_lost_is_told_and_folders_that_it_does_not_know_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    assert_eq!((coordinator.submit().await, coordinator.submit().await), ("j-1".into(), "j-2".into()));
    coordinator.stop().await;
    let store = folder.path().join("coordinator.redb");
    std::fs::write(&store, "").unwrap();
    let why = Coordinator::refusal(folder.path()).await;
    assert!(why.contains("it has 0 bytes, and there are 2 folders of jobs"), "{why}");

    std::fs::remove_file(&store).unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    assert_eq!(coordinator.page(0, "").await.0, [""; 0]);
    assert_eq!(coordinator.submit().await, "j-3");
    // Somebody makes a folder meanwhile.
    std::fs::create_dir(folder.path().join("jobs/j-4")).unwrap();
    assert_eq!(coordinator.submit().await, "j-4");
    let job = coordinator.job("j-4").await;
    assert_eq!(job.state(), proto::JobState::Failed);
    assert!(job.reason.contains("was there before the job"), "{}", job.reason);
    assert_eq!(coordinator.submit().await, "j-5");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_store_of_0_bytes_without_jobs_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("coordinator.redb"), "").unwrap();
    let mut coordinator = Served::start(folder.path()).await;
    assert_eq!(coordinator.submit().await, "j-1");
    coordinator.stop().await;
}
