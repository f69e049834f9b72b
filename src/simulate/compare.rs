//! One scenario: Toroid, and the launcher beside it.

use anyhow::{Context as _, Result};

use super::fleet::WORKERS_OF_A_HOST;
use super::model::{Model, Scenario, Settings};
use super::report::{Outcome, Summary};
use super::{launcher, world};

/// Workers without a place for so many places: whole hosts.
pub fn spares_of(places: usize, part: f64) -> usize {
    ((places as f64 * part).ceil() as usize).next_multiple_of(WORKERS_OF_A_HOST)
}

/// Runs one scenario, and the launcher beside it.
pub fn simulate(scenario: Scenario, settings: &Settings) -> Result<Outcome> {
    let model = Model::new(scenario.clone(), settings.clone())?;
    let launcher = Summary::from(&launcher::run(&model));
    let step_s = model.step.as_secs_f64();
    let toroid = world::run(model).context("simulate Toroid")?;
    Ok(Outcome { scenario, step_s, toroid: Summary::from(&toroid), launcher })
}
