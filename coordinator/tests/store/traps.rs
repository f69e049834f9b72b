//! What is known to go wrong between a client and etcd: connections that break with all their streams, members that are silent, leases that are longer
//! than was asked for.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use toroid_coordinator::store::Store as _;
use toroid_coordinator::store::etcd::{Candidate, EtcdConfig, Sight};
use toroid_testkit::{Etcd, within};

use super::{TTL, admin, candidate, has, lead_with, meta, put, renewed_beyond, take_lease_away};

/// Between a client and a member: its connections can be cut.
struct Wire {
    url: String,
    cuts: watch::Sender<u32>,
}

impl Wire {
    async fn to(url: &str) -> Result<Wire> {
        let member: SocketAddr = url.trim_start_matches("http://").parse()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (cuts, cut) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(member).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Ok(Wire { url, cuts })
    }

    /// All connections end at once, and with them each watch and each renewal that is on the way.
    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_end_neither_a_leadership_nor_a_standbys_watch() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let wire = Wire::to(&etcd.urls()[0]).await?;
    let config = EtcdConfig::new([wire.url.as_str()]);
    let mut store = lead_with(config.clone(), "a").await;
    let (sight, mut seen) = watch::channel(Sight::default());
    let standby = config.clone();
    let campaign = tokio::spawn(async move { candidate(standby, "b").campaign(&sight).await.tenure().term() });
    within("the standby to see the leader", seen.wait_for(|sight| sight.leader.is_some())).await?;
    // For longer than a lease lasts that nobody renews; after each cut it is.
    let (tenure, end) = (store.tenure(), Instant::now() + TTL * 2);
    let mut num_writes = 0;
    while tenure.over_at(end).is_some() {
        num_writes += 1;
        wire.cut();
        store.commit(&put(vec![meta(num_writes, 1)])).await?;
        wire.cut();
        renewed_beyond(&tenure, Instant::now() + TTL * 7 / 8).await?;
    }
    has(&mut store, &[meta(num_writes, 1)], "the last write").await?;
    wire.cut();
    take_lease_away(&mut admin(&etcd).await?).await?;
    let term = within("the standby to lead", campaign).await?;
    ensure!(term == store.tenure().term().next(), "{term:?} follows {:?}", store.tenure().term());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_says_nothing_is_left_for_the_next() -> Result<()> {
    let etcd = Etcd::start(3)?;
    // The others have a leader all the time.
    let silent = (etcd.leader()? + 1) % 3;
    let mut urls = etcd.urls();
    urls.rotate_left(silent);
    let mut store = lead_with(EtcdConfig::new(urls), "a").await;
    store.commit(&put(vec![meta(1, 1)])).await?;
    etcd.signal(silent, Signal::STOP)?;
    within("a write", store.commit(&put(vec![meta(2, 1)]))).await?;
    has(&mut store, &[meta(2, 1)], "what was written without it").await?;
    etcd.signal(silent, Signal::CONT)?;
    ensure!(store.tenure().over().is_none(), "{:?}", store.tenure().over());
    Ok(())
}

/// etcd gives no lease of less than one and a half elections: what was asked for counts, so this coordinator is the first to think that it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_longer_than_what_was_asked_for_and_is_renewed_all_the_same() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let asked = Duration::from_secs(1);
    let mut candidate = Candidate::new(EtcdConfig::new(etcd.urls()), "http://a:7070".into(), "a".into(), asked);
    let mut store = within("a leader", candidate.campaign(&watch::channel(Sight::default()).0)).await;
    let mut admin = admin(&etcd).await?;
    let leader = admin.get("/toroid/default/leader", None).await?;
    let lease = leader.kvs().first().context("there is a leader")?.lease();
    let granted = admin.lease_time_to_live(lease, None).await?.granted_ttl();
    ensure!(granted >= 2, "etcd gave {granted} s");
    // Nothing is renewed while etcd stands still: it is over here, and etcd, which counts no time meanwhile, would let it go on.
    let mut tenure = store.tenure();
    etcd.signal(0, Signal::STOP)?;
    let reason = within("the end of the leadership", tenure.end()).await;
    etcd.signal(0, Signal::CONT)?;
    ensure!(reason.contains("could not be renewed in time"), "{reason}");
    ensure!(store.commit(&put(vec![meta(1, 1)])).await.is_err(), "it was over once");
    Ok(())
}
