//! How a worker ends.

use std::time::Duration;

use crate::model::signal::Signal;

/// What becomes of the jobs when a worker is [shut down](crate::Worker::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownMode {
    /// Every job's whole tree is killed at once, with SIGKILL.
    Kill,
    /// Every job's process group gets a signal, and what is left of its tree after the grace time SIGKILL: [`Worker::stop_with`](crate::Worker::stop_with).
    Stop {
        /// The signal.
        signal: Signal,
        /// The grace time.
        grace: Duration,
    },
    /// The jobs run on, and nobody watches them any more. What they have written by now is in their logs; then their pipes are closed, so that a job which goes on
    /// writing into one is ended by SIGPIPE, as a rule. A job that is to outlive its host writes into its log itself, or nowhere:
    /// [`Capture::Direct`](crate::Capture::Direct), [`Capture::Discard`](crate::Capture::Discard), [`Capture::Inherit`](crate::Capture::Inherit).
    ///
    /// Its log is not sealed, its cgroup stays (and a frozen job frozen). To other workers both look like what a crash has left: the cgroup is among their
    /// [`leftovers`](crate::Worker::leftovers), so that a host which calls [`kill_leftovers`](crate::Worker::kill_leftovers) when it starts kills the job, and
    /// [`Retention`](crate::Retention) seals and deletes the log in its time, although the job may still write into it. The processes stay children of this
    /// one: as long as it lives, those that end stay zombies, unless it waits for them (waitpid(2), [`Status::pid`](crate::Status::pid)).
    ///
    /// A job whose program was not executed yet is waited for, up to [`Builder::drain_total_max`](crate::Builder::drain_total_max), and then killed. One that waits for a spawn slot is
    /// not started at all, one that was being stopped is, in its grace time, and one whose main process has ended comes to its end, unless what it has left behind is
    /// [waited for](crate::TreePolicy::Wait).
    Leave,
}
