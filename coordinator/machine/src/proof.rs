//! What a spare has shown of being able to fill a place, see `machine::warm`.

use std::collections::BTreeSet;

use toroid_torus::geometry::Shape;
use toroid_torus::ids::{JobId, WorkerId};

/// What a spare has shown of being able to fill a place of a job.
#[derive(Debug)]
pub struct Proof {
    pub job: JobId,
    pub(crate) shape: Shape,
    pub(crate) number: u64,
    pub stage: ProofStage,
    /// Workers with which a probe has failed.
    pub(crate) failed_with: BTreeSet<WorkerId>,
    /// What they said.
    pub(crate) problems: Vec<String>,
    /// Workers with which a probe has failed, and which have not shown themselves that they can be reached: that says nothing of this one.
    pub(crate) doubted: BTreeSet<WorkerId>,
    /// It and another have reached each other.
    pub(crate) has_passed: bool,
    /// Workers with which a probe has come to nothing, as one of both said nothing: others come first.
    pub(crate) unanswered: BTreeSet<WorkerId>,
}

#[derive(Debug)]
pub enum ProofStage {
    /// It reads data and makes room.
    Prepares,
    /// It can prepare, and has yet to be dialled and to dial.
    Prepared,
    Probed(Probe),
    /// It does not see the newest checkpoint, for this reason. Others come first; the checkpoint itself may be to blame.
    Doubtful(String),
    Ready,
}

impl Proof {
    /// It and another have reached each other.
    pub fn has_passed(&self) -> bool {
        self.has_passed
    }

    /// What it has yet to show; nothing where it is ready.
    pub fn in_words(&self) -> String {
        match &self.stage {
            ProofStage::Ready => String::new(),
            ProofStage::Doubtful(reason) => {
                format!("does not see the newest checkpoint: {reason}; others are asked first")
            }
            ProofStage::Prepares => "reads data and makes room".into(),
            ProofStage::Prepared => "is to be dialled by another worker".into(),
            ProofStage::Probed(probe) => format!("it and {} dial each other", probe.peer),
        }
    }
}

/// Two workers dial each other.
#[derive(Debug)]
pub struct Probe {
    pub(crate) number: u64,
    pub(crate) peer: WorkerId,
    /// What the spare says, and its peer: an error, or nothing.
    pub(crate) answers: [Option<String>; 2],
}

impl Probe {
    /// Both have answered.
    pub fn is_answered(&self) -> bool {
        self.answers.iter().all(Option::is_some)
    }
}
