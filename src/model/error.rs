//! What went wrong: one enum per kind of operation. The cause stands in `source()`.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::model::id::JobId;
use crate::model::output::OutputStream;
use crate::model::reading::GapKind;
use crate::model::resource::Resource;
use crate::model::signal::Signal;

/// A [`Command`](crate::Command) that cannot be run whatever the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The program's name is empty.
    #[error("the program is empty")]
    EmptyProgram,
    /// The working directory is empty.
    #[error("the working directory is empty: leave it out to keep the host's")]
    EmptyCwd,
    /// A string that goes to the kernel has a NUL byte in it.
    #[error("{what} has a NUL byte in it: {text:?}")]
    Nul {
        /// Which string.
        what: &'static str,
        /// The string.
        text: OsString,
    },
    /// The name of an environment variable is empty or has an equals sign in it.
    #[error("{name:?} cannot be the name of an environment variable")]
    EnvName {
        /// The name.
        name: OsString,
    },
    /// A number is out of its range.
    #[error("{what} is {value}, outside {min} to {max}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: i64,
        /// The smallest allowed.
        min: i64,
        /// The largest allowed.
        max: i64,
    },
    /// Two file descriptors are passed under one number.
    #[error("two file descriptors are passed under number {number}")]
    FdTwice {
        /// The number.
        number: i32,
    },
    /// The CPU time of a limit is no number of CPUs from 0.01.
    #[error("cpu.max is {cores} CPUs: at least 0.01 is needed")]
    CpuMax {
        /// What was asked for.
        cores: String,
    },
    /// The text of a limit is no list of numbers and ranges.
    #[error("{what} is {list:?}, no list such as \"0-3,7\"")]
    NumberList {
        /// Which limit.
        what: &'static str,
        /// The text.
        list: String,
    },
    /// The path of a device to limit is empty, or has a NUL byte in it.
    #[error("{path:?} cannot be the path of a device")]
    IoDevice {
        /// The path.
        path: PathBuf,
    },
    /// Two things were asked for that exclude each other.
    #[error("{what}: {reason}")]
    Conflict {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be.
        reason: &'static str,
    },
    /// A soft limit above its hard limit.
    #[error("the soft limit {soft} of {resource:?} is above its hard limit {hard}")]
    Rlimit {
        /// The resource.
        resource: Resource,
        /// The soft limit.
        soft: u64,
        /// The hard limit.
        hard: u64,
    },
}

/// The step of a start that failed, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// The log file was created.
    Log,
    /// A pipe, or the file of stdin, was made.
    Pipe,
    /// The job's cgroup was made, or the child put into it.
    Cgroup,
    /// A limit was written into the job's cgroup.
    Limit,
    /// A spawn slot was waited for.
    Slot,
    /// The process was made (clone3(2), fork(2)).
    Clone,
    /// The process was put into the loop (epoll_ctl(2), pidfd_open(2)).
    Watch,
    /// A file descriptor was put at its number.
    Dup,
    /// The other file descriptors were closed.
    CloseFds,
    /// A new session was begun: setsid(2).
    Setsid,
    /// `/proc/self/oom_score_adj` was written.
    OomScoreAdj,
    /// A resource limit was set: setrlimit(2).
    Rlimit,
    /// The nice value was set: setpriority(2).
    Nice,
    /// The supplementary groups were set: setgroups(2).
    Setgroups,
    /// The group id was set: setresgid(2).
    Setgid,
    /// The user id was set: setresuid(2).
    Setuid,
    /// The working directory was entered: chdir(2).
    Chdir,
    /// PR_SET_NO_NEW_PRIVS was set.
    NoNewPrivs,
    /// Signals were reset: sigaction(2), sigprocmask(2).
    Signals,
    /// The program was executed: execve(2).
    Exec,
    /// The program is there, the interpreter that its `#!` line or ELF header names is not.
    Interpreter,
    /// Somebody killed the child before its program was executed: the out-of-memory killer of its cgroup, say, or its user.
    Killed,
}

impl Step {
    /// The step's short name, as it stands in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Log => "log",
            Step::Pipe => "pipe",
            Step::Cgroup => "cgroup",
            Step::Limit => "limit",
            Step::Slot => "slot",
            Step::Clone => "clone",
            Step::Watch => "watch",
            Step::Dup => "dup",
            Step::CloseFds => "close_fds",
            Step::Setsid => "setsid",
            Step::Rlimit => "rlimit",
            Step::Nice => "nice",
            Step::OomScoreAdj => "oom_score_adj",
            Step::Setgroups => "setgroups",
            Step::Setgid => "setgid",
            Step::Setuid => "setuid",
            Step::Chdir => "chdir",
            Step::NoNewPrivs => "no_new_privs",
            Step::Signals => "signals",
            Step::Exec => "exec",
            Step::Interpreter => "interpreter",
            Step::Killed => "killed",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which step of a start failed, on what, and why: also kept in the status of a job whose start failed after `start` returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    pub(crate) step: Step,
    pub(crate) path: Option<PathBuf>,
    pub(crate) errno: i32,
    pub(crate) signal: Option<Signal>,
    /// What to do about it, where more is known than the step and the error number tell.
    pub(crate) advice: Option<Box<str>>,
}

impl StartFailure {
    pub(crate) fn new(step: Step, path: Option<&Path>, error: &io::Error) -> Self {
        Self { step, path: path.map(Path::to_owned), errno: error.raw_os_error().unwrap_or(0), signal: None, advice: None }
    }

    /// A limit could not be set.
    pub(crate) fn limit(path: Option<&Path>, error: &io::Error, advice: Option<String>) -> Self {
        Self { advice: advice.map(Into::into), ..Self::new(Step::Limit, path, error) }
    }

    /// The child was killed by `signal` before its program was executed.
    pub(crate) fn killed(signal: Signal) -> Self {
        Self { step: Step::Killed, path: None, errno: 0, signal: Some(signal), advice: None }
    }

    /// The job was stopped before there was a process.
    pub(crate) fn cancelled() -> Self {
        Self { step: Step::Slot, path: None, errno: errno::ECANCELED, signal: None, advice: None }
    }

    /// The step that failed.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The file or directory it failed on, if it was about one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The error number (ENOENT, EACCES …); 0 if the failure was not the kernel's.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The signal that killed the child before its program was executed, for [`Step::Killed`].
    pub fn signal(&self) -> Option<Signal> {
        self.signal
    }

    /// What to do about it, where that is known.
    pub fn advice(&self) -> Option<&str> {
        if let Some(advice) = &self.advice {
            return Some(advice);
        }
        Some(match (self.step, self.errno) {
            (_, errno::EMFILE) => {
                "this process is at its limit of open files: raise RLIMIT_NOFILE (Builder::raise_nofile) or run fewer jobs at a time"
            }
            (_, errno::ENFILE) => "the machine is at its limit of open files: raise fs.file-max",
            (Step::Dup, errno::EBADF | errno::EINVAL) => {
                "a file descriptor's number is not below the limit of open files of this process: raise RLIMIT_NOFILE"
            }
            (Step::Clone, errno::EAGAIN) => "a limit on processes was reached: see RLIMIT_NPROC, pids.max and kernel.pid_max",
            (Step::Slot, errno::ECANCELED) => "the job was stopped before it was started",
            (Step::Exec, errno::EAGAIN) => "the user is at its limit of processes: see RLIMIT_NPROC",
            (Step::Exec, errno::E2BIG) => "the arguments and environment are larger than the kernel takes: see RLIMIT_STACK and execve(2)",
            (Step::Exec, errno::ENOEXEC) => "the file is neither a binary for this machine nor a script with a #! line",
            (Step::Exec, errno::ENOENT) => "no such program: check the name and PATH",
            (Step::Exec, errno::EACCES) => "not an executable file for this user",
            (Step::Interpreter, _) => "the program is there, but the interpreter that it names is not",
            (Step::Setgroups | Step::Setgid | Step::Setuid, errno::EPERM) => {
                "running as somebody else needs CAP_SETUID and CAP_SETGID, as root has them"
            }
            (Step::Cgroup, errno::EACCES) => {
                "delegate the cgroup to this user (also cgroup.procs of the common ancestor), or run without cgroups"
            }
            (Step::Cgroup, errno::EBUSY | errno::EOPNOTSUPP) => {
                "the base cgroup must be able to hold jobs: see \"no internal processes\" in cgroups(7)"
            }
            _ => return None,
        })
    }

    fn cause(&self) -> Option<io::Error> {
        (self.errno != 0).then(|| io::Error::from_raw_os_error(self.errno))
    }
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(signal) = self.signal {
            return write!(f, "{signal} killed the child before its program was executed");
        }
        write!(f, "{} failed", self.step)?;
        if let Some(path) = &self.path {
            write!(f, " on {}", path.display())?;
        }
        if let Some(cause) = self.cause() {
            write!(f, ": {cause}")?;
        }
        if let Some(advice) = self.advice() {
            write!(f, " ({advice})")?;
        }
        Ok(())
    }
}

impl std::error::Error for StartFailure {}

/// Why a job was not started. Nothing is left of it: no process, file, cgroup or descriptor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The command cannot be run whatever the machine.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A step of the start failed.
    #[error(transparent)]
    Failed(#[from] StartFailure),
    /// The worker has as many unfinished jobs as `Builder::jobs_max` allows.
    #[error("the worker is at its limit of {jobs_max} unfinished jobs")]
    TooManyJobs {
        /// The limit.
        jobs_max: usize,
    },
    /// The worker is being shut down, or was.
    #[error("the worker is shut down: it starts nothing more")]
    ShuttingDown,
    /// The worker could not be asked.
    #[error(transparent)]
    Handle(#[from] HandleError),
}

impl StartError {
    /// The failed step, if the start got that far.
    pub fn failure(&self) -> Option<&StartFailure> {
        match self {
            StartError::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

/// Why an operation on a job failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// There is no such job: never started here, forgotten, evicted, or another owner's.
    #[error("there is no job {job}")]
    NotFound {
        /// The id asked for.
        job: JobId,
    },
    /// The job has not finished yet.
    #[error("job {job} has not finished: stop it first")]
    NotFinished {
        /// The job.
        job: JobId,
    },
    /// There is no process yet: the job waits for a spawn slot.
    #[error("job {job} has no process yet")]
    NotStarted {
        /// The job.
        job: JobId,
    },
    /// Its program was not executed yet, and until then the child stands in the host's memory: a limit could hit the host. Wait for
    /// [`Event::Started`](crate::Event::Started).
    #[error("job {job} is still starting: its limits can be changed once its program runs")]
    Starting {
        /// The job.
        job: JobId,
    },
    /// The job has no cgroup.
    #[error("job {job} has no cgroup: {reason}")]
    NoCgroup {
        /// The job.
        job: JobId,
        /// Why not.
        reason: String,
    },
    /// The limits cannot be set whatever the machine.
    #[error("the limits for job {job} cannot be set")]
    InvalidLimits {
        /// The job.
        job: JobId,
        /// What is wrong with them.
        source: CommandError,
    },
    /// A limit could not be set; those that came before it in the kernel's list (cpu, memory, pids, cpuset, io) are.
    #[error("a limit of job {job} could not be set: {}{}", path.display(), with_advice(advice.as_deref()))]
    Limit {
        /// The job.
        job: JobId,
        /// The file that it was to be written to, or the device that it is about.
        path: PathBuf,
        /// What to do about it, where that is known.
        advice: Option<String>,
        /// The cause.
        source: io::Error,
    },
    /// A pressure that the kernel cannot watch for.
    #[error("the pressure asked about of job {job} needs a window of 500 ms to 10 s, and a threshold not above that")]
    InvalidPressure {
        /// The job.
        job: JobId,
    },
    /// The main process has ended, nothing is left to signal.
    #[error("the main process of job {job} has ended")]
    Ended {
        /// The job.
        job: JobId,
    },
    /// A system call on the job's processes failed.
    #[error("{operation} of job {job} failed")]
    Io {
        /// The job.
        job: JobId,
        /// What was being done.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The loop failed while it was waited for.
    #[error("the loop failed while job {job} was waited for")]
    Turn {
        /// The job.
        job: JobId,
        /// The cause.
        source: TurnError,
    },
    /// The worker could not be asked.
    #[error(transparent)]
    Handle(#[from] HandleError),
}

fn with_advice(advice: Option<&str>) -> String {
    advice.map(|advice| format!(" ({advice})")).unwrap_or_default()
}

/// Why [`Worker::run_job`](crate::Worker::run_job) has no status to give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The job was not started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It was started, but could not be waited for.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The worker could not be asked.
    #[error(transparent)]
    Handle(#[from] HandleError),
}

/// Why a [`Handle`](crate::Handle) has no answer to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The worker was dropped before it answered.
    #[error("the worker is gone")]
    Gone,
    /// What was given to [`Handle::call`](crate::Handle::call) has panicked.
    #[error("what the worker was asked to do has panicked")]
    Panicked,
    /// The thread that waits is the one that turns the worker, so the answer would never come.
    #[error("this thread turns the worker, and would wait for itself: use the worker itself, or await the answer")]
    OwnThread,
    /// The loop failed, or the runtime that it is in was shut down, before the worker answered. Its next turn says more.
    #[error("the worker's loop failed before it answered")]
    LoopFailed,
}

/// Why a log could not be streamed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no such job: never started here, forgotten, evicted, or another owner's.
    #[error("there is no job {job}")]
    NotFound {
        /// The id asked for.
        job: JobId,
    },
    /// The job has no log: its output is inherited, piped or discarded, or its start failed.
    #[error("job {job} has no log: its output is not captured, or its start failed")]
    NotLogged {
        /// The job.
        job: JobId,
    },
    /// A raw log of two pipes does not say which bytes are whose.
    #[error("a raw log of both streams cannot be read for {stream} alone: use the CRI format")]
    NotSeparable {
        /// The stream asked for.
        stream: OutputStream,
    },
    /// The log file could not be opened or read.
    #[error("the log {} could not be read", path.display())]
    Io {
        /// The log file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A raw log holds no times.
    #[error("the log {} is raw and holds no times: use the CRI format", path.display())]
    NoTimes {
        /// The log file.
        path: PathBuf,
    },
    /// A record in the log is not what the format says: the file was changed by someone else, or torn. Reading goes on behind it.
    #[error("the log {} has a malformed record at byte {offset}", path.display())]
    Malformed {
        /// The log file.
        path: PathBuf,
        /// Where the record begins: bytes from the beginning of the log, all its files counted.
        offset: u64,
    },
    /// Something is missing here. Reading goes on behind it.
    #[error("{}", gap_text(path, *bytes, *kind))]
    Gap {
        /// The log file.
        path: PathBuf,
        /// How much: of what, says `kind`.
        bytes: u64,
        /// What is missing.
        kind: GapKind,
    },
    /// Somebody has made the file shorter than what was read of it. Reading goes on where the file ends now, if it still begins as it did; else it was begun anew, and is read
    /// from its beginning. (One that has grown beyond that again
    /// before it was looked at cannot be told from one that was never cut.)
    #[error("the log {} was truncated", path.display())]
    Truncated {
        /// The log file.
        path: PathBuf,
    },
    /// The worker could not be asked.
    #[error(transparent)]
    Handle(#[from] HandleError),
}

impl StreamError {
    /// Whether reading goes on behind this: it tells of something in the log, and not that the log cannot be read.
    pub fn is_passable(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::Gap { .. } | Self::Truncated { .. })
    }
}

fn gap_text(path: &Path, bytes: u64, kind: GapKind) -> String {
    let path = path.display();
    match kind {
        GapKind::Files => format!("{bytes} bytes of the log {path} are gone: the files that held them were deleted"),
        GapKind::UncountedFiles => format!("a part of the log {path} is gone: the files that held it were deleted"),
        GapKind::Output => format!("{bytes} bytes of output are missing in the log {path}"),
    }
}

/// Why a worker could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The log directory cannot be used.
    #[error("the log directory {} cannot be used", path.display())]
    LogDir {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A directory that must be ours alone belongs to someone else, or others can write it.
    #[error("{} must be a directory that only uid {uid} can write: remove it, or choose another log directory", path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// The user id of this process.
        uid: u32,
    },
    /// The cgroup base that was asked for cannot be used.
    #[error("the cgroup base {} cannot be used", path.display())]
    CgroupBase {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The policy of the logs has something in it that cannot be.
    #[error("the log policy cannot be used")]
    LogPolicy {
        /// What is wrong with it.
        source: CommandError,
    },
    /// A rung of the spawn ladder was asked for that this machine does not have.
    #[error("the spawn rung {rung} cannot be had here: {reason}")]
    Rung {
        /// The rung.
        rung: crate::model::capabilities::Rung,
        /// Why not.
        reason: &'static str,
    },
    /// What was asked of retention is out of range.
    #[error("retention cannot be had: {reason}")]
    Retention {
        /// What is wrong with it.
        reason: String,
    },
    /// A kernel object of the loop could not be made.
    #[error("{operation} failed")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// The loop's own epoll, inotify or timer descriptor failed. Jobs are not affected; the next turn may work.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed")]
pub struct TurnError {
    pub(crate) operation: &'static str,
    pub(crate) source: io::Error,
}

impl TurnError {
    pub(crate) fn new(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { operation, source }
    }
}

/// The error numbers that advice is given on, the same on x86-64 and AArch64 (asm-generic/errno.h).
pub(crate) mod errno {
    pub(crate) const EPERM: i32 = 1;
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const ESRCH: i32 = 3;
    pub(crate) const EIO: i32 = 5;
    pub(crate) const E2BIG: i32 = 7;
    pub(crate) const ENOEXEC: i32 = 8;
    pub(crate) const EBADF: i32 = 9;
    pub(crate) const EAGAIN: i32 = 11;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EBUSY: i32 = 16;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ENFILE: i32 = 23;
    pub(crate) const EMFILE: i32 = 24;
    pub(crate) const EFBIG: i32 = 27;
    pub(crate) const ENOSPC: i32 = 28;
    pub(crate) const EROFS: i32 = 30;
    pub(crate) const ENOSYS: i32 = 38;
    pub(crate) const EOPNOTSUPP: i32 = 95;
    pub(crate) const ESTALE: i32 = 116;
    pub(crate) const EDQUOT: i32 = 122;
    pub(crate) const ECANCELED: i32 = 125;
}
