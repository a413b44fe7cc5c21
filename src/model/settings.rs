//! What a worker is built with.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::capabilities::Rung;
use crate::model::log_policy::LogPolicy;
use crate::model::output::LogFormat;
use crate::model::retention::Retention;

/// The environment that jobs start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EnvBase {
    /// The host's, as it is at the start of the job.
    #[default]
    Inherit,
    /// An empty one. For hosts whose environment holds secrets.
    Clear,
}

/// Where jobs get their cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CgroupBase {
    /// Our own cgroup if it is delegated to us (the `user.delegate` or `trusted.delegate` attribute, or, unless we are root, the ownership of its files), else
    /// `iron-exec` below the root of the hierarchy if we are root, else none. With [`Builder::take_over_cgroup`](crate::Builder::take_over_cgroup) our own
    /// cgroup if it can be had.
    #[default]
    Auto,
    /// This directory of a cgroup2 mount; made if it is not there.
    Path(PathBuf),
    /// None: jobs run without cgroups.
    Off,
}

/// Every setting of a worker, with its unit.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) log_dir: PathBuf,
    pub(crate) log_format: LogFormat,
    pub(crate) log_policy: LogPolicy,
    pub(crate) cgroup_base: CgroupBase,
    pub(crate) take_over_cgroup: bool,
    pub(crate) enable_controllers: bool,
    pub(crate) accounting: bool,
    pub(crate) rung: Option<Rung>,
    pub(crate) spawn_slots_max: usize,
    pub(crate) keep_dumpable: bool,
    pub(crate) confirm: bool,
    pub(crate) confirm_timeout: Duration,
    pub(crate) env_base: EnvBase,
    pub(crate) raise_nofile: bool,
    pub(crate) jobs_max: usize,
    pub(crate) finished_jobs_max: usize,
    pub(crate) open_logs_max: usize,
    pub(crate) read_budget_bytes: usize,
    pub(crate) poll_events_max: usize,
    pub(crate) line_bytes_max: usize,
    pub(crate) line_flush_time: Duration,
    pub(crate) coalesce_time: Duration,
    pub(crate) drain_idle_max: Duration,
    pub(crate) drain_total_max: Duration,
    pub(crate) retention: Option<Retention>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_dir: PathBuf::from("/tmp"),
            log_format: LogFormat::default(),
            log_policy: LogPolicy::default(),
            cgroup_base: CgroupBase::default(),
            take_over_cgroup: false,
            enable_controllers: false,
            accounting: false,
            rung: None,
            spawn_slots_max: 64,
            keep_dumpable: false,
            confirm: true,
            confirm_timeout: Duration::from_millis(100),
            env_base: EnvBase::default(),
            raise_nofile: false,
            jobs_max: 100_000,
            finished_jobs_max: 10_000,
            open_logs_max: 512,
            read_budget_bytes: 256 << 10,
            poll_events_max: 1024,
            line_bytes_max: 16 << 10,
            line_flush_time: Duration::from_millis(100),
            coalesce_time: Duration::from_millis(1),
            drain_idle_max: Duration::from_millis(500),
            drain_total_max: Duration::from_secs(5),
            retention: None,
        }
    }
}
