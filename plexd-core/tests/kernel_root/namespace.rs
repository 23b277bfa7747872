//! A thread in network and mount namespaces of its own, with a runtime on it. The namespaces end with the thread.

use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use futures_util::future::LocalBoxFuture;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, gettid};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Job = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

/// A namespace and the runtime in it. What is spawned there goes on running between calls of [`Namespace::run`].
pub(crate) struct Namespace {
    thread_id: Pid,
    jobs: Option<UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes new namespaces with only a loopback interface, and an empty `/run`.
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let (jobs, mut queue) = unbounded_channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            run_command("mount --make-rprivate /");
            run_command("mount -t tmpfs tmpfs /run");
            run_command("ip link set lo up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            ready.send(gettid()).unwrap();
            runtime.block_on(async {
                while let Some(job) = queue.recv().await {
                    job().await;
                }
            });
        });
        let thread_id = is_ready.recv().unwrap();
        Self { thread_id, jobs: Some(jobs), thread: Some(thread) }
    }

    /// Runs `job` to its end on the runtime in the namespace.
    pub(crate) fn run<T, F>(&self, job: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let job = job();
            Box::pin(async move { done.send(job.await).unwrap() })
        });
        self.jobs.as_ref().unwrap().send(job).unwrap_or_else(|_| panic!("an earlier job panicked"));
        result.recv().expect("the job does not panic")
    }

    /// Runs a shell command in the namespace and returns its output; it must succeed. The runtime goes on meanwhile.
    pub(crate) fn command(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(|| async { tokio::task::spawn_blocking(move || run_command(&line)).await.unwrap() })
    }

    /// Joins this namespace and `other` by a cable: 192.0.2.1 here, 192.0.2.2 there.
    pub(crate) fn join(&self, other: &Self) {
        self.connect("cable0", other);
        self.command("ip address add 192.0.2.1/24 dev cable0");
        other.command("ip address add 192.0.2.2/24 dev cable1");
    }

    /// Lays a cable from this namespace, where its end is called `name`, to `other`, where it is called `cable1`.
    pub(crate) fn connect(&self, name: &str, other: &Self) {
        self.command(&format!("ip link add {name} type veth peer name cable1 netns {}", other.thread_id));
        self.command(&format!("ip link set {name} up"));
        other.command("ip link set cable1 up");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A panic in there has failed the test already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Runs a shell command in the calling thread's namespaces.
pub(crate) fn run_command(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stdout}{stderr}");
    stdout
}
