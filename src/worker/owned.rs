//! One owner's view of a worker.

use std::time::Duration;

use super::{ProcessRunner, Worker};
use crate::kernel::stream::LogStream;
use crate::model::command::Command;
use crate::model::error::{JobError, StartError, StreamError};
use crate::model::id::{JobId, OwnerId};
use crate::model::limits::Limits;
use crate::model::pressure::{Pressure, PressureResource};
use crate::model::reading::ReadOptions;
use crate::model::signal::Signal;
use crate::model::status::Status;
use crate::model::usage::CgroupUsage;

/// One owner's view of a [`Worker`]: see [`Worker::owned_by`]. A job of somebody else is answered exactly like one that does not exist.
#[derive(Debug)]
pub struct OwnedJobs<'a> {
    pub(super) worker: &'a mut Worker,
    pub(super) owner: OwnerId,
}

impl OwnedJobs<'_> {
    /// The ids of the owner's jobs, in the order of their start.
    pub fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<JobId> = self.worker.table.visible().filter(|job| job.owner == self.owner).map(|job| job.id).collect();
        jobs.sort_unstable();
        jobs
    }

    /// See [`Worker::stop_with`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn stop_with(&mut self, job: JobId, signal: Signal, grace: Duration) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.stop_with(job, signal, grace)
    }

    /// See [`Worker::signal`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn signal(&self, job: JobId, signal: Signal) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.signal(job, signal)
    }

    /// See [`Worker::wait`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn wait(&mut self, job: JobId) -> Result<Status, JobError> {
        self.check(job)?;
        self.worker.wait(job)
    }

    /// See [`Worker::stream_with`].
    ///
    /// # Errors
    /// As there; [`StreamError::NotFound`] also for another owner's job.
    pub fn stream_with(&self, job: JobId, options: &ReadOptions) -> Result<LogStream, StreamError> {
        self.check(job).map_err(|_| StreamError::NotFound { job })?;
        self.worker.stream_with(job, options)
    }

    /// See [`Worker::set_limits`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn set_limits(&mut self, job: JobId, limits: &Limits) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.set_limits(job, limits)
    }

    /// See [`Worker::usage`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn usage(&self, job: JobId) -> Result<CgroupUsage, JobError> {
        self.check(job)?;
        self.worker.usage(job)
    }

    /// See [`Worker::freeze`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn freeze(&mut self, job: JobId) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.freeze(job)
    }

    /// See [`Worker::thaw`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn thaw(&mut self, job: JobId) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.thaw(job)
    }

    /// See [`Worker::watch_pressure`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn watch_pressure(&mut self, job: JobId, resource: PressureResource, pressure: &Pressure) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.watch_pressure(job, resource, pressure)
    }

    /// See [`Worker::unwatch_pressure`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn unwatch_pressure(&mut self, job: JobId, resource: PressureResource) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.unwatch_pressure(job, resource)
    }

    /// See [`Worker::delete_log`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn delete_log(&mut self, job: JobId) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.delete_log(job)
    }

    /// See [`Worker::forget`].
    ///
    /// # Errors
    /// As there; [`JobError::NotFound`] also for another owner's job.
    pub fn forget(&mut self, job: JobId) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.forget(job)
    }

    fn check(&self, job: JobId) -> Result<(), JobError> {
        match self.worker.table.by_id(job) {
            Some(found) if found.owner == self.owner => Ok(()),
            _ => Err(JobError::NotFound { job }),
        }
    }
}

impl ProcessRunner for OwnedJobs<'_> {
    /// Starts a job in the name of this owner, whatever the command says.
    fn start(&mut self, command: Command) -> Result<JobId, StartError> {
        let confirm = self.worker.confirms(&command);
        self.worker.start_for(&command, self.owner, confirm)
    }

    fn stop(&mut self, job: JobId) -> Result<(), JobError> {
        self.check(job)?;
        self.worker.stop(job)
    }

    fn query(&self, job: JobId) -> Result<Status, JobError> {
        self.check(job)?;
        self.worker.query(job)
    }

    fn stream(&self, job: JobId) -> Result<LogStream, StreamError> {
        self.stream_with(job, &ReadOptions::new())
    }
}
