//! How a worker ends: in good order, or by being dropped.

use std::time::{Duration, Instant};

use super::Worker;
use crate::job::Job;
use crate::logic::token::Key;
use crate::model::error::TurnError;
use crate::model::shutdown::ShutdownMode;
use crate::model::status::StopReason;

/// How long, beyond the time of a drain, the end of the jobs is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// A shutdown that was begun.
#[derive(Debug)]
pub(super) struct Closing {
    mode: ShutdownMode,
    /// When what is left is given up; jobs that were to be left are killed first.
    deadline: Instant,
    /// Whether it is.
    is_given_up: bool,
}

impl Worker {
    /// Ends all jobs as `mode` says, and turns the loop until every one of them is over, to the last byte of its output. Nothing can be started any more. The
    /// events are kept for the next [`turn`](Self::turn); statuses and logs can still be read.
    ///
    /// It takes as long as the jobs take: with [`Stop`](ShutdownMode::Stop) up to the grace time, and then up to
    /// [`Builder::drain_total_max`](crate::Builder::drain_total_max) and a second. Returns the number of jobs that were not over by then: processes that the kernel
    /// cannot end (an uninterruptible wait), or that this process may not kill. For a loop that has other things to do there is
    /// [`begin_shutdown`](Self::begin_shutdown).
    ///
    /// A second shutdown with another mode is one with that mode: of those that are still stopping.
    ///
    /// # Errors
    /// If the loop's own descriptors fail; it can be called again.
    pub fn shutdown(&mut self, mode: ShutdownMode) -> Result<usize, TurnError> {
        self.begin_shutdown(mode);
        while !self.is_shut_down() {
            self.turn_reactor(None)?;
        }
        self.answer_handles();
        self.reactor.announce_reports()?;
        Ok(self.unfinished_jobs())
    }

    /// As [`shutdown`](Self::shutdown), without waiting: turn the loop until [`is_shut_down`](Self::is_shut_down).
    pub fn begin_shutdown(&mut self, mode: ShutdownMode) {
        self.close(mode, StopReason::Shutdown);
    }

    /// Whether a shutdown was begun, and everything is over, or was waited for long enough.
    pub fn is_shut_down(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.is_given_up || self.reactor.queues.unfinished == 0)
    }

    pub(super) fn close(&mut self, mode: ShutdownMode, reason: StopReason) {
        let drain = self.reactor.settings.drain_total_max;
        let time = match mode {
            ShutdownMode::Kill => drain + PATIENCE,
            ShutdownMode::Stop { grace, .. } => drain.saturating_add(PATIENCE).saturating_add(grace),
            ShutdownMode::Leave => drain,
        };
        let now = Instant::now();
        // A grace time beyond what the clock can say never ends.
        let deadline = now.checked_add(time).unwrap_or(now + crate::builder::TIME_MAX);
        self.closing = Some(Closing { mode, deadline, is_given_up: false });
        for key in self.table.unfinished() {
            self.end_job(key, mode, reason);
        }
        // If arming fails, so does the next turn, which says so.
        let _ = self.arm_errands();
        let _ = self.reactor.announce_reports();
    }

    fn end_job(&mut self, key: Key, mode: ShutdownMode, reason: StopReason) {
        let Some(job) = self.table.get_mut(key) else { return };
        let lent = &mut self.reactor.lend();
        // A job that cannot be signalled is among those that are not over in the end.
        let _ = match mode {
            ShutdownMode::Stop { signal, grace } => job.stop_with(reason, signal, grace, lent),
            ShutdownMode::Leave if !job.is_internal() && !job.is_waiting_for_slot() => {
                job.leave(lent);
                Ok(())
            }
            ShutdownMode::Kill | ShutdownMode::Leave => job.stop(reason, lent),
        };
    }

    /// Lets go of the jobs that could not be left before; when there is no more time for that, kills them; and then gives up.
    pub(super) fn go_on_closing(&mut self) {
        let Some(Closing { mode, deadline, is_given_up: false }) = self.closing else { return };
        if self.reactor.queues.unfinished == 0 {
            return;
        }
        match (mode, Instant::now() >= deadline) {
            (ShutdownMode::Leave, false) => {
                for key in self.table.unfinished() {
                    if let Some(job) = self.table.get_mut(key).filter(|job| !job.is_internal()) {
                        job.leave(&mut self.reactor.lend());
                    }
                }
            }
            (ShutdownMode::Leave, true) => self.stop_leaving(),
            (_, false) => {}
            (_, true) => self.closing = Some(Closing { mode, deadline, is_given_up: true }),
        }
    }

    /// Kills what could not be left, but for those that have a grace time to their end.
    fn stop_leaving(&mut self) {
        let mut last = Instant::now();
        for key in self.table.unfinished() {
            let Some(job) = self.table.get_mut(key) else { continue };
            let lent = &mut self.reactor.lend();
            match job.grace_due(lent) {
                Some(due) => last = last.max(due),
                // One that cannot be killed is among those that are not over in the end.
                None => drop(job.stop(StopReason::Shutdown, lent)),
            }
        }
        let deadline = last + self.reactor.settings.drain_total_max + PATIENCE;
        self.closing = Some(Closing { mode: ShutdownMode::Kill, deadline, is_given_up: false });
    }

    /// When a shutdown has something to do that no job asks for.
    pub(super) fn closing_due(&self) -> Option<Instant> {
        self.closing.as_ref().filter(|closing| !closing.is_given_up && self.reactor.queues.unfinished > 0).map(|closing| closing.deadline)
    }

    /// Everything that is bound to the worker ends with it. Also while a panic unwinds.
    pub(super) fn end(&mut self) {
        self.close_inbox();
        // The command that archives is a job, and is stopped like one.
        self.retention = None;
        self.close(ShutdownMode::Kill, StopReason::WorkerDropped);
        // What is killed is gone in milliseconds; a task in an uninterruptible wait is given the time that every job has for its end.
        while !self.is_shut_down() {
            if self.turn_reactor(None).is_err() {
                break;
            }
        }
        for key in self.table.unfinished() {
            self.with_key(key, Job::end_streams);
        }
        self.answer_handles();
        self.answer_gone();
        self.wake_tasks();
        for key in self.table.not_gone() {
            self.with_key(key, Job::abandon_cgroup);
        }
    }
}
