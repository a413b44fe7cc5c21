//! Floor 6: a worker's jobs from other threads.
//!
//! A handle puts requests into a queue and wakes the loop; the loop does them at the end of its turn and answers:
//!
//! ```text
//! Handle::start ──> request ──> queue ──> waker ──> turn: dispatch, then requests, then answers ──> Answer
//! ```

pub(crate) mod answer;
mod bell;
pub(crate) mod blocking;
pub(crate) mod owned;
pub(crate) mod shared;
pub(crate) mod shield;

/// What the bell is made of; its model test has others.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};
}

use std::sync::Arc;
use std::time::Duration;

use crate::handle::answer::{Answer, Claim, StartAnswer};
use crate::handle::blocking::BlockingLogStream;
use crate::handle::owned::OwnedHandle;
use crate::handle::shared::Shared;
use crate::kernel::stream::LogStream;
use crate::model::command::Command;
use crate::model::error::{HandleError, JobError, RunError, StartError, StreamError};
use crate::model::id::{JobId, OwnerId};
use crate::model::limits::Limits;
use crate::model::reading::ReadOptions;
use crate::model::shutdown::ShutdownMode;
use crate::model::signal::Signal;
use crate::model::status::Status;
use crate::model::usage::CgroupUsage;
use crate::worker::{ProcessRunner, Worker};

/// Starts, stops, queries, streams and waits on the jobs of a [`Worker`] whose loop runs elsewhere: in another thread, or in another task of this one.
///
/// Made by [`Worker::handle`]; clone it as you like. What it is asked for is done by the loop at the end of its turn, in the order in which it was asked, whatever turns
/// it: [`Worker::run`], [`Worker::turn`], [`Worker::wait`] or a loop of yours. Each method returns an [`Answer`] at once: await it, in any runtime, or
/// [`wait`](Answer::wait) for it.
///
/// A start never holds up the loop: it is confirmed (see [`Builder::confirm`](crate::Builder::confirm)) by the loop going on, not by its waiting.
///
/// When the worker is dropped every answer that is still awaited comes: the status of a job that was waited for, and that this has killed, else an error
/// ([`HandleError::Gone`]), as to every later question.
///
/// ```
/// use iron_exec::{Command, ShutdownMode, Worker};
///
/// let mut worker = Worker::builder().log_dir(std::env::temp_dir()).build()?;
/// let handle = worker.handle();
/// let thread = std::thread::spawn(move || worker.run());
///
/// let status = handle.run_job(Command::shell("exit 3")).wait()?;
/// assert_eq!(status.exit_code, 3);
/// handle.delete_log(status.id).wait()?;
///
/// handle.shutdown(ShutdownMode::Kill).wait()?;
/// thread.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
/// ```
/// fn is_shared<T: Clone + Send + Sync>() {}
/// is_shared::<iron_exec::Handle>();
/// ```
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.enter();
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Starts a job: [`Worker::start`]. A confirmed start is answered once the program was executed, or could not be.
    ///
    /// The answer is the job's only owner as long as nobody has it: where it is dropped before that, the job is not started, or is killed and forgotten (in the midst of a
    /// [shutdown that leaves](ShutdownMode::Leave) the jobs, only forgotten).
    pub fn start(&self, command: Command) -> Answer<JobId, StartError> {
        let owner = command.owner;
        self.start_for(command, owner)
    }

    /// Starts a job and waits until it has finished: [`Worker::run_job`].
    ///
    /// Dropping the answer before it has come kills the job, and forgets it.
    pub fn run_job(&self, command: Command) -> Answer<Status, RunError> {
        let owner = command.owner;
        self.run_job_for(command, owner)
    }

    /// The status of a job once it has finished: [`Worker::wait`]; but no event is dropped. A piped stdin that nobody has taken is closed.
    ///
    /// Dropping the answer does nothing to the job.
    pub fn wait(&self, job: JobId) -> Answer<Status, JobError> {
        self.wait_for(job, None)
    }

    /// Kills a job's whole process tree: [`Worker::stop`].
    pub fn stop(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |worker| worker.stop(job))
    }

    /// Sends a signal, and SIGKILL after a grace time: [`Worker::stop_with`].
    pub fn stop_with(&self, job: JobId, signal: Signal, grace: Duration) -> Answer<(), JobError> {
        self.ask(move |worker| worker.stop_with(job, signal, grace))
    }

    /// Sends a signal to a job's main process: [`Worker::signal`].
    pub fn signal(&self, job: JobId, signal: Signal) -> Answer<(), JobError> {
        self.ask(move |worker| worker.signal(job, signal))
    }

    /// Everything known about a job: [`Worker::query`].
    pub fn query(&self, job: JobId) -> Answer<Status, JobError> {
        self.ask(move |worker| worker.query(job))
    }

    /// The ids of all jobs: [`Worker::jobs`].
    pub fn jobs(&self) -> Answer<Vec<JobId>> {
        self.ask(|worker| Ok(worker.jobs()))
    }

    /// A reader of a job's log: [`Worker::stream`]. It is read where it is held; the loop has no part in that.
    pub fn stream(&self, job: JobId) -> Answer<LogStream, StreamError> {
        self.stream_with(job, ReadOptions::new())
    }

    /// As [`stream`](Self::stream), of one stream or both, and from where `options` say: [`Worker::stream_with`]. The loop waits while that place is looked up.
    pub fn stream_with(&self, job: JobId, options: ReadOptions) -> Answer<LogStream, StreamError> {
        self.ask(move |worker| worker.stream_with(job, &options))
    }

    /// A job's output as a blocking reader, for a thread that does nothing else meanwhile.
    pub fn follow(&self, job: JobId) -> Answer<BlockingLogStream, StreamError> {
        self.follow_stream(self.stream(job))
    }

    /// Sets limits of a job that runs: [`Worker::set_limits`].
    pub fn set_limits(&self, job: JobId, limits: Limits) -> Answer<(), JobError> {
        self.ask(move |worker| worker.set_limits(job, &limits))
    }

    /// What a job's tree has used: [`Worker::usage`].
    pub fn usage(&self, job: JobId) -> Answer<CgroupUsage, JobError> {
        self.ask(move |worker| worker.usage(job))
    }

    /// Freezes a job's processes: [`Worker::freeze`].
    pub fn freeze(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |worker| worker.freeze(job))
    }

    /// Lets a frozen job go on: [`Worker::thaw`].
    pub fn thaw(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |worker| worker.thaw(job))
    }

    /// Forgets a finished job: [`Worker::forget`].
    pub fn forget(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |worker| worker.forget(job))
    }

    /// Deletes the log of a finished job: [`Worker::delete_log`].
    pub fn delete_log(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |worker| worker.delete_log(job))
    }

    /// Ends all jobs, and with them [`Worker::run`]: [`Worker::begin_shutdown`]. The answer comes when they are over, and is the number of those that are not.
    pub fn shutdown(&self, mode: ShutdownMode) -> Answer<usize> {
        self.ask_for(move |worker, reply| worker.shutdown_asked(mode, reply))
    }

    /// Does anything with the worker, on its thread, between two turns: the loop, and everybody else who has asked for something, waits for it. If it panics the answer
    /// says so, and the loop goes on. It may turn the loop itself ([`Worker::wait`]), but must not wait for what another handle is still to ask for: that comes after it.
    ///
    /// ```
    /// # let mut worker = iron_exec::Worker::builder().log_dir(std::env::temp_dir()).build()?;
    /// # let handle = worker.handle();
    /// # let thread = std::thread::spawn(move || worker.run());
    /// let unfinished = handle.call(|worker| worker.unfinished_jobs()).wait()?;
    /// assert_eq!(unfinished, 0);
    /// # drop(handle);
    /// # thread.join().unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call<T: Send + 'static>(&self, call: impl FnOnce(&mut Worker) -> T + Send + 'static) -> Answer<T> {
        self.ask(|worker| Ok(call(worker)))
    }

    /// The view of one owner: it starts jobs in that owner's name and sees no others.
    pub fn owned_by(&self, owner: OwnerId) -> OwnedHandle {
        OwnedHandle::new(self.clone(), owner)
    }

    fn follow_stream(&self, stream: Answer<LogStream, StreamError>) -> Answer<BlockingLogStream, StreamError> {
        let handle = self.clone();
        Answer::new(self, async move { Ok(BlockingLogStream::new(stream.await?, handle)) })
    }

    fn start_for(&self, command: Command, owner: OwnerId) -> Answer<JobId, StartError> {
        let answer = self.start_claim(command, owner, None);
        Answer::new(self, async move { Ok(answer.await?.take()) })
    }

    fn run_job_for(&self, command: Command, owner: OwnerId) -> Answer<Status, RunError> {
        let (reply, end) = oneshot::async_channel();
        let started = self.start_claim(command, owner, Some(reply));
        Answer::new(self, async move {
            // Until the end it is ours to take back.
            let claim = started.await?;
            let status = end.await.unwrap_or_else(|_| Err(HandleError::Gone.into()))?;
            claim.take();
            Ok(status)
        })
    }

    /// Starts a job; `end`: to be told of its end.
    fn start_claim(&self, command: Command, owner: OwnerId, end: Option<answer::Reply<Status, JobError>>) -> Answer<Claim, StartError> {
        let (handle, (reply, receiver)) = (self.clone(), oneshot::async_channel());
        self.shared.ask(Box::new(move |worker| worker.start_asked(&command, owner, handle, reply, end)));
        Answer::new(self, StartAnswer::new(receiver, self.clone()))
    }

    /// As [`wait`](Self::wait); only for a job of `owner`, if that is given.
    fn wait_for(&self, job: JobId, owner: Option<OwnerId>) -> Answer<Status, JobError> {
        self.ask_for(move |worker, reply| worker.wait_asked(job, owner, reply))
    }

    /// Has the loop do something and answer at once.
    fn ask<T, E>(&self, request: impl FnOnce(&mut Worker) -> Result<T, E> + Send + 'static) -> Answer<T, E>
    where
        T: Send + 'static,
        E: From<HandleError> + Send + 'static,
    {
        self.ask_for(move |worker, reply| {
            let done = shield::shielded(|| request(worker));
            answer::give(reply, done.unwrap_or_else(|| Err(HandleError::Panicked.into())));
        })
    }

    /// Has the loop do something, and answer when it likes.
    fn ask_for<T, E>(&self, request: impl FnOnce(&mut Worker, answer::Reply<T, E>) + Send + 'static) -> Answer<T, E>
    where
        T: Send + 'static,
        E: From<HandleError> + Send + 'static,
    {
        let (reply, answer) = oneshot::async_channel();
        self.shared.ask(Box::new(move |worker| request(worker, reply)));
        Answer::new(self, async move { answer.await.unwrap_or_else(|_| Err(HandleError::Gone.into())) })
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.shared))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

/// Waits for each answer: not for the worker's own thread ([`HandleError::OwnThread`]).
impl ProcessRunner for Handle {
    fn start(&mut self, command: Command) -> Result<JobId, StartError> {
        Handle::start(self, command).wait()
    }

    fn stop(&mut self, job: JobId) -> Result<(), JobError> {
        Handle::stop(self, job).wait()
    }

    fn query(&self, job: JobId) -> Result<Status, JobError> {
        Handle::query(self, job).wait()
    }

    fn stream(&self, job: JobId) -> Result<LogStream, StreamError> {
        Handle::stream(self, job).wait()
    }
}
