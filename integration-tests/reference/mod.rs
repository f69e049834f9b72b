//! The independent figures of `reference/tiny.json`, and a job that must reproduce them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;
use serde_json::Value;
use toroid_proto::StepRecord;

use toroid_testkit::{formula, path};

pub struct Reference {
    figures: Value,
}

pub struct Inputs {
    pub weights: PathBuf,
    pub text: PathBuf,
}

impl Reference {
    pub fn read() -> Result<Reference> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("worker/tests/reference/tiny.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(Reference { figures: serde_json::from_str(&text)? })
    }

    /// Writes the formula weights and the text of the one batch: the four samples start at bytes 0, 7, 14 and 21.
    pub fn write_inputs(&self, dir: &Path) -> Result<Inputs> {
        let inputs = Inputs { weights: dir.join("formula.safetensors"), text: dir.join("batch.txt") };
        let sentence = self.figures["text"].as_str().context("read the text")?;
        std::fs::write(&inputs.text, formula::text(sentence))?;
        formula::write_weights(&self.tensors()?, &inputs.weights)?;
        Ok(inputs)
    }

    fn tensors(&self) -> Result<Vec<(String, Vec<usize>)>> {
        Ok(serde_json::from_value(self.figures["tensors"].clone())?)
    }

    /// The losses and norms of ten steps to 1e-5 relative, and the learning rates.
    pub fn check_curve(&self, shape: (usize, usize, usize), curve: &[StepRecord]) -> Result<()> {
        let train = self.figures["f64"]["train"].as_array().context("read the training figures")?;
        ensure!(curve.len() == train.len(), "{shape:?}: {} steps, expected {}", curve.len(), train.len());
        for (record, expected) in curve.iter().zip(train) {
            for (what, found, key) in [
                ("loss", record.loss, "loss"),
                ("ce", record.ce, "ce"),
                ("z-loss", record.z_loss, "z"),
                ("balance loss", record.balance_loss, "lb"),
                ("gradient norm", record.grad_norm, "gnorm"),
                ("learning rate", record.lr, "lr"),
            ] {
                let expected = expected[key].as_f64().with_context(|| format!("read {key}"))?;
                let tolerance = if record.step == 1 && key == "loss" { 1e-6 } else { 1e-5 };
                close(found, expected, tolerance).with_context(|| format!("{shape:?} step {}: {what}", record.step))?;
            }
        }
        Ok(())
    }

    /// The sum of the absolute values of every tensor after ten steps.
    pub fn check_parameters(&self, shape: (usize, usize, usize), exported: &[u8]) -> Result<()> {
        let file = SafeTensors::deserialize(exported)?;
        let tensors = self.tensors()?;
        ensure!(file.len() == tensors.len(), "{shape:?}: {} tensors, expected {}", file.len(), tensors.len());
        for (name, dims) in tensors {
            let tensor = file.tensor(&name).with_context(|| format!("{shape:?}: find {name}"))?;
            ensure!(tensor.shape() == dims, "{shape:?}: {name} has the shape {:?}", tensor.shape());
            let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let found: f64 = values.map(|v| f64::from(v.abs())).sum();
            let expected = &self.figures["f64"]["param_abs_sum_after_10"][&name];
            let expected = expected.as_f64().with_context(|| format!("read the sum of {name}"))?;
            close(found, expected, 1e-5).with_context(|| format!("{shape:?}: {name}"))?;
        }
        Ok(())
    }
}

fn close(found: f64, expected: f64, tolerance: f64) -> Result<()> {
    let relative = (found - expected).abs() / expected.abs().max(1e-12);
    ensure!(
        relative <= tolerance,
        "found {found}, expected {expected}: off by {relative:.2e}, allowed {tolerance:.0e}"
    );
    Ok(())
}

/// The reference's ten steps. Every replica takes the same batch of four, so that the mean over replicas is that batch's.
pub fn job_file((tp, pp, dp): (usize, usize, usize), inputs: &Inputs) -> String {
    format!(
        "name = \"reference\"\npreset = \"tiny\"\nsteps = 10\ninit_from = \"{}\"\n\
         [shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n\
         [batch]\nmicro_batch = 4\nmicro_batches = 1\n\
         [optimizer]\nlr = 1e-3\nwarmup = 4\nfloor = 0.1\nweight_decay = 0.1\nweight_decay_final = 0.1\n\
         [data]\npath = \"{}\"\norder = \"sequential\"\nstride = 7\nvalidation = 0.0\n",
        path(&inputs.weights),
        path(&inputs.text)
    )
}
