//! The runs of the documentation, and the part of a page that shows them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::compare::{simulate, spares_of};
use super::model::{Scenario, Settings};
use super::report::{self, Outcome, share};
use crate::files::read_text;
use crate::output;
use crate::svg::{Axis, Plot, Scale};

/// What is between these lines of a page is written anew.
const BEGIN: &str = "<!-- toroid simulate: begin -->";
const END: &str = "<!-- toroid simulate: end -->";
const MAX_PAGE_BYTES: u64 = 4 << 20;

const HOUR_S: f64 = 3600.0;
/// Of intervals and spares, and the size that goals are about.
const PLACES: usize = 2048;
/// One failure in so long, for all places together.
const RATES_S: [f64; 3] = [48.0 * HOUR_S, 4.0 * HOUR_S, HOUR_S / 3.0];
const INTERVALS_MIN: [f64; 5] = [1.0, 5.0, 10.0, 30.0, 60.0];
const SPARES: [f64; 4] = [0.0, 0.005, 0.01, 0.02];
const GOALS: [f64; 2] = [0.999, 0.995];

/// All that the page shows.
pub struct Study {
    sizes: Vec<Outcome>,
    intervals: Vec<Outcome>,
    spares: Vec<Outcome>,
}

/// Runs all of it, for jobs of these sizes. Each run is so long that it has `num_failures` on average.
pub fn run(base: &Scenario, settings: &Settings, sizes: &[usize], num_failures: f64) -> Result<Study> {
    let of = |places: usize, failure_every_s: f64| Scenario {
        places,
        spares: spares_of(places, 0.01),
        failure_every_s,
        interval_s: 600.0,
        second_holder: true,
        days: num_failures * failure_every_s / (24.0 * HOUR_S),
        ..base.clone()
    };
    let one = |scenario: Scenario| -> Result<Outcome> {
        output::note(format_args!(
            "{} places, one failure in {} s, {:.2} days",
            scenario.places, scenario.failure_every_s, scenario.days
        ));
        simulate(scenario, settings)
    };
    let mut by_size = Vec::new();
    for places in sizes {
        for rate in RATES_S {
            by_size.push(one(of(*places, rate))?);
        }
    }
    let mut intervals = Vec::new();
    for minutes in INTERVALS_MIN {
        for second_holder in [true, false] {
            let interval_s = 60.0 * minutes;
            intervals.push(one(Scenario { interval_s, second_holder, ..of(PLACES, RATES_S[1]) })?);
        }
    }
    let mut spares = Vec::new();
    for rate in [RATES_S[1], RATES_S[2]] {
        for part in SPARES {
            spares.push(one(Scenario { spares: spares_of(PLACES, part), ..of(PLACES, rate) })?);
        }
    }
    Ok(Study { sizes: by_size, intervals, spares })
}

impl Study {
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.sizes.iter().chain(&self.intervals).chain(&self.spares)
    }

    fn plots(&self) -> [(&'static str, Plot); 3] {
        let places = |o: &Outcome| format!("{} places", crate::format::count(o.scenario.places as u64));
        let rates = report::plot(
            "Goodput by how often something fails",
            Axis::new("hours between failures", Scale::Log),
            &self.sizes,
            |o| {
                let hours = o.scenario.failure_every_s / HOUR_S;
                let launcher = (format!("launcher, {}", o.scenario.places), o.launcher.goodput);
                (hours, vec![(places(o), o.toroid.goodput), launcher])
            },
        );
        let intervals = report::plot(
            "Goodput by checkpoint interval, 2,048 places, one failure in 4 h",
            Axis::new("minutes between checkpoints", Scale::Log),
            &self.intervals,
            |o| {
                let minutes = o.scenario.interval_s / 60.0;
                match o.scenario.second_holder {
                    true => (minutes, vec![("second holders".into(), o.toroid.goodput)]),
                    false => {
                        let own = ("one holder".into(), o.toroid.goodput);
                        (minutes, vec![own, ("launcher".into(), o.launcher.goodput)])
                    }
                }
            },
        );
        let spares = report::plot(
            "Goodput by spares, 2,048 places",
            Axis::new("spares, % of places", Scale::Linear),
            &self.spares,
            |o| {
                let percent = 100.0 * o.scenario.spares as f64 / o.scenario.places as f64;
                let every = crate::format::duration(o.scenario.failure_every_s);
                let launcher = (format!("launcher, {every}"), o.launcher.goodput);
                (percent, vec![(format!("one failure in {every}"), o.toroid.goodput), launcher])
            },
        );
        [("simulate-failures", rates), ("simulate-intervals", intervals), ("simulate-spares", spares)]
    }

    /// The part of the page, which is at `docs/scale.md`.
    pub fn page(&self, command: &str) -> String {
        let goals = [0, 1].map(|n| {
            let is_it = |o: &&Outcome| o.scenario.places == PLACES && o.scenario.failure_every_s == RATES_S[n];
            let what = format!("{} at one failure in {} h", share(GOALS[n]), RATES_S[n] / HOUR_S);
            match self.sizes.iter().find(is_it).map(|o| o.toroid.goodput) {
                Some(seen) if seen >= GOALS[n] => format!("{what} is reached with {}", share(seen)),
                Some(seen) => format!("{what} is missed with {}", share(seen)),
                None => format!("{what} was not simulated"),
            }
        });
        format!(
            "{BEGIN}\n\nMade by `{command}`; the same bytes each time. Goals for 2,048 places: {}; {}.\n\n{}\n\
             ![Goodput by how often something fails](images/simulate-failures.svg)\n\n\
             What the time went to:\n\n{}\n\
             Intervals of checkpoints, with second holders of shards and without:\n\n{}\n\
             ![Goodput by checkpoint interval](images/simulate-intervals.svg)\n\n\
             Spares:\n\n{}\n\
             ![Goodput by spares](images/simulate-spares.svg)\n\n{END}",
            goals[0],
            goals[1],
            report::markdown(&report::runs(&self.sizes)),
            report::markdown(&report::times(&self.sizes)),
            report::markdown(&report::runs(&self.intervals)),
            report::markdown(&report::runs(&self.spares)),
        )
    }

    /// Writes the part of the page anew, and the plots beside it.
    pub fn write(&self, page: &Path, command: &str) -> Result<()> {
        let text = read_text(page, "the page", MAX_PAGE_BYTES)?;
        let text =
            replaced(&text, &self.page(command)).with_context(|| format!("write the study into {}", page.display()))?;
        let images = page.parent().unwrap_or(Path::new("")).join("images");
        std::fs::create_dir_all(&images).with_context(|| format!("make {}", images.display()))?;
        for (name, plot) in self.plots() {
            let file = images.join(format!("{name}.svg"));
            std::fs::write(&file, plot.render()).with_context(|| format!("write {}", file.display()))?;
        }
        std::fs::write(page, text).with_context(|| format!("write {}", page.display()))
    }
}

/// `text` with what is between the marks replaced.
fn replaced(text: &str, part: &str) -> Result<String> {
    let found = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    ensure!(
        found.is_some(),
        "it has no lines `{BEGIN}` and `{END}` one after the other; put them where the study belongs"
    );
    Ok(found.map(|(before, after)| format!("{before}{part}{after}")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_written_anew() {
        let page = format!("# Scale\n\n{BEGIN}\nold\n{END}\n\nmore\n");
        let part = format!("{BEGIN}\nnew\n{END}");
        assert_eq!(replaced(&page, &part).ok(), Some(format!("# Scale\n\n{BEGIN}\nnew\n{END}\n\nmore\n")));
        let error = replaced("# Scale\n", &part).expect_err("a page without marks").to_string();
        assert!(error.contains(BEGIN) && error.contains(END), "{error}");
    }
}
