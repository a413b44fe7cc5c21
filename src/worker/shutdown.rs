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
        self.reactor.announce_reports()?;
        Ok(self.unfinished_jobs())
    }

    /// As [`shutdown`](Self::shutdown), without waiting: turn the loop until [`is_shut_down`](Self::is_shut_down).
    pub fn begin_shutdown(&mut self, mode: ShutdownMode) {
        self.close(mode, StopReason::Shutdown);
    }

    /// Whether a shutdown was begun, and everything is over, or was waited for long enough.
    pub fn is_shut_down(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| self.reactor.queues.unfinished == 0 || Instant::now() >= closing.deadline)
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
        self.closing = Some(Closing { mode, deadline });
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

    /// Lets go of the jobs that could not be left before, and kills those for which there is no more time.
    pub(super) fn go_on_closing(&mut self) {
        let Some(Closing { mode: ShutdownMode::Leave, deadline }) = self.closing else { return };
        if self.reactor.queues.unfinished == 0 {
            return;
        }
        if Instant::now() >= deadline {
            self.close(ShutdownMode::Kill, StopReason::Shutdown);
            return;
        }
        for key in self.table.unfinished() {
            if let Some(job) = self.table.get_mut(key).filter(|job| !job.is_internal()) {
                job.leave(&mut self.reactor.lend());
            }
        }
    }

    /// When a shutdown has something to do that no job asks for.
    pub(super) fn closing_due(&self) -> Option<Instant> {
        // Once it has passed, what is left is waited for no more.
        let deadline = self.closing.as_ref().filter(|_| self.reactor.queues.unfinished > 0)?.deadline;
        (deadline > Instant::now()).then_some(deadline)
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
        self.wake_tasks();
        for key in self.table.not_gone() {
            self.with_key(key, Job::abandon_cgroup);
        }
    }
}
