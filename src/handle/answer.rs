//! The answer to a request.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::handle::Handle;
use crate::handle::shield::shielded;
use crate::model::error::{HandleError, StartError};
use crate::model::id::JobId;
use crate::worker::Worker;

/// Where an answer is given.
pub(crate) type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// Gives an answer. Nobody may want it any more; and a panic of somebody else's, a waker's or that of an answer being dropped, is not to stop the loop.
pub(crate) fn give<T, E>(reply: Reply<T, E>, answer: Result<T, E>) {
    shielded(|| drop(reply.send(answer)));
}

/// What a worker will answer to a [`Handle`]: a future, for any runtime, that can also be [waited](Self::wait) for.
///
/// What was asked for is done whether or not the answer is waited for; only a job that nobody knows of is taken back: that of a [`Handle::start`] or
/// [`Handle::run_job`] whose answer is dropped before it has come.
#[must_use = "the answer says whether it was done; a job that is started, or run, is taken back where the answer is dropped"]
pub struct Answer<T, E = HandleError> {
    handle: Handle,
    future: Pending<T, E>,
}

/// What is waited for; `None` once it has come.
struct Pending<T, E>(Option<BoxFuture<Result<T, E>>>);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<T, E: From<HandleError>> Future for Pending<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.0 else { return Poll::Ready(Err(HandleError::Gone.into())) };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<T, E: From<HandleError>> Answer<T, E> {
    pub(crate) fn new(handle: &Handle, future: impl Future<Output = Result<T, E>> + Send + 'static) -> Self {
        Self { handle: handle.clone(), future: Pending(Some(Box::pin(future))) }
    }

    /// Waits for the answer, on this thread.
    ///
    /// # Errors
    /// Those of what was asked for. [`HandleError::Gone`] if the worker is dropped before it answers. [`HandleError::OwnThread`] where this thread is the one that turns
    /// the worker: at once in the midst of [`Worker::run`](crate::Worker::run) or a turn; after five seconds if it was merely the last to have the worker, for it may have
    /// given it to another thread, which has yet to begin.
    pub fn wait(mut self) -> Result<T, E> {
        match self.handle.shared().wait_for(&mut self.future, None) {
            Ok(answer) => answer.unwrap_or_else(|| Err(HandleError::Gone.into())),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`wait`](Self::wait), but not for longer than `timeout`: `None` if there is no answer by then. It can be waited for again.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T, E>> {
        self.handle.shared().wait_for(&mut self.future, Instant::now().checked_add(timeout)).unwrap_or_else(|error| Some(Err(error.into())))
    }
}

impl<T, E: From<HandleError>> Future for Answer<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.future).poll(cx)
    }
}

impl<T, E> fmt::Debug for Answer<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

/// The answer to a start: where it is dropped before it has come, the loop hears of that.
pub(crate) struct StartAnswer {
    /// In this order: once the loop hears of it, this is dropped.
    receiver: Option<oneshot::AsyncReceiver<Result<Claim, StartError>>>,
    unwanted: Unwanted,
}

/// Has the loop take back what nobody waits for, unless the answer has come.
struct Unwanted {
    has_come: bool,
    handle: Handle,
}

impl StartAnswer {
    pub(crate) fn new(receiver: oneshot::AsyncReceiver<Result<Claim, StartError>>, handle: Handle) -> Self {
        Self { receiver: Some(receiver), unwanted: Unwanted { has_come: false, handle } }
    }
}

impl Future for StartAnswer {
    type Output = Result<Claim, StartError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(receiver) = &mut self.receiver else { return Poll::Ready(Err(HandleError::Gone.into())) };
        let answer = ready!(Pin::new(receiver).poll(cx));
        (self.receiver, self.unwanted.has_come) = (None, true);
        Poll::Ready(answer.unwrap_or_else(|_| Err(HandleError::Gone.into())))
    }
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        if !self.has_come {
            self.handle.shared().ask(Box::new(Worker::take_back_unwanted));
        }
    }
}

/// A job that was started and that nobody has got yet: where it is dropped, the job is killed and forgotten.
#[derive(Debug)]
pub(crate) struct Claim {
    job: JobId,
    is_taken: bool,
    handle: Handle,
}

impl Claim {
    pub(crate) fn new(job: JobId, handle: Handle) -> Self {
        Self { job, is_taken: false, handle }
    }

    /// Somebody has got it.
    pub(crate) fn take(mut self) -> JobId {
        self.is_taken = true;
        self.job
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let job = self.job;
        if !self.is_taken {
            self.handle.shared().ask(Box::new(move |worker| worker.take_back(job)));
        }
    }
}
