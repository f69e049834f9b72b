//! Every time limit of the coordinator, derived from the failure timeout in this one place.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Workers say that they are there this often.
    pub heartbeat_interval: Duration,
    /// A worker that is silent for this long is lost.
    pub failure_timeout: Duration,
}

impl Limits {
    /// How long a coordinator leads after it was last heard of, by the store that several share: 2 s by default, in whole seconds. No shorter, as etcd
    /// gives one and a half of its election timeouts at least.
    pub fn lease(&self) -> Duration {
        let seconds = (self.failure_timeout * 2 / 5).as_secs_f64().ceil() as u64;
        Duration::from_secs(seconds.clamp(2, 60))
    }

    /// After a restart of the coordinator: how long workers have to come back. Those of a coordinator whose host has lost its power see it by a ping
    /// that is not answered, which takes up to the failure timeout, and dial the one that has its name only then.
    pub fn reconnect(&self) -> Duration {
        self.failure_timeout * 3 / 2
    }

    /// How long a worker that another lost sight of has to turn out dead, before only the link is taken for broken.
    pub fn link_grace(&self) -> Duration {
        (self.failure_timeout / 5).clamp(Duration::from_millis(300), Duration::from_secs(1))
    }

    /// How long the links of an epoch may take to be up, before who is missing is reported.
    pub fn connect(&self) -> Duration {
        2 * self.failure_timeout
    }

    /// Two workers dial each other to show that they can.
    pub fn probe(&self) -> Duration {
        self.failure_timeout
    }

    /// After a worker could not show that it can fill a place: longer each time, up to five minutes by default.
    pub fn prove_again(&self, num_times: u32) -> Duration {
        self.failure_timeout * 2_u32.saturating_pow(num_times.min(6)).min(60)
    }

    /// How long a lost worker's own restart, or a spare that is being started, is waited for before the job goes on with fewer replicas.
    pub fn replacement(&self) -> Duration {
        2 * self.failure_timeout
    }

    /// From one commit to the next, before whoever is waited for is taken to hang. While no step's time is known, the first may take
    /// as long as a checkpoint.
    pub fn hang(&self, step_s: Option<f64>) -> Duration {
        let steps = step_s.and_then(|s| Duration::try_from_secs_f64(4.0 * s).ok());
        steps.map_or(self.checkpoint(), |steps| self.failure_timeout.saturating_add(steps))
    }

    /// Places are compared over windows of at least this long, see [`super::straggler`].
    pub fn straggler_window(&self) -> Duration {
        self.failure_timeout / 2
    }

    /// From the commit of a step to its published checkpoint. Shards are large and storage is slow: five minutes by default.
    pub fn checkpoint(&self) -> Duration {
        self.failure_timeout * 60
    }

    /// Preparing a place without any sign of getting on. It reads shards from storage, as slow as writing them.
    pub fn prepare(&self) -> Duration {
        self.checkpoint()
    }

    /// From the opening of a stream to its `Register`.
    pub fn first_message(&self) -> Duration {
        self.failure_timeout
    }

    /// HTTP/2 pings on a connection are this far apart, and have this long to be answered.
    pub fn keepalive(&self) -> Duration {
        self.failure_timeout / 2
    }

    /// How long a worker that was asked to end stays, for its place to be moved: 25 seconds by default, within the 30 that Kubernetes
    /// (`terminationGracePeriodSeconds`) and Slurm (`KillWait`) give by default.
    pub fn leave(&self) -> Duration {
        self.failure_timeout * 5
    }

    /// How long connections may take to end when the coordinator stops.
    pub fn drain(&self) -> Duration {
        self.failure_timeout / 5
    }

    /// A coordinator that is asked to end stays so long: workers that were asked at the same time say so within it.
    pub fn farewell(&self) -> Duration {
        (self.failure_timeout / 2).min(Duration::from_secs(2))
    }

    /// The coordinator itself was stopped if a deadline is noticed this late: silence in that time is nobody's fault.
    pub fn late(&self) -> Duration {
        self.failure_timeout / 2
    }
}
