//! What is answered about a job.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::model::capabilities::{Rung, RungReason};
use crate::model::error::StartFailure;
use crate::model::id::{JobId, OwnerId};
use crate::model::signal::Signal;
use crate::model::usage::CgroupUsage;

/// Where a job stands. It only moves downwards in this list, and ends in one of the last four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobState {
    /// Its program was not executed yet, as far as is known; it may still wait for a spawn slot.
    Starting,
    /// The program runs.
    Running,
    /// It was told to stop.
    Stopping,
    /// The main process has ended; the rest of its tree is ending, its last output is being read.
    Draining,
    /// All over: the exit status is final, every byte is in the log.
    Finished,
    /// The start failed: see [`Status::failure`].
    Failed,
    /// All over, but how the main process ended is not to be known: somebody else reaped it and the kernel is too old to tell.
    Unknown,
    /// It was let go of, and runs on without anybody watching it: [`ShutdownMode::Leave`](crate::ShutdownMode::Leave).
    Left,
}

impl JobState {
    /// Whether nothing more will happen to the job, as far as the worker can tell.
    pub fn is_finished(self) -> bool {
        matches!(self, JobState::Finished | JobState::Failed | JobState::Unknown | JobState::Left)
    }

    /// The state in lower case, for instance "running".
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Starting => "starting",
            JobState::Running => "running",
            JobState::Stopping => "stopping",
            JobState::Draining => "draining",
            JobState::Finished => "finished",
            JobState::Failed => "failed",
            JobState::Unknown => "unknown",
            JobState::Left => "left",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this code, 0 to 255.
    Code(i32),
    /// A signal killed it.
    Signal {
        /// Which.
        signal: Signal,
        /// Whether it dumped core.
        core_dumped: bool,
    },
    /// Somebody else has reaped it and the kernel does not tell.
    Unknown,
}

/// Why a job was stopped, if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// The caller asked for it.
    Requested,
    /// Its timeout passed.
    Timeout,
    /// The worker was dropped.
    WorkerDropped,
    /// Its log could not be written: [`OnLogFault::Kill`](crate::OnLogFault::Kill).
    LogFault,
    /// The worker was shut down: [`Worker::shutdown`](crate::Worker::shutdown).
    Shutdown,
}

impl StopReason {
    /// The reason in lower case: "requested", "timeout", "worker_dropped", "log_fault" or "shutdown".
    pub fn as_str(self) -> &'static str {
        match self {
            StopReason::Requested => "requested",
            StopReason::Timeout => "timeout",
            StopReason::WorkerDropped => "worker_dropped",
            StopReason::LogFault => "log_fault",
            StopReason::Shutdown => "shutdown",
        }
    }
}

/// What the main process, and the children it waited for, used; see getrusage(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResourceUsage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// Largest resident set of one of the processes, in bytes. Not less than the host's at the start: the kernel counts from the clone, not the exec.
    pub max_rss_bytes: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// Bytes read from disk.
    pub read_bytes: u64,
    /// Bytes written to disk.
    pub write_bytes: u64,
    /// Times it gave up the CPU by itself.
    pub voluntary_switches: u64,
    /// Times the CPU was taken from it.
    pub involuntary_switches: u64,
}

/// What has become of the job's output so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutputCount {
    /// Bytes read from stdout (from both, where they share one pipe).
    pub stdout_bytes: u64,
    /// Bytes read from stderr.
    pub stderr_bytes: u64,
    /// Line feeds among them.
    pub lines: u64,
    /// Bytes that are not in the log because it could not be written.
    pub dropped_bytes: u64,
    /// Bytes that are not in the log because its [`LogPolicy`](crate::LogPolicy) says so: it was full, or they came too fast.
    pub discarded_bytes: u64,
    /// Bytes that were in files of the log which were deleted because it was rotated.
    pub deleted_bytes: u64,
    /// How often the log was rotated.
    pub rotations: u64,
    /// Whether the outputs were closed before their end: a process that escaped the job's tree still held them.
    pub cut_off: bool,
}

/// Everything known about a job. A value: it does not change when the job goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The job.
    pub id: JobId,
    /// Who owns it.
    pub owner: OwnerId,
    /// Its name, as in the names of its log and cgroup.
    pub name: String,
    /// The main process's id, never reused while the job has not finished; 0 while there is none yet: kill(2) takes a 0
    /// for the caller's own group, [`Worker::signal`](crate::Worker::signal) does not.
    pub pid: i32,
    /// Where it stands.
    pub state: JobState,
    /// How the main process ended; `None` while it runs, or when the start failed.
    pub exit: Option<Exit>,
    /// The exit code, 0 to 255; -1 while there is none and for a process killed by a signal.
    pub exit_code: i32,
    /// Why it was stopped, if it was.
    pub stop_reason: Option<StopReason>,
    /// Why the start failed, if it did.
    pub failure: Option<StartFailure>,
    /// When it was started, by the wall clock.
    pub started: SystemTime,
    /// When it finished, by the wall clock.
    pub finished: Option<SystemTime>,
    /// How long the main process ran, or has run so far, by the monotonic clock.
    pub run_time: Duration,
    /// What it used; `None` while it runs, or if somebody else has reaped it.
    pub usage: Option<ResourceUsage>,
    /// Whether the main process was killed because there was no memory for it (`oom_kill` in `memory.events`, and a SIGKILL that was not ours).
    pub oom_killed: bool,
    /// Whether its processes are frozen: see [`Worker::freeze`](crate::Worker::freeze).
    pub frozen: bool,
    /// What its whole tree has used, once that is gone, or the job over: of jobs with limits, or where
    /// [`Builder::accounting`](crate::Builder::accounting) is on. While it runs [`Worker::usage`](crate::Worker::usage) tells.
    pub cgroup_usage: Option<CgroupUsage>,
    /// What has become of its output.
    pub output: OutputCount,
    /// Its log file; `None` if its output is not logged.
    pub log: Option<PathBuf>,
    /// Its cgroup; `None` if it runs without.
    pub cgroup: Option<PathBuf>,
    /// Whether its cgroup could not be emptied and removed in time; the worker removes it when it is empty after all.
    pub cgroup_left: bool,
    /// How it was started, or is to be.
    pub rung: Rung,
    /// Why on this rung.
    pub rung_reason: RungReason,
}

impl Status {
    /// Whether nothing more will happen to the job.
    pub fn is_finished(&self) -> bool {
        self.state.is_finished()
    }

    /// Whether the job finished with exit code 0.
    pub fn success(&self) -> bool {
        self.state == JobState::Finished && self.exit_code == 0
    }

    /// The signal that killed the main process, if one did.
    pub fn signal(&self) -> Option<Signal> {
        match self.exit {
            Some(Exit::Signal { signal, .. }) => Some(signal),
            _ => None,
        }
    }
}
