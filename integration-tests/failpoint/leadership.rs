//! What keeps a coordinator that does not lead any more from changing anything is taken away: the checks must see that.

use std::time::Duration;

use anyhow::{Context as _, Result};
use etcd_client::Client as Admin;
use tokio::sync::watch;
use toroid_coordinator::machine::Change;
use toroid_coordinator::machine::record::{FORMAT, Meta, Record};
use toroid_coordinator::store::Store as _;
use toroid_coordinator::store::etcd::{Candidate, EtcdConfig, EtcdStore, Sight};
use toroid_proto::coordinator_message::Body;
use toroid_proto::{Probe, Welcome};
use toroid_session::client::{Client, Input, Output, Settings};
use toroid_testkit::Etcd;
use toroid_torus::failpoint::{Failpoint, arm};
use toroid_torus::ids::Term;

async fn lead(etcd: &Etcd, id: &str) -> EtcdStore {
    let ttl = Duration::from_secs(2);
    let mut candidate = Candidate::new(EtcdConfig::new(etcd.urls()), format!("http://{id}:1"), id.into(), ttl);
    candidate.campaign(&watch::channel(Sight::default()).0).await
}

fn meta(secret: u8) -> Record {
    Record::Meta(Meta {
        format: FORMAT,
        secret: [secret; 32],
        num_jobs: Default::default(),
        retired: Default::default(),
        cordoned: Default::default(),
        cordoned_hosts: Default::default(),
        forgotten: Default::default(),
    })
}

/// Whether a leader whose lease is gone, with nobody else leading yet, can change what is stored.
async fn a_deposed_leader_writes(etcd: &Etcd, point: Option<Failpoint>) -> Result<bool> {
    let change = Change { put: vec![meta(3)], remove: Vec::new() };
    let mut first = lead(etcd, "a").await;
    let mut admin = Admin::connect(etcd.urls(), None).await?;
    let leader = admin.get("/toroid/default/leader", None).await?;
    admin.lease_revoke(leader.kvs().first().context("there is a leader")?.lease()).await?;
    arm(point);
    // Refused, or not: what is in the store then says.
    let _ = first.commit(&change).await;
    arm(None);
    let mut second = lead(etcd, "b").await;
    let found = second.load().await?;
    second.resign().await;
    Ok(!found.is_empty())
}

#[tokio::test]
async fn t8_without_the_comparison_of_the_leaders_key_a_deposed_leader_writes() -> Result<()> {
    let etcd = Etcd::start(1)?;
    assert!(!a_deposed_leader_writes(&etcd, None).await?, "T-8");
    assert!(a_deposed_leader_writes(&etcd, Some(Failpoint::WriteWithoutLeading)).await?, "the check does not see it");
    Ok(())
}

/// Whether a worker does what a coordinator says with an older term than it has heard.
fn an_older_term_counts(point: Option<Failpoint>) -> bool {
    let second = Duration::from_secs(1);
    let settings = Settings {
        coordinators: vec!["http://c:1".into()],
        heartbeat: second,
        failure_timeout: 5 * second,
        leave_grace: second,
        own_leave_grace: None,
    };
    let mut client = Client::new(settings);
    let said = |term: u64, body: Body| Input::FromCoordinator { term: Term::new(term), body };
    let probe =
        Probe { worker_id: "w7".into(), data_address: "127.0.0.1:9".into(), key: vec![1; 32], ..Probe::default() };
    client.handle(Input::Deadline, second);
    client.handle(Input::Opened, second);
    client.handle(said(2, Body::Welcome(Welcome::default())), second);
    arm(point);
    let outputs = client.handle(said(1, Body::Probe(probe)), second);
    arm(None);
    outputs.iter().any(|output| matches!(output, Output::Probe { .. }))
}

#[test]
fn t13_without_the_look_at_the_term_an_older_one_counts() {
    assert!(!an_older_term_counts(None), "T-13");
    assert!(an_older_term_counts(Some(Failpoint::TakeOldTerm)), "the check does not see it");
}
