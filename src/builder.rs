//! Floor 6: how a worker comes to be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::job::Host;
use crate::kernel::cgroup::{CgroupTree, Discovery};
use crate::kernel::log_dir::LogDir;
use crate::kernel::spawner::Spawner;
use crate::kernel::{process, stdio};
use crate::lent::unix_millis;
use crate::logic::ids::Ids;
use crate::model::capabilities::{Capabilities, Rung};
use crate::model::error::BuildError;
use crate::model::log_policy::LogPolicy;
use crate::model::output::{Capture, LogFormat};
use crate::model::retention::Retention;
use crate::model::settings::{CgroupBase, EnvBase, Settings};
use crate::reactor::Reactor;
use crate::retention::Collector;
use crate::worker::Worker;

/// The largest `line_bytes_max`.
const LINE_BYTES_LIMIT: usize = 8 << 20;

/// The longest that output may be left to gather.
const COALESCE_TIME_LIMIT: Duration = Duration::from_millis(100);

/// The longest time that a setting takes: what is longer might not fit the clock, and nobody waits for it.
pub(crate) const TIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// Builds a [`Worker`]. Every setting has a default that suits a host of thousands of jobs. A time above ten years counts as ten years.
///
/// ```
/// use std::time::Duration;
/// use iron_exec::{EnvBase, Worker};
///
/// let worker = Worker::builder()
///     .env_base(EnvBase::Clear)
///     .confirm_timeout(Duration::from_millis(20))
///     .build()?;
/// println!("{:?}", worker.capabilities());
/// # Ok::<(), iron_exec::BuildError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    settings: Settings,
}

impl Worker {
    /// A worker with default settings: logs in `/tmp`, cgroups where they can be had.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// A worker with other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Builder {
    /// The directory of the log files. Default: `/tmp`. It must exist.
    ///
    /// The worker keeps a lock in `.iron-exec-UID` below it as long as it lives, by which others can tell a live log from a left-over.
    /// In a directory that others can write, somebody may take that name first: then [`build`](Self::build) says so ([`BuildError::Untrusted`]), and
    /// a directory of the host's own is the answer.
    pub fn log_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.settings.log_dir = directory.into();
        self
    }

    /// The format of the logs of commands that do not say. Default: [`LogFormat::Cri`].
    pub fn log_format(mut self, format: LogFormat) -> Self {
        self.settings.log_format = format;
        self
    }

    /// The bounds of the logs of commands that do not say, and what happens at them. Default: none, and what cannot be written is dropped and counted.
    pub fn log_policy(mut self, policy: LogPolicy) -> Self {
        self.settings.log_policy = policy;
        self
    }

    /// Where jobs get their cgroups. Default: [`CgroupBase::Auto`].
    pub fn cgroup_base(mut self, base: CgroupBase) -> Self {
        self.settings.cgroup_base = base;
        self
    }

    /// Whether this process moves to a leaf of the cgroup that it is in, `supervisor`, if that is the base: a cgroup that holds processes of its own cannot hand
    /// controllers down to others (cgroups(7), "no internal processes"), so that limits cannot be had. It stays there. With [`CgroupBase::Auto`] its own
    /// cgroup becomes the base, even one that nobody has marked as delegated, for instance that of a container. Default: no.
    pub fn take_over_cgroup(mut self, take_over: bool) -> Self {
        self.settings.take_over_cgroup = take_over;
        self
    }

    /// Whether a controller that a limit needs, and that the cgroups above the base have but do not hand down, is enabled there, too: `cgroup.subtree_control`
    /// from the top of the hierarchy to the base. They are not ours, hence: default no.
    pub fn enable_controllers(mut self, enable: bool) -> Self {
        self.settings.enable_controllers = enable;
        self
    }

    /// Whether the controllers cpu, memory, io and pids are enabled for every job, as far as they can be had, and [`Status::cgroup_usage`](crate::Status::cgroup_usage)
    /// is read at the end of each. It costs each job three system calls for each of the files that tell, up to ten. Default: no; then that is told of jobs with limits.
    pub fn accounting(mut self, accounting: bool) -> Self {
        self.settings.accounting = accounting;
        self
    }

    /// The best rung of the spawn ladder that starts may take; a start that would not be safe on it takes a lower one (see
    /// [`Status::rung`](crate::Status::rung)). Default: the best that the machine has.
    pub fn rung(mut self, rung: Rung) -> Self {
        self.settings.rung = Some(rung);
        self
    }

    /// The number of children that may be on their way to their programs at a time on the rungs `detached` and `vfork`, 1 to 4096; further starts wait.
    /// A slot takes two file descriptors, and at most a 32nd of RLIMIT_NOFILE is spent on them. They are made with the worker: build it before the
    /// host opens thousands of files, for what is open below them costs each child time. Default: 64.
    pub fn spawn_slots_max(mut self, slots: usize) -> Self {
        self.settings.spawn_slots_max = slots.clamp(1, 4096);
        self
    }

    /// Whether this process is to stay dumpable (PR_SET_DUMPABLE): readable by its own user's debuggers, with a `/proc/self` that is its user's.
    /// Starting a job under another user or group id ends that for good, unless this is set: then such jobs take the rung `fork-like`. Default: no.
    pub fn keep_dumpable(mut self, keep: bool) -> Self {
        self.settings.keep_dumpable = keep;
        self
    }

    /// Whether `start` waits until the program was executed, and so returns "no such program" itself. Default: yes. A dense host says no: then
    /// nothing waits, and a failure comes as [`Event::StartFailed`](crate::Event::StartFailed).
    pub fn confirm(mut self, confirm: bool) -> Self {
        self.settings.confirm = confirm;
        self
    }

    /// How long a confirming `start` waits at most; after that the job is `Starting` and the loop goes on waiting. Default: 100 ms.
    pub fn confirm_timeout(mut self, timeout: Duration) -> Self {
        self.settings.confirm_timeout = timeout.min(TIME_MAX);
        self
    }

    /// The environment that jobs start from. Default: the host's.
    pub fn env_base(mut self, base: EnvBase) -> Self {
        self.settings.env_base = base;
        self
    }

    /// Raises this process's soft limit of open files (RLIMIT_NOFILE) to its hard limit. Jobs keep the limit that was. Default: no.
    pub fn raise_nofile(mut self, raise: bool) -> Self {
        self.settings.raise_nofile = raise;
        self
    }

    /// The number of unfinished jobs above which `start` refuses. Default: 100,000.
    pub fn jobs_max(mut self, jobs: usize) -> Self {
        self.settings.jobs_max = jobs;
        self
    }

    /// The number of finished jobs, their end told, whose status is kept; the oldest go first. Default: 10,000.
    pub fn finished_jobs_max(mut self, jobs: usize) -> Self {
        self.settings.finished_jobs_max = jobs;
        self
    }

    /// The number of log files kept open. The logs of more jobs than that are opened for each write, so that an idle job costs three file
    /// descriptors. Default: 512.
    pub fn open_logs_max(mut self, logs: usize) -> Self {
        self.settings.open_logs_max = logs;
        self
    }

    /// Bytes read from one job in one turn, before it is another's. At least 4096. Default: 256 KiB.
    pub fn read_budget_bytes(mut self, bytes: usize) -> Self {
        self.settings.read_budget_bytes = bytes.max(4096);
        self
    }

    /// Kernel events taken at a time, 1 to 65,536. Default: 1024.
    pub fn poll_events_max(mut self, events: usize) -> Self {
        self.settings.poll_events_max = events.clamp(1, 1 << 16);
        self
    }

    /// The length, in bytes, above which a line is logged in pieces. At least 1, at most 8 MiB. Default: 16 KiB.
    pub fn line_bytes_max(mut self, bytes: usize) -> Self {
        // Readers hold a whole record, and have a limit of their own.
        self.settings.line_bytes_max = bytes.clamp(1, LINE_BYTES_LIMIT);
        self
    }

    /// How long an unfinished line (a prompt, say) is held back before it is logged as it stands. Default: 100 ms.
    pub fn line_flush_time(mut self, time: Duration) -> Self {
        self.settings.line_flush_time = time.min(TIME_MAX);
        self
    }

    /// How long the output of a job that writes again and again in small pieces is left to gather before it is read: a program that writes every line, or
    /// every byte, by itself costs the host far less CPU time then (`cargo bench -p iron-exec-benches --bench coalesce`), and its lines come by that much
    /// later. 0 reads everything at once; at most 100 ms. Default: 1 ms.
    pub fn coalesce_time(mut self, time: Duration) -> Self {
        self.settings.coalesce_time = time.min(COALESCE_TIME_LIMIT);
        self
    }

    /// How long, after the main process has ended, outputs that processes outside the job's tree hold open may be silent before they are given
    /// up. Default: 500 ms.
    pub fn drain_idle_max(mut self, time: Duration) -> Self {
        self.settings.drain_idle_max = time.min(TIME_MAX);
        self
    }

    /// How long, after the main process has ended, the rest of the job may take in all. Default: 5 s.
    pub fn drain_total_max(mut self, time: Duration) -> Self {
        self.settings.drain_total_max = time.min(TIME_MAX);
        self
    }

    /// Which logs of the log directory are kept, those of other workers included. Default: all of them.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.settings.retention = Some(retention);
        self
    }

    /// Builds the worker.
    ///
    /// # Errors
    /// If the log directory, the cgroup base, the rung or the retention that was asked for cannot be had, or a kernel object of the loop cannot be
    /// made. Nothing is left then.
    pub fn build(self) -> Result<Worker, BuildError> {
        let mut settings = self.settings;
        let policy = settings.log_policy;
        let checked = policy.check().and_then(|()| policy.check_for(Capture::default(), settings.log_format));
        checked.map_err(|source| BuildError::LogPolicy { source })?;
        let retention = settings.retention.take();
        retention.as_ref().map_or(Ok(()), Retention::check)?;
        let nofile = if settings.raise_nofile { raise_nofile()? } else { None };
        let rungs = process::probe_rungs();
        let rung = match settings.rung {
            Some(rung) => match rungs.iter().find(|report| report.rung == rung).and_then(|report| report.missing) {
                Some(reason) => return Err(BuildError::Rung { rung, reason }),
                None => rung,
            },
            None => process::best_rung(&rungs),
        };
        let mut ids = Ids::default();
        let worker = ids.next(unix_millis());
        let (cgroups, cgroup_missing) = match CgroupTree::discover(&settings, worker)? {
            Discovery::Found(tree) => (Some(tree), None),
            Discovery::Missing(reason) => (None, Some(reason)),
        };
        let capabilities = Capabilities {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            rung,
            rungs,
            cgroup: cgroups.as_ref().map(CgroupTree::report),
            cgroup_missing,
            limits: cgroups.as_ref().map(CgroupTree::limit_reports).unwrap_or_default(),
            exit_info: process::probe_exit_info(),
            nofile: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        };
        let null = Arc::new(stdio::open_null().map_err(|source| BuildError::Io { operation: "opening /dev/null", source })?);
        let log_dir = LogDir::open(&settings.log_dir, worker)?;
        let spawner = Spawner::new(rung, settings.keep_dumpable, settings.spawn_slots_max, capabilities.nofile, &null);
        let spawner = spawner.map_err(|source| BuildError::Io { operation: "making the spawn slots", source })?;
        let host = Host { ids, null, nofile, cgroup_missing: capabilities.cgroup_missing.clone() };
        let env_base = settings.env_base;
        let reactor = Reactor::new(settings, spawner, log_dir, cgroups)?;
        let collector = retention.map(|retention| Collector::new(retention, env_base, &reactor.log_dir, Instant::now()));
        Ok(Worker::assemble(reactor, host, capabilities, collector))
    }
}

/// Raises the soft limit of open files to the hard one. Returns what it was.
fn raise_nofile() -> Result<Option<(u64, u64)>, BuildError> {
    let was = getrlimit(Resource::Nofile);
    if was.current == was.maximum {
        return Ok(None);
    }
    setrlimit(Resource::Nofile, Rlimit { current: was.maximum, maximum: was.maximum })
        .map_err(|errno| BuildError::Io { operation: "raising the limit of open files", source: errno.into() })?;
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    Ok(Some((number(was.current), number(was.maximum))))
}
