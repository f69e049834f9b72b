//! What came of it: how many faults, how long each cost the job, and whether everything that was promised holds.
//!
//! A recovery is measured from outside: from the signal to the first step committed after it, as a watcher of the job sees it. The
//! phases within are the coordinator's own (`toroid incidents`).

use std::fmt::Write as _;

use serde::Serialize;
use toroid_proto as proto;

use crate::format::table;
use crate::incidents::{ms, phases};

/// One fault.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    pub worker: String,
    /// Where it was known.
    pub rank: Option<u32>,
    /// kill, stop, or the phase and step at which the worker killed itself.
    pub how: String,
    /// Committed when it happened.
    pub step: u64,
    /// From the signal to the next committed step; `None`: that was never seen.
    pub recovery_s: Option<f64>,
}

/// Of some numbers: the middle, and how far the worst are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no numbers. Each is one of the numbers: the smallest that so many are not above.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let percentile = |p: usize| sorted.get((sorted.len() * p).div_ceil(100).saturating_sub(1)).copied();
        Some(Spread { median: percentile(50)?, p90: percentile(90)?, p99: percentile(99)?, max: percentile(100)? })
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub phase: &'static str,
    pub median_s: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub job: String,
    /// tp, pp, dp
    pub shape: [u32; 3],
    pub seed: u64,
    pub steps: u64,
    pub epoch: u64,
    pub num_incidents: usize,
    pub steps_lost: u64,
    /// Median over all steps.
    pub step_s: f64,
    /// From the signal to the next committed step.
    pub recovery_s: Option<Spread>,
    /// Of the incidents, in the order in which they pass.
    pub phases: Vec<Phase>,
    pub faults: Vec<Fault>,
    /// Deaths of the coordinator besides.
    pub coordinator_kills: usize,
    /// Workers that were put aside for being lost too often, and taken back at once for the next fault.
    pub readmitted: usize,
    /// The run was compared with an undisturbed one.
    pub is_verified: bool,
    /// What does not hold; empty: pass.
    pub problems: Vec<String>,
}

impl Report {
    /// `job`: with its curve. `problems`: those that were met while it ran.
    pub fn new(seed: u64, job: &proto::Job, faults: Vec<Fault>, problems: Vec<String>) -> Report {
        let shape = job.shape.unwrap_or_default();
        let recoveries = faults.iter().filter_map(|f| f.recovery_s);
        let mut report = Report {
            job: job.id.clone(),
            shape: [shape.tp, shape.pp, shape.dp],
            seed,
            steps: job.committed_step,
            epoch: job.epoch,
            num_incidents: job.incidents.len(),
            steps_lost: job.incidents.iter().map(|i| i.steps_lost).sum(),
            step_s: Spread::of(job.curve.iter().filter(|r| !r.missing).map(|r| r.step_s)).map_or(0.0, |s| s.median),
            recovery_s: Spread::of(recoveries),
            phases: medians(&job.incidents),
            faults,
            coordinator_kills: 0,
            readmitted: 0,
            is_verified: false,
            problems,
        };
        report.check(job);
        report
    }

    /// What must hold whatever happened (T-3), as far as the job itself shows it.
    fn check(&mut self, job: &proto::Job) {
        if self.steps_lost > 0 {
            let restored = job.incidents.iter().filter(|i| i.steps_lost > 0);
            let words = restored.map(|i| format!("{} in incident {} ({})", i.steps_lost, i.number, i.reason));
            self.problems.push(format!("committed steps were lost: {}", words.collect::<Vec<_>>().join(", ")));
        }
        for fault in self.faults.iter().filter(|f| f.recovery_s.is_none()) {
            self.problems.push(format!("no step was committed after the fault of {} ({})", fault.worker, fault.how));
        }
        for incident in job.incidents.iter().filter(|i| !i.resolved) {
            self.problems.push(format!("incident {} ({}) is not over", incident.number, incident.cause));
        }
        let is_once_each = job.curve.iter().zip(1..).all(|(record, step)| record.step == step && !record.missing);
        if !is_once_each {
            self.problems.push("the curve does not have the figures of every step once".into());
        }
    }

    pub fn is_passed(&self) -> bool {
        self.problems.is_empty()
    }

    /// Verdict, figures, and what does not hold.
    pub fn text(&self) -> String {
        let row = |name: &str, value: String| vec![name.to_string(), value];
        let mut rows = vec![
            row("chaos", if self.is_passed() { "PASS".into() } else { "FAIL".into() }),
            row("job", format!("{}, {} steps, epoch {}", self.job, self.steps, self.epoch)),
            row(
                "faults",
                format!("{} in {} incidents, victims of seed {}", self.faults.len(), self.num_incidents, self.seed),
            ),
            row("step", format!("median {} ms", ms(self.step_s))),
        ];
        if self.coordinator_kills > 0 {
            rows.push(row("coordinator", format!("killed {} times besides", self.coordinator_kills)));
        }
        if self.readmitted > 0 {
            let times = format!("{} times a worker that was put aside for being lost too often", self.readmitted);
            rows.push(row("taken back", times));
        }
        if let Some(s) = &self.recovery_s {
            let beyond = s.median - self.step_s;
            let figures = format!("median {} ms, p99 {} ms, max {} ms", ms(s.median), ms(s.p99), ms(s.max));
            rows.push(row("recovery", format!("{figures}; the median is one step and {} ms", ms(beyond))));
        }
        if !self.phases.is_empty() {
            let figures = self.phases.iter().map(|p| format!("{} {}", p.phase, ms(p.median_s))).collect::<Vec<_>>();
            rows.push(row("phases", format!("{} (medians, ms)", figures.join(", "))));
        }
        rows.push(row("steps lost", self.steps_lost.to_string()));
        let verified = match (self.is_verified, self.is_passed()) {
            (false, _) => "not compared with an undisturbed run (--verify does)",
            (true, true) => "every step and the final parameters are those of the undisturbed run, bit for bit",
            (true, false) => "compared with an undisturbed run",
        };
        rows.push(row("verify", verified.into()));
        let mut text = table(&rows);
        for problem in &self.problems {
            // Writing to a string does not fail.
            let _ = writeln!(text, "FAIL: {problem}");
        }
        text
    }
}

fn medians(incidents: &[proto::Incident]) -> Vec<Phase> {
    let names = phases(&proto::Incident::default()).map(|(name, _)| name);
    let median = |(i, phase): (usize, &'static str)| {
        let of_phase = incidents.iter().filter(|incident| incident.resolved).map(|incident| phases(incident)[i].1);
        Some(Phase { phase, median_s: Spread::of(of_phase)?.median })
    };
    names.into_iter().enumerate().filter_map(median).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_among_the_numbers() {
        let spread = |n: u32| Spread::of((1..=n).rev().map(f64::from)).map(|s| (s.median, s.p90, s.p99, s.max));
        assert_eq!(spread(0), None);
        assert_eq!(spread(1), Some((1.0, 1.0, 1.0, 1.0)));
        assert_eq!(spread(4), Some((2.0, 4.0, 4.0, 4.0)));
        assert_eq!(spread(200), Some((100.0, 180.0, 198.0, 200.0)));
    }

    fn job() -> proto::Job {
        let step = |step| proto::StepRecord { step, step_s: 0.1, ..Default::default() };
        let incident = |number, heal_s| proto::Incident { number, heal_s, resolved: true, ..Default::default() };
        proto::Job {
            id: "tiny-2".into(),
            epoch: 3,
            committed_step: 30,
            curve: (1..=30).map(step).collect(),
            incidents: vec![incident(1, 0.2), incident(2, 0.4)],
            ..Default::default()
        }
    }

    fn fault(recovery_s: Option<f64>) -> Fault {
        Fault { worker: "w3".into(), rank: Some(3), how: "kill".into(), step: 12, recovery_s }
    }

    #[test]
    fn a_pass_has_its_figures() {
        let mut report = Report::new(7, &job(), vec![fault(Some(0.3)), fault(Some(0.5))], Vec::new());
        report.is_verified = true;
        assert_eq!(
            report.text(),
            "chaos       PASS\n\
             job         tiny-2, 30 steps, epoch 3\n\
             faults      2 in 2 incidents, victims of seed 7\n\
             step        median 100 ms\n\
             recovery    median 300 ms, p99 500 ms, max 500 ms; the median is one step and 200 ms\n\
             phases      detect 0, fence 0, decide 0, heal 200, redo 0 (medians, ms)\n\
             steps lost  0\n\
             verify      every step and the final parameters are those of the undisturbed run, bit for bit\n"
        );
    }

    #[test]
    fn whatever_does_not_hold_is_a_failure_in_words() {
        let check = |job: &proto::Job, fault: Fault, expected: &str| {
            let report = Report::new(7, job, vec![fault], Vec::new());
            assert!(!report.is_passed() && report.text().contains(expected), "{}", report.text());
            assert!(report.text().starts_with("chaos       FAIL"));
        };
        check(&job(), fault(None), "no step was committed after the fault of w3 (kill)");
        let mut lost = job();
        (lost.incidents[1].steps_lost, lost.incidents[1].reason) = (5, "both holders died".into());
        check(&lost, fault(Some(0.1)), "5 in incident 2 (both holders died)");
        let mut lasts = job();
        lasts.incidents[0].resolved = false;
        check(&lasts, fault(Some(0.1)), "incident 1 () is not over");
        let mut gap = job();
        gap.curve.remove(3);
        check(&gap, fault(Some(0.1)), "every step once");
    }
}
