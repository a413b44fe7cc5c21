//! One owner's view of a worker, from other threads.

use std::time::Duration;

use crate::handle::Handle;
use crate::handle::answer::Answer;
use crate::handle::blocking::BlockingLogStream;
use crate::kernel::stream::LogStream;
use crate::model::command::Command;
use crate::model::error::{HandleError, JobError, RunError, StartError, StreamError};
use crate::model::id::{JobId, OwnerId};
use crate::model::limits::Limits;
use crate::model::reading::ReadOptions;
use crate::model::signal::Signal;
use crate::model::status::Status;
use crate::model::usage::CgroupUsage;
use crate::worker::{OwnedJobs, ProcessRunner};

/// One owner's view of a worker, from other threads: see [`Handle::owned_by`]. A job of somebody else is answered exactly like one that does not exist; there is no way
/// from here to the handle that it was made from.
#[derive(Clone, Debug)]
pub struct OwnedHandle {
    handle: Handle,
    owner: OwnerId,
}

impl OwnedHandle {
    pub(super) fn new(handle: Handle, owner: OwnerId) -> Self {
        Self { handle, owner }
    }

    /// Starts a job in the name of this owner, whatever the command says: [`Handle::start`].
    pub fn start(&self, command: Command) -> Answer<JobId, StartError> {
        self.handle.start_for(command, self.owner)
    }

    /// Starts a job in the name of this owner and waits until it has finished: [`Handle::run_job`].
    pub fn run_job(&self, command: Command) -> Answer<Status, RunError> {
        self.handle.run_job_for(command, self.owner)
    }

    /// See [`Handle::wait`].
    pub fn wait(&self, job: JobId) -> Answer<Status, JobError> {
        self.handle.wait_for(job, Some(self.owner))
    }

    /// See [`Handle::stop`].
    pub fn stop(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.stop(job))
    }

    /// See [`Handle::stop_with`].
    pub fn stop_with(&self, job: JobId, signal: Signal, grace: Duration) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.stop_with(job, signal, grace))
    }

    /// See [`Handle::signal`].
    pub fn signal(&self, job: JobId, signal: Signal) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.signal(job, signal))
    }

    /// See [`Handle::query`].
    pub fn query(&self, job: JobId) -> Answer<Status, JobError> {
        self.ask(move |jobs| jobs.query(job))
    }

    /// The ids of the owner's jobs, in the order of their start.
    pub fn jobs(&self) -> Answer<Vec<JobId>> {
        self.ask(|jobs| Ok(jobs.jobs()))
    }

    /// See [`Handle::stream`].
    pub fn stream(&self, job: JobId) -> Answer<LogStream, StreamError> {
        self.stream_with(job, ReadOptions::new())
    }

    /// See [`Handle::stream_with`].
    pub fn stream_with(&self, job: JobId, options: ReadOptions) -> Answer<LogStream, StreamError> {
        self.ask(move |jobs| jobs.stream_with(job, &options))
    }

    /// See [`Handle::follow`].
    pub fn follow(&self, job: JobId) -> Answer<BlockingLogStream, StreamError> {
        self.handle.follow_stream(self.stream(job))
    }

    /// See [`Handle::set_limits`].
    pub fn set_limits(&self, job: JobId, limits: Limits) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.set_limits(job, &limits))
    }

    /// See [`Handle::usage`].
    pub fn usage(&self, job: JobId) -> Answer<CgroupUsage, JobError> {
        self.ask(move |jobs| jobs.usage(job))
    }

    /// See [`Handle::freeze`].
    pub fn freeze(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.freeze(job))
    }

    /// See [`Handle::thaw`].
    pub fn thaw(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.thaw(job))
    }

    /// See [`Handle::forget`].
    pub fn forget(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.forget(job))
    }

    /// See [`Handle::delete_log`].
    pub fn delete_log(&self, job: JobId) -> Answer<(), JobError> {
        self.ask(move |jobs| jobs.delete_log(job))
    }

    fn ask<T, E>(&self, request: impl FnOnce(&mut OwnedJobs<'_>) -> Result<T, E> + Send + 'static) -> Answer<T, E>
    where
        T: Send + 'static,
        E: From<HandleError> + Send + 'static,
    {
        let owner = self.owner;
        self.handle.ask(move |worker| request(&mut worker.owned_by(owner)))
    }
}

/// Waits for each answer: not for the worker's own thread ([`HandleError::OwnThread`]).
impl ProcessRunner for OwnedHandle {
    fn start(&mut self, command: Command) -> Result<JobId, StartError> {
        OwnedHandle::start(self, command).wait()
    }

    fn stop(&mut self, job: JobId) -> Result<(), JobError> {
        OwnedHandle::stop(self, job).wait()
    }

    fn query(&self, job: JobId) -> Result<Status, JobError> {
        OwnedHandle::query(self, job).wait()
    }

    fn stream(&self, job: JobId) -> Result<LogStream, StreamError> {
        OwnedHandle::stream(self, job).wait()
    }
}
