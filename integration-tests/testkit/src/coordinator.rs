//! A coordinator within the process of the test.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use toroid_coordinator::{Config, CoordinatorError};

/// Nothing here takes this long; a test that waits in vain ends with an error instead of never.
const PATIENCE: Duration = Duration::from_secs(180);

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub struct Coordinator {
    pub url: String,
    stop: watch::Sender<u32>,
    task: JoinHandle<Result<(), CoordinatorError>>,
}

impl Coordinator {
    /// Its defaults, but for a failure timeout so long that no busy machine makes a worker look dead.
    pub fn config(folder: &Path) -> Config {
        Config { failure_timeout: PATIENCE, ..Config::new(folder) }
    }

    pub async fn start(config: Config) -> Coordinator {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen on the loopback");
        let url = format!("http://{}", listener.local_addr().expect("the address listened on"));
        let (stop, asked) = watch::channel(0);
        let task = tokio::spawn(toroid_coordinator::run(listener, config, asked));
        Coordinator { url, stop, task }
    }

    /// Asks it to end, as one more signal does.
    pub fn ask_to_stop(&self) {
        self.stop.send_modify(|times| *times += 1);
    }

    pub async fn stop(self) {
        self.ask_to_stop();
        let ended = within("the coordinator to stop", self.task).await.expect("the coordinator does not panic");
        ended.expect("the coordinator ends in good order");
    }

    /// What a coordinator says that does not start in this folder.
    pub async fn refusal(folder: &Path) -> String {
        let refused = Coordinator::start(Config::new(folder)).await;
        let ended = within("a coordinator that does not start", refused.task).await;
        ended.expect("the coordinator does not panic").expect_err("it is refused").to_string()
    }
}
