//! A worker in a [tokio](https://docs.rs/tokio) runtime, and logs as tokio's `AsyncBufRead` (feature `tokio`).
//!
//! One task [runs](AsyncWorker::run) the worker, all the others have a [`Handle`] each:
//!
//! ```
//! use iron_exec::tokio::AsyncWorker;
//! use iron_exec::{Command, ShutdownMode, Worker};
//! use tokio::io::AsyncBufReadExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut worker = AsyncWorker::new(Worker::new()?)?;
//! let handle = worker.handle();
//! let running = tokio::spawn(async move { worker.run().await });
//!
//! let job = handle.start(Command::shell("echo one; sleep 0.1; echo two; exit 3")).await?;
//! let mut lines = handle.stream(job).await?.lines(); // as the job writes them
//! let mut seen = Vec::new();
//! while let Some(line) = lines.next_line().await? {
//!     seen.push(line);
//! }
//! assert_eq!(seen, ["one", "two"]);
//! assert_eq!(handle.wait(job).await?.exit_code, 3);
//! # handle.delete_log(job).await?;
//!
//! handle.shutdown(ShutdownMode::Kill).await?;
//! running.await??;
//! # Ok(())
//! # }
//! ```
//!
//! A program with one task for all of it awaits the worker itself: [`AsyncWorker::start`], [`wait`](AsyncWorker::wait),
//! [`next_event`](AsyncWorker::next_event).
//!
//! # What a turn costs the others
//!
//! Each time that the worker has something to do it is turned once, without waiting, and goes back to the runtime: a loud job starves no other task. Within a turn
//! it makes system calls (starts processes, reads pipes, writes logs), on the runtime's thread. A host that starts hundreds of jobs a second, or whose log
//! directory is on a slow disk, rather gives the worker a thread of its own ([`Worker::run`]); tasks use a [`Handle`] all the same.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufRead, AsyncRead, Interest, ReadBuf};
use tokio::task::coop;

use crate::handle::Handle;
use crate::handle::answer::Answer;
use crate::kernel::stream::LogStream;
use crate::model::command::Command;
use crate::model::error::{HandleError, JobError, RunError, StartError, StreamError, TurnError};
use crate::model::event::{Event, Events};
use crate::model::id::JobId;
use crate::model::reading::ReadOptions;
use crate::model::shutdown::ShutdownMode;
use crate::model::signal::Signal;
use crate::model::status::Status;
use crate::worker::Worker;

/// A [`Worker`] that is turned by a tokio runtime, while one of its methods is awaited: [`run`](Self::run) does nothing else. Between two of them nothing of the
/// worker's happens; nothing is lost by that.
///
/// Events stay in the worker until [`next_event`](Self::next_event) or [`run_with`](Self::run_with) asks for them: at most one of each kind for each job. A finished job
/// stays in the table until its end was told, or waited for; a host that wants no events [runs](Self::run) the worker.
///
/// # Cancel safety
///
/// Every method may be dropped before it is done, in a `select!` or behind a timeout. What becomes of what it was asked for stands with each; the worker, its other
/// jobs and their events are never harmed.
///
/// # Dropping it
///
/// kills the jobs and waits for their end, as with a [`Worker`]. That blocks the runtime's thread, for milliseconds as a rule and never longer than
/// [`Builder::drain_total_max`](crate::Builder::drain_total_max) and a second. [`shutdown`](Self::shutdown) first does not block:
///
/// ```
/// use std::time::Duration;
/// use iron_exec::tokio::AsyncWorker;
/// use iron_exec::{Capture, Command, ShutdownMode, Signal, Worker};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut worker = AsyncWorker::new(Worker::new()?)?;
/// worker.start(Command::new("sleep").arg("1000").capture(Capture::Discard)).await?;
///
/// let mode = ShutdownMode::Stop { signal: Signal::TERM, grace: Duration::from_secs(5) };
/// assert_eq!(worker.shutdown(mode).await?, 0);
/// drop(worker); // nothing is left to wait for
/// # Ok(())
/// # }
/// ```
///
/// It may move from thread to thread, as a task of a runtime of many threads does:
///
/// ```
/// fn is_send<T: Send>() {}
/// is_send::<iron_exec::tokio::AsyncWorker>();
/// ```
#[derive(Debug)]
pub struct AsyncWorker {
    /// A duplicate of the worker's descriptor, for tokio to wait for.
    readiness: AsyncFd<OwnedFd>,
    worker: Worker,
    /// Room for one event.
    events: Events,
}

impl AsyncWorker {
    /// Puts a worker into the runtime that this is called in.
    ///
    /// # Errors
    /// Outside of a runtime, and if its descriptor cannot be had or waited for. The worker is dropped then, and its jobs with it.
    ///
    /// # Panics
    /// If the runtime was built without I/O (`enable_io`, `enable_all`).
    pub fn new(worker: Worker) -> io::Result<Self> {
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let fd = worker.as_fd().try_clone_to_owned()?;
        #[allow(
            deprecated,
            reason = "what it leaves to its caller holds of an OwnedFd: it stays open, and the same, for as long as it lives"
        )]
        let readiness = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self { readiness, worker, events: Events::with_capacity(1) })
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The worker, for everything that is not here. Its methods that wait block the runtime's thread. Do not swap another one into its place.
    pub fn worker_mut(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// The worker, with its jobs, out of the runtime.
    pub fn into_worker(mut self) -> Worker {
        // Some other loop may wait for its descriptor now. If this fails, so does the next turn, which says so.
        let _ = self.worker.announce_events();
        self.worker
    }

    /// A handle for other tasks and threads: [`Worker::handle`]. They are served while a method of this is awaited.
    pub fn handle(&mut self) -> Handle {
        self.worker.handle()
    }

    /// Turns the worker, for the sake of its handles, until one of them has [shut](Handle::shutdown) it down, or all of them are gone and all jobs have finished. The
    /// events are dropped. Cancel safe: it can be called again.
    ///
    /// # Errors
    /// If the loop's own descriptors fail, or the runtime was shut down; no job is affected, and it can be called again.
    pub async fn run(&mut self) -> Result<(), TurnError> {
        self.run_with(|_, _| {}).await
    }

    /// As [`run`](Self::run), with something to be done at each event, between two turns. If that panics, the events that were not told yet are told later.
    ///
    /// # Errors
    /// As `run`, once the events of that turn are handed out.
    pub async fn run_with(&mut self, mut on_event: impl FnMut(&mut Worker, Event)) -> Result<(), TurnError> {
        let mut events = Events::new();
        loop {
            // Nothing is awaited between this and the last of its events, so that none is lost where this is dropped.
            let turned = self.worker.turn(&mut events, Some(Duration::ZERO));
            self.worker.tell(&mut events, &mut on_event);
            turned?;
            if self.worker.is_run_done() {
                self.worker.answer_handles();
                return Ok(());
            }
            poll_fn(|cx| self.poll_ready(cx)).await?;
        }
    }

    /// The next event. Without a job or a handle there may never be one.
    ///
    /// Cancel safe: where it is dropped, the event comes with the next call.
    ///
    /// ```
    /// # use iron_exec::tokio::AsyncWorker;
    /// # use iron_exec::{Capture, Command, Event, Worker};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut worker = AsyncWorker::new(Worker::new()?)?;
    /// let mut ticks = tokio::time::interval(std::time::Duration::from_millis(10));
    /// worker.start(Command::shell("exit 3").capture(Capture::Discard)).await?;
    /// let exit = loop {
    ///     tokio::select! {
    ///         event = worker.next_event() => if let Event::Finished { exit, .. } = event? { break exit },
    ///         _ = ticks.tick() => {}
    ///     }
    /// };
    /// assert_eq!(exit, iron_exec::Exit::Code(3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn next_event(&mut self) -> Result<Event, TurnError> {
        poll_fn(|cx| {
            loop {
                if let Some(event) = self.worker.take_event(&mut self.events) {
                    return Poll::Ready(Ok(event));
                }
                ready!(self.poll_turn(cx))?;
            }
        })
        .await
    }

    /// Starts a job: [`Worker::start`]. What that waits for, the program's execution, is awaited here.
    ///
    /// Where it is dropped before it is done, the job is not started; or it is killed and forgotten, with the worker's next turn.
    ///
    /// # Errors
    /// See [`StartError`]: nothing is left of a job that was not started.
    pub async fn start(&mut self, command: Command) -> Result<JobId, StartError> {
        let answer = self.worker.handle().start(command);
        self.answered(answer).await
    }

    /// Starts a job and waits until it has finished: [`Worker::run_job`].
    ///
    /// Where it is dropped before it is done, the job is killed and forgotten, with the worker's next turn.
    ///
    /// # Errors
    /// Those of [`start`](Self::start). A job that runs and fails is not an error: see [`Status::success`].
    pub async fn run_job(&mut self, command: Command) -> Result<Status, RunError> {
        let answer = self.worker.handle().run_job(command);
        let status = self.answered(answer).await?;
        // What is to be told of it was just heard.
        let _ = self.worker.take_end(status.id);
        Ok(status)
    }

    /// Waits until a job has finished. Its events are dropped, those of others are kept. A piped stdin that nobody has taken is closed.
    ///
    /// Cancel safe: where it is dropped, nothing but that has happened to the job.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::Turn`] if the loop fails.
    pub async fn wait(&mut self, job: JobId) -> Result<Status, JobError> {
        drop(self.worker.take_stdin(job)?);
        poll_fn(|cx| {
            loop {
                if let Some(status) = self.worker.take_end(job)? {
                    return Poll::Ready(Ok(status));
                }
                ready!(self.poll_turn(cx)).map_err(|source| JobError::Turn { job, source })?;
            }
        })
        .await
    }

    /// Kills a job's whole process tree: [`Worker::stop`]. That it is over is said by its status, and by [`wait`](Self::wait).
    ///
    /// Where it is dropped before it is done, the job is killed with the worker's next turn.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::Io`] if the kernel refuses.
    pub async fn stop(&mut self, job: JobId) -> Result<(), JobError> {
        let answer = self.worker.handle().stop(job);
        self.answered(answer).await
    }

    /// Sends a signal, and SIGKILL after a grace time: [`Worker::stop_with`].
    ///
    /// Where it is dropped before it is done, that happens with the worker's next turn.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_with(&mut self, job: JobId, signal: Signal, grace: Duration) -> Result<(), JobError> {
        let answer = self.worker.handle().stop_with(job, signal, grace);
        self.answered(answer).await
    }

    /// Everything known about a job: [`Worker::query`].
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub fn query(&self, job: JobId) -> Result<Status, JobError> {
        self.worker.query(job)
    }

    /// A reader of a job's log, from its start: [`Worker::stream`]. It is an `AsyncBufRead`. It waits for what the worker writes: read it in another task than the one
    /// that turns the worker.
    ///
    /// # Errors
    /// As there.
    pub fn stream(&self, job: JobId) -> Result<LogStream, StreamError> {
        self.worker.stream(job)
    }

    /// As [`stream`](Self::stream), of one stream or both, and from where `options` say: [`Worker::stream_with`].
    ///
    /// # Errors
    /// As there.
    pub fn stream_with(&self, job: JobId, options: &ReadOptions) -> Result<LogStream, StreamError> {
        self.worker.stream_with(job, options)
    }

    /// Ends all jobs as `mode` says, and waits until they are over: [`Worker::shutdown`], with the number of jobs that are not. The events are kept.
    ///
    /// Where it is dropped, it goes on while the worker is turned; it can be called again.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn shutdown(&mut self, mode: ShutdownMode) -> Result<usize, TurnError> {
        self.worker.begin_shutdown(mode);
        poll_fn(|cx| {
            while !self.worker.is_shut_down() {
                ready!(self.poll_turn(cx))?;
            }
            self.worker.answer_handles();
            Poll::Ready(Ok(self.worker.unfinished_jobs()))
        })
        .await
    }

    /// Turns the worker until it has answered.
    async fn answered<T, E: From<HandleError>>(&mut self, mut answer: Answer<T, E>) -> Result<T, E> {
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(answer) = Pin::new(&mut answer).poll(cx) {
                    return Poll::Ready(answer);
                }
                // The next turn says what is wrong.
                ready!(self.poll_turn(cx)).map_err(|_| HandleError::LoopFailed)?;
            }
        })
        .await
    }

    /// Waits until the worker has something to do, and turns it once. The events are kept.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TurnError>> {
        ready!(self.poll_ready(cx))?;
        Poll::Ready(self.worker.turn_quietly())
    }

    /// Waits until the worker has something to do. It has to be turned then, or what there was is not heard of again.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TurnError>> {
        let ready = ready!(self.readiness.poll_read_ready(cx));
        // Before the turn: what comes during it is heard of again.
        ready.map_err(TurnError::new("waiting in the runtime"))?.clear_ready();
        Poll::Ready(Ok(()))
    }
}

/// With the feature `tokio`. The task is woken by whoever turns the worker, whatever runtime it is in.
///
/// Errors are of the kind `Other`, with a [`StreamError`] inside. After one that is [passable](StreamError::is_passable) the next read goes on behind it: what collects
/// bytes until the end (`read_to_end`) is called again, with the same buffer.
///
/// Cancel safe: what was not consumed comes again. The file is read on the runtime's thread, from the page cache as a rule; a log that is always ahead of its reader
/// lets other tasks run all the same.
impl AsyncBufRead for LogStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let coop = ready!(coop::poll_proceed(cx));
        let filled = LogStream::poll_fill_buf(self.get_mut(), cx);
        if filled.is_ready() {
            coop.made_progress();
        }
        filled.map_err(io::Error::other)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        LogStream::consume(self.get_mut(), amount);
    }
}

/// As [`AsyncBufRead`], by copying. One read gives at most what one `poll_fill_buf` shows: in the CRI format, one record.
impl AsyncRead for LogStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let shown = ready!(AsyncBufRead::poll_fill_buf(self.as_mut(), cx))?;
        let amount = shown.len().min(buffer.remaining());
        buffer.put_slice(&shown[..amount]);
        AsyncBufRead::consume(self, amount);
        Poll::Ready(Ok(()))
    }
}
