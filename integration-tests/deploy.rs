//! What is in `deploy/`: manifests are valid, and their pods do what they promise. The scripts in `integration-tests/deploy` do the work;
//! what takes longer, or needs Slurm or podman, is in `make test-deploy`.

use anyhow::{Result, ensure};

use crate::TOROID;
use crate::python;

#[test]
fn manifests_have_no_field_that_kubernetes_does_not_know() -> Result<()> {
    let output = python::run(&["deploy/render.py"])?;
    for what in ["demo", "ha", "gpu", "kueue", "chart as demo", "chart as ha", "chart as gpu"] {
        ensure!(output.contains(&format!("{what}: ")), "{output}");
    }
    Ok(())
}

/// Each container of the rendered YAML is started as it says there, in namespaces of its own; pods are deleted, killed and lose their
/// coordinator, and the job ends as the undisturbed one does.
#[test]
fn pods_run_as_their_manifests_say_and_survive_what_happens_to_pods() -> Result<()> {
    let output = python::run(&["deploy/pods.py", "--toroid", TOROID.executable(), "demo"])?;
    ensure!(output.contains("is the undisturbed one"), "{output}");
    Ok(())
}

#[test]
fn systemd_takes_the_units() -> Result<()> {
    let output = python::run(&["deploy/units.py", "--toroid", TOROID.executable()])?;
    ensure!(output.matches("its command line is taken").count() == 2, "{output}");
    Ok(())
}

/// As bash reads them.
#[test]
fn batch_scripts_are_scripts() -> Result<()> {
    for kind in ["allocation", "array"] {
        let script =
            TOROID.run_ok(&["slurm", kind, "--tp", "8", "--devices", "cuda:0,cuda:1", "--allow-root", "/data"])?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("script.sh");
        std::fs::write(&file, &script)?;
        let read = std::process::Command::new("bash").arg("-n").arg(&file).output()?;
        ensure!(read.status.success(), "{}{script}", String::from_utf8_lossy(&read.stderr));
    }
    Ok(())
}
