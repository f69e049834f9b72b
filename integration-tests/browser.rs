//! The dashboard in a real browser, of a real run: see `browser.py`, which looks; here is done what it asks for.
//!
//! `TOROID_PICTURES=docs/images` has it take the pictures of the documentation.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use toroid_testkit::jobs::{endless_job, short_job};
use toroid_testkit::{Cluster, Process, check_nothing_lost, is_whole, path, root, worker_of};

use crate::{TOROID, python};

/// `toroid dashboard`, and the address that it prints.
fn dashboard(cluster: &Cluster) -> Result<(Process, String)> {
    let credentials = cluster.certificates().join("admin");
    let mut command = TOROID.command();
    command.args(["dashboard", "--coordinator", &cluster.url(), "--credentials", path(&credentials)]);
    let mut process = Process(command.stdout(Stdio::piped()).spawn().context("start toroid dashboard")?);
    let (mut line, mut output) = (String::new(), BufReader::new(process.0.stdout.take().context("take its output")?));
    output.read_line(&mut line)?;
    // It says more, and would end where nobody could read that.
    process.0.stdout = Some(output.into_inner());
    ensure!(line.starts_with("http://127.0.0.1:"), "toroid dashboard says {line}");
    Ok((process, line.trim().into()))
}

/// What a browser cannot do itself; the answer is one line.
fn done(cluster: &mut Cluster, job: &str, asked: &str) -> Result<String> {
    let (what, of) = asked.split_once(' ').unwrap_or((asked, ""));
    Ok(match what {
        "places" => {
            let job = cluster.wait_for(job, "all of its places", is_whole)?;
            let places: BTreeMap<u32, &str> = job.places.iter().map(|p| (p.rank, p.worker_id.as_str())).collect();
            serde_json::to_string(&places)?
        }
        "kill" => {
            let victim = worker_of(&cluster.job(job).context("ask for the job")?, of.parse()?);
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            cluster.kill_worker(&victim)?;
            now.to_string()
        }
        "add" => {
            let num: usize = of.parse()?;
            let added: Result<Vec<String>> = (0..num).map(|_| cluster.add_worker(1)).collect();
            added?.join(" ")
        }
        "lives" => cluster.pid(of).is_some().to_string(),
        "end" => format!("signal {}", cluster.end_of(of)?.signal().context("it has ended by itself")?),
        "restart" => {
            cluster.kill_coordinator()?;
            cluster.start_coordinator()?;
            String::new()
        }
        _ => bail!("the browser asks for `{asked}`"),
    })
}

#[test]
fn the_dashboard_in_a_browser() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 8, 1)?;
    // It learns slowly: its curve lies beside the other one.
    let other = cluster.train(&short_job((2, 2, 2), 40, "").replace("lr = 3e-3", "lr = 3e-4"))?.id;
    // A dead place stays empty until another worker comes.
    let id = cluster.submit(&format!("{}[fault_tolerance]\nmin_dp = 2\n", endless_job((2, 2, 2))))?;
    cluster.wait_for(&id, "the first steps", |job| job.committed_step > 3)?;
    let (_dashboard, address) = dashboard(&cluster)?;

    let mut command = python::command("browser.py")?;
    command.args([&address, &id, &other]);
    if let Some(folder) = std::env::var_os("TOROID_PICTURES") {
        command.arg(root().join(folder));
    }
    let mut browser = Process(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("run browser.py")?);
    let mut answers = browser.0.stdin.take().context("take its input")?;
    for line in BufReader::new(browser.0.stdout.take().context("take its output")?).lines() {
        let line = line?;
        match line.strip_prefix("please ") {
            Some(asked) => writeln!(answers, "{}", done(&mut cluster, &id, asked).with_context(|| line.clone())?)?,
            None => println!("{line}"),
        }
    }
    let ended = browser.0.wait()?;
    ensure!(ended.success(), "browser.py ended with {ended}: see above\n{}", cluster.logs());
    check_nothing_lost(&cluster.finish(&id)?)
}
