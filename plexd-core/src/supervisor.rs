//! Runs the subsystems as named tasks and stops them in order. A task that ends without having been asked ends the
//! process: better started anew by systemd than half alive.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long all tasks together may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Tells a task that it should stop.
pub type Shutdown = CancellationToken;

/// Owns the tasks of the process.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: Shutdown,
}

/// A task ended although nobody had asked it to.
#[derive(Debug, thiserror::Error)]
pub enum TaskEnded {
    /// It returned.
    #[error("task {0} ended unexpectedly")]
    Returned(&'static str),
    /// It failed.
    #[error("task {name} failed: {source:#}")]
    Failed {
        /// The task.
        name: &'static str,
        /// Why.
        source: anyhow::Error,
    },
    /// It panicked.
    #[error("a task panicked: {0}")]
    Panicked(tokio::task::JoinError),
}

impl Supervisor {
    /// Returns the token that tells tasks to stop.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Starts a task. It is to return soon after the shutdown token is cancelled, and not before.
    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits until `asked` resolves or a task ends by itself, then stops all tasks.
    pub async fn run(mut self, asked: impl Future<Output = ()>) -> Result<(), TaskEnded> {
        let outcome = tokio::select! {
            // Cancel safe: join_next loses nothing, and `asked` is not used again.
            Some(ended) = self.tasks.join_next() => Err(unexpected_end(ended)),
            () = asked => Ok(()),
        };
        self.shutdown.cancel();
        self.join_all().await;
        outcome
    }

    async fn join_all(&mut self) {
        let deadline = tokio::time::sleep(STOP_DEADLINE);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                // Cancel safe: join_next loses nothing.
                ended = self.tasks.join_next() => match ended {
                    None => return,
                    Some(Ok((name, Err(error)))) => tracing::warn!(task = name, "stopped with an error: {error:#}"),
                    Some(Ok((name, Ok(())))) => tracing::debug!(task = name, "stopped"),
                    Some(Err(error)) => tracing::error!(%error, "task panicked while stopping"),
                },
                () = &mut deadline => {
                    tracing::warn!(tasks = self.tasks.len(), "tasks did not stop in time");
                    self.tasks.abort_all();
                    return;
                }
            }
        }
    }
}

fn unexpected_end(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> TaskEnded {
    match ended {
        Ok((name, Ok(()))) => TaskEnded::Returned(name),
        Ok((name, Err(source))) => TaskEnded::Failed { name, source },
        Err(error) => TaskEnded::Panicked(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_tasks_are_joined_when_asked_to_stop() {
        let mut supervisor = Supervisor::default();
        let shutdown = supervisor.shutdown();
        supervisor.spawn("waits", async move {
            shutdown.cancelled().await;
            Ok(())
        });
        assert!(supervisor.run(async {}).await.is_ok());
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_ends_the_process() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("fails", async { anyhow::bail!("no disk") });
        let error = supervisor.run(std::future::pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "task fails failed: no disk");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_left_behind() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("hangs", std::future::pending());
        assert!(supervisor.run(async {}).await.is_ok());
    }
}
